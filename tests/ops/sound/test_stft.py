from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnet as fn
from funcnet.errors import DTypeError, ShapeError, ValueRangeError
from funcnet.ops.sound import _frames, stft
from tests.errors import golden
from tests.ops.sound.signals import X

SIGNAL: Any = jnp.asarray(X[:500])
NAME: Any = "hann"
WINDOW: Any = jnp.asarray(np.random.default_rng(0).random(12), jnp.float32)
run = jax.jit(stft.apply, static_argnames=("n_fft", "hop", "width", "padding", "padding_mode"))


def near(got, want, tolerance=2e-6):
    np.testing.assert_allclose(got, want, atol=tolerance * np.abs(want).max())


@pytest.mark.parametrize(  # a product, one because 101 is a prime, FFTs
    ("n_fft", "center", "pad_mode"),
    [(24, True, "reflect"), (101, True, "constant"), (64, False, "reflect"), (400, True, "reflect")],
)
def test_it_is_that_of_torch(n_fft, center, pad_mode):
    torch = pytest.importorskip("torch")
    width, hop = n_fft - 7, n_fft // 3
    window = torch.hann_window(width)
    want = torch.stft(torch.tensor(X), n_fft, hop, width, window, center, pad_mode, return_complex=True).mT
    got = run(
        jnp.asarray(X),
        n_fft=n_fft,
        hop=hop,
        width=width,
        padding="center" if center else "valid",
        padding_mode="reflect" if pad_mode == "reflect" else "zeros",
    )
    near(got, torch.view_as_real(want).numpy())


def test_it_is_that_of_librosa():
    """s = librosa.stft(x); np.stack([s.real, s.imag], -1)[200:204, 2]"""
    y = run(jnp.asarray(X), **stft.LIBROSA)
    assert y.shape == (6, 1025, 2)
    want = [[14.731025, -2.301993], [2.334502, 14.046153], [-13.597094, 2.681981], [-3.313977, -13.122177]]
    np.testing.assert_allclose(y[2, 200:204], want, atol=3e-5)


@pytest.mark.parametrize("name", ["hann", "hamming", "blackman", "bartlett"])
@pytest.mark.parametrize("periodic", [True, False])
def test_windows_are_those_of_torch(name, periodic):
    torch = pytest.importorskip("torch")
    for width in (1, 2, 7, 400):
        want = getattr(torch, f"{name}_window")(width, periodic=periodic, dtype=torch.float64)
        np.testing.assert_allclose(stft.window(name, width, periodic=periodic), want.numpy(), atol=1e-6)


def test_windows_of_no_library():
    np.testing.assert_allclose(stft.window("povey", 9, periodic=False), np.hanning(9) ** 0.85, atol=1e-6)
    assert stft.window("rectangular", 3).tolist() == [1.0, 1.0, 1.0]


def test_the_last_frame_of_whisper_is_dropped():
    y = run(SIGNAL[:480], **stft.WHISPER)
    near(y, run(SIGNAL[:480], n_fft=400, hop=160)[:-1], 1e-7)


def test_that_of_silero():
    """64 samples reflected at the end only: four frames of 640 samples."""
    y = run(SIGNAL[:448], n_fft=256, hop=64, padding=(0, 64))
    longer = jnp.pad(SIGNAL[:448], (0, 64), mode="reflect")
    near(y, run(longer, n_fft=256, hop=64, padding="valid"), 1e-7)


@pytest.mark.parametrize("n_fft", [24, 36, 37])
def test_both_forms_are_one_function(n_fft, monkeypatch):
    """FFT and product, there and back."""
    u = jnp.asarray(np.random.default_rng(1).standard_normal((3, n_fft - 5)), jnp.float32)
    c = jnp.asarray(np.random.default_rng(2).standard_normal((3, n_fft // 2 + 1, 2)), jnp.float32)
    made = []
    for product in (True, False):
        monkeypatch.setattr(_frames, "_by_product", lambda n, product=product: product)
        made.append((_frames.spectrum(u, n_fft, 2), _frames.back(c, n_fft, 2, n_fft - 5)))
    jax.tree.map(near, *made)


def test_the_form_is_chosen_by_size():
    assert [n for n in (1, 6, 32, 33, 64, 101, 251, 256, 400, 401, 512) if _frames._by_product(n)] == [
        1, 6, 32, 101, 251
    ]  # fmt: skip
    program = str(jax.make_jaxpr(lambda x: stft.apply(x, n_fft=400))(SIGNAL))
    assert "fft" in program
    assert "dot_general" not in program


def test_each_option_changes_something():
    y = run(SIGNAL, n_fft=12)
    changes = {"hop": 5, "width": 8, "padding": "valid", "padding_mode": "zeros"}
    for name, value in changes.items():
        other = run(SIGNAL, n_fft=12, **{name: value})
        assert other.shape != y.shape or not jnp.allclose(other, y), name
    assert not jnp.allclose(run(SIGNAL, WINDOW, n_fft=12), y)
    near(run(SIGNAL, stft.window("hann", 12), n_fft=12, hop=3, padding=(6, 6)), y)
    near(run(SIGNAL, n_fft=12, **stft.TORCH), y)


def test_a_tone_is_in_its_bin():
    t, cycles = np.arange(400), 25
    y = run(jnp.asarray(np.cos(2 * np.pi * cycles * t / 400), jnp.float32), n_fft=400, padding="valid")
    assert int(fn.power.apply(y)[0].argmax()) == cycles
    near(y[0, cycles], np.array([100.0, 0.0]))  # half of the sum of the window


def test_the_adjoint_is_no_inverse():
    """⟨dy, S x⟩ = ⟨Sᵀ dy, x⟩, and of its transpose alone too."""
    y, pullback = stft.vjp(SIGNAL, WINDOW, n_fft=12, hop=5)
    dy = jnp.asarray(np.random.default_rng(3).standard_normal(y.shape), jnp.float32)
    dx, dw = jax.jit(lambda pullback, dy: pullback(dy))(pullback, dy)
    product = float(jnp.vdot(dy, y))
    np.testing.assert_allclose([jnp.vdot(dx, SIGNAL), jnp.vdot(dw, WINDOW)], product, rtol=1e-4)


def test_operator_is_the_matrix():
    options: Any = {"n_fft": 6, "hop": 4, "padding": (3, 1)}
    A = stft.operator((17,), WINDOW[:5], **options)
    M = np.asarray(stft.matrix((17,), WINDOW[:5], **options))
    near(A.matrix(), M)
    near(A @ SIGNAL[:17], M @ np.asarray(SIGNAL[:17]))
    norm = A.norm()
    top = np.linalg.norm(M, 2)
    assert norm.lower <= top * (1 + 1e-5)
    assert norm.upper >= top * (1 - 1e-5)


def test_nothing_is_kept_without_a_window():
    kept = lambda *args: jax.tree.leaves(jax.eval_shape(lambda: stft.vjp(*args, n_fft=12)[1]))
    assert kept(SIGNAL) == []
    assert [v.shape for v in kept(SIGNAL, WINDOW)] == [(500,), (12,)]


def test_a_short_dtype_is_rounded_once():
    x = SIGNAL.astype(jnp.bfloat16)
    y = run(x, n_fft=64)
    assert y.dtype == jnp.bfloat16
    assert jnp.array_equal(y, run(x.astype(jnp.float32), n_fft=64).astype(jnp.bfloat16))


ERRORS = [
    (
        lambda: stft.apply(SIGNAL, NAME, n_fft=12),
        DTypeError,
        "stft.apply: window is a name, but an array is needed.\n"
        "  expected  window: float[width], or None for Hann's\n"
        "  got       window: 'hann' (str)\n"
        "  hint      fn.stft.window('hann', width) makes one.",
    ),
    (
        lambda: stft.apply(SIGNAL, WINDOW, n_fft=8),
        ValueRangeError,
        "stft.apply: a window of 12 samples is longer than a frame.\n"
        "  expected  window: at most n_fft = 8 samples\n"
        "  got       12 samples",
    ),
    (
        lambda: stft.apply(SIGNAL[:100], n_fft=400),
        ValueRangeError,
        "stft.apply: a reflect border of 200 samples is too wide for a signal of 100.\n"
        "  expected  at most 99     (x has 100 samples)\n"
        "  got       padding of (200, 200)\n"
        '  hint      padding_mode="zeros" may be as wide as it likes.',
    ),
    (
        lambda: stft.apply(SIGNAL, WINDOW[None], n_fft=12),
        ShapeError,
        "stft.apply: window is not a row of samples.\n"
        "  expected  window: float[width], width ≥ 1\n"
        "  got       window: float32[1, 12]",
    ),
    (
        lambda: stft.apply(SIGNAL, n_fft=12, padding=(1, 2, 3)),
        ShapeError,
        "stft.apply: padding has 3 entries.\n"
        '  expected  padding: "center", "valid", or a pair (before, after)\n'
        "  got       padding = (1, 2, 3)",
    ),
    (
        lambda: stft.apply((SIGNAL * 32767).astype(jnp.int16), n_fft=12),
        DTypeError,
        "stft.apply: x has dtype int16, but a float is needed.\n"
        "  expected  x: float[...]\n"
        "  got       x: int16[500]\n"
        "  hint      cast it: x.astype(jnp.float32).",
    ),
    (
        lambda: stft.window("hanning", 12),
        ValueRangeError,
        "stft.window: name is 'hanning'.\n"
        "  expected  name: 'hann', 'hamming', 'blackman', 'bartlett', 'povey', 'rectangular'\n"
        "  got       name = 'hanning'",
    ),
]

test_errors = golden(ERRORS)
