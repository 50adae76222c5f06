"""Inverse of `stft` by overlap-add: y = Σ_f w v_f / Σ_f w², v_f the inverse Fourier transform of frame f.

Dimensions: *n any leading axes (batch, channels), frames, bins = ⌊n_fft / 2⌋ + 1 frequencies, t samples:
x [*n, frames, bins, 2] real and imaginary part, window w [width], y [*n, t]. The sums are over the frames
whose window sees the sample. Of a spectrum that `stft` made it is the signal; of any other one, the signal
whose spectrum is the nearest. Source: Griffin and Lim, "Signal estimation from modified short-time Fourier
transform", IEEE ASSP 32, 1984. Sums are in float32 or wider.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float

from funcnet import rules
from funcnet.errors import ShapeError, ValueRangeError, describe
from funcnet.linalg import Operator
from funcnet.ops import _check
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._dtype import common, narrow, wide
from funcnet.ops._shape import align, known
from funcnet.ops.sound import _frames
from funcnet.ops.sound._frames import Frames, Padding

__all__ = ["apply", "cost", "matrix", "operator", "reference", "vjp"]


class Static(NamedTuple):
    """The frames of the signal with its border, how much of that comes before y, and how long y is."""

    frames: Frames
    low: int
    length: int


def reference(
    x: Float[Array, "*n frames bins 2"],
    window: Float[Array, " width"] | None = None,
    *,
    n_fft: int,
    hop: int | None = None,
    width: int | None = None,
    padding: Padding = "center",
    length: int | None = None,
) -> Float[Array, "*n t"]:
    """Every frame's samples, times the window, added up; over the sum of its squares."""
    frames, low, t = _static("istft.reference", x, window, n_fft, hop, width, padding, length)
    window = jnp.asarray(_frames.named("hann", frames.width, True), x.dtype) if window is None else window
    x_, window = common(x, window)
    h = x_.astype(wide(x_.dtype))
    w = jnp.pad(window.astype(h.dtype), (frames.left, frames.n_fft - frames.left - frames.width))
    basis = jnp.asarray(_frames.basis(frames.n_fft, h.dtype))
    v = jnp.tensordot(
        h / align(jnp.asarray(_frames.halves(frames.n_fft), h.dtype), h.ndim), basis, ((-2, -1), (1, 2))
    )
    at = (jnp.arange(v.shape[-2]) * frames.hop)[:, None] + jnp.arange(frames.n_fft)[None]
    added = jnp.zeros((*v.shape[:-2], frames.t), h.dtype).at[..., at].add(v * align(w, v.ndim))
    squares = jnp.zeros(frames.t, h.dtype).at[at].add(jnp.broadcast_to(align(w**2, 2), at.shape))
    return (added[..., low : low + t] / align(squares[low : low + t], added.ndim)).astype(x_.dtype)


@rules.operation
def apply(
    x: Float[Array, "*n frames bins 2"],
    window: Float[Array, " width"] | None = None,
    *,
    n_fft: int,
    hop: int | None = None,
    width: int | None = None,
    padding: Padding = "center",
    length: int | None = None,
) -> Float[Array, "*n t"]:
    """The signal that has these spectra, with the window, hop and padding that `stft` was given.

    Differentiated by `vjp`: frames of the cotangent and their FFT.

    Args:
        x: [*n, frames, bins, 2], real and imaginary part.
        window: [width], with a gradient; None is the periodic window of Hann.
        n_fft: samples of a frame.
        hop: samples from one frame to the next; None is n_fft // 4.
        width: of the window of Hann, if it is shorter than the frame; None is n_fft.
        padding: what `stft` put at both ends, and is left out: "center", "valid" or a pair (before, after).
        length: how many samples y has; None: all up to the padding. Frames may end a few samples earlier than
            the signal that they were cut from.

    Returns:
        y [*n, t], in the dtype that holds x and window. Where a traced window leaves a sample unseen it is 0.

    Raises:
        ShapeError: x is no frames of n_fft // 2 + 1 pairs, window is not a row, or padding is no pair.
        DTypeError: x or window is not floating-point, or an option has the wrong type.
        ValueRangeError: an option is out of range, or the windows leave a sample of y unseen.

    >>> x = jnp.sin(jnp.arange(64.0))
    >>> y = fn.istft.apply(fn.stft.apply(x, n_fft=16), n_fft=16, length=64)
    >>> bool(jnp.allclose(x, y, atol=1e-5))
    True
    """
    where = "istft.apply"
    x, window = _check.floating(where, "x", x), _frames.check_window(where, window)
    static = _static(where, x, window, n_fft, hop, width, padding, length)
    _check_seen(where, static, window)
    return rules.call(vjp, x, window, **_options(static))


def vjp(
    x: Float[Array, "*n frames bins 2"],
    window: Float[Array, " width"] | None = None,
    *,
    n_fft: int,
    hop: int | None = None,
    width: int | None = None,
    padding: Padding = "center",
    length: int | None = None,
) -> tuple[Float[Array, "*n t"], Partial]:
    """y and its pullback: with d = dy / Σ w², dx is the FFT of the frames of w · d, times 2 / n_fft.

    Of the bins that are their own mirror times 1 / n_fft; dw = Σ_f v · d − 2 w · y · d, frame by frame.
    """
    static = _static("istft.vjp", x, window, n_fft, hop, width, padding, length)
    x_ = x if window is None else common(x, window)[0]
    y = _forward(x_.astype(wide(x_.dtype)), window, static)
    kept = (None, None) if window is None else (x, window)
    return y.astype(x_.dtype), Partial(rules.bind(_pullback, static=static), *kept)


def _forward(x: Array, window: Array | None, static: Static) -> Array:
    w, first = _frames.taps(static.frames, window, x.dtype)
    v = _samples(x, static.frames, first, w.shape[0])
    added = _frames.overlap(v * align(w, v.ndim), static.frames, first)[..., _inside(static)]
    return added * align(_shares(w, first, static), added.ndim)


def _pullback(
    x: Array | None, window: Array | None, dy: Array, *, static: Static
) -> tuple[Array, Array | None]:
    frames, sums = static.frames, wide(dy.dtype)
    w, first = _frames.taps(frames, window, sums)
    d = dy.astype(sums) * align(_shares(w, first, static), dy.ndim)
    under = lambda z: _frames.cut(_whole(z, static), frames, first, w.shape[0])
    seen = under(d)
    dx = _frames.spectrum(seen * align(w, seen.ndim), frames.n_fft, first)
    dx = dx / align(jnp.asarray(_frames.halves(frames.n_fft), sums), dx.ndim)
    if x is None or window is None:
        return narrow(dx, dy), None
    v = _samples(x.astype(sums), frames, first, w.shape[0])
    dw = v * seen - 2 * align(w, v.ndim) * under(d * _forward(x.astype(sums), window, static))
    return narrow(dx, x), narrow(dw.sum(tuple(range(dw.ndim - 1))), window)


def _samples(x: Array, frames: Frames, first: int, width: int) -> Array:
    """The inverse Fourier transform of every frame, of the samples that the window sees."""
    halves = align(jnp.asarray(_frames.halves(frames.n_fft), x.dtype), x.ndim)
    return _frames.back(x / halves, frames.n_fft, first, width)


def _shares(w: Array, first: int, static: Static) -> Array:
    """1 / Σ w² of every sample of y, and 0 where no window sees it."""
    rows = jnp.broadcast_to(align(w**2, 2), (static.frames.number, w.shape[0]))
    squares = _frames.overlap(rows, static.frames, first)[_inside(static)]
    seen = squares > _LEAST * (w**2).max()
    return jnp.where(seen, 1 / jnp.where(seen, squares, 1), 0)


_LEAST = 1e-11  # of the largest square: less would be divided by what rounding left


def _inside(static: Static) -> slice:
    """Where y is in the signal with its border."""
    return slice(static.low, static.low + static.length)


def _whole(y: Array, static: Static) -> Array:
    """y in its place in the signal with its border, which is 0."""
    after = static.frames.t - static.low - static.length
    return jnp.pad(y, [(0, 0)] * (y.ndim - 1) + [(static.low, after)])


def matrix(
    in_shape: tuple[int, ...],
    window: Float[Array, " width"] | None = None,
    *,
    n_fft: int,
    hop: int | None = None,
    width: int | None = None,
    padding: Padding = "center",
    length: int | None = None,
) -> Float[Array, "t in"]:
    """The map x → y as a matrix [t, frames · bins · 2], for one x of shape (frames, bins, 2)."""
    return _operator("istft.matrix", in_shape, window, n_fft, hop, width, padding, length).matrix()


def operator(
    in_shape: tuple[int, ...],
    window: Float[Array, " width"] | None = None,
    *,
    n_fft: int,
    hop: int | None = None,
    width: int | None = None,
    padding: Padding = "center",
    length: int | None = None,
) -> Operator:
    """The map of one x of shape (frames, bins, 2) as an operator: see `funcnet.linalg`.

    >>> from funcnet.ops.sound import stft
    >>> there, back = stft.operator((16,), n_fft=8, hop=2), operator((9, 5, 2), n_fft=8, hop=2)
    >>> x = jnp.arange(16.0)
    >>> bool(jnp.allclose(back @ (there @ x), x, atol=1e-5))
    True
    """
    return _operator("istft.operator", in_shape, window, n_fft, hop, width, padding, length)


def _operator(where: str, in_shape: Any, window: Any, *options: Any) -> Operator:
    window = _frames.check_window(where, window)
    shape = _frames.example(where, in_shape, "frames", "bins", "2")
    dtype = jnp.zeros(()).dtype if window is None else wide(window.dtype)
    static = _static(where, jax.ShapeDtypeStruct(shape, dtype), window, *options, path="in_shape")
    _check_seen(where, static, window)
    rows = lambda function: Partial(rules.bind(function, static=static), window)
    sizes = (static.length, math.prod(shape))
    return Operator(rows(_forward_rows), rows(_back_rows), None, None, None, None, None, sizes, dtype.name)


def _forward_rows(window: Array | None, x: Array, *, static: Static) -> Array:
    return _forward(x.reshape(x.shape[0], static.frames.number, static.frames.bins, 2), window, static)


def _back_rows(window: Array | None, y: Array, *, static: Static) -> Array:
    w, first = _frames.taps(static.frames, window, y.dtype)
    d = _whole(y * align(_shares(w, first, static), y.ndim), static)
    seen = _frames.cut(d, static.frames, first, w.shape[0])
    x = _frames.spectrum(seen * align(w, seen.ndim), static.frames.n_fft, first)
    return (x / align(jnp.asarray(_frames.halves(static.frames.n_fft), x.dtype), x.ndim)).reshape(
        x.shape[0], -1
    )


def cost(
    x: Float[Abstract, "*n frames bins 2"],
    window: Float[Abstract, " width"] | None = None,
    *,
    n_fft: int,
    hop: int | None = None,
    width: int | None = None,
    padding: Padding = "center",
    length: int | None = None,
) -> Cost:
    """2 · n · frames · n_fft · 2 bins flops: those of the product, more than an FFT has."""
    static = _static("istft.cost", x, window, n_fft, hop, width, padding, length)
    return Cost(
        2 * math.prod(x.shape) * static.frames.n_fft, traffic(reference, x, window, **_options(static))
    )


# ---- checks -----------------------------------------------------------------------------------------------


def _static(
    where: str,
    x: Any,
    window: Any,
    n_fft: int,
    hop: int | None,
    width: int | None,
    padding: Padding,
    length: int | None,
    *,
    path: str = "x",
) -> Static:
    n_fft = _check.positive(where, "n_fft", n_fft)
    bins = n_fft // 2 + 1
    if len(x.shape) < 3 or tuple(x.shape[-2:]) != (bins, 2):
        raise ShapeError(
            f"{where}: {path} is no frames of {n_fft} samples.",
            path=path,
            expected=f"{path}: [*n, frames, {bins}, 2]     (n_fft = {n_fft})",
            actual=f"{path}: {describe(x)}",
        )
    frames = _frames.plan(where, 0, window, n_fft, hop, width, padding, "zeros")
    number, low = x.shape[-3], frames.low
    t = (number - 1) * frames.hop + n_fft
    if known(number) and number == 0:
        t = 0
    rest = t - low - frames.high
    if length is None:
        kept = max(rest, 0) if known(rest) else rest
    else:
        kept = _check.positive(where, "length", length, least=0) if known(length) else length
    low = min(low, t) if known(t) else low
    if known(t, kept) and kept > t - low:
        raise ValueRangeError(
            f"{where}: {number} frames end after {t - low} samples.",
            path="length",
            expected=f"length ≤ {t - low}     (n_fft = {n_fft}, hop = {frames.hop}, padding of {low} before)",
            actual=f"length = {kept}",
        )
    return Static(frames._replace(t=t, low=0, high=0), low, kept)


def _check_seen(where: str, static: Static, window: Array | None) -> None:
    """Every sample of y is seen by a window, if that can be looked at."""
    frames, low, length = static
    if not known(frames.t, length) or (window is not None and not _check.concrete(window)):
        return
    w = np.asarray(_frames.named("hann", frames.width, True) if window is None else window, np.float64) ** 2
    squares = np.zeros(frames.t)
    for f in range(frames.number):
        squares[f * frames.hop + frames.left :][: len(w)] += w
    unseen = np.flatnonzero(~(squares[low : low + length] > _LEAST * w.max()))
    if unseen.size:
        raise ValueRangeError(
            f"{where}: no window sees sample {unseen[0]} of {length}.",
            path="hop",
            expected="windows that overlap everywhere in y",
            actual=f"hop = {frames.hop}, a window of {frames.width} samples; {unseen.size} unseen, the last "
            f"of them {unseen[-1]}",
        )


def _options(static: Static) -> dict[str, Any]:
    """`static` as the options of this operation."""
    frames, low, length = static
    how: dict[str, Any] = {"n_fft": frames.n_fft, "hop": frames.hop, "width": frames.width}
    return how | {"padding": (low, 0), "length": length}
