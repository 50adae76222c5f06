"""A linear autoencoder of 10 hidden units, trained on digits, ends where the principal components are.

Baldi and Hornik (1989): the loss has no other minima. The encoder and the decoder may be any that span the
components; what is unique, and compared here, is the loss and the span.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import funcnet as fn

K, STEPS = 10, 1000


def init(key, d, k):
    down, up = jax.random.split(key)
    return {"down": fn.linear.init(down, d, k, bias=False), "up": fn.linear.init(up, k, d, bias=False)}


def apply(params, x):
    return fn.linear.apply(params["up"], fn.linear.apply(params["down"], x))


def loss(params, x):
    return ((x - apply(params, x)) ** 2).sum(-1).mean()


def main() -> tuple[float, float, float]:
    digits: Any = load_digits()
    x = jnp.asarray(digits.data / 16, jnp.float32)
    x = x - x.mean(0)  # with biases it learns to do so, slowly
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-2, STEPS))
    state = fn.train.init(init(jax.random.key(0), x.shape[1], K), optimizer, key=jax.random.key(1))
    step = fn.train.make_step(loss, optimizer)
    for _ in range(STEPS):
        state, _ = step(state, x)
    ended = float(loss(state.params, x))
    best = float(fn.pca.left_out(x, K)) * (len(x) - 1) / len(x)
    span = jnp.linalg.qr(state.params["up"]["w"].T)[0]
    cosine = float(jnp.linalg.svd(fn.pca.fit(x, K).components @ span, compute_uv=False)[-1])
    print(f"loss of the autoencoder {ended:.5f}, of the principal components {best:.5f}")
    print(f"smallest cosine between the two spans {cosine:.6f}")
    return ended, best, cosine


if __name__ == "__main__":
    main()
