import math

import numpy as np


def contrastive(x, y, scale, bias=0.0, pairs="softmax"):
    n = len(x)
    s = [
        [float(scale) * sum(a * b for a, b in zip(x[i], y[j], strict=True)) + float(bias) for j in range(n)]
        for i in range(n)
    ]
    out = np.zeros(n)
    for i in range(n):
        if pairs == "softmax":
            row = sum(math.exp(s[i][j]) for j in range(n))
            column = sum(math.exp(s[j][i]) for j in range(n))
            out[i] = (math.log(row) + math.log(column)) / 2 - s[i][i]
        else:
            out[i] = sum(math.log(1 + math.exp(-s[i][j] if i == j else s[i][j])) for j in range(n))
    return out
