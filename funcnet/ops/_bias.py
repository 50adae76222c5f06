"""The optional bias params["b"] [d], added along the last axis: absent or None means no bias."""

from collections.abc import Mapping
from typing import Any

import jax

from funcnet import rules
from funcnet.errors import describe
from funcnet.ops import _check
from funcnet.ops._dtype import narrow, wide
from funcnet.ops._shape import align

__all__ = ["add", "check", "gradients"]


def check(where: str, params: Mapping[str, Any], size: int) -> None:
    """params["b"], where there is one, is a vector of `size` floats, the number that params["w"] fixes."""
    if params.get("b") is not None:
        b = _check.parameter(where, params, "b", ndim=1)
        _check.features(where, b, size, f'params["w"] ({describe(params["w"])})', path='params["b"]', dims="")


def add(y: jax.Array, params: Mapping[str, Any]) -> jax.Array:
    """y + b, in the dtype of y."""
    return y if params.get("b") is None else y + align(params["b"].astype(y.dtype), y.ndim)


def gradients(params: Mapping[str, Any], dw: jax.Array, dy: jax.Array) -> Any:
    """The gradients of params: dw, and where there is a b, db = Σ dy over every leading axis."""
    grads = {"w": narrow(dw, params["w"])}
    if params.get("b") is not None:
        grads["b"] = narrow(dy.sum(tuple(range(dy.ndim - 1)), dtype=wide(dy.dtype)), params["b"])
    return rules.like(params, grads)
