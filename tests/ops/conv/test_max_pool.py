import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet.errors import DTypeError, ShapeError, ValueRangeError
from funcnet.ops.conv import max_pool

X = jnp.asarray(np.random.default_rng(0).standard_normal((2, 8, 6, 3)))
OPTIONS = [
    {"kernel": (2, 2)},
    {"kernel": (3, 2), "stride": (2, 1), "padding": "same"},
    {"kernel": (3, 3), "stride": 1, "padding": ((1, 2), (2, 0))},
    {"kernel": (2, 3), "stride": 3, "padding": "causal"},
]


def by(f):
    """The gradient, compiled once for equal options."""

    def gradient(x, dy, **options):
        return jax.vjp(lambda x: f(x, **options), x)[1](dy)[0]

    return jax.jit(gradient, static_argnames=("kernel", "stride", "padding"))


gradient, gradient_of_reference = by(max_pool.apply), by(max_pool.reference)


def first_takes_all(x, dy, kernel, stride=None, padding="valid"):
    """Where the gradient goes, window by window: to the first of the largest, in C order."""
    d = len(kernel)
    strides = kernel if stride is None else (stride,) * d if isinstance(stride, int) else stride
    dx = np.zeros(x.shape)
    for n, *o, c in np.ndindex(*dy.shape):
        best = None
        for k in np.ndindex(*kernel):
            low = [low_of(padding, x.shape[a + 1], kernel[a], strides[a], a) for a in range(d)]
            p = [o[a] * strides[a] + k[a] - low[a] for a in range(d)]
            inside = all(0 <= p[a] < x.shape[a + 1] for a in range(d))
            if inside and (best is None or x[(n, *p, c)] > x[best]):
                best = (n, *p, c)
        dx[best] += dy[(n, *o, c)]
    return dx


def low_of(padding, size, kernel, stride, axis):
    if padding == "same":
        return max((-(-size // stride) - 1) * stride + kernel - size, 0) // 2
    return {"valid": 0, "causal": kernel - 1}[padding] if isinstance(padding, str) else padding[axis][0]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("fill", ["few values", "all equal", "all −inf"])
def test_the_first_of_equal_elements_takes_the_gradient(options, fill):
    x = np.random.default_rng(1).integers(0, 3, (2, 8, 6, 3)).astype(np.float64)
    x = {"few values": x, "all equal": 0 * x, "all −inf": np.full_like(x, -np.inf)}[fill]
    y = jax.eval_shape(lambda x: max_pool.apply(x, **options), x)
    dy = np.random.default_rng(2).standard_normal(y.shape)
    want = first_takes_all(x, dy, **options)
    for run in (gradient, gradient_of_reference):
        np.testing.assert_allclose(run(x, dy, **options), want, atol=1e-14)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_no_gradient_is_lost(options):
    y = jax.eval_shape(lambda x: max_pool.apply(x, **options), X)
    np.testing.assert_allclose(gradient(X, jnp.ones(y.shape, y.dtype), **options).sum(), y.size, rtol=1e-6)


def test_padding_is_never_the_maximum():
    y = max_pool.apply(-jnp.abs(X) - 1, kernel=(3, 3), stride=1, padding="same")
    assert (y <= -1).all()


def test_nan_is_not_hidden():
    x = X.at[0, 3, 2, 1].set(jnp.nan)
    y, pull = jax.vjp(lambda x: max_pool.apply(x, kernel=(2, 2)), x)
    assert np.argwhere(np.isnan(y)).tolist() == [[0, 1, 1, 1]]
    (dx,) = pull(jnp.ones_like(y))
    assert dx[0, 3, 2, 1] == 1
    assert dx[0, 2:4, 2:4, 1].sum() == 1


def test_the_whole_image_is_one_window():
    np.testing.assert_array_equal(max_pool.apply(X, kernel=(8, 6))[:, 0, 0], X.max((1, 2)))


def test_each_option_changes_something():
    shape = lambda **options: jax.eval_shape(lambda x: max_pool.apply(x, **options), X).shape
    assert shape(kernel=(2, 2)) == (2, 4, 3, 3)
    assert shape(kernel=(2, 3)) == (2, 4, 2, 3)
    assert shape(kernel=(2, 2), stride=1) == (2, 7, 5, 3)
    assert shape(kernel=(2, 2), stride=(1, 2)) == (2, 7, 3, 3)
    same = max_pool.apply(X, kernel=(3, 3), stride=1, padding="same")
    assert same.shape == X.shape
    assert not jnp.array_equal(same, max_pool.apply(X, kernel=(3, 3), stride=1, padding="causal"))


def test_causal_padding_looks_back_only():
    x = X[0]  # [8 signals, 6 positions, 3]
    J = jax.jit(jax.jacobian(lambda v: max_pool.apply(v, kernel=(3,), stride=1, padding="causal")))(x)
    o, p = np.nonzero(np.asarray(J).sum((0, 2, 3, 5)))
    assert set(o - p) == {0, 1, 2}


def test_a_kernel_of_more_than_255_elements():
    x = jnp.zeros((600, 1)).at[400].set(1)
    dx = gradient(x, jnp.ones((3, 1)), kernel=(301,), stride=100)
    assert np.argwhere(dx[:, 0]).tolist() == [[0], [400]]
    assert dx[400, 0] == 2  # the windows from 100 and from 200 on


def test_gradients_are_summed_in_float32():
    x = jnp.zeros((39, 39, 1), jnp.bfloat16).at[19, 19].set(1)
    dx = gradient(x, jnp.ones((20, 20, 1), x.dtype), kernel=(20, 20), stride=1)
    assert dx.dtype == jnp.bfloat16
    assert dx[19, 19, 0] == 400  # bfloat16 would stop counting at 256


def test_residuals_are_one_byte_per_window_and_axis():
    _, pullback = max_pool.vjp(X, kernel=(2, 2))
    assert [(v.dtype, v.shape) for v in jax.tree.leaves(pullback)] == [
        (jnp.uint8, (2, 4, 3, 3)),
        (jnp.uint8, (2, 8, 3, 3)),
    ]


def test_the_gradient_runs_without_select_and_scatter():
    loss = lambda x: max_pool.apply(x, kernel=(3, 3), stride=2, padding="same").sum()
    assert "select_and" not in str(jax.make_jaxpr(jax.grad(loss))(X))


ERRORS = [
    (
        {"kernel": 2},
        DTypeError,
        "max_pool.apply: kernel is not a tuple, so the number of spatial axes is open.\n"
        "  expected  kernel: one size per spatial axis\n"
        "  got       kernel: 2 (int)\n"
        "  hint      (2,) is for sequences, (2, 2) for images.",
    ),
    (
        {"kernel": ()},
        ShapeError,
        "max_pool.apply: kernel has 0 axes.\n  expected  1, 2 or 3 sizes\n  got       kernel = ()",
    ),
    (
        {"kernel": (2, 0)},
        ValueRangeError,
        "max_pool.apply: kernel is 0, but at least 1 is needed.\n"
        "  expected  kernel ≥ 1\n"
        "  got       kernel = 0",
    ),
    (
        {"kernel": (2, 2), "stride": 0},
        ValueRangeError,
        "max_pool.apply: stride is 0, but at least 1 is needed.\n"
        "  expected  stride ≥ 1\n"
        "  got       stride = 0",
    ),
    (
        {"kernel": (2, 2), "stride": (1,)},
        ShapeError,
        "max_pool.apply: stride has 1 entries, but there are 2 spatial axes.\n"
        "  expected  stride: an int, or 2 of them\n"
        "  got       stride = (1,)",
    ),
    (
        {"kernel": (2, 2), "padding": ((2, 0), (0, 0))},
        ValueRangeError,
        "max_pool.apply: along spatial axis 0, a window would see nothing but padding.\n"
        "  expected  at least one element of x in every window\n"
        "  got       8 elements, kernel 2, stride 2, padding (2, 0)",
    ),
    (
        {"kernel": (2, 2), "padding": ((0, 0), (0, 3))},
        ValueRangeError,
        "max_pool.apply: along spatial axis 1, a window would see nothing but padding.\n"
        "  expected  at least one element of x in every window\n"
        "  got       6 elements, kernel 2, stride 2, padding (0, 3)",
    ),
    (
        {"kernel": (2, 2), "padding": "full"},
        ValueRangeError,
        "max_pool.apply: padding is 'full'.\n"
        "  expected  padding: 'same', 'valid', 'causal'\n"
        "  got       padding = 'full'",
    ),
    (
        {"kernel": (2, 2), "padding": 1},
        DTypeError,
        "max_pool.apply: padding is not a name and not a sequence of pairs.\n"
        '  expected  padding: "same", "valid", "causal", or 2 pairs (low, high)\n'
        "  got       padding = 1\n"
        "  hint      for 1 on both sides of every axis: padding=((1, 1), (1, 1)).",
    ),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("options", "error", "text"), ERRORS, ids=range(len(ERRORS)))
def test_errors_of_options(options, error, text):
    with pytest.raises(error) as caught:
        max_pool.apply(X, **options)
    assert str(caught.value) == text


@pytest.mark.usefixtures("unchecked")
def test_errors_of_x():
    with pytest.raises(DTypeError) as caught:
        max_pool.apply(X.astype(jnp.uint8), kernel=(2, 2))
    assert str(caught.value) == (
        "max_pool.apply: x has dtype uint8, but a float is needed.\n"
        "  expected  x: float[...]\n"
        "  got       x: uint8[2, 8, 6, 3]\n"
        "  hint      cast it: x.astype(jnp.float32), divided by 255 if it is an image of bytes."
    )
    with pytest.raises(ShapeError) as caught:
        max_pool.apply(X[0, :, :, 0], kernel=(2, 2))
    assert str(caught.value) == (
        "max_pool.apply: x has rank 2, but at least 3 is needed.\n"
        "  expected  x: float[*n, h, w, c]\n"
        "  got       x: float64[8, 6]\n"
        "  hint      is an axis missing? x[None] adds a batch, x[..., None] a channel axis."
    )
