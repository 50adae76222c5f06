import numpy as np


def prelu(params, x):
    w, y = params["w"], np.zeros(x.shape)
    for n in np.ndindex(*x.shape):
        y[n] = max(x[n], 0.0) + w[n[-1] if len(w) > 1 else 0] * min(x[n], 0.0)
    return y
