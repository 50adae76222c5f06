"""The maps of a net that can be factored: which they are, their shapes, specs and FLOPs at a rank."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, PyTree

from funcnet import rules
from funcnet.analysis import layers
from funcnet.errors import DTypeError, FuncnetError, StructureError, ValueRangeError, describe
from funcnet.ops import _check, _factored
from funcnet.spec import Spec, is_spec

__all__ = [
    "Map", "candidates", "checked", "flops_of", "key_of", "maps_of", "node_at", "probed", "put",
    "to_shapes", "to_specs",
]  # fmt: skip


_MARK = "probe of "  # the name of a map follows; the key of its probe, beside w


class Map(NamedTuple):
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


def candidates(specs: PyTree) -> dict[str, Map]:
    """By path the dicts whose w is a matrix of stack, inputs and outputs, in this order.

    One group of channels is none; in several, each would want a basis of its own, and they are left whole.
    """
    found = {}
    for path, spec in jax.tree.leaves_with_path(specs, is_leaf=is_spec):
        if not path or getattr(path[-1], "key", None) != "w" or not isinstance(spec.matrix, tuple):
            continue
        axes = [(size, role) for size, role in zip(*spec.matrix, strict=True)]
        stack = next(i for i, (_, role) in enumerate(axes) if role != "s")
        axes = [*axes[:stack], *(axis for axis in axes[stack:] if axis != (1, "s"))]
        letters = "".join(role for _, role in axes)
        ordered = "s" * stack + letters[stack:].replace("o", "").replace("s", "") + "o" * letters.count("o")
        if letters == ordered and tuple(size for size, _ in axes) == spec.shape:
            keys = tuple(key_of(entry) for entry in path[:-1])
            found[".".join(map(str, keys))] = Map(keys, spec, stack, letters.count("o"))
    return found


def key_of(entry: Any) -> Any:
    """What stands in the brackets, or behind the dot, of an entry of a path of JAX's."""
    return getattr(entry, "key", getattr(entry, "idx", getattr(entry, "name", None)))


def maps_of(
    where: str, apply: Callable[..., Any], params: PyTree, specs: PyTree, x: PyTree
) -> dict[str, Map]:
    """Those that the net uses and takes in both forms."""
    found = candidates(specs)
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
            lambda params, x: probed(apply, params, found, dict.fromkeys(found), count, x), params, x
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


def _refused(apply: Callable[..., Any], params: PyTree, maps: dict[str, Map], x: PyTree) -> Exception | None:
    """Why the net does not take these maps in two parts."""
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    for each in maps.values():
        params = put(params, each.path, to_shapes(each, 1))
    try:
        jax.eval_shape(apply, params, x)
    except (FuncnetError, KeyError) as error:
        return error
    return None


def flops_of(apply: Callable[..., Any], params: PyTree, x: PyTree) -> int:
    """Of ``apply(params, x)``, counted from its program."""
    abstract = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    return sum(row.flops for row in layers.layers(apply, *jax.tree.map(abstract, (params, x))))


def put(tree: PyTree, path: Sequence[Any], change: Callable[[Any], Any]) -> PyTree:
    """The tree with another node at a path."""
    if not path:
        return change(tree)
    first, *rest = path
    if isinstance(tree, Mapping):
        return {**tree, first: put(tree[first], rest, change)}
    return [put(node, rest, change) if i == first else node for i, node in enumerate(tree)]


def to_shapes(each: Map, rank: int) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """params of the map -> their shapes at a rank."""

    def shapes(params: Mapping[str, Any]) -> dict[str, Any]:
        return _factored.in_parts(
            params, *(jax.ShapeDtypeStruct(s, params["w"].dtype) for s in each.shapes(rank))
        )

    return shapes


def to_specs(params: Mapping[str, Any], each: Map, rank: int) -> dict[str, Any]:
    """The specs of the map at a rank, from those of the whole one."""
    end, spec = len(each.spec.shape) - each.outputs, each.spec
    (first, last), names = each.shapes(rank), spec.axes
    stack, inputs = "s" * each.stack, "i" * (end - each.stack)
    down = Spec(first, spec.dtype, (*names[:end], "r"), (first, stack + inputs + "o"))
    axes = (*names[: each.stack], "r", *names[end:])
    return _factored.in_parts(
        params, down, Spec(last, spec.dtype, axes, (last, stack + "i" + "o" * each.outputs))
    )


def node_at(tree: PyTree, path: Sequence[Any]) -> Any:
    """What stands in dicts and lists at these keys."""
    for key in path:
        tree = tree[key]
    return tree


def probed(
    apply: Callable[..., Any],
    params: PyTree,
    maps: dict[str, Map],
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
        params = put(params, each.path, lambda p, n=name: {**p, _MARK + n: probes[n]})
    with rules.metered(meter):
        return apply(params, x)


def checked(where: str, maps: Mapping[str, Map], ranks: Mapping[str, int]) -> dict[str, int]:
    """The ranks, each that of a map and not above what it can have."""
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
