import itertools
import math

import numpy as np


def axis_by_axis(x, outs, sees):
    """y[o] = Σ Π weights · x[i] over what `sees(axis, size, o)`, pairs (i, weight), says of each axis."""
    d = len(outs)
    lead, sizes = x.shape[: -d - 1], x.shape[-d - 1 : -1]
    y = np.zeros((*lead, *outs, x.shape[-1]))
    for o in np.ndindex(*outs):
        for pairs in itertools.product(*(sees(a, sizes[a], o[a]) for a in range(d))):
            at, weights = zip(*pairs, strict=True)
            y[(..., *o, slice(None))] += math.prod(weights) * x[(..., *at, slice(None))]
    return y


def cubic(t, a):
    t = abs(t)
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0


def resize(x, size=None, scale=None, method="linear", align_corners=False, antialias=False, a=None):
    d = len(size or scale)
    sizes = x.shape[-d - 1 : -1]
    outs = size or [math.floor(n * s) for n, s in zip(sizes, scale, strict=True)]
    method = {"bilinear": "linear", "trilinear": "linear", "bicubic": "cubic"}.get(method, method)
    a = (-0.5 if antialias else -0.75) if a is None else a
    f = (lambda t: max(1 - abs(t), 0.0)) if method == "linear" else lambda t: cubic(t, a)
    reach = 1 if method == "linear" else 2

    def sees(axis, n, o):
        m = outs[axis]
        step = 1 / scale[axis] if size is None else n / m
        if method == "nearest":
            return [(min(math.floor(o * step + 1e-9), n - 1), 1.0)]
        if method == "nearest-exact":
            return [(min(math.floor((o + 0.5) * step + 1e-9), n - 1), 1.0)]
        p = (o + 0.5) * step - 0.5
        if align_corners:
            p = o * (n - 1) / (m - 1) if m > 1 else 0.0
        if antialias:
            wide = max(step, 1.0)
            weights = {i: f((i - p) / wide) for i in range(n) if abs(i - p) < reach * wide}
            return [(i, w / sum(weights.values())) for i, w in weights.items()]
        p = min(max(p, 0.0), n - 1.0) if method == "linear" else p
        near = range(math.floor(p) - 1, math.floor(p) + 3)
        return [(min(max(i, 0), n - 1), f(i - p)) for i in near]

    return axis_by_axis(x, outs, sees)
