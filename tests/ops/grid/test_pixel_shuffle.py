import jax.numpy as jnp
import numpy as np
import pytest

from funcnet.errors import ShapeError
from funcnet.ops.grid import pixel_shuffle, pixel_unshuffle
from tests.errors import golden

X = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 4, 12)), jnp.float32)


@pytest.mark.parametrize("order", ["channel first", "channel last"])
def test_each_is_the_inverse_of_the_other(order):
    options = {"factor": (3, 2), "order": order}
    y = pixel_shuffle.apply(X, **options)
    assert y.shape == (2, 9, 8, 2)
    np.testing.assert_array_equal(pixel_unshuffle.apply(y, **options), X)


def test_the_orders_are_those_of_pytorch_and_tensorflow():
    x = jnp.arange(8.0).reshape(1, 1, 8)
    first = pixel_shuffle.apply(x, factor=(2, 2))
    last = pixel_shuffle.apply(x, factor=(2, 2), order="channel last")
    assert first[..., 0].tolist() == [[0, 1], [2, 3]]
    assert last[..., 0].tolist() == [[0, 2], [4, 6]]


def test_it_is_pytorchs():
    torch = pytest.importorskip("torch")
    want = torch.nn.functional.pixel_shuffle(torch.tensor(np.moveaxis(np.asarray(X), -1, 1).copy()), 2)
    np.testing.assert_array_equal(pixel_shuffle.apply(X, factor=(2, 2)), np.moveaxis(want.numpy(), 1, -1))


test_errors = golden(
    [
        (
            lambda: pixel_shuffle.apply(X, factor=(5, 2)),
            ShapeError,
            "pixel_shuffle.apply: x has 12 channels in its last axis, which blocks of 5 × 2 pixels do not "
            "divide.\n"
            "  expected  a multiple of 10 channels     (factor = (5, 2))\n"
            "  got       x: float32[2, 3, 4, 12]",
        ),
    ]
)
