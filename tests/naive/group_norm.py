import math

import numpy as np


def group_norm(params, x, groups, eps=1e-5, spatial=None):
    w, b = params["w"], params.get("b")
    first = 1 if spatial is None else x.ndim - 1 - spatial
    lead, sizes, each = x.shape[:first], x.shape[first:-1], x.shape[-1] // groups
    y = np.zeros(x.shape)
    for n in np.ndindex(*lead):
        for g in range(groups):
            members = [(*n, *p, g * each + i) for p in np.ndindex(*sizes) for i in range(each)]
            values = [float(x[m]) for m in members]
            mean = sum(values) / max(len(values), 1)
            variance = sum((v - mean) ** 2 for v in values) / max(len(values), 1)
            for m, v in zip(members, values, strict=True):
                y[m] = w[m[-1]] * (v - mean) / math.sqrt(variance + eps) + (0 if b is None else b[m[-1]])
    return y
