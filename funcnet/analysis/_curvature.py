"""The spectrum of a symmetric operator by stochastic Lanczos quadrature: its ends, its trace and its density.

From a vector z of random signs Lanczos' iteration makes a tridiagonal T, whose eigenvalues θ lie within the
spectrum, and whose eigenvectors' first components squared are weights with zᵀ f(A) z ≈ |z|² Σ weight f(θ);
E[zᵀ A z] = tr A. Source: S. Ubaru, J. Chen and Y. Saad, "Fast estimation of tr(f(A)) via stochastic Lanczos
quadrature", 2017; of networks: B. Ghorbani, S. Krishnan and Y. Xiao, arXiv 1901.10159.

The iteration runs on the host: only the product itself is compiled, which takes longest.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from funcnet.linalg import Operator

__all__ = ["PROBES", "STEPS", "Curvature", "curvature"]

TOP = 3
PROBES, STEPS = 4, 20  # products with so many vectors, so often


class Curvature(NamedTuple):
    """Of a Hessian or a Gauss–Newton matrix.

    Attributes:
        top: the three largest eigenvalues that are not equal, from below.
        least: the smallest one, from above.
        trace: its estimate without bias.
        error: the standard error of that; 0 where it is exact.
        values: where the density is, ascending.
        density: the share of all eigenvalues at each.
        examples: that it is of.
    """

    top: tuple[float, ...]
    least: float
    trace: float
    error: float
    values: Float[np.ndarray, " k"]
    density: Float[np.ndarray, " k"]
    examples: int = 0


def curvature(a: Operator, key: PRNGKeyArray, probes: int = PROBES, steps: int = STEPS) -> Curvature:
    """By `steps` products with each of `probes` vectors, or of a matrix that takes fewer, exactly."""
    n = a.shape[0]
    if n <= probes * steps:
        values = np.linalg.eigvalsh(np.asarray(a.matrix()).astype(float))
        return Curvature(
            (*values[: -TOP - 1 : -1].tolist(),),
            float(values[0]),
            float(values.sum()),
            0.0,
            values,
            np.full(n, 1 / n),
        )
    signs = jax.random.rademacher(key, (probes, n), a.dtype)
    every, basis = _tridiagonal(a, signs, steps)
    pairs = [np.linalg.eigh(t) for t in every]
    samples = np.array([n * (vectors[0] ** 2 @ values) for values, vectors in pairs])
    trace, error = _trace(a, np.asarray(signs), samples, basis, *pairs[0])
    tops = np.array([values[: -TOP - 1 : -1] for values, _ in pairs])
    values = np.concatenate([values for values, _ in pairs])
    density = np.concatenate([vectors[0] ** 2 for _, vectors in pairs]) / probes
    order = np.argsort(values)
    return Curvature(
        (*tops.max(0).tolist(),),  # the i-th of no probe exceeds the i-th eigenvalue
        float(values.min()),
        trace,
        error,
        values[order],
        density[order],
    )


def _trace(
    a: Operator, signs: np.ndarray, samples: np.ndarray, basis: np.ndarray, values: np.ndarray, v: np.ndarray
) -> tuple[float, float]:
    """tr A, without bias, and its standard error.

    On the largest eigenvectors Q that the first probe has found it is exact; the others, which do not depend
    on them, estimate what is left, by zᵀ (1 − QQᵀ) A (1 − QQᵀ) z: the idea of Hutch++ (`linalg.estimates`).
    """
    largest = np.argsort(-np.abs(values))[: len(signs)]
    q = np.zeros((len(signs), signs.shape[1]), signs.dtype)  # as many rows as before: nothing is compiled
    q[: len(largest)] = np.linalg.qr(basis[: len(v)].T @ v[:, largest].astype(basis.dtype))[0].T
    images = np.asarray(a.forward(jnp.asarray(q)))
    inner, z = (q @ images.T).astype(float), signs[1:]
    along, across = (z @ q.T).astype(float), (z @ images.T).astype(float)
    left = samples[1:] - 2 * (along * across).sum(1) + ((along @ inner) * along).sum(1)
    return float(np.trace(inner) + left.mean()), float(left.std(ddof=1) / len(left) ** 0.5)


def _tridiagonal(a: Operator, signs: Float[Array, "m n"], steps: int) -> tuple[list[np.ndarray], np.ndarray]:
    """T of each probe, shorter where its space is exhausted, and the basis of the first [steps, n].

    With full reorthogonalisation, twice.
    """
    v = np.asarray(signs) / signs.shape[1] ** 0.5
    basis = np.zeros((v.shape[0], steps, v.shape[1]), v.dtype)
    diagonal, beside = np.zeros((v.shape[0], steps)), np.zeros((v.shape[0], steps))
    for j in range(steps):
        basis[:, j] = v
        image = np.asarray(a.forward(jnp.asarray(v)))
        diagonal[:, j] = (v * image).sum(1)
        for _ in range(2):
            inside = basis[:, : j + 1] @ image[..., None]
            image = image - (inside.swapaxes(1, 2) @ basis[:, : j + 1])[:, 0]
        beside[:, j] = np.linalg.norm(image, axis=1)
        v = image / np.maximum(beside[:, j : j + 1], np.finfo(v.dtype).tiny).astype(v.dtype)
    least = 100 * float(np.finfo(v.dtype).eps) * np.abs(diagonal).max(1) + 1e-300
    lengths = [
        next((j + 1 for j in range(TOP, steps) if b[j] < e), steps)
        for b, e in zip(beside, least, strict=True)
    ]
    every = [
        np.diag(d[:k]) + np.diag(b[: k - 1], 1) + np.diag(b[: k - 1], -1)
        for d, b, k in zip(diagonal, beside, lengths, strict=True)
    ]
    return every, basis[0]
