"""Cross entropy of labels with softmax(logits): y[n] = −Σ_i q[n, i] log p[n, i], p = softmax(logits).

Dimensions: *n any leading axes (batch), v classes or vocabulary: logits [*n, v], labels [*n] integers (q is 1
at the label) or [*n, v] probabilities (q), y [*n], one value per example; the mean over examples is the
caller's. Smoothing by ε replaces q by (1 − ε) q + ε/v: Szegedy et al., "Rethinking the Inception architecture
for computer vision", arXiv 1512.00567, §7. y, and all that is summed, is in float32 or wider.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float, Integer

from funcnet import rules
from funcnet.errors import DTypeError, ShapeError, describe
from funcnet.ops import _check
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._dtype import common, narrow, signed, wide
from funcnet.ops.loss._classes import counts, logsumexp

__all__ = ["apply", "cost", "reference", "vjp"]


def reference(
    logits: Float[Array, "*n v"],
    labels: Integer[Array, "*n"] | Float[Array, "*n v"],
    *,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
) -> Float[Array, "*n"]:
    """−Σ q log softmax(logits), 0 · ∞ being 0, and 0 where the label is `ignore_index` or no class."""
    v = logits.shape[-1]
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        logits, q = common(logits, labels)
        log_p = jax.nn.log_softmax(logits.astype(wide(logits.dtype)))
        q = (1 - label_smoothing) * q.astype(log_p.dtype) + label_smoothing / v
        return -(q * jnp.where((q == 0) & (log_p == -jnp.inf), 0, log_p)).sum(-1)
    labels = signed(labels)
    counted = counts(labels, v, ignore_index)
    log_p = jax.nn.log_softmax(jnp.where(counted[..., None], logits.astype(wide(logits.dtype)), 0))
    y = -jnp.take_along_axis(log_p, jnp.where(counted, labels, 0)[..., None], -1)[..., 0]
    if label_smoothing:
        y = (1 - label_smoothing) * y - label_smoothing * log_p.mean(-1)
    return jnp.where(counted, y, 0)


@rules.operation
def apply(
    logits: Float[Array, "*n v"],
    labels: Integer[Array, "*n"] | Float[Array, "*n v"],
    *,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
) -> Float[Array, "*n"]:
    """The loss of each example: −log of the probability that softmax(logits) gives to its label.

    Differentiated by `vjp`, which keeps logits, in their own dtype, and three numbers per example; JAX's
    own rule keeps the exponentials and the one-hot labels too, in float32 or wider. A mean with weights, one
    for each class: ``w = weight[labels]``, ``(w * loss).sum() / w.sum()``; of all batches of an evaluation
    together, ``fn.train.Mean((w * loss).sum(), w.sum())``.

    Args:
        logits: [*n, v]. A class of −∞ has the probability 0. Rows of −∞ alone, or with +∞ or NaN in them,
            give NaN, unless they are ignored.
        labels: [*n] integers in [0, v), or [*n, v] probabilities; these have a gradient too,
            but for those of 0 at logits of −∞, whose share of the loss is 0.
        label_smoothing: ε in [0, 1): the share of each label that is spread evenly over all classes.
        ignore_index: examples with this label have no loss and no gradient, whatever their logits are;
            integer labels only.

    Returns:
        y [*n], in the dtype that holds logits and probabilities, but at least float32. Under `jax.jit` an
        integer label outside [0, v) counts as ignored.

    Raises:
        ShapeError: the shapes do not fit.
        DTypeError: logits are not floating-point, labels neither integers nor floats, or an option has the
            wrong type.
        ValueRangeError: label_smoothing is outside [0, 1); or labels, where they are concrete, are outside
            [0, v), or as probabilities outside [0, 1].

    >>> logits = jnp.array([[2.0, 0.0], [0.0, 0.0]])
    >>> print(fn.cross_entropy.apply(logits, jnp.array([0, 1])))
    [0.127 0.693]
    """
    where = "cross_entropy.apply"
    logits = _check.floating(where, "logits", logits)
    _check.rank(where, "logits", logits, 1, "*n, v")
    smoothing = _check.rate(where, "label_smoothing", label_smoothing)
    ignored = ignore_index
    if ignored is not None:
        ignored = _check.integer(where, "ignore_index", ignored, none="None")
    labels = _check_labels(where, logits, labels, ignored)
    return rules.call(vjp, logits, labels, label_smoothing=smoothing, ignore_index=ignored)


def vjp(
    logits: Float[Array, "*n v"],
    labels: Integer[Array, "*n"] | Float[Array, "*n v"],
    *,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
) -> tuple[Float[Array, "*n"], Partial]:
    """y and its pullback: dlogits = dy · (p Σq − q), and for probabilities dlabels = −(1 − ε) dy · log p.

    p is computed again from logits and two numbers of each example, their largest m and the log Σ e^{h − m}
    that remains; q of an integer label by comparing it with an iota. p − 1 at the label is computed as
    e^{log p} − 1, from a third number, log p: for a label that is nearly certain p rounds to 1.
    """
    if jnp.issubdtype(labels.dtype, jnp.integer):
        return _vjp_of_classes(logits, labels, label_smoothing, ignore_index)
    h, q = _wide(logits, labels)
    m, r = logsumexp(h)
    log_total = jnp.log1p(r)
    q, log_p = _weighed(h, q, m, log_total, label_smoothing)
    y = -(q * log_p).sum(-1)
    pull = rules.bind(_pullback_of_probabilities, label_smoothing=label_smoothing)
    return y, Partial(pull, logits, labels, m, log_total)


def _vjp_of_classes(
    logits: Array, labels: Array, label_smoothing: float, ignore_index: int | None
) -> tuple[Array, Partial]:
    h, counted = _counted(logits, labels, ignore_index)
    m, r = logsumexp(h)
    log_total = jnp.log1p(r)
    below = m[..., None] - h
    y = certain = log_total + jnp.where(_one_hot(labels, logits), below, 0).sum(-1)  # −log p of the label
    if label_smoothing:
        y = (1 - label_smoothing) * certain + label_smoothing * (log_total + below.mean(-1))
    pull = rules.bind(_pullback_of_classes, label_smoothing=label_smoothing, ignore_index=ignore_index)
    return jnp.where(counted, y, 0), Partial(pull, logits, labels, m, log_total, certain)


def _pullback_of_classes(
    logits: Array,
    labels: Array,
    m: Array,
    log_total: Array,
    certain: Array,
    dy: Array,
    *,
    label_smoothing: float,
    ignore_index: int | None,
) -> tuple[Array, None]:
    h, counted = _counted(logits, labels, ignore_index)
    p = jnp.exp(h - m[..., None] - log_total[..., None])
    at_label = (jnp.expm1(-certain) + label_smoothing)[..., None]  # p − (1 − ε)
    slope = jnp.where(_one_hot(labels, logits), at_label, p) - label_smoothing / p.shape[-1]
    return narrow(jnp.where(counted, dy, 0)[..., None] * slope, logits), None


def _pullback_of_probabilities(
    logits: Array, labels: Array, m: Array, log_total: Array, dy: Array, *, label_smoothing: float
) -> tuple[Array, Array]:
    h, q = _wide(logits, labels)
    q, log_p = _weighed(h, q, m, log_total, label_smoothing)
    of_h = h - m[..., None] - log_total[..., None]
    slope = q * jnp.expm1(of_h) + (q.sum(-1, keepdims=True) - q) * jnp.exp(of_h)
    return narrow(dy[..., None] * slope, logits), narrow(
        (label_smoothing - 1) * dy[..., None] * log_p, labels
    )


def cost(
    logits: Float[Abstract, "*n v"],
    labels: Integer[Abstract, "*n"] | Float[Abstract, "*n v"],
    *,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
) -> Cost:
    """No products: 0 flops, and the bytes of logits, labels and y."""
    options = {"label_smoothing": label_smoothing, "ignore_index": ignore_index}
    return Cost(0, traffic(reference, logits, labels, **options))


def _wide(logits: Array, labels: Array) -> list[Array]:
    return [v.astype(wide(v.dtype)) for v in common(logits, labels)]


def _weighed(h: Array, q: Array, m: Array, log_total: Array, label_smoothing: float) -> tuple[Array, Array]:
    """q, smoothed, and log p; both 0 where log p is −∞ and has no weight, since 0 · ∞ is nothing here."""
    log_p = h - m[..., None] - log_total[..., None]
    if label_smoothing:
        return (1 - label_smoothing) * q + label_smoothing / q.shape[-1], log_p
    nothing = (h == -jnp.inf) & (q == 0)
    return jnp.where(nothing, 0, q), jnp.where(nothing, 0, log_p)


def _counted(logits: Array, labels: Array, ignore_index: int | None) -> tuple[Array, Array]:
    """The logits, wide, and whether an example has a loss; the logits of one that has none are 0.

    Masked afterwards instead, what is infinite there would be NaN in a tangent or in a second derivative.
    """
    counted = counts(signed(labels), logits.shape[-1], ignore_index)
    return jnp.where(counted[..., None], logits.astype(wide(logits.dtype)), 0), counted


def _one_hot(labels: Array, logits: Array) -> Array:
    """Whether i is the label [*n, v]: no row has a True where the label is no class."""
    labels = signed(labels)
    return labels[..., None] == lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1)


# ---- checks -----------------------------------------------------------------------------------------------


def _check_labels(where: str, logits: Array, labels: Array, ignore_index: int | None) -> Array:
    classes, probabilities = logits.shape[:-1], logits.shape
    expected = (
        f"labels: int[{', '.join(map(str, classes))}] or float[{', '.join(map(str, probabilities))}]"
        f"     (logits: {describe(logits)})"
    )
    dtype, hint = _check.dtype_of(labels), None
    if dtype is None or not (jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.floating)):
        if dtype is None:
            hint = "wrap them: jnp.asarray(...)."
        elif dtype == jnp.bool_:
            hint = (
                "one-hot? labels.argmax(-1)."
                if labels.shape == probabilities
                else "cast: labels.astype(int)."
            )
        raise DTypeError(
            f"{where}: labels are neither integers nor floats.",
            path="labels",
            expected=expected,
            actual=f"labels: {describe(labels)}",
            hint=hint,
        )
    integers = jnp.issubdtype(dtype, jnp.integer)
    if labels.shape != (classes if integers else probabilities):
        if integers and labels.shape == probabilities:
            hint = "one-hot? labels.argmax(-1)."
        elif labels.shape == (*classes, 1):
            hint = "labels[..., 0] fits." if integers else "class numbers? labels[..., 0].astype(jnp.int32)."
        elif labels.shape == classes:
            hint = "class numbers? labels.astype(jnp.int32)."
        raise ShapeError(
            f"{where}: labels do not have the shape that logits ask for.",
            path="labels",
            expected=expected,
            actual=f"labels: {describe(labels)}",
            hint=hint,
        )
    if ignore_index is not None and not integers:
        raise DTypeError(
            f"{where}: ignore_index is compared with integer labels, and these are probabilities.",
            path="ignore_index",
            expected="ignore_index: int or None, and labels: int[*n]",
            actual=f"ignore_index: {describe(ignore_index)}, labels: {describe(labels)}",
        )
    if not integers:
        _check.unit(where, "labels", _check.floating(where, "labels", labels))
    else:
        _check.classes(where, labels, logits.shape[-1], f"logits: {describe(logits)}", ignore_index)
    return jnp.asarray(labels)
