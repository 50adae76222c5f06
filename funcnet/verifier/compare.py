"""`verify`: one formula against the truth, and the mistake by its name."""

import dataclasses
import math
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnet.errors import DTypeError, FuncnetError, ShapeError, StructureError, ValueRangeError, describe
from funcnet.verifier import arrays as from_arrays
from funcnet.verifier import edits, judge, paths, trace
from funcnet.verifier.judge import Judge, Point, judge_of, largest
from funcnet.verifier.problem import Problem, elsewhere, fresh, is_float, pose, wide
from funcnet.verifier.report import Finding, Report, Row

__all__ = ["verify"]

SMALL = (
    50_000  # elements of arguments and result; above, one point is enough, and mistakes are named elsewhere
)


def verify(
    forward: Callable[..., Any] | ModuleType,
    backward: Callable[..., Any] | Sequence[Any] | None = None,
    args: Sequence[Any] | None = None,
    *,
    reference: Callable[..., Any] | None = None,
    static: Mapping[str, Any] | None = None,
    shapes: str | None = None,
    budget: float = 10.0,
    seed: int = 0,
) -> Report:
    """Is this gradient right, and if not, what is the mistake?

    Three ways to call it:

    - ``verify(forward, backward, args)``: ``backward(*args, dy)`` returns the gradients in the order of
      `args` (one array for one argument); None for an argument that is not differentiated.
    - ``verify(op, args)``: a module with `reference` (or `apply`) and `vjp`.
    - ``verify(f, args, reference=g)``: f a `jax.custom_vjp` or `jax.custom_jvp` function, g its plain
      definition; without g, numerical differentiation of f is the truth.

    The formula is compared with autodiff of the definition, leaf by leaf in float64, at `args` and at values
    near them, for random and constant cotangents. A wrong one is diagnosed: from its arrays, from the paths of
    the chain rule that it leaves out, and by edits of its own program. A diagnosis is given only if it holds
    on other values, and at other sizes where the functions run there; otherwise the kind is ``unknown``.

    Args:
        forward: the definition, an operation, or a function with a rule of its own.
        backward: the formula; in the other two forms, args may stand here.
        args: the arguments: pytrees of arrays.
        reference: the plain definition of a function with a custom rule.
        static: keyword arguments of forward and backward (of reference and vjp).
        shapes: "auto": verify at other sizes too (distinct primes, all equal, other primes, an axis of 0 and
            of 1), wherever the forward pass runs there; None: at those of `args` only.
        budget: seconds for the diagnosis of a wrong formula; the verdict itself is always reached.
        seed: of cotangents and other random values.

    Returns:
        A `Report`: one row per float leaf of the arguments, and one `Finding` per mistake.

    Raises:
        DTypeError: args is not a tuple or list, or has no float.
        ShapeError: the forward pass does not run on args.
        ValueRangeError: args or the result of the forward pass are not finite; `shapes` is another word.

    >>> import funcnet as fn
    >>> x, w = jnp.ones((7, 11)), jnp.ones((11, 13))
    >>> fn.verify(lambda x, w: x @ w, lambda x, w, dy: (dy @ w.T, x.T @ dy), (x, w)).ok
    True
    >>> report = fn.verify(lambda x, w: x @ w, lambda x, w, dy: (dy @ w.T, -x.T @ dy), (x, w))
    >>> [(finding.argument, finding.kind) for finding in report.findings]
    [('w', 'sign')]
    """
    if shapes not in (None, "auto"):
        raise ValueRangeError(
            f"verify: shapes is {shapes!r}.", path="shapes", expected='None or "auto"', actual=repr(shapes)
        )
    start = time.monotonic()
    given = pose(forward, backward, args, reference=reference, static=static)
    x64 = jax.config.jax_enable_x64
    with jax.enable_x64(True):
        problem = dataclasses.replace(given, args=wide(given.args))
        _check_finite(problem)
        try:
            ready = judge_of(problem, problem.arrays)
        except FuncnetError as error:
            if not isinstance(error, StructureError):
                raise
            return _unusable(problem, Finding("", "structure", _first(error), error.hint or "", "", math.inf))
        except Exception as error:
            _check_forward(problem, error)
            return _unusable(
                problem,
                Finding(
                    "", "shape", f"the formula does not run: {_first(error)}", "", _raised_at(error), math.inf
                ),
            )
        return _verdict(ready, given, x64, shapes, start, budget, np.random.default_rng(seed))


def _verdict(
    ready: Judge,
    given: Problem,
    x64: bool,
    shapes: Any,
    start: float,
    budget: float,
    rng: np.random.Generator,
) -> Report:
    problem, notes = ready.problem, list(ready.notes)
    size = sum(v.size for v in problem.arrays) + sum(
        v.size for v in jax.eval_shape(ready.y, list(problem.arrays))
    )
    points = [ready.at("as given", problem.arrays, rng)]
    if not all(np.isfinite(t).all() for truth in points[0].truth for t in truth):
        notes.append("the true gradient is not finite at these arguments")
    if size <= SMALL:
        near = [
            fresh(v, rng) if j is None or points[0].formula[0][j] is not None else v
            for v, j in zip(problem.arrays, _numbers(problem), strict=True)
        ]
        points.append(ready.at("values near", near, rng))
    if shapes == "auto":
        for kind in ("primes", "square", "second", "one", "zero"):
            moved = elsewhere(problem, kind, rng)
            if moved is not None:
                points.append(ready.at(kind, moved, rng))
        notes.append("also at other sizes: " + ", ".join(p.label for p in points[2:]))
    return _report(ready, given, points, x64, size, start, budget, rng, notes)


def _numbers(problem: Problem) -> list[int | None]:
    """For every array, its number among the floats."""
    return [problem.moving.index(i) if i in problem.moving else None for i in range(len(problem.arrays))]


def _report(
    ready: Judge,
    given: Problem,
    points: list[Point],
    x64: bool,
    size: int,
    start: float,
    budget: float,
    rng: np.random.Generator,
    notes: list[str],
) -> Report:
    problem, findings = ready.problem, []
    tolerances = [
        max(t) for t in zip(*(ready.tolerances(p) for p in points if size <= SMALL), strict=True)
    ] or [1e-9 if ready.eps < 1e-12 else 1e3 * ready.eps] * len(problem.moving)
    measured = [judge.measure(points, i) for i in range(len(problem.moving))]
    wrong = [i for i, (error, _) in enumerate(measured) if not error <= tolerances[i]]
    notes_of: dict[int, str] = {}
    if size <= SMALL:
        findings += _laws(ready, points[0], tolerances, wrong)
    if wrong:
        disputed, allowed = _disputes(ready, points, wrong, tolerances)
        findings += disputed + allowed
        excused = {f.argument for f in (*disputed, *allowed)}
        wrong = [i for i in wrong if problem.paths[i] not in excused]
        findings += _diagnose(ready, points, wrong, measured, start + budget, rng, size)
    judged = [i for i, (error, _) in enumerate(measured) if error <= tolerances[i]]
    findings += _own_dtypes(given, ready, points[0], x64, judged) if size <= SMALL else []
    text = ", ".join("×".join(map(str, v.shape)) or "scalar" for v in problem.arrays if hasattr(v, "shape"))
    rows = []
    for i, path in enumerate(problem.paths):
        error, errors = measured[i]
        if points[0].formula[0][i] is None and i not in wrong:
            notes_of[i] = "no gradient"
        mine = [f for f in findings if f.argument == path]
        ok = i not in wrong and not any(f.is_mistake for f in mine)
        rows.append(
            Row(
                problem.name,
                path,
                text,
                1,
                error,
                tolerances[i],
                ok,
                ", ".join([f.kind for f in mine]) or notes_of.get(i, ""),
                errors,
            )
        )
    return Report(tuple(rows), tuple(findings), tuple(notes))


# ---- what cannot be verified ------------------------------------------------------------------------------


def _check_finite(problem: Problem) -> None:
    for i, path in zip(problem.moving, problem.paths, strict=True):
        if np.isnan(np.asarray(problem.arrays[i])).any():
            raise ValueRangeError(
                f"verify: {path} holds NaN.",
                path=path,
                expected="numbers",
                actual=describe(problem.arrays[i]),
            )
    with jax.enable_x64(True):
        try:
            y = problem.y(problem.arrays)
        except Exception as error:
            _check_forward(problem, error)
            return
    if any(np.isnan(np.asarray(v)).any() for v in y):
        raise ValueRangeError(
            "verify: the forward pass gives NaN at these arguments.",
            path="args",
            expected="arguments at which it is finite",
            actual=", ".join(describe(v) for v in problem.arrays),
        )
    if not y:
        raise DTypeError(
            "verify: the forward pass gives no floating-point array, so there is nothing to differentiate.",
            path="forward",
            actual=", ".join(describe(v) for v in y) or "no float",
        )


def _check_forward(problem: Problem, cause: BaseException) -> None:
    """Raise ShapeError if it is the forward pass that fails, not the formula."""
    try:
        jax.eval_shape(lambda *v: problem.y(v), *problem.arrays)
        problem.y(problem.arrays)
    except FuncnetError:
        raise
    except Exception as error:
        raise ShapeError(
            f"verify: the forward pass does not run on these arguments: {_first(error)}",
            path="args",
            expected="arguments that forward takes",
            actual=", ".join(f"{n}: {describe(a)}" for n, a in zip(problem.names, problem.args, strict=True)),
        ) from error


def _first(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__


def _raised_at(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith(trace.HIDDEN)]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else ""


def _unusable(problem: Problem, finding: Finding) -> Report:
    text = ", ".join("×".join(map(str, v.shape)) or "scalar" for v in problem.arrays)
    rows = [Row(problem.name, path, text, 1, math.inf, 0.0, False, finding.kind) for path in problem.paths]
    return Report(tuple(rows), (finding,))


# ---- laws that a formula must keep besides ----------------------------------------------------------------


def _laws(ready: Judge, point: Point, tolerances: Sequence[float], wrong: list[int]) -> list[Finding]:
    """Linear in dy; eager = jitted; the same twice. Adds to `wrong` the gradients that break the first."""
    problem, findings = ready.problem, []
    (one, two, _), at = point.dys, point.arrays
    scales, _ = judge.scales(point)
    as_numpy = lambda grads: [None if g is None else np.asarray(g, np.float64) for g in grads]
    again = as_numpy(ready.formula(at, one))
    eager = as_numpy(problem.gradients(list(at), one)) if ready.jitted else again
    twice = as_numpy(ready.formula(at, [2 * v for v in one]))
    both = as_numpy(ready.formula(at, [a + b for a, b in zip(one, two, strict=True)]))
    y = [np.asarray(v) for v in ready.y(at)]
    if any(
        (a != np.asarray(b)).any() for a, b in zip(y, problem.y(at), strict=True) if ready.eps < 1e-12
    ) and any(judge.differs(a, b, 1e-6, largest(a)) for a, b in zip(y, problem.y(at), strict=True)):
        findings.append(
            Finding(
                "",
                "nondeterministic",
                "the forward pass gives other values each time it is run",
                "",
                "",
                math.inf,
            )
        )
    for i, path in enumerate(problem.paths):
        first, second = point.formula[0][i], point.formula[1][i]
        if first is None or second is None or again[i] is None:
            continue
        same = max(tolerances[i], 1e-9)
        if judge.differs(again[i], first, 0.0, 1.0) and not np.array_equal(again[i], first, equal_nan=True):
            findings.append(Finding(path, "nondeterministic", "two runs on the same values differ"))
        elif (
            judge.differs(eager[i], first, same, max(scales[i], largest(first))) and np.isfinite(first).all()
        ):
            findings.append(Finding(path, "nondeterministic", "run eagerly and jitted, the formula differs"))
        elif i not in wrong and (
            judge.differs(twice[i], 2 * first, same, 2 * scales[i])
            or judge.differs(both[i], first + second, same, 2 * scales[i])
        ):
            findings.append(
                Finding(path, "nonlinear_in_cotangent", "the gradient of 2·dy is not twice that of dy")
            )
    return findings


def _disputes(
    ready: Judge, points: list[Point], wrong: Sequence[int], tolerances: Sequence[float]
) -> tuple[list[Finding], list[Finding]]:
    """Where autodiff and formula differ: is it autodiff that is wrong, or is it a kink where both are right?"""
    problem, point = ready.problem, points[0]
    disputed, allowed = [], []
    for i in wrong:
        path, mine = problem.paths[i], point.formula[0][i]
        if mine is None or mine.shape != point.truth[0][i].shape or not np.isfinite(mine).all():
            continue
        if (found := _convention(ready, points, i, tolerances[i])) is not None:
            allowed.append(found)
            continue
        if sum(v.size for v in point.arrays) > SMALL:
            continue
        ours = judge.checks(ready, point.arrays, point.dys[0], point.truth[0], 1e-6)[i]
        theirs = judge.checks(
            ready, point.arrays, point.dys[0], _filled(point.formula[0], point.truth[0]), 1e-6
        )[i]
        if theirs.agrees and not ours.agrees:
            disputed.append(
                Finding(
                    path,
                    "truth_disputed",
                    f"autodiff of the forward pass says {ours.claimed:.6g} along a random direction, your formula "
                    f"{theirs.claimed:.6g} and numerical differentiation {ours.measured:.6g}: your formula is right",
                    error=judge.measure([point], i)[0],
                )
            )
    return disputed, allowed


def _filled(grads: Sequence[Any], truth: Sequence[Any]) -> list[Any]:
    return [t if g is None else g for g, t in zip(grads, truth, strict=True)]


def _convention(ready: Judge, points: list[Point], i: int, tolerance: float) -> Finding | None:
    """A convention: right at every point nearby, and here within what the truth is on the sides of the kink."""
    point, rng = points[0], np.random.default_rng(3)
    if sum(v.size for v in point.arrays) > SMALL:
        return None
    if any(not judge.measure([p], i)[0] <= tolerance for p in points[1:2]):
        return None
    sides = []
    for _ in range(8):
        near = [fresh(v, rng, 1e-4) for v in point.arrays]
        truth = np.asarray(ready.truth(near, point.dys[0])[i])
        mine = np.asarray(ready.formula(near, point.dys[0])[i])
        if judge.differs(mine, truth, max(tolerance, 1e-9), largest(truth)):
            return None
        sides.append(truth)
    want, got = point.truth[0][i], point.formula[0][i]
    assert got is not None
    scale = max(largest(want), 1e-300)
    low, high = np.min([want, *sides], 0) - 1e-2 * scale, np.max([want, *sides], 0) + 1e-2 * scale
    at = np.abs(got - want) > tolerance * scale
    if not ((low <= got) & (got <= high)).all():
        return None
    return Finding(
        ready.problem.paths[i],
        "convention",
        "at a kink or tie of the forward pass the formula takes another subgradient than autodiff, just as right",
        error=judge.measure([point], i)[0],
        where=from_arrays.support(at),
    )


# ---- the diagnosis ----------------------------------------------------------------------------------------


def _diagnose(
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
        if (found := _from_values(problem, checked, i, wrong)) is not None:
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
    return from_arrays.support(errors > 1e-3 * largest(errors)) if errors is not None and errors.size else ""


def _sizes(problem: Problem, arrays: Sequence[Any]) -> dict[str, int]:
    """The sizes of the arguments by name: ``x.shape[0]``."""
    return {
        f"{path}.shape[{a}]": d
        for path, i in zip(problem.paths, problem.moving, strict=True)
        for a, d in enumerate(arrays[i].shape)
    }


def _from_values(problem: Problem, points: Sequence[Point], i: int, wrong: Sequence[int]) -> Finding | None:
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
        named = from_arrays.named(path, pairs, others, _sizes(problem, point.arrays))
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
        from_arrays.ratio([(f[i], t[i]) for f, t in zip(p.formula, p.truth, strict=True)]) or 0.0
        for p in (one, two)
    )
    names = [from_arrays.name_constant(c, _sizes(problem, p.arrays)) for c, p in ((a, one), (b, two))]
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
        return Finding(
            path, "mask", f"right but for a mask: {what}", "", "", math.inf, from_arrays.support(bad)
        )
    for axis in range(bad.ndim):
        n, others = bad.shape[axis], tuple(a for a in range(bad.ndim) if a != axis)
        rows = np.flatnonzero(bad.any(others))
        reach = min(n // 3, 3)
        if n >= 4 and len(rows) and all(r < reach or r >= n - reach for r in rows):
            return Finding(
                path, "border", f"right inside, wrong at the border of axis {axis}", "", "", math.inf,
                from_arrays.support(bad),
            )  # fmt: skip
    return Finding(path, "unknown", "wrong, and no single edit of the formula makes it right")


# ---- in the dtypes of the user ----------------------------------------------------------------------------


def _own_dtypes(
    given: Problem, ready: Judge, point: Point, x64: bool, judged: Sequence[int]
) -> list[Finding]:
    """The formula run in the dtypes of args: are its gradients of those dtypes, and as exact as they can be?"""
    dtypes = [given.arrays[i].dtype for i in given.moving]
    if all(d == jnp.float64 for d in dtypes) or not ready.jitted:
        return []
    findings = []
    with jax.enable_x64(x64):
        try:
            y = [v for v in jax.eval_shape(given.y, list(given.arrays))]
            dy = [jnp.asarray(np.asarray(d), v.dtype) for d, v in zip(point.dys[0], y, strict=True)]
            mine = jax.jit(given.gradients)(list(given.arrays), dy)
            plain = lambda *v: given.y(given.place(given.arrays, v))
            theirs = jax.jit(lambda dy: jax.vjp(plain, *(given.arrays[i] for i in given.moving))[1](dy))(dy)
        except Exception:  # what fails in this dtype only, fails in the user's own program with its own words
            return [
                Finding(
                    "", "dtype", f"the formula does not run in {', '.join(map(str, dict.fromkeys(dtypes)))}"
                )
            ]
    truth = ready.truth(point.arrays, [jnp.asarray(np.asarray(v, np.float64)) for v in dy])
    for i, path in enumerate(given.paths):
        if mine[i] is None:
            continue
        if mine[i].dtype != dtypes[i]:
            findings.append(
                Finding(
                    path,
                    "dtype",
                    f"the gradient is {mine[i].dtype}, the argument {dtypes[i]}",
                    f"cast it: .astype({path}.dtype)",
                    error=0.0,
                )  # fmt: skip
            )
        if i not in judged or mine[i].shape != truth[i].shape:
            continue
        want = np.asarray(truth[i], np.float64)
        scale = max(largest(want), 1e-2 * max(largest(t) for t in truth))
        eps = max(float(jnp.finfo(d).eps) for d in (dtypes[i], *(v.dtype for v in dy)))
        error, usual = (largest(np.asarray(g, np.float64) - want) for g in (mine[i], theirs[i]))
        if not error <= 8 * usual + 32 * eps * scale and math.isfinite(usual):
            findings.append(
                Finding(
                    path,
                    "precision",
                    f"in {dtypes[i]} it errs by {error / scale:.1e}, autodiff by {usual / scale:.1e}",
                    "accumulate and subtract in float32 or wider",
                    error=error / scale,
                )  # fmt: skip
            )
    return findings
