"""Connectionist temporal classification: y[n] = −log p(labels[n] | logits[n]), summed over all alignments.

A path π gives every frame a class or the blank, with probability Π_t p_t(π_t), p = softmax(logits). Without
its repetitions, and then without its blanks, it is a labelling: a a − a b is a a b. p(labels) is the sum over
all paths that become the labels.

Dimensions: *n any leading axes (batch), t frames, v classes with the blank among them, l labels: logits
[*n, t, v], labels [*n, l] integers, y [*n], one value per example. y, and all that is summed, is in float32
or wider.
Source: Graves, Fernández, Gomez and Schmidhuber, "Connectionist temporal classification: labelling
unsegmented sequence data with recurrent neural networks", ICML 2006, eq. 1 to 8.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Integer

from funcnet import rules
from funcnet.ops import _check
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._dtype import narrow, signed, wide
from funcnet.ops.loss._alignment import (
    check_batch,
    check_labels,
    check_lengths,
    checked,
    count,
    leading,
    needed,
    sizes,
)
from funcnet.ops.loss._classes import logsumexp
from funcnet.ops.loss._decoding import beam, greedy

__all__ = ["apply", "beam", "cost", "feasible", "greedy", "reference", "vjp"]


def reference(
    logits: Float[Array, "*n t v"],
    labels: Integer[Array, "*n l"],
    *,
    lengths: Integer[Array, "*n"] | None = None,
    label_lengths: Integer[Array, "*n"] | None = None,
    blank: int = 0,
) -> Float[Array, "*n"]:
    """−log Σ α_t(s) over the last two states s, α by eq. 6 and 7 in logarithms; blanks around every label."""
    labels, inside, real, counted = sizes(logits, labels, lengths, label_lengths, blank)
    log_p = jax.nn.log_softmax(jnp.where(real[..., None], logits.astype(wide(logits.dtype)), 0))
    states = jnp.full((*labels.shape[:-1], 2 * labels.shape[-1] + 1), blank, labels.dtype)
    states = states.at[..., 1::2].set(labels)

    def moved(x: Array, by: int, filling: float | int) -> Array:
        filled = jnp.full_like(x, filling, shape=(*x.shape[:-1], by))
        return jnp.concatenate([filled, x], -1)[..., : x.shape[-1]]

    skips = (states != blank) & (states != moved(states, 2, blank))

    def frame(alpha: Array, at: tuple[Array, Array]) -> tuple[Array, None]:
        log_p, real = at
        from_label = jnp.where(skips, moved(alpha, 2, -jnp.inf), -jnp.inf)
        total = _log_sum(jnp.stack([alpha, moved(alpha, 1, -jnp.inf), from_label]))
        return jnp.where(real[..., None], jnp.take_along_axis(log_p, states, -1) + total, alpha), None

    first = jnp.full(states.shape, -jnp.inf, log_p.dtype).at[..., 0].set(0)
    alpha, _ = lax.scan(frame, first, (jnp.moveaxis(log_p, -2, 0), jnp.moveaxis(real, -1, 0)))
    last = lax.broadcasted_iota(jnp.int32, states.shape, states.ndim - 1) - 2 * count(inside)[..., None]
    total = _log_sum(jnp.moveaxis(jnp.where((last == 0) | (last == -1), alpha, -jnp.inf), -1, 0))
    return jnp.where(counted, -total, 0)


def _log_sum(terms: Array) -> Array:
    """log Σ e^x along the first axis; −∞, with the derivative 0, where all are −∞."""
    m = lax.stop_gradient(terms.max(0))
    some = m > -jnp.inf
    total = jnp.exp(terms - jnp.where(some, m, 0)[None]).sum(0)
    return jnp.where(some, m + jnp.log(jnp.where(some, total, 1)), -jnp.inf)


@rules.operation
def apply(
    logits: Float[Array, "*n t v"],
    labels: Integer[Array, "*n l"],
    *,
    lengths: Integer[Array, "*n"] | None = None,
    label_lengths: Integer[Array, "*n"] | None = None,
    blank: int = 0,
) -> Float[Array, "*n"]:
    """The loss of each example: −log of the probability of its labels, over all ways to align them.

    Differentiated by `vjp`, which keeps 2 l + 1 numbers of each frame; JAX's own rule keeps many times that.

    Args:
        logits: [*n, t, v], the blank among the classes. A class of −∞ has the probability 0.
        labels: [*n, l] integers in [0, v), not the blank. They may repeat; l may be 0.
        lengths: [*n], how many frames of each example count, at most t; all if None. What the others hold,
            NaN too, is not seen.
        label_lengths: [*n], how many labels of each example count; all if None. The others may be anything.
        blank: the class that is no label.

    Returns:
        y [*n], in the dtype of logits, but at least float32. Where no path becomes the labels, it is +∞ with
        the gradient 0: where there are too few frames, see `feasible`, or too many classes of −∞. Under
        `jax.jit` an example counts as ignored, with the loss 0, if a label of it is the blank or outside
        [0, v), or a length outside its range.

    Raises:
        ShapeError: the shapes do not fit.
        DTypeError: logits are not floating-point, labels or lengths not integers, or blank is traced.
        ValueRangeError: blank is no class; or, where they are concrete, labels are no class or the blank, or
            lengths negative, beyond t, or label_lengths beyond l.

    >>> logits = jnp.zeros((4, 3))  # four frames, three symbols, 0 the blank
    >>> print(fn.ctc.apply(logits, jnp.array([1, 2])))
    1.686399
    """
    where = "ctc.apply"
    logits, lengths, blank = checked(where, logits, lengths, blank)
    labels = check_batch(where, "labels", labels, logits, more="l")
    label_lengths = check_lengths(where, "label_lengths", label_lengths, logits, labels.shape[-1], "labels")
    check_labels(where, labels, label_lengths, blank, logits)
    return rules.call(vjp, logits, labels, lengths=lengths, label_lengths=label_lengths, blank=blank)


def vjp(
    logits: Float[Array, "*n t v"],
    labels: Integer[Array, "*n l"],
    *,
    lengths: Integer[Array, "*n"] | None = None,
    label_lengths: Integer[Array, "*n"] | None = None,
    blank: int = 0,
) -> tuple[Float[Array, "*n"], Partial]:
    """y and its pullback: dlogits_t = dy · (softmax(logits_t) − γ_t).

    γ_t(k) is the probability that a path is at k, given that it becomes the labels. The states of a path,
    read backwards, are a Markov chain: of those in s at t, the share that was in r before is α_{t−1}(r) of
    the sum over all from which s is reached. So γ comes from these shares alone, numbers between 0 and 1.
    """
    options = {"lengths": lengths, "label_lengths": label_lengths}
    y, shares = _forward(_given(logits, labels, **options, blank=blank), blank=int(blank))
    y = y.reshape(logits.shape[:-2])
    return y, Partial(rules.bind(_pullback, blank=int(blank)), logits, labels, lengths, label_lengths, shares)


def _pullback(
    logits: Array,
    labels: Array,
    lengths: Array | None,
    label_lengths: Array | None,
    shares: Any,
    dy: Array,
    *,
    blank: int,
) -> tuple[Array, None]:
    given = _given(logits, labels, lengths=lengths, label_lengths=label_lengths, blank=blank)
    slope, counts = _backward(given, shares, blank=blank)
    dlogits = jnp.where(counts[..., None], dy.reshape(counts.shape[0], 1, 1) * slope, 0)
    return narrow(dlogits.reshape(logits.shape), logits), None


def cost(
    logits: Float[Abstract, "*n t v"],
    labels: Integer[Abstract, "*n l"],
    *,
    lengths: Integer[Abstract, "*n"] | None = None,
    label_lengths: Integer[Abstract, "*n"] | None = None,
    blank: int = 0,
) -> Cost:
    """No products: 0 flops, and the bytes of logits, labels, lengths and y."""
    options = {"lengths": lengths, "label_lengths": label_lengths, "blank": blank}
    return Cost(0, traffic(reference, logits, labels, **options))


def feasible(
    labels: Integer[Array, "*n l"],
    lengths: Integer[Array, "*n"],
    *,
    label_lengths: Integer[Array, "*n"] | None = None,
) -> Bool[Array, "*n"]:
    """Whether `lengths` frames are enough for the labels: one for each, and a blank between equal neighbours.

    The loss of those that are not is +∞. A mean leaves them out by weights, for an infinite loss would stop a
    run: ``w = ctc.feasible(labels, lengths)``, ``fn.train.Mean(jnp.where(w, losses, 0).sum(), w.sum())``.

    Args:
        labels: [*n, l].
        lengths: [*n], of frames.
        label_lengths: [*n], how many labels of each example count; all if None.

    Raises:
        ShapeError: the shapes do not fit.
        DTypeError: an argument is not an array of integers.
        ValueRangeError: label_lengths, where they are concrete, are negative or beyond l.

    >>> feasible(jnp.array([[3, 5, 5]] * 2), jnp.array([3, 4])).tolist()
    [False, True]
    """
    where = "ctc.feasible"
    labels = _check.integer_array(where, "labels", labels, "*n, l")
    lengths = check_batch(where, "lengths", lengths, labels, of="labels", axes=1)
    l = labels.shape[-1]
    label_lengths = check_lengths(where, "label_lengths", label_lengths, labels, l, "labels", axes=1)
    inside = leading(labels, label_lengths)
    lengths = signed(lengths)
    return lengths >= needed(labels, inside).astype(lengths.dtype)


# ---- what counts, frames first ----------------------------------------------------------------------------


class _Given(NamedTuple):
    """Frames [t, b, ...]: log p of blank and labels, and what of them counts."""

    log_p: Array  # [t, b, v]
    labels: Array  # [b, l]
    inside: Array  # [b, l]
    real: Array  # [t, b]
    counted: Array  # [b]


def _given(
    logits: Array, labels: Array, *, lengths: Array | None, label_lengths: Array | None, blank: int
) -> _Given:
    labels, inside, real, counted = sizes(logits, labels, lengths, label_lengths, blank)
    h = jnp.where(real[..., None], logits.astype(wide(logits.dtype)), 0)
    m, r = logsumexp(h)
    log_p = h - m[..., None] - jnp.log1p(r)[..., None]
    b, (t, v) = math.prod(logits.shape[:-2]), logits.shape[-2:]
    labels, inside = (x.reshape(b, x.shape[-1]) for x in (labels, inside))
    log_p, real = (jnp.swapaxes(x, 0, 1) for x in (log_p.reshape(b, t, v), real.reshape(b, t)))
    return _Given(log_p, labels, inside, real, counted.reshape(b))


# ---- both passes: the states are the blanks [b, l + 1] and the labels [b, l] ------------------------------


def _either(a: Array, b: Array) -> tuple[Array, Array]:
    """log(e^a + e^b), and a − b, of which the share of a in the sum is the sigmoid.

    Chosen, not jnp.maximum and abs: where a = b those have other derivatives than the sum.
    """
    less = a < b
    high, low = jnp.where(less, b, a), jnp.where(less, a, b)
    gap = low - jnp.where(high == -jnp.inf, 0, high)
    return high + jnp.log1p(jnp.exp(gap)), jnp.where(less, gap, -gap)


@functools.partial(jax.jit, static_argnames="blank")
def _forward(given: _Given, *, blank: int) -> tuple[Array, Any]:
    """y, and the differences of logarithms from which the shares of the backward pass follow."""
    log_p, labels, inside, real, counted = given
    skips = _skips(labels)
    at_labels = jnp.where(inside[None], jnp.take_along_axis(log_p, labels[None], -1), -jnp.inf)
    first = lax.broadcasted_iota(jnp.int32, (labels.shape[0], labels.shape[1] + 1), 1) == 0
    first = jnp.where(first, 0.0, -jnp.inf).astype(log_p.dtype)
    states = first, jnp.full(labels.shape, -jnp.inf, log_p.dtype)

    def frame(states: Any, at: Any) -> Any:
        at_blank, at_labels, real = at
        blanks, labels = states
        to_blank, of_blank = _either(blanks, _after(labels, -jnp.inf))
        other = jnp.where(skips, to_blank[:, :-1], blanks[:, :-1])
        to_label, of_label = _either(labels, other)
        new = to_blank + at_blank[:, None], to_label + at_labels
        top = jnp.maximum(new[0].max(-1), new[1].max(-1, initial=-jnp.inf))
        top = lax.stop_gradient(jnp.where(real & (top > -jnp.inf), top, 0))
        states = [jnp.where(real[:, None], v - top[:, None], old) for v, old in zip(new, states, strict=True)]
        return tuple(states), (of_blank, of_label, top)

    states = tuple(rules.same_variance(*states, log_p, labels, inside, real)[:2])
    (blanks, labels), (*shares, top) = lax.scan(frame, states, (log_p[..., blank], at_labels, real))
    n = count(inside)[:, None]
    one = lambda v, at: jnp.where(_at(v, at), v, -jnp.inf).max(-1, initial=-jnp.inf)
    total, last = _either(one(blanks, n), one(labels, n - 1))
    live = counted & (total != -jnp.inf)
    y = jnp.where(live, -(total + top.sum(0)), jnp.where(counted, jnp.inf, 0))
    return y, (*shares, last, live)


@functools.partial(jax.jit, static_argnames="blank")
def _backward(given: _Given, shares: Any, *, blank: int) -> tuple[Array, Array]:
    """softmax − γ [b, t, v], and at which frames of which examples it is the gradient, not 0."""
    log_p, labels, inside, real, _ = given
    *shares, last, live = shares
    skips, n = _skips(labels), count(inside)[:, None]

    def frame(states: Any, at: Any) -> Any:
        of_blank, of_label, real = at
        blanks, labels = states
        stays = labels * jax.nn.sigmoid(of_label)
        comes = labels * jax.nn.sigmoid(-of_label)
        into = blanks + _before(jnp.where(skips, comes, 0))  # what came as what is in a blank now
        before = into * jax.nn.sigmoid(of_blank) + _before(jnp.where(skips, 0, comes))
        before = before, stays + (into * jax.nn.sigmoid(-of_blank))[:, 1:]
        before = [jnp.where(real[:, None], v, old) for v, old in zip(before, states, strict=True)]
        return tuple(before), (blanks.sum(-1), labels)

    zeros = jnp.zeros((n.shape[0], labels.shape[1] + 1), log_p.dtype)
    states = [
        jnp.where(_at(v, n - i), jax.nn.sigmoid(d)[:, None], 0)
        for i, (v, d) in enumerate(((zeros, last), (zeros[:, 1:], -last)))
    ]
    states = tuple(rules.same_variance(*states, *shares, real, labels)[:2])
    _, (blanks, at_labels) = lax.scan(frame, states, (*shares, real), reverse=True)
    one_hot = labels[..., None] == lax.broadcasted_iota(labels.dtype, (*labels.shape, log_p.shape[-1]), 2)
    gamma = jnp.einsum("tbl,blv->btv", at_labels, one_hot.astype(log_p.dtype), precision="highest")
    is_blank = lax.broadcasted_iota(jnp.int32, gamma.shape, 2) == blank
    gamma = jnp.where(is_blank, jnp.swapaxes(blanks, 0, 1)[..., None], gamma)
    return jnp.exp(jnp.swapaxes(log_p, 0, 1)) - gamma, jnp.swapaxes(real, 0, 1) & live[:, None]


def _skips(labels: Array) -> Array:
    """Whether a path may come to a label from the one before, past the blank between them."""
    return jnp.concatenate([jnp.zeros_like(labels[:, :1], bool), labels[:, 1:] != labels[:, :-1]], -1)


def _after(x: Array, filling: float) -> Array:
    """x [b, l] at the blank after each label: [b, l + 1]."""
    return jnp.concatenate([jnp.full_like(x, filling, shape=(x.shape[0], 1)), x], -1)


def _before(x: Array) -> Array:
    """x [b, l] at the blank before each label: [b, l + 1]."""
    return jnp.concatenate([x, jnp.zeros_like(x, shape=(x.shape[0], 1))], -1)


def _at(x: Array, i: Array) -> Array:
    """Whether a place of the last axis of x is i [b, 1]."""
    return lax.broadcasted_iota(i.dtype, x.shape, 1) == i
