import itertools
import math

import numpy as np

from tests.naive.resize import cubic


def grid_sample(x, grid, method="linear", padding_mode="zeros", align_corners=False):
    d = grid.shape[-1]
    b = x.ndim - d - 1
    out = grid.shape[b:-1]
    y = np.zeros((*x.shape[:b], *out, x.shape[-1]))

    def reflected(p, n):
        low, high = (0.0, n - 1.0) if align_corners else (-0.5, n - 0.5)
        while high > low and not low <= p <= high:
            p = 2 * low - p if p < low else 2 * high - p
        return min(max(p, 0.0), n - 1.0)

    def within(p, n):
        if padding_mode == "zeros":
            return p
        return reflected(p, n) if padding_mode == "reflection" else min(max(p, 0.0), n - 1.0)

    def sees(g, n):
        p = (g + 1) / 2 * (n - 1) if align_corners else ((g + 1) * n - 1) / 2
        if method in ("cubic", "bicubic"):
            near = [(math.floor(p) + k, cubic(math.floor(p) + k - p, -0.75)) for k in (-1, 0, 1, 2)]
            near = [(round(within(i, n)), w) for i, w in near]
        elif method == "nearest":
            near = [(round(within(p, n)), 1.0)]
        else:
            p = within(p, n)
            near = [(math.floor(p), 1 - (p - math.floor(p))), (math.floor(p) + 1, p - math.floor(p))]
        return [(i, w) for i, w in near if 0 <= i < n]

    for n, o in itertools.product(np.ndindex(*x.shape[:b]), np.ndindex(*out)):
        point = grid[(*n, *o)][::-1]
        for pairs in itertools.product(*(sees(point[a], x.shape[b + a]) for a in range(d))):
            at, weights = zip(*pairs, strict=True)
            y[(*n, *o)] += math.prod(weights) * x[(*n, *at)]
    return y
