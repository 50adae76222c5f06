import math

import numpy as np


def layer_norm(params, x, eps=1e-5):
    w, b = params["w"], params.get("b")
    y = np.zeros(x.shape)
    for n in np.ndindex(*x.shape[:-1]):
        row = [float(v) for v in x[n]]
        mean = sum(row) / len(row)
        variance = sum((v - mean) ** 2 for v in row) / len(row)
        for i, v in enumerate(row):
            y[(*n, i)] = w[i] * (v - mean) / math.sqrt(variance + eps) + (0 if b is None else b[i])
    return y
