"""Scaled dot-product attention: O = P V with P = softmax(scale · Q Kᵀ), a softmax over the keys seen.

    o[n, i, h] = Σ_j p[n, h, i, j] · v[n, j, g(h)]
    p[n, h, i, j] = softmax over j of scale · q[n, i, h] · k[n, j, g(h)]

Dimensions: *n any leading axes (batch), t queries i, s keys j, h heads of the queries, h_kv heads of the keys
and values, e head width: q [*n, t, h, e], k [*n, s, h_kv, e], v [*n, s, h_kv, e_v], o [*n, t, h, e_v]. Query
head h uses key head g(h) = ⌊h / (h / h_kv)⌋. Sources: Vaswani et al., "Attention is all you need", arXiv
1706.03762; grouped heads: Ainslie et al., arXiv 2305.13245; the gradient from the logarithm of the sum: Dao
et al., "FlashAttention", arXiv 2205.14135, appendix B.
"""

import math
import numbers
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float

from funcnet import rules
from funcnet.errors import DTypeError, ShapeError, describe
from funcnet.ops import _check
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._dtype import common, narrow, wide

__all__ = ["apply", "cost", "reference", "vjp"]


def reference(
    q: Float[Array, "*n t h e"],
    k: Float[Array, "*n s h_kv e"],
    v: Float[Array, "*n s h_kv e_v"],
    *,
    causal: bool = False,
    mask: Bool[Array, "..."] | None = None,
    scale: float | None = None,
) -> Float[Array, "*n t h e_v"]:
    """O = softmax(scale · Q Kᵀ) V, as it is written; a row that sees nothing gives 0."""
    q, k, v = common(q, k, v)
    t, s, group = q.shape[-3], k.shape[-3], q.shape[-2] // k.shape[-2]
    k, v = jnp.repeat(k, group, -2), jnp.repeat(v, group, -2)
    logits = jnp.einsum("...the,...she->...hts", q, k, preferred_element_type=wide(q.dtype))
    logits = logits * (1 / math.sqrt(q.shape[-1]) if scale is None else float(scale))
    seen = jnp.ones(logits.shape, bool) if mask is None else jnp.broadcast_to(mask, logits.shape)
    if causal:
        seen = seen & jnp.tri(t, s, s - t, dtype=bool)
    highest = jnp.max(logits, -1, where=seen, initial=jnp.finfo(logits.dtype).min, keepdims=True)
    weights = jnp.where(seen, jnp.exp(jnp.where(seen, logits - highest, 0)), 0)
    total = weights.sum(-1, keepdims=True)
    p = weights / jnp.where(total > 0, total, 1)
    return jnp.einsum("...hts,...she->...the", p.astype(v.dtype), v)


@rules.operation
def apply(
    q: Float[Array, "*n t h e"],
    k: Float[Array, "*n s h_kv e"],
    v: Float[Array, "*n s h_kv e_v"],
    *,
    causal: bool = False,
    mask: Bool[Array, "..."] | None = None,
    scale: float | None = None,
) -> Float[Array, "*n t h e_v"]:
    """For every query, the mean of the values, weighted by the softmax of its products with the keys.

    Differentiated by `vjp`, which keeps nothing of the size t · s: JAX's own rule keeps P and more.

    Args:
        q: queries [*n, t, h, e].
        k: keys [*n, s, h_kv, e]; h_kv divides h, and h / h_kv neighbouring query heads share one key head.
        v: values [*n, s, h_kv, e_v].
        causal: query i sees the keys j ≤ i + s − t only. The ends are aligned: the last query sees every key,
            so that a query for the newest token sees all that came before.
        mask: boolean, True = attend, broadcastable to [*n, h, t, s].
        scale: what the products are multiplied by; None is 1/√e.

    Returns:
        o [*n, t, h, e_v], in the dtype that holds q, k and v; sums and the softmax are in float32 or wider.
        A query that sees no key gives zeros and passes no gradient.

    Raises:
        ShapeError: q, k, v and mask do not fit together.
        DTypeError: q, k or v is not floating-point, mask is not boolean, or scale is not a number.
    """
    where = "attention.apply"
    q, k, v = (_check.floating(where, path, x) for path, x in (("q", q), ("k", k), ("v", v)))
    _check_shapes(where, q, k, v)
    _check_mask(where, mask, q, k)
    _check.static(where, "causal", causal)
    if scale is not None and not isinstance(scale, numbers.Real):
        raise DTypeError(
            f"{where}: scale is not a number.",
            path="scale",
            expected="scale: a float, or None for 1/√e",
            actual=f"scale: {describe(scale)}",
            hint="multiply q by it: then it has a gradient too." if hasattr(scale, "dtype") else None,
        )
    return rules.call(vjp, q, k, v, causal=causal, mask=mask, scale=scale)


def vjp(
    q: Float[Array, "*n t h e"],
    k: Float[Array, "*n s h_kv e"],
    v: Float[Array, "*n s h_kv e_v"],
    *,
    causal: bool = False,
    mask: Bool[Array, "..."] | None = None,
    scale: float | None = None,
) -> tuple[Float[Array, "*n t h e_v"], Partial]:
    """o and its pullback, with P computed again from q, k and the logarithms of its sums.

    dV = Pᵀ dO, dS = P ∘ (dO Vᵀ − rowsum(dO ∘ O)), dQ = scale · dS K, dK = scale · dSᵀ Q; dK and dV are summed
    over the query heads that share a key head.
    """
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    q_, k_, v_ = _by_key_head(k.shape[-2], *common(q, k, v))
    logits = _logits(q_, k_, q.shape, mask, causal, scale)
    highest = jnp.max(lax.stop_gradient(logits), -1, initial=jnp.finfo(logits.dtype).min, keepdims=True)
    weights = jnp.exp(logits - highest)
    total = weights.sum(-1, keepdims=True)
    total = jnp.where(total > 0, total, 1)
    o = jnp.matmul(weights.astype(v_.dtype), v_, preferred_element_type=total.dtype) / total
    o = _by_query_head(q.shape[-2], o.astype(v_.dtype))
    pullback = rules.bind(_pullback, causal=causal, scale=scale)
    return o, Partial(pullback, q, k, v, o, highest + jnp.log(total), mask)


def _pullback(
    q: Array,
    k: Array,
    v: Array,
    o: Array,
    log_total: Array,
    mask: Array | None,
    do: Array,
    *,
    causal: bool,
    scale: float,
) -> tuple[Array, Array, Array]:
    sums = log_total.dtype
    q_, k_, v_, o, do = _by_key_head(k.shape[-2], *common(q, k, v), o, do)
    p = jnp.exp(_logits(q_, k_, q.shape, mask, causal, scale) - log_total)
    dp = jnp.matmul(do, v_.mT, preferred_element_type=sums)
    d = (do.astype(sums) * o.astype(sums)).sum(-1, keepdims=True)
    ds = (scale * p * (dp - d)).astype(do.dtype)
    dq = jnp.matmul(ds, k_, preferred_element_type=sums)
    dk = jnp.matmul(ds.mT, q_, preferred_element_type=sums)  # the sum over the heads that share k too
    dv = jnp.matmul(p.astype(do.dtype).mT, do, preferred_element_type=sums)
    h, h_kv = q.shape[-2], k.shape[-2]
    return (
        narrow(_by_query_head(h, dq), q),
        narrow(_by_query_head(h_kv, dk), k),
        narrow(_by_query_head(h_kv, dv), v),
    )


def _logits(
    q: Array, k: Array, shape: tuple[int, ...], mask: Array | None, causal: bool, scale: float
) -> Array:
    """scale · Q Kᵀ [*n, h_kv, h / h_kv · t, s], in float32 or wider; −∞ where a key is not seen.

    q and k are as `_by_key_head` gives them; `shape` is that of q before.
    """
    logits = scale * jnp.matmul(q, k.mT, preferred_element_type=wide(q.dtype))
    (*n, t, h, _), s = shape, k.shape[-2]
    if causal:
        before = jnp.tri(t, s, s - t, dtype=bool)
        mask = before if mask is None else mask & before
    if mask is None:
        return logits
    return jnp.where(jnp.broadcast_to(mask, (*n, h, t, s)).reshape(logits.shape), logits, -jnp.inf)


def _by_key_head(h_kv: int, *arrays: Array) -> list[Array]:
    """Every [*n, t, h, e] as [*n, h_kv, h / h_kv · t, e], so that each product is one of plain matrices."""

    def one(x: Array) -> Array:
        *n, t, h, e = x.shape
        return x.swapaxes(-3, -2).reshape(*n, h_kv, h // h_kv * t, e)

    return [one(x) for x in arrays]


def _by_query_head(h: int, x: Array) -> Array:
    """The inverse of `_by_key_head`."""
    *n, h_kv, rows, e = x.shape
    return x.reshape(*n, h, h_kv * rows // h, e).swapaxes(-3, -2)


def cost(
    q: Float[Abstract, "*n t h e"],
    k: Float[Abstract, "*n s h_kv e"],
    v: Float[Abstract, "*n s h_kv e_v"],
    *,
    causal: bool = False,
    mask: Bool[Abstract, "..."] | None = None,
    scale: float | None = None,
) -> Cost:
    """2 · n · h · t · s · (e + e_v) flops; products that a mask hides are counted."""
    products = math.prod(q.shape[:-1]) * k.shape[-3]
    options = {"causal": causal, "mask": mask, "scale": scale}
    return Cost(2 * products * (q.shape[-1] + v.shape[-1]), traffic(reference, q, k, v, **options))


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
    if getattr(mask, "dtype", None) != jnp.bool_:
        raise DTypeError(
            f"{where}: mask is not boolean.",
            path="mask",
            expected="mask: bool[...], True = attend",
            actual=f"mask: {describe(mask)}",
            hint="mask != 0 for a mask of ones and zeros, mask == 0 for one that is added to the logits."
            if hasattr(mask, "dtype")
            else None,
        )
    n, (t, h), s = q.shape[:-3], q.shape[-3:-1], k.shape[-3]
    full = (*n, h, t, s)
    if len(mask.shape) <= len(full) and all(
        m in (1, size) for m, size in zip(mask.shape[::-1], full[::-1], strict=False)
    ):
        return
    hint = None
    if mask.shape == (*n, s):
        hint = "a mask of the keys: mask[..., None, None, :]."
    elif mask.shape == (*n, t, s):
        hint = "the same for every head: mask[..., None, :, :]."
    raise ShapeError(
        f"{where}: mask does not broadcast to [*n, h, t, s].",
        path="mask",
        expected=f"mask: bool, broadcastable to [{', '.join(map(str, full))}]     (q: {describe(q)})",
        actual=f"mask: {describe(mask)}",
        hint=hint,
    )
