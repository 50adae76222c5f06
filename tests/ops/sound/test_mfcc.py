from typing import Any

import jax.numpy as jnp
import numpy as np

from funcnet.errors import ValueRangeError
from funcnet.ops.sound import mfcc
from tests.errors import golden
from tests.ops.sound.signals import X

SIGNAL: Any = jnp.asarray(X)


def test_it_is_that_of_librosa():
    """librosa.feature.mfcc(y=x)[:5, 3]"""
    got = mfcc.apply(SIGNAL, **mfcc.LIBROSA)
    assert got.shape == (6, 20)
    want = [-111.95929, 23.720062, -183.072754, -42.793026, 66.638992]
    np.testing.assert_allclose(got[3, :5], want, atol=3e-3)


def test_it_is_that_of_torchaudio():
    """torchaudio.transforms.MFCC()(torch.tensor(x))[:5, 3]"""
    got = mfcc.apply(SIGNAL, **mfcc.TORCHAUDIO)
    assert got.shape == (16, 40)
    want = [-160.97438, 43.26952, 1.295886, -88.604744, -110.926788]
    np.testing.assert_allclose(got[3, :5], want, atol=3e-3)


def test_all_coefficients_keep_lengths():
    d = mfcc._cosines(7, 7)
    np.testing.assert_allclose(d @ d.T, np.eye(7), atol=1e-14)


ERRORS = [
    (
        lambda: mfcc.apply(SIGNAL, rate=8000.0, n_fft=16, mels=4, coefficients=5),
        ValueRangeError,
        "mfcc.apply: 4 bands have no 5 coefficients.\n"
        "  expected  coefficients ≤ mels = 4\n"
        "  got       coefficients = 5",
    ),
]

test_errors = golden(ERRORS)
