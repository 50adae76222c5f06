import numpy as np


def linear_recurrence(a, b, state=None, reverse=False):
    y, time = np.zeros(b.shape), a.ndim - 2
    for n in np.ndindex(*a.shape[:time]):
        for rest in np.ndindex(*b.shape[time + 1 :]):
            h = 0.0 if state is None else float(state[(*n, *rest)])
            steps = range(a.shape[time])
            for t in reversed(steps) if reverse else steps:
                h = float(a[(*n, t, rest[0])]) * h + float(b[(*n, t, *rest)])
                y[(*n, t, *rest)] = h
    return y
