"""Spectrum, bands and cepstrum of a signal: python examples/spectrogram.py [FILE.wav] [--out PICTURE.png]."""

import argparse
import wave
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import funcnet as fn


def read(path):
    """The first channel of a wav file of 16 bits, in [-1, 1], and its rate."""
    with wave.open(path) as file:
        if file.getsampwidth() != 2:
            raise SystemExit(f"{path}: {8 * file.getsampwidth()} bits a sample, but 16 are read.")
        data = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        return data[:: file.getnchannels()].astype(np.float32) / 32768, file.getframerate()


def made(rate=16000):
    """A chirp that rises to 6 kHz over the overtones of 220 Hz, and silence at the end."""
    t = np.arange(2 * rate) / rate
    chirp = np.sin(2 * np.pi * 1500 * t**2)
    tone = sum(np.sin(2 * np.pi * 220 * k * t) / k for k in range(1, 8)) * (1 + np.sin(2 * np.pi * 3 * t))
    return ((chirp + 0.3 * tone) * (t < 1.8)).astype(np.float32), rate


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?")
    parser.add_argument("--out", help="draw them")
    words = parser.parse_args()
    x, rate = read(words.file) if words.file else made()
    how: dict[str, Any] = {"n_fft": 512, "hop": 128}

    @jax.jit
    def features(x):
        spectrum = fn.power.apply(fn.stft.apply(x, **how))
        bands = {**how, "rate": float(rate), "mels": 64, "gain": 10.0, "span": 8.0}
        cepstrum = fn.mfcc.apply(x, coefficients=13, **bands)[..., 1:]
        return 10 * jnp.log10(jnp.maximum(spectrum, 1e-8)), fn.log_mel.apply(x, **bands), cepstrum

    titles = "power spectrum, decibels", "64 mel bands, decibels", "cepstrum, 1 to 12"
    found = features(jnp.asarray(x))
    shapes = ", ".join(f"{title} {values.shape}" for title, values in zip(titles, found, strict=True))
    print(f"{len(x)} samples at {rate} Hz: {shapes}")
    if words.out is None:
        return
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 3), layout="constrained")
    for ax, title, values in zip(axes, titles, found, strict=True):
        top = rate / 2000 if ax is axes[0] else values.shape[1]
        ax.imshow(values.T, origin="lower", aspect="auto", extent=(0, len(x) / rate, 0, top), cmap="magma")
        ax.set(title=title, xlabel="seconds")
    axes[0].set_ylabel("kHz")
    figure.savefig(words.out, dpi=70)


if __name__ == "__main__":
    main()
