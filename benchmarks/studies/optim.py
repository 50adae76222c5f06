"""Optimizers by matrices beside AdamW: a training step of a GPT, and Muon's update alone beside optax's.

Float32, in one process. The losses of different optimizers differ after a step, so that only that before the
first is compared.
"""

import functools
from collections.abc import Callable
from typing import Any

from benchmarks import harness
from benchmarks.harness import SMOKE, WHOLE, Entrant, Process, Scale, Table
from benchmarks.models import TINY, Gpt, Model

HERE = Process("benchmarks.studies.optim")
NAMES = ("adamw", "muon", "normuon", "soap", "shampoo")
STEP = {name: Entrant(HERE, name, "funcnet") for name in NAMES}
LARGE = {name: STEP[name] for name in ("adamw", "muon")}
UPDATE = {
    "optax.contrib.muon": Entrant(HERE, "update of optax", "funcnet"),
    "with our polynomials": Entrant(HERE, "update of optax, polynomials ours", "funcnet"),
    "fn.optim.muon": Entrant(HERE, "update", "funcnet"),
}
CHARS = "the task chars"  # 4 × 128, batches of 8 × 64 characters
GPTS = ("GPT 6 × 384, 8 × 256 tokens", "GPT 6 × 384, 16 × 128 tokens")
MODELS: dict[str, Model] = {
    GPTS[0]: Gpt(6, 6, 384, 256, 8),
    GPTS[1]: Gpt(6, 6, 384, 128, 16),
    **TINY,
}
# Ten calls in a sample hold one refresh of the bases.
NOTE = (
    "Ratios are to the first column. Targets: muon 1.4 of AdamW for chars and 8 × 256 tokens, 1.15 for "
    "16 × 128; soap 2.5, refreshes of its bases included (a call is ten steps)."
)


def run(scale: Scale) -> list[Table]:
    """A step of each optimizer; the update alone."""
    small = "tiny GPT" if scale == SMOKE else CHARS
    rows = harness.race(STEP, [small], scale, chained=True)
    if scale == WHOLE:
        rows |= harness.race(LARGE, GPTS, scale)
    updates = harness.race(UPDATE, [small, *(GPTS[:1] if scale == WHOLE else ())], scale)
    return [
        Table("A training step", [{"step of": case, **row} for case, row in rows.items()], NOTE),
        Table(
            "Muon's update alone",
            [{"of": case, **row} for case, row in updates.items()],
            "Of the same matrices; optax applies five polynomials, we four. Target: 1.3.",
        ),
    ]


def make(way: str, case: str) -> Callable[[], Any]:
    """Ten training steps (of a large model one), or an update by a fixed gradient; gives a loss, or 0."""
    import jax
    import jax.numpy as jnp
    import optax

    import funcnet as fn
    from funcnet.spec import decay_mask

    loss, params, batch, config = _chars() if case == CHARS else _gpt(case)
    specs = fn.nets.transformer.specs(config)
    if way.startswith("update"):
        optimizer = _muon_of_optax(specs, way) if "optax" in way else fn.optim.muon(1e-3, specs)
        grads = jax.tree.map(lambda p: jax.random.normal(jax.random.key(p.size), p.shape), params)
        opt_state = optimizer.init(params)
        update = jax.jit(optimizer.update)

        def once() -> Any:
            nonlocal opt_state
            updates, opt_state = update(grads, opt_state, params)
            return jax.tree.leaves(updates)[0].sum() * 0

        return once
    if way == "adamw":
        optimizer = optax.adamw(1e-3, weight_decay=0.1, mask=decay_mask(specs))
    else:
        optimizer = getattr(fn.optim, way)(1e-3, specs, weight_decay=0.1)
    state = fn.train.init(params, optimizer, key=jax.random.key(0))
    trained = fn.train.make_step(loss, optimizer, guard=False)
    first, calls = jnp.zeros(()), 1 if case in GPTS else 10

    def steps() -> Any:
        nonlocal state, first
        for _ in range(calls):
            state, metrics = trained(state, batch)
            first = first + metrics["loss"] * 0
        return first

    return steps


def _gpt(case: str) -> tuple[Any, Any, Any, Any]:
    """The loss, first parameters, batch and config of a model."""
    from benchmarks.peers import ours

    model = MODELS[case]
    assert isinstance(model, Gpt)
    step, state, batch = ours._program(model)
    return step.loss, state.params, batch, ours.gpt_config(model)


def _chars() -> tuple[Any, Any, Any, Any]:
    """Those of the task."""
    import jax

    from funcnet.tasks import chars

    task = chars.prepare(chars.Options(steps=1))
    params = chars.NET.init(jax.random.key(0), task.config)
    return task.step.loss, params, next(iter(task.batches())), task.config


def _muon_of_optax(specs: Any, way: str) -> Any:
    """With the same matrices; it knows whole axes only, which is all that a GPT has."""
    import jax
    import optax

    from funcnet.linalg.polar import _POLYNOMIALS
    from funcnet.spec import is_spec

    def numbers(spec: Any) -> Any:
        if not isinstance(spec.matrix, tuple):
            return None
        axes = {role: tuple(i for i, r in enumerate(spec.matrix[1]) if r == role) for role in "io"}
        return optax.contrib.MuonDimensionNumbers(axes["i"], axes["o"])

    made = (
        functools.partial(optax.contrib.muon, ns_coeffs=_POLYNOMIALS) if "ours" in way else optax.contrib.muon
    )
    return made(
        1e-3,
        muon_weight_dimension_numbers=jax.tree.map(numbers, specs, is_leaf=is_spec),
        consistent_rms=0.2,
    )


if __name__ == "__main__":
    harness.serve(make, check=lambda value: [float(value)])
