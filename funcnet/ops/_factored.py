"""A linear map whose matrix is a product, w = down · up, through few features: {"down", "up"} in w's place.

down has the axes of w that x is multiplied by, then r, the rank; up has r, then the axes that y gets. So two
maps in a row are the map, y = (x · down) · up + b, with r (d_in + d_out) numbers instead of d_in · d_out.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from funcnet.errors import ShapeError, describe
from funcnet.ops import _check

__all__ = ["check", "in_parts", "is_factored", "kernel", "parts"]


_NAMES = ("down", "up")


def is_factored(params: Any) -> bool:
    """Whether they are a map in two parts: arrays, as a block of a transformer has maps of these names."""
    if not isinstance(params, Mapping) or params.get("w") is not None:
        return False
    return all(params.get(name) is not None and not isinstance(params[name], Mapping) for name in _NAMES)


def parts(params: Mapping[str, Any]) -> list[Any]:
    """The maps in a row that make up a map: itself, or its two parts, of which the second has the bias.

    >>> [list(part) for part in parts({"down": jnp.ones((3, 1)), "up": jnp.ones((1, 5)), "b": jnp.ones(5)})]
    [['w'], ['w', 'b']]
    """
    if not is_factored(params):
        return [params]
    rest = {name: leaf for name, leaf in params.items() if name not in (*_NAMES, "w")}
    return [{"w": params["down"]}, {"w": params["up"], **rest}]


def in_parts(params: Mapping[str, Any], down: Any, up: Any) -> dict[str, Any]:
    """The same with these in the place of w: of a map's parameters, or of what belongs to them."""
    return {"down": down, "up": up, **{name: leaf for name, leaf in params.items() if name != "w"}}


def kernel(params: Mapping[str, Any]) -> Any:
    """w, of a map in two parts as its shape and dtype."""
    if not is_factored(params):
        return params["w"]
    down, up = params["down"], params["up"]
    return jax.ShapeDtypeStruct((*down.shape[:-1], *up.shape[1:]), jnp.promote_types(down.dtype, up.dtype))


def check(where: str, path: str, params: Any) -> None:
    """Refuse a map in two parts that do not fit together.

    Raises:
        ShapeError: the rank of one is not that of the other.
        DTypeError: one is not floating-point.
    """
    if not is_factored(params):
        return
    down, up = (_check.floating(where, f'{path}["{name}"]', params[name]) for name in _NAMES)
    if min(down.ndim, up.ndim) < 2 or down.shape[-1] != up.shape[0]:
        raise ShapeError(
            f"{where}: the parts of {path} do not fit together.",
            path=f'{path}["up"]',
            expected=f'{path}["up"]: float[{down.shape[-1] if down.ndim else "r"}, ...]     '
            f'({path}["down"]: {describe(down)})',
            actual=f'{path}["up"]: {describe(up)}',
        )
