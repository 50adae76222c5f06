"""The check that the nets for images share."""

import math
from typing import Any

from jaxtyping import Array, Float

from funcnet import rules
from funcnet.errors import ShapeError, describe
from funcnet.ops import _check

__all__ = ["check", "flat"]


def check(where: str, images: Any, shape: tuple[int, int, int]) -> Array:
    """`images` as floats [*n, *shape], shape being config.image: height, width, channels.

    Raises:
        ShapeError: they are not.
        DTypeError: they are not floating-point.
    """
    if _check.dtype_of(images) is None or images.shape[-3:] == shape:
        return _check.floating(where, "images", images)
    hint = None
    if images.shape[-3:] == (shape[2], *shape[:2]):
        hint = "channels first? jnp.moveaxis(images, -3, -1) puts them last."
    elif (*images.shape[-2:], 1) == shape:
        hint = "is the channel axis missing? images[..., None] adds it."
    raise ShapeError(
        f"{where}: images have another shape than the model was made for.",
        path="images",
        expected=f"images: float[*n, {', '.join(map(str, shape))}]     (config.image)",
        actual=f"images: {describe(images)}",
        hint=hint,
    )


@rules.by_letters
def flat(x: Float[Array, "*n h w c"]) -> Float[Array, "*n k"]:
    """All that is known of an image as one row."""
    return x.reshape(*x.shape[:-3], math.prod(x.shape[-3:]))
