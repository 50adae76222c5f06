"""The logistic function y = σ(x) = 1 / (1 + e^{−x}), element by element. x, y [*n].

Source: Rumelhart, Hinton and Williams, "Learning Representations by Back-Propagating Errors", Nature 323,
1986. Computed in float32 or wider and rounded once.
"""

import jax
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

    Differentiated by `vjp`, which keeps x, not y: from a y rounded to nearly 1, 1 − y is not known well.

    Args:
        x: any shape.

    Returns:
        y, of the shape and dtype of x.

    Raises:
        DTypeError: x is not floating-point.
    """
    return rules.call(vjp, _check.floating("sigmoid.apply", "x", x))


def vjp(x: Float[Array, "*n"]) -> tuple[Float[Array, "*n"], Partial]:
    """y and its pullback: dx = dy · σ(x) · σ(−x)."""
    return _logistic(x.astype(wide(x.dtype))).astype(x.dtype), Partial(_pullback, x)


def _pullback(x: Array, dy: Array) -> tuple[Array]:
    h = x.astype(wide(x.dtype))
    return (narrow(dy.astype(h.dtype) * _logistic(h) * _logistic(-h), x),)


def _logistic(h: Array) -> Array:
    """σ, with its derivative as σ(h) · σ(−h) in every order: JAX takes 1 − σ(h), which cancels."""
    return lax.logistic(h) if rules.in_jet(h) else _precise(h)


@jax.custom_jvp
def _precise(h: Array) -> Array:
    return lax.logistic(h)


@_precise.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (h,), (dh,) = primals, tangents
    return _precise(h), dh * _precise(h) * _precise(-h)


def cost(x: Float[Abstract, "*n"]) -> Cost:
    """No products: 0 flops, and the bytes of x and y."""
    return Cost(0, traffic(reference, x))
