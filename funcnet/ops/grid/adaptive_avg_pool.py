"""Adaptive average pooling: y = (A₁ ⊗ ... ⊗ A_d ⊗ I_c) x, the means of `size` windows that cover each axis.

Along an axis of n elements window o of m reaches from ⌊o n / m⌋ to ⌈(o + 1) n / m⌉: neighbours share an
element where m does not divide n. Of size 1 along every axis it is the global average. Dimensions: *n any
leading axes (batch), o positions along 1 to 3 spatial axes, c channels: x [*n, *in, c], y [*n, *size, c].
Sums are in float32 or wider. Source: He et al., "Spatial pyramid pooling in deep convolutional networks",
arXiv 1406.4729.
"""

from collections.abc import Sequence

from jax.tree_util import Partial
from jaxtyping import Array, Float

from funcnet import rules
from funcnet.linalg import Operator
from funcnet.ops import _check
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops.grid import _axes, _windows
from funcnet.ops.grid._axes import Axis

__all__ = ["apply", "cost", "matrix", "operator", "reference", "vjp"]


def reference(x: Float[Array, "*n_and_in c"], *, size: Sequence[int]) -> Float[Array, "*n_and_size c"]:
    """Along one axis after the other, the sum of each window over its length."""
    return _axes.reference(x, _windows.axes("adaptive_avg_pool.reference", x, size))


@rules.operation
def apply(x: Float[Array, "*n_and_in c"], *, size: Sequence[int]) -> Float[Array, "*n_and_size c"]:
    """Average x down to `size`, channel by channel.

    JAX's own derivative of this is the formula of `vjp`, and as fast, so nothing is attached to it.

    Args:
        x: [*n, *in, c], channels last.
        size: how many windows, one number per spatial axis; (1, 1) is the global average of images.

    Returns:
        y [*n, *size, c], in the dtype of x.

    Raises:
        ShapeError: x has too few axes, no element along one of them, or one of unknown size that more than
            one window is to cover.
        DTypeError: x is not floating-point, or size not a tuple.
        ValueRangeError: a size is not positive.

    >>> x = jnp.arange(5.0)[:, None]
    >>> fn.adaptive_avg_pool.apply(x, size=(2,)).ravel().tolist()
    [1.0, 3.0]
    """
    x = _check.floating("adaptive_avg_pool.apply", "x", x)
    return _axes.forward(x, _windows.axes("adaptive_avg_pool.apply", x, size))


def vjp(
    x: Float[Array, "*n_and_in c"], *, size: Sequence[int]
) -> tuple[Float[Array, "*n_and_size c"], Partial]:
    """y and its pullback: dx[i] = Σ dy[o] / length[o] over the windows o that see i. No residuals."""
    axes = _windows.axes("adaptive_avg_pool.vjp", x, size)
    return _axes.forward(x, axes), Partial(rules.bind(_pullback, axes=axes))


def _pullback(dy: Array, *, axes: tuple[Axis, ...]) -> tuple[Array]:
    return (_axes.adjoint(dy, axes),)


def matrix(in_shape: tuple[int, ...], *, size: Sequence[int]) -> Float[Array, "out in"]:
    """The map x → y as a dense matrix [Π size · c, Π in · c], for one x of shape (*in, c)."""
    where = "adaptive_avg_pool.matrix"
    x = _axes.example(where, in_shape, len(_axes.entries(where, "size", size)), "size")
    return _axes.matrix(_windows.axes(where, x, size), x.shape[-1])


def operator(in_shape: tuple[int, ...], *, size: Sequence[int]) -> Operator:
    """The map x → y, for one x of shape (*in, c), as an operator. See `funcnet.linalg`.

    >>> import jax.numpy as jnp
    >>> A = operator((3, 1), size=(2,))
    >>> (A @ jnp.array([1.0, 3.0, 5.0])).tolist()
    [2.0, 4.0]
    """
    where = "adaptive_avg_pool.operator"
    x = _axes.example(where, in_shape, len(_axes.entries(where, "size", size)), "size")
    return _axes.operator(_windows.axes(where, x, size), x.shape[-1])


def cost(x: Float[Abstract, "*n_and_in c"], *, size: Sequence[int]) -> Cost:
    """2 flops for every element of every window, axis by axis; the bytes of x and y."""
    flops = _axes.flops(x.shape, _windows.axes("adaptive_avg_pool.cost", x, size))
    return Cost(flops, traffic(reference, x, size=size))
