"""Kinks: where the truth jumps, a right formula may choose between the derivatives from both sides."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from funcnet.verifier.point import TIMES, Point
from funcnet.verifier.problem import SMALL, Problem, is_float
from funcnet.verifier.wide import EPS, as_wide, largest, parts, typical

__all__ = ["explain"]

KINKS = 24  # elements at which a kink is proven; of more, the most doubtful
NEARER = 64.0  # times, to see whether a side is a limit


def explain(problem: Problem, truth: Any, y: Any, point: Point, i: int, bad: np.ndarray) -> bool:
    """Whether formula and truth differ at kinks only, and the formula lies between the two sides there.

    The sides are those of the element itself, and of what is exactly 0 on the way: a layer of zeros has
    every unit at its kink.
    """
    k = problem.moving[i]
    x = as_wide(point.arrays[k])
    unit, rng = typical(x), np.random.default_rng(0)
    if (primal := problem.primal) is not None:
        y = lambda arrays: list(map(as_wide, primal(arrays)))
    y_there = y(point.arrays)
    nearby = [pair for pair in _nearby(point.arrays, rng) if _leads_to(y(pair[0]), y_there)]
    for dy, given, mine in zip(point.dys, point.truth, point.formula, strict=True):
        slack = TIMES * EPS * largest(given[i])
        side = lambda far, near, dy=dy, t=given[i]: _side(
            t, *(as_wide(truth(arrays, dy)[i]) for arrays in (far, near))
        )
        around = [side(*pair) for pair in nearby]
        # Of many the first are those that are least between what is seen with all arguments moved.
        low, high = (
            of([part(v) for v in (given[i], *around)], axis=0)
            for of, part in ((np.fmin.reduce, np.real), (np.fmax.reduce, np.real))
        )
        beyond = np.maximum(low - mine[i].real, mine[i].real - high)
        at = rng.permutation(np.argwhere(bad))
        at = at[np.argsort(-beyond[tuple(at.T)], kind="stable")][:KINKS]
        for index in map(tuple, at):
            sides = [given[i], *around]
            for h in (2.0**-26, -(2.0**-26)):
                step = np.zeros(x.shape, x.dtype)
                step[index] = h * max(abs(x[index]), unit)
                pair: list[Any] = [
                    [x + by * step if j == k else v for j, v in enumerate(point.arrays)]
                    for by in (1.0, 1 / NEARER)
                ]
                sides.append(side(*pair))
            # What moves with this element is tied to it: of a maximum all together get dy, not each.
            tied = bad & np.any([np.abs(s - given[i]) > 1e-3 * np.abs(s).max() for s in sides[-2:]], 0)
            for total in (lambda v, at=index: v[at], lambda v, tied=tied: np.sum(v[tied])):
                for part in (np.real, np.imag):
                    values = [v for v in (part(total(s)) for s in sides) if np.isfinite(v)]
                    low, high = min(values), max(values)
                    wide = 0.01 * (high - low) + slack * tied.sum() + slack
                    if not low - wide <= part(total(mine[i])) <= high + wide:
                        return False
    return True


def _leads_to(y: Sequence[Any], y_there: Sequence[Any]) -> bool:
    """Whether the result, near a point, is what it is at the point: at a kink it is."""
    high = max(largest(np.where(np.isfinite(v), v, 0)) for v in y_there)
    pairs = zip(y, y_there, strict=True)
    return all(largest(np.nan_to_num(parts(a, b), posinf=0.0)) <= 2.0**-16 * high for a, b in pairs)


def _nearby(arrays: Sequence[Any], rng: np.random.Generator) -> Iterator[tuple[list[Any], list[Any]]]:
    """Arguments that are moved a little, and so much less; first only their zeros, above and below."""
    if any(is_float(v) and (np.asarray(v) == 0).any() for v in arrays):
        yield from ((moved, moved) for moved in (_off_zero(arrays, sign) for sign in (1.0, -1.0)))
    yield from (_nudged(arrays, rng) for _ in range(8 if sum(v.size for v in arrays) <= SMALL else 1))


def _off_zero(arrays: Sequence[Any], sign: float) -> list[Any]:
    """The arguments with their zeros a little above or below."""
    move = lambda x: np.where(x == 0, sign * 2.0**-60 * typical(x), x)
    return [move(as_wide(v)) if is_float(v) else v for v in arrays]


def _nudged(arrays: Sequence[Any], rng: np.random.Generator) -> tuple[list[Any], list[Any]]:
    """The arguments moved a little, each number by itself, and moved so much less."""
    steps = [
        2.0**-26 * np.where(x == 0, typical(x), np.abs(x)) * rng.standard_normal(x.shape)
        if is_float(v)
        else 0
        for v in arrays
        for x in (as_wide(v) if is_float(v) else np.zeros(0),)
    ]
    far, near = (
        [as_wide(v) + by * step if is_float(v) else v for v, step in zip(arrays, steps, strict=True)]
        for by in (1.0, 1 / NEARER)
    )
    return far, near


def _side(truth: np.ndarray, far: np.ndarray, near: np.ndarray) -> np.ndarray:
    """The truth on one side of a kink: where it jumps, by as much however near one looks; else as it is."""
    with np.errstate(all="ignore"):
        step, left = np.abs(far - truth), np.abs(near - truth)
        jumps = (left > 0.5 * step) & (np.abs(far - near) <= 0.01 * np.maximum(np.abs(far), np.abs(near)))
    return np.where(jumps, far, truth)
