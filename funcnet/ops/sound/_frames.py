"""Frames of a signal and their spectra: what `stft` and `istft` share, and each one's adjoint.

A frame f holds the samples f·hop − low + j, j = 0 ... n_fft − 1, of x continued beyond its border; the window
stands in its middle. A spectrum is real pairs [bins, 2], bins = ⌊n_fft / 2⌋ + 1: Σ_j u_j cos θ_kj and
−Σ_j u_j sin θ_kj with θ_kj = 2π k j / n_fft.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from funcnet import rules
from funcnet.errors import DTypeError, ShapeError, ValueRangeError, describe
from funcnet.ops import _check
from funcnet.ops._shape import align, known
from funcnet.ops.conv._toeplitz import PAD_MODES
from funcnet.ops.conv._window import Window, out_size

__all__ = [
    "WINDOWS",
    "Frames",
    "Padding",
    "back",
    "basis",
    "check_border",
    "check_window",
    "cut",
    "example",
    "halves",
    "named",
    "overlap",
    "plan",
    "spectrum",
    "taps",
]

Array = jax.Array
Padding = str | Sequence[int]


class Frames(NamedTuple):
    """Everything static about the frames of a signal of t samples."""

    t: int
    n_fft: int
    hop: int
    width: int  # of the window
    low: int
    high: int
    mode: str

    @property
    def number(self) -> int:
        """How many frames there are."""
        return out_size(self.t, self.n_fft, self.hop, 1, (self.low, self.high))

    @property
    def bins(self) -> int:
        """How many frequencies a frame has."""
        return self.n_fft // 2 + 1

    @property
    def left(self) -> int:
        """Where in a frame the window begins."""
        return (self.n_fft - self.width) // 2

    @property
    def window(self) -> Window:
        """The same as a window of a convolution along one axis."""
        return Window((self.t,), (self.n_fft,), (self.hop,), (1,), ((self.low, self.high),))


def plan(
    where: str,
    t: int,
    window: Any,
    n_fft: int,
    hop: int | None,
    width: int | None,
    padding: Padding,
    padding_mode: str,
) -> Frames:
    """The frames of a signal of t samples; what the options of `stft` mean."""
    n_fft = _check.positive(where, "n_fft", n_fft)
    hop = max(n_fft // 4, 1) if hop is None else _check.positive(where, "hop", hop)
    if window is not None:
        own = window.shape[0]
    else:
        own = n_fft if width is None else _check.positive(where, "width", width)
    if width is not None and _check.positive(where, "width", width) != own:
        raise ValueRangeError(
            f"{where}: width is {width}, but window has {own} samples.",
            path="width",
            expected="width: None, or that of window",
            actual=f"width = {width}, window: {describe(window)}",
        )
    if own > n_fft:
        path = "width" if window is None else "window"
        raise ValueRangeError(
            f"{where}: a window of {own} samples is longer than a frame.",
            path=path,
            expected=f"{path}: at most n_fft = {n_fft} samples",
            actual=f"{own} samples",
        )
    low, high = border(where, padding, n_fft)
    _check.one_of(where, "padding_mode", padding_mode, tuple(PAD_MODES))
    return Frames(t, n_fft, hop, own, low, high, padding_mode)


def example(where: str, in_shape: Any, *axes: str) -> tuple[int, ...]:
    """`in_shape`, the sizes of one example without its batch: one for each of `axes`."""
    like = f"({', '.join(axes)}{',' * (len(axes) == 1)})"
    shape = _check.integers(where, "in_shape", in_shape, least=0, like=like)
    if len(shape) != len(axes):
        raise ShapeError(
            f"{where}: in_shape has {len(shape)} entries, but one x has {len(axes)}.",
            path="in_shape",
            expected=f"{like}, without a batch",
            actual=f"in_shape = {shape}",
        )
    return shape


def border(where: str, padding: Padding, n_fft: int) -> tuple[int, int]:
    """`padding` as the number of samples before and after the signal."""
    if isinstance(padding, str):
        _check.one_of(where, "padding", padding, ("center", "valid"))
        return (n_fft // 2, n_fft // 2) if padding == "center" else (0, 0)
    like = '"center", "valid", or a pair (before, after)'
    ends = _check.integers(where, "padding", padding, least=0, like=like)
    if len(ends) != 2:
        raise ShapeError(
            f"{where}: padding has {len(ends)} entries.",
            path="padding",
            expected=f"padding: {like}",
            actual=f"padding = {ends}",
        )
    return ends[0], ends[1]


def check_border(where: str, frames: Frames) -> None:
    """The signal is long enough to be continued so far."""
    t, pair = frames.t, (frames.low, frames.high)
    if not known(t) or frames.mode == "zeros":
        return
    widest = max(t - 1, 0) if frames.mode == "reflect" else max(pair) if t else 0
    if max(pair) > widest:
        raise ValueRangeError(
            f"{where}: a {frames.mode} border of {max(pair)} samples is too wide for a signal of {t}.",
            path="padding",
            expected=f"at most {widest}     (x has {t} samples)",
            actual=f"padding of {pair}",
            hint='padding_mode="zeros" may be as wide as it likes.',
        )


def check_window(where: str, window: Any) -> Array | None:
    """`window`, None or a float array [width] of at least one sample."""
    if window is None:
        return None
    if isinstance(window, str):
        raise DTypeError(
            f"{where}: window is a name, but an array is needed.",
            path="window",
            expected="window: float[width], or None for Hann's",
            actual=f"window: {describe(window)}",
            hint=f"fn.stft.window('{window}', width) makes one." if window in WINDOWS else None,
        )
    window = _check.floating(where, "window", window)
    if window.ndim != 1 or window.shape[0] == 0:
        raise ShapeError(
            f"{where}: window is not a row of samples.",
            path="window",
            expected="window: float[width], width ≥ 1",
            actual=f"window: {describe(window)}",
        )
    return window


# ---- windows ----------------------------------------------------------------------------------------------


def _cosines(*weights: float) -> Any:
    return lambda a: sum(w * np.cos(i * a) for i, w in enumerate(weights))


WINDOWS = {
    "hann": _cosines(0.5, -0.5),
    "hamming": _cosines(0.54, -0.46),
    "blackman": _cosines(0.42, -0.5, 0.08),
    "bartlett": lambda a: 1 - np.abs(a / np.pi - 1),
    "povey": lambda a: np.maximum(0.5 - 0.5 * np.cos(a), 0) ** 0.85,
    "rectangular": np.ones_like,
}  # each as a function of the angle, from 0 to 2π


def named(name: str, width: int, periodic: bool) -> np.ndarray:
    """A window by its name."""
    if width == 1:
        return np.ones(1)
    return WINDOWS[name](2 * np.pi * np.arange(width) / (width if periodic else width - 1))


def taps(frames: Frames, window: Array | None, dtype: Any) -> tuple[Array, int]:
    """The weights of a frame's samples, and where the first of them stands.

    The first of Hann's is 0: a sample that has no weight is not seen, be it NaN.
    """
    if window is not None:
        return window.astype(dtype), frames.left
    skip = int(frames.width > 1)
    return jnp.asarray(named("hann", frames.width, True)[skip:], dtype), frames.left + skip


# ---- frames -----------------------------------------------------------------------------------------------


def cut(x: Array, frames: Frames, first: int, width: int) -> Array:
    """x [*n, t] -> [*n, frames, width], of each frame the samples from `first` on."""
    if known(frames.number) and frames.number == 0:
        return jnp.zeros((*x.shape[:-1], 0, width), x.dtype)
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(frames.low, frames.high)], mode=PAD_MODES[frames.mode])
    starts = jnp.arange(frames.number, dtype=jnp.int32) * frames.hop + first
    return jax.vmap(lambda start: lax.dynamic_slice_in_dim(x, start, width, -1), out_axes=-2)(starts)


def overlap(u: Array, frames: Frames, first: int) -> Array:
    """The transpose of `cut`: u [*n, frames, width] -> [*n, t], the sum of what overlaps."""
    if known(frames.number) and frames.number == 0:
        return jnp.zeros((*u.shape[:-2], frames.t), u.dtype)
    at = rules.same_variance(jnp.zeros((*u.shape[:-2], frames.t), u.dtype), u)[0]
    return jax.linear_transpose(lambda x: cut(x, frames, first, u.shape[-1]), at)(u)[0]


# ---- spectra ----------------------------------------------------------------------------------------------


def basis(n_fft: int, dtype: Any) -> np.ndarray:
    """[n_fft, bins, 2]: cos θ and −sin θ. What is 0 or 1 is so exactly."""
    turns = np.outer(np.arange(n_fft), np.arange(n_fft // 2 + 1)) % n_fft
    angle = 2 * np.pi * np.arange(n_fft) / n_fft
    circle = np.stack([np.cos(angle), -np.sin(angle)], -1)
    circle[np.abs(circle) < 1e-15] = 0
    return circle[turns].astype(dtype)


def spectrum(u: Array, n_fft: int, first: int) -> Array:
    """u [..., width], the samples of frames from `first` on, the others being 0 -> [..., bins, 2]."""
    width, bins = u.shape[-1], n_fft // 2 + 1
    if _by_product(n_fft):
        y = jnp.matmul(u, _rows(n_fft, first, width, u.dtype), precision="highest")
        return _seen(y.reshape(*u.shape[:-1], bins, 2), n_fft)
    ends = (first, n_fft - first - width, 0)
    z = jnp.fft.rfft(lax.pad(u, np.zeros((), u.dtype), [(0, 0, 0)] * (u.ndim - 1) + [ends]))
    return _seen(jnp.stack([z.real, z.imag], -1), n_fft)


def back(c: Array, n_fft: int, first: int, width: int) -> Array:
    """The transpose of `spectrum`: [..., bins, 2] -> [..., width], Σ_k c_k0 cos θ − c_k1 sin θ."""
    c = _seen(c, n_fft)
    if _by_product(n_fft):
        rows = _rows(n_fft, first, width, c.dtype)
        return jnp.matmul(c.reshape(*c.shape[:-2], rows.shape[1]), rows.T, precision="highest")
    c = c * align(jnp.asarray(halves(n_fft), c.dtype), c.ndim)  # an inverse FFT divides by them
    return jnp.fft.irfft(lax.complex(c[..., 0], c[..., 1]), n_fft)[..., first : first + width]


def halves(n_fft: int) -> np.ndarray:
    """[bins, 2]: n_fft of a bin that is its own mirror, else half of it; x = back(spectrum(x) / halves)."""
    return np.repeat(np.where(_mirrored(n_fft), n_fft, n_fft / 2)[:, None], 2, 1)


def _seen(c: Array, n_fft: int) -> Array:
    """c with exact zeros where the sine of a bin is 0 throughout, whatever stands there, be it NaN."""
    none = np.stack([np.zeros(n_fft // 2 + 1, bool), _mirrored(n_fft)], -1)
    return jnp.where(align(jnp.asarray(none), c.ndim), 0, c)


def _mirrored(n_fft: int) -> np.ndarray:
    """Which frequencies are their own mirror: 0, and half the rate where n_fft is even."""
    return np.arange(n_fft // 2 + 1) * 2 % n_fft == 0


def _rows(n_fft: int, first: int, width: int, dtype: Any) -> Array:
    return jnp.asarray(basis(n_fft, dtype)[first : first + width].reshape(width, -1))


def _by_product(n_fft: int) -> bool:
    """Whether the product with `basis` is faster than an FFT: of few samples, or of a number without factors.

    Measured on a CPU by `python -m benchmarks sound`: a large prime factor makes an FFT several times slower.
    """
    rest = n_fft
    for p in (2, 3, 5, 7, 11, 13):
        while rest % p == 0:
            rest //= p
    return n_fft <= 32 or (n_fft <= 256 and rest > 1)
