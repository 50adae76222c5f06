"""Naming the mistake: from arrays, from paths of the chain rule, from edits of the formula, in this order.

A name counts only if it holds at every point: on other values, and at other sizes where the functions run.
"""

import dataclasses
import math
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from funcnet.verifier import arrays, edits, judge, paths
from funcnet.verifier.judge import SMALL, Judge, Point, largest
from funcnet.verifier.problem import Problem, elsewhere
from funcnet.verifier.report import Finding

__all__ = ["diagnose"]


def diagnose(
    ready: Judge,
    points: list[Point],
    wrong: Sequence[int],
    measured: Sequence[tuple[float, Any]],
    deadline: float,
    rng: np.random.Generator,
    small: bool,
) -> list[Finding]:
    """One finding for each wrong gradient, in their order."""
    problem = ready.problem
    known: dict[int, Finding] = {}
    checked = list(points) if small else []
    if not small or not any(p.label in ("primes", "second") for p in points):
        for kind in ("second", "square"):
            moved = elsewhere(problem, kind, rng)
            if moved is None or sum(v.size for v in moved) > SMALL:
                continue
            try:
                checked.append(ready.at(kind, moved, rng))
            except Exception:  # the formula need not run at sizes that nobody asked for
                continue
    checked = [p for p in checked if all(t.size for t in p.truth[0])] or points[:1]
    _say("verify: naming the mistake ...")
    for i in wrong:
        found = _on_cotangent(ready, checked[0], i) or _from_values(problem, checked, i)
        found = found or _one_sample(ready, checked[0], i) or _diagonal(ready, checked[0], i)
        if found is not None:
            known[i] = found
    left = [i for i in wrong if i not in known]
    if left and checked[0].truth[0][0].size <= SMALL and time.monotonic() < deadline:
        known |= paths.search(problem, checked, left)
        left = [i for i in wrong if i not in known]
    if left and ready.jitted:
        known |= edits.search(problem, checked, left, _sizes(problem, checked[0].arrays), deadline)
        left = [i for i in wrong if i not in known]
    for i in left:
        known[i] = _from_support(problem, checked, i)
    _say("")
    findings = []
    for i in wrong:
        error, errors = measured[i]
        found = dataclasses.replace(known[i], error=error, where=known[i].where or _where(errors))
        if found.kind in _PERHAPS_BORDER and _at_border(errors):
            message = f"right inside, wrong at the border: {found.message}"
            found = dataclasses.replace(found, kind="border", message=message)
        findings.append(found)
    return findings


_PERHAPS_BORDER = ("mask", "extra_term", "missing_term", "unknown", "wrong_residual")


def _at_border(errors: Any) -> bool:
    """Whether all that is wrong lies in the outer third of an axis, and what is inside is right."""
    if errors is None or not errors.size:
        return False
    bad = errors > 1e-6 * largest(errors)
    for axis in range(bad.ndim):
        n, others = bad.shape[axis], tuple(a for a in range(bad.ndim) if a != axis)
        rows, reach = np.flatnonzero(bad.any(others)), min(bad.shape[axis] // 3, 3)
        if n >= 4 and len(rows) and all(r < reach or r >= n - reach for r in rows):
            return True
    return False


def _say(text: str) -> None:
    """A line on the terminal that the next one replaces."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def _where(errors: Any) -> str:
    return arrays.support(errors > 1e-3 * largest(errors)) if errors is not None and errors.size else ""


def _sizes(problem: Problem, arrays: Sequence[Any]) -> dict[str, int]:
    """The sizes of the arguments by name: ``x.shape[0]``."""
    return {
        f"{path}.shape[{a}]": d
        for path, i in zip(problem.paths, problem.moving, strict=True)
        for a, d in enumerate(arrays[i].shape)
    }


def _from_values(problem: Problem, points: Sequence[Point], i: int) -> Finding | None:
    path, first = problem.paths[i], points[0]
    if first.formula[0][i] is None:
        return Finding(path, "zero", "no gradient is given, and the true one is not zero", "give it")
    found = None
    for n, point in enumerate(points):
        pairs = [(f[i], t[i]) for f, t in zip(point.formula, point.truth, strict=True)]
        others = {
            problem.paths[j]: [(f[j], t[j]) for f, t in zip(point.formula, point.truth, strict=True)]
            for j in range(len(problem.paths))
            if j != i and point.formula[0][j] is not None
        }
        batched = max(v.ndim for v in point.dys[0])
        named = arrays.named(path, pairs, others, _sizes(problem, point.arrays), batched)
        if n == 0:
            found = named
        if named is None or found is None or named.kind != found.kind:
            return found if found is not None and found.kind in ("nan", "shape") else None
        if named.kind == "scale" and not _same_factor(problem, points[0], point, i):
            return None
    return found


def _same_factor(problem: Problem, one: Point, two: Point, i: int) -> bool:
    """Whether a gradient is off by one constant, or by one size of the arguments, at both points."""
    a, b = (
        arrays.ratio([(f[i], t[i]) for f, t in zip(p.formula, p.truth, strict=True)]) or 0.0
        for p in (one, two)
    )
    names = [arrays.name_constant(c, _sizes(problem, p.arrays)) for c, p in ((a, one), (b, two))]
    return abs(a - b) <= 1e-7 * abs(a) or (
        names[0] != "" and names[0].partition(":")[2] == names[1].partition(":")[2]
    )


def _on_cotangent(ready: Judge, point: Point, i: int) -> Finding | None:
    """Is the gradient linear in dy?"""
    path, first = ready.problem.paths[i], point.formula[0][i]
    if first is None or not np.isfinite(first).all():
        return None
    values = [f[i] for f in point.formula]
    if first.any() and all(np.array_equal(first, u) for u in values) and any(t[i].any() for t in point.truth):
        return Finding(path, "ignores_cotangent", "the gradient is the same for every dy", "multiply by dy")
    at = lambda c: np.asarray(ready.formula(point.arrays, [c * v for v in point.dys[0]])[i])
    none, twice, thrice = at(0.0), at(2.0), at(3.0)
    scale = max(largest(first), largest(twice))
    if not judge.differs(twice, 2 * first, 1e-6, scale):
        return None
    if judge.differs(twice - none, 2 * (first - none), 1e-6, scale) or judge.differs(
        thrice - none, 3 * (first - none), 1e-6, scale
    ):
        return Finding(path, "nonlinear_in_cotangent", "the gradient of 2·dy is not twice the gradient of dy")
    if not judge.differs(first - none, point.truth[0][i], 1e-7, scale):
        return Finding(path, "extra_term", "a term that does not depend on dy is added", "leave it out")
    return Finding(path, "ignores_cotangent", "a term does not depend on dy", "multiply it by dy")


def _one_sample(ready: Judge, point: Point, i: int) -> Finding | None:
    """Does only one index of an axis of y count, the first or the last?"""
    path, dys = ready.problem.paths[i], point.dys
    got = [f[i] for f in point.formula]
    if any(u is None or u.shape != t[i].shape for u, t in zip(got, point.truth, strict=True)):
        return None
    for axis in range(max(v.ndim for v in dys[0])):
        for index in (0, -1):
            kept = [[_only(v, axis, index) for v in dy] for dy in dys]
            want = [np.asarray(ready.truth(point.arrays, dy)[i]) for dy in kept]
            scale = max(largest(t) for t in want)
            if scale and not any(judge.differs(u, t, 1e-7, scale) for u, t in zip(got, want, strict=True)):
                which = f"{'first' if index == 0 else 'last'} index of axis {axis} of y"
                kind = "missing_batch_sum" if axis == 0 else "ignores_cotangent"
                return Finding(path, kind, f"only the {which} counts", f"sum over axis {axis}")
    return None


def _diagonal(ready: Judge, point: Point, i: int) -> Finding | None:
    """Is it dy times the diagonal of the Jacobian, as if the operation worked element by element?"""
    path, dys, got = ready.problem.paths[i], point.dys, [f[i] for f in point.formula]
    shape = dys[0][0].shape
    if len(dys[0]) != 1 or any(u is None or u.shape != shape for u in got) or not 1 < dys[0][0].size <= 256:
        return None
    basis = np.eye(dys[0][0].size).reshape(-1, *shape)
    rows = jax.vmap(lambda e: ready.truth(point.arrays, [e])[i])(basis)
    diagonal = np.asarray(rows).reshape(len(basis), len(basis)).diagonal().reshape(shape)
    scale = max(largest(u) for u in got)
    if any(judge.differs(u, diagonal * dy[0], 1e-7, scale) for u, dy in zip(got, dys, strict=True)):
        return None
    message = "only the diagonal of the Jacobian: the terms from one element to the others are missing"
    return Finding(path, "missing_term", message, "add what the other elements of dy contribute")


def _only(v: np.ndarray, axis: int, index: int) -> np.ndarray:
    if axis >= v.ndim:
        return v
    kept = np.zeros_like(v)
    at = [slice(None)] * v.ndim
    at[axis] = slice(index, index + 1 or None)
    kept[tuple(at)] = v[tuple(at)]
    return kept


def _from_support(problem: Problem, points: Sequence[Point], i: int) -> Finding:
    """A mask or a border, if the errors lie there; else unknown."""
    path = problem.paths[i]
    pairs = [(f[i], t[i]) for f, t in zip(points[0].formula, points[0].truth, strict=True)]
    if any(u is None or u.shape != t.shape for u, t in pairs):
        return Finding(path, "unknown", "wrong, and no single edit of the formula makes it right")
    scale = max(largest(t) for _, t in pairs)
    bad = np.any([np.abs(u - t) > 1e-7 * scale for u, t in pairs], 0)
    extra = all(np.abs(np.where(bad, t, 0)).max(initial=0) <= 1e-9 * scale for _, t in pairs)
    lacking = all(np.abs(np.where(bad, u, 0)).max(initial=0) <= 1e-9 * scale for u, _ in pairs)
    if bad.any() and not bad.all() and (extra or lacking):
        what = "not zero where the truth is" if extra else "zero where the truth is not"
        return Finding(path, "mask", f"right but for a mask: {what}", "", "", math.inf, arrays.support(bad))
    return Finding(path, "unknown", "wrong, and no single edit of the formula makes it right")
