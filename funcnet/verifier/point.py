"""What truth and formula say at one point, and how far apart they are there."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from funcnet.verifier.wide import largest, parts

__all__ = ["TIMES", "Leaf", "Point", "measure", "scale_of"]

TIMES = 4096.0  # the spread in float64: a right formula may be a good deal less exact than autodiff


@dataclasses.dataclass(frozen=True)
class Point:
    """Arguments, cotangents, and what truth and formula say there: one list of gradients per cotangent.

    What is not `seen` is 0 in both: where the truth is not finite, or was not asked for.
    """

    label: str
    arrays: list[Any]
    dys: list[list[np.ndarray]]
    truth: list[list[np.ndarray]]
    formula: list[list[Any]]  # None where it gives none
    spread: list[np.ndarray]  # of each gradient, under rounding in float64
    drift: list[float]  # the spread of the gradient as a whole, along itself
    seen: list[np.ndarray]
    jumps: list[np.ndarray]  # where the spread is that of a kink
    high: float = 1.0  # the largest element of the result
    loose: float = TIMES  # how many spreads are allowed
    whole: list[Any] = dataclasses.field(default_factory=list)  # what the formula says, seen or not
    along: list[Any] | None = None  # of a sample: a direction, the slope along it and its error, or None
    plain: bool = False  # whether no spread was asked for

    def shown(self, i: int, x: Any) -> Any:
        """A gradient i, 0 where it is not seen; as it is, if it has another shape."""
        return np.where(self.seen[i], x, 0) if np.shape(x) == self.seen[i].shape else x


class Leaf(NamedTuple):
    """The verdict on one gradient at one point.

    Attributes:
        state: "right"; "convention", right but for kinks; "wrong"; "undecided".
        error: the largest, relative to the largest element of the truth; of the formula's if that is 0.
        allowed: what was allowed at the element that is the worst.
        errors: of every element, relative likewise; None where shapes differ, or a large one is right.
        kinks: where the formula takes another side of a kink than the truth; None without.
        why: where it is undecided.
    """

    state: str
    error: float
    allowed: float
    errors: np.ndarray | None = None
    kinks: np.ndarray | None = None
    why: str = ""


def measure(points: Sequence[Point], i: int) -> tuple[float, np.ndarray | None]:
    """The largest error of gradient i over points and cotangents, and that of every element at the first."""
    worst, errors = 0.0, None
    for n, point in enumerate(points):
        scale = scale_of(point, i)
        for want, got in zip(point.truth, point.formula, strict=True):
            mine = got[i]
            if mine is not None and mine.shape != want[i].shape:
                return np.inf, None
            found = np.asarray(parts(np.zeros_like(want[i]) if mine is None else mine, want[i]) / scale)
            worst = max(worst, largest(found))
            if n == 0:
                errors = found if errors is None else np.asarray(np.maximum(errors, found))
    return worst, errors


def scale_of(point: Point, i: int) -> float:
    """What the errors of a gradient are relative to: its largest element over all cotangents."""
    return max([largest(want[i]) for want in point.truth] + [1e-300])
