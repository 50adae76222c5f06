import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet.errors import DTypeError, ShapeError, ValueRangeError
from funcnet.ops.norm import group_norm, layer_norm
from tests.errors import golden

X = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 3, 6)), jnp.float32)
ONE = {"w": jnp.ones(6, jnp.float32)}


def test_init():
    params = group_norm.init(jax.random.key(0), 3)
    assert params["w"].tolist() == [1, 1, 1]
    assert params["b"].tolist() == [0, 0, 0]
    assert set(group_norm.init(jax.random.key(0), 3, bias=False)) == {"w"}


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_each_example_and_group_has_mean_zero_and_variance_one(groups):
    y = group_norm.apply(ONE, X, groups=groups, eps=0.0).reshape(2, 15, groups, -1)
    np.testing.assert_allclose(y.mean((1, 3)), 0, atol=1e-6)
    np.testing.assert_allclose(y.var((1, 3)), 1, atol=1e-5)


def test_one_group_without_positions_is_layer_norm():
    y = group_norm.apply(ONE, X, groups=1, spatial=0)
    np.testing.assert_allclose(y, layer_norm.apply(ONE, X), atol=1e-6)


def test_spatial_says_which_axes_are_positions():
    y = group_norm.apply(ONE, X, groups=2)
    np.testing.assert_array_equal(group_norm.apply(ONE, X, groups=2, spatial=2), y)
    np.testing.assert_allclose(group_norm.apply(ONE, X[0], groups=2, spatial=2), y[0], atol=1e-6)
    one = jax.vmap(lambda x: group_norm.apply(ONE, x, groups=2, spatial=2))
    np.testing.assert_allclose(one(X), y, atol=1e-6)
    deep = X.reshape(2, 1, 1, 5, 3, 6)
    np.testing.assert_allclose(group_norm.apply(ONE, deep, groups=2, spatial=2)[:, 0, 0], y, atol=1e-6)
    assert not jnp.allclose(group_norm.apply(ONE, X, groups=2, spatial=1), y)


def test_groups_and_eps_change_something():
    y = group_norm.apply(ONE, X, groups=2)
    assert not jnp.allclose(group_norm.apply(ONE, X, groups=3), y)
    assert not jnp.allclose(group_norm.apply(ONE, X, groups=2, eps=0.1), y)


def test_examples_and_groups_do_not_see_each_other():
    y = lambda x: group_norm.apply(ONE, x, groups=2)[0, 2, 1, 4]
    seen = jnp.any(jax.grad(y)(X) != 0, (1, 2))
    assert seen.tolist() == [[False] * 3 + [True] * 3, [False] * 6]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_statistics_are_wide(dtype):
    x = (300 * X).astype(dtype)  # its squares overflow float16
    y = group_norm.apply({"w": ONE["w"].astype(dtype)}, x, groups=2)
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(y, group_norm.apply(ONE, x.astype(jnp.float32), groups=2).astype(dtype))


def test_residuals_are_params_x_and_two_numbers_a_group():
    pullback = group_norm.vjp(ONE, X, groups=3)[1]
    assert sum(v.size for v in jax.tree.leaves(pullback)) == 6 + X.size + 2 * 2 * 3


ERRORS = [
    (
        lambda: group_norm.apply(ONE, X.transpose(0, 3, 1, 2), groups=2),
        ShapeError,
        'group_norm.apply: x has 3 channels in its last axis, but params["w"] (float32[6]) takes 6.\n'
        "  expected  x: float[*n, 6]\n"
        "  got       x: float32[2, 6, 5, 3]\n"
        "  hint      axis 1 has 6: channels first? jnp.moveaxis(x, 1, -1) puts them last.",
    ),
    (
        lambda: group_norm.apply(ONE, X, groups=4),
        ValueRangeError,
        "group_norm.apply: 4 groups do not divide c = 6.\n"
        "  expected  a divisor of c = 6\n"
        "  got       groups = 4",
    ),
    (
        lambda: group_norm.apply(ONE, X, groups=0),
        ValueRangeError,
        "group_norm.apply: groups is 0, but at least 1 is needed.\n"
        "  expected  groups ≥ 1\n"
        "  got       groups = 0",
    ),
    (
        lambda: group_norm.apply(ONE, X, groups=2, spatial=-1),
        ValueRangeError,
        "group_norm.apply: spatial is -1.\n  expected  spatial ≥ 0, or None\n  got       spatial = -1",
    ),
    (
        lambda: group_norm.apply(ONE, X[0, 0, 0], groups=2),
        ShapeError,
        "group_norm.apply: x has rank 1, but at least 2 is needed.\n"
        "  expected  x: float[n, *size, 6]\n"
        "  got       x: float32[6]\n"
        "  hint      is an axis missing? x[None] adds a batch, x[..., None] a channel axis.",
    ),
    (
        lambda: group_norm.apply(ONE, X[0, 0, 0], groups=2, spatial=2),
        ShapeError,
        "group_norm.apply: x has rank 1, but at least 3 is needed.\n"
        "  expected  x: float[*n, s0, s1, 6]\n"
        "  got       x: float32[6]",
    ),
    (
        lambda: group_norm.apply(ONE, X.astype(jnp.uint8), groups=2),
        DTypeError,
        "group_norm.apply: x has dtype uint8, but a float is needed.\n"
        "  expected  x: float[...]\n"
        "  got       x: uint8[2, 5, 3, 6]\n"
        "  hint      cast it: x.astype(jnp.float32), divided by 255 if it is an image of bytes.",
    ),
]

test_errors = golden(ERRORS)
