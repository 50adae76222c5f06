"""The optional bias params["b"] [d], added along the last axis: absent or None means no bias."""

from collections.abc import Mapping
from typing import Any

import jax

from funcnet.errors import describe
from funcnet.ops import _check
from funcnet.ops._dtype import narrow, wide

__all__ = ["add", "check", "gradient"]


def check(where: str, params: Mapping[str, Any], size: int) -> None:
    """params["b"], where there is one, is a vector of `size` floats, the number that params["w"] fixes."""
    if params.get("b") is not None:
        b = _check.parameter(where, params, "b", ndim=1)
        _check.features(where, b, size, f'params["w"] ({describe(params["w"])})', path='params["b"]', dims="")


def add(y: jax.Array, params: Mapping[str, Any]) -> jax.Array:
    """y + b, in the dtype of y."""
    return y if params.get("b") is None else y + params["b"].astype(y.dtype)


def gradient(params: Mapping[str, Any], dy: jax.Array) -> dict[str, jax.Array | None]:
    """{"b": db}, db = Σ dy over every leading axis; without a bias, what params has in its place."""
    if params.get("b") is None:
        return {"b": None} if "b" in params else {}
    return {"b": narrow(dy.sum(tuple(range(dy.ndim - 1)), dtype=wide(dy.dtype)), params["b"])}
