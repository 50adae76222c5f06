"""`verify`: one formula against the truth, and the mistake by its name."""

import contextlib
import dataclasses
import math
import numbers
import traceback
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import jax
import numpy as np

from funcnet.errors import DTypeError, FuncnetError, ShapeError, StructureError, ValueRangeError, describe
from funcnet.verifier import arrays, blind, clock, laws, tape, trace
from funcnet.verifier.diagnose import diagnose
from funcnet.verifier.finding import Finding, Row
from funcnet.verifier.judge import Judge, Leaf, Point, judge_of
from funcnet.verifier.problem import SMALL, Problem, elsewhere, fresh, pose, wide
from funcnet.verifier.report import Report

__all__ = ["verify"]


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
    expect: str | None = None,
) -> Report:
    """Is this gradient right, and if not, what is the mistake?

    Three ways to call it:

    - ``verify(forward, backward, args)``: ``backward(*args, dy)`` returns the gradients in the order of
      `args` (one array for one argument); None for an argument that is not differentiated.
    - ``verify(op, args)``: a module with `reference` (or `apply`) and `vjp`.
    - ``verify(f, args, reference=g)``: f with a `jax.custom_vjp` or `jax.custom_jvp`, g its plain definition;
      without g, f itself, differentiated without its rules.

    The formula is compared with autodiff of the definition, leaf by leaf in float64, at `args` and at values
    near them, for random and constant cotangents. A wrong one is diagnosed: from its arrays, from the paths
    of the chain rule that it leaves out, and by edits of its own program. A diagnosis is given only if it
    holds on other values, and at other sizes where the functions run there; else the kind is ``unknown``.

    Args:
        forward: the definition, an operation, or a function with a rule of its own.
        backward: the formula; in the other two forms, args may stand here.
        args: the arguments: pytrees of arrays.
        reference: the plain definition of a function with a custom rule.
        static: keyword arguments of forward and backward (of reference and vjp).
        shapes: "auto": verify at other sizes too (distinct primes, all equal, other primes, an axis of 0 and
            of 1), wherever the forward pass runs there; None: at those of `args` only.
        budget: seconds of the processor for the verdict and the diagnosis of a wrong formula. The verdict is
            always reached, and the diagnosis has half of them even if the verdict took all.
        seed: of cotangents and other random values.
        expect: "differs": a rule that means to differ from the derivative, as a straight-through estimator
            does; the report says by how much.

    Returns:
        A `Report`: one row per float leaf of the arguments, and one `Finding` per mistake.

    Raises:
        DTypeError: args is not a tuple or list, has no float, or a leaf that is no array of numbers; another
            argument is of the wrong type.
        ShapeError: the forward pass does not run on args.
        ValueRangeError: args hold NaN, or nothing in the result of the forward pass is finite; `shapes` or
            `expect` is another word; `budget` or `seed` is negative.

    >>> import jax.numpy as jnp
    >>> import funcnet as fn
    >>> x, w = jnp.ones((7, 11)), jnp.ones((11, 13))
    >>> fn.verify(lambda x, w: x @ w, lambda x, w, dy: (dy @ w.T, x.T @ dy), (x, w)).ok
    True
    >>> report = fn.verify(lambda x, w: x @ w, lambda x, w, dy: (dy @ w.T, -x.T @ dy), (x, w))
    >>> [(finding.argument, finding.kind) for finding in report.findings]
    [('w', 'sign')]
    """
    start = clock.now()
    _check_options(reference, static, shapes, budget, seed, expect)
    given = pose(forward, backward, args, reference=reference, static=static)
    narrow = ()
    with contextlib.suppress(Exception):  # it may not run in them; whether it runs at all is asked below
        narrow = tuple(v.dtype for v in given.shape_of_y(given.arrays))
    x64 = jax.dtypes.canonicalize_dtype(np.float64) == np.float64
    with jax.enable_x64(True):
        problem = dataclasses.replace(given, args=wide(given.args))
        _check(problem)
        if not problem.rules and problem.values.keys() == {"the rule", "the function"} and reference is None:
            return _unseen(problem, "f has no rule: nothing to verify")
        try:
            ready = judge_of(problem, [v.dtype for v in given.arrays], narrow)
        except FuncnetError as error:
            if not isinstance(error, StructureError):
                raise
            return _unusable(problem, Finding("", "structure", _first(error), error.hint or "", "", math.inf))
        except Exception as error:
            return _unusable(
                problem,
                Finding(
                    "", "shape", f"the formula does not run: {_first(error)}", "", _raised_at(error), math.inf
                ),
            )
        rng = np.random.default_rng([int(seed), 1])  # not that of the user, whose x a cotangent would equal
        return verdict(ready, given, x64, shapes, start, budget, rng, expect)


def verdict(
    ready: Judge,
    given: Problem,
    x64: bool,
    shapes: str | None,
    start: float,
    budget: float,
    rng: np.random.Generator,
    expect: str | None = None,
) -> Report:
    """The report on a formula that is ready to be judged; needs `jax.enable_x64`.

    Args:
        ready: truth and formula, at the arguments in float64.
        given: the same problem in the dtypes of the user.
        x64: whether the user has float64 enabled.
        shapes: as in `verify`.
        start: of all this, by `clock.now`.
        budget: the diagnosis ends so many seconds after it, but may take half of them in any case.
        rng: of all random values.
        expect: as in `verify`.
    """
    problem = ready.problem
    small = sum(v.size for v in [*problem.arrays, *problem.shape_of_y(problem.arrays)]) <= SMALL
    points, findings, notes = _points(ready, shapes, small, rng)
    leaves = [[ready.leaf(point, i) for point in points] for i in range(len(problem.moving))]
    wrong = [i for i, each in enumerate(leaves) if any(leaf.state == "wrong" for leaf in each)]
    measured = [(max(leaf.error for leaf in each), each[0].errors) for each in leaves]
    late = laws.of_dtypes(given, points, x64)  # what float64 shows comes first
    findings += laws.of_values(ready, points)
    if small:
        findings += laws.of_the_formula(ready, points[0], wrong)
        notes += laws.unused_residuals(problem, points[0].dys[0])
    late += laws.in_own_dtypes(given, ready, points[0], [each[0] for each in leaves], x64, rng)
    findings += [
        found
        for i in range(len(leaves))
        if i not in wrong and (found := _at_kinks(problem.paths[i], leaves[i])) is not None
    ]
    meant = wrong if expect == "differs" else []
    wrong = [i for i in wrong if i not in meant]
    if wrong:
        excused = laws.disputes(ready, points, leaves, wrong)
        wrong = [i for i in wrong if i not in excused]
        deadline = max(start + budget, clock.now() + budget / 2)
        found = diagnose(ready, points, wrong, measured, deadline, rng, small)
        findings += [*excused.values(), *(_located(problem, one) for one in found)]
    findings += late
    rows = [
        _row(problem, i, points, leaves[i], measured[i], i in wrong, i in meant, findings)
        for i in range(len(leaves))
    ]
    notes += _set_apart(problem, points[0])
    if small and not wrong and not meant:
        notes += blind.note(ready, points, rng)
    return Report(tuple(rows), tuple(findings), (*ready.notes, *notes))


def _points(
    ready: Judge, shapes: str | None, small: bool, rng: np.random.Generator
) -> tuple[list[Point], list[Finding], list[str]]:
    """Where to compare: at the arguments, at values near them, and at other sizes if asked."""
    problem, findings, notes = ready.problem, [], []
    points = [ready.at("as given", problem.arrays, rng)]
    if small:  # an argument without gradient may be bound by what it means: it stays
        left = {i for i, grad in zip(problem.moving, points[0].formula[0], strict=True) if grad is None}
        near = [v if i in left else fresh(v, rng) for i, v in enumerate(problem.arrays)]
        points.append(ready.at("values near", near, rng))
        for label, moved in (
            ("axes of unequal size", blind.unequal(problem, rng)),
            ("no identity", blind.unlike_identity(problem, rng)),
        ):
            with contextlib.suppress(
                Exception
            ):  # whatever a formula may raise that is written for equal axes
                if moved is not None and _fits(point := ready.at(label, moved, rng), points[0]):
                    points.append(point)
    for kind in ("primes", "square", "second", "one", "zero") if shapes == "auto" else ():
        if (moved := elsewhere(problem, kind, rng)) is None:
            continue
        try:
            points.append(ready.at(kind, moved, rng))
        except Exception as error:  # whatever a formula may raise
            if kind not in ("one", "zero"):
                message = f"at other sizes the forward pass runs, but not the formula: {_first(error)}"
                findings.append(Finding("", "shape", message, "", _raised_at(error)))
    if shapes == "auto":
        others = [p.label for p in points if p.label not in ("as given", "values near", "no identity")]
        notes.append("also at other sizes: " + (", ".join(others) or "none that fit"))
    return points, findings, notes


def _fits(point: Point, given: Point) -> bool:
    """Whether the gradients have the shapes of the arguments at a point, if they have them at another."""
    shapes = lambda p: [
        u is None or u.shape == t.shape for u, t in zip(p.formula[0], p.truth[0], strict=True)
    ]
    return shapes(point) == shapes(given)


def _at_kinks(path: str, leaves: Sequence[Leaf]) -> Finding | None:
    """What is said of a gradient that is right but for the sides of kinks that it takes."""
    for leaf in leaves:
        if leaf.state == "convention":
            message = "at a kink or tie of the forward pass it takes another subgradient than autodiff"
            at = leaf.kinks if leaf is leaves[0] else None
            where = "" if at is None else arrays.support(at)
            return Finding(path, "convention", message + ", just as right", error=leaf.error, where=where)
    return None


def _located(problem: Problem, finding: Finding) -> Finding:
    """A finding in a rule, at the rule's line where nothing better is known."""
    if finding.location or not problem.rules:
        return finding
    return dataclasses.replace(finding, location=tape.line_of(problem.rules[0]))


def _set_apart(problem: Problem, point: Point) -> list[str]:
    """How many elements were not judged."""
    return [
        f"{path}: {int((~seen).sum())} of {seen.size} elements are set apart: the truth is not known there"
        for path, seen in zip(problem.paths, point.seen, strict=True)
        if not seen.all()
    ]


def _row(
    problem: Problem,
    i: int,
    points: Sequence[Point],
    leaves: Sequence[Leaf],
    measured: tuple[float, Any],
    wrong: bool,
    meant: bool,
    findings: list[Finding],
) -> Row:
    (error, errors), path, first = measured, problem.paths[i], leaves[0]
    mine = [f for f in findings if f.argument == path]
    note = ", ".join(dict.fromkeys(f.kind for f in mine))
    if meant:
        note = f"differs, as declared, by {error:.1e}"
    if not mine and points[0].formula[0][i] is None:
        note = "no gradient"
    unseen = f"undecided: {first.why}" if first.state == "undecided" and not wrong else ""
    ok = not wrong and not unseen and not any(f.is_mistake for f in mine)
    return Row(problem.name, path, problem.shapes, 1, error, first.allowed, ok, note, errors, unseen)


# ---- what cannot be verified ------------------------------------------------------------------------------


def _check_options(reference: Any, static: Any, shapes: Any, budget: Any, seed: Any, expect: Any) -> None:
    whole = hasattr(seed, "__index__") and not isinstance(seed, bool) and not np.ndim(seed)
    real = isinstance(budget, numbers.Real) and not isinstance(budget, bool)  # infinity is allowed
    named = isinstance(static, Mapping) and all(isinstance(name, str) for name in static)
    for name, value, right, expected in (
        ("reference", reference, reference is None or callable(reference), "a function"),
        ("static", static, static is None or named, "a dict of keyword arguments"),
        ("shapes", shapes, shapes is None or isinstance(shapes, str), 'None or "auto"'),
        ("budget", budget, real, "seconds"),
        ("seed", seed, whole, "an int of at least 0"),
        ("expect", expect, expect is None or isinstance(expect, str), 'None or "differs"'),
    ):
        if not right:
            raise DTypeError(
                f"verify: {name} is of the wrong type.",
                path=name,
                expected=f"{name}: {expected}",
                actual=f"{name}: {describe(value)}",
            )
    for name, value, right, expected in (
        ("shapes", shapes, shapes in (None, "auto"), 'None or "auto"'),
        ("budget", budget, float(budget) >= 0, "budget ≥ 0"),
        ("seed", seed, seed >= 0, "seed ≥ 0"),
        ("expect", expect, expect in (None, "differs"), 'None or "differs"'),
    ):
        if not right:
            raise ValueRangeError(
                f"verify: {name} is {value!r}.", path=name, expected=expected, actual=repr(value)
            )


def _check(problem: Problem) -> None:
    """Raise what `verify` says it raises where the forward pass cannot be verified; needs `enable_x64`."""
    for i, path in zip(problem.moving, problem.paths, strict=True):
        if np.isnan(np.asarray(problem.arrays[i])).any():
            raise ValueRangeError(
                f"verify: {path} holds NaN.",
                path=path,
                expected="numbers",
                actual=describe(problem.arrays[i]),
            )
    try:
        y = problem.y(problem.arrays)
    except FuncnetError:
        raise
    except Exception as error:
        raise ShapeError(
            f"verify: the forward pass does not run on these arguments: {_first(error)}",
            path="args",
            expected="arguments that forward takes",
            actual=", ".join(f"{n}: {describe(a)}" for n, a in zip(problem.names, problem.args, strict=True)),
        ) from error
    if any(np.size(v) for v in y) and not any(np.isfinite(np.asarray(v)).any() for v in y):
        raise ValueRangeError(
            "verify: nothing in the result of the forward pass is finite at these arguments.",
            path="args",
            expected="arguments at which it is finite",
            actual=", ".join(map(describe, problem.arrays)),
        )
    if not y:
        raise DTypeError(
            "verify: the forward pass gives no floating-point array, so there is nothing to differentiate.",
            path="forward",
            actual="no float",
        )


def _first(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__


def _raised_at(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith(trace.HIDDEN)]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else ""


def _unseen(problem: Problem, why: str) -> Report:
    rows = [
        Row(problem.name, path, problem.shapes, 1, 0.0, 0.0, False, "", None, f"not verified: {why}")
        for path in problem.paths
    ]
    return Report(tuple(rows))


def _unusable(problem: Problem, finding: Finding) -> Report:
    rows = [
        Row(problem.name, path, problem.shapes, 1, math.inf, 0.0, False, finding.kind)
        for path in problem.paths
    ]
    return Report(tuple(rows), (finding,))
