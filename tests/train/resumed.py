"""A run with everything that a run can carry, for `test_resume`; as a script: goes on from every checkpoint.

    python -m tests.train.resumed FOLDER

prints, as JSON, the SHA-256 of the final state and metrics.jsonl of the run from each step on, and of runs
from the middle which one part of the checkpoint was withheld from.
"""

import hashlib
import json
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import funcnet as fn
from funcnet.train import Checkpoints

LAST, EVERY = 7, 3
EXAMPLES = 16  # in batches of 6: two, and a ragged one of 4, in an epoch
MIDDLE = 4
PARTS = ("params", "opt_state", "key", "model_state", "average", "position", "log")

rng = np.random.default_rng(0)
X, Y = rng.normal(size=(EXAMPLES, 3)).astype(np.float32), rng.normal(size=(EXAMPLES, 2)).astype(np.float32)


def loss(params, model_state, batch, key):
    x, y = batch
    x = fn.linear.apply(params["in"], x)
    x, norm = fn.batch_norm.apply(params["norm"], model_state, x, train=True)
    x = fn.dropout.apply(x, rate=0.25, key=key)
    errors = (fn.linear.apply(params["out"], x) - y) ** 2
    return fn.train.Mean(errors.sum(), errors.size), (norm, {"worst": fn.train.Mean(errors.max(), 1)})


def measure(params, model_state, batch):
    x, y = batch
    x, _ = fn.batch_norm.apply(params["norm"], model_state, fn.linear.apply(params["in"], x), train=False)
    return {"loss": (fn.linear.apply(params["out"], x) - y) ** 2}


def start(seed=1):
    k1, k2, k3 = jax.random.split(jax.random.key(0), 3)
    norm, model_state = fn.batch_norm.init(k2, 4)
    params = {"in": fn.linear.init(k1, 3, 4), "norm": norm, "out": fn.linear.init(k3, 4, 2)}
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    model_state = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), model_state)
    return fn.train.init(params, OPTIMIZER, key=jax.random.key(seed), model_state=model_state, average=0.9)


def augmented(batch, rng):
    x, y = batch
    return x + 0.1 * rng.standard_normal(x.shape, np.float32), y


def data():
    return fn.train.batches((X, Y), 6, seed=3, drop_remainder=False, transform=augmented)


OPTIMIZER = optax.adamw(optax.cosine_decay_schedule(0.05, LAST), weight_decay=0.1)
STEP = fn.train.make_step(loss, OPTIMIZER, accumulate=2)


def evaluate(state):
    return fn.train.evaluate(
        measure, state.average, fn.train.in_order((X, Y), 8), model_state=state.model_state
    )


def train(folder: Path, at: int | None = None, withheld: str | None = None) -> str:
    """Train to the end, from checkpoint `at` if there is one; returns a digest of all that came of it."""
    checkpoints = Checkpoints(folder / "checkpoints", every=1, keep=LAST + 1)
    batches, state = data(), start()
    if at is not None:
        first = start(seed=2)
        state, _ = checkpoints.restore(state, None if withheld == "position" else batches, step=at)
        if withheld == "log":
            (folder / "metrics.jsonl").unlink()
        elif withheld not in (None, "position"):
            state = state._replace(**{withheld: getattr(first, withheld)})
    options = {"log": folder, "evaluate": evaluate, "every": EVERY, "progress": False}
    state, _ = fn.train.fit(STEP, state, batches, until=LAST, checkpoints=checkpoints, **options)
    return digest(state, folder)


def digest(state, folder):
    """Of a state and of metrics.jsonl, times aside."""
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        found.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        found.update(np.asarray(leaf).tobytes())
    for line in (folder / "metrics.jsonl").read_bytes().splitlines():
        record = json.loads(line)
        for name in ("seconds", "steps_per_second", "waiting"):
            del record[name]
        found.update(json.dumps(record).encode())
    return found.hexdigest()


def go_on(folder: Path) -> dict[str, str]:
    """A digest per step that a copy of the run goes on from, and per part withheld."""
    digests = {}
    for at, withheld in [*((k, None) for k in range(1, LAST + 1)), *((MIDDLE, part) for part in PARTS)]:
        copy = folder.with_name(f"{folder.name}-{at}-{withheld}")
        shutil.copytree(folder, copy)
        digests[f"{at}" if withheld is None else withheld] = train(copy, at, withheld)
    return digests


if __name__ == "__main__":
    print(json.dumps(go_on(Path(sys.argv[1]))))
