import math

import numpy as np


def batch_norm(params, state, x, train, mask=None, momentum=0.9, eps=1e-5):
    w, b = params["w"], params.get("b")
    y = np.zeros(x.shape)
    new = {"mean": np.array(state["mean"]), "var": np.array(state["var"])}
    for j in range(x.shape[-1]):
        members = [(*n, j) for n in np.ndindex(*x.shape[:-1]) if mask is None or mask[n]]
        values = [float(x[m]) for m in members]
        mean, variance = float(state["mean"][j]), float(state["var"][j])
        if train and values:
            mean = sum(values) / len(values)
            squares = sum((v - mean) ** 2 for v in values)
            variance = squares / len(values)
        if train and len(values) > 1:
            new["mean"][j] = momentum * state["mean"][j] + (1 - momentum) * mean
            new["var"][j] = momentum * state["var"][j] + (1 - momentum) * squares / (len(values) - 1)
        for m, v in zip(members, values, strict=True):
            y[m] = w[j] * (v - mean) / math.sqrt(variance + eps) + (0 if b is None else b[j])
    return y, new
