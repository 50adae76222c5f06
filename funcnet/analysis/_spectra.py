"""The spectra of a model's weights, on the host in float64: nothing is compiled but the taps of convolutions.

Of a leaf that is a matrix W [in, out] (by its spec) the singular values σ are computed as they are. The norm
is that of the linear map, between two bounds that hold but for what cannot be told: W itself, widened by its
rounding; of a convolution with zeros beyond its border the largest σ over the frequencies of the circulant
matrix of which it is a part, from above, and |T x| / |x| at the end of a power iteration, from below.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from funcnet.linalg.matrices import as_matrices
from funcnet.ops.conv import _toeplitz, conv
from funcnet.spec import Spec

__all__ = ["Convolved", "Weight", "effective_rank", "stacked", "tail_exponent", "weights"]

VALUES = 50  # of a spectrum, the fewest whose tail is fitted
TAIL = 20  # values of a tail, at least
WORK = 2**29  # products in the singular values of all frequencies, at most
STEPS = 60  # of the power iteration


class Weight(NamedTuple):
    """One matrix; NaN is what was not measured, for the reason that `XRay.left_out` gives.

    Attributes:
        shape: (in, out): of a convolution taps times channels.
        norm: bounds of the largest singular value of the linear map, lower and upper.
        condition: largest by least singular value; of a convolution that of its circular extension, without
            those that are 0 since a stride passes over positions.
        circular: whether it is that.
        stable_rank: Σ σ² / max σ².
        effective_rank: exp(−Σ p log p), p = σ / Σ σ.
        tail: the exponent α of the density λ^−α of the largest λ = σ².
        fit: the Kolmogorov–Smirnov distance of that fit.
        moved: ‖W − W₀‖ / ‖W₀‖, W₀ at the start.
        spectrum: σ, descending.
    """

    shape: tuple[int, int]
    norm: tuple[float, float]
    condition: float
    circular: bool
    stable_rank: float
    effective_rank: float
    tail: float
    fit: float
    moved: float
    spectrum: Float[np.ndarray, " k"]


class Convolved(NamedTuple):
    """A call of `conv`: the shape of one x, and the options."""

    in_shape: tuple[int, ...]
    options: Mapping[str, Any]


def weights(
    leaves: Mapping[str, tuple[Spec, Any, Any]],
    convolved: Mapping[str, Convolved | None],
    unseen: bool = False,
) -> tuple[dict[str, list[Weight]], list[str]]:
    """The matrices of each leaf, one for each layer of a stack, and what could not be measured.

    Args:
        leaves: by path the spec, the array, and that at the start, or None.
        convolved: by path the call of a kernel; None: there are several.
        unseen: whether there are convolutions whose kernels are not known.
    """
    found, reasons = {}, []
    called = {path: call for path, call in convolved.items() if call is not None}
    taps = _taps({path: (leaves[path][1], call) for path, call in called.items()})
    for path, (spec, leaf, start) in leaves.items():
        stack = _stack(leaf, spec)
        found[path] = [_linear(w) for w in stack]
        if start is not None:
            pairs = zip(found[path], stack, _stack(start, spec), strict=True)
            found[path] = [row._replace(moved=_moved(w, w0)) for row, w, w0 in pairs]
        if path in taps and np.isfinite(found[path][0].norm).all():
            call, largest = called[path], found[path][0].norm[1]
            found[path] = [_convolution(found[path][0], largest, leaf, call, *taps[path])]
            if math.isnan(found[path][0].norm[0]):
                reasons.append(f"norm of {path}: its border is reflected.")
            if math.isnan(found[path][0].condition):
                reasons.append(
                    f"condition of {path}: an extension too large, or a stride that does not divide x."
                )
        elif path in convolved or _kernel(spec) or (unseen and len(spec.axes) - stacked(spec) > 2):
            nan = math.nan
            found[path] = [row._replace(norm=(nan, nan), condition=nan) for row in found[path]]
            reasons.append(f"norm and condition of {path}: it is not seen in one call of conv.")
    return found, reasons


def stacked(spec: Spec) -> bool:
    """Whether it is of a stack of layers."""
    return spec.axes[:1] == ("layers",)


def _stack(leaf: Any, spec: Spec) -> Float[np.ndarray, "layers s i o"]:
    """In float64."""
    layers = spec.shape[0] if stacked(spec) else 1
    matrices = as_matrices(np.asarray(leaf), spec).astype(float)
    return matrices.reshape(layers, -1, *matrices.shape[1:])


def _kernel(spec: Spec) -> bool:
    """Whether it is that of a convolution."""
    return isinstance(spec.matrix, tuple) and spec.axes[-2:] == ("c_in", "c_out")


def _linear(w: Float[np.ndarray, "s i o"]) -> Weight:
    """Of a block-diagonal matrix with the blocks w."""
    shape, nan = (w.shape[1], w.shape[2]), math.nan
    if not np.isfinite(w).all() or not w.size:
        return Weight(shape, (nan, nan), nan, False, nan, nan, nan, nan, nan, np.zeros(0))
    values = np.sort(np.linalg.svd(w, compute_uv=False).ravel())[::-1]
    most, least = values[0], values[-1]
    tail, fit = tail_exponent(values**2)
    return Weight(
        shape,
        _widened(most, most, max(shape)),
        float(most / least) if least > 0 else math.inf if most > 0 else nan,
        False,
        float((values**2).sum() / most**2) if most > 0 else 0.0,
        effective_rank(values),
        tail,
        fit,
        nan,
        values,
    )


def _widened(lower: float, upper: float, size: int, eps: float = 0.0) -> tuple[float, float]:
    """Bounds moved apart by what singular values of a matrix with sides of up to `size` are rounded by."""
    slack = max(eps, float(np.finfo(float).eps)) * (32 + 4 * size)
    return float(lower * (1 - slack)), float(upper * (1 + slack))


def _moved(w: np.ndarray, start: np.ndarray) -> float:
    before = np.linalg.norm(start)
    return float(np.linalg.norm(w - start) / before) if before > 0 else math.nan


def effective_rank(values: Float[np.ndarray, " k"]) -> float:
    """exp of the entropy of σ / Σ σ. Source: O. Roy and M. Vetterli, "The effective rank", 2007.

    >>> effective_rank(np.array([2.0, 2.0, 2.0, 0.0]))
    3.0
    """
    p = values[values > 0]
    p = p / p.sum()
    return float(np.exp(-(p * np.log(p)).sum()).round(12)) if p.size else 0.0


def tail_exponent(values: Float[np.ndarray, " k"]) -> tuple[float, float]:
    """α of the density λ^−α above some λ₀, by maximum likelihood, and the largest distance of the two cdfs.

    λ₀ is where that distance is least; 20 values or more lie above it. NaN of fewer than 50 values. Source:
    A. Clauset, C. Shalizi and M. Newman, "Power-law distributions in empirical data", arXiv 0706.1062; of
    weights: C. Martin and M. Mahoney, arXiv 1810.01075.
    """
    values = np.sort(values[values > 0])[::-1]
    if len(values) < VALUES:
        return math.nan, math.nan
    best = math.nan, math.inf
    logs = np.log(values)
    for n in np.unique(np.linspace(TAIL, len(values), 200).astype(int)):
        excess = (logs[:n] - logs[n - 1]).sum()
        if excess <= 0:
            continue
        alpha = 1 + n / excess
        above = np.exp((1 - alpha) * (logs[:n] - logs[n - 1]))  # of the law, the share of larger ones
        distance = float(np.maximum(np.arange(1, n + 1) / n - above, above - np.arange(n) / n).max())
        if distance < best[1]:
            best = float(alpha), distance
    return best if math.isfinite(best[1]) else (math.nan, math.nan)


# ---- convolutions -----------------------------------------------------------------------------------------


def _taps(kernels: Mapping[str, tuple[Any, Convolved]]) -> dict[str, tuple[Any, Any, Any]]:
    """By path the taps of the matrix itself if it is circulant, of one above it, of its extension."""

    def of(w: Any, call: Convolved) -> tuple[Any, ...]:
        options = {name: value for name, value in call.options.items() if name != "method"}
        wrapped = {**options, "padding": "same", "padding_mode": "circular"}
        own = conv.operator({"w": w}, call.in_shape, **options)
        extension = conv.operator({"w": w}, call.in_shape, **wrapped)
        every = own.taps, own.above, extension.taps
        return tuple(None if taps is None else taps() for taps in every)

    def all_of(arrays: Mapping[str, Any]) -> dict[str, Any]:
        return {path: of(w, kernels[path][1]) for path, w in arrays.items()}

    if not kernels:
        return {}
    taps = jax.jit(all_of)({path: w for path, (w, _) in kernels.items()})
    return jax.tree.map(lambda v: np.asarray(v).astype(float), taps)


def _convolution(
    row: Weight, largest: float, w: Any, call: Convolved, own: Any, above: Any, wrapped: Any
) -> Weight:
    """The row with norm and condition of the convolution; `largest` is the norm of its kernel."""
    options = {name: call.options.get(name, one) for name, one in (("stride", 1), ("padding", "same"),
               ("dilation", 1), ("padding_mode", "zeros"))}  # fmt: skip
    window = _toeplitz.window_of("xray", w, call.in_shape[:-1], **options)
    size = max(math.prod(call.in_shape), math.prod(window.out) * w.shape[-1])
    eps = (
        float(jnp.finfo(w.dtype).eps) if options["padding_mode"] != "zeros" else 0.0
    )  # taps that meet add up
    # Each element of x enters at most one product for each tap: |T x|² ≤ Π kernel · |W|² |x|².
    norm = 0.0, largest * math.sqrt(math.prod(window.kernel))
    if own is not None and _work(own) <= WORK:
        most = _values(np.fft.rfftn(own, axes=range(own.ndim - 3))).max()
        norm = most, most
    elif above is not None and _work(above) <= WORK:
        spectrum = np.fft.rfftn(above, axes=range(above.ndim - 3))
        norm = _from_below(spectrum, above.shape, window), _values(spectrum).max()
    elif options["padding_mode"] == "reflect":
        norm = math.nan, math.nan
    condition = math.nan
    if wrapped is not None and _work(wrapped) <= WORK:
        values = _values(np.fft.rfftn(wrapped, axes=range(wrapped.ndim - 3)))
        used = wrapped.any((*range(wrapped.ndim - 2), wrapped.ndim - 1)).sum()  # of the phases of a stride
        values = values[..., :used]  # more are 0, whatever the kernel is
        condition = float(values.max() / values.min()) if values.min() > 0 else math.inf
    return row._replace(norm=_widened(*norm, size, eps), condition=condition, circular=True)


def _work(taps: np.ndarray) -> int:
    return taps.size * min(taps.shape[-2:])


def _values(spectrum: np.ndarray) -> np.ndarray:
    return np.linalg.svd(spectrum, compute_uv=False)


def _from_below(spectrum: np.ndarray, shape: tuple[int, ...], window: Any) -> float:
    """|T x| / |x|, T the part of a circulant matrix that has x within the border and the outputs that are.

    y_o = Σ_q x_{o + q} taps_q is y(f) = x(f) conj taps(f); the phases of the stride are channels, as in
    `_toeplitz`.
    """
    d = len(shape) - 3
    axes, steps = tuple(range(d)), shape[:d]
    inside = np.zeros([n * s for n, s in zip(steps, window.stride, strict=True)])
    inside[tuple(slice(low, low + n) for n, (low, _) in zip(window.sizes, window.padding, strict=True))] = 1
    inside = inside.reshape([side for pair in zip(steps, window.stride, strict=True) for side in pair])
    inside = np.moveaxis(inside, range(1, 2 * d, 2), range(d, 2 * d)).reshape(*steps, 1, -1, 1)
    phases = inside.shape[-2]
    inside = np.broadcast_to(inside, (*steps, 1, phases, shape[-2] // phases)).reshape(*steps, 1, shape[-2])
    seen = np.zeros((*steps, 1, 1))
    seen[tuple(map(slice, window.out))] = 1
    x = np.random.default_rng(0).standard_normal(shape[:-1]) * inside
    found = 0.0
    for _ in range(STEPS):
        x /= np.linalg.norm(x) or 1
        y = _times(x, spectrum.conj(), axes) * seen
        found = max(found, float(np.linalg.norm(y)))
        x = _times(y, spectrum.swapaxes(-1, -2), axes) * inside
    return found


def _times(x: np.ndarray, spectrum: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    images = np.einsum("...a,...ab->...b", np.fft.rfftn(x, axes=axes), spectrum)  # (by BLAS, one call a row)
    return np.fft.irfftn(images, s=[x.shape[axis] for axis in axes], axes=axes)
