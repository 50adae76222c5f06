"""Every gradient formula in a model, verified on the model's own shapes and values."""

import contextlib
import dataclasses
import functools
import inspect
import os
import types
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnet import rules, signature
from funcnet._heard import reported
from funcnet.verifier import blind, laws, tape, trace
from funcnet.verifier.compare import and_twice, checked, judged, verify
from funcnet.verifier.finding import Finding, Row, sizes
from funcnet.verifier.judge import judge_of
from funcnet.verifier.memory import Memory
from funcnet.verifier.problem import Problem, check_values, pose, wide
from funcnet.verifier.report import Report
from funcnet.verifier.same import verify_batching

__all__ = ["verify_model"]

FOLDED = ("jax", "optax", "flax")  # packages whose rules have one row, if all are right


@reported
def verify_model(
    loss: Any,
    params: Any,
    batch: Any,
    *,
    key: Any = None,
    model_state: Any = None,
    seed: int = 0,
    allow: Sequence[str] = (),
    memory: Memory | None = None,
) -> Report:
    """Verify every derivative rule that `loss` meets, at the shapes and values at which it calls it.

    The loss is run once, unjitted, and what it calls is noted: the operations of funcnet, every
    `jax.custom_vjp` and `jax.custom_jvp`, `rules.call`, wherever they are called: under `jax.jit`, in
    `jax.lax.scan`, `jax.vmap`, in other rules. An operation is compared with `jax.vjp` of its `reference`, a
    rule with autodiff of its own function without any rule; a wrong one is then diagnosed by `verify`. Of a
    rule that the loss itself differentiates, as a gradient penalty does, the derivative of the gradient is
    verified too. What cannot be verified is a row that says why, such as a branch that was not taken, or a
    primitive whose definition JAX cannot differentiate.

    Args:
        loss: ``loss(params, batch, key)``, or with a model_state ``loss(params, model_state, batch, key)``; a
            loss that draws nothing need not take the key. What it returns does not matter.
        params: the model's.
        batch: one batch, as the loss takes it.
        key: a random key for the loss; None: one made of `seed`.
        model_state: batch-norm statistics and the like.
        seed: of the cotangents and of the random arguments.
        allow: names of rules, or their places as in ``mine.py:57``, that need not be verified or right; the
            name of several that are not right allows none of them.
        memory: of what commands found right before; with one, a loss that meets nothing but operations is not
            run, if these are right at random values. None: all is verified.

    Returns:
        A `Report` with one row per rule and set of shapes: its worst leaf, and its number of calls.

    Raises:
        DTypeError, StructureError: `loss` is no function, or takes other arguments; an array has no values,
            since it is traced or was donated.
    """
    for name, given in (("params", params), ("batch", batch), ("model_state", model_state), ("key", key)):
        check_values("verify_model", name, given)
    key = jax.random.key(seed) if key is None else key
    if memory is not None and (distinct := _alone(loss, params, model_state, batch, key)):
        rows = tuple(_verdict_on_operation(same, seed, memory).row for same in distinct)
        memory.save()
        if all(row.ok for row in rows):
            return Report(rows, seed=seed)
    with rules.record() as calls, tape.tape() as met:
        signature.call("verify_model", loss, params, model_state, batch, key)
        recorded = list(calls)
        program = _program(loss, params, model_state, batch, key)  # meets what hides from being run
    verdicts = [_verdict_on_operation(same, seed, memory) for same in _distinct(recorded)]
    if memory is not None:
        memory.save()
    folded, own = list[Verdict](), list[Verdict]()
    for call in met:
        verdict = _verdict_on_rule(call, seed)
        (folded if tape.brought_by(call.rule, *FOLDED) else own).append(verdict)
    verdicts += own
    verdicts += [v for v in folded if not v.row.ok]
    if right := [v.row for v in folded if v.row.ok]:
        verdicts.append(Verdict(_fold(right)))
    verdicts += _foreign(program, met)
    several = {name: of_name for name in allow if len(of_name := _places(verdicts, name)) > 1}
    allow = [name for name in allow if name not in several]
    verdicts = [_allowed(v) if _names(v, allow) else v for v in verdicts]
    notes = [f"{v.row.operation}: {note}" for v in verdicts for note in v.notes]
    notes += [f"several rules are called {k}, none is allowed: {', '.join(v)}" for k, v in several.items()]
    return Report(
        tuple(v.row for v in verdicts),
        tuple(f for v in verdicts for f in v.findings),
        tuple(dict.fromkeys(notes))
        if verdicts
        else ("the loss meets no derivative rule: autodiff does all of it",),
        seed=seed,
    )


@dataclasses.dataclass(frozen=True)
class Verdict:
    """On one rule at one set of shapes: its worst leaf, what is wrong, and where it is written."""

    row: Row
    findings: tuple[Finding, ...] = ()
    place: str = ""
    notes: tuple[str, ...] = ()


def _places(verdicts: Sequence[Verdict], name: str) -> list[str]:
    """Where the rules of a name are written that are not right."""
    return list(dict.fromkeys(v.place for v in verdicts if v.row.operation == name and not v.row.ok))


def _names(verdict: Verdict, allow: Sequence[str]) -> bool:
    file, _, line = verdict.place.rpartition(":")
    return (
        verdict.row.operation in allow
        or f"{os.path.basename(file)}:{line}" in allow
        or verdict.place in allow
    )


def _allowed(verdict: Verdict) -> Verdict:
    row = verdict.row
    if row.ok:
        return verdict
    why = row.unseen or f"differs by {row.error:.1e}"
    return Verdict(dataclasses.replace(row, ok=True, note=f"allowed: {why}", unseen=""), (), verdict.place)


def _fold(rows: Sequence[Row]) -> Row:
    """Those of other packages as one."""
    names = ", ".join(sorted({row.operation for row in rows}))
    worst = max(rows, key=lambda row: row.error / max(row.tolerance, 1e-300))
    count = sum(row.count for row in rows)
    return Row("rules of JAX", "", "", count, worst.error, worst.tolerance, True, names)


# ---- one rule ---------------------------------------------------------------------------------------------


def _verdict_on_rule(call: tape.Call, seed: int) -> Verdict:
    """By `verify`, at the values of its calls; of the rules of JAX no more than its gradients there."""
    name, place = tape.name_of(call.rule), tape.line_of(call.rule)
    values = call.values
    shapes = sizes(values[0]) if values else ""

    def unseen(why: str) -> Verdict:
        text = f"{why} ({place})"
        return Verdict(
            Row(name, "", shapes, call.count, 0.0, 0.0, False, place, None, text, place), (), place
        )

    if not values:
        return unseen("not verified: it was not run: in a branch not taken")
    try:
        if isinstance(call.rule, tape.custom_vmap):
            args, options = call.arguments(list(values[0]))
            return _verdict_by(verify_batching(call.rule, args, static=options, seed=seed), call)
        problem, *others = (_problem(call, arrays) for arrays in values)
        if tape.brought_by(call.rule, "jax"):  # a series of its own, such as that of sinc, is taken as meant
            of_y = [v.dtype for v in problem.shape_of_y(problem.arrays)]
            with jax.enable_x64(True):
                problem = checked(dataclasses.replace(problem, args=wide(problem.args)), problem, of_y)
                row = _judged(name, problem, call.count, seed)
            return Verdict(dataclasses.replace(row, ok=True, unseen=""), (), place)
        report = judged(problem, None, 10.0, seed, also=[other.arrays for other in others])
        if report.ok and call.is_derived:
            report = and_twice(report, problem, None, 10.0, seed)
    except Exception as error:  # whatever somebody's function may raise in float64
        return unseen(f"not verified: {type(error).__name__}: {error}".strip().splitlines()[0][:120])
    return _verdict_by(report, call)


def _verdict_by(report: Report, call: tape.Call) -> Verdict:
    """The worst row of a report on a rule, and what is wrong."""
    name, place = tape.name_of(call.rule), tape.line_of(call.rule)
    worst = max(report.rows, key=lambda r: (not r.ok, not r.unseen, r.error / max(r.tolerance, 1e-300)))
    findings = tuple(dataclasses.replace(f, location=f.location or place) for f in report.findings)
    kinds = ", ".join(dict.fromkeys(f.kind for f in findings))
    ok = report.ok or (worst.ok and not report.wrong)
    row = dataclasses.replace(
        worst,
        operation=name,
        count=call.count,
        ok=ok,
        note="; ".join(filter(None, (kinds, place))),
        errors=None,
        location=place,
        unseen="" if ok or report.wrong else f"{worst.unseen} ({place})",
    )
    return Verdict(row, findings, place, tuple(n for n in report.notes if n.startswith("not seen")))


def _problem(call: tape.Call, values: Sequence[np.ndarray]) -> Problem:
    """A rule and its differentiable arguments, or an operation, perhaps made of a `vjp` alone."""
    rule = call.rule
    args, options = call.arguments(list(values))
    if hasattr(rule, "vjp"):
        return pose(rule, None, args, static=options)
    if not tape.is_rule(rule):
        operation: Any = types.ModuleType(tape.name_of(rule))
        operation.vjp = functools.partial(rule, **options)
        operation.reference = lambda *a: rule(*a, **options)[0]
        return pose(operation, None, args)
    named: list[inspect.Parameter] = []
    with contextlib.suppress(ValueError, TypeError):  # a built-in without a signature
        signature = inspect.signature(rule.fun)
        bound = signature.bind(*args, **options)  # as JAX does: those by keyword have a gradient too
        if not bound.kwargs:
            args, options, named = bound.args, {}, [*signature.parameters.values()]
    fixed = {i % len(args) for i in rule.nondiff_argnums}

    def function(*moving: Any) -> Any:
        given = iter(moving)
        return rule(*(a if i in fixed else next(given) for i, a in enumerate(args)), **options)

    function.__name__ = tape.name_of(rule)
    moving = [p.replace(default=p.empty) for i, p in enumerate(named) if i < len(args) and i not in fixed]
    with contextlib.suppress(ValueError):  # *args
        function.__signature__ = inspect.Signature(moving)  # pyright: ignore[reportFunctionMemberAccess]
    return pose(function, None, tuple(a for i, a in enumerate(args) if i not in fixed))


def _judged(name: str, problem: Problem, count: int, seed: int) -> Row:
    """The worst gradient of a problem in float64, at its arguments; needs `jax.enable_x64`."""
    ready = judge_of(problem)
    point = ready.at("as called", problem.arrays, np.random.default_rng([seed, 1]))
    leaves = [ready.leaf(point, i) for i in range(len(problem.moving))]
    ok = all(leaf.state != "wrong" for leaf in leaves) and not laws.of_values(ready, [point])
    worst = max(range(len(leaves)), key=lambda i: leaves[i].error / max(leaves[i].allowed, 1e-300))
    why = next((f"undecided: {leaf.why}" for leaf in leaves if leaf.state == "undecided"), "") if ok else ""
    error, allowed = leaves[worst].error, leaves[worst].allowed
    path = problem.paths[worst]
    return Row(name, path, problem.shapes, count, error, allowed, ok and not why, "", None, why)


# ---- the operations of funcnet ----------------------------------------------------------------------------


def _alone(*setting: Any) -> list[list[rules.Call]]:
    """The operations that a loss calls; none where it meets anything else, for which it must be run."""
    with rules.record() as calls, tape.tape() as met:
        program = _program(*setting)
    return [] if program is None or met or any(_foreign(program, met)) else _distinct(calls)


def _distinct(calls: Sequence[rules.Call]) -> list[list[rules.Call]]:
    """Those of operations with formulas that funcnet brings, of the same shapes together."""
    distinct: dict[Any, list[rules.Call]] = {}
    for call in calls:
        if hasattr(call.operation, "vjp") and tape.brought_by(call.operation, "jax", "funcnet"):
            distinct.setdefault(_signature(call), []).append(call)
    return list(distinct.values())


def _signature(call: rules.Call) -> Any:
    """Equal for calls of one operation with the same shapes and options."""
    leaves, tree = jax.tree.flatten((call.args, call.options))
    kinds = tuple((v.shape, str(v.dtype)) if hasattr(v, "dtype") else repr(v) for v in leaves)
    return call.operation.__name__, kinds, tree


def _verdict_on_operation(calls: list[rules.Call], seed: int, memory: Memory | None) -> Verdict:
    """The worst leaf of one operation at one set of shapes, and what is wrong there."""
    key = "" if memory is None else memory.key(calls[0])
    if memory is not None and (known := memory.row(key, calls)):
        return Verdict(known)
    fill = functools.partial(_fill, np.random.default_rng(seed))
    args, options = jax.tree.map_with_path(fill, (calls[0].args, calls[0].options))
    with jax.enable_x64(True):
        problem = pose(calls[0].operation, None, wide(args), static=wide(options))
        row = _judged(problem.name, problem, len(calls), seed)
    if memory is not None:
        memory.keep(key, row)
    if row.ok or row.unseen:
        return Verdict(row)
    findings = verify(calls[0].operation, args, static=options, seed=seed).findings
    note = ", ".join(dict.fromkeys(f.kind for f in findings))
    return Verdict(dataclasses.replace(row, note=note), findings)


def _fill(rng: np.random.Generator, path: Any, leaf: Any) -> Any:
    """Values for an argument that was traced: standard normal floats, and integers that are in range."""
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.split(jax.random.key(int(rng.integers(2**31))), leaf.shape)
    if leaf.dtype == jnp.bool_:
        return jnp.asarray(rng.random(leaf.shape) < 0.5)
    if jnp.issubdtype(leaf.dtype, jnp.integer):
        return jnp.asarray(rng.integers(0, 2, leaf.shape), leaf.dtype)  # a label or an id of anything
    values = rng.standard_normal(leaf.shape)
    is_variance = any(getattr(entry, "key", None) == "var" for entry in path)
    return jnp.asarray(np.abs(values) + 0.1 if is_variance else values, leaf.dtype)


# ---- primitives of one's own ------------------------------------------------------------------------------


def _program(loss: Any, params: Any, model_state: Any, batch: Any, key: Any) -> Any:
    """The jaxpr of a loss; None of one that asks for values, as it may when it is run."""
    leaves, tree = jax.tree.flatten((params, model_state, batch, key))
    arrays = [i for i, v in enumerate(leaves) if hasattr(v, "dtype")]

    def run(*values: Any) -> Any:
        given = dict(zip(arrays, values, strict=True))
        parts = jax.tree.unflatten(tree, [given.get(i, v) for i, v in enumerate(leaves)])
        result = signature.call("verify_model", loss, parts[0], parts[1], parts[2], parts[3])
        return [v for v in jax.tree.leaves(result) if hasattr(v, "dtype")]

    try:
        return jax.make_jaxpr(run)(*(leaves[i] for i in arrays)).jaxpr
    except Exception:
        return None


def _foreign(program: Any, met: Sequence[tape.Call]) -> Iterator[Verdict]:
    """A row for each primitive that neither JAX nor funcnet brings, or whose transpose is the user's.

    So is a rule that is not `met` where it is called, as in a jaxpr that was traced before.
    """
    if program is None:
        return
    known = blind.primitives()
    seen: dict[str, tuple[str, int]] = {}
    for eqn in _equations(program):
        if eqn.primitive not in known or blind.is_given(eqn.primitive.name, trace.called(eqn)):
            place = trace.place(eqn).line
            seen[eqn.primitive.name] = place, seen.get(eqn.primitive.name, ("", 0))[1] + 1
    written = {where for call in met for where in tape.written(call.rule)}
    for where in dict.fromkeys(map(trace.ruled, _equations(program))):
        if where and where not in written:
            file, _, number = where.rpartition(":")
            place = trace.near(file, int(number))
            why = f"not verified: a rule in a program that was traced before ({place})"
            yield Verdict(Row("rule", "", "", 0, 0.0, 0.0, False, place, None, why, place), (), place)
    for name, (place, count) in seen.items():
        why = f"not verified: a primitive without a definition that JAX can differentiate ({place})"
        if name in {primitive.name for primitive in known}:
            why = f"not verified: JAX takes its transpose at its word ({place})"
        yield Verdict(Row(name, "", "", count, 0.0, 0.0, False, place, None, why, place), (), place)


def _equations(jaxpr: Any) -> Iterator[Any]:
    """Those of a program and of all in it."""
    for eqn in jaxpr.eqns:
        yield eqn
        for part in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(part, "jaxpr", part)
            if hasattr(inner, "eqns"):
                yield from _equations(inner)
