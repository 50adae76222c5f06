import numpy as np


def relu(x):
    y = np.zeros(x.shape)
    for n in np.ndindex(*x.shape):
        y[n] = x[n] if x[n] > 0 else 0
    return y
