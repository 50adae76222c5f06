"""Eigenbases of the Kronecker factors of a second moment, kept up to date by products.

A factor is a symmetric matrix that changes a little from step to step, so that one step of the subspace
iteration S Q, made orthonormal again, follows its eigenvectors. On every device a Cholesky decomposition and
a triangular solve are many times faster than a QR decomposition or an eigenvalue problem.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

__all__ = ["eigenbasis", "orthonormal", "refreshed"]

_FLOOR = 1e-5  # of the trace: what is smaller keeps its direction, as rounding would choose another


def eigenbasis(factor: Float[Array, "s n n"]) -> Float[Array, "s n n"]:
    """The eigenvectors as columns, that of the largest eigenvalue first."""
    return jnp.linalg.eigh(factor)[1][..., ::-1]


def refreshed(
    factor: Float[Array, "s n n"], basis: Float[Array, "s n n"]
) -> tuple[Float[Array, "s n n"], Integer[Array, "s n"]]:
    """The basis after one step of the subspace iteration with the factor, its columns in order of size.

    Where that fails, as of a factor that is not finite, it is as it was.

    Returns:
        The basis, and for each of its columns which one of the old it came of.
    """
    image = factor @ basis
    sizes = (basis * image).sum(-2)
    order = jnp.argsort(-sizes, axis=-1)
    floor = _FLOOR * jnp.trace(factor, axis1=-2, axis2=-1)[:, None, None]
    new = orthonormal(jnp.take_along_axis(image + floor * basis, order[:, None, :], -1))
    fine = jnp.isfinite(new).all((-2, -1))
    order = jnp.where(fine[:, None], order, jnp.arange(order.shape[-1]))
    return jnp.where(fine[:, None, None], new, basis), order


def orthonormal(columns: Float[Array, "s m n"]) -> Float[Array, "s m n"]:
    """Columns that span what the first k of these span, for every k: Q of Q R, by Cholesky, twice.

    The first time a little is added to the diagonal, without which columns that are nearly dependent would
    fail; the second time makes good what that left. Source: T. Fukaya et al., "Shifted Cholesky QR for
    computing the QR factorization of ill-conditioned matrices", arXiv 1809.11085.
    """
    length = jnp.sqrt((columns * columns).sum(-2, keepdims=True))
    q = columns / jnp.where(length > 0, length, 1)
    eye = jnp.eye(q.shape[-1], dtype=q.dtype)
    for shift in (8 * q.shape[-2] * float(jnp.finfo(q.dtype).eps), 0.0):
        gram = jnp.matmul(q.swapaxes(-1, -2), q, precision=jax.lax.Precision.HIGHEST)
        lower = jnp.linalg.cholesky(gram + shift * eye)
        q = jax.lax.linalg.triangular_solve(lower, q, lower=True, transpose_a=True)
    return q
