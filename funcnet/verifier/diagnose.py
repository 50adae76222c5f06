"""Naming the mistake: from arrays, from paths of the chain rule, from edits of the formula, in this order.

A name counts only if it holds at every point: on other values, and at other sizes where the functions run.
"""

import dataclasses
import math
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from funcnet.verifier import arrays, edits, paths
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
    size: int,
) -> list[Finding]:
    """One finding for each wrong gradient, in their order."""
    problem = ready.problem
    known: dict[int, Finding] = {}
    checked = list(points) if size <= SMALL else []
    if size > SMALL or not any(p.label in ("primes", "second") for p in points):
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
        if (found := _from_values(problem, checked, i)) is not None:
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
    where = {i: _where(measured[i]) for i in wrong}
    return [
        dataclasses.replace(known[i], error=measured[i][0], where=known[i].where or where[i]) for i in wrong
    ]


def _say(text: str) -> None:
    """A line on the terminal that the next one replaces."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def _where(measured: tuple[float, Any]) -> str:
    _, errors = measured
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
        if n == 0 and (law := _on_cotangent(path, pairs)) is not None:
            return law
        others = {
            problem.paths[j]: [(f[j], t[j]) for f, t in zip(point.formula, point.truth, strict=True)]
            for j in range(len(problem.paths))
            if j != i and point.formula[0][j] is not None
        }
        named = arrays.named(path, pairs, others, _sizes(problem, point.arrays))
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


def _on_cotangent(path: str, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Finding | None:
    """Does the gradient depend on dy at all?"""
    first = pairs[0][0]
    if first.any() and all(np.array_equal(first, u) for u, _ in pairs) and any(t.any() for _, t in pairs):
        return Finding(path, "ignores_cotangent", "the gradient is the same for every dy", "multiply by dy")
    return None


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
    for axis in range(bad.ndim):
        n, others = bad.shape[axis], tuple(a for a in range(bad.ndim) if a != axis)
        rows = np.flatnonzero(bad.any(others))
        reach = min(n // 3, 3)
        if n >= 4 and len(rows) and all(r < reach or r >= n - reach for r in rows):
            return Finding(
                path,
                "border",
                f"right inside, wrong at the border of axis {axis}",
                "",
                "",
                math.inf,
                arrays.support(bad),
            )
    return Finding(path, "unknown", "wrong, and no single edit of the formula makes it right")
