"""How a training state lies on a mesh and stays there, and how a batch on a mesh is cut into parts."""

import itertools
from contextlib import suppress
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import PyTree

from funcnet._letters import Axes, as_spec, axes_of, devices
from funcnet.errors import ValueRangeError, describe

__all__ = [
    "check", "cut", "gathered", "home", "is_split", "kept", "placed", "retyped", "rows_over", "stacked",
    "touches",
]  # fmt: skip


def home(tree: PyTree) -> Any:
    """The mesh that is set, or else the one that a tree lies on; None."""
    if not jax.sharding.get_abstract_mesh().empty:
        with suppress(ValueError):  # within a trace
            return jax.sharding.get_mesh()
    lie = [leaf.sharding for leaf in jax.tree.leaves(tree) if _known(leaf)]
    return next((sharding.mesh for sharding in lie if isinstance(sharding, NamedSharding)), None)


def check(where: str, path: str, tree: PyTree, mesh: Any) -> None:
    """Refuse arrays that were put elsewhere than on the devices of the mesh."""
    for leaf_path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not _known(leaf) or not leaf.committed:
            continue
        lies = leaf.sharding.mesh if isinstance(leaf.sharding, NamedSharding) else None
        other = lies is not None and bool(lies.explicit_axes) and lies != mesh
        if other or (mesh is not None and leaf.sharding.device_set != {*mesh.devices.flat}):
            name = f"{path}{jax.tree_util.keystr(leaf_path)}"
            raise ValueRangeError(
                f"{where}: {name} lies on other devices.",
                path=name,
                expected=_shown(mesh),
                actual=f"{describe(leaf)} on {_shown(lies)}",
                hint="with jax.set_mesh(mesh): make params and state there, batches by fn.shard.place",
            )


def _shown(mesh: Any) -> str:
    return "no mesh" if mesh is None else "a mesh of " + " × ".join(f"{n} {k}" for n, k in mesh.shape.items())


def is_split(tree: PyTree) -> bool:
    """Whether any device holds a part of an array only."""
    return any(_known(leaf) and not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(tree))


def _known(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)


def placed(tree: PyTree, params: PyTree) -> PyTree:
    """The leaves that lie on one device, a step's count or key, on every device of the mesh of params.

    A step returns them there: born elsewhere, the second step would be another program.
    """
    mesh = home(params)

    def put(leaf: Any) -> Any:
        if mesh is None or not _known(leaf):
            return leaf
        lies = isinstance(leaf.sharding, NamedSharding)
        to = leaf.sharding if lies else NamedSharding(mesh, PartitionSpec())
        if to.mesh.explicit_axes:  # as their types say it: P() and P(None) are two keys of jit's cache
            spec = PartitionSpec(*to.spec, *[None] * (leaf.ndim - len(to.spec)))
            to = NamedSharding(to.mesh, spec, memory_kind=to.memory_kind)
        return leaf if leaf.committed and leaf.sharding == to else jax.device_put(leaf, to)

    return jax.tree.map(put, tree)


def retyped(old: Any, new: Any) -> Any:
    """``new``, split over a mesh with Explicit axes as old is: their types are one."""
    there, here = jax.typeof(old).sharding, jax.typeof(new).sharding
    return jax.reshard(new, there) if there.mesh.explicit_axes and there != here else new


def kept(old: Any, new: Any) -> Any:
    """``new``, split over a mesh with Auto axes as old is.

    While a program is traced no split of these is known, so it is the partitioner that is told: to treat both
    as one. Without, it splits a result as it likes.
    """
    mesh = jax.typeof(old).sharding.mesh
    return new if mesh.size <= 1 or not mesh.are_all_axes_auto else _alike.bind(new, old, group=next(_groups))


# ---- a batch in parts -------------------------------------------------------------------------------------


def rows_over(batch: PyTree) -> Axes:
    """The axes of the mesh over which the types of a batch say that its examples are split."""
    rows = (axes_of(leaf)[0] for leaf in jax.tree.leaves(batch) if np.ndim(leaf))
    return next(filter(None, rows), ())


def touches(tree: PyTree, axes: Axes) -> bool:
    """Whether an array is split over one of these axes of the mesh."""
    return any(
        set(axes) & {name for each in axes_of(leaf) for name in each} for leaf in jax.tree.leaves(tree)
    )


def gathered(tree: PyTree, axes: Axes) -> PyTree:
    """A tree of arrays that no longer are split over these axes of the mesh."""

    def whole(leaf: jax.Array) -> jax.Array:
        return jax.reshard(leaf, _spec(axes_of(leaf), axes)) if touches(leaf, axes) else leaf

    return jax.tree.map(whole, tree)


def cut(leaf: Any, k: int, axes: Axes, apart: bool) -> jax.Array:
    """The examples [n, ...] of a batch as k parts, each of which takes as many from every device.

    Args:
        leaf: an array of the batch.
        k: how many parts.
        axes: of the mesh, over which the examples are split.
        apart: [k, groups, n / (k groups), ...], a group being what lies in one place; else [k, n / k, ...].
    """
    if not axes:
        if jax.typeof(leaf).sharding.mesh.size > 1:  # split unseen: a part of neighbours lies on few devices
            return jnp.swapaxes(leaf.reshape(-1, k, *leaf.shape[1:]), 0, 1)
        return jnp.reshape(leaf, (k, leaf.shape[0] // k, *leaf.shape[1:]))
    groups, rest = devices(axes), _spec(axes_of(leaf)[1:], axes)
    leaf = jax.reshard(leaf, jax.P(axes, *rest))
    shape = groups, k, leaf.shape[0] // (groups * k), *leaf.shape[1:]
    parts = jnp.swapaxes(leaf.reshape(shape, out_sharding=jax.P(axes, None, None, *rest)), 0, 1)
    if apart:
        return parts
    return parts.reshape(k, -1, *leaf.shape[1:], out_sharding=jax.P(None, axes, *rest))


def stacked(leaf: jax.Array, axes: Axes) -> jax.Array:
    """An array once for each group of examples, and there."""
    copies = jnp.broadcast_to(leaf, (devices(axes), *leaf.shape))
    return jax.reshard(copies, jax.P(axes, *_spec(axes_of(leaf), ())))


def _spec(each: list[Axes], without: Axes) -> jax.P:
    return as_spec(tuple(axis for axis in axes if axis not in without) for axes in each)


# ---- where it was -----------------------------------------------------------------------------------------

_alike = Primitive("alike")
_alike.def_impl(lambda new, *_, **__: new)
_alike.def_abstract_eval(lambda new, *_, **__: new)
_groups = itertools.count()


def _lowered(ctx: Any, new: Any, old: Any, *, group: int) -> list[Any]:
    del ctx
    # What `jax.experimental.shard_alike` lowered to, before it went with JAX 0.12.
    from jaxlib.mlir.dialects import sdy

    sdy.ShardingGroupOp(new, group)  # pyright: ignore[reportAttributeAccessIssue]
    sdy.ShardingGroupOp(old, group)  # pyright: ignore[reportAttributeAccessIssue]
    return [new]


def _batched(args: Any, dims: Any, *, group: int) -> Any:
    (new, old), (at, of) = args, dims
    if at is None or of is None:  # one of them has an axis more
        return new, at
    return _alike.bind(new, jnp.moveaxis(old, of, at), group=group), at


mlir.register_lowering(_alike, _lowered)
batching.primitive_batchers[_alike] = _batched
ad.primitive_jvps[_alike] = lambda primals, tangents, group: (_alike.bind(*primals, group=group), tangents[0])
