import numpy as np


def lfilter(x, b, a):
    y = np.zeros(x.shape)
    for n in np.ndindex(*x.shape[:-1]):
        for t in range(x.shape[-1]):
            total = sum(b[i] * x[(*n, t - i)] for i in range(len(b)) if i <= t)
            total -= sum(a[i] * y[(*n, t - i)] for i in range(1, len(a)) if i <= t)
            y[(*n, t)] = total / a[0]
    return y
