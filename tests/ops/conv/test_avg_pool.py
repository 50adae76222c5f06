import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet.errors import DTypeError, ShapeError, ValueRangeError
from funcnet.ops.conv import avg_pool
from tests.errors import golden

X = jnp.asarray(np.random.default_rng(0).standard_normal((2, 8, 6, 3)), jnp.float32)
OPTIONS = [
    {"kernel": (2, 2)},
    {"kernel": (3, 2), "stride": (2, 1), "padding": "same"},
    {"kernel": (3, 3), "stride": 1, "padding": ((1, 2), (2, 0))},
    {"kernel": (2, 3), "stride": 3, "padding": "causal"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_padding_is_not_averaged(options):
    ones = jnp.ones_like(X)
    np.testing.assert_allclose(avg_pool.apply(ones, **options), 1, rtol=1e-6)
    M = avg_pool.matrix(X.shape[1:], **options)
    np.testing.assert_allclose(M.sum(1), 1, rtol=1e-6)
    assert (M >= 0).all()


def test_a_corner_by_hand():
    x = jnp.arange(6.0).reshape(2, 3, 1)
    y = avg_pool.apply(x, kernel=(2, 2), stride=1, padding=((1, 0), (1, 0)))
    np.testing.assert_allclose(y[..., 0], [[0, 0.5, 1.5], [1.5, 2, 3]])


def test_the_whole_image_is_one_window():
    np.testing.assert_allclose(avg_pool.apply(X, kernel=(8, 6))[:, 0, 0], X.mean((1, 2)), rtol=1e-5)


def test_the_gradient_of_the_mean_is_spread_evenly():
    dx = jax.grad(lambda x: avg_pool.apply(x, kernel=(2, 3)).sum())(X)
    np.testing.assert_allclose(dx, 1 / 6, rtol=1e-6)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_pullback_is_the_transpose_of_the_matrix(options):
    y, pullback = avg_pool.vjp(X, **options)
    M = avg_pool.matrix(X.shape[1:], **options)
    dy = jnp.sin(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
    (dx,) = pullback(dy)
    np.testing.assert_allclose(
        dx.reshape(2, -1), dy.reshape(2, -1) @ M.astype(dy.dtype), rtol=1e-5, atol=1e-6
    )
    assert jax.tree.leaves(pullback) == []


def test_each_option_changes_something():
    shape = lambda **options: jax.eval_shape(lambda x: avg_pool.apply(x, **options), X).shape
    assert shape(kernel=(2, 2)) == (2, 4, 3, 3)
    assert shape(kernel=(2, 3)) == (2, 4, 2, 3)
    assert shape(kernel=(2, 2), stride=(1, 2)) == (2, 7, 3, 3)
    same = avg_pool.apply(X, kernel=(3, 3), stride=1, padding="same")
    assert same.shape == X.shape
    assert not jnp.allclose(same, avg_pool.apply(X, kernel=(3, 3), stride=1, padding="causal"))


def test_causal_padding_looks_back_only():
    J = jax.jit(jax.jacobian(lambda v: avg_pool.apply(v, kernel=(3,), stride=1, padding="causal")))(X[0])
    o, p = np.nonzero(np.asarray(J).sum((0, 2, 3, 5)))
    assert set(o - p) == {0, 1, 2}


def test_sums_are_in_float32():
    x = jnp.ones((600, 1), jnp.bfloat16)
    y, pull = jax.vjp(lambda x: avg_pool.apply(x, kernel=(512,), stride=1, padding="same"), x)
    assert y.dtype == jnp.bfloat16
    assert (y == 1).all()  # bfloat16 would stop counting at 256
    np.testing.assert_allclose(pull(jnp.ones_like(y))[0].astype(jnp.float32).sum(), 600, rtol=0.01)


ERRORS = [
    (
        lambda: avg_pool.apply(X, kernel=2),  # pyright: ignore[reportArgumentType]
        DTypeError,
        "avg_pool.apply: kernel is not a tuple, so the number of spatial axes is open.\n"
        "  expected  kernel: one size per spatial axis\n"
        "  got       kernel: 2 (int)\n"
        "  hint      (2,) is for sequences, (2, 2) for images.",
    ),
    (
        lambda: avg_pool.apply(X, kernel=(2, 2, 2, 2)),
        ShapeError,
        "avg_pool.apply: kernel has 4 axes.\n  expected  1, 2 or 3 sizes\n  got       kernel = (2, 2, 2, 2)",
    ),
    (
        lambda: avg_pool.apply(X, kernel=(2, 2), stride=-1),
        ValueRangeError,
        "avg_pool.apply: stride is -1, but at least 1 is needed.\n"
        "  expected  stride ≥ 1\n"
        "  got       stride = -1",
    ),
    (
        lambda: avg_pool.apply(X, kernel=(2, 2), padding=((0, 0), (2, 2))),
        ValueRangeError,
        "avg_pool.apply: along spatial axis 1, a window would see nothing but padding.\n"
        "  expected  at least one element of x in every window\n"
        "  got       6 elements, kernel 2, stride 2, padding (2, 2)",
    ),
    (
        lambda: avg_pool.apply(X.astype(jnp.int32), kernel=(2, 2)),
        DTypeError,
        "avg_pool.apply: x has dtype int32, but a float is needed.\n"
        "  expected  x: float[...]\n"
        "  got       x: int32[2, 8, 6, 3]\n"
        "  hint      cast it: x.astype(jnp.float32).",
    ),
    (
        lambda: avg_pool.apply(X[0, 0], kernel=(2, 2)),
        ShapeError,
        "avg_pool.apply: x has rank 2, but at least 3 is needed.\n"
        "  expected  x: float[*n, h, w, c]\n"
        "  got       x: float32[6, 3]\n"
        "  hint      is an axis missing? x[None] adds a batch, x[..., None] a channel axis.",
    ),
    (
        lambda: avg_pool.matrix((2, 8, 6, 3), kernel=(2, 2)),
        ShapeError,
        "avg_pool.matrix: in_shape has 4 entries, but kernel has 2.\n"
        "  expected  (*size, c), 3 entries: one example, without batch axes\n"
        "  got       in_shape = (2, 8, 6, 3)",
    ),
]

test_errors = golden(ERRORS)
