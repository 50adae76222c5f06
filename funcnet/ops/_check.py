"""Checks of arguments that the operations share. Each raises at trace time, in the user's words."""

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from funcnet.errors import DTypeError, ShapeError, StructureError, ValueRangeError, describe

__all__ = [
    "channels",
    "classes",
    "concrete",
    "features",
    "floating",
    "key",
    "number",
    "one_of",
    "parameter",
    "positive",
    "rank",
    "rate",
    "same_shape",
    "static",
    "unit",
]


def floating(where: str, path: str, x: Any) -> jax.Array:
    """`x` as a floating-point array."""
    dtype = getattr(x, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jnp.floating):
        return jnp.asarray(x)
    if dtype is None:
        problem = f"{path} is not an array"
        hint = None if isinstance(x, Mapping) else "wrap it: jnp.asarray(...)."
    else:
        problem, hint = (
            f"{path} has dtype {dtype}, but a float is needed",
            f"cast it: {path}.astype(jnp.float32)",
        )
        hint += ", divided by 255 if it is an image of bytes." if dtype == jnp.uint8 else "."
    raise DTypeError(
        f"{where}: {problem}.",
        path=path,
        expected=f"{path}: float[...]",
        actual=f"{path}: {describe(x)}",
        hint=hint,
    )


def parameter(where: str, params: Any, name: str, ndim: int | None = None) -> jax.Array:
    """The leaf `name` of a dict of parameters, floating-point, of rank `ndim` if that is given."""
    path = f'params["{name}"]'
    if not isinstance(params, Mapping):
        hint = "the parameters come first: apply(params, x)." if hasattr(params, "dtype") else None
        raise StructureError(
            f"{where}: params is not a dict.",
            path="params",
            expected=f'params: a dict with the key "{name}"',
            actual=f"params: {describe(params)}",
            hint=hint,
        )
    if params.get(name) is None:
        keys = ", ".join(f'"{k}"' for k in params) or "none"
        inside = next((k for k, v in params.items() if isinstance(v, Mapping) and name in v), None)
        raise StructureError(
            f'{where}: params has no "{name}".',
            path=path,
            expected=f'the key "{name}"',
            actual=f"keys: {keys}",
            hint=f'one level down there is one: pass params["{inside}"].' if inside is not None else None,
        )
    w = floating(where, path, params[name])
    if ndim is not None and w.ndim != ndim:
        raise ShapeError(
            f"{where}: {path} has rank {w.ndim}, but {ndim} is needed.",
            path=path,
            expected=f"{path}: rank {ndim}",
            actual=f"{path}: {describe(w)}",
        )
    return w


def rank(where: str, path: str, x: jax.Array | jax.ShapeDtypeStruct, least: int, dims: str) -> None:
    """`x` has at least `least` axes; `dims` names them for the message."""
    if x.ndim < least:
        raise ShapeError(
            f"{where}: {path} has rank {x.ndim}, but at least {least} is needed.",
            path=path,
            expected=f"{path}: float[{dims}]",
            actual=f"{path}: {describe(x)}",
            hint="is an axis missing? x[None] adds a batch, x[..., None] a channel axis."
            if x.ndim == least - 1
            else None,
        )


def features(where: str, x: jax.Array, size: int, source: str, *, dims: str = "*n", path: str = "x") -> None:
    """The last axis of `x` has `size`, the number that `source` (text) fixes."""
    shape = f"{dims}, {size}" if dims else str(size)
    rank(where, path, x, 1, shape)
    if x.shape[-1] == size:
        return
    hint = None
    if x.ndim == 2 and x.shape[0] == size:
        hint = f"its transpose fits: {path}.T."
    elif x.ndim > 2 and x.shape[-2] == size:
        hint = f"its last two axes, swapped, fit: {path}.mT."
    elif math.prod(x.shape[1:]) == size:
        hint = f"flattened it fits: {path}.reshape({x.shape[0]}, -1)."
    raise ShapeError(
        f"{where}: {path} has {x.shape[-1]} features in its last axis, but {source} takes {size}.",
        path=path,
        expected=f"{path}: float[{shape}]",
        actual=f"{path}: {describe(x)}",
        hint=hint,
    )


def channels(where: str, x: jax.Array, size: int, source: str) -> None:
    """The last axis of `x` has `size` channels, the number that `source` (text) fixes."""
    rank(where, "x", x, 1, f"*n, {size}")
    if x.shape[-1] == size:
        return
    hint = None
    if x.ndim > 2 and x.shape[1] == size:
        hint = f"axis 1 has {size}: channels first? jnp.moveaxis(x, 1, -1) puts them last."
    elif size == 1:
        hint = "is the channel axis missing? x[..., None] adds it."
    raise ShapeError(
        f"{where}: x has {x.shape[-1]} channels in its last axis, but {source} takes {size}.",
        path="x",
        expected=f"x: float[*n, {size}]",
        actual=f"x: {describe(x)}",
        hint=hint,
    )


def same_shape(where: str, path: str, x: jax.Array, like_path: str, like: jax.Array) -> None:
    """`x` has the shape of `like`, without broadcasting."""
    if x.shape == like.shape:
        return
    hint = None
    if x.size == like.size and [s for s in x.shape if s != 1] == [s for s in like.shape if s != 1]:
        hint = f"they differ by an axis of size 1: {path}.reshape({', '.join(map(str, like.shape))}) fits."
    elif x.shape == like.shape[::-1]:
        hint = f"its transpose fits: {path}.T."
    raise ShapeError(
        f"{where}: {path} and {like_path} have different shapes.",
        path=path,
        expected=f"{path}: {describe(like)}     (the shape of {like_path})",
        actual=f"{path}: {describe(x)}",
        hint=hint,
    )


def positive(where: str, name: str, value: Any, *, least: int = 1) -> int:
    """`value` as an int of at least 1, or `least`."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise DTypeError(
            f"{where}: {name} is not an integer.",
            path=name,
            expected=f"{name}: int",
            actual=f"{name}: {describe(value)}",
        )
    if value.__index__() < least:
        raise ValueRangeError(
            f"{where}: {name} is {value}, but at least {least} is needed.",
            path=name,
            expected=f"{name} ≥ {least}",
            actual=f"{name} = {value}",
        )
    return value.__index__()


def number(where: str, name: str, value: Any, *, least: float = 0.0, strict: bool = False) -> float:
    """`value`, a finite number of at least `least` (more, if `strict`), as Python's float.

    An option has no gradient, so its value must be known: a tracer is refused, a NumPy scalar is not.
    """
    value = static(where, name, value)
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        kinds = jnp.floating, jnp.integer
        real = value.shape == () and any(jnp.issubdtype(value.dtype, kind) for kind in kinds)
    else:
        real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not real:
        raise DTypeError(
            f"{where}: {name} is not a number.",
            path=name,
            expected=f"{name}: a float",
            actual=f"{name}: {describe(value)}",
        )
    found = float(value)
    if not (math.isfinite(found) and (found > least if strict else found >= least)):
        low = "" if least == -math.inf else f"{least:g} {'<' if strict else '≤'} "
        raise ValueRangeError(
            f"{where}: {name} is {found:g}, outside its range.",
            path=name,
            expected=f"{low}{name} < ∞",
            actual=f"{name} = {found:g}",
        )
    return found


def rate(where: str, name: str, value: Any, *, one: bool = False) -> float:
    """`value` as a probability in [0, 1), or in [0, 1] where `one` is one too."""
    found = number(where, name, value, least=-math.inf)
    if not (0 <= found < 1 or (one and found == 1)):
        end = "1]" if one else "1)"
        raise ValueRangeError(
            f"{where}: {name} is {value}, outside [0, {end}.",
            path=name,
            expected=f"0 ≤ {name} {'≤' if one else '<'} 1",
            actual=f"{name} = {value}",
            hint=f"{name} is a fraction, not per cent: {found / 100:g}." if 1 < found < 100 else None,
        )
    return found


def unit(where: str, path: str, x: jax.Array) -> None:
    """The elements of `x`, where they can be looked at, are in [0, 1]."""
    if not concrete(x):
        return
    values = np.asarray(x)
    with np.errstate(invalid="ignore"):  # a NaN is outside
        outside = values[~((values >= 0) & (values <= 1))]
    if outside.size:
        raise ValueRangeError(
            f"{where}: {path} hold {float(outside[0]):g}, outside [0, 1].",
            path=path,
            expected=f"0 ≤ {path} ≤ 1",
            actual=f"{path}: {describe(x)}, {outside.size} of {values.size} outside, "
            f"from {float(outside.min()):g} to {float(outside.max()):g}",
            hint=f"are they −1 and 1? ({path} + 1) / 2." if (abs(values) == 1).all() else None,
        )


def classes(where: str, labels: Any, v: int, source: str, ignore_index: int | None) -> None:
    """Integer `labels`, where they can be looked at, are in [0, v), as `source` (text) says, or ignored."""
    if not concrete(labels):
        return
    values = np.asarray(labels)
    outside = values[(values < 0) | (values >= v)]
    outside = outside if ignore_index is None else outside[outside != ignore_index]
    if not outside.size:
        return
    hint, low, high = None, outside.min(), outside.max()
    if high == v and values.min() > 0:
        hint = "do they count from 1? labels - 1."
    elif low == high and ignore_index is None:
        hint = f"if {low} marks what has no label: ignore_index={low}."
    raise ValueRangeError(
        f"{where}: labels hold {outside[0]}, outside [0, {v}).",
        path="labels",
        expected=f"0 ≤ labels < {v}     ({source})",
        actual=f"labels: {describe(labels)}, {outside.size} of {values.size} outside, from {low} to {high}",
        hint=hint,
    )


def one_of(where: str, name: str, value: Any, choices: Sequence[Any]) -> None:
    """`value` is one of `choices`."""
    if value not in choices:
        raise ValueRangeError(
            f"{where}: {name} is {value!r}.",
            path=name,
            expected=f"{name}: {', '.join(map(repr, choices))}",
            actual=f"{name} = {value!r}",
        )


def static(where: str, name: str, value: Any) -> Any:
    """`value`, which is known when the function is traced."""
    if not concrete(value):
        raise DTypeError(
            f"{where}: {name} is traced, but its value is needed for tracing.",
            path=name,
            expected=f"{name}: a Python value",
            actual=f"{name}: {describe(value)}",
            hint=f'make it static where it enters jax.jit: static_argnames="{name}".',
        )
    return value


def concrete(x: Any) -> bool:
    """Whether the values of `x` can be looked at: it is not being traced."""
    return not isinstance(x, jax.core.Tracer)


def key(where: str, key: Any) -> None:
    """`key` is one random key."""
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        if shape == ():
            return
        raise ShapeError(
            f"{where}: key holds {math.prod(shape or ())} keys, but one is needed.",
            path="key",
            expected="key: one random key",
            actual=f"key: {describe(key)}",
            hint="use one of them (key[0]), or jax.vmap for one mask each.",
        )
    if dtype == jnp.uint32 and shape is not None and len(shape) == 1:
        return  # a raw key, as jax.random.PRNGKey makes it
    raise DTypeError(
        f"{where}: key is not a random key.",
        path="key",
        expected="key: a random key, or None",
        actual=f"key: {describe(key)}",
        hint=f"jax.random.key({key}) makes one."
        if isinstance(key, int) and not isinstance(key, bool)
        else None,
    )
