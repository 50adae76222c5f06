"""Naming the mistake: from arrays, from inputs, from paths of the chain rule, from edits of the formula.

A name counts only if it holds at every point: on other values, and at other sizes where the functions run.
"""

import dataclasses
import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from funcnet.verifier import arrays, clock, edits, inputs, paths
from funcnet.verifier.finding import Finding
from funcnet.verifier.judge import Judge, Point, largest, measure
from funcnet.verifier.problem import SMALL, Problem, elsewhere

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
    right = [i for i in range(len(problem.moving)) if i not in wrong]
    checked = [p for p in checked if _tells(p, points[0], right)] or points[:1]
    _say("verify: naming the mistake ...")
    known, failed = dict[int, Finding](), ""
    try:
        known = _known(ready, checked, wrong, deadline)
        same_size = [p for p in checked if p.label in ("as given", "values near")]
        left = [i for i in wrong if i not in known]
        if left and 0 < len(same_size) < len(checked):
            for i, found in _known(ready, same_size, left, deadline).items():
                known[i] = dataclasses.replace(found, message=found.message + " (at these sizes)")
    except Exception as error:  # the verdict stands, whatever a program holds that the search does not expect
        failed = f"; the search for its name failed: {type(error).__name__}: {error}"
    _say("")
    findings = []
    for i in wrong:
        error, errors = measured[i]
        found = known.get(i) or _from_support(problem, checked, i, failed)
        found = dataclasses.replace(found, error=error, where=found.where or _where(errors))
        if found.kind in _PERHAPS_BORDER and all(arrays.at_border(measure([p], i)[1]) for p in checked):
            message = f"right inside, wrong at the border: {found.message}"
            found = dataclasses.replace(found, kind="border", message=message)
        findings.append(found)
    return findings


def _tells(point: Point, given: Point, right: Sequence[int]) -> bool:
    """Whether a mistake shows at a point as it does at the given arguments.

    Not where something is empty, or the result has an axis of 1 that it had not; nor where a formula was
    written for some sizes only: where gradients that were right are wrong, or shapes no longer fit.
    """
    pairs = zip(point.dys[0], given.dys[0], strict=True)
    if not all(t.size for t in point.truth[0]):
        return False
    if any(d == 1 < n for v, w in pairs for d, n in zip(v.shape, w.shape, strict=False)):
        return False
    fits = lambda p: [u is None or u.shape == t.shape for u, t in zip(p.formula[0], p.truth[0], strict=True)]
    return fits(point) == fits(given) and all(
        point.formula[0][i] is None or measure([point], i)[0] < 1e-3 for i in right
    )


def _known(ready: Judge, points: list[Point], wrong: Sequence[int], deadline: float) -> dict[int, Finding]:
    """A name for those of the `wrong` gradients that have one at all the points."""
    known: dict[int, Finding] = {}
    for i in wrong:
        found = inputs.on_cotangent(ready, points[0], i) or _from_values(ready.problem, points, i)
        if found is not None:
            known[i] = found
    left = [i for i in wrong if i not in known]
    if left and not clock.is_over(deadline):
        named, until = {}, clock.part(deadline, 0.3)
        for n, i in enumerate(left):
            named[i] = inputs.search(ready, points, i, clock.part(until, 1 / (len(left) - n)))
        small = points[0].truth[0][0].size <= SMALL
        until = clock.part(deadline, 0.3)
        on_paths = paths.search(ready.problem, points, left, until) if small else {}
        by_edits = edits.search(ready.problem, points, left, deadline) if ready.jitted else {}
        for i in left:
            named[i] += on_paths.get(i, []) + by_edits.get(i, [])
            if named[i]:
                known[i] = min(named[i], key=lambda one: one[0])[1]
    return known


_PERHAPS_BORDER = ("mask", "extra_term", "missing_term", "unknown", "wrong_residual")


def _say(text: str) -> None:
    """A line on the terminal that the next one replaces."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def _where(errors: Any) -> str:
    return arrays.support(errors > 1e-3 * largest(errors)) if errors is not None and errors.size else ""


def _pairs(point: Point, i: int) -> list[tuple[Any, np.ndarray]]:
    """Formula and truth of one gradient, for each cotangent."""
    return [(f[i], t[i]) for f, t in zip(point.formula, point.truth, strict=True)]


def _from_values(problem: Problem, points: Sequence[Point], i: int) -> Finding | None:
    path, first = problem.paths[i], points[0]
    if first.formula[0][i] is None:
        return Finding(path, "zero", "no gradient is given, and the true one is not zero", "give it")
    pairs = [_pairs(point, i) for point in points]
    if all(u.shape == t.shape for (u, t), *_ in pairs):
        factors = [
            (arrays.ratio(p), problem.sizes(q.arrays, q.dys[0])) for p, q in zip(pairs, points, strict=True)
        ]
        if all(c is not None for c, _ in factors):
            return arrays.scaled(path, [(c, sizes) for c, sizes in factors if c is not None])
    found = None
    for n, point in enumerate(points):
        others = {
            problem.paths[j]: _pairs(point, j)
            for j in range(len(problem.paths))
            if j != i and point.formula[0][j] is not None
        }
        named = arrays.named(path, pairs[n], others, max(v.ndim for v in point.dys[0]))
        if n == 0:
            found = named
        if named is None or found is None or named.kind != found.kind:
            return found if found is not None and found.kind in ("nan", "shape") else None
    return found


def _from_support(problem: Problem, points: Sequence[Point], i: int, failed: str) -> Finding:
    """A mask, if only its elements are wrong; else unknown."""
    path = problem.paths[i]
    unknown = Finding(path, "unknown", "wrong, and no single edit of the formula makes it right" + failed)
    pairs = _pairs(points[0], i)
    if any(u is None or u.shape != t.shape for u, t in pairs):
        return unknown
    scale = max(largest(t) for _, t in pairs)
    bad = np.any([np.abs(u - t) > 1e-7 * scale for u, t in pairs], 0)
    extra = all(np.abs(np.where(bad, t, 0)).max(initial=0) <= 1e-9 * scale for _, t in pairs)
    lacking = all(np.abs(np.where(bad, u, 0)).max(initial=0) <= 1e-9 * scale for u, _ in pairs)
    if bad.any() and not bad.all() and (extra or lacking):
        what = "not zero where the truth is" if extra else "zero where the truth is not"
        return Finding(path, "mask", f"right but for a mask: {what}", "", "", math.inf, arrays.support(bad))
    return unknown
