"""Columns made orthonormal by the Cholesky decomposition of their Gram matrix: Q of Q R, by products.

Where columns are nearly dependent that would fail; a little added to the diagonal keeps it from it, and what
it leaves is made good by doing it once more. Source: T. Fukaya et al., "Shifted Cholesky QR for computing the
QR factorization of ill-conditioned matrices", arXiv 1809.11085.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["conditioned", "orthonormal"]


def orthonormal(columns: Float[Array, "*s m n"]) -> Float[Array, "*s m n"]:
    """Columns that span what the first k of these span, for every k."""
    return _solved(conditioned(columns), 0.0)


def conditioned(columns: Float[Array, "*s m n"]) -> Float[Array, "*s m n"]:
    """The same, nearly orthonormal, with so much added to the diagonal that it cannot fail."""
    y = columns
    for size in (_largest, _length):  # no square overflows
        length = size(y)
        y = y / jnp.where(length > 0, length, 1)
    return _solved(y, 8 * y.shape[-2] * float(jnp.finfo(y.dtype).eps))


def _largest(y: Array) -> Array:
    return jnp.abs(y).max(-2, keepdims=True)


def _length(y: Array) -> Array:
    return jnp.sqrt((y * y).sum(-2, keepdims=True))


def _solved(y: Array, shift: float) -> Array:
    """Y R⁻¹, of Yᵀ Y + shift = Rᵀ R."""
    gram = jnp.matmul(y.swapaxes(-1, -2), y, precision=jax.lax.Precision.HIGHEST)
    gram = gram + shift * jnp.eye(y.shape[-1], dtype=y.dtype) if shift else gram
    lower = jnp.linalg.cholesky(gram, symmetrize_input=False)
    return jax.lax.linalg.triangular_solve(lower, y, lower=True, transpose_a=True)
