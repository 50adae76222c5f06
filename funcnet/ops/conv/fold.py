"""Patches put back: y[n, p, c] = Σ x[n, o, (k, c)] over the o and k with o·stride + k·dilation − low = p.

The transpose of `patches`, not its inverse: where windows overlap they add up. Dimensions: *n any leading
axes (batch), o and k positions along 1 to 3 spatial axes, p those of y, c channels: x [*n, *out, Π kernel ·
c], the places k in C order, of each its channels; y [*n, *size, c]. What lies on the border is dropped. Sums
are in float32 or wider. ONNX's Col2Im and PyTorch's Fold have (c, k), and put them before the positions.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from funcnet import rules
from funcnet.linalg import Operator
from funcnet.ops import _check
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._dtype import wide
from funcnet.ops.conv import _taps, _toeplitz
from funcnet.ops.conv._window import Padding, Window, per_axis

__all__ = ["apply", "cost", "matrix", "operator", "reference", "vjp"]


def reference(
    x: Float[Array, "*n_and_out p"],
    *,
    size: Sequence[int],
    kernel: Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: Padding = "valid",
    dilation: int | Sequence[int] = 1,
) -> Float[Array, "*n_and_size c"]:
    """For every place in the window, the elements that lie there, added where the windows put them."""
    window = _window("fold.reference", x, size, kernel, stride, padding, dilation)
    c = x.shape[-1] // math.prod(window.kernel)
    lead = x.shape[: x.ndim - len(window.sizes) - 1]
    padded = [low + n + high for n, (low, high) in zip(window.sizes, window.padding, strict=True)]
    y = jnp.zeros((*lead, *padded, c), wide(x.dtype))
    for i, (_, put) in enumerate(window.taps):
        y = y.at[(..., *put, slice(None))].add(x[..., i * c : (i + 1) * c].astype(y.dtype))
    inside = (slice(low, low + n) for n, (low, _) in zip(window.sizes, window.padding, strict=True))
    return y[(..., *inside, slice(None))].astype(x.dtype)


@rules.operation
def apply(
    x: Float[Array, "*n_and_out p"],
    *,
    size: Sequence[int],
    kernel: Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: Padding = "valid",
    dilation: int | Sequence[int] = 1,
) -> Float[Array, "*n_and_size c"]:
    """Add the patches in the last axis up to a grid of `size`.

    JAX's own derivative of this is the formula of `vjp`, so nothing is attached to it.

    Args:
        x: [*n, *out, Π kernel · c], as `patches.apply` gives it.
        size: the sizes of y, one per spatial axis.
        kernel: the window, one size per spatial axis; its length says how many of them there are.
        stride: step between windows, an int or one per spatial axis.
        padding: that of `patches.apply`: what it added to y is dropped.
        dilation: step between the elements of a window, an int or one per spatial axis.

    Returns:
        y [*n, *size, c], in the dtype of x.

    Raises:
        ShapeError: x has too few axes, is not what a grid of this size gives, or an option has the wrong
            number of entries.
        DTypeError: x is not floating-point, or kernel not a tuple.
        ValueRangeError: an option is out of range.

    >>> x = jnp.ones((3, 2))  # three windows of two
    >>> fn.fold.apply(x, size=(4,), kernel=(2,)).ravel().tolist()
    [1.0, 2.0, 2.0, 1.0]
    """
    x = _check.floating("fold.apply", "x", x)
    return _taps.summed(x, _window("fold.apply", x, size, kernel, stride, padding, dilation))


def vjp(
    x: Float[Array, "*n_and_out p"],
    *,
    size: Sequence[int],
    kernel: Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: Padding = "valid",
    dilation: int | Sequence[int] = 1,
) -> tuple[Float[Array, "*n_and_size c"], Partial]:
    """y and its pullback, `patches`: dx[o, k] = dy[o·stride + k·dilation − low], and 0 beyond the border."""
    window = _window("fold.vjp", x, size, kernel, stride, padding, dilation)
    return _taps.summed(x, window), Partial(rules.bind(_pullback, window=window))


def _pullback(dy: Array, *, window: Window) -> tuple[Array]:
    return (_taps.gathered(dy, window),)


def matrix(
    in_shape: tuple[int, ...],
    *,
    size: Sequence[int],
    kernel: Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: Padding = "valid",
    dilation: int | Sequence[int] = 1,
) -> Float[Array, "out in"]:
    """The map x → y of one x of shape (*out, Π kernel · c): the transpose of that of `patches`."""
    options = size, kernel, stride, padding, dilation
    return _toeplitz.matrix(*_of_example("fold.matrix", in_shape, *options)).T


def operator(
    in_shape: tuple[int, ...],
    *,
    size: Sequence[int],
    kernel: Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: Padding = "valid",
    dilation: int | Sequence[int] = 1,
) -> Operator:
    """The same map as an operator, that of the transposed convolution. See `funcnet.linalg`.

    >>> A = operator((2, 2), size=(3,), kernel=(2,))
    >>> (A @ jnp.ones(4)).tolist()
    [1.0, 2.0, 1.0]
    """
    options = size, kernel, stride, padding, dilation
    return _toeplitz.operator(*_of_example("fold.operator", in_shape, *options)).T


def cost(
    x: Float[Abstract, "*n_and_out p"],
    *,
    size: Sequence[int],
    kernel: Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: Padding = "valid",
    dilation: int | Sequence[int] = 1,
) -> Cost:
    """No products: 0 flops, and the bytes of x and y."""
    options = {"size": size, "kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    return Cost(0, traffic(reference, x, **options))


def _window(
    where: str,
    x: jax.Array | jax.ShapeDtypeStruct,
    size: Sequence[int],
    kernel: Sequence[int],
    stride: int | Sequence[int],
    padding: Padding,
    dilation: int | Sequence[int],
) -> Window:
    kernel, _ = _taps.spatial(where, x, kernel)
    sizes = per_axis(where, "size", size, len(kernel), least=0)
    window = _taps.window(where, sizes, kernel, stride, padding, dilation)
    _taps.check_patches(where, x, window)
    return window


def _of_example(
    where: str,
    in_shape: tuple[int, ...],
    size: Sequence[int],
    kernel: Sequence[int],
    stride: int | Sequence[int],
    padding: Padding,
    dilation: int | Sequence[int],
) -> tuple[Array, _toeplitz.Map]:
    x = _taps.example(where, in_shape, kernel)
    window = _window(where, x, size, kernel, stride, padding, dilation)
    return _taps.as_convolution(window, x.shape[-1] // math.prod(window.kernel))
