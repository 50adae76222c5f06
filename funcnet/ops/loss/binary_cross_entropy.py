"""Binary cross entropy of labels with sigmoid(logits): y = −z log p − (1 − z) log(1 − p), p = 1 / (1 + e^−x).

Dimensions: *n any axes: logits x, labels z, y [*n], one value per element; the mean is the caller's. Since
log p = −softplus(−x) and log(1 − p) = −softplus(x), y = z softplus(−x) + (1 − z) softplus(x), which neither
overflows nor takes the logarithm of 0. y, and all that is computed, is in float32 or wider.
"""

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Integer

from funcnet import rules
from funcnet.errors import DTypeError, describe
from funcnet.ops import _check
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._dtype import common, narrow, wide

__all__ = ["apply", "cost", "reference", "vjp"]


def reference(
    logits: Float[Array, "*n"], labels: Float[Array, "*n"] | Integer[Array, "*n"] | Bool[Array, "*n"]
) -> Float[Array, "*n"]:
    """−z log p − (1 − z) log(1 − p), 1 − p = sigmoid(−x), 0 · ∞ being 0; 0 where an integer is not 0 or 1."""
    if jnp.issubdtype(labels.dtype, jnp.floating):
        logits, labels = common(logits, labels)
    counted = _counts(labels)
    x = jnp.where(counted, logits.astype(wide(logits.dtype)), 0)
    z = labels.astype(x.dtype)

    y = -(_times(z, jax.nn.log_sigmoid(x)) + _times(1 - z, jax.nn.log_sigmoid(-x)))
    return jnp.where(counted, y, 0)


@rules.operation
def apply(
    logits: Float[Array, "*n"], labels: Float[Array, "*n"] | Integer[Array, "*n"] | Bool[Array, "*n"]
) -> Float[Array, "*n"]:
    """The loss of each element: −log of the probability that sigmoid(logits) gives to its label.

    Differentiated by `vjp`, which keeps logits and labels in their own dtypes; JAX's own rule keeps several
    arrays of their size in float32 or wider.

    Args:
        logits: any shape. Infinite ones give 0 where the label agrees, else ∞; float labels have no gradient
            from them.
        labels: of the shape of logits: booleans, integers 0 and 1, or floats in [0, 1], with a gradient.

    Returns:
        y, of the same shape, in the dtype that holds logits and float labels, but at least float32. Under
        `jax.jit` an integer label that is not 0 or 1 counts as ignored: no loss, no gradient.

    Raises:
        ShapeError: the shapes differ.
        DTypeError: logits are not floating-point, or labels not numbers.
        ValueRangeError: labels, where they are concrete, are outside [0, 1].

    >>> print(fn.binary_cross_entropy.apply(jnp.array([0.0, 3.0]), jnp.array([1.0, 1.0])))
    [0.693 0.049]
    """
    where = "binary_cross_entropy.apply"
    logits = _check.floating(where, "logits", logits)
    dtype = _check.dtype_of(labels)
    kinds = (jnp.floating, jnp.integer, jnp.bool_)
    if dtype is None or not any(jnp.issubdtype(dtype, kind) for kind in kinds):
        raise DTypeError(
            f"{where}: labels are not an array of floats, integers or booleans.",
            path="labels",
            expected=f"labels: float[{', '.join(map(str, logits.shape))}]     (the shape of logits)",
            actual=f"labels: {describe(labels)}",
            hint="wrap them: jnp.asarray(...)." if dtype is None else None,
        )
    if jnp.issubdtype(dtype, jnp.floating):
        labels = _check.floating(where, "labels", labels)
    _check.same_shape(where, "labels", labels, "logits", logits)
    _check.unit(where, "labels", labels)
    return rules.call(vjp, logits, jnp.asarray(labels))


def vjp(
    logits: Float[Array, "*n"], labels: Float[Array, "*n"] | Integer[Array, "*n"] | Bool[Array, "*n"]
) -> tuple[Float[Array, "*n"], Partial]:
    """y and its pullback: dlogits = dy · ((1 − z) p − z (1 − p)), for float labels dlabels = −dy · x.

    dlogits is dy · (p − z), but exact where p is all but 0 or 1.
    """
    x, z, counted = _wide(logits, labels)
    y = _times(z, jax.nn.softplus(-x)) + _times(1 - z, jax.nn.softplus(x))
    return jnp.where(counted, y, 0), Partial(_pullback, logits, labels)


def _pullback(logits: Array, labels: Array, dy: Array) -> tuple[Array, Array | None]:
    x, z, counted = _wide(logits, labels)
    dy = jnp.where(counted, dy, 0)
    dlogits = narrow(dy * ((1 - z) * jax.nn.sigmoid(x) - z * jax.nn.sigmoid(-x)), logits)
    is_float = jnp.issubdtype(labels.dtype, jnp.floating)
    return dlogits, narrow(-dy * jnp.where(jnp.isinf(x), 0, x), labels) if is_float else None


def cost(
    logits: Float[Abstract, "*n"],
    labels: Float[Abstract, "*n"] | Integer[Abstract, "*n"] | Bool[Abstract, "*n"],
) -> Cost:
    """No products: 0 flops, and the bytes of logits, labels and y."""
    return Cost(0, traffic(reference, logits, labels))


def _wide(logits: Array, labels: Array) -> tuple[Array, Array, Array | bool]:
    """Logits, labels, and whether an element has a loss; the logit of one that has none is 0."""
    if jnp.issubdtype(labels.dtype, jnp.floating):
        logits, labels = common(logits, labels)
    counted = _counts(labels)
    x = jnp.where(counted, logits.astype(wide(logits.dtype)), 0)
    return x, labels.astype(x.dtype), counted


def _times(weight: Array, x: Array) -> Array:
    """weight · x, where 0 · ∞ is 0."""
    return weight * jnp.where((weight == 0) & jnp.isinf(x), 0, x)


def _counts(labels: Array) -> Array | bool:
    """Whether an element has a loss."""
    return (labels == 0) | (labels == 1) if jnp.issubdtype(labels.dtype, jnp.integer) else True
