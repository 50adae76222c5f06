import math

import numpy as np


def binary_cross_entropy(logits, labels):
    y = np.zeros(logits.shape)
    for n in np.ndindex(*y.shape):
        p, z = 1 / (1 + math.exp(-logits[n])), float(labels[n])
        y[n] = -z * math.log(p) - (1 - z) * math.log(1 - p)
    return y
