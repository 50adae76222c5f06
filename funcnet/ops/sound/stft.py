"""Short-time Fourier transform: y[f, k] = Σ_j w_j x[f·hop − low + left + j] (cos θ, −sin θ), as real pairs.

Dimensions: *n any leading axes (batch, channels), t samples, frames, bins = ⌊n_fft / 2⌋ + 1 frequencies:
x [*n, t], window w [width], y [*n, frames, bins, 2]. θ = 2π k (left + j) / n_fft with
left = ⌊(n_fft − width) / 2⌋: the window stands in the middle of its frame. Bin k is the frequency
k · rate / n_fft in Hz. Real and imaginary part are a pair, so that dtypes and operators stay real.
It is a convolution of n_fft taps with stride hop, linear in x and in w. Source: Allen and Rabiner, "A unified
approach to short-time Fourier analysis and synthesis", Proc. IEEE 65, 1977. Sums are in float32 or wider.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from funcnet import rules
from funcnet.linalg import Operator
from funcnet.ops import _check
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._dtype import common, narrow, wide
from funcnet.ops._shape import align
from funcnet.ops.conv import _toeplitz
from funcnet.ops.sound import _frames
from funcnet.ops.sound._frames import Frames, Padding

__all__ = ["LIBROSA", "TORCH", "WHISPER", "apply", "cost", "matrix", "operator", "reference", "vjp", "window"]

TORCH: Mapping[str, Any] = MappingProxyType({"padding": "center", "padding_mode": "reflect"})
LIBROSA: Mapping[str, Any] = MappingProxyType(
    {"n_fft": 2048, "hop": 512, "padding": "center", "padding_mode": "zeros"}
)
WHISPER: Mapping[str, Any] = MappingProxyType(
    {"n_fft": 400, "hop": 160, "padding": (200, 40), "padding_mode": "reflect"}  # its last frame is dropped
)


def window(name: str, width: int, *, periodic: bool = True) -> Float[Array, " width"]:
    """A window by its name: the weights of `width` samples.

    Args:
        name: "hann", "hamming", "blackman", "bartlett", "povey" (Kaldi's) or "rectangular".
        width: how many samples.
        periodic: one period of a function with the period `width`, as spectra need; False: symmetric, the
            last sample as the first, as `numpy.hanning`.

    Raises:
        ValueRangeError: there is no such window, or width is below 1.
        DTypeError: an option has the wrong type.

    >>> window("hann", 4).tolist()
    [0.0, 0.5, 1.0, 0.5]
    """
    where = "stft.window"
    _check.one_of(where, "name", name, tuple(_frames.WINDOWS))
    width, periodic = _check.positive(where, "width", width), _check.flag(where, "periodic", periodic)
    return jnp.asarray(_frames.named(name, width, periodic))


def reference(
    x: Float[Array, "*n t"],
    window: Float[Array, " width"] | None = None,
    *,
    n_fft: int,
    hop: int | None = None,
    width: int | None = None,
    padding: Padding = "center",
    padding_mode: str = "reflect",
) -> Float[Array, "*n frames bins 2"]:
    """Of each frame the products of its samples, times the window, with cosines and sines."""
    frames = _frames.plan("stft.reference", x.shape[-1], window, n_fft, hop, width, padding, padding_mode)
    window = jnp.asarray(_frames.named("hann", frames.width, True), x.dtype) if window is None else window
    x, window = common(x, window)
    h = x.astype(wide(x.dtype))
    ends = [(0, 0)] * (x.ndim - 1) + [(frames.low, frames.high)]
    h = jnp.pad(h, ends, mode=_toeplitz.PAD_MODES[padding_mode])
    starts = jnp.arange(frames.number, dtype=jnp.int32) * frames.hop + frames.left
    samples = h[..., starts[:, None] + jnp.arange(frames.width, dtype=jnp.int32)[None]]
    ends = (frames.left, frames.n_fft - frames.left - frames.width)
    u = jnp.pad(samples * align(window.astype(h.dtype), h.ndim + 1), [(0, 0)] * h.ndim + [ends])
    return jnp.tensordot(u, jnp.asarray(_frames.basis(frames.n_fft, h.dtype)), 1).astype(x.dtype)


@rules.operation
def apply(
    x: Float[Array, "*n t"],
    window: Float[Array, " width"] | None = None,
    *,
    n_fft: int,
    hop: int | None = None,
    width: int | None = None,
    padding: Padding = "center",
    padding_mode: str = "reflect",
) -> Float[Array, "*n frames bins 2"]:
    """The spectrum of every frame of a signal.

    By an FFT; by a product where there are few samples, or n_fft has no small factors. Differentiated by
    `vjp`, an inverse FFT and the sum of overlapping frames; JAX derives a complex FFT of all n_fft bins. A
    sample that is not a number makes all bins of its frames so.

    Args:
        x: [*n, t], t samples.
        window: [width], with a gradient; None is the periodic window of Hann. `window` makes others by name.
        n_fft: samples of a frame.
        hop: samples from one frame to the next; None is n_fft // 4.
        width: of the window of Hann, if it is shorter than the frame; None is n_fft.
        padding: "center" puts n_fft // 2 samples at both ends, so that frame f is centred at sample f·hop;
            "valid" none; or a pair (before, after).
        padding_mode: what stands there: "reflect" (without repeating the ends), "zeros" or "circular".

    Returns:
        y [*n, frames, bins, 2], real and imaginary part, in the dtype that holds x and window; frames is
        (t + before + after − n_fft) // hop + 1, or 0 where the signal is shorter than a frame.

    Raises:
        ShapeError: x has no axis, window is not a row, or padding is no pair.
        DTypeError: x or window is not floating-point, or an option has the wrong type.
        ValueRangeError: an option is out of range; the window is longer than a frame; or x is too short to be
            reflected so far.

    >>> fn.stft.apply(jnp.ones(16000), n_fft=400, hop=160).shape  # frames, bins, real and imaginary part
    (101, 201, 2)
    """
    where = "stft.apply"
    x, window = _check.floating(where, "x", x), _frames.check_window(where, window)
    _check.rank(where, "x", x, 1, "*n, t")
    frames = _frames.plan(where, x.shape[-1], window, n_fft, hop, width, padding, padding_mode)
    _frames.check_border(where, frames)
    return rules.call(vjp, x, window, **_options(frames))


def vjp(
    x: Float[Array, "*n t"],
    window: Float[Array, " width"] | None = None,
    *,
    n_fft: int,
    hop: int | None = None,
    width: int | None = None,
    padding: Padding = "center",
    padding_mode: str = "reflect",
) -> tuple[Float[Array, "*n frames bins 2"], Partial]:
    """y and its pullback: of every frame du = Σ_k dy_k0 cos θ − dy_k1 sin θ; dx is w · du, overlapped.

    dw = Σ du · x of the frames. Overlapping is the transpose of cutting into frames, border and all.
    """
    frames = _frames.plan("stft.vjp", x.shape[-1], window, n_fft, hop, width, padding, padding_mode)
    x_ = x if window is None else common(x, window)[0]
    sums = wide(x_.dtype)
    w, first = _frames.taps(frames, window, sums)
    samples = _frames.cut(x_.astype(sums), frames, first, w.shape[0])
    y = _frames.spectrum(samples * align(w, samples.ndim), frames.n_fft, first)
    kept = (None, None) if window is None else (x, window)
    return y.astype(x_.dtype), Partial(rules.bind(_pullback, frames=frames), *kept)


def _pullback(
    x: Array | None, window: Array | None, dy: Array, *, frames: Frames
) -> tuple[Array, Array | None]:
    sums = wide(dy.dtype)
    w, first = _frames.taps(frames, window, sums)
    du = _frames.back(dy.astype(sums), frames.n_fft, first, w.shape[0])
    dx = _frames.overlap(du * align(w, du.ndim), frames, first)
    if x is None or window is None:
        return narrow(dx, dy), None
    samples = _frames.cut(x.astype(sums), frames, first, w.shape[0])
    return narrow(dx, x), narrow((du * samples).sum(tuple(range(du.ndim - 1))), window)


def matrix(
    in_shape: tuple[int, ...],
    window: Float[Array, " width"] | None = None,
    *,
    n_fft: int,
    hop: int | None = None,
    width: int | None = None,
    padding: Padding = "center",
    padding_mode: str = "reflect",
) -> Float[Array, "out t"]:
    """The map x → y as a matrix [frames · bins · 2, t], for one x of shape (t,): a block-Toeplitz one."""
    frames, window = _example("stft.matrix", in_shape, window, n_fft, hop, width, padding, padding_mode)
    return _toeplitz.matrix(_kernel(frames, window), _map(frames))


def operator(
    in_shape: tuple[int, ...],
    window: Float[Array, " width"] | None = None,
    *,
    n_fft: int,
    hop: int | None = None,
    width: int | None = None,
    padding: Padding = "center",
    padding_mode: str = "reflect",
) -> Operator:
    """The map of one x of shape (t,) as an operator: that of a convolution, see `funcnet.linalg`.

    >>> A = operator((64,), n_fft=16, hop=4)
    >>> A, bool(A.norm().lower <= A.norm().upper)
    (Operator(float32[306, 64]), True)
    """
    frames, window = _example("stft.operator", in_shape, window, n_fft, hop, width, padding, padding_mode)
    return _toeplitz.operator(_kernel(frames, window), _map(frames))


def _example(where: str, in_shape: Any, window: Any, *options: Any) -> tuple[Frames, Array | None]:
    window = _frames.check_window(where, window)
    (t,) = _frames.example(where, in_shape, "t")
    frames = _frames.plan(where, t, window, *options)
    _frames.check_border(where, frames)
    return frames, window


def _kernel(frames: Frames, window: Array | None) -> Array:
    """The taps of the convolution [n_fft, 1, bins · 2]."""
    w, first = _frames.taps(frames, window, jnp.zeros(()).dtype if window is None else wide(window.dtype))
    rows = _frames.basis(frames.n_fft, w.dtype).reshape(frames.n_fft, 1, -1)
    return jnp.pad(w, (first, frames.n_fft - first - w.shape[0]))[:, None, None] * rows


def _map(frames: Frames) -> _toeplitz.Map:
    return _toeplitz.Map(frames.window, 1, frames.mode)


def cost(
    x: Float[Abstract, "*n t"],
    window: Float[Abstract, " width"] | None = None,
    *,
    n_fft: int,
    hop: int | None = None,
    width: int | None = None,
    padding: Padding = "center",
    padding_mode: str = "reflect",
) -> Cost:
    """2 · n · frames · n_fft · 2 bins flops: those of the product, more than an FFT has."""
    frames = _frames.plan("stft.cost", x.shape[-1], window, n_fft, hop, width, padding, padding_mode)
    flops = 2 * math.prod(x.shape[:-1]) * frames.number * frames.n_fft * 2 * frames.bins
    return Cost(flops, traffic(reference, x, window, **_options(frames)))


def _options(frames: Frames) -> dict[str, Any]:
    """`frames` as the options of this operation."""
    return {
        "n_fft": frames.n_fft,
        "hop": frames.hop,
        "width": frames.width,
        "padding": (frames.low, frames.high),
        "padding_mode": frames.mode,
    }
