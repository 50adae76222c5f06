import numpy as np


def linear(params, x, inputs=1):
    w, b = params["w"], params.get("b")
    lead, out = x.shape[: x.ndim - inputs], w.shape[inputs:]
    y = np.zeros((*lead, *out))
    for n in np.ndindex(*lead):
        for j in np.ndindex(*out):
            y[(*n, *j)] = sum(x[(*n, *i)] * w[(*i, *j)] for i in np.ndindex(*w.shape[:inputs]))
            y[(*n, *j)] += 0 if b is None else b[j]
    return y
