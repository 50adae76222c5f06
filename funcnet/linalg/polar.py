"""The polar factor of matrices: the nearest ones whose singular values are all 1, U Vᵀ of M = U S Vᵀ.

It is the step of steepest descent under the spectral norm (docs/optim.md). An odd polynomial of M acts on its
singular values alone, so a few of them, one after the other, bring these near to 1 by products only.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from funcnet.errors import ValueRangeError
from funcnet.mean import wide

__all__ = ["METHODS", "polar"]

METHODS = ("auto", "gram", "direct", "svd")

# p(x) = a x + b x³ + c x⁵, one after the other: each is the best for where the one before leaves what was in
# [0.003, 1], all but the last with a margin of 1 % against rounding; the last leaves it in 0.79 to 1.21. With
# a fifth, from 0.001, Muon's steps are longer and its loss on chars, of one seed, was no lower.
# Source of the way: N. Amsel, D. Persson, C. Musco and R. Gower, "The Polar Express", arXiv 2505.16932.
_POLYNOMIALS = (
    (8.300667740541707, -24.037550830544998, 17.466139247663147),
    (4.0058581391900825, -2.9252894217258234, 0.5423606729753655),
    (3.484016722820194, -2.5614154498568955, 0.5023653185999936),
    (2.5153360161782645, -1.8615249060348331, 0.44253472050265125),
)


def polar(m: Float[Array, "s i o"], *, method: str = "auto") -> Float[Array, "s i o"]:
    """The polar factor of each matrix, nearly: singular values above 0.003 of the norm come to 0.79 to 1.21.

    A matrix of zeros stays one. The result has the dtype of m, computed in float32 or wider.

    Args:
        m: a stack of matrices.
        method: "direct", the polynomials of m itself; "gram", of its smaller Gram matrix, which takes two
            products with the longer side in all; "svd", exact; "auto", the fastest for the size, by
            `python -m benchmarks optim`.

    Raises:
        ValueRangeError: the method is another.

    >>> jnp.linalg.svd(polar(jnp.diag(jnp.array([3.0, 0.5]))[None]), compute_uv=False).round(0)
    Array([[1., 1.]], dtype=float32)
    """
    if method not in METHODS:
        raise ValueRangeError(
            f'linalg.polar: method is "{method}".',
            path="method",
            expected=", ".join(f'"{name}"' for name in METHODS),
            actual=repr(method),
        )
    x = wide(m)
    flat = x.swapaxes(1, 2) if m.shape[1] > m.shape[2] else x
    chosen = _fastest(flat.shape) if method == "auto" else method
    result = {"direct": _direct, "gram": _gram, "svd": _svd}[chosen](_within_one(flat))
    return (result.swapaxes(1, 2) if m.shape[1] > m.shape[2] else result).astype(m.dtype)


def _fastest(shape: tuple[int, ...]) -> str:
    """The way with fewer multiplications, and where they are as many the one that rounds less."""
    return "gram" if shape[2] > shape[1] else "direct"


def _within_one(x: Array) -> Array:
    """Each over its Frobenius norm, so that no singular value exceeds 1; scaled before it is squared."""
    largest = jnp.abs(x).max((1, 2), keepdims=True)
    x = x / jnp.where(largest > 0, largest, 1)
    norm = jnp.sqrt((x * x).sum((1, 2), keepdims=True))
    return x / jnp.where(norm > 0, norm, 1)


def _direct(x: Array) -> Array:
    for a, b, c in _POLYNOMIALS:
        g = x @ x.swapaxes(1, 2)
        x = a * x + (b * g + c * (g @ g)) @ x
    return x


def _gram(x: Array) -> Array:
    """X ← P X and G ← P G P, with G = X Xᵀ and P = a + b G + c G²: the product of all P, then one with X."""
    g = x @ x.swapaxes(1, 2)
    whole = eye = jnp.eye(g.shape[-1], dtype=g.dtype)
    for i, (a, b, c) in enumerate(_POLYNOMIALS):
        p = a * eye + b * g + c * (g @ g)
        whole = p @ whole if i else p
        if i + 1 < len(_POLYNOMIALS):
            g = p @ g @ p
    return whole @ x


def _svd(x: Array) -> Array:
    u, s, v = jnp.linalg.svd(x, full_matrices=False)
    there = s > s[:, :1] * jnp.finfo(x.dtype).eps * max(x.shape[1:])
    return jnp.where(there[:, None, :], u, 0) @ v
