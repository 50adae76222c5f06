import jax
import jax.numpy as jnp
import numpy as np

from funcnet.errors import ShapeError
from funcnet.ops.conv import fold
from tests.errors import golden

X = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 6)))


def test_the_pullback_takes_patches_and_scatters_nothing():
    loss = lambda x: (fold.apply(x, size=(7,), kernel=(3,)) ** 2).sum()
    text = str(jax.make_jaxpr(jax.grad(loss))(X))
    assert "scatter" not in text
    assert "gather" not in text


def test_the_matrix_is_the_transpose_of_that_of_patches():
    y = fold.apply(X, size=(7,), kernel=(3,))
    M = np.asarray(fold.matrix((5, 6), size=(7,), kernel=(3,)))
    np.testing.assert_allclose(y[0].reshape(-1), M @ X[0].reshape(-1), atol=1e-12)
    A = fold.operator((5, 6), size=(7,), kernel=(3,))
    np.testing.assert_allclose(A @ X[0].reshape(-1), y[0].reshape(-1), atol=1e-12)


ERRORS = [
    (
        lambda: fold.apply(X, size=(8,), kernel=(3,)),
        ShapeError,
        "fold.apply: size is (8,), but a grid of that has other patches than x.\n"
        "  expected  x: float[*n, 6, 6]\n"
        "  got       x: float64[2, 5, 6]",
    ),
    (
        lambda: fold.apply(X, size=(8,), kernel=(4,)),
        ShapeError,
        "fold.apply: x has 6 features in its last axis, which are no patches of 4 elements.\n"
        "  expected  a multiple of 4     (kernel = (4,))\n"
        "  got       x: float64[2, 5, 6]",
    ),
]

test_errors = golden(ERRORS)
