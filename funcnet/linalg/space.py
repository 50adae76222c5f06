"""Params as a vector: their leaves one after the other, each in C order."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from funcnet.errors import DTypeError, ShapeError, StructureError, describe

__all__ = ["Space", "of"]


class Space(NamedTuple):
    """The shape of a pytree of floating-point arrays, hashable.

    Attributes:
        tree: its structure.
        shapes: of its leaves.
        dtypes: their names.
    """

    tree: Any
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]

    @property
    def size(self) -> int:
        """How many elements there are."""
        return sum(map(math.prod, self.shapes))

    @property
    def dtype(self) -> str:
        """That of a vector: the widest of the leaves', at least float32."""
        return max(("float32", *self.dtypes), key=lambda name: jnp.dtype(name).itemsize)

    def is_leaf(self, x: Any) -> bool:
        """Whether params are a single array, and x is as large."""
        return self.tree.num_nodes == 1 and (x.shape,) == self.shapes

    def vector(self, tree: Any) -> Float[Array, " p"]:
        """The elements of such a pytree."""
        return _vector(tree, self.dtype)

    def split(self, vector: Float[Array, " p"]) -> Any:
        """The pytree with these elements, its leaves in their own dtypes."""
        return _split(self, vector)

    def check(self, where: str, path: str, tree: Any) -> None:
        """Refuse what is no pytree of this structure.

        Raises:
            StructureError: it has other parts.
            ShapeError: a leaf has another shape.
            DTypeError: a leaf is not real.
        """
        if (own := jax.tree.structure(tree)) != self.tree:
            raise StructureError(
                f"{where}: {path} is not like params.",
                path=path,
                expected=f"{path}: {_outline(self.tree)}; or a vector [{self.size}]",
                actual=f"{path}: {_outline(own) if own.num_nodes > 1 else describe(tree)}",
            )
        for (at, leaf), shape in zip(jax.tree.leaves_with_path(tree), self.shapes, strict=True):
            name = f"{path}{jax.tree_util.keystr(at)}"
            if getattr(leaf, "shape", None) != shape:
                raise ShapeError(
                    f"{where}: {name} is not like the leaf of params.",
                    path=name,
                    expected=f"{name}: float{list(shape)}",
                    actual=f"{name}: {describe(leaf)}",
                )
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                raise DTypeError(
                    f"{where}: {name} is not floating-point.",
                    path=name,
                    expected=f"{name}: float{list(shape)}",
                    actual=f"{name}: {describe(leaf)}",
                )


def of(where: str, params: Any) -> Space:
    """The space of params.

    Raises:
        StructureError: there is no leaf.
        DTypeError: a leaf is no floating-point array.
    """
    leaves = jax.tree.leaves_with_path(params)
    if not leaves:
        raise StructureError(
            f"{where}: params have no leaf.",
            path="params",
            expected="a pytree of floating-point arrays",
            actual=describe(params),
        )
    for at, leaf in leaves:
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            name = f"params{jax.tree_util.keystr(at)}"
            raise DTypeError(
                f"{where}: {name} is no floating-point array.",
                path=name,
                expected="a pytree of floating-point arrays",
                actual=describe(leaf),
            )
    arrays = [leaf for _, leaf in leaves]
    dtypes = tuple(jax.dtypes.canonicalize_dtype(leaf.dtype).name for leaf in arrays)  # NumPy's, without x64
    return Space(jax.tree.structure(params), tuple(leaf.shape for leaf in arrays), dtypes)


@functools.partial(jax.jit, static_argnames="dtype")  # outside of one, as many programs as leaves
def _vector(tree: Any, dtype: str) -> Array:
    return jnp.concatenate([jnp.ravel(leaf).astype(dtype) for leaf in jax.tree.leaves(tree)])


@functools.partial(jax.jit, static_argnames="space")
def _split(space: Space, vector: Array) -> Any:
    leaves, start = [], 0
    for shape, dtype in zip(space.shapes, space.dtypes, strict=True):
        size = math.prod(shape)
        leaves.append(vector[start : start + size].reshape(shape).astype(dtype))
        start += size
    return jax.tree.unflatten(space.tree, leaves)


def _outline(tree: Any) -> str:
    """The paths of the leaves of a structure."""
    numbered = jax.tree.unflatten(tree, range(tree.num_leaves))
    names = [
        jax.tree_util.keystr(at, simple=True, separator=".") for at, _ in jax.tree.leaves_with_path(numbered)
    ]
    shown = names if len(names) <= 8 else [*names[:8], f"{len(names) - 8} more"]
    return ", ".join(name or "an array" for name in shown)
