import cmath
import math

import numpy as np

from tests.naive.stft import hann


def istft(x, window=None, *, n_fft, hop=None, width=None, padding="center", length=None):
    hop = hop or max(n_fft // 4, 1)
    w = hann(width or n_fft) if window is None else window
    low, high = {"center": (n_fft // 2, n_fft // 2), "valid": (0, 0)}.get(padding, padding)
    frames, left = x.shape[-3], (n_fft - len(w)) // 2
    total = (frames - 1) * hop + n_fft if frames else 0
    length = max(total - low - high, 0) if length is None else length
    y = np.zeros((*x.shape[:-3], length))
    for n in np.ndindex(*x.shape[:-3]):
        added, squares = np.zeros(total), np.zeros(total)
        for f in range(frames):
            half = [complex(*pair) for pair in x[(*n, f)]]
            # the whole spectrum of a real signal: that of −k is the conjugate of that of k
            whole = {-k % n_fft: z.conjugate() for k, z in enumerate(half)} | dict(enumerate(half))
            for j in range(len(w)):
                turns = (z * cmath.exp(2j * math.pi * k * (left + j) / n_fft) for k, z in whole.items())
                added[f * hop + left + j] += w[j] * sum(turns).real / n_fft
                squares[f * hop + left + j] += w[j] ** 2
        y[n] = [added[low + s] / squares[low + s] for s in range(length)]
    return y
