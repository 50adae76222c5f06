"""Wrong formulas made from right ones: one equation of the backward pass is changed, which gives the label.

The program of a right formula is traced, and one equation of it replaced when it runs: negated, scaled,
summed over another axis, an operand left out or exchanged, a term put in. Mutants that still give the true
gradient on random data are no mutants and are left out.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.formulas import RIGHT, Right, Wrong
from funcnet.verifier import trace

__all__ = ["mutants"]

Change = Callable[[trace.Equation, Sequence[Any], Sequence[Any]], Any]  # equation, operands, all values


class Mutation(NamedTuple):
    """A change of the first output of one equation, and what it is called."""

    equation: int
    kinds: tuple[str, ...]
    words: str
    change: Change


def mutants(per_formula: int, seed: int = 0) -> list[Wrong]:
    """Up to `per_formula` mutants of the first right formula of every operation, drawn evenly over kinds."""
    firsts = {right.operation: right for right in reversed(RIGHT)}
    rng, out = np.random.default_rng(seed), []
    for right in firsts.values():
        with jax.enable_x64(True):
            args = [_wide(a) for a in right.draw(np.random.default_rng(1))]
            y = right.forward(*args)
            dy = jnp.asarray(np.random.default_rng(2).standard_normal(y.shape))
            truth = _gradients(right, args, dy)
            by_kind: dict[str, list[Wrong]] = {}
            for mutation in _mutations(right, args, dy):
                wrong = _wrong(right, mutation)
                try:
                    with np.errstate(all="ignore"):
                        got = _listed(wrong.backward(*args, dy), len(args))
                except (TypeError, ValueError):
                    continue
                broken = [
                    i
                    for i, (g, t) in enumerate(zip(got, truth, strict=True))
                    if t is not None and g is not None and not _equal(g, t)
                ]
                finite = all(g is None or bool(jnp.isfinite(g).all()) for g in got)
                if len(broken) == 1 and finite:  # one argument at fault, as in the formulas written by hand
                    names = right.forward.__code__.co_varnames
                    by_kind.setdefault(mutation.kinds[0], []).append(
                        wrong._replace(argument=names[broken[0]])
                    )
        kinds = list(by_kind)
        rng.shuffle(kinds)
        chosen: list[Wrong] = []
        while len(chosen) < per_formula and any(by_kind.values()):
            for kind in kinds:
                if by_kind[kind] and len(chosen) < per_formula:
                    chosen.append(by_kind[kind].pop(int(rng.integers(len(by_kind[kind])))))
        out += chosen
    return out


def _wide(x: Any) -> Any:
    x = jnp.asarray(x)
    return x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x


def _listed(grads: Any, count: int) -> list[Any]:
    return [grads] if count == 1 and not isinstance(grads, tuple | list) else list(grads)


def _gradients(right: Right, args: Sequence[Any], dy: Any) -> list[Any]:
    return _listed(right.backward(*args, dy), len(args))


def _equal(a: Any, b: Any) -> bool:
    return a.shape == b.shape and bool(jnp.abs(a - b).max() <= 1e-6 * jnp.abs(b).max())


def _wrong(right: Right, mutation: Mutation) -> Wrong:
    def backward(*args_and_dy: Any) -> Any:
        program, shape = trace.trace(lambda *a: right.backward(*a), *args_and_dy)
        values: list[Any] = [None] * len(program)
        values[: program.inputs] = args_and_dy
        for k, eqn in enumerate(program.equations):
            operands = [values[v] if isinstance(v, int) else v for v in eqn.inputs]
            results = trace.bind(eqn, operands)
            if k == mutation.equation:
                results = [jnp.asarray(mutation.change(eqn, operands, values)).astype(results[0].dtype)]
            for v, result in zip(eqn.outputs, results, strict=True):
                values[v] = result
        return jax.tree.unflatten(jax.tree.structure(shape), [values[v] for v in program.outputs])

    name = f"equation {mutation.equation}: {mutation.words}"
    return Wrong(right.operation, name, "", mutation.kinds, right.forward, backward, right.draw)


def _mutations(right: Right, args: Sequence[Any], dy: Any) -> Iterator[Mutation]:
    program, _ = trace.trace(lambda *a: right.backward(*a), *args, dy)
    values = trace.run(program, [np.asarray(v) for v in (*args, dy)])
    follows_dy: set[Any] = {program.inputs - 1}
    for eqn in program.equations:
        if any(v in follows_dy for v in eqn.inputs if isinstance(v, int)):
            follows_dy.update(eqn.outputs)
    again = lambda eqn, operands: trace.bind(eqn, [jnp.asarray(o) for o in operands])[0]
    for k, eqn in enumerate(program.equations):
        out = eqn.outputs[0]
        if eqn.primitive is None or not np.issubdtype(np.asarray(values[out]).dtype, np.floating):
            continue
        name, shape = eqn.name, np.shape(values[out])
        yield Mutation(k, ("sign",), f"-{name}", lambda e, o, v: -again(e, o))
        for c in (2.0, 0.5):
            yield Mutation(k, ("scale",), f"{c} {name}", lambda e, o, v, c=c: c * again(e, o))
        if shape:
            times = lambda e, o, v: again(e, o) / v[e.outputs[0] * 0].shape[0] if v[0].ndim else again(e, o)
            yield Mutation(k, ("scale",), f"{name} / size", times)
        if out in follows_dy:
            yield Mutation(k, ("zero", "missing_term"), f"0 {name}", lambda e, o, v: 0 * again(e, o))
        if name in ("add", "sub", "add_any") and all(np.shape(_of(values, v)) == shape for v in eqn.inputs):
            for j in range(2):
                sign = -1.0 if name == "sub" and j == 1 else 1.0
                only = lambda e, o, v, j=j, sign=sign: sign * o[j]
                yield Mutation(
                    k, ("missing_term", "statistics_constant"), f"operand {j} of {name} alone", only
                )
        if name in ("mul", "div"):
            for j in range(2 if name == "mul" else 1):
                other = _of(values, eqn.inputs[1 - j])
                if np.shape(_of(values, eqn.inputs[j])) != shape or _in(eqn.inputs[1 - j], follows_dy):
                    continue
                mask = bool(np.isin(other, (0, 1)).all())
                kinds = ("mask",) if mask else ("scale",) if np.size(other) == 1 else ("missing_term",)
                yield Mutation(k, kinds, f"{name} without operand {1 - j}", lambda e, o, v, j=j: o[j])
        if name == "reduce_sum" and np.ndim(_of(values, eqn.inputs[0])) > 1:
            x = _of(values, eqn.inputs[0])
            for axis in range(x.ndim):
                if (axis,) != tuple(eqn.params["axes"]) and np.delete(x.shape, axis).tolist() == list(shape):
                    swap = lambda e, o, v, axis=axis: o[0].sum(axis)
                    yield Mutation(k, ("wrong_axis",), f"sum over {axis}", swap)
        for j, v in enumerate(eqn.inputs):
            old = _of(values, v)
            if not isinstance(v, int) or np.ndim(old) == 0 or old.dtype != np.float64:
                continue
            for u in range(out):
                new = values[u]
                if (
                    np.shape(new) != np.shape(old)
                    or np.asarray(new).dtype != old.dtype
                    or np.array_equal(new, old)
                ):
                    continue
                if (u in follows_dy) and v not in follows_dy:
                    continue
                kinds = (
                    ("ignores_cotangent", "wrong_residual")
                    if v in follows_dy and u not in follows_dy
                    else ("wrong_residual",)
                )
                put = lambda e, o, w, j=j, u=u: again(e, [w[u] if i == j else x for i, x in enumerate(o)])
                yield Mutation(k, kinds, f"value {u} as operand {j} of {name}", put)
            if np.ndim(old) == 2 and old.shape[0] == old.shape[1]:
                turn = lambda e, o, w, j=j: again(e, [x.T if i == j else x for i, x in enumerate(o)])
                yield Mutation(k, ("transpose",), f"operand {j} of {name} transposed", turn)
            if name in ("dot_general", "mul") and np.shape(old)[0] > 2:
                roll = lambda e, o, w, j=j: again(
                    e, [jnp.roll(x, 1, 0) if i == j else x for i, x in enumerate(o)]
                )
                yield Mutation(k, ("shift",), f"operand {j} of {name} rolled", roll)
                flip = lambda e, o, w, j=j: again(
                    e, [jnp.flip(x, 0) if i == j else x for i, x in enumerate(o)]
                )
                yield Mutation(k, ("flip",), f"operand {j} of {name} reversed", flip)
        if out in follows_dy and shape:
            for u in sorted(follows_dy)[:6]:
                if u < out and np.shape(values[u]) == shape and u != out:
                    more = lambda e, o, w, u=u: again(e, o) + w[u]
                    yield Mutation(k, ("extra_term",), f"{name} + value {u}", more)


def _in(v: Any, values: set[Any]) -> bool:
    return isinstance(v, int) and v in values


def _of(values: Sequence[Any], v: Any) -> Any:
    return values[v] if isinstance(v, int) else np.asarray(v)
