"""Division by the Euclidean norm: y = x / max(‖x‖, eps), ‖x‖ = √Σ x², over some axes. x, y [*n].

PyTorch's `normalize`, and the unit vectors of a cosine. Below eps the divisor is eps itself, a constant: y
= x / eps there, with gradient dy / eps, so that at the zero vector y is 0 and the gradient finite, though
large. The norm is taken of x / max(abs(x)): no square overflows or vanishes. In float32 or wider and
rounded once.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from funcnet import rules
from funcnet.linalg._norms import norm
from funcnet.ops import _check
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._dtype import narrow, wide
from funcnet.ops._shape import axes_of

__all__ = ["apply", "cost", "reference", "vjp"]


def reference(
    x: Float[Array, "*n"], axis: int | Sequence[int] = -1, eps: float = 1e-12
) -> Float[Array, "*n"]:
    """y = x / max(√Σ x², eps), as it is written; where the norm is below eps, it is not looked at."""
    h = x.astype(wide(x.dtype))
    total = (h**2).sum(axes_of(axis), keepdims=True)
    below = total < eps**2
    return (h / jnp.where(below, eps, jnp.sqrt(jnp.where(below, 1, total)))).astype(x.dtype)


@rules.operation
def apply(x: Float[Array, "*n"], axis: int | Sequence[int] = -1, eps: float = 1e-12) -> Float[Array, "*n"]:
    """Scale x to norm 1 along `axis`.

    Differentiated by `vjp`, which keeps x and max(‖x‖, eps), in two factors; JAX's own rule keeps several
    arrays of x's size, and gives NaN at the zero vector.

    Args:
        x: any shape of rank 1 or more.
        axis: the axis, or the axes, that a vector lies along.
        eps: the least divisor, more than 0; static.

    Returns:
        y, of the shape and dtype of x.

    Raises:
        DTypeError: x is not floating-point, axis not an int or ints, or eps is traced.
        ValueRangeError: x has no such axis, one is named twice, or eps is not above 0.

    >>> print(fn.l2_norm.apply(jnp.array([3.0, 4.0])))
    [0.6 0.8]
    """
    where = "l2_norm.apply"
    x, eps = _check.floating(where, "x", x), _check.number(where, "eps", eps, strict=True)
    return rules.call(vjp, x, axis=_check.axes(where, x, axis), eps=eps)


def vjp(
    x: Float[Array, "*n"], axis: int | Sequence[int] = -1, eps: float = 1e-12
) -> tuple[Float[Array, "*n"], Partial]:
    """y and its pullback: dx = (dy − y ⟨y, dy⟩) / ‖x‖, and dy / eps where ‖x‖ < eps."""
    axes = axes_of(axis)
    h = x.astype(wide(x.dtype))
    length, small = norm(h, axes)
    below = length < eps * small
    inverse = 1 / jnp.where(below, eps * small, length)
    y = h * small * inverse
    return y.astype(x.dtype), Partial(rules.bind(_pullback, axis=axes), x, small, inverse, below)


def _pullback(
    x: Array, small: Array, inverse: Array, below: Array, dy: Array, *, axis: tuple[int, ...]
) -> tuple[Array]:
    g = dy.astype(inverse.dtype)
    y = x.astype(inverse.dtype) * small * inverse
    along = jnp.where(below, 0, (y * g).sum(axis, keepdims=True))
    return (narrow((g - y * along) * inverse * small, x),)


def cost(x: Float[Abstract, "*n"], axis: int | Sequence[int] = -1, eps: float = 1e-12) -> Cost:
    """No products: 0 flops, and the bytes of x and y."""
    return Cost(0, traffic(reference, x, axis=axis, eps=eps))
