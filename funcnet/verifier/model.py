"""Every gradient formula in a model, verified on the model's own shapes and values."""

import contextlib
import dataclasses
import functools
import inspect
import os
import sys
import types
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from funcnet import rules, signature
from funcnet.verifier import laws, tape, trace
from funcnet.verifier.compare import verify
from funcnet.verifier.finding import Finding, Row
from funcnet.verifier.judge import judge_of
from funcnet.verifier.problem import pose, wide
from funcnet.verifier.report import Report

__all__ = ["verify_model"]

FOLDED = ("jax", "optax", "flax")  # packages whose rules have one row, if all are right


def verify_model(
    loss: Any,
    params: Any,
    batch: Any,
    *,
    key: Any = None,
    model_state: Any = None,
    seed: int = 0,
    allow: Sequence[str] = (),
) -> Report:
    """Verify every derivative rule that `loss` meets, at the shapes and values at which it calls it.

    The loss is run once, unjitted, and what it calls is noted: the operations of funcnet, every
    `jax.custom_vjp` and `jax.custom_jvp`, `rules.call`, wherever they are called: under `jax.jit`, in
    `jax.lax.scan`, `jax.vmap`, in other rules. An operation is compared with `jax.vjp` of its `reference`, a
    rule with autodiff of its own function without any rule; a wrong one is then diagnosed by `verify`. What
    cannot be verified is a row that says why, such as a branch that was not taken, or a primitive whose
    definition JAX cannot differentiate.

    Args:
        loss: ``loss(params, batch, key)``, or with a model_state ``loss(params, model_state, batch, key)``; a
            loss that draws nothing need not take the key. What it returns does not matter.
        params: the model's.
        batch: one batch, as the loss takes it.
        key: a random key for the loss; None: one made of `seed`.
        model_state: batch-norm statistics and the like.
        seed: of the cotangents and of the random arguments.
        allow: names of rules, or their places as in ``mine.py:57``, that need not be verified or right.

    Returns:
        A `Report` with one row per rule and set of shapes: its worst leaf, and its number of calls.

    Raises:
        DTypeError, StructureError: `loss` is no function, or takes other arguments.
    """
    key = jax.random.key(seed) if key is None else key
    with rules.record() as calls, tape.tape() as met:
        signature.call("verify_model", loss, params, model_state, batch, key)
    distinct: dict[Any, list[rules.Call]] = {}
    for call in calls:
        if hasattr(call.operation, "vjp"):
            distinct.setdefault(_signature(call), []).append(call)
    verdicts = [_verdict_on_operation(same, seed) for same in distinct.values()]
    folded, own = list[Verdict](), list[Verdict]()
    for call in met:
        verdict = _verdict_on_rule(call, seed)
        (folded if tape.package_of(call.rule) in FOLDED else own).append(verdict)
    verdicts += own
    verdicts += [v for v in folded if not v.row.ok]
    if right := [v.row for v in folded if v.row.ok]:
        verdicts.append(Verdict(_fold(right)))
    verdicts += _foreign(loss, params, model_state, batch, key)
    verdicts = [_allowed(v) if _names(v, allow) else v for v in verdicts]
    return Report(
        tuple(v.row for v in verdicts),
        tuple(f for v in verdicts for f in v.findings),
        () if verdicts else ("the loss meets no derivative rule: autodiff does all of it",),
    )


@dataclasses.dataclass(frozen=True)
class Verdict:
    """On one rule at one set of shapes: its worst leaf, what is wrong, and where it is written."""

    row: Row
    findings: tuple[Finding, ...] = ()
    place: str = ""


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


def _judged(name: str, problems: Sequence[Any], count: int, seed: int) -> tuple[Row, tuple[Finding, ...]]:
    """One rule at some sets of values: its gradients, and whether it gives the values of its function."""
    worst, allowed, path, why, ok, off = 0.0, 1.0, problems[0].paths[0], "", True, list[Finding]()
    for n, problem in enumerate(problems):
        ready = judge_of(problem)
        point = ready.at("as called", problem.arrays, np.random.default_rng([seed, 1 + n]))
        off = off or laws.of_values(ready, [point])
        for i in range(len(problem.moving)):
            leaf = ready.leaf(point, i)
            ok &= leaf.state != "wrong"
            why = why or (f"undecided: {leaf.why}" if leaf.state == "undecided" else "")
            if leaf.error / max(leaf.allowed, 1e-300) >= worst / allowed:
                worst, allowed, path = leaf.error, max(leaf.allowed, 1e-300), problem.paths[i]
    ok = ok and not off
    why = why if ok else ""
    row = Row(name, path, problems[0].shapes, count, worst, allowed, ok and not why, "", None, why)
    return row, tuple(off)


def _verdict_on_rule(call: tape.Call, seed: int) -> Verdict:
    name, place = tape.name_of(call.rule), tape.line_of(call.rule)
    shapes = ", ".join("×".join(map(str, v.shape)) or "scalar" for v in call.values[0]) if call.values else ""

    def unseen(why: str) -> Verdict:
        row = Row(
            name, "", shapes, call.count, 0.0, 0.0, False, place, None, f"not verified: {why} ({place})"
        )
        return Verdict(row, (), place)

    if not call.values:
        return unseen("it was not run: in a branch not taken, or with a random key")
    functions = [_as_function(call, values) for values in call.values]
    try:
        with jax.enable_x64(True):
            problems = [pose(function, None, wide(args)) for function, args in functions]
            row, findings = _judged(name, problems, call.count, seed)
    except Exception as error:  # whatever somebody's function may raise in float64
        return unseen(f"{type(error).__name__}: {error}".strip().splitlines()[0][:120])
    if row.unseen:
        return Verdict(dataclasses.replace(row, unseen=f"{row.unseen} ({place})"), (), place)
    if not row.ok and tape.of_jax(call.rule):  # a series of its own, such as that of sinc: taken as meant
        return Verdict(dataclasses.replace(row, ok=True), (), place)
    if not row.ok and not findings:  # named where it shows: at the first values, or at the last
        reports = (verify(function, args, seed=seed).wrong for function, args in functions)
        findings = next(filter(None, reports), ())
    findings = tuple(dataclasses.replace(f, location=f.location or place) for f in findings)
    kinds = ", ".join(dict.fromkeys(f.kind for f in findings))
    return Verdict(dataclasses.replace(row, note="; ".join(filter(None, (kinds, place)))), findings, place)


def _as_function(call: tape.Call, values: list[np.ndarray]) -> tuple[Any, tuple[Any, ...]]:
    """What to give to `verify`: a rule and its differentiable arguments, or an operation made of a `vjp`."""
    args, options = call.arguments([jnp.asarray(v) for v in values])
    if not tape.is_rule(call.rule):
        operation: Any = types.ModuleType(tape.name_of(call.rule))
        operation.vjp = lambda *a: call.rule(*a, **options)

        def reference(*a: Any) -> Any:
            with tape.plain():
                return call.rule(*a, **options)[0]

        operation.reference = reference
        return operation, args
    fixed = {i % len(args) for i in getattr(call.rule, "nondiff_argnums", ())}

    def function(*moving: Any) -> Any:
        given = iter(moving)
        return call.rule(*(a if i in fixed else next(given) for i, a in enumerate(args)), **options)

    function.__name__ = tape.name_of(call.rule)
    with contextlib.suppress(ValueError, TypeError):  # a built-in without a signature
        named = inspect.signature(call.rule.fun).parameters.values()
        moving = [p.replace(default=p.empty) for i, p in enumerate(named) if i < len(args) and i not in fixed]
        function.__signature__ = inspect.Signature(moving)  # pyright: ignore[reportFunctionMemberAccess]
    return function, tuple(a for i, a in enumerate(args) if i not in fixed)


# ---- the operations of funcnet ----------------------------------------------------------------------------


def _signature(call: rules.Call) -> Any:
    """Equal for calls of one operation with the same shapes and options."""
    leaves, tree = jax.tree.flatten((call.args, call.options))
    kinds = tuple((v.shape, str(v.dtype)) if hasattr(v, "dtype") else repr(v) for v in leaves)
    return call.operation.__name__, kinds, tree


def _verdict_on_operation(calls: list[rules.Call], seed: int) -> Verdict:
    """The worst leaf of one operation at one set of shapes, and what is wrong there."""
    fill = functools.partial(_fill, np.random.default_rng(seed))
    args, options = jax.tree.map_with_path(fill, (calls[0].args, calls[0].options))
    with jax.enable_x64(True):
        problem = pose(calls[0].operation, None, wide(args), static=wide(options))
        row, findings = _judged(problem.name, [problem], len(calls), seed)
    if row.ok or row.unseen:
        return Verdict(row)
    findings = findings or verify(calls[0].operation, args, static=options, seed=seed).findings
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


def _foreign(loss: Any, params: Any, model_state: Any, batch: Any, key: Any) -> Iterator[Verdict]:
    """A row for each primitive that neither JAX nor funcnet brings: what it computes is not known."""
    leaves, tree = jax.tree.flatten((params, model_state, batch, key))
    arrays = [i for i, v in enumerate(leaves) if hasattr(v, "dtype")]

    def run(*values: Any) -> Any:
        given = dict(zip(arrays, values, strict=True))
        parts = jax.tree.unflatten(tree, [given.get(i, v) for i, v in enumerate(leaves)])
        result = signature.call("verify_model", loss, parts[0], parts[1], parts[2], parts[3])
        return [v for v in jax.tree.leaves(result) if hasattr(v, "dtype")]

    try:
        closed = jax.make_jaxpr(run)(*(leaves[i] for i in arrays))
    except Exception:  # a loss that asks for values, as it may when it is run
        return
    known = _primitives("jax", "jaxlib", "funcnet")
    seen: dict[str, tuple[str, int]] = {}
    for eqn in _equations(closed.jaxpr):
        if eqn.primitive not in known:
            place = trace.line(eqn)
            seen[eqn.primitive.name] = place, seen.get(eqn.primitive.name, ("", 0))[1] + 1
    for name, (place, count) in seen.items():
        why = f"not verified: a primitive without a definition that JAX can differentiate ({place})"
        yield Verdict(Row(name, "", "", count, 0.0, 0.0, False, place, None, why), (), place)


def _primitives(*packages: str) -> set[Any]:
    """All primitives that the modules of some packages hold."""
    return {
        value
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] in packages and module is not None
        for value in list(vars(module).values())
        if isinstance(value, jex.Primitive)
    } | {product.primitive for product in _bilinear()}


def _bilinear() -> Iterator[Any]:
    for name, module in list(sys.modules.items()):
        if name.startswith("funcnet"):
            yield from (v for v in list(vars(module).values()) if isinstance(v, rules.Bilinear))


def _equations(jaxpr: Any) -> Iterator[Any]:
    """Those of a program and of all in it."""
    for eqn in jaxpr.eqns:
        yield eqn
        for part in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(part, "jaxpr", part)
            if hasattr(inner, "eqns"):
                yield from _equations(inner)
