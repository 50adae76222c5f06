"""What `pca` asks of its arguments, in errors of funcnet's own."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import Array

from funcnet._numbers import index
from funcnet.errors import DTypeError, FuncnetError, ShapeError, ValueRangeError, describe, shorten
from funcnet.mean import wide

__all__ = [
    "components",
    "data",
    "features",
    "finite",
    "floating",
    "kind",
    "one_of",
    "row_mask",
    "too_few",
]


def data(where: str, x: Any, mask: Any) -> tuple[Array, Array | None, int]:
    """x [n, d] in float32 or wider, the mask, and how many rows count: all, where that is not known."""
    x = floating(where, "x", x)
    if x.ndim != 2:
        raise ShapeError(
            f"{where}: x has rank {x.ndim}, but 2 is needed.",
            path="x",
            expected="x: float[n, d], a row for each example",
            actual=f"x: {describe(x)}",
            hint="of images, flattened: x.reshape(len(x), -1)." if x.ndim > 2 else None,
        )
    mask = row_mask(where, x, mask)
    known = mask is not None and not isinstance(mask, jax.core.Tracer)
    rows = int(np.asarray(mask).sum()) if known else x.shape[0]
    if rows < 2:
        raise too_few(where, "mask" if known else "x", rows)
    return wide(x), mask, rows


def too_few(where: str, path: str, rows: int) -> FuncnetError:
    return ValueRangeError(
        f"{where}: {rows or 'no'} row{'' if rows == 1 else 's'} to find a variance of.",
        path=path,
        expected="2 rows or more" + (" that count" if path == "mask" else ""),
        actual=str(rows),
    )


def floating(where: str, path: str, x: Any) -> Array:
    array = isinstance(x, jax.Array | np.ndarray) and not isinstance(x, np.ma.MaskedArray)
    if array and jnp.issubdtype(x.dtype, jnp.floating) and 2 <= x.dtype.itemsize <= 8:
        return jnp.asarray(x)
    numbers = array and (jnp.issubdtype(x.dtype, jnp.integer) or x.dtype == bool)
    raise DTypeError(
        f"{where}: {path} is not an array of floats.",
        path=path,
        expected=f"{path}: float[...]",
        actual=f"{path}: {describe(x)}",
        hint=f"cast it: {path}.astype(jnp.float32)."
        if numbers
        else f"wrap it: jnp.asarray({path})."
        if isinstance(x, list | tuple)
        else None,
    )


def features(where: str, path: str, x: Any, size: int, source: str, dtype: Any) -> Array:
    x = floating(where, path, x)
    if not x.ndim or x.shape[-1] != size:
        raise ShapeError(
            f"{where}: {path} has not {size} features in its last axis.",
            path=path,
            expected=f"{path}: float[*n, {size}]     (of {source})",
            actual=f"{path}: {describe(x)}",
        )
    x = wide(x)
    return x if x.dtype.itemsize >= jnp.dtype(dtype).itemsize else x.astype(dtype)


def row_mask(where: str, x: Array, mask: Any) -> Array | None:
    if mask is None:
        return None
    if not isinstance(mask, jax.Array | np.ndarray) or mask.dtype != bool:
        raise DTypeError(
            f"{where}: mask is not an array of booleans.",
            path="mask",
            expected=f"mask: bool[{x.shape[0]}]     (one for each row of x)",
            actual=f"mask: {describe(mask)}",
            hint="mask != 0, if it is one of numbers." if hasattr(mask, "dtype") else None,
        )
    if mask.shape != x.shape[:1]:
        raise ShapeError(
            f"{where}: mask does not have one element for each row.",
            path="mask",
            expected=f"mask: bool[{x.shape[0]}]     (one for each row of x)",
            actual=f"mask: {describe(mask)}",
            hint="of elements that are missing: mask.all(1) keeps the rows that are whole."
            if mask.shape == x.shape
            else None,
        )
    return jnp.asarray(mask)


def kind(where: str, path: str, value: Any, kind: type) -> None:
    """`value` is what `pca` itself has made."""
    if not isinstance(value, kind):
        raise DTypeError(
            f"{where}: {path} is no pca.{kind.__name__}.",
            path=path,
            expected=f"{path}: pca.{kind.__name__}",
            actual=f"{path}: {describe(value)}",
        )


def one_of(where: str, method: Any, methods: Sequence[str]) -> None:
    """`method` is one of them."""
    if not isinstance(method, str) or method not in methods:
        raise ValueRangeError(
            f"{where}: method is {shorten(method)}.",
            path="method",
            expected=", ".join(f'"{name}"' for name in methods),
            actual=f"method = {shorten(method)}",
        )


def components(where: str, k: Any, most: int, source: str) -> int | None:
    """k as an int; None where it is a share."""
    count = index(k)
    if count is not None and 1 <= count <= most:
        return count
    share = isinstance(k, float | np.floating)
    if share and 0 < k < 1:
        return None
    if count is None and not share:
        raise DTypeError(
            f"{where}: k is neither a number of components nor a share of the variance.",
            path="k",
            expected="k: an int, or a float between 0 and 1",
            actual=f"k: {describe(k)}",
            hint='make it static where it enters jax.jit: static_argnames="k".'
            if isinstance(k, jax.core.Tracer)
            else None,
        )
    raise ValueRangeError(
        f"{where}: k is {shorten(k)}.",
        path="k",
        expected=f"1 ≤ k ≤ {most}     ({source}), or a share of the variance, 0 < k < 1",
        actual=f"k = {shorten(k)}",
        hint=f"an int: k={int(k)}." if share and 1 <= k <= most and k == int(k) else None,
    )


def finite(where: str, total: Array, x: Array, mask: Array | None) -> None:
    """What is found is finite, or an error that says what of x is not."""
    if isinstance(total, jax.core.Tracer) or np.isfinite(total).all():
        return
    kept = np.asarray(x) if mask is None else np.asarray(x)[np.asarray(mask)]
    wrong = ~np.isfinite(kept)
    rows = int(wrong.any(1).sum())
    raise ValueRangeError(
        f"{where}: x has {wrong.sum()} elements that are not finite."
        if rows
        else f"{where}: the squares of x overflow {x.dtype}.",
        path="x",
        expected="finite rows" if rows else f"elements whose squares add up in {x.dtype}",
        actual=f"x: {describe(x)}" + (f", {rows} rows with a NaN or an infinity" if rows else ""),
        hint="mask=jnp.isfinite(x).all(1) leaves such rows out." if rows else None,
    )
