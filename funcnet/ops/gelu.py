"""The Gaussian error linear unit y = x · Φ(x), Φ the normal distribution function, element by element.

x, y [*n]. Φ(x) = ½ (1 + erf(x / √2)), or its approximation by tanh,
½ (1 + tanh(√(2/π) (x + 0.044715 x³))), which is off by less than 5e-4 in y.
Source: Hendrycks and Gimpel, "Gaussian Error Linear Units (GELUs)", arXiv 1606.08415. Computed in float32 or
wider and rounded once.
"""

import math

import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float

from funcnet import rules
from funcnet.ops import _check
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._dtype import narrow, wide

__all__ = ["apply", "cost", "reference", "vjp"]

_A, _B = math.sqrt(2 / math.pi), 0.044715


def reference(x: Float[Array, "*n"], approximate: bool = False) -> Float[Array, "*n"]:
    """y = x/2 · (1 + erf(x / √2)), or with tanh in place of erf, as they are written."""
    if approximate:
        return x / 2 * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return x / 2 * (1 + lax.erf(x / math.sqrt(2)))


@rules.operation
def apply(x: Float[Array, "*n"], approximate: bool = False) -> Float[Array, "*n"]:
    """Multiply every element by the probability that a standard normal variable is smaller.

    Differentiated by `vjp`, which keeps only x; JAX's own rule keeps several arrays of x's size.

    Args:
        x: any shape.
        approximate: True: the form with tanh, as in GPT-2 and BERT's first code; False: the exact one.

    Returns:
        y, of the shape and dtype of x.

    Raises:
        DTypeError: x is not floating-point.
    """
    return rules.call(vjp, _check.floating("gelu.apply", "x", x), approximate=approximate)


def vjp(x: Float[Array, "*n"], approximate: bool = False) -> tuple[Float[Array, "*n"], Partial]:
    """y and its pullback: dx = dy · (Φ(x) + x · Φ′(x)).

    Φ′(x) = e^{−x²/2} / √(2π); approximate, with t the tanh, ½ (1 − t²) √(2/π) (1 + 3 · 0.044715 x²).
    """
    h = x.astype(wide(x.dtype))
    y = (h * _probability(h, approximate)).astype(x.dtype)
    return y, Partial(rules.bind(_pullback, approximate=approximate), x)


def _pullback(x: Array, dy: Array, *, approximate: bool) -> tuple[Array]:
    h = x.astype(wide(x.dtype))
    p = _probability(h, approximate)
    if approximate:  # 1 − t² = 4 p (1 − p)
        density = 2 * p * (1 - p) * (_A * (1 + 3 * _B * h**2))
    else:
        density = jnp.exp(-(h**2) / 2) / math.sqrt(2 * math.pi)
    return (narrow(dy.astype(h.dtype) * (p + h * density), x),)


def _probability(h: Array, approximate: bool) -> Array:
    """Φ, by erfc where exact: 1 + erf would cancel far to the left."""
    if approximate:
        return (1 + jnp.tanh(_A * (h + _B * h**3))) / 2
    return lax.erfc(-h / math.sqrt(2)) / 2


def cost(x: Float[Abstract, "*n"], approximate: bool = False) -> Cost:
    """No products: 0 flops, and the bytes of x and y."""
    return Cost(0, traffic(reference, x, approximate=approximate))
