"""The layers of a model: which operations take which parameters, and their FLOPs, by formula."""

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from funcnet import rules
from funcnet.ops._factored import is_factored, parts

__all__ = ["Layer", "layers"]

Key = tuple[Any, tuple[tuple[int, ...], ...]]  # the structure of a tree, and the shapes of its leaves


class Layer(NamedTuple):
    """Parameters, and the calls of operations that take them.

    Attributes:
        shapes: path in params -> shape, of each leaf; none for an operation that takes no parameters.
        operations: name of the operation -> how often it is called.
        flops: of all these calls, from the operation's `cost`.
    """

    shapes: dict[str, tuple[int, ...]]
    operations: dict[str, int]
    flops: int


def layers(apply: Callable[..., Any], params: Any, *args: Any) -> list[Layer]:
    """The layers of ``apply(params, *args)``; nothing is computed.

    The model is traced, with every scan unrolled, and the calls of operations are noted. A call belongs to
    the dict in `params` that has the shapes of its own: as they are, or less a first axis, along which a
    scan takes stacked layers apart. Dicts of equal shapes are one row: shapes do not tell which of them a
    call took, and the sums of the row are right in any case. A call within the call of another operation is
    part of that one's cost and not listed.

    Args:
        apply: ``apply(params, *args)``, made of operations.
        params: nested dicts and lists of arrays or `jax.ShapeDtypeStruct`.
        args: arrays, or the same.

    Returns:
        The layers in the order of their first calls, then the calls that take no parameters, by operation.
    """
    calls = _calls(apply, params, *args)
    keys = {_key(params) for call in calls for params in call.args[:1]}
    found: dict[Key, dict[str, tuple[int, ...]]] = {}

    def visit(node: Any, path: str) -> None:
        if is_factored(node):
            for name, part in zip(("down", "up"), parts(node), strict=True):
                take(part, path, name)
        else:
            take(node, path)

    def take(node: Any, path: str, w: str = "w") -> None:
        candidates = (_key(node), _key(node, first=1)) if isinstance(node, dict) else ()
        key = next((key for key in candidates if key in keys), None)
        if key is not None or hasattr(node, "dtype"):  # an array that no call takes has a row of its own
            found.setdefault(key or (path, ()), {}).update(_shapes(node, path, w))
        elif node is not None:
            for name, child in node.items() if isinstance(node, dict) else enumerate(node):
                visit(child, f"{path}.{name}".lstrip("."))

    visit(params, "")
    counts: dict[Any, tuple[Counter[str], list[int]]] = {}
    for call in calls:
        name = call.operation.__name__.rpartition(".")[2]
        key = next(map(_key, call.args[:1]), None)
        operations, flops = counts.setdefault(key if key in found else name, (Counter(), []))
        operations[name] += 1
        flops.append(call.operation.cost(*call.args, **call.options).flops)
    for key in found:
        counts.setdefault(key, (Counter(), []))
    rows = [Layer(found.get(key, {}), dict(ops), sum(flops)) for key, (ops, flops) in counts.items()]
    return sorted(rows, key=lambda row: not row.shapes)


def _calls(apply: Callable[..., Any], *args: Any) -> list[rules.Call]:
    """The calls that are not within others."""
    outer, within = [], 0
    for call in _trace(apply, *args):
        if within == 0:
            outer.append(call)
            repeated = _trace(
                lambda args, options, call=call: call.operation.apply(*args, **options),
                call.args,
                call.options,
            )
            within = len(repeated)
        within -= 1
    return outer


def _trace(function: Callable[..., Any], *args: Any) -> list[rules.Call]:
    leaves, tree = jax.tree.flatten(args)
    arrays = {i: leaf for i, leaf in enumerate(leaves) if hasattr(leaf, "dtype")}

    def flat(arrays: dict[int, Any]) -> Any:
        return function(*jax.tree.unflatten(tree, [arrays.get(i, leaf) for i, leaf in enumerate(leaves)]))

    # Without jit a scan is a Python loop: its body is traced as often as it runs. (And functions of jnp that
    # are jitted else mix integer types, which strict promotion would take for the model's fault.)
    with jax.disable_jit(), jax.numpy_dtype_promotion("standard"), rules.record() as calls:
        jax.eval_shape(flat, arrays)
    return calls


def _key(tree: Any, first: int = 0) -> Key:
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple(np.shape(leaf)[first:] for leaf in leaves)


def _shapes(node: Any, path: str, w: str) -> dict[str, tuple[int, ...]]:
    """The leaves below `path`, the weight before its bias; of a factored map's parts, w has its own name."""
    shapes = {}
    for names, leaf in jax.tree.leaves_with_path(node):
        name = jax.tree_util.keystr(names, simple=True, separator=".")
        shapes[f"{path}.{w if name == 'w' else name}".strip(".")] = leaf.shape
    return dict(sorted(shapes.items(), key=lambda item: (item[0].rpartition(".")[0], item[0].endswith("b"))))
