"""The hyperbolic tangent y = (eˣ − e⁻ˣ) / (eˣ + e⁻ˣ), element by element. x, y [*n].

Source: LeCun, Bottou, Orr and Müller, "Efficient BackProp", 1998, §4.4. Computed in float32 or wider and
rounded once.
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
    """y = (eˣ − e⁻ˣ) / (eˣ + e⁻ˣ), as it is written: it overflows for large x."""
    return (jnp.exp(x) - jnp.exp(-x)) / (jnp.exp(x) + jnp.exp(-x))


@rules.operation
def apply(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Map every element into (−1, 1).

    Differentiated by `vjp`, which keeps x, not y: from a y rounded to nearly 1, 1 − y² is not known well.

    Args:
        x: any shape.

    Returns:
        y, of the shape and dtype of x.

    Raises:
        DTypeError: x is not floating-point.
    """
    return rules.call(vjp, _check.floating("tanh.apply", "x", x))


def vjp(x: Float[Array, "*n"]) -> tuple[Float[Array, "*n"], Partial]:
    """y and its pullback: dx = dy · (1 − y²) = dy · 4 σ(2x) σ(−2x), σ the logistic function."""
    y = jnp.tanh(x.astype(wide(x.dtype))).astype(x.dtype)
    return y, Partial(_pullback, x)


def _pullback(x: Array, dy: Array) -> tuple[Array]:
    h = 2 * x.astype(wide(x.dtype))
    return (narrow(dy.astype(h.dtype) * (4 * lax.logistic(h) * lax.logistic(-h)), x),)


def cost(x: Float[Abstract, "*n"]) -> Cost:
    """No products: 0 flops, and the bytes of x and y."""
    return Cost(0, traffic(reference, x))
