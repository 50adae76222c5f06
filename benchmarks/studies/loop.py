"""The loop over a transformer's layers: unrolled, or scanned with some layers in the loop's body.

Training steps of a GPT in float32 with AdamW, in one process. `unroll=k` is a loop with k layers in its body.
Losses after three steps must agree.
"""

from collections.abc import Callable
from typing import Any

from benchmarks import harness
from benchmarks.harness import SMOKE, WHOLE, Entrant, Process, Scale, Table
from benchmarks.models import MODELS, TINY, Gpt, Model

HERE = Process("benchmarks.studies.loop")
FORMS = ("unrolled", "unroll=3", "unroll=1")
ENTRANTS = {form: Entrant(HERE, form, "funcnet") for form in FORMS}
DEEPER: dict[str, Model] = {"GPT 12 × 384, t = 256, batch 4": Gpt(12, 6, 384, 256, 4)}
ALL = MODELS | TINY | DEEPER


def run(scale: Scale) -> list[Table]:
    """One row per model."""
    cases = ["tiny GPT"] if scale == SMOKE else ["GPT 4 × 128, t = 64, batch 12"]
    if scale == WHOLE:
        cases = ["GPT 6 × 384, t = 256, batch 8", *DEEPER]
    timed = harness.race(ENTRANTS, cases, scale)
    note = (
        "Ratios are to the unrolled form, a program text per layer, which is the default up to 12 layers. "
        "`unroll=1` is the default of deeper models."
    )
    return [Table("Loop over the layers", [{"step of": case, **row} for case, row in timed.items()], note)]


def make(form: str, case: str) -> Callable[[], Any]:
    """A training step with that form of loop; gives the loss before it."""
    import jax
    import jax.numpy as jnp

    import funcnet as fn
    from benchmarks.peers.ours import gpt_config
    from benchmarks.peers.plain import optimizer_of

    model = ALL[case]
    assert isinstance(model, Gpt)
    config = gpt_config(model, unroll={"unrolled": model.layers, "unroll=3": 3, "unroll=1": 1}[form])

    def loss(params: Any, batch: Any, key: Any) -> Any:
        del key
        ids, labels = batch
        return fn.cross_entropy.apply(fn.nets.transformer.apply(params, ids, config), labels).mean()

    params, batch = jax.tree.map(jnp.asarray, (model.weights(), model.data()))
    optimizer = optimizer_of(model)
    state = fn.train.init(params, optimizer, key=jax.random.key(0))
    step = fn.train.make_step(loss, optimizer)

    def call() -> Any:
        nonlocal state
        state, metrics = step(state, batch)
        return metrics["loss"]

    return call


if __name__ == "__main__":
    harness.serve(make, check=lambda loss: [float(loss)])
