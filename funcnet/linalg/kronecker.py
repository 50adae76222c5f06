"""Eigenbases of the Kronecker factors of a second moment, kept up to date by products.

A factor is a symmetric matrix that changes a little from step to step, so that one step of the subspace
iteration S Q, made orthonormal again, follows its eigenvectors.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from funcnet.linalg.cholesky import orthonormal

__all__ = ["eigenbasis", "eigenvalues", "refreshed"]

_FLOOR = 1e-5  # of the trace: what is smaller keeps its direction, as rounding would choose another


def eigenbasis(factor: Float[Array, "s n n"]) -> Float[Array, "s n n"]:
    """The eigenvectors as columns, that of the largest eigenvalue first."""
    return jnp.linalg.eigh(factor)[1][..., ::-1]


def eigenvalues(factor: Float[Array, "s n n"], basis: Float[Array, "s n n"]) -> Float[Array, "s n"]:
    """What the factor does along each column of a basis near its own: qᵀ S q, of which none is negative."""
    return jnp.maximum((basis * (factor @ basis)).sum(-2), 0)


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
