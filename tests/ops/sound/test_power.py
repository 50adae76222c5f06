from typing import Any

import jax.numpy as jnp

from funcnet.errors import ShapeError
from funcnet.ops.sound import magnitude, power
from tests.errors import golden

X: Any = jnp.asarray([[3.0, -4.0], [0.0, 0.0], [0.0, 2.0]], jnp.float32)


def test_it_is_the_square_of_the_magnitude():
    assert power.apply(X).tolist() == [25.0, 0.0, 4.0]
    assert jnp.array_equal(power.apply(X), magnitude.apply(X) ** 2)
    assert jnp.array_equal(power.vjp(X)[1](jnp.ones(3, jnp.float32))[0], 2 * X)


ERRORS = [
    (
        lambda: power.apply(X[:, 0]),
        ShapeError,
        "power.apply: the last axis of x is not a pair.\n"
        "  expected  x: float[*n, 2], real and imaginary part\n"
        "  got       x: float32[3]",
    ),
]

test_errors = golden(ERRORS)
