"""Sliding windows: stride, dilation and padding of convolutions and pools, as full tuples."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.core

from funcnet.errors import DTypeError, ShapeError, ValueRangeError, describe
from funcnet.ops import _check

__all__ = ["Padding", "Window", "explicit", "out_size", "pads", "per_axis", "plain"]

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
    values = tuple(value) if isinstance(value, Sequence) else (value,) * ndim
    if len(values) != ndim:
        raise ShapeError(
            f"{where}: {name} has {len(values)} entries, but there are {ndim} spatial axes.",
            path=name,
            expected=f"{name}: an int, or {ndim} of them",
            actual=f"{name} = {values}",
        )
    return tuple(_check.positive(where, name, v, least=least) for v in values)


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


def explicit(where: str, padding: Any, ndim: int) -> tuple[tuple[int, int], ...]:
    """`padding`, one (low, high) pair per spatial axis, as ints."""
    expected = f'padding: "same", "valid", "causal", or {ndim} pair{"s" if ndim > 1 else ""} (low, high)'
    if not isinstance(padding, Sequence) or any(not isinstance(p, Sequence) or len(p) != 2 for p in padding):
        raise DTypeError(
            f"{where}: padding is not a name and not a sequence of pairs.",
            path="padding",
            expected=expected,
            actual=f"padding = {padding!r}" if isinstance(padding, int | Sequence) else describe(padding),
            hint=f"for {padding} on both sides of every axis: padding={((padding, padding),) * ndim}."
            if isinstance(padding, int)
            else None,
        )
    if len(padding) != ndim:
        raise ShapeError(
            f"{where}: padding has {len(padding)} pairs, but there are {ndim} spatial axes.",
            path="padding",
            expected=expected,
            actual=f"padding = {padding!r}",
        )
    if any(p.__index__() < 0 for pair in padding for p in pair):
        raise ValueRangeError(
            f"{where}: padding is negative.",
            path="padding",
            expected=expected + ", each ≥ 0",
            actual=f"padding = {padding!r}",
            hint="to crop, slice the input.",
        )
    return tuple((low.__index__(), high.__index__()) for low, high in padding)


def out_size(size: int, kernel: int, stride: int, dilation: int, pair: tuple[int, int]) -> int:
    """The number of window positions; 0 where the window is longer than the padded signal.

    >>> out_size(7, 3, 2, 1, (1, 1))
    4
    """
    return jax.core.max_dim((size + sum(pair) - dilation * (kernel - 1) - 1) // stride + 1, 0)
