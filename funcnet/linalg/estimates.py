"""Trace and diagonal of a symmetric map that is known by its products only, with their standard errors.

A third of the products finds a space Q in which most of A lies, another third takes that part exactly, and
the last estimates what is left, R = (1 − QQᵀ) A (1 − QQᵀ), by vectors z of random signs, E[z ∘ R z] = diag R.
Whatever Q is, the estimate is unbiased. Source: R. Meyer, C. Musco, C. Musco and D. Woodruff, "Hutch++:
Optimal stochastic trace estimation", arXiv 2010.09649; the diagonal: C. Bekas, E. Kokiopoulou and Y. Saad,
"An estimator for the diagonal of a matrix", 2007.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

__all__ = ["LEAST", "Estimate", "diagonal", "trace"]

LEAST = 6  # products: two for each of the three parts, or there is no error

Product = Callable[[jax.Array], jax.Array]  # rows of vectors to rows of vectors


class Estimate(NamedTuple):
    """A number, or an array of them, and the standard error of each.

    An error is itself estimated, from a third of the products; it is 0 where the value is exact.
    """

    value: Float[Array, "*p"]
    error: Float[Array, "*p"]


def trace(product: Product, n: int, key: PRNGKeyArray, *, dtype: jnp.dtype, products: int) -> Estimate:
    """Σ of the diagonal of a symmetric A [n, n]; exact if n is at most `products`."""
    if n <= products:
        return Estimate(jnp.trace(product(jnp.eye(n, dtype=dtype))), jnp.zeros((), dtype))
    q, images, rest, of_rest = _parts(product, n, key, dtype, products)[:4]
    return _mean(jnp.einsum("nq,nq->", q, images), (rest * of_rest).sum(1))


def diagonal(product: Product, n: int, key: PRNGKeyArray, *, dtype: jnp.dtype, products: int) -> Estimate:
    """The diagonal of a symmetric A [n, n]; exact if n is at most `products`."""
    if n <= products:
        return Estimate(jnp.diagonal(product(jnp.eye(n, dtype=dtype))), jnp.zeros((n,), dtype))
    q, images, _, of_rest, z = _parts(product, n, key, dtype, products)
    # A − R = QQᵀA + AQQᵀ − Q (QᵀAQ) Qᵀ
    exact = (q * (2 * images - q @ (q.T @ images))).sum(1)
    return _mean(exact, z * _beyond(q, of_rest))


def _parts(
    product: Product, n: int, key: PRNGKeyArray, dtype: jnp.dtype, products: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    """Q [n, third], A Q, z (1 − QQᵀ) [third, n] and its product, the random signs z.

    The three products are one in a loop: it is their compilation that takes long.
    """
    first, last = (jax.random.rademacher(k, (products // 3, n), dtype) for k in jax.random.split(key))

    def step(i: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        rows, q, images, _ = carry
        image = product(rows)
        q = jnp.where(i == 0, jnp.linalg.qr(image.T)[0], q)
        images = jnp.where(i == 1, image.T, images)
        return jnp.where(i == 0, q.T, _beyond(q, last)), q, images, image

    empty = jnp.zeros_like(first)
    rest, q, images, of_rest = jax.lax.fori_loop(0, 3, step, (first, empty.T, empty.T, empty))
    return q, images, rest, of_rest, last


def _beyond(q: jax.Array, rows: jax.Array) -> jax.Array:
    """The part of each row that is orthogonal to Q."""
    return rows - (rows @ q) @ q.T


def _mean(exact: jax.Array, samples: jax.Array) -> Estimate:
    count = samples.shape[0]
    return Estimate(exact + samples.mean(0), samples.std(0, ddof=1) / count**0.5)
