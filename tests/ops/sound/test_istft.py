from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet.errors import ShapeError, ValueRangeError
from funcnet.ops.sound import istft, stft
from tests.errors import golden
from tests.ops.sound.signals import X

SIGNAL: Any = jnp.asarray(X[:500])
STATIC = ("n_fft", "hop", "width", "padding")
there = jax.jit(stft.apply, static_argnames=(*STATIC, "padding_mode"))
back = jax.jit(istft.apply, static_argnames=(*STATIC, "length"))


def near(got, want, tolerance=2e-6):
    np.testing.assert_allclose(got, want, atol=tolerance * np.abs(want).max())


@pytest.mark.parametrize(
    ("how", "mode"),
    [
        ({"n_fft": 64}, "reflect"),
        ({"n_fft": 64, "hop": 32, "width": 50}, "zeros"),
        ({"n_fft": 101, "hop": 20}, "circular"),
        ({"n_fft": 12, "hop": 5, "padding": (4, 9)}, "reflect"),
    ],
)
def test_it_is_the_inverse(how, mode):
    """Of whole frames, and with the length of any signal that the frames reach to the end of."""
    y = back(there(SIGNAL, padding_mode=mode, **how), **how)
    near(y, SIGNAL[: y.shape[0]])
    assert y.shape[0] > 490 - how["n_fft"]
    near(back(there(SIGNAL, padding_mode=mode, **how), **how, length=490), SIGNAL[:490])


def test_it_is_that_of_torch():
    torch = pytest.importorskip("torch")
    z = np.random.default_rng(0).standard_normal((2, 9, 33, 2)).astype(np.float32)
    window = torch.hamming_window(50)
    want = torch.istft(torch.view_as_complex(torch.tensor(z)).mT, 64, 20, 50, window, length=170)
    near(back(jnp.asarray(z), jnp.asarray(window.numpy()), n_fft=64, hop=20, length=170), want.numpy(), 1e-5)


def test_it_is_the_signal_whose_spectrum_is_nearest():
    """What is left of a spectrum that no signal has is orthogonal to all that one has."""
    how: Any = {"n_fft": 8, "hop": 4, "padding": "valid"}
    window = stft.window("hamming", 8).astype(jnp.float32)
    z = np.random.default_rng(1).standard_normal((8, 5, 2)).astype(np.float32)
    z[:, [0, 4], 1] = 0
    twice = np.float32([1, 2, 2, 2, 1])[:, None]  # a bin with a mirror stands for both
    left = twice * np.asarray(z - there(back(jnp.asarray(z), window, **how), window, **how))
    assert np.abs(left).max() > 1
    assert np.abs(np.asarray(stft.matrix((36,), window, **how)).T @ left.reshape(-1)).max() < 1e-4


def test_each_option_changes_something():
    z = there(SIGNAL, n_fft=12)
    y = back(z, n_fft=12)
    for name, value in {"hop": 2, "width": 8, "padding": (5, 6), "length": 7}.items():
        other = back(z, n_fft=12, **{name: value})
        assert other.shape != y.shape or not jnp.allclose(other, y), name
    z = z.at[::2].multiply(2)  # of a spectrum that a signal has every window makes that signal
    assert not jnp.allclose(back(z, stft.window("hamming", 12).astype(z.dtype), n_fft=12), back(z, n_fft=12))


def test_a_traced_window_leaves_zeros_where_it_sees_nothing():
    z = there(SIGNAL, n_fft=8, hop=8, padding="valid")
    y = jax.jit(lambda z, w: istft.apply(z, w, n_fft=8, hop=8, padding="valid"))(
        z, stft.window("hann", 8).astype(z.dtype)
    )
    assert not y[::8].any()
    near(y[1:8], SIGNAL[1:8], 1e-5)


def test_operator_is_the_inverse_of_the_operator():
    options: Any = {"n_fft": 8, "hop": 2}
    A, B = stft.operator((16,), **options), istft.operator((9, 5, 2), **options)
    near(np.asarray(B.matrix()) @ np.asarray(A.matrix()), np.eye(16))
    near(B.T @ SIGNAL[:16], np.asarray(B.matrix()).T @ np.asarray(SIGNAL[:16]))


ERRORS = [
    (
        lambda: istft.apply(jnp.zeros((6, 5, 2), jnp.float32), n_fft=8, padding="valid"),
        ValueRangeError,
        "istft.apply: no window sees sample 0 of 18.\n"
        "  expected  windows that overlap everywhere in y\n"
        "  got       hop = 2, a window of 8 samples; 1 unseen, the last of them 0",
    ),
    (
        lambda: istft.apply(jnp.zeros((6, 5, 2), jnp.float32), n_fft=8, length=15),
        ValueRangeError,
        "istft.apply: 6 frames end after 14 samples.\n"
        "  expected  length ≤ 14     (n_fft = 8, hop = 2, padding of 4 before)\n"
        "  got       length = 15",
    ),
    (
        lambda: istft.apply(jnp.zeros((6, 4, 2), jnp.float32), n_fft=8),
        ShapeError,
        "istft.apply: x is no frames of 8 samples.\n"
        "  expected  x: [*n, frames, 5, 2]     (n_fft = 8)\n"
        "  got       x: float32[6, 4, 2]",
    ),
]

test_errors = golden(ERRORS)
