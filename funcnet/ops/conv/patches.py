"""The patches of a grid: y[n, o, (k, c)] = x̂[n, o·stride + k·dilation − low, c].

Beyond the border x̂ has zeros. A convolution whose kernel is the identity: y @ w.reshape(-1, c_out) is the
convolution with w. Dimensions: *n any leading axes (batch), o and k positions along 1 to 3 spatial axes, c
channels: x [*n, *size, c], y [*n, *out, Π kernel · c], the places k in C order, of each its channels.
PyTorch's Unfold has (c, k) and puts them before the positions. `fold` is the transpose.
"""

from collections.abc import Sequence

from jax.tree_util import Partial
from jaxtyping import Array, Float

from funcnet import rules
from funcnet.linalg import Operator
from funcnet.ops import _check
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._dtype import narrow, wide
from funcnet.ops.conv import _pool, _taps, _toeplitz
from funcnet.ops.conv._window import Padding, Window

__all__ = ["apply", "cost", "matrix", "operator", "reference", "vjp"]


def reference(
    x: Float[Array, "*n_and_size c"],
    *,
    kernel: Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: Padding = "valid",
    dilation: int | Sequence[int] = 1,
) -> Float[Array, "*n_and_out p"]:
    """The elements of every window, as the definitions of the pools see them."""
    axes = _pool.axes("patches.reference", x, kernel, stride, padding, dilation, empty=True)
    y = _pool.windows(x, axes, 0.0).swapaxes(-1, -2)
    return y.reshape(*y.shape[:-2], y.shape[-2] * y.shape[-1])


@rules.operation
def apply(
    x: Float[Array, "*n_and_size c"],
    *,
    kernel: Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: Padding = "valid",
    dilation: int | Sequence[int] = 1,
) -> Float[Array, "*n_and_out p"]:
    """Lay out what each window sees along the last axis.

    JAX's own derivative of this is the formula of `vjp`, so nothing is attached to it.

    Args:
        x: [*n, *size, c], channels last.
        kernel: the window, one size per spatial axis; its length says how many of them x has.
        stride: step between windows, an int or one per spatial axis.
        padding: "valid" (none), "same" (⌈size / stride⌉ windows, as XLA pads), "causal" (all at the start),
            or one (low, high) pair per spatial axis. There stand zeros; `pad.apply` has other borders.
        dilation: step between the elements of a window, an int or one per spatial axis.

    Returns:
        y [*n, *out, Π kernel · c], in the dtype of x.

    Raises:
        ShapeError: x has too few axes, or an option the wrong number of entries.
        DTypeError: x is not floating-point, or kernel not a tuple.
        ValueRangeError: an option is out of range.

    >>> x = jnp.arange(4.0)[:, None]
    >>> fn.patches.apply(x, kernel=(2,)).tolist()
    [[0.0, 1.0], [1.0, 2.0], [2.0, 3.0]]
    """
    x = _check.floating("patches.apply", "x", x)
    found, sizes = _taps.spatial("patches.apply", x, kernel)
    window = _taps.window("patches.apply", sizes, found, stride, padding, dilation)
    return narrow(
        _taps.gathered(x.astype(wide(x.dtype)), window), x
    )  # so that its transpose adds up in float32


def vjp(
    x: Float[Array, "*n_and_size c"],
    *,
    kernel: Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: Padding = "valid",
    dilation: int | Sequence[int] = 1,
) -> tuple[Float[Array, "*n_and_out p"], Partial]:
    """y and its pullback, `fold`: dx[p] = Σ dy[o, k] over the windows and places that see p. No residuals."""
    kernel, sizes = _taps.spatial("patches.vjp", x, kernel)
    window = _taps.window("patches.vjp", sizes, kernel, stride, padding, dilation)
    return _taps.gathered(x, window), Partial(rules.bind(_pullback, window=window))


def _pullback(dy: Array, *, window: Window) -> tuple[Array]:
    return (_taps.summed(dy, window),)


def matrix(
    in_shape: tuple[int, ...],
    *,
    kernel: Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: Padding = "valid",
    dilation: int | Sequence[int] = 1,
) -> Float[Array, "out in"]:
    """The map x → y of one x of shape (*size, c): a 1 for every element of a patch that is no border."""
    return _toeplitz.matrix(*_of_example("patches.matrix", in_shape, kernel, stride, padding, dilation))


def operator(
    in_shape: tuple[int, ...],
    *,
    kernel: Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: Padding = "valid",
    dilation: int | Sequence[int] = 1,
) -> Operator:
    """The same map as an operator, that of the convolution. See `funcnet.linalg`.

    >>> import jax.numpy as jnp
    >>> A = operator((3, 1), kernel=(2,))
    >>> (A @ jnp.array([1.0, 2.0, 3.0])).tolist()
    [1.0, 2.0, 2.0, 3.0]
    """
    return _toeplitz.operator(*_of_example("patches.operator", in_shape, kernel, stride, padding, dilation))


def cost(
    x: Float[Abstract, "*n_and_size c"],
    *,
    kernel: Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: Padding = "valid",
    dilation: int | Sequence[int] = 1,
) -> Cost:
    """No products: 0 flops, and the bytes of x and y."""
    options = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    return Cost(0, traffic(reference, x, **options))


def _of_example(
    where: str,
    in_shape: tuple[int, ...],
    kernel: Sequence[int],
    stride: int | Sequence[int],
    padding: Padding,
    dilation: int | Sequence[int],
) -> tuple[Array, _toeplitz.Map]:
    x = _taps.example(where, in_shape, kernel)
    kernel, sizes = _taps.spatial(where, x, kernel)
    return _taps.as_convolution(_taps.window(where, sizes, kernel, stride, padding, dilation), x.shape[-1])
