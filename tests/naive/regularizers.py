import jax
import jax.numpy as jnp
import numpy as np


def masked(x, rate, key, shape, place):
    if key is None:
        return np.array(x)
    mask = np.asarray(jax.random.bernoulli(key, jnp.float32(1 - rate), shape))
    y = np.zeros(x.shape)
    for n in np.ndindex(*x.shape):
        if place(n) is not None and mask[place(n)]:
            y[n] = x[n] / (1 - rate)
    return y


def drop_path(x, rate, key=None):
    one = (1,) * (x.ndim - 1)
    return masked(x, rate, key, x.shape[:1] + one, lambda n: (n[0], *[0] * (x.ndim - 1)))


def spatial_dropout(x, rate, key=None, spatial=None):
    batch = 1 if spatial is None else x.ndim - 1 - spatial
    shared = range(batch, x.ndim - 1)
    shape = [1 if axis in shared else size for axis, size in enumerate(x.shape)]
    return masked(x, rate, key, shape, lambda n: tuple(0 if a in shared else v for a, v in enumerate(n)))


def embedding_dropout(x, ids, vocabulary, rate, key=None):
    known = lambda i: i if 0 <= i < vocabulary else None
    return masked(x, rate, key, (vocabulary,), lambda n: known(int(ids[n[:-1]])))
