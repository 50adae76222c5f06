import numpy as np


def bilinear(params, left, right):
    w, b = params["w"], params.get("b")
    y = np.zeros((*left.shape[:-1], w.shape[2]))
    for n in np.ndindex(*left.shape[:-1]):
        for k in range(w.shape[2]):
            pairs = np.ndindex(*w.shape[:2])
            y[(*n, k)] = sum(left[(*n, i)] * w[i, j, k] * right[(*n, j)] for i, j in pairs)
            y[(*n, k)] += 0 if b is None else b[k]
    return y
