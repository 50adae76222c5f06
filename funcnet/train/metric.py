"""What a metric may be: numbers, arrays of them, and means that know their weight."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from funcnet.errors import DTypeError, StructureError, describe
from funcnet.mean import Mean, real, scalar

__all__ = ["checked", "reading"]


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
        elif not real(value):
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
        return np.asarray(value) if real(value) else value
    try:
        array = np.asarray(value)
    except Exception:  # of another library; what it is will be refused by its name
        return value
    return array if real(array) else value
