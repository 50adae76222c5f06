"""Which leaf of any net is which matrix, read off its program: for nets that have no specs of their own.

Nothing is computed. The program is traced, and each leaf followed through it: the axes that a product sums
over are "i", those that it keeps "o", those of a batch of products or of a loop over layers "s"; a gather
picks rows of a table; what is only added or multiplied element by element is no matrix.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex

from funcnet import rules
from funcnet._programs import CALLS, parts_of_scan
from funcnet.errors import StructureError
from funcnet.spec import Spec

__all__ = ["matrices"]


class _Piece(NamedTuple):
    """A part of an axis of a leaf: a reshape may split the axis, as into heads and their width."""

    axis: int
    stride: int
    size: int


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """A value that is a leaf, with its axes in another order or shape.

    Attributes:
        number: of the leaf.
        axes: for each axis of the value the pieces of the leaf's axes that it runs over.
        stack: the pieces that a loop or an index has taken one of.
    """

    number: int
    axes: tuple[tuple[_Piece, ...], ...]
    stack: frozenset[_Piece] = frozenset()


class _Product(NamedTuple):
    """One use of a leaf in a product: its pieces by role."""

    s: frozenset[_Piece]
    i: frozenset[_Piece]
    o: frozenset[_Piece]


_DATA = (
    object()
)  # a value that depends on the data; None: one that depends on neither data nor a leaf's place
_ELEMENTWISE = "elementwise"

# What a leaf may go through and stay the matrix that it is, as long as no data come in.
_SAME = {
    "convert_element_type",
    "copy",
    "copy_p",
    "optimization_barrier",
    "name",
    "sharding_constraint",
    "stop_gradient",
}
_OVER_ELEMENTS = {
    "add", "add_any", "sub", "mul", "div", "max", "min", "neg", "sign", "abs", "exp", "exp2", "log", "log1p",
    "expm1", "tanh", "logistic", "sqrt", "rsqrt", "cbrt", "square", "integer_pow", "pow", "select_n", "sin",
    "cos", "erf", "erfc", "erf_inv", "clamp", "round", "floor", "ceil", "and", "or", "not", "eq", "ne", "ge",
    "gt", "le", "lt", "is_finite", "real", "reduce_precision",
}  # fmt: skip


def matrices(
    f: Callable[..., Any], params: Any, *args: Any, known: Mapping[str, str | None] | None = None
) -> Any:
    """The specs of params, by how ``f(params, *args)`` uses them.

    Args:
        f: a net, or its loss.
        params: arrays or `jax.ShapeDtypeStruct`.
        args: its further arguments, likewise; the values do not matter.
        known: for leaves by path ("blocks.up.w") what cannot be told from the program: the letters of its
            axes, as in `Spec.matrix`, "table", or None.

    Returns:
        A tree like params, of `spec.Spec`; the axes are numbered.

    Raises:
        StructureError: of some leaves it cannot be told; all of them are named, with the reason.

    >>> import funcnet as fn
    >>> params = {"w": jax.numpy.ones((3, 5)), "b": jax.numpy.ones(5)}
    >>> matrices(lambda p, x: x @ p["w"] + p["b"], params, jax.numpy.ones((2, 3)))["w"].matrix
    ((3, 5), 'io')
    """
    known = {} if known is None else known
    with rules.autodiff("jax"):  # the definitions, not the products that their rules are made of
        traced = jax.make_jaxpr(f)(params, *args)
    leaves, tree = jax.tree.flatten(params)
    walk = _Walk([set() for _ in leaves])
    inputs = [
        _Leaf(i, tuple((_Piece(axis, 1, size),) for axis, size in enumerate(leaf.shape)))
        for i, leaf in enumerate(leaves)
    ]
    rest = [_DATA] * (len(traced.jaxpr.invars) - len(inputs))
    walk.run(traced.jaxpr, [*inputs, *rest])
    specs, unclear = [], []
    for (path, leaf), uses in zip(jax.tree.leaves_with_path(params), walk.uses, strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        axes = tuple(f"{name}.{axis}" for axis in range(leaf.ndim))
        if name in known:
            roles = known[name]
            matrix = roles if roles is None or roles == "table" else (tuple(leaf.shape), roles)
        else:
            matrix = _matrix(leaf.shape, uses)
            if isinstance(matrix, str) and matrix != "table":
                unclear.append(f"{name}: {matrix}")
                continue
        specs.append(Spec(tuple(leaf.shape), leaf.dtype, axes, matrix))
    if lost := known.keys() - {axes.axes[0].rpartition(".")[0] for axes in specs if axes.axes}:
        unclear += [f"{name}: no leaf with axes has that path" for name in sorted(lost)]
    if unclear:
        raise StructureError(
            "nets.matrices: it cannot be told which matrices these leaves are.",
            path="params",
            expected="each multiplied in one way, picked from by rows, or used element by element",
            actual="; ".join(unclear),
            hint='say it: known={"' + unclear[0].partition(":")[0] + '": "io"}.',
        )
    return jax.tree.unflatten(tree, specs)


def _matrix(shape: tuple[int, ...], uses: set[Any]) -> Any:
    """What a leaf is by its uses: as `Spec.matrix`, or the reason why it cannot be told."""
    products = {use for use in uses if isinstance(use, _Product)}
    if reasons := sorted(use for use in uses if isinstance(use, str) and use not in ("table", _ELEMENTWISE)):
        return f"it goes through {', '.join(reasons)}"
    if "table" in uses:
        return "table"
    if not products:
        return None
    if _ELEMENTWISE in uses:
        return "it is multiplied as a matrix, and used element by element"
    if len(products) > 1:
        return "it is multiplied in several ways"
    roles = {piece: role for role, pieces in zip("sio", products.pop(), strict=True) for piece in pieces}
    parts, letters = [], ""
    for axis, size in enumerate(shape):
        pieces = sorted((p for p in roles if p.axis == axis), key=lambda p: -p.stride)
        if math.prod(piece.size for piece in pieces) != size:
            return f"of axis {axis} only a part is used"
        parts += [piece.size for piece in pieces] or [1]
        letters += "".join(roles[piece] for piece in pieces) or "s"
    return None if not {"i", "o"} <= set(letters) else (tuple(parts), letters)


class _Walk:
    """Follows leaves through a program, and notes their uses."""

    def __init__(self, uses: list[set[Any]]) -> None:
        self.uses = uses

    def run(self, jaxpr: Any, values: Sequence[Any]) -> list[Any]:
        """What the results of a program are, given what its inputs are."""
        known = dict(zip(jaxpr.invars, values, strict=True))
        get = lambda v: None if isinstance(v, jex.Literal) else known.get(v)
        for eqn in jaxpr.eqns:
            given = [get(v) for v in eqn.invars]
            if any(isinstance(value, _Leaf) for value in given):
                results = self._equation(eqn, given)
            else:
                results = [_DATA if any(value is _DATA for value in given) else None] * len(eqn.outvars)
            known.update(zip(eqn.outvars, results, strict=True))
        return [get(v) for v in jaxpr.outvars]

    def _equation(self, eqn: Any, given: list[Any]) -> list[Any]:
        name = eqn.primitive.name
        if name in CALLS:
            inner = eqn.params[CALLS[name]]
            return self.run(getattr(inner, "jaxpr", inner), given)
        if name in ("scan", "cond", "while"):
            return getattr(self, f"_{name}")(eqn, given)
        if name == "dot_general":
            return self._dot(eqn, given)
        if name == "conv_general_dilated":
            return self._conv(eqn, given)
        first = given[0]
        if name == "gather" and isinstance(first, _Leaf):
            table = len(first.axes) == 2
            if table:
                self.uses[first.number].add("table")
            else:
                self._unclear(first, "gather")
            return [_DATA]
        moved = None
        if isinstance(first, _Leaf) and not any(isinstance(value, _Leaf) for value in given[1:]):
            moved = _moved(name, eqn, first)
        if moved is not None:
            return moved
        if name in ("concatenate", "pad") and any(value is _DATA for value in given):
            for value in given:
                self._unclear(value, _ELEMENTWISE)  # laid beside data, as a class token is
            return [_DATA]
        if name in _OVER_ELEMENTS:
            return [self._over_elements(eqn, given)]
        if name.startswith("reduce_") and not any(value is _DATA for value in given):
            return [None] * len(eqn.outvars)
        for value in given:
            self._unclear(value, name)
        return [_DATA] * len(eqn.outvars)

    def _unclear(self, value: Any, reason: str) -> None:
        if isinstance(value, _Leaf):
            self.uses[value.number].add(reason)

    def _over_elements(self, eqn: Any, given: list[Any]) -> Any:
        """Beside data a leaf is a gain or a bias; beside numbers that are none it stays what it is."""
        data = any(value is _DATA for value in given)
        shape, stays = eqn.outvars[0].aval.shape, None
        for value, operand in zip(given, eqn.invars, strict=True):
            if not isinstance(value, _Leaf):
                continue
            if not data and stays is None and operand.aval.shape == shape and any(value.axes):
                stays = value
            elif data or stays is None or value.number != stays.number:
                self.uses[value.number].add(_ELEMENTWISE)
        return _DATA if data else stays

    def _dot(self, eqn: Any, given: list[Any]) -> list[Any]:
        contracted, batch = eqn.params["dimension_numbers"]
        for side in (0, 1):
            value = given[side]
            if not isinstance(value, _Leaf):
                continue
            if given[1 - side] is not _DATA:
                self._unclear(value, "a product with what is no data")
                continue
            pieces = lambda axes, value=value: frozenset(p for axis in axes for p in value.axes[axis])
            kept = [a for a in range(len(value.axes)) if a not in contracted[side] and a not in batch[side]]
            stack = pieces(batch[side]) | value.stack
            self.uses[value.number].add(_Product(stack, pieces(contracted[side]), pieces(kept)))
        return [_DATA]

    def _conv(self, eqn: Any, given: list[Any]) -> list[Any]:
        image, kernel = given[:2]
        self._unclear(image, "conv_general_dilated")
        if not isinstance(kernel, _Leaf):
            return [_DATA]
        if eqn.params["batch_group_count"] != 1 or image is not _DATA:
            self._unclear(kernel, "conv_general_dilated")
            return [_DATA]
        out, *summed = eqn.params["dimension_numbers"].rhs_spec
        groups, pieces = eqn.params["feature_group_count"], kernel.axes[out]
        split = _split(pieces, (groups, math.prod(p.size for p in pieces) // groups))
        if split is None:
            self._unclear(kernel, "conv_general_dilated")
            return [_DATA]
        of_groups, kept = map(frozenset, split)
        sums = frozenset(p for axis in summed for p in kernel.axes[axis])
        self.uses[kernel.number].add(_Product(of_groups | kernel.stack, sums, kept))
        return [_DATA]

    def _scan(self, eqn: Any, given: list[Any]) -> list[Any]:
        consts, carried = parts_of_scan(eqn)
        sliced = [_without_first(v) if isinstance(v, _Leaf) else v for v in given[consts + carried :]]
        carry = [_DATA if value is None else value for value in given[consts : consts + carried]]
        inner = eqn.params["jaxpr"].jaxpr
        results = self.run(inner, [*given[:consts], *carry, *sliced])
        return [_DATA if isinstance(v, _Leaf) and i >= carried else v for i, v in enumerate(results)]

    def _cond(self, eqn: Any, given: list[Any]) -> list[Any]:
        branches = [self.run(branch.jaxpr, given[1:]) for branch in eqn.params["branches"]]
        return [same[0] if len(set(map(id, same))) == 1 else _DATA for same in zip(*branches, strict=True)]

    def _while(self, eqn: Any, given: list[Any]) -> list[Any]:
        tests, consts = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        carry = [_DATA if value is None else value for value in given[tests + consts :]]
        self.run(eqn.params["cond_jaxpr"].jaxpr, [*given[:tests], *carry])
        return self.run(eqn.params["body_jaxpr"].jaxpr, [*given[tests : tests + consts], *carry])


def _moved(name: str, eqn: Any, value: _Leaf) -> list[Any] | None:
    """The leaf with its axes moved; None: this primitive does something else."""
    params, shape = eqn.params, eqn.outvars[0].aval.shape
    if name in _SAME:
        return [value] * len(eqn.outvars)
    if name == "transpose":
        return [dataclasses.replace(value, axes=tuple(value.axes[axis] for axis in params["permutation"]))]
    if name in ("reshape", "squeeze", "expand_dims"):
        laid_out = _split(tuple(piece for axis in value.axes for piece in axis), shape)
        return None if laid_out is None else [dataclasses.replace(value, axes=laid_out)]
    if name == "broadcast_in_dim":
        axes: list[tuple[_Piece, ...]] = [()] * len(shape)
        for axis, place in zip(value.axes, params["broadcast_dimensions"], strict=True):
            axes[place] = axis
        return [dataclasses.replace(value, axes=tuple(axes))]
    if name in ("slice", "dynamic_slice", "split"):
        before = eqn.invars[0].aval.shape
        return [_cut(value, before, out.aval.shape) for out in eqn.outvars]
    return None


def _cut(value: _Leaf, before: tuple[int, ...], after: tuple[int, ...]) -> _Leaf:
    """A part of a leaf. One of many along an axis is one of a stack; several are a part of the axis."""
    axes, stack = list(value.axes), value.stack
    for axis, (n, m) in enumerate(zip(before, after, strict=True)):
        if m == 1 < n:
            stack |= frozenset(axes[axis])
            axes[axis] = ()
    return dataclasses.replace(value, axes=tuple(axes), stack=stack)


def _without_first(value: _Leaf) -> _Leaf:
    """One step's part of what a loop runs over."""
    return dataclasses.replace(value, axes=value.axes[1:], stack=value.stack | frozenset(value.axes[0]))


def _split(pieces: tuple[_Piece, ...], shape: Sequence[int]) -> tuple[tuple[_Piece, ...], ...] | None:
    """The pieces laid out over axes of these sizes, some of them split; None if they do not fit."""
    left = [piece for piece in pieces if piece.size > 1]
    axes = []
    for size in shape:
        axis, rest = [], size
        while rest > 1:
            if not left:
                return None
            piece = left.pop(0)
            if rest % piece.size and piece.size % rest:
                return None
            if piece.size > rest:  # the outer part, of longer strides, comes first
                inner = piece.size // rest
                left.insert(0, _Piece(piece.axis, piece.stride, inner))
                piece = _Piece(piece.axis, piece.stride * inner, rest)
            axis.append(piece)
            rest //= piece.size
        axes.append(tuple(axis))
    return None if left else tuple(axes)
