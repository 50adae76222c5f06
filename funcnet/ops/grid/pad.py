"""A border: y = (A₁ ⊗ ... ⊗ A_d ⊗ I_c) x, a grid continued beyond its ends.

Along one axis y[o] = x̂[o − low], and beyond the ends of x, of n elements, x̂ is by `padding_mode`

    "zeros"    0            "edge"     the last element: x̂[p] = x[min(max(p, 0), n − 1)]
    "reflect"  x̂[−p] = x[p], x̂[n − 1 + p] = x[n − 1 − p]: the last element once
    "circular" x̂[p] = x[p mod n]

Dimensions: *n any leading axes (batch), o and p positions along 1 to 3 spatial axes, c channels:
x [*n, *size, c], y [*n, *(low + size + high), c].
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float

from funcnet import rules
from funcnet.errors import ValueRangeError
from funcnet.linalg import Operator
from funcnet.ops import _check
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._dtype import narrow, wide
from funcnet.ops._shape import count, known
from funcnet.ops.conv._window import explicit
from funcnet.ops.grid import _axes
from funcnet.ops.grid._axes import Axis, Taps

__all__ = ["apply", "cost", "matrix", "operator", "reference", "vjp"]

_MODES = {"zeros": "constant", "edge": "edge", "reflect": "reflect", "circular": "wrap"}


def reference(
    x: Float[Array, "*n_and_size c"], *, padding: Sequence[tuple[int, int]], padding_mode: str = "zeros"
) -> Float[Array, "*n_and_out c"]:
    """Every element of y where it lies in x̂."""
    for axis in _static("pad.reference", x, padding, padding_mode):
        index, weight, _ = axis.taps
        x = jnp.moveaxis(x, axis.at, -1)
        x = (
            x if x.shape[-1] else jnp.zeros_like(x, shape=(*x.shape[:-1], 1))
        )  # of nothing there are only zeros
        x = x[..., jnp.asarray(index[:, 0])]
        x = x if weight is None else jnp.where(jnp.asarray(weight[:, 0] > 0), x, jnp.zeros((), x.dtype))
        x = jnp.moveaxis(x, -1, axis.at)
    return x


@rules.operation
def apply(
    x: Float[Array, "*n_and_size c"], *, padding: Sequence[tuple[int, int]], padding_mode: str = "zeros"
) -> Float[Array, "*n_and_out c"]:
    """Continue x beyond the ends of its spatial axes, of which it has as many as `padding` has pairs.

    `conv.apply` and the pools take their padding themselves. JAX's own derivative of this is the formula of
    `vjp`, so nothing is attached to it.

    Args:
        x: [*n, *size, c], channels last.
        padding: one (low, high) pair per spatial axis: how many elements before the first and after the last.
        padding_mode: what lies there: "zeros", "edge" (PyTorch's replicate), "reflect" or "circular".

    Returns:
        y [*n, *(low + size + high), c], in the dtype of x.

    Raises:
        ShapeError: x has too few axes, or nothing to continue.
        DTypeError: x is not floating-point, or padding no pairs.
        ValueRangeError: padding is negative or, reflected, wider than the axis less one; another mode.

    >>> x = jnp.array([1.0, 2.0])[:, None]
    >>> fn.pad.apply(x, padding=((1, 2),), padding_mode="edge").ravel().tolist()
    [1.0, 1.0, 2.0, 2.0, 2.0]
    """
    x = _check.floating("pad.apply", "x", x)
    return _forward(x, _static("pad.apply", x, padding, padding_mode))


def vjp(
    x: Float[Array, "*n_and_size c"], *, padding: Sequence[tuple[int, int]], padding_mode: str = "zeros"
) -> tuple[Float[Array, "*n_and_out c"], Partial]:
    """y and its pullback: dx[p] = Σ dy[o] over the o that are a copy of x[p]. No residuals."""
    axes = _static("pad.vjp", x, padding, padding_mode)
    return _forward(x, axes), Partial(rules.bind(_pullback, axes=axes))


def _forward(x: Array, axes: tuple[Axis, ...]) -> Array:
    mode: Any = axes[0].options[-1]
    if mode != "zeros" and not known(*(axis.size for axis in axes)):
        return _axes.forward(x, axes)  # jnp compares the border with the size
    pairs: list[Any] = [axis.options[:2] for axis in axes]
    ends = [(0, 0)] * (x.ndim - len(axes) - 1) + pairs + [(0, 0)]
    return narrow(jnp.pad(x.astype(wide(x.dtype)), ends, mode=_MODES[mode]), x)  # its transpose adds up


def _pullback(dy: Array, *, axes: tuple[Axis, ...]) -> tuple[Array]:
    if axes[0].options[-1] != "zeros":
        return (_axes.adjoint(dy, axes),)
    ends: list[Any] = [(axis.options[0], axis.size) for axis in axes]
    inside = (slice(low, low + size) for low, size in ends)
    return (dy[(..., *inside, slice(None))],)


def matrix(
    in_shape: tuple[int, ...], *, padding: Sequence[tuple[int, int]], padding_mode: str = "zeros"
) -> Float[Array, "out in"]:
    """The map x → y as a dense matrix [Π out · c, Π size · c], for one x of shape (*size, c)."""
    return _axes.matrix(*_of_example("pad.matrix", in_shape, padding, padding_mode))


def operator(
    in_shape: tuple[int, ...], *, padding: Sequence[tuple[int, int]], padding_mode: str = "zeros"
) -> Operator:
    """The map x → y, for one x of shape (*size, c), as an operator. See `funcnet.linalg`.

    >>> A = operator((3, 1), padding=((1, 2),), padding_mode="reflect")
    >>> (A @ jnp.array([1.0, 2.0, 3.0])).tolist()
    [2.0, 1.0, 2.0, 3.0, 2.0, 1.0]
    """
    return _axes.operator(*_of_example("pad.operator", in_shape, padding, padding_mode))


def cost(
    x: Float[Abstract, "*n_and_size c"], *, padding: Sequence[tuple[int, int]], padding_mode: str = "zeros"
) -> Cost:
    """No products: 0 flops, and the bytes of x and y."""
    return Cost(0, traffic(reference, x, padding=padding, padding_mode=padding_mode))


def _row(size: Any, out: Any, low: int, high: int, mode: str) -> Taps:
    """The element that each place of the continued axis copies."""
    del high
    xp = _axes.xp(size, out)
    p, n = xp.arange(out, dtype=np.int32) - low, count(size, np.dtype("int32"))
    if mode == "circular":
        return Taps((p % n)[:, None])
    if mode == "reflect":
        return Taps((n - 1 - xp.abs(n - 1 - xp.abs(p)))[:, None])
    index = xp.clip(p, 0, xp.maximum(n - 1, 0))[:, None]
    return Taps(index, (index == p[:, None]) * 1.0 if mode == "zeros" else None)


def _static(
    where: str, x: jax.Array | jax.ShapeDtypeStruct, padding: Any, padding_mode: Any
) -> tuple[Axis, ...]:
    d = len(padding) if isinstance(padding, Sequence) and not isinstance(padding, str | bytes) else 1
    pairs = explicit(where, padding, min(max(d, 1), 3), names="")
    _check.one_of(where, "padding_mode", padding_mode, tuple(_MODES))
    sizes = _axes.spatial(where, x, len(pairs))
    axes = []
    for i, (n, (low, high)) in enumerate(zip(sizes, pairs, strict=True)):
        widest = {"reflect": max(n - 1, 0)}.get(padding_mode, None if n else 0) if known(n) else None
        if padding_mode != "zeros" and widest is not None and max(low, high) > widest:
            raise ValueRangeError(
                f"{where}: a border of {max(low, high)} is too wide for spatial axis {i} of x.",
                path="padding",
                expected=f"at most {widest}     (the axis has size {n}, padding_mode {padding_mode!r})",
                actual=f"padding = {pairs}",
                hint='padding_mode "edge" and "circular" may be wider.' if n else None,
            )
        axes.append(Axis(i - len(sizes) - 1, n, low + n + high, _row, (low, high, padding_mode)))
    return tuple(axes)


def _of_example(where: str, in_shape: Any, padding: Any, padding_mode: Any) -> tuple[tuple[Axis, ...], int]:
    d = len(padding) if isinstance(padding, Sequence) and not isinstance(padding, str | bytes) else 1
    x = _axes.example(where, in_shape, d, "padding")
    return _static(where, x, padding, padding_mode), x.shape[-1]
