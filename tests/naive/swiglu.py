import math

import numpy as np


def swiglu(gate, up):
    y = np.zeros(gate.shape)
    for n in np.ndindex(*gate.shape):
        y[n] = up[n] * gate[n] / (1 + math.exp(-gate[n]))
    return y
