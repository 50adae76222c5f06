import math

import numpy as np


def lstm(params, x, state=None, mask=None, reverse=False):
    w, u, b, r = params["w"], params["u"], params.get("b"), params.get("r")
    p, m, sigmoid = len(u), u.shape[1] // 4, lambda z: 1 / (1 + math.exp(-z))
    last = {name: np.zeros((*x.shape[:-2], size)) for name, size in (("h", p), ("c", m))}
    y = np.zeros((*x.shape[:-1], p))
    for n in np.ndindex(*x.shape[:-2]):
        h, c = (
            [0.0] * size if state is None else [float(v) for v in state[name][n]]
            for name, size in (("h", p), ("c", m))
        )
        times = range(x.shape[-2])
        for t in reversed(times) if reverse else times:
            if mask is not None and not mask[(*n, t)]:
                continue
            z = []
            for k in range(4 * m):
                z.append(0.0 if b is None else float(b[k]))
                z[k] += sum(float(x[(*n, t, j)] * w[j, k]) for j in range(len(w)))
                z[k] += sum(float(h[j] * u[j, k]) for j in range(p))
            shown = []
            for k in range(m):
                i, f, o = (sigmoid(z[gate * m + k]) for gate in (0, 1, 3))
                c[k] = f * c[k] + i * math.tanh(z[2 * m + k])
                shown.append(o * math.tanh(c[k]))
            h = shown if r is None else [sum(float(shown[j] * r[j, k]) for j in range(m)) for k in range(p)]
            y[(*n, t)] = h
        last["h"][n], last["c"][n] = h, c
    return y, last
