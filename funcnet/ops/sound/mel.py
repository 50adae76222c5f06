"""Mel bands: y_m = Σ_k B_mk x_k, triangles over the frequencies, evenly spaced as the ear hears pitch.

Dimensions: *n any leading axes (batch, frames), bins frequencies, mels bands: x [*n, bins], y [*n, mels].
Bin k is the frequency f_k = k · rate / n_fft in Hz. With mels + 2 points p, evenly spaced on the mel scale
between low and high, band m rises from 0 at p_m to 1 at p_{m+1} and falls to 0 at p_{m+2}:
B_mk = max(0, min((f_k − p_m) / (p_{m+1} − p_m), (p_{m+2} − f_k) / (p_{m+2} − p_{m+1}))), and with Slaney's
norm times 2 / (p_{m+2} − p_m), so that its area is 1 Hz. Scales: "htk", 2595 log₁₀(1 + f / 700); "slaney",
linear with 15 mels to 1 kHz, then 27 mels for a factor of 6.4.
Sources: Young et al., "The HTK Book", 2006, §5.4; Slaney, "Auditory Toolbox", 1998. Sums are in float32 or
wider.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float

from funcnet import rules
from funcnet.errors import ShapeError, ValueRangeError
from funcnet.ops import _check
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._dtype import narrow, wide
from funcnet.ops._shape import align
from funcnet.ops.sound._frames import example

__all__ = ["LIBROSA", "TORCHAUDIO", "apply", "cost", "matrix", "reference", "vjp"]

LIBROSA: Mapping[str, Any] = MappingProxyType({"mels": 128, "scale": "slaney", "norm": "slaney"})
TORCHAUDIO: Mapping[str, Any] = MappingProxyType({"mels": 128, "scale": "htk", "norm": None})


def reference(
    x: Float[Array, "*n bins"],
    *,
    rate: float,
    mels: int = 80,
    low: float = 0.0,
    high: float | None = None,
    scale: str = "slaney",
    norm: str | None = "slaney",
    n_fft: int | None = None,
) -> Float[Array, "*n mels"]:
    """The product with the matrix of triangles."""
    bank = _bank(*_options("mel.reference", x.shape[-1], rate, mels, low, high, scale, norm, n_fft))
    h = x.astype(wide(x.dtype))
    return jnp.matmul(h, jnp.asarray(bank.T, h.dtype)).astype(x.dtype)


@rules.operation
def apply(
    x: Float[Array, "*n bins"],
    *,
    rate: float,
    mels: int = 80,
    low: float = 0.0,
    high: float | None = None,
    scale: str = "slaney",
    norm: str | None = "slaney",
    n_fft: int | None = None,
) -> Float[Array, "*n mels"]:
    """Gather the frequencies of a spectrum into bands.

    A frequency is seen by two bands at most, so that all of them are sums over the pieces between the points:
    about as fast as the product with B, without its zeros, by which one NaN would reach every band. JAX's own
    derivative is the formula of `vjp`.

    Args:
        x: [*n, bins], a power or magnitude spectrum.
        rate: samples per second, in Hz.
        mels: how many bands. Too many for the bins leave some without any, whose y is 0.
        low: where the first band begins, in Hz.
        high: where the last one ends, in Hz; None is half the rate.
        scale: "slaney" or "htk".
        norm: "slaney": every band has the area 1 Hz; None: its peak is 1.
        n_fft: samples of the frames that x is the spectrum of; None is 2 (bins − 1).

    Returns:
        y [*n, mels], in the dtype of x.

    Raises:
        ShapeError: x has no axis, or not the bins of n_fft.
        DTypeError: x is not floating-point, or an option has the wrong type.
        ValueRangeError: an option is out of range.

    >>> fn.mel.apply(jnp.ones((10, 201)), rate=16000).shape
    (10, 80)
    """
    x = _check.floating("mel.apply", "x", x)
    _check.rank("mel.apply", "x", x, 1, "*n, bins")
    return _forward(x, *_options("mel.apply", x.shape[-1], rate, mels, low, high, scale, norm, n_fft))


def vjp(
    x: Float[Array, "*n bins"],
    *,
    rate: float,
    mels: int = 80,
    low: float = 0.0,
    high: float | None = None,
    scale: str = "slaney",
    norm: str | None = "slaney",
    n_fft: int | None = None,
) -> tuple[Float[Array, "*n mels"], Partial]:
    """y and its pullback: dx_k = B_mk dy_m + B_{m−1,k} dy_{m−1}, m the band that rises at f_k."""
    options = _options("mel.vjp", x.shape[-1], rate, mels, low, high, scale, norm, n_fft)
    return _forward(x, *options), Partial(rules.bind(_pullback, options=options))


def _forward(x: Array, *options: Any) -> Array:
    piece, rising, falling = _pieces(*options)
    h, mels = x.astype(wide(x.dtype)), options[3]
    seen = lambda w: jnp.where(
        align(jnp.asarray(w != 0), h.ndim), h * align(jnp.asarray(w, h.dtype), h.ndim), 0
    )
    parts = jnp.moveaxis(jnp.stack([seen(rising), seen(falling)]), -1, 0)
    sums = jnp.zeros((mels + 1, *parts.shape[1:]), h.dtype).at[piece].add(parts, indices_are_sorted=True)
    return jnp.moveaxis(sums[:-1, 0] + sums[1:, 1], 0, -1).astype(x.dtype)


def _pullback(dy: Array, *, options: tuple[Any, ...]) -> tuple[Array]:
    piece, rising, falling = _pieces(*options)
    h = jnp.pad(dy.astype(wide(dy.dtype)), [(0, 0)] * (dy.ndim - 1) + [(1, 1)])
    seen = lambda w, at: jnp.where(
        align(jnp.asarray(w != 0), h.ndim), h[..., at] * align(jnp.asarray(w, h.dtype), h.ndim), 0
    )
    return (narrow(seen(rising, piece + 1) + seen(falling, piece), dy),)


def matrix(
    in_shape: tuple[int, ...],
    *,
    rate: float,
    mels: int = 80,
    low: float = 0.0,
    high: float | None = None,
    scale: str = "slaney",
    norm: str | None = "slaney",
    n_fft: int | None = None,
) -> Float[Array, "mels bins"]:
    """B [mels, bins], for one x of shape (bins,)."""
    (bins,) = example("mel.matrix", in_shape, "bins")
    return jnp.asarray(_bank(*_options("mel.matrix", bins, rate, mels, low, high, scale, norm, n_fft)))


def cost(
    x: Float[Abstract, "*n bins"],
    *,
    rate: float,
    mels: int = 80,
    low: float = 0.0,
    high: float | None = None,
    scale: str = "slaney",
    norm: str | None = "slaney",
    n_fft: int | None = None,
) -> Cost:
    """2 · n · bins · mels flops: those of the product with B, most of which is 0."""
    how: dict[str, Any] = {"rate": rate, "mels": mels, "low": low, "high": high, "scale": scale, "norm": norm}
    return Cost(2 * math.prod(x.shape) * int(mels), traffic(reference, x, **how, n_fft=n_fft))


# ---- triangles --------------------------------------------------------------------------------------------

_LINEAR, _LOG = 200 / 3, math.log(6.4) / 27  # Slaney's: Hz of a mel below 1 kHz, octaves of one above


def _mel(f: float, scale: str) -> float:
    """Hz in mels."""
    if scale == "htk":
        return 2595 * math.log10(1 + f / 700)
    return f / _LINEAR if f < 1000 else 15 + math.log(f / 1000) / _LOG


def _hz(m: np.ndarray, scale: str) -> np.ndarray:
    """Mels in Hz."""
    if scale == "htk":
        return 700 * (10 ** (m / 2595) - 1)
    return np.where(m < 15, m * _LINEAR, 1000 * np.exp(_LOG * (np.maximum(m, 15) - 15)))


def _points(mels: int, low: float, high: float, scale: str) -> np.ndarray:
    """Where bands begin, peak and end, in Hz [mels + 2]."""
    return _hz(np.linspace(_mel(low, scale), _mel(high, scale), mels + 2), scale)


def _bank(
    bins: int, rate: float, n_fft: int, mels: int, low: float, high: float, scale: str, norm: str | None
) -> np.ndarray:
    """B [mels, bins]."""
    p = _points(mels, low, high, scale)[:, None]
    f = np.arange(bins) * (rate / n_fft)
    rising, falling = (f - p[:-2]) / (p[1:-1] - p[:-2]), (p[2:] - f) / (p[2:] - p[1:-1])
    weight = 2 / (p[2:] - p[:-2]) if norm == "slaney" else 1.0
    return np.maximum(0, np.minimum(rising, falling)) * weight


def _pieces(
    bins: int, rate: float, n_fft: int, mels: int, low: float, high: float, scale: str, norm: str | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every bin the piece between two points that it lies in, m; and its weights in the two bands there.

    Band m rises in piece m, band m − 1 falls.
    """
    bank = np.pad(_bank(bins, rate, n_fft, mels, low, high, scale, norm), [(1, 1), (0, 0)])
    f, every = np.arange(bins) * (rate / n_fft), np.arange(bins)
    piece = (np.searchsorted(_points(mels, low, high, scale), f, "right") - 1).clip(0, mels)
    return piece.astype(np.int32), bank[piece + 1, every], bank[piece, every]


def _options(
    where: str,
    bins: int,
    rate: float,
    mels: int,
    low: float,
    high: float | None,
    scale: str,
    norm: str | None,
    n_fft: int | None,
) -> tuple[Any, ...]:
    """What B depends on, checked."""
    rate, low = _check.number(where, "rate", rate, strict=True), _check.number(where, "low", low)
    mels = _check.positive(where, "mels", mels)
    n_fft = 2 * max(bins - 1, 1) if n_fft is None else _check.positive(where, "n_fft", n_fft)
    if bins != n_fft // 2 + 1:
        raise ShapeError(
            f"{where}: x has {bins} bins, but frames of {n_fft} samples have {n_fft // 2 + 1}.",
            path="x",
            expected=f"x: float[*n, {n_fft // 2 + 1}]     (n_fft = {n_fft})",
            actual=f"{bins} bins",
        )
    high = rate / 2 if high is None else _check.number(where, "high", high)
    for path, holds, expected in (
        ("high", high <= rate / 2, f"high ≤ {rate / 2:g}, half the rate"),
        ("low", low < high, f"low < high = {high:g}"),
    ):
        if not holds:
            raise ValueRangeError(
                f"{where}: bands from {low:g} to {high:g} Hz do not fit.",
                path=path,
                expected=expected,
                actual=f"low = {low:g}, high = {high:g}, rate = {rate:g}",
            )
    _check.one_of(where, "scale", scale, ("slaney", "htk"))
    _check.one_of(where, "norm", norm, ("slaney", None))
    return bins, rate, n_fft, mels, low, high, scale, norm
