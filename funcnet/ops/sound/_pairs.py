"""The check of real pairs [*n, 2], the elements of a spectrum."""

from typing import Any

import jax

from funcnet.errors import ShapeError, describe
from funcnet.ops import _check

__all__ = ["check"]


def check(where: str, x: Any) -> jax.Array:
    """`x`, a float array whose last axis is a pair."""
    x = _check.floating(where, "x", x)
    if x.ndim == 0 or x.shape[-1] != 2:
        raise ShapeError(
            f"{where}: the last axis of x is not a pair.",
            path="x",
            expected="x: float[*n, 2], real and imaginary part",
            actual=f"x: {describe(x)}",
        )
    return x
