import math

import numpy as np


def attention(q, k, v, causal=False, mask=None, scale=None):
    *n, t, h, e = q.shape
    s, h_kv = k.shape[-3:-1]
    scale = 1 / math.sqrt(e) if scale is None else scale
    mask = np.broadcast_to(True if mask is None else mask, (*n, h, t, s))
    o = np.zeros((*n, t, h, v.shape[-1]))
    for b in np.ndindex(*n):
        for head in range(h):
            shared = head // (h // h_kv)
            for i in range(t):
                seen = [j for j in range(s) if mask[(*b, head, i, j)] and (not causal or j - s <= i - t)]
                weight = [
                    math.exp(scale * sum(q[(*b, i, head, c)] * k[(*b, j, shared, c)] for c in range(e)))
                    for j in seen
                ]
                for w, j in zip(weight, seen, strict=True):
                    o[(*b, i, head)] += w / sum(weight) * v[(*b, j, shared)]
    return o
