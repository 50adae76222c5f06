"""The parts of `moe`: which experts a token goes to, the rows of one expert side by side, and the experts.

Rows that go to one expert lie in tiles of equal size, the last of which may be part empty: so all sizes are
static whatever the router chooses, a tile takes one matrix, and no row is multiplied by another expert's. A
loop runs over the tiles. (`jax.lax.ragged_dot` multiplies every row by every expert's matrix on CPU, and has
no rule for `jax.vmap` over one operand: measured on JAX 0.10.1 and 0.12.0.1.)
"""

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int

from funcnet import rules
from funcnet._letters import devices
from funcnet.ops import _bias
from funcnet.ops._dtype import common, narrow, wide
from funcnet.ops._shape import count, known
from funcnet.ops.elementwise import activations

__all__ = [
    "ACTIVATIONS",
    "TILE",
    "Tiles",
    "are",
    "choose",
    "facts",
    "gates_of",
    "logits_of",
    "maps",
    "places",
    "room",
    "take",
    "tiles",
    "tokens",
    "weighted",
]

ACTIVATIONS: dict[str, tuple[Any, dict[str, Any]]] = {  # by name: the operation, and its options
    "gelu": (activations.gelu, {}),
    "gelu_tanh": (activations.gelu, {"approximate": True}),
    "relu": (activations.relu, {}),
    "silu": (activations.silu, {}),
}
TILE = 128  # rows at most: to copy a matrix out of the stack then costs a sixth of its product on CPU


# ---- the choice -------------------------------------------------------------------------------------------


def logits_of(router: Mapping[str, Any], x: Float[Array, "*n d"]) -> Float[Array, "*n routes"]:
    """x W + b, in float32 or wider, whatever x is in."""
    w, x = common(router["w"], x)
    return _bias.add(jnp.matmul(x.astype(wide(x.dtype)), w.astype(wide(x.dtype))), router)


def choose(logits: Float[Array, "*n routes"], k: int) -> Int[Array, "*n k"]:
    """The k largest, which have no gradient; at a tie the first."""
    return lax.top_k(lax.stop_gradient(logits), k)[1]


def gates_of(
    logits: Float[Array, "*n routes"], chosen: Int[Array, "*n k"], renormalise: bool
) -> Float[Array, "*n k"]:
    """What the results of the experts that are chosen are weighted with."""
    if renormalise:
        return jax.nn.softmax(jnp.take_along_axis(logits, chosen, -1))
    return jnp.take_along_axis(jax.nn.softmax(logits), chosen, -1)


def are(chosen: Int[Array, "*m"], experts: Any) -> Bool[Array, "*m experts"]:
    """Whether a choice is an expert, of each."""
    return chosen[..., None] == lax.broadcasted_iota(chosen.dtype, (*chosen.shape, experts), chosen.ndim)


def places(chosen: Int[Array, "*n t k"], experts: Any) -> Int[Array, "*n t k"]:
    """How many tokens of its sequence stand before a token in the queue of an expert that it chose."""
    ours = are(chosen, experts).sum(-2, dtype=jnp.int32)  # [*n, t, experts], 0 or 1
    return jnp.take_along_axis(jnp.cumsum(ours, -2) - ours, chosen, -1)


def room(capacity: float, k: int, t: Any, experts: Any) -> Any:
    """⌈capacity · k · t / experts⌉, t at most; as an integer, or an array where a size is a symbol."""
    if known(t, experts):
        return math.ceil(min(capacity * k * t / experts - 1e-9, t))  # 1.1 · 10 is 11, not 11.000000000000002
    share = capacity * k * count(t, jnp.float32) / count(experts, jnp.float32)
    return jnp.ceil(jnp.minimum(share - 1e-5, count(t, jnp.float32))).astype(jnp.int32)


def tokens(logits: Array, devices: int = 1) -> Array:
    """How many there are, at least 1, in the dtype of the logits."""
    return jnp.maximum(count(math.prod(logits.shape[:-1]) * devices, logits.dtype), 1).astype(logits.dtype)


def facts(logits: Array, chosen: Array, kept: Array | None, over: tuple[str, ...] = ()) -> dict[str, Array]:
    """The facts that `moe` defines, of the tokens of all devices along the axes `over`."""
    total = functools.partial(lax.psum, axis_name=over) if over else lambda v: v
    n, every, experts = tokens(logits, devices(over)), tuple(range(logits.ndim - 1)), logits.shape[-1]
    load = total(are(chosen, experts).sum((*every, -2)).astype(n.dtype)) / (n * chosen.shape[-1])
    dropped = jnp.zeros((), n.dtype) if kept is None else total((~kept).sum().astype(n.dtype))
    return {
        "balance": experts * (load * (total(jax.nn.softmax(logits).sum(every)) / n)).sum(),
        "z": total((jax.nn.logsumexp(logits, -1) ** 2).sum()) / n,
        "load": load,
        "dropped": dropped,
    }


# ---- tiles ------------------------------------------------------------------------------------------------


class Tiles(NamedTuple):
    """Where the rows of m choices lie in tiles of so many rows.

    Attributes:
        source: [tiles, rows], of which choice a row is; m where it is empty.
        place: [m], the row of each choice, all tiles in one; tiles · rows where it has none.
        expert: [tiles].
    """

    source: Int[Array, "tiles rows"]
    place: Int[Array, " m"]
    expert: Int[Array, " tiles"]


def tiles(chosen: Int[Array, " m"], experts: Any, most: Any = None) -> Tiles:
    """Sort choices into tiles by their expert, in order.

    Args:
        chosen: an expert each; as many as there are experts: none.
        experts: how many there are.
        most: how many choices at most have an expert; None: all.
    """
    m, chosen = chosen.shape[0], chosen.astype(jnp.int32)
    most = m if most is None else most
    rows = max(min(TILE, most), 1) if known(most) else TILE
    many = most // rows + experts  # each expert leaves less than one tile empty
    if known(many, most):
        many = min(many, most)
    order = jnp.argsort(chosen, stable=True).astype(jnp.int32)
    sizes = are(chosen, experts).sum(0, dtype=jnp.int32)
    of_each = -(-sizes // rows)
    ends, last = jnp.cumsum(sizes, dtype=jnp.int32), jnp.cumsum(of_each, dtype=jnp.int32)
    begins, first = ends - sizes, last - of_each
    size = lambda n: count(n, jnp.int32)
    tile = jnp.arange(many, dtype=jnp.int32)
    expert = jnp.searchsorted(last, tile, side="right").astype(jnp.int32)
    expert = jnp.minimum(expert, size(experts) - 1)
    row = (tile - first[expert])[:, None] * rows + jnp.arange(rows, dtype=jnp.int32)[None]
    at = jnp.where(row < sizes[expert][:, None], begins[expert][:, None] + row, size(m))
    source = order.at[at].get(mode="fill", fill_value=-1)
    source = jnp.where(source < 0, size(m), source)
    rank = jnp.zeros_like(order).at[order].set(jnp.arange(m, dtype=jnp.int32), unique_indices=True)
    to = jnp.minimum(chosen, size(experts) - 1)
    place = jnp.where(chosen < size(experts), first[to] * rows + rank - begins[to], size(many * rows))
    return Tiles(source, place, expert)


def take(x: Array, at: Array) -> Array:
    """The rows of x that `at` names; 0 where it names none."""
    return x.at[at].get(mode="fill", fill_value=0)


@functools.partial(jax.jit, static_argnames="transposed")
def _product(x: Array, w: Array, expert: Array, used: Array, *, transposed: bool = False) -> Array:
    """Of each tile x [rows, i] times its expert's matrix [i, o], or [o, i] if `transposed`."""
    sums, axis = wide(x.dtype), 1 if transposed else 0
    zeros = jnp.zeros((x.shape[1], w.shape[2 - axis]), sums)

    def one(_: None, tile: tuple[Array, Array, Array]) -> tuple[None, Array]:
        x, expert, used = tile

        def product(x: Array) -> Array:
            return lax.dot_general(x, w[expert], (((1,), (axis,)), ((), ())), preferred_element_type=sums)

        return None, lax.cond(used, product, lambda x: rules.same_variance(zeros, x, w)[0], x)

    return lax.scan(one, None, (x, expert, used))[1]


@functools.partial(jax.jit, static_argnames="experts")
def _outer(x: Array, dy: Array, expert: Array, used: Array, *, experts: int) -> Array:
    """Σ xᵀ dy [experts, i, o] over the tiles of each, x [tiles, rows, i] and dy [tiles, rows, o]."""
    sums = wide(x.dtype)
    zeros = rules.same_variance(jnp.zeros((experts, x.shape[2], dy.shape[2]), sums), x, dy)[0]

    def one(total: Array, tile: tuple[Array, Array, Array, Array]) -> tuple[Array, None]:
        expert, used, x, dy = tile

        def product(x: Array, dy: Array) -> Array:
            return lax.dot_general(x, dy, (((0,), (0,)), ((), ())), preferred_element_type=sums)

        nothing = lambda x, dy: rules.same_variance(jnp.zeros(zeros.shape[1:], sums), x, dy)[0]
        return total.at[expert].add(lax.cond(used, product, nothing, x, dy)), None

    return lax.scan(one, zeros, (expert, used, x, dy))[0]


# ---- the experts ------------------------------------------------------------------------------------------


def maps(params: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the experts, without the router."""
    return {name: part for name in ("up", "gate", "down") if (part := params.get(name)) is not None}


def _matrices(experts: Mapping[str, Any], x: Array) -> tuple[dict[str, Array], Array]:
    """Each w by its name, and x, in the dtype that holds them all."""
    *ws, x = common(*(part["w"] for part in experts.values()), x)
    return dict(zip(experts, ws, strict=True)), x


def weighted(
    experts: Mapping[str, Any],
    x: Float[Array, "n d"],
    gates: Float[Array, "n k"],
    *,
    tiles: Tiles,
    activation: str,
) -> tuple[Float[Array, "n d"], Partial]:
    """y_i = Σ_j gate_ij · expert_ij(x_i), and its pullback; `tiles` say where choice i k + j lies.

    With q = dy W_downᵀ of each row, dgate = ⟨q, h⟩ + ⟨dy, b_down⟩ and dh = gate · q: what an expert gives
    need not be kept for the gates, since q is needed anyway.
    """
    w, x_ = _matrices(experts, x)
    sums, k, used = wide(x_.dtype), gates.shape[1], _used(tiles, gates)
    rows = take(x_, tiles.source // k)
    through = lambda name, x: _product(x, w[name], tiles.expert, used) + _offset(experts[name], tiles, sums)
    inner = {name: through(name, rows).astype(x_.dtype) for name in w if name != "down"}
    h = _hidden(inner, activation, sums)[0].astype(x_.dtype)
    out = through("down", h) * _gates(gates, tiles, sums)
    y = _of_tokens(out, tiles, k).astype(x_.dtype)
    return y, Partial(rules.bind(_pullback, activation=activation), experts, x, gates, tiles, inner)


def _pullback(
    experts: Mapping[str, Any],
    x: Array,
    gates: Array,
    tiles: Tiles,
    inner: dict[str, Array],
    dy: Array,
    *,
    activation: str,
) -> tuple[Any, Array, Array]:
    w, x_ = _matrices(experts, x)
    sums, k, used, where = wide(x_.dtype), gates.shape[1], _used(tiles, gates), tiles.expert
    rows, dy, gate = take(x_, tiles.source // k), take(dy, tiles.source // k), _gates(gates, tiles, sums)
    h, pull = _hidden(inner, activation, sums)
    q = _product(dy.astype(x_.dtype), w["down"], where, used, transposed=True)
    dgate = (q * h).sum(-1) + (dy.astype(sums) * _offset(experts["down"], tiles, sums)).sum(-1)
    through = {"down": (h.astype(x_.dtype), (gate * dy.astype(sums)).astype(x_.dtype))}
    through |= {name: (rows, dz.astype(x_.dtype)) for name, dz in pull(gate * q).items()}
    grads: dict[str, Any] = {}
    for name, (into, dz) in through.items():
        outer = functools.partial(_outer, expert=where, used=used, experts=w[name].shape[0])
        grads[name] = {"w": narrow(outer(into, dz), experts[name]["w"])}
        if (b := experts[name].get("b")) is not None:
            ones = jnp.ones((*dz.shape[:2], 1), dz.dtype)
            grads[name]["b"] = narrow(outer(ones, dz)[:, 0], b)
    back = functools.partial(_product, expert=where, used=used, transposed=True)
    drows = [back(dz, w[name]) for name, (_, dz) in through.items() if name != "down"]
    dx = narrow(_of_tokens(functools.reduce(jnp.add, drows), tiles, k), x)
    return rules.like(experts, grads), dx, narrow(_of_choices(dgate, tiles).reshape(gates.shape), gates)


def _used(tiles: Tiles, gates: Array) -> Array:
    """Which tiles have a row: the others are skipped."""
    return tiles.source[:, 0] < count(gates.shape[0] * gates.shape[1], jnp.int32)


def _gates(gates: Array, tiles: Tiles, dtype: Any) -> Array:
    """Of each row, as a column; 0 where it is empty."""
    return take(gates.reshape(-1).astype(dtype), tiles.source)[..., None]


def _offset(part: Mapping[str, Any], tiles: Tiles, dtype: Any) -> Array:
    """The bias of each tile's expert, or 0, to be added to its rows."""
    if part.get("b") is None:
        return jnp.zeros((1, 1, 1), dtype)
    return part["b"].astype(dtype)[tiles.expert][:, None]


def _of_choices(rows: Array, tiles: Tiles) -> Array:
    """The rows [tiles, rows, ...] of all choices [m, ...], 0 of one without a row."""
    return take(rows.reshape(-1, *rows.shape[2:]), tiles.place)


def _of_tokens(rows: Array, tiles: Tiles, k: int) -> Array:
    """The sum of the rows of each token."""
    each = _of_choices(rows, tiles)
    return each.reshape(-1, k, each.shape[-1]).sum(1)


def _hidden(inner: dict[str, Array], activation: str, dtype: Any) -> tuple[Array, Any]:
    """σ(up), or σ(gate) · up, and its pullback: dh -> the cotangents of what is in `inner`."""
    operation, options = ACTIVATIONS[activation]
    up = inner["up"].astype(dtype)
    if "gate" not in inner:
        h, pull = operation.vjp(up, **options)
        return h, lambda dh: {"up": pull(dh)[0]}
    opened, pull = operation.vjp(inner["gate"].astype(dtype), **options)
    return opened * up, lambda dh: {"up": dh * opened, "gate": pull(dh * up)[0]}
