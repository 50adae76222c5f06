"""Sliding windows: stride, dilation and padding of convolutions and pools, as full tuples."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.core
import numpy as np

from funcnet.errors import DTypeError, ShapeError, ValueRangeError, describe
from funcnet.ops import _check

__all__ = ["Padding", "Window", "explicit", "kernel_sizes", "out_size", "pads", "per_axis", "plain"]

Padding = str | Sequence[tuple[int, int]]


class Window(NamedTuple):
    """Everything static about a sliding window, in full: one entry per spatial axis."""

    sizes: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]

    @property
    def out(self) -> tuple[int, ...]:
        """The sizes of the output."""
        return tuple(itertools.starmap(out_size, zip(*self, strict=True)))

    @property
    def taps(self) -> list[tuple[tuple[int, ...], tuple[slice, ...]]]:
        """Every tap, in C order, with the positions of the padded input that it meets, one per output."""
        return [
            (
                tap,
                tuple(
                    slice(k * e, k * e + o * s, s)
                    for k, e, o, s in zip(tap, self.dilation, self.out, self.stride, strict=True)
                ),
            )
            for tap in itertools.product(*map(range, self.kernel))
        ]

    def along(self, axes: slice) -> "Window":
        """The window along some of the axes."""
        return Window(
            self.sizes[axes], self.kernel[axes], self.stride[axes], self.dilation[axes], self.padding[axes]
        )


def plain(sizes: tuple[int, ...], kernel: tuple[int, ...]) -> Window:
    """A window of stride 1 without dilation or padding."""
    ones = (1,) * len(sizes)
    return Window(sizes, kernel, ones, ones, ((0, 0),) * len(sizes))


def per_axis(
    where: str, name: str, value: int | Sequence[int], ndim: int, *, least: int = 1
) -> tuple[int, ...]:
    """`value`, one int of at least `least` or one per spatial axis, as a tuple of `ndim`.

    >>> per_axis("conv.apply", "stride", 2, 3)
    (2, 2, 2)
    """
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        return (_check.positive(where, name, value, least=least),) * ndim
    values = _check.integers(where, name, value, least=least)
    if len(values) != ndim:
        raise ShapeError(
            f"{where}: {name} has {len(values)} entries, but there are {ndim} spatial axes.",
            path=name,
            expected=f"{name}: an int, or {ndim} of them",
            actual=f"{name} = {values}",
        )
    return values


def kernel_sizes(where: str, kernel: Any) -> tuple[int, ...]:
    """The sizes of a kernel, 1 to 3 of them: how many says how many spatial axes there are."""
    if isinstance(size := _check.scalar(kernel), int) and not isinstance(size, bool) and abs(size) < 2**31:
        raise DTypeError(
            f"{where}: kernel is not a tuple, so the number of spatial axes is open.",
            path="kernel",
            expected="kernel: one size per spatial axis",
            actual=f"kernel: {describe(kernel)}",
            hint=f"({size},) is for sequences, ({size}, {size}) for images.",
        )
    sizes = _check.integers(where, "kernel", kernel, like="one size per spatial axis")
    if not 1 <= len(sizes) <= 3:
        raise ShapeError(
            f"{where}: kernel has {len(sizes)} axes.",
            path="kernel",
            expected="1, 2 or 3 sizes",
            actual=f"kernel = {sizes}",
        )
    return sizes


def pads(
    where: str,
    padding: Padding,
    sizes: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
) -> tuple[tuple[int, int], ...]:
    """`padding` as one (low, high) pair per spatial axis.

    ``"same"`` is XLA's: ⌈size / stride⌉ outputs, the odd element of padding at the end; ``"valid"`` is none;
    ``"causal"`` puts dilation · (kernel − 1) at the start, so that no output sees what comes after it.

    >>> pads("conv.apply", "same", (7,), (4,), (2,), (1,))
    ((1, 2),)
    """
    if isinstance(padding, str):
        _check.one_of(where, "padding", padding, ("same", "valid", "causal"))
        pairs = []
        for n, k, s, d in zip(sizes, kernel, stride, dilation, strict=True):
            reach = d * (k - 1)
            total = jax.core.max_dim((-(-n // s) - 1) * s + reach + 1 - n, 0)
            low = {"same": total // 2, "valid": 0, "causal": reach}[padding]
            pairs.append((low, total - low if padding == "same" else 0))
        return tuple(pairs)
    return explicit(where, padding, len(sizes))


def explicit(
    where: str, padding: Any, ndim: int, *, names: str = '"same", "valid", "causal", or '
) -> tuple[tuple[int, int], ...]:
    """`padding`, one (low, high) pair per spatial axis, as ints; `names` are what else it might be."""
    expected = f"padding: {names}{ndim} pair{'s' if ndim > 1 else ''} (low, high)"
    pair = lambda p: isinstance(p, Sequence) and not isinstance(p, str | bytes) and len(p) == 2
    if not isinstance(padding, Sequence) or isinstance(padding, bytes) or not all(map(pair, padding)):
        raise DTypeError(
            f"{where}: padding is {'not a name and ' if names else ''}not a sequence of pairs.",
            path="padding",
            expected=expected,
            actual=f"padding = {padding!r:.80}"
            if isinstance(padding, int | Sequence)
            else f"padding: {describe(padding)}",
            hint=_as_pairs(padding, ndim),
        )
    if len(padding) != ndim:
        raise ShapeError(
            f"{where}: padding has {len(padding)} pairs, but there are {ndim} spatial axes.",
            path="padding",
            expected=expected,
            actual=f"padding = {padding!r}",
        )
    found = tuple(_check.integers(where, "padding", ends, least=-(2**31)) for ends in padding)
    if any(end < 0 for ends in found for end in ends):
        raise ValueRangeError(
            f"{where}: padding is negative.",
            path="padding",
            expected=expected + ", each ≥ 0",
            actual=f"padding = {padding!r}",
            hint="to crop, slice the input.",
        )
    return tuple((low, high) for low, high in found)


def _as_pairs(padding: Any, ndim: int) -> str | None:
    """What to write for an int, or for an array of pairs."""
    if isinstance(padding, int) and not isinstance(padding, bool) and 0 <= padding < 2**31:
        return f"for {padding} on both sides of every axis: padding={((padding, padding),) * ndim}."
    if isinstance(padding, np.ndarray) and padding.shape == (ndim, 2) and padding.dtype.kind in "iu":
        return f"as tuples: padding={tuple(map(tuple, padding.tolist()))}."
    return None


def out_size(size: int, kernel: int, stride: int, dilation: int, pair: tuple[int, int]) -> int:
    """The number of window positions; 0 where the window is longer than the padded signal.

    >>> out_size(7, 3, 2, 1, (1, 1))
    4
    """
    return jax.core.max_dim((size + sum(pair) - dilation * (kernel - 1) - 1) // stride + 1, 0)
