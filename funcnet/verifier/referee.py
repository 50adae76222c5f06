"""Numerical differentiation, for when a formula and autodiff disagree, or autodiff cannot be trusted.

Central differences along a direction, at three steps, each half the one before. Where the function is smooth,
the error falls by 4 from one to the next, so that two combine to one that is exact to O(h⁴) (Richardson), and
the difference of two such combinations says how far to trust them: the user chooses no step or tolerance.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

__all__ = ["derivative", "gradient"]

STEP = 2.0**-13  # h⁴ and the rounding 2⁻⁵³ / h are then both near 1e-12, relative


def derivative(
    f: Callable[[Sequence[Any]], Sequence[Any]], at: Sequence[Any], along: Sequence[Any], dy: Sequence[Any]
) -> tuple[float, float]:
    """⟨dy, J t⟩ by differences, and how far it can be trusted.

    Args:
        f: flat float64 arrays to flat float64 arrays.
        at: the point.
        along: the direction t, an array per array of `at`.
        dy: the cotangent.

    Returns:
        The derivative, and an estimate of its error: the difference that the last refinement made.
    """

    def at_step(h: float) -> float:
        ahead = f([np.asarray(v) + h * t for v, t in zip(at, along, strict=True)])
        behind = f([np.asarray(v) - h * t for v, t in zip(at, along, strict=True)])
        difference = [(np.asarray(a) - np.asarray(b)) / (2 * h) for a, b in zip(ahead, behind, strict=True)]
        return float(sum(np.vdot(d, np.asarray(c)) for d, c in zip(difference, dy, strict=True)))

    first, second, third = at_step(2 * STEP), at_step(STEP), at_step(STEP / 2)
    once, again = (4 * second - first) / 3, (4 * third - second) / 3
    return again, abs(again - once) + 1e-11 * abs(again)


def gradient(
    f: Callable[[Sequence[Any]], Sequence[Any]], at: Sequence[Any], dy: Sequence[Any]
) -> list[np.ndarray]:
    """Jᵀdy by `derivative` along every axis: two evaluations of f and more for each element."""
    grads = []
    for i, value in enumerate(at):
        grad = np.zeros(np.shape(value))
        for index in np.ndindex(grad.shape):
            along = [np.zeros(np.shape(v)) for v in at]
            along[i][index] = 1.0
            grad[index] = derivative(f, at, along, dy)[0]
        grads.append(grad)
    return grads
