"""What the tasks of recordings share: the spectrogram that a net reads, augmentation, what it got wrong."""

import base64
import io
import json
import wave
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from funcnet import recordings, train
from funcnet.errors import StructureError, describe
from funcnet.nets import crnn
from funcnet.ops.sound import log_mel
from funcnet.tasks._task import Prediction, Saved

__all__ = [
    "BANDS",
    "PADDING",
    "RATE",
    "answers",
    "classify",
    "frames",
    "heard",
    "joined",
    "predict",
    "spectrograms",
    "striped",
    "varied",
]

RATE = 16_000  # Hz
HOP = 160  # samples from one frame to the next
BANDS = 40
PADDING = 0.0  # the bands of a frame beyond the end
_SPAN = 8.0  # powers of ten, 80 dB below the loudest band of a recording: what is softer counts as silence
_TOP = 2.0  # what the loudest band is in the net's eyes; silence is −2
_SPECTRUM: Mapping[str, Any] = {
    "rate": float(RATE),
    "n_fft": 512,
    "width": 400,
    "hop": HOP,
    "padding_mode": "zeros",
    "mels": BANDS,
    "low": 20.0,
    "scale": "htk",
    "norm": None,
    "floor": 1e-20,  # of silence; all else is bounded by the span
    "span": _SPAN,
    "gain": 2 * _TOP / _SPAN,
}
SHOWN, PLAYED = 40, 40.0  # mistakes that can be listened to, and seconds of them, at most: 1.7 MB


def frames(samples: Any) -> Any:
    """How many frames recordings of so many samples have, a number or an array."""
    return 1 + samples // HOP


def spectrograms(samples: Float[Array, "n t"], lengths: Int[Array, " n"]) -> Float[Array, "n frames bands"]:
    """Log-mel spectrograms from −2, silence, to 2, the loudest band of a recording, however loud that is.

    Args:
        samples: at RATE; beyond its length a recording is 0.
        lengths: in samples; 0: there is no recording.

    Returns:
        A frame each 10 ms; beyond a recording's last one all bands are PADDING.
    """
    x = log_mel.apply(samples, **_SPECTRUM)
    x = x - x.max((-2, -1), keepdims=True) + _TOP
    real = jnp.arange(x.shape[1], dtype=jnp.int32) < jnp.where(lengths > 0, frames(lengths), 0)[:, None]
    return jnp.where(real[..., None], x, jnp.asarray(PADDING, x.dtype))


def joined(parts: Sequence[np.ndarray], length: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Recordings as one array [n, t], with 0 beyond their ends, and their lengths.

    >>> joined([np.ones(1, np.float32), np.ones(2, np.float32)])[0].tolist()
    [[1.0, 0.0], [1.0, 1.0]]
    """
    lengths = np.array([len(part) for part in parts], np.int32)
    samples = np.zeros((len(parts), length or lengths.max()), np.float32)
    for row, part in zip(samples, parts, strict=True):
        row[: len(part)] = part[: len(row)]
    return samples, np.minimum(lengths, samples.shape[1])


def striped(
    key: PRNGKeyArray, x: Float[Array, "n t bands"], *, bands: int, frames: int, stripes: int = 2
) -> Float[Array, "n t bands"]:
    """Spectrograms with some stripes of bands and of frames set to 0, at random: SpecAugment.

    Args:
        key: a random key.
        x: the spectrograms.
        bands: the widest stripe of bands.
        frames: the widest stripe of frames.
        stripes: how many of each.

    Source: Park et al., "SpecAugment", arXiv 1904.08779.
    """

    def stripe(key: PRNGKeyArray, size: int, widest: int) -> Array:
        key_width, key_start = jax.random.split(key)
        drawn = (x.shape[0], stripes, 1)
        width = jax.random.randint(key_width, drawn, 0, min(widest, size) + 1, jnp.int32)
        start = jax.random.uniform(key_start, drawn, jnp.float32) * (size - width + 1).astype(jnp.float32)
        start, at = start.astype(jnp.int32), jnp.arange(size, dtype=jnp.int32)
        return ((at >= start) & (at < start + width)).any(1)

    key_bands, key_frames = jax.random.split(key)
    low, early = stripe(key_bands, x.shape[2], bands), stripe(key_frames, x.shape[1], frames)
    return jnp.where(low[:, None, :] | early[:, :, None], jnp.zeros((), x.dtype), x)


def varied(
    samples: Float[np.ndarray, " t"],
    rng: np.random.Generator,
    *,
    speed: float = 0.0,
    shift: float = 0.0,
    noise: float | None = None,
) -> Float[np.ndarray, " s"]:
    """A recording as it could have been as well.

    Args:
        samples: at RATE.
        rng: what is drawn from.
        speed: it is played faster or slower by up to this share, and so higher or lower.
        shift: it begins later by up to so many seconds.
        noise: every other recording gets noise, between white and brown, at a signal-to-noise ratio of so
            many dB, or up to 30 more.
    """
    factor, later, often, slope, ratio = rng.uniform(size=5)
    if speed:
        played = round(RATE * (1 + speed * (2 * factor - 1)))
        samples = recordings.resample(samples, played, RATE)
    if shift:
        samples = np.concatenate([np.zeros(int(later * shift * RATE), np.float32), samples])
    if noise is None or often < 0.5 or not samples.any():
        return samples
    spectrum = np.fft.rfft(rng.standard_normal(len(samples)))
    spectrum /= np.maximum(1, np.arange(len(spectrum))) ** slope
    sound = np.fft.irfft(spectrum, len(samples))
    sound *= np.sqrt((samples**2).mean() / (sound**2).mean() / 10 ** ((noise + 30 * ratio) / 10))
    return samples + sound.astype(np.float32)


def classify(
    params: dict, x: Float[np.ndarray, "n t bands"], config: crnn.Config
) -> Float[np.ndarray, "n classes"]:
    """Probabilities of the classes."""
    compiled = jax.jit(lambda params, x: jax.nn.softmax(crnn.apply(params, x, config)))
    return np.concatenate([np.asarray(compiled(params, part)) for part in train.in_order(x, 500)])


def answers(saved: Saved) -> list[str]:
    """The names of the classes of a model, or its letters, as they are in its config.json.

    Raises:
        StructureError: they are not.
    """
    names = saved.data.get("answers")
    count = saved.config.classes - (not saved.config.pooled)  # without the blank
    if not isinstance(names, list) or [*map(type, names)] != [str] * count:
        raise StructureError(
            "config.json does not hold the answers of the model.",
            path="data.answers",
            expected=f"{count} names",
            actual=describe(names),
        )
    return names


def predict(saved: Saved, path: Path, classes: list[str]) -> Prediction:
    """The most probable class of a recording, and the probabilities of all.

    Raises:
        FileFormatError, MissingExtraError, OSError: from `recordings.read`.
    """
    x = spectrograms(*map(jnp.asarray, joined([recordings.read(path, RATE)])))
    probabilities = classify(saved.params, np.asarray(x), saved.config)[0]
    best = probabilities.argmax()
    shares = (f"{value:.3f}" for value in probabilities)
    return Prediction(
        ("class", "probability", *classes), [(classes[best], f"{probabilities[best]:.1%}", *shares)]
    )


def heard(
    folder: Path,
    names: Sequence[str],
    labels: Sequence[str],
    guesses: Sequence[str],
    read: Callable[[int], Float[np.ndarray, " t"]],
) -> None:
    """Write mistakes.json: what a page needs to show the mistakes, and to play them.

    Args:
        folder: of the run.
        names: of the recordings.
        labels: what they are.
        guesses: what they are taken for.
        read: gives the samples of one, by its number.
    """
    wrong = [i for i, (label, guess) in enumerate(zip(labels, guesses, strict=True)) if label != guess]
    shown, played = [], 0
    for i in wrong[:SHOWN]:
        samples = read(i)
        played += len(samples)
        if played > PLAYED * RATE:
            break
        sound = {"wav": base64.b64encode(_wav(samples)).decode()}
        shown.append({"name": names[i], "label": labels[i], "taken_for": guesses[i], **sound})
    title = f"{len(wrong):,} of {len(names):,} recordings wrong"
    content = {
        "title": title if len(shown) == len(wrong) else f"{title}; {len(shown)} of them", "mistakes": shown
    }  # fmt: skip
    (folder / "mistakes.json").write_text(json.dumps(content) + "\n", encoding="utf-8")


def _wav(samples: Float[np.ndarray, " t"]) -> bytes:
    """A file of 16 bits a sample, at RATE."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 2, RATE, 0, "NONE", ""))
        out.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return file.getvalue()
