import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet.errors import DTypeError, ShapeError, ValueRangeError
from funcnet.ops.loss import binary_cross_entropy, cross_entropy

X = jnp.asarray(np.random.default_rng(0).standard_normal((5, 3)), jnp.float32)
Z = jnp.asarray(np.random.default_rng(1).random((5, 3)) < 0.5)


def dlogits(x, z):
    return jax.grad(lambda x: binary_cross_entropy.apply(x, z).sum())(x)


def test_it_is_cross_entropy_of_two_classes():
    two = jnp.stack([jnp.zeros_like(X), X], -1)
    np.testing.assert_allclose(
        binary_cross_entropy.apply(X, Z), cross_entropy.apply(two, Z.astype(jnp.int32)), rtol=1e-5
    )


def test_booleans_integers_and_floats_are_the_same():
    want, dx = binary_cross_entropy.apply(X, Z), dlogits(X, Z)
    for dtype in (jnp.int32, jnp.uint8, jnp.float32):
        np.testing.assert_array_equal(binary_cross_entropy.apply(X, Z.astype(dtype)), want)
        np.testing.assert_array_equal(dlogits(X, Z.astype(dtype)), dx)


def test_under_jit_what_is_no_label_counts_as_ignored():
    z = Z.astype(jnp.int64).at[0].set(jnp.asarray([2**32 + 1, 2, -1]))
    x = X.at[0].set(jnp.asarray([jnp.nan, jnp.inf, -jnp.inf], jnp.float32))
    ignored = np.broadcast_to(np.arange(5)[:, None] == 0, (5, 3))
    np.testing.assert_array_equal(jax.jit(binary_cross_entropy.apply)(x, z) == 0, ignored)
    np.testing.assert_array_equal(jax.jit(dlogits)(x, z) == 0, ignored)


def test_the_classes_may_change_places():
    np.testing.assert_allclose(
        binary_cross_entropy.apply(-X, ~Z), binary_cross_entropy.apply(X, Z), rtol=1e-5
    )


def test_the_loss_is_least_where_sigmoid_is_the_label():
    np.testing.assert_allclose(dlogits(X, jax.nn.sigmoid(X)), 0, atol=1e-6)


def test_the_gradient_of_the_labels_is_minus_the_logits():
    z = jax.nn.sigmoid(X)
    dz = jax.grad(lambda z: binary_cross_entropy.apply(X, z).sum())(z)
    np.testing.assert_array_equal(dz, -X)


def test_large_logits_neither_overflow_nor_vanish():
    x = jnp.asarray([1e30, -1e30, 1e30, -1e30, 100, -80], jnp.float32)
    z = jnp.asarray([True, False, False, True, False, False])
    y, pull = jax.vjp(lambda x: binary_cross_entropy.apply(x, z), x)
    np.testing.assert_allclose(y, [0, 0, 1e30, 1e30, 100, np.exp(-80.0)], rtol=1e-5)
    np.testing.assert_allclose(pull(jnp.ones_like(y))[0], [0, 0, 1, -1, 1, 0], atol=1e-6)


def test_under_jit_a_bad_label_counts_as_ignored():
    z = Z.astype(jnp.int32).at[1, 2].set(2).at[0, 0].set(-1)
    bad = (z < 0) | (z > 1)
    y = jax.jit(lambda z: binary_cross_entropy.apply(X, z))(z)
    np.testing.assert_array_equal(y == 0, bad)
    np.testing.assert_array_equal(jax.jit(lambda z: dlogits(X, z))(z) == 0, bad)
    np.testing.assert_allclose(y, binary_cross_entropy.reference(X, z), rtol=1e-5)


def test_bfloat16_logits_give_a_float32_loss_and_are_kept_as_they_are():
    x = X.astype(jnp.bfloat16)
    y, pullback = binary_cross_entropy.vjp(x, Z)
    assert y.dtype == jnp.float32
    assert [v.dtype for v in jax.tree.leaves(pullback)] == [jnp.bfloat16, jnp.bool_]
    assert dlogits(x, Z).dtype == jnp.bfloat16


ERRORS = [
    (
        (X[:, 0], X[:, :1]),
        ShapeError,
        "binary_cross_entropy.apply: labels and logits have different shapes.\n"
        "  expected  labels: float32[5]     (the shape of logits)\n"
        "  got       labels: float32[5, 1]\n"
        "  hint      they differ by an axis of size 1: labels.reshape(5) fits.",
    ),
    (
        (X[0], jnp.asarray([-1.0, 1.0, 1.0], jnp.float32)),
        ValueRangeError,
        "binary_cross_entropy.apply: labels hold -1, outside [0, 1].\n"
        "  expected  0 ≤ labels ≤ 1\n"
        "  got       labels: float32[3], 1 of 3 outside, from -1 to -1\n"
        "  hint      are they −1 and 1? (labels + 1) / 2.",
    ),
    (
        (X[0], jnp.asarray([0, 2, 1], jnp.int32)),
        ValueRangeError,
        "binary_cross_entropy.apply: labels hold 2, outside [0, 1].\n"
        "  expected  0 ≤ labels ≤ 1\n"
        "  got       labels: int32[3], 1 of 3 outside, from 2 to 2",
    ),
    (
        (X[0], jnp.asarray([0.5, jnp.nan, 1.5], jnp.bfloat16)),
        ValueRangeError,
        "binary_cross_entropy.apply: labels hold nan, outside [0, 1].\n"
        "  expected  0 ≤ labels ≤ 1\n"
        "  got       labels: bfloat16[3], 2 of 3 outside, from nan to nan",
    ),
    (
        (X[0], [0, 1, 1]),
        DTypeError,
        "binary_cross_entropy.apply: labels are not an array of floats, integers or booleans.\n"
        "  expected  labels: float[3]     (the shape of logits)\n"
        "  got       labels: a list\n"
        "  hint      wrap them: jnp.asarray(...).",
    ),
    (
        (Z, X),
        DTypeError,
        "binary_cross_entropy.apply: logits has dtype bool, but a float is needed.\n"
        "  expected  logits: float[...]\n"
        "  got       logits: bool[5, 3]\n"
        "  hint      cast it: logits.astype(jnp.float32).",
    ),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("args", "error", "text"), ERRORS, ids=range(len(ERRORS)))
def test_errors(args, error, text):
    with pytest.raises(error) as caught:
        binary_cross_entropy.apply(*args)
    assert str(caught.value) == text
