import math

import numpy as np


def blocks(n_and_size, factor, c, order):
    """Of every pixel and channel of the shuffled grid, its place among the channels of the other."""
    k = math.prod(factor)
    b = len(n_and_size) - len(factor)
    for p in np.ndindex(*n_and_size):
        inside = [q % r for q, r in zip(p[b:], factor, strict=True)]
        at = (*p[:b], *(q // r for q, r in zip(p[b:], factor, strict=True)))
        i = int(np.ravel_multi_index(inside, factor))
        for j in range(c):
            yield (*p, j), (*at, i * c + j if order == "channel last" else j * k + i)


def pixel_shuffle(x, factor, order="channel first"):
    b, c = x.ndim - len(factor) - 1, x.shape[-1] // math.prod(factor)
    y = np.zeros((*x.shape[:b], *(n * r for n, r in zip(x.shape[b:-1], factor, strict=True)), c))
    for pixel, channel in blocks(y.shape[:-1], factor, c, order):
        y[pixel] = x[channel]
    return y
