"""A pipeline: the layers of a stack on several stages of devices, microbatches following each other (GPipe).

Every stage runs its own layers on one microbatch, hands the result to the next stage and takes the next
microbatch: m + S − 1 ticks of one loop. A device sends 2 x (m + S − 1)/m bytes of the x of its stage, forward
and backward together, and is idle (S − 1)/m of the time that it works. Source: Huang et al., "GPipe", arXiv
1811.06965.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from funcnet._letters import Axes, as_spec, axes_of, devices
from funcnet.errors import ShapeError, ValueRangeError, describe
from funcnet.nets import stack
from funcnet.ops import _check

__all__ = ["pipeline"]


def pipeline(
    block: stack.Block | Sequence[stack.Block],
    params: Any,
    x: Any,
    *per_layer: Any,
    microbatches: int,
    axis: str = "stage",
    unroll: int | None = 1,
    remat: bool = False,
) -> Any:
    """`nets.stack.apply`, its layers on the stages of the mesh that is set.

    Values and gradients are those of `stack.apply`, for blocks that see each example alone. The batch may be
    split over further axes of an Explicit mesh, and params over them (FSDP) or others (tensors), as their
    types say: params are gathered once, their gradients reduced once. Before and behind the layers every
    stage has the whole batch, unless x is split over the stages too.

    Args:
        block: as in `stack.apply`; it closes over no array.
        params: stacked; their first axis is split over the stages, or can be.
        x: an array [n, ...], or a pytree of such: what belongs to examples goes through the stages with them.
        per_layer: as in `stack.apply`; the same for every microbatch, so a key draws the same mask in each.
        microbatches: how many parts each device's examples are cut into.
        axis: of the mesh, its stages.
        unroll: as in `stack.apply`.
        remat: as in `stack.apply`.

    Returns:
        As x, split like it.

    Raises:
        ValueRangeError: no mesh is set that has such an axis.
        ShapeError: stages do not divide layers, microbatches the examples of a device, or a pattern of blocks
            the layers of a stage; or leaves differ in their first axis.
    """
    where, mesh = "shard.pipeline", jax.sharding.get_abstract_mesh()
    if axis not in mesh.shape:
        raise ValueRangeError(
            f"{where}: the mesh that is set has no axis {axis!r}.",
            path="axis",
            expected=f"one of {', '.join(map(repr, mesh.shape))}" if mesh.shape else "a mesh that is set",
            actual=f"axis = {axis!r}",
            hint=None if mesh.shape else "with jax.set_mesh(mesh): ...",
        )
    stages, m = mesh.shape[axis], _check.positive(where, "microbatches", microbatches)
    layers = _first(where, "params", (params, *per_layer))
    _divide(where, "params", layers, "layers", stages, "stages")
    if stages > 1 and isinstance(block, Sequence):
        _divide(where, "block", layers // stages, "layers of a stage", len(block), "blocks")
    n, rows = _first(where, "x", x), axes_of(jax.tree.leaves(x)[0])[0]
    data = tuple(name for name in rows if name != axis)
    _divide(where, "x", n // devices(data), "examples of a device", m, "microbatches")

    manual = {axis, *data}
    layered = jax.tree.map(functools.partial(_on_stages, axis), (params, *per_layer))
    splits = jax.tree.map(functools.partial(_split, axis, data), layered)
    of_x = jax.tree.map(lambda _: jax.P(rows or None), x)

    def run(layered: Any, x: Any) -> Any:
        layered = jax.tree.map(functools.partial(_whole, data, axis), layered, splits)
        gathered = axis in rows
        x = lax.all_gather(x, axis, tiled=True) if gathered else lax.pcast(x, axis, to="varying")
        at = lax.axis_index(axis)
        cut = jax.tree.map(lambda v: v.reshape(m, v.shape[0] // m, *v.shape[1:]), x)
        first, onward = jax.tree.map(lambda v: v[0], cut), [(i, i + 1) for i in range(stages - 1)]
        # Ticks without a microbatch run on the first: on zeros a block's derivative need not be finite.
        again = lambda v, one: jnp.concatenate([v, jnp.broadcast_to(one, (stages - 1, *one.shape))])
        fed = jax.tree.map(again, cut, first)

        def tick(came: Any, feed: Any) -> tuple[Any, Any]:
            h = jax.tree.map(lambda feed, came: jnp.where(at == 0, feed, came), feed, came)
            h = stack.apply(block, layered[0], h, *layered[1:], unroll=unroll, remat=remat)
            return lax.ppermute(h, axis, onward), h

        _, out = lax.scan(tick, first, fed)
        return jax.tree.map(lambda v: _from_last(v[stages - 1 :], axis, at == stages - 1, gathered), out)

    mapped: Any = jax.shard_map(run, in_specs=(splits, of_x), out_specs=of_x, axis_names=manual)
    if others := tuple(name for name in mesh.explicit_axes if name not in manual):
        # Tensors: JAX 0.10.1 transposes no Explicit axes within Manual ones, so these are Auto.
        to = jax.tree.map(lambda leaf: as_spec(axes_of(leaf)), x)
        mapped = jax.sharding.auto_axes(mapped, axes=others, out_sharding=to)
    return mapped(layered, x)


def _on_stages(axis: str, leaf: Any) -> Any:
    """A leaf with its first axis split over the stages; it is, or each has it whole and takes its part."""
    first, *rest = axes_of(leaf)
    if first == (axis,) or not jax.sharding.get_abstract_mesh().explicit_axes:
        return leaf
    return jax.reshard(leaf, as_spec([(axis,), *rest]))


def _split(axis: str, data: Axes, leaf: Any) -> Any:
    """How a leaf is split over the stages, and as the batch is."""
    return as_spec([(axis,), *(tuple(name for name in each if name in data) for each in axes_of(leaf)[1:])])


def _whole(data: Axes, axis: str, leaf: Any, split: Any) -> Any:
    """A stage's leaf, of which every device of the batch has all, and will have a gradient of its own.

    So that gradients are summed over devices once, and not in every tick.
    """
    missing = set(data)
    for i, names in enumerate(split):
        names = (names,) if isinstance(names, str) else tuple(names or ())
        for name in reversed([name for name in names if name != axis]):
            leaf = lax.all_gather(leaf, name, axis=i, tiled=True)
            missing.discard(name)
    return lax.pcast(leaf, tuple(sorted(missing)), to="varying") if missing else leaf


def _from_last(v: Any, axis: str, is_last: Any, scattered: bool) -> Any:
    """What the last stage has, [m, n / m, ...] -> [n, ...], on all of them; or its part on each."""
    v = v.reshape(v.shape[0] * v.shape[1], *v.shape[2:])
    v = jnp.where(is_last, v, jnp.zeros_like(v))
    if scattered:
        return lax.psum_scatter(v, axis, scatter_dimension=0, tiled=True)
    return lax.psum(v, axis)


def _first(where: str, name: str, tree: Any) -> int:
    """The first axis of every leaf."""
    sizes = {leaf.shape[:1] for leaf in jax.tree.leaves(tree)}
    if len(sizes) != 1 or () in sizes:
        raise ShapeError(
            f"{where}: the leaves of {name} do not have one first axis.",
            path=name,
            expected=f"{name}: leaves [{'layers' if name == 'params' else 'n'}, ...]",
            actual=", ".join(describe(leaf) for leaf in jax.tree.leaves(tree)[:6]) or "no leaf",
        )
    return sizes.pop()[0]


def _divide(where: str, name: str, n: int, of: str, by: int, what: str) -> None:
    if n % by:
        raise ShapeError(
            f"{where}: {by} {what} do not divide {n} {of}.",
            path=name,
            expected=f"{name}: {of}, a multiple of {by}",
            actual=f"{n}",
        )
