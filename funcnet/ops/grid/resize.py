"""Resizing: y = (A₁ ⊗ ... ⊗ A_d ⊗ I_c) x, a grid at other points, one small matrix per axis.

Output o lies at p = (o + ½) / s − ½ of the input, s = out / size its scale; where corners are aligned at
p = o · (size − 1) / (out − 1). Its row holds a filter f around p: y[o] = Σ_i f(i − p) x[i], with x continued
by its last element. Dimensions: *n any leading axes (batch), o and i positions along 1 to 3 spatial axes,
c channels: x [*n, *size, c], y [*n, *out, c].

    "nearest"        x[⌊o / s⌋]               "linear"  f(t) = max(1 − |t|, 0)
    "nearest-exact"  x[⌊(o + ½) / s⌋]         "cubic"   the piecewise cubic with f(±1) = 0, slope ∓a there

`antialias` stretches f by 1 / s where that is more than 1, cuts it at the border, and divides by its sum.
Sources: Keys, "Cubic convolution interpolation for digital image processing", 1981; these are the conventions
of PyTorch's `interpolate`, which has a = −0.75, and −0.5 with antialias.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float

from funcnet import rules
from funcnet.errors import DTypeError, ShapeError, ValueRangeError, describe
from funcnet.linalg import Operator
from funcnet.ops import _check
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._shape import count, known
from funcnet.ops.grid import _axes
from funcnet.ops.grid._axes import Axis, Taps

__all__ = ["apply", "cost", "matrix", "operator", "reference", "vjp"]

_ALIASES = {"bilinear": "linear", "trilinear": "linear", "bicubic": "cubic"}
_METHODS = ("nearest", "nearest-exact", "linear", "cubic", *_ALIASES)


def reference(
    x: Float[Array, "*n_and_size c"],
    *,
    size: Sequence[int] | None = None,
    scale: Sequence[float] | None = None,
    method: str = "linear",
    align_corners: bool = False,
    antialias: bool = False,
    a: float | None = None,
) -> Float[Array, "*n_and_out c"]:
    """Along one axis after the other, the weighted sum of what the filter sees."""
    where = "resize.reference"
    return _axes.reference(x, _static(where, x, size, scale, method, align_corners, antialias, a))


@rules.operation
def apply(
    x: Float[Array, "*n_and_size c"],
    *,
    size: Sequence[int] | None = None,
    scale: Sequence[float] | None = None,
    method: str = "linear",
    align_corners: bool = False,
    antialias: bool = False,
    a: float | None = None,
) -> Float[Array, "*n_and_out c"]:
    """Resample x over its spatial axes, as many as `size` or `scale` has entries.

    Differentiated by `vjp`, which gathers by the transposed matrix; JAX's own rule adds up one by one what a
    gather took (`python -m benchmarks rules`).

    Args:
        x: [*n, *size, c], channels last.
        size: the sizes of y, one per spatial axis; or
        scale: one factor per spatial axis: y has ⌊size · scale⌋ elements, at points 1 / scale apart.
        method: "nearest", "nearest-exact", "linear" or "cubic"; "bilinear", "trilinear" and "bicubic" are
            other names of the last two.
        align_corners: whether the first and last points of x and y coincide, and not their outer edges.
        antialias: whether the filter is stretched where y has fewer points than x, so that it sees all of x.
        a: of the cubic filter; None is −0.75, with antialias −0.5.

    Returns:
        y [*n, *out, c], in the dtype of x; sums are in float32 or wider.

    Raises:
        ShapeError: x has too few axes, or no element along one of them.
        DTypeError: x is not floating-point, or an option of the wrong type.
        ValueRangeError: an option is out of range, both or none of size and scale are given, or align_corners
            or antialias to a method that has none.

    >>> x = jnp.array([0.0, 4.0])[:, None]
    >>> fn.resize.apply(x, size=(4,)).ravel().tolist()
    [0.0, 1.0, 3.0, 4.0]
    """
    x = _check.floating("resize.apply", "x", x)
    _static("resize.apply", x, size, scale, method, align_corners, antialias, a)
    options = {"align_corners": align_corners, "antialias": antialias, "a": a}
    return rules.call(vjp, x, size=size, scale=scale, method=method, **options)


def vjp(
    x: Float[Array, "*n_and_size c"],
    *,
    size: Sequence[int] | None = None,
    scale: Sequence[float] | None = None,
    method: str = "linear",
    align_corners: bool = False,
    antialias: bool = False,
    a: float | None = None,
) -> tuple[Float[Array, "*n_and_out c"], Partial]:
    """y and its pullback, the transposed matrix of each axis: dx[i] = Σ_o A[o, i] dy[o]. No residuals."""
    axes = _static("resize.vjp", x, size, scale, method, align_corners, antialias, a)
    return _axes.forward(x, axes), Partial(rules.bind(_pullback, axes=axes))


def _pullback(dy: Array, *, axes: tuple[Axis, ...]) -> tuple[Array]:
    return (_axes.adjoint(dy, axes),)


def matrix(
    in_shape: tuple[int, ...],
    *,
    size: Sequence[int] | None = None,
    scale: Sequence[float] | None = None,
    method: str = "linear",
    align_corners: bool = False,
    antialias: bool = False,
    a: float | None = None,
) -> Float[Array, "out in"]:
    """The map x → y as a dense matrix [Π out · c, Π size · c], for one x of shape (*size, c)."""
    axes = _of_example("resize.matrix", in_shape, size, scale, method, align_corners, antialias, a)
    return _axes.matrix(axes, in_shape[-1])


def operator(
    in_shape: tuple[int, ...],
    *,
    size: Sequence[int] | None = None,
    scale: Sequence[float] | None = None,
    method: str = "linear",
    align_corners: bool = False,
    antialias: bool = False,
    a: float | None = None,
) -> Operator:
    """The map x → y, for one x of shape (*size, c), as an operator. See `funcnet.linalg`.

    >>> A = operator((2, 1), size=(4,))
    >>> (A @ jnp.array([0.0, 4.0])).tolist()
    [0.0, 1.0, 3.0, 4.0]
    """
    axes = _of_example("resize.operator", in_shape, size, scale, method, align_corners, antialias, a)
    return _axes.operator(axes, in_shape[-1])


def cost(
    x: Float[Abstract, "*n_and_size c"],
    *,
    size: Sequence[int] | None = None,
    scale: Sequence[float] | None = None,
    method: str = "linear",
    align_corners: bool = False,
    antialias: bool = False,
    a: float | None = None,
) -> Cost:
    """2 flops for every tap of every output, axis by axis; "nearest" has none. The bytes of x and y."""
    options = {"align_corners": align_corners, "antialias": antialias, "a": a}
    options |= {"size": size, "scale": scale, "method": method}
    flops = _axes.flops(x.shape, _static("resize.cost", x, **options))
    return Cost(flops, traffic(reference, x, **options))


# ---- one axis ---------------------------------------------------------------------------------------------


def _row(
    size: Any,
    out: Any,
    scale: float | None,
    method: str,
    align_corners: bool,
    antialias: bool,
    a: float | None,
) -> Taps:
    """What each of `out` points of an axis of `size` sees."""
    xp = _axes.xp(size, out)
    real = np.dtype(float) if xp is np else jnp.zeros(()).dtype
    o = xp.arange(out, dtype=real)
    if method.startswith("nearest"):
        half = int(method == "nearest-exact")
        if scale is None:  # in integers: the quotient of floats may fall short of one
            o, n, m = (
                xp.arange(out, dtype=np.int32),
                count(size, np.dtype("int32")),
                count(out, np.dtype("int32")),
            )
            index = (2 * o + half) * n // (2 * m)
        else:
            index = xp.floor((o + half / 2) / scale)
        return Taps(_clipped(xp, index, size)[:, None])
    n, m = count(size, real), count(out, real)
    step = (n - 1) / xp.maximum(m - 1, 1) if align_corners else n / m if scale is None else 1 / scale
    if antialias:
        return _stretched(
            size, out, step if m > 1 or not align_corners else 0.0, method, -0.5 if a is None else a
        )
    p = o * step if align_corners else (o + 0.5) * step - 0.5
    p = xp.clip(p, 0, n - 1) if method == "linear" else p
    t = p - xp.floor(p)
    places = np.arange(2) if method == "linear" else np.arange(-1, 3)
    if method == "linear":
        weight = xp.stack([1 - t, t], 1)
    else:
        weight = xp.stack([_cubic(xp, t - int(place), -0.75 if a is None else a) for place in places], 1)
    return Taps(xp.stack([_clipped(xp, xp.floor(p) + int(place), size) for place in places], 1), weight)


def _clipped(xp: Any, index: Any, size: Any) -> Any:
    """The nearest position that there is: x is continued by its last element."""
    return xp.clip(index.astype(np.int32), 0, count(size, np.dtype("int32")) - 1)


def _stretched(size: int, out: int, step: float, method: str, a: float) -> Taps:
    """The filter as wide as the points of y lie apart, over the elements of x that it meets."""
    wide = max(step, 1.0)
    radius, centre = wide * (1 if method == "linear" else 2), (np.arange(out) + 0.5) * step
    first = np.maximum(np.floor(centre - radius + 0.5).astype(int), 0)
    end = np.minimum(np.floor(centre + radius + 0.5).astype(int), size)
    index = first[:, None] + np.arange(int((end - first).max()))
    t = (index - centre[:, None] + 0.5) / wide
    weight = np.maximum(1 - np.abs(t), 0) if method == "linear" else _cubic(np, t, a)
    weight = np.where(index < end[:, None], weight, 0)
    return Taps(np.minimum(index, size - 1), weight / weight.sum(1, keepdims=True))


def _cubic(xp: Any, t: Any, a: float) -> Any:
    t = xp.abs(t)
    near, far = ((a + 2) * t - (a + 3)) * t * t + 1, a * (((t - 5) * t + 8) * t - 4)
    return xp.where(t <= 1, near, xp.where(t < 2, far, 0))


# ---- checks -----------------------------------------------------------------------------------------------


def _static(
    where: str,
    x: jax.Array | jax.ShapeDtypeStruct,
    size: Any,
    scale: Any,
    method: Any,
    align_corners: Any,
    antialias: Any,
    a: Any,
) -> tuple[Axis, ...]:
    if (size is None) == (scale is None):
        raise ValueRangeError(
            f"{where}: {'neither' if size is None else 'both'} of size and scale is given.",
            path="size",
            expected="size: the sizes of y; or scale: a factor per spatial axis",
            actual=f"size: {describe(size)}, scale: {describe(scale)}",
        )
    scales = None if scale is None else _factors(where, scale)
    outs = () if size is None else _axes.entries(where, "size", size)
    _check.one_of(where, "method", method, _METHODS)
    method = _ALIASES.get(method, method)
    options = {
        name: _check.flag(where, name, value)
        for name, value in (("align_corners", align_corners), ("antialias", antialias))
    }
    for name, value in options.items():
        if value and method.startswith("nearest"):
            raise ValueRangeError(
                f'{where}: method "{method}" has no {name}.',
                path=name,
                expected=f'{name}=False, or method "linear" or "cubic"',
                actual=f"{name} = {value}",
            )
    a = None if a is None else _check.number(where, "a", a, least=-math.inf)
    sizes = _axes.spatial(where, x, len(outs if scales is None else scales))
    _axes.elements(where, x, sizes)
    axes = []
    for i, n in enumerate(sizes):
        factor = None if scales is None else scales[i]
        out = outs[i] if factor is None else _out(where, n, factor)
        if options["antialias"] and not known(n):
            raise ShapeError(
                f"{where}: how much the filter of antialias sees depends on a size that is a symbol.",
                path="x",
                expected="spatial axes of a known size",
                actual=f"x: {describe(x)}",
            )
        axes.append(Axis(i - len(sizes) - 1, n, out, _row, (factor, method, *options.values(), a)))
    return tuple(axes)


def _factors(where: str, scale: Any) -> tuple[float, ...]:
    if not isinstance(scale, Sequence) or isinstance(scale, str | bytes) or not 1 <= len(scale) <= 3:
        raise DTypeError(
            f"{where}: scale is not a tuple of 1 to 3 factors.",
            path="scale",
            expected="scale: one factor per spatial axis",
            actual=f"scale: {describe(scale)}",
        )
    return tuple(_check.number(where, "scale", factor, strict=True) for factor in scale)


def _out(where: str, size: Any, scale: float) -> Any:
    """⌊size · scale⌋, at least 1."""
    if scale.is_integer():
        out = size * int(scale)
    elif known(size):
        out = math.floor(size * scale)
    else:
        raise ShapeError(
            f"{where}: a size that is a symbol times {scale:g} is not known to be an integer.",
            path="scale",
            expected="size, or an integral scale",
            actual=f"scale = {scale:g}",
        )
    if known(out) and not 1 <= out < 2**31:
        raise ValueRangeError(
            f"{where}: scale leaves {out} elements of {size}.",
            path="scale",
            expected="1 ≤ ⌊size · scale⌋ < 2³¹",
            actual=f"scale = {scale:g}",
        )
    return out


def _of_example(where: str, in_shape: Any, size: Any, scale: Any, *options: Any) -> tuple[Axis, ...]:
    entries = size if size is not None else scale
    d = len(entries) if isinstance(entries, Sequence) else 0
    x = _axes.example(where, in_shape, d, "size" if size is not None else "scale") if d else None
    x = jax.ShapeDtypeStruct((1,) * 4, jnp.float32) if x is None else x  # what is wrong is said of the option
    return _static(where, x, size, scale, *options)
