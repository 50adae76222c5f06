"""What a run adds to a bare step: the guard, norms, an average, parts of a batch; records and checkpoints.

A GPT, where steps take long, and the smallest model of `overhead`, where nothing is small beside one. The
first candidate is the program without any of it, `make_step(..., guard=False)`.
"""

from collections.abc import Callable
from typing import Any

from benchmarks import harness
from benchmarks.harness import SMOKE, WHOLE, Entrant, Measure, Process, Scale, Table
from benchmarks.models import ALL, Gpt, Mlp
from benchmarks.studies import checkpoints

HERE = Process("benchmarks.run")
GPT, SMALLER_GPT, TINY_GPT = (
    "GPT 6 × 384, t = 256, batch 8",
    "GPT 4 × 128, t = 64, batch 12",
    "tiny GPT, batch 4",
)
SMALLEST, ONE_LAYER = "16 layers of width 16", "1 layers of width 16"
MODELS = ALL | {TINY_GPT: Gpt(2, 2, 8, 6, 4, vocabulary=11)}
STEP = {way: Entrant(HERE, way, "funcnet") for way in ("bare", "guard", "watch", "average", "all of them")}
PARTS = {way: Entrant(HERE, way, "funcnet") for way in ("four gradients and an update", "accumulate=4")}
MEMORY = ("bare", "guard"), ("quarter and gradient", "accumulate=4")
NOTE = (
    "Ratios are to the first column. Targets on the GPT: guard 1.01, watch 1.02, average 1.02; on the "
    "smallest model guard 1.35. The guard's check is a product of each gradient, times 0, with ones; the "
    "update is a branch. An average reads and writes the params once more."
)


def run(scale: Scale) -> list[Table]:
    """A step with each option; a batch in parts; the memory of both."""
    gpt = {SMOKE.name: TINY_GPT, WHOLE.name: GPT}.get(scale.name, SMALLER_GPT)
    small = ONE_LAYER if scale == SMOKE else SMALLEST
    rows = harness.race(STEP, [gpt], scale) | harness.race(STEP, [small], scale, chained=True)
    parts = harness.race(PARTS, [gpt], scale)
    with harness.running([HERE]) as workers:
        memory = [_memory(workers[HERE], gpt, *pair) for pair in MEMORY]
        history = workers[HERE].ask("history", 10_000 if scale == SMOKE else 1_000_000)
    return [
        Table("One step", [{"step of": case, **row} for case, row in rows.items()], NOTE),
        Table(
            "A batch in four parts",
            [{"step of": case, **row} for case, row in parts.items()],
            "Four programs for the gradients of the quarters and one for the update by their mean, against "
            "one step of four parts. Target: 1.05.",
        ),
        Table(
            "Temporary memory",
            memory,
            "As XLA plans it. Targets: the guard 1.00 of the bare step; four parts 1.05 of the temporary "
            "memory of a quarter of the batch and one gradient.",
        ),
        Table(
            "The history of a run",
            [history],
            "Records of five numbers each, as fit makes them, added one by one. Target: 50 MB for a million, "
            "the last as fast as the first. (What fit costs per step is in `overhead`.)",
        ),
        # Steps with a checkpoint among them: the study's, where they take 40 minutes.
        *checkpoints.run(scale, (checkpoints.COPY, checkpoints.READ)),
    ]


def _memory(worker: harness.Worker, case: str, first: str, second: str) -> dict[str, object]:
    sizes = [worker.ask("memory", way, case) for way in (first, second)]
    measures = [Measure(size, size, size, size / sizes[0], unit="B") for size in sizes]
    return {"step of": f"{case}: {second}", "beside": first, "its memory": measures[0], "memory": measures[1]}


# ---- the process where they live --------------------------------------------------------------------------


OPTIONS: dict[str, dict[str, Any]] = {
    "bare": {"guard": False},
    "guard": {},
    "watch": {"guard": False, "watch": True},
    "average": {"guard": False},
    "all of them": {"watch": True},
    "accumulate=4": {"guard": False, "accumulate": 4},
}


def make(way: str, case: str) -> Callable[[], Any]:
    """A step with some options per call; gives the loss before it."""
    from benchmarks.peers import ours

    loss, optimizer, state, batch = _parts(case)
    if way == "four gradients and an update":
        return _by_hand(loss, optimizer, state, batch)
    if way in ("average", "all of them"):
        state = _averaged(state)
    import funcnet as fn

    return ours.repeated(fn.train.make_step(loss, optimizer, **OPTIONS[way]), state, batch)


def memory(way: str, case: str) -> int:
    """Temporary bytes that XLA plans for a step."""
    import jax

    import funcnet as fn

    loss, optimizer, state, batch = _parts(case)
    gradient = 0
    if way == "quarter and gradient":
        way, batch = "bare", jax.tree.map(lambda leaf: leaf[: len(leaf) // 4], batch)
        gradient = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
    step = fn.train.make_step(loss, optimizer, **OPTIONS[way])
    plan = step.lower(state, batch).compile().memory_analysis()
    assert plan is not None
    return plan.temp_size_in_bytes + gradient


def history(records: int) -> dict[str, object]:
    """The memory of a history, and the time to add to it."""
    import resource
    import time
    from itertools import pairwise

    from funcnet.train import History

    made, tenth = History(), records // 10
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    clock = [time.perf_counter()]
    for step in range(1, records + 1):
        made.append(
            {"step": step, "loss": 0.5, "steps_per_second": 3e3, "waiting": 0.1, "seconds": step / 3e3}
        )
        if step % tenth == 0:
            clock.append(time.perf_counter())
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident) * 1024
    micro = [1e6 * (after - before) / tenth for before, after in pairwise(clock)]
    return {
        "records": f"{records:,}",
        "memory, MB": round(grown / 1e6, 1),
        "a record of the first tenth, µs": round(micro[0], 2),
        "of the last": round(micro[-1], 2),
    }


def _parts(case: str) -> tuple[Any, Any, Any, Any]:
    """Loss, optimizer, state and batch of a model."""
    import optax

    from benchmarks import overhead
    from benchmarks.peers import ours

    model = MODELS[case]
    if isinstance(model, Mlp):
        step, state, batch = overhead._parts(model)
        return step.loss, optax.adam(model.rate), state, batch
    step, state, batch = ours._program(model)
    return step.loss, ours.optimizer_of(model), state, batch


def _averaged(state: Any) -> Any:
    import jax
    import jax.numpy as jnp

    return state._replace(average=jax.tree.map(jnp.copy, state.params), decay=jnp.float32(0.999))


def _by_hand(loss: Any, optimizer: Any, state: Any, batch: Any) -> Callable[[], Any]:
    """The gradients of four quarters, each a call, and an update by their mean; gives the mean loss."""
    import jax
    import optax

    gradient = jax.jit(jax.value_and_grad(lambda params, batch: loss(params, batch, None)))
    quarters = [jax.tree.map(lambda leaf, i=i: leaf[i::4], batch) for i in range(4)]

    def update(params: Any, opt_state: Any, grads: Any) -> Any:
        mean = jax.tree.map(lambda *parts: sum(parts) / 4, *grads)
        updates, opt_state = optimizer.update(mean, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    jitted = jax.jit(update, donate_argnums=(0, 1))
    params, opt_state = state.params, state.opt_state

    def call() -> Any:
        nonlocal params, opt_state
        values, grads = zip(*(gradient(params, quarter) for quarter in quarters), strict=True)
        params, opt_state = jitted(params, opt_state, grads)
        return sum(values) / 4

    return call


if __name__ == "__main__":
    harness.serve(make, check=lambda loss: [float(loss)], others={"memory": memory, "history": history})
