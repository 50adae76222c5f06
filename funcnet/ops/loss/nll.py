"""Negative log-likelihood of labels under given log-probabilities: y[n] = −prediction[n, label[n]].

Dimensions: *n any leading axes (batch), v classes: prediction [*n, v], labels [*n] integers, y [*n], one
value per example; the mean is the caller's. Behind a `log_softmax` it is the cross entropy, which takes
logits and keeps their digits. y is in float32 or wider.
"""

import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float, Integer

from funcnet import rules
from funcnet.errors import describe
from funcnet.ops import _check
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._dtype import narrow, signed, wide
from funcnet.ops.loss._alignment import check_batch
from funcnet.ops.loss._classes import counts

__all__ = ["apply", "cost", "reference", "vjp"]


def reference(
    prediction: Float[Array, "*n v"], labels: Integer[Array, "*n"], *, ignore_index: int | None = None
) -> Float[Array, "*n"]:
    """−prediction at the label; 0 where that is `ignore_index` or no class."""
    labels = signed(labels)
    counted = counts(labels, prediction.shape[-1], ignore_index)
    log_p = jnp.where(counted[..., None], prediction.astype(wide(prediction.dtype)), 0)
    return -jnp.take_along_axis(log_p, jnp.where(counted, labels, 0)[..., None], -1)[..., 0]


@rules.operation
def apply(
    prediction: Float[Array, "*n v"], labels: Integer[Array, "*n"], *, ignore_index: int | None = None
) -> Float[Array, "*n"]:
    """Take −log p of each example's label.

    Differentiated by `vjp`, which compares labels with an iota; JAX's own rule scatters.

    Args:
        prediction: [*n, v] log-probabilities. They are not normalised.
        labels: [*n] integers in [0, v).
        ignore_index: examples with this label have no loss and no gradient; PyTorch's default is −100.

    Returns:
        y [*n], in the dtype of prediction, but at least float32. Under `jax.jit` a label outside [0, v)
        counts as ignored.

    Raises:
        ShapeError: the shapes do not fit.
        DTypeError: prediction is not floating-point, labels not integers, or ignore_index is no integer.
        ValueRangeError: labels, where they are concrete, are outside [0, v).

    >>> print(fn.nll.apply(jnp.log(jnp.array([[0.5, 0.5]])), jnp.array([1])))
    [0.693]
    """
    where = "nll.apply"
    prediction = _check.floating(where, "prediction", prediction)
    _check.rank(where, "prediction", prediction, 1, "*n, v")
    if ignore_index is not None:
        ignore_index = _check.integer(where, "ignore_index", ignore_index, none="None")
    labels = check_batch(where, "labels", labels, prediction, of="prediction", axes=1)
    source = f"prediction: {describe(prediction)}"
    _check.classes(where, labels, prediction.shape[-1], source, ignore_index)
    return rules.call(vjp, prediction, labels, ignore_index=ignore_index)


def vjp(
    prediction: Float[Array, "*n v"], labels: Integer[Array, "*n"], *, ignore_index: int | None = None
) -> tuple[Float[Array, "*n"], Partial]:
    """y and its pullback: dprediction = −dy at the label, else 0."""
    y = reference(prediction, labels, ignore_index=ignore_index)
    return y, Partial(rules.bind(_pullback, ignore_index=ignore_index), prediction, labels)


def _pullback(prediction: Array, labels: Array, dy: Array, *, ignore_index: int | None) -> tuple[Array, None]:
    labels = signed(labels)
    counted = counts(labels, prediction.shape[-1], ignore_index)
    place = lax.broadcasted_iota(labels.dtype, prediction.shape, prediction.ndim - 1)
    at_label = counted[..., None] & (place == labels[..., None])
    return narrow(jnp.where(at_label, -dy[..., None], 0), prediction), None


def cost(
    prediction: Float[Abstract, "*n v"], labels: Integer[Abstract, "*n"], *, ignore_index: int | None = None
) -> Cost:
    """No products: 0 flops, and the bytes of prediction, labels and y."""
    return Cost(0, traffic(reference, prediction, labels, ignore_index=ignore_index))
