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

from funcnet import rules
from funcnet.analysis import _certified, layers
from funcnet.errors import DTypeError, FuncnetError, ShapeError, StructureError, ValueRangeError, describe
from funcnet.linalg import as_matrices
from funcnet.nets import roles
from funcnet.ops import _check, _factored
from funcnet.ops._dtype import wide
from funcnet.spec import Spec, fits, is_spec

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
    maps = _maps(where, apply, params, specs, batches[0])
    total = _flops(apply, params, batches[0])
    components = _components(where, apply, params, maps, batches)
    if ranks is None:
        chosen = _chosen(where, apply, params, maps, components, batches, total, flops * total)
    else:
        chosen = _given(where, maps, ranks)
    small = params
    for name, rank in chosen.items():
        small = _put(small, maps[name].path, lambda p, n=name, r=rank: _factor(p, maps[n], components[n], r))
    rows = [
        Layer(name, each.full, rank, _kept(components[name], rank), (each.flops(None), each.flops(rank)))
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
    maps = {_name(path): _Map(path, spec, *axes) for path, spec, axes in _matrices(specs)}
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    for name, rank in _given(where, maps, ranks).items():
        params = _put(params, maps[name].path, _shapes(maps[name], rank))
    return params


def specs(specs: PyTree, ranks: Mapping[str, int]) -> PyTree:
    """The specs of a compressed net, from those of the whole one: for optimizers that go on with it.

    Raises:
        StructureError: a path is of no map.
        ValueRangeError: a rank is out of range.
    """
    maps = {_name(path): _Map(path, spec, *axes) for path, spec, axes in _matrices(specs)}
    for name, rank in _given("lowrank.specs", maps, ranks).items():
        specs = _put(specs, maps[name].path, lambda p, n=name, r=rank: _specs(p, maps[n], r))
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
    found: list[Any] = []
    for x in batches:
        bounds, reason = _certified.bounds(apply, params, small, specs, x)
        if bounds is None:
            return None, reason
        found.append(bounds)
    return np.concatenate(found), ""


def _at_most(k: int, n: int, confidence: float = 0.95) -> float:
    """The largest share of which k of n, or fewer, is not too improbable (Clopper and Pearson, one-sided).

    >>> round(_at_most(0, 100), 4), _at_most(3, 3)  # of none: 1 − 0.05^(1/n), about 3 / n
    (0.0295, 1.0)
    """
    from scipy.special import betaincinv

    return float(betaincinv(k + 1, n - k, confidence)) if k < n else 1.0


# ---- which maps there are, and what they cost -------------------------------------------------------------


class _Map(NamedTuple):
    """A map: w is [*stack, *inputs, *outputs], `stack` and `outputs` numbers of axes.

    A batch has `rows` results of it, those of all layers of a stack counted.
    """

    path: tuple[Any, ...]
    spec: Spec
    stack: int
    outputs: int
    rows: int = 0

    @property
    def sizes(self) -> tuple[int, int, int]:
        """(stack, inputs, outputs)."""
        shape, end = self.spec.shape, len(self.spec.shape) - self.outputs
        return math.prod(shape[: self.stack]), math.prod(shape[self.stack : end]), math.prod(shape[end:])

    @property
    def full(self) -> int:
        return min(self.sizes[1:])

    @property
    def slope(self) -> int:
        """FLOPs for each rank."""
        _, inputs, outputs = self.sizes
        return 2 * self.rows * (inputs + outputs)

    def flops(self, rank: int | None) -> int:
        """In two parts of this rank, or whole."""
        _, inputs, outputs = self.sizes
        return 2 * self.rows * inputs * outputs if rank is None else self.slope * rank

    def shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of down and up."""
        shape, end = self.spec.shape, len(self.spec.shape) - self.outputs
        return (*shape[:end], rank), (*shape[: self.stack], rank, *shape[end:])


def _matrices(specs: PyTree) -> list[tuple[tuple[Any, ...], Spec, tuple[int, int]]]:
    """The dicts whose w is a matrix of stack, inputs and outputs in this order, and the numbers of axes.

    One group of channels is none; in several, each would want a basis of its own, and they are left whole.
    """
    found = []
    for path, spec in jax.tree.leaves_with_path(specs, is_leaf=is_spec):
        if not path or getattr(path[-1], "key", None) != "w" or not isinstance(spec.matrix, tuple):
            continue
        axes = [(size, role) for size, role in zip(*spec.matrix, strict=True)]
        stack = next(i for i, (_, role) in enumerate(axes) if role != "s")
        axes = [*axes[:stack], *(axis for axis in axes[stack:] if axis != (1, "s"))]
        letters = "".join(role for _, role in axes)
        ordered = "s" * stack + letters[stack:].replace("o", "").replace("s", "") + "o" * letters.count("o")
        if letters == ordered and tuple(size for size, _ in axes) == spec.shape:
            found.append((tuple(_key(entry) for entry in path[:-1]), spec, (stack, letters.count("o"))))
    return found


def _key(entry: Any) -> Any:
    return getattr(entry, "key", getattr(entry, "idx", getattr(entry, "name", None)))


def _name(path: Sequence[Any]) -> str:
    return ".".join(map(str, path))


def _maps(where: str, apply: Callable[..., Any], params: PyTree, specs: PyTree, x: PyTree) -> dict[str, _Map]:
    """Those that the net uses and takes in both forms."""
    found = {_name(path): _Map(path, spec, *axes) for path, spec, axes in _matrices(specs)}
    refused = _refused(apply, params, found, x)
    if refused is not None:  # then one by one
        one_by_one = {name: _refused(apply, params, {name: each}, x) for name, each in found.items()}
        refused = next(filter(None, one_by_one.values()), refused)
        found = {name: each for name, each in found.items() if one_by_one[name] is None}
    rows = dict.fromkeys(found, 0)

    def count(name: str, probe: Any, y: Array) -> Array:
        del probe
        rows[name] += y.size // found[name].sizes[2]
        return y

    with jax.disable_jit():  # loops unrolled
        jax.eval_shape(
            lambda params, x: _probed(apply, params, found, dict.fromkeys(found), count, x), params, x
        )
    used = {name: each._replace(rows=rows[name]) for name, each in found.items() if rows[name]}
    if not used:
        raise StructureError(
            f"{where}: none of the net's maps can be factored.",
            path="net",
            expected='params with {"w"} that the net hands to nets.maps.linear, nets.maps.conv or multihead',
            actual="no such matrix in specs" if refused is None else str(refused).splitlines()[0],
            hint="call fn.nets.maps.linear(params, x) in place of fn.linear.apply(params, x).",
        )
    return used


def _refused(apply: Callable[..., Any], params: PyTree, maps: dict[str, _Map], x: PyTree) -> Exception | None:
    """Why the net does not take these maps in two parts."""
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    for each in maps.values():
        params = _put(params, each.path, _shapes(each, 1))
    try:
        jax.eval_shape(apply, params, x)
    except (FuncnetError, KeyError) as error:
        return error
    return None


def _flops(apply: Callable[..., Any], params: PyTree, x: PyTree) -> int:
    abstract = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    return sum(row.flops for row in layers.layers(apply, *jax.tree.map(abstract, (params, x))))


def _put(tree: PyTree, path: Sequence[Any], change: Callable[[Any], Any]) -> PyTree:
    """The tree with another node at a path."""
    if not path:
        return change(tree)
    first, *rest = path
    if isinstance(tree, Mapping):
        return {**tree, first: _put(tree[first], rest, change)}
    return [_put(node, rest, change) if i == first else node for i, node in enumerate(tree)]


def _in_parts(params: Mapping[str, Any], down: Any, up: Any) -> dict[str, Any]:
    return {"down": down, "up": up, **{name: leaf for name, leaf in params.items() if name != "w"}}


def _shapes(each: _Map, rank: int) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    def shapes(params: Mapping[str, Any]) -> dict[str, Any]:
        return _in_parts(params, *(jax.ShapeDtypeStruct(s, params["w"].dtype) for s in each.shapes(rank)))

    return shapes


def _specs(params: Mapping[str, Any], each: _Map, rank: int) -> dict[str, Any]:
    end, spec = len(each.spec.shape) - each.outputs, each.spec
    (first, last), names = each.shapes(rank), spec.axes
    stack, inputs = "s" * each.stack, "i" * (end - each.stack)
    down = Spec(first, spec.dtype, (*names[:end], "r"), (first, stack + inputs + "o"))
    axes = (*names[: each.stack], "r", *names[end:])
    return _in_parts(params, down, Spec(last, spec.dtype, axes, (last, stack + "i" + "o" * each.outputs)))


# ---- the components of what each map gives ----------------------------------------------------------------


class _Components(NamedTuple):
    """Of each layer of a stack: about `mean` [s, d_out], `vectors` [s, d_out, d_out] as columns.

    Their `variances` [s, d_out], or second moments where there is no b, fall.
    """

    mean: np.ndarray
    vectors: np.ndarray
    variances: np.ndarray


_MARK = "probe of "  # the name of a map follows; the key of its probe, beside w


def _components(
    where: str, apply: Callable[..., Any], params: PyTree, maps: dict[str, _Map], batches: Sequence[PyTree]
) -> dict[str, _Components]:
    """By two passes over the data, the second about the means of the first.

    The sums are the cotangents of zeros beside w: so JAX adds them up, through loops and stacks.
    """
    sums = jax.jit(lambda params, about, x: _sums(apply, params, maps, about, x))

    def over(about: dict[str, np.ndarray]) -> dict[str, Any]:
        total: Any = None
        for x in batches:
            found = jax.tree.map(lambda v: np.asarray(v, np.float64), sums(params, about, x))
            total = found if total is None else jax.tree.map(np.add, total, found)
        return total

    centred = {name: _at(params, each.path).get("b") is not None for name, each in maps.items()}
    zeros = {name: np.zeros((each.sizes[0], each.sizes[2]), np.float32) for name, each in maps.items()}
    first = over(zeros)
    means = {
        name: np.asarray(centred[name] * s["sum"] / np.maximum(s["count"][:, None], 1), np.float32)
        for name, s in first.items()
    }
    found = {}
    for name, s in over(means).items():
        if not np.isfinite(s["gram"]).all():
            raise ValueRangeError(
                f"{where}: what {name} gives is not finite, or its squares are not.",
                path="data",
                expected="params and data of which all maps give finite numbers",
                actual=f"{name}: NaN or infinity",
                hint="fn.find_nan names the operation that made it.",
            )
        variances, vectors = np.linalg.eigh(s["gram"] / np.maximum(s["count"][:, None, None], 1))
        found[name] = _Components(means[name], vectors[..., ::-1], np.maximum(variances[..., ::-1], 0))
    return found


def _at(tree: PyTree, path: Sequence[Any]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _sums(
    apply: Callable[..., Any], params: PyTree, maps: dict[str, _Map], about: dict[str, Array], x: PyTree
) -> dict[str, dict[str, Array]]:
    """For each map [s], of what it gives less `about`: how many rows, their sum, and the sum of y yᵀ."""

    def probe(each: _Map, mean: Array) -> dict[str, Array]:
        s, _, o = each.sizes
        lead = each.spec.shape[: each.stack]
        parts = {"about": mean, "count": jnp.zeros(s), "sum": jnp.zeros((s, o)), "gram": jnp.zeros((s, o, o))}
        return {name: jnp.reshape(v, (*lead, *v.shape[1:])) for name, v in parts.items()}

    probes = {name: probe(each, about[name]) for name, each in maps.items()}
    see = lambda _, probe, y: _seen(y, probe)
    out, pull = jax.vjp(lambda probes: _probed(apply, params, maps, probes, see, x), probes)
    (found,) = pull(jax.tree.map(jnp.zeros_like, out))
    return {
        name: {k: v.reshape(each.sizes[0], *v.shape[each.stack :]) for k, v in found[name].items()}
        for name, each in maps.items()
    }


def _probed(
    apply: Callable[..., Any],
    params: PyTree,
    maps: dict[str, _Map],
    probes: dict[str, Any],
    see: Callable[[str, Any, Array], Array],
    x: PyTree,
) -> Any:
    """``apply(params, x)``, where each map gives ``see(name, probe, y)`` instead of y.

    The probes lie beside w and come to each call with it, through whatever the net does between its maps.
    """

    def meter(f: Any, formula: Any, at: int, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        del formula
        own, mark, probe = args[at], None, None
        if isinstance(own, Mapping):
            mark = next((key for key in own if str(key).startswith(_MARK)), None)
            probe = None if mark is None else own[mark]
            own = {key: leaf for key, leaf in own.items() if key is not mark}
        with rules.metered(None):
            y = f(*args[:at], own, *args[at + 1 :], **options)
        return y if mark is None else see(mark.removeprefix(_MARK), probe, y)

    for name, each in maps.items():
        params = _put(params, each.path, lambda p, n=name: {**p, _MARK + n: probes[n]})
    with rules.metered(meter):
        return apply(params, x)


@jax.custom_vjp
def _seen(y: Array, probe: dict[str, Array]) -> Array:
    """y itself; the cotangents of probe are the sums over its rows."""
    del probe
    return y


def _seen_forward(y: Array, probe: dict[str, Array]) -> tuple[Array, Any]:
    return y, (y, probe)


def _seen_backward(kept: Any, dy: Array) -> tuple[Array, dict[str, Array]]:
    y, probe = kept
    rows = y.reshape(-1, probe["about"].shape[-1]).astype(wide(y.dtype))
    rows = rows - probe["about"].astype(rows.dtype)
    found = {
        "about": jnp.zeros_like(rows[0]),
        "count": jnp.asarray(len(rows), rows.dtype),
        "sum": rows.sum(0),
        "gram": rows.T @ rows,
    }
    return dy, {name: v.astype(probe[name].dtype) for name, v in found.items()}


_seen.defvjp(_seen_forward, _seen_backward)


def _factor(params: Mapping[str, Any], each: _Map, found: _Components, rank: int) -> dict[str, Any]:
    w, kept = _wide(as_matrices(params["w"], each.spec)), found.vectors[..., :rank]
    down, up = each.shapes(rank)
    like = params["w"].dtype
    parts = {
        "down": jnp.asarray((w @ kept).reshape(down), like),
        "up": jnp.asarray(kept.swapaxes(-1, -2).reshape(up), like),
    }
    return _in_parts({**params, **_bias(params, found, kept)}, **parts)


def _bias(params: Mapping[str, Any], found: _Components, kept: np.ndarray) -> dict[str, Array]:
    """b' = m + (b − m) P Pᵀ, where there is a b."""
    b = params.get("b")
    if b is None:
        return {}
    off = _wide(b).reshape(found.mean.shape) - found.mean
    new = found.mean + np.einsum("so,sor,spr->sp", off, kept, kept)
    return {"b": jnp.asarray(new.reshape(b.shape), b.dtype)}


def _wide(w: Any) -> np.ndarray:
    return np.asarray(w, np.float64)


def _projected(params: Mapping[str, Any], each: _Map, found: _Components, rank: int) -> dict[str, Any]:
    """What `_factor` gives as a whole map, of the shapes of params: so all ranks are one program."""
    kept, w = found.vectors[..., :rank], params["w"]
    new = _wide(as_matrices(w, each.spec)) @ kept @ kept.swapaxes(-1, -2)
    return {**params, **_bias(params, found, kept), "w": jnp.asarray(new.reshape(w.shape), w.dtype)}


def _kept(found: _Components, rank: int | None) -> float:
    total = found.variances.sum(-1)
    share = found.variances[..., :rank].sum(-1) / np.where(total > 0, total, 1)
    return float(np.where(total > 0, share, 1).min())


# ---- the ranks --------------------------------------------------------------------------------------------

_STEP = 0.8  # each rank tried is so much of the one before


def _chosen(
    where: str,
    apply: Callable[..., Any],
    params: PyTree,
    maps: dict[str, _Map],
    components: dict[str, _Components],
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
            expected=f"{math.ceil(1000 * least / total) / 1000} or more",
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
        tree = _put(params, each.path, lambda p: _projected(p, each, components[name], rank))
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


def _tried(each: _Map) -> list[int]:
    """Ranks that cost less than the whole map, each about `_STEP` of the one before, down to 1."""
    rank = min(each.full, (each.flops(None) - 1) // each.slope)
    found = []
    while rank >= 1:
        found.append(rank)
        rank = min(rank - 1, round(_STEP * rank))
    return found


def _given(where: str, maps: Mapping[str, _Map], ranks: Mapping[str, int]) -> dict[str, int]:
    if not isinstance(ranks, Mapping):
        raise DTypeError(
            f"{where}: ranks is not a dict.",
            path="ranks",
            expected="ranks: those of maps by their paths",
            actual=f"ranks: {describe(ranks)}",
        )
    found = {}
    for name, rank in ranks.items():
        if name not in maps:
            raise StructureError(
                f"{where}: {name!r} is no map that can be factored.",
                path="ranks",
                expected=", ".join(maps) or "none can",
                actual=repr(name),
            )
        found[name] = _check.positive(where, f'ranks["{name}"]', rank)
        if rank > maps[name].full:
            raise ValueRangeError(
                f"{where}: the rank of {name} is {rank}.",
                path=f'ranks["{name}"]',
                expected=f"1 to {maps[name].full}",
                actual=str(rank),
            )
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
