import jax.numpy as jnp
import numpy as np

from funcnet.errors import ShapeError
from funcnet.ops.grid import pixel_unshuffle
from tests.errors import golden

X = jnp.zeros((2, 6, 4, 3))


def test_the_matrix_is_a_permutation():
    M = np.asarray(pixel_unshuffle.matrix((6, 4, 3), factor=(3, 2)))
    np.testing.assert_array_equal(M @ M.T, np.eye(72))


test_errors = golden(
    [
        (
            lambda: pixel_unshuffle.apply(X, factor=(3, 3)),
            ShapeError,
            "pixel_unshuffle.apply: blocks of 3 × 3 pixels do not fill x.\n"
            "  expected  spatial axes of multiples of them     (factor = (3, 3))\n"
            "  got       x: float64[2, 6, 4, 3]\n"
            "  hint      pad it first: fn.pad.apply.",
        ),
    ]
)
