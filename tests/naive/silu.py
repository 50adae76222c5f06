import math

import numpy as np


def silu(x):
    y = np.zeros(x.shape)
    for n in np.ndindex(*x.shape):
        y[n] = x[n] / (1 + math.exp(-x[n]))
    return y
