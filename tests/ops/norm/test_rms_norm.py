import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet.errors import DTypeError, ShapeError, StructureError, ValueRangeError
from funcnet.ops.norm import rms_norm
from tests.errors import golden

X = jnp.asarray(np.random.default_rng(0).standard_normal((5, 7)), jnp.float32)
W = jnp.asarray(np.random.default_rng(1).standard_normal(7), jnp.float32)
ONE = {"w": jnp.ones(7, jnp.float32)}


def test_init():
    assert rms_norm.init(jax.random.key(0), 3)["w"].tolist() == [1, 1, 1]


def test_rows_have_mean_square_one():
    np.testing.assert_allclose((rms_norm.apply(ONE, X, eps=0.0) ** 2).mean(-1), 1, rtol=1e-5)


def test_the_scale_of_a_row_changes_nothing_but_its_shift_does():
    y = rms_norm.apply(ONE, X, eps=0.0)
    np.testing.assert_allclose(rms_norm.apply(ONE, 3 * X, eps=0.0), y, atol=1e-5)
    assert not jnp.allclose(rms_norm.apply(ONE, X + 1, eps=0.0), y, atol=1e-2)
    dx = jax.grad(lambda x: jnp.sum(W * rms_norm.apply(ONE, x, 0.0)))(X)
    np.testing.assert_allclose((dx * X).sum(-1), 0, atol=1e-5)


def test_eps_and_gain_change_something():
    y = rms_norm.apply(ONE, X)
    assert not jnp.allclose(rms_norm.apply(ONE, X, eps=0.1), y)
    np.testing.assert_allclose(rms_norm.apply({"w": W}, X), W * y, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_statistics_are_wide(dtype):
    x = (300 * X).astype(dtype)  # its squares overflow float16
    y = rms_norm.apply({"w": ONE["w"].astype(dtype)}, x)
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(y, rms_norm.apply(ONE, x.astype(jnp.float32)).astype(dtype))


def test_a_row_of_zeros_stays_finite():
    y, dx = jax.value_and_grad(lambda x: rms_norm.apply(ONE, x).sum())(jnp.zeros((2, 7), jnp.float32))
    assert y == 0
    np.testing.assert_allclose(dx, 1e3, rtol=1e-6)  # w / √eps


def test_residuals_are_w_x_and_one_number_a_row():
    pullback = rms_norm.vjp(ONE, X)[1]
    assert sum(v.size for v in jax.tree.leaves(pullback)) == W.size + X.size + 5


ERRORS = [
    (
        lambda: rms_norm.apply(ONE, X[:, :6]),
        ShapeError,
        'rms_norm.apply: x has 6 features in its last axis, but params["w"] (float32[7]) takes 7.\n'
        "  expected  x: float[*n, 7]\n"
        "  got       x: float32[5, 6]",
    ),
    (
        lambda: rms_norm.apply(ONE, X.astype(jnp.int32)),
        DTypeError,
        "rms_norm.apply: x has dtype int32, but a float is needed.\n"
        "  expected  x: float[...]\n"
        "  got       x: int32[5, 7]\n"
        "  hint      cast it: x.astype(jnp.float32).",
    ),
    (
        lambda: rms_norm.apply({"gain": W}, X),
        StructureError,
        'rms_norm.apply: params has no "w".\n  expected  the key "w"\n  got       keys: "gain"',
    ),
    (
        lambda: rms_norm.init(jax.random.key(0), -1),
        ValueRangeError,
        "rms_norm.init: d is -1, but at least 1 is needed.\n  expected  d ≥ 1\n  got       d = -1",
    ),
]

test_errors = golden(ERRORS)
