"""The windows of the adaptive pools: m of them, as equal as they can be, cover an axis."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnet.errors import ShapeError, describe
from funcnet.ops._shape import count, known
from funcnet.ops.grid import _axes
from funcnet.ops.grid._axes import Axis, Taps

__all__ = ["axes"]


def axes(where: str, x: jax.Array | jax.ShapeDtypeStruct, size: Sequence[int]) -> tuple[Axis, ...]:
    """The spatial axes of x [*n, *in, c], one per entry of `size`, with the means of their windows."""
    outs = _axes.entries(where, "size", size)
    sizes = _axes.spatial(where, x, len(outs))
    _axes.elements(where, x, sizes)
    for i, (n, m) in enumerate(zip(sizes, outs, strict=True)):
        if not known(n) and m != 1:
            raise ShapeError(
                f"{where}: how many elements {m} windows have depends on a size that is a symbol.",
                path="x",
                expected=f"a known size of spatial axis {i}, or size = 1 along it",
                actual=f"x: {describe(x)}",
            )
    return tuple(
        Axis(i - len(sizes) - 1, n, m, _row) for i, (n, m) in enumerate(zip(sizes, outs, strict=True))
    )


def _row(size: Any, out: int) -> Taps:
    """The elements of each window, the mean's weights."""
    if not known(size):  # the whole axis
        real = jnp.zeros(()).dtype
        index = jnp.arange(size, dtype=jnp.int32)[None]
        return Taps(index, jnp.ones(index.shape, real) / count(size, real), True)
    if size % out == 0:
        index = np.arange(size, dtype=np.int32).reshape(out, -1)
        return Taps(index, np.full(index.shape, out / size), True)
    first = np.arange(out) * size // out
    end = -(-(np.arange(out) + 1) * size // out)
    index = first[:, None] + np.arange(int((end - first).max()))
    inside = index < end[:, None]
    return Taps(np.minimum(index, size - 1), inside / (end - first)[:, None])
