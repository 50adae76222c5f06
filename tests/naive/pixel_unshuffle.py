import math

import numpy as np

from tests.naive.pixel_shuffle import blocks


def pixel_unshuffle(x, factor, order="channel first"):
    b, c = x.ndim - len(factor) - 1, x.shape[-1]
    sizes = (n // r for n, r in zip(x.shape[b:-1], factor, strict=True))
    y = np.zeros((*x.shape[:b], *sizes, c * math.prod(factor)))
    for pixel, channel in blocks(x.shape[:-1], factor, c, order):
        y[channel] = x[pixel]
    return y
