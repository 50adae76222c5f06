"""Slips with blocks: parts in another order, one of a group for all, wrong axes after a reshape, borders.

Each family is a generator of `Edit`s, the least far-fetched first, as those of `slips` are.
"""

import itertools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from funcnet.verifier import trace
from funcnet.verifier.diagnosis.arrays import PARTS, orders, reordered
from funcnet.verifier.diagnosis.slips import Changed, Edit, Scope, is_float

__all__ = ["families"]

AXES = 4  # of more, their order is not searched


def families(scope: Scope) -> list[Iterator[Edit]]:
    """All of them."""
    return [
        _overwritten(scope),
        _keepdims(scope),
        _joined(scope),
        _cut(scope),
        _one_of_a_group(scope),
        _one_of_a_window(scope),
        _transposes(scope),
        _reshapes(scope),
        _one_term(scope),
        _borders(scope),
        _blocks(scope),
    ]


Run = Callable[[trace.Equation, Sequence[Any], tuple[int, ...]], Sequence[Any]]


def _instead(*equations: int, run: Run) -> Callable[[trace.Program], Changed]:
    """Let something else compute the outputs of some equations, from operands and the shape of the result."""

    def build(program: trace.Program) -> Changed:
        def one(eqn: trace.Equation) -> Callable[..., Sequence[Any]]:
            return lambda operands, _: run(eqn, operands, program.avals[eqn.outputs[0]].shape)

        return {k: one(program.equations[k]) for k in equations}

    return build


def _named(scope: Scope, *names: str) -> list[int]:
    return [k for k in scope.behind if scope.program.equations[k].name in names]


def _shape(scope: Scope, k: int, j: int = 0) -> tuple[int, ...]:
    """Of operand j of equation k."""
    return np.shape(scope.of(scope.program.equations[k].inputs[j]))


def _result(scope: Scope, k: int) -> tuple[int, ...]:
    return scope.program.avals[scope.program.equations[k].outputs[0]].shape


def _each_and_all(some: Sequence[int]) -> list[Sequence[int]]:
    return [*([k] for k in some), *([some] if len(some) > 1 else [])]


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


# ---- add instead of set -----------------------------------------------------------------------------------


_INTO = {"scatter": 2, "dynamic_update_slice": 1}  # which operand is put into another


def _part(scope: Scope, k: int) -> Any:
    """What equation k puts into an array."""
    eqn = scope.program.equations[k]
    return eqn.inputs[_INTO.get(eqn.name, 0)]


def _overwritten(scope: Scope) -> Iterator[Edit]:
    """Where several gradients meet in one element, only the last one stays: ``.at[ids].set`` for ``.add``."""

    def add(eqn: trace.Equation, operands: Sequence[Any], _: Any) -> Sequence[Any]:
        if eqn.name == "scatter":
            return trace.apply(eqn._replace(primitive=jax.lax.scatter_add_p), operands)
        into, part, *start = operands
        out = np.array(into)
        out[tuple(slice(int(i), int(i) + n) for i, n in zip(start, part.shape, strict=True))] += part
        return [out]

    some = [k for k in _named(scope, *_INTO) if scope.follows(_part(scope, k))]
    for group in _each_and_all(some):
        words = "add in {op}: repeated elements overwrite each other; write .at[...].add"
        yield Edit("missing_term", words, group[0], _instead(*group, run=add), 0.9)


# ---- a forgotten keepdims ---------------------------------------------------------------------------------


def _keepdims(scope: Scope) -> Iterator[Edit]:
    """What was reduced over a later axis repeats along the first: ``keepdims=True`` was forgotten."""
    program, groups = scope.program, dict[tuple[int, ...], list[int]]()
    for k in _named(scope, "broadcast_in_dim", "reshape", "expand_dims"):
        shape, wide = _shape(scope, k), _result(scope, k)
        if wide == (1, *shape) and max(shape, default=1) > 1:
            groups.setdefault(wide, []).append(k)
    for wide, some in groups.items():
        for axis, group in itertools.product(range(1, len(wide)), _each_and_all(some)):
            made = (
                k
                for k, eqn in enumerate(program.equations)
                if program.equations[group[0]].inputs[0] in eqn.outputs
            )
            moved = lambda _, operands, __, axis=axis: [np.expand_dims(operands[0], axis)]
            words = f"keep axis {axis} in {{op}} (keepdims=True): without it, it repeats along axis 0"
            yield Edit("wrong_axis", words, next(made, group[0]), _instead(*group, run=moved))


# ---- parts in another order -------------------------------------------------------------------------------


def _joined(scope: Scope) -> Iterator[Edit]:
    """The parts that are put together, as dq, dk, dv are, in another order."""
    for k in _named(scope, "concatenate", "stack"):
        makers = [
            scope.program.makers.get(v) for v in scope.program.equations[k].inputs if isinstance(v, int)
        ]
        of = {m.inputs[0] if m is not None and m.name == "slice" else None for m in makers}
        kind = "shift" if len(of) == 1 and None not in of else "swapped"  # parts of one value: jnp.roll
        for order in orders(len(scope.program.equations[k].inputs)):
            turned = lambda eqn, operands, _, order=order: trace.apply(eqn, [operands[i] for i in order])
            words = f"put the parts together in the order {_listed(order)} in {{op}}"
            yield Edit(kind, words, k, _instead(k, run=turned), 1.1)
        shapes = {_shape(scope, k, j) for j in range(len(scope.program.equations[k].inputs))}
        if len(shapes) == 1 and scope.program.equations[k].name == "concatenate":
            words = "let the parts alternate in {op}, which puts one after another"
            yield Edit("transpose", words, k, _instead(k, run=_alternating), 1.2, also="wrong_axis")


def _alternating(eqn: trace.Equation, operands: Sequence[Any], shape: tuple[int, ...]) -> Sequence[Any]:
    """A concatenation in which the elements of the parts take turns."""
    axis = eqn.params["dimension"]
    return [np.stack(operands, axis + 1).reshape(shape)]


def _cut(scope: Scope) -> Iterator[Edit]:
    """The parts that one value is cut into, in another order."""
    program = scope.program
    for k in _named(scope, "split"):
        sizes = program.equations[k].params["sizes"]
        for order in orders(len(sizes)) if len(set(sizes)) == 1 else ():
            turned = lambda eqn, operands, _, order=order: [trace.apply(eqn, operands)[i] for i in order]
            words = f"take the parts in the order {_listed(order)} in {{op}}"
            yield Edit("swapped", words, k, _instead(k, run=turned), 1.1)
    groups: dict[Any, list[int]] = {}
    for k in _named(scope, "slice"):
        groups.setdefault((program.equations[k].inputs[0], _result(scope, k)), []).append(k)
    for some in groups.values():
        for order in orders(len(some)) if 1 < len(some) <= PARTS else ():
            build = lambda p, some=some, order=order: {
                k: lambda operands, _, e=p.equations[some[i]]: trace.apply(e, operands)
                for k, i in zip(some, order, strict=True)
            }
            words = f"take the parts in the order {_listed(order)}, of which {{op}} is the first"
            yield Edit("swapped", words, some[0], build, 1.1)


def _blocks(scope: Scope) -> Iterator[Edit]:
    """The blocks of a fused value in another order, where it enters a product."""
    for k in _named(scope, "dot_general"):
        for j in range(2):
            shape = _shape(scope, k, j)
            for axis, n in itertools.product(range(len(shape)), (2, 3, 4)):
                for order in orders(n) if shape[axis] % n == 0 and shape[axis] > n else ():
                    words = f"take the {n} blocks along axis {axis} of operand {j} of {{op}} "
                    build = _instead(k, run=_with_blocks(j, axis, order))
                    yield Edit("swapped", words + f"in the order {_listed(order)}", k, build, 1.6)


def _with_blocks(j: int, axis: int, order: Sequence[int]) -> Run:
    turn = lambda i, x: reordered(x, axis, order) if i == j else x
    return lambda eqn, operands, _: trace.apply(eqn, list(itertools.starmap(turn, enumerate(operands))))


# ---- one of a group, for all of it ------------------------------------------------------------------------


def _one_of_a_group(scope: Scope) -> Iterator[Edit]:
    """Of several gradients that belong to one value only one is taken: they must be summed."""
    for k in _named(scope, "slice"):
        eqn, shape, cut = scope.program.equations[k], _shape(scope, k), _result(scope, k)
        if not scope.follows(eqn.inputs[0]) or shape == cut or not _divides(cut, shape):
            continue
        strides = eqn.params["strides"] or (1,) * len(shape)
        shares = [(s, n // m) for s, n, m in zip(strides, shape, cut, strict=True) if n > m]
        near = all(s == n for s, n in shares)  # neighbours are a group; else distant ones
        if not near and any(s != 1 for s, _ in shares):
            continue

        def grouped(
            _: Any, operands: Sequence[Any], shape: Sequence[int], near: bool = near
        ) -> Sequence[Any]:
            x = operands[0]
            for axis, m in enumerate(shape):
                parts = (m, x.shape[axis] // m) if near else (x.shape[axis] // m, m)
                x = x.reshape(*x.shape[:axis], *parts, *x.shape[axis + 1 :]).sum(axis + near)
            return [x]

        words = f"sum over each group of {math.prod(n for _, n in shares)} instead of {{op}}"
        kind = "missing_batch_sum" if cut[0] == 1 and cut[1:] == shape[1:] else "missing_term"
        yield Edit(kind, words, k, _instead(k, run=grouped), 1.2)


def _divides(part: Sequence[int], whole: Sequence[int]) -> bool:
    return len(part) == len(whole) and all(m and n % m == 0 for m, n in zip(part, whole, strict=True))


def _one_of_a_window(scope: Scope) -> Iterator[Edit]:
    """A gradient goes to one element of a window, or of a group, to all of which it belongs."""
    for k in (k for k in _named(scope, "pad", *_INTO) if scope.follows(_part(scope, k))):
        j, whole = _INTO.get(scope.program.equations[k].name, 0), _result(scope, k)
        part = _shape(scope, k, j)
        for axis in range(len(whole)):
            if part == whole[:axis] + whole[axis + 1 :]:
                words = f"repeat it along axis {axis} in {{op}}, instead of filling up by zeros"
                build = _instead(k, run=_repeated(j, np.repeat, axis))
                yield Edit("missing_term", words, k, build, 1.2)
        for spread in (np.repeat, _tile) if _divides(part, whole) and part != whole else ():
            words = f"repeat {'each element' if spread is np.repeat else 'the whole'} in {{op}}"
            build = _instead(k, run=_repeated(j, spread))
            yield Edit("missing_term", words + ", instead of filling up by zeros", k, build, 1.2)


def _repeated(j: int, spread: Callable[[Any, int, int], Any], new: int | None = None) -> Run:
    """Operand j, repeated until it has the shape of the result; `new` is an axis that it lacks."""

    def run(_: Any, operands: Sequence[Any], shape: Sequence[int]) -> Sequence[Any]:
        x = operands[j] if new is None else np.expand_dims(operands[j], new)
        for axis, n in enumerate(shape):
            x = spread(x, n // x.shape[axis], axis)
        return [x]

    return run


def _tile(x: Any, times: int, axis: int) -> Any:
    return np.concatenate([x] * times, axis)


# ---- what is beyond the border ----------------------------------------------------------------------------


_MODES: tuple[Any, ...] = ("edge", "wrap", "reflect")


def _borders(scope: Scope) -> Iterator[Edit]:
    """Zeros beyond the border, where the other end or the outermost value stands, or the other way round."""
    joined = [k for k in _named(scope, "concatenate") if len(scope.program.equations[k].inputs) < 4]
    for group in _each_and_all(joined):
        for beyond, how in ((np.zeros_like, "zeros"), (None, "the outermost values")):
            words = f"{how} beyond the border in {{op}}"
            yield Edit("border", words, group[0], _instead(*group, run=_around(beyond)), 1.15)
    for k in _named(scope, "pad"):
        config = scope.program.equations[k].params["padding_config"]
        for mode in _MODES if all(min(c) >= 0 and not c[2] for c in config) else ():
            padded = lambda eqn, operands, _, mode=mode: [
                np.pad(operands[0], [c[:2] for c in eqn.params["padding_config"]], mode)
            ]
            words = f"the mode {mode!r} in {{op}} instead of zeros"
            yield Edit("border", words, k, _instead(k, run=padded), 1.15)


def _around(beyond: Callable[[Any], Any] | None) -> Run:
    """A concatenation in which all but the largest part is something else; None: what is next to it."""

    def run(eqn: trace.Equation, operands: Sequence[Any], _: Any) -> Sequence[Any]:
        axis = eqn.params["dimension"]
        sizes = [x.shape[axis] for x in operands]
        inner = sizes.index(max(sizes))
        ends = (operands[inner].take([0], axis), operands[inner].take([-1], axis))
        other = lambda i, x: np.broadcast_to(ends[i > inner], x.shape) if beyond is None else beyond(x)
        return trace.apply(eqn, [x if i == inner else other(i, x) for i, x in enumerate(operands)])

    return run


# ---- axes in another order --------------------------------------------------------------------------------


def _other_orders(shape: Sequence[int]) -> list[tuple[int, ...]]:
    several = 1 < len(shape) <= AXES and sum(n > 1 for n in shape) > 1
    return list(itertools.permutations(range(len(shape))))[1:] if several else []


def _transposes(scope: Scope) -> Iterator[Edit]:
    """Another order of the axes, even if the shape is another then: a reshape may follow."""
    for k in _named(scope, "transpose"):
        old = tuple(scope.program.equations[k].params["permutation"])
        for order in itertools.permutations(range(len(old))) if 2 < len(old) <= AXES else ():
            if order != old:
                turned = lambda _, operands, __, order=order: [np.transpose(operands[0], order)]
                words = f"the order {_listed(order)} of the axes in {{op}}"
                yield Edit("transpose", words, k, _instead(k, run=turned), 1.2)


def _reshapes(scope: Scope) -> Iterator[Edit]:
    """A reshape that should exchange axes too: before it, or after it; of one, or of all there and back."""
    shapes = {k: (_shape(scope, k), _result(scope, k)) for k in _named(scope, "reshape")}
    for k, (old, _) in shapes.items():
        for order in _other_orders(old):
            words = f"transpose to the order {_listed(order)} of the axes before {{op}}"
            yield Edit("transpose", words, k, _instead(k, run=_transposed(order)), 1.2, also=_axes_of(order))
    for k, (_, new) in shapes.items():
        for order in _other_orders(new):
            words = f"reshape to {_listed([new[i] for i in order])} and transpose, instead of {{op}}"
            yield Edit("transpose", words, k, _instead(k, run=_reordered(order)), 1.3, also=_axes_of(order))
    for k, (old, new) in shapes.items():
        for parts, order in _regrouped(old, new):
            words = f"reshape to {_listed(parts)} and transpose to the order {_listed(order)} before {{op}}"
            build = _instead(k, run=_transposed(order, parts))
            yield Edit("transpose", words, k, build, 1.35, also=_axes_of(order))
    for pair in dict.fromkeys((old, new) for old, new in shapes.values() if len(old) < len(new)):
        there, back = ([k for k, s in shapes.items() if s == one] for one in (pair, pair[::-1]))
        for order in _other_orders(pair[1]) if len(there) + len(back) > 1 else ():
            build = lambda p, order=order, there=there, back=back: {
                **_instead(*there, run=_reordered(order))(p),
                **_instead(*back, run=_transposed(order))(p),
            }
            words = f"reshape to {_listed([pair[1][i] for i in order])} in {{op}}, and back from there"
            yield Edit("transpose", words, there[0], build, 1.4, also=_axes_of(order))


def _axes_of(order: Sequence[int]) -> str:
    """What is as true of more than two axes in another order: that one is taken for another."""
    return "wrong_axis" if len(order) > 2 else ""


def _transposed(order: Sequence[int], parts: Sequence[int] | None = None) -> Run:
    """A reshape of the axes in another order; `parts` are their sizes where the operand has others."""

    def run(_: Any, operands: Sequence[Any], shape: Sequence[int]) -> Sequence[Any]:
        x = operands[0] if parts is None else operands[0].reshape(parts)
        return [np.transpose(x, order).reshape(shape)]

    return run


def _regrouped(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """One axis cut in two, and orders of the axes then that may be put together to a shape."""
    for axis, n in enumerate(old) if len(old) < AXES else ():
        for m in (m for m in range(2, n) if n % m == 0):
            parts = (*old[:axis], n // m, m, *old[axis + 1 :])
            for order in _other_orders(parts):
                ends = {math.prod(parts[i] for i in order[:k]) for k in range(len(parts) + 1)}
                if ends.issuperset(itertools.accumulate(new, operator.mul)):
                    yield parts, order


def _reordered(order: Sequence[int]) -> Run:
    """A reshape to the sizes in another order, transposed to the shape that it had: the inverse of that."""
    inverse = np.argsort(order)
    return lambda _, operands, shape: [operands[0].reshape([shape[i] for i in order]).transpose(inverse)]


# ---- a factor of one term ---------------------------------------------------------------------------------

_OF_TERMS = ("add", "add_any", "concatenate", "stack", "sub")


def _one_term(scope: Scope) -> Iterator[Edit]:
    """A factor of one of two terms, where the term is used elsewhere without it."""
    first = scope.program.equations[scope.first].outputs[0]
    for k in scope.floats:
        eqn = scope.program.equations[k]
        for j, v in enumerate(eqn.inputs if eqn.name in _OF_TERMS else ()):
            if isinstance(v, int) and is_float(scope.of(v)) and (len(scope.uses[v]) > 1 or v < first):
                words = f"multiply operand {j} of {{op}} by {{c}}"
                yield Edit("scale", words, k, _term_times(k, j), 1.2, solved=True)


def _term_times(k: int, j: int) -> Callable[[trace.Program], Changed]:
    def build(program: trace.Program) -> Changed:
        def run(operands: Sequence[Any], _: Any, c: float) -> Sequence[Any]:
            return trace.apply(program.equations[k], [c * x if i == j else x for i, x in enumerate(operands)])

        return {k: run}

    return build
