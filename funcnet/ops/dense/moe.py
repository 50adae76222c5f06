"""A mixture of experts: each token goes through the k of many small networks that its router chooses.

    y = Σ_{i in S} g_i · E_i(x),  E(x) = down(σ(gate(x)) · up(x)), or down(σ(up(x))) without a gate
    l = x W_router (+ b), S: the k largest l (at a tie the first), p = softmax(l)
    g_i = p_i / Σ_{j in S} p_j, or p_i itself

Beside y come four facts about the routing, for the loss and for the log: with n tokens in all,

    balance = experts · Σ_e load_e · mean(p_e),  load_e = the part of all n k choices that are e
    z = mean((log Σ_e exp l_e)²),  dropped = how many choices found no room

balance is 1 where all experts are chosen alike, and at most `experts`. The load and what is dropped are
counts: they have no gradient, nor has the choice itself. The router computes in float32 or wider.

**Capacity.** With a capacity c an expert takes ⌈c · k · t / experts⌉ tokens of a sequence, in their order: a
token that comes later, or a second choice as much as a first, is dropped where the expert is full, and gets
nothing of it. Each sequence has queues of its own, so that no example depends on the others of its batch, no
token on later ones, and no result on how a batch is split over devices. Without one, nothing is dropped.

Dimensions: *n any leading axes (batch), t time, d features, routes = experts, k experts of a token: x, y
[*n, t, d], router.w [d, routes], up.w and gate.w [experts, d, d_hidden], down.w [experts, d_hidden, d].

Sources: Shazeer et al., "Outrageously large neural networks", arXiv 1701.06538; balance and capacity: Fedus
et al., "Switch transformers", arXiv 2101.03961, §2.2; z: Zoph et al., "ST-MoE", arXiv 2202.08906, §3.2;
normalised gates and gated experts: Jiang et al., "Mixtral of experts", arXiv 2401.04088, §2.1.
"""

import functools
import inspect
import math
from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict, cast

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float, PRNGKeyArray

from funcnet import rules, spec
from funcnet._letters import Told
from funcnet.errors import ShapeError, StructureError, ValueRangeError, describe
from funcnet.ops import _check
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._draw import Initializer, drawn
from funcnet.ops._dtype import common, narrow
from funcnet.ops._shape import align, count, known
from funcnet.ops.dense import _exchange, _experts

__all__ = ["Facts", "Params", "apply", "cost", "init", "reference", "specs", "vjp"]


class Router(TypedDict):
    """w [d, routes]; b [routes], which `init` does not make."""

    w: Float[Array, "d routes"]
    b: NotRequired[Float[Array, " routes"]]


class Into(TypedDict):
    """w [experts, d, d_hidden]; b [experts, d_hidden], absent for maps without bias."""

    w: Float[Array, "experts d d_hidden"]
    b: NotRequired[Float[Array, "experts d_hidden"]]


class OutOf(TypedDict):
    """w [experts, d_hidden, d]; b [experts, d], absent for maps without bias."""

    w: Float[Array, "experts d_hidden d"]
    b: NotRequired[Float[Array, "experts d"]]


class Params(TypedDict):
    """The router, and the maps of all experts, stacked; without a "gate" they are not gated."""

    router: Router
    up: Into
    gate: NotRequired[Into]
    down: OutOf


class Facts(TypedDict):
    """About the routing of all tokens, in float32 or wider; load [routes], the others are numbers."""

    balance: Float[Array, ""]
    z: Float[Array, ""]
    load: Float[Array, " routes"]
    dropped: Float[Array, ""]


def init(
    key: PRNGKeyArray,
    d: int,
    d_hidden: int,
    experts: int,
    *,
    gated: bool = True,
    bias: bool = True,
    w: Initializer | None = None,
) -> Params:
    """Draw every w uniformly, of variance 1/fan_in, that is d_hidden of "down", else d; every b = 0.

    Args:
        key: a random key.
        d: features of x and y.
        d_hidden: those within an expert.
        experts: how many there are.
        gated: whether there is a "gate".
        bias: whether the maps of the experts have a "b"; the router has none.
        w: what draws each matrix instead: ``(key, (d, d_hidden)) -> w`` of up, and so on, as
            ``jax.nn.initializers.xavier_uniform()``.

    >>> params = init(jax.random.key(0), 3, 5, 2, bias=False)
    >>> {name: part["w"].shape for name, part in params.items()}
    {'router': (3, 2), 'up': (2, 3, 5), 'down': (2, 5, 3), 'gate': (2, 3, 5)}
    """
    where = "moe.init"
    _check.key(where, key, none=False)
    d, d_hidden = _check.positive(where, "d", d), _check.positive(where, "d_hidden", d_hidden)
    experts = _check.positive(where, "experts", experts)
    gated, bias = _check.flag(where, "gated", gated), _check.flag(where, "bias", bias)
    shapes = {"router": (d, experts), "up": (experts, d, d_hidden), "down": (experts, d_hidden, d)}
    shapes |= {"gate": shapes["up"]} if gated else {}
    params: dict[str, Any] = {}
    for one, (name, shape) in zip(jax.random.split(key, 4), shapes.items(), strict=False):
        leaf = drawn(where, one, w, shape, "sio"[-len(shape) :], variance=1 / shape[-2])
        params[name] = {"w": leaf}
        if bias and name != "router":
            params[name]["b"] = jnp.zeros((experts, shape[2]), leaf.dtype)
    return cast(Params, params)


def specs(params: Params) -> dict[str, Any]:
    """Which matrices there are: the router's, and of each map one for every expert; no b is one.

    By the rank of the gradient all experts side by side would be one, as all heads are: they read the same x.
    But a token moves k of them only, and an optimizer that shapes a whole matrix would move the others.

    The axis of the experts is "experts", that of the router's logits "routes": a small matrix that every
    device needs whole.
    """
    into = {"w": ("experts d d_hidden", "sio"), "b": ("experts d_hidden",)}
    out = {"w": ("experts d_hidden d", "sio"), "b": ("experts d",)}
    router = {"w": ("d routes", "io"), "b": ("routes",)}
    return spec.tree("moe.specs", params, {"router": router, "up": into, "gate": into, "down": out})


def reference(
    params: Params,
    x: Float[Array, "*n t d"],
    *,
    k: int = 2,
    activation: str = "silu",
    renormalise: bool = True,
    capacity: float | None = None,
) -> tuple[Float[Array, "*n t d"], Facts]:
    """Of every token the matrices of its k experts, and their results weighted, as it is written."""
    logits = _experts.logits_of(params["router"], x)
    p, (_, chosen) = jax.nn.softmax(logits), lax.top_k(logits, k)
    gates = jnp.take_along_axis(p, chosen, -1)
    if renormalise:
        gates = gates / gates.sum(-1, keepdims=True)
    experts = logits.shape[-1]
    kept = jnp.ones(chosen.shape, bool)
    if capacity is not None:
        kept = _experts.places(chosen, experts) < _experts.room(capacity, k, x.shape[-2], experts)

    def each(name: str, x: Array) -> Array:
        part = params[name]
        w, x = common(part["w"], x)
        y = jnp.einsum("...ki,...kio->...ko", x, w[chosen])
        return y if part.get("b") is None else y + part["b"].astype(y.dtype)[chosen]

    operation, options = _experts.ACTIVATIONS[activation]
    act = lambda z: operation.reference(z, **options)
    h = jnp.broadcast_to(x[..., None, :], (*chosen.shape, x.shape[-1]))
    up = each("up", h)
    h = act(up) if params.get("gate") is None else act(each("gate", h)) * up
    out = jnp.where(kept[..., None], each("down", h), 0)
    y = (gates[..., None] * out.astype(gates.dtype)).sum(-2).astype(out.dtype)

    n, over = count(logits.size // experts, p.dtype), tuple(range(logits.ndim - 1))
    load = _experts.are(chosen, experts).sum((*over, -2)).astype(p.dtype) / jnp.maximum(k * n, 1)
    facts: Facts = {
        "balance": experts * (load * p.sum(over)).sum() / jnp.maximum(n, 1),
        "z": (jax.nn.logsumexp(logits, -1) ** 2).sum() / jnp.maximum(n, 1),
        "load": load,
        "dropped": (~kept).sum().astype(p.dtype),
    }
    return y, facts


def _on_mesh(f: Any, params: Any, x: Any, **options: Any) -> Any:
    x, options = _checked("moe.apply", params, x, **{**inspect.unwrap(f).__kwdefaults__, **options})
    return _exchange.apply(params, x, **options)


@functools.partial(rules.operation, told=Told(instead=_on_mesh))
def apply(
    params: Params,
    x: Float[Array, "*n t d"],
    *,
    k: int = 2,
    activation: str = "silu",
    renormalise: bool = True,
    capacity: float | None = None,
) -> tuple[Float[Array, "*n t d"], Facts]:
    """Send each token of x to its k experts, and add up what they give.

    The experts are differentiated by `vjp`, which keeps what enters their activations; JAX's own rule keeps
    the rows that they get and give as well, each k times as large as x. Of the router XLA's own derivative is
    the formula. Over devices that share the experts rows go by all-to-all, or all of them (`_exchange`).

    Args:
        params: from `init`.
        x: [*n, t, d].
        k: experts of a token.
        activation: σ: "silu" (with a gate: SwiGLU), "gelu", "gelu_tanh" or "relu".
        renormalise: whether the k gates sum to 1. With k = 1 they are then 1, and only `facts` teach the
            router: Switch transformers have False.
        capacity: how many times its even share of a sequence's choices an expert takes; None: all.

    Returns:
        y [*n, t, d], in the dtype that holds x and the experts, and the facts. A loss adds the first two:
        ``loss + 0.01 * facts["balance"] + 0.001 * facts["z"]``.

    Raises:
        ShapeError: x does not have d features, or the parameters do not fit together.
        DTypeError: x or a parameter is not floating-point, or an option is traced.
        ValueRangeError: k is not in [1, experts], capacity not above 0, or there is no such activation.
        StructureError: params lacks a part.

    >>> params = fn.moe.init(jax.random.key(0), 3, 5, 4)
    >>> y, facts = fn.moe.apply(params, jnp.ones((2, 7, 3)), capacity=1.0)
    >>> y.shape, int(facts["dropped"])  # equal tokens choose the same two of four, which take 4 of 7 each
    ((2, 7, 3), 12)
    """
    x, options = _checked("moe.apply", params, x, k, activation, renormalise, capacity)
    activation = options.pop("activation")
    logits, chosen, kept, given, tiles = _route(params, x, **options)
    y = rules.call(_experts.weighted, *given, tiles=tiles, activation=activation)
    return y.reshape(x.shape), cast(Facts, _experts.facts(logits, chosen, kept))


def vjp(
    params: Params,
    x: Float[Array, "*n t d"],
    *,
    k: int = 2,
    activation: str = "silu",
    renormalise: bool = True,
    capacity: float | None = None,
) -> tuple[tuple[Float[Array, "*n t d"], Facts], Partial]:
    """y, the facts and their pullback: with q = dy W_downᵀ of a row, dgate = ⟨q, h⟩ + ⟨dy, b_down⟩.

    dh = gate · q, which goes back through σ and both maps. Of the logits, dl_i = g_i (dg_i − Σ_S g dg) in S,
    or, not renormalised, dl = p (dp − Σ p dp) with dp_i = dg_i in S; to dp is added dbalance · experts · load
    / n, and to dl dz · 2 (log Σ exp l) p / n. Then dW_router = xᵀ dl, and dx has dl W_routerᵀ.
    """
    _check.mapping("moe.vjp", "params", params)
    x_, renormalise = jnp.asarray(x), bool(renormalise)
    logits, chosen, kept, given, tiles = _route(params, x_, int(k), renormalise, capacity)
    y, pull = _experts.weighted(*given, tiles=tiles, activation=activation)
    facts = cast(Facts, _experts.facts(logits, chosen, kept))
    back = rules.bind(_pullback, renormalise=renormalise)
    return (y.reshape(x_.shape), facts), Partial(back, params, x_, logits, chosen, facts["load"], pull)


def _pullback(
    params: Params,
    x: Array,
    logits: Array,
    chosen: Array,
    load: Array,
    pull: Partial,
    given: tuple[Array, Facts],
    *,
    renormalise: bool,
) -> tuple[Params, Array]:
    dy, dfacts = given
    sums, over = logits.dtype, tuple(range(logits.ndim - 1))
    grads, dx, dgates = pull(dy.reshape(-1, dy.shape[-1]))
    gates, dgates = _experts.gates_of(logits, chosen, renormalise), dgates.reshape(chosen.shape)
    n, experts = _experts.tokens(logits), logits.shape[-1]
    p = jax.nn.softmax(logits)
    dp = align(dfacts["balance"] * (experts / n) * load, p.ndim)
    scores = gates * dgates
    if renormalise:
        scores = scores - gates * scores.sum(-1, keepdims=True)
        shared = (p * dp).sum(-1, keepdims=True)
    else:
        shared = (p * dp).sum(-1, keepdims=True) + scores.sum(-1, keepdims=True)
    dl = jnp.where(_experts.are(chosen, experts), scores[..., None], 0).sum(-2)
    total = jax.nn.logsumexp(logits, -1, keepdims=True)
    dl = dl + p * (dp - shared + dfacts["z"] * (2 / n) * total)
    router: Any = params["router"]
    dw = jnp.tensordot(x.astype(sums), dl, (over, over))
    grads = {**grads, "router": {"w": narrow(dw, router["w"])}}
    if router.get("b") is not None:
        grads["router"]["b"] = narrow(dl.sum(over), router["b"])
    dx = dx.reshape(x.shape).astype(sums) + jnp.matmul(dl, router["w"].astype(sums).T)
    return rules.like(params, grads), narrow(dx, x)


def cost(
    params: Params,
    x: Float[Abstract, "*n t d"],
    *,
    k: int = 2,
    activation: str = "silu",
    renormalise: bool = True,
    capacity: float | None = None,
) -> Cost:
    """2 · n · d · (experts + k · maps · d_hidden) flops, of 3 maps with a gate and 2 without.

    As if nothing were dropped; the bytes count all experts, though few tokens need few of them.
    """
    _check.mapping("moe.cost", "params", params)
    (experts, d, d_hidden), maps = params["up"]["w"].shape, 2 + (params.get("gate") is not None)
    flops = 2 * math.prod(x.shape[:-1]) * d * (experts + k * maps * d_hidden)
    options = {"k": k, "activation": activation, "renormalise": renormalise, "capacity": capacity}
    return Cost(flops, traffic(reference, params, x, **options))


# ---- parts ------------------------------------------------------------------------------------------------


def _route(
    params: Params, x: Array, k: int, renormalise: bool, capacity: float | None
) -> tuple[Array, Array, Array | None, tuple[Any, ...], _experts.Tiles]:
    """The logits, the experts that are chosen, which of these choices found room; what `weighted` takes."""
    logits = _experts.logits_of(params["router"], x)
    chosen, experts, kept = _experts.choose(logits, k), logits.shape[-1], None
    to = chosen
    if capacity is not None:
        kept = _experts.places(chosen, experts) < _experts.room(capacity, k, x.shape[-2], experts)
        to = jnp.where(kept, chosen, count(experts, chosen.dtype))  # one that was dropped has no expert
    gates = _experts.gates_of(logits, chosen, renormalise)
    given = _experts.maps(params), x.reshape(-1, x.shape[-1]), gates.reshape(-1, k)
    return logits, chosen, kept, given, _experts.tiles(to.reshape(-1), experts)


# ---- checks -----------------------------------------------------------------------------------------------


def _checked(
    where: str, params: Any, x: Any, k: Any, activation: Any, renormalise: Any, capacity: Any
) -> tuple[Array, dict[str, Any]]:
    """x as an array, and the options."""
    x, experts = _check_arrays(where, params, x)
    k = _check.positive(where, "k", k)
    if known(experts) and k > experts:
        raise ValueRangeError(
            f"{where}: a token goes to {k} experts, but there are {experts}.",
            path="k",
            expected=f"1 ≤ k ≤ {experts}     (experts)",
            actual=f"k = {k}",
        )
    _check.one_of(where, "activation", activation, tuple(_experts.ACTIVATIONS))
    renormalise = _check.flag(where, "renormalise", renormalise)
    if capacity is not None:
        capacity = _check.number(where, "capacity", capacity, strict=True)
    return x, {"k": k, "activation": activation, "renormalise": renormalise, "capacity": capacity}


def _check_arrays(where: str, params: Any, x: Any) -> tuple[Array, Any]:
    """x as an array, and the number of experts."""
    parts = ("router", "up", "down")
    if not isinstance(params, Mapping) or any(
        not isinstance(params.get(name), Mapping) or params[name].get("w") is None for name in parts
    ):
        keys = ", ".join(f'"{key}"' for key in params) if isinstance(params, Mapping) else describe(params)
        raise StructureError(
            f"{where}: params are not those of a mixture of experts.",
            path="params",
            expected='params: a dict of "router", "up", "down" and perhaps "gate", each a dict with "w"',
            actual=f"params: {keys}",
            hint="the parameters come first: apply(params, x)." if hasattr(params, "dtype") else None,
        )
    _check.mapping(where, "params", params)
    _check.leaves(where, params)
    up = _weight(where, params, "up", 3)
    experts, d, d_hidden = up.shape
    wanted = {"router": (d, experts), "up": up.shape, "gate": up.shape, "down": (experts, d_hidden, d)}
    for name, shape in wanted.items():
        if name == "gate" and params.get("gate") is None:
            continue
        leaves = {"w": _weight(where, params, name, len(shape))}
        if params[name].get("b") is not None:
            leaves["b"] = _check.parameter(f'{where}: params["{name}"]', params[name], "b")
        for leaf, array in leaves.items():
            fitting = shape if leaf == "w" else (*shape[:-2], shape[-1])
            _fits(where, f'params["{name}"]["{leaf}"]', array, fitting, up)
    x = _check.floating(where, "x", x)
    _check.rank(where, "x", x, 2, f"*n, t, {d}")
    _check.features(where, x, d, f'params["up"]["w"] ({describe(up)})', dims="*n, t")
    return x, experts


def _weight(where: str, params: Any, name: str, ndim: int) -> Array:
    part = params[name]
    if not isinstance(part, Mapping):
        raise StructureError(
            f'{where}: params["{name}"] is not a dict.',
            path=f'params["{name}"]',
            expected=f'params["{name}"]: a dict with "w"',
            actual=f'params["{name}"]: {describe(part)}',
        )
    return _check.parameter(f'{where}: params["{name}"]', part, "w", ndim=ndim)


def _fits(where: str, path: str, array: Array, shape: tuple[int, ...], up: Array) -> None:
    if array.shape == shape and 0 not in shape[:1]:
        return
    raise ShapeError(
        f"{where}: {path} does not fit the experts.",
        path=path,
        expected=f'{path}: float[{", ".join(map(str, shape))}]     (params["up"]["w"]: {describe(up)})',
        actual=f"{path}: {describe(array)}",
        hint="its transpose fits." if array.shape == shape[:-2] + shape[:-3:-1] else None,
    )
