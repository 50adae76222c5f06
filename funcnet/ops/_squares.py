"""The squared norm of each example's gradient, without that gradient: what the operations' `squares` share.

For y = X W, X [t, i], dW = Xᵀ dY has |dW|² = ⟨X Xᵀ, dY dYᵀ⟩: two Gram matrices of t rows, where t is small,
in place of a product as large as W. Sums are in float32 or wider. Sources: Goodfellow, "Efficient per-example
gradient computations", arXiv 1510.01799; Li et al., "Large language models can be strong
differentially private learners", arXiv 2110.05679, §4 (the Gram matrices, "ghost clipping").
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from funcnet.errors import ShapeError, describe
from funcnet.ops._dtype import wide

__all__ = [
    "by_gram",
    "examples",
    "gain",
    "offset",
    "over_leading",
    "positions",
    "product",
    "summed",
    "weights",
]


def examples(where: str, path: str, x: jax.Array, own: int) -> None:
    """x has an axis of examples before the `own` axes of one of them."""
    if x.ndim <= own:
        raise ShapeError(
            f"{where}: {path} is a single example, without an axis of examples.",
            path=path,
            expected=f"{path}: [n, ...], with at least {own + 1} axes",
            actual=f"{path}: {describe(x)}",
            hint=f"{path}[None] is a batch of one.",
        )


def positions(x: jax.Array, last: int = 1) -> jax.Array:
    """x [n, ..., *last axes] as [n, t, their product], t all that lies between."""
    split = x.ndim - last
    return x.reshape(x.shape[0], math.prod(x.shape[1:split]), math.prod(x.shape[split:]))


def over_leading(x: jax.Array, last: int) -> jax.Array:
    """Σ of x [n, ..., *last axes] over what lies between: [n, *last axes]."""
    return x.sum(tuple(range(1, x.ndim - last)), dtype=wide(x.dtype))


def by_gram(t: int, i: int, o: int) -> bool:
    """Whether two Gram matrices of t positions cost less than the gradient [i, o] itself."""
    return t * t * (i + o) < t * i * o


def product(x: jax.Array, dy: jax.Array) -> jax.Array:
    """|Xᵀ dY|² [n] of x [n, t, i] and dy [n, t, o]."""
    (_, t, i), o, sums = x.shape, dy.shape[-1], wide(dy.dtype)
    if t == 1:
        return summed(x[:, 0]) * summed(dy[:, 0])
    if by_gram(t, i, o):
        gram = lambda v: jnp.einsum("nti,nsi->nts", v, v, preferred_element_type=sums)
        return jnp.maximum((gram(x) * gram(dy)).sum((1, 2)), 0)  # rounding may leave less than nothing
    return summed(jnp.einsum("nti,nto->nio", x, dy, preferred_element_type=sums))


def summed(x: jax.Array) -> jax.Array:
    """Σ x² of each example."""
    return (x.astype(wide(x.dtype)) ** 2).sum(tuple(range(1, x.ndim)))


def weights(params: Mapping[str, Any], x: jax.Array, dy: jax.Array) -> jax.Array:
    """Of y = X W + b: |Xᵀ dY|² + |Σ dY|², x [n, t, i], dy [n, t, o]."""
    return product(x, dy) + offset(params, dy)


def offset(params: Mapping[str, Any], dy: jax.Array) -> jax.Array:
    """|Σ dY|² where there is a bias, else 0."""
    if params.get("b") is None:
        return jnp.zeros(dy.shape[:1], wide(dy.dtype))
    return summed(over_leading(dy, 1))


def gain(params: Mapping[str, Any], xhat: jax.Array, dy: jax.Array) -> jax.Array:
    """Of y = w · x̂ + b: |Σ dY · x̂|² + |Σ dY|², the sums over all positions of an example."""
    dy = dy.astype(xhat.dtype)
    return summed(positions(dy * xhat).sum(1)) + offset(params, dy)
