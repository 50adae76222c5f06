"""What the change of a net's maps can do to its outputs at most, example by example.

A compressed map A' is given x' in place of x: |A' x' − A x| ≤ ‖A'‖ |x' − x| + |A' x − A x|. The last is
measured, at what the net gives its map; the norm is certified; and through rectifiers and pools a difference
does not grow. So bounds follow from map to map, from 0 at the input. They multiply up, and through attention
or a norm there is none.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from funcnet import rules
from funcnet.analysis import _chain, _spectra
from funcnet.analysis._maps import key_of
from funcnet.errors import FuncnetError, ShapeError, StructureError, describe
from funcnet.nets import maps
from funcnet.ops import _factored
from funcnet.ops._dtype import wide
from funcnet.spec import is_spec

__all__ = ["bounds"]


def bounds(
    apply: Callable[[PyTree, PyTree], Any], params: PyTree, small: PyTree, specs: PyTree, batches: list[Any]
) -> tuple[Float[np.ndarray, " n"] | None, str]:
    """Of each example a bound of |apply(small, x) − apply(params, x)|; or None, and why there is none.

    Args:
        apply: (params, x) -> outputs [n, ...].
        params: of the net.
        small: in which maps may be factored, or other ones of their shapes.
        specs: of params.
        batches: of x [n, ...].
    """
    whole = _whole(params, small)
    program = _chain.traced(apply, whole, batches[0])
    names = [_path(at) for at, _ in jax.tree.leaves_with_path(params)]
    bound, reason = _chain.lipschitz(program, dict.fromkeys(range(len(names)), 1.0))  # is there one at all?
    if not math.isfinite(bound):
        return None, reason
    facts = zip(jax.tree.leaves(specs, is_leaf=is_spec), jax.tree.leaves(whole), strict=True)
    leaves = {names[i]: (spec, leaf, None) for i, (spec, leaf) in enumerate(facts) if spec.matrix is not None}
    calls = {names[i]: calls for i, calls in program.convolved.items()}
    convolved = {n: each[0] if len(each) == 1 else None for n, each in calls.items() if n in leaves}
    found, _ = _spectra.weights(leaves, convolved)
    norms = {names.index(name): each[0].norm[1] for name, each in found.items() if len(each) == 1}
    bound, reason = _chain.lipschitz(program, norms)
    if not math.isfinite(bound):
        return None, reason
    run = jax.jit(lambda params, small, x: _added(apply, params, small, x))
    added = [jax.device_get(run(params, small, x)) for x in batches]
    of_maps = {names[number].rpartition(".")[0] for number in added[0]}
    for name, before, after in zip(names, jax.tree.leaves(params), jax.tree.leaves(whole), strict=True):
        if name.rpartition(".")[0] not in of_maps and not np.array_equal(before, after):
            return None, f"{name}, which is of no map, has changed"
    return np.concatenate([_chain.drift(program, norms, each) for each in added]), ""


def _whole(params: PyTree, small: PyTree) -> PyTree:
    """What is small, as a tree like params: each factored map as one, w = down · up."""

    def leaf(at: Any, before: Any) -> Any:
        node = _at(small, at[:-1])
        if _factored.is_factored(node) and key_of(at[-1]) == "w":
            first, last = _factored.parts(node)
            found: Any = jnp.tensordot(first["w"], last["w"], 1)
        else:
            found = _at(node, at[-1:])
        if np.shape(found) != np.shape(before):
            raise ShapeError(
                f"lowrank.certified: {_path(at)} of small is not that of params.",
                path="small",
                expected=describe(before),
                actual=describe(found),
            )
        return found

    try:
        return jax.tree.map_with_path(leaf, params)
    except (KeyError, IndexError, TypeError) as error:
        if isinstance(error, FuncnetError):
            raise
        raise StructureError(
            "lowrank.certified: small is no tree like params.",
            path="small",
            expected='params, in which {"down", "up"} may stand in the place of {"w"}',
            actual=describe(small),
        ) from error


def _at(node: Any, path: Any) -> Any:
    for entry in path:
        name = key_of(entry)
        node = getattr(node, name) if isinstance(entry, jax.tree_util.GetAttrKey) else node[name]
    return node


def _path(at: Any) -> str:
    return jax.tree_util.keystr(at, simple=True, separator=".")


def _added(
    apply: Callable[[PyTree, PyTree], Any], params: PyTree, small: PyTree, x: Any
) -> dict[int, Float[Array, " n"]]:
    """|A' x − A x| of each map and example at what the net gives A, by the numbers of the leaves w."""
    places = {id(leaf): (i, at[:-1]) for i, (at, leaf) in enumerate(jax.tree.leaves_with_path(params))}
    found: dict[int, Array] = {}

    def meter(f: Any, formula: Any, at: int, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        del formula
        with rules.metered(None):
            y = f(*args, **options)
            number, path = places[id(args[at]["w"])]
            other = _at(small, path)
            run = maps.conv if f.__module__.endswith(".conv") else maps.linear
            change = run(other, args[1], **options) - y
        norm = jnp.sqrt(jnp.square(change.astype(wide(y.dtype))).reshape(len(y), -1).sum(1))
        found[number] = jnp.maximum(found.get(number, norm), norm)  # of all its calls
        return y

    with rules.metered(meter):
        apply(params, x)
    return found
