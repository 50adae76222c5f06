import math

import numpy as np

from tests.naive.log_mel import log_mel


def mfcc(x, window=None, *, coefficients=20, mels=80, **options):
    spectrum = log_mel(x, window, mels=mels, **options)
    y = np.zeros((*spectrum.shape[:-1], coefficients))
    for *n, k in np.ndindex(*y.shape):
        terms = (spectrum[(*n, m)] * math.cos(math.pi * k * (2 * m + 1) / (2 * mels)) for m in range(mels))
        y[(*n, k)] = sum(terms) * math.sqrt((2 if k else 1) / mels)
    return y
