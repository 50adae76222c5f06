"""Recordings of sound, read from files as one channel of samples in [−1, 1], at the rate that is asked for.

    samples = fn.recordings.read("talk.flac", 16_000)        # float32 [t], t = 16,000 a second

Whatever libsndfile reads (wav, flac, ogg, opus, mp3, aiff ...) is read by the package `soundfile`, and
resampled, where the file's rate is another, by the package `soxr`: the extra [speech].
"""

import contextlib
import importlib
from collections.abc import Callable, Iterator
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from funcnet._numbers import whole
from funcnet._safetensors import open_file, path_text, refusal
from funcnet.errors import MissingExtraError, ShapeError, ValueRangeError, describe

__all__ = ["About", "about", "read", "resample", "resampler"]

_RATES = (1_000, 4_000_000)  # Hz; a rate of 1 would make gigabytes of a few samples
_LOUDEST = 16.0  # what passes full scale by more, 24 dB, is in another unit
_BLOCK = 2**22  # samples that are held before their channels are mixed


class About(NamedTuple):
    """What a file says of itself.

    Attributes:
        rate: samples a second, in Hz.
        channels: how many.
        seconds: how long it is.
        format: of the file and its samples: "WAV PCM_16".
    """

    rate: int
    channels: int
    seconds: float
    format: str


def about(path: str | PathLike[str]) -> About:
    """Rate, channels, length and format of a recording, without its samples.

    Raises:
        FileFormatError: the file is no sound, or holds none.
        MissingExtraError: the package soundfile is not installed.
        OSError: the file is missing or cannot be read.
    """
    with _opened("recordings.about", path) as (sound, _):
        return About(
            sound.samplerate,
            sound.channels,
            sound.frames / sound.samplerate,
            f"{sound.format} {sound.subtype}",
        )


def read(path: str | PathLike[str], rate: int) -> Float[np.ndarray, " t"]:
    """All samples of a recording: the mean of its channels, resampled.

    Args:
        path: of the file; what it is is told by its content, not by its name.
        rate: of the result, in Hz.

    Returns:
        float32 [t], between −1 and 1 (where resampling, or a file of floats, passes full scale, it is cut).

    Raises:
        FileFormatError: the file is no sound or damaged, holds no samples, or such that are NaN, infinite or
            far beyond full scale.
        ValueRangeError: rate is none for sound.
        MissingExtraError: soundfile, or soxr where it is needed, is not installed.
        OSError: the file is missing or cannot be read.
    """
    rate = _rate("recordings.read", "rate", rate)
    with _opened("recordings.read", path) as (sound, source):
        mixed, block = [], max(1, _BLOCK // sound.channels)
        while len(samples := sound.read(block, dtype="float32", always_2d=True)):
            mixed.append(samples.mean(1))
        given = int(sound.samplerate)
    samples = np.concatenate(mixed) if mixed else np.zeros(0, np.float32)
    finite = np.isfinite(samples)
    if not finite.all():
        first = int(finite.argmin())
        raise refusal(
            source,
            "there are samples that are NaN or infinite.",
            actual=f"{(~finite).sum():,} of {samples.size:,}, the first at {first / given:.3f} s",
        )
    loudest = float(np.abs(samples).max(initial=0))
    if loudest > _LOUDEST:
        raise refusal(
            source,
            "the samples are far beyond full scale.",
            expected="samples between -1 and 1",
            actual=f"up to {loudest:,.6g}",
            hint="integers stored as floats: divide them by 32768, or whatever their full scale is.",
        )
    samples = _resampled(samples, given, rate)
    if not samples.size:
        raise refusal(source, "there are no samples.")
    return np.clip(samples, -1, 1)


def resample(samples: Float[np.ndarray, " t"], rate: int, to: int) -> Float[np.ndarray, " s"]:
    """Samples at another rate, s = t to / rate (band-limited, by soxr), float32.

    Raises:
        ShapeError: samples are not one channel.
        ValueRangeError: a rate is none for sound.
        MissingExtraError: soxr is not installed.
    """
    rate, to = _rate("recordings.resample", "rate", rate), _rate("recordings.resample", "to", to)
    if np.ndim(samples) != 1:
        raise ShapeError(
            "recordings.resample: samples are not one channel.",
            path="samples",
            expected="samples: float[t]",
            actual=f"samples: {describe(samples)}",
        )
    return _resampled(np.asarray(samples, np.float32), rate, to)


def resampler(rate: int, to: int) -> Callable[..., np.ndarray]:
    """`resample` for sound that comes in pieces: a function of the next piece, float32 [t], and `last`.

    It gives what can be said by then, a few milliseconds less than all but where `last` is True.

    Raises:
        ValueRangeError: a rate is none for sound.
        MissingExtraError: soxr is not installed.
    """
    rate, to = _rate("recordings.resampler", "rate", rate), _rate("recordings.resampler", "to", to)
    stream = None if rate == to else _import("soxr").ResampleStream(rate, to, 1, dtype="float32")

    def of(piece: Float[np.ndarray, " t"], last: bool = False) -> Float[np.ndarray, " s"]:
        return piece if stream is None else stream.resample_chunk(piece, last=last)

    return of


def _resampled(samples: np.ndarray, rate: int, to: int) -> np.ndarray:
    return samples if rate == to else _import("soxr").resample(samples, rate, to)


@contextlib.contextmanager
def _opened(where: str, path: Any) -> Iterator[tuple[Any, str]]:
    """The file as soundfile's, and its path as text."""
    source = path_text(where, "path", path)
    soundfile = _import("soundfile")
    with open_file(source) as file:
        try:
            # By number, since of a name soundfile would believe the ending.
            with soundfile.SoundFile(file.fileno(), closefd=False) as sound:
                if sound.frames < 1:
                    raise refusal(source, "there are no samples.")
                if not _RATES[0] <= sound.samplerate <= _RATES[1]:
                    raise refusal(
                        source,
                        "this is no rate for sound.",
                        expected=f"{_RATES[0]:,} to {_RATES[1]:,} Hz",
                        actual=f"{sound.samplerate:,} Hz",
                    )
                yield sound, source
        except soundfile.LibsndfileError as error:
            reason = error.error_string.rstrip(".")
            incomplete = "INFO struct incomplete" in reason  # so it says of a rate of 0
            reason = "its header has a rate of 0 Hz, or none at all" if incomplete else reason
            raise refusal(
                source,
                "this is no sound that can be read.",
                expected="wav, flac, ogg, mp3, aiff, or what else libsndfile reads",
                actual=reason,
            ) from error


def _import(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except (ImportError, OSError) as error:  # OSError: soundfile without its libsndfile
        raise MissingExtraError(
            f"the package {package} is not installed.", path=package, hint="pip install 'funcnet[speech]'"
        ) from error


def _rate(where: str, name: str, rate: Any) -> int:
    least, most = _RATES
    expected = f"a rate for sound, {least:,} to {most:,} Hz"
    rate = whole(where, name, rate, least, expected)
    if rate > most:
        raise ValueRangeError(f"{where}: {name} is {rate}.", path=name, expected=expected, actual=str(rate))
    return rate
