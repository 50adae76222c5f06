import numpy as np


def matmul(a, b):
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = np.broadcast_to(a, lead + a.shape[-2:]), np.broadcast_to(b, lead + b.shape[-2:])
    c = np.zeros((*lead, a.shape[-2], b.shape[-1]))
    for n in np.ndindex(*lead):
        for i in range(a.shape[-2]):
            for j in range(b.shape[-1]):
                c[(*n, i, j)] = sum(a[(*n, i, k)] * b[(*n, k, j)] for k in range(a.shape[-1]))
    return c
