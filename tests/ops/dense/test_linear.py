import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet.errors import DTypeError, ShapeError, StructureError, ValueRangeError
from funcnet.ops.dense import linear
from tests.errors import golden


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


X, PARAMS = normal(7, 3), {"w": normal(3, 5, seed=1), "b": normal(5, seed=2)}


def test_init_keeps_the_variance():
    params = linear.init(jax.random.key(0), 400, 300)
    assert params["b"].tolist() == [0] * 300
    y = linear.apply(params, normal(200, 400).astype(params["w"].dtype))
    assert abs(y.var() - 1) < 0.05
    assert set(linear.init(jax.random.key(0), 3, 5, bias=False)) == {"w"}


def test_additive_and_homogeneous_without_bias():
    f = lambda x: linear.apply({"w": PARAMS["w"]}, x)
    np.testing.assert_allclose(f(2 * X + X[::-1]), 2 * f(X) + f(X)[::-1], rtol=1e-5, atol=1e-6)


def test_bias_is_added_to_every_row():
    np.testing.assert_allclose(
        linear.apply(PARAMS, X) - linear.apply({"w": PARAMS["w"]}, X), [PARAMS["b"]] * 7, rtol=1e-5
    )


def axes_of_the_product(x):
    """Of its left operand, in the program that XLA is given."""
    text = jax.jit(linear.apply).lower(PARAMS, x).as_text()
    (sizes,) = re.findall(r"dot_general .* : \(tensor<([\dx]+)xf\d+>", text)
    return len(sizes.split("x"))


@pytest.mark.parametrize("shape", [(2, 7, 3), (2, 5, 7, 3), (0, 7, 3), (2, 0, 3)])
def test_all_positions_are_rows_of_one_product(shape):
    """Of a product with more axes XLA:CPU makes dW by way of a copy of dY."""
    x = normal(*shape)
    assert axes_of_the_product(x) == 2
    assert linear.apply(PARAMS, x).shape == (*shape[:-1], 5)
    np.testing.assert_allclose(linear.apply(PARAMS, x), linear.reference(PARAMS, x), rtol=1e-5, atol=1e-6)


def test_positions_stay_apart_on_a_mesh():
    """An axis that is split over devices cannot be joined with one before it without gathering it."""
    mesh = jax.make_mesh((4,), ("t",), axis_types=(jax.sharding.AxisType.Auto,))
    x = jax.device_put(normal(2, 8, 3), jax.NamedSharding(mesh, jax.P(None, "t")))
    assert axes_of_the_product(x) == 3
    compiled = jax.jit(linear.apply).lower(PARAMS, x).compile()
    assert "all-gather" not in compiled.as_text()


def test_gradient_of_the_bias_counts_the_rows():
    (grads, _) = linear.vjp(PARAMS, X)[1](jnp.ones((7, 5), jnp.float32))
    assert grads["b"].tolist() == [7] * 5


def test_absent_bias_may_be_none():
    none = {"w": PARAMS["w"], "b": None}
    np.testing.assert_array_equal(linear.apply(none, X), linear.apply({"w": PARAMS["w"]}, X))
    assert linear.vjp(none, X)[1](jnp.ones((7, 5), jnp.float32))[0]["b"] is None


def test_the_column_convention():
    """y = W'x with W' = wᵀ [d_out, d_in] and examples in columns: dW' = dY' X'ᵀ, dX' = W'ᵀ dY'."""
    W, columns, dY = PARAMS["w"].T, X.T, normal(5, 7, seed=3)
    (grads, dx) = linear.vjp({"w": PARAMS["w"]}, X)[1](dY.T)
    np.testing.assert_allclose(grads["w"].T, dY @ columns.T, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dx.T, W.T @ dY, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(linear.matrix({"w": PARAMS["w"]}, (3,)), W)


def test_mixed_dtypes():
    y, pullback = linear.vjp(PARAMS, X.astype(jnp.bfloat16))
    grads, dx = pullback(y)
    assert (y.dtype, grads["w"].dtype, dx.dtype) == (jnp.float32, jnp.float32, jnp.bfloat16)


ERRORS = [
    (
        lambda: linear.apply(PARAMS, normal(3, 7)),
        ShapeError,
        'linear.apply: x has 7 features in its last axis, but params["w"] (float32[3, 5]) takes 3.\n'
        "  expected  x: float[*n, 3]\n"
        "  got       x: float32[3, 7]\n"
        "  hint      its transpose fits: x.T.",
    ),
    (
        lambda: linear.apply(PARAMS, normal(2, 3, 7)),
        ShapeError,
        'linear.apply: x has 7 features in its last axis, but params["w"] (float32[3, 5]) takes 3.\n'
        "  expected  x: float[*n, 3]\n"
        "  got       x: float32[2, 3, 7]\n"
        "  hint      its last two axes, swapped, fit: x.mT.",
    ),
    (
        lambda: linear.apply({"w": normal(6, 5)}, normal(4, 2, 3)),
        ShapeError,
        'linear.apply: x has 3 features in its last axis, but params["w"] (float32[6, 5]) takes 6.\n'
        "  expected  x: float[*n, 6]\n"
        "  got       x: float32[4, 2, 3]\n"
        "  hint      flattened it fits: x.reshape(4, -1).",
    ),
    (
        lambda: linear.apply({**PARAMS, "b": normal(3)}, X),
        ShapeError,
        'linear.apply: params["b"] has 3 features in its last axis, '
        'but params["w"] (float32[3, 5]) takes 5.\n'
        '  expected  params["b"]: float[5]\n'
        '  got       params["b"]: float32[3]',
    ),
    (
        lambda: linear.apply(PARAMS, X.astype(jnp.uint8)),
        DTypeError,
        "linear.apply: x has dtype uint8, but a float is needed.\n"
        "  expected  x: float[...]\n"
        "  got       x: uint8[7, 3]\n"
        "  hint      cast it: x.astype(jnp.float32), divided by 255 if it is an image of bytes.",
    ),
    (
        lambda: linear.apply({"head": PARAMS}, X),
        StructureError,
        'linear.apply: params has no "w".\n'
        '  expected  the key "w"\n'
        '  got       keys: "head"\n'
        '  hint      one level down there is one: pass params["head"].',
    ),
    (
        lambda: linear.apply(X, PARAMS),
        StructureError,
        "linear.apply: params is not a dict.\n"
        '  expected  params: a dict with the key "w"\n'
        "  got       params: float32[7, 3]\n"
        "  hint      the parameters come first: apply(params, x).",
    ),
    (
        lambda: linear.init(jax.random.key(0), 3, -5),
        ValueRangeError,
        "linear.init: d_out is -5, but at least 1 is needed.\n  expected  d_out ≥ 1\n  got       d_out = -5",
    ),
    (
        lambda: linear.init(jax.random.key(0), 3.0, 5),
        DTypeError,
        "linear.init: d_in is not an integer.\n  expected  d_in: int\n  got       d_in: 3.0 (float)",
    ),
    (
        lambda: linear.matrix(PARAMS, (7, 3)),
        ShapeError,
        'linear.matrix: in_shape is (7, 3), but params["w"] takes (3,).\n'
        "  expected  (3,)\n"
        "  got       (7, 3)",
    ),
]

test_errors = golden(ERRORS)


@pytest.mark.usefixtures("unchecked")
def test_the_text_is_the_same_under_jit():
    with pytest.raises(ShapeError) as caught:
        jax.jit(jax.grad(lambda x: linear.apply(PARAMS, x).sum()))(normal(3, 7))
    assert str(caught.value) == ERRORS[0][2]
