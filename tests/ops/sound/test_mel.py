from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet.errors import ShapeError, ValueRangeError
from funcnet.ops.sound import mel
from tests.errors import golden

X: Any = jnp.asarray(np.random.default_rng(0).random((5, 9)), jnp.float32)


def test_the_bank_is_that_of_librosa():
    """librosa.filters.mel(sr=8000, n_fft=16, n_mels=3), and with htk=True, norm=None"""
    slaney = [
        [0, 0.001429, 0.000535, 0, 0, 0, 0, 0, 0],
        [0, 0, 0.000851, 0.000865, 0.000234, 0, 0, 0, 0],
        [0, 0, 0, 0.00022, 0.000579, 0.000589, 0.000393, 0.000196, 0],
    ]
    htk = [
        [0, 0.893459, 0.165692, 0, 0, 0, 0, 0, 0],
        [0, 0.106541, 0.834308, 0.650824, 0.198715, 0, 0, 0, 0],
        [0, 0, 0, 0.349176, 0.801285, 0.842585, 0.561724, 0.280862, 0],
    ]
    how: Any = {"rate": 8000.0, "mels": 3}
    np.testing.assert_allclose(mel.matrix((9,), **how), slaney, atol=6e-7)
    np.testing.assert_allclose(mel.matrix((9,), **how, scale="htk", norm=None), htk, atol=6e-7)


@pytest.mark.parametrize("norm", ["slaney", None])
@pytest.mark.parametrize("scale", ["slaney", "htk"])
def test_the_bank_is_that_of_transformers(norm, scale):
    audio = pytest.importorskip("transformers.audio_utils")
    for bins, mels, low, high, rate in [(201, 80, 0.0, 8000.0, 16000), (513, 128, 60.0, 7600.0, 22050)]:
        want = audio.mel_filter_bank(bins, mels, low, high, rate, norm=norm, mel_scale=scale)
        got = mel.matrix((bins,), rate=float(rate), mels=mels, low=low, high=high, scale=scale, norm=norm)
        np.testing.assert_allclose(got, want.T, atol=1e-6 * want.max())


@pytest.mark.parametrize(
    "how", [{"mels": 3}, {"mels": 40}, {"mels": 5, "low": 500.0, "high": 500.1}, {"mels": 1, "low": 3999.0}]
)
def test_bands_are_the_product_with_the_matrix(how):
    """Also of bands without a bin, and between two bins."""
    M = np.asarray(mel.matrix((9,), rate=8000.0, **how))
    want = np.asarray(X) @ M.T
    np.testing.assert_allclose(mel.apply(X, rate=8000.0, **how), want, atol=1e-6 * (M.max() or 1))


def test_each_option_changes_something():
    y = mel.apply(X, rate=8000.0, mels=4)
    changes = {"low": 300.0, "high": 3000.0, "scale": "htk", "norm": None}
    for name, value in changes.items():
        assert not jnp.allclose(mel.apply(X, rate=8000.0, mels=4, **{name: value}), y), name
    assert not jnp.allclose(mel.apply(X, rate=8000.0, mels=4, n_fft=17), y)
    assert not jnp.allclose(mel.apply(X, rate=16000.0, mels=4), y)


def test_it_is_no_product():
    """Nothing is multiplied by the zeros of the matrix, forward or back."""
    program = jax.make_jaxpr(jax.value_and_grad(lambda x: mel.apply(x, rate=8000.0, mels=4).sum()))(X)
    assert "dot_general" not in str(program)
    assert jax.tree.leaves(jax.eval_shape(lambda: mel.vjp(X, rate=8000.0)[1])) == []


ERRORS = [
    (
        lambda: mel.apply(X, rate=8000.0, n_fft=400),
        ShapeError,
        "mel.apply: x has 9 bins, but frames of 400 samples have 201.\n"
        "  expected  x: float[*n, 201]     (n_fft = 400)\n"
        "  got       9 bins",
    ),
    (
        lambda: mel.apply(X, rate=8000.0, high=8000.0),
        ValueRangeError,
        "mel.apply: bands from 0 to 8000 Hz do not fit.\n"
        "  expected  high ≤ 4000, half the rate\n"
        "  got       low = 0, high = 8000, rate = 8000",
    ),
    (
        lambda: mel.apply(X, rate=0.0),
        ValueRangeError,
        "mel.apply: rate is 0.0, outside its range.\n  expected  0 < rate < ∞\n  got       rate = 0.0",
    ),
]

test_errors = golden(ERRORS)
