"""The rectifier y = max(x, 0), element by element. x, y [*n].

At the kink x = 0 the derivative is taken as 0, as in JAX and PyTorch.
"""

import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from funcnet import rules
from funcnet.ops import _check
from funcnet.ops._cost import Abstract, Cost, traffic

__all__ = ["apply", "cost", "reference", "vjp"]


def reference(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """y = 0 where x ≤ 0, else x; a NaN stays one."""
    return jnp.where(x <= 0, 0, x)


@rules.operation
def apply(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Replace negative elements by 0.

    Differentiated by `vjp`, which keeps only y: the next operation needs it anyway.

    Args:
        x: any shape.

    Returns:
        y, of the shape and dtype of x.

    Raises:
        DTypeError: x is not floating-point.
    """
    return rules.call(vjp, _check.floating("relu.apply", "x", x))


def vjp(x: Float[Array, "*n"]) -> tuple[Float[Array, "*n"], Partial]:
    """y and its pullback: dx = 0 where y = 0, else dy."""
    y = reference(x)
    return y, Partial(_pullback, y)


def _pullback(y: Array, dy: Array) -> tuple[Array]:
    return (jnp.where(y == 0, 0, dy),)


def cost(x: Float[Abstract, "*n"]) -> Cost:
    """No products: 0 flops, and the bytes of x and y."""
    return Cost(0, traffic(reference, x))
