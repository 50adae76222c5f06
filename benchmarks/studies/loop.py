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
    from benchmarks.peers import ours

    model = ALL[case]
    assert isinstance(model, Gpt)
    return ours.train(model, unroll={"unrolled": model.layers, "unroll=3": 3, "unroll=1": 1}[form])


if __name__ == "__main__":
    harness.serve(make, check=lambda loss: [float(loss)])
