import math

import numpy as np


def linear_cross_entropy(x, w, labels, label_smoothing=0.0, ignore_index=None, z_loss=0.0, softcap=None):
    d, v = w.shape
    y = np.zeros(labels.shape)
    for n in np.ndindex(*labels.shape):
        if not 0 <= labels[n] < v or labels[n] == ignore_index:
            continue
        h = [sum(x[n][k] * w[k, i] for k in range(d)) for i in range(v)]
        if softcap is not None:
            h = [softcap * math.tanh(u / softcap) for u in h]
        lse = math.log(sum(math.exp(u) for u in h))
        for i in range(v):
            q = (1 - label_smoothing) * (i == labels[n]) + label_smoothing / v
            y[n] += q * (lse - h[i])
        y[n] += z_loss * lse**2
    return y
