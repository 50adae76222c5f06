"""Recordings made of sine waves, in the folders that the tasks of recordings read."""

import numpy as np
import soundfile

RATE = 16_000
PITCHES = {"a": 300.0, "b": 900.0, "c": 2400.0}  # Hz, of the letters


def sine(text, *, seconds=0.1, rate=RATE, rng=None):
    """One pitch after the other, float32."""
    t = np.arange(int(seconds * rate)) / rate
    sound = np.concatenate([np.sin(2 * np.pi * PITCHES[letter] * t) for letter in text])
    noise = 0.0 if rng is None else 0.01 * rng.standard_normal(len(sound))
    return (0.3 * sound + noise).astype(np.float32)


def write(path, samples, rate=RATE):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate)
    return path


def classes(folder, n=6, suffixes=("wav", "flac", "ogg")):
    """Folders "a" and "b" of n recordings each, of some formats, rates and lengths."""
    rng = np.random.default_rng(0)
    for letter in "ab":
        for i in range(n):
            rate = (16_000, 44_100)[i % 2]
            samples = sine(letter, seconds=0.08 + 0.02 * i, rate=rate, rng=rng)
            write(folder / letter / f"{i}.{suffixes[i % len(suffixes)]}", samples, rate)
    return folder


def transcripts(folder, texts):
    """A list of recordings, and those."""
    rng = np.random.default_rng(0)
    for i, text in enumerate(texts):
        write(folder / "wav" / f"{i}.wav", sine(text.lower().replace(" ", "") or "a", rng=rng))
    lines = [f"wav/{i}.wav\t{text}\n" for i, text in enumerate(texts)]
    (folder / "transcripts.tsv").write_text("".join(lines), "utf-8")
    return folder


def syllables(folder, n=10):
    """Folders as gcin-voice has them: n syllables, in four tones, by two speakers."""
    rng = np.random.default_rng(0)
    for i in range(n):
        for tone, letter in zip(("", "2", "3", "4"), "abca", strict=True):
            for speaker in "35":
                name = f"{'ㄅㄆㄇ'[i % 3]}{chr(ord('ㄚ') + i)}{tone}"
                write(folder / name / f"{speaker}.ogg", sine(letter, rng=rng))
    return folder
