"""Each by its definition: a function of two numbers, or of the vectors along the last axis."""

import math

import numpy as np


def each(f):
    def loop(*arrays, **options):
        y = np.zeros(arrays[0].shape)
        for n in np.ndindex(*y.shape):
            y[n] = f(*(float(a[n]) for a in arrays), **options)
        return y

    return loop


def each_row(f):
    def loop(*arrays, **options):
        y = np.zeros(arrays[0].shape[:-1])
        for n in np.ndindex(*y.shape):
            y[n] = f(*([float(v) for v in a[n]] for a in arrays), **options)
        return y

    return loop


def logistic(x):
    return 1 / (1 + math.exp(-x))


@each
def huber(p, t, delta=1.0):
    e = abs(p - t)
    return e**2 / 2 if e <= delta else delta * (e - delta / 2)


@each
def smooth_l1(p, t, beta=1.0):
    e = abs(p - t)
    return e**2 / (2 * beta) if e < beta else e - beta / 2


@each
def hinge(p, t, margin=1.0):
    return max(margin - t * p, 0.0)


@each
def focal(x, z, gamma=2.0, alpha=None):
    p = logistic(x)
    wrong = (1 - p) * z + p * (1 - z)
    weight = 1 if alpha is None else alpha * z + (1 - alpha) * (1 - z)
    return -weight * wrong**gamma * (z * math.log(p) + (1 - z) * math.log(1 - p))


@each
def kl_div(log_p, target, log_target=False):
    q = math.exp(target) if log_target else target
    return q * (math.log(q) - log_p)


@each_row
def dice(x, z, smooth=1.0):
    p = [logistic(h) for h in x]
    both = sum(a * b for a, b in zip(p, z, strict=True))
    return 1 - (2 * both + smooth) / (sum(p) + sum(z) + smooth)


@each_row
def cosine(p, t):
    norms = math.sqrt(sum(a * a for a in p)) * math.sqrt(sum(b * b for b in t))
    return 1 - sum(a * b for a, b in zip(p, t, strict=True)) / norms if norms else 1.0


@each_row
def triplet(a, p, n, margin=1.0):
    return max(math.dist(a, p) - math.dist(a, n) + margin, 0.0)
