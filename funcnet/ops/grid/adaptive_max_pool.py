"""Adaptive max pooling: the largest element of each of `size` windows that cover each axis.

Along an axis of n elements window o of m reaches from ⌊o n / m⌋ to ⌈(o + 1) n / m⌉, as in
`adaptive_avg_pool`; of size 1 along every axis it is the global maximum. Dimensions: *n any leading axes
(batch), o positions along 1 to 3 spatial axes, c channels: x [*n, *in, c], y [*n, *size, c]. Of equal
elements the first in C order takes the gradient; a window with a NaN gives NaN.
"""

import itertools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float

from funcnet import rules
from funcnet.ops import _check
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._dtype import narrow, wide
from funcnet.ops._shape import known
from funcnet.ops.grid import _axes, _windows
from funcnet.ops.grid._axes import Axis

__all__ = ["apply", "cost", "reference", "vjp"]


def reference(x: Float[Array, "*n_and_in c"], *, size: Sequence[int]) -> Float[Array, "*n_and_size c"]:
    """Of each window, its elements in C order, the first one that equals the largest."""
    axes = _windows.axes("adaptive_max_pool.reference", x, size)
    d = len(axes)
    y = []
    for o in itertools.product(*(range(axis.out) for axis in axes)):
        seen = [
            np.unique(axis.taps.index[p][axis.taps.weight[p] > 0]) for p, axis in zip(o, axes, strict=True)
        ]
        window = x[(..., *np.ix_(*seen), slice(None))].reshape(*x.shape[: x.ndim - d - 1], -1, x.shape[-1])
        largest = (window == window.max(-2, keepdims=True)) | jnp.isnan(window)
        first = jnp.argmax(largest, -2)
        y.append(jnp.take_along_axis(window, first[..., None, :], -2))
    return jnp.concatenate(y, -2).reshape(
        *x.shape[: x.ndim - d - 1], *(axis.out for axis in axes), x.shape[-1]
    )


@rules.operation
def apply(x: Float[Array, "*n_and_in c"], *, size: Sequence[int]) -> Float[Array, "*n_and_size c"]:
    """Take the largest element of each window, channel by channel.

    Differentiated by `vjp`, which keeps one integer per window and axis, and compares.

    Args:
        x: [*n, *in, c], channels last.
        size: how many windows, one number per spatial axis; (1, 1) is the global maximum of images.

    Returns:
        y [*n, *size, c], in the dtype of x.

    Raises:
        ShapeError: x has too few axes, no element along one of them, or one of unknown size that more than
            one window is to cover.
        DTypeError: x is not floating-point, or size not a tuple.
        ValueRangeError: a size is not positive.

    >>> x = jnp.arange(5.0)[:, None]
    >>> fn.adaptive_max_pool.apply(x, size=(2,)).ravel().tolist()
    [2.0, 4.0]
    """
    x = _check.floating("adaptive_max_pool.apply", "x", x)
    _windows.axes("adaptive_max_pool.apply", x, size)
    return rules.call(vjp, x, size=size)


def vjp(
    x: Float[Array, "*n_and_in c"], *, size: Sequence[int]
) -> tuple[Float[Array, "*n_and_size c"], Partial]:
    """y and its pullback: dx[i] = Σ dy[o] over the windows o whose first largest element is x[i].

    One axis after the other, the last first, so that of equal elements the first in C order is found. The
    residuals say, for each window along each axis, which of its elements was taken.
    """
    axes, kept = _windows.axes("adaptive_max_pool.vjp", x, size), []
    for axis in reversed(axes):
        x, first = _largest(x, axis)
        kept.append(first)
    return x, Partial(rules.bind(_pullback, axes=axes), kept[::-1])


def _pullback(kept: list[Array], dy: Array, *, axes: tuple[Axis, ...]) -> tuple[Array]:
    dx = dy.astype(wide(dy.dtype))
    for axis, first in zip(axes, kept, strict=True):
        dx = _give_back(first, dx, axis)
    return (narrow(dx, dy),)


def cost(x: Float[Abstract, "*n_and_in c"], *, size: Sequence[int]) -> Cost:
    """No products: 0 flops, and the bytes of x and y."""
    return Cost(0, traffic(reference, x, size=size))


# ---- one axis ---------------------------------------------------------------------------------------------


def _largest(x: Array, axis: Axis) -> tuple[Array, Array]:
    """The largest element of each window, and the place in x of the first that equals it."""
    taps, at = axis.taps, axis.at % x.ndim
    seen = _axes.taken(x, at, taps)
    inside = _axes.along(taps.weight, seen, at) > 0
    y = jnp.where(inside, seen, -jnp.inf).max(at + 1)
    equal = inside & ((seen == jnp.expand_dims(y, at + 1)) | jnp.isnan(seen))
    place = jnp.argmax(equal, at + 1).astype(jnp.int32)
    begins = jnp.asarray(taps.index[:, 0]).astype(jnp.int32)
    return y, place + begins.reshape(*[1] * at, -1, *[1] * (x.ndim - at - 1))


def _give_back(first: Array, dy: Array, axis: Axis) -> Array:
    """dx[i] = Σ dy[o] over the windows o that took i, of those that see it."""
    at = axis.at % dy.ndim
    i = jnp.arange(axis.size, dtype=jnp.int32).reshape(*[1] * at, -1, *[1] * (dy.ndim - at - 1))
    back = _axes.transposed(axis) if known(axis.size) else None
    if back is None:  # one window, of an axis whose size is a symbol
        at_o = lambda v: jnp.expand_dims(v, at)
        i = jnp.expand_dims(i, at + 1)
        return jnp.where(at_o(first) == i, at_o(dy), 0).sum(at + 1)
    took, share = _axes.taken(first, at, back), _axes.taken(dy, at, back)
    sees = _axes.along(back.weight, share, at) > 0
    return jnp.where(sees & (took == jnp.expand_dims(i, at + 1)), share, 0).sum(at + 1)
