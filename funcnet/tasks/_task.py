"""What a task hands to whoever trains it, and what comes back from disk."""

import hashlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from funcnet.errors import ValueRangeError
from funcnet.train import State

__all__ = [
    "EPOCHS",
    "SEEDS",
    "STEPS",
    "Examples",
    "Prediction",
    "Saved",
    "Task",
    "check_range",
    "correct",
    "fingerprint",
    "spread",
]


class Examples(NamedTuple):
    """What a net takes and should give: inputs as its `apply` has them [n, ...], and labels.

    Those of images are classes [n], of texts the next characters [n, t]. `numbers` [n] say where they stand
    in their data: which image, or at which character a piece begins.
    """

    inputs: np.ndarray
    labels: np.ndarray
    numbers: np.ndarray


class Task(NamedTuple):
    """A training run that has not begun.

    Attributes:
        config: of the model.
        optimizer: for `train.init`.
        step: for `train.fit`: a function of state and batch, with the loss as its attribute `loss`.
        batches: each call gives the same batches, from the first.
        steps: how many steps that is; None: time ends it.
        evaluate: the score on data that was not trained on: "loss" and "accuracy", and other shares.
        every: steps from one evaluation to the next.
        held_out: what these data are called: "test" or "validation", and how much of them is used if not all.
        unit: what the loss is a mean over: "image", "character".
        examples: so many of those that are trained on, spread over them, and all those that are not.
        data: facts about the data for the record, with their SHA-256; values that JSON can hold.
        tokens: how many a step predicts, where the model is one of language: the speed is then given in
            tokens, too.
        finish: what the task adds to the folder of a finished run: `finish(params, folder)`.
        notes: what whoever reads its score should know; printed before the training.
    """

    config: Any
    optimizer: optax.GradientTransformation
    step: Any
    batches: Callable[[], Iterator[Any]]
    steps: int | None
    evaluate: Callable[[State], dict[str, float]]
    every: int
    held_out: str
    unit: str
    data: dict[str, Any]
    examples: Callable[[int], tuple[Examples, Examples]]
    tokens: int | None = None
    finish: Callable[[Any, Path], None] | None = None
    notes: tuple[str, ...] = ()


class Saved(NamedTuple):
    """A trained model as its run folder holds it: `data` is that of the `Task`."""

    task: str
    config: Any
    params: Any
    data: dict[str, Any]


class Prediction(NamedTuple):
    """What a model says about a file: a table, and a text below it."""

    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    text: str = ""


# JAX makes a key of the lowest 32 bits of a seed, without a word where there are more.
SEEDS = (0, 2**32 - 1)
# A state counts its steps in an int32; 10,000 epochs fit, also of 60,000 images one by one.
STEPS = (1, 2**31 - 1)
EPOCHS = (1, 10_000)


def spread(n: int, most: int) -> Int[np.ndarray, " m"]:
    """The numbers of `most` of n examples, or of all if there are no more.

    >>> spread(7, 3), spread(2, 3)
    (array([0, 3, 6]), array([0, 1]))
    """
    return np.linspace(0, n - 1, min(n, most)).astype(int)


def check_range(options: Any, **ranges: tuple[int | float, int | float]) -> None:
    """Raise ValueRangeError for the first option outside its range; the ends belong to it, but infinity."""
    for name, (low, high) in ranges.items():
        value = getattr(options, name)
        if value is not None and not (low <= value <= high and abs(value) < math.inf):
            raise ValueRangeError(
                f"{name} is {value}.",
                path=name,
                expected=f"{low} or more" if high == math.inf else f"{low} to {high}",
            )


def correct(logits: Float[Array, "*n classes"], labels: Int[Array, "*n"]) -> Bool[Array, "*n"]:
    """Whether the most probable class is the label."""
    return logits.argmax(-1).astype(labels.dtype) == labels


def fingerprint(*arrays: np.ndarray) -> str:
    """The SHA-256 of arrays: of their types, shapes and elements."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
