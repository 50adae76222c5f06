"""Integers that are given as options: Python's, or what knows that it is one."""

import operator
from typing import Any

import jax.core
import numpy as np

from funcnet.errors import DTypeError, ValueRangeError, describe

__all__ = ["index", "whole"]


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
