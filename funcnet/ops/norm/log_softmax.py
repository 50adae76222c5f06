"""The logarithm of softmax along one axis: y_i = x_i − log Σ_j e^{x_j}. x, y [*n].

With m the largest element, y_i = (x_i − m) − log Σ_j e^{x_j − m}: nothing overflows, and an offset common
to all, however large, costs no digits. An element of −inf gives −inf; elements that are all −inf have no
softmax, and give NaN. Source: Bridle, "Probabilistic Interpretation of Feedforward Classification Network
Outputs", 1990. Computed in float32 or wider and rounded once.
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
    """y_i = x_i − log Σ_j e^{x_j}, as it is written: it overflows for large x."""
    h = x.astype(wide(x.dtype))
    return (h - jnp.log(jnp.exp(h).sum(axis, keepdims=True))).astype(x.dtype)


@rules.operation
def apply(x: Float[Array, "*n"], axis: int = -1) -> Float[Array, "*n"]:
    """Map x to the logarithms of positive numbers that sum to 1 along `axis`.

    Differentiated by `vjp`, which keeps x and two numbers of each sum; JAX's own rule keeps the
    exponentials (in float32).

    Args:
        x: any shape of rank 1 or more.
        axis: the axis that the sum is over.

    Returns:
        y, of the shape and dtype of x.

    Raises:
        DTypeError: x is not floating-point, or axis not an int.
        ValueRangeError: x has no such axis.

    >>> print(fn.log_softmax.apply(jnp.array([0.0, 0.0])))
    [-0.693 -0.693]
    """
    where = "log_softmax.apply"
    x = _check.floating(where, "x", x)
    return rules.call(vjp, x, axis=_check.axis(where, x, axis))


def vjp(x: Float[Array, "*n"], axis: int = -1) -> tuple[Float[Array, "*n"], Partial]:
    """y and its pullback: dx_i = dy_i − e^{y_i} Σ_j dy_j.

    e^y is softmax, from x: a y that is rounded, −100 in bfloat16 say, would give it to few digits.
    """
    h = x.astype(wide(x.dtype))
    m = lax.stop_gradient(h.max(axis, keepdims=True, initial=-jnp.inf))
    rest = jnp.log(jnp.exp(h - m).sum(axis, keepdims=True))
    return ((h - m) - rest).astype(x.dtype), Partial(rules.bind(_pullback, axis=axis), x, m, rest)


def _pullback(x: Array, m: Array, rest: Array, dy: Array, *, axis: int) -> tuple[Array]:
    g = dy.astype(rest.dtype)
    p = jnp.exp((x.astype(rest.dtype) - m) - rest)
    return (narrow(g - p * g.sum(axis, keepdims=True), x),)


def cost(x: Float[Abstract, "*n"], axis: int = -1) -> Cost:
    """No products: 0 flops, and the bytes of x and y."""
    return Cost(0, traffic(reference, x, axis=axis))
