"""Where the parameters of a loss enter its operations: read off its program before anything is counted.

The squared norm of a gradient is the sum of what operations count only if each element of each leaf enters
one of them, once, as it is: cast, transposed, reshaped, or a part of a stack. So each leaf is followed to the
operations that it enters, in the traced program; whatever else is done with it is refused, by name.
"""

import collections
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jax.interpreters import ad, batching

from funcnet import rules
from funcnet._programs import CALLS, parts_of_scan, place
from funcnet.errors import FuncnetError, ShapeError, StructureError
from funcnet.ops.dense import embedding

__all__ = ["Plan", "find", "name_of"]

AS_IT_IS, TRANSPOSED, MOVED = "as it is", "transposed", "moved"
_DEPENDS = object()  # a value that depends on parameters and is none; None: one that does not depend on them
_SAME = {"convert_element_type", "copy", "copy_p", "optimization_barrier", "name", "sharding_constraint"}
_CUSTOM = {"custom_jvp_call", "custom_vjp_call"}


class Plan(NamedTuple):
    """What to count.

    Attributes:
        calls: how all calls with parameters are written, in the order in which they are traced.
        counted: the numbers of those whose parameters are the loss's.
        ties: for a table that is a head as well, the number of its embedding by that of its head.
    """

    calls: list[str]
    counted: set[int]
    ties: dict[int, int]


class _Called(NamedTuple):
    """One call with parameters: its formula, and how many squares it gives, or why none."""

    name: str
    formula: Any
    squares: tuple[int, ...] | Exception


class _Piece(NamedTuple):
    """A value that is a part of a leaf: the elements from `start` on, `size` of them or fewer."""

    leaf: int
    start: int
    size: int
    order: str = AS_IT_IS


class _Use(NamedTuple):
    """A part of a leaf enters an operation; call is None where a loop or a branch has it do so."""

    piece: _Piece
    call: int | None
    scope: tuple[int, ...]


class _Leaf(NamedTuple):
    name: str
    size: int
    uses: list[_Use]


def name_of(f: Callable[..., Any]) -> str:
    """``linear.apply``: the last two names of a function."""
    return f"{f.__module__.rpartition('.')[2]}.{f.__name__}"


def find(where: str, run: Callable[[Any, Any], Any], params: Any, batch: Any, n: int) -> Plan:
    """Which calls to count.

    Args:
        where: who asks.
        run: (params, batch) -> the loss.
        params: of which the gradient is.
        batch: of n examples; arrays or `jax.ShapeDtypeStruct`.
        n: how many results a formula must have.

    Raises:
        StructureError: a leaf is used elsewhere, more than once, or in an operation of which no example has
            a gradient of its own.
        ShapeError: an operation is called without an axis of examples in front.
    """
    calls: list[_Called] = []

    def meter(f: Any, formula: Any, at: int, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        number = len(calls)
        calls.append(_Called(name_of(f), formula, ()))
        args = _mark(args, at, number)
        with rules.metered(None):
            y = f(*args, **options)
            calls[number] = calls[number]._replace(squares=_shape_of(formula, args, options, y))
        return y

    def metered(params: Any, batch: Any) -> Any:
        with rules.metered(meter):
            return run(params, batch)

    traced = jax.make_jaxpr(metered)(params, batch)
    leaves = [
        _Leaf(f"params{jax.tree_util.keystr(path)}", math.prod(leaf.shape), [])
        for path, leaf in jax.tree.leaves_with_path(params)
    ]
    walk = _Walk(where, leaves, calls)
    pieces = [_Piece(i, 0, leaf.size) for i, leaf in enumerate(leaves)]
    walk.run(traced.jaxpr, [*pieces, *[None] * (len(traced.jaxpr.invars) - len(pieces))], ())
    ties: dict[int, int] = {}
    for leaf in list(leaves[: len(pieces)]):
        ties.update(walk.once(leaf, tie=True))
    counted = {number for number, yes in walk.counted.items() if yes}
    for number in sorted(counted):
        _check_shape(where, calls[number], n)
    return Plan([call.name for call in calls], counted, ties)


def _shape_of(formula: Any, args: Any, options: Any, y: Any) -> tuple[int, ...] | Exception:
    traced, static = rules.split(options)
    squares = lambda args, traced, y: formula.squares(*args, y, **traced, **static)
    try:
        return jax.eval_shape(squares, args, traced, y).shape
    except (FuncnetError, TypeError, ValueError) as error:  # told only of a call that counts
        return error


def _check_shape(where: str, call: _Called, n: int) -> None:
    if call.squares == (n,):
        return
    if isinstance(call.squares, StructureError):
        raise StructureError(
            f"{where}: {call.name} gives no example a gradient of its own.",
            path=call.squares.path,
            expected=call.squares.expected,
            actual=call.squares.actual,
            hint=call.squares.hint,
        ) from call.squares
    many = f"{call.squares[0]} rows" if isinstance(call.squares, tuple) else "a shape that it cannot count"
    raise ShapeError(
        f"{where}: {call.name} is called without the axis of examples in front.",
        path="loss",
        expected=f"arrays [n, ...] in every operation     (traced with n = {n})",
        actual=f"{call.name} of {many}",
        hint="keep the axis of examples first and whole: operations take further axes as they are.",
    ) from (call.squares if isinstance(call.squares, Exception) else None)


# ---- a mark in the program: here parameters enter an operation --------------------------------------------

_mark_p = jex.Primitive("parameters")
_mark_p.multiple_results = True


def _mark(args: tuple[Any, ...], at: int, call: int) -> tuple[Any, ...]:
    """args, of which args[at] are parameters. The others are marked too: they may be batched, or moving."""
    (first, *leaves), trees = zip(*(jax.tree.flatten(v) for v in (args[at], *args)), strict=True)
    leaves[at] = []
    marked = iter(_mark_p.bind(*first, *itertools.chain(*leaves), call=call, parameters=len(first)))
    params = jax.tree.unflatten(trees[0], itertools.islice(marked, len(first)))
    rest = [
        params if i == at else jax.tree.unflatten(tree, itertools.islice(marked, tree.num_leaves))
        for i, tree in enumerate(trees[1:])
    ]
    return tuple(rest)


def _marked(*leaves: Any, call: int, parameters: int) -> list[Any]:
    del call, parameters
    return list(leaves)


_mark_p.def_impl(_marked)
_mark_p.def_abstract_eval(_marked)


def _refuse_batch(*_: Any, **__: Any) -> Any:
    raise StructureError(
        "analysis.example_norms: an operation with parameters is called inside of jax.vmap.",
        path="loss",
        expected="loss(params, batch) -> [n], its operations called with the axis of examples in front",
        actual="jax.vmap over a function that calls them",
        hint="they take a batch as they take one example: leave out jax.vmap.",
    )


def _refuse_derivative(*_: Any, **__: Any) -> Any:
    raise StructureError(
        "analysis.example_norms: the loss differentiates an operation with parameters itself.",
        path="loss",
        expected="a loss without derivatives: of those, what a parameter has in them is not counted",
        actual="jax.grad, or another transform that differentiates, inside of the loss",
    )


batching.primitive_batchers[_mark_p] = _refuse_batch
ad.primitive_jvps[_mark_p] = _refuse_derivative


# ---- the walk ---------------------------------------------------------------------------------------------


class _Walk:
    """Follows leaves through a program, and notes where they enter operations."""

    def __init__(self, where: str, leaves: list[_Leaf], calls: list[_Called]) -> None:
        self.where, self.leaves, self.calls = where, leaves, calls
        self.counted: dict[int, bool] = {}
        self.entered = collections.Counter[int]()
        self.scopes = 0

    def run(self, jaxpr: Any, values: Sequence[Any], scope: tuple[int, ...]) -> list[Any]:
        """What the results of a program are, given what its inputs are."""
        known = dict(zip(jaxpr.invars, values, strict=True))
        get = lambda v: None if isinstance(v, jex.Literal) else known.get(v)
        for eqn in jaxpr.eqns:
            results = self.equation(eqn, [get(v) for v in eqn.invars], scope)
            known.update(zip(eqn.outvars, results, strict=True))
        return [get(v) for v in jaxpr.outvars]

    def equation(self, eqn: Any, given: list[Any], scope: tuple[int, ...]) -> list[Any]:
        name, outs = eqn.primitive.name, eqn.outvars
        if eqn.primitive is _mark_p:
            parameters = eqn.params["parameters"]
            entered = self.enter(eqn.params["call"], given[:parameters], scope)
            return [*entered, *given[parameters:]]  # a leaf among the others is met again, inside
        if name in CALLS and name not in _CUSTOM:
            inner = eqn.params[CALLS[name]]
            return self.run(getattr(inner, "jaxpr", inner), given, self.inner(scope))
        if name == "scan":
            return self.scan(eqn, given, scope)
        if name == "cond":
            return self.cond(eqn, given, scope)
        depends = any(value is not None for value in given)
        if depends and any(map(_has_marks, eqn.params.values())):
            raise self.refused(f"operations with parameters are called inside of {name}", "loss", name)
        if not any(isinstance(value, _Piece) for value in given):
            return [_DEPENDS if depends else None] * len(outs)
        if name == "stop_gradient" or not any(jnp.issubdtype(v.aval.dtype, jnp.inexact) for v in outs):
            return [None] * len(outs)
        if isinstance(given[0], _Piece) and all(value is None for value in given[1:]):
            moved = _moved(name, eqn, given[0])
            if moved is not None:
                return moved
        leaf = self.leaves[next(value for value in given if isinstance(value, _Piece)).leaf].name
        raise self.refused(
            f"{leaf} is used outside of an operation that counts its gradient",
            leaf,
            f"{name} of it, at {place(eqn)}",
            "call an operation with it, as linear.apply or embedding.add; or mark the function that uses it: "
            "funcnet.rules.part.",
        )

    def enter(self, call: int, given: list[Any], scope: tuple[int, ...]) -> list[Any]:
        """Parameters enter an operation."""
        yes = all(isinstance(value, _Piece) for value in given) and bool(given)
        if not yes and any(value is not None for value in given):
            raise self.refused(
                f"{self.calls[call].name} is called with parameters that are computed, or in part",
                "loss",
                "parameters that were computed from leaves, or leaves beside constants",
                expected="leaves of params as they are, cast, transposed or a part of a stack; or constants",
            )
        if self.counted.setdefault(call, yes) != yes:
            raise self.refused(
                f"{self.calls[call].name} is traced once and called with leaves and with constants",
                "loss",
                "one jax.jit function for both",
            )
        self.entered[call] += 1
        for piece in given if yes else ():
            self.leaves[piece.leaf].uses.append(_Use(piece, call, scope))
        return [_DEPENDS if yes else None] * len(given)

    def scan(self, eqn: Any, given: list[Any], scope: tuple[int, ...]) -> list[Any]:
        consts, carried = parts_of_scan(eqn)
        length, inner = eqn.params["length"], self.inner(scope)
        for value, var in zip(given[consts : consts + carried], eqn.invars[consts:], strict=False):
            if isinstance(value, _Piece) and jnp.issubdtype(var.aval.dtype, jnp.inexact):
                leaf = self.leaves[value.leaf].name
                raise self.refused(f"{leaf} is carried by a loop", leaf, f"jax.lax.scan, at {place(eqn)}")
        nested = [self.nested(v) for v in given[:consts]]
        slices = [self.nested(v, max(length, 1)) for v in given[consts + carried :]]
        values = [*nested, *[_DEPENDS] * carried, *slices]
        self.run(eqn.params["jaxpr"].jaxpr, values, inner)
        self.leave(given[:consts], nested, scope, times=length)
        self.leave(given[consts + carried :], slices, scope)
        return [_DEPENDS] * len(eqn.outvars)

    def cond(self, eqn: Any, given: list[Any], scope: tuple[int, ...]) -> list[Any]:
        """Branches are alternatives: what each of them uses counts once."""
        used: dict[int, Any] = {}
        for branch in eqn.params["branches"]:
            nested = [self.nested(v) for v in given[1:]]
            self.run(branch.jaxpr, nested, self.inner(scope))
            used |= {i: v for i, v in enumerate(nested) if isinstance(v, _Piece) and self.leaves[v.leaf].uses}
            self.leave([], nested, scope)
        self.leave([given[1 + i] for i in used], list(used.values()), scope)
        return [_DEPENDS] * len(eqn.outvars)

    def inner(self, scope: tuple[int, ...]) -> tuple[int, ...]:
        self.scopes += 1
        return (*scope, self.scopes)

    def nested(self, value: Any, parts: int = 1) -> Any:
        """A part of a leaf as a leaf of its own, inside of a loop or a branch."""
        if not isinstance(value, _Piece):
            return value
        self.leaves.append(_Leaf(self.leaves[value.leaf].name, value.size // parts, []))
        order = value.order if parts == 1 or value.order == AS_IT_IS else MOVED
        return _Piece(len(self.leaves) - 1, 0, value.size // parts, order)

    def leave(
        self, outer: Sequence[Any], nested: Sequence[Any], scope: tuple[int, ...], times: int = 1
    ) -> None:
        """What was used inside was used outside: once, or once in each round."""
        for value in nested:
            if isinstance(value, _Piece):
                self.once(self.leaves[value.leaf])
        for piece, value in zip(outer, nested, strict=False):
            if isinstance(value, _Piece) and self.leaves[value.leaf].uses:
                self.leaves[piece.leaf].uses.extend([_Use(piece, None, scope)] * min(times, 2))

    def once(self, leaf: _Leaf, *, tie: bool = False) -> dict[int, int]:
        """Refuse parts that are used twice, unless they are a table and a head; those are returned."""
        uses = sorted(leaf.uses, key=lambda use: use.piece.start)
        if all(a.piece.start + a.piece.size <= b.piece.start for a, b in itertools.pairwise(uses)):
            return {}
        if tie and len(uses) == 2 and (pair := self.tied(leaf, leaf.uses)):
            return pair
        names = [self.calls[use.call].name if use.call is not None else "a loop" for use in leaf.uses]
        raise self.refused(
            f"{leaf.name} is used more than once, or in parts that may overlap",
            leaf.name,
            ", ".join(names),
            expected="one use of each element; or a whole table in embedding.apply, then, transposed, in "
            "linear.apply or linear_cross_entropy.apply",
        )

    def tied(self, leaf: _Leaf, uses: list[_Use]) -> dict[int, int]:
        table, head = uses
        if table.call is None or head.call is None or table.call >= head.call:
            return {}
        whole = all(use.piece.size == leaf.size for use in uses)
        orders = (table.piece.order, head.piece.order) == (AS_IT_IS, TRANSPOSED)
        formulas = self.calls[table.call].formula is embedding and hasattr(
            self.calls[head.call].formula, "rows"
        )
        seen = head.scope[: len(table.scope)] == table.scope  # what the table gives, the head can close over
        alone = self.entered[table.call] == self.entered[head.call] == 1
        return {head.call: table.call} if whole and orders and formulas and seen and alone else {}

    def refused(
        self, problem: str, path: str, actual: str, hint: str | None = None, *, expected: str | None = None
    ) -> StructureError:
        return StructureError(
            f"{self.where}: {problem}.",
            path=path,
            expected=expected or "every leaf in operations with parameters only, as it is, and once",
            actual=actual,
            hint=hint,
        )


def _has_marks(value: Any) -> bool:
    """Whether what an equation is given as a parameter holds a program with marks in it."""
    if isinstance(value, tuple | list):
        return any(map(_has_marks, value))
    jaxpr = getattr(value, "jaxpr", value)
    return any(
        eqn.primitive is _mark_p or any(map(_has_marks, eqn.params.values()))
        for eqn in getattr(jaxpr, "eqns", ())
    )


def _moved(name: str, eqn: Any, piece: _Piece) -> list[Any] | None:
    """The piece with its elements in another order, or parts of it; None: this primitive does more."""
    before, outs = eqn.invars[0].aval.shape, eqn.outvars
    if name in _SAME:
        return [piece] * len(outs)
    same_size = math.prod(outs[0].aval.shape) == math.prod(before)
    if name in ("reshape", "squeeze", "expand_dims") or (name == "broadcast_in_dim" and same_size):
        order = piece.order if piece.order == AS_IT_IS or outs[0].aval.shape == before else MOVED
        return [piece._replace(order=order)]
    if name == "transpose":
        turned = {AS_IT_IS: TRANSPOSED, TRANSPOSED: AS_IT_IS, MOVED: MOVED}
        ordered = [axis for axis in eqn.params["permutation"] if before[axis] != 1]
        if ordered == sorted(ordered):
            return [piece]
        return [piece._replace(order=turned[piece.order] if len(before) == 2 else MOVED)]
    if name == "split" and eqn.params["axis"] == 0:
        sizes = eqn.params["sizes"]
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        return [_rows(piece, before, at, size) for at, size in zip(starts, sizes, strict=True)]
    if name == "slice":
        first, last = eqn.params["start_indices"], eqn.params["limit_indices"]
        rest = all(a == 0 and b == n for a, b, n in zip(first[1:], last[1:], before[1:], strict=True))
        if rest and before and set(eqn.params["strides"] or {1}) == {1}:
            return [_rows(piece, before, first[0], last[0] - first[0])]
    if name == "unstack" and eqn.params["axis"] == 0:
        return [_rows(piece, before, at, 1) for at in range(before[0])]
    if name in ("split", "slice", "dynamic_slice", "unstack"):
        return [piece._replace(order=MOVED)] * len(outs)
    return None


def _rows(piece: _Piece, shape: tuple[int, ...], start: int, size: int) -> _Piece:
    """Some of the rows of a value; where these are not neighbours in the leaf, all of it stands for them."""
    if piece.order != AS_IT_IS or math.prod(shape) != piece.size:
        return piece._replace(order=MOVED)
    row = math.prod(shape[1:])
    return _Piece(piece.leaf, piece.start + start * row, size * row)
