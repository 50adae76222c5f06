"""Checks of what the functions of this folder are given, in the user's words."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from funcnet._numbers import whole
from funcnet.errors import DTypeError, ShapeError, ValueRangeError, describe

__all__ = ["alive", "flag", "function", "here", "iterable", "own", "shown", "whole"]


def flag(where: str, path: str, value: Any) -> bool:
    """`value`, True or False."""
    if not isinstance(value, bool | np.bool_):
        raise DTypeError(
            f"{where}: {path} is neither True nor False.",
            path=path,
            expected="True or False",
            actual=describe(value),
        )
    return bool(value)


def function(where: str, path: str, value: Any, form: str) -> None:
    """Refuse what cannot be called."""
    if not callable(value):
        raise DTypeError(
            f"{where}: {path} is not a function.", path=path, expected=form, actual=describe(value)
        )


def iterable(where: str, batches: Any) -> Iterable[PyTree]:
    """Refuse what gives no batches, but rows of an array, names of a dict, or the arrays of a data set."""
    one = (
        isinstance(batches, Mapping | str | bytes) or hasattr(batches, "_fields") or hasattr(batches, "dtype")
    )
    many = any(hasattr(batches, name) for name in ("__iter__", "__getitem__"))
    ranks = {getattr(b, "ndim", None) for b in batches} if isinstance(batches, tuple | list) else set()
    parts = len(ranks) > 1 and None not in ranks  # (x, labels): no two batches have axes so different
    if many and not one and not parts and not isinstance(batches, type):
        return batches
    hint = "put one batch into a list: [batch]" if one else None
    if parts:
        hint = "of a whole data set: train.batches(arrays, size, seed=0) or train.in_order(arrays, size)"
    raise DTypeError(
        f"{where}: batches is no iterable of batches.",
        path="batches",
        expected="an iterable, each element a batch: train.batches(...), a list, a generator",
        actual=describe(batches),
        hint="call it: a generator function gives its iterator then" if callable(batches) else hint,
    )


def alive(where: str, path: str, tree: PyTree) -> None:
    """Refuse arrays whose memory a step has taken."""
    for leaf_path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer) and leaf.is_deleted():
            raise ValueRangeError(
                f"{where}: {path}{jax.tree_util.keystr(leaf_path)} is deleted: a step was given it, "
                "and reuses the memory of its state (donation).",
                path=path,
                expected="what the last step, or fit, returned",
                actual="what was given to it",
                hint="to start from one state twice, give each a copy: jax.tree.map(jnp.copy, state)",
            )


def here(where: str, path: str, tree: PyTree) -> None:
    """Refuse what has no values, within jit, and arrays whose memory a step has taken."""
    for leaf_path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, jax.core.Tracer):
            name = f"{path}{jax.tree_util.keystr(leaf_path)}"
            raise DTypeError(
                f"{where}: {name} is traced, and a loop over batches runs on the host.",
                path=name,
                expected="an array, outside of jax.jit and the like",
                actual=describe(leaf),
            )
    alive(where, path, tree)


def own(where: str, batch: PyTree, step: int | None = None) -> PyTree:
    """The batch with its NumPy arrays copied, since whoever made it may fill the same buffers again.

    (A computation may read them, without a copy, long after its call has returned.)

    Args:
        where: who asks.
        batch: any tree of arrays.
        step: its number, if it must not be empty.

    Raises:
        DTypeError: a leaf is no array of numbers.
        ShapeError: there is no example in it.
    """
    leaves, tree = jax.tree.flatten(batch)
    if step is not None:
        for leaf in leaves:
            if getattr(leaf, "shape", ())[:1] == (0,):
                raise ShapeError(
                    f"{where}: the batch of step {step} is empty.",
                    path="batch",
                    expected="one example or more",
                    actual=", ".join(map(describe, leaves)),
                )
    for leaf in leaves:
        if type(leaf) not in _AS_IT_IS:
            break
    else:
        return batch
    owned = [_own(leaf) for leaf in leaves]
    for place, leaf in enumerate(owned):
        if leaf is None:
            path, leaf = jax.tree_util.tree_leaves_with_path(batch)[place]
            name = f"batch{jax.tree_util.keystr(path)}"
            raise DTypeError(
                f"{where}: {name} is no array of numbers.",
                path=name,
                expected="an array of numbers",
                actual=shown(leaf),
            )
    return tree.unflatten(owned)


# Types of leaves that nobody can change, as far as they were met: to ask for the type takes no time.
_AS_IT_IS: set[type] = set()


def _own(leaf: Any) -> Any:
    """The leaf, or a copy of it; None if it is no array of numbers."""
    if type(leaf) is np.ndarray and leaf.dtype.kind in "biufc":
        return leaf.copy()
    numbers = np.number | np.bool_ | bool | int | float | complex
    if isinstance(leaf, jax.Array | numbers) or hasattr(leaf, "__jax_array__"):
        if isinstance(leaf, jax.Array):
            _AS_IT_IS.add(type(leaf))
        return leaf
    if not hasattr(leaf, "__array__") or isinstance(leaf, np.ma.MaskedArray):
        return None
    try:
        array = np.array(leaf)
    except Exception:  # another library's: what it is will be refused by its name
        return None
    return array if array.dtype.kind in "biufc" or jnp.issubdtype(array.dtype, jnp.number) else None


def shown(leaf: Any) -> str:
    """`describe`, which does not tell of a mask."""
    return f"{describe(leaf)}, masked" if isinstance(leaf, np.ma.MaskedArray) else describe(leaf)
