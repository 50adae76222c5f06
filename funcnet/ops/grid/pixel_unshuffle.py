"""Pixels to channels: y[n, p, (c, k)] = x[n, p · r + k, c], the inverse of `pixel_shuffle`.

Dimensions: *n any leading axes (batch), p positions along 1 to 3 spatial axes, k those in a block of
r₁ × ... × r_d pixels, c channels: x [*n, *(size · r), c], y [*n, *size, c · Π r]. The channels of y are pairs
(c, k) in C order, or (k, c) with `order` "channel last": PyTorch's PixelUnshuffle and TensorFlow's
space_to_depth.
"""

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
    x: Float[Array, "*n_and_out c"], *, factor: Sequence[int], order: str = "channel first"
) -> Float[Array, "*n_and_size c_out"]:
    """Of every place k in a block, the pixels that lie there, as channels."""
    stack = [
        x[(..., *(slice(a, None, r) for a, r in zip(k, factor, strict=True)), slice(None))]
        for k in _pixels.block(tuple(factor))
    ]
    y = jnp.stack(stack, -2 if order == "channel last" else -1)
    return y.reshape(*y.shape[:-2], y.shape[-2] * y.shape[-1])


@rules.operation
def apply(
    x: Float[Array, "*n_and_out c"], *, factor: Sequence[int], order: str = "channel first"
) -> Float[Array, "*n_and_size c_out"]:
    """Stack the pixels of every block as channels. Nothing is computed, so no rule is attached.

    Args:
        x: [*n, *(size · r), c], channels last.
        factor: r, the sides of a block, one per spatial axis: how many there are is how many x has.
        order: "channel first": a block's pixels are neighbours among the channels of y; "channel last": its
            channels are.

    Returns:
        y [*n, *size, c · Π r], in the dtype of x.

    Raises:
        ShapeError: x has too few axes, or blocks do not fill it.
        DTypeError: x is not floating-point, or factor not a tuple.
        ValueRangeError: a factor is not positive, or there is no such order.

    >>> fn.pixel_unshuffle.apply(jnp.ones((8, 8, 3)), factor=(2, 2)).shape
    (4, 4, 12)
    """
    where = "pixel_unshuffle.apply"
    x = _check.floating(where, "x", x)
    return _pixels.unshuffled(x, _factor(where, x, factor, order), order)


def vjp(
    x: Float[Array, "*n_and_out c"], *, factor: Sequence[int], order: str = "channel first"
) -> tuple[Float[Array, "*n_and_size c_out"], Partial]:
    """y and its pullback, the inverse: every channel's dy to its pixel. No residuals."""
    factor = _factor("pixel_unshuffle.vjp", x, factor, order)
    return _pixels.unshuffled(x, factor, order), Partial(rules.bind(_pullback, factor=factor, order=order))


def _pullback(dy: Array, *, factor: tuple[int, ...], order: str) -> tuple[Array]:
    return (_pixels.shuffled(dy, factor, order),)


def matrix(
    in_shape: tuple[int, ...], *, factor: Sequence[int], order: str = "channel first"
) -> Float[Array, "out in"]:
    """The map x → y of one x of shape (*(size · r), c), as a permutation matrix."""
    where = "pixel_unshuffle.matrix"
    x = _axes.example(where, in_shape, len(_axes.entries(where, "factor", factor)), "factor")
    factor = _factor(where, x, factor, order)
    return _pixels.permutation(x.shape, lambda v: _pixels.unshuffled(v, factor, order))


def cost(x: Float[Abstract, "*n_and_out c"], *, factor: Sequence[int], order: str = "channel first") -> Cost:
    """No products: 0 flops, and the bytes of x and y."""
    return Cost(0, traffic(reference, x, factor=factor, order=order))


def _factor(
    where: str, x: jax.Array | jax.ShapeDtypeStruct, factor: Sequence[int], order: str
) -> tuple[int, ...]:
    factor = _pixels.check(where, x, factor, order)
    sizes = x.shape[-len(factor) - 1 : -1]
    if any(size % r for size, r in zip(sizes, factor, strict=True)):
        raise ShapeError(
            f"{where}: blocks of {' × '.join(map(str, factor))} pixels do not fill x.",
            path="x",
            expected=f"spatial axes of multiples of them     (factor = {factor})",
            actual=f"x: {describe(x)}",
            hint="pad it first: fn.pad.apply.",
        )
    return factor
