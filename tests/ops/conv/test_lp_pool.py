import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet.errors import DTypeError, ValueRangeError
from funcnet.ops.conv import lp_pool
from tests.errors import golden

X = jnp.asarray(np.random.default_rng(0).standard_normal((2, 8, 6, 3)), jnp.float32)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.5])
def test_the_whole_image_is_one_window(p):
    y = lp_pool.apply(X, p, kernel=(8, 6))[:, 0, 0]
    np.testing.assert_allclose(y, (np.abs(X) ** p).sum((1, 2)) ** (1 / p), rtol=1e-5)


def test_what_can_be_written_as_a_number_has_a_norm():
    for scale in (1e-30, 1.0, 1e30):
        x = jnp.asarray([3.0, 4.0, 0.0, 0.0], jnp.float32)[:, None] * scale
        y, pull = jax.vjp(lambda x: lp_pool.apply(x, kernel=(2,)), x)
        np.testing.assert_allclose(y.ravel(), np.float32([5 * scale, 0]), rtol=1e-6)
        np.testing.assert_allclose(pull(jnp.ones_like(y))[0].ravel(), [0.6, 0.8, 0, 0], rtol=1e-6)


def test_the_second_derivative_of_zeros_is_none():
    f = lambda x: lp_pool.apply(x, 1.5, kernel=(2,)).sum()
    assert jnp.isfinite(jax.jit(jax.hessian(f))(jnp.zeros((4, 1)))).all()


ERRORS = [
    (
        lambda: lp_pool.apply(X, 0.5, kernel=(2, 2)),
        ValueRangeError,
        "lp_pool.apply: p is 0.5, outside its range.\n  expected  1 ≤ p < ∞\n  got       p = 0.5",
    ),
    (
        lambda: jax.jit(lambda p: lp_pool.apply(X, p, kernel=(2, 2)))(2.0),
        DTypeError,
        "lp_pool.apply: p is traced, but its value is needed for tracing.\n"
        "  expected  p: a Python value\n"
        "  got       p: float64[]\n"
        '  hint      make it static where it enters jax.jit: static_argnames="p".',
    ),
]

test_errors = golden(ERRORS)
