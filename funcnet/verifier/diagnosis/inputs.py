"""Naming a mistake from outside: what must be done to the inputs for the truth to be what the formula gives?

The true gradient for dy reversed, or at a transposed w, or with two arguments exchanged, may be exactly what
the formula gives. The formula need not be seen for that.
"""

import functools
import heapq
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from funcnet.verifier.diagnosis.arrays import SAME
from funcnet.verifier.diagnosis.search import Guess, Named, within
from funcnet.verifier.diagnosis.work import Work
from funcnet.verifier.differences import SAMPLE
from funcnet.verifier.finding import Finding
from funcnet.verifier.formulas.written import Formulas
from funcnet.verifier.judge import Judge, judge_of
from funcnet.verifier.point import Point
from funcnet.verifier.problem import is_float, pose
from funcnet.verifier.trace import BY_JAX, CALL
from funcnet.verifier.wide import Wide, differs, largest

__all__ = ["family", "on_cotangent"]


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
    at = lambda c: point.shown(i, np.asarray(ready.formula(point.arrays, [c * v for v in point.dys[0]])[i]))
    none, twice = at(0.0), at(2.0)
    scale = max(largest(first), largest(twice))
    for c in (2.0, 3.0, -1.0):
        if differs(at(c) - none, c * (first - none), 1e-6, scale):
            message = f"the gradient of {c:g}·dy is not {c:g} times the gradient of dy"
            return Finding(path, "nonlinear_in_cotangent", message)
    if not differs(twice, 2 * first, 1e-6, scale):
        return None
    if not differs(first - none, point.truth[0][i], 1e-7, scale):
        return Finding(path, "extra_term", "a term that does not depend on dy is added", "leave it out")
    return Finding(path, "ignores_cotangent", "a term does not depend on dy", "multiply it by dy")


def family(ready: Judge, points: Sequence[Point], i: int, work: Work) -> Iterator[Guess]:
    """What, done to the inputs, may make the truth what the formula gives for gradient i."""
    first, path = points[0], ready.problem.paths[i]
    if any(u[i] is None or u[i].shape != t[i].shape for u, t in zip(first.formula, first.truth, strict=True)):
        return iter(())

    def names(change: Change, left: Sequence[int]) -> Iterator[Named]:
        if i in left and all(_explains(ready, change, point, i, work) for point in points):
            yield i, change.effort, Finding(path, change.kind, change.message, change.suggestion)

    def guesses() -> Iterator[Guess]:
        yield Guess(1.0, lambda left: _diagonal(ready, first, i, work) if i in left else ())
        changes = itertools.chain(_of_dy(first, i), _of_arguments(ready, first))
        for change in sorted(changes, key=lambda change: change.effort):
            yield Guess(change.effort, functools.partial(names, change))

    def symmetric(left: Sequence[int]) -> Iterator[Named]:
        if i in left:
            yield from ((i, *found) for found in _symmetric(ready, points, i, work))

    nearer, symmetries = guesses(), iter([Guess(1.3, symmetric)])
    return within(work, heapq.merge(nearer, symmetries, key=lambda guess: guess.effort))


def _explains(ready: Judge, change: Change, point: Point, i: int, work: Work) -> bool:
    scale = max(largest(f[i]) for f in point.formula)
    for dy, formula in zip(point.dys, point.formula, strict=True):
        work.pay(cost_of(ready.truth, point))
        try:
            want = ready.truth(*change.make([np.asarray(v) for v in point.arrays], list(dy)))[i]
        except Exception:  # whatever a forward pass may raise where this change does not fit
            return False
        if differs(formula[i], point.shown(i, want), SAME, scale):
            return False
    return True


def cost_of(truth: Any, point: Point) -> float:
    """Of the truth at one point: its program's, or of differences as many runs as there are elements."""
    if isinstance(truth, Wide):
        return truth.program(point.arrays, point.dys[0])[0].cost
    return 6 * SAMPLE * BY_JAX * CALL


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


def _symmetric(ready: Judge, points: Sequence[Point], i: int, work: Work) -> list[tuple[float, Finding]]:
    """Is it right where a square argument is symmetric? Then a transpose is missing, as in 2 A for A + Aᵀ."""
    problem, names = ready.problem, list[str]()
    work.pay(3 * sum(cost_of(ready.truth, point) for point in points))
    for k, name in enumerate(problem.all_paths):
        square = [p for p in points if is_float(p.arrays[k]) and _is_square(np.shape(p.arrays[k]))]
        if square and all(_right_at_symmetric(ready, point, k, i) for point in square):
            names.append(name)
    for written in problem.written:
        for name, other in written.symmetrised() if isinstance(written, Formulas) else ():
            there = judge_of(pose(other.forward, other, problem.args))
            if there.leaf(there.at("", problem.arrays, np.random.default_rng(0)), i).state == "right":
                names.append(name)
    found = (Finding(problem.paths[i], "transpose", f"right where {name} is symmetric") for name in names)
    return [(1.3, one) for one in found]


def _is_square(shape: tuple[int, ...]) -> bool:
    return len(shape) > 1 and shape[-1] == shape[-2] > 1


def _right_at_symmetric(ready: Judge, point: Point, k: int, i: int) -> bool:
    A = np.asarray(point.arrays[k])
    even = (A + A.swapaxes(-1, -2)) / 2
    if np.array_equal(A, even):
        return False  # it is wrong there
    arrays = [even if j == k else v for j, v in enumerate(point.arrays)]
    for dy in point.dys:
        try:
            got, want = (point.shown(i, of(arrays, dy)[i]) for of in (ready.formula, ready.truth))
        except Exception:  # whatever a formula may raise
            return False
        if got is None or differs(got, want, SAME, largest(want)):
            return False
    return True


def _diagonal(ready: Judge, point: Point, i: int, work: Work) -> Iterator[Named]:
    """Is it dy times the diagonal of the Jacobian, as if the operation worked element by element?"""
    path, dys, got = ready.problem.paths[i], point.dys, [f[i] for f in point.formula]
    shape = dys[0][0].shape
    if len(dys[0]) != 1 or any(u.shape != shape for u in got) or not 1 < dys[0][0].size <= 256:
        return
    scale = max(largest(u) for u in got)
    across = [u * w[0] for u, w in zip(got, dys[1:], strict=False)]  # equal if both are dy times the same
    if any(differs(a, u * v[0], 1e-6, largest(a)) for a, u, v in zip(across, got[1:], dys, strict=False)):
        return
    work.pay(dys[0][0].size * cost_of(ready.truth, point))
    diagonal = np.zeros(shape, got[0].dtype)
    for element in np.ndindex(shape):
        basis = np.zeros(shape)
        basis[element] = 1.0
        diagonal[element] = ready.truth(point.arrays, [basis])[i][element]
    if not any(differs(u, diagonal * dy[0], SAME, scale) for u, dy in zip(got, dys, strict=True)):
        message = "only the diagonal of the Jacobian: the terms from one element to the others are missing"
        yield i, 1.0, Finding(path, "missing_term", message, "add what the other elements of dy contribute")
