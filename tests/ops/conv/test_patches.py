import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet.errors import DTypeError
from funcnet.ops.conv import conv, fold, patches
from tests.errors import golden

X = jnp.asarray(np.random.default_rng(0).standard_normal((2, 6, 5, 3)))
OPTIONS = [
    {"kernel": (3, 2), "stride": (2, 1), "padding": ((1, 2), (0, 1))},
    {"kernel": (2, 3), "dilation": (3, 2), "padding": "same"},
    {"kernel": (2, 2), "stride": 3, "padding": "causal"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_convolution_is_a_product_with_the_patches(options):
    w = jnp.asarray(np.random.default_rng(1).standard_normal((*options["kernel"], 3, 4)))
    rest = {k: v for k, v in options.items() if k != "kernel"}
    y = patches.apply(X, **options) @ w.reshape(-1, 4)
    np.testing.assert_allclose(y, conv.apply({"w": w}, X, **rest), atol=1e-12)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_fold_of_ones_counts_the_windows(options):
    ones = patches.apply(jnp.ones((6, 5, 1)), **options)
    times = fold.apply(jnp.ones_like(ones), size=(6, 5), **options)
    M = np.asarray(patches.matrix((6, 5, 1), **options))
    np.testing.assert_array_equal(times.ravel(), M.sum(0))
    np.testing.assert_allclose(
        fold.apply(patches.apply(X, **options), size=(6, 5), **options), X * times, atol=1e-12
    )


def test_it_is_pytorchs():
    torch = pytest.importorskip("torch")
    options = {"padding": (2, 1), "stride": (2, 1), "dilation": (1, 2)}
    nchw = torch.tensor(np.moveaxis(np.asarray(X), -1, 1).copy())
    want = torch.nn.functional.unfold(nchw, (3, 2), **options)  # [n, (c, k), positions]
    y = patches.apply(X, kernel=(3, 2), **options | {"padding": ((2, 2), (1, 1))})
    got = y.reshape(2, -1, 6, 3).transpose(0, 3, 2, 1).reshape(want.shape)
    np.testing.assert_array_equal(got, want.numpy())
    back = torch.nn.functional.fold(want, (6, 5), (3, 2), **options)
    y = fold.apply(y, size=(6, 5), kernel=(3, 2), **options | {"padding": ((2, 2), (1, 1))})
    np.testing.assert_allclose(y, np.moveaxis(back.numpy(), 1, -1), atol=1e-12)


def test_the_operator_is_the_convolutions():
    A = patches.operator((6, 1), kernel=(3,), padding="same")
    np.testing.assert_array_equal(A.matrix(), patches.matrix((6, 1), kernel=(3,), padding="same"))
    assert A.norm().upper <= np.sqrt(3) * (1 + 1e-6)


def test_sums_are_in_float32():
    x = jnp.ones((600, 1), jnp.bfloat16)
    dx = jax.grad(lambda x: patches.apply(x, kernel=(512,)).astype(jnp.float32).sum())(x)
    assert dx.max() == 89  # the windows that see the middle


test_errors = golden(
    [
        (
            lambda: patches.apply(X, kernel=3),  # pyright: ignore[reportArgumentType]
            DTypeError,
            "patches.apply: kernel is not a tuple, so the number of spatial axes is open.\n"
            "  expected  kernel: one size per spatial axis\n"
            "  got       kernel: 3 (int)\n"
            "  hint      (3,) is for sequences, (3, 3) for images.",
        ),
    ]
)
