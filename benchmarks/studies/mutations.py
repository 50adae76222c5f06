"""Wrong formulas made from right ones: one equation of the backward pass is changed, which gives the label.

The program of a right formula is traced, and one equation of it replaced when it runs: negated, scaled,
summed over another axis, an operand left out or exchanged, a term put in. Mutants that still give the true
gradient on random data are no mutants and are left out.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.studies.census import Right, Wrong
from funcnet.verifier import trace
from funcnet.verifier.problem import wide

__all__ = ["listed", "mutants"]

By = Callable[[trace.Equation, Sequence[Any]], Sequence[Any]]  # runs an equation: in NumPy, or by JAX
Change = Callable[
    [By, trace.Equation, Sequence[Any], Sequence[Any]], Any
]  # by, equation, operands, all values


class Mutation(NamedTuple):
    """A change of the first output of one equation, and what it is called."""

    equation: int
    kinds: tuple[str, ...]
    words: str
    change: Change


def mutants(rights: Sequence[Right], per_formula: int, seed: int = 0) -> list[Wrong]:
    """Up to `per_formula` mutants of the first right formula of every operation, drawn evenly over kinds."""
    firsts = {right.operation: right for right in reversed(rights)}
    rng, out = np.random.default_rng(seed), []
    for right in firsts.values():
        by_kind: dict[str, list[Wrong]] = {}
        for wrong in _of(right):
            by_kind.setdefault(wrong.kinds[0], []).append(wrong)
        kinds = list(by_kind)
        rng.shuffle(kinds)
        chosen: list[Wrong] = []
        while len(chosen) < per_formula and any(by_kind.values()):
            for kind in kinds:
                if by_kind[kind] and len(chosen) < per_formula:
                    chosen.append(by_kind[kind].pop(int(rng.integers(len(by_kind[kind])))))
        out += chosen
    return out


def _of(right: Right) -> Iterator[Wrong]:
    """The mutations that make the gradient of one argument wrong, and leave all finite."""
    with jax.enable_x64(True):
        args = wide(list(map(jnp.asarray, right.draw(np.random.default_rng(1)))))
        dy = jnp.asarray(np.random.default_rng(2).standard_normal(right.forward(*args).shape))
        program, _ = trace.trace(lambda *a: listed(right.backward(*a), len(args)), *args, dy)
        grads = listed(right.backward(*args, dy), len(args))
        names = [
            n
            for n, g in zip(inspect.signature(right.forward).parameters, grads, strict=True)
            if g is not None
        ]
        inputs = [np.asarray(v) for v in (*args, dy)]
        values = trace.run(program, inputs)
        truth = program.results(values)
        equations, numbered = _numbers(program)
        for mutation in _mutations(program, values):
            k = equations[mutation.equation]
            changed = lambda o, v, m=mutation, e=program.equations[k]: [
                np.asarray(m.change(trace.apply, e, o, [v[i] for i in numbered]))
            ]
            try:
                got = program.results(trace.run(program, inputs, {k: changed}))
            except (TypeError, ValueError):
                continue
            broken = [i for i, (g, t) in enumerate(zip(got, truth, strict=True)) if not _equal(g, t)]
            if len(broken) == 1 and all(np.isfinite(g).all() for g in got):
                yield _wrong(right, mutation, names[broken[0]])


def listed(grads: Any, count: int) -> list[Any]:
    """The gradients of `count` arguments; a formula of one argument may give a bare array."""
    return [grads] if count == 1 and not isinstance(grads, tuple | list) else list(grads)


def _equal(a: Any, b: Any) -> bool:
    return a.shape == b.shape and bool(np.abs(a - b).max(initial=0) <= 1e-6 * np.abs(b).max(initial=0))


def _wrong(right: Right, mutation: Mutation, argument: str) -> Wrong:
    def backward(*args_and_dy: Any) -> Any:
        program, shape = trace.trace(lambda *a: right.backward(*a), *args_and_dy)
        equations, numbered = _numbers(program)
        k = equations[mutation.equation]
        eqn = program.equations[k]

        def changed(operands: Sequence[Any], values: Sequence[Any]) -> list[Any]:
            new = jnp.asarray(mutation.change(trace.bind, eqn, operands, [values[i] for i in numbered]))
            return [new.astype(program.avals[eqn.outputs[0]].dtype)]

        values = trace.run(program, args_and_dy, {k: changed}, by=trace.bind)
        return jax.tree.unflatten(jax.tree.structure(shape), program.results(values))

    name = f"equation {mutation.equation}: {mutation.words}"
    return Wrong(right.operation, name, argument, mutation.kinds, right.forward, backward, right.draw)


def _numbers(program: trace.Program) -> tuple[list[int], list[int]]:
    """The equations and values that a program has in every dtype: those that do not cast or copy."""
    equations = [k for k, e in enumerate(program.equations) if e.name not in ("convert_element_type", "copy")]
    return equations, [*range(program.inputs), *(v for k in equations for v in program.equations[k].outputs)]


def _mutations(program: trace.Program, values: Sequence[Any]) -> Iterator[Mutation]:
    follows_dy = program.after([program.inputs - 1])
    equations, numbered = _numbers(program)
    for k, eqn in enumerate(program.equations[at] for at in equations):
        out = eqn.outputs[0]
        if not np.issubdtype(np.asarray(values[out]).dtype, np.floating):
            continue
        name, shape = eqn.name, np.shape(values[out])
        yield Mutation(k, ("sign",), f"-{name}", lambda by, e, o, v: -_first(by, e, o))
        for c in (2.0, 0.5):
            yield Mutation(k, ("scale",), f"{c} {name}", lambda by, e, o, v, c=c: c * _first(by, e, o))
        if shape:
            over = lambda by, e, o, v: (result := _first(by, e, o)) / len(result)
            yield Mutation(k, ("scale",), f"{name} / size", over)
        if out in follows_dy:
            yield Mutation(k, ("zero", "missing_term"), f"0 {name}", lambda by, e, o, v: 0 * _first(by, e, o))
        if name in ("add", "sub", "add_any") and all(
            np.shape(_value(values, v)) == shape for v in eqn.inputs
        ):
            for j in range(2):
                sign = -1.0 if name == "sub" and j == 1 else 1.0
                only = lambda by, e, o, v, j=j, sign=sign: sign * o[j]
                yield Mutation(
                    k, ("missing_term", "statistics_constant"), f"operand {j} of {name} alone", only
                )
        if name in ("mul", "div"):
            for j in range(2 if name == "mul" else 1):
                other = _value(values, eqn.inputs[1 - j])
                if np.shape(_value(values, eqn.inputs[j])) != shape or _in(eqn.inputs[1 - j], follows_dy):
                    continue
                mask = bool(np.isin(other, (0, 1)).all())
                kinds = ("mask",) if mask else ("scale",) if np.size(other) == 1 else ("missing_term",)
                yield Mutation(k, kinds, f"{name} without operand {1 - j}", lambda by, e, o, v, j=j: o[j])
        if name == "reduce_sum" and np.ndim(_value(values, eqn.inputs[0])) > 1:
            x = _value(values, eqn.inputs[0])
            for axis in range(x.ndim):
                if (axis,) != tuple(eqn.params["axes"]) and np.delete(x.shape, axis).tolist() == list(shape):
                    swap = lambda by, e, o, v, axis=axis: o[0].sum(axis)
                    yield Mutation(k, ("wrong_axis",), f"sum over {axis}", swap)
        for j, v in enumerate(eqn.inputs):
            old = _value(values, v)
            if not isinstance(v, int) or np.ndim(old) == 0 or old.dtype != np.float64:
                continue
            for u, new in enumerate(values[i] for i in numbered if i < out):
                if (
                    np.shape(new) != np.shape(old)
                    or np.asarray(new).dtype != old.dtype
                    or np.array_equal(new, old)
                ):
                    continue
                if numbered[u] in follows_dy and v not in follows_dy:
                    continue
                kinds = (
                    ("ignores_cotangent", "wrong_residual")
                    if v in follows_dy and numbered[u] not in follows_dy
                    else ("wrong_residual",)
                )
                put = lambda by, e, o, w, j=j, u=u: _first(
                    by, e, [w[u] if i == j else x for i, x in enumerate(o)]
                )
                yield Mutation(k, kinds, f"value {u} as operand {j} of {name}", put)
            if np.ndim(old) == 2 and old.shape[0] == old.shape[1]:
                turn = lambda by, e, o, w, j=j: _first(by, e, [x.T if i == j else x for i, x in enumerate(o)])
                yield Mutation(k, ("transpose",), f"operand {j} of {name} transposed", turn)
            if name in ("dot_general", "mul") and np.shape(old)[0] > 2:
                roll = lambda by, e, o, w, j=j: _first(
                    by, e, [_rolled(x) if i == j else x for i, x in enumerate(o)]
                )
                yield Mutation(k, ("shift",), f"operand {j} of {name} rolled", roll)
                flip = lambda by, e, o, w, j=j: _first(
                    by, e, [x[::-1] if i == j else x for i, x in enumerate(o)]
                )
                yield Mutation(k, ("flip",), f"operand {j} of {name} reversed", flip)
        if out in follows_dy and shape:
            for u in [u for u, i in enumerate(numbered) if i in follows_dy and i < out][:6]:
                if np.shape(values[numbered[u]]) == shape:
                    more = lambda by, e, o, w, u=u: _first(by, e, o) + w[u]
                    yield Mutation(k, ("extra_term",), f"{name} + value {u}", more)


def _first(by: By, eqn: trace.Equation, operands: Sequence[Any]) -> Any:
    """The first output of an equation."""
    return by(eqn, operands)[0]


def _rolled(x: Any) -> Any:
    return (jnp if isinstance(x, jax.Array) else np).roll(x, 1, 0)


def _in(v: Any, values: set[Any]) -> bool:
    return isinstance(v, int) and v in values


def _value(values: Sequence[Any], v: Any) -> Any:
    return values[v] if isinstance(v, int) else np.asarray(v)
