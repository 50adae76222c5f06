import cmath
import math

import numpy as np


def beyond(x, p, mode):
    """The sample at p of a signal that goes on beyond its border."""
    if 0 <= p < len(x):
        return x[p]
    if mode == "zeros":
        return 0.0
    if mode == "circular":
        return x[p % len(x)]
    while not 0 <= p < len(x):
        p = -p if p < 0 else 2 * (len(x) - 1) - p
    return x[p]


def hann(width):
    return [math.sin(math.pi * j / width) ** 2 for j in range(width)] if width > 1 else [1.0]


def stft(x, window=None, *, n_fft, hop=None, width=None, padding="center", padding_mode="reflect"):
    hop = hop or max(n_fft // 4, 1)
    w = hann(width or n_fft) if window is None else window
    low, high = {"center": (n_fft // 2, n_fft // 2), "valid": (0, 0)}.get(padding, padding)
    t, left = x.shape[-1], (n_fft - len(w)) // 2
    frames = max((t + low + high - n_fft) // hop + 1, 0)
    y = np.zeros((*x.shape[:-1], frames, n_fft // 2 + 1, 2))
    for n in np.ndindex(*x.shape[:-1]):
        for f in range(frames):
            for k in range(n_fft // 2 + 1):
                z = 0j
                for j in range(len(w)):
                    turn = cmath.exp(-2j * math.pi * k * (left + j) / n_fft)
                    z += w[j] * beyond(x[n], f * hop - low + left + j, padding_mode) * turn
                y[(*n, f, k)] = z.real, z.imag
    return y
