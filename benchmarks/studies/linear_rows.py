"""The product of `linear` with x [n, t, d]: of rows [n · t, d], or with the axes as they come.

Training steps of a GPT in float32 with AdamW. With three axes XLA:CPU copies dY into another layout,
to make dW. Losses after three steps must agree.
"""

from collections.abc import Callable
from typing import Any

from benchmarks import harness
from benchmarks.harness import SMOKE, WHOLE, Entrant, Process, Scale, Table
from benchmarks.models import MODELS, TINY, Gpt
from funcnet.ops.dense import linear

HERE = Process("benchmarks.studies.linear_rows")
FORMS: dict[str, Callable[[Any], Any]] = {"rows": linear._rows, "axes": lambda x: x}
ENTRANTS = {form: Entrant(HERE, form, "funcnet") for form in FORMS}
ALL = MODELS | TINY


def run(scale: Scale) -> list[Table]:
    """One row per model."""
    cases = ["tiny GPT"] if scale == SMOKE else ["GPT 4 × 128, t = 64, batch 12"]
    if scale == WHOLE:
        cases = ["GPT 6 × 384, t = 256, batch 8"]
    timed = harness.race(ENTRANTS, cases, scale)
    note = "Ratios are to rows, which is what runs where x is on no mesh."
    return [Table("Linear maps of rows", [{"step of": case, **row} for case, row in timed.items()], note)]


def make(form: str, case: str) -> Callable[[], Any]:
    """A training step with that form; gives the loss before it."""
    from benchmarks.peers import ours

    model = ALL[case]
    assert isinstance(model, Gpt)
    step = ours.train(model)

    def stepped() -> Any:
        linear._rows = FORMS[form]  # it is traced by the first call
        return step()

    return stepped


if __name__ == "__main__":
    harness.serve(make, check=lambda loss: [float(loss)])
