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
KEEPS = 0.75  # of a bend, where the step is halved: a kink keeps all
KNOWN = 1e-3  # of the largest element: one that is measured less exactly is not known
NARROW = 2.0**-5  # the same for results in float32 and narrower


@np.errstate(all="ignore")  # an infinity on both sides
def derivative(
    f: Callable[[Sequence[Any]], Sequence[Any]],
    at: Sequence[Any],
    along: Sequence[Any],
    dy: Sequence[Any],
    *,
    smooth: bool = False,
) -> tuple[float, float]:
    """⟨dy, J t⟩ by differences, and how far it can be trusted.

    Args:
        f: flat float64 arrays to flat float64 arrays.
        at: the point.
        along: the direction t, an array per array of `at`.
        dy: the cotangent.
        smooth: add to the error by how much the slopes ahead and behind differ, if they do so however near,
            as at a kink.

    Returns:
        The derivative, and an estimate of its error: the difference that the last refinement made.
    """
    here = f([np.asarray(v) for v in at]) if smooth else []

    def at_step(h: float) -> tuple[float, float, bool]:
        """The slope, half of what it differs by ahead and behind, and whether all is float64."""
        moved = lambda h: f([np.asarray(v) + h * t for v, t in zip(at, along, strict=True)])
        ahead, behind = moved(h), moved(-h)
        of = lambda v, c: np.where(np.asarray(c) == 0, 0, v * np.asarray(c)) / (2 * h)
        pairs = [
            (np.asarray(a, _wide(a)), np.asarray(b, _wide(b))) for a, b in zip(ahead, behind, strict=True)
        ]
        slope = sum((float(np.sum(of(a - b, c)).real) for (a, b), c in zip(pairs, dy, strict=True)), 0.0)
        bends = zip(pairs, here, dy, strict=False)
        bend = sum((float(np.abs(of(a + b - 2 * np.asarray(m), c)).sum()) for (a, b), m, c in bends), 0.0)
        return slope, bend, all(np.asarray(v).dtype.itemsize >= 8 for v in ahead)

    first, _, exact = at_step(2 * STEP)
    step, rounding = (STEP, 1e-11) if exact else (NARROW, 1e-5)
    first = first if exact else at_step(2 * step)[0]
    (second, before, _), (third, bend, _) = at_step(step), at_step(step / 2)
    once, again = (4 * second - first) / 3, (4 * third - second) / 3
    error = abs(again - once) + rounding * abs(again)
    return again, error + bend if bend > KEEPS * before else error  # of what is smooth it is half of it


def _wide(x: Any) -> Any:
    return np.complex128 if np.iscomplexobj(x) else np.float64


def gradient(
    f: Callable[[Sequence[Any]], Sequence[Any]], at: Sequence[Any], dy: Sequence[Any], most: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Jᵀdy by `derivative` along every axis: six evaluations of f for each element.

    Args:
        f: flat float64 arrays to flat float64 arrays.
        at: the point.
        dy: the cotangent.
        most: of more elements in an array only so many are measured; the others are NaN.

    Returns:
        The gradients, NaN where they are not known, as at a kink, and how far each element can be trusted.
    """
    grads, trust = [], []
    for i, value in enumerate(at):
        grad, error = np.full(np.shape(value), np.nan, _wide(value)), np.full(np.shape(value), np.nan)
        chosen = np.random.default_rng(0).permutation(np.size(value))[:most]
        unit = float(np.sqrt(np.mean(np.abs(value) ** 2))) or 1.0 if np.size(value) else 1.0
        for index in (np.unravel_index(n, np.shape(value)) for n in chosen):
            found = []
            for direction in (1.0, 1j) if np.iscomplexobj(value) else (1.0,):
                along = [np.zeros(np.shape(v), _wide(v)) for v in at]
                along[i][index] = direction * unit
                found.append(derivative(f, at, along, dy, smooth=True))
            grad[index] = found[0][0] / unit - (1j * found[1][0] / unit if len(found) > 1 else 0)
            error[index] = max(each for _, each in found) / unit
        largest = np.nanmax(np.abs(grad), initial=0)
        grad[error > KNOWN * largest] = error[error > KNOWN * largest] = np.nan
        grads.append(grad)
        trust.append(error)
    return grads, trust
