"""`verify`: one formula against the truth, and the mistake by its name."""

import contextlib
import dataclasses
import inspect
import math
import numbers
import textwrap
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnet._heard import reported
from funcnet.errors import DTypeError, FuncnetError, ShapeError, StructureError, ValueRangeError, describe
from funcnet.verifier import blind, derived, laws, tape, trace
from funcnet.verifier.diagnosis import arrays, smallest
from funcnet.verifier.diagnosis.diagnose import diagnose
from funcnet.verifier.diagnosis.work import Work
from funcnet.verifier.finding import Finding, Row, Sample
from funcnet.verifier.judge import SHOWN, Judge, judge_of
from funcnet.verifier.point import Leaf, Point
from funcnet.verifier.problem import (
    SMALL,
    Problem,
    after_forward,
    elsewhere,
    fresh,
    in_dtypes,
    is_float,
    pose,
    wide,
)
from funcnet.verifier.report import Report
from funcnet.verifier.wide import largest, parts

__all__ = [
    "and_twice",
    "check_options",
    "checked",
    "first_line",
    "judged",
    "source",
    "unseen",
    "unusable",
    "verify",
]


@reported
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
    order: int = 1,
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
        budget: seconds for the diagnosis of a wrong formula, counted as 3e8 element operations each: what is
            named does not depend on how busy the machine is. The verdict is always reached.
        seed: of cotangents and other random values.
        expect: "differs": a rule that means to differ from the derivative, as a straight-through estimator
            does; the report says by how much.
        order: 2: where the gradient is right, its own derivative is verified, too: that of the pullback
            (args, dy) → gradients, which `jax.hessian`, or a gradient in a loss, would take.

    Returns:
        A `Report`: one row per float leaf of the arguments, and one `Finding` per mistake.

    Raises:
        DTypeError: args is not a tuple or list, has no float, or a leaf that is no array of numbers or has no
            values, since it is traced or was donated; another argument is of the wrong type.
        ShapeError: the forward pass does not run on args.
        ValueRangeError: args hold NaN, or nothing in the result of the forward pass is finite; `shapes` or
            `expect` is another word; `budget` or `seed` is negative; `order` is neither 1 nor 2.

    >>> import jax.numpy as jnp
    >>> import funcnet as fn
    >>> x, w = jnp.ones((7, 11)), jnp.ones((11, 13))
    >>> fn.verify(lambda x, w: x @ w, lambda x, w, dy: (dy @ w.T, x.T @ dy), (x, w)).ok
    True
    >>> report = fn.verify(lambda x, w: x @ w, lambda x, w, dy: (dy @ w.T, -x.T @ dy), (x, w))
    >>> [(finding.argument, finding.kind) for finding in report.findings]
    [('w', 'sign')]
    """
    check_options(
        reference=reference,
        static=static,
        shapes=shapes,
        budget=budget,
        seed=seed,
        expect=expect,
        order=order,
    )
    given = pose(forward, backward, args, reference=reference, static=static)
    if not given.rules and given.values.keys() == {"the rule", "the function"} and reference is None:
        with jax.enable_x64(True):
            _check(dataclasses.replace(given, args=wide(given.args)))
        return unseen(given, "f has no rule: nothing to verify")
    report = judged(given, shapes, budget, seed, expect)
    for options in _otherwise(static or {}) if report.ok and not expect else ():
        other = pose(forward, backward, args, reference=reference, static=options)
        report = _and_if(report, other, static, options)
    return report if order == 1 or not report.ok else and_twice(report, given, shapes, budget, seed, expect)


def _otherwise(static: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The options with one that is otherwise: a factor of 1, a switch that is off, a full mask hide much."""
    for name, v in static.items():
        other: Any = None
        if isinstance(v, bool | int):
            other = not v if isinstance(v, bool) else v + 1
        elif isinstance(v, float) and math.isfinite(v):
            other = 1.25 * v or 0.3
        elif isinstance(v, np.ndarray | jax.Array) and v.size and v.dtype == bool:
            other = jnp.asarray(np.arange(v.size).reshape(v.shape) % 3 == 1)
        elif isinstance(v, np.ndarray | jax.Array) and is_float(v):
            other = fresh(v, np.random.default_rng(6), 0.3).astype(v.dtype)
        if other is not None:
            yield {**static, name: other}


def _and_if(report: Report, other: Problem, given: Any, options: Any) -> Report:
    """The report, saying whether a gradient is wrong with other options."""
    try:
        with jax.enable_x64(True):
            problem = dataclasses.replace(other, args=wide(other.args))
            ready = judge_of(problem)
            point = ready.at("", problem.arrays, np.random.default_rng(6))
            states = [ready.leaf(point, i).state for i in range(len(problem.moving))]
    except Exception:  # they are not meant
        return report
    wrong = [path for path, state in zip(problem.paths, states, strict=True) if state == "wrong"]
    if not wrong:
        return report
    (name,) = (k for k, v in options.items() if v is not given[k])
    what = name if hasattr(given[name], "dtype") else f"{name}={given[name]}"
    note = f"not seen: other options than {what}: where it differs, the gradient of {wrong[0]} is wrong"
    return dataclasses.replace(report, notes=(*report.notes, note))


def and_twice(
    report: Report, given: Problem, shapes: str | None, budget: float, seed: int, expect: str | None = None
) -> Report:
    """The report, with that on the derivative of the gradient itself."""
    pullback = derived.pullback(given)
    if why := derived.obstacle(pullback):
        return report.and_then(unseen(pullback, why))
    return report.and_then(judged(pullback, shapes, budget, seed, expect))


def judged(
    given: Problem,
    shapes: str | None,
    budget: float,
    seed: int,
    expect: str | None = None,
    prepare: Callable[..., Judge] = judge_of,
    also: Sequence[Sequence[Any]] = (),
) -> Report:
    """The report on a problem in the dtypes of the user; the options are as in `verdict` and `verify`.

    `prepare` makes truth and formula of the problem in float64 and the dtypes of arguments and result; `also`
    are other arrays at which it is judged. What the user has configured, as debug_nans, is left aside.
    """
    narrow = ()
    with contextlib.suppress(Exception):  # it may not run in them; whether it runs at all is asked below
        narrow = tuple(v.dtype for v in given.shape_of_y(given.arrays))
    x64 = jax.dtypes.canonicalize_dtype(np.float64) == np.float64
    with (
        jax.enable_x64(True),
        jax.numpy_dtype_promotion("standard"),  # constants of float32 meet float64
        jax.debug_nans(False),
        jax.debug_infs(False),
        jax.debug_key_reuse(False),  # a function is run many times on one key
        jax.transfer_guard("allow"),
    ):
        problem = checked(dataclasses.replace(given, args=wide(given.args)), given, narrow)
        try:
            ready, given = _ready(problem, given, narrow, prepare)
        except FuncnetError as error:
            if not isinstance(error, StructureError):
                raise
            return unusable(
                problem, Finding("", "structure", first_line(error), error.hint or "", "", math.inf)
            )
        except Exception as error:
            message = f"the formula does not run: {first_line(error)}"
            hint = "copy it before it is written to: np.array(dy)" if "read-only" in message else ""
            return unusable(problem, Finding("", "shape", message, hint, _raised_at(error), math.inf))
        rng = np.random.default_rng([int(seed), 1])  # not that of the user, whose x a cotangent would equal
        report = verdict(ready, given, x64, shapes, budget, rng, expect, also)
    return dataclasses.replace(report, seed=int(seed))


def checked(problem: Problem, given: Problem, of_y: Sequence[Any]) -> Problem:
    """The problem, in float64; what knows no other dtypes than those given is called in them."""
    try:
        _check(problem)
    except ShapeError:
        problem = in_dtypes(problem, _of_floats(given), of_y, forward=True)
        try:
            problem.y(problem.arrays)
        except Exception:  # nor does it run in them
            ...
        else:
            return problem
        raise
    return problem


def _of_floats(problem: Problem) -> list[Any]:
    return [v.dtype for v in problem.arrays if is_float(v)]


def _ready(
    problem: Problem, given: Problem, of_y: Sequence[Any], prepare: Callable[..., Judge]
) -> tuple[Judge, Problem]:
    """Truth and formula of a problem, ready to be judged, and the problem as it was given.

    A formula that does not run may be a method that reads what the forward pass keeps, or know no other
    dtypes than those given: then it is called so, and the notes say it.
    """
    own = [v.dtype for v in given.arrays]
    try:
        return prepare(problem, own, of_y), given
    except FuncnetError:
        raise
    except Exception as error:  # whatever somebody's function may raise
        first = error
    for way, as_given, note in (
        (
            after_forward(problem),
            after_forward(given),
            "the formula is run after the forward pass, whose values it reads",
        ),
        (
            in_dtypes(problem, _of_floats(given), of_y, forward=False),
            given,
            "the formula does not run in float64: it is called as given",
        ),
    ):
        with contextlib.suppress(Exception):
            ready = prepare(way, own, of_y)
            return dataclasses.replace(ready, notes=(*ready.notes, note)), as_given
    raise first


def verdict(
    ready: Judge,
    given: Problem,
    x64: bool,
    shapes: str | None,
    budget: float,
    rng: np.random.Generator,
    expect: str | None = None,
    also: Sequence[Sequence[Any]] = (),
) -> Report:
    """The report on a formula that is ready to be judged; needs `jax.enable_x64`.

    Args:
        ready: truth and formula, at the arguments in float64.
        given: the same problem in the dtypes of the user.
        x64: whether the user has float64 enabled.
        shapes: as in `verify`.
        budget: as in `verify`.
        rng: of all random values.
        expect: as in `verify`.
        also: other arrays at which it is judged.
    """
    problem, findings, notes = ready.problem, [], []
    small = sum(v.size for v in [*problem.arrays, *problem.shape_of_y(problem.arrays)]) <= SMALL
    near, closer, said = ready, list[Point](), list[str]()  # what looks closer, and its points
    if not small and (moved := elsewhere(problem, "primes", rng)) is not None:  # first what costs little
        near = dataclasses.replace(ready, problem=dataclasses.replace(problem, args=problem.unflatten(moved)))
        closer = _unless_it_raises(near, "smaller", moved, None, rng)
        closer += _near(near, closer[0], rng, said) if closer else []
    wrong_near = [
        i for i in range(len(problem.moving)) if any(near.leaf(p, i).state == "wrong" for p in closer)
    ]
    points = [ready.at("as given", problem.arrays, rng, known=wrong_near)]
    if closer and not _fits(closer[0], points[0]):  # it is made for the given sizes
        closer = []
        points = [ready.at("as given", problem.arrays, rng)] if wrong_near else points
    points += [ready.at("as called", list(map(jnp.asarray, wide(list(arrays)))), rng) for arrays in also]
    if small:
        closer = [points[0], *(others := _near(ready, points[0], rng, notes))]
        points += others
    elif closer:
        points, notes = points + closer, notes + said
    else:
        notes.append("not seen: other values and sizes: the arrays are large, and smaller ones do not fit")
    if shapes == "auto":
        points += _at_other_sizes(ready, rng, findings, notes)
    leaves = [[ready.leaf(point, i) for point in points] for i in range(len(problem.moving))]
    wrong = [i for i, each in enumerate(leaves) if any(leaf.state == "wrong" for leaf in each)]
    if wrong and small:
        wrong = [i for i in wrong if not _is_rounded(given, ready, points, leaves[i], i, x64)]
    measured = [(max(leaf.error for leaf in each), each[0].errors) for each in leaves]
    meant = [i for i in wrong if expect == "differs" and all(np.isfinite(leaf.error) for leaf in leaves[i])]
    late = laws.of_dtypes(given, points, x64)  # what float64 shows comes first
    findings += (off := laws.of_values(ready, points))
    if closer:
        findings += laws.of_the_formula(near, closer[0], [i for i in wrong if i not in meant])
        findings += [f for f in laws.of_activity(near, closer[0]) if f.argument not in _paths(problem, wrong)]
    if small:
        notes += laws.unused_residuals(problem, points[0].dys[0])
    narrow, unseen = laws.in_own_dtypes(
        given, ready, points[0], [each[0] for each in leaves], x64, is_off=bool(off)
    )
    late, notes = late + narrow, notes + unseen
    findings += [
        found
        for i in range(len(leaves))
        if i not in wrong and (found := _at_kinks(problem.paths[i], leaves[i])) is not None
    ]
    wrong = [i for i in wrong if i not in meant]
    if wrong:
        excused = laws.disputes(ready, points, leaves, wrong, rng)
        wrong = [i for i in wrong if i not in excused]
        work = Work.of(budget)
        found = diagnose(ready, points, wrong, measured, work, rng, small)
        if work.late:
            notes.append("the clock ended the diagnosis: a machine that is less busy may name more")
        if wrong and budget:
            found = _exemplified(ready, points[0], wrong[0], found)
        findings += [*excused.values(), *(_located(problem, one) for one in found)]
    findings += late
    rows = [
        _row(problem, i, points, leaves[i], measured[i], i in wrong, i in meant, findings)
        for i in range(len(leaves))
    ]
    notes += _set_apart(problem, points[0])
    if closer and not wrong and not meant:
        notes += blind.note(near, points[0 if small else 1 + len(also) :], rng)
    sources = _sources(problem) if any(not row.ok for row in rows) else {}
    return Report(tuple(rows), tuple(findings), (*ready.notes, *notes), sources)


def _near(ready: Judge, given: Point, rng: np.random.Generator, notes: list[str]) -> list[Point]:
    """Values near the given ones, axes of equal size made unequal, matrices that are no identity."""
    problem = ready.problem
    # An argument without gradient may be bound by what it means: it stays.
    left = {i for i, grad in zip(problem.moving, given.formula[0], strict=True) if grad is None}
    near = [v if i in left else fresh(v, rng) for i, v in enumerate(problem.arrays)]
    points = _unless_it_raises(ready, "values near", near, None, rng)
    if not points:
        notes.append("not seen: values near the given ones, at which it does not run")
    for label, moved in (
        ("axes of unequal size", blind.unequal(ready, rng)),
        ("no identity", blind.unlike_identity(problem, rng)),
    ):
        more = [] if moved is None else _unless_it_raises(ready, label, moved, given, rng)
        if moved is not None and not more:
            notes.append(f"not seen: {label}, at which the formula does not run")
        points += more
    return points


def _unless_it_raises(
    ready: Judge, label: str, arrays: Sequence[Any], given: Point | None, rng: np.random.Generator
) -> list[Point]:
    """A point; none where it raises, or where gradients no longer have the shapes of their arguments."""
    try:
        point = ready.at(label, arrays, rng)
    except Exception:  # whatever is written for the arguments given alone
        return []
    return [point] if given is None or _fits(point, given) else []


def _at_other_sizes(
    ready: Judge, rng: np.random.Generator, findings: list[Finding], notes: list[str]
) -> list[Point]:
    """The points of ``shapes="auto"``."""
    points = list[Point]()
    for kind in ("primes", "square", "second", "one", "zero"):
        if (moved := elsewhere(ready.problem, kind, rng)) is None:
            continue
        try:
            points.append(ready.at(kind, moved, rng))
        except Exception as error:  # whatever a formula may raise
            if kind not in ("one", "zero"):
                message = f"at other sizes the forward pass runs, but not the formula: {first_line(error)}"
                findings.append(Finding("", "shape", message, "", _raised_at(error)))
    notes.append("also at other sizes: " + (", ".join(p.label for p in points) or "none that fit"))
    return points


def _is_rounded(
    given: Problem, ready: Judge, points: Sequence[Point], leaves: Sequence[Leaf], i: int, x64: bool
) -> bool:
    """Whether a gradient is off by no more than what constants in the dtypes of the user are rounded by."""
    eps = max(float(jnp.finfo(given.arrays[k].dtype).eps) for k in given.moving)
    return max(leaf.error for leaf in leaves) <= 8 * eps and laws.constants(given, ready, points[0], i, x64)


def _paths(problem: Problem, which: Sequence[int]) -> list[str]:
    return [problem.paths[i] for i in which]


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


def _exemplified(ready: Judge, given: Point, i: int, findings: Sequence[Finding]) -> list[Finding]:
    """The findings, that of gradient i with an example."""
    text, path = "", ready.problem.paths[i]
    with contextlib.suppress(
        Exception
    ):  # the verdict stands, whatever functions do at sizes they do not know
        text = smallest.example(ready, given, i)
    return [dataclasses.replace(f, example=text) if f.argument == path else f for f in findings]


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
    empty = all(not t[i].size for point in points for t in point.truth)
    note = ", ".join(dict.fromkeys(f.kind for f in mine))
    if meant:
        note = f"differs, as declared, by {error:.1e}"
    if not mine and points[0].formula[0][i] is None:
        note = "no gradient"
    asked = [leaf for leaf, p in zip(leaves, points, strict=True) if p.label in ("as given", "as called")]
    why = next((leaf.why for leaf in asked if leaf.state == "undecided"), "")
    unseen = f"undecided: {why}" if why and not wrong else ""
    unseen = "undecided: it is empty" if empty and not wrong else unseen
    ok = not wrong and not unseen and not any(f.is_mistake for f in mine)
    place = tape.line_of(problem.rules[0]) if problem.rules else ""
    sample = None if ok or unseen else _sample(points, leaves, i)
    return Row(
        problem.name, path, problem.shapes, 1, error, first.allowed, ok, note, errors, unseen, place, sample
    )


def _sample(points: Sequence[Point], leaves: Sequence[Leaf], i: int) -> Sample | None:
    """The gradient at the first point where it is wrong, along the cotangent that shows it most."""
    point = next((p for p, leaf in zip(points, leaves, strict=True) if leaf.state == "wrong"), points[0])
    pairs = [(got[i], want[i]) for got, want in zip(point.formula, point.truth, strict=True)]
    apart = lambda got, want: largest(parts(got, want)) if np.shape(got) == want.shape else 0.0
    got, want = max(pairs, key=lambda pair: apart(*pair))
    small = max(want.size, np.size(got)) <= SHOWN and not np.iscomplexobj(want) and not np.iscomplexobj(got)
    return Sample(None if got is None else np.asarray(got), want, point.label) if small else None


def _sources(problem: Problem) -> dict[str, str]:
    """The text of the functions by which the formula is written, where it can be read."""
    texts = dict.fromkeys(filter(None, map(source, problem.written)))
    return {"backward": "\n\n".join(texts)} if texts else {}


def source(function: Any) -> str:
    """The text of a function; "" where it is written in no file, or there is none."""
    try:
        return textwrap.dedent(inspect.getsource(function)).rstrip()
    except (OSError, TypeError):
        return ""


# ---- what cannot be verified ------------------------------------------------------------------------------


def check_options(
    *,
    reference: Any = None,
    static: Any = None,
    shapes: Any = None,
    budget: Any = 10.0,
    seed: Any = 0,
    expect: Any = None,
    order: Any = 1,
) -> None:
    """Raise what `verify` says it raises for its options."""
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
        ("order", order, order in (1, 2), "1 or 2"),
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
    small = sum(v.size for v in problem.arrays) <= SMALL  # else the judge runs it, once
    try:
        y = problem.y(problem.arrays) if small else problem.shape_of_y(problem.arrays)
    except FuncnetError:
        raise
    except Exception as error:
        raise ShapeError(
            f"verify: the forward pass does not run on these arguments: {first_line(error)}",
            path="args",
            expected="arguments that forward takes",
            actual=", ".join(f"{n}: {describe(a)}" for n, a in zip(problem.names, problem.args, strict=True)),
        ) from error
    if small and any(np.size(v) for v in y) and not any(np.isfinite(np.asarray(v)).any() for v in y):
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


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__


def _raised_at(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith(trace.HIDDEN)]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else ""


def unseen(problem: Problem, why: str) -> Report:
    """The report on what cannot be verified."""
    rows = [
        Row(problem.name, path, problem.shapes, 1, 0.0, 0.0, False, "", None, f"not verified: {why}")
        for path in problem.paths
    ]
    return Report(tuple(rows))


def unusable(problem: Problem, finding: Finding) -> Report:
    """The report on a formula that cannot be judged."""
    rows = [
        Row(problem.name, path, problem.shapes, 1, math.inf, 0.0, False, finding.kind)
        for path in problem.paths
    ]
    return Report(tuple(rows), (finding,))
