import numpy as np


def alibi(slopes, t, s, q_offset=0, causal=False):
    h = len(slopes)
    if causal:
        return np.array([[[slopes[g] * j for j in range(s)]] for g in range(h)]).reshape(h, 1, s)
    bias = np.zeros((*np.shape(q_offset), h, t, s))
    for *n, g, i, j in np.ndindex(*bias.shape):
        distance = abs(i + int(np.asarray(q_offset)[tuple(n)]) - j)
        bias[(*n, g, i, j)] = -slopes[g] * distance
    return bias
