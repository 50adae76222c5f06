"""Shapes: broadcasting that is written out, and sizes that may be symbols."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

__all__ = ["align", "count", "known"]


def align(x: Array, ndim: int) -> Array:
    """x with `ndim` axes, those that it lacks in front: users may have forbidden jnp to add them itself."""
    return jnp.expand_dims(x, tuple(range(ndim - x.ndim)))


def count(size: Any, dtype: Any) -> Any:
    """`size` in arithmetic with arrays of `dtype`: beside floats an int may be too large for int32."""
    if known(size):
        return float(size) if jnp.issubdtype(dtype, jnp.floating) else size
    return jnp.asarray(size).astype(dtype)


def known(*sizes: Any) -> bool:
    """Whether the sizes are numbers: `jax.export` traces with symbols, of which not all can be compared."""
    return all(isinstance(size, int) for size in sizes)
