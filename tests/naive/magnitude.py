import math

import numpy as np


def magnitude(x):
    y = np.zeros(x.shape[:-1])
    for n in np.ndindex(*y.shape):
        y[n] = math.hypot(*x[n])
    return y
