"""A leaf of a model as the matrices that it is, [stack, in, out], and back.

Which axes are which is read off its `Spec`. Of an axis order that the letters give, "iiiso" say, those of the
stack come first, then in, then out, each in the order in which they stand.
"""

import math
from typing import Any

from jaxtyping import Shaped

from funcnet.errors import ShapeError, StructureError, describe
from funcnet.spec import Spec

__all__ = ["as_matrices", "from_matrices", "sizes"]


def as_matrices(w: Shaped[Any, "..."], spec: Spec) -> Shaped[Any, "s i o"]:
    """The leaf as a stack of matrices, such that each has the gradient Xᵀ dY; a table is one of its own.

    Raises:
        StructureError: by its spec the leaf is no matrix.
        ShapeError: it does not have the shape of its spec.

    >>> import jax.numpy as jnp
    >>> from funcnet.spec import of
    >>> w = jnp.ones((3, 3, 2, 6))
    >>> as_matrices(w, of(w, "h w c_in c_out", "iiiso", (3, 3, 2, 2, 3))).shape
    (2, 18, 3)
    """
    shape, order = _order("linalg.as_matrices", spec)
    if w.shape != spec.shape:
        raise ShapeError(
            "linalg.as_matrices: w is not the leaf of this spec.",
            path="w",
            expected=f"w: {list(spec.shape)}",
            actual=f"w: {describe(w)}",
        )
    return w.reshape(shape).transpose(order).reshape(sizes(spec))


def from_matrices(m: Shaped[Any, "s i o"], spec: Spec) -> Shaped[Any, "..."]:
    """The leaf whose matrices these are: the inverse of `as_matrices`.

    Raises:
        StructureError: by its spec the leaf is no matrix.
        ShapeError: these are not as large as its own.
    """
    shape, order = _order("linalg.from_matrices", spec)
    if m.shape != sizes(spec):
        raise ShapeError(
            "linalg.from_matrices: m are not the matrices of this spec.",
            path="m",
            expected=f"m: {list(sizes(spec))}, [stack, in, out]",
            actual=f"m: {describe(m)}",
        )
    back = sorted(range(len(order)), key=order.__getitem__)
    return m.reshape([shape[axis] for axis in order]).transpose(back).reshape(spec.shape)


def sizes(spec: Spec) -> tuple[int, int, int]:
    """(stack, in, out), of the leaf as matrices."""
    shape, roles = _roles("linalg.sizes", spec)
    stack, rows, columns = (
        math.prod(n for n, role in zip(shape, roles, strict=True) if role == letter) for letter in "sio"
    )
    return stack, rows, columns


def _order(where: str, spec: Spec) -> tuple[tuple[int, ...], list[int]]:
    """The shape that the letters are for, and its axes with the stack's first, then in, then out."""
    shape, roles = _roles(where, spec)
    return shape, sorted(range(len(roles)), key=lambda axis: "sio".index(roles[axis]))


def _roles(where: str, spec: Spec) -> tuple[tuple[int, ...], str]:
    if isinstance(spec.matrix, tuple):
        return spec.matrix
    if spec.matrix == "table":
        return spec.shape, "s" * (len(spec.shape) - 2) + "io"
    raise StructureError(
        f"{where}: by its spec the leaf is no matrix.",
        path="spec.matrix",
        expected='"table", or a shape and its roles',
        actual=f"None, axes ({', '.join(spec.axes)})",
    )
