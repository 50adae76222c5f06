"""Multi-head attention for a sequence that comes in pieces: its keys and values are kept in a cache."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, TypedDict, cast

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Integer

from funcnet import rules, taps
from funcnet._letters import NOTHING, Told, axes_of, run
from funcnet.errors import ShapeError, StructureError, ValueRangeError, describe
from funcnet.ops import _check, _factored
from funcnet.ops._dtype import common, wide
from funcnet.ops._shape import align
from funcnet.ops.attention import _projections, attention
from funcnet.ops.attention import rope as rotary
from funcnet.ops.attention._projections import Params
from funcnet.ops.attention._scales import scales

__all__ = ["Cache", "decode", "init_cache"]


class Cache(TypedDict):
    """The keys and values of what came before, without gradient.

    Position p lies in slot p; with a window, in slot p modulo s. Heads come before slots, so that attention
    over the cache is made of plain products of matrices.

    Attributes:
        k: keys as they attend, normalised and turned, [*n, h_kv, s, e]. What lies in a free slot is not seen.
        v: values [*n, h_kv, s, e].
        length: int32 [*n], positions that each sequence has had.
    """

    k: Float[Array, "*n h_kv s e"]
    v: Float[Array, "*n h_kv s e"]
    length: Int[Array, "*n"]


def init_cache(
    params: Params,
    n: int | tuple[int, ...],
    length: int,
    *,
    window: int | None = None,
    dtype: Any = None,
) -> Cache:
    """An empty cache for `length` positions; with a window, for the last `window` of any number.

    On a mesh with Explicit axes `decode` splits it, the first time: as x, and as the heads of the keys are.

    Args:
        params: of the operation; their shapes are read.
        n: sequences, or the leading axes of x.
        length: positions of the longest sequence, prompt and all.
        window: of `decode`.
        dtype: of keys and values; None is that of params.

    Raises:
        ValueRangeError: a size is not positive.
    """
    where = "multihead.init_cache"
    w = _key_weight(where, params)
    slots = _check.positive(where, "length", length)
    if window is not None:
        slots = min(slots, _check.positive(where, "window", window))
    lead = _check.integers(where, "n", n if isinstance(n, tuple | list) else (n,), least=0)
    dtype = _check.dtype(where, "dtype", w.dtype if dtype is None else dtype)
    shape = (*lead, w.shape[1], slots, w.shape[2])
    k, v = jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)  # two arrays, as both are donated
    return {"k": k, "v": v, "length": jnp.zeros(lead, jnp.int32)}


def _laid(
    f: Callable[..., Any], params: Params, x: Float[Array, "*n t d"], cache: Cache, **options: Any
) -> tuple[Float[Array, "*n t d"], Cache]:
    """``f`` with the cache split as x and the heads of the keys are: as it is born, it is not."""
    lead, heads = axes_of(x)[:-2], axes_of(_factored.kernel(params["k"]))[1]
    heads = tuple(axis for axis in heads if not any(axis in axes for axes in lead))
    of_n = [axes or None for axes in lead]
    of = {"k": jax.P(*of_n, heads or None, None, None), "length": jax.P(*of_n)}
    laid = {name: jax.reshard(value, of.get(name, of["k"])) for name, value in cache.items()}
    return run(f, NOTHING, (params, x, laid), options)


@functools.partial(rules.by_letters, told=Told(instead=_laid))
def decode(
    params: Params,
    x: Float[Array, "*n t d"],
    cache: Cache,
    *,
    lengths: Integer[Array, "*n"] | None = None,
    slopes: Float[Array, " h"] | None = None,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    rope: rotary.Config | None = None,
    norm_eps: float = 1e-6,
) -> tuple[Float[Array, "*n t d"], Cache]:
    """`apply`, causal, for the next t positions of sequences whose earlier positions are in the cache.

    Fed to it piece by piece, a sequence has the outputs that `apply` gives it whole, up to rounding. Shapes
    depend on t and the cache alone, so a program is compiled once, however long the sequence grows. With the
    cache donated, or carried by a loop, one new position is written in place.

    Args:
        params: as of `apply`.
        x: [*n, t, d], one position or more.
        cache: from `init_cache`, or from the call before.
        lengths: int [*n]: how many of the t positions of each sequence are real; None: all. The others, at
            the end, are padding: they are not stored, and their outputs mean nothing.
        slopes: [h], of ALiBi (Press et al., arXiv 2108.12409): logits fall by slope · distance.
        window: how many positions are seen, the own included.
        scale: as of `apply`.
        softcap: as of `apply`.
        rope: as of `apply`.
        norm_eps: as of `apply`.

    Returns:
        y [*n, t, d], and the cache with the new positions in it. A cache without window that is full keeps
        what it has: where lengths are traced, further positions are lost.

    Raises:
        ShapeError: x, lengths or the cache do not fit params.
        ValueRangeError: the cache is too small (when lengths are concrete).
    """
    where = "multihead.decode"
    x, norm_eps = _projections.check(where, params, x), _check.number(where, "norm_eps", norm_eps)
    n, t = x.shape[:-2], x.shape[-2]
    cache = _check_cache(where, params, n, cache)
    window = None if window is None else _check.positive(where, "window", window)
    scale, softcap = scales(where, scale, softcap)
    if slopes is not None:
        slopes = _check_slopes(where, params, slopes)
    new = _check_lengths(where, n, t, lengths)
    before, slots = cache["length"], cache["k"].shape[-2]
    ring = window is not None and window <= slots  # slots are used again
    if not ring:
        _check_room(where, before + new, slots, window)
    positions = _beside(before, jnp.arange(t, dtype=jnp.int32))
    q, k, v = _projections.heads(params, x, rope, positions, norm_eps)
    k, v = (z.swapaxes(-3, -2).astype(cache["k"].dtype) for z in (k, v))
    after = before + new
    written = [_write(old, z, before, after, ring) for old, z in ((cache["k"], k), (cache["v"], v))]
    now: Cache = {"k": written[0], "v": written[1], "length": after}
    if ring and t > 1:  # a new position may overwrite one that an earlier new position sees
        order = _beside(before, jnp.arange(slots, dtype=jnp.int32)) % slots  # oldest first
        old = [jnp.take_along_axis(cache[name], order[..., None, :, None], -2) for name in ("k", "v")]
        k, v = (jnp.concatenate(pair, -2) for pair in zip(old, (k, v), strict=True))
        held = _beside(before, jnp.arange(-slots, t, dtype=jnp.int32))
    else:
        k, v = now["k"], now["v"]
        slot = jnp.arange(slots, dtype=jnp.int32)
        held = _held(after, slots) if ring else _beside(jnp.zeros_like(before), slot)
    bias, sinks = None, params.get("sinks")
    if slopes is not None:
        # The distance to the first new position adds the same to all keys of a query, but not to a sink.
        origin = before[..., None] if sinks is None else positions
        distance = origin[..., :, None] - held[..., None, :]
        distance = distance[..., None, :, :].astype(slopes.dtype)
        bias = align(slopes[:, None, None], distance.ndim) * -distance
    if t == 1:
        seen = (held >= 0) & (held <= positions) & (held > positions - (window or slots))
        o = _attend(q, k, v, bias, sinks, seen, scale, softcap)
    else:
        options: dict[str, Any] = {"causal": True, "window": window, "scale": scale, "softcap": softcap}
        options["mask"] = (held >= 0)[..., None, None, :] if ring else None
        k, v = k.swapaxes(-3, -2), v.swapaxes(-3, -2)
        # Not by `apply`, which would refuse the padding that lies beyond the last slot.
        o = rules.call(attention.vjp, q, k, v, bias, sinks, q_offset=slots if ring else before, **options)
    return _projections.project(params["o"], taps.tap("heads", o.astype(q.dtype)), axes=2), now


def _attend(
    q: Array,
    k: Array,
    v: Array,
    bias: Array | None,
    sinks: Array | None,
    seen: Array,
    scale: float | None,
    softcap: float | None,
) -> Array:
    """`attention` of one query q [*n, 1, h, e] over the cache as it lies, of which seen [*n, s] is seen.

    Nothing of the cache's size is moved or made: there are two products, whose results are small. What lies
    in a slot that is not seen has the weight 0; only where that gave NaN, it is taken out first.
    """
    q, k, v = common(q, k, v)
    (*n, _, h, e), h_kv = q.shape, k.shape[-3]
    logits = jnp.einsum(
        "...kge,...kse->...kgs", q.reshape(*n, h_kv, h // h_kv, e), k, preferred_element_type=wide(q.dtype)
    )
    logits = logits.reshape(*n, h, -1) * (1 / math.sqrt(e) if scale is None else scale)
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    if bias is not None:
        logits = logits + bias[..., 0, :].astype(logits.dtype)
    logits = jnp.where(seen[..., None, :], logits, jnp.finfo(logits.dtype).min)
    if sinks is not None:
        sinks = jnp.broadcast_to(sinks.astype(logits.dtype)[:, None], (*n, h, 1))
        logits = jnp.concatenate([logits, sinks], -1)
    p = jax.nn.softmax(logits)[..., : k.shape[-2]].astype(v.dtype).reshape(*n, h_kv, h // h_kv, -1)
    weigh = lambda v: jnp.einsum("...kgs,...kse->...kge", p, v, preferred_element_type=logits.dtype)
    o = weigh(v)
    o = lax.cond(jnp.isfinite(o).all(), lambda: o, lambda: weigh(jnp.where(seen[..., None, :, None], v, 0)))
    return o.reshape(*n, 1, h, e)


def _beside(before: Array, steps: Array) -> Array:
    """The positions [*n, t] that lie `steps` [t] from before [*n]."""
    return before[..., None] + align(steps, before.ndim + 1)


def _held(length: Array, slots: int) -> Array:
    """The position in each slot [*n, slots] of a ring that has had `length` positions; negative: none."""
    last = length[..., None] - 1
    return last - _beside(length - 1, -jnp.arange(slots, dtype=jnp.int32)) % slots


def _write(old: Array, new: Array, before: Array, after: Array, ring: bool) -> Array:
    """The cache [*n, h_kv, s, e] with the positions from `before` to `after`, the first of `new`, in it."""
    slots = old.shape[-2]
    if new.shape[-2] == 1:
        slot = before % slots if ring else before
        slot = jnp.where(after > before, slot, slots)  # beyond the end: dropped

        def put(old: Array, new: Array, slot: Array) -> Array:
            return old.at[:, slot].set(new[:, 0], mode="drop")

        for _ in before.shape:
            put = jax.vmap(put)
        return put(old, new, slot)
    held = (
        _held(after, slots)
        if ring
        else jnp.broadcast_to(jnp.arange(slots, dtype=jnp.int32), (*before.shape, slots))
    )
    i = held - before[..., None]  # which of the new positions comes into each slot
    taken = jnp.take_along_axis(new, jnp.clip(i, 0, new.shape[-2] - 1)[..., None, :, None], -2)
    fresh = (i >= 0) & (held < after[..., None])
    return jnp.where(fresh[..., None, :, None], taken, old)


# ---- checks -----------------------------------------------------------------------------------------------


def _key_weight(where: str, params: Any) -> Any:
    """The w of "k", of which only the shape is read."""
    part = params.get("k") if isinstance(params, Mapping) else None
    factored: Any = part if _factored.is_factored(part) else None
    w: Any = part.get("w") if factored is None and isinstance(part, Mapping) else None
    w = w if factored is None else _factored.kernel(factored)
    known = isinstance(w, jax.ShapeDtypeStruct) or _check.dtype_of(w) is not None
    if not known or len(w.shape) != 3 or not jnp.issubdtype(w.dtype, jnp.floating):
        raise StructureError(
            f"{where}: params are not those of a multihead.",
            path='params["k"]["w"]',
            expected='params["k"]["w"]: float[d, h_kv, e]',
            actual=f"params: {describe(params)}" if w is None else f'params["k"]["w"]: {describe(w)}',
        )
    return w


def _check_cache(where: str, params: Params, n: tuple[int, ...], cache: Any) -> Cache:
    _, h_kv, e = _factored.kernel(params["k"]).shape
    lead = "".join(f"{size}, " for size in n)
    parts = cache if isinstance(cache, Mapping) else {"cache": cache}
    shapes = {name: v.shape if _check.dtype_of(v) is not None else None for name, v in parts.items()}
    slots = (shapes.get("k") or (0,) * 2)[-2:][0]
    fits = shapes == {"k": (*n, h_kv, slots, e), "v": (*n, h_kv, slots, e), "length": n}
    if not fits or not _cached_dtypes(**{name: value.dtype for name, value in parts.items()}):
        raise ShapeError(
            f"{where}: the cache does not fit x and params.",
            path="cache",
            expected=f"k, v: float[{lead}{h_kv}, s, {e}], length: int32[{lead.rstrip(', ')}]     "
            f'(params["k"]["w"]: {describe(_factored.kernel(params["k"]))})',
            actual=", ".join(f"{name}: {describe(value)}" for name, value in parts.items()),
            hint="init_cache(params, n, length), n the leading axes of x, makes one that fits.",
        )
    return cast(Cache, {name: jnp.asarray(value) for name, value in parts.items()})


def _cached_dtypes(k: Any, v: Any, length: Any) -> bool:
    return k == v and jnp.issubdtype(k, jnp.floating) and k.itemsize > 1 and length == jnp.int32


def _check_slopes(where: str, params: Params, slopes: Any) -> Array:
    slopes, h = _check.floating(where, "slopes", slopes), _factored.kernel(params["q"]).shape[1]
    if slopes.shape != (h,):
        raise ShapeError(
            f"{where}: slopes are not one number for each head.",
            path="slopes",
            expected=f'slopes: float[{h}]     (params["q"]["w"]: {describe(_factored.kernel(params["q"]))})',
            actual=f"slopes: {describe(slopes)}",
        )
    return slopes


def _check_lengths(where: str, n: tuple[int, ...], t: int, lengths: Any) -> Array:
    """How many of the new positions are real, int32 [*n]."""
    if lengths is None:
        return jnp.full(n, t, jnp.int32)
    if not jnp.issubdtype(_check.dtype_of(lengths) or object, jnp.integer) or lengths.shape != n:
        raise ShapeError(
            f"{where}: lengths are not one integer for each sequence.",
            path="lengths",
            expected=f"lengths: int[{', '.join(map(str, n))}]     (the leading axes of x)",
            actual=f"lengths: {describe(lengths)}",
        )
    values = _check.seen(lengths)
    if values is not None and values.size and not (values.min() >= 0 and values.max() <= t):
        raise ValueRangeError(
            f"{where}: lengths are from {values.min()} to {values.max()}, but x has {t} positions.",
            path="lengths",
            expected=f"0 ≤ lengths ≤ {t}",
            actual=f"lengths: {describe(lengths)}",
        )
    return jnp.clip(jnp.asarray(lengths), 0, t).astype(jnp.int32)


def _check_room(where: str, after: Array, slots: int, window: int | None) -> None:
    if _check.concrete(after) and after.size and after.max() > slots:
        raise ValueRangeError(
            f"{where}: the cache has {slots} slots, too few for {after.max()} positions.",
            path="cache",
            expected=f"cache of length {after.max()}" + (f", or of window = {window}" if window else ""),
            actual=f"cache of length {slots}",
        )
