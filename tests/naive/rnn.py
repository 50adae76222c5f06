import math

import numpy as np


def rnn(params, x, state=None, mask=None, reverse=False, activation="tanh"):
    w, u, b = params["w"], params["u"], params.get("b")
    m, phi = len(u), {"tanh": math.tanh, "relu": lambda z: max(z, 0.0)}[activation]
    last, y = {"h": np.zeros((*x.shape[:-2], m))}, np.zeros((*x.shape[:-1], m))
    for n in np.ndindex(*x.shape[:-2]):
        h = [0.0] * m if state is None else [float(v) for v in state["h"][n]]
        steps = range(x.shape[-2])
        for t in reversed(steps) if reverse else steps:
            if mask is not None and not mask[(*n, t)]:
                continue
            z = [0.0 if b is None else float(b[k]) for k in range(m)]
            for k in range(m):
                z[k] += sum(float(x[(*n, t, j)] * w[j, k]) for j in range(len(w)))
                z[k] += sum(float(h[j] * u[j, k]) for j in range(m))
            h = [phi(v) for v in z]
            y[(*n, t)] = h
        last["h"][n] = h
    return y, last
