"""From ctc's logits to labels: the best path, and a search over labellings."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32, Integer

from funcnet.ops import _check
from funcnet.ops._dtype import wide
from funcnet.ops.loss._alignment import checked, leading

__all__ = ["beam", "greedy"]


def greedy(
    logits: Float[Array, "*n t v"], *, lengths: Integer[Array, "*n"] | None = None, blank: int = 0
) -> tuple[Int32[Array, "*n t"], Int32[Array, "*n"]]:
    """The labels of the most probable path: the best class of each frame, without repetitions and blanks.

    Args:
        logits: [*n, t, v].
        lengths: [*n], how many frames of each example count; all if None.
        blank: the class that is no label.

    Returns:
        labels [*n, t], then −1; and how many there are [*n].

    Raises:
        ShapeError, DTypeError, ValueRangeError: as `apply` of ctc.

    >>> h = jax.nn.one_hot(jnp.array([2, 2, 0, 2, 1]), 3)
    >>> [v.tolist() for v in greedy(h)]
    [[2, 2, 1, -1, -1], 3]
    """
    logits, lengths, blank = checked("ctc.greedy", logits, lengths, blank)
    best = logits.argmax(-1).astype(jnp.int32)
    before = jnp.concatenate([jnp.full_like(best[..., :1], blank), best[..., :-1]], -1)
    kept = leading(best, lengths) & (best != blank) & (best != before)
    number = kept.sum(-1, dtype=jnp.int32)
    labels = jnp.take_along_axis(best, jnp.argsort(~kept, axis=-1, stable=True), -1)
    return jnp.where(leading(best, number), labels, -1), number


def beam(
    logits: Float[Array, "*n t v"],
    *,
    width: int = 16,
    lengths: Integer[Array, "*n"] | None = None,
    blank: int = 0,
) -> tuple[Int32[Array, "*n k t"], Int32[Array, "*n k"], Float[Array, "*n k"]]:
    """The k = `width` most probable labellings that a search from frame to frame finds, the best first.

    Paths that become the same labels are added up, so that the best labelling need not be that of the best
    path: Hannun, Maas, Jurafsky and Ng, arXiv 1408.2873, algorithm 1, without a language model. A frame costs
    width · v additions, and width² · t comparisons.

    Args:
        logits: [*n, t, v].
        width: how many labellings are kept from frame to frame.
        lengths: [*n], how many frames of each example count; all if None.
        blank: the class that is no label.

    Returns:
        labels [*n, k, t], then −1; how many there are [*n, k]; and log p(labels) [*n, k] in float32 or wider,
        of the paths that were kept, which is at most −`apply`. Where there are fewer than k labellings, the
        last have no labels and −∞.

    Raises:
        ShapeError, DTypeError, ValueRangeError: as `apply` of ctc; or width is less than 1.

    >>> h = jnp.log(jnp.array([[0.6, 0.4], [0.6, 0.4]]))  # the best path, two blanks, has 0.36
    >>> labels, number, log_p = beam(h, width=2)
    >>> labels.tolist(), number.tolist(), [round(p, 2) for p in jnp.exp(log_p).tolist()]
    ([[1, -1], [-1, -1]], [1, 0], [0.64, 0.36])
    """
    where = "ctc.beam"
    logits, lengths, blank = checked(where, logits, lengths, blank)
    width = _check.positive(where, "width", width)
    batch, (t, v) = logits.shape[:-2], logits.shape[-2:]
    b = math.prod(batch)
    real = leading(logits[..., 0], lengths)
    log_p = jax.nn.log_softmax(jnp.where(real[..., None], logits.astype(wide(logits.dtype)), 0))
    search = functools.partial(_search, width=width, blank=blank)
    labels, number, total = search(log_p.reshape(b, t, v), real.reshape(b, t))
    return labels.reshape(*batch, width, t), number.reshape(*batch, width), total.reshape(*batch, width)


@functools.partial(jax.jit, static_argnames=("width", "blank"))
def _search(log_p: Array, real: Array, *, width: int, blank: int) -> tuple[Array, Array, Array]:
    return jax.vmap(functools.partial(_of_one, width=width, blank=blank))(log_p, real)


def _of_one(log_p: Array, real: Array, *, width: int, blank: int) -> tuple[Array, Array, Array]:
    """One example: of each labelling its labels, their number, and log p of its paths by their last frame."""
    t, v = log_p.shape
    place, classes = jnp.arange(t, dtype=jnp.int32)[None], jnp.arange(v, dtype=jnp.int32)[None]

    def frame(states: Any, at: Any) -> Any:
        log_p, real = at
        labels, number, in_blank, in_label = states
        total = jnp.logaddexp(in_blank, in_label)
        is_last = place == number[:, None] - 1
        last = jnp.where(is_last, labels, 0).sum(-1, dtype=jnp.int32)  # 0 of none, which is in no label
        is_same = (classes == last[:, None]) & (number > 0)[:, None]
        longer = jnp.where(is_same, in_blank[:, None], total[:, None]) + log_p[None]
        longer = jnp.where(classes == blank, -jnp.inf, longer)

        # Where i, one label longer, is j, its paths are paths of j.
        found = total > -jnp.inf
        before = jnp.where(is_last, -1, labels)
        into = (labels[:, None] == before[None]).all(-1) & (number[:, None] + 1 == number[None])
        into &= found[:, None] & found[None]
        merged = jnp.where(into, longer[:, last], -jnp.inf).max(0)
        longer = jnp.where((into[..., None] & is_same[None]).any(1), -jnp.inf, longer)

        blanks, repeats = total + log_p[blank], jnp.logaddexp(in_label + log_p[last], merged)
        every = jnp.concatenate([jnp.logaddexp(blanks, repeats), longer.reshape(-1)])
        log_total, best = lax.top_k(every, width)
        is_new = best >= width
        new = jnp.maximum(best - width, 0)
        source = jnp.where(is_new, new // v, best)
        end = is_new[:, None] & (place == number[source][:, None])
        after = (
            jnp.where(end, (new % v)[:, None], labels[source]),
            number[source] + is_new.astype(jnp.int32),
            jnp.where(is_new, -jnp.inf, blanks[source]),
            jnp.where(is_new, log_total, repeats[source]),
        )
        return tuple(jnp.where(real, a, b) for a, b in zip(after, states, strict=True)), None

    nothing = jnp.full(width, -jnp.inf, log_p.dtype)
    first = jnp.full((width, t), -1, jnp.int32), jnp.zeros(width, jnp.int32), nothing.at[0].set(0), nothing
    (labels, number, *parts), _ = lax.scan(frame, first, (log_p, real))
    total = jnp.logaddexp(*parts)
    found = total > -jnp.inf
    return jnp.where(found[:, None], labels, -1), jnp.where(found, number, 0), total
