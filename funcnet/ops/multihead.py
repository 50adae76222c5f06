"""Multi-head self-attention: project x to queries, keys and values, attend, project back.

    q = x Wq + bq,  k = x Wk + bk,  v = x Wv + bv,  y = Σ_h attention(q, k, v)[h] Wo[h] + bo

Dimensions: *n any leading axes (batch), t positions, d features, h heads of the queries, h_kv heads of the
keys and values, e head width: x, y [*n, t, d], q.w [d, h, e], k.w and v.w [d, h_kv, e], o.w [h, e, d]. The
numbers of heads are read off these shapes. Source: Vaswani et al., "Attention is all you need", arXiv
1706.03762, §3.2.2.
"""

import math
from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict, cast

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from funcnet import rules
from funcnet.errors import ShapeError, StructureError, ValueRangeError, describe
from funcnet.ops import _bias, _check, attention
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._dtype import common, narrow, wide

__all__ = ["Params", "Projection", "apply", "cost", "init", "reference", "vjp"]


class Projection(TypedDict):
    """One linear map; w and b have the head axes among theirs. b may be absent."""

    w: Float[Array, "..."]
    b: NotRequired[Float[Array, "..."]]


class Params(TypedDict):
    """q.w [d, h, e], q.b [h, e]; k and v the same with h_kv heads; o.w [h, e, d], o.b [d]."""

    q: Projection
    k: Projection
    v: Projection
    o: Projection


def init(
    key: PRNGKeyArray,
    d: int,
    heads: int,
    *,
    kv_heads: int | None = None,
    head_width: int | None = None,
    bias: bool = True,
) -> Params:
    """Draw every w from N(0, 1/fan_in), fan_in = d for q, k and v, and heads · head_width for o; b = 0.

    Args:
        key: a random key.
        d: features of x and y.
        heads: heads of the queries.
        kv_heads: heads of the keys and values, a divisor of heads; None is heads.
        head_width: features of one head; None is d / heads.
        bias: whether each projection has a "b".

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
        if bias:
            params[name]["b"] = jnp.zeros(size[2:] if name == "o" else size[1:])
    return cast(Params, params)


def reference(
    params: Params,
    x: Float[Array, "*n t d"],
    *,
    causal: bool = False,
    mask: Bool[Array, "..."] | None = None,
) -> Float[Array, "*n t d"]:
    """The projections, the definition of attention, and the sum over heads, as they are written."""

    def heads(name: str) -> Array:
        w, x_ = common(params[name]["w"], x)
        return _bias.add(jnp.einsum("...td,dhe->...the", x_, w), params[name])

    o = attention.reference(heads("q"), heads("k"), heads("v"), causal=causal, mask=mask)
    w, o = common(params["o"]["w"], o)
    return _bias.add(jnp.einsum("...the,hed->...td", o, w), params["o"])


@rules.operation
def apply(
    params: Params,
    x: Float[Array, "*n t d"],
    *,
    causal: bool = False,
    mask: Bool[Array, "..."] | None = None,
) -> Float[Array, "*n t d"]:
    """Let every position of x attend to every position of x.

    Nothing is attached to the whole: `attention` carries its own rule, and of the projections XLA's own
    derivative is the formula of `vjp`.

    Args:
        params: {"q", "k", "v", "o"}, each a w and, unless absent, a b.
        x: [*n, t, d].
        causal: position i sees the positions j ≤ i only.
        mask: boolean, True = attend, broadcastable to [*n, h, t, t].

    Returns:
        y [*n, t, d], in the dtype that holds params and x.

    Raises:
        ShapeError: x does not have d features, or the parameters or mask do not fit together.
        DTypeError: x or a parameter is not floating-point, or mask is not boolean.
        StructureError: params lacks a part.
    """
    where = "multihead.apply"
    _check_params(where, params)
    x = _check.floating(where, "x", x)
    w = params["q"]["w"]
    _check.rank(where, "x", x, 2, f"*n, t, {w.shape[0]}")
    _check.features(where, x, w.shape[0], f'params["q"]["w"] ({describe(w)})', dims="*n, t")
    q, k, v = (_project(params[name], x, 1) for name in "qkv")
    return _project(params["o"], attention.apply(q, k, v, causal=causal, mask=mask), 2)


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
    *,
    causal: bool = False,
    mask: Bool[Array, "..."] | None = None,
) -> tuple[Float[Array, "*n t d"], Partial]:
    """y and its pullback: dO[h] = dY Wo[h]ᵀ, dWo[h] = O[h]ᵀ dY; then attention's own, of dO to dq, dk and dv.

    Last dWq = Xᵀ dq, so for k and v, and dX = dq Wqᵀ + dk Wkᵀ + dv Wvᵀ; each db is the sum of its cotangent.
    """
    q, k, v = (_project(params[name], x, 1) for name in "qkv")
    o, attend = attention.vjp(q, k, v, causal=causal, mask=mask)
    return _project(params["o"], o, 2), Partial(_pullback, params, x, o, attend)


def _pullback(params: Params, x: Array, o: Array, attend: Partial, dy: Array) -> tuple[dict, Array]:
    grads = {}
    grads["o"], do = _pull_projection(params["o"], o, dy, 2)
    dx = jnp.zeros(x.shape, wide(x.dtype))
    for name, dz in zip("qkv", attend(narrow(do, o)), strict=True):
        grads[name], dx_ = _pull_projection(params[name], x, dz, 1)
        dx = dx + dx_.astype(dx.dtype)
    return grads, narrow(dx, x)


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
    *,
    causal: bool = False,
    mask: Bool[Abstract, "..."] | None = None,
) -> Cost:
    """2 · n · t · (d · e · (2 h + 2 h_kv) + 2 · t · h · e) flops: four projections and attention."""
    t, (_, h, e) = x.shape[-2], params["q"]["w"].shape
    projections = sum(math.prod(p["w"].shape) for p in (params["q"], params["k"], params["v"], params["o"]))
    products = math.prod(x.shape[:-1]) * (projections + 2 * t * h * e)
    return Cost(2 * products, traffic(reference, params, x, causal=causal, mask=mask))


# ---- checks -----------------------------------------------------------------------------------------------


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
    sizes = {"q": (d, h, e), "k": (d, h_kv, e), "v": (d, h_kv, e), "o": (h, e, d)}
    for name, size in sizes.items():
        for leaf, expected in (("w", size), ("b", size[2:] if name == "o" else size[1:])):
            value, path = params[name].get(leaf), f'params["{name}"]["{leaf}"]'
            if value is not None and _check.floating(where, path, value).shape != expected:
                raise ShapeError(
                    f"{where}: {path} does not fit the other parameters.",
                    path=path,
                    expected=f"{path}: float[{', '.join(map(str, expected))}]     "
                    f'(params["q"]["w"]: {describe(w)})',
                    actual=f"{path}: {describe(value)}",
                )
