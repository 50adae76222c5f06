"""Naming a mistake from outside: what must be done to the inputs for the truth to be what the formula gives?

The true gradient for dy reversed, or at a transposed w, or with two arguments exchanged, may be exactly what
the formula gives. The formula need not be seen for that.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from funcnet.verifier import clock, judge
from funcnet.verifier.arrays import SAME
from funcnet.verifier.finding import Finding
from funcnet.verifier.judge import Judge, Point, largest
from funcnet.verifier.problem import is_float

__all__ = ["on_cotangent", "search"]


class Change(NamedTuple):
    """Something done to arguments and cotangent: `make(arrays, dy)` gives the others."""

    kind: str
    message: str
    suggestion: str
    make: Callable[[list[np.ndarray], list[np.ndarray]], tuple[list[Any], list[Any]]]
    effort: float = 1.1


def on_cotangent(ready: Judge, point: Point, i: int) -> Finding | None:
    """Is the gradient linear in dy?"""
    path, first = ready.problem.paths[i], point.formula[0][i]
    if first is None or not np.isfinite(first).all():
        return None
    values = [f[i] for f in point.formula]
    if first.any() and all(np.array_equal(first, u) for u in values) and any(t[i].any() for t in point.truth):
        return Finding(path, "ignores_cotangent", "the gradient is the same for every dy", "multiply by dy")
    at = lambda c: np.asarray(ready.formula(point.arrays, [c * v for v in point.dys[0]])[i])
    none, twice = at(0.0), at(2.0)
    scale = max(largest(first), largest(twice))
    for c in (2.0, 3.0, -1.0):
        if judge.differs(at(c) - none, c * (first - none), 1e-6, scale):
            message = f"the gradient of {c:g}·dy is not {c:g} times the gradient of dy"
            return Finding(path, "nonlinear_in_cotangent", message)
    if not judge.differs(twice, 2 * first, 1e-6, scale):
        return None
    if not judge.differs(first - none, point.truth[0][i], 1e-7, scale):
        return Finding(path, "extra_term", "a term that does not depend on dy is added", "leave it out")
    return Finding(path, "ignores_cotangent", "a term does not depend on dy", "multiply it by dy")


def search(ready: Judge, points: Sequence[Point], i: int, deadline: float) -> list[tuple[float, Finding]]:
    """What, done to the inputs, makes the truth what the formula gives, and how far-fetched each is."""
    first, path, found = points[0], ready.problem.paths[i], []
    if any(u[i] is None or u[i].shape != t[i].shape for u, t in zip(first.formula, first.truth, strict=True)):
        return []
    for change in itertools.chain(_of_dy(first, i), _of_arguments(ready, first)):
        if clock.is_over(deadline):
            return found
        if all(_explains(ready, change, point, i) for point in points):
            found.append((change.effort, Finding(path, change.kind, change.message, change.suggestion)))
    return found + _diagonal(ready, points[0], i, deadline)


def _explains(ready: Judge, change: Change, point: Point, i: int) -> bool:
    scale = max(largest(f[i]) for f in point.formula)
    for dy, formula in zip(point.dys, point.formula, strict=True):
        try:
            want = ready.truth(*change.make([np.asarray(v) for v in point.arrays], list(dy)))[i]
        except Exception:  # whatever a forward pass may raise where this change does not fit
            return False
        if judge.differs(formula[i], want, SAME, scale):
            return False
    return True


def _of_dy(point: Point, i: int) -> Iterator[Change]:
    """Of dy only a part counts, or it is turned."""
    dys = point.dys[0]
    if len(dys) != 1:
        return
    shape, mine = dys[0].shape, point.truth[0][i].shape
    each = lambda f: lambda arrays, dy: (arrays, [f(v) for v in dy])
    some = [(axis,) for axis in range(len(shape))] + [tuple(range(1, len(shape) - 1))] * (len(shape) > 3)
    for axes, (index, name) in itertools.product(some, ((0, "first"), (-1, "last"))):
        if all(shape[a] > 1 for a in axes):
            which = f"{name} index of axis {', '.join(map(str, axes))} of y"
            shared = axes == (0,) and (not mine or mine[0] != shape[0])
            kind = "missing_batch_sum" if shared else "ignores_cotangent"
            kept = each(lambda v, axes=axes, n=index: _only(v, axes, n))
            yield Change(kind, f"only the {which} counts", "sum over it" if shared else "use all of dy", kept)
            repeated = each(lambda v, axes=axes, n=index: np.broadcast_to(v[_at(v, axes, n)], v.shape))
            message = f"dy at the {which} stands for all of dy"
            yield Change("ignores_cotangent", message, "use all of dy", repeated)
            dropped = each(lambda v, axes=axes, n=index: v - _only(v, axes, n))
            yield Change("ignores_cotangent", f"the {which} does not count", "use all of dy", dropped)
    for axis in range(len(shape)):
        flip = each(lambda v, axis=axis: np.flip(v, axis))
        yield Change("flip", f"dy is reversed along axis {axis}", "reverse it", flip)
        for by in (1, -1):
            roll = each(lambda v, axis=axis, by=by: np.roll(v, by, axis))
            yield Change("shift", f"dy is shifted by {by} along axis {axis}", "shift it back", roll)
    for a, b in itertools.combinations(range(len(shape)), 2):
        if shape[a] == shape[b] > 1:
            swap = each(lambda v, a=a, b=b: np.swapaxes(v, a, b))
            yield Change("transpose", "dy is transposed", "transpose it", swap)


def _at(v: np.ndarray, axes: Sequence[int], index: int) -> tuple[slice, ...]:
    return tuple(slice(index, index + 1 or None) if a in axes else slice(None) for a in range(v.ndim))


def _only(v: np.ndarray, axes: Sequence[int], index: int) -> np.ndarray:
    kept, at = np.zeros_like(v), _at(v, axes, index)
    kept[at] = v[at]
    return kept


def _of_arguments(ready: Judge, point: Point) -> Iterator[Change]:
    """An argument is turned, exchanged for another, masked."""
    names, arrays = ready.problem.all_paths, point.arrays

    def put(k: int, f: Callable[[list[Any]], Any]) -> Any:
        return lambda arrays, dy: ([f(arrays) if j == k else v for j, v in enumerate(arrays)], dy)

    for k, (name, x) in enumerate(zip(names, arrays, strict=True)):
        shape = np.shape(x)
        if x.dtype == np.bool_:
            yield Change("mask", f"{name} is inverted", "invert it", put(k, lambda a, k=k: ~a[k]))
            yield Change("mask", f"{name} is ignored", "mask", put(k, lambda a, k=k: np.ones_like(a[k])))
        if not is_float(x) or not shape:
            continue
        yield Change("sign", f"{name} has the opposite sign", "negate it", put(k, lambda a, k=k: -a[k]), 2.1)
        axes = [a for a in range(len(shape)) if shape[a] > 1]
        for some in (c for n in (1, 2, 3) for c in itertools.combinations(axes, n)):
            flip = put(k, lambda a, k=k, some=some: np.flip(a[k], some))
            yield Change("flip", f"{name} is reversed along {some}", f"reverse {name}", flip, 1.2)
        for a, b in itertools.combinations(axes, 2):
            if shape[a] == shape[b]:
                swap = put(k, lambda v, k=k, a=a, b=b: np.swapaxes(v[k], a, b))
                yield Change("transpose", f"{name} is transposed", f"transpose {name}", swap, 1.2)
        for axis, by in itertools.product(axes, (1, -1)):
            roll = put(k, lambda a, k=k, axis=axis, by=by: np.roll(a[k], by, axis))
            yield Change("shift", f"{name} is shifted by {by} along axis {axis}", "shift it back", roll, 1.2)
        for other in range(k + 1, len(arrays)):
            if np.shape(arrays[other]) == shape and is_float(arrays[other]):
                yield Change(
                    "swapped",
                    f"{name} and {names[other]} are exchanged",
                    "exchange them",
                    lambda arrays, dy, k=k, o=other: (
                        [arrays[{k: o, o: k}.get(j, j)] for j in range(len(arrays))],
                        dy,
                    ),
                    1.2,
                )


def _diagonal(ready: Judge, point: Point, i: int, deadline: float) -> list[tuple[float, Finding]]:
    """Is it dy times the diagonal of the Jacobian, as if the operation worked element by element?"""
    path, dys, got = ready.problem.paths[i], point.dys, [f[i] for f in point.formula]
    shape = dys[0][0].shape
    if len(dys[0]) != 1 or any(u.shape != shape for u in got) or not 1 < dys[0][0].size <= 256:
        return []
    diagonal = np.zeros(shape)
    for element in np.ndindex(shape):
        if clock.is_over(deadline):
            return []
        basis = np.zeros(shape)
        basis[element] = 1.0
        diagonal[element] = ready.truth(point.arrays, [basis])[i][element]
    scale = max(largest(u) for u in got)
    if any(judge.differs(u, diagonal * dy[0], SAME, scale) for u, dy in zip(got, dys, strict=True)):
        return []
    message = "only the diagonal of the Jacobian: the terms from one element to the others are missing"
    fix = "add what the other elements of dy contribute"
    return [(1.0, Finding(path, "missing_term", message, fix))]
