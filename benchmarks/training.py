"""Training steps beside the peers: MLP, convolutions, ResNet-20, GPT, a block of BERT.

Loss, gradients and update in float32, from the same weights on the same batch (benchmarks/models.py), each
peer in the idiom that its documentation recommends (benchmarks/peers). Losses after three steps must agree.
"""

from benchmarks import conv, harness, models, peers
from benchmarks.harness import SMOKE, WHOLE, Entrant, Scale, Table
from benchmarks.models import Convnet, Resnet

QUICK_MODELS = ("MLP 784–512–512–10, batch 128", "GPT 4 × 128, t = 64, batch 12")


def run(scale: Scale) -> list[Table]:
    """One row per model."""
    cases = models.TINY if scale == SMOKE else models.MODELS if scale == WHOLE else QUICK_MODELS
    flagged = [case for case in cases if isinstance(models.ALL[case], Convnet | Resnet) and scale != SMOKE]
    timed = harness.race(
        _field(scale, "guard's flag"), [case for case in cases if case not in flagged], scale
    )
    timed |= harness.race(_field(scale), flagged, scale)
    rows = [{"step of": case, **timed[case]} for case in cases]
    note = "\n".join(
        [
            "Ratios are to funcnet: above 1, funcnet is faster. The flag of funcnet's guard concerns "
            "convolutions most; what it does to other programs, `python -m benchmarks guard` tells. "
            f"{conv.told(conv.products(scale))} "
            "How each step is written:",
            "",
            *(f"- {name}: {idiom}" for name, idiom in peers.idioms().items()),
        ]
    )
    return [Table("Training step", rows, note, chart=True)]


def _field(scale: Scale, *left_out: str) -> dict[str, Entrant]:
    """The candidates; torch.compile takes 10 to 30 s a model, so in a whole run only."""
    left_out = left_out if scale == WHOLE else (*left_out, "torch.compile")
    return {name: entrant for name, entrant in peers.TRAINING.items() if not name.endswith(left_out)}
