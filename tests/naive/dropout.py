import jax
import jax.numpy as jnp
import numpy as np


def dropout(x, rate, key=None):
    if key is None:
        return np.array(x)
    mask = np.asarray(jax.random.bernoulli(key, jnp.float32(1 - rate), x.shape))
    y = np.zeros(x.shape)
    for n in np.ndindex(*x.shape):
        if mask[n]:
            y[n] = x[n] / (1 - rate)
    return y
