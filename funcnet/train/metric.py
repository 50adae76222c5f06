"""What a loss and a metric may be: numbers, arrays of them, and means that know their weight."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from funcnet.errors import DTypeError, ShapeError, StructureError, describe

__all__ = ["Mean", "checked", "quotient", "reading", "scalar", "wide"]


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


def checked(where: str, path: str, metrics: Any) -> dict[str, Any]:
    """`metrics`, once they are known to be a dict of real arrays, and Means of real scalars.

    Raises:
        StructureError: they are no dict with strings for names.
        DTypeError, ShapeError: one of them is something else.
    """
    if not isinstance(metrics, Mapping):
        raise StructureError(
            f"{where}: {path} did not return a dict.",
            path=path,
            expected="a dict of arrays",
            actual=describe(metrics),
            hint="does it return its result?" if metrics is None else None,
        )
    for name, value in metrics.items():
        if not isinstance(name, str):
            raise StructureError(
                f"{where}: {path} returned a dict in which a name is no string.",
                path=path,
                expected="a dict of arrays",
                actual=describe(name),
            )
        at = f'metrics["{name}"]'
        if isinstance(value, Mean):
            for part, leaf in zip(Mean._fields, value, strict=True):
                scalar(where, f"{at}.{part}", leaf)
        elif not _real(value):
            raise DTypeError(
                f"{where}: {at} is neither a real number nor an array of them.",
                path=at,
                expected="a real number or array, or a Mean",
                actual=describe(value),
                hint="bring its entries into the one dict, each with its own name"
                if isinstance(value, Mapping)
                else None,
            )
    return dict(metrics)


def scalar(where: str, path: str, value: Any) -> None:
    """Refuse what is no real number.

    Raises:
        DTypeError, ShapeError: it is not real, or an array of them.
    """
    if _real(value) and not np.shape(value):
        return
    kind, hint = (ShapeError, "sum it: .sum()") if _real(value) else (DTypeError, None)
    raise kind(
        f"{where}: {path} is not a real number.",
        path=path,
        expected="a real scalar",
        actual=describe(value),
        hint=hint,
    )


def reading(where: str, path: str, metrics: Any) -> dict[str, Any]:
    """Metrics as Python's numbers and lists of them, a Mean as its quotient; waits for their values.

    Raises:
        StructureError, DTypeError, ShapeError: as `checked`.
    """
    if type(metrics) is dict:
        quick = {name: _number(value) for name, value in metrics.items() if type(name) is str}
        if len(quick) == len(metrics) and not any(value is None for value in quick.values()):
            return quick
    if isinstance(metrics, Mapping):
        metrics = {
            name: Mean(*map(_host, value)) if isinstance(value, Mean) else _host(value)
            for name, value in metrics.items()
        }
    values = checked(where, path, metrics)
    return {name: _python(value) for name, value in values.items()}


def _number(value: Any) -> Any:
    """What a step gives as a rule, a real array, at once; None: it is to be looked at."""
    dtype = getattr(value, "dtype", None)
    if isinstance(dtype, np.dtype) and dtype.kind in "biuf" and not isinstance(value, np.ma.MaskedArray):
        return np.asarray(value).tolist()
    return None


def _python(value: Any) -> Any:
    if isinstance(value, Mean):
        total, weight = map(float, value)
        return total / weight if weight else float("nan")
    return value.tolist() if isinstance(value, np.ndarray) else value


def _host(value: Any) -> Any:
    """In NumPy, if it is an array there."""
    if value is None or isinstance(value, str | Mapping):
        return value
    if isinstance(value, jax.Array):
        return np.asarray(value) if _real(value) else value
    try:
        array = np.asarray(value)
    except Exception:  # of another library; what it is will be refused by its name
        return value
    return array if _real(array) else value


def _real(value: Any) -> bool:
    """Whether it is a real number, a bool, or an array of them."""
    if isinstance(value, bool | int | float):
        return True
    if not isinstance(value, jax.Array | np.ndarray | np.generic) or isinstance(value, np.ma.MaskedArray):
        return False
    return any(jnp.issubdtype(value.dtype, kind) for kind in (jnp.bool_, jnp.integer, jnp.floating))
