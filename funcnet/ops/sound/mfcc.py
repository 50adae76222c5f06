"""Mel-frequency cepstrum: y = D l, the first coefficients of the cosine transform of a log-mel spectrum.

Dimensions: *n any leading axes (batch), t samples, frames, mels bands, coefficients: x [*n, t],
y [*n, frames, coefficients]. D_km = √(2 / mels) cos(π k (m + 1/2) / mels), of k = 0 over √2: its rows are
orthonormal. Source: Davis and Mermelstein, "Comparison of parametric representations for monosyllabic word
recognition", IEEE ASSP 28, 1980. Everything is in float32 or wider and rounded once.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float

from funcnet import rules
from funcnet.errors import ValueRangeError
from funcnet.ops import _check
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._dtype import common, wide
from funcnet.ops.sound import _frames, log_mel

__all__ = ["LIBROSA", "TORCHAUDIO", "apply", "cost", "reference", "vjp"]

LIBROSA: Mapping[str, Any] = MappingProxyType({**log_mel.LIBROSA, "coefficients": 20})
TORCHAUDIO: Mapping[str, Any] = MappingProxyType({**log_mel.TORCHAUDIO, "span": 8.0, "coefficients": 40})


def reference(
    x: Float[Array, "*n t"],
    window: Float[Array, " width"] | None = None,
    *,
    coefficients: int = 20,
    mels: int = 80,
    **options: Any,
) -> Float[Array, "*n frames k"]:
    """The product of D and the logarithms; the options are those of `log_mel`."""
    dtype = x.dtype if window is None else common(x, window)[0].dtype
    spectrum = log_mel.reference(x.astype(wide(dtype)), window, mels=mels, **options)
    return jnp.matmul(spectrum, jnp.asarray(_cosines(coefficients, mels).T, spectrum.dtype)).astype(dtype)


@rules.composite
def apply(
    x: Float[Array, "*n t"],
    window: Float[Array, " width"] | None = None,
    *,
    rate: float,
    n_fft: int,
    coefficients: int = 20,
    mels: int = 80,
    **options: Any,
) -> Float[Array, "*n frames k"]:
    """The cepstrum of every frame of a signal: its shape, without its pitch.

    `LIBROSA` and `TORCHAUDIO` hold the options that give what these libraries give. Nothing is attached to
    the whole: the parts of `log_mel` carry their own rules, and XLA derives that of a product.

    Args:
        x: [*n, t], t samples.
        window: [width], with a gradient; None is the periodic window of Hann.
        rate: samples per second, in Hz.
        n_fft: samples of a frame.
        coefficients: how many; at most mels.
        mels: how many bands.
        options: the others of `log_mel`.

    Returns:
        y [*n, frames, coefficients], in the dtype that holds x and window.

    Raises:
        ShapeError: x has no axis, window is not a row, or padding is no pair.
        DTypeError: x or window is not floating-point, or an option has the wrong type.
        ValueRangeError: an option is out of range, or x is too short to be reflected so far.

    >>> fn.mfcc.apply(jnp.ones(16000), rate=16000, n_fft=400, hop=160).shape
    (101, 20)
    """
    x, window = _check.floating("mfcc.apply", "x", x), _frames.check_window("mfcc.apply", window)
    rows = _rows("mfcc.apply", coefficients, mels)
    dtype = x.dtype if window is None else common(x, window)[0].dtype
    y = log_mel.apply(x.astype(wide(dtype)), window, rate=rate, n_fft=n_fft, mels=mels, **options)
    return _product(y, rows).astype(dtype)


def vjp(
    x: Float[Array, "*n t"],
    window: Float[Array, " width"] | None = None,
    *,
    coefficients: int = 20,
    mels: int = 80,
    **options: Any,
) -> tuple[Float[Array, "*n frames k"], Partial]:
    """y and its pullback: dl = Dᵀ dy, then that of `log_mel`."""
    sizes = _rows("mfcc.vjp", coefficients, mels)
    dtype = x.dtype if window is None else common(x, window)[0].dtype
    spectrum, pull = log_mel.vjp(x.astype(wide(dtype)), window, mels=sizes[1], **options)
    pullback = rules.bind(_pullback, sizes=sizes, dtype=x.dtype.name)
    return _product(spectrum, sizes).astype(dtype), Partial(pullback, pull)


def _pullback(pull: Partial, dy: Array, *, sizes: tuple[int, int], dtype: str) -> tuple[Array, Array | None]:
    d = dy.astype(wide(dy.dtype))
    dx, dwindow = pull(jnp.matmul(d, jnp.asarray(_cosines(*sizes), d.dtype), precision="highest"))
    return dx.astype(dtype), dwindow


def _product(spectrum: Array, sizes: tuple[int, int]) -> Array:
    return jnp.matmul(spectrum, jnp.asarray(_cosines(*sizes).T, spectrum.dtype), precision="highest")


def cost(
    x: Float[Abstract, "*n t"],
    window: Float[Abstract, " width"] | None = None,
    *,
    coefficients: int = 20,
    mels: int = 80,
    **options: Any,
) -> Cost:
    """The flops of `log_mel`, and 2 · n · frames · mels · coefficients; the bytes of x, the window and y."""
    options = {**options, "mels": mels}
    y = jax.eval_shape(lambda x, window: log_mel.reference(x, window, **options), x, window)
    moved = traffic(reference, x, window, coefficients=coefficients, **options)
    return Cost(log_mel.cost(x, window, **options).flops + 2 * y.size * int(coefficients), moved)


def _rows(where: str, coefficients: int, mels: int) -> tuple[int, int]:
    """The sizes of D, checked."""
    coefficients, mels = (
        _check.positive(where, name, value)
        for name, value in (("coefficients", coefficients), ("mels", mels))
    )
    if coefficients > mels:
        raise ValueRangeError(
            f"{where}: {mels} bands have no {coefficients} coefficients.",
            path="coefficients",
            expected=f"coefficients ≤ mels = {mels}",
            actual=f"coefficients = {coefficients}",
        )
    return coefficients, mels


def _cosines(coefficients: int, mels: int) -> np.ndarray:
    """D [coefficients, mels]."""
    d = np.cos(np.pi / mels * np.outer(np.arange(coefficients), np.arange(mels) + 0.5)) * np.sqrt(2 / mels)
    d[0] /= np.sqrt(2)
    return d
