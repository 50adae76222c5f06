import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet.errors import DTypeError, ShapeError, StructureError, ValueRangeError
from funcnet.ops.norm import layer_norm
from tests.errors import golden

X = jnp.asarray(np.random.default_rng(0).standard_normal((5, 7)), jnp.float32)
W = jnp.asarray(np.random.default_rng(1).standard_normal(7), jnp.float32)
ONE = {"w": jnp.ones(7, jnp.float32)}


def test_init():
    params = layer_norm.init(jax.random.key(0), 3)
    assert params["w"].tolist() == [1, 1, 1]
    assert params["b"].tolist() == [0, 0, 0]
    assert set(layer_norm.init(jax.random.key(0), 3, bias=False)) == {"w"}


def test_rows_have_mean_zero_and_variance_one():
    y = layer_norm.apply(ONE, X, eps=0.0)
    np.testing.assert_allclose(y.mean(-1), 0, atol=1e-6)
    np.testing.assert_allclose(y.var(-1), 1, atol=1e-5)


def test_shift_and_scale_of_a_row_change_nothing():
    y = layer_norm.apply(ONE, X, eps=0.0)
    np.testing.assert_allclose(layer_norm.apply(ONE, 3 * X + 2, eps=0.0), y, atol=1e-5)
    dx = jax.grad(lambda x: jnp.sum(W * layer_norm.apply(ONE, x, 0.0)))(X)
    np.testing.assert_allclose(dx.sum(-1), 0, atol=1e-5)  # along a shift
    np.testing.assert_allclose((dx * X).sum(-1), 0, atol=1e-5)  # along a scaling


def test_rows_do_not_see_each_other():
    jacobian = jax.jacobian(lambda x: layer_norm.apply(ONE, x).sum(-1) + x[:, 0])(X)
    assert not jnp.any(jnp.where(jnp.eye(5, dtype=bool)[..., None], 0, jacobian))


def test_eps_and_bias_change_something():
    y = layer_norm.apply(ONE, X)
    assert not jnp.allclose(layer_norm.apply(ONE, X, eps=0.1), y)
    np.testing.assert_allclose(layer_norm.apply({**ONE, "b": W}, X), y + W, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_statistics_are_wide(dtype):
    x = (300 * X).astype(dtype)  # its squares overflow float16
    y = layer_norm.apply(jax.tree.map(lambda v: v.astype(dtype), ONE), x)
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(y, layer_norm.apply(ONE, x.astype(jnp.float32)).astype(dtype))


def test_residuals_are_params_x_and_two_numbers_a_row():
    pullback = layer_norm.vjp(ONE, X)[1]
    assert sum(v.size for v in jax.tree.leaves(pullback)) == W.size + X.size + 2 * 5


ERRORS = [
    (
        lambda: jax.grad(lambda eps: layer_norm.apply(ONE, X, eps).sum())(jnp.float32(1e-5)),
        DTypeError,
        "layer_norm.apply: eps is traced, but its value is needed for tracing.\n"
        "  expected  eps: a Python value\n"
        "  got       eps: float32[]\n"
        '  hint      make it static where it enters jax.jit: static_argnames="eps".',
    ),
    (
        lambda: layer_norm.apply(ONE, X.T),
        ShapeError,
        'layer_norm.apply: x has 5 features in its last axis, but params["w"] (float32[7]) takes 7.\n'
        "  expected  x: float[*n, 7]\n"
        "  got       x: float32[7, 5]\n"
        "  hint      its transpose fits: x.T.",
    ),
    (
        lambda: layer_norm.apply(ONE, X.astype(jnp.int32)),
        DTypeError,
        "layer_norm.apply: x has dtype int32, but a float is needed.\n"
        "  expected  x: float[...]\n"
        "  got       x: int32[5, 7]\n"
        "  hint      cast it: x.astype(jnp.float32).",
    ),
    (
        lambda: layer_norm.apply({"b": W}, X),
        StructureError,
        'layer_norm.apply: params has no "w".\n  expected  the key "w"\n  got       keys: "b"',
    ),
    (
        lambda: layer_norm.init(jax.random.key(0), 0),
        ValueRangeError,
        "layer_norm.init: d is 0, but at least 1 is needed.\n  expected  d ≥ 1\n  got       d = 0",
    ),
]

test_errors = golden(ERRORS)
