"""The gated unit of SwiGLU: y = silu(g) · u, silu(g) = g · σ(g), element by element. Gate g, up u, y [*n].

The two products before it and the one after it are `linear`s. Source: Shazeer, "GLU variants improve
transformer", arXiv 2002.05202. Computed in float32 or wider and rounded once.
"""

import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float

from funcnet import rules
from funcnet.ops import _check
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._dtype import common, narrow, wide

__all__ = ["apply", "cost", "reference", "vjp"]


def reference(gate: Float[Array, "*n"], up: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """y = g / (1 + e^{−g}) · u, as it is written."""
    g, u = common(gate, up)
    return g / (1 + jnp.exp(-g)) * u


@rules.operation
def apply(gate: Float[Array, "*n"], up: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Multiply every element of `up` by the silu of that of `gate`.

    Differentiated by `vjp`, which keeps gate and up; JAX's own rule keeps σ(gate) and silu(gate) too.

    Args:
        gate: any shape.
        up: the shape of gate.

    Returns:
        y, of the same shape, in the dtype that holds both.

    Raises:
        ShapeError: the shapes differ.
        DTypeError: gate or up is not floating-point.
    """
    where = "swiglu.apply"
    gate, up = _check.floating(where, "gate", gate), _check.floating(where, "up", up)
    _check.same_shape(where, "up", up, "gate", gate)
    return rules.call(vjp, gate, up)


def vjp(gate: Float[Array, "*n"], up: Float[Array, "*n"]) -> tuple[Float[Array, "*n"], Partial]:
    """y and its pullback: dg = dy · u · σ(g) · (1 + g · (1 − σ(g))), du = dy · silu(g)."""
    g, u = _wide(gate, up)
    y = g * lax.logistic(g) * u
    return y.astype(common(gate, up)[0].dtype), Partial(_pullback, gate, up)


def _pullback(gate: Array, up: Array, dy: Array) -> tuple[Array, Array]:
    g, u, dy = _wide(gate, up, dy)
    s = lax.logistic(g)
    return narrow(dy * u * s * (1 + g * (1 - s)), gate), narrow(dy * g * s, up)


def _wide(*arrays: Array) -> list[Array]:
    return [v.astype(wide(v.dtype)) for v in common(*arrays)]


def cost(gate: Float[Abstract, "*n"], up: Float[Abstract, "*n"]) -> Cost:
    """No products of matrices: 0 flops, and the bytes of gate, up and y."""
    return Cost(0, traffic(reference, gate, up))
