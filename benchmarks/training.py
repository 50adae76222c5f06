"""Training steps beside the peers: MLP, convolutions, ResNet-20, GPT, a block of BERT.

Loss, gradients and update in float32, from the same weights on the same batch (benchmarks/models.py), each
peer in the idiom that its documentation recommends (benchmarks/peers). Losses after three steps must agree.
"""

from benchmarks import harness, models, peers
from benchmarks.harness import QUICK, SMOKE, WHOLE, Scale, Table

QUICK_MODELS = ("MLP 784–512–512–10, batch 128", "GPT 4 × 128, t = 64, batch 12")


def run(scale: Scale) -> list[Table]:
    """One row per model."""
    cases = models.TINY if scale == SMOKE else models.MODELS if scale == WHOLE else QUICK_MODELS
    # torch.compile takes 10 to 30 s a model; the flag matters to large convolutions.
    left_out = {SMOKE: ("torch.compile", "guard's flag"), QUICK: ("torch.compile",), WHOLE: ()}[scale]
    field = {name: e for name, e in peers.TRAINING.items() if not name.endswith(left_out)}
    timed = harness.race(field, cases, scale)
    rows = [{"step of": case, **row} for case, row in timed.items()]
    note = "\n".join(
        [
            "Ratios are to funcnet: above 1, funcnet is faster. How each step is written:",
            "",
            *(f"- {name}: {idiom}" for name, idiom in peers.idioms().items()),
        ]
    )
    return [Table("Training step", rows, note, chart=True)]
