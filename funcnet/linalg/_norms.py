"""The Euclidean norm where a square over- or underflows."""

import jax
import jax.numpy as jnp

__all__ = ["norm"]


def norm(h: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """‖h‖ · s and s, along `axes`, which stay; s is a power of two. Where h is 0, its derivative is 0.

    XLA:CPU divides by way of a reciprocal, and that of more than 8.5e37 it takes for 0: so s is less than 1
    where h is not small, and what is divided by the norm is multiplied by s first.
    """
    largest = jax.lax.stop_gradient(abs(h).max(axes, keepdims=True, initial=0))
    small = jnp.where(largest > 1, jnp.asarray(2.0**-8, h.dtype), 1)
    scale = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1) * small
    total = ((h * small / scale) ** 2).sum(axes, keepdims=True)
    return scale * jnp.where(total > 0, jnp.sqrt(jnp.where(total > 0, total, 1)), total), small
