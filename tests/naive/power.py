import numpy as np


def power(x):
    y = np.zeros(x.shape[:-1])
    for n in np.ndindex(*y.shape):
        y[n] = abs(complex(*x[n])) ** 2
    return y
