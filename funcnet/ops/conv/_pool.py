"""What the pools share: the windows along one axis, and the checks of kernel, stride, padding and dilation.

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
from funcnet.ops._shape import count, known
from funcnet.ops.conv._window import Padding, kernel_sizes, out_size, pads, per_axis

__all__ = ["Axis", "axes", "edges", "number", "slide", "windows"]


class Axis(NamedTuple):
    """The windows along one spatial axis of x: window o sees `kernel` positions, from o·stride − low on.

    They are `dilation` apart.
    """

    at: int  # counted from the end: the channel axis is -1
    size: int
    kernel: int
    stride: int
    low: int
    high: int
    dilation: int = 1

    @property
    def out(self) -> int:
        """The number of windows."""
        return out_size(self.size, self.kernel, self.stride, self.dilation, (self.low, self.high))

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
    dilation: int | Sequence[int],
    *,
    empty: bool = False,
) -> tuple[Axis, ...]:
    """The spatial axes of x [*n, *size, c], one per entry of `kernel`, in order.

    `empty`: whether a window may see nothing but padding.
    """
    kernel = kernel_sizes(where, kernel)
    d = len(kernel)
    strides = kernel if stride is None else per_axis(where, "stride", stride, d)
    _check.rank(where, "x", x, d + 1, "*n, " + ", ".join("dhw"[-d:]) + ", c")
    sizes = x.shape[-d - 1 : -1]
    dilations = per_axis(where, "dilation", dilation, d)
    pairs = pads(where, padding, sizes, kernel, strides, dilations)
    lows, highs = zip(*pairs, strict=True)
    rows = zip(range(-d - 1, -1), sizes, kernel, strides, lows, highs, dilations, strict=True)
    found = tuple(itertools.starmap(Axis, rows))
    for i, axis in enumerate(found):
        if empty or not known(axis.size):
            continue
        if axis.out and not _seen(axis).all():
            raise ValueRangeError(
                f"{where}: along spatial axis {i}, a window would see nothing but padding.",
                path="padding",
                expected="at least one element of x in every window",
                actual=f"{axis.size} elements, kernel {axis.kernel}, stride {axis.stride}, "
                f"padding {(axis.low, axis.high)}"
                + (f", dilation {axis.dilation}" if axis.dilation > 1 else ""),
            )
    return found


def _seen(axis: Axis) -> np.ndarray:
    """Whether each window sees an element of x: they lie before it, beyond it, or leap over it."""
    first = -(-np.maximum(-axis.begins, 0) // axis.dilation)  # the first tap that is not before x
    return (first < axis.kernel) & (axis.begins + first * axis.dilation < axis.size)


def number(axis: Axis) -> Any:
    """How many true elements each window has: an array, of known numbers where the size is known."""
    n, e, begins = count(axis.size, jnp.dtype("int32")), axis.dilation, axis.begins
    first = -(-(-begins).clip(min=0) // e)
    end = ((n - 1 - begins) // e + 1).clip(max=axis.kernel)
    return end - first


def edges(x: jax.Array, axis: Axis, low: int, high: int, fill: float, between: int = 0) -> jax.Array:
    """x with `low` and `high` elements more (negative: fewer) at its ends, `between` more between any two."""
    if (low, high, between) == (0, 0, 0):
        return x
    rows = [(0, 0, 0)] * x.ndim
    rows[axis.at] = (low, high, between)
    return lax.pad(x, np.array(fill, x.dtype), rows)


def slide(
    x: jax.Array, axis: Axis, combine: Callable[[jax.Array, jax.Array], jax.Array], unit: float
) -> jax.Array:
    """`combine` the elements of each window along `axis`; beyond the border stands `unit`."""
    if x.size == 0 or axis.out == 0:
        return jnp.zeros([axis.out if i == axis.at % x.ndim else n for i, n in enumerate(x.shape)], x.dtype)
    along = lambda value, other: [value if i == axis.at % x.ndim else other for i in range(x.ndim)]
    return lax.reduce_window(
        x,
        np.array(unit, x.dtype),
        combine,
        along(axis.kernel, 1),
        along(axis.stride, 1),
        along((axis.low, axis.high), (0, 0)),
        window_dilation=along(axis.dilation, 1),
    )


def windows(x: jax.Array, axes: tuple[Axis, ...], fill: float) -> jax.Array:
    """Every window of x [*n, *size, c] in C order, for the definitions: [*n, *out, c, Π kernel]."""
    lead = [(0, 0)] * (x.ndim - len(axes) - 1)
    x = jnp.pad(x, [*lead, *((a.low, a.high) for a in axes), (0, 0)], constant_values=fill)
    seen = []
    for tap in itertools.product(*(range(axis.kernel) for axis in axes)):
        begins = [k * a.dilation for k, a in zip(tap, axes, strict=True)]
        steps = [slice(k, k + a.out * a.stride, a.stride) for k, a in zip(begins, axes, strict=True)]
        seen.append(x[(..., *steps, slice(None))])
    return jnp.stack(seen, -1)
