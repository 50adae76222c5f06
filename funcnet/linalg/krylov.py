"""The largest singular values of a map that is known by its products only: block Golub–Kahan.

From a few random vectors V it builds the Krylov space of AᵀA, keeps an orthonormal basis Q of it, and takes
the singular values of A Q. They never exceed those of A (Cauchy), whatever rounding or chance did to Q, so
they are lower bounds; they converge to the largest ones, also where those are repeated fewer times than the
block is wide. Source: G. Golub, F. Luk and M. Overton, "A Block Lanczos Method for Computing the Singular
Values and Corresponding Singular Vectors of a Matrix", 1981; C. Musco and C. Musco, arXiv 1504.05477.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

__all__ = ["largest"]

Product = Callable[[jax.Array], jax.Array]  # rows of vectors to rows of vectors


def largest(
    forward: Product, back: Product, columns: int, k: int, *, dtype: jnp.dtype, steps: int = 16, seed: int = 0
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The k largest singular values with their vectors: u [k, rows], s [k] descending, v [k, columns].

    Args:
        forward: x [m, columns] -> x Aᵀ [m, rows].
        back: y [m, rows] -> y A [m, columns].
        columns: of A.
        k: how many, at most as many as A has.
        dtype: floating, of everything.
        steps: products with A and with Aᵀ, each of k + 4 vectors.
        seed: of the random vectors that it starts from.
    """
    width = min(k + 4, columns)
    steps = min(steps, -(-columns // width))  # enough for the whole space
    start = jax.random.normal(jax.random.key(seed), (columns, width), dtype)

    def orthonormal(v: jax.Array, basis: jax.Array) -> jax.Array:
        for _ in range(2):  # once leaves the error of cancellation
            v = jnp.linalg.qr(v - basis @ (basis.T @ v))[0]
        return v

    def step(i: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        basis, v = carry
        v = orthonormal(v, basis)
        basis = jax.lax.dynamic_update_slice_in_dim(basis, v, i * width, 1)
        return basis, back(forward(v.T)).T

    empty = jnp.zeros((columns, width * steps), dtype)
    basis, _ = jax.lax.fori_loop(0, steps, step, (empty, start))
    basis = jnp.linalg.qr(basis)[0]
    u, s, right = jnp.linalg.svd(forward(basis.T).T, full_matrices=False)
    return u.T[:k], s[:k], (basis @ right.T).T[:k]
