"""Columns made orthonormal by the Cholesky decomposition of their Gram matrix: Q of Q R, by products.

Where columns are nearly dependent that would fail; a little added to the diagonal keeps it from it, and what
it leaves is made good by doing it once more. Source: T. Fukaya et al., "Shifted Cholesky QR for computing the
QR factorization of ill-conditioned matrices", arXiv 1809.11085.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["conditioned", "orthonormal"]

# No decomposition is LAPACK's: two batched ones in a program that need not wait for one another can, in JAX
# 0.10.1 on two cores, wait for ever for a thread.
_SMALL = 32


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
    return jnp.matmul(y, _inverse(gram), precision=jax.lax.Precision.HIGHEST)


def _inverse(gram: Float[Array, "*s n n"]) -> Float[Array, "*s n n"]:
    """R⁻¹ of Rᵀ R, upper triangular, by halves: what is not a small block is products."""
    n = gram.shape[-1]
    if n <= _SMALL:
        return _small_inverse(gram)
    product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    half = n // 2
    first = _inverse(gram[..., :half, :half])
    across = product(first.swapaxes(-1, -2), gram[..., :half, half:])
    last = _inverse(gram[..., half:, half:] - product(across.swapaxes(-1, -2), across))
    corner = -product(first, product(across, last))
    zeros = jnp.zeros((*gram.shape[:-2], n - half, half), gram.dtype)
    return jnp.block([[first, corner], [zeros, last]])


def _small_inverse(gram: Float[Array, "*s n n"]) -> Float[Array, "*s n n"]:
    """The same, column by column."""
    places = jnp.arange(gram.shape[-1])

    def step(k: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        rest, inverse = carry
        row, column = rest[..., k, :], inverse[..., k]
        size = jnp.sqrt(row[..., k, None])
        row, column = jnp.where(places > k, row / size, 0)[..., None, :], (column / size)[..., None]
        inverse = jnp.where(places == k, column, inverse - column * row)
        return rest - row.swapaxes(-1, -2) * row, inverse

    eye = jnp.broadcast_to(jnp.eye(gram.shape[-1], dtype=gram.dtype), gram.shape)
    return jax.lax.fori_loop(0, gram.shape[-1], step, (gram, eye))[1]
