"""How well a tone, and an initial, is heard: models of `funcnet train tones` on syllables that were held out.

Needs Debian's package gcin-voice. Tones by the recipe, at three seeds; initials by the recipe and by other
nets in it, at one. Seconds are of the processor, of one run with what is compiled, without the verification.
"""

import dataclasses
import time
from typing import Any, Literal

import numpy as np

from benchmarks.harness import SMOKE, Scale, Table

NETS: dict[str, dict[str, Any]] = {
    "convolutions and a GRU (the recipe)": {},
    "convolutions and an LSTM": {"cell": "lstm"},
    "convolutions and two GRUs": {"layers": 2},
    "convolutions alone": {"layers": 0},
}
SEEDS = 3


def run(scale: Scale) -> list[Table]:
    """Accuracy on held-out syllables: of tones by seed, of initials by net."""
    smoke = scale == SMOKE
    epochs = 1 if smoke else None
    tones = [accuracy("tone", seed, epochs) for seed in range(1 if smoke else SEEDS)]
    mean = (
        f"The mean is {np.mean([score for score, *_ in tones]):.1%}. 4 classes; {tones[0][2]:,} parameters."
    )
    initials = {
        name: accuracy("initial", 0, epochs, **NETS[name]) for name in list(NETS)[: 1 if smoke else None]
    }
    return [
        Table(
            "Tones that are heard right",
            [{"seed": i, **_row(score, seconds)} for i, (score, seconds, _) in enumerate(tones)],
            mean,
        ),
        Table(
            "Initials that are heard right",
            [
                {"net": name, "parameters": f"{parameters:,}", **_row(score, seconds)}
                for name, (score, seconds, parameters) in initials.items()
            ],
            "23 classes.",
        ),
    ]


def _row(score: float, seconds: float) -> dict[str, object]:
    return {"accuracy": f"{score:.1%}", "CPU seconds": f"{seconds:.0f}"}


def accuracy(
    label: Literal["tone", "initial"], seed: int, epochs: int | None, **changes: Any
) -> tuple[float, float, int]:
    """Of one run: the score, seconds of the processor, parameters; `changes` are those of the net."""
    import jax

    from funcnet import train
    from funcnet.tasks import _run, tones

    began = time.process_time()
    options = tones.Options(label=label, seed=seed)
    options = options if epochs is None else dataclasses.replace(options, epochs=epochs)
    own = tones.config
    tones.config = lambda options: dataclasses.replace(own(options), **changes)
    try:
        task = tones.prepare(options)
    finally:
        tones.config = own
    init, _, steps = _run.keys(seed)
    params = tones.NET.init(init, task.config)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    state = train.init(params, task.optimizer, key=steps)
    for batch in task.batches():
        state, _ = task.step(state, batch)
    return task.evaluate(state)["accuracy"], time.process_time() - began, parameters
