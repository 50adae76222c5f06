import math

import numpy as np


def linear_attention(q, k, v, decay=None, state=None, chunk=None):
    del chunk
    e, f = q.shape[-1], v.shape[-1]
    o, last = np.zeros(v.shape), np.zeros((*q.shape[:-3], q.shape[-2], e, f))
    for *n, h in np.ndindex(*q.shape[:-3], q.shape[-2]):
        s = np.zeros((e, f)) if state is None else np.array(state[(*n, h)], float)
        for t in range(q.shape[-3]):
            at = (*n, t, h)
            for i in range(e):
                for j in range(f):
                    kept = 1.0 if decay is None else math.exp(decay[at])
                    s[i, j] = kept * s[i, j] + float(k[at][i] * v[at][j])
            for j in range(f):
                o[at][j] = sum(float(q[at][i] * s[i, j]) for i in range(e))
        last[(*n, h)] = s
    return o, last
