import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet.errors import DTypeError, ShapeError, ValueRangeError
from funcnet.ops.random import dropout
from tests.errors import golden

KEY = jax.random.key(0)
X = jnp.asarray(np.random.default_rng(0).standard_normal((101, 103)), jnp.float32)


def test_without_a_key_or_a_rate_it_is_the_identity():
    assert dropout.apply(X, rate=0.5) is X
    assert dropout.apply(X, rate=0.0, key=KEY) is X


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_fraction_dropped_and_the_scale_of_the_rest(rate):
    y = np.asarray(dropout.apply(X, rate=rate, key=KEY))
    assert abs((y == 0).mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / X.size)
    kept = y != 0
    np.testing.assert_allclose(y[kept], np.asarray(X)[kept] / (1 - rate), rtol=1e-6)


def test_the_key_decides_the_mask():
    y = dropout.apply(X, rate=0.5, key=KEY)
    np.testing.assert_array_equal(dropout.apply(X, rate=0.5, key=KEY), y)
    assert (dropout.apply(X, rate=0.5, key=jax.random.key(1)) != y).any()
    np.testing.assert_array_equal(dropout.apply(X, rate=0.5, key=jax.random.PRNGKey(0)), y)  # a raw key


def test_the_gradient_has_the_mask_of_the_forward_pass():
    y, pull = jax.vjp(lambda x: dropout.apply(x, rate=0.3, key=KEY), jnp.ones_like(X))
    np.testing.assert_array_equal(pull(jnp.ones_like(X))[0], y)


def test_vmap_with_one_key_each_draws_one_mask_each():
    x = jnp.ones((3, 50))
    keys = jax.random.split(KEY, 3)
    each = jax.vmap(lambda x, key: dropout.apply(x, rate=0.5, key=key))
    y, pull = jax.vjp(lambda x: each(x, keys), x)
    np.testing.assert_array_equal(y, jnp.stack([dropout.apply(x[0], rate=0.5, key=k) for k in keys]))
    np.testing.assert_array_equal(pull(x)[0], y)
    shared = jax.vmap(lambda x: dropout.apply(x, rate=0.5, key=KEY))(x)
    assert (shared == shared[0]).all()
    assert not (y == y[0]).all()


def test_one_rounding():
    y = dropout.apply(jnp.ones(50, jnp.bfloat16), rate=0.1, key=KEY)
    assert set(y.tolist()) == {0, float(jnp.bfloat16(1 / 0.9))}


def test_the_cost_of_a_traced_call():
    abstract = jax.eval_shape(lambda: (X, KEY))
    assert dropout.cost(abstract[0], rate=0.5, key=abstract[1]) == (0, 2 * X.nbytes + 8)
    assert dropout.cost(X, rate=0.5) == (0, 2 * X.nbytes)


def test_the_residual_is_the_words_of_the_key():
    _, pullback = dropout.vjp(X, rate=0.5, key=KEY)
    assert [v.tolist() for v in jax.tree.leaves(pullback)] == [jax.random.key_data(KEY).tolist()]


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_the_mask_is_the_same_with_x64_and_without(impl):
    key = jax.random.key(3, impl=impl)
    masks = []
    for x64 in (True, False):
        with jax.enable_x64(x64):
            y, pull = jax.vjp(lambda x: dropout.apply(x, rate=0.3, key=key), jnp.ones_like(X))
        with jax.enable_x64(not x64):
            masks += [y, *pull(jnp.ones_like(X))]
    assert all((m == masks[0]).all() for m in masks)


def test_of_rate_one_nothing_is_left():
    x = jnp.asarray([1.0, jnp.inf, jnp.nan])
    y, pull = jax.vjp(lambda x: dropout.apply(x, rate=1.0, key=KEY), x)
    assert y.tolist() == pull(x)[0].tolist() == [0, 0, 0]


ERRORS = [
    (
        lambda: dropout.apply(X, rate=100.5, key=KEY),
        ValueRangeError,
        "dropout.apply: rate is 100.5, outside [0, 1].\n  expected  0 ≤ rate ≤ 1\n  got       rate = 100.5",
    ),
    (
        lambda: dropout.apply(X, rate=20, key=KEY),
        ValueRangeError,
        "dropout.apply: rate is 20, outside [0, 1].\n"
        "  expected  0 ≤ rate ≤ 1\n"
        "  got       rate = 20\n"
        "  hint      rate is a fraction, not per cent: 0.2.",
    ),
    (
        lambda: dropout.apply(X, rate=-0.1),  # in evaluation too
        ValueRangeError,
        "dropout.apply: rate is -0.1, outside [0, 1].\n  expected  0 ≤ rate ≤ 1\n  got       rate = -0.1",
    ),
    (
        lambda: jax.jit(lambda rate: dropout.apply(X, rate=rate, key=KEY))(np.float32(0.1)),
        DTypeError,
        "dropout.apply: rate is traced, but its value is needed for tracing.\n"
        "  expected  rate: a Python value\n"
        "  got       rate: float32[]\n"
        '  hint      make it static where it enters jax.jit: static_argnames="rate".',
    ),
    (
        lambda: dropout.apply(X, rate=0.1, key=0),
        DTypeError,
        "dropout.apply: key is not a random key.\n"
        "  expected  key: a random key, or None\n"
        "  got       key: 0 (int)\n"
        "  hint      jax.random.key(0) makes one.",
    ),
    (
        lambda: dropout.apply(X, rate=0.1, key=jax.random.split(KEY, 3)),
        ShapeError,
        "dropout.apply: key holds 3 keys, but one is needed.\n"
        "  expected  key: one random key\n"
        "  got       key: key<fry>[3]\n"
        "  hint      use one of them (key[0]), or jax.vmap for one mask each.",
    ),
    (
        lambda: dropout.apply(X.astype(jnp.int32), rate=0.1, key=KEY),
        DTypeError,
        "dropout.apply: x has dtype int32, but a float is needed.\n"
        "  expected  x: float[...]\n"
        "  got       x: int32[101, 103]\n"
        "  hint      cast it: x.astype(jnp.float32).",
    ),
]

test_errors = golden(ERRORS)
