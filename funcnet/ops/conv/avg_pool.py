"""Average pooling: y[n, o, c] = mean_k x[n, o·stride + k·dilation − low, c], the mean of each window.

Dimensions: *n any leading axes (batch), o and k positions along 1 to 3 spatial axes, c channels:
x [*n, *size, c], y [*n, *out, c]. Padding is not averaged: at the border a window divides by the number of
elements that it truly has. Sums are in float32 or wider.
Source: LeCun et al., "Gradient-based learning applied to document recognition", 1998.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float

from funcnet import rules
from funcnet.errors import ShapeError
from funcnet.ops import _check
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._dtype import narrow, wide
from funcnet.ops.conv import _pool
from funcnet.ops.conv._pool import Axis
from funcnet.ops.conv._window import Padding

__all__ = ["apply", "cost", "matrix", "reference", "vjp"]


def reference(
    x: Float[Array, "*n_and_size c"],
    *,
    kernel: Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: Padding = "valid",
    dilation: int | Sequence[int] = 1,
) -> Float[Array, "*n_and_out c"]:
    """The sum of each window over the number of its true elements."""
    axes = _pool.axes("avg_pool.reference", x, kernel, stride, padding, dilation)
    h = x.astype(wide(x.dtype))
    return (_pool.windows(h, axes, 0.0).sum(-1) / _pool.windows(jnp.ones_like(h), axes, 0.0).sum(-1)).astype(
        x.dtype
    )


@rules.operation
def apply(
    x: Float[Array, "*n_and_size c"],
    *,
    kernel: Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: Padding = "valid",
    dilation: int | Sequence[int] = 1,
) -> Float[Array, "*n_and_out c"]:
    """Average each window, channel by channel.

    One axis after the other, which is several times as fast as one sum over the box. JAX's own derivative
    of this is the formula of `vjp`, so nothing is attached to it.

    Args:
        x: [*n, *size, c], channels last.
        kernel: the window, one size per spatial axis; its length says how many of them x has.
        stride: step between windows, an int or one per spatial axis; None is the kernel.
        padding: "valid" (none), "same" (⌈size / stride⌉ windows, as XLA pads), "causal" (all at the start),
            or one (low, high) pair per spatial axis; a larger high end has the windows of `ceil_mode`.
        dilation: step between the elements of a window, an int or one per spatial axis.

    Returns:
        y [*n, *out, c], in the dtype of x.

    Raises:
        ShapeError: x has too few axes, or an option the wrong number of entries.
        DTypeError: x is not floating-point, or kernel not a tuple.
        ValueRangeError: an option is out of range, or a window sees nothing but padding.

    >>> x = jnp.arange(6.0)[:, None]  # [size, c]
    >>> fn.avg_pool.apply(x, kernel=(2,)).ravel().tolist()
    [0.5, 2.5, 4.5]
    """
    x = _check.floating("avg_pool.apply", "x", x)
    return _forward(x, _pool.axes("avg_pool.apply", x, kernel, stride, padding, dilation))


def vjp(
    x: Float[Array, "*n_and_size c"],
    *,
    kernel: Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: Padding = "valid",
    dilation: int | Sequence[int] = 1,
) -> tuple[Float[Array, "*n_and_out c"], Partial]:
    """y and its pullback: dx[p] = Σ dy[o] / count[o] over the windows o that see p. No residuals."""
    axes = _pool.axes("avg_pool.vjp", x, kernel, stride, padding, dilation)
    return _forward(x, axes), Partial(rules.bind(_pullback, axes=axes))


def _forward(x: Array, axes: tuple[Axis, ...]) -> Array:
    y = x.astype(wide(x.dtype))
    for axis in axes:
        y = _pool.slide(y, axis, lax.add, 0.0) / _count(axis, y)
    return y.astype(x.dtype)


def _pullback(dy: Array, *, axes: tuple[Axis, ...]) -> tuple[Array]:
    dx = dy.astype(wide(dy.dtype))
    for axis in axes:
        share = _pool.edges(dx / _count(axis, dx), axis, 0, 0, 0.0, between=axis.stride - 1)
        last = (axis.out - 1) * axis.stride + 1
        # The windows that see p begin at p and at the kernel − 1 places before it, `dilation` apart.
        before, after = (axis.kernel - 1) * axis.dilation - axis.low, axis.size + axis.low - last
        seen = Axis(axis.at, last, axis.kernel, 1, before, after, axis.dilation)
        dx = _pool.slide(share, seen, lax.add, 0.0)
    return (narrow(dx, dy),)


def matrix(
    in_shape: tuple[int, ...],
    *,
    kernel: Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: Padding = "valid",
    dilation: int | Sequence[int] = 1,
) -> Float[Array, "out in"]:
    """The map x → y as a matrix [Π out · c, Π size · c], for one x of shape (*size, c).

    It is the Kronecker product of one factor A [out, size] per spatial axis, A[o, p] = 1 / count[o] where
    window o sees p, and of the identity of the channels.
    """
    in_shape = _check.integers("avg_pool.matrix", "in_shape", in_shape, least=0)
    x = jax.ShapeDtypeStruct(in_shape, jnp.float32)
    axes = _pool.axes("avg_pool.matrix", x, kernel, stride, padding, dilation)
    if len(in_shape) != len(axes) + 1:
        raise ShapeError(
            f"avg_pool.matrix: in_shape has {len(in_shape)} entries, but kernel has {len(axes)}.",
            path="in_shape",
            expected=f"(*size, c), {len(axes) + 1} entries: one example, without batch axes",
            actual=f"in_shape = {tuple(in_shape)}",
        )
    factors = []
    for axis in axes:
        behind = np.arange(axis.size) - axis.begins[:, None]
        seen = (behind >= 0) & (behind % axis.dilation == 0) & (behind < axis.kernel * axis.dilation)
        factors.append(seen / seen.sum(1, keepdims=True))
    return jnp.asarray(functools.reduce(np.kron, [*factors, np.eye(in_shape[-1])]))


def cost(
    x: Float[Abstract, "*n_and_size c"],
    *,
    kernel: Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: Padding = "valid",
    dilation: int | Sequence[int] = 1,
) -> Cost:
    """No products: 0 flops, and the bytes of x and y."""
    return Cost(0, traffic(reference, x, kernel=kernel, stride=stride, padding=padding, dilation=dilation))


def _count(axis: Axis, x: Array) -> Any:
    """The number of true elements of each window along one axis, shaped and typed like x."""
    if axis.low == axis.high == 0:
        return float(axis.kernel)
    return axis.column(_pool.number(axis).astype(x.dtype), x.ndim)
