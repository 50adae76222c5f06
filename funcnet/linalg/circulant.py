"""Block-circulant matrices: their singular values, frequency by frequency, and a bound by Gram iteration.

A convolution with a circular border is block-circulant, and the discrete Fourier transform, a unitary matrix,
makes it block-diagonal: one block H(f) [c_out, c_in] for each frequency. The singular values of all blocks
are those of the whole (H. Sedghi, V. Gupta and P. Long, "The Singular Values of Convolutional Layers", arXiv
1805.10408). Of a real kernel H(−f) is the conjugate of H(f), so half of the frequencies is enough.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["blocks", "gram_bound", "singular_values"]


def blocks(taps: jax.Array, axes: int) -> tuple[jax.Array, np.ndarray]:
    """The blocks of half of the frequencies, and how often the singular values of each count.

    Args:
        taps: ``float[*sizes, ..., a, b]``: over the first `axes` axes, the block of each offset.
        axes: how many axes the matrix is circulant along.

    Returns:
        complex[frequencies, ..., a, b], and the count of each frequency: 2, or 1 where it is its own mirror.
    """
    sizes = taps.shape[:axes]
    if math.prod(sizes) == 1:
        return taps.reshape(1, *taps.shape[axes:]), np.ones(1, int)
    spectrum = jnp.fft.rfftn(taps, axes=tuple(range(axes)))
    last = np.arange(spectrum.shape[axes - 1])
    own = (last == 0) | (2 * last == sizes[-1])  # the mirror lies in this half as well: counted by itself
    counts = np.broadcast_to(np.where(own, 1, 2), spectrum.shape[:axes]).reshape(-1)
    return spectrum.reshape(-1, *taps.shape[axes:]), counts


def singular_values(taps: jax.Array, axes: int) -> jax.Array:
    """All singular values of the block-circulant matrix, descending: float[number of rows or columns].

    Args:
        taps: ``float[*sizes, ..., a, b]``, as in `blocks`; the axes between are independent matrices.
        axes: how many axes the matrix is circulant along.
    """
    spectrum, counts = blocks(taps, axes)
    values = jnp.linalg.svd(spectrum, compute_uv=False)
    return jnp.sort(
        jnp.repeat(values, counts, axis=0, total_repeat_length=math.prod(taps.shape[:axes])).ravel()
    )[::-1]


def gram_bound(matrices: jax.Array, iterations: int = 6) -> jax.Array:
    """An upper bound of the largest singular value of any of `matrices` [..., a, b], real or complex.

    G ← Gᴴ G squares every singular value, and the Frobenius norm bounds the largest of them: after t steps
    σ₁ ≤ ‖G‖_F^(1 / 2^t) ≤ r^(1 / 2^(t+1)) σ₁ for rank r. It is smooth where singular values meet, unlike σ₁.
    Source: B. Delattre, Q. Barthélemy, A. Araujo and A. Allauzen, "Efficient Bound of Lipschitz Constant for
    Convolutional Layers by Gram Iteration", arXiv 2305.16173.

    Args:
        matrices: [..., a, b].
        iterations: t; the bound is within r^(1 / 2^(t+1)), for r = 64 and 6 iterations 3.3 %.

    Returns:
        A float scalar.
    """
    if 0 in matrices.shape:
        return jnp.zeros((), matrices.real.dtype)
    if matrices.shape[-2] < matrices.shape[-1]:
        matrices = matrices.swapaxes(-1, -2)  # the smaller Gram matrix
    gram, log_scale = matrices, jnp.zeros(matrices.shape[:-2], matrices.real.dtype)
    for _ in range(iterations):
        scale = _frobenius(gram)
        gram = gram / scale.astype(gram.dtype)[..., None, None]
        gram = jnp.matmul(gram.conj().swapaxes(-1, -2), gram, precision=jax.lax.Precision.HIGHEST)
        log_scale = 2 * (log_scale + jnp.log(scale))
    return jnp.exp((log_scale + jnp.log(_frobenius(gram))) / 2**iterations).max()


def _frobenius(matrices: jax.Array) -> jax.Array:
    """‖·‖_F of each; 1e-30 for zero, so that it can be divided by and differentiated."""
    squares = (matrices.real**2 + matrices.imag**2 if jnp.iscomplexobj(matrices) else matrices**2).sum(
        (-1, -2)
    )
    return jnp.sqrt(jnp.maximum(squares, jnp.finfo(squares.dtype).tiny))
