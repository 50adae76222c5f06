"""`hub.silero`: ONNX files read or refused, found where they are installed, and the segments of frames."""

import functools
import importlib.util
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnet as fn
from funcnet.errors import DTypeError, FileFormatError, MissingExtraError, StructureError, ValueRangeError
from funcnet.hub import onnx, silero
from funcnet.nets import vad

RNG = np.random.default_rng(0)
SHAPES = {
    "stft.forward_basis_buffer": (258, 1, 256),
    "encoder.0.reparam_conv.weight": (128, 129, 3),
    "encoder.0.reparam_conv.bias": (128,),
    "encoder.1.reparam_conv.weight": (64, 128, 3),
    "encoder.1.reparam_conv.bias": (64,),
    "encoder.2.reparam_conv.weight": (64, 64, 3),
    "encoder.2.reparam_conv.bias": (64,),
    "encoder.3.reparam_conv.weight": (128, 64, 3),
    "encoder.3.reparam_conv.bias": (128,),
    "decoder.rnn.weight_ih": (512, 128),
    "decoder.rnn.weight_hh": (512, 128),
    "decoder.rnn.bias_ih": (512,),
    "decoder.rnn.bias_hh": (512,),
    "decoder.decoder.2.weight": (1, 128, 1),
    "decoder.decoder.2.bias": (1,),
}
TENSORS = {name: RNG.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
NARROW = {"stft.forward_basis_buffer": np.ones((130, 1, 128), np.float32)}  # of a net at 8 kHz


# --- a writer of ONNX files, as small as the reader --------------------------------------------------------


def varint(n):
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def tensor(array, name=b"", packed=False, data=9):
    sizes = b"".join(varint(n) for n in array.shape)
    dims = field(1, sizes) if packed else b"".join(field(1, n) for n in array.shape)
    return dims + field(2, 1) + (field(8, name) if name else b"") + field(data, array.tobytes())


def model(graph):
    return field(1, 8) + field(2, b"pytorch") + field(7, graph)  # ir_version, producer_name, graph


def initializers(tensors, prefix="model.", **options):
    return b"".join(field(5, tensor(v, (prefix + name).encode(), **options)) for name, v in tensors.items())


def constants(tensors, prefix):
    """Nodes of a graph, each with a tensor as its attribute."""
    node = lambda name, v: field(2, name.encode()) + field(4, b"Constant") + field(5, field(5, tensor(v)))
    return b"".join(field(1, node(prefix + name, v)) for name, v in tensors.items())


def branches(*graphs):
    """A node whose attributes are graphs."""
    return field(1, field(2, b"out") + field(4, b"If") + b"".join(field(5, field(6, g)) for g in graphs))


FORMS = {
    "initializers": initializers(TENSORS),
    "of two rates": initializers(NARROW, "model_8k.") + initializers(TENSORS),
    "no prefix, packed sizes, floats": initializers(TENSORS, "", packed=True, data=4),
    "constants in branches": branches(
        constants(NARROW, "If_0_else_branch__Inline_0__"), constants(TENSORS, "If_0_then_branch__Inline_0__")
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_file_gives_the_params(tmp_path, form):
    path = tmp_path / "silero.onnx"
    path.write_bytes(model(FORMS[form]))
    params, config = fn.hub.silero.load(path)
    assert config == vad.Config()
    drawn = jax.eval_shape(lambda: vad.init(jax.random.key(0), config))
    shapes = lambda tree: jax.tree.map(lambda leaf: leaf.shape, tree)
    assert shapes(params) == shapes(drawn)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    t = TENSORS
    pairs = params["stft"]["w"][:, 0].reshape(256, 129, 2)
    assert np.array_equal(pairs[..., 0].T, t["stft.forward_basis_buffer"][:129, 0])
    assert np.array_equal(pairs[..., 1].T, t["stft.forward_basis_buffer"][129:, 0])
    assert np.array_equal(params["encoder"][1]["w"][2, 5], t["encoder.1.reparam_conv.weight"][:, 5, 2])
    assert np.array_equal(params["encoder"][3]["b"], t["encoder.3.reparam_conv.bias"])
    assert np.array_equal(params["lstm"]["w"], t["decoder.rnn.weight_ih"].T)
    assert np.array_equal(params["lstm"]["u"], t["decoder.rnn.weight_hh"].T)
    assert np.array_equal(params["lstm"]["b"], t["decoder.rnn.bias_ih"] + t["decoder.rnn.bias_hh"])
    assert np.array_equal(params["head"]["w"], t["decoder.decoder.2.weight"][0])


def test_safetensors_by_silero_s_names_and_one_s_own(tmp_path):
    named = {silero._NAMES[name]: value for name, value in TENSORS.items()}
    fn.hub.write_safetensors(tmp_path / "theirs.safetensors", named)
    (tmp_path / "silero.onnx").write_bytes(model(FORMS["initializers"]))
    params, _ = silero.load(tmp_path / "silero.onnx")
    fn.save(tmp_path / "own.safetensors", params)
    for name in ("theirs", "own"):
        found, config = silero.load(tmp_path / f"{name}.safetensors")
        assert config == vad.Config()
        assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), found, params))
    fn.save(tmp_path / "other.safetensors", {"w": jnp.ones(3)})
    with pytest.raises(StructureError, match="does not fit"):
        silero.load(tmp_path / "other.safetensors")


def without(name):
    return model(initializers({k: v for k, v in TENSORS.items() if k != name}))


WRONG = {
    "text": (b"no ONNX, but text", "no ONNX file, or it is damaged"),
    "empty": (b"", "no such tensor"),
    "another model": (
        model(initializers({"x": np.ones(3, np.float32)})),
        "does not hold Silero VAD at 16,000 Hz",
    ),
    "of 8 kHz": (model(initializers(NARROW)), r"float32\[130, 1, 128\]"),
    "cut short": (model(FORMS["initializers"])[:-100], "no ONNX file, or it is damaged"),
    "a tensor missing": (without("decoder.rnn.bias_hh"), "decoder.rnn.bias_hh: float32.*no such tensor"),
    "a shape of others": (
        model(initializers({**TENSORS, "decoder.decoder.2.bias": np.ones(2, np.float32)})),
        r"decoder.decoder.2.bias: float32\[1\].*float32\[2\]",
    ),
    "sizes that do not fit": (
        model(field(5, field(1, 5) + field(2, 1) + field(8, b"decoder.decoder.2.bias") + field(9, bytes(8)))),
        "no ONNX file, or it is damaged",
    ),
    "float16": (
        model(
            field(5, field(1, 1) + field(2, 10) + field(8, b"decoder.decoder.2.bias") + field(9, bytes(2)))
        ),
        "no such tensor",
    ),
    "a number without an end": (b"\x80" * 80, "no ONNX file, or it is damaged"),
    "deeper than any": (
        model(functools.reduce(lambda graph, _: branches(graph), range(99), b"")),
        "no ONNX file, or it is damaged",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_other_files_are_refused(tmp_path, name):
    content, text = WRONG[name]
    path = tmp_path / "silero.onnx"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=rf"(?s)silero.onnx: .*{text}"):
        silero.load(path)


def test_whatever_is_damaged_is_an_error_of_ours_or_read(tmp_path):
    whole = model(initializers({"decoder.decoder.2.bias": np.ones(1, np.float32)}))
    flipped = (
        whole[:i] + bytes([whole[i] ^ 1 << bit]) + whole[i + 1 :]
        for i in range(len(whole))
        for bit in range(8)
    )
    path, refused = tmp_path / "silero.onnx", 0
    for content in (*(whole[:n] for n in range(len(whole))), *flipped):
        path.write_bytes(content)
        try:
            onnx.tensors(path)
        except FileFormatError:
            refused += 1
    assert refused > len(whole)


def test_it_is_found_where_it_is_installed_and_not_imported(tmp_path, monkeypatch):
    package = tmp_path / "silero_vad"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "silero_vad", raising=False)
    with pytest.raises(MissingExtraError) as caught:
        silero.load()
    assert str(caught.value) == (
        "the weights of silero-vad are not here.\n"
        "  hint      pip install --no-deps silero-vad, or say where silero_vad_16k_op15.onnx lies."
    )
    (package / "data" / "silero_vad_16k_op15.onnx").write_bytes(model(FORMS["initializers"]))
    params, _ = silero.load()
    assert np.array_equal(params["head"]["b"], TENSORS["decoder.decoder.2.bias"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="not here"):
        silero.load()


# --- segments ---------------------------------------------------------------------------------------------

LOW, HIGH = 0.1, 0.9


def frames(*runs):
    return [p for p, n in runs for _ in range(n)]


def found(probabilities, samples=None, **options):
    total = 512 * len(probabilities) if samples is None else samples
    return [tuple(segment) for segment in silero.segments(probabilities, total, **options)]


def test_speech_is_made_longer_at_both_ends_and_not_beyond_the_sound():
    assert found(frames((LOW, 10), (HIGH, 20), (LOW, 10))) == [(10 * 512 - 480, 30 * 512 + 480)]
    assert found(frames((HIGH, 20)), 20 * 512 - 7) == [(0, 20 * 512 - 7)]
    assert found(frames((HIGH, 20), (LOW, 5)), 25 * 512) == [(0, 20 * 512 + 480)]
    assert found(frames((LOW, 50))) == []
    assert found([]) == []


def test_each_option_changes_something():
    two = frames((LOW, 4), (HIGH, 20), (LOW, 5), (HIGH, 20), (LOW, 8), (0.45, 9), (LOW, 5))
    plain = found(two)
    assert plain == [(4 * 512 - 480, 24 * 512 + 480), (29 * 512 - 480, 49 * 512 + 480)]
    assert len(found(two, threshold=0.4)) == 3
    assert len(found(two, neg_threshold=0.05)) == 1
    assert len(found(two, min_silence_duration_ms=200)) == 1
    assert found(two, min_speech_duration_ms=1000) == []
    assert found(two, speech_pad_ms=0) == [(4 * 512, 24 * 512), (29 * 512, 49 * 512)]
    assert found(two, speech_pad_ms=200)[0][1] == found(two, speech_pad_ms=200)[1][0] == 26 * 512 + 256
    assert found(two, rate=8_000, frame=256, speech_pad_ms=0) == [(4 * 256, 24 * 256), (29 * 256, 49 * 256)]
    pauses = frames((HIGH, 20), (LOW, 6), (HIGH, 8), (LOW, 5), (HIGH, 20))
    cut = {"min_silence_duration_ms": 500, "max_speech_duration_s": 1.4}
    assert len(found(pauses, min_silence_duration_ms=500)) == 1
    longest, last = found(pauses, **cut), found(pauses, use_max_poss_sil_at_max_speech=False, **cut)
    assert longest[0] == (0, 20 * 512 + 480)  # at the longer pause
    assert last[0] == (0, 34 * 512 + 480)  # at the last one
    assert found(pauses, min_silence_at_max_speech=400, **cut) not in (longest, last)


def test_segments_come_as_soon_as_they_are_known():
    heard = []

    def spoken():
        for i, p in enumerate(frames((HIGH, 20), (LOW, 10), (HIGH, 20), (LOW, 2))):
            heard.append(i)
            yield p

    lengths = []
    lazy = silero.segments(spoken(), lambda: lengths.append(len(heard)) or 512 * len(heard))
    assert next(lazy) == (0, 20 * 512 + 480)
    assert len(heard) <= 20 + 100 // 32 + 2  # the silence after which it is over
    assert not lengths
    assert next(lazy) == (30 * 512 - 480, 52 * 512)
    assert lengths == [52]


@pytest.mark.usefixtures("unchecked")
def test_options_that_are_none():
    with pytest.raises(ValueRangeError, match="speech_pad_ms is -1"):
        silero.segments([], 0, speech_pad_ms=-1)
    with pytest.raises(DTypeError, match="threshold is not a number"):
        silero.segments([], 0, threshold="0.5")  # type: ignore
    with pytest.raises(ValueRangeError, match="max_speech_duration_s"):
        silero.segments([], 0, max_speech_duration_s=float("nan"))


# --- beside silero-vad itself, where it is installed -------------------------------------------------------


def voice(seconds, rng):
    """Something like speech: a buzz through formants, in syllables, between silences and noise."""
    t = np.arange(int(16_000 * seconds)) / 16_000
    pitch = 120 + 20 * np.sin(2 * np.pi * 0.7 * t) + 3 * np.cumsum(rng.normal(size=t.size)) / 4000
    phase = 2 * np.pi * np.cumsum(pitch) / 16_000
    formants = lambda f: sum(np.exp(-(((f - c) / 120) ** 2)) for c in (600, 1100, 2500))
    buzz = sum((0.05 + formants(125.0 * k)) / k * np.sin(k * phase) for k in range(1, 40))
    syllables = np.clip(np.sin(2 * np.pi * 3.1 * t), 0, 1) * (np.sin(2 * np.pi * 0.35 * t) > -0.2)
    return (0.15 * buzz * syllables + 0.002 * rng.normal(size=t.size)).astype(np.float32)


@pytest.fixture(scope="module")
def installed():
    if importlib.util.find_spec("silero_vad") is None:
        pytest.skip("silero-vad is not installed")
    return silero._installed()


def test_probabilities_are_those_of_onnxruntime(installed):
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(installed, providers=["CPUExecutionProvider"])
    samples = voice(6, np.random.default_rng(3))
    state, context, expected = np.zeros((2, 1, 128), np.float32), np.zeros((1, 64), np.float32), []
    for i in range(0, len(samples), 512):
        frame = np.pad(samples[None, i : i + 512], [(0, 0), (0, max(0, i + 512 - len(samples)))])
        inputs = {"input": np.concatenate([context, frame], 1), "state": state, "sr": np.array(16_000)}
        p, state = session.run(None, inputs)
        context = frame[:, -64:]
        expected.append(p.item())
    params, config = silero.load()
    logits, last = jax.jit(vad.apply)(params, jnp.asarray(samples), config)
    assert min(expected) < 0.1
    assert max(expected) > 0.5
    np.testing.assert_allclose(jax.nn.sigmoid(logits), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(last["h"], state[0, 0], rtol=0, atol=5e-5)
    np.testing.assert_allclose(last["c"], state[1, 0], rtol=0, atol=1e-5 * np.abs(state[1]).max())


def test_segments_are_those_of_silero_vad(installed):
    pytest.importorskip("torch")
    theirs = pytest.importorskip("silero_vad").utils_vad.get_speech_timestamps_from_probs
    choices = {
        "threshold": (0.5, 0.3, 0.8),
        "neg_threshold": (None, 0.35, 0.1, 0.6),
        "min_speech_duration_ms": (250, 0, 100),
        "max_speech_duration_s": (float("inf"), 0.2, 0.5, 1, 2),
        "min_silence_duration_ms": (100, 0, 30, 300),
        "speech_pad_ms": (30, 0, 16, 50, 200),
        "min_silence_at_max_speech": (98, 0, 200),
        "use_max_poss_sil_at_max_speech": (True, False),
    }
    rng, segments = np.random.default_rng(0), 0
    for trial in range(200):
        runs = rng.integers(1, 16, 30)
        levels = rng.choice([0.02, 0.2, 0.34, 0.36, 0.49, 0.51, 0.9], 30)
        p = np.repeat(levels, runs)[: rng.integers(1, 200)] if trial % 2 else rng.random(rng.integers(1, 200))
        options = {k: v[rng.integers(len(v))] for k, v in choices.items()} if trial % 5 else {}
        total = 512 * len(p) - int(rng.integers(0, 512))
        expected = theirs(p.tolist(), audio_length_samples=total, **options)
        assert found(p.tolist(), total, **options) == [(e["start"], e["end"]) for e in expected], options
        segments += len(expected)
    assert segments > 300
