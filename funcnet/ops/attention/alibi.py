"""Attention with linear biases: one that falls with the distance of key and query, at a slope per head.

    bias[h, i, j] = −slope_h · |i + q_offset − j|

Dimensions: h heads, t queries, s keys: slopes [h], bias [*n, h, t, s], *n the axes of q_offset. It is the
`bias` of `attention`, added to the logits. Source: Press, Smith and Lewis, "Train short, test long", arXiv
2108.12409. Computed in float32 or wider and rounded once.
"""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Integer

from funcnet import rules
from funcnet.errors import DTypeError, ShapeError, describe
from funcnet.ops import _check
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._dtype import narrow, signed, wide
from funcnet.ops._shape import align, known

__all__ = ["apply", "cost", "reference", "slopes", "vjp"]


def slopes(heads: int) -> Float[Array, " h"]:
    """The slopes of the paper [h]: 2^(−8/h), 2^(−16/h) ... 2^(−8), float32.

    They are those where `heads` is a power of two, p. Between p and 2 p they are these p, and after them the
    first, third, fifth ... of the slopes for 2 p heads.

    >>> slopes(4).tolist(), slopes(3).tolist()
    ([0.25, 0.0625, 0.015625, 0.00390625], [0.0625, 0.00390625, 0.25])
    """
    heads = _check.positive("alibi.slopes", "heads", heads)
    p = 2 ** int(math.log2(heads))
    exponents = [8 * (k + 1) / p for k in range(p)] + [8 * (k + 1) / (2 * p) for k in range(0, 2 * p, 2)]
    return jnp.asarray(np.exp2(-np.asarray(exponents[:heads])), jnp.float32)


def reference(
    slopes: Float[Array, " h"],
    *,
    t: int,
    s: int,
    q_offset: int | Integer[Array, "*n"] = 0,
    causal: bool = False,
) -> Float[Array, "..."]:
    """−slope · |i + q_offset − j|, as it is written; or slope · j."""
    m = slopes.astype(wide(slopes.dtype))[:, None, None]
    j = jnp.arange(s)[None, None]
    if causal:
        return (m * j.astype(m.dtype)).astype(slopes.dtype)
    first = jnp.asarray(q_offset).astype(j.dtype)[..., None, None, None]
    distance = jnp.abs(first + align(jnp.arange(t)[:, None], first.ndim) - align(j, first.ndim))
    return (align(-m, first.ndim) * distance.astype(m.dtype)).astype(slopes.dtype)


@rules.operation
def apply(
    slopes: Float[Array, " h"],
    *,
    t: int,
    s: int,
    q_offset: int | Integer[Array, "*n"] = 0,
    causal: bool = False,
) -> Float[Array, "..."]:
    """The bias of every head, query and key.

    Differentiated by `vjp`, which keeps q_offset alone; JAX's own rule keeps the distances [*n, 1, t, s].

    Args:
        slopes: [h], such as `alibi.slopes(h)`; they may be trained.
        t: number of queries.
        s: number of keys.
        q_offset: the position of the first query among the keys; an int, or integers [*n], traced or not.
        causal: give slope · j [h, 1, s] instead, whose size is linear in s. It is
            −slope · |i + q_offset − j| + slope · (i + q_offset) for the keys j ≤ i + q_offset, and a constant
            per query is lost in the softmax. It rounds as numbers of size slope · s do.

    Returns:
        bias [*n, h, t, s], or [h, 1, s] if causal, in the dtype of slopes.

    Raises:
        ShapeError: slopes are not a vector.
        DTypeError: slopes are not floating-point, or t, s or q_offset are not integers.
        ValueRangeError: t or s is negative.

    >>> fn.alibi.apply(jnp.array([0.5]), t=3, s=3)[0].tolist()
    [[-0.0, -0.5, -1.0], [-0.5, -0.0, -0.5], [-1.0, -0.5, -0.0]]
    """
    where = "alibi.apply"
    slopes = _check.floating(where, "slopes", slopes)
    if slopes.ndim != 1:
        raise ShapeError(
            f"{where}: slopes have rank {slopes.ndim}, but 1 is needed.",
            path="slopes",
            expected="slopes: float[h]",
            actual=f"slopes: {describe(slopes)}",
        )
    t, s = (
        _check.positive(where, name, size, least=0) if known(size) else size
        for name, size in (("t", t), ("s", s))
    )
    causal = _check.flag(where, "causal", causal)
    return rules.call(vjp, slopes, t=t, s=s, q_offset=_check_offset(where, q_offset), causal=causal)


def vjp(
    slopes: Float[Array, " h"],
    *,
    t: int,
    s: int,
    q_offset: int | Integer[Array, "*n"] = 0,
    causal: bool = False,
) -> tuple[Float[Array, "..."], Partial]:
    """The bias and its pullback: dslope_h = −Σ dy[h, i, j] · |i + q_offset − j|, or Σ dy[h, 0, j] · j."""
    weights = _weights(wide(slopes.dtype), q_offset, t=t, s=s, causal=causal)
    bias = align(slopes.astype(weights.dtype)[:, None, None], weights.ndim) * weights
    return bias.astype(slopes.dtype), Partial(rules.bind(_pullback, t=t, s=s, causal=causal), q_offset)


def _pullback(q_offset: Any, dy: Array, *, t: int, s: int, causal: bool) -> tuple[Array]:
    dy_ = dy.astype(wide(dy.dtype))
    weights = _weights(dy_.dtype, q_offset, t=t, s=s, causal=causal)
    over = tuple(axis for axis in range(dy.ndim) if axis != dy.ndim - 3)
    return (narrow((dy_ * weights).sum(over), dy),)


def _weights(dtype: jnp.dtype, q_offset: Any, *, t: int, s: int, causal: bool) -> Array:
    """What the slope is multiplied by, [*n, 1, t, s] or [1, 1, s]."""
    if causal:
        return jnp.arange(s).astype(dtype)[None, None]
    first = signed(jnp.asarray(q_offset))[..., None, None, None]
    i, j = (jnp.arange(size, dtype=first.dtype) for size in (t, s))
    return -jnp.abs(first + align(i[:, None], first.ndim) - align(j, first.ndim)).astype(dtype)


def cost(
    slopes: Float[Abstract, " h"],
    *,
    t: int,
    s: int,
    q_offset: int | Integer[Abstract, "*n"] = 0,
    causal: bool = False,
) -> Cost:
    """No products of matrices: 0 flops, and the bytes of slopes, q_offset and the bias."""
    return Cost(0, traffic(reference, slopes, t=t, s=s, q_offset=q_offset, causal=causal))


def _check_offset(where: str, q_offset: Any) -> Any:
    dtype = _check.dtype_of(q_offset)
    if isinstance(q_offset, int | np.generic):
        return _check.integer(where, "q_offset", q_offset)
    if dtype is not None and jnp.issubdtype(dtype, jnp.integer):
        return q_offset
    raise DTypeError(
        f"{where}: q_offset is neither an integer nor an array of them.",
        path="q_offset",
        expected="q_offset: int, or int[*n]",
        actual=f"q_offset: {describe(q_offset)}",
    )
