import math

import numpy as np


def vectors(x, axis):
    """Of each vector along the axes: its place where they have size 1, and the places of its elements."""
    along = {a % x.ndim for a in (axis if isinstance(axis, tuple) else (axis,))}
    places = {}
    for n in np.ndindex(*x.shape):
        places.setdefault(tuple(0 if i in along else v for i, v in enumerate(n)), []).append(n)
    return places.items()


def l2_norm(x, axis=-1, eps=1e-12):
    y = np.zeros(x.shape)
    for _, members in vectors(x, axis):
        norm = math.sqrt(sum(float(x[m]) ** 2 for m in members))
        for m in members:
            y[m] = x[m] / max(norm, eps)
    return y
