"""The ends of the spectrum of a map that is known by its products only: block Golub–Kahan, block Lanczos.

From a few random vectors V it builds the Krylov space of A, or of AᵀA, keeps an orthonormal basis Q of it,
and takes the eigenvalues of Qᵀ A Q, or the singular values of A Q. These never exceed those of A (Cauchy), so
they are bounds from within; they converge to the ends of the spectrum, also where values are repeated, as
long as that is fewer times than the block is wide. (From a single vector each eigenvalue is found once.)
Source: G. Golub, F. Luk and M. Overton, "A Block Lanczos Method for Computing the Singular
Values and Corresponding Singular Vectors of a Matrix", 1981; C. Musco and C. Musco, arXiv 1504.05477.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

__all__ = ["EXTRA", "eigen", "largest"]

Product = Callable[[jax.Array], jax.Array]  # rows of vectors to rows of vectors

EXTRA = 4  # vectors of a block, beyond those that are asked for


def largest(
    forward: Product, back: Product, columns: int, k: int, *, dtype: jnp.dtype, steps: int = 16, seed: int = 0
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The k largest singular values with their vectors: u [k, rows], s [k] descending, v [k, columns].

    Whatever rounding or chance does to the basis, they do not exceed the largest ones of A.

    Args:
        forward: x [m, columns] -> x Aᵀ [m, rows].
        back: y [m, rows] -> y A [m, columns].
        columns: of A.
        k: how many, at most as many as A has.
        dtype: floating, of everything.
        steps: products with A and with Aᵀ, each of k + 4 vectors.
        seed: of the random vectors that it starts from.
    """
    width = min(k + EXTRA, columns)
    steps = min(steps, -(-columns // width))  # enough for the whole space
    basis, _ = _space(lambda x: back(forward(x)), columns, width, steps, dtype, seed)
    basis = jnp.linalg.qr(basis)[0]
    u, s, right = jnp.linalg.svd(forward(basis.T).T, full_matrices=False)
    return u.T[:k], s[:k], (basis @ right.T).T[:k]


def eigen(
    product: Product,
    n: int,
    k: int,
    *,
    dtype: jnp.dtype,
    steps: int = 16,
    seed: int = 0,
    smallest: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The k largest (or smallest) eigenvalues of a symmetric A, with their vectors and residuals.

    They are counted as often as they are repeated. Within the residual ‖A v − λ v‖ of each lies an
    eigenvalue of A; that none was passed over, it does not say.

    Args:
        product: x [m, n] -> x A [m, n].
        n: of A [n, n]; at least steps · (k + 4), or the steps are fewer.
        k: how many.
        dtype: floating, of everything.
        steps: products, each of k + 4 vectors.
        seed: of the random vectors that it starts from.
        smallest: those instead, ascending.

    Returns:
        λ [k], descending; v [k, n]; residuals [k].
    """
    width = min(k + EXTRA, n)
    basis, images = _space(product, n, width, max(1, min(steps, n // width)), dtype, seed)
    inner = basis.T @ images
    values, vectors = jnp.linalg.eigh((inner + inner.T) / 2)
    values, vectors = (
        (values[:k], vectors[:, :k]) if smallest else (values[::-1][:k], vectors[:, ::-1][:, :k])
    )
    v = basis @ vectors
    residuals = jnp.linalg.norm(images @ vectors - v * values, axis=0)
    return values, v.T, residuals


def _space(
    product: Product, n: int, width: int, steps: int, dtype: jnp.dtype, seed: int
) -> tuple[jax.Array, jax.Array]:
    """An orthonormal basis [n, steps · width] of a Krylov space, and its images.

    (Where there are more columns than dimensions are left, it is not orthonormal.)
    """
    first, further = jax.random.split(jax.random.key(seed))
    start = jax.random.normal(first, (n, width), dtype)

    def orthonormal(i: jax.Array, v: jax.Array, basis: jax.Array) -> jax.Array:
        # Once leaves the error of cancellation. Where the space is exhausted nothing else is left, and where
        # not even that, as of A = 0, chance alone continues it.
        length = jnp.linalg.norm(v, axis=0)
        v = v / jnp.where(length > 0, length, 1)
        chance = jax.random.normal(jax.random.fold_in(further, i), v.shape, dtype)
        v = v + float(jnp.finfo(dtype).eps) * chance
        for _ in range(2):
            v = jnp.linalg.qr(v - basis @ (basis.T @ v))[0]
        return v

    def step(
        i: jax.Array, carry: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        basis, images, v = carry
        v = orthonormal(i, v, basis)
        image = product(v.T).T
        put = jax.lax.dynamic_update_slice_in_dim
        return put(basis, v, i * width, 1), put(images, image, i * width, 1), image

    empty = jnp.zeros((n, width * steps), dtype)
    basis, images, _ = jax.lax.fori_loop(0, steps, step, (empty, empty, start))
    return basis, images
