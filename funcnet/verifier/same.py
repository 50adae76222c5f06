"""Two programs for one function: a kernel and its definition, a `jvp` rule, a batch and a loop over it."""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnet._heard import reported
from funcnet.errors import ShapeError, describe
from funcnet.verifier import derived, tape
from funcnet.verifier.compare import check_options, first_line, judged, unseen, unusable
from funcnet.verifier.finding import Finding
from funcnet.verifier.problem import Problem, is_float, pose, pulled
from funcnet.verifier.report import Report
from funcnet.verifier.wide import differs

__all__ = ["verify_batching", "verify_jvp", "verify_same"]


@reported
def verify_same(
    f: Callable[..., Any],
    g: Callable[..., Any],
    args: Sequence[Any],
    *,
    static: Mapping[str, Any] | None = None,
    shapes: str | None = None,
    budget: float = 10.0,
    seed: int = 0,
) -> Report:
    """Does f compute what g does, forward and backward, and how much faster?

    Values and gradients are judged as `verify` judges a formula: allowed is how far those of g move when
    every rounding of its program is redone at random. f may be a Pallas kernel, a function with a rule of
    its own, a compiled one.

    Args:
        f: the implementation: a kernel.
        g: the definition, which JAX can differentiate.
        args: pytrees of arrays.
        static: keyword arguments of both.
        shapes: "auto": at other sizes too, as in `verify`.
        budget: seconds for the diagnosis of what differs; the times are measured besides, for two seconds.
        seed: of the random values.

    Returns:
        A `Report`: a row for the value and one for each gradient; its notes give the time of both, measured
        in turns, and the memory that each compiled program needs besides its arguments and results.

    Raises:
        DTypeError, ShapeError, ValueRangeError: as `verify`.

    >>> import jax, jax.numpy as jnp
    >>> x = jnp.linspace(-2.0, 2.0, 7)
    >>> report = verify_same(lambda x: 0.5 * (1 + jnp.tanh(x / 2)), jax.nn.sigmoid, (x,))
    >>> [row.argument for row in report.rows], report.ok
    (['value', 'x'], True)
    """
    check_options(static=static, shapes=shapes, budget=budget, seed=seed)
    given = pose(f, None, args, reference=g, static=static)
    f, g = (_bound(function, static) for function in (f, g))
    report = _compared(given, f, shapes, budget, seed)
    return dataclasses.replace(report, notes=(*report.notes, *_costs(f, g, given)))


@reported
def verify_jvp(
    f: Callable[..., Any],
    args: Sequence[Any],
    *,
    reference: Callable[..., Any] | None = None,
    static: Mapping[str, Any] | None = None,
    shapes: str | None = None,
    budget: float = 10.0,
    seed: int = 0,
) -> Report:
    """Does forward mode through the rules of f give the tangents of its definition, linearly?

    Args:
        f: a function with `jax.custom_jvp` rules, or others that have a forward mode.
        args: pytrees of arrays.
        reference: its plain definition; None: f, differentiated without its rules.
        static: keyword arguments of both.
        shapes: "auto": at other sizes too, as in `verify`.
        budget: seconds for the diagnosis of a wrong rule.
        seed: of the random values.

    Returns:
        A `Report` with a row for the tangent along each argument.

    Raises:
        DTypeError, ShapeError, ValueRangeError: as `verify`.

    >>> import jax, jax.numpy as jnp
    >>> @jax.custom_jvp
    ... def f(x):
    ...     return jnp.sin(x)
    >>> f.defjvp(lambda x, t: (f(x[0]), t[0] * abs(t[0]) * jnp.cos(x[0])))  # doctest: +ELLIPSIS
    <function ...
    >>> [finding.kind for finding in verify_jvp(f, (jnp.ones(3),)).findings]
    ['nonlinear_in_cotangent']
    """
    check_options(reference=reference, static=static, shapes=shapes, budget=budget, seed=seed)
    given = pose(f, None, args, reference=reference, static=static)
    bound = _bound(f, static)
    if not given.rules and reference is None:
        return dataclasses.replace(unseen(given, "f has no rule: nothing to verify"), of="tangents")
    posed = derived.tangents(given, bound)
    report = judged(posed, shapes, budget, seed)
    if not report.ok:
        report = _not_linear(report, posed, len(given.moving))
    return dataclasses.replace(_with_shapes(report, given), of="tangents")


@reported
def verify_batching(
    f: Callable[..., Any],
    args: Sequence[Any],
    *,
    in_axes: Sequence[Any] | None = None,
    static: Mapping[str, Any] | None = None,
    shapes: str | None = None,
    budget: float = 10.0,
    seed: int = 0,
) -> Report:
    """Does f under `jax.vmap` give what a loop gives that calls it for one example after the other?

    It finds a wrong batching rule: of a `jax.custom_batching.custom_vmap`, of a primitive of one's own.

    Args:
        f: any function.
        args: those of one call, an example; a batch is made of it and of others like it.
        in_axes: as `jax.vmap` takes it, an entry for each argument; None: all arguments along the first axis,
            each alone, all but each, all along the last axis, and all twice.
        static: keyword arguments of f.
        shapes: "auto": at other sizes too, as in `verify`.
        budget: seconds for the diagnosis of what differs.
        seed: of the random values.

    Returns:
        A `Report` with rows for the value and for each gradient, for each of the `in_axes`.

    Raises:
        DTypeError, ShapeError, ValueRangeError: as `verify`; `in_axes` maps nothing, or does not fit.

    >>> import jax.numpy as jnp
    >>> verify_batching(lambda x, w: x @ w, (jnp.ones(3), jnp.ones((3, 2))), in_axes=(0, None)).ok
    True
    """
    check_options(static=static, shapes=shapes, budget=budget, seed=seed)
    given = pose(f, None, args, static=static)
    f, args, rng = _bound(f, static), given.args, np.random.default_rng([int(seed), 4])
    used = {n for v in (*given.arrays, *given.shape_of_y(given.arrays)) for n in v.shape}
    sizes = [n for n in range(2, 99) if n not in used]
    reports = []
    for axes, twice in _batches(args, in_axes):
        try:
            batched = derived.examples(args, axes, sizes[1], rng)
            under, loop = derived.batch(f, f, axes)
            if twice:
                batched = derived.examples(batched, axes, sizes[0], rng)
                under, loop = derived.batch(under, loop, axes)
            posed = pose(under, None, batched, reference=loop)
            posed.shape_of_result(posed.arrays)  # of the loop
        except (ValueError, IndexError, TypeError) as error:
            raise ShapeError(
                f"verify_batching: in_axes {axes} does not fit these arguments: {first_line(error)}",
                path="in_axes",
                expected="as jax.vmap takes it, an entry for each argument",
                actual=repr(in_axes),
            ) from error
        name = f"vmap {'twice ' if twice else ''}{axes}"
        posed = dataclasses.replace(posed, name=name, names=given.names, rules=given.rules)
        try:
            dataclasses.replace(posed, forward=under).shape_of_result(posed.arrays)
        except Exception as error:  # whatever a batching rule may raise, which the loop does not
            message = f"under {name} it raises {type(error).__name__}: {first_line(error)}"
            reports.append(unusable(posed, Finding("", "shape", message, "", _line(given))))
            continue
        reports.append(_compared(posed, under, shapes, budget, seed, asked=not _no_gradient(given, f)))
        budget = budget if reports[-1].ok else 0.0  # one is named
    report = functools.reduce(Report.and_then, reports)
    return dataclasses.replace(report, of="values and gradients")


def _batches(args: Any, in_axes: Any) -> list[tuple[tuple[Any, ...], bool]]:
    """The `in_axes` to verify, and whether twice."""
    if in_axes is not None:
        return [(tuple(in_axes), False)]
    mapped = [any(hasattr(v, "dtype") for v in jax.tree.leaves(arg)) for arg in args]
    every = lambda axis: tuple(axis if there else None for there in mapped)
    alone = [
        tuple(0 if j == i else None for j in range(len(args))) for i, there in enumerate(mapped) if there
    ]
    left_out = [
        tuple(None if j == i else a for j, a in enumerate(every(0)))
        for i, there in enumerate(mapped)
        if there
    ]
    last = every(-1) if any(np.ndim(v) for v in jax.tree.leaves(args)) else every(0)
    each = dict.fromkeys(
        axes for axes in (every(0), *alone, *left_out, last) if any(a is not None for a in axes)
    )
    return [*((axes, False) for axes in each), (every(0), True)]


# ---- comparing --------------------------------------------------------------------------------------------


def _compared(
    given: Problem,
    f: Callable[..., Any],
    shapes: str | None,
    budget: float,
    seed: int,
    asked: bool = True,
) -> Report:
    """Values and gradients of f against those of the forward pass of a problem.

    Where f has no gradient, that is a row if one is `asked` for.
    """
    mine = dataclasses.replace(given, forward=f)
    ours, theirs = (each.shape_of_result(given.arrays) for each in (mine, given))
    off = _unlike(ours, theirs)
    if off is not None and off.kind != "dtype":
        report = unusable(dataclasses.replace(given, names=("value",) * len(given.args)), off)
        return dataclasses.replace(report, rows=report.rows[:1], of="values and gradients")

    def cast(*args: Any) -> Any:
        like = given.shape_of_result(jax.tree.leaves(args))
        return jax.tree.map(lambda v, w: jnp.asarray(v, w.dtype), f(*args), like)

    mine = dataclasses.replace(given, formula=lambda args, dy: pulled(cast, args)[1](dy))
    why = _no_gradient(given, f)
    report = judged(derived.values(mine, cast, gradients=not why), shapes, budget, seed)
    named = [finding for finding in report.findings if finding.argument.startswith("value")]
    # Of a wrong value the gradients are wrong, too: the cause is named there.
    rest = named if any(f.is_mistake for f in named) else [_not_equal(given, f), *report.findings]
    findings = tuple(finding for finding in (off, *rest) if finding is not None)
    report = dataclasses.replace(report, findings=findings)
    if why and asked:
        report = report.and_then(unseen(given, f"no gradient of it: {why}"))
    elif why:
        report = dataclasses.replace(report, notes=(*report.notes, f"the values only: no gradient ({why})"))
    return dataclasses.replace(_with_shapes(report, given), of="values and gradients")


def _no_gradient(given: Problem, f: Callable[..., Any]) -> str:
    """Why JAX has no gradient of f; "" where it has."""
    try:
        jax.eval_shape(
            dataclasses.replace(given, forward=f).autodiff, given.arrays, given.shape_of_y(given.arrays)
        )
    except Exception as error:  # whatever JAX, or somebody's function, may raise
        return f"{type(error).__name__}: {first_line(error)}"[:100]
    return ""


def _unlike(ours: Any, theirs: Any) -> Finding | None:
    """Results of another structure, shape or dtype."""
    if jax.tree.structure(ours) != jax.tree.structure(theirs):
        trees = f"{jax.tree.structure(ours)}, the definition's {jax.tree.structure(theirs)}"
        return Finding("", "structure", f"the result is {trees}")
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        if a.shape != b.shape or is_float(a) != is_float(b):
            return Finding("", "shape", f"the result is {describe(a)}, the definition's {describe(b)}")
        if a.dtype != b.dtype:
            message = f"the result is {a.dtype}, the definition's {b.dtype}"
            return Finding("", "dtype", message, "cast it", error=0.0)
    return None


def _not_equal(given: Problem, f: Callable[..., Any]) -> Finding | None:
    """Results that are no gradient's business: integers, infinities, NaN."""
    for a, b in zip(*(jax.tree.leaves(each(*given.args)) for each in (f, given.forward)), strict=True):
        if not is_float(b):
            same = jnp.issubdtype(b.dtype, jax.dtypes.prng_key) or np.array_equal(a, b)
            what = "integers"
        else:
            a, b = (np.asarray(v).astype(np.complex128 if np.iscomplexobj(v) else np.float64) for v in (a, b))
            finite = np.isfinite(a) & np.isfinite(b)
            same = np.array_equal(a[~finite], b[~finite], equal_nan=True)
            what = "infinities or NaN"
        if not same:
            return Finding("", "value", f"the result holds other {what} than the definition's")
    return None


def _not_linear(report: Report, posed: Problem, count: int) -> Report:
    """The report, saying of each wrong tangent whether it is not linear, rather than what it is."""
    dy = [jnp.ones(v.shape, v.dtype) for v in posed.shape_of_y(posed.arrays)]
    back = [*posed.arrays[:-count], *(-2 * t for t in posed.arrays[-count:])]
    findings, rows = list(report.findings), list(report.rows)
    for i, (one, two) in enumerate(
        zip(*(posed.gradients(at, dy) for at in (posed.arrays, back)), strict=True)
    ):
        path, size = posed.paths[i], float(jnp.abs(one).max(initial=0))
        if rows[i].ok or not differs(two, -2 * one, 0.01, size):
            continue
        message = "the tangent of -2·t is not -2 times that of t"
        found = Finding(path, "nonlinear_in_cotangent", message, "", _line(posed), rows[i].error)
        findings = [f for f in findings if f.argument != path] + [found]
        rows[i] = dataclasses.replace(rows[i], note=found.kind)
    return dataclasses.replace(report, findings=tuple(findings), rows=tuple(rows))


def _with_shapes(report: Report, given: Problem) -> Report:
    """With the shapes of what was given, not of what was posed."""
    findings = tuple(map(_of_the_posed, report.findings))
    kinds = lambda row: ", ".join(dict.fromkeys(f.kind for f in findings if f.argument == row.argument))
    rows = (
        dataclasses.replace(row, operation=given.name, shapes=given.shapes, note=kinds(row) or row.note)
        for row in report.rows
    )
    return dataclasses.replace(report, rows=tuple(rows), findings=findings)


def _of_the_posed(finding: Finding) -> Finding:
    """A finding without what speaks of a factor s, which nobody gave, or of a backward pass."""
    if "for the backward pass only" in finding.message + finding.suggestion:
        finding = dataclasses.replace(
            finding, kind="unknown", message="another than the definition's", suggestion=""
        )
    return dataclasses.replace(finding, example="")


def _bound(function: Callable[..., Any], static: Mapping[str, Any] | None) -> Callable[..., Any]:
    return functools.partial(function, **static) if static else function


def _line(problem: Problem) -> str:
    return tape.line_of(problem.rules[0]) if problem.rules else ""


# ---- time and memory --------------------------------------------------------------------------------------

SECONDS = 2.0  # for which two functions take turns
TURNS = 40  # at most


def _costs(f: Callable[..., Any], g: Callable[..., Any], given: Problem) -> list[str]:
    """What both cost, forward and with the gradients, compiled for the arguments as they are given."""
    said = []
    for what, posed in (("forward", _forward), ("forward and backward", _backward)):
        try:
            programs = [jax.jit(posed(each, given)).lower(*given.arrays).compile() for each in (f, g)]
        except Exception as error:  # of either: a kernel without a gradient, a function of NumPy's
            said.append(f"{what}: not measured ({type(error).__name__}: {first_line(error)[:80]})")
            continue
        ours, theirs = _times(programs, given.arrays)
        line = f"{what}: {_ms(ours)}, the definition {_ms(theirs)}: {theirs / ours:.3g} times as fast"
        sizes = [_temporary(program) for program in programs]
        if None not in sizes:
            line += f"; needs {_bytes(sizes[0])} besides, the definition {_bytes(sizes[1])}"
        said.append(line)
    return said


def _forward(f: Callable[..., Any], given: Problem) -> Callable[..., Any]:
    return lambda *arrays: f(*given.unflatten(arrays))


def _backward(f: Callable[..., Any], given: Problem) -> Callable[..., Any]:
    ones = lambda y: [jnp.ones(v.shape, v.dtype) for v in y]
    posed = dataclasses.replace(given, forward=f)
    return lambda *arrays: posed.autodiff(arrays, ones(posed.shape_of_y(arrays)))


def _times(programs: Sequence[Callable[..., Any]], arrays: Sequence[Any]) -> list[float]:
    """The median time of each, measured in turns."""
    taken: list[list[float]] = [[] for _ in programs]
    end = time.perf_counter() + SECONDS
    for turn in range(TURNS + 1):
        for program, times in zip(programs, taken, strict=True):
            begin = time.perf_counter()
            jax.block_until_ready(program(*arrays))
            times.append(time.perf_counter() - begin)
        if turn > 1 and time.perf_counter() > end:
            break
    return [statistics.median(times[1:]) for times in taken]


def _temporary(program: Any) -> int | None:
    return getattr(program.memory_analysis(), "temp_size_in_bytes", None)


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"


def _bytes(size: int | None) -> str:
    power = min(max((size or 1).bit_length() - 1, 0) // 10, 3)
    return f"{(size or 0) / 2 ** (10 * power):.3g} {('B', 'KiB', 'MiB', 'GiB')[power]}"
