"""Layers of equal shape as one tree of arrays, stacked along a first axis "layers", and how they are run.

A loop in the compiled program (`jax.lax.scan`) keeps compile time independent of depth. A few layers run
faster when they are unrolled: the loop copies what a layer keeps for the backward pass into arrays that hold
it for all layers, and each layer's parameters out of theirs.

Where parameters are split over the devices that x is split over (FSDP), a layer gathers its own. In a loop
it does so when its turn comes, forward and backward; unrolled, XLA gathers those of all layers once, and
keeps them.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from funcnet import spec, taps
from funcnet._letters import axes_of, examples_apart
from funcnet.errors import DTypeError, ShapeError, describe
from funcnet.ops import _check

__all__ = ["apply", "init", "specs", "unstack"]

UNROLLED = 12  # rounds of layers up to which there is no loop

Block = Callable[..., Any]  # (params of one layer, x, *its part of per_layer) -> x


def init(key: PRNGKeyArray, layers: int, init_block: Callable[[PRNGKeyArray], Any]) -> Any:
    """The trees ``init_block(key_i)`` of `layers` layers, every leaf stacked along a new first axis.

    >>> init(jax.random.key(0), 3, lambda key: {"w": jax.random.normal(key, (5,))})["w"].shape
    (3, 5)
    """
    _check.key("stack.init", key, none=False)
    _callable("stack.init", "init_block", init_block)
    return jax.vmap(init_block)(jax.random.split(key, _check.positive("stack.init", "layers", layers)))


def _callable(where: str, name: str, value: Any) -> None:
    if not callable(value):
        raise DTypeError(
            f"{where}: {name} is not a function.",
            path=name,
            expected=f"{name}: a function",
            actual=f"{name}: {describe(value)}",
        )


def apply(
    block: Block | Sequence[Block],
    params: Any,
    x: Any,
    *per_layer: Any,
    unroll: int | None = 1,
    remat: bool = False,
) -> Any:
    """Run ``x = block(params[i], x, *per_layer[i])`` for every layer i, first to last.

    Args:
        block: one layer; or a pattern over the layers, of which layer i runs the one numbered i modulo its
            length. The last round may be cut short.
        params: stacked, as from `init`.
        x: what goes through the layers: an array, or a pytree whose shapes no layer changes.
        per_layer: further pytrees, their leaves with a first axis of layers (keys of dropout, say), or None.
        unroll: rounds of the pattern in one step of the loop. With as many as there are, there is no loop.
            None: no loop where there are at most 12, else 1; and 1 where parameters are split over the
            devices that x is split over, if their types say so (on a mesh with Auto axes none does).
        remat: keep only what enters each round, and compute the round again in the backward pass. (Keeping
            the results of its products too would save little: beside them, funcnet's rules keep little.)

    On a mesh with Auto axes, of which one is called "data", what goes from layer to layer [n, ..., d] has its
    examples n split over that, and its features d whole.

    Raises:
        ShapeError: the leaves of params and per_layer do not have the same first axis.
    """
    blocks = tuple(block) if isinstance(block, Sequence) else (block,)
    where = "stack.apply"
    for each in blocks or (None,):
        _callable(where, "block", each)
    remat = _check.flag(where, "remat", remat)
    layers, period = _layers(params, per_layer), len(blocks)
    if unroll is None:
        few = -(-layers // period) <= UNROLLED and not _gathers(params, x)
        unroll = layers if few else 1
    unroll = _check.positive(where, "unroll", unroll)

    rounds = layers // period if unroll < layers // period else 0  # those in the loop
    whole = rest = (params, *per_layer)
    if 0 < rounds * period < layers:
        whole, rest = _split(rest, [rounds * period, layers - rounds * period])

    def run(x: Any, group: Any, in_loop: bool) -> Any:
        apart = [group] if in_loop and period == 1 else unstack(group)
        step = period if in_loop else None
        for i in range(0, len(apart), period):
            first = i if in_loop else rounds * period + i

            def one_round(x: Any, apart: Sequence[Any], first: int = first) -> Any:
                numbered = enumerate(zip(blocks, apart, strict=False), first)  # the last round may be short
                for number, (one, (p, *more)) in numbered:
                    x = _stream(taps.layer(one, number, layers, step)(p, x, *more))
                return x

            if remat:  # a function of its own each time, else `rules.record` sees the first round only
                # Within a loop XLA cannot merge the two passes, so nothing need prevent it.
                one_round = jax.checkpoint(one_round, prevent_cse=not in_loop)
            x = one_round(x, apart[i : i + period])
        return x

    x = _stream(x)
    if rounds:
        if period > 1:
            whole = jax.tree.map(lambda v: v.reshape(rounds, period, *v.shape[1:]), whole)
        x, _ = jax.lax.scan(lambda x, group: (run(x, group, True), None), x, whole, unroll=unroll)
    return run(x, rest, False) if rounds * period < layers else x


def _stream(x: Any) -> Any:
    """What goes from layer to layer, its examples apart."""
    is_stream = lambda v: isinstance(v, jax.Array) and jnp.issubdtype(v.dtype, jnp.floating)
    return jax.tree.map(lambda v: examples_apart(v) if is_stream(v) else v, x)


def _gathers(params: Any, x: Any) -> bool:
    """Whether a layer has to gather its parameters: they are split over axes of the mesh that x is, too."""
    size = lambda leaf, axis: jax.typeof(leaf).sharding.mesh.shape[axis]
    split = lambda leaf: {axis for each in axes_of(leaf) for axis in each if size(leaf, axis) > 1}
    own = lambda tree: set().union(*map(split, jax.tree.leaves(tree)))
    return bool(own(params) & own(x))


def specs(of_block: Callable[[Any], Any], params: Any) -> Any:
    """The specs of stacked layers, from those of one.

    Args:
        of_block: params of one layer -> their specs.
        params: stacked, as from `init`; arrays, or `jax.ShapeDtypeStruct`.
    """
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), params)
    return spec.stacked(of_block(one), jax.tree.leaves(params)[0].shape[0])


def unstack(params: Any) -> list[Any]:
    """The trees of the layers, each by itself.

    >>> [layer["w"].shape for layer in unstack({"w": jax.numpy.ones((2, 5))})]
    [(5,), (5,)]
    """
    apart = _split(params, [1] * jax.tree.leaves(params)[0].shape[0])
    return jax.tree.map(lambda v: v.squeeze(0), apart)


def _split(tree: Any, sizes: Sequence[int]) -> list[Any]:
    """Each leaf of `tree` cut along its first axis, as so many trees.

    By one split, whose gradient is one concatenation: that of slices is a sum of padded arrays, each as large
    as the stack.
    """
    leaves, structure = jax.tree.flatten(tree)
    columns = [_cut(v, sizes) for v in leaves]
    return [jax.tree.unflatten(structure, row) for row in zip(*columns, strict=True)]


def _cut(v: Any, sizes: Sequence[int]) -> list[Any]:
    if not jnp.issubdtype(v.dtype, jax.dtypes.prng_key):
        return list(jax.lax.split(v, sizes))
    # Of a slice alone JAX's key-reuse checks know that it uses up no other keys.
    starts = itertools.accumulate(sizes, initial=0)
    return [v[start : start + size] for start, size in zip(starts, sizes, strict=False)]


def _layers(params: Any, per_layer: tuple[Any, ...]) -> int:
    """The first axis of every leaf."""
    leaves: list[tuple[str, Any]] = [
        (name + jax.tree_util.keystr(path), leaf)
        for name, tree in (("params", params), *((f"per_layer[{i}]", v) for i, v in enumerate(per_layer)))
        for path, leaf in jax.tree.leaves_with_path(tree)
    ]
    leaves = leaves or [("params", params)]
    first, like = leaves[0]
    for path, leaf in leaves:
        if _check.dtype_of(leaf) is None:
            raise DTypeError(
                f"stack.apply: {path} is not an array.",
                path=path,
                expected=f"{path}: an array, [layers, ...]",
                actual=f"{path}: {describe(leaf)}",
            )
        if leaf.ndim == 0 or leaf.shape[0] != like.shape[0]:
            raise ShapeError(
                f"stack.apply: {path} is not stacked like {first}.",
                path=path,
                expected=f"{path}: [{like.shape[0] if like.ndim else 'layers'}, ...]     "
                f"({first}: {describe(like)})",
                actual=f"{path}: {describe(leaf)}",
            )
    return like.shape[0]
