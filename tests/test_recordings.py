"""`recordings`: sound of any format, rate and channels as one channel; what is no sound is said."""

import struct
import sys

import numpy as np
import pytest
import soundfile

import funcnet as fn
from funcnet import recordings
from funcnet.errors import DTypeError, FileFormatError, MissingExtraError, ShapeError, ValueRangeError

RNG = np.random.default_rng(0)


def tone(rate, seconds=0.5, hertz=440.0):
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def wav(rate=16_000, channels=1, bits=16, code=1, data=bytes(64)):
    """The bytes of a wav file, right or not."""
    a_second = min(rate * channels * bits // 8, 2**32 - 1)
    form = struct.pack("<IHHIIHH", 16, code, channels, rate, a_second, channels * bits // 8, bits)
    head = b"RIFF" + struct.pack("<I", 36 + len(data)) + b"WAVEfmt " + form
    return head + b"data" + struct.pack("<I", len(data)) + data


@pytest.mark.parametrize(
    ("ending", "subtype", "error"),
    [
        ("wav", "PCM_16", 4e-5),
        ("wav", "PCM_U8", 1e-2),
        ("wav", "PCM_24", 2e-7),
        ("wav", "DOUBLE", 0),
        ("wav", "ULAW", 2e-2),
        ("flac", "PCM_16", 4e-5),
        ("aiff", "PCM_16", 4e-5),
        ("ogg", "VORBIS", 5e-2),
        ("mp3", "MPEG_LAYER_III", 5e-2),
    ],
)
def test_what_is_written_is_read(tmp_path, ending, subtype, error):
    samples = tone(16_000)
    path = tmp_path / f"tone.{ending}"
    soundfile.write(path, samples, 16_000, subtype=subtype)
    found = fn.recordings.read(path, 16_000)
    assert found.dtype == np.float32
    assert len(found) == len(samples)
    middle = slice(1000, -1000)  # a lossy codec has edges
    assert np.abs(found - samples)[middle].max() <= error
    about = recordings.about(path)
    assert (about.rate, about.channels, about.format) == (16_000, 1, f"{path.suffix[1:].upper()} {subtype}")
    assert about.seconds == pytest.approx(0.5)


def test_channels_are_mixed_and_the_rate_is_the_one_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(recordings, "_BLOCK", 5000)  # more than one block
    left, right = tone(44_100), tone(44_100, hertz=1000.0)
    soundfile.write(tmp_path / "both.wav", np.stack([left, right], 1), 44_100, subtype="FLOAT")
    np.testing.assert_allclose(
        recordings.read(tmp_path / "both.wav", 44_100), (left + right) / 2, rtol=0, atol=1e-7
    )
    found = recordings.read(tmp_path / "both.wav", 16_000)
    assert len(found) == 8000
    expected = (tone(16_000) + tone(16_000, hertz=1000.0)) / 2
    assert np.abs(found - expected)[500:-500].max() < 1e-3
    assert np.array_equal(found, recordings.resample((left + right) / 2, 44_100, 16_000))


@pytest.mark.parametrize(("rate", "to"), [(44_100, 16_000), (8_000, 16_000), (16_000, 16_000)])
def test_in_pieces_it_is_resampled_as_whole(rate, to):
    samples = RNG.standard_normal(rate // 2).astype(np.float32)
    piece = recordings.resampler(rate, to)
    cuts = np.split(samples, [1, 700, 701, 5000])
    parts = [piece(cut, last=i == 4) for i, cut in enumerate(cuts)]
    np.testing.assert_allclose(
        np.concatenate(parts), recordings.resample(samples, rate, to), rtol=0, atol=2e-5
    )
    assert sum(map(len, parts[:4])) > 0


def test_beyond_full_scale_is_cut(tmp_path):
    soundfile.write(tmp_path / "loud.wav", np.array([0.0, 1.5, -2.0, 0.25] * 9), 16_000, subtype="FLOAT")
    assert recordings.read(tmp_path / "loud.wav", 16_000)[:4].tolist() == [0, 1, -1, 0.25]


BAD = {
    "text.wav": (b"no sound, but text\n" * 9, "no sound that can be read.*Format not recognised"),
    "nothing.wav": (b"", "no sound that can be read"),
    "empty.wav": (wav(data=b""), "there are no samples"),
    "zero.wav": (wav(rate=0), "its header has a rate of 0 Hz"),
    "one.wav": (wav(rate=1), "no rate for sound.*1,000 to 4,000,000 Hz.*1 Hz"),
    "channels.wav": (wav(channels=0), "Channel count is zero"),
    "integers.wav": (
        wav(bits=32, code=3, data=np.array([0, -30_000, 5], "<f4").tobytes()),
        "far beyond full scale.*up to 30,000.*divide them by 32768",
    ),
    "short.wav": (wav(rate=48_000, data=bytes(2)), "there are no samples"),
    "raw.raw": (bytes(range(256)), "no sound that can be read"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_sound_is_refused_by_name(tmp_path, name):
    content, text = BAD[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=f"(?s){name}: .*{text}"):
        recordings.read(path, 16_000)


def test_samples_that_are_no_numbers_are_counted_and_placed(tmp_path):
    samples = tone(16_000)
    samples[[4000, 5000, 6000]] = np.nan, np.inf, -np.inf
    soundfile.write(tmp_path / "nan.wav", samples, 16_000, subtype="FLOAT")
    with pytest.raises(FileFormatError) as caught:
        recordings.read(tmp_path / "nan.wav", 16_000)
    assert str(caught.value).splitlines() == [
        f"load: {tmp_path}/nan.wav: there are samples that are NaN or infinite.",
        "  got       3 of 8,000, the first at 0.250 s",
    ]


@pytest.mark.usefixtures("unchecked")
def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError):
        recordings.read(tmp_path / "missing.wav", 16_000)
    with pytest.raises(FileFormatError, match="not a regular file"):
        recordings.read(tmp_path, 16_000)
    with pytest.raises(DTypeError, match="path is not a path"):
        recordings.about(7)  # type: ignore


@pytest.mark.parametrize("rate", [0, -1, 999, 10**9])
def test_rates_that_are_none(rate):
    for call in (
        lambda: recordings.read("any", rate),
        lambda: recordings.resample(tone(16_000), 16_000, rate),
        lambda: recordings.resampler(rate, 16_000),
    ):
        with pytest.raises(ValueRangeError, match=r"(rate|to) is "):
            call()


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_rate_or_not_one_channel():
    with pytest.raises(DTypeError, match="rate is no integer"):
        recordings.read("any", 16e3)  # type: ignore
    with pytest.raises(ShapeError, match=r"float32\[4, 2\]"):
        recordings.resample(np.zeros((4, 2), np.float32), 16_000, 8_000)


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "damaged.flac"
    soundfile.write(path, RNG.uniform(-1, 1, 50_000), 16_000)
    content = bytearray(path.read_bytes())
    content[60_000:61_000] = RNG.bytes(1000)
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match="no sound that can be read"):
        recordings.read(path, 16_000)


@pytest.mark.parametrize(("package", "rate"), [("soundfile", 16_000), ("soxr", 8_000)])
def test_without_the_extra_it_is_named(tmp_path, monkeypatch, package, rate):
    soundfile.write(tmp_path / "tone.wav", tone(16_000), 16_000)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        MissingExtraError, match=rf"(?s)package {package} is not installed.*funcnet\[speech\]"
    ):
        recordings.read(tmp_path / "tone.wav", rate)
