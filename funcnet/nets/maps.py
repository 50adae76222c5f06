"""The linear maps and convolutions of a net, each in one part or factored: what nets call for them.

Params are those of `linear` or `conv`; or "down" and "up" stand in the place of w, which is their product,
and the map is two in a row: from all features or channels to r of them, then from those to all.
`lowrank.compress` makes such params. The projections of `multihead` are maps of this kind by themselves.
"""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Array, Float

from funcnet.errors import describe
from funcnet.ops import _check, _factored
from funcnet.ops.conv import conv as convolution
from funcnet.ops.dense import linear as affine

__all__ = ["conv", "linear"]


def linear(params: Mapping[str, Any], x: Float[Array, "*n d_in"]) -> Float[Array, "*n d_out"]:
    """y = x W + b, or (x · down) · up + b.

    Args:
        params: w [d_in, d_out], or down [d_in, r] and up [r, d_out]; b [d_out], which may be absent.
        x: [*n, d_in].

    Raises:
        ShapeError: x does not have d_in features, or the parts do not fit together.
        DTypeError, StructureError: as in `linear.apply`.

    >>> import jax.numpy as jnp
    >>> linear({"down": jnp.ones((3, 1)), "up": jnp.ones((1, 2))}, jnp.arange(3.0)).tolist()
    [3.0, 3.0]
    """
    for part in _parts("nets.maps.linear", params, x):
        x = affine.apply(part, x)
    return x


def conv(params: Mapping[str, Any], x: Array, **options: Any) -> Array:
    """`conv.apply`; where params are factored, a convolution to r channels, then a product at each position.

    Args:
        params: w [*kernel, c_in, c_out], or down [*kernel, c_in, r] and up [r, c_out]; b [c_out], which may
            be absent. With groups, w.
        x: [*n, *size, c_in].
        options: of `conv.apply`.

    Raises:
        What `conv.apply` raises, and ShapeError where the parts do not fit together.
    """
    first, *rest = _parts("nets.maps.conv", params, x)
    x = convolution.apply(first, x, **options)
    for part in rest:
        x = affine.apply(part, x)
    return x


def _parts(where: str, params: Mapping[str, Any], x: Any) -> list[Any]:
    if _factored.is_factored(params):
        _check.mapping(where, "params", params)
        _factored.check(where, "params", params)
        x, down = _check.floating(where, "x", x), params["down"]
        _check.features(where, x, down.shape[-2], f'params["down"] ({describe(down)})')
    return _factored.parts(params)
