"""What the optimizers by matrices reach beside AdamW: a loss on chars in fewer steps, digits in 12 epochs.

Each run is that of `funcnet train TASK --optimizer NAME --learning-rate RATE --seed SEED`, without its checks
and pictures, and has its own schedule. What it reaches does not depend on the machine, but for rounding.
"""

import sys
from typing import Any

from benchmarks import harness
from benchmarks.harness import SMOKE, WHOLE, Process, Scale, Table, Worker

HERE = Process("benchmarks.studies.optim_losses")
CHARS = (  # optimizer, learning rate, steps
    *(("adamw", rate, 600) for rate in (1e-3, 1.5e-3, 2e-3, 3e-3, 4e-3)),
    ("muon", 8e-3, 420),
    ("normuon", 8e-3, 420),
    ("soap", 6e-3, 400),
)
DIGITS = (  # and epochs
    *(("adamw", rate, 12) for rate in (3e-3, 6e-3)),
    ("muon", 1.2e-2, 12),
    ("normuon", 1.2e-2, 12),
    ("soap", 6e-3, 12),
)


def run(scale: Scale) -> list[Table]:
    """One row per optimizer and learning rate."""
    chars, digits, seeds = CHARS, DIGITS, 2 if scale == WHOLE else 1
    if scale == SMOKE:
        chars, digits = (("adamw", 3e-3, 2), ("muon", 8e-3, 2)), (("muon", 1.2e-2, 1),)
    with harness.running([HERE]) as workers:
        ask = workers[HERE]
        return [
            Table(
                "Held-out loss on chars",
                [_row(ask, "chars", "steps", trial, 1) for trial in chars],
                "Seed 0. Target: the loss of AdamW's best rate by muon in 420 steps, by soap in 400.",
            ),
            Table(
                "Digits",
                [_row(ask, "digits", "epochs", trial, seeds) for trial in digits],
                "Means over two seeds. Of 360 test images, differences below 0.004 are noise.",
            ),
        ]


def _row(
    worker: Worker, task: str, length: str, trial: tuple[str, float, int], seeds: int
) -> dict[str, object]:
    """The means over the first so many seeds."""
    name, rate, count = trial
    found = [worker.ask("scores", task, name, rate, {length: count, "seed": seed}) for seed in range(seeds)]
    row = {"optimizer": name, "learning rate": rate, length: count}
    row |= {score: f"{sum(scores[score] for scores in found) / seeds:.4f}" for score in ("loss", "accuracy")}
    print(row, file=sys.stderr, flush=True)
    return row


def scores(task: str, name: Any, rate: float, options: dict[str, int]) -> dict[str, float]:
    """Of the held-out data at the end of a run."""
    import itertools

    import jax

    import funcnet as fn
    from funcnet import tasks
    from funcnet.tasks._training import Training

    module = getattr(tasks, task)
    chosen = module.Options(learning_rate=rate, **options)
    made = module.prepare(chosen, Training(optimizer=name))
    key_init, _, key_train = jax.random.split(jax.random.key(chosen.seed), 3)
    params = module.NET.init(key_init, made.config)
    state = fn.train.init(params, made.optimizer, key=key_train)
    for batch in itertools.islice(made.batches(), made.steps):
        state, _ = made.step(state, batch)
    return {name: float(value) for name, value in made.evaluate(state).items()}


if __name__ == "__main__":
    harness.serve(others={"scores": scores})
