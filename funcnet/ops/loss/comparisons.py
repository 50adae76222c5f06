"""Losses that are a line each: how far a prediction is from a target. One number an element, or an example.

A section is one operation: the definition, as it is written; the value as it is computed, where the
definition overflows or cancels; the pullback; and the operation, made of them. Of huber to kl_div prediction,
target and y are [*n], one value an element; of dice to triplet they are [*n, d], and y is [*n], one value an
example. The mean is the caller's. y, and all that is computed, is in float32 or wider.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Integer

from funcnet.errors import DTypeError, describe
from funcnet.ops import _check
from funcnet.ops._dtype import common, wide
from funcnet.ops._elementwise import elementwise

__all__ = ["cosine", "dice", "focal", "hinge", "huber", "kl_div", "smooth_l1", "triplet"]

_finite = functools.partial(_check.number, least=-math.inf)
_above_0 = functools.partial(_check.number, strict=True)
_example = functools.partial(elementwise, widens=True, examples=True)
_element = functools.partial(elementwise, widens=True)


def _wide(*arrays: Array) -> list[Array]:
    return [v.astype(wide(v.dtype)) for v in common(*arrays)]


# ---- huber, smooth_l1: a parabola near 0, lines beyond ----------------------------------------------------


def _huber(
    prediction: Float[Array, "*n"], target: Float[Array, "*n"], delta: float = 1.0
) -> Float[Array, "*n"]:
    """y = e²/2 where abs(e) ≤ delta, else delta (abs(e) − delta/2), with e = prediction − target.

    Source: Huber, "Robust estimation of a location parameter", 1964.
    """
    prediction, target = _wide(prediction, target)
    e = abs(prediction - target)
    return jnp.where(e <= delta, e * (e / 2), delta * (e - delta / 2))


def _huber_pullback(prediction: Array, target: Array, dy: Array, delta: float) -> tuple[Array, Array]:
    de = jnp.clip(prediction - target, -delta, delta) * dy
    return de, -de


huber = _element(_huber, _huber_pullback, checks={"delta": _above_0})


def _smooth_l1(
    prediction: Float[Array, "*n"], target: Float[Array, "*n"], beta: float = 1.0
) -> Float[Array, "*n"]:
    """y = e²/(2 beta) where abs(e) < beta, else abs(e) − beta/2, e = prediction − target: huber / beta.

    With beta = 0 it is abs(e), whose derivative at the kink e = 0 is 0. Source: Girshick, "Fast R-CNN",
    arXiv 1504.08083, eq. 3.
    """
    prediction, target = _wide(prediction, target)
    e = abs(prediction - target)
    return jnp.where(e < beta, e * (e / (2 * beta or 1)), e - beta / 2)


def _smooth_l1_pullback(prediction: Array, target: Array, dy: Array, beta: float) -> tuple[Array, Array]:
    e = prediction - target
    de = jnp.where(abs(e) < beta, e / (beta or 1), jnp.sign(e)) * dy
    return de, -de


smooth_l1 = _element(_smooth_l1, _smooth_l1_pullback, checks={"beta": _check.number})

# ---- hinge: y = max(margin − target · prediction, 0) ------------------------------------------------------


def _hinge(
    prediction: Float[Array, "*n"], target: Float[Array, "*n"], margin: float = 1.0
) -> Float[Array, "*n"]:
    """y = max(margin − target · prediction, 0), the target being −1 or 1.

    At the kink, where the product is the margin, the derivative is that of inside, as PyTorch's
    margin_ranking_loss has it. Source: Cortes and Vapnik, "Support-vector networks", 1995.
    """
    prediction, target = _wide(prediction, target)
    y = margin - target * prediction
    return jnp.where(y < 0, 0, y)


def _hinge_pullback(prediction: Array, target: Array, dy: Array, margin: float) -> tuple[Array, Array]:
    beyond = target * prediction > margin
    dy = jnp.where(beyond, 0, dy)
    return -dy * jnp.where(beyond, 0, target), -dy * jnp.where(beyond, 0, prediction)


hinge = _element(_hinge, _hinge_pullback, checks={"margin": _finite})

# ---- focal: binary cross entropy, times how wrong p is to the power of gamma ------------------------------

_Labels = Float[Array, "*n"] | Integer[Array, "*n"] | Bool[Array, "*n"]


def _focal(
    logits: Float[Array, "*n"], labels: _Labels, gamma: float = 2.0, alpha: float | None = None
) -> Float[Array, "*n"]:
    """y = w m^gamma · (−z log p − (1 − z) log(1 − p)), p = sigmoid(logits), labels z, m = (1−p) z + p (1−z).

    The weight w is alpha z + (1 − alpha) (1 − z), or 1 where alpha is None. Labels are booleans, integers 0
    and 1, or floats in [0, 1], with a gradient; under `jax.jit` an integer that is neither has no loss.
    Source: Lin, Goyal, Girshick, He and Dollár, "Focal loss for dense object detection", arXiv 1708.02002,
    eq. 5.
    """
    x, z, counted = _sides(logits, labels)
    p, q = jax.nn.sigmoid(x), jax.nn.sigmoid(-x)
    wrong = q * z + p * (1 - z)
    power = jnp.where(wrong > 0, wrong, 1) ** gamma if gamma else 1
    entropy = _times(z, jax.nn.softplus(-x)) + _times(1 - z, jax.nn.softplus(x))
    weight = 1 if alpha is None else alpha * z + (1 - alpha) * (1 - z)
    return jnp.where(counted & ((wrong != 0) | (not gamma)), weight * power * entropy, 0)


def _focal_pullback(
    logits: Array, labels: Array, dy: Array, gamma: float, alpha: float | None
) -> tuple[Array, Array | None]:
    x, z, counted = _sides(logits, labels)
    p, q = jax.nn.sigmoid(x), jax.nn.sigmoid(-x)
    wrong = q * z + p * (1 - z)
    some = jnp.where(wrong > 0, wrong, 1)
    power = jnp.where(wrong > 0, some**gamma, 0) if gamma else jnp.ones_like(wrong)
    entropy = _times(z, jax.nn.softplus(-x)) + _times(1 - z, jax.nn.softplus(x))
    weight, dweight = (1, 0) if alpha is None else (alpha * z + (1 - alpha) * (1 - z), 2 * alpha - 1)
    more = gamma * (entropy / some) * power  # in this order, for all may be tiny
    dx = weight * (power * ((1 - z) * p - z * q) + more * (p * q) * (1 - 2 * z))
    dy = jnp.where(counted, dy, 0)
    if not jnp.issubdtype(labels.dtype, jnp.floating):
        return dy * dx, None
    finite = jnp.where(jnp.isinf(x), 0, x)
    return dy * dx, dy * (weight * (more * (q - p) - power * finite) + dweight * power * entropy)


def _sides(logits: Array, labels: Array) -> tuple[Array, Array, Array]:
    """Logits, labels, and whether an element has a loss; the logit of one that has none is 0."""
    if jnp.issubdtype(labels.dtype, jnp.floating):
        logits, labels = common(logits, labels)
    integer = jnp.issubdtype(labels.dtype, jnp.integer)
    counted = (labels == 0) | (labels == 1) if integer else jnp.ones(labels.shape, bool)
    x = jnp.where(counted, logits.astype(wide(logits.dtype)), 0)
    return x, labels.astype(x.dtype), counted


def _times(weight: Array, x: Array) -> Array:
    """weight · x, where 0 · ∞ is 0."""
    return weight * jnp.where((weight == 0) & jnp.isinf(x), 0, x)


def _check_labels(where: str, path: str, labels: Any) -> Array:
    dtype = _check.dtype_of(labels)
    kinds = (jnp.floating, jnp.integer, jnp.bool_)
    if dtype is None or not any(jnp.issubdtype(dtype, kind) for kind in kinds):
        raise DTypeError(
            f"{where}: {path} are not an array of floats, integers or booleans.",
            path=path,
            expected=f"{path}: float[...], the shape of logits",
            actual=f"{path}: {describe(labels)}",
            hint="wrap them: jnp.asarray(...)." if dtype is None else None,
        )
    if jnp.issubdtype(dtype, jnp.floating):
        labels = _check.floating(where, path, labels)
    _check.unit(where, path, labels)
    return jnp.asarray(labels)


def _check_alpha(where: str, name: str, value: Any) -> float | None:
    return None if value is None else _check.rate(where, name, value, one=True)


focal = _element(
    _focal,
    _focal_pullback,
    checks={"labels": _check_labels, "gamma": _check.number, "alpha": _check_alpha},
)

# ---- kl_div: y = q (log q − log p) ------------------------------------------------------------------------


def _kl_div(
    prediction: Float[Array, "*n"], target: Float[Array, "*n"], log_target: bool = False
) -> Float[Array, "*n"]:
    """y = q (log q − log p): the prediction is log p, the target q, or with log_target log q.

    Summed over the classes it is the divergence of p from q. As PyTorch has it, its prediction is no logits:
    `log_softmax` comes before. Where q is 0, y is 0, whatever p is, and so are its derivatives. Source:
    Kullback and Leibler, "On information and sufficiency", 1951.
    """
    log_p, target = _wide(prediction, target)
    none = target == (-jnp.inf if log_target else 0)
    log_p = jnp.where(none, 0, log_p)
    if log_target:
        log_q = jnp.where(none, 0, target)
        return jnp.where(none, 0, jnp.exp(log_q) * (log_q - log_p))
    q = jnp.where(none, 1, target)
    return jnp.where(none, 0, q * (jnp.log(q) - log_p))


def _kl_div_pullback(prediction: Array, target: Array, dy: Array, log_target: bool) -> tuple[Array, Array]:
    none = target == (-jnp.inf if log_target else 0)
    dy = jnp.where(none, 0, dy)
    log_p = jnp.where(none, 0, prediction)
    if log_target:
        log_q = jnp.where(none, 0, target)
        q = jnp.exp(log_q) * dy
        return -q, q * (log_q - log_p + 1)
    q = jnp.where(none, 1, target)
    return -q * dy, dy * (jnp.log(q) - log_p + 1)


kl_div = _element(_kl_div, _kl_div_pullback, checks={"log_target": _check.flag})

# ---- dice: how little two sets of positions overlap -------------------------------------------------------


def _dice(
    logits: Float[Array, "*n d"],
    labels: Float[Array, "*n d"] | Integer[Array, "*n d"] | Bool[Array, "*n d"],
    smooth: float = 1.0,
) -> Float[Array, "*n"]:
    """y = 1 − (2 Σ p z + smooth) / (Σ p + Σ z + smooth) over the last axis, p = sigmoid(logits), labels z.

    Images are reshaped, ``x.reshape(n, -1)``, or, for one value for each class, their positions put last.
    Labels as those of focal. With smooth = 0, of nothing in nothing y is 0, and so is its derivative. Source:
    Milletari, Navab and Ahmadi, "V-Net", arXiv 1606.04797, with sums in the place of sums of squares.
    """
    x, z, counted = _sides(logits, labels)
    p = jnp.where(counted, jax.nn.sigmoid(x), 0)
    z = jnp.where(counted, z, 0)
    whole = p.sum(-1) + z.sum(-1) + smooth
    return jnp.where(whole > 0, 1 - (2 * (p * z).sum(-1) + smooth) / jnp.where(whole > 0, whole, 1), 0)


def _parts(logits: Array, labels: Array, smooth: float) -> tuple[Array, ...]:
    """p, 1 − p and z, all 0 where a label does not count; what is in one only, and in both, summed."""
    x, z, counted = _sides(logits, labels)
    p, q, z = (jnp.where(counted, v, 0) for v in (jax.nn.sigmoid(x), jax.nn.sigmoid(-x), z))
    apart = (p * (1 - z) + q * z).sum(-1, keepdims=True)
    return p, q, z, apart, (p + z).sum(-1, keepdims=True) + smooth


def _dice_value(logits: Array, labels: Array, smooth: float) -> Array:
    """The share of what is in one only, without 1 − a number that is nearly 1."""
    *_, apart, whole = _parts(logits, labels, smooth)
    return (apart / jnp.where(whole > 0, whole, 1))[..., 0]


def _dice_pullback(logits: Array, labels: Array, dy: Array, smooth: float) -> tuple[Array, Array | None]:
    p, q, z, apart, whole = _parts(logits, labels, smooth)
    some = jnp.where(whole > 0, whole, 1)
    share = apart / some
    dy = jnp.where(whole > 0, dy[..., None], 0) / some
    dx = dy * (1 - 2 * z - share) * (p * q)
    return dx, dy * (1 - 2 * p - share) if jnp.issubdtype(labels.dtype, jnp.floating) else None


dice = _example(
    _dice, _dice_pullback, value=_dice_value, checks={"labels": _check_labels, "smooth": _check.number}
)

# ---- cosine, triplet: directions and distances of vectors -------------------------------------------------


def _cosine(prediction: Float[Array, "*n d"], target: Float[Array, "*n d"]) -> Float[Array, "*n"]:
    """y = 1 − cos of the angle between prediction and target, over the last axis.

    A vector of zeros has no direction: its cosine is 0, and no derivative goes through it. PyTorch's
    cosine_embedding_loss, of equal pairs.
    """
    prediction, target = _wide(prediction, target)
    norms = _norm(prediction) * _norm(target)
    none = norms == 0
    return 1 - jnp.where(none, 0, (prediction * target).sum(-1) / jnp.where(none, 1, norms))


def _norm(x: Array) -> Array:
    """The norm of x, with the derivative 0 at 0."""
    square = (x * x).sum(-1)
    return jnp.where(square == 0, 0, jnp.sqrt(jnp.where(square == 0, 1, square)))


def _unit(x: Array) -> tuple[Array, Array]:
    """x by its norm, and the norm, both 0 where x is, with derivative 0.

    Nothing large or small is squared, in derivatives neither; and XLA:CPU takes the reciprocal of more than
    8.5e37 for 0, so that what is large is made smaller before it is divided by.
    """
    largest = lax.stop_gradient(abs(x).max(-1, keepdims=True, initial=0))
    zero, small = largest == 0, jnp.where(largest > 1, jnp.asarray(2.0**-8, x.dtype), 1)
    size = jnp.where(zero | ~jnp.isfinite(largest), 1, largest) * small
    x = x * small / size
    length = jnp.sqrt(jnp.where(zero, 1, (x * x).sum(-1, keepdims=True)))
    return jnp.where(zero, 0, x / length), jnp.where(zero, 0, length * (size / small))


def _cosine_value(prediction: Array, target: Array) -> Array:
    """Half the square of the distance of the unit vectors, which does not cancel where they are near."""
    (u, a), (v, b) = _unit(prediction), _unit(target)
    return jnp.where((a == 0) | (b == 0), 1, ((u - v) ** 2).sum(-1, keepdims=True) / 2)[..., 0]


def _cosine_pullback(prediction: Array, target: Array, dy: Array) -> tuple[Array, Array]:
    (u, a), (v, b) = _unit(prediction), _unit(target)
    none = (a == 0) | (b == 0)
    y, dy = ((u - v) ** 2).sum(-1, keepdims=True) / 2, jnp.where(none, 0, dy[..., None])
    a, b = jnp.where(none, 1, a), jnp.where(none, 1, b)
    return dy * (u - v - y * u) / a, dy * (v - u - y * v) / b


cosine = _example(_cosine, _cosine_pullback, value=_cosine_value)


def _triplet(
    anchor: Float[Array, "*n d"],
    positive: Float[Array, "*n d"],
    negative: Float[Array, "*n d"],
    margin: float = 1.0,
) -> Float[Array, "*n"]:
    """y = max(d(anchor, positive) − d(anchor, negative) + margin, 0), d the distance over the last axis.

    The derivative of a distance that is 0 is 0; at the kink it is that of inside. PyTorch's
    triplet_margin_loss, without the 1e-6 that it adds to every difference. Source: Balntas, Riba, Ponsa and
    Mikolajczyk, "Learning local feature descriptors with triplets", 2016.
    """
    anchor, positive, negative = _wide(anchor, positive, negative)
    y = _norm(anchor - positive) - _norm(anchor - negative) + margin
    return jnp.where(y < 0, 0, y)


def _triplet_value(anchor: Array, positive: Array, negative: Array, margin: float) -> Array:
    y = _unit(anchor - positive)[1] - _unit(anchor - negative)[1] + margin
    return jnp.where(y < 0, 0, y)[..., 0]


def _triplet_pullback(
    anchor: Array, positive: Array, negative: Array, dy: Array, margin: float
) -> tuple[Array, Array, Array]:
    (u, near), (v, far) = _unit(anchor - positive), _unit(anchor - negative)
    beyond = near - far + margin < 0
    dy = jnp.where(beyond, 0, dy[..., None])
    u, v = (jnp.where(beyond, 0, w) for w in (u, v))
    return dy * (u - v), -dy * u, dy * v


triplet = _example(_triplet, _triplet_pullback, value=_triplet_value, checks={"margin": _finite})
