"""Random orthogonal matrices: Q of Q R of normal numbers, with the signs that make it uniform.

They are those of `jax.random.orthogonal`, bit by bit, but decomposed one after the other. On JAX 0.10.1 two
decompositions of several matrices each, in a program where neither needs the other, may wait for ever for a
thread of the CPU (plain JAX, two cores: one process in four, of 30 calls each). Source of the signs:
F. Mezzadri, "How to generate random matrices from the classical compact groups", arXiv math-ph/0609050.
"""

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap
from jaxtyping import Array, Float, PRNGKeyArray

__all__ = ["orthogonal"]


def orthogonal(
    key: PRNGKeyArray, n: int, m: int | None = None, *, stack: int | None = None
) -> Float[Array, "*stack n m"]:
    """A matrix [n, m], or a stack of such, whose columns are orthonormal, or its rows, if they are fewer.

    >>> q = orthogonal(jax.random.key(0), 3, 5)
    >>> bool(jnp.allclose(q @ q.T, jnp.eye(3), atol=1e-6))
    True
    """
    m = n if m is None else m
    normal = jax.random.normal(key, (*(() if stack is None else (stack,)), max(n, m), min(n, m)))
    q = _q(normal) if stack is None else jax.vmap(_q)(normal)
    return q.mT if n < m else q


@sequential_vmap
def _q(x: Float[Array, "n m"]) -> Float[Array, "n m"]:
    q, r = jnp.linalg.qr(x)
    return q * jnp.sign(jnp.diagonal(r))
