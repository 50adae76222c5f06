from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnet.errors import ShapeError
from funcnet.ops.sound import magnitude, power, stft
from tests.errors import golden

X: Any = jnp.asarray([[3.0, -4.0], [0.0, 0.0], [0.0, 2.0]], jnp.float32)


def test_silence_has_no_gradient():
    """JAX's own is NaN there, and so is that of whatever comes before it."""
    heard = lambda op: jax.grad(lambda x: op(stft.apply(x, n_fft=8)).sum())(jnp.zeros(32, jnp.float32))
    assert not heard(magnitude.apply).any()
    assert not heard(power.apply).any()
    assert jnp.isnan(heard(magnitude.reference)).any()


def test_derivatives_of_every_order_are_finite_at_0():
    hessian = jax.jit(jax.hessian(lambda x: magnitude.apply(x).sum()))(X)
    assert jnp.isfinite(hessian).all()
    np.testing.assert_allclose(hessian[0, :, 0], np.array([[16, 12], [12, 9]]) / 125, atol=1e-6)


def test_no_square_overflows_or_vanishes():
    y = jax.jit(magnitude.apply)
    for scale in (1e-37, 1e-20, 1e20, 1e37, 6e37):
        np.testing.assert_allclose(y(X * scale) / np.float32(scale), [5, 0, 2], rtol=1e-6)
    assert y(jnp.asarray([jnp.inf, -jnp.inf], jnp.float32)) == jnp.inf
    assert jnp.isnan(y(jnp.asarray([jnp.nan, 1], jnp.float32)))


ERRORS = [
    (
        lambda: magnitude.apply(X[:, :1]),
        ShapeError,
        "magnitude.apply: the last axis of x is not a pair.\n"
        "  expected  x: float[*n, 2], real and imaginary part\n"
        "  got       x: float32[3, 1]",
    ),
]

test_errors = golden(ERRORS)
