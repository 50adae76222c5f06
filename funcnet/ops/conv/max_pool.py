"""Max pooling: y[n, o, c] = max_k x[n, o·stride + k·dilation − low, c], the largest element of each window.

Dimensions: *n any leading axes (batch), o and k positions along 1 to 3 spatial axes, c channels:
x [*n, *size, c], y [*n, *out, c]. Padding is never the maximum. Of equal elements the first in C order takes
the gradient; a window with a NaN gives NaN.
Source: Zhou and Chellappa, "Computation of optical flow using a neural network", 1988.
"""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
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
    *,
    kernel: Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: Padding = "valid",
    dilation: int | Sequence[int] = 1,
) -> Float[Array, "*n_and_out c"]:
    """Of each window, its elements in C order, the first true one (not padding) that equals the largest."""
    axes = _pool.axes("max_pool.reference", x, kernel, stride, padding, dilation)
    seen = _pool.windows(x, axes, -jnp.inf)
    true = _pool.windows(jnp.ones_like(x), axes, 0.0) > 0
    largest = (seen == seen.max(-1, keepdims=True)) | jnp.isnan(seen)
    first = jnp.argmax(true & largest, -1)
    return jnp.take_along_axis(seen, first[..., None], -1)[..., 0]


@rules.operation
def apply(
    x: Float[Array, "*n_and_size c"],
    *,
    kernel: Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: Padding = "valid",
    dilation: int | Sequence[int] = 1,
) -> Float[Array, "*n_and_out c"]:
    """Take the largest element of each window, channel by channel.

    Differentiated by `vjp`, which keeps one byte per window and axis, and compares; JAX's own rule keeps x
    and runs a select-and-scatter, which on CPU takes many times as long (`python -m benchmarks rules`).

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

    >>> x = jnp.array([3.0, 1.0, 4.0, 1.0])[:, None]
    >>> fn.max_pool.apply(x, kernel=(2,)).ravel().tolist()
    [3.0, 4.0]
    """
    x = _check.floating("max_pool.apply", "x", x)
    _pool.axes("max_pool.apply", x, kernel, stride, padding, dilation)
    return rules.call(vjp, x, kernel=kernel, stride=stride, padding=padding, dilation=dilation)


def vjp(
    x: Float[Array, "*n_and_size c"],
    *,
    kernel: Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: Padding = "valid",
    dilation: int | Sequence[int] = 1,
) -> tuple[Float[Array, "*n_and_out c"], Partial]:
    """y and its pullback: dx[p] = Σ dy[o] over the windows o whose first largest element is x[p].

    One axis after the other, the last first, so that of equal elements the first in C order is found. The
    residuals say, for each window along each axis, which of its elements was taken.
    """
    axes, taken = _pool.axes("max_pool.vjp", x, kernel, stride, padding, dilation), []
    for axis in reversed(axes):
        y = _pool.slide(x, axis, lax.max, -jnp.inf)
        taken.append(_first(x, y, axis))
        x = y
    return x, Partial(rules.bind(_pullback, axes=axes), taken[::-1])


def _pullback(taken: list[Array], dy: Array, *, axes: tuple[Axis, ...]) -> tuple[Array]:
    dx = dy.astype(wide(dy.dtype))
    for axis, k in zip(axes, taken, strict=True):
        dx = _give_back(k, dx, axis)
    return (narrow(dx, dy),)


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


# ---- one axis: a window is ⌈kernel / stride⌉ blocks of `stride` elements, the last one perhaps cut ---------
# (a dilated one is no row of blocks: its elements are taken one by one)


def _blocks(axis: Axis, ndim: int) -> list[np.ndarray]:
    """Block by block, the place k that each element has in its window, along this axis of `ndim`."""
    many = -(-axis.kernel // axis.stride)
    places = np.arange(many * axis.stride, dtype=np.min_scalar_type(many * axis.stride))
    return [axis.column(block, ndim) for block in places.reshape(many, axis.stride)]


def _first(x: Array, y: Array, axis: Axis) -> Array:
    """The place in its window of the first element that equals the largest, y."""
    # Padding equals y where y is −inf: the first true element is the one.
    true = -(-(-axis.begins).clip(min=0) // axis.dilation)
    if axis.dilation > 1:
        return jnp.maximum(_first_of_taps(x, y, axis), axis.column(true.astype("int32"), x.ndim))
    at, s = axis.at % x.ndim, axis.stride
    y = jnp.expand_dims(y, at + 1)
    found = []
    for j, places in enumerate(_blocks(axis, y.ndim)):  # side by side in x: the j-th of all windows
        begin, length = j * s - axis.low, axis.out * s
        block = _pool.edges(x, axis, -begin, begin + length - axis.size, -jnp.inf)
        block = block.reshape(*x.shape[:at], axis.out, s, *x.shape[at + 1 :])
        equal = (block == y) | jnp.isnan(block)
        found.append(jnp.where(equal, places, np.iinfo(places.dtype).max).min(at + 1))
    return jnp.maximum(functools.reduce(jnp.minimum, found), axis.column(true.astype(found[0].dtype), x.ndim))


def _first_of_taps(x: Array, y: Array, axis: Axis) -> Array:
    last, found = (axis.out - 1) * axis.stride + 1, []
    for k in range(axis.kernel):
        begin = k * axis.dilation - axis.low
        tap = _pool.edges(x, axis, -begin, begin + last - axis.size, -jnp.inf)
        tap = lax.slice_in_dim(tap, 0, last, axis.stride, axis.at % x.ndim)
        found.append(jnp.where((tap == y) | jnp.isnan(tap), k, axis.kernel).astype("int32"))
    return functools.reduce(jnp.minimum, found)


def _give_back(taken: Array, dy: Array, axis: Axis) -> Array:
    """dx[p] = Σ dy[o] over the windows o with o·stride − low + taken[o] = p."""
    if axis.dilation > 1:
        last, parts = (axis.out - 1) * axis.stride + 1, []
        for k in range(axis.kernel):
            begin, share = k * axis.dilation - axis.low, jnp.where(taken == k, dy, 0)
            after = axis.size - begin - last
            parts.append(_pool.edges(share, axis, begin, after, 0.0, between=axis.stride - 1))
        return functools.reduce(jnp.add, parts)
    at, s, blocks = axis.at % dy.ndim, axis.stride, _blocks(axis, dy.ndim + 1)
    more = len(blocks) - 1
    length = axis.out + more
    dy, taken = (jnp.expand_dims(_pool.edges(v, axis, more, more, 0.0), at + 1) for v in (dy, taken))
    parts = []
    for j, places in enumerate(blocks):  # block b of x is the j-th of window b − j
        dy_j, taken_j = (lax.slice_in_dim(v, more - j, more - j + length, axis=at) for v in (dy, taken))
        parts.append(jnp.where(taken_j == places, dy_j, 0))
    dx = functools.reduce(jnp.add, parts)
    dx = dx.reshape(*dx.shape[:at], length * s, *dx.shape[at + 2 :])
    return _pool.edges(dx, axis, -axis.low, axis.low + axis.size - length * s, 0.0)
