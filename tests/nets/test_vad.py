"""`nets.vad`: beside loops of NumPy's, frame by frame as whole, what a frame sees, and its errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet.errors import DTypeError, ShapeError, StructureError, ValueRangeError
from funcnet.nets import vad
from tests.errors import golden

CONFIG = vad.Config(window=8, channels=(3, 2, 4, 5), hidden=6)  # frames of 16 samples after 2
RNG = np.random.default_rng(0)
DRAWN = jax.tree.map(np.asarray, jax.jit(vad.init, static_argnums=1)(jax.random.key(0), CONFIG))
NUMPY = jax.tree.map(lambda p: p + RNG.normal(size=p.shape) / 4, DRAWN)
PARAMS = jax.tree.map(jnp.asarray, NUMPY)
apply = jax.jit(vad.apply)


def naive(params, samples, config=CONFIG):
    """Logits of one recording, frame by frame, tap by tap."""
    size, k = config.frame, config.context
    h, c, before, logits = np.zeros(config.hidden), np.zeros(config.hidden), np.zeros(k), []
    sigmoid = lambda v: 1 / (1 + np.exp(-v))
    for start in range(0, len(samples), size):
        frame = np.zeros(size)
        frame[: len(samples[start : start + size])] = samples[start : start + size]
        seen = [*before, *frame]
        seen += [seen[-2 - i] for i in range(k)]
        before = frame[-k:]
        columns = []
        for j in range(0, len(seen) - config.window + 1, config.window // 2):
            pairs = np.array(seen[j : j + config.window]) @ params["stft"]["w"][:, 0]
            columns.append([np.hypot(pairs[2 * i], pairs[2 * i + 1]) for i in range(len(pairs) // 2)])
        x = np.array(columns)
        for layer, stride in zip(params["encoder"], (1, 2, 2, 1), strict=True):
            out = []
            for at in range(0, len(x), stride):
                y = layer["b"].copy()
                for tap in range(3):
                    if 0 <= at + tap - 1 < len(x):
                        y = y + x[at + tap - 1] @ layer["w"][tap]
                out.append(np.maximum(y, 0))
            x = np.array(out)
        assert len(x) == 1
        i, f, g, o = np.split(x[0] @ params["lstm"]["w"] + h @ params["lstm"]["u"] + params["lstm"]["b"], 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        logits.append((np.maximum(h, 0) @ params["head"]["w"] + params["head"]["b"])[0])
    return np.array(logits), {"context": before, "h": h, "c": c}


@pytest.mark.parametrize("t", [1, 16, 17, 70])
def test_it_is_what_loops_give(t):
    samples = RNG.normal(size=t)
    logits, state = apply(PARAMS, samples, CONFIG)
    expected, after = naive(NUMPY, samples)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-12)
    for name, value in after.items():
        np.testing.assert_allclose(state[name], value, rtol=0, atol=1e-12)


def test_step_by_step_and_in_pieces_it_is_as_whole():
    samples = RNG.normal(size=(2, 3, 5 * 16))
    whole, last = apply(PARAMS, samples, CONFIG)
    first, state = apply(PARAMS, samples[..., :48], CONFIG)
    rest, after = apply(PARAMS, samples[..., 48:], CONFIG, state)
    np.testing.assert_allclose(jnp.concatenate([first, rest], -1), whole, rtol=0, atol=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12), after, last)
    state, step = None, jax.jit(vad.step)
    for i in range(5):
        logit, state = step(PARAMS, samples[..., 16 * i : 16 * (i + 1)], CONFIG, state)
        np.testing.assert_allclose(logit, whole[..., i], rtol=0, atol=1e-12)


def test_a_frame_sees_what_was_before_it_and_nothing_after_it():
    samples = RNG.normal(size=5 * 16)
    of_frame = jax.jit(jax.grad(lambda x, i: vad.apply(PARAMS, x, CONFIG)[0][i]))
    for i in (0, 2):
        seen = of_frame(jnp.asarray(samples), i) != 0
        assert seen.reshape(5, 16).any(1).tolist() == [j <= i for j in range(5)]


def test_silence_has_a_gradient():
    samples = jnp.zeros(3 * 16)
    loss = lambda params, x: vad.apply(params, x, CONFIG)[0].sum()
    grads, dx = jax.jit(jax.grad(loss, (0, 1)))(PARAMS, samples)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves((grads, dx)))
    assert not grads["stft"]["w"].any()
    assert not dx.any()
    assert grads["encoder"][0]["b"].any()


def test_the_basis_is_a_transform_under_a_periodic_window():
    w = DRAWN["stft"]["w"][:, 0].reshape(8, 5, 2)
    x = RNG.normal(size=8)
    spectrum = np.einsum("t,tkp->kp", x, w)
    expected = np.fft.rfft(x * np.hanning(9)[:-1])
    np.testing.assert_allclose(spectrum[:, 0], expected.real, rtol=0, atol=1e-12)
    np.testing.assert_allclose(spectrum[:, 1], expected.imag, rtol=0, atol=1e-12)


def test_sizes_follow_from_the_window():
    config = vad.Config()
    assert (config.frame, config.context) == (512, 64)
    shapes = jax.eval_shape(lambda: vad.init(jax.random.key(0), config))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 309_633 - 512  # two biases are one here
    narrow = vad.Config(rate=8_000, window=128)
    assert (narrow.frame, narrow.context) == (256, 32)


X, ZEROS = jnp.zeros(16), jax.tree.map(jnp.zeros_like, PARAMS)
test_errors = golden(
    [
        (
            lambda: vad.apply(ZEROS, jnp.zeros((2, 0)), CONFIG),
            ShapeError,
            "vad.apply: there are no samples.\n"
            "  expected  samples: float[*n, t], t > 0\n"
            "  got       samples: float64[2, 0]",
        ),
        (
            lambda: vad.apply(ZEROS, jnp.zeros(16, jnp.int16), CONFIG),
            DTypeError,
            "vad.apply: samples has dtype int16, but a float is needed.\n"
            "  expected  samples: float[...]\n"
            "  got       samples: int16[16]\n"
            "  hint      cast it: samples.astype(jnp.float32).",
        ),
        (
            lambda: vad.apply({"stft": ZEROS["stft"]}, X, CONFIG),
            StructureError,
            'vad.apply: params has no "encoder".\n'
            '  expected  params: a dict with the keys "stft", "encoder", "lstm", "head"\n'
            '  got       keys: "stft"',
        ),
        (
            lambda: vad.apply(ZEROS, X, CONFIG, {"context": jnp.zeros(3), "h": X[:6], "c": X[:6]}),
            ShapeError,
            'vad.apply: state["context"] is not the end of what came before samples.\n'
            '  expected  state["context"]: float[2]     (samples: float64[16])\n'
            '  got       state["context"]: float64[3]',
        ),
        (
            lambda: vad.apply(ZEROS, X, CONFIG, {"context": X[:2]}),
            StructureError,
            'vad.apply: state has no "h".\n'
            '  expected  state: a dict with the keys "context", "h", "c"\n'
            '  got       keys: "context"',
        ),
        (
            lambda: vad.apply({**ZEROS, "encoder": ZEROS["encoder"][:3]}, X, CONFIG),
            StructureError,
            'vad.apply: params["encoder"] has 3 layers, but there are 4.\n'
            '  expected  params["encoder"]: a list of 4, one entry per layer\n'
            '  got       params["encoder"]: 3 entries',
        ),
        (
            lambda: vad.step(ZEROS, jnp.zeros((3, 15)), CONFIG),
            ShapeError,
            "vad.step: samples has 15 features in its last axis, but a frame takes 16.\n"
            "  expected  samples: float[*n, 16]\n"
            "  got       samples: float64[3, 15]",
        ),
        (
            lambda: vad.Config(window=6),
            ValueRangeError,
            "vad.Config: window is 6.\n  expected  window: a multiple of 4\n  got       window = 6",
        ),
        (
            lambda: vad.Config(channels=(1, 2)),
            ValueRangeError,
            "vad.Config: channels is (1, 2).\n  expected  channels: 4 numbers\n  got       channels = (1, 2)",
        ),
    ]
)
