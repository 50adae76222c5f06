import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet.errors import DTypeError, ValueRangeError
from funcnet.ops.norm import softmax
from tests.errors import golden

X = jnp.asarray(np.random.default_rng(0).standard_normal((5, 7)), jnp.float32)


@pytest.mark.parametrize("axis", [0, 1, -2])
def test_positive_and_sums_to_one(axis):
    y = softmax.apply(X, axis=axis)
    assert (y > 0).all()
    np.testing.assert_allclose(y.sum(axis), 1, rtol=1e-6)


def test_axis_changes_something():
    assert not jnp.allclose(softmax.apply(X, axis=0), softmax.apply(X))
    np.testing.assert_array_equal(softmax.apply(X, axis=1), softmax.apply(X))


def test_a_shift_changes_nothing_and_large_elements_do_not_overflow():
    np.testing.assert_allclose(softmax.apply(X + 512), softmax.apply(X), rtol=1e-4)
    dx = jax.grad(lambda x: jnp.sum(jnp.sin(3 * softmax.apply(x))))(X)
    np.testing.assert_allclose(dx.sum(-1), 0, atol=1e-6)
    y, dx = jax.value_and_grad(lambda x: softmax.apply(x)[0])(jnp.asarray([1e30, -1e30], jnp.float32))
    assert y == 1
    assert dx.tolist() == [0, 0]


def test_a_single_element_is_one_whatever_it_is():
    x = X[:, :1]
    y, pull = jax.vjp(softmax.apply, x)
    assert (y == 1).all()
    np.testing.assert_allclose(pull(x)[0], 0, atol=1e-6)


def test_minus_infinity_gives_zero():
    x = jnp.asarray([0.0, -jnp.inf, 0.0], jnp.float32)
    assert softmax.apply(x).tolist() == [0.5, 0, 0.5]
    dx = jax.grad(lambda x: softmax.apply(x)[0])(x)
    np.testing.assert_allclose(dx, [0.25, 0, -0.25], rtol=1e-6)


def test_one_rounding():
    y = softmax.apply(X.astype(jnp.bfloat16))
    wide = softmax.apply(X.astype(jnp.bfloat16).astype(jnp.float32))
    np.testing.assert_array_equal(y, wide.astype(jnp.bfloat16))


def test_the_residual_is_y():
    y, pullback = softmax.vjp(X)
    assert [v is y for v in jax.tree.leaves(pullback)] == [True]


ERRORS = [
    (
        lambda: softmax.apply(X, axis=2),
        ValueRangeError,
        "softmax.apply: x has no axis 2.\n"
        "  expected  -2 ≤ axis < 2     (x: float32[5, 7])\n"
        "  got       axis = 2",
    ),
    (
        lambda: softmax.apply(X[0, 0]),
        ValueRangeError,
        "softmax.apply: x has no axis -1.\n  expected  x of rank 1 or more\n  got       x: float32[]",
    ),
    (
        lambda: softmax.apply(X, axis=(0, 1)),
        DTypeError,
        "softmax.apply: axis is not an integer.\n  expected  axis: int\n  got       axis: a tuple",
    ),
    (
        lambda: softmax.apply(X.astype(jnp.int32)),
        DTypeError,
        "softmax.apply: x has dtype int32, but a float is needed.\n"
        "  expected  x: float[...]\n"
        "  got       x: int32[5, 7]\n"
        "  hint      cast it: x.astype(jnp.float32).",
    ),
]

test_errors = golden(ERRORS)
