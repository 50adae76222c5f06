import math

import numpy as np

from tests.naive.l2_norm import vectors


def logsumexp(x, axis=-1, keepdims=False):
    y = np.zeros([1 if i in axes_of(axis, x.ndim) else s for i, s in enumerate(x.shape)])
    for place, members in vectors(x, axis):
        y[place] = math.log(sum(math.exp(x[m]) for m in members))
    return y if keepdims else y.squeeze(axes_of(axis, x.ndim))


def axes_of(axis, ndim):
    return tuple(a % ndim for a in (axis if isinstance(axis, tuple) else (axis,)))
