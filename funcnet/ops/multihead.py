"""Multi-head self-attention: project x to queries, keys and values, attend, project back.

    q = x Wq + bq,  k = x Wk + bk,  v = x Wv + bv,  y = Σ_h attention(q, k, v)[h] Wo[h] + bo

Before they attend, q and k are normalised (rms_norm over the head width) where params have "q_norm" and
"k_norm", then turned by their positions (rope) where that is asked for.

Dimensions: *n any leading axes (batch), t positions, d features, h heads of the queries, h_kv heads of the
keys and values, e head width: x, y [*n, t, d], q.w [d, h, e], k.w and v.w [d, h_kv, e], o.w [h, e, d]. The
numbers of heads are read off these shapes. Sources: Vaswani et al., "Attention is all you need", arXiv
1706.03762, §3.2.2; norms of queries and keys: Henry et al., arXiv 2010.04245, here as in Qwen3.

`decode` does the same for a sequence that comes in pieces, and keeps the keys and values in a cache.
"""

import math
from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict, cast

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from funcnet import rules
from funcnet.errors import ShapeError, StructureError, ValueRangeError, describe
from funcnet.ops import _bias, _check, attention, rms_norm
from funcnet.ops import rope as rotary
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._dtype import common, narrow, wide

__all__ = [
    "Cache",
    "Params",
    "Projection",
    "apply",
    "cost",
    "decode",
    "init",
    "init_cache",
    "reference",
    "vjp",
]


class Projection(TypedDict):
    """One linear map; w and b have the head axes among theirs. b may be absent."""

    w: Float[Array, "..."]
    b: NotRequired[Float[Array, "..."]]


class Params(TypedDict):
    """q.w [d, h, e], q.b [h, e]; k and v the same with h_kv heads; o.w [h, e, d], o.b [d].

    q_norm.w and k_norm.w [e] where queries and keys are normalised; sinks [h] where the softmax has a logit
    for nothing (see `attention`).
    """

    q: Projection
    k: Projection
    v: Projection
    o: Projection
    q_norm: NotRequired[rms_norm.Params]
    k_norm: NotRequired[rms_norm.Params]
    sinks: NotRequired[Float[Array, " h"]]


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


def init(
    key: PRNGKeyArray,
    d: int,
    heads: int,
    *,
    kv_heads: int | None = None,
    head_width: int | None = None,
    bias: bool = True,
    o_bias: bool | None = None,
    qk_norm: bool = False,
    sinks: bool = False,
) -> Params:
    """Draw every w from N(0, 1/fan_in), fan_in = d for q, k and v, and heads · head_width for o.

    Every b and sink is 0, the gains of the norms are 1.

    Args:
        key: a random key.
        d: features of x and y.
        heads: heads of the queries.
        kv_heads: heads of the keys and values, a divisor of heads; None is heads.
        head_width: features of one head; None is d / heads.
        bias: whether the projections have a "b".
        o_bias: whether "o" has one; None is as the others. (Qwen2 has biases on q, k and v only.)
        qk_norm: whether queries and keys are normalised. (Qwen3 does it.)
        sinks: whether there is a sink for every head.

    Raises:
        ValueRangeError: a size is not positive, or a number of heads does not divide what it should.

    >>> jax.tree.map(jnp.shape, init(jax.random.key(0), 6, 4, kv_heads=2, head_width=5, bias=False))
    {'k': {'w': (6, 2, 5)}, 'o': {'w': (4, 5, 6)}, 'q': {'w': (6, 4, 5)}, 'v': {'w': (6, 2, 5)}}
    """
    where = "multihead.init"
    d, heads = _check.positive(where, "d", d), _check.positive(where, "heads", heads)
    if head_width is None and d % heads:
        raise ValueRangeError(
            f"{where}: {heads} heads do not divide d = {d}.",
            path="heads",
            expected=f"a divisor of d = {d}, or a head_width",
            actual=f"heads = {heads}",
        )
    e = d // heads if head_width is None else _check.positive(where, "head_width", head_width)
    h_kv = heads if kv_heads is None else _check.positive(where, "kv_heads", kv_heads)
    if heads % h_kv:
        raise ValueRangeError(
            f"{where}: {h_kv} kv_heads do not divide {heads} heads.",
            path="kv_heads",
            expected=f"a divisor of heads = {heads}",
            actual=f"kv_heads = {h_kv}",
        )
    sizes = {"q": (d, heads, e), "k": (d, h_kv, e), "v": (d, h_kv, e), "o": (heads, e, d)}
    keys = dict(zip(sizes, jax.random.split(key, 4), strict=True))
    params: dict[str, Any] = {}
    for name, size in sizes.items():
        inputs = heads * e if name == "o" else d
        params[name] = {"w": jax.random.normal(keys[name], size) / math.sqrt(inputs)}
        if bias if name != "o" or o_bias is None else o_bias:
            params[name]["b"] = jnp.zeros(size[2:] if name == "o" else size[1:])
    if qk_norm:
        params |= {"q_norm": rms_norm.init(key, e), "k_norm": rms_norm.init(key, e)}
    if sinks:
        params["sinks"] = jnp.zeros(heads)
    return cast(Params, params)


def reference(
    params: Params,
    x: Float[Array, "*n t d"],
    bias: Float[Array, "..."] | None = None,
    *,
    rope: rotary.Config | None = None,
    positions: Int[Array, "..."] | None = None,
    norm_eps: float = 1e-6,
    **attend: Any,
) -> Float[Array, "*n t d"]:
    """The projections, the definitions of what lies between, and the sum over heads, as they are written.

    `attend` are the options of attention, here and in `vjp` and `cost`.
    """

    def heads(name: str) -> Array:
        w, x_ = common(params[name]["w"], x)
        z = _bias.add(jnp.einsum("...td,dhe->...the", x_, w), params[name])
        norm = params.get(f"{name}_norm")
        z = z if norm is None else rms_norm.reference(norm, z, norm_eps)
        return z if rope is None or name == "v" else rotary.reference(z, rope, positions=positions)

    q, k, v = heads("q"), heads("k"), heads("v")
    o = attention.reference(q, k, v, bias, params.get("sinks"), **attend)
    w, o = common(params["o"]["w"], o)
    return _bias.add(jnp.einsum("...the,hed->...td", o, w), params["o"])


@rules.operation
def apply(
    params: Params,
    x: Float[Array, "*n t d"],
    bias: Float[Array, "..."] | None = None,
    *,
    causal: bool = False,
    window: int | tuple[int, int] | None = None,
    segment_ids: Any = None,
    mask: Bool[Array, "..."] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    rope: rotary.Config | None = None,
    positions: Int[Array, "..."] | None = None,
    norm_eps: float = 1e-6,
    dropout_rate: float = 0.0,
    key: PRNGKeyArray | None = None,
) -> Float[Array, "*n t d"]:
    """Let every position of x attend to every position of x.

    Nothing is attached to the whole: `attention`, `rope` and `rms_norm` carry their own rules, and of the
    projections XLA's own derivative is the formula of `vjp`.

    Args:
        params: {"q", "k", "v", "o"}, each a w and, unless absent, a b; "q_norm", "k_norm" and "sinks" where
            they are wanted.
        x: [*n, t, d].
        bias: added to the logits, broadcastable to [*n, h, t, t].
        causal: position i sees the positions j ≤ i only.
        window: see only the nearest positions, as in attention.
        segment_ids: integers [*n, t]; a position sees those of its own segment.
        mask: boolean, True = attend, broadcastable to [*n, h, t, t].
        scale: what the products of queries and keys are multiplied by; None is 1/√e.
        softcap: bound of the logits, as in attention.
        rope: how queries and keys are turned; None: they are not.
        positions: integers [t] or [*n, t] that rope turns by; None is 0, 1 ... t − 1.
        norm_eps: of the norms of queries and keys.
        dropout_rate: of the attention weights.
        key: for dropout; None in evaluation.

    Returns:
        y [*n, t, d], in the dtype that holds params and x.

    Raises:
        ShapeError: x does not have d features, or the parameters or other arrays do not fit together.
        DTypeError: x or a parameter is not floating-point, or mask is not boolean.
        StructureError: params lacks a part.
        ValueRangeError: an option is out of its range.
    """
    x = _check_arguments("multihead.apply", params, x)
    q, k, v = _heads(params, x, rope, positions, norm_eps)
    o = attention.apply(
        q,
        k,
        v,
        bias,
        params.get("sinks"),
        causal=causal,
        window=window,
        segment_ids=segment_ids,
        mask=mask,
        scale=scale,
        softcap=softcap,
        dropout_rate=dropout_rate,
        key=key,
    )
    return _project(params["o"], o, 2)


def _heads(
    params: Params, x: Array, rope: rotary.Config | None, positions: Array | None, norm_eps: float
) -> tuple[Array, Array, Array]:
    """q, k and v, ready to attend."""

    def ready(name: str, z: Array) -> Array:
        norm = params.get(f"{name}_norm")
        z = z if norm is None else rms_norm.apply(norm, z, norm_eps)
        return z if rope is None else rotary.apply(z, rope, positions=positions)

    q, k, v = (_project(params[name], x, 1) for name in "qkv")
    return ready("q", q), ready("k", k), v


def _project(p: Projection, x: Array, axes: int) -> Array:
    """x W + b: W takes the last `axes` axes of x."""
    w, x = common(p["w"], x)
    rows, w_ = _matrices(x, w, axes)
    y = jnp.matmul(rows, w_, preferred_element_type=wide(x.dtype))
    return _bias.add(y.reshape(*x.shape[: x.ndim - axes], *w.shape[axes:]), p).astype(x.dtype)


def _matrices(x: Array, w: Array, axes: int) -> tuple[Array, Array]:
    """x as rows and w as one matrix: XLA:CPU cannot multiply every pair of bfloat16 tensors into float32."""
    d_in = math.prod(w.shape[:axes])
    return x.reshape(math.prod(x.shape[: x.ndim - axes]), d_in), w.reshape(d_in, math.prod(w.shape[axes:]))


def vjp(
    params: Params,
    x: Float[Array, "*n t d"],
    bias: Float[Array, "..."] | None = None,
    *,
    rope: rotary.Config | None = None,
    positions: Int[Array, "..."] | None = None,
    norm_eps: float = 1e-6,
    **attend: Any,
) -> tuple[Float[Array, "*n t d"], Partial]:
    """y and its pullback: dO[h] = dY Wo[h]ᵀ, dWo[h] = O[h]ᵀ dY; then attention's own, of dO to dq, dk and dv.

    Then those of rope and of the norms, of dq and dk. Last dWq = Xᵀ dq, so for k and v, and
    dX = dq Wqᵀ + dk Wkᵀ + dv Wvᵀ; each db is the sum of its cotangent.
    """

    def ready(name: str, z: Array) -> tuple[Array, tuple[Partial | None, Partial | None]]:
        """z, normalised and turned, and the pullbacks of both."""
        norm, turn, p = None, None, params.get(f"{name}_norm")
        if p is not None:
            z, norm = rms_norm.vjp(p, z, norm_eps)
        if rope is not None:
            z, turn = rotary.vjp(z, rope, positions=positions)
        return z, (norm, turn)

    q, k, v = (_project(params[name], x, 1) for name in "qkv")
    (q, before_q), (k, before_k) = ready("q", q), ready("k", k)
    o, pull = attention.vjp(q, k, v, bias, params.get("sinks"), **attend)
    y = _project(params["o"], o, 2)
    return y, Partial(_pullback, params, x, o, pull, {"q": before_q, "k": before_k, "v": (None, None)})


def _pullback(
    params: Params, x: Array, o: Array, attend: Partial, before: dict[str, Any], dy: Array
) -> tuple[dict, Array, Array | None]:
    # What params hold as None has None for its gradient.
    grads: dict[str, Any] = {name: None for name, value in params.items() if value is None}
    grads["o"], do = _pull_projection(params["o"], o, dy, 2)
    *dqkv, dbias, dsinks = attend(narrow(do, o))
    if params.get("sinks") is not None:
        grads["sinks"] = dsinks
    dx = jnp.zeros(x.shape, wide(x.dtype))
    for name, dz in zip("qkv", dqkv, strict=True):
        norm, turn = before[name]
        if turn is not None:
            (dz,) = turn(dz)
        if norm is not None:
            grads[f"{name}_norm"], dz = norm(dz)
        grads[name], dx_ = _pull_projection(params[name], x, dz, 1)
        dx = dx + dx_.astype(dx.dtype)
    return grads, narrow(dx, x), dbias


def _pull_projection(p: Projection, x: Array, dy: Array, axes: int) -> tuple[dict, Array]:
    """The cotangents of p and, not yet rounded, of x."""
    w, x = common(p["w"], x)
    n, sums = x.ndim - axes, wide(dy.dtype)
    rows, w_ = _matrices(x, w, axes)
    dy_ = dy.reshape(rows.shape[0], w_.shape[1])
    dw = jnp.matmul(rows.T, dy_, preferred_element_type=sums).reshape(w.shape)
    dx = jnp.matmul(dy_, w_.T, preferred_element_type=sums).reshape(x.shape)
    grads: dict[str, Any] = {"w": narrow(dw, p["w"])}
    if "b" in p:
        grads["b"] = None if p["b"] is None else narrow(dy.sum(range(n), dtype=sums), p["b"])
    return grads, dx


def cost(
    params: Params,
    x: Float[Abstract, "*n t d"],
    bias: Float[Abstract, "..."] | None = None,
    **options: Any,
) -> Cost:
    """2 · n · t · (d · e · (2 h + 2 h_kv) + 2 · t · h · e) flops: four projections and attention."""
    t, (_, h, e) = x.shape[-2], params["q"]["w"].shape
    projections = sum(math.prod(p["w"].shape) for p in (params["q"], params["k"], params["v"], params["o"]))
    products = math.prod(x.shape[:-1]) * (projections + 2 * t * h * e)
    return Cost(2 * products, traffic(reference, params, x, bias, **options))


# ---- decoding ---------------------------------------------------------------------------------------------


def init_cache(
    params: Params,
    n: int | tuple[int, ...],
    length: int,
    *,
    window: int | None = None,
    dtype: Any = None,
) -> Cache:
    """An empty cache for `length` positions; with a window, for the last `window` of any number.

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
    w = params["k"]["w"]
    slots = _check.positive(where, "length", length)
    if window is not None:
        slots = min(slots, _check.positive(where, "window", window))
    lead = tuple(n) if isinstance(n, tuple) else (n,)
    empty = jnp.zeros((*lead, w.shape[1], slots, w.shape[2]), w.dtype if dtype is None else dtype)
    return {"k": empty, "v": empty, "length": jnp.zeros(lead, jnp.int32)}


def decode(
    params: Params,
    x: Float[Array, "*n t d"],
    cache: Cache,
    *,
    lengths: Int[Array, "*n"] | None = None,
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
    x = _check_arguments(where, params, x)
    n, t = x.shape[:-2], x.shape[-2]
    _check_cache(where, params, n, cache)
    new = _check_lengths(where, n, t, lengths)
    before, slots = cache["length"], cache["k"].shape[-2]
    ring = window is not None and window <= slots  # slots are used again
    if not ring:
        _check_room(where, before + new, slots, window)
    positions = before[..., None] + jnp.arange(t, dtype=jnp.int32)
    q, k, v = _heads(params, x, rope, positions, norm_eps)
    k, v = (z.swapaxes(-3, -2).astype(cache["k"].dtype) for z in (k, v))
    after = before + new
    written = [_write(old, z, before, after, ring) for old, z in ((cache["k"], k), (cache["v"], v))]
    now: Cache = {"k": written[0], "v": written[1], "length": after}
    if ring and t > 1:  # a new position may overwrite one that an earlier new position sees
        order = (before[..., None] + jnp.arange(slots, dtype=jnp.int32)) % slots  # oldest first
        old = [jnp.take_along_axis(cache[name], order[..., None, :, None], -2) for name in ("k", "v")]
        k, v = (jnp.concatenate(pair, -2) for pair in zip(old, (k, v), strict=True))
        held = before[..., None] + jnp.arange(-slots, t, dtype=jnp.int32)
    else:
        k, v = now["k"], now["v"]
        held = _held(after, slots) if ring else jnp.arange(slots, dtype=jnp.int32)
    bias, sinks = None, params.get("sinks")
    if slopes is not None:
        # The distance to the first new position adds the same to all keys of a query, but not to a sink.
        origin = before[..., None] if sinks is None else positions
        distance = origin[..., :, None] - held[..., None, :]
        bias = slopes[:, None, None] * -distance[..., None, :, :].astype(slopes.dtype)
    if t == 1:
        seen = (held >= 0) & (held <= positions) & (held > positions - (window or slots))
        o = _attend(q, k, v, bias, sinks, seen, scale, softcap)
    else:
        options: dict[str, Any] = {"causal": True, "window": window, "scale": scale, "softcap": softcap}
        options["mask"] = (held >= 0)[..., None, None, :] if ring else None
        k, v = k.swapaxes(-3, -2), v.swapaxes(-3, -2)
        o = attention.apply(q, k, v, bias, sinks, q_offset=slots if ring else before, **options)
    return _project(params["o"], o.astype(q.dtype), 2), now


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

    Nothing of the cache's size is moved or made: there are two products, whose results are small.
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
    o = jnp.einsum("...kgs,...kse->...kge", p, v, preferred_element_type=logits.dtype)
    return o.reshape(*n, 1, h, e)


def _held(length: Array, slots: int) -> Array:
    """The position in each slot [*n, slots] of a ring that has had `length` positions; negative: none."""
    last = length[..., None] - 1
    return last - (last - jnp.arange(slots, dtype=jnp.int32)) % slots


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


def _check_arguments(where: str, params: Any, x: Any) -> Array:
    _check_params(where, params)
    x = _check.floating(where, "x", x)
    w = params["q"]["w"]
    _check.rank(where, "x", x, 2, f"*n, t, {w.shape[0]}")
    _check.features(where, x, w.shape[0], f'params["q"]["w"] ({describe(w)})', dims="*n, t")
    return x


def _check_params(where: str, params: Any) -> None:
    if not isinstance(params, Mapping) or any(
        not isinstance(params.get(name), Mapping) or params[name].get("w") is None for name in "qkvo"
    ):
        keys = ", ".join(f'"{key}"' for key in params) if isinstance(params, Mapping) else describe(params)
        raise StructureError(
            f"{where}: params are not those of a multihead.",
            path="params",
            expected='params: a dict of "q", "k", "v" and "o", each a dict with "w"',
            actual=f"params: {keys}",
            hint="the parameters come first: apply(params, x)." if hasattr(params, "dtype") else None,
        )
    for name in "qkvo":
        _check.floating(where, f'params["{name}"]["w"]', params[name]["w"])
    w = params["q"]["w"]
    if w.ndim != 3:
        raise ShapeError(
            f'{where}: params["q"]["w"] has rank {w.ndim}, but 3 is needed.',
            path='params["q"]["w"]',
            expected='params["q"]["w"]: float[d, h, e]',
            actual=f'params["q"]["w"]: {describe(w)}',
        )
    d, h, e = w.shape
    h_kv = params["k"]["w"].shape[1] if params["k"]["w"].ndim == 3 else "h_kv"
    sizes: dict[str, dict[str, tuple[Any, ...]]] = {
        "q": {"w": (d, h, e), "b": (h, e)},
        "k": {"w": (d, h_kv, e), "b": (h_kv, e)},
        "v": {"w": (d, h_kv, e), "b": (h_kv, e)},
        "o": {"w": (h, e, d), "b": (d,)},
        "q_norm": {"w": (e,)},
        "k_norm": {"w": (e,)},
    }
    leaves = [
        (f'params["{name}"]["{leaf}"]', (params.get(name) or {}).get(leaf), size)
        for name, parts in sizes.items()
        for leaf, size in parts.items()
    ]
    for path, value, expected in [*leaves, ('params["sinks"]', params.get("sinks"), (h,))]:
        if value is not None and _check.floating(where, path, value).shape != expected:
            raise ShapeError(
                f"{where}: {path} does not fit the other parameters.",
                path=path,
                expected=f"{path}: float[{', '.join(map(str, expected))}]     "
                f'(params["q"]["w"]: {describe(w)})',
                actual=f"{path}: {describe(value)}",
            )


def _check_cache(where: str, params: Params, n: tuple[int, ...], cache: Any) -> None:
    _, h_kv, e = params["k"]["w"].shape
    lead = "".join(f"{size}, " for size in n)
    shapes = {name: getattr(value, "shape", None) for name, value in cache.items()}
    slots = (shapes.get("k") or (0,) * 2)[-2]
    if shapes != {"k": (*n, h_kv, slots, e), "v": (*n, h_kv, slots, e), "length": n}:
        raise ShapeError(
            f"{where}: the cache does not fit x and params.",
            path="cache",
            expected=f"k, v: float[{lead}{h_kv}, s, {e}], length: int32[{lead.rstrip(', ')}]     "
            f'(params["k"]["w"]: {describe(params["k"]["w"])})',
            actual=", ".join(f"{name}: {describe(value)}" for name, value in cache.items()),
            hint="init_cache(params, n, length), n the leading axes of x, makes one that fits.",
        )


def _check_lengths(where: str, n: tuple[int, ...], t: int, lengths: Any) -> Array:
    """How many of the new positions are real, int32 [*n]."""
    if lengths is None:
        return jnp.full(n, t, jnp.int32)
    if getattr(lengths, "shape", None) != n or not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise ShapeError(
            f"{where}: lengths are not one integer for each sequence.",
            path="lengths",
            expected=f"lengths: int[{', '.join(map(str, n))}]     (the leading axes of x)",
            actual=f"lengths: {describe(lengths)}",
        )
    if _check.concrete(lengths) and lengths.size and not (lengths.min() >= 0 and lengths.max() <= t):
        raise ValueRangeError(
            f"{where}: lengths are from {lengths.min()} to {lengths.max()}, but x has {t} positions.",
            path="lengths",
            expected=f"0 ≤ lengths ≤ {t}",
            actual=f"lengths: {describe(lengths)}",
        )
    return jnp.asarray(lengths, jnp.int32)


def _check_room(where: str, after: Array, slots: int, window: int | None) -> None:
    if _check.concrete(after) and after.size and after.max() > slots:
        raise ValueRangeError(
            f"{where}: the cache has {slots} slots, too few for {after.max()} positions.",
            path="cache",
            expected=f"cache of length {after.max()}" + (f", or of window = {window}" if window else ""),
            actual=f"cache of length {slots}",
        )
