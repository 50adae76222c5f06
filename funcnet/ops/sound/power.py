"""Power: y = re² + im², the squared length of every pair. x [*n, 2], y [*n].

Of a spectrum, `stft`'s, it is the power spectrum. Computed in float32 or wider and rounded once.
"""

from jax.tree_util import Partial
from jaxtyping import Array, Float

from funcnet import rules
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._dtype import narrow, wide
from funcnet.ops.sound._pairs import check

__all__ = ["apply", "cost", "reference", "vjp"]


def reference(x: Float[Array, "*n 2"]) -> Float[Array, "*n"]:
    """y = re² + im², as it is written."""
    return x[..., 0] ** 2 + x[..., 1] ** 2


@rules.operation
def apply(x: Float[Array, "*n 2"]) -> Float[Array, "*n"]:
    """The squared length of every pair, as of a spectrum's real and imaginary part.

    JAX's own derivative of this is the formula of `vjp`, so nothing is attached to it.

    Args:
        x: [*n, 2].

    Returns:
        y [*n], in the dtype of x.

    Raises:
        ShapeError: the last axis of x is not a pair.
        DTypeError: x is not floating-point.

    >>> fn.power.apply(jnp.array([3.0, 4.0])).tolist()
    25.0
    """
    return _forward(check("power.apply", x))


def _forward(x: Array) -> Array:
    h = x.astype(wide(x.dtype))
    return (h[..., 0] ** 2 + h[..., 1] ** 2).astype(x.dtype)


def vjp(x: Float[Array, "*n 2"]) -> tuple[Float[Array, "*n"], Partial]:
    """y and its pullback: dx = 2 dy · x."""
    return _forward(x), Partial(_pullback, x)


def _pullback(x: Array, dy: Array) -> tuple[Array]:
    return (narrow(2 * dy.astype(wide(x.dtype))[..., None] * x.astype(wide(x.dtype)), x),)


def cost(x: Float[Abstract, "*n 2"]) -> Cost:
    """No products: 0 flops, and the bytes of x and y."""
    return Cost(0, traffic(reference, x))
