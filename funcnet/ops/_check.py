"""Checks of arguments that the operations share. Each raises at trace time, in the user's words."""

import dataclasses
import functools
import math
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType, UnionType
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from funcnet._held import held, is_whole
from funcnet.errors import DTypeError, ShapeError, StructureError, ValueRangeError, describe, shorten

__all__ = [
    "axes",
    "axis",
    "channels",
    "classes",
    "concrete",
    "config",
    "dtype",
    "dtype_of",
    "features",
    "fields",
    "finite",
    "flag",
    "floating",
    "integer",
    "integer_array",
    "integers",
    "key",
    "layers",
    "leaves",
    "mapping",
    "number",
    "one_of",
    "parameter",
    "positive",
    "rank",
    "rate",
    "same_shape",
    "scalar",
    "seen",
    "spatial",
    "static",
    "tree",
    "unit",
]


def dtype_of(x: Any) -> Any:
    """The dtype of `x` where it is an array that JAX computes with; None of anything else.

    An array of another library, of objects or of float128, a masked one and a `jax.ShapeDtypeStruct` have a
    dtype too, and would fail far from here.
    """
    if isinstance(x, jax.Array) or hasattr(type(x), "__jax_array__"):
        return x.dtype
    if not isinstance(x, np.ndarray | np.generic) or isinstance(x, np.ma.MaskedArray):
        return None
    known = x.dtype == bool or jnp.issubdtype(x.dtype, jnp.number)
    fits = x.dtype.itemsize <= (16 if x.dtype.kind == "c" else 8)
    return x.dtype if known and fits and x.dtype.isnative else None


def floating(where: str, path: str, x: Any) -> jax.Array:
    """`x` as a floating-point array, of 16 bits or more: JAX promotes no others."""
    _check_float(where, path, x)
    return jnp.asarray(x)


def _check_float(where: str, path: str, x: Any) -> None:
    dtype = dtype_of(x)
    if dtype is not None and jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize >= 2:
        return
    hint = None
    if dtype is None:
        problem = f"{path} is not an array" + (" of JAX's or NumPy's" if hasattr(x, "dtype") else "")
        if isinstance(x, np.ma.MaskedArray):
            hint = f"fill what it masks: {path}.filled(0)."
        elif isinstance(x, int | float | list | tuple) or hasattr(x, "__array__"):
            hint = "wrap it: jnp.asarray(...)."
    elif jnp.issubdtype(dtype, jnp.floating):
        problem = f"{path} has dtype {dtype}, which nothing is computed in"
        hint = f"cast it: {path}.astype(jnp.bfloat16)."
    else:
        problem = f"{path} has dtype {dtype}, but a float is needed"
        hint = f"cast it: {path}.astype(jnp.float32)"
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
    mapping(where, "params", params)
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
    leaves(where, params)
    if ndim is not None and w.ndim != ndim:
        raise ShapeError(
            f"{where}: {path} has rank {w.ndim}, but {ndim} is needed.",
            path=path,
            expected=f"{path}: rank {ndim}",
            actual=f"{path}: {describe(w)}",
        )
    return w


def mapping(where: str, path: str, value: Any) -> None:
    """`value` is a dict or another mapping that JAX looks into, as are all mappings in it."""
    if not isinstance(value, Mapping):
        raise StructureError(
            f"{where}: {path} is not a dict.",
            path=path,
            expected=f"{path}: a dict",
            actual=f"{path}: {describe(value)}",
        )
    if jax.tree_util.all_leaves([value]):
        raise StructureError(
            f"{where}: {path} is a mapping that JAX does not know.",
            path=path,
            expected=f"{path}: a dict, or a mapping registered with jax.tree_util",
            actual=f"{path}: {describe(value)}",
            hint=f"dict({path}) makes one of it.",
        )
    for name, part in value.items():
        if isinstance(part, Mapping):
            mapping(where, f'{path}["{name}"]', part)


def leaves(where: str, params: Mapping[str, Any]) -> None:
    """Everything in `params` is an array, a dict of them, or None: what JAX transforms."""
    for name, value in params.items():
        if value is None or isinstance(value, Mapping) or dtype_of(value) is not None:
            continue
        raise DTypeError(
            f'{where}: params["{name}"] is not an array.',
            path=f'params["{name}"]',
            expected=f'params["{name}"]: an array, or None',
            actual=f'params["{name}"]: {describe(value)}',
            hint="what describes the parameters lies beside them, not among them."
            if isinstance(value, str)
            else None,
        )


def tree(where: str, params: Any, *names: str, path: str = "params") -> None:
    """`params` is a dict of float arrays, in dicts and lists, with the keys `names`; "a.b" is one of "a"."""
    for name in ("", *names):
        *owners, last = name.split(".")
        owner, at = params, path
        for key in owners:
            owner, at = owner[key], f'{at}["{key}"]'
        if isinstance(owner, Mapping):
            mapping(where, at, owner)
        if isinstance(owner, Mapping) and (not last or owner.get(last) is not None):
            continue
        siblings = [n for n in names if n.split(".")[:-1] == owners]
        raise StructureError(
            f'{where}: {at} has no "{last}".'
            if isinstance(owner, Mapping)
            else f"{where}: {at} is not a dict.",
            path=f'{at}["{last}"]' if isinstance(owner, Mapping) else at,
            expected=f"{at}: a dict with the keys {_quoted(n.rpartition('.')[2] for n in siblings)}",
            actual=f"keys: {_quoted(owner)}" if isinstance(owner, Mapping) else f"{at}: {describe(owner)}",
        )
    for place, leaf in jax.tree.leaves_with_path(params):
        _check_float(where, path + jax.tree_util.keystr(place).replace("'", '"'), leaf)


def layers(where: str, params: Mapping[str, Any], name: str, *, path: str = "params") -> Sequence[Any]:
    """The layers under `name`, which is a list of them, not stacked."""
    if not isinstance(params[name], list | tuple) or not params[name]:
        raise StructureError(
            f'{where}: {path}["{name}"] is not a list of layers.',
            path=f'{path}["{name}"]',
            expected=f'{path}["{name}"]: a list, one entry per layer',
            actual=f'{path}["{name}"]: {describe(params[name])}',
        )
    return params[name]


def _quoted(names: Iterable[Any]) -> str:
    return ", ".join(f'"{name}"' for name in names)[:200] or "none"


def config(where: str, config: Any, kind: type) -> None:
    """`config` is one of the model's own kind."""
    if not isinstance(config, kind):
        order = "(key, config)" if where.endswith(".init") else "(params, x, config)"
        exchanged = dtype_of(config) is not None or isinstance(config, Mapping)  # the key or x, or params
        raise DTypeError(
            f"{where}: config is no {_written(kind)}.",
            path="config",
            expected=f"config: {_written(kind)}",
            actual=f"config: {describe(config)}",
            hint=f"the order is {order}." if exchanged else None,
        )


def integer_array(where: str, path: str, x: Any, dims: str) -> jax.Array:
    """`x` as an array of integers, [`dims`], of one axis or more."""
    found = dtype_of(x)
    if found is None or not jnp.issubdtype(found, jnp.integer):
        raise DTypeError(
            f"{where}: {path} is not an array of integers.",
            path=path,
            expected=f"{path}: int[{dims}]",
            actual=f"{path}: {describe(x)}",
            hint="wrap it: jnp.asarray(...)." if isinstance(x, list | tuple) else None,
        )
    rank(where, path, x, 1, dims)
    return jnp.asarray(x)


def rank(where: str, path: str, x: jax.Array | jax.ShapeDtypeStruct, least: int, dims: str) -> None:
    """`x` has at least `least` axes; `dims` names them for the message."""
    if x.ndim < least:
        raise ShapeError(
            f"{where}: {path} has rank {x.ndim}, but at least {least} is needed.",
            path=path,
            expected=f"{path}: {'int' if jnp.issubdtype(x.dtype, jnp.integer) else 'float'}[{dims}]",
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


def same_shape(
    where: str, path: str, x: jax.Array, like_path: str, like: jax.Array | jax.ShapeDtypeStruct
) -> None:
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


def spatial(where: str, x: jax.Array, value: Any, c: int) -> int | None:
    """`value` as `spatial`, of norms over positions: how many axes of x they are, or None."""
    if value is None:
        rank(where, "x", x, 2, f"n, *size, {c}")
        return None
    count = integer(where, "spatial", value, none="None for all axes but the first and the last")
    if count < 0:
        raise ValueRangeError(
            f"{where}: spatial is {count}.",
            path="spatial",
            expected="spatial ≥ 0, or None",
            actual=f"spatial = {count}",
        )
    sizes = "".join(f"s{i}, " for i in range(count)) if count <= 8 else f"{count} sizes, "
    rank(where, "x", x, count + 1, f"*n, {sizes}{c}")
    return count


_LARGEST = 2**31 - 1  # positions and sizes are int32


def integer(
    where: str, name: str, value: Any, *, least: int = -_LARGEST - 1, most: int = _LARGEST, none: str = ""
) -> int:
    """`value`, a known integer in [least, most], as Python's int: a NumPy scalar is one, True is not.

    `none` says what None means, where it may be given instead.
    """
    value = scalar(static(where, name, value))
    if isinstance(value, bool) or not isinstance(value, int):
        raise DTypeError(
            f"{where}: {name} is not an integer.",
            path=name,
            expected=f"{name}: int{none and f', or {none}'}",
            actual=f"{name}: {describe(value)}",
            hint=_as_tuple(name, value),
        )
    if not least <= value <= most:
        low = value < least
        bound = f"at least {least} is needed" if low else f"at most {most} is possible"
        raise ValueRangeError(
            f"{where}: {name} is {shorten(value)}, but {bound}.",
            path=name,
            expected=f"{name} {'≥' if low else '≤'} {least if low else most}",
            actual=f"{name} = {shorten(value)}",
        )
    return value


def axis(where: str, x: jax.Array, axis: Any) -> int:
    """`axis`, one that `x` has, counted from either end."""
    axis = integer(where, "axis", axis)
    if not -x.ndim <= axis < x.ndim:
        raise ValueRangeError(
            f"{where}: x has no axis {axis}.",
            path="axis",
            expected=f"{-x.ndim} ≤ axis < {x.ndim}     (x: {describe(x)})"
            if x.ndim
            else "x of rank 1 or more",
            actual=f"axis = {axis}" if x.ndim else f"x: {describe(x)}",
        )
    return axis


def axes(where: str, x: jax.Array, axis_: Any) -> tuple[int, ...]:
    """One axis of `x`, or several, none of them twice, counted from 0."""
    several = (
        integers(where, "axis", axis_, least=-_LARGEST - 1, like="int, or a tuple of them")
        if isinstance(axis_, Sequence)
        else (axis_,)
    )
    found = tuple(axis(where, x, a) % x.ndim for a in several)
    if len(set(found)) < len(found):
        raise ValueRangeError(
            f"{where}: axis names one twice.",
            path="axis",
            expected=f"different axes of x: {describe(x)}",
            actual=f"axis = {shorten(axis_)}",
        )
    return found


def positive(where: str, name: str, value: Any, *, least: int = 1) -> int:
    """`value` as an int of at least 1, or `least`."""
    return integer(where, name, value, least=least)


def integers(
    where: str, name: str, value: Any, *, least: int = 1, like: str = "one int per axis"
) -> tuple[int, ...]:
    """`value`, a tuple or list of ints of at least `least`, as a tuple; `like` says for whom they are."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise DTypeError(
            f"{where}: {name} is not a tuple of ints.",
            path=name,
            expected=f"{name}: {like}",
            actual=f"{name}: {describe(value)}",
            hint=_as_tuple(name, value),
        )
    return tuple(positive(where, name, v, least=least) for v in value)


def _as_tuple(name: str, value: Any) -> str | None:
    """What to write for an array in the place of a tuple: an option is hashed, and an array cannot be."""
    if not isinstance(value, np.ndarray | jax.Array) or value.ndim != 1 or not concrete(value):
        return None
    if not (jnp.issubdtype(value.dtype, jnp.integer) and value.size <= 3):
        return None
    return f"as a tuple: {name}={tuple(np.asarray(value).tolist())}."


def flag(where: str, name: str, value: Any) -> bool:
    """`value`, True or False and known, or 1 or 0; NumPy's too."""
    value = scalar(static(where, name, value))
    if not (isinstance(value, bool | int) and value in (0, 1)):
        raise DTypeError(
            f"{where}: {name} is neither True nor False.",
            path=name,
            expected=f"{name}: bool",
            actual=f"{name}: {describe(value)}",
        )
    return bool(value)


def scalar(value: Any) -> Any:
    """Python's number of NumPy's, or of an array without axes; any other value as it is."""
    found = dtype_of(value)
    plain = found is not None and not jnp.issubdtype(found, jax.dtypes.prng_key)
    return value.item() if plain and value.shape == () and concrete(value) else value


def number(where: str, name: str, value: Any, *, least: float = 0.0, strict: bool = False) -> float:
    """`value`, a finite number of at least `least` (more, if `strict`), as Python's float.

    An option has no gradient, so its value must be known: a tracer is refused, a NumPy scalar is not.
    """
    value = scalar(static(where, name, value))
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DTypeError(
            f"{where}: {name} is not a number.",
            path=name,
            expected=f"{name}: a float",
            actual=f"{name}: {describe(value)}",
        )
    inside = least < value if strict else least <= value  # an int may be too large for a float
    if not (inside and abs(value) <= _HIGHEST):
        low = "" if least == -math.inf else f"{least:g} {'<' if strict else '≤'} "
        raise ValueRangeError(
            f"{where}: {name} is {shorten(value)}, outside its range.",
            path=name,
            expected=f"{low}{name} < ∞",
            actual=f"{name} = {shorten(value)}",
        )
    return float(value)


def finite(where: str, name: str, value: Any) -> float:
    """`value`, any finite number, as Python's float."""
    return number(where, name, value, least=-math.inf)


_HIGHEST = float(np.finfo(np.float64).max)


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
    values = seen(x)
    if values is None:
        return
    with np.errstate(invalid="ignore"):  # a NaN is outside
        outside = values[~((values >= 0) & (values <= 1))]
    if outside.size:
        raise ValueRangeError(
            f"{where}: {path} hold {_outside(outside[0])}, outside [0, 1].",
            path=path,
            expected=f"0 ≤ {path} ≤ 1",
            actual=f"{path}: {describe(x)}, {outside.size} of {values.size} outside, "
            f"from {_outside(outside.min())} to {_outside(outside.max())}",
            hint=f"are they −1 and 1? ({path} + 1) / 2." if (abs(values) == 1).all() else None,
        )


def _outside(value: Any) -> str:
    """A number that is not in [0, 1], in so few digits that it does not seem to be."""
    text = f"{float(value):g}"
    return str(value) if 0 <= float(text) <= 1 else text


def indices(
    where: str,
    name: str,
    values: Any,
    v: int,
    source: str,
    *,
    path: str | None = None,
    ignored: int | None = None,
    hint: Callable[[np.ndarray, np.ndarray], str | None],
) -> None:
    """Integers that can be looked at are in [0, v), as `source` (text) says, or `ignored`.

    The hint is of all of them and of those outside; `path` is where they stand, if not under their name.
    """
    every = seen(values)
    if every is None:
        return
    outside = every[(every < 0) | (every >= v)]
    outside = outside if ignored is None else outside[outside != ignored]
    if outside.size:
        raise ValueRangeError(
            f"{where}: {name} hold {outside[0]}, outside [0, {v}).",
            path=path or name,
            expected=f"0 ≤ {name} < {v}     ({source})",
            actual=f"{name}: {describe(values)}, {outside.size} of {every.size} outside, "
            f"from {outside.min()} to {outside.max()}",
            hint=hint(every, outside),
        )


def classes(where: str, labels: Any, v: int, source: str, ignore_index: int | None) -> None:
    """Integer `labels`, where they can be looked at, are in [0, v), as `source` (text) says, or ignored."""

    def hint(every: np.ndarray, outside: np.ndarray) -> str | None:
        low, high = outside.min(), outside.max()
        if high == v and every.min() > 0:
            return "do they count from 1? labels - 1."
        alone = low == high and ignore_index is None
        return f"if {low} marks what has no label: ignore_index={low}." if alone else None

    indices(where, "labels", labels, v, source, ignored=ignore_index, hint=hint)


def mask(
    where: str, mask: Any, x: jax.Array, what: str, *, dtype_hint: str | None, shape_hint: str | None
) -> jax.Array:
    """`mask`, boolean: it says of every `what` of x, all its axes but the last, whether it is one.

    The hints are given where another dtype or shape comes; of an array that is no boolean one is to compare.
    """
    kind = dtype_of(mask)
    expected = f"mask: bool[{', '.join(map(str, x.shape[:-1]))}]     (x: {describe(x)})"
    if kind != jnp.bool_:
        raise DTypeError(
            f"{where}: mask is not a boolean array.",
            path="mask",
            expected=expected,
            actual=f"mask: {describe(mask)}",
            hint=dtype_hint or ("compare it: mask != 0." if kind is not None else None),
        )
    if mask.shape != x.shape[:-1]:
        raise ShapeError(
            f"{where}: mask does not say of every {what} of x whether it is one.",
            path="mask",
            expected=expected,
            actual=f"mask: {describe(mask)}",
            hint=shape_hint,
        )
    return jnp.asarray(mask)


def one_of(where: str, name: str, value: Any, choices: Sequence[Any]) -> None:
    """`value` is one of `choices`."""
    if not isinstance(value, str | int | None) or value not in choices:
        raise ValueRangeError(
            f"{where}: {name} is {shorten(value)}.",
            path=name,
            expected=f"{name}: {', '.join(map(repr, choices))}",
            actual=f"{name} = {shorten(value)}",
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
    """Whether all values of `x` can be looked at: it is not being traced, nor on other processes."""
    return not isinstance(x, jax.core.Tracer) and is_whole(x)


def seen(x: Any) -> np.ndarray | None:
    """The values of `x` that can be looked at, in one axis where others are on other processes; or None."""
    return None if isinstance(x, jax.core.Tracer) else held(x)


def key(where: str, key: Any, *, none: bool = True) -> None:
    """`key` is one random key, or as JAX still takes it, the words of one; `none`: the text allows None."""
    found, shape = dtype_of(key), getattr(key, "shape", ())
    typed = found is not None and jnp.issubdtype(found, jax.dtypes.prng_key)
    one = () if typed else jax.eval_shape(jax.random.PRNGKey, 0).shape if found == jnp.uint32 else None
    if one is not None and shape == one:
        return
    if one is not None and shape[len(shape) - len(one) :] == one:
        raise ShapeError(
            f"{where}: key holds {math.prod(shape[: len(shape) - len(one)])} keys, but one is needed.",
            path="key",
            expected="key: one random key",
            actual=f"key: {describe(key)}",
            hint="use one of them (key[0]), or jax.vmap for one mask each."
            if none
            else "use one of them (key[0]), or jax.vmap for one draw each.",
        )
    hint = None
    if isinstance(seed := scalar(key), int) and not isinstance(seed, bool) and -(2**31) <= seed < 2**32:
        hint = f"jax.random.key({seed}) makes one."
    raise DTypeError(
        f"{where}: key is not a random key.",
        path="key",
        expected="key: a random key" + (", or None" if none else ""),
        actual=f"key: {describe(key)}",
        hint=hint,
    )


def mesh_axes(where: str, value: Any, size: Any, what: str) -> tuple[str, ...]:
    """`over`: names of axes of the mesh, over which `what`, so many, can be split evenly."""
    over, mesh = tuple(value) if isinstance(value, list) else value, jax.sharding.get_abstract_mesh().shape
    if not isinstance(over, tuple) or not all(isinstance(axis, str) for axis in over):
        raise DTypeError(
            f"{where}: over is not a tuple of names.",
            path="over",
            expected="over: names of axes of the mesh",
            actual=f"over: {describe(value)}",
        )
    if not over:
        return over
    if not set(over) <= set(mesh) or size % math.prod(mesh[axis] for axis in over):
        raise ValueRangeError(
            f"{where}: {what} cannot be split over {', '.join(over)}.",
            path="over",
            expected=f"axes of the mesh, whose sizes divide {size}",
            actual=f"the mesh: {', '.join(f'{axis} {n}' for axis, n in mesh.items()) or 'none'}",
            hint=None if mesh else "set the mesh: with jax.set_mesh(mesh).",
        )
    return over


_SHORT = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "f16": "float16",
    "fp32": "float32",
    "f32": "float32",
    "fp64": "float64",
    "f64": "float64",
}


def dtype(where: str, name: str, value: Any) -> str:
    """The name of the dtype to compute in that `value` is or names."""
    try:
        found = jnp.dtype(value) if isinstance(value, str | type | np.dtype) else None
    except (TypeError, ValueError):
        found = None
    if (
        found is None
        or value is None
        or not jnp.issubdtype(found, jnp.floating)
        or found.itemsize not in (2, 4, 8)
    ):
        raise ValueRangeError(
            f"{where}: {name} is no dtype to compute in.",
            path=name,
            expected=f'{name}: "bfloat16", "float16", "float32" or "float64"',
            actual=f"{name}: {describe(value)}",
            hint=f'write "{_SHORT[value]}".' if isinstance(value, str) and value in _SHORT else None,
        )
    return found.name


def fields(where: str, config: Any, *, least: Mapping[str, int] = MappingProxyType({})) -> None:
    """Every field of a frozen dataclass has the type that it is annotated with.

    It becomes Python's own, a number for NumPy's scalar, a tuple for a list, so that configs can be hashed.
    Integers are at least 1, or what `least` says of a field; floats are finite, not negative; "dtype" is the
    name of one.
    """
    for name, annotation in _annotations(type(config)).items():
        value = getattr(config, name)
        if name == "dtype":
            found = None if value is None else dtype(where, name, value)
        else:
            found = _field(where, name, value, annotation, least.get(name, 1))
        object.__setattr__(config, name, found)


@functools.cache
def _annotations(config: type) -> dict[str, Any]:
    return typing.get_type_hints(config)


def _field(where: str, name: str, value: Any, annotation: Any, least: int) -> Any:
    kinds = set(typing.get_args(annotation)) if _is_union(annotation) else {annotation}
    if value is None and type(None) in kinds:
        return None
    if bool in kinds:
        return flag(where, name, value)
    if float in kinds:
        return number(where, name, value)
    if int in kinds:
        return positive(where, name, value, least=least)
    kind = next(iter(kinds - {type(None)}))
    if typing.get_origin(kind) is typing.Literal:
        one_of(where, name, value, [*typing.get_args(kind), *([None] if type(None) in kinds else [])])
        return value
    if typing.get_origin(kind) is tuple:
        first, *rest = typing.get_args(kind)
        if isinstance(value, tuple | list) and (rest == [...] or len(value) == 1 + len(rest)):
            parts = [first] * len(value) if rest == [...] else [first, *rest]
            return tuple(_field(where, name, v, part, least) for v, part in zip(value, parts, strict=True))
    elif isinstance(value, tuple(typing.get_origin(kind) or kind for kind in kinds)):
        return value
    raise DTypeError(
        f"{where}: {name} is of the wrong type.",
        path=name,
        expected=f"{name}: {_written(annotation)}",
        actual=f"{name}: {describe(value)}",
        hint=_as_tuple(name, value) if typing.get_origin(kind) is tuple else None,
    )


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, UnionType)


def _written(annotation: Any) -> str:
    """A type as users write it: rope.Linear or None."""
    if _is_union(annotation):
        *most, last = map(_written, typing.get_args(annotation))
        return f"{', '.join(most)} or {last}"
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return f"{annotation.__module__.rpartition('.')[2]}.{annotation.__name__}"
    if annotation is type(None):
        return "None"
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return annotation.__name__
    return str(annotation).replace("collections.abc.", "").replace("typing.", "")
