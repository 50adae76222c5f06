import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet.errors import DTypeError, ShapeError
from funcnet.ops.loss import mse

P = jnp.asarray(np.random.default_rng(0).standard_normal((5, 7)), jnp.float32)
T = jnp.asarray(np.random.default_rng(1).standard_normal((5, 7)), jnp.float32)


def test_one_value_per_example_by_hand():
    p, t = jnp.asarray([[1.0, 2.0], [3.0, 5.0]]), jnp.asarray([[1.0, 0.0], [0.0, 1.0]])
    np.testing.assert_allclose(mse.apply(p, t), [2, 12.5])
    dp, dt = jax.grad(lambda p, t: mse.apply(p, t).sum(), (0, 1))(p, t)
    np.testing.assert_allclose(dp, p - t)
    np.testing.assert_allclose(dt, t - p)


def test_prediction_and_target_may_change_places():
    np.testing.assert_array_equal(mse.apply(P, T), mse.apply(T, P))
    assert mse.apply(P, P).tolist() == [0] * 5


def test_bfloat16_is_subtracted_and_averaged_in_float32():
    p = jnp.full((1, 4096), 1.0, jnp.bfloat16)
    t = jnp.full((1, 4096), 0.996, jnp.bfloat16)
    y = mse.apply(p, t)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, (p - t).astype(jnp.float32)[0, 0] ** 2, rtol=1e-6)
    dp, dt = jax.grad(lambda p, t: mse.apply(p, t).sum(), (0, 1))(p, t.astype(jnp.float32))
    assert (dp.dtype, dt.dtype) == (jnp.bfloat16, jnp.float32)


def test_what_jax_keeps_is_no_more_than_the_formula_needs():
    held = jax.tree.leaves(jax.vjp(mse.apply, P, T)[1])
    assert sum(v.size for v in held) <= P.size + P.shape[0]


ERRORS = [
    (
        (P[:, 0], T[:, :1]),
        ShapeError,
        "mse.apply: target and prediction have different shapes.\n"
        "  expected  target: float32[5]     (the shape of prediction)\n"
        "  got       target: float32[5, 1]\n"
        "  hint      they differ by an axis of size 1: target.reshape(5) fits.",
    ),
    (
        (P[:, :1], T[:, 0]),
        ShapeError,
        "mse.apply: target and prediction have different shapes.\n"
        "  expected  target: float32[5, 1]     (the shape of prediction)\n"
        "  got       target: float32[5]\n"
        "  hint      they differ by an axis of size 1: target.reshape(5, 1) fits.",
    ),
    (
        (P, T.T),
        ShapeError,
        "mse.apply: target and prediction have different shapes.\n"
        "  expected  target: float32[5, 7]     (the shape of prediction)\n"
        "  got       target: float32[7, 5]\n"
        "  hint      its transpose fits: target.T.",
    ),
    (
        (P, T[:4]),
        ShapeError,
        "mse.apply: target and prediction have different shapes.\n"
        "  expected  target: float32[5, 7]     (the shape of prediction)\n"
        "  got       target: float32[4, 7]",
    ),
    (
        (P, T.astype(jnp.int32)),
        DTypeError,
        "mse.apply: target has dtype int32, but a float is needed.\n"
        "  expected  target: float[...]\n"
        "  got       target: int32[5, 7]\n"
        "  hint      cast it: target.astype(jnp.float32).",
    ),
    (
        (P[0, 0], T[0, 0]),
        ShapeError,
        "mse.apply: prediction has rank 0, but at least 1 is needed.\n"
        "  expected  prediction: float[*n, d]\n"
        "  got       prediction: float32[]\n"
        "  hint      is an axis missing? x[None] adds a batch, x[..., None] a channel axis.",
    ),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("args", "error", "text"), ERRORS, ids=range(len(ERRORS)))
def test_errors(args, error, text):
    with pytest.raises(error) as caught:
        mse.apply(*args)
    assert str(caught.value) == text
