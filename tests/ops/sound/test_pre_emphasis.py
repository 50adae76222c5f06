import jax.numpy as jnp
import numpy as np

from funcnet.errors import ValueRangeError
from funcnet.ops.sound import pre_emphasis
from tests.errors import golden
from tests.ops.sound.signals import X


def test_it_is_that_of_torchaudio():
    """torchaudio.functional.preemphasis(torch.tensor(x[100:105]))"""
    want = [0.856716, 0.007048, 0.012526, 0.017501, -0.009811]
    np.testing.assert_allclose(pre_emphasis.apply(jnp.asarray(X[100:105])), want, atol=1e-6)


def test_coefficients():
    """Of 0 nothing changes, of 1 it is the difference."""
    x = jnp.asarray(X[:9])
    assert jnp.array_equal(pre_emphasis.apply(x, coefficient=0.0), x)
    np.testing.assert_allclose(pre_emphasis.apply(x, coefficient=1.0)[1:], np.diff(X[:9]), atol=1e-7)


ERRORS = [
    (
        lambda: pre_emphasis.apply(jnp.asarray(X), coefficient=97.0),
        ValueRangeError,
        "pre_emphasis.apply: coefficient is 97.0, outside [0, 1].\n"
        "  expected  0 ≤ coefficient ≤ 1\n"
        "  got       coefficient = 97.0\n"
        "  hint      coefficient is a fraction, not per cent: 0.97.",
    ),
]

test_errors = golden(ERRORS)
