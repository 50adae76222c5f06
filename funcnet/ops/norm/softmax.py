"""Softmax along one axis: y_i = e^{x_i} / Σ_j e^{x_j}. x, y [*n].

Adding a constant to x changes nothing, so the largest element is subtracted first and nothing overflows.
An element of −inf gives 0; elements that are all −inf have no softmax, and give NaN.
Source: Bridle, "Probabilistic Interpretation of Feedforward Classification Network Outputs", 1990. The sum is
in float32 or wider.
"""

import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float

from funcnet import rules
from funcnet.ops import _check
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._dtype import narrow, wide

__all__ = ["apply", "cost", "reference", "vjp"]


def reference(x: Float[Array, "*n"], axis: int = -1) -> Float[Array, "*n"]:
    """y_i = e^{x_i} / Σ_j e^{x_j}, as it is written: it overflows for large x."""
    e = jnp.exp(x.astype(wide(x.dtype)))
    return (e / e.sum(axis, keepdims=True)).astype(x.dtype)


@rules.operation
def apply(x: Float[Array, "*n"], axis: int = -1) -> Float[Array, "*n"]:
    """Map x to positive numbers that sum to 1 along `axis`.

    Differentiated by `vjp`, which keeps only y; JAX's own rule keeps the exponentials (in float32) and sums.

    Args:
        x: any shape of rank 1 or more.
        axis: the axis that sums to 1.

    Returns:
        y, of the shape and dtype of x.

    Raises:
        DTypeError: x is not floating-point, or axis not an int.
        ValueRangeError: x has no such axis.

    >>> print(fn.softmax.apply(jnp.array([0.0, 1.0, 2.0])))
    [0.09  0.245 0.665]
    """
    x = _check.floating("softmax.apply", "x", x)
    return rules.call(vjp, x, axis=_check.axis("softmax.apply", x, axis))


def vjp(x: Float[Array, "*n"], axis: int = -1) -> tuple[Float[Array, "*n"], Partial]:
    """y and its pullback: dx = y · (dy − Σ y · dy), Σ along `axis`."""
    h = x.astype(wide(x.dtype))
    e = jnp.exp(h - lax.stop_gradient(h.max(axis, keepdims=True, initial=-jnp.inf)))
    y = (e / e.sum(axis, keepdims=True)).astype(x.dtype)
    return y, Partial(rules.bind(_pullback, axis=axis), y)


def _pullback(y: Array, dy: Array, *, axis: int) -> tuple[Array]:
    p, g = y.astype(wide(y.dtype)), dy.astype(wide(y.dtype))
    return (narrow(p * (g - (p * g).sum(axis, keepdims=True)), y),)


def cost(x: Float[Abstract, "*n"], axis: int = -1) -> Cost:
    """No products: 0 flops, and the bytes of x and y."""
    return Cost(0, traffic(reference, x, axis=axis))
