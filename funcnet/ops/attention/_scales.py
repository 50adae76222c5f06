"""The check of scale and softcap, which attention and its cache share."""

import math
import numbers
from typing import Any

import numpy as np

from funcnet.errors import DTypeError, ValueRangeError, describe, shorten
from funcnet.ops import _check

__all__ = ["scales"]


def scales(where: str, scale: Any, softcap: Any) -> tuple[float | None, float | None]:
    """Both as Python's floats, or None."""
    scale = _number(where, "scale", scale, "None for 1/√e")
    return scale, _number(where, "softcap", softcap, "None for no bound", positive=True)


def _number(where: str, name: str, value: Any, none: str, *, positive: bool = False) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        raise DTypeError(
            f"{where}: {name} is not a number.",
            path=name,
            expected=f"{name}: a float, or {none}",
            actual=f"{name}: {describe(value)}",
            hint="multiply q by it: then it has a gradient too."
            if name == "scale" and hasattr(value, "dtype")
            else None,
        )
    found = _check.number(where, name, value, least=-math.inf)
    if positive and found <= 0:
        raise ValueRangeError(
            f"{where}: {name} is {shorten(value)}, but a positive number is needed.",
            path=name,
            expected=f"{name} > 0, or {none}",
            actual=f"{name} = {shorten(value)}",
        )
    return found
