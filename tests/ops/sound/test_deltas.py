from typing import Any

import jax.numpy as jnp
import numpy as np

from funcnet.errors import ValueRangeError
from funcnet.ops.sound import deltas, pre_emphasis
from tests.errors import golden
from tests.ops.sound.signals import X

ROW: Any = jnp.asarray([1, 4, 9, 16, 25, 36, 49, 64, 80, 99, 7], jnp.float32)[:, None]


def test_it_is_that_of_torchaudio():
    """torchaudio.functional.compute_deltas(torch.tensor([[1.0, 4, 9, 16, 25, 36, 49, 64, 80, 99, 7]]))

    librosa.feature.delta(..., width=5) is equal but for two frames at either end.
    """
    want = [1.9, 3.8, 6, 8, 10, 12, 13.8, 15.7, -4.9, -18.7, -23.8]
    np.testing.assert_allclose(deltas.apply(ROW)[:, 0], want, rtol=1e-6)


def test_a_line_has_its_slope():
    line = 3 * jnp.arange(20, dtype=jnp.float32)[:, None]
    for width in (3, 7):
        np.testing.assert_allclose(deltas.apply(line, width=width)[width:-width], 3, rtol=1e-6)


def test_pre_emphasis_is_that_of_torchaudio():
    """torchaudio.functional.preemphasis(torch.tensor(x[100:105]))"""
    want = [0.856716, 0.007048, 0.012526, 0.017501, -0.009811]
    np.testing.assert_allclose(pre_emphasis.apply(jnp.asarray(X[100:105])), want, atol=1e-6)


ERRORS = [
    (
        lambda: deltas.apply(ROW, width=4),
        ValueRangeError,
        "deltas.apply: width is 4, but a frame has as many before it as after.\n"
        "  expected  width: an odd number, at least 3\n"
        "  got       width = 4",
    ),
    (
        lambda: pre_emphasis.apply(ROW, coefficient=97.0),
        ValueRangeError,
        "pre_emphasis.apply: coefficient is 97.0, outside [0, 1].\n"
        "  expected  0 ≤ coefficient ≤ 1\n"
        "  got       coefficient = 97.0\n"
        "  hint      coefficient is a fraction, not per cent: 0.97.",
    ),
]

test_errors = golden(ERRORS)
