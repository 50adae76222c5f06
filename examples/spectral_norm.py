"""A convnet that moves no image by more than it was moved: every layer divided by its certified norm.

Each step divides every convolution by the upper bound of its norm, and differentiates through the bound. The
network is then 1-Lipschitz, so a margin m between the two best logits proves that no change of the image
smaller than m / √2 (Euclidean) changes the answer.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import funcnet as fn

SIZES = [(1, 16), (16, 16), (16, 32)]


def init(key):
    *keys, last = jax.random.split(key, len(SIZES) + 1)
    convs = [fn.conv.init(k, i, o, kernel=(3, 3)) for k, (i, o) in zip(keys, SIZES, strict=True)]
    return {"convs": convs, "head": fn.linear.init(last, 8 * 8 * 32, 10)}


def apply(params, images):
    x = images
    for layer in params["convs"]:
        layer = fn.spectral_norm(layer, fn.conv.operator, x.shape[-3:], grow=False)
        x = fn.relu.apply(fn.conv.apply(layer, x))
    x = x.reshape(*x.shape[:-3], -1)
    head = fn.spectral_norm(params["head"], fn.linear.operator, x.shape[-1:], grow=False)
    return fn.linear.apply(head, x)


def main():
    digits: Any = load_digits()
    images, labels = jnp.asarray(digits.images[..., None] / 16.0, jnp.float32), jnp.asarray(digits.target)
    train, test = slice(0, 1437), slice(1437, None)

    def loss(params, rows, key):
        del key
        return fn.cross_entropy.apply(20.0 * apply(params, images[rows]), labels[rows]).mean()

    optimizer = optax.adam(3e-3)
    state = fn.train.init(init(jax.random.key(0)), optimizer, key=jax.random.key(1))
    step = fn.train.make_step(loss, optimizer)
    for key in jax.random.split(jax.random.key(2), 200):
        state, _ = step(state, jax.random.choice(key, labels[train].size, (64,)))
    logits = jax.jit(apply)(state.params, images[test])
    right = logits.argmax(-1) == labels[test]
    best = jax.lax.top_k(logits, 2)[0]
    radius = (best[:, 0] - best[:, 1]) / jnp.sqrt(2.0)
    print(f"accuracy {right.mean():.1%}")
    for r in (0.05, 0.1, 0.2):
        print(f"proven right within a distance of {r}: {(right & (radius > r)).mean():.1%}")


if __name__ == "__main__":
    main()
