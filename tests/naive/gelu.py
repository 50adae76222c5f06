import math

import numpy as np


def gelu(x, approximate=False):
    y = np.zeros(x.shape)
    for n in np.ndindex(*x.shape):
        v = float(x[n])
        if approximate:
            y[n] = v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) / 2
        else:
            y[n] = v * math.erfc(-v / math.sqrt(2)) / 2
    return y
