"""A data set as arguments of one program: a batch, or batches of equal shapes stacked and run through."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnet.errors import DTypeError, ShapeError, StructureError, describe

__all__ = ["Groups", "examples", "grouped", "total"]

# One per shape: the numbers of the batches [g] and their leaves [g, ...]; of a single one [] and [...].
Groups = tuple[tuple[jax.Array, Any], ...]


def grouped(where: str, batches: Any) -> Groups:
    """A batch, or a list of batches, by their shapes.

    Raises:
        StructureError: there is none, it is an iterator, or one has other parts than the first.
        DTypeError: a leaf is no array.
    """
    if hasattr(batches, "__next__"):
        raise StructureError(
            f"{where}: batches are an iterator, and every product goes over them.",
            path="batches",
            expected="a batch, or a list of batches",
            actual=describe(batches),
            hint="list(batches), if it ends",
        )
    several = isinstance(batches, list)
    found: dict[Any, list[tuple[int, list[Any]]]] = {}
    tree = None
    for number, batch in enumerate(batches if several else [batches]):
        name = f"batches[{number}]" if several else "batches"
        leaves, own = jax.tree.flatten(batch)
        tree = own if tree is None else tree
        if own != tree or not leaves:
            raise StructureError(
                f"{where}: {name} {'is not like the first one' if leaves else 'holds no array'}.",
                path=name,
                expected="a batch, or a list of batches with the same parts",
                actual=f"{name}: {', '.join(map(describe, leaves)) or describe(batch)}",
                hint="a list is a list of batches; a batch with several parts is a tuple or a dict",
            )
        arrays = [_array(where, name, leaf) for leaf in leaves]
        found.setdefault(tuple((a.shape, str(a.dtype)) for a in arrays), []).append((number, arrays))
    if tree is None:
        raise StructureError(
            f"{where}: there is no batch.", path="batches", expected="one batch or more", actual="[]"
        )
    return tuple((_numbers(group), jax.tree.unflatten(tree, _stacked(group))) for group in found.values())


def _numbers(group: list[tuple[int, list[Any]]]) -> jax.Array:
    numbers = np.array([number for number, _ in group], np.int32)
    return jnp.asarray(numbers[0] if len(group) == 1 else numbers)


def _stacked(group: list[tuple[int, list[Any]]]) -> list[jax.Array]:
    columns = zip(*(arrays for _, arrays in group), strict=True)
    if len(group) == 1:
        return [jnp.asarray(a) for (a,) in columns]
    return [
        jnp.asarray(np.stack(column)) if all(isinstance(a, np.ndarray) for a in column) else jnp.stack(column)
        for column in columns
    ]


def _array(where: str, name: str, leaf: Any) -> Any:
    if isinstance(leaf, jax.Array):
        return leaf
    try:
        array = np.asarray(leaf)
    except Exception:  # of another library
        array = np.array(None)
    if not jnp.issubdtype(array.dtype, jnp.number) and array.dtype != np.bool_:
        raise DTypeError(
            f"{where}: {name} holds what is no array of numbers.",
            path=name,
            expected="a pytree of arrays",
            actual=describe(leaf),
        )
    return array


def examples(where: str, batch: Any, hint: str | None = None) -> int:
    """How many there are in a batch: the length of the first axis of its arrays; `hint` is an error's.

    Raises:
        ShapeError: they do not agree on it.
    """
    leaves = jax.tree.leaves(batch)
    sizes = {leaf.shape[0] for leaf in leaves if leaf.ndim}
    if len(sizes) != 1:
        raise ShapeError(
            f"{where}: the arrays of a batch do not agree on the number of examples.",
            path="batches",
            expected="arrays whose first axes are equally long",
            actual=", ".join(map(describe, leaves)),
            hint=hint,
        )
    return sizes.pop()


def total(of_batch: Callable[[Any, jax.Array], Any], groups: Groups) -> Any:
    """Σ of `of_batch(batch, its number)` over the batches, as one program for each shape of them."""
    sums = None
    for numbers, stacked in groups:
        if numbers.ndim == 0:
            of_group = of_batch(stacked, numbers)
        else:
            zeros = jax.tree.map(
                lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
                jax.eval_shape(of_batch, jax.tree.map(lambda leaf: leaf[0], stacked), numbers[0]),
            )

            def step(carry: Any, entry: Any) -> tuple[Any, None]:
                batch, number = entry
                return jax.tree.map(jnp.add, carry, of_batch(batch, number)), None

            of_group, _ = jax.lax.scan(step, zeros, (stacked, numbers))
        sums = of_group if sums is None else jax.tree.map(jnp.add, sums, of_group)
    return sums
