"""Scaled dot-product attention: O = P V with P = softmax(scale · Q Kᵀ + bias), over the keys that are seen.

    o[n, i, h] = Σ_j p[n, h, i, j] · v[n, j, g(h)]
    p[n, h, i, j] = exp(l[n, h, i, j]) / (Σ_j exp(l[n, h, i, j]) + exp(sink[h])), sums over the keys seen
    l[n, h, i, j] = c(scale · q[n, i, h] · k[n, j, g(h)]) + bias[n, h, i, j]
    c(x) = softcap · tanh(x / softcap)

Dimensions: *n any leading axes (batch), t queries i, s keys j, h heads of the queries, h_kv heads of the keys
and values, e head width: q [*n, t, h, e], k [*n, s, h_kv, e], v [*n, s, h_kv, e_v], o [*n, t, h, e_v]. Query
head h uses key head g(h) = ⌊h / (h / h_kv)⌋. Without sinks and softcap their terms are absent.

Sources: Vaswani et al., "Attention is all you need", arXiv 1706.03762; grouped heads: Ainslie et al., arXiv
2305.13245; block by block, and the gradient from the logarithm of the sum: Dao et al., "FlashAttention",
arXiv 2205.14135; Rabe and Staats, arXiv 2112.05682; softcap: Gemma 2, arXiv 2408.00118, §2; sinks: Xiao et
al., arXiv 2309.17453, as logits: OpenAI, gpt-oss, 2025.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Integer, PRNGKeyArray

from funcnet import rules, taps
from funcnet._letters import Told
from funcnet.errors import DTypeError, ShapeError, ValueRangeError, describe
from funcnet.ops import _check
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._dtype import common, signed, wide
from funcnet.ops._shape import align, known
from funcnet.ops.attention import _blocks as blocks
from funcnet.ops.attention import _context
from funcnet.ops.attention import _vendor as vendor
from funcnet.ops.attention._scales import scales

__all__ = ["apply", "cost", "reference", "vjp"]

Window = int | tuple[int, int] | None
Segments = Integer[Array, "*n t"] | tuple[Integer[Array, "*n t"], Integer[Array, "*n s"]] | None
Offset = int | Integer[Array, "..."]


def reference(
    q: Float[Array, "*n t h e"],
    k: Float[Array, "*n s h_kv e"],
    v: Float[Array, "*n s h_kv e_v"],
    bias: Float[Array, "..."] | None = None,
    sinks: Float[Array, " h"] | None = None,
    *,
    causal: bool = False,
    window: Window = None,
    segment_ids: Segments = None,
    mask: Bool[Array, "..."] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    q_offset: Offset = 0,
    dropout_rate: float = 0.0,
    key: PRNGKeyArray | None = None,
    block: tuple[int, int] | None = None,
) -> Float[Array, "*n t h e_v"]:
    """O = softmax(scale · Q Kᵀ + bias) V, as it is written; a row that sees nothing gives 0."""
    del block  # how it is computed
    q, k, v = common(q, k, v)
    (*n, t, h, e), s, group = q.shape, k.shape[-3], q.shape[-2] // k.shape[-2]
    k, v = jnp.repeat(k, group, -2), jnp.repeat(v, group, -2)
    logits = jnp.einsum("...the,...she->...hts", q, k, preferred_element_type=wide(q.dtype))
    logits = logits * (1 / math.sqrt(e) if scale is None else float(scale))
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    if bias is not None:
        logits = logits + align(bias.astype(logits.dtype), logits.ndim)
    seen = jnp.ones(logits.shape, bool) if mask is None else jnp.broadcast_to(mask, logits.shape)
    offset = signed(jnp.asarray(q_offset))[..., None, None, None]
    *_, i, j = (lax.broadcasted_iota(offset.dtype, logits.shape, axis) for axis in range(logits.ndim))
    ahead = j - (i + align(offset, logits.ndim))
    if causal:
        seen = seen & (ahead <= 0)
    if window is not None:
        left, right = window if isinstance(window, tuple | list) else (window - 1, 0)
        seen = seen & (-left <= ahead) & (ahead <= right)
    if segment_ids is not None:
        of_q, of_k = _pair(segment_ids)
        seen = seen & (of_q[..., None, :, None] == of_k[..., None, None, :])
    highest = jnp.max(logits, -1, where=seen, initial=jnp.finfo(logits.dtype).min, keepdims=True)
    if sinks is not None:
        sinks = align(sinks.astype(logits.dtype)[:, None, None], logits.ndim)
        highest = jnp.maximum(highest, sinks)
    highest = lax.stop_gradient(highest)  # P does not depend on it
    weights = jnp.where(seen, jnp.exp(jnp.where(seen, logits - highest, 0)), 0)
    total = weights.sum(-1, keepdims=True)
    if sinks is not None:
        total = total + jnp.exp(sinks - highest)
    p = weights / jnp.where(total > 0, total, 1)
    if dropout_rate and key is not None:
        row = jnp.arange(math.prod(p.shape[:-1]), dtype=jnp.uint32).reshape(*n, h, t, 1)
        column = align(jnp.arange(s, dtype=jnp.uint32), row.ndim)
        kept = blocks.kept(dropout_rate, blocks.seed_of(key), row, column)
        p = jnp.where(kept, p / (1 - dropout_rate), 0)
    p = taps.tap("pattern", p)
    return jnp.einsum("...hts,...she->...the", p.astype(v.dtype), v)


@functools.partial(rules.operation, told=Told(instead=_context.attend))
def apply(
    q: Float[Array, "*n t h e"],
    k: Float[Array, "*n s h_kv e"],
    v: Float[Array, "*n s h_kv e_v"],
    bias: Float[Array, "..."] | None = None,
    sinks: Float[Array, " h"] | None = None,
    *,
    causal: bool = False,
    window: Window = None,
    segment_ids: Segments = None,
    mask: Bool[Array, "..."] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    q_offset: Offset = 0,
    dropout_rate: float = 0.0,
    key: PRNGKeyArray | None = None,
    block: tuple[int, int] | None = None,
) -> Float[Array, "*n t h e_v"]:
    """For every query, the mean of the values, weighted by the softmax of its products with the keys.

    Exact, in memory linear in t + s, forward and backward: P is never held. Differentiated by `vjp`. Blocks
    that causality or a window empties are not computed. Compiled for an NVIDIA GPU by a process that has one,
    cuDNN computes what it can (16-bit floats, no mask, bias, sinks, softcap, segments, dropout or offset),
    backward too; then there is no forward mode.

    Args:
        q: queries [*n, t, h, e].
        k: keys [*n, s, h_kv, e]; h_kv divides h, and h / h_kv neighbouring query heads share one key head.
        v: values [*n, s, h_kv, e_v].
        bias: added to the logits, broadcastable to [*n, h, t, s]; it has a gradient.
        sinks: a logit for each head [h] of a key that every query sees and that has no value; they have a
            gradient.
        causal: a query sees no key beyond its own position. The position of query i is i + q_offset, that of
            key j is j.
        window: with causal, how many keys a query sees, its own included. (left, right): those at most so
            many positions before and after its own.
        segment_ids: integers [*n, t]: a query sees the keys of its own segment only. One array for both
            (t = s), or a pair ([*n, t], [*n, s]).
        mask: boolean, True = attend, broadcastable to [*n, h, t, s].
        scale: what the products are multiplied by; None is 1/√e.
        softcap: bends the logits to lie within ± softcap, before bias; None: they are not bent.
        q_offset: the position of the first query: an int, or integers that broadcast to [*n], traced or
            not. With an int, blocks that are not seen are skipped.
        dropout_rate: the probability that a weight is set to 0, the others being scaled up; in [0, 1).
        key: for dropout; None: none (evaluation). Which weights are kept depends on key and place only;
            inside `jax.vmap` examples that share a key share them.
        block: queries and keys of a block, (rows, columns); None chooses. The result is the same but for
            rounding.

    Returns:
        o [*n, t, h, e_v], in the dtype that holds q, k and v; sums and the softmax are in float32 or wider.
        A query that sees no key gives zeros and passes no gradient. What is not seen may be anything, NaN too
        (not so by cuDNN): no output and no gradient comes from it. There are two exceptions: a NaN in the
        cotangent of a query reaches dv of keys that the query does not see, in its blocks; and where not
        all of a block is seen, an infinity in q or k makes NaN of the queries that see it.

    Raises:
        ShapeError: q, k, v, bias, sinks, mask or segment_ids do not fit together.
        DTypeError: an array has the wrong kind of elements, or an option the wrong type.
        ValueRangeError: an option has a value that makes no sense: a window without keys, an int window
            without causal, a softcap that is not positive, a rate outside [0, 1), an offset that puts
            queries beyond the last key.

    >>> q = k = v = jnp.eye(3)[:, None]  # [t, h, e]: three positions, one head
    >>> print(fn.attention.apply(q, k, v, causal=True, scale=1.0)[:, 0])
    [[1.    0.    0.   ]
     [0.269 0.731 0.   ]
     [0.212 0.212 0.576]]
    """
    where = "attention.apply"
    q, k, v = (_check.floating(where, path, x) for path, x in (("q", q), ("k", k), ("v", v)))
    _check_shapes(where, q, k, v)
    if bias is not None:
        _check_broadcast(where, "bias", _check.floating(where, "bias", bias), q, k)
    if sinks is not None:
        _check_sinks(where, _check.floating(where, "sinks", sinks), q)
    _check_mask(where, mask, q, k)
    _check_segments(where, segment_ids, q, k)
    causal = _check.flag(where, "causal", causal)
    scale, softcap = scales(where, scale, softcap)
    rate = _check.rate(where, "dropout_rate", dropout_rate)
    if key is not None:
        _check.key(where, key)
    if block is not None:
        block = _check_block(where, block)
    return rules.call(
        vjp,
        q,
        k,
        v,
        bias,
        sinks,
        causal=causal,
        window=_check_window(where, window, causal),
        segment_ids=tuple(segment_ids) if isinstance(segment_ids, list) else segment_ids,
        mask=mask,
        scale=scale,
        softcap=softcap,
        q_offset=_check_offset(where, q_offset, q, k),
        dropout_rate=0.0 if key is None else rate,
        key=key if rate else None,
        block=block,
    )


def vjp(
    q: Float[Array, "*n t h e"],
    k: Float[Array, "*n s h_kv e"],
    v: Float[Array, "*n s h_kv e_v"],
    bias: Float[Array, "..."] | None = None,
    sinks: Float[Array, " h"] | None = None,
    *,
    causal: bool = False,
    window: Window = None,
    segment_ids: Segments = None,
    mask: Bool[Array, "..."] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    q_offset: Offset = 0,
    dropout_rate: float = 0.0,
    key: PRNGKeyArray | None = None,
    block: tuple[int, int] | None = None,
) -> tuple[Float[Array, "*n t h e_v"], Partial]:
    """o and its pullback, with P computed again, block by block, from q, k and two numbers of each query.

    They are its largest logit m and log Σ exp(logits − m); P = exp(logits − m − log Σ).

    dV = Pᵀ dO, dL = P ∘ (dO Vᵀ − D) with D = rowsum(dO ∘ O), dbias = dL, dsink = −Σ p_sink D; through the
    softcap dS = dL ∘ (1 − tanh²); dQ = scale · dS K, dK = scale · dSᵀ Q. dK and dV are summed over the query
    heads that share a key head. With dropout, P and dO Vᵀ are masked and scaled in dV and dL.
    """
    form, arrays = _form(
        q, causal, window, segment_ids, mask, scale, softcap, q_offset, dropout_rate, key, block
    )
    if vendor.applies(form, arrays, q, k, v, bias, sinks):
        by_blocks = lambda q, k, v: rules.call(_vjp_by_blocks, q, k, v, None, None, form=form)
        o, pullback = jax.vjp(functools.partial(vendor.either, by_blocks, form), q, k, v)
        return o, Partial(_pullback_of_vendor, pullback)
    return _vjp_by_blocks(q, k, v, bias, sinks, form=form, arrays=arrays)


def _form(
    q: Array,
    causal: bool,
    window: Window,
    segment_ids: Segments,
    mask: Array | None,
    scale: float | None,
    softcap: float | None,
    q_offset: Offset,
    dropout_rate: float,
    key: Array | None,
    block: tuple[int, int] | None,
) -> tuple[blocks.Form, blocks.Arrays]:
    """The options as what is static, and what may be traced."""
    window, q_offset, block = (rules.plain(value) for value in (window, q_offset, block))
    left = right = None
    if window is not None:
        left, right = (window - 1, None) if isinstance(window, int) else window
    if causal:
        right = 0
    of_q, of_k = _pair(segment_ids)
    fixed = isinstance(q_offset, int)
    seed = blocks.seed_of(key) if dropout_rate and key is not None else None
    form = blocks.Form(
        left=left,
        right=right,
        scale=1 / math.sqrt(q.shape[-1]) if scale is None else scale,
        softcap=softcap,
        rate=0.0 if seed is None else dropout_rate,
        offset=q_offset if fixed else None,
        block=block,
    )
    return form, blocks.Arrays(mask, of_q, of_k, None if fixed else jnp.asarray(q_offset), seed)


def _pair(segment_ids: Any) -> tuple[Any, Any]:
    """Those of the queries and of the keys."""
    return tuple(segment_ids) if isinstance(segment_ids, tuple | list) else (segment_ids, segment_ids)


class _Kept(NamedTuple):
    """What the backward pass needs: nothing of the size t · s."""

    q: Array
    k: Array
    v: Array
    bias: Array | None
    sinks: Array | None
    o: Array
    m: Array  # [*n, t, h]
    log_total: Array


def _vjp_by_blocks(
    q: Array,
    k: Array,
    v: Array,
    bias: Array | None,
    sinks: Array | None,
    *,
    form: blocks.Form,
    arrays: blocks.Arrays = blocks.NONE,
) -> tuple[Array, Partial]:
    o, m, log_total = blocks.forward(form, arrays, q, k, v, bias, sinks)
    kept = _Kept(q, k, v, bias, sinks, o, m, log_total)
    return o, Partial(rules.bind(_pullback, form=form), kept, arrays)


def _pullback(
    kept: _Kept, arrays: blocks.Arrays, do: Array, *, form: blocks.Form
) -> tuple[Array | None, ...]:
    return blocks.backward(form, arrays, *kept, do)


def _pullback_of_vendor(pullback: Any, do: Array) -> tuple[Array | None, ...]:
    return (*pullback(do), None, None)


def cost(
    q: Float[Abstract, "*n t h e"],
    k: Float[Abstract, "*n s h_kv e"],
    v: Float[Abstract, "*n s h_kv e_v"],
    bias: Float[Abstract, "..."] | None = None,
    sinks: Float[Abstract, " h"] | None = None,
    **options: Any,
) -> Cost:
    """2 · n · h · t · s · (e + e_v) flops; products that are not seen are counted. Options as in `apply`."""
    products = math.prod(q.shape[:-1]) * k.shape[-3]
    bytes_ = traffic(reference, q, k, v, bias, sinks, **options)
    return Cost(2 * products * (q.shape[-1] + v.shape[-1]), bytes_)


# ---- checks -----------------------------------------------------------------------------------------------


def _check_shapes(where: str, q: Array, k: Array, v: Array) -> None:
    for path, x, dims in (("q", q, "*n, t, h, e"), ("k", k, "*n, s, h_kv, e"), ("v", v, "*n, s, h_kv, e_v")):
        if x.ndim < 3:
            raise ShapeError(
                f"{where}: {path} has rank {x.ndim}, but at least 3 is needed.",
                path=path,
                expected=f"{path}: float[{dims}]",
                actual=f"{path}: {describe(x)}",
                hint=f"for one head: {path}[:, None]." if x.ndim == 2 else None,
            )
    if not q.shape[-1]:
        raise ShapeError(
            f"{where}: q has heads of no features.",
            path="q",
            expected="q: float[*n, t, h, e], e ≥ 1",
            actual=f"q: {describe(q)}",
        )
    lead = "".join(f"{size}, " for size in q.shape[:-3])
    if k.shape[:-3] != q.shape[:-3] or k.shape[-1] != q.shape[-1]:
        raise ShapeError(
            f"{where}: k does not fit q.",
            path="k",
            expected=f"k: float[{lead}s, h_kv, {q.shape[-1]}]     (q: {describe(q)})",
            actual=f"k: {describe(k)}",
        )
    if v.shape[:-1] != k.shape[:-1]:
        raise ShapeError(
            f"{where}: v does not fit k.",
            path="v",
            expected=f"v: float[{lead}{k.shape[-3]}, {k.shape[-2]}, e_v]     (k: {describe(k)})",
            actual=f"v: {describe(v)}",
        )
    if not k.shape[-2] or q.shape[-2] % k.shape[-2]:
        heads_first = k.shape[-3] and q.shape[-3] % k.shape[-3] == 0
        raise ShapeError(
            f"{where}: q has {q.shape[-2]} heads, of which {k.shape[-2]} key heads cannot take equal shares.",
            path="k",
            expected=f"k: float[*n, s, h_kv, e], h_kv a divisor of {q.shape[-2]}     (q: {describe(q)})",
            actual=f"k: {describe(k)}",
            hint="do the heads come before time? jnp.swapaxes(x, -3, -2) of each puts them after."
            if heads_first
            else None,
        )


def _check_mask(where: str, mask: Any, q: Array, k: Array) -> None:
    if mask is None:
        return
    if _check.dtype_of(mask) != jnp.bool_:
        raise DTypeError(
            f"{where}: mask is not boolean.",
            path="mask",
            expected="mask: bool[...], True = attend",
            actual=f"mask: {describe(mask)}",
            hint="mask != 0 for a mask of ones and zeros, mask == 0 for one that is added to the logits."
            if _check.dtype_of(mask) is not None
            else None,
        )
    _check_broadcast(where, "mask", mask, q, k)


def _check_broadcast(where: str, path: str, x: Any, q: Array, k: Array) -> None:
    n, (t, h), s = q.shape[:-3], q.shape[-3:-1], k.shape[-3]
    full = (*n, h, t, s)
    if len(x.shape) <= len(full) and all(
        m in (1, size) for m, size in zip(x.shape[::-1], full[::-1], strict=False)
    ):
        return
    hint = None
    if x.shape == (*n, s):
        hint = f"a {path} of the keys: {path}[..., None, None, :]."
    elif x.shape == (*n, t, s):
        hint = f"the same for every head: {path}[..., None, :, :]."
    kind = "bool" if path == "mask" else "float"
    raise ShapeError(
        f"{where}: {path} does not broadcast to [*n, h, t, s].",
        path=path,
        expected=f"{path}: {kind}, broadcastable to [{', '.join(map(str, full))}]     (q: {describe(q)})",
        actual=f"{path}: {describe(x)}",
        hint=hint,
    )


def _check_sinks(where: str, sinks: Array, q: Array) -> None:
    if sinks.shape != q.shape[-2:-1]:
        raise ShapeError(
            f"{where}: sinks do not hold one logit per head.",
            path="sinks",
            expected=f"sinks: float[{q.shape[-2]}]     (q: {describe(q)})",
            actual=f"sinks: {describe(sinks)}",
        )


def _check_segments(where: str, segment_ids: Any, q: Array, k: Array) -> None:
    if segment_ids is None:
        return
    n, t, s = q.shape[:-3], q.shape[-3], k.shape[-3]
    paths = ("segment_ids", "segment_ids")
    if isinstance(segment_ids, tuple | list) and len(segment_ids) == 2:
        paths = ("segment_ids[0]", "segment_ids[1]")
    elif isinstance(segment_ids, tuple | list):
        raise DTypeError(
            f"{where}: segment_ids is neither an array nor a pair of them.",
            path="segment_ids",
            expected="segment_ids: int[*n, t], or a pair (int[*n, t], int[*n, s])",
            actual=f"segment_ids: {describe(segment_ids)} of {len(segment_ids)}",
        )
    else:
        segment_ids = (segment_ids, segment_ids)
    for path, ids, size, of in zip(paths, segment_ids, (t, s), ("q", "k"), strict=True):
        expected = (
            f"{path}: int[{', '.join(map(str, (*n, size)))}]     ({of}: {describe(q if of == 'q' else k)})"
        )
        if not jnp.issubdtype(_check.dtype_of(ids) or object, jnp.integer):
            raise DTypeError(
                f"{where}: {path} is not an array of integers.",
                path=path,
                expected=expected,
                actual=f"{path}: {describe(ids)}",
            )
        if ids.shape != (*n, size):
            raise ShapeError(
                f"{where}: {path} does not fit {of}.",
                path=path,
                expected=expected,
                actual=f"{path}: {describe(ids)}",
                hint="q and k differ in length: a pair (of the queries, of the keys)."
                if paths[0] == paths[1] and t != s
                else None,
            )


def _check_block(where: str, block: Any) -> tuple[int, int]:
    rows, *columns = _check.integers(where, "block", block, like="(rows, columns)") or (0,)
    if len(columns) != 1:
        raise ShapeError(
            f"{where}: block has {len(block)} entries, but 2 are needed.",
            path="block",
            expected="block: (rows, columns)",
            actual=f"block = {tuple(block)}",
        )
    return rows, columns[0]


def _check_window(where: str, window: Any, causal: bool) -> Window:
    if window is None:
        return None
    if isinstance(window, tuple | list):
        if len(window) != 2:
            raise ValueRangeError(
                f"{where}: window has {len(window)} entries, but 2 are needed.",
                path="window",
                expected="window: (left, right)",
                actual=f"window: {describe(window)} of {len(window)}",
            )
        return tuple(_check.positive(where, "window", side, least=0) for side in window)  # pyright: ignore[reportReturnType]
    window = _check.positive(where, "window", window)
    if not causal:
        raise ValueRangeError(
            f"{where}: window is one number, but the queries see keys on both sides.",
            path="window",
            expected="window: (left, right), or causal=True",
            actual=f"window = {window}, causal = False",
            hint=f"({window - 1}, {window - 1}) reaches as far to the right as to the left.",
        )
    return window


def _check_offset(where: str, offset: Any, q: Array, k: Array) -> Offset:
    n, t, s = q.shape[:-3], q.shape[-3], k.shape[-3]
    dtype = _check.dtype_of(offset)
    if dtype is None or isinstance(offset, np.generic):
        offset = _check.positive(where, "q_offset", offset, least=-t if known(t) else -(2**31))
    elif not jnp.issubdtype(dtype, jnp.integer):
        raise DTypeError(
            f"{where}: q_offset is not an integer.",
            path="q_offset",
            expected="q_offset: int, or integers that broadcast to [*n]",
            actual=f"q_offset: {describe(offset)}",
        )
    elif len(offset.shape) > len(n) or any(
        o not in (1, size) for o, size in zip(offset.shape[::-1], n[::-1], strict=False)
    ):
        raise ShapeError(
            f"{where}: q_offset does not broadcast to the batch.",
            path="q_offset",
            expected=f"q_offset: int, broadcastable to [{', '.join(map(str, n))}]     (q: {describe(q)})",
            actual=f"q_offset: {describe(offset)}",
        )
    if known(t, s) and (isinstance(offset, int) or _check.concrete(offset)):
        last = int(np.asarray(offset).max(initial=0))
        if last > 0 and last + t > s:
            raise ValueRangeError(
                f"{where}: q_offset puts the last query at position {last + t - 1}, but there are {s} keys.",
                path="q_offset",
                expected=f"q_offset ≤ {s} − {t}     (q: {describe(q)}, k: {describe(k)})",
                actual=f"q_offset = {last}" if isinstance(offset, int) else f"q_offset: up to {last}",
                hint="the keys of the queries themselves come first: write them into the cache, then attend."
                if last == s
                else None,
            )
    return offset
