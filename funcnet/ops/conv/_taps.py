"""The patches that a window sees, and their sum back: what `patches` and `fold` share.

Both are a convolution with the identity as its kernel, [*kernel, c, Π kernel · c], and its transpose: their
matrix and operator are those. They are computed by slices, since a product with zeros would let a NaN
through.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from funcnet.errors import ShapeError, describe
from funcnet.ops import _check
from funcnet.ops._dtype import narrow, wide
from funcnet.ops.conv._toeplitz import Map
from funcnet.ops.conv._window import Padding, Window, kernel_sizes, pads, per_axis

__all__ = ["as_convolution", "check_patches", "example", "gathered", "spatial", "summed", "window"]


def gathered(x: Array, window: Window) -> Array:
    """y [*n, *out, Π kernel · c] of x [*n, *size, c]: the taps in C order, of each its channels."""
    d = len(window.kernel)
    x = lax.pad(
        x,
        jnp.zeros((), x.dtype),
        [(0, 0, 0)] * (x.ndim - d - 1) + [(*p, 0) for p in window.padding] + [(0, 0, 0)],
    )
    y = jnp.stack([x[(..., *seen, slice(None))] for _, seen in window.taps], -2)
    return y.reshape(*y.shape[:-2], math.prod(window.kernel) * x.shape[-1])


def summed(y: Array, window: Window) -> Array:
    """x [*n, *size, c] of y [*n, *out, Π kernel · c]: every patch added where it lies."""
    d, k = len(window.kernel), math.prod(window.kernel)
    c = y.shape[-1] // k
    h = y.astype(wide(y.dtype)).reshape(*y.shape[:-1], k, c)
    lead = y.shape[: y.ndim - d - 1]
    if 0 in window.out:
        return jnp.zeros((*lead, *window.sizes, c), y.dtype)
    parts = []
    for i, (_, put) in enumerate(window.taps):
        rows = [
            (to.start - low, n + low - to.start - (o - 1) * s - 1, s - 1)
            for to, n, o, s, (low, _) in zip(
                put, window.sizes, window.out, window.stride, window.padding, strict=True
            )
        ]
        ends = [(0, 0, 0)] * len(lead) + rows + [(0, 0, 0)]
        parts.append(lax.pad(h[..., i, :], jnp.zeros((), h.dtype), ends))
    return narrow(functools.reduce(jnp.add, parts), y)


def window(
    where: str,
    sizes: Sequence[Any],
    kernel: Sequence[int],
    stride: int | Sequence[int],
    padding: Padding,
    dilation: int | Sequence[int],
) -> Window:
    """The window over a grid of `sizes`."""
    kernel, d = tuple(kernel), len(kernel)
    strides, dilations = per_axis(where, "stride", stride, d), per_axis(where, "dilation", dilation, d)
    pairs = pads(where, padding, sizes, kernel, strides, dilations)
    return Window(tuple(sizes), kernel, strides, dilations, pairs)


def spatial(
    where: str, x: jax.Array | jax.ShapeDtypeStruct, kernel: Sequence[int]
) -> tuple[tuple[int, ...], tuple[Any, ...]]:
    """`kernel` as a tuple, and the sizes of as many spatial axes of x."""
    kernel = kernel_sizes(where, kernel)
    d = len(kernel)
    _check.rank(where, "x", x, d + 1, "*n, " + ", ".join("dhw"[-d:]) + ", c")
    return kernel, tuple(x.shape[-d - 1 : -1])


def example(where: str, in_shape: Any, kernel: Sequence[int]) -> jax.ShapeDtypeStruct:
    """One x of shape `in_shape`, without its batch."""
    d = len(kernel_sizes(where, kernel))
    shape = _check.integers(where, "in_shape", in_shape, least=0, like=f"({', '.join('dhw'[-d:])}, c)")
    if len(shape) != d + 1:
        raise ShapeError(
            f"{where}: in_shape has {len(shape)} entries, but kernel has {d}.",
            path="in_shape",
            expected=f"(*size, c), {d + 1} entries: one example, without batch axes",
            actual=f"in_shape = {shape}",
        )
    return jax.ShapeDtypeStruct(shape, jnp.zeros(()).dtype)


def as_convolution(window: Window, c: int) -> tuple[Array, Map]:
    """The kernel and the window of the convolution that gives the patches."""
    k = math.prod(window.kernel)
    return jnp.asarray(np.eye(k * c)).reshape(*window.kernel, c, k * c), Map(window, 1, "zeros")


def check_patches(where: str, x: jax.Array | jax.ShapeDtypeStruct, window: Window) -> None:
    """x [*n, *out, Π kernel · c] is what a grid of the window's sizes gives."""
    k, d = math.prod(window.kernel), len(window.kernel)
    outs = tuple(x.shape[-d - 1 : -1])
    if x.shape[-1] % k:
        raise ShapeError(
            f"{where}: x has {x.shape[-1]} features in its last axis, which are no patches of {k} elements.",
            path="x",
            expected=f"a multiple of {k}     (kernel = {window.kernel})",
            actual=f"x: {describe(x)}",
        )
    if outs != window.out:
        raise ShapeError(
            f"{where}: size is {window.sizes}, but a grid of that has other patches than x.",
            path="size",
            expected=f"x: float[*n, {', '.join(map(str, window.out))}, {x.shape[-1]}]",
            actual=f"x: {describe(x)}",
        )
