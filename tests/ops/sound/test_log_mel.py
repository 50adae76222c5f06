from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet import rules
from funcnet.errors import ValueRangeError
from funcnet.ops.sound import log_mel
from tests.errors import golden
from tests.ops.sound.signals import X

SIGNAL: Any = jnp.asarray(X)
SMALL: Any = {"rate": 8000.0, "n_fft": 16, "mels": 4}


@pytest.mark.parametrize("mels", [80, 128])
def test_it_is_that_of_whisper(mels):
    extractor = pytest.importorskip("transformers").WhisperFeatureExtractor(mels, chunk_length=1)
    want = extractor(X, sampling_rate=16000, return_tensors="np")["input_features"][0].T
    got = log_mel.apply(jnp.pad(SIGNAL, (0, 13000)), **{**log_mel.WHISPER, "mels": mels})
    np.testing.assert_allclose(got, want, atol=3e-5)


def test_it_is_that_of_librosa():
    """librosa.power_to_db(librosa.feature.melspectrogram(y=x))[[0, 10, 20, 60, 100, 127], 3]"""
    want = [-21.644016, -21.574686, -22.035292, 18.768713, -24.355497, -23.740351]
    got = log_mel.apply(SIGNAL, **log_mel.LIBROSA)
    assert got.shape == (6, 128)
    np.testing.assert_allclose(got[3, [0, 10, 20, 60, 100, 127]], want, atol=1e-3)


def test_it_is_that_of_torchaudio():
    """m = torchaudio.transforms.MelSpectrogram()(torch.tensor(x))

    torchaudio.transforms.AmplitudeToDB()(m)[[0, 10, 40, 80, 100, 127], 3]
    """
    want = [-100.0, -25.940327, 1.732156, -20.366343, -16.264748, -15.15697]
    got = log_mel.apply(SIGNAL, **log_mel.TORCHAUDIO)
    np.testing.assert_allclose(got[3, [0, 10, 40, 80, 100, 127]], want, atol=1e-3)


@pytest.mark.parametrize("power", [1, 2])
def test_silence_has_no_gradient(power):
    for x in (jnp.zeros(64, jnp.float32), SIGNAL[:64].at[20:].set(0)):
        value, grad = jax.value_and_grad(lambda x: log_mel.apply(x, **SMALL, power=power, span=8.0).sum())(x)
        assert jnp.isfinite(value)
        assert jnp.isfinite(grad).all()
    assert not grad[40:].any()
    assert grad[:20].any()


def test_each_option_changes_something():
    y = log_mel.apply(SIGNAL[:64], **SMALL)
    changes = {"power": 1, "floor": 0.1, "span": 0.1, "gain": 2.0, "offset": 1.0, "high": 3000.0}
    for name, value in changes.items():
        assert not jnp.allclose(log_mel.apply(SIGNAL[:64], **SMALL, **{name: value}), y), name


def test_one_example_does_not_bound_another():
    both = jnp.stack([SIGNAL[:64], SIGNAL[:64] * 1e3])
    how = SMALL | {"span": 1.0}
    each = jnp.stack([log_mel.apply(x, **how) for x in both])
    np.testing.assert_allclose(log_mel.apply(both, **how), each, atol=1e-6)


def test_its_parts_are_recorded():
    with rules.record() as calls:
        jax.eval_shape(lambda x: log_mel.apply(x, **SMALL), SIGNAL)
    assert [c.operation.__name__.rpartition(".")[2] for c in calls] == ["log_mel", "stft", "power", "mel"]


ERRORS = [
    (
        lambda: log_mel.apply(SIGNAL, **SMALL, power=3),
        ValueRangeError,
        "log_mel.apply: power is 3.\n  expected  power: 1, 2\n  got       power = 3",
    ),
    (
        lambda: log_mel.apply(SIGNAL, **SMALL, floor=0.0),
        ValueRangeError,
        "log_mel.apply: floor is 0.0, outside its range.\n  expected  0 < floor < ∞\n  got       floor = 0.0",
    ),
]

test_errors = golden(ERRORS)
