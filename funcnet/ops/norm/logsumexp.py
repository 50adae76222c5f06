"""The logarithm of a sum of exponentials along some axes: y = log Σ_j e^{x_j}, a smooth maximum.

x [*n], y of its other axes. With m the largest element, y = m + log Σ_j e^{x_j − m}, which does not
overflow. A sum without terms, or of elements that are all −inf, is 0: y = −inf, with gradient 0. Computed
in float32 or wider and rounded once.
"""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float

from funcnet import _letters, rules
from funcnet.ops import _check
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._dtype import narrow, wide
from funcnet.ops._shape import axes_of

__all__ = ["apply", "cost", "reference", "vjp"]


def reference(
    x: Float[Array, "*n"], axis: int | Sequence[int] = -1, keepdims: bool = False
) -> Float[Array, "*k"]:
    """y = log Σ_j e^{x_j}, as it is written: it overflows for large x."""
    h = x.astype(wide(x.dtype))
    return jnp.log(jnp.exp(h).sum(axes_of(axis), keepdims=keepdims)).astype(x.dtype)


def _split(x: Array, axis: int | Sequence[int] = -1, keepdims: bool = False) -> list[_letters.Axes]:
    """How y is split over a mesh: as x is, but for the axes that are summed."""
    each, gone = _letters.axes_of(x), {i % x.ndim for i in axes_of(axis)}
    return [() if i in gone else axes for i, axes in enumerate(each) if keepdims or i not in gone]


@functools.partial(rules.operation, told=_letters.Told(split=_split))
def apply(
    x: Float[Array, "*n"], axis: int | Sequence[int] = -1, keepdims: bool = False
) -> Float[Array, "*k"]:
    """Reduce `axis` to the logarithm of the sum of the exponentials along it.

    Differentiated by `vjp`, which keeps x and two numbers of each sum; JAX's own rule keeps the
    exponentials (in float32).

    Args:
        x: any shape of rank 1 or more.
        axis: the axis, or the axes, that the sum is over.
        keepdims: whether they stay, of size 1.

    Returns:
        y, of the other axes, in the dtype of x.

    Raises:
        DTypeError: x is not floating-point, axis not an int or ints, or keepdims not a bool.
        ValueRangeError: x has no such axis, or one is named twice.

    >>> print(fn.logsumexp.apply(jnp.array([1000.0, 1000.0])))
    1000.6932
    """
    where = "logsumexp.apply"
    x, keepdims = _check.floating(where, "x", x), _check.flag(where, "keepdims", keepdims)
    return rules.call(vjp, x, axis=_check.axes(where, x, axis), keepdims=keepdims)


def vjp(
    x: Float[Array, "*n"], axis: int | Sequence[int] = -1, keepdims: bool = False
) -> tuple[Float[Array, "*k"], Partial]:
    """y and its pullback: dx_i = dy · e^{x_i − y}, softmax, from the two parts of y: m and the rest."""
    axes = axes_of(axis)
    h = x.astype(wide(x.dtype))
    m = lax.stop_gradient(h.max(axes, keepdims=True, initial=-jnp.inf))
    m = jnp.where(jnp.isfinite(m), m, 0)  # −inf − (−inf) is NaN
    total = jnp.exp(h - m).sum(axes, keepdims=True)
    y = m + jnp.log(total)
    y = y if keepdims else jnp.squeeze(y, axes)
    return y.astype(x.dtype), Partial(_pullback, x, m, total)


def _pullback(x: Array, m: Array, total: Array, dy: Array) -> tuple[Array]:
    dy = dy.reshape(m.shape).astype(m.dtype)
    p = jnp.exp(x.astype(m.dtype) - m) / jnp.where(total == 0, 1, total)
    return (narrow(p * dy, x),)


def cost(x: Float[Abstract, "*n"], axis: int | Sequence[int] = -1, keepdims: bool = False) -> Cost:
    """No products: 0 flops, and the bytes of x and y."""
    return Cost(0, traffic(reference, x, axis=axis, keepdims=keepdims))
