"""Mean squared error: y[n] = 1/d Σ_i (prediction[n, i] − target[n, i])².

Dimensions: *n any leading axes (batch), d features: prediction, target [*n, d], y [*n], one value per
example; the mean over examples is the caller's. Differences are in float32 or wider, and so is y.
"""

import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from funcnet import rules
from funcnet.ops import _check
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._dtype import common, narrow, wide

__all__ = ["apply", "cost", "reference", "vjp"]


def reference(prediction: Float[Array, "*n d"], target: Float[Array, "*n d"]) -> Float[Array, "*n"]:
    """The mean over the last axis of the squared differences."""
    prediction, target = common(prediction, target)
    sums = wide(prediction.dtype)
    return jnp.mean((prediction.astype(sums) - target.astype(sums)) ** 2, -1)


@rules.operation
def apply(prediction: Float[Array, "*n d"], target: Float[Array, "*n d"]) -> Float[Array, "*n"]:
    """Average the squared differences over the last axis.

    JAX's own derivative keeps the differences and multiplies, as `vjp` does, so nothing is attached.

    Args:
        prediction: [*n, d].
        target: [*n, d]; nothing is broadcast.

    Returns:
        y [*n], in the dtype that holds both, but at least float32.

    Raises:
        ShapeError: the shapes differ, or there is no axis.
        DTypeError: an argument is not floating-point.

    >>> fn.mse.apply(jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 0.0]])).tolist()
    [2.5]
    """
    where = "mse.apply"
    prediction = _check.floating(where, "prediction", prediction)
    target = _check.floating(where, "target", target)
    _check.same_shape(where, "target", target, "prediction", prediction)
    _check.rank(where, "prediction", prediction, 1, "*n, d")
    return _forward(prediction, target)


def vjp(prediction: Float[Array, "*n d"], target: Float[Array, "*n d"]) -> tuple[Float[Array, "*n"], Partial]:
    """y and its pullback: with e = prediction − target, dprediction = 2/d · e · dy = −dtarget."""
    return _forward(prediction, target), Partial(_pullback, prediction, target)


def _forward(prediction: Array, target: Array) -> Array:
    e = _difference(prediction, target)
    return jnp.mean(e * e, -1)


def _pullback(prediction: Array, target: Array, dy: Array) -> tuple[Array, Array]:
    e = _difference(prediction, target)
    de = 2 / max(e.shape[-1], 1) * e * dy[..., None]
    return narrow(de, prediction), narrow(-de, target)


def cost(prediction: Float[Abstract, "*n d"], target: Float[Abstract, "*n d"]) -> Cost:
    """No products: 0 flops, and the bytes of prediction, target and y."""
    return Cost(0, traffic(reference, prediction, target))


def _difference(prediction: Array, target: Array) -> Array:
    prediction, target = common(prediction, target)
    return prediction.astype(wide(prediction.dtype)) - target.astype(wide(target.dtype))
