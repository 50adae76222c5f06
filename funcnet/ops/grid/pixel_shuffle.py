"""Channels to pixels: y[n, p · r + k, c] = x[n, p, (c, k)], each channel group a block of pixels.

Dimensions: *n any leading axes (batch), p positions along 1 to 3 spatial axes, k those in a block of
r₁ × ... × r_d pixels, c channels: x [*n, *size, c · Π r], y [*n, *(size · r), c]. The channels of x are pairs
(c, k) in C order, or (k, c) with `order` "channel last": PyTorch's PixelShuffle and TensorFlow's
depth_to_space. `pixel_unshuffle` is the inverse.
Source: Shi et al., "Real-time single image and video super-resolution ...", arXiv 1609.05158.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from funcnet import rules
from funcnet.errors import ShapeError, describe
from funcnet.ops import _check
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops.grid import _axes, _pixels

__all__ = ["apply", "cost", "matrix", "reference", "vjp"]


def reference(
    x: Float[Array, "*n_and_size c_in"], *, factor: Sequence[int], order: str = "channel first"
) -> Float[Array, "*n_and_out c"]:
    """Every pixel of a block from its channel."""
    factor = tuple(factor)
    d, c = len(factor), x.shape[-1] // math.prod(factor)
    lead, sizes = x.shape[: x.ndim - d - 1], x.shape[x.ndim - d - 1 : -1]
    y = jnp.zeros((*lead, *(n * r for n, r in zip(sizes, factor, strict=True)), c), x.dtype)
    for i, k in enumerate(_pixels.block(factor)):
        channels = slice(i * c, (i + 1) * c) if order == "channel last" else slice(i, None, math.prod(factor))
        places = (slice(a, None, r) for a, r in zip(k, factor, strict=True))
        y = y.at[(..., *places, slice(None))].set(x[..., channels])
    return y


@rules.operation
def apply(
    x: Float[Array, "*n_and_size c_in"], *, factor: Sequence[int], order: str = "channel first"
) -> Float[Array, "*n_and_out c"]:
    """Lay the channels of every position out as a block of pixels.

    Nothing is computed, so no rule is attached.

    Args:
        x: [*n, *size, c · Π r], channels last.
        factor: r, the sides of a block, one per spatial axis: how many there are is how many x has.
        order: "channel first": a block's pixels are neighbours among the channels of x; "channel last": its
            channels are.

    Returns:
        y [*n, *(size · r), c], in the dtype of x.

    Raises:
        ShapeError: x has too few axes, or channels that no block fills.
        DTypeError: x is not floating-point, or factor not a tuple.
        ValueRangeError: a factor is not positive, or there is no such order.

    >>> fn.pixel_shuffle.apply(jnp.ones((4, 4, 12)), factor=(2, 2)).shape
    (8, 8, 3)
    """
    where = "pixel_shuffle.apply"
    x = _check.floating(where, "x", x)
    return _pixels.shuffled(x, _factor(where, x, factor, order), order)


def vjp(
    x: Float[Array, "*n_and_size c_in"], *, factor: Sequence[int], order: str = "channel first"
) -> tuple[Float[Array, "*n_and_out c"], Partial]:
    """y and its pullback, the inverse: every pixel's dy to its channel. No residuals."""
    factor = _factor("pixel_shuffle.vjp", x, factor, order)
    return _pixels.shuffled(x, factor, order), Partial(rules.bind(_pullback, factor=factor, order=order))


def _pullback(dy: Array, *, factor: tuple[int, ...], order: str) -> tuple[Array]:
    return (_pixels.unshuffled(dy, factor, order),)


def matrix(
    in_shape: tuple[int, ...], *, factor: Sequence[int], order: str = "channel first"
) -> Float[Array, "out in"]:
    """The map x → y of one x of shape (*size, c · Π r), as a permutation matrix."""
    where = "pixel_shuffle.matrix"
    x = _axes.example(where, in_shape, len(_axes.entries(where, "factor", factor)), "factor")
    factor = _factor(where, x, factor, order)
    return _pixels.permutation(x.shape, lambda v: _pixels.shuffled(v, factor, order))


def cost(
    x: Float[Abstract, "*n_and_size c_in"], *, factor: Sequence[int], order: str = "channel first"
) -> Cost:
    """No products: 0 flops, and the bytes of x and y."""
    return Cost(0, traffic(reference, x, factor=factor, order=order))


def _factor(
    where: str, x: jax.Array | jax.ShapeDtypeStruct, factor: Sequence[int], order: str
) -> tuple[int, ...]:
    factor = _pixels.check(where, x, factor, order)
    if x.shape[-1] % math.prod(factor):
        raise ShapeError(
            f"{where}: x has {x.shape[-1]} channels in its last axis, which blocks of "
            f"{' × '.join(map(str, factor))} pixels do not divide.",
            path="x",
            expected=f"a multiple of {math.prod(factor)} channels     (factor = {factor})",
            actual=f"x: {describe(x)}",
        )
    return factor
