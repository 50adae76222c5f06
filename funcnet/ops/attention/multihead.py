"""Multi-head self-attention: project x to queries, keys and values, attend, project back.

    q = x Wq + bq,  k = x Wk + bk,  v = x Wv + bv,  y = Σ_h attention(q, k, v)[h] Wo[h] + bo

Before they attend, q and k are normalised (rms_norm over the head width) where params have "q_norm" and
"k_norm", then turned by their positions (rope) where that is asked for.

Dimensions: *n any leading axes (batch), t positions, d features, h heads of the queries, h_kv heads of the
keys and values, e head width: x, y [*n, t, d], q.w [d, h, e], k.w and v.w [d, h_kv, e], o.w [h, e, d]. The
numbers of heads are read off these shapes. A w may also be factored: "down" and "up" in its place, whose
product it is (`_factored`). Sources: Vaswani et al., "Attention is all you need", arXiv
1706.03762, §3.2.2; norms of queries and keys: Henry et al., arXiv 2010.04245, here as in Qwen3.

`decode` does the same for a sequence that comes in pieces, and keeps the keys and values in a cache.
"""

import functools
import math
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Integer, PRNGKeyArray

from funcnet import rules, spec, taps
from funcnet._letters import Told, axes_of
from funcnet.errors import StructureError, ValueRangeError, describe
from funcnet.ops import _bias, _check, _factored, _squares
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._draw import Initializer, drawn
from funcnet.ops._dtype import common, narrow, wide
from funcnet.ops.attention import _projections, attention
from funcnet.ops.attention import rope as rotary
from funcnet.ops.attention._cache import Cache, decode, init_cache
from funcnet.ops.attention._projections import Params, Projection
from funcnet.ops.norm import rms_norm

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
    "specs",
    "squares",
    "vjp",
]


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
    w: Initializer | None = None,
) -> Params:
    """Draw every w uniformly, of variance 1/fan_in, fan_in = d for q, k and v, and heads · head_width for o.

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
        w: what draws each w instead: ``(key, (d, heads · head_width)) -> w`` of q, and so on, as
            ``jax.nn.initializers.xavier_uniform()``.

    Raises:
        DTypeError: w is no initialiser.
        ValueRangeError: a size is not positive, or a number of heads does not divide what it should.

    >>> jax.tree.map(jnp.shape, init(jax.random.key(0), 6, 4, kv_heads=2, head_width=5, bias=False))
    {'k': {'w': (6, 2, 5)}, 'o': {'w': (4, 5, 6)}, 'q': {'w': (6, 4, 5)}, 'v': {'w': (6, 2, 5)}}
    """
    where = "multihead.init"
    _check.key(where, key, none=False)
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
    bias, qk_norm = _check.flag(where, "bias", bias), _check.flag(where, "qk_norm", qk_norm)
    sinks = _check.flag(where, "sinks", sinks)
    o_bias = bias if o_bias is None else _check.flag(where, "o_bias", o_bias)
    sizes = {"q": (d, heads, e), "k": (d, h_kv, e), "v": (d, h_kv, e), "o": (heads, e, d)}
    keys = dict(zip(sizes, jax.random.split(key, 4), strict=True))
    params: dict[str, Any] = {}
    for name, size in sizes.items():
        inputs, roles = (heads * e, "iio") if name == "o" else (d, "ioo")
        params[name] = {"w": drawn(where, keys[name], w, size, roles, variance=1 / inputs)}
        if o_bias if name == "o" else bias:
            params[name]["b"] = jnp.zeros(size[2:] if name == "o" else size[1:])
    if qk_norm:
        params |= {"q_norm": rms_norm.init(key, e), "k_norm": rms_norm.init(key, e)}
    if sinks:
        params["sinks"] = jnp.zeros(heads)
    return cast(Params, params)


def specs(params: Params, *, heads_apart: bool = False) -> dict[str, Any]:
    """Which matrices the projections are: all heads of one are one, features by heads times width.

    Args:
        params: arrays, or `jax.ShapeDtypeStruct`.
        heads_apart: each head is a matrix of its own, as q_h = x W_h may be read as well.
    """
    into, out_of = ("iso", "sio") if heads_apart else ("ioo", "iio")
    head = lambda h: {
        "w": (f"d {h} e", into),
        "b": (f"{h} e",),
        "down": ("d r", "io"),
        "up": (f"r {h} e", "ioo"),
    }
    last = {"w": ("h e d", out_of), "b": ("d",), "down": ("h e r", "iio"), "up": ("r d", "io")}
    norm = {"w": ("e",)}
    names = {"q": head("h"), "k": head("h_kv"), "v": head("h_kv"), "o": last}
    return spec.tree("multihead.specs", params, {**names, "q_norm": norm, "k_norm": norm, "sinks": ("h",)})


def reference(
    params: Params,
    x: Float[Array, "*n t d"],
    bias: Float[Array, "..."] | None = None,
    *,
    rope: rotary.Config | None = None,
    positions: Integer[Array, "..."] | Float[Array, "..."] | None = None,
    norm_eps: float = 1e-6,
    **attend: Any,
) -> Float[Array, "*n t d"]:
    """The projections, the definitions of what lies between, and the sum over heads, as they are written.

    `attend` are the options of attention, here and in `vjp` and `cost`.
    """

    def heads(name: str) -> Array:
        z = _through(params[name], x, 1)
        norm = params.get(f"{name}_norm")
        z = z if norm is None else rms_norm.reference(norm, z, norm_eps)
        return z if rope is None or name == "v" else rotary.reference(z, rope, positions=positions)

    q, k, v = heads("q"), heads("k"), heads("v")
    o = attention.reference(q, k, v, bias, params.get("sinks"), **attend)
    return _through(params["o"], o, 2)


def _through(p: Projection, x: Array, axes: int) -> Array:
    """x W + b, W taking the last `axes` axes of x; in its two parts where it is factored."""
    for part in _factored.parts(p):
        w, x = common(part["w"], x)
        x, axes = _bias.add(jnp.tensordot(x, w, axes), part), 1
    return x


def _by_parts(f: Any, params: Any, x: Any, *args: Any, **options: Any) -> Any:
    """Where positions are split over devices, each part sees that they are, and `attention` what to do."""
    return f(params, x, *args, **options) if axes_of(x)[-2] else NotImplemented


@functools.partial(rules.composite, told=Told(instead=_by_parts))
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
    positions: Integer[Array, "..."] | Float[Array, "..."] | None = None,
    norm_eps: float = 1e-6,
    dropout_rate: float = 0.0,
    key: PRNGKeyArray | None = None,
    block: tuple[int, int] | None = None,
) -> Float[Array, "*n t d"]:
    """Let every position of x attend to every position of x.

    Nothing is attached to the whole: `attention`, `rope` and `rms_norm` carry their own rules, and of the
    projections XLA's own derivative is the formula of `vjp`. Tapped (see `taps`) are q, k and v as they
    attend, the results of the heads [*n, t, h, e] and, only if asked for, the pattern P [*n, h, t, t]: then
    all is computed by the definition.

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
        positions: [t] or [*n, t], integers or floats, that rope turns by; None is 0, 1 ... t − 1.
        norm_eps: of the norms of queries and keys.
        dropout_rate: of the attention weights.
        key: for dropout; None in evaluation.
        block: how many queries and keys attention takes at a time; None: as it chooses.

    Returns:
        y [*n, t, d], in the dtype that holds params and x.

    Raises:
        ShapeError: x does not have d features, or the parameters or other arrays do not fit together.
        DTypeError: x or a parameter is not floating-point, or mask is not boolean.
        StructureError: params lacks a part.
        ValueRangeError: an option is out of its range.

    >>> params = fn.multihead.init(jax.random.key(0), 16, 4)
    >>> fn.multihead.apply(params, jnp.ones((2, 5, 16)), causal=True).shape
    (2, 5, 16)
    """
    where = "multihead.apply"
    x, norm_eps = _projections.check(where, params, x), _check.number(where, "norm_eps", norm_eps)
    q, k, v = _projections.heads(params, x, rope, positions, norm_eps)
    given = q, k, v, bias, params.get("sinks")
    attend: dict[str, Any] = {
        "causal": causal,
        "window": window,
        "segment_ids": segment_ids,
        "mask": mask,
        "scale": scale,
        "softcap": softcap,
        "dropout_rate": dropout_rate,
        "key": key,
        "block": block,
    }
    o = attention.apply(*given, **attend)
    if taps.asked("pattern"):  # which only the definition has
        o = attention.reference(*given, **attend)
    return _projections.project(params["o"], taps.tap("heads", o), axes=2)


def vjp(
    params: Params,
    x: Float[Array, "*n t d"],
    bias: Float[Array, "..."] | None = None,
    *,
    rope: rotary.Config | None = None,
    positions: Integer[Array, "..."] | Float[Array, "..."] | None = None,
    norm_eps: float = 1e-6,
    **attend: Any,
) -> tuple[Float[Array, "*n t d"], Partial]:
    """y and its pullback: dO[h] = dY Wo[h]ᵀ, dWo[h] = O[h]ᵀ dY; then attention's own, of dO to dq, dk and dv.

    Then those of rope and of the norms, of dq and dk. Last dWq = Xᵀ dq, so for k and v, and
    dX = dq Wqᵀ + dk Wkᵀ + dv Wvᵀ; each db is the sum of its cotangent.
    """
    _projections.mappings("multihead.vjp", params)

    def ready(name: str, z: Array) -> tuple[Array, tuple[Partial | None, Partial | None]]:
        """z, normalised and turned, and the pullbacks of both."""
        norm, turn, p = None, None, params.get(f"{name}_norm")
        if p is not None:
            z, norm = rms_norm.vjp(p, z, norm_eps)
        if rope is not None:
            z, turn = rotary.vjp(z, rope, positions=positions)
        return z, (norm, turn)

    q, k, v = (_projections.project(params[name], x, axes=1) for name in "qkv")
    (q, before_q), (k, before_k) = ready("q", q), ready("k", k)
    o, pull = attention.vjp(q, k, v, bias, params.get("sinks"), **attend)
    y = _projections.project(params["o"], o, axes=2)
    return y, Partial(_pullback, params, x, o, pull, {"q": before_q, "k": before_k, "v": (None, None)})


def _pullback(
    params: Params, x: Array, o: Array, attend: Partial, before: dict[str, Any], dy: Array
) -> tuple[Params, Array, Array | None]:
    grads: dict[str, Any] = {}
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
    return rules.like(params, grads), narrow(dx, x), dbias


def _pull_projection(p: Any, x: Array, dy: Array, axes: int) -> tuple[dict, Array]:
    """The cotangents of p and, not yet rounded, of x."""
    if _factored.is_factored(p):
        first, last = _factored.parts(p)
        middle = _projections.project(first, x, axes=axes)
        grads, dmiddle = _pull_projection(last, middle, dy, 1)
        before, dx = _pull_projection(first, x, narrow(dmiddle, middle), axes)
        return _factored.in_parts(grads, before["w"], grads["w"]), dx
    w, x = common(p["w"], x)
    n, sums = x.ndim - axes, wide(dy.dtype)
    x_, dy_ = (
        (x[None], dy[None]) if n == 1 else (x, dy)
    )  # XLA:CPU lacks the product over the first axis alone
    over = tuple(range(x_.ndim - axes))
    dw = jnp.tensordot(x_, dy_, (over, over), preferred_element_type=sums)
    of_y = tuple(range(n, dy.ndim)), tuple(range(axes, w.ndim))
    dx = jnp.tensordot(dy, w, of_y, preferred_element_type=sums)
    grads = {"w": narrow(dw, p["w"])}
    if (b := p.get("b")) is not None:
        grads["b"] = narrow(dy.sum(range(n), dtype=sums), b)
    return grads, dx


def cost(
    params: Params,
    x: Float[Abstract, "*n t d"],
    bias: Float[Abstract, "..."] | None = None,
    **options: Any,
) -> Cost:
    """2 · n · t · (d · e · (2 h + 2 h_kv) + 2 · t · h · e) flops: four projections and attention."""
    _projections.mappings("multihead.cost", params)
    t, (_, h, e) = x.shape[-2], _factored.kernel(params["q"]).shape
    projections = sum(math.prod(part["w"].shape) for name in "qkvo" for part in _factored.parts(params[name]))
    products = math.prod(x.shape[:-1]) * (projections + 2 * t * h * e)
    return Cost(2 * products, traffic(reference, params, x, bias, **options))


def squares(
    params: Params,
    x: Float[Array, "n *t d"],
    bias: Float[Array, "..."] | None,
    dy: Float[Array, "n *t d"],
    **options: Any,
) -> Float[Array, " n"]:
    """The squares of the gradients of each example: the sum of those of its projections and norms.

    They are counted where `apply` makes them, since what reaches them has come through attention.

    Raises:
        StructureError: params hold sinks, for which there is no formula.
    """
    _squares.examples("multihead.squares", "x", x, 2)
    if (sinks := params.get("sinks")) is not None:
        raise StructureError(
            "multihead.squares: there is no formula for the gradients of single examples by sinks.",
            path='params["sinks"]',
            expected="params without sinks",
            actual=f'params["sinks"]: {describe(sinks)}',
        )
    zero = jnp.zeros(x.shape[:1], wide(dy.dtype))
    (out,) = jax.vjp(lambda s: rules.counted(s, lambda: apply(params, x, bias, **options)), zero)[1](dy)
    return out
