"""Blocks of a grid and channels, one for the other: what `pixel_shuffle` and `pixel_unshuffle` share."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from funcnet.ops import _check
from funcnet.ops.grid import _axes

__all__ = ["block", "check", "permutation", "shuffled", "unshuffled"]

_ORDERS = ("channel first", "channel last")


def check(where: str, x: jax.Array | jax.ShapeDtypeStruct, factor: Any, order: Any) -> tuple[int, ...]:
    """`factor` as a tuple, one per spatial axis, of which x has so many."""
    factors = _axes.entries(where, "factor", factor)
    _check.one_of(where, "order", order, _ORDERS)
    _axes.spatial(where, x, len(factors))
    return factors


def block(factor: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The places in a block, in C order."""
    return itertools.product(*map(range, factor))


def shuffled(x: Any, factor: tuple[int, ...], order: str) -> Any:
    """x [*n, *size, c · Π r] as [*n, *(size · r), c]."""
    d, b = len(factor), x.ndim - len(factor) - 1
    c = x.shape[-1] // math.prod(factor)
    last = order == "channel last"
    x = x.reshape(*x.shape[:-1], *((*factor, c) if last else (c, *factor)))
    r = b + d + (0 if last else 1)  # where the axes of the block begin
    pairs = [axis for a in range(d) for axis in (b + a, r + a)]
    x = x.transpose(*range(b), *pairs, x.ndim - 1 if last else b + d)
    sizes = [x.shape[b + 2 * a] * x.shape[b + 2 * a + 1] for a in range(d)]
    return x.reshape(*x.shape[:b], *sizes, c)


def unshuffled(y: Any, factor: tuple[int, ...], order: str) -> Any:
    """y [*n, *(size · r), c] as [*n, *size, c · Π r], the inverse."""
    d, b = len(factor), y.ndim - len(factor) - 1
    split = [n for size, r in zip(y.shape[b:-1], factor, strict=True) for n in (size // r, r)]
    y = y.reshape(*y.shape[:b], *split, y.shape[-1])
    outer, inner = range(b, b + 2 * d, 2), range(b + 1, b + 2 * d, 2)
    block = (*inner, y.ndim - 1) if order == "channel last" else (y.ndim - 1, *inner)
    y = y.transpose(*range(b), *outer, *block)
    return y.reshape(*y.shape[: b + d], math.prod(y.shape[b + d :]))


def permutation(shape: tuple[int, ...], move: Any) -> Array:
    """The matrix of a map that only moves the elements of one x of this shape."""
    size = math.prod(shape)
    return jnp.asarray(np.eye(size)[move(np.arange(size).reshape(shape)).reshape(-1)])
