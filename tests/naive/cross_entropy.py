import math

import numpy as np


def cross_entropy(logits, labels, label_smoothing=0.0, ignore_index=None):
    v, y = logits.shape[-1], np.zeros(logits.shape[:-1])
    for n in np.ndindex(*y.shape):
        total = sum(math.exp(h) for h in logits[n])
        if labels.ndim == logits.ndim:
            q = list(labels[n])
        elif not 0 <= labels[n] < v or labels[n] == ignore_index:
            continue
        else:
            q = [1.0 if i == labels[n] else 0.0 for i in range(v)]
        q = [(1 - label_smoothing) * share + label_smoothing / v for share in q]
        y[n] = -sum(share * math.log(math.exp(h) / total) for share, h in zip(q, logits[n], strict=True))
    return y
