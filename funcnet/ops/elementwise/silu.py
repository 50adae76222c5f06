"""The sigmoid linear unit, or swish: y = x · σ(x), σ(x) = 1 / (1 + e^{−x}), element by element. x, y [*n].

Source: Elfwing, Uchibe and Doya, "Sigmoid-Weighted Linear Units", arXiv 1702.03118. Computed in float32 or
wider and rounded once.
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


def reference(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """y = x / (1 + e^{−x}), as it is written."""
    return x / (1 + jnp.exp(-x))


@rules.operation
def apply(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Multiply every element by its sigmoid.

    Differentiated by `vjp`, which keeps only x; JAX's own rule keeps several arrays of x's size.

    Args:
        x: any shape.

    Returns:
        y, of the shape and dtype of x.

    Raises:
        DTypeError: x is not floating-point.
    """
    return rules.call(vjp, _check.floating("silu.apply", "x", x))


def vjp(x: Float[Array, "*n"]) -> tuple[Float[Array, "*n"], Partial]:
    """y and its pullback: dx = dy · σ(x) · (1 + x · (1 − σ(x)))."""
    h = x.astype(wide(x.dtype))
    return (h * lax.logistic(h)).astype(x.dtype), Partial(_pullback, x)


def _pullback(x: Array, dy: Array) -> tuple[Array]:
    h = x.astype(wide(x.dtype))
    s = lax.logistic(h)
    return (narrow(dy.astype(h.dtype) * s * (1 + h * (1 - s)), x),)


def cost(x: Float[Abstract, "*n"]) -> Cost:
    """No products: 0 flops, and the bytes of x and y."""
    return Cost(0, traffic(reference, x))
