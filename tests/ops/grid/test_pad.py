import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet.errors import DTypeError, ValueRangeError
from funcnet.ops.conv import conv
from funcnet.ops.grid import pad
from tests.errors import golden

X = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 4, 3)))
MODES = {"zeros": "constant", "edge": "edge", "reflect": "reflect", "circular": "wrap"}


@pytest.mark.parametrize("mode", MODES)
def test_it_is_numpys_and_the_transpose_of_the_matrix(mode):
    padding = ((2, 3), (1, 0))
    y, pullback = jax.jit(lambda x: pad.vjp(x, padding=padding, padding_mode=mode))(X)
    np.testing.assert_array_equal(y, np.pad(X, [(0, 0), *padding, (0, 0)], mode=MODES[mode]))
    M = np.asarray(pad.matrix(X.shape[1:], padding=padding, padding_mode=mode))
    np.testing.assert_array_equal(y[0].reshape(-1), M @ X[0].reshape(-1))
    dy = jnp.sin(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
    (dx,) = jax.jit(lambda p, dy: p(dy))(pullback, dy)
    np.testing.assert_allclose(dx[0].reshape(-1), M.T @ dy[0].reshape(-1), atol=1e-12)


def test_a_convolution_of_what_is_padded_is_the_padded_convolution():
    w = {"w": jnp.asarray(np.random.default_rng(1).standard_normal((3, 2, 3, 5)))}
    padding = ((1, 2), (0, 1))
    for mode in ("circular", "reflect", "zeros"):
        y = conv.apply(w, pad.apply(X, padding=padding, padding_mode=mode), padding="valid")
        np.testing.assert_allclose(y, conv.apply(w, X, padding=padding, padding_mode=mode), rtol=1e-9)


def test_a_wide_border_of_bfloat16_is_summed_in_float32():
    x = jnp.ones((3, 1), jnp.bfloat16)
    f = lambda x: pad.apply(x, padding=((600, 0),), padding_mode="edge").astype(jnp.float32).sum()
    dx = jax.jit(jax.grad(f))(x)
    assert dx[0, 0] == jnp.bfloat16(601)  # bfloat16 would stop counting at 256


ERRORS = [
    (
        lambda: pad.apply(X, padding=1),  # pyright: ignore[reportArgumentType]
        DTypeError,
        "pad.apply: padding is not a sequence of pairs.\n"
        "  expected  padding: 1 pair (low, high)\n"
        "  got       padding = 1\n"
        "  hint      for 1 on both sides of every axis: padding=((1, 1),).",
    ),
    (
        lambda: pad.apply(X, padding=((0, 0), (-1, 0))),
        ValueRangeError,
        "pad.apply: padding is negative.\n"
        "  expected  padding: 2 pairs (low, high), each ≥ 0\n"
        "  got       padding = ((0, 0), (-1, 0))\n"
        "  hint      to crop, slice the input.",
    ),
    (
        lambda: pad.apply(X, padding=((0, 5), (0, 0)), padding_mode="reflect"),
        ValueRangeError,
        "pad.apply: a border of 5 is too wide for spatial axis 0 of x.\n"
        "  expected  at most 4     (the axis has size 5, padding_mode 'reflect')\n"
        "  got       padding = ((0, 5), (0, 0))\n"
        '  hint      padding_mode "edge" and "circular" may be wider.',
    ),
]

test_errors = golden(ERRORS)
