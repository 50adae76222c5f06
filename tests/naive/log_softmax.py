import math

import numpy as np


def log_softmax(x, axis=-1):
    x = np.moveaxis(np.asarray(x), axis, -1)
    y = np.zeros(x.shape)
    for n in np.ndindex(*x.shape[:-1]):
        total = sum(math.exp(v) for v in x[n])
        for i in range(x.shape[-1]):
            y[(*n, i)] = x[(*n, i)] - math.log(total)
    return np.moveaxis(y, -1, axis)
