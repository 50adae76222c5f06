"""Which net hears a tone, and an initial: models of `funcnet train tones` on syllables that were held out.

Needs Debian's package gcin-voice. The recipe, and the recipe with another net in it; the score of the recipe
is the mean of three seeds, that of another net of one. Seconds are of the processor, for one run with what is
compiled.
"""

import dataclasses
import time
from typing import Any

import numpy as np

from benchmarks.harness import SMOKE, Scale, Table

NETS: dict[str, dict[str, Any]] = {
    "convolutions and a GRU (the recipe)": {},
    "convolutions and an LSTM": {"cell": "lstm"},
    "convolutions and two GRUs": {"layers": 2},
    "convolutions alone": {"layers": 0},
    "a GRU alone": {"channels": (), "pools": ()},
}
SEEDS = 3


def run(scale: Scale) -> list[Table]:
    """Accuracy on held-out syllables, by net and by what is to be heard."""
    epochs = 1 if scale == SMOKE else None
    rows = []
    for name, changes in NETS.items():
        if scale == SMOKE and name != "a GRU alone":
            continue
        row: dict[str, object] = {"net": name}
        for label in ("tone", "initial"):
            seeds = range(1 if changes else SEEDS)
            runs = [accuracy(label, seed, epochs, **changes) for seed in seeds]
            scores, seconds, parameters = zip(*runs, strict=True)
            row["parameters"] = f"{parameters[0]:,}"
            row[label] = f"{np.mean(scores):.1%}"
            row[f"{label}, of seeds"] = ", ".join(f"{score:.1%}" for score in scores)
            row[f"{label}, CPU seconds"] = f"{np.mean(seconds):.0f}"
        rows.append(row)
    return [Table("Held-out syllables that are heard right", rows, "tone: 4 classes; initial: 23.")]


def accuracy(label: str, seed: int, epochs: int | None, **changes: Any) -> tuple[float, float, int]:
    """Of one run: the score, seconds of the processor, parameters; `changes` are those of the net."""
    import jax

    from funcnet import train
    from funcnet.tasks import _run, tones

    began = time.process_time()
    options = tones.Options(label=label, seed=seed, **({} if epochs is None else {"epochs": epochs}))
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
