import jax
import jax.numpy as jnp
import numpy as np

from funcnet.errors import ValueRangeError
from funcnet.ops.grid import adaptive_max_pool
from tests.errors import golden


def test_of_equal_elements_the_first_takes_the_gradient():
    x = jnp.zeros((4, 6, 1))
    dx = jax.jit(jax.grad(lambda x: adaptive_max_pool.apply(x, size=(2, 3)).sum()))(x)
    np.testing.assert_array_equal(
        np.argwhere(np.asarray(dx[..., 0]) != 0), [[a, b] for a in (0, 2) for b in (0, 2, 4)]
    )


@jax.jit
def halves(x, dy):
    """Two windows, and the gradient."""
    y, pull = jax.vjp(lambda x: adaptive_max_pool.apply(x, size=(2,)), x)
    return y.ravel(), pull(dy)[0].ravel()


def test_an_element_that_two_windows_took_gets_both_gradients():
    x = np.array([0.0, 1.0, 5.0, 1.0, 0.0])[:, None]  # the windows are [0, 3) and [2, 5)
    y, dx = halves(x, np.array([[2.0], [3.0]]))
    assert y.tolist() == [5.0, 5.0]
    assert dx.tolist() == [0, 0, 5, 0, 0]


def test_nan_and_minus_infinity():
    y, dx = halves(np.array([1.0, np.nan, -np.inf, -np.inf])[:, None], np.ones((2, 1)))
    np.testing.assert_array_equal(y, [np.nan, -np.inf])
    assert dx.tolist() == [0, 1, 1, 0]


test_errors = golden(
    [
        (
            lambda: adaptive_max_pool.apply(jnp.zeros((4, 6, 1)), size=(2, 0)),
            ValueRangeError,
            "adaptive_max_pool.apply: size is 0, but at least 1 is needed.\n"
            "  expected  size ≥ 1\n"
            "  got       size = 0",
        ),
    ]
)
