"""What the losses over classes share: labels that count, and log Σ e^h in two numbers."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

__all__ = ["counts", "logsumexp"]


def logsumexp(h: Array) -> tuple[Array, Array]:
    """log Σ_i e^{h_i} along the last axis as m = max h, a constant, and r = Σ_i e^{h_i − m} − 1 ≥ 0.

    It is m + log(1 + r), but as one number it would lose what is small beside m (of 1e8, float32 knows no
    log 3), and as log Σ what is small beside the 1 of the largest: of (15, 0), r = 3e-7.
    Differentiated as it stands, since log(1 + r) has the derivatives of log Σ, whatever the constant m is.
    """
    m = lax.stop_gradient(h.max(-1, keepdims=True, initial=-jnp.inf))
    largest = (h == m).astype(h.dtype)
    return m[..., 0], (jnp.exp(h - m) - largest).sum(-1) + (largest.sum(-1) - 1)


def counts(labels: Array, v: int, ignore_index: int | None) -> Array:
    """Whether each of `labels`, signed, is a class in [0, v), and not `ignore_index`."""
    inside = (labels >= 0) & (labels < v)
    return inside if ignore_index is None else inside & (labels != ignore_index)
