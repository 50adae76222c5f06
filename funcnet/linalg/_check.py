"""Checks of the numbers and keys that the functions of this folder are given."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from funcnet._numbers import whole
from funcnet.errors import DTypeError, ValueRangeError, describe

__all__ = ["damping", "key", "whole"]


def damping(where: str, value: Any, dtype: str, *, zero: bool) -> jax.Array:
    """`value` as an array without axes: a real number of 0 or more, or above 0. It may be traced.

    Raises:
        DTypeError: it is no real number.
        ValueRangeError: it is negative, or 0 where that may not be.
    """
    number = isinstance(value, int | float | np.ndarray | np.generic | jax.Array) and not np.shape(value)
    if not number or not any(jnp.issubdtype(jnp.result_type(value), t) for t in (jnp.floating, jnp.integer)):
        raise DTypeError(
            f"{where}: damping is no number.",
            path="damping",
            expected="a real number",
            actual=describe(value),
        )
    if not isinstance(value, Tracer) and not (float(value) >= 0 if zero else float(value) > 0):
        raise ValueRangeError(
            f"{where}: damping is {value}.",
            path="damping",
            expected="0 or more" if zero else "above 0",
            actual=str(value),
        )
    return jnp.asarray(value, dtype)


def key(where: str, value: Any, *, none: bool = True) -> None:
    """Refuse what is no random key, nor None where there may be none.

    Raises:
        DTypeError: it is something else.
    """
    if not isinstance(value, jax.Array | np.ndarray) and not (none and value is None):
        raise DTypeError(
            f"{where}: key is no random key.",
            path="key",
            expected="jax.random.key(seed)" + (", or None" if none else ""),
            actual=describe(value),
        )
