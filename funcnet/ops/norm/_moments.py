"""The mean and the variance of elements that may lie far from zero, close together.

In float32 the mean of numbers near 1000 is known to 6e-5, which may be all of their spread. So the first
element is subtracted before the mean is taken: where x and it are of one size, x − first is exact, and c, the
mean of that, is as small as the spread. x̂ does not depend on what was subtracted: it counts as a constant.
"""

from collections.abc import Sequence

import jax
from jax import lax

__all__ = ["centred", "moments"]


def moments(x: jax.Array, axes: Sequence[int]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x less its mean over `axes`; c, that mean less the first element; the biased variance.

    The axes are kept. The mean itself is first + c.
    """
    d = _from_first(x, axes)
    c = d.mean(axes, keepdims=True)
    d = d - c
    return d, c, (d**2).mean(axes, keepdims=True)


def centred(x: jax.Array, c: jax.Array, axes: Sequence[int]) -> jax.Array:
    """x less its mean, given the c of `moments`."""
    return _from_first(x, axes) - c


def _from_first(x: jax.Array, axes: Sequence[int]) -> jax.Array:
    at = [slice(None)] * x.ndim
    for axis in axes:
        at[axis] = slice(1)
    return x - lax.stop_gradient(x[tuple(at)])
