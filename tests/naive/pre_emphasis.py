import numpy as np


def pre_emphasis(x, coefficient=0.97):
    y = np.array(x)
    for n in np.ndindex(*x.shape):
        if n[-1] > 0:
            y[n] -= coefficient * x[(*n[:-1], n[-1] - 1)]
    return y
