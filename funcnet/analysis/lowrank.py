"""Fewer FLOPs by low rank: maps and convolutions factored by the principal components of what they give.

A map gives y = x W + b, with mean m over the data. Of all y' in m + an r-dimensional space, those along the r
largest principal components P [d_out, r] of y leave out least (docs/pca.md), and they are a map in two parts:

    y' = m + (y − m) P Pᵀ = (x W P) Pᵀ + b',     down = W P,  up = Pᵀ,  b' = m + (b − m) P Pᵀ

For a convolution, to r channels and then by a product at each position. Without b, P are the components about
0. (The singular vectors of W would do this for an x that is white, which none is.) The ranks are chosen
greedily: each step takes the map and the rank that change the outputs least per FLOP saved, each measured
alone. Sources: the components, Zhang et al., "Accelerating very deep convolutional networks for
classification and detection", arXiv 1505.06798, §3.1; the bound on how often a class changes, C. Clopper and
E. Pearson, "The use of confidence or fiducial limits illustrated in the case of the binomial", 1934.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from funcnet.analysis import _certified
from funcnet.analysis._components import Components, components_of, factor, kept, projected
from funcnet.analysis._maps import (
    Map,
    candidates,
    checked,
    flops_of,
    maps_of,
    put,
    to_shapes,
    to_specs,
)
from funcnet.errors import DTypeError, ShapeError, StructureError, ValueRangeError, describe
from funcnet.nets import roles
from funcnet.ops import _check, _factored
from funcnet.ops._dtype import wide
from funcnet.spec import fits

__all__ = ["Changed", "Compressed", "Layer", "certified", "changed", "compress", "factored", "specs"]


class Layer(NamedTuple):
    """A map that may be factored; of stacked layers all, with one rank.

    Attributes:
        path: of its params.
        full: the rank that w can have.
        rank: what it has; None: it is whole.
        kept: the share of the variance of what it gives along the components kept, of the layer where it is
            least; 1 where it is whole.
        flops: before and after.
    """

    path: str
    full: int
    rank: int | None
    kept: float
    flops: tuple[int, int]


class Compressed(NamedTuple):
    """A net of fewer FLOPs.

    Attributes:
        params: as before, with {"down", "up"} in place of {"w"} where a map is factored.
        ranks: of those maps, by path.
        layers: all maps that could have been.
        flops: of the program, before and after, for one batch of the data.
    """

    params: PyTree
    ranks: dict[str, int]
    layers: list[Layer]
    flops: tuple[int, int]


class Changed(NamedTuple):
    """How much of what a net decides has changed, on data that chose nothing.

    Attributes:
        decisions: how many there are: one for each example, or token.
        changed: of them, those with another class.
        at_most: the share that changes is below it, with 95 % confidence, if they are independent.
        accuracy: before and after; None without labels.
    """

    decisions: int
    changed: int
    at_most: float
    accuracy: tuple[float, float] | None


def compress(
    net: Any,
    params: PyTree,
    config: Any,
    data: PyTree,
    flops: float = 0.5,
    *,
    specs: PyTree | None = None,
    ranks: Mapping[str, int] | None = None,
) -> Compressed:
    """Factor the maps of a trained net.

    Args:
        net: a module or an object with ``apply(params, x, config)``, or such a function. Its maps are called
            as `nets.maps.linear` and `nets.maps.conv` (or by `multihead`), which take both forms of params.
        params: trained.
        config: what the net takes as its config.
        data: its inputs x [n, ...], or a list of such batches: from the training data, a few hundred
            examples. They give components and ranks, and no labels are needed.
        flops: how many of the program's FLOPs may be left, as a share, above 0 and below 1.
        specs: which leaves are which matrices; None: ``net.specs(config)``, or read off the program.
        ranks: of the maps to be factored, by path ("stages.0.1"), where they are known; `flops` is then not
            looked at.

    Raises:
        ValueRangeError: flops or a rank is out of range, or so few FLOPs cannot be reached.
        StructureError: none of the net's maps can be factored, a path is of none, or there are no data.
        DTypeError: net is no function and has no apply.

    >>> import funcnet as fn
    >>> config = fn.nets.mlp.Config((8, 32, 32, 3))
    >>> params = fn.nets.mlp.init(jax.random.key(0), config)
    >>> x = jax.random.normal(jax.random.key(1), (100, 8))
    >>> small = compress(fn.nets.mlp, params, config, x, flops=0.6)
    >>> small.flops[1] <= 0.6 * small.flops[0], small.params["layers"][1].keys()
    (True, dict_keys(['down', 'up', 'b']))
    """
    where = "lowrank.compress"
    flops = _check.number(where, "flops", flops, strict=True)
    if not flops < 1:
        raise ValueRangeError(
            f"{where}: flops is {flops}.", path="flops", expected="a share above 0 and below 1"
        )
    apply, batches = _apply(where, net, config), _batches(where, data)
    params = jax.tree.map(jnp.asarray, params)
    specs = _specs_of(net, config, apply, params, batches[0]) if specs is None else specs
    fits(where, specs, params)
    maps = maps_of(where, apply, params, specs, batches[0])
    total = flops_of(apply, params, batches[0])
    given = None if ranks is None else checked(where, maps, ranks)
    components = components_of(where, apply, params, maps, batches)
    chosen = given
    if chosen is None:
        chosen = _chosen(where, apply, params, maps, components, batches, total, flops * total)
    small = params
    for name, rank in chosen.items():
        small = put(small, maps[name].path, lambda p, n=name, r=rank: factor(p, maps[n], components[n], r))
    rows = [
        Layer(name, each.full, rank, kept(components[name], rank), (each.flops(None), each.flops(rank)))
        for name, each in maps.items()
        for rank in [chosen.get(name)]
    ]
    saved = sum(before - after for *_, (before, after) in rows)
    return Compressed(small, chosen, rows, (total, total - saved))


def factored(params: PyTree, specs: PyTree, ranks: Mapping[str, int]) -> PyTree:
    """The shapes of params whose maps at these paths have these ranks: `jax.ShapeDtypeStruct` leaves.

    Args:
        params: of the whole net, arrays or shapes.
        specs: theirs.
        ranks: as in `Compressed`.

    Raises:
        StructureError: a path is of no map.
        ValueRangeError: a rank is out of range.
    """
    where = "lowrank.factored"
    fits(where, specs, params)
    maps = candidates(specs)
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    for name, rank in checked(where, maps, ranks).items():
        params = put(params, maps[name].path, to_shapes(maps[name], rank))
    return params


def specs(specs: PyTree, ranks: Mapping[str, int]) -> PyTree:
    """The specs of a compressed net, from those of the whole one: for optimizers that go on with it.

    Raises:
        StructureError: a path is of no map.
        ValueRangeError: a rank is out of range.
    """
    maps = candidates(specs)
    for name, rank in checked("lowrank.specs", maps, ranks).items():
        specs = put(specs, maps[name].path, lambda p, n=name, r=rank: to_specs(p, maps[n], r))
    return specs


def changed(
    net: Any, params: PyTree, small: PyTree, config: Any, data: PyTree, labels: PyTree | None = None
) -> Changed:
    """How often the class, the largest of the outputs along their last axis, is another one.

    Args:
        net: as in `compress`.
        params: before.
        small: after.
        config: of the net.
        data: as in `compress`; other data than those.
        labels: the right classes, an array for each batch of data; for the accuracy.

    Raises:
        StructureError: there are no data.
        DTypeError: the net gives no array.
        ShapeError: labels have not the shape of the decisions.
    """
    where = "lowrank.changed"
    apply, batches = _apply(where, net, config), _batches(where, data)
    out = jax.eval_shape(apply, params, batches[0])
    if not getattr(out, "ndim", 0):
        raise DTypeError(
            f"{where}: the net gives no array of classes.",
            path="net",
            expected="net.apply: logits [n, ..., classes]",
            actual=f"net.apply: {describe(out)}",
        )
    decide = jax.jit(lambda params, x: apply(params, x).argmax(-1))
    before, after = (np.concatenate([np.ravel(decide(tree, x)) for x in batches]) for tree in (params, small))
    other = int((before != after).sum())
    accuracy = None
    if labels is not None:
        given = labels if isinstance(labels, list) else [labels]
        right = np.concatenate([np.ravel(np.asarray(each)) for each in given])
        if right.shape != before.shape:
            raise ShapeError(
                f"{where}: there are {len(right)} labels for {len(before)} decisions.",
                path="labels",
                expected=f"{len(before)}",
                actual=f"{len(right)}",
            )
        accuracy = float((before == right).mean()), float((after == right).mean())
    return Changed(len(before), other, _at_most(other, len(before)), accuracy)


def certified(
    net: Any,
    params: PyTree,
    small: PyTree,
    config: Any,
    data: PyTree,
    *,
    specs: PyTree | None = None,
) -> tuple[Float[np.ndarray, " n"] | None, str]:
    """Of each example a bound of the norm of outputs after − outputs before, certified up to rounding.

    It follows the difference from map to map: it grows by the norm of the new map at most, and by what the
    two maps give differently, which is measured at that example. A class that leads by more than √2 of the
    bound has not changed. Of a plainly trained net the bound is hundreds of times too large, as norms
    multiply up; of one of 1-Lipschitz layers it says something.

    Args:
        net: as in `compress`.
        params: before.
        small: after, further trained or not.
        config: of the net.
        data: as in `compress`.
        specs: likewise.

    Returns:
        The bounds; or None, and why there is none: through attention or a norm none is known.

    Raises:
        StructureError: there are no data, or small is no tree like params.
        ShapeError: a leaf of small is not as that of params.
    """
    where = "lowrank.certified"
    apply, batches = _apply(where, net, config), _batches(where, data)
    if any(map(_factored.is_factored, jax.tree.leaves(params, is_leaf=_factored.is_factored))):
        return None, "params are factored themselves"
    specs = _specs_of(net, config, apply, params, batches[0]) if specs is None else specs
    fits(where, specs, params)
    return _certified.bounds(apply, params, small, specs, batches)


def _at_most(k: int, n: int, confidence: float = 0.95) -> float:
    """The largest share of which k of n, or fewer, is not too improbable (Clopper and Pearson, one-sided).

    >>> round(_at_most(0, 100), 4), _at_most(3, 3)  # of none: 1 − 0.05^(1/n), about 3 / n
    (0.0295, 1.0)
    """
    from scipy.special import betaincinv

    return float(betaincinv(k + 1, n - k, confidence)) if k < n else 1.0


# ---- the ranks --------------------------------------------------------------------------------------------

_STEP = 0.8  # each rank tried is so much of the one before


def _chosen(
    where: str,
    apply: Callable[..., Any],
    params: PyTree,
    maps: dict[str, Map],
    components: dict[str, Components],
    batches: Sequence[PyTree],
    total: int,
    target: float,
) -> dict[str, int]:
    """The ranks by which the program has `target` FLOPs."""
    tried = {name: _tried(each) for name, each in maps.items()}
    least = total - sum(max(0, each.flops(None) - each.flops(1)) for each in maps.values())
    if least > target:
        raise ValueRangeError(
            f"{where}: with rank 1 everywhere the net still has {least / total:.1%} of its FLOPs.",
            path="flops",
            expected=f"{math.ceil(1000 * least / total) / 1000} or more" if least < total else "wider maps",
            actual=f"{target / total:.4g}",
        )
    run = jax.jit(apply)
    outs = [run(params, x) for x in batches]

    @jax.jit
    def distance(params: PyTree, x: PyTree, before: PyTree) -> Array:
        pairs = zip(*map(jax.tree.leaves, (apply(params, x), before)), strict=True)
        squares = [jnp.square(a.astype(wide(a.dtype)) - b.astype(wide(b.dtype))).sum() for a, b in pairs]
        return functools.reduce(jnp.add, squares)

    def change(name: str, rank: int) -> float:
        each = maps[name]
        tree = put(params, each.path, lambda p: projected(p, each, components[name], rank))
        return sum(float(distance(tree, x, before)) for x, before in zip(batches, outs, strict=True))

    changes = {name: {None: 0.0} | {rank: change(name, rank) for rank in tried[name]} for name in maps}
    chosen: dict[str, int | None] = dict.fromkeys(maps)
    now = total
    while now > target:
        steps = (
            ((changes[name][rank] - changes[name][chosen[name]]) / saved, -saved, name, rank)
            for name, each in maps.items()
            for rank in tried[name]
            for saved in [each.flops(chosen[name]) - each.flops(rank)]
            if saved > 0
        )
        _, saved, name, rank = min(steps)
        chosen[name], now = rank, now + saved
        if now <= target:  # the last one went further than it had to
            chosen[name] = min(rank + int(target - now) // maps[name].slope, maps[name].full)
    return {name: rank for name, rank in chosen.items() if rank is not None}


def _tried(each: Map) -> list[int]:
    """Ranks that cost less than the whole map, each about `_STEP` of the one before, down to 1."""
    rank = min(each.full, (each.flops(None) - 1) // each.slope)
    found = []
    while rank >= 1:
        found.append(rank)
        rank = min(rank - 1, round(_STEP * rank))
    return found


# ---- what is given ----------------------------------------------------------------------------------------


def _apply(where: str, net: Any, config: Any) -> Callable[[PyTree, PyTree], Any]:
    apply = getattr(net, "apply", net)
    if not callable(apply):
        raise DTypeError(
            f"{where}: net is no function and has no apply.",
            path="net",
            expected="net.apply(params, x, config), as fn.nets.convnet has it, or such a function",
            actual=describe(net),
        )
    return lambda params, x: apply(params, x, config)


def _specs_of(net: Any, config: Any, apply: Callable[..., Any], params: PyTree, x: PyTree) -> PyTree:
    """The net's own, or those read off its program."""
    of = getattr(net, "specs", None)
    return roles.matrices(apply, params, x) if of is None else of(config)


def _batches(where: str, data: PyTree) -> list[Any]:
    batches = data if isinstance(data, list) else [data]
    if not batches or any(not jax.tree.leaves(x) or 0 in np.shape(jax.tree.leaves(x)[0]) for x in batches):
        raise StructureError(
            f"{where}: there are no data.",
            path="data",
            expected="inputs of the net [n, ...], or a list of batches of them",
            actual=describe(data),
        )
    return [jax.tree.map(jnp.asarray, x) for x in batches]
