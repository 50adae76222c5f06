"""Naming the mistake: from arrays, from inputs, from paths of the chain rule, from edits of the formula.

A name counts only if it holds at every point: on other values, and at other sizes where the functions run.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from funcnet.verifier.diagnosis import arrays, edits, inputs, mended, paths, unroll
from funcnet.verifier.diagnosis.search import search, within
from funcnet.verifier.diagnosis.work import Work
from funcnet.verifier.finding import Finding
from funcnet.verifier.judge import Judge
from funcnet.verifier.point import Point, measure
from funcnet.verifier.problem import SMALL, Problem, elsewhere, resized
from funcnet.verifier.wide import Wide, largest

__all__ = ["diagnose"]

NAMING = 0.8  # of the work; the rest is left for the line that mends the formula


def diagnose(
    ready: Judge,
    points: list[Point],
    wrong: Sequence[int],
    measured: Sequence[tuple[float, Any]],
    work: Work,
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
    for moved in _shorter(ready, points[0], rng):
        with contextlib.suppress(Exception):
            checked.append(ready.at("shorter", moved, rng))
    right = [i for i in range(len(problem.moving)) if i not in wrong]
    checked = [p for p in checked if _tells(p, points[0], right)] or points[:1]
    _say("verify: naming the mistake ...")
    known, failures = dict[int, Finding](), list[Exception]()
    naming, mending = work.share(NAMING), work.share(1 - NAMING)
    try:
        known = _known(ready, checked, wrong, naming, failures)
        same_size = [p for p in checked if p.label in ("as given", "values near")]
        left = [i for i in wrong if i not in known]
        if left and 0 < len(same_size) < len(checked):
            for i, found in _known(ready, same_size, left, naming, failures).items():
                known[i] = dataclasses.replace(found, message=found.message + " (at these sizes)")
    except Exception as error:  # the verdict stands, whatever a program holds that the search does not expect
        failures.append(error)
    _say("")
    findings = []
    for i in wrong:
        error, errors = measured[i]
        found = known.get(i) or _from_support(problem, checked, i, failures)
        found = dataclasses.replace(found, error=error, where=found.where or _where(errors))
        if found.kind in _PERHAPS_BORDER and all(arrays.at_border(measure([p], i)[1]) for p in checked):
            message = f"right inside, wrong at the border: {found.message}"
            found = dataclasses.replace(found, kind="border", message=message)
        findings.append(found)
    return mended.with_code(
        ready, [*points, *(p for p in checked if all(p is not q for q in points))], findings, mending
    )


def _shorter(ready: Judge, point: Point, rng: np.random.Generator) -> Iterator[list[Any]]:
    """Arguments at which the long loops of the formula take few steps, if it runs there."""
    if not isinstance(ready.formula, Wide):
        return
    program, _ = ready.formula.program(point.arrays, point.dys[0])
    sizes = {d for v in point.arrays for d in v.shape}
    steps = (eqn.params["length"] for eqn in program.equations if eqn.name == "scan")
    long = {n + by for n in steps if n > unroll.STEPS for by in (0, 1) if n + by in sizes}
    for short in sorted({3, 4, 5, 6} - sizes, reverse=True)[:2] if long else ():
        shapes = [tuple(short if d in long else d for d in v.shape) for v in point.arrays]
        moved = resized(ready.problem, shapes, rng)
        with contextlib.suppress(
            Exception
        ):  # whatever a forward pass may raise at a length that it does not know
            ready.problem.shape_of_y(moved)
            yield moved


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


def _known(
    ready: Judge, points: list[Point], wrong: Sequence[int], work: Work, failures: list[Exception]
) -> dict[int, Finding]:
    """A name for those of the `wrong` gradients that have one at all the points."""
    known: dict[int, Finding] = {}
    for i in wrong:
        found = inputs.on_cotangent(ready, points[0], i) or _from_values(ready.problem, points, i)
        if found is not None:
            known[i] = found
    left = [i for i in wrong if i not in known]
    if not left or work.is_spent:
        return known
    families = [inputs.family(ready, points, i, work.share(0.3 / len(left))) for i in left]
    traced = isinstance(ready.y, Wide) and not ready.numerical
    if points[0].truth[0][0].size <= SMALL and traced:
        of_paths = work.share(0.25)
        families.append(within(of_paths, paths.family(ready.problem, points, of_paths)))
    if ready.jitted:
        families += edits.families(ready.problem, points, left, work)
    return known | {i: finding for i, (_, finding) in search(families, left, failures).items()}


_PERHAPS_BORDER = ("mask", "extra_term", "missing_term", "wrong_residual")


def _say(text: str) -> None:
    """A line on the terminal that the next one replaces."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def _where(errors: Any) -> str:
    if errors is None or not errors.size:
        return ""
    return arrays.support(np.asarray(errors > 1e-3 * largest(errors)))


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


def _from_support(
    problem: Problem, points: Sequence[Point], i: int, failures: Sequence[Exception]
) -> Finding:
    """Blocks in another order, or a mask, if only its elements are wrong; else unknown."""
    path = problem.paths[i]
    first = [f"{type(e).__name__}: {' '.join(str(e).split())}"[:100] for e in failures[:1]]
    failed = "".join(f"; part of the search failed: {text}" for text in first)
    unknown = Finding(path, "unknown", "wrong, and no single edit of the formula makes it right" + failed)
    pairs = _pairs(points[0], i)
    if any(u is None or u.shape != t.shape for u, t in pairs):
        return unknown
    if (blocks := arrays.blocks(path, pairs)) is not None:
        return blocks
    if len(points[0].dys[0]) == 1 and all(
        np.array_equal(f[i], dy[0]) for f, dy in zip(points[0].formula, points[0].dys, strict=True)
    ):
        message = "dy is passed on as it is: the derivative of the forward pass is left out"
        return Finding(path, "missing_term", message, "multiply by it")
    scale = max(largest(t) for _, t in pairs)
    bad = np.any([np.abs(u - t) > 1e-7 * scale for u, t in pairs], 0)
    extra = all(np.abs(np.where(bad, t, 0)).max(initial=0) <= 1e-9 * scale for _, t in pairs)
    lacking = all(np.abs(np.where(bad, u, 0)).max(initial=0) <= 1e-9 * scale for u, _ in pairs)
    if bad.any() and not bad.all() and (extra or lacking):
        what = "not zero where the truth is" if extra else "zero where the truth is not"
        also, where = "border" if arrays.at_one_end(bad) else "", arrays.support(bad)
        return Finding(path, "mask", f"right but for a mask: {what}", where=where, also=also)
    return unknown
