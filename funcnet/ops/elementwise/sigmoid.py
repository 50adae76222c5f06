"""The logistic function y = σ(x) = 1 / (1 + e^{−x}), element by element. x, y [*n].

Source: Rumelhart, Hinton and Williams, "Learning Representations by Back-Propagating Errors", Nature 323,
1986. Computed in float32 or wider and rounded once.
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
    """y = 1 / (1 + e^{−x}), as it is written."""
    return 1 / (1 + jnp.exp(-x))


@rules.operation
def apply(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Map every element into (0, 1).

    Differentiated by `vjp`, which keeps only y: the next operation needs it anyway.

    Args:
        x: any shape.

    Returns:
        y, of the shape and dtype of x.

    Raises:
        DTypeError: x is not floating-point.
    """
    return rules.call(vjp, _check.floating("sigmoid.apply", "x", x))


def vjp(x: Float[Array, "*n"]) -> tuple[Float[Array, "*n"], Partial]:
    """y and its pullback: dx = dy · y · (1 − y)."""
    y = lax.logistic(x.astype(wide(x.dtype))).astype(x.dtype)
    return y, Partial(_pullback, y)


def _pullback(y: Array, dy: Array) -> tuple[Array]:
    s = y.astype(wide(y.dtype))
    return (narrow(dy.astype(s.dtype) * s * (1 - s), y),)


def cost(x: Float[Abstract, "*n"]) -> Cost:
    """No products: 0 flops, and the bytes of x and y."""
    return Cost(0, traffic(reference, x))
