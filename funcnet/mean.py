"""A mean that is not divided yet: what a loss may return, and whatever averages adds up."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from funcnet.errors import DTypeError, ShapeError, describe

__all__ = ["Mean", "of_loss", "quotient", "real", "scalar", "wide"]


class Mean(NamedTuple):
    """A mean that is not divided yet, total / weight: what a loss may return, and a metric be.

    Whatever averages further, over batches or devices, adds up the totals and the weights, and divides once.
    So a batch with few labels counts little, and one without any not at all:

        losses = fn.cross_entropy.apply(logits, labels, ignore_index=-1)
        return fn.train.Mean(losses.sum(), (labels != -1).sum())

    Weights of examples, or of classes, are the same line: `Mean((w * losses).sum(), w.sum())`.

    A batch of weight 0 says nothing: its loss counts as its total, 0, and a step leaves the parameters and
    the optimizer's state as they are. Of a whole data set without weight, `evaluate` gives NaN.

    Attributes:
        total: the sum of what is averaged; a real scalar.
        weight: of how many, or the sum of their weights; a real scalar, 0 or more.
    """

    total: Any
    weight: Any


def quotient(mean: Mean) -> Float[Array, ""]:
    """total / weight, in float32 or wider; where the weight is 0 the total, since a NaN would end a run."""
    total, weight = wide(mean.total), jnp.asarray(mean.weight)
    return total / jnp.where(weight == 0, 1, weight.astype(total.dtype))


def wide(value: Any) -> Array:
    """`value` in float32 if its own type is narrower, for sums and quotients."""
    value = jnp.asarray(value)
    narrow = jnp.issubdtype(value.dtype, jnp.floating) and jnp.finfo(value.dtype).bits < 32
    exact = not jnp.issubdtype(value.dtype, jnp.inexact)
    return value.astype(jnp.float32) if narrow or exact else value


def scalar(where: str, path: str, value: Any) -> None:
    """Refuse what is no real number.

    Raises:
        DTypeError, ShapeError: it is not real, or an array of them.
    """
    if real(value) and not np.shape(value):
        return
    kind, hint = (ShapeError, "sum it: .sum()") if real(value) else (DTypeError, None)
    raise kind(
        f"{where}: {path} is not a real number.",
        path=path,
        expected="a real scalar",
        actual=describe(value),
        hint=hint,
    )


def of_loss(where: str, value: Any) -> Float[Array, ""] | Mean:
    """What a loss returned, if that is a real floating-point scalar, or a Mean of such.

    Raises:
        DTypeError, ShapeError: it is something else.
    """
    if not isinstance(value, Mean):
        return _scalar(where, value)
    scalar(where, "the loss's weight", value.weight)
    return Mean(_scalar(where, value.total), jnp.asarray(value.weight))


def _scalar(where: str, value: Any) -> Float[Array, ""]:
    if not isinstance(value, jax.Array | np.ndarray | np.generic | float | int | complex):
        raise DTypeError(
            f"{where}: the loss returned {describe(value)}, not a number.",
            path="loss",
            expected="a floating-point scalar",
            actual=describe(value),
            hint="does it return its result?" if value is None else None,
        )
    value = jnp.asarray(value)
    if value.shape:
        raise ShapeError(
            f"{where}: the loss is not a scalar.",
            path="loss",
            expected=f"{value.dtype}[]",
            actual=describe(value),
            hint="average the losses of the examples: .mean()",
        )
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise DTypeError(
            f"{where}: the loss is not a real floating-point number, so it has no gradient to follow.",
            path="loss",
            expected="a floating-point scalar",
            actual=describe(value),
        )
    return value


def real(value: Any) -> bool:
    """Whether it is a real number, a bool, or an array of them."""
    if isinstance(value, bool | int | float):
        return True
    if not isinstance(value, jax.Array | np.ndarray | np.generic) or isinstance(value, np.ma.MaskedArray):
        return False
    return any(jnp.issubdtype(value.dtype, kind) for kind in (jnp.bool_, jnp.integer, jnp.floating))
