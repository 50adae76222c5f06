"""`funcnet listen`: files and standard input, every flag, pictures and pages, and what is no sound.

The weights are made by hand: the net is a detector of loudness, so that a tone counts as speech.
"""

import io
import json
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import soundfile
from matplotlib.image import imread

import funcnet as fn
from funcnet.cli import main
from funcnet.nets import vad
from tests.browser import Reader, needs_browser, shown


def detector():
    """Params whose probability is near 1 where it is loud, and near 0 where it is not."""
    params = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, np.float32),
        jax.eval_shape(lambda: vad.init(jax.random.key(0), vad.Config())),
    )
    params["encoder"][0]["w"][1, :, 0] = 1.0  # the sum of the spectrum, on and on
    for layer in params["encoder"][1:]:
        layer["w"][1, 0, 0] = 1.0
    lstm = params["lstm"]
    lstm["w"][0, 256] = 0.2
    lstm["b"][:128], lstm["b"][128:256], lstm["b"][384:] = 9.0, -9.0, 9.0  # it forgets
    params["head"]["w"][0], params["head"]["b"][0] = 20.0, -7.0
    # The basis is what `init` gives.
    params["stft"] = jax.tree.map(
        np.asarray, jax.jit(lambda: vad.init(jax.random.key(0), vad.Config())["stft"])()
    )
    params["stft"]["w"] = params["stft"]["w"].astype(np.float32)
    return params


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "detector.safetensors"
    fn.save(path, detector())
    return path


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("funcnet.cli.listen._BLOCK", 64)
    return tmp_path


def tones(*spans, seconds, rate=16_000):
    """Silence, but for tones from one second to another, that swell and fade."""
    t = np.arange(int(seconds * rate)) / rate
    on = sum(((t >= start) & (t < end)).astype(float) for start, end in spans) + np.zeros(t.size)
    on = np.convolve(on, np.hanning(rate // 50) / np.hanning(rate // 50).sum(), "same")  # no clicks
    return (0.3 * np.sin(2 * np.pi * 500 * t) * on).astype(np.float32)


TWO = ((1.0, 2.0), (2.5, 3.5))


def called(capsys, *args):
    code = main(["listen", *map(str, args)])
    return code, *capsys.readouterr()


def piped(monkeypatch, content, terminal=False):
    stdin = SimpleNamespace(buffer=io.BytesIO(content), isatty=lambda: terminal)
    monkeypatch.setattr(sys, "stdin", stdin)


def near(segments, spans, within=0.1):
    found = [(s["start_seconds"], s["end_seconds"]) for s in segments]
    assert len(found) == len(spans)
    np.testing.assert_allclose(found, spans, rtol=0, atol=within)


def test_files_of_any_rate_and_channels(here, capsys, weights):
    soundfile.write("plain.wav", tones(*TWO, seconds=5), 16_000)
    both = tones(*TWO, seconds=5, rate=44_100)
    soundfile.write("both.flac", np.stack([both, both], 1), 44_100)
    code, out, err = called(capsys, "plain.wav", "both.flac", "--weights", weights, "--json", "a.json")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "plain.wav: 16,000 Hz, 1 channel, 5.00 s"
    assert lines[1].split() == ["start", "end", "seconds"]
    assert lines[4].startswith("speech: 2.")
    assert lines[4].endswith(" of 5.0 s (43%), 2 segments")
    assert lines[6] == "both.flac: 44,100 Hz, 2 channels, 5.00 s"
    assert lines[-1] == "the segments are in a.json"
    content = json.loads((here / "a.json").read_text())
    assert content["rate"] == 16_000
    assert content["weights"] == str(weights)
    assert content["options"]["threshold"] == 0.5
    assert content["options"]["max_speech_duration_s"] is None
    for recording, rate, channels in zip(content["recordings"], (16_000, 44_100), (1, 2), strict=True):
        assert (recording["rate"], recording["channels"], recording["seconds"]) == (rate, channels, 5)
        near(recording["segments"], TWO)
        for segment in recording["segments"]:
            assert segment["start_seconds"] == round(segment["start"] / 16_000, 2)
    first = content["recordings"][0]["segments"][0]
    assert [float(v) for v in lines[2].split()] == pytest.approx(
        [first["start_seconds"], first["end_seconds"], first["end_seconds"] - first["start_seconds"]]
    )


def test_a_long_file_is_heard_in_blocks_as_a_short_one(capsys, weights, monkeypatch):
    soundfile.write("a.wav", tones((0.4, 1.1), (1.5, 2.2), seconds=3), 16_000)
    whole = called(capsys, "a.wav", "--weights", weights)
    monkeypatch.setattr("funcnet.cli.listen._BLOCK", 7)
    assert called(capsys, "a.wav", "--weights", weights) == whole
    assert "2 segments" in whole[1]


def test_standard_input_is_heard_as_a_file(here, capsys, monkeypatch, weights):
    samples = (tones(*TWO, seconds=3.51, rate=22_050) * 32767).astype("<i2")
    soundfile.write("a.wav", np.stack([samples, samples], 1), 22_050)
    _, of_file, _ = called(capsys, "a.wav", "--weights", weights)
    piped(monkeypatch, np.stack([samples, samples], 1).tobytes() + b"\0")  # and half a sample
    options = ("--rate", 22050, "--channels", 2, "--weights", weights)
    code, out, err = called(capsys, "-", *options, "--json", "a.json", "--png", "a.png")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "standard input: 22,050 Hz, 2 channels, each segment when it is over"
    assert lines[1:5] == of_file.splitlines()[1:5]
    assert len(json.loads((here / "a.json").read_text())["recordings"][0]["segments"]) == 2
    assert imread(here / "a.png").shape[1] == 1210


@pytest.mark.slow
def test_it_answers_as_the_sound_comes_and_to_ctrl_c(here, weights):
    code = "import sys; from funcnet.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "listen", "-", "--weights", str(weights), "--json", "a.json"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert b"each segment when it is over" in process.stdout.readline()
        assert b"start" in process.stdout.readline()
        samples = (tones((0.5, 1.5), (2.0, 3.0), seconds=3) * 32767).astype("<i2").tobytes()
        process.stdin.write(samples[: 2 * 16_000 * 2])  # two seconds
        process.stdin.flush()
        start, end, _ = map(float, process.stdout.readline().split())  # while the stream goes on
        assert (start, end) == pytest.approx((0.5, 1.5), abs=0.1)
        process.stdin.write(samples[2 * 16_000 * 2 :])
        process.stdin.flush()
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read().decode()
        assert process.wait(30) == 130
    assert "2 segments" in rest
    assert len(json.loads((here / "a.json").read_text())["recordings"][0]["segments"]) == 2


def test_each_flag_changes_something(capsys, weights):
    quiet = tones((2.5, 2.9), seconds=4) * 0.046  # the probability is near 0.4
    pauses = tones((0.5, 1.0), (1.3, 2.0), (3.2, 3.35), seconds=4)
    soundfile.write("a.wav", pauses + quiet, 16_000)

    def segments(*args):
        code, out, err = called(capsys, "a.wav", "--weights", weights, *args)
        assert (code, err) == (0, "")
        return [tuple(map(float, line.split())) for line in out.splitlines()[2:] if line.startswith("  ")]

    plain = segments()
    assert len(plain) == 2
    assert len(segments("--threshold", 0.2)) > 2
    assert len(segments("--neg-threshold", 0)) == 1
    assert len(segments("--min-speech-duration-ms", 50)) == 3
    assert len(segments("--min-silence-duration-ms", 400)) == 1
    assert segments("--speech-pad-ms", 0)[0][0] > plain[0][0]
    assert segments("--time-resolution", 0)[0][:2] == (round(plain[0][0]), round(plain[0][1]))
    cut = ("--min-silence-duration-ms", 400, "--max-speech-duration-s", 1.2)
    assert len(segments(*cut)) == 2
    at_pause = segments(*cut)[0][1]
    assert segments(*cut, "--min-silence-at-max-speech", 1000)[0][1] > at_pause
    last = segments(*cut, "--use-max-poss-sil-at-max-speech", False)
    assert len(last) == 2


def test_picture_and_page(here, capsys, weights):
    soundfile.write("<b>.wav", tones(*TWO, seconds=4), 16_000)
    soundfile.write("silence.wav", np.zeros(9), 16_000)
    code, out, _ = called(
        capsys, "<b>.wav", "silence.wav", "--weights", weights, "--png", "a.png", "--html", "a.html"
    )
    assert code == 0
    assert out.endswith("the picture is in a.png\nthe page is in a.html\n")
    assert imread(here / "a.png").shape[:2] == (1144, 1210)
    page = Reader((here / "a.html").read_text("utf-8"))
    for text in ("Speech in 2 recordings", "<b>.wav", "2 segments", "Nobody speaks.", "16,000 Hz"):
        assert text in page.text
    assert [v["src"][:22] for tag, v in page.tags if tag == "img"] == ["data:image/png;base64,"] * 2
    assert sum(tag == "b" for tag, _ in page.tags) == 0


@pytest.mark.slow
@needs_browser
def test_the_page_in_a_browser(here, capsys, tmp_path, weights):
    soundfile.write("a.wav", tones(*TWO, seconds=4), 16_000)
    called(capsys, "a.wav", "--weights", weights, "--html", "a.html")
    script = (
        "if (document.images[0].naturalWidth > 500 && document.querySelectorAll('.chart path').length === 2)"
        " document.title = 'it is drawn'"
    )
    assert "it is drawn" in shown(tmp_path, (here / "a.html").read_text("utf-8"), script).text


def refused(capsys, *args):
    code, out, err = called(capsys, *args)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    return err.removeprefix("funcnet listen: ").rstrip()


def test_what_is_no_sound(here, capsys, weights):
    soundfile.write("good.wav", tones(seconds=1), 16_000)
    (here / "text.wav").write_text("no sound\n" * 20)
    soundfile.write("empty.wav", np.zeros(0), 16_000)
    for name, text in (
        ("text.wav", "load: text.wav: this is no sound that can be read; expected wav, flac"),
        ("empty.wav", "load: empty.wav: there are no samples."),
        ("missing.wav", "[Errno 2] No such file or directory: 'missing.wav'"),
        (here, "this is not a regular file."),
    ):
        assert text in refused(capsys, "good.wav", name, "--weights", weights)  # before the good one is heard
    soundfile.write("nan.wav", np.full(99, np.nan), 16_000, subtype="FLOAT")
    code, _, err = called(capsys, "nan.wav", "--weights", weights)
    assert code == 2
    assert "samples that are NaN or infinite; got 99 of 99" in err


def test_what_cannot_be_asked_for(here, capsys, monkeypatch, weights):
    soundfile.write("a.wav", tones(seconds=1), 16_000)
    with_weights = ("--weights", weights)
    assert refused(capsys).startswith("listen takes recordings")
    assert refused(capsys, "-", "a.wav").startswith("- stands alone")
    assert refused(capsys, "a.wav", "--rate", 8000).startswith("--rate and --channels are for -")
    assert refused(capsys, "a.wav", "--png", "a.jpg").startswith("a.jpg is no .png file")
    assert refused(capsys, "a.wav", "--json", "no/a.json").startswith("no/a.json: there is no folder no")
    assert refused(capsys, "a.wav", "--time-resolution", 9).startswith("--time-resolution is 9")
    assert refused(capsys, *["a.wav"] * 21, "--png", "a.png").startswith("21 recordings: a picture has room")
    assert "threshold is -1.0" in refused(capsys, "a.wav", "--threshold", -1, *with_weights)
    assert "this is no ONNX file" in refused(capsys, "a.wav", "--weights", "a.wav")
    piped(monkeypatch, b"", terminal=True)
    assert refused(capsys, "-", *with_weights).startswith("- reads samples from a pipe")
    piped(monkeypatch, b"")
    assert refused(capsys, "-", "--channels", 0, *with_weights).startswith("--channels is 0")
    assert "rate is 0; expected a rate for sound" in refused(capsys, "-", "--rate", 0, *with_weights)
    for content, text in ((b"", "no samples came"), ((here / "a.wav").read_bytes(), "input is a wav file")):
        piped(monkeypatch, content)
        code, _, err = called(capsys, "-", *with_weights)
        assert code == 2
        assert text in err


def test_without_weights_one_line_says_how_to_get_them(capsys, monkeypatch):
    soundfile.write("a.wav", tones(seconds=1), 16_000)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "silero_vad" else name)
    assert refused(capsys, "a.wav") == (
        "the weights of silero-vad are not here; hint pip install --no-deps silero-vad, or say where "
        "silero_vad_16k_op15.onnx lies."
    )
