"""A run of several processes, for `test_together`; also what one process makes of the same.

    python -m tests.train.together ACT...

prints what came of each act, a line of JSON each.
"""

import itertools
import json
import os
import signal
import sys
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import funcnet as fn
from funcnet.errors import StructureError
from funcnet.nets import mlp
from tests import processes

CONFIG = mlp.Config(sizes=(6, 8, 4))
RULES = {"d_in": "data", "d_out": "tensor"}
OPTIMIZER = optax.adamw(1e-2)
TIMEOUT = 60.0

rng = np.random.default_rng(0)
X = rng.normal(size=(24, 6)).astype(np.float32)
Y = rng.integers(0, 4, 24).astype(np.int32)


def right(logits, labels):
    return logits.argmax(-1).astype(labels.dtype) == labels


def loss(params, batch, key):
    x, labels = batch
    logits = mlp.apply(params, x, CONFIG)
    each = fn.cross_entropy.apply(logits, labels)
    return each.mean(), {"each": each, "right": right(logits, labels).mean(dtype=jnp.float32)}


STEP = fn.train.make_step(loss, OPTIMIZER)
UNGUARDED = fn.train.make_step(loss, OPTIMIZER, guard=False)


def start():
    key = jax.random.key(0)
    init = lambda key: mlp.init(key, CONFIG)
    params = fn.shard.init(init, key, mlp.specs(CONFIG), RULES, whole_below=1)
    return fn.train.init(params, OPTIMIZER, key=key)


def data(epochs=None, transform=None):
    return fn.shard.place(fn.train.batches((X, Y), 8, seed=3, epochs=epochs, transform=transform))


def evaluate(state):
    measure = lambda params, batch: {"right": right(mlp.apply(params, batch[0], CONFIG), batch[1])}
    return fn.train.evaluate(measure, state.params, fn.shard.place(fn.train.in_order((X, Y), 8)))


def fit(batches=None, step=STEP, **options):
    options = {"timeout": TIMEOUT, "progress": False} | options
    return fn.train.fit(step, start(), data() if batches is None else batches, **options)


def trained(log=None):
    """What the records of a run say, but for its times."""
    state, history = fit(steps=5, evaluate=evaluate, every=2, log=log)
    keep = ("step", "loss", "each", "right", "eval_right")
    records = [{name: record[name] for name in keep if name in record} for record in history]
    return {"step": int(state.step), "ended": history.ended, "records": records}


def leaves(state):
    """All numbers of a state, whole, as every process can have them."""
    found = []
    for leaf in jax.tree.leaves(state):
        leaf = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        found.append(np.asarray(leaf).tolist() if leaf.is_fully_replicated else _whole(leaf))
    return found


# --- acts: what several processes do, by the name of the function -----------------------------------------


def rows(index, folder):
    """Which rows this process reads, and the batches that come of them, on meshes that lie differently."""
    from funcnet.train import data as arrays

    found, take = {}, arrays._rows
    for names in (("data", "tensor"), ("tensor", "data")):
        read = []
        arrays._rows = lambda *args, read=read: read.append(args[-2:]) or take(*args)
        with jax.set_mesh(jax.make_mesh((2, jax.device_count() // 2), names)):
            placed = fn.shard.place(fn.train.batches(np.arange(24), 8, seed=3))
            found[names[0]] = {"batches": [_whole(next(placed)) for _ in range(3)], "read": read[:3]}
    arrays._rows = take
    return found


def trap(index, folder):
    """What JAX makes of the nth part of a batch from each process, where processes share the same rows."""
    mesh = jax.make_mesh((2, jax.device_count() // 2), ("tensor", "data"))
    part = np.arange(8).reshape(jax.process_count(), -1)[index]
    made = jax.make_array_from_process_local_data(jax.NamedSharding(mesh, jax.P("data")), part)
    with jax.set_mesh(mesh):
        return {"theirs": made.shape, "ours": next(fn.shard.place([np.arange(8)])).shape}


def run(index, folder):
    return trained(folder / f"log-{index}")


def ahead(index, folder):
    """Threads do not see the mesh that is set; what is read ahead is given back."""
    batches = fn.train.prefetch(data())
    mapped = fn.train.mapped(data(transform=lambda batch, rng: batch), lambda batch, number: batch)
    _, read = fit(batches, steps=3)
    place = batches.position()["batch"], batches.position()["epoch"]
    return {
        "losses": read.column("loss")[1],
        "mapped": fit(mapped, steps=3)[1].column("loss")[1],
        "place": place,
    }


def short(index, folder):
    """The data of one process end before those of the others."""
    state, history = fit(itertools.islice(data(), 3 if index == 1 else 5))
    return {"step": int(state.step), "ended": history.ended}


def different(index, folder):
    """Options that differ, and a program that does."""
    texts = []
    for options in (
        {"steps": 3 + index},
        {"step": fn.train.make_step(loss, optax.adamw(1e-2 * (1 + index)))},
    ):
        try:
            fit(**options)
        except StructureError as error:
            texts.append(str(error))
    return texts


def bad_record(index, folder):
    """A batch that one process cannot read."""

    def transform(batch, rng):
        raised.append(batch)
        if index == 1 and len(raised) == 4:
            raise OSError("the disk is gone")
        return batch

    raised = []
    return _ended(lambda: fit(data(transform=transform)))


def kept(index, folder):
    """A run that writes checkpoints and goes on from them, with the same losses."""
    checkpoints = lambda: fn.train.Checkpoints(folder / "checkpoints", every=2, keep=2)
    first, _ = fit(steps=3, checkpoints=checkpoints(), log=folder / "kept")
    batches = data()
    state, _ = (made := checkpoints()).restore(start(), batches)
    same = leaves(state) == leaves(first)
    options = {"checkpoints": made, "timeout": TIMEOUT, "progress": False}
    state, history = fn.train.fit(STEP, state, batches, until=5, **options)
    losses = history.column("loss")[1][-2:]
    return {"leaves": leaves(state), "same": same, "losses": losses, "steps": made.steps()}


def restored(index, folder):
    """What is on the disk, on the devices of these processes."""
    state, _ = fn.train.Checkpoints(folder / "checkpoints").restore(start())
    return leaves(state)


def cut(index, folder):
    """The last process is killed when all have written their pieces, and no one the index."""
    from funcnet.train.agreement import gathered

    state, made = start(), fn.train.Checkpoints(folder / "checkpoints")
    state, _ = made.restore(state)
    with gathered("test", 20.0) as peers:
        made.begin(state, peers)
        made.save(state._replace(step=state.step + 1), position=None, log=None, seconds=0.0, record={})
        made._join()
        peers.of_first(None)
        if index == jax.process_count() - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        made.wait()


def by_signal(index, folder):
    """One process gets a signal."""

    def signalled():
        for number, batch in enumerate(data()):
            if index == 1 and number == 3:
                os.kill(os.getpid(), getattr(signal, os.environ["SIGNAL"]))
            yield batch

    state, history = fit(signalled(), evaluate=evaluate)
    return {"step": int(state.step), "ended": history.ended, "evaluated": "eval_right" in history[-1]}


def by_clock(index, folder):
    """The clocks of two processes differ: that of the first counts."""
    from funcnet.train import records

    seconds = itertools.count(0.0, 10.0 if index == 0 else 1e-3)
    records.time = type("Clock", (), {"perf_counter": staticmethod(lambda: next(seconds))})
    try:
        state, history = fit(minutes=3)
    finally:
        records.time = time
    return {"step": int(state.step), "ended": history.ended}


def nan(index, folder):
    """A NaN in the rows of one process: skipped by a guarded step, the end of another."""
    x = X.copy()
    x[9] = np.nan
    batches = lambda: fn.shard.place(fn.train.batches((x, Y), 8, seed=3))
    _, history = fit(batches(), steps=3)
    spoilt = lambda: fit(batches(), UNGUARDED)
    return {"skipped": history.column("skipped")[1], **_ended(spoilt)}


def label(index, folder):
    """A label out of range, in the rows of one process: who does not see it, hears of it."""
    y = Y.copy()
    y[:] = 7
    return _ended(lambda: fit(fn.shard.place(fn.train.batches((X, y), 8, seed=3))))


def lost(index, folder):
    """The last process is killed, stopped or asleep in the middle, as LOST says."""

    def losing():
        for number, batch in enumerate(data()):
            if index == jax.process_count() - 1 and number == 3:
                if os.environ["LOST"] == "asleep":
                    time.sleep(600)
                os.kill(os.getpid(), getattr(signal, os.environ["LOST"]))
            yield batch

    print(json.dumps(["began", time.time()]), flush=True)
    return _ended(lambda: fit(losing(), timeout=25.0))


def _ended(f):
    try:
        f()
    except BaseException as error:
        state = getattr(error, "state", None)
        processes = getattr(error, "processes", None)
        step = None if state is None else int(state.step)
        return {"error": type(error).__name__, "text": str(error), "step": step, "processes": processes}
    return {}


def _whole(x):
    return np.asarray(
        jax.jit(lambda x: x, out_shardings=jax.NamedSharding(x.sharding.mesh, jax.P()))(x)
    ).tolist()


def main(acts):
    jax.config.update("jax_enable_x64", True)
    index = processes.join()
    warnings.simplefilter("error")
    folder = Path(os.environ["FOLDER"])
    mesh = jax.make_mesh((2, jax.device_count() // 2), ("data", "tensor"))
    for act in acts:
        with jax.set_mesh(mesh):
            made = globals()[act](index, folder)
            print(json.dumps([act, made], default=np.ndarray.tolist), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
