"""Lp pooling: y[n, o, c] = (Σ_k |x[n, o·stride + k·dilation − low, c]|^p)^{1/p}, the p-norm of each window.

Dimensions: *n any leading axes (batch), o and k positions along 1 to 3 spatial axes, c channels:
x [*n, *size, c], y [*n, *out, c]. Padding adds nothing; p = 1 is the sum of absolute values, p = 2 the
Euclidean norm. Sums are in float32 or wider, of elements over the largest of their window: what can be
written as a number has a norm.
Source: Sermanet, Chintala and LeCun, "Convolutional neural networks applied to house numbers ...", 2012.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float

from funcnet import rules
from funcnet.ops import _check
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._dtype import narrow, wide
from funcnet.ops.conv import _pool
from funcnet.ops.conv._pool import Axis
from funcnet.ops.conv._window import Padding

__all__ = ["apply", "cost", "reference", "vjp"]


def reference(
    x: Float[Array, "*n_and_size c"],
    p: float = 2.0,
    *,
    kernel: Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: Padding = "valid",
    dilation: int | Sequence[int] = 1,
) -> Float[Array, "*n_and_out c"]:
    """(Σ |x|^p)^{1/p} of each window, and 0 of zeros, as it is written."""
    axes = _pool.axes("lp_pool.reference", x, kernel, stride, padding, dilation)
    seen = _pool.windows(x.astype(wide(x.dtype)), axes, 0.0)
    total = jnp.where(seen != 0, jnp.abs(jnp.where(seen != 0, seen, 1)) ** p, 0).sum(-1)
    some = total > 0
    return jnp.where(some, jnp.where(some, total, 1) ** (1 / p), 0).astype(x.dtype)


@rules.operation
def apply(
    x: Float[Array, "*n_and_size c"],
    p: float = 2.0,
    *,
    kernel: Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: Padding = "valid",
    dilation: int | Sequence[int] = 1,
) -> Float[Array, "*n_and_out c"]:
    """Take the p-norm of each window, channel by channel.

    Differentiated by `vjp`, since JAX's own derivative of the root of zeros is NaN.

    Args:
        x: [*n, *size, c], channels last.
        p: at least 1, finite; static.
        kernel: the window, one size per spatial axis; its length says how many of them x has.
        stride: step between windows, an int or one per spatial axis; None is the kernel.
        padding: "valid" (none), "same" (⌈size / stride⌉ windows, as XLA pads), "causal" (all at the start),
            or one (low, high) pair per spatial axis; a larger high end has the windows of `ceil_mode`.
        dilation: step between the elements of a window, an int or one per spatial axis.

    Returns:
        y [*n, *out, c], in the dtype of x. Its derivative in an element that is 0 is 0.

    Raises:
        ShapeError: x has too few axes, or an option the wrong number of entries.
        DTypeError: x is not floating-point, p is traced, or kernel not a tuple.
        ValueRangeError: an option is out of range, or a window sees nothing but padding.

    >>> x = jnp.array([3.0, 4.0, 5.0, 12.0])[:, None]
    >>> print(fn.lp_pool.apply(x, kernel=(2,)).ravel())
    [ 5. 13.]
    """
    x = _check.floating("lp_pool.apply", "x", x)
    p = _check.number("lp_pool.apply", "p", p, least=1.0)
    _pool.axes("lp_pool.apply", x, kernel, stride, padding, dilation)
    return rules.call(vjp, x, p=p, kernel=kernel, stride=stride, padding=padding, dilation=dilation)


def vjp(
    x: Float[Array, "*n_and_size c"],
    p: float = 2.0,
    *,
    kernel: Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: Padding = "valid",
    dilation: int | Sequence[int] = 1,
) -> tuple[Float[Array, "*n_and_out c"], Partial]:
    """y and its pullback: dx[i] = Σ_o sign(x_i) (|x_i| / y[o])^{p−1} dy[o] over the windows o that see i.

    One axis after the other: the norm of a box is that of the norms of its rows. Kept are the norms before
    each axis and after the last.
    """
    axes = _pool.axes("lp_pool.vjp", x, kernel, stride, padding, dilation)
    norms = [x.astype(wide(x.dtype))]
    for axis in axes:
        norms.append(_norm(norms[-1], axis, p))
    return norms[-1].astype(x.dtype), Partial(rules.bind(_pullback, axes=axes, p=p), x, norms[1:])


def _pullback(x: Array, norms: list[Array], dy: Array, *, axes: tuple[Axis, ...], p: float) -> tuple[Array]:
    g = dy.astype(wide(x.dtype))
    for axis, before, y in zip(axes[::-1], [*norms[-2::-1], x.astype(g.dtype)], norms[::-1], strict=True):
        g = _give_back(before, y, g, axis, p)
    return (narrow(g, x),)


def cost(
    x: Float[Abstract, "*n_and_size c"],
    p: float = 2.0,
    *,
    kernel: Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: Padding = "valid",
    dilation: int | Sequence[int] = 1,
) -> Cost:
    """No products: 0 flops, and the bytes of x and y."""
    options = {"p": p, "kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    return Cost(0, traffic(reference, x, **options))


# ---- one axis: the taps of all windows, one by one --------------------------------------------------------


def _tap(x: Array, axis: Axis, k: int) -> Array:
    """The k-th element of every window."""
    last, begin = (axis.out - 1) * axis.stride + 1, k * axis.dilation - axis.low
    padded = _pool.edges(x, axis, -begin, begin + last - axis.size, 0.0)
    return lax.slice_in_dim(padded, 0, last, axis.stride, axis.at % x.ndim)


def _norm(x: Array, axis: Axis, p: float) -> Array:
    if axis.out == 0:
        return _pool.slide(x, axis, lax.add, 0.0)
    taps = [_tap(x, axis, k) for k in range(axis.kernel)]
    largest = _pool.slide(lax.stop_gradient(jnp.abs(x)), axis, lax.max, 0.0)
    scale = jnp.where((largest > 0) & (largest < jnp.inf), largest, 1)
    total = sum(jnp.where(tap != 0, (jnp.abs(jnp.where(tap != 0, tap, 1)) / scale) ** p, 0) for tap in taps)
    some = total > 0
    return jnp.where(some, scale * jnp.where(some, total, 1) ** (1 / p), 0)


def _give_back(x: Array, y: Array, dy: Array, axis: Axis, p: float) -> Array:
    """dx[i] = Σ sign(x_i) (|x_i| / y)^{p−1} dy over the windows that see i."""
    some, dx = y > 0, jnp.zeros_like(x)
    y = jnp.where(some, y, 1)
    for k in range(axis.kernel if axis.out else 0):
        tap = _tap(x, axis, k)
        seen = some & (tap != 0)
        ratio = jnp.where(seen, jnp.abs(jnp.where(seen, tap, 1)) / y, 1)
        share = jnp.where(seen, jnp.sign(tap) * ratio ** (p - 1) * dy, 0)
        last, begin = (axis.out - 1) * axis.stride + 1, k * axis.dilation - axis.low
        ends = begin, axis.size - begin - last
        dx = dx + _pool.edges(share, axis, *ends, 0.0, between=axis.stride - 1)
    return dx
