"""Shapes: broadcasting that is written out, and sizes that may be symbols."""

from collections.abc import Sequence
from typing import Any

import jax.export
import jax.numpy as jnp
from jaxtyping import Array

from funcnet import rules

__all__ = ["align", "axes_of", "count", "known"]


def align(x: Array, ndim: int) -> Array:
    """x with `ndim` axes, those that it lacks in front: users may have forbidden jnp to add them itself."""
    return jnp.expand_dims(x, tuple(range(ndim - x.ndim)))


def axes_of(axis: int | Sequence[int]) -> tuple[int, ...]:
    """One axis, or several, as a tuple of them."""
    plain = rules.plain(axis)
    return plain if isinstance(plain, tuple) else (plain,)


def count(size: Any, dtype: Any) -> Any:
    """`size` in arithmetic with arrays of `dtype`: beside floats an int may be too large for int32."""
    if known(size):
        return float(size) if jnp.issubdtype(dtype, jnp.floating) else size
    return jnp.asarray(size).astype(dtype)


def known(*sizes: Any) -> bool:
    """Whether no size is a symbol, as `jax.export` traces with them: they cannot always be compared."""
    return not any(map(jax.export.is_symbolic_dim, sizes))
