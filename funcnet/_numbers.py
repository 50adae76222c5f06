"""Integers that are given as options, Python's or what knows that it is one; and bytes in three digits."""

import operator
from typing import Any

import jax.core
import numpy as np

from funcnet.errors import DTypeError, ValueRangeError, describe

__all__ = ["index", "of_bytes", "whole"]


def index(value: Any) -> int | None:
    """Python's int of an integer that is known; True is none."""
    if isinstance(value, bool | np.bool_ | jax.core.Tracer):
        return None
    try:
        return operator.index(value)
    except Exception:  # also what another library's array raises
        return None


def whole(where: str, path: str, value: Any, least: int, expected: str | None = None) -> int:
    """`value`, an integer of `least` or more; `expected` says so in other words.

    Raises:
        DTypeError: it is no integer.
        ValueRangeError: it is less.
    """
    number = index(value)
    if number is None:
        raise DTypeError(
            f"{where}: {path} is no integer.",
            path=path,
            expected=expected or f"an integer, {least} or more",
            actual=describe(value),
        )
    if number < least:
        raise ValueRangeError(
            f"{where}: {path} is {number}.",
            path=path,
            expected=expected or f"{least} or more",
            actual=str(number),
        )
    return number


def of_bytes(n: int | float) -> str:
    """So many bytes in three digits.

    >>> of_bytes(95e9), of_bytes(1234), of_bytes(999_700), of_bytes(7)
    ('95.0 GB', '1.23 kB', '1.00 MB', '7 B')
    """
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if n >= 0.9995 * unit:
            return f"{n / unit:.{2 - (n >= 9.995 * unit) - (n >= 99.95 * unit)}f} {name}"
    return f"{n:.0f} B"
