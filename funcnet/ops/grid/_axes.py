"""Linear maps of a grid that are one small matrix per axis: y = (A₁ ⊗ ... ⊗ A_d ⊗ I_c) x.

Row o of a matrix is kept as its `Taps`: Σ_k weight[o, k] · x[index[o, k]]. So the product is a gather and a
sum, never one with zeros, and what a row does not see, be it NaN, does not reach it. Its transpose is such a
matrix, too. Apply, adjoint, operator and cost of `resize`, `pad` and `adaptive_avg_pool` come from here.
"""

import functools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array

from funcnet import rules
from funcnet.errors import ShapeError, describe
from funcnet.linalg import Operator
from funcnet.ops import _check
from funcnet.ops._dtype import narrow, wide
from funcnet.ops._shape import known

__all__ = [
    "Axis",
    "Taps",
    "adjoint",
    "along",
    "elements",
    "entries",
    "example",
    "flops",
    "forward",
    "matrix",
    "operator",
    "reference",
    "spatial",
    "taken",
    "transposed",
    "xp",
]


class Taps(NamedTuple):
    """Where each output of one axis looks, and how much it takes from there."""

    index: Any  # int [out, k], inside the axis also where the weight is 0
    weight: Any = None  # float [out, k]; None: all are 1
    tiles: bool = False  # index is 0, 1 ... size − 1 in order: a reshape, no gather


class Axis(NamedTuple):
    """One spatial axis: ``rule(size, out, *options)`` gives its taps."""

    at: int  # counted from the end: the channel axis is -1
    size: Any
    out: Any
    rule: Callable[..., Taps]
    options: tuple[Hashable, ...] = ()

    @property
    def taps(self) -> Taps:
        """NumPy's arrays where the size is known."""
        return _taps(self) if known(self.size, self.out) else self.rule(self.size, self.out, *self.options)


@functools.lru_cache(maxsize=256)
def _taps(axis: Axis) -> Taps:
    return axis.rule(axis.size, axis.out, *axis.options)


@functools.lru_cache(maxsize=256)
def transposed(axis: Axis) -> Taps | None:
    """The taps of the transposed matrix, or None where its rows are too uneven to be kept side by side."""
    index, weight, tiles = axis.taps
    if tiles:
        k = index.shape[1]
        return Taps(
            np.repeat(np.arange(axis.out), k)[:, None], None if weight is None else weight.reshape(-1, 1)
        )
    of = np.broadcast_to(np.arange(axis.out)[:, None], index.shape)
    seen = np.ones(index.shape, bool) if weight is None else weight != 0
    columns, rows = index[seen], of[seen]
    counts = np.bincount(columns, minlength=axis.size)
    k = int(counts.max(initial=0))
    if k * axis.size > 4 * (columns.size + axis.size):
        return None
    order = np.argsort(columns, kind="stable")
    place = np.arange(columns.size) - np.repeat(np.cumsum(counts) - counts, counts)
    back, shares = np.zeros((axis.size, max(k, 1)), np.int32), np.zeros((axis.size, max(k, 1)))
    back[columns[order], place] = rows[order]
    shares[columns[order], place] = 1.0 if weight is None else weight[seen][order]
    return Taps(back, None if weight is None and (counts == back.shape[1]).all() else shares)


def xp(*sizes: Any) -> Any:
    """NumPy, or where a size is a symbol jax.numpy."""
    return np if known(*sizes) else jnp


# ---- the products -----------------------------------------------------------------------------------------


def forward(x: Array, axes: tuple[Axis, ...]) -> Array:
    """y [*n, *out, c] of x [*n, *size, c], summed in float32 or wider."""
    h = x.astype(wide(x.dtype))
    for axis in axes:
        h = _product(h, axis.at, axis.taps)
    return narrow(h, x)


def adjoint(dy: Array, axes: tuple[Axis, ...]) -> Array:
    """dx [*n, *size, c] of dy [*n, *out, c]: by the transposed matrix of each axis."""
    h = dy.astype(wide(dy.dtype))
    for axis in axes:
        back = transposed(axis) if known(axis.size, axis.out) else None
        h = _scattered(h, axis) if back is None else _product(h, axis.at, back)
    return narrow(h, dy)


def taken(x: Array, at: int, taps: Taps) -> Array:
    """x at every tap: its axis `at` becomes the two axes [out, k]."""
    at = at % x.ndim
    if taps.tiles:
        return x.reshape(*x.shape[:at], *taps.index.shape, *x.shape[at + 1 :])
    return jnp.take(x, jnp.asarray(taps.index), axis=at, mode="clip")


def _product(x: Array, at: int, taps: Taps) -> Array:
    seen, at = taken(x, at, taps), at % x.ndim
    if taps.weight is not None:
        weight = along(taps.weight, seen, at)
        if not isinstance(taps.weight, np.ndarray) or not taps.weight.all():
            seen = jnp.where(weight != 0, seen, 0)  # 0 · NaN is NaN
        seen = seen * weight
    return seen.squeeze(at + 1) if seen.shape[at + 1] == 1 else seen.sum(at + 1)


def along(weight: Any, seen: Array, at: int) -> Array:
    """The weights [out, k] along the axes at and at + 1."""
    weight = jnp.asarray(weight).astype(seen.dtype)
    return weight.reshape(*[1] * at, *weight.shape, *[1] * (seen.ndim - at - 2))


def _scattered(dy: Array, axis: Axis) -> Array:
    """As the product with the transposed matrix, added up where the taps point."""
    taps, at = axis.taps, axis.at % dy.ndim
    share = jnp.expand_dims(dy, at + 1)
    if taps.weight is not None:
        weight = along(taps.weight, share, at)
        share = jnp.where(weight != 0, share * weight, 0)
    else:
        share = jnp.broadcast_to(share, (*dy.shape[: at + 1], taps.index.shape[1], *dy.shape[at + 1 :]))
    if taps.tiles:
        return share.reshape(*dy.shape[:at], axis.size, *dy.shape[at + 1 :])
    zeros = rules.same_variance(jnp.zeros((*dy.shape[:at], axis.size, *dy.shape[at + 1 :]), dy.dtype), dy)[0]
    return zeros.at[(slice(None),) * at + (jnp.asarray(taps.index),)].add(share)


def reference(x: Array, axes: tuple[Axis, ...]) -> Array:
    """y[o] = Σ_k weight[o, k] · x[index[o, k]], one axis after the other, as it is written."""
    h = x.astype(wide(x.dtype))
    for axis in axes:
        index, weight, _ = axis.taps
        h = jnp.moveaxis(h, axis.at, -1)[..., jnp.asarray(index)]
        h = h[..., 0] if weight is None else jnp.einsum("...ok,ok->...o", h, jnp.asarray(weight, h.dtype))
        h = jnp.moveaxis(h, -1, axis.at)
    return narrow(h, x)


def flops(shape: Sequence[int], axes: tuple[Axis, ...]) -> int:
    """2 · the multiply-adds for an x of this shape: one per output, tap and axis, where there are weights."""
    sizes, total = list(shape), 0
    for axis in axes:
        sizes[axis.at] = axis.out
        if axis.taps.weight is not None:
            total += 2 * math.prod(sizes) * axis.taps.index.shape[1]
    return total


# ---- the matrix -------------------------------------------------------------------------------------------


def matrix(axes: tuple[Axis, ...], c: int) -> Array:
    """A₁ ⊗ ... ⊗ A_d ⊗ I_c, [Π out · c, Π size · c], dense, in C order."""
    return jnp.asarray(functools.reduce(np.kron, [*map(_factor, axes), np.eye(c)]))


def _factor(axis: Axis) -> np.ndarray:
    index, weight, _ = axis.taps
    dense = np.zeros((axis.out, axis.size))
    np.add.at(dense, (np.arange(axis.out)[:, None], index), 1.0 if weight is None else weight)
    return dense


def operator(axes: tuple[Axis, ...], c: int) -> Operator:
    """The same as an operator, whose every product goes axis by axis."""
    bound = lambda function: Partial(rules.bind(function, axes=axes, c=c))
    return Operator(
        bound(_forward_rows),
        bound(_back_rows),
        bound(_dense),
        None,
        None,
        None,
        bound(_absolute_sums),
        (math.prod(axis.out for axis in axes) * c, math.prod(axis.size for axis in axes) * c),
        jnp.zeros(()).dtype.name,
    )


def _forward_rows(x: Array, *, axes: tuple[Axis, ...], c: int) -> Array:
    return forward(x.reshape(-1, *(axis.size for axis in axes), c), axes).reshape(x.shape[0], -1)


def _back_rows(y: Array, *, axes: tuple[Axis, ...], c: int) -> Array:
    return adjoint(y.reshape(-1, *(axis.out for axis in axes), c), axes).reshape(y.shape[0], -1)


def _dense(*, axes: tuple[Axis, ...], c: int) -> Array:
    return matrix(axes, c)


def _absolute_sums(*, axes: tuple[Axis, ...], c: int) -> tuple[Array, Array]:
    """The largest Σ |A| over a column and over a row: of a Kronecker product, the product of the factors'."""
    del c
    sums = [[np.abs(_factor(axis)).sum(i).max() for axis in axes] for i in (0, 1)]
    return jnp.asarray(math.prod(sums[0])), jnp.asarray(math.prod(sums[1]))


# ---- checks -----------------------------------------------------------------------------------------------


def spatial(where: str, x: jax.Array | jax.ShapeDtypeStruct, d: int) -> tuple[Any, ...]:
    """The sizes of the d spatial axes of x [*n, *size, c]."""
    _check.rank(where, "x", x, d + 1, "*n, " + ", ".join("dhw"[-d:]) + ", c")
    return tuple(x.shape[-d - 1 : -1])


def entries(where: str, name: str, value: Any, *, least: int = 1) -> tuple[int, ...]:
    """`value`, one int per spatial axis, 1 to 3 of them: how many says how many there are."""
    found = _check.integers(where, name, value, least=least, like="one int per spatial axis")
    if not 1 <= len(found) <= 3:
        raise ShapeError(
            f"{where}: {name} has {len(found)} entries.",
            path=name,
            expected=f"{name}: 1, 2 or 3 ints, one per spatial axis",
            actual=f"{name} = {found}",
        )
    return found


def example(where: str, in_shape: Any, d: int, name: str) -> jax.ShapeDtypeStruct:
    """One x of shape `in_shape`, (*size, c), without its batch; `name` is the option with d entries."""
    shape = _check.integers(where, "in_shape", in_shape, least=0, like=f"({', '.join('dhw'[-d:])}, c)")
    if len(shape) != d + 1:
        raise ShapeError(
            f"{where}: in_shape has {len(shape)} entries, but {name} has {d}.",
            path="in_shape",
            expected=f"(*size, c), {d + 1} entries: one example, without batch axes",
            actual=f"in_shape = {shape}",
        )
    return jax.ShapeDtypeStruct(shape, jnp.zeros(()).dtype)


def elements(where: str, x: jax.Array | jax.ShapeDtypeStruct, sizes: Sequence[Any]) -> None:
    """Every spatial axis of x has an element to look at."""
    if any(known(size) and size == 0 for size in sizes):
        raise ShapeError(
            f"{where}: x has no elements along a spatial axis.",
            path="x",
            expected="at least one along each spatial axis",
            actual=f"x: {describe(x)}",
        )
