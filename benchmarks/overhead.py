"""What a step costs beside its arithmetic: MLPs of 1 to 128 layers so narrow that the rest is most of it.

The barest step is `jax.jit` over the parameters and the optimizer's state, donated. A sample is a chain of
steps, waited for at its end, as in training. make_step carries a count and a key besides, so that every step
has a key of its own: two more arrays that go in and come out.
"""

import importlib
import itertools
import tempfile
from collections.abc import Callable
from typing import Any

from benchmarks import harness
from benchmarks.harness import Entrant, Process, Scale, Table
from benchmarks.models import ALL, DEPTHS, NARROW, WIDTH, Mlp
from benchmarks.peers import TORCH

HERE = Process("benchmarks.overhead")
STEPS = {
    "plain JAX": Entrant(HERE, "plain.train"),
    "plain JAX, counted and keyed": Entrant(HERE, "counted"),
    "make_step, the same loss": Entrant(HERE, "make_step", "funcnet"),
    "funcnet": Entrant(HERE, "ours.train", "funcnet"),
}
PEERS = {
    "plain JAX": Entrant(HERE, "plain.train"),
    "funcnet": Entrant(HERE, "ours.train", "funcnet"),
    "Flax NNX": Entrant(HERE, "nnx.train", "flax"),
    "Flax NNX, nnx.jit": Entrant(HERE, "nnx.train_nnx_jit", "flax"),
    "Flax NNX, nnx.jit_partial": Entrant(HERE, "nnx.train_nnx_jit_partial", "flax"),
    "Equinox": Entrant(HERE, "equinox.train", "equinox"),
    "Equinox, filter_jit": Entrant(HERE, "equinox.train_filter_jit", "equinox"),
    "Haiku": Entrant(HERE, "haiku.train", "dm-haiku"),
    "PyTorch": Entrant(TORCH, "torch.train", "torch"),
}
LOOPS = {
    "steps alone": Entrant(HERE, "alone", "funcnet"),
    "loss read at once": Entrant(HERE, "reading", "funcnet"),
    "fit": Entrant(HERE, "fit", "funcnet"),
    "fit, written down": Entrant(HERE, "written", "funcnet"),
}
# As many as a short run has: of a tenth of them what fit does once, the loss without jit, would be a fifth.
LOOP_STEPS = 3200
BOUNDARY = {
    "two arguments": Entrant(HERE, "passed on: arguments"),
    "one tuple": Entrant(HERE, "passed on: tuple"),
    "one State": Entrant(HERE, "passed on: State", "funcnet"),
    "and a key": Entrant(HERE, "passed on: key", "funcnet"),
    "and a count": Entrant(HERE, "passed on: count", "funcnet"),
}


def run(scale: Scale) -> list[Table]:
    """A step, by depth; the peers' steps, of which compilation takes longer; a step within a loop."""
    names = dict(zip(DEPTHS, NARROW, strict=True))
    depths, of_peers, of_loops = {
        "smoke": ((1,), (), ()),
        "quick": ((1, 8, 64), (8,), (8,)),
    }.get(scale.name, (DEPTHS, (1, 16), (16,)))

    def table(
        title: str, field: dict[str, Entrant], of: tuple[int, ...], how_many: Scale, note: str
    ) -> Table:
        timed = harness.race(field, [names[depth] for depth in of], how_many, chained=True)
        return Table(title, [{"step of": case, **row} for case, row in timed.items()], note)

    tables = [
        table(
            "One step",
            STEPS,
            depths,
            scale,
            f"Width {WIDTH}, batch 32, Adam; ratios are to plain JAX. Target: at most 1.05 at every depth. "
            "`make_step` of plain JAX's own loss runs the same program but for the count: the ratio is what "
            "make_step adds; the second column has the same count and key by hand. funcnet's own operations "
            "are in the last column.",
        ),
        table(
            "One step, peers",
            PEERS,
            of_peers,
            scale,
            "Ratios are to plain JAX. All on JAX live in one process, with the flag of funcnet's guard. "
            "The forms with `nnx.jit` and `filter_jit` are those that most users write; those without are "
            "what the documentation recommends where overhead matters.",
        ),
        table(
            f"{LOOP_STEPS} steps in a loop",
            LOOPS,
            of_loops,
            scale,
            "fit reads the metrics of every step, at most 64 steps behind, and, where a folder is given, "
            "writes a line of metrics.jsonl for each. Before its first step it runs the loss once without "
            "jit. No step has a guard. Targets: 1.10, and 1.15 written down.",
        ),
        table(
            "What one step hands over",
            BOUNDARY,
            (1,),
            scale,
            "Programs that compute nothing: the arrays of the step go in and come out, donated. That is the "
            "price of a State, of a key and of a count, in every step, whatever its size.",
        ),
    ]
    return [each for each in tables if each.rows]


# ---- the process where they live --------------------------------------------------------------------------


def make(way: str, case: str) -> Callable[[], Any]:
    """A step of one of the peers, or one of the ways below."""
    model = ALL[case]
    assert isinstance(model, Mlp)
    if way.startswith("passed on: "):
        return passed_on(way.removeprefix("passed on: "), model)
    if way in WAYS:
        return WAYS[way](model)
    peer, _, function = way.partition(".")
    return getattr(importlib.import_module(f"benchmarks.peers.{peer}"), function)(model)


def make_step(model: Mlp) -> Callable[[], Any]:
    """A step by `fn.train.make_step` of the loss that plain JAX has."""
    from benchmarks.peers import ours

    return ours.repeated(*_parts(model))


def counted(model: Mlp) -> Callable[[], Any]:
    """By hand, with a count of the steps and a key of each: what a run that draws anything needs."""
    import jax
    import jax.numpy as jnp

    from benchmarks.peers import plain

    bare, state, data = plain.program(model)
    carry = [jnp.zeros((), jnp.int32), jax.random.key_data(jax.random.key(0)), *state]

    def step(count: Any, key: Any, *others: Any) -> tuple[Any, ...]:
        jax.random.fold_in(jax.random.wrap_key_data(key), count)  # which this loss does not use
        return count + 1, key, *bare.__wrapped__(*others)

    jitted = jax.jit(step, donate_argnums=tuple(range(len(carry))))
    return plain.repeated(jitted, carry, data)


def passed_on(form: str, model: Mlp) -> Callable[[], Any]:
    """Nothing but the way in and out of `jax.jit` for what a step carries, in one form or another."""
    import jax

    import funcnet as fn

    _, state, (x, _) = _parts(model)
    if form in ("arguments", "tuple"):
        carry = state.params, state.opt_state
    else:
        left_out = {"State": {"step": None, "key": None}, "key": {"step": None}, "count": {}}[form]
        carry = fn.train.State(**{**state._asdict(), **left_out})

    if form == "arguments":
        several = jax.jit(lambda params, opt_state, x: (params, opt_state, x[0, 0]), donate_argnums=(0, 1))

        def call() -> Any:
            nonlocal carry
            *carry, value = several(*carry, x)
            return value
    else:
        one = jax.jit(lambda carry, x: (carry, x[0, 0]), donate_argnums=0)

        def call() -> Any:
            nonlocal carry
            carry, value = one(carry, x)
            return value

    return call


def alone(model: Mlp) -> Callable[[], Any]:
    """A loop that does nothing else."""
    step, state, batch = _parts(model)

    def call() -> Any:
        nonlocal state
        metrics = {}
        for each in itertools.repeat(batch, LOOP_STEPS):
            state, metrics = step(state, each)
        return metrics["loss"]

    return call


def reading(model: Mlp) -> Callable[[], Any]:
    """A loop that looks at each loss."""
    step, state, batch = _parts(model)

    def call() -> Any:
        nonlocal state
        loss = None
        for each in itertools.repeat(batch, LOOP_STEPS):
            state, metrics = step(state, each)
            loss = float(metrics["loss"])
        return loss

    return call


def fit(model: Mlp, log: str | None = None) -> Callable[[], Any]:
    """`fn.train.fit`."""
    import funcnet as fn

    step, state, batch = _parts(model)

    def call() -> Any:
        nonlocal state
        batches = itertools.repeat(batch, LOOP_STEPS)
        state, history = fn.train.fit(step, state, batches, log=log, progress=False)
        return history[-1]["loss"]

    return call


def written(model: Mlp) -> Callable[[], Any]:
    """`fn.train.fit`, which writes a line per step."""
    folder = tempfile.TemporaryDirectory()
    call = fit(model, folder.name)

    def call_with_folder() -> Any:
        return folder and call()  # which goes when the call does

    return call_with_folder


WAYS = {
    "make_step": make_step,
    "counted": counted,
    "alone": alone,
    "reading": reading,
    "fit": fit,
    "written": written,
}


def _parts(model: Mlp) -> tuple[Any, Any, Any]:
    """The step, its state, a batch."""
    import jax
    import jax.numpy as jnp
    import optax

    import funcnet as fn

    def loss(params: Any, batch: Any, key: Any) -> Any:
        del key  # a model without dropout
        x, labels = batch
        *hidden, last = params["layers"]
        for layer in hidden:
            x = jax.nn.relu(x @ layer["w"] + layer["b"])
        logits = x @ last["w"] + last["b"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    params, batch = jax.tree.map(jnp.asarray, (model.weights(), model.data()))
    optimizer = optax.adam(model.rate)
    state = fn.train.init(params, optimizer, key=jax.random.key(0))
    return fn.train.make_step(loss, optimizer, guard=False), state, batch


if __name__ == "__main__":
    harness.serve(make, check=lambda loss: [float(loss)])
