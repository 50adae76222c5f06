"""A mixture of experts whose tokens or experts lie on several devices.

Every device routes its own tokens. Then, where the experts are split over axes of the mesh:

- With a capacity, and whole sequences split over these axes, others beside them or not, each device fills the
  places that each expert has for each of its sequences, and two all-to-alls take the rows there and back.
- Else the tokens of all devices along these axes are gathered, each device adds up what its own experts give
  to them, and the sums are scattered. Without a capacity all tokens may choose one expert, so what static
  shapes allow to be sent is all of them: no all-to-all would send less. Tokens that are not split over the
  axes of the experts are there already: nothing is gathered, and the sums are reduced.

Both give what one device gives, dropped tokens too, since a capacity counts within one sequence. Bytes that
a device sends in the forward pass, over g devices that hold the experts, with n sequences of t tokens on each
device, a row of d features of b bytes, and c the capacity:

    all-to-all:           n · experts · ⌈c k t / experts⌉ · (2 d b + 4) · (g − 1) / g, 4 for a row's gate
    gathered, scattered:  n · t · (2 d b + 8 k) · (g − 1), 8 for a gate and a choice
    reduced:              n · t · 2 d b · (g − 1) / g

The backward pass sends as much again (of the gathered choices nothing), and reduces the router's gradient.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from funcnet import rules
from funcnet._letters import Axes, as_spec, axes_of, devices
from funcnet.ops._dtype import wide
from funcnet.ops.dense import _experts

__all__ = ["apply"]


def apply(
    params: Any, x: Array, *, k: int, activation: str, renormalise: bool, capacity: float | None
) -> Any:
    """`moe.apply` on a mesh with Explicit axes; not implemented where nothing is split over any."""
    *tokens, of_d = axes_of(x)
    over, _, inner = axes_of(params["up"]["w"])
    every = tuple(axis for axes in tokens for axis in axes)
    inner = tuple(axis for axis in inner if axis not in every)
    if not (every or over or inner):
        return NotImplemented
    of_t = tokens[-1]
    by_place = capacity is not None and bool(over) and not of_t and {*over} <= {*every}
    shared = tuple(axis for axis in over if axis in every)

    def local(params: Any, x: Array) -> Any:
        logits = _experts.logits_of(params["router"], x)
        chosen, experts = _experts.choose(logits, k), logits.shape[-1]
        gates = _experts.gates_of(logits, chosen, renormalise)
        maps = _experts.maps(params)
        if inner and maps["down"].get("b") is not None:  # which is added once
            first = lax.axis_index(inner) == 0
            maps["down"] = {**maps["down"], "b": jnp.where(first, maps["down"]["b"], 0)}
        give = functools.partial(rules.call, _experts.weighted, maps, activation=activation)
        kept, y = None, None
        if capacity is not None:
            place = _experts.places(chosen, experts) + _before(chosen, experts, of_t)
            room = _experts.room(capacity, k, x.shape[-2] * devices(of_t), experts)
            kept = place < room
            if by_place:
                y = _exchanged(give, x, gates, chosen, jnp.where(kept, place, room), room, experts, over)
        if y is None:
            to = chosen if kept is None else jnp.where(kept, chosen, experts)
            y = _gathered(give, x, gates, to, experts, over, shared)
        rest = tuple(axis for axis in (*over, *inner) if axis not in shared)
        y = (lax.psum(y, rest) if rest else y).reshape(x.shape)
        return y, _experts.facts(logits, chosen, kept, every)

    out_of, into, P = (over or None, inner or None, None), (over or None, None, inner or None), jax.P
    of_into = {"w": P(*into), "b": P(into[0], into[2])}
    leaves = {
        "router": {"w": P(), "b": P()},
        "up": of_into,
        "gate": of_into,
        "down": {"w": P(*out_of), "b": P(out_of[0])},
    }
    given: dict[str, Any] = {}
    split: dict[str, Any] = {}
    for name, each in leaves.items():
        part = params.get(name) or {}
        held = {leaf: part[leaf] for leaf in each if part.get(leaf) is not None}
        if held:
            split[name] = {leaf: each[leaf] for leaf in held}
            given[name] = {leaf: jax.reshard(v, each[leaf]) for leaf, v in held.items()}
    of_x = as_spec([*tokens, ()])
    facts = dict.fromkeys(("balance", "z", "load", "dropped"), P())
    run = jax.shard_map(local, in_specs=(split, of_x), out_specs=(of_x, facts))
    y, told = run(given, jax.reshard(x, of_x))
    return jax.reshard(y, as_spec([*tokens, of_d])), told


def _before(chosen: Array, experts: int, over: Axes) -> Array | int:
    """How many tokens on the devices before this one, along the axes of time, chose the same expert."""
    if not over:
        return 0
    many = _experts.are(chosen, experts).sum((-3, -2), dtype=jnp.int32)  # [*n, experts]
    of_all = lax.all_gather(many, over)
    earlier = jnp.arange(of_all.shape[0], dtype=jnp.int32) < lax.axis_index(over)
    before = jnp.where(earlier.reshape(-1, *[1] * many.ndim), of_all, 0).sum(0, dtype=jnp.int32)
    shape = (*chosen.shape[:-1], experts)
    return jnp.take_along_axis(jnp.broadcast_to(before[..., None, :], shape), chosen, -1)


def _gathered(give: Any, x: Array, gates: Array, to: Array, experts: int, over: Axes, shared: Axes) -> Array:
    """What the experts of this device, or with the `shared` axes of all, give to its tokens [tokens, d]."""
    k, d = gates.shape[-1], x.shape[-1]
    rows = x.reshape(-1, d), gates.reshape(-1, k), to.reshape(-1, k)
    if shared:
        rows = (lax.all_gather(v, shared, axis=0, tiled=True) for v in rows)
    x, gates, to = rows
    ours = experts // devices(over)
    mine = to - (lax.axis_index(over) * ours if over else 0)
    mine = jnp.where((mine >= 0) & (mine < ours), mine, ours).reshape(-1)
    y = give(x, gates, tiles=_experts.tiles(mine, ours, x.shape[0] * min(k, ours)))
    return lax.psum_scatter(y, shared, scatter_dimension=0, tiled=True) if shared else y


def _exchanged(
    give: Any, x: Array, gates: Array, chosen: Array, place: Array, room: int, experts: int, over: Axes
) -> Array:
    """What all experts give to the tokens of this device [tokens, d], by two all-to-alls.

    Args:
        give: the experts of this device.
        x: its tokens.
        gates: of them.
        chosen: their experts.
        place: of each choice in its queue; `room` where there is none.
        room: places in a queue.
        experts: on all devices.
        over: the axes that they are split over.
    """
    (*n, t, k), d = chosen.shape, x.shape[-1]
    each, m = math.prod(n) * room, chosen.size  # places of an expert for the tokens of this device
    sequence = lax.broadcasted_iota(jnp.int32, (math.prod(n), t, k), 0).reshape(chosen.shape)
    slot = jnp.where(place < room, (chosen * math.prod(n) + sequence) * room + place, experts * each)
    slot = slot.reshape(-1)
    source = jnp.full(experts * each, m, jnp.int32).at[slot].set(jnp.arange(m, dtype=jnp.int32), mode="drop")
    rows = _experts.take(x.reshape(-1, d), source // k).reshape(experts, each, d)
    weights = _experts.take(gates.reshape(-1), source).reshape(experts, each)
    there = functools.partial(lax.all_to_all, axis_name=over, split_axis=0, concat_axis=1, tiled=True)
    rows, weights = there(rows), there(weights)
    ours, many = rows.shape[:2]
    every = jnp.arange(ours * many, dtype=jnp.int32)
    tiles = _experts.Tiles(every.reshape(ours, many), every, jnp.arange(ours, dtype=jnp.int32))
    y = give(rows.reshape(-1, d), weights.reshape(-1, 1), tiles=tiles).reshape(rows.shape)
    y = lax.all_to_all(y, over, split_axis=1, concat_axis=0, tiled=True)
    each_choice = _experts.take(y.reshape(-1, d), slot).reshape(-1, k, d)
    return each_choice.sum(1, dtype=wide(y.dtype)).astype(y.dtype)
