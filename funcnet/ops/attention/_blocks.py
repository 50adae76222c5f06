"""Attention block by block: nothing of the size t · s is ever held, forward or backward.

A block is a few hundred queries beside a few hundred keys. Which blocks there are is known when a function is
traced: those that causality or a window empties are left out, and only those that its edge crosses compare
positions. `jax.lax.scan` runs over the list, so that there is a reverse mode of the reverse mode; batch and
heads stay axes of every product, so that arrays may be sharded along them.

The queries of a block are those in every head that shares a key head: [*n, h_kv, h / h_kv · rows, e]. Both
passes compute a block with keys as its rows. So Pᵀ dO and dSᵀ Q are products of plain matrices, which XLA has
a faster CPU code for than for those whose left operand is transposed; Oᵀ = Vᵀ Pᵀ and dQᵀ = Kᵀ dSᵀ are too.
And both have the same logits, bit by bit: of a logit of 1e4 no other rounding could be subtracted from m.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.random import threefry2x32_p
from jax.interpreters import batching
from jaxtyping import Array

from funcnet import rules
from funcnet.ops._dtype import common, narrow, signed, wide
from funcnet.ops._shape import align, count, known

__all__ = ["NONE", "Arrays", "Form", "backward", "forward", "kept", "seed_of"]


@dataclasses.dataclass(frozen=True)
class Form:
    """What is known when attention is traced.

    Attributes:
        left, right: query at position p sees the keys p − left to p + right; None: no limit.
        scale: of the products.
        softcap: c of c · tanh(logits / c), or None.
        rate: of dropout.
        offset: position of the first query; None: it is among the `Arrays`.
        block: rows and columns of a block; None: chosen by `_block`.
    """

    left: int | None
    right: int | None
    scale: float
    softcap: float | None
    rate: float
    offset: int | None
    block: tuple[int, int] | None


class Arrays(NamedTuple):
    """What has no gradient and may be traced; None where absent."""

    mask: Array | None
    queries: Array | None  # segment of each query [*n, t]
    keys: Array | None  # segment of each key [*n, s]
    offset: Array | None  # position of the first query [*n]
    seed: Array | None  # of dropout, as `seed_of` draws it


NONE = Arrays(None, None, None, None, None)


class _Sizes(NamedTuple):
    """Of q and k, and of a block."""

    n: tuple[int, ...]
    t: int
    s: int
    h: int
    h_kv: int
    rows: int
    columns: int

    @property
    def blocks(self) -> tuple[int, int]:
        """Blocks along the queries and along the keys: one, where the length is a symbol."""
        pairs = (self.t, self.rows), (self.s, self.columns)
        many = [1 if size == most else -(-size // most) for size, most in pairs]
        return many[0], many[1]


# Compiled as a whole: an eager call would trace and compile its scans anew each time, and layers of equal
# shape share one trace.
@functools.partial(jax.jit, static_argnames="form")
def forward(
    form: Form, arrays: Arrays, q: Array, k: Array, v: Array, bias: Array | None, sinks: Array | None
) -> tuple[Array, Array, Array]:
    """o [*n, t, h, e_v], and of each row [*n, t, h] its largest logit m and log Σ exp(logits − m).

    Each row keeps the largest logit so far m, the sum of exp(logits − m), and its part of o times that sum;
    where a block brings a larger m, what came before is scaled down. m + log Σ is not one number: where m is
    large, as where all that a row sees has a bias of −1e9, the logarithm would be rounded away.
    """
    q, k, v = common(q, k, v)
    z, sums = _sizes(form, q, k), wide(q.dtype)
    q, scale = _scaled(form, q)
    q, k, vt = _by_queries(z, q), _by_keys(z, k), _by_keys(z, v).mT
    logits = _logits(dataclasses.replace(form, scale=scale), z, arrays, bias)

    def step(carry: tuple[Array, Array, Array], i: Array, j: Array, edge: bool) -> Any:
        ot, m, total = carry
        s, _, seen = logits(_at(q, i), _at(k, j), i, j, edge)
        s = _where(seen, s, -jnp.inf)
        before = _at(m, i)
        highest = jnp.maximum(before, lax.stop_gradient(s).max(-2, keepdims=True))
        p, shrink = jnp.exp(s - highest), jnp.exp(before - highest)
        total = _put(total, _at(total, i) * shrink + p.sum(-2, keepdims=True), i)
        if form.rate:
            p = jnp.where(_kept_in_block(form, z, arrays, i, j), p, 0)
        ot_ = _weigh(_at(vt, j), p.astype(v.dtype), seen)
        return _put(ot, _at(ot, i) * shrink + ot_, i), _put(m, highest, i), total

    (*lead, rows, _) = q.shape
    (ot,) = _varying(q, jnp.zeros((*lead, v.shape[-1], rows), sums))
    if sinks is None:
        m = jnp.full((*lead, 1, rows), jnp.finfo(sums).min)
        m, total = _varying(q, m, jnp.zeros_like(m))
    else:  # one more key in each row, with this logit and no value
        sinks = jnp.broadcast_to(_of_heads(z, sinks.astype(sums))[:, None], (*lead, 1, rows))
        m = lax.stop_gradient(sinks)
        total = jnp.exp(sinks - m)
    ot, m, total = _over_blocks(form, z, step, (ot, m, total))
    total = jnp.where(total > 0, total, 1)
    ot = ot / (total * (1 - form.rate) if form.rate else total)
    m, log_total = (_from_queries(z, x.mT)[..., 0] for x in (m, jnp.log(total)))
    return _from_queries(z, ot.mT).astype(v.dtype), m, log_total


@functools.partial(jax.jit, static_argnames="form")
def backward(
    form: Form,
    arrays: Arrays,
    q: Array,
    k: Array,
    v: Array,
    bias: Array | None,
    sinks: Array | None,
    o: Array,
    m: Array,
    log_total: Array,
    do: Array,
) -> tuple[Array, Array, Array, Array | None, Array | None]:
    """dq, dk, dv, dbias and dsinks, from P computed again block by block."""
    z, sums = _sizes(form, q, k), log_total.dtype
    leaves = q, k, v
    q, k, v, o, do = common(q, k, v, o, do)
    q, scale = _scaled(form, q)
    d = (do.astype(sums) * o.astype(sums)).sum(-1)
    dsinks = None
    if sinks is not None:
        p = jnp.exp(align(sinks.astype(sums), m.ndim) - m - log_total)
        dsinks = narrow(-(p * d).sum(range(d.ndim - 1)), sinks)
    q, do = _by_queries(z, q), _by_queries(z, do)
    d, m, log_total = (_by_queries(z, x[..., None]).mT for x in (d, m, log_total))
    k, v = _by_keys(z, k), _by_keys(z, v)
    kt = k.mT
    logits = _logits(dataclasses.replace(form, scale=scale), z, arrays, bias)

    def step(carry: Any, i: Array, j: Array, edge: bool) -> Any:
        dqt, dk, dv, dbias = carry
        do_ = _at(do, i)
        s, slope, seen = logits(_at(q, i), _at(k, j), i, j, edge)
        # Masked last, both: of a query that is NaN, m and d are NaN too.
        p = jnp.exp(_where(seen, s - _at(m, i) - _at(log_total, i), -jnp.inf))
        q_, kt_, v_ = (x if seen is None else _finite(x) for x in (_at(q, i), _at(kt, j), _at(v, j)))
        dp = jnp.matmul(v_, do_.mT, preferred_element_type=sums)
        p_ = p
        if form.rate:
            keep = _kept_in_block(form, z, arrays, i, j)
            p_, dp = (jnp.where(keep, x / (1 - form.rate), 0) for x in (p, dp))
        ds = p * _where(seen, dp - _at(d, i), 0)
        if dbias is not None:
            dbias = _add_to_bias(z, dbias, ds.mT, i, j)
        if slope is not None:
            ds = ds * slope
        dv = _put(dv, _at(dv, j) + jnp.matmul(p_.astype(q.dtype), do_, preferred_element_type=sums), j)
        ds = ds.astype(q.dtype)
        dk = _put(dk, _at(dk, j) + jnp.matmul(ds, q_, preferred_element_type=sums), j)
        dqt = _put(dqt, _at(dqt, i) + jnp.matmul(kt_, ds, preferred_element_type=sums), i)
        return dqt, dk, dv, dbias

    zeros = lambda x: _varying(q, jnp.zeros(x.shape, sums))[0]
    dbias = None if bias is None else zeros(_padded(z, bias))
    dqt, dk, dv, dbias = _over_blocks(form, z, step, (zeros(q.mT), zeros(k), zeros(v), dbias))
    dq, dk, dv = _from_queries(z, dqt.mT) * form.scale, _from_keys(z, dk), _from_keys(z, dv)
    dk = dk if scale == 1.0 else dk * scale
    if bias is not None and dbias is not None:
        dbias = narrow(dbias[tuple(slice(size) for size in _full(z, bias).shape)].reshape(bias.shape), bias)
    dq, dk, dv = (narrow(g, x) for g, x in zip((dq, dk, dv), leaves, strict=True))
    return dq, dk, dv, dbias, dsinks


def _scaled(form: Form, q: Array) -> tuple[Array, float]:
    """q times the scale, and what is left of it for the products: a short float would be rounded twice."""
    return (q * form.scale, 1.0) if q.dtype.itemsize >= 4 else (q, form.scale)


# ---- the blocks -------------------------------------------------------------------------------------------


def _sizes(form: Form, q: Array, k: Array) -> _Sizes:
    *n, t, h, _ = q.shape
    s, h_kv = k.shape[-3:-1]
    rows, columns = form.block or _block(math.prod(n) * h, t, s)
    within = lambda most, size: max(1, min(most, size)) if known(size) else size
    return _Sizes(tuple(n), t, s, h, h_kv, within(rows, t), within(columns, s))


# Logits of a block in all heads: 2 MiB of float32, so that the few arrays of that size stay in the caches.
# `python -m benchmarks attention_blocks`: (n, t, h, e) = (1, 4096, 8, 64) is fastest at 256 × 256, (2, 1024,
# 12, 64) and (4, 256, 6, 64) at 128 × 128; smaller blocks slow the products, larger ones all else.
_LOGITS, _LEAST, _MOST = 2**19, 128, 512


def _block(heads: int, t: int, s: int) -> tuple[int, int]:
    """Rows and columns of a block: about square, but as wide as its rows are few.

    Of heads whose number is a symbol there may be many; of a length that is one, all is one block.
    """
    heads = heads if known(heads) else _LOGITS
    side = math.isqrt(_LOGITS // max(1, heads)) // 64 * 64
    side = min(max(side, _LEAST), _MOST)
    rows = _even(t, side)
    return rows, _even(s, max(side, _LOGITS // max(1, heads * rows)) if known(rows) else side)


def _even(size: int, most: int) -> int:
    """The size of the fewest blocks of at most `most` that cover `size`, all about equal."""
    if not known(size):
        return size
    many = -(-size // most)
    return size if many <= 1 else -(-size // (8 * many)) * 8


def _over_blocks(form: Form, z: _Sizes, step: Callable[[Any, Array, Array, bool], Any], carry: Any) -> Any:
    """step(carry, i, j, whether an edge crosses the block) for every block that is not empty."""
    inner, edge = _list_blocks(form, z)
    few = len(inner) + len(edge) <= _UNROLLED
    for pairs, crossed in ((inner, False), (edge, True)):
        if few or len(pairs) <= 1:
            for i, j in pairs:
                carry = step(carry, jnp.int32(i), jnp.int32(j), crossed)
        else:
            body = lambda c, ij, crossed=crossed: (step(c, ij[0], ij[1], crossed), None)
            carry, _ = lax.scan(body, carry, jnp.asarray(pairs, jnp.int32))
    return carry


# Four blocks of (8, 512, 4, 32) written out beside a loop over the others save 3 % of the time, and XLA keeps
# what all of them compute at once: twice the memory.
_UNROLLED = 4


def _varying(like: Array, *zeros: Array) -> list[Array]:
    """Arrays that a scan begins with, varying over the mesh axes over which `like` does."""
    return rules.same_variance(*zeros, like)[: len(zeros)]


def _list_blocks(form: Form, z: _Sizes) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The blocks that are seen whole, and those that the edge of what is seen crosses."""
    inner, edge = [], []
    (blocks_q, blocks_k), limited = z.blocks, form.left is not None or form.right is not None
    for i in range(blocks_q):
        for j in range(blocks_k):
            whole = (j + 1) * z.columns <= z.s  # no padding
            if limited and (form.offset is None or not known(z.t, z.s)):
                whole = False
            elif limited and form.offset is not None:
                # How far the keys lie ahead of the queries, at the least and at the most.
                first, last = i * z.rows + form.offset, min((i + 1) * z.rows, z.t) - 1 + form.offset
                least, most = j * z.columns - last, min((j + 1) * z.columns, z.s) - 1 - first
                left = -math.inf if form.left is None else -form.left
                right = math.inf if form.right is None else form.right
                if least > right or most < left:
                    continue
                whole &= left <= least and most <= right
            (inner if whole else edge).append((i, j))
    return inner, edge


def _at(x: Array, i: Array) -> Array:
    if x.shape[0] == 1:
        return lax.squeeze(x, (0,))
    return lax.dynamic_index_in_dim(x, i, 0, keepdims=False, allow_negative_indices=False)


def _put(x: Array, y: Array, i: Array) -> Array:
    if x.shape[0] == 1:
        return y[None]
    return lax.dynamic_update_index_in_dim(x, y, i, 0, allow_negative_indices=False)


def _pad(x: Array, size: int, axis: int) -> Array:
    """x with zeros at the end of `axis`, up to `size`."""
    missing = size - x.shape[axis]
    if not missing:
        return x
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, missing)
    return jnp.pad(x, widths)


def _by_queries(z: _Sizes, x: Array) -> Array:
    """[*n, t, h, e] as [blocks, *n, h_kv, h / h_kv · rows, e]."""
    n, blocks, group = len(z.n), z.blocks[0], z.h // z.h_kv
    x = _pad(x, blocks * z.rows, n).reshape(*z.n, blocks, z.rows, z.h_kv, group, x.shape[-1])
    x = x.transpose(n, *range(n), n + 2, n + 3, n + 1, n + 4)
    return x.reshape(blocks, *z.n, z.h_kv, group * z.rows, x.shape[-1])


def _from_queries(z: _Sizes, x: Array) -> Array:
    """The inverse of `_by_queries`."""
    n, blocks, group = len(z.n), z.blocks[0], z.h // z.h_kv
    x = x.reshape(blocks, *z.n, z.h_kv, group, z.rows, x.shape[-1])
    x = x.transpose(*range(1, n + 1), 0, n + 3, n + 1, n + 2, n + 4)
    x = x.reshape(*z.n, blocks * z.rows, z.h, x.shape[-1])
    return x if x.shape[n] == z.t else lax.slice_in_dim(x, 0, z.t, axis=n)


def _by_keys(z: _Sizes, x: Array) -> Array:
    """[*n, s, h_kv, e] as [blocks, *n, h_kv, columns, e]."""
    n, blocks = len(z.n), z.blocks[1]
    x = _pad(x, blocks * z.columns, n).reshape(*z.n, blocks, z.columns, z.h_kv, x.shape[-1])
    return x.transpose(n, *range(n), n + 2, n + 1, n + 3)


def _from_keys(z: _Sizes, x: Array) -> Array:
    """The inverse of `_by_keys`."""
    n, blocks = len(z.n), z.blocks[1]
    x = x.transpose(*range(1, n + 1), 0, n + 2, n + 1, n + 3)
    x = x.reshape(*z.n, blocks * z.columns, z.h_kv, x.shape[-1])
    return x if x.shape[n] == z.s else lax.slice_in_dim(x, 0, z.s, axis=n)


def _of_heads(z: _Sizes, x: Array) -> Array:
    """[h] as [h_kv, h / h_kv · rows]."""
    group = z.h // z.h_kv
    x = jnp.broadcast_to(x.reshape(z.h_kv, group, 1), (z.h_kv, group, z.rows))
    return x.reshape(z.h_kv, group * z.rows)


# ---- the logits of one block ------------------------------------------------------------------------------


def _logits(form: Form, z: _Sizes, arrays: Arrays, bias: Array | None) -> Callable[..., Any]:
    """A function (q, k, i, j, edge) -> (logits, slope, seen) of one block, with keys as rows.

    slope is what softcap multiplies the gradient of the logits by, or None; seen is where they count, or None
    where all of them do.
    """
    bias = None if bias is None else _padded(z, bias).astype(wide(bias.dtype))
    mask = None if arrays.mask is None else _padded(z, arrays.mask)

    def logits(q: Array, k: Array, i: Array, j: Array, edge: bool) -> Any:
        conditions = [] if mask is None else [_tile(z, mask, i, j)]
        if arrays.queries is not None and arrays.keys is not None:
            conditions.append(_rows_of(z, arrays.queries, i) == _columns_of(z, arrays.keys, j))
        conditions += _in_reach(form, z, arrays, i, j) if edge else []
        conditions = [align(condition, len(z.n) + 3) for condition in conditions]
        seen = functools.reduce(jnp.logical_and, conditions).mT if conditions else None
        s = _product(k, q)
        s = s if form.scale == 1.0 else s * form.scale
        slope = None
        if form.softcap is not None:
            s = _where(seen, s, 0)
            bent = jnp.tanh(s / form.softcap)
            s, slope = form.softcap * bent, 1 - bent**2
        if bias is not None:
            s = s + _tile(z, bias, i, j).mT.astype(s.dtype)
        return s, slope, seen

    return logits


# ---- what is not seen, whatever it is: 0 · NaN is NaN -----------------------------------------------------
#
# Where all of a block is seen (None), the products are plain. Elsewhere logits that are not seen are replaced
# afterwards, and all other products, their transposes too, take what is finite: so none multiplies NaN by the
# 0 of what is not seen. NaN is written into the outputs that see it.


def _where(seen: Array | None, x: Array, otherwise: float | int) -> Array:
    return x if seen is None else jnp.where(seen, x, otherwise)


def _finite(x: Array) -> Array:
    return jnp.where(jnp.isfinite(x), x, 0)


def _times(k: Array, q: Array) -> Array:
    """k qᵀ."""
    return jnp.matmul(k, q.mT, preferred_element_type=wide(q.dtype))


def _transposed(ds: Array, x: Array) -> Array:
    return (ds @ _finite(x).astype(ds.dtype)).astype(x.dtype)


def _batched(k: Array, q: Array, *axes: int | None) -> tuple[Array, int]:
    size = next(v.shape[at] for v, at in zip((k, q), axes, strict=True) if at is not None)
    first = [batching.bdim_at_front(v, at, size) for v, at in zip((k, q), axes, strict=True)]
    return _product(*first), 0


_product = rules.bilinear("logits", _times)
rules.close(_product, to_a=_transposed, to_b=lambda ds, k: _transposed(ds.mT, k), batch=_batched)


def _weigh(vt: Array, p: Array, seen: Array | None) -> Array:
    """vᵀ p, and NaN for the queries that see a v that is not finite, in the features where one is not."""
    if seen is None:
        return jnp.matmul(vt, p, preferred_element_type=wide(p.dtype))
    bad = ~jnp.isfinite(vt)
    ot = jnp.matmul(jnp.where(bad, 0, vt), p, preferred_element_type=wide(p.dtype))
    sees = jnp.matmul(bad.any(-2, keepdims=True).astype(p.dtype), lax.stop_gradient(p)) > 0
    return jnp.where(bad.any(-1, keepdims=True) & sees, jnp.nan, ot)


# ---- where the blocks lie ---------------------------------------------------------------------------------


def _in_reach(form: Form, z: _Sizes, arrays: Arrays, i: Array, j: Array) -> list[Array]:
    """Conditions on the positions in a block, each broadcastable to it."""
    columns = (j * z.columns + jnp.arange(z.columns, dtype=jnp.int32))[None]
    rows = (i * z.rows + jnp.tile(jnp.arange(z.rows, dtype=jnp.int32), z.h // z.h_kv))[:, None]
    if arrays.offset is not None:
        far = 2**30  # beyond all keys, and no sum overflows
        offset = jnp.clip(signed(arrays.offset), -far, far).astype(jnp.int32)[..., None, None, None]
        rows, columns = align(rows, offset.ndim) + offset, align(columns, offset.ndim)
    else:
        rows = rows + jnp.int32(form.offset or 0)
    seen = [columns < z.s] if z.blocks[1] * z.columns != z.s else []
    seen += [columns - rows <= form.right] if form.right is not None else []
    return seen + ([columns - rows >= -form.left] if form.left is not None else [])


def _rows_of(z: _Sizes, x: Array, i: Array) -> Array:
    """[*n, t] as the rows of a block [*n, 1, h / h_kv · rows, 1]."""
    x = lax.dynamic_slice_in_dim(_pad(x, z.blocks[0] * z.rows, -1), i * z.rows, z.rows, axis=-1)
    return jnp.tile(x, z.h // z.h_kv)[..., None, :, None]


def _columns_of(z: _Sizes, x: Array, j: Array) -> Array:
    """[*n, s] as the columns of a block [*n, 1, 1, columns]."""
    x = lax.dynamic_slice_in_dim(_pad(x, z.blocks[1] * z.columns, -1), j * z.columns, z.columns, axis=-1)
    return x[..., None, None, :]


def _full(z: _Sizes, x: Array) -> Array:
    """A mask or bias with all axes [*n, h, t, s], of size 1 where it is broadcast."""
    return x.reshape((1,) * (len(z.n) + 3 - x.ndim) + x.shape)


def _padded(z: _Sizes, x: Array) -> Array:
    """A mask or bias that whole blocks cover."""
    x = _full(z, x)
    x = x if x.shape[-2] == 1 else _pad(x, z.blocks[0] * z.rows, x.ndim - 2)
    return x if x.shape[-1] == 1 else _pad(x, z.blocks[1] * z.columns, x.ndim - 1)


def _tile(z: _Sizes, x: Array, i: Array, j: Array) -> Array:
    """The part of a mask or bias in a block, broadcastable to [*n, h_kv, h / h_kv · rows, columns]."""
    if x.shape[-2] != 1:
        x = lax.dynamic_slice_in_dim(x, i * z.rows, z.rows, axis=-2)
    if x.shape[-1] != 1:
        x = lax.dynamic_slice_in_dim(x, j * z.columns, z.columns, axis=-1)
    *n, h, rows, columns = x.shape
    group = z.h // z.h_kv
    x = x.reshape(*n, *((z.h_kv, group) if h != 1 else (1, 1)), rows, columns)
    if group != 1 and (x.shape[-3] != 1 or rows != 1):
        x = jnp.broadcast_to(x, (*x.shape[:-3], group, z.rows, columns))
    return x.reshape(*x.shape[:-3], x.shape[-3] * x.shape[-2], columns)


def _add_to_bias(z: _Sizes, dbias: Array, ds: Array, i: Array, j: Array) -> Array:
    """dbias [*n, h, t, s] plus the sum of ds over what the bias was broadcast along."""
    *n, h, t, s = dbias.shape
    ds = ds.reshape(*z.n, z.h_kv, z.h // z.h_kv, z.rows, z.columns)
    lead = len(z.n)
    whole = (*z.n, z.h_kv, z.h // z.h_kv, z.rows, z.columns)
    kept = (*n, *((z.h_kv, z.h // z.h_kv) if h != 1 else (1, 1)), *(1 if size == 1 else 0 for size in (t, s)))
    summed = [a for a in range(lead + 4) if kept[a] == 1 and whole[a] != 1]
    ds = ds.sum(summed, keepdims=True)
    ds = ds.reshape(*ds.shape[:lead], ds.shape[lead] * ds.shape[lead + 1], *ds.shape[lead + 2 :])
    at = [jnp.int32(0)] * (lead + 1) + [
        i * z.rows if t != 1 else jnp.int32(0),
        j * z.columns if s != 1 else jnp.int32(0),
    ]
    there = lax.dynamic_slice(dbias, at, ds.shape)
    return lax.dynamic_update_slice(dbias, there + ds, at)


# ---- dropout: which weights are kept ----------------------------------------------------------------------


def seed_of(key: Array) -> Array:
    """The two words of 32 bits, drawn once, that decide which weights are kept, forward and backward."""
    return jax.random.bits(key, (2,), "uint32")


def kept(rate: float, seed: Array, rows: Array, columns: Array) -> Array:
    """Whether a weight is kept, by its place: the same whatever the blocks are.

    Threefry-2x32 of the number of the row and that of the column, under the seed.

    Args:
        rate: the share that is not.
        seed: from `seed_of`.
        rows: numbers of rows, uint32, broadcast against those of the columns.
        columns: numbers of columns.
    """
    rows, columns = jnp.broadcast_arrays(rows, columns)
    a, b = (jnp.broadcast_to(word, rows.shape) for word in seed)
    word, _ = threefry2x32_p.bind(a, b, rows, columns)
    return word >= np.uint32(min(round(rate * 2**32), 2**32 - 1))


def _kept_in_block(form: Form, z: _Sizes, arrays: Arrays, i: Array, j: Array) -> Array:
    """`kept` of [*n, h_kv, columns, h / h_kv · rows]; a row's number is that of [n, h, t] in C order."""
    assert arrays.seed is not None
    heads = jnp.arange(math.prod(z.n) * z.h, dtype=jnp.uint32).reshape(*z.n, z.h_kv, z.h // z.h_kv, 1)
    number = lambda size: count(size, jnp.uint32)
    rows = i.astype(jnp.uint32) * number(z.rows) + jnp.arange(z.rows, dtype=jnp.uint32)
    rows = (heads * number(z.t) + align(rows, heads.ndim)).reshape(*z.n, z.h_kv, z.h // z.h_kv * z.rows, 1)
    columns = j.astype(jnp.uint32) * number(z.columns) + jnp.arange(z.columns, dtype=jnp.uint32)
    return kept(form.rate, arrays.seed, rows, align(columns, rows.ndim)).mT
