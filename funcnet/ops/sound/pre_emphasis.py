"""Pre-emphasis: y_t = x_t − c x_{t−1}, a first difference that lifts the high frequencies of speech.

Dimensions: *n any leading axes (batch), t samples: x, y [*n, t]. Before the signal there is silence:
y_0 = x_0, as in torchaudio. Its inverse is `lfilter` with b = [1] and a = [1, −c].
"""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float

from funcnet import rules
from funcnet.ops import _check
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._dtype import wide
from funcnet.ops.sound._frames import example

__all__ = ["apply", "cost", "matrix", "reference", "vjp"]


def reference(x: Float[Array, "*n t"], coefficient: float = 0.97) -> Float[Array, "*n t"]:
    """The difference, as it is written."""
    before = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(1, 0)])[..., :-1]
    return x - coefficient * before


@rules.operation
def apply(x: Float[Array, "*n t"], coefficient: float = 0.97) -> Float[Array, "*n t"]:
    """Take from every sample the one before, times a coefficient.

    JAX's own derivative of this is the formula of `vjp`, so nothing is attached to it.

    Args:
        x: [*n, t].
        coefficient: c in [0, 1]; static.

    Returns:
        y of the shape and dtype of x.

    Raises:
        ShapeError: x has no axis.
        DTypeError: x is not floating-point, or coefficient is traced.
        ValueRangeError: coefficient is outside [0, 1].

    >>> fn.pre_emphasis.apply(jnp.ones(3), 0.5).tolist()
    [1.0, 0.5, 0.5]
    """
    where = "pre_emphasis.apply"
    x = _check.floating(where, "x", x)
    _check.rank(where, "x", x, 1, "*n, t")
    return _less(x, _check.rate(where, "coefficient", coefficient, one=True), (1, -1))


def vjp(x: Float[Array, "*n t"], coefficient: float = 0.97) -> tuple[Float[Array, "*n t"], Partial]:
    """y and its pullback: dx_t = dy_t − c dy_{t+1}. No residuals."""
    c = _check.rate("pre_emphasis.vjp", "coefficient", coefficient, one=True)
    return _less(x, c, (1, -1)), Partial(rules.bind(_pullback, coefficient=c))


def _pullback(dy: Array, *, coefficient: float) -> tuple[Array]:
    return (_less(dy, coefficient, (-1, 1)),)


def _less(x: Array, c: float, ends: tuple[int, int]) -> Array:
    """x less c times its neighbour: that before, or with the other ends that after."""
    h = x.astype(wide(x.dtype))
    moved = lax.pad(h, np.zeros((), h.dtype), [(0, 0, 0)] * (x.ndim - 1) + [(*ends, 0)])
    return (h - c * moved).astype(x.dtype)


def matrix(in_shape: tuple[int, ...], coefficient: float = 0.97) -> Float[Array, "t t"]:
    """The map x → y as a matrix [t, t], for one x of shape (t,): 1 on the diagonal, −c below it."""
    (t,) = example("pre_emphasis.matrix", in_shape, "t")
    c = _check.rate("pre_emphasis.matrix", "coefficient", coefficient, one=True)
    return jnp.asarray(np.eye(t) - c * np.eye(t, k=-1))


def cost(x: Float[Abstract, "*n t"], coefficient: float = 0.97) -> Cost:
    """No products of matrices: 0 flops, and the bytes of x and y."""
    return Cost(0, traffic(reference, x, coefficient=coefficient))
