import math

import numpy as np


def sigmoid(x):
    y = np.zeros(x.shape)
    for n in np.ndindex(*x.shape):
        y[n] = 1 / (1 + math.exp(-x[n]))
    return y
