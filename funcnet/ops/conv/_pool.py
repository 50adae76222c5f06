"""What the two pools share: the windows along one axis, and the checks of kernel, stride and padding.

A pool over a box is one pool after another along each axis: the largest of the largest, the mean of means.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from funcnet.errors import ValueRangeError
from funcnet.ops import _check
from funcnet.ops._shape import known
from funcnet.ops.conv._window import Padding, kernel_sizes, out_size, pads, per_axis

__all__ = ["Axis", "axes", "edges", "slide", "windows"]


class Axis(NamedTuple):
    """The windows along one spatial axis of x: window o sees `kernel` positions, from o·stride − low on."""

    at: int  # counted from the end: the channel axis is -1
    size: int
    kernel: int
    stride: int
    low: int
    high: int

    @property
    def out(self) -> int:
        """The number of windows."""
        return out_size(self.size, self.kernel, self.stride, 1, (self.low, self.high))

    @property
    def begins(self) -> Any:
        """The position at which each window begins: known numbers, unless the size is a symbol."""
        return (np if known(self.out) else jnp).arange(self.out, dtype=np.int32) * self.stride - self.low

    def column(self, values: Any, ndim: int) -> Any:
        """A vector along this axis of x, which has `ndim`."""
        return values.reshape(*[1] * (ndim + self.at), -1, *[1] * (-1 - self.at))


def axes(
    where: str,
    x: jax.Array | jax.ShapeDtypeStruct,
    kernel: Sequence[int],
    stride: int | Sequence[int] | None,
    padding: Padding,
) -> tuple[Axis, ...]:
    """The spatial axes of x [*n, *size, c], one per entry of `kernel`, in order."""
    kernel = kernel_sizes(where, kernel)
    d = len(kernel)
    strides = kernel if stride is None else per_axis(where, "stride", stride, d)
    _check.rank(where, "x", x, d + 1, "*n, " + ", ".join("dhw"[-d:]) + ", c")
    sizes = x.shape[-d - 1 : -1]
    pairs = pads(where, padding, sizes, kernel, strides, (1,) * d)
    rows = zip(range(-d - 1, -1), sizes, kernel, strides, pairs, strict=True)
    found = tuple(Axis(at, size, k, step, *pair) for at, size, k, step, pair in rows)
    for i, axis in enumerate(found):
        if not known(axis.size):
            continue
        last = (axis.out - 1) * axis.stride - axis.low  # where the last window begins
        if axis.out and (axis.low >= axis.kernel or last >= axis.size):
            raise ValueRangeError(
                f"{where}: along spatial axis {i}, a window would see nothing but padding.",
                path="padding",
                expected="at least one element of x in every window",
                actual=f"{axis.size} elements, kernel {axis.kernel}, stride {axis.stride}, "
                f"padding {(axis.low, axis.high)}",
            )
    return found


def edges(x: jax.Array, axis: Axis, low: int, high: int, fill: float, between: int = 0) -> jax.Array:
    """x with `low` and `high` elements more (negative: fewer) at its ends, `between` more between any two."""
    rows = [(0, 0, 0)] * x.ndim
    rows[axis.at] = (low, high, between)
    return lax.pad(x, np.array(fill, x.dtype), rows)


def slide(
    x: jax.Array, axis: Axis, combine: Callable[[jax.Array, jax.Array], jax.Array], unit: float
) -> jax.Array:
    """`combine` the elements of each window along `axis`; beyond the border stands `unit`."""
    if x.size == 0 or axis.out == 0:
        return jnp.zeros([axis.out if i == axis.at % x.ndim else n for i, n in enumerate(x.shape)], x.dtype)
    kernel, stride, pairs = [1] * x.ndim, [1] * x.ndim, [(0, 0)] * x.ndim
    kernel[axis.at], stride[axis.at], pairs[axis.at] = axis.kernel, axis.stride, (axis.low, axis.high)
    return lax.reduce_window(x, np.array(unit, x.dtype), combine, kernel, stride, pairs)


def windows(x: jax.Array, axes: tuple[Axis, ...], fill: float) -> jax.Array:
    """Every window of x [*n, *size, c] in C order, for the definitions: [*n, *out, c, Π kernel]."""
    lead = [(0, 0)] * (x.ndim - len(axes) - 1)
    x = jnp.pad(x, [*lead, *((a.low, a.high) for a in axes), (0, 0)], constant_values=fill)
    seen = []
    for tap in itertools.product(*(range(axis.kernel) for axis in axes)):
        steps = [slice(k, k + a.out * a.stride, a.stride) for k, a in zip(tap, axes, strict=True)]
        seen.append(x[(..., *steps, slice(None))])
    return jnp.stack(seen, -1)
