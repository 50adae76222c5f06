import math

import numpy as np


def gru(params, x, state=None, mask=None, reverse=False, reset="after"):
    w, u, b, c = params["w"], params["u"], params.get("b"), params.get("c")
    m, sigmoid = len(u), lambda z: 1 / (1 + math.exp(-z))
    last, y = {"h": np.zeros((*x.shape[:-2], m))}, np.zeros((*x.shape[:-1], m))

    def times(row, matrix, k):
        return sum(float(row[j] * matrix[j, k]) for j in range(len(matrix)))

    for at in np.ndindex(*x.shape[:-2]):
        h = [0.0] * m if state is None else [float(v) for v in state["h"][at]]
        steps = range(x.shape[-2])
        for t in reversed(steps) if reverse else steps:
            if mask is not None and not mask[(*at, t)]:
                continue
            a = [times(x[(*at, t)], w, k) + (0 if b is None else float(b[k])) for k in range(3 * m)]
            r = [sigmoid(a[k] + times(h, u, k)) for k in range(m)]
            z = [sigmoid(a[k] + times(h, u, k)) for k in range(m, 2 * m)]
            n = []
            for k in range(m):
                offset, column = 0.0 if c is None else float(c[k]), 2 * m + k
                if reset == "after":
                    inner = r[k] * (times(h, u, column) + offset)
                else:
                    inner = times([r[j] * h[j] for j in range(m)], u, column) + offset
                n.append(math.tanh(a[column] + inner))
            h = [(1 - z[k]) * n[k] + z[k] * h[k] for k in range(m)]
            y[(*at, t)] = h
        last["h"][at] = h
    return y, last
