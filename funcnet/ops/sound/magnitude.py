"""Magnitude: y = √(re² + im²), the length of every pair; its derivative at 0 is 0.

Dimensions: *n any leading axes: x [*n, 2], y [*n]. Silence has the spectrum 0, where the length has no
derivative: JAX's own is NaN there, and would make a NaN of every weight below. Computed in float32 or wider,
over the larger of the two, so that no square overflows or vanishes.
"""

import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float

from funcnet import rules
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._dtype import narrow, wide
from funcnet.ops.sound._pairs import check

__all__ = ["apply", "cost", "reference", "vjp"]


def reference(x: Float[Array, "*n 2"]) -> Float[Array, "*n"]:
    """y = √(re² + im²), as it is written."""
    return jnp.sqrt(x[..., 0] ** 2 + x[..., 1] ** 2)


@rules.operation
def apply(x: Float[Array, "*n 2"]) -> Float[Array, "*n"]:
    """The length of every pair, as of a spectrum's real and imaginary part.

    Differentiated by `vjp`, which is 0 at 0.

    Args:
        x: [*n, 2].

    Returns:
        y [*n], in the dtype of x.

    Raises:
        ShapeError: the last axis of x is not a pair.
        DTypeError: x is not floating-point.

    >>> fn.magnitude.apply(jnp.array([3.0, 4.0])).tolist()
    5.0
    """
    return rules.call(vjp, check("magnitude.apply", x))


def vjp(x: Float[Array, "*n 2"]) -> tuple[Float[Array, "*n"], Partial]:
    """y and its pullback: dx = dy · x / y, and 0 where y is 0."""
    h = x.astype(wide(x.dtype))
    scale = lax.stop_gradient(jnp.abs(h).max(-1))  # the length does not depend on it
    usual = (scale > 0) & jnp.isfinite(scale)
    less = jnp.where(scale > 1, 0.125, 1).astype(
        h.dtype
    )  # XLA multiplies by 1 / scale, which may be too small
    unit = (h * less[..., None]) / (jnp.where(usual, scale, 1) * less)[..., None]
    square = (unit**2).sum(-1)
    length = jnp.sqrt(jnp.where(usual, square, 1))
    y = jnp.where(usual, scale * length, scale)
    direction = jnp.where(usual[..., None], unit / length[..., None], 0)
    return y.astype(x.dtype), Partial(_pullback, direction)


def _pullback(direction: Array, dy: Array) -> tuple[Array]:
    return (narrow(dy.astype(direction.dtype)[..., None] * direction, dy),)


def cost(x: Float[Abstract, "*n 2"]) -> Cost:
    """No products: 0 flops, and the bytes of x and y."""
    return Cost(0, traffic(reference, x))
