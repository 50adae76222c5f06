"""What ctc and its decoding share: which frames, labels and examples count, and their checks."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from funcnet.errors import DTypeError, ShapeError, ValueRangeError, describe
from funcnet.ops import _check
from funcnet.ops._dtype import signed
from funcnet.ops._shape import known

__all__ = ["check_batch", "check_labels", "check_lengths", "checked", "count", "leading", "needed", "sizes"]


def sizes(
    logits: Array, labels: Array, lengths: Array | None, label_lengths: Array | None, blank: int
) -> tuple[Array, Array, Array, Array]:
    """Labels, which of them count [*n, l], which frames do [*n, t], and which examples do [*n].

    Labels that do not count are the blank; an example that does not, or has too few frames, has none.
    """
    t, v = logits.shape[-2:]
    labels, inside = signed(labels), leading(labels, label_lengths)
    fits = (labels >= 0) & (labels < v) & (labels != int(blank))
    counted = (fits | ~inside).all(-1) & _within(lengths, t) & _within(label_lengths, labels.shape[-1])
    real = leading(logits[..., 0], lengths) & counted[..., None]
    enough = count(real) >= needed(labels, inside)
    labels = jnp.where(inside & fits, labels, int(blank))
    return labels, inside, real & enough[..., None], counted


def leading(x: Array, lengths: Array | None) -> Array:
    """Which of the last axis of x are among the first, by number."""
    if lengths is None:
        return jnp.ones(x.shape, bool)
    lengths = signed(lengths)
    return lax.broadcasted_iota(lengths.dtype, x.shape, x.ndim - 1) < lengths[..., None]


def count(these: Array) -> Array:
    return these.sum(-1, dtype=jnp.int32)


def needed(labels: Array, inside: Array) -> Array:
    """How many frames the labels need: one for each, and one for a blank between equal neighbours."""
    repeats = (labels[..., 1:] == labels[..., :-1]) & inside[..., 1:]
    return count(inside) + count(repeats)


def _within(lengths: Array | None, most: Any) -> Array | bool:
    if lengths is None:
        return True
    lengths = signed(lengths)
    return (lengths >= 0) & (lengths <= (most if known(most) else jnp.asarray(most).astype(lengths.dtype)))


# ---- checks -----------------------------------------------------------------------------------------------


def checked(where: str, logits: Any, lengths: Any, blank: Any) -> tuple[Array, Array | None, int]:
    """Logits [*n, t, v], the numbers of their frames or None, and the blank, one of their classes."""
    logits = _check.floating(where, "logits", logits)
    _check.rank(where, "logits", logits, 2, "*n, t, v")
    t, v = logits.shape[-2:]
    blank = _check.integer(where, "blank", blank, least=0)
    if known(v) and blank >= v:
        raise ValueRangeError(
            f"{where}: blank is {blank}, which is no class.",
            path="blank",
            expected=f"0 ≤ blank < {v}     (logits: {describe(logits)})",
            actual=f"blank = {blank}",
        )
    return logits, check_lengths(where, "lengths", lengths, logits, t, "frames"), blank


def check_batch(
    where: str, path: str, x: Any, like: Array, *, of: str = "logits", axes: int = 2, more: str = ""
) -> Array:
    """`x`, integers with the leading axes of `like` (all but `axes`), and one more if that has a name."""
    leading = like.shape[: like.ndim - axes]
    dims = ", ".join([*map(str, leading), *([more] if more else [])])
    expected, dtype = f"{path}: int[{dims}]     ({of}: {describe(like)})", _check.dtype_of(x)
    if dtype is None or not jnp.issubdtype(dtype, jnp.integer):
        raise DTypeError(
            f"{where}: {path} are not an array of integers.",
            path=path,
            expected=expected,
            actual=f"{path}: {describe(x)}",
            hint="wrap them: jnp.asarray(...)." if isinstance(x, int | list | tuple) else None,
        )
    if x.shape[: len(leading)] != leading or x.ndim != len(leading) + bool(more):
        raise ShapeError(
            f"{where}: {path} do not have the shape that {of} {'ask' if of.endswith('s') else 'asks'} for.",
            path=path,
            expected=expected,
            actual=f"{path}: {describe(x)}",
        )
    return jnp.asarray(x)


def check_lengths(
    where: str, path: str, lengths: Any, like: Array, most: Any, what: str, *, axes: int = 2
) -> Array | None:
    if lengths is None:
        return None
    of = "logits" if axes == 2 else "labels"
    lengths = check_batch(where, path, lengths, like, of=of, axes=axes)
    every = _check.seen(lengths)
    if every is not None and known(most):
        outside = every[(every < 0) | (every > most)]
        if outside.size:
            raise ValueRangeError(
                f"{where}: {path} hold {outside[0]}, outside [0, {most}].",
                path=path,
                expected=f"0 ≤ {path} ≤ {most}     (there are {most} {what})",
                actual=f"{path}: {describe(lengths)}, {outside.size} of {every.size} outside, "
                f"from {outside.min()} to {outside.max()}",
            )
    return lengths


def check_labels(where: str, labels: Array, label_lengths: Array | None, blank: int, logits: Array) -> None:
    """Labels that can be looked at and count are classes, and not the blank."""
    if not _check.concrete(labels) or (label_lengths is not None and not _check.concrete(label_lengths)):
        return
    every, number = (
        np.asarray(labels),
        labels.shape[-1] if label_lengths is None else np.asarray(label_lengths),
    )
    inside = np.arange(every.shape[-1]) < np.expand_dims(number, -1)
    source = f"logits: {describe(logits)}"
    hint = (
        None if label_lengths is not None else "are some of them padding? label_lengths says how many count."
    )
    seen = np.where(inside, every, blank)
    _check.indices(where, "labels", seen, logits.shape[-1], source, hint=lambda *_: hint)
    blanks = inside & (every == blank)
    if blanks.any():
        raise ValueRangeError(
            f"{where}: labels hold {blank}, which is the blank.",
            path="labels",
            expected=f"labels: classes other than {blank}     (blank = {blank})",
            actual=f"labels: {describe(labels)}, {blanks.sum()} of {every.size} the blank",
            hint=hint if blanks[..., -1:].any() else None,
        )
