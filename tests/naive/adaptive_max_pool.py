import itertools

import numpy as np

from tests.naive.adaptive_avg_pool import window


def adaptive_max_pool(x, size):
    d = len(size)
    lead, sizes = x.shape[: -d - 1], x.shape[-d - 1 : -1]
    y = np.full((*lead, *size, x.shape[-1]), -np.inf)
    for n, o in itertools.product(np.ndindex(*lead), np.ndindex(*size)):
        for i in itertools.product(*(window(sizes[a], size[a], o[a]) for a in range(d))):
            y[(*n, *o)] = np.maximum(y[(*n, *o)], x[(*n, *i)])
    return y
