"""Log-mel spectrum: y = gain · log₁₀ max(B mᵖ, floor) + offset, m the magnitudes of a signal's spectrum.

Dimensions: *n any leading axes (batch), t samples, frames, mels bands: x [*n, t], y [*n, frames, mels].
B is the matrix of `mel`; p is 2, of the power, or 1, of the magnitude; `span` cuts what lies more than so
many powers of ten below the largest of an example's bands. In float32 or wider, and rounded once.
Sources: Davis and Mermelstein, "Comparison of parametric representations for monosyllabic word recognition",
IEEE ASSP 28, 1980; Radford et al., "Robust speech recognition via large-scale weak supervision", arXiv
2212.04356 (Whisper).
"""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from funcnet import rules
from funcnet.ops import _check
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._dtype import common, wide
from funcnet.ops.sound import _frames, magnitude, mel, stft
from funcnet.ops.sound import power as squared
from funcnet.ops.sound._frames import Padding

__all__ = ["LIBROSA", "TORCHAUDIO", "WHISPER", "apply", "cost", "reference", "vjp"]

WHISPER: Mapping[str, Any] = MappingProxyType(
    {
        **stft.WHISPER,
        "rate": 16000.0,
        "mels": 80,
        "scale": "slaney",
        "norm": "slaney",
        "power": 2,
        "floor": 1e-10,
        "span": 8.0,
        "gain": 0.25,
        "offset": 1.0,
    }
)
LIBROSA: Mapping[str, Any] = MappingProxyType(
    {
        **stft.LIBROSA,
        **mel.LIBROSA,
        "rate": 22050.0,
        "power": 2,
        "floor": 1e-10,
        "span": 8.0,
        "gain": 10.0,
        "offset": 0.0,
    }
)
TORCHAUDIO: Mapping[str, Any] = MappingProxyType(
    {
        **mel.TORCHAUDIO,
        "rate": 16000.0,
        "n_fft": 400,
        "hop": 200,
        "padding": "center",
        "padding_mode": "reflect",
        "power": 2,
        "floor": 1e-10,
        "span": None,
        "gain": 10.0,
        "offset": 0.0,
    }
)


def reference(
    x: Float[Array, "*n t"], window: Float[Array, " width"] | None = None, **options: Any
) -> Float[Array, "*n frames mels"]:
    """Spectrum, power, bands and logarithm, each by its own definition; the options are those of `apply`."""
    spectrum, bands, level = _parts(**options)
    dtype = x.dtype if window is None else common(x, window)[0].dtype
    pairs = stft.reference(x.astype(wide(dtype)), window, **spectrum)
    energy = (squared if level.power == 2 else magnitude).reference(pairs)
    y = jnp.log10(jnp.maximum(mel.reference(energy, **bands), level.floor))
    if level.span is not None and y.size:
        y = jnp.maximum(y, y.max((-2, -1), keepdims=True) - level.span)
    return _scaled(y, level).astype(dtype)


@rules.composite
def apply(
    x: Float[Array, "*n t"],
    window: Float[Array, " width"] | None = None,
    *,
    rate: float,
    n_fft: int,
    hop: int | None = None,
    width: int | None = None,
    padding: Padding = "center",
    padding_mode: str = "reflect",
    mels: int = 80,
    low: float = 0.0,
    high: float | None = None,
    scale: str = "slaney",
    norm: str | None = "slaney",
    power: int = 2,
    floor: float = 1e-10,
    span: float | None = None,
    gain: float = 1.0,
    offset: float = 0.0,
) -> Float[Array, "*n frames mels"]:
    """The logarithm of a signal's power in every band of every frame.

    `WHISPER`, `LIBROSA` and `TORCHAUDIO` hold the options that give what these libraries give:
    ``log_mel.apply(x, **log_mel.WHISPER)``. Whisper itself pads a signal to 30 s first, with zeros.
    Nothing is attached to the whole: `stft`, `magnitude`, `power` and `mel` carry their own rules. Below the
    floor, as in silence, the gradient is 0. Squares of samples beyond 1e16 overflow in float32.

    Args:
        x: [*n, t], t samples.
        window: [width], with a gradient; None is the periodic window of Hann.
        rate: samples per second, in Hz.
        n_fft: samples of a frame; hop, width, padding, padding_mode: as in `stft`, which they are given to.
        hop: samples from one frame to the next; None is n_fft // 4.
        width: of the window of Hann, if it is shorter than the frame.
        padding: "center", "valid" or a pair (before, after).
        padding_mode: "reflect", "zeros" or "circular".
        mels: how many bands; low, high, scale, norm: as in `mel`.
        low: where the first band begins, in Hz.
        high: where the last one ends, in Hz; None is half the rate.
        scale: "slaney" or "htk".
        norm: "slaney" or None.
        power: 2: of power spectra; 1: of magnitudes.
        floor: what is below it is taken for it; above 0.
        span: how many powers of ten below the largest of an example anything is at least; None is no bound.
        gain: the logarithm to the base of ten is multiplied by it: 10 gives decibels of a power, log(10) the
            natural one.
        offset: what is added then.

    Returns:
        y [*n, frames, mels], in the dtype that holds x and window.

    Raises:
        ShapeError: x has no axis, window is not a row, or padding is no pair.
        DTypeError: x or window is not floating-point, or an option has the wrong type.
        ValueRangeError: an option is out of range, or x is too short to be reflected so far.

    >>> fn.log_mel.apply(jnp.ones(16000), rate=16000, n_fft=400, hop=160).shape
    (101, 80)
    """
    level = _level("log_mel.apply", power, floor, span, gain, offset)
    x = _check.floating("log_mel.apply", "x", x)
    window = _frames.check_window("log_mel.apply", window)
    dtype = x.dtype if window is None else common(x, window)[0].dtype
    pairs = stft.apply(
        x.astype(wide(dtype)),
        window,
        n_fft=n_fft,
        hop=hop,
        width=width,
        padding=padding,
        padding_mode=padding_mode,
    )
    energy = (squared if level.power == 2 else magnitude).apply(pairs)
    e = mel.apply(
        energy, rate=rate, mels=mels, low=low, high=high, scale=scale, norm=norm, n_fft=_check.scalar(n_fft)
    )
    return _scaled(_log(e, level), level).astype(dtype)


def vjp(
    x: Float[Array, "*n t"], window: Float[Array, " width"] | None = None, **options: Any
) -> tuple[Float[Array, "*n frames mels"], Partial]:
    """y and its pullback, the parts' own in turn: of the logarithm, of the bands, of the power, of the STFT.

    With e the energy of the bands, de = dy · gain / (e ln 10), and 0 below the floor. What `span` cuts is the
    largest of the example less a constant: its dy goes to that.
    """
    spectrum, bands, level = _parts(**options)
    dtype = x.dtype if window is None else common(x, window)[0].dtype
    pairs, to_x = stft.vjp(x.astype(wide(dtype)), window, **spectrum)
    energy, to_pairs = (squared if level.power == 2 else magnitude).vjp(pairs)
    e, to_energy = mel.vjp(energy, **bands)
    y = _scaled(_log(e, level), level).astype(dtype)
    return y, Partial(rules.bind(_pullback, level=level, dtype=x.dtype.name), e, (to_energy, to_pairs, to_x))


def _pullback(e: Array, parts: Any, dy: Array, *, level: "Level", dtype: str) -> tuple[Array, Array | None]:
    d = dy.astype(e.dtype) * level.gain
    if level.span is not None and e.size:
        y = _log(e, level._replace(span=None))
        largest = y.max((-2, -1), keepdims=True)
        kept, most = y > largest - level.span, (y == largest).astype(d.dtype)
        cut = jnp.where(kept, 0, d).sum((-2, -1), keepdims=True)
        d = jnp.where(kept, d, 0) + cut * most / most.sum((-2, -1), keepdims=True)
    heard = ~(e <= level.floor)
    d = jnp.where(heard, d / (jnp.where(heard, e, 1) * math.log(10)), 0)
    to_energy, to_pairs, to_x = parts
    dx, dwindow = to_x(*to_pairs(*to_energy(d)))
    return dx.astype(dtype), dwindow


def cost(x: Float[Abstract, "*n t"], window: Float[Abstract, " width"] | None = None, **options: Any) -> Cost:
    """The flops of `stft` and of `mel`, and the bytes of x, the window and y."""
    spectrum, bands, _ = _parts(**options)
    pairs = jax.eval_shape(lambda x, window: stft.reference(x, window, **spectrum), x, window)
    energy = jax.ShapeDtypeStruct(pairs.shape[:-1], pairs.dtype)
    flops = stft.cost(x, window, **spectrum).flops + mel.cost(energy, **bands).flops
    return Cost(flops, traffic(reference, x, window, **options))


class Level(NamedTuple):
    """What the logarithm of an energy becomes."""

    power: int
    floor: float
    span: float | None
    gain: float
    offset: float


def _level(where: str, power: int, floor: float, span: float | None, gain: float, offset: float) -> Level:
    _check.one_of(where, "power", _check.scalar(power), (1, 2))
    return Level(
        int(power),
        _check.number(where, "floor", floor, strict=True),
        None if span is None else _check.number(where, "span", span),
        _check.number(where, "gain", gain, least=-math.inf),
        _check.number(where, "offset", offset, least=-math.inf),
    )


def _log(e: Array, level: Level) -> Array:
    """log₁₀ of the energies, bounded from below; one that is not a number stays so."""
    heard = ~(e <= level.floor)
    y = jnp.where(heard, jnp.log10(jnp.where(heard, e, 1)), math.log10(level.floor))
    if level.span is not None and y.size:
        y = jnp.maximum(y, y.max((-2, -1), keepdims=True) - level.span)
    return y


def _scaled(y: Array, level: Level) -> Array:
    return level.gain * y + level.offset


def _parts(
    *,
    power: int = 2,
    floor: float = 1e-10,
    span: float | None = None,
    gain: float = 1.0,
    offset: float = 0.0,
    **others: Any,
) -> tuple[dict[str, Any], dict[str, Any], Level]:
    """The options of `apply` as those of `stft`, those of `mel`, and the level."""
    spectrum = {name: others.pop(name) for name in _SPECTRUM if name in others}
    bands = {**others, "n_fft": _check.scalar(spectrum["n_fft"])}
    return spectrum, bands, _level("log_mel", power, floor, span, gain, offset)


_SPECTRUM = ("n_fft", "hop", "width", "padding", "padding_mode")
