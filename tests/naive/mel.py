import math

import numpy as np


def to_mel(f, scale):
    if scale == "htk":
        return 2595 * math.log1p(f / 700) / math.log(10)
    return 3 * f / 200 if f < 1000 else 15 + 27 * math.log(f / 1000) / math.log(6.4)


def to_hz(m, scale):
    if scale == "htk":
        return 700 * math.expm1(m * math.log(10) / 2595)
    return 200 * m / 3 if m < 15 else 1000 * 6.4 ** ((m - 15) / 27)


def mel(x, *, rate, mels=80, low=0.0, high=None, scale="slaney", norm="slaney", n_fft=None):
    bins = x.shape[-1]
    n_fft = n_fft or 2 * (bins - 1)
    first, last = to_mel(low, scale), to_mel(rate / 2 if high is None else high, scale)
    hz = [to_hz(first + (last - first) * i / (mels + 1), scale) for i in range(mels + 2)]
    y = np.zeros((*x.shape[:-1], mels))
    for n in np.ndindex(*x.shape[:-1]):
        for m in range(mels):
            below, peak, above = hz[m : m + 3]
            for k in range(bins):
                f = k * rate / n_fft
                if below < f < above:
                    height = (f - below) / (peak - below) if f <= peak else (above - f) / (above - peak)
                    y[(*n, m)] += height * x[(*n, k)] * (2 / (above - below) if norm else 1)
    return y
