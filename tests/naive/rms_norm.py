import math

import numpy as np


def rms_norm(params, x, eps=1e-6):
    w = params["w"]
    y = np.zeros(x.shape)
    for n in np.ndindex(*x.shape[:-1]):
        square = sum(float(v) ** 2 for v in x[n]) / x.shape[-1]
        for i in range(x.shape[-1]):
            y[(*n, i)] = w[i] * x[(*n, i)] / math.sqrt(square + eps)
    return y
