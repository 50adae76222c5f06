"""Define, verify, train, save and load a convolutional network on scikit-learn's handwritten digits.

Run: python examples/train_digits.py   (about 15 seconds on 2 cores; needs the extra [cli] for scikit-learn)
"""

import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import funcnet as fn


def init(key):
    k1, k2, k3 = jax.random.split(key, 3)
    return {
        "conv1": fn.conv.init(k1, 1, 16, kernel=(3, 3)),
        "conv2": fn.conv.init(k2, 16, 32, kernel=(3, 3)),
        "head": fn.linear.init(k3, 2 * 2 * 32, 10),
    }


def apply(params, images, key=None):
    x = fn.max_pool.apply(fn.relu.apply(fn.conv.apply(params["conv1"], images)), kernel=(2, 2))
    x = fn.max_pool.apply(fn.relu.apply(fn.conv.apply(params["conv2"], x)), kernel=(2, 2))
    x = fn.dropout.apply(x.reshape(*x.shape[:-3], -1), rate=0.2, key=key)
    return fn.linear.apply(params["head"], x)


def loss(params, batch, key):
    images, labels = batch
    return fn.cross_entropy.apply(apply(params, images, key), labels).mean()


def accuracy(params, data):
    images, labels = data
    return float((jax.jit(apply)(params, images).argmax(-1) == labels).mean())


def main():
    digits: Any = load_digits()
    images = (digits.images[..., None] / 16).astype(np.float32)
    labels = digits.target.astype(np.int32)
    order = np.random.default_rng(0).permutation(len(images))
    train, test = ((images[i], labels[i]) for i in (order[360:], order[:360]))

    params = init(jax.random.key(0))
    report = fn.verify_model(loss, params, (train[0][:32], train[1][:32]), key=jax.random.key(1))
    print(report)
    report.raise_if_wrong()

    optimizer = optax.adamw(3e-3)
    state = fn.train.init(params, optimizer, key=jax.random.key(2))
    step = fn.train.make_step(loss, optimizer)
    for batch in fn.train.batches(train, 64, seed=0, epochs=20):
        state, _ = step(state, batch)
    print(f"test accuracy {accuracy(state.params, test):.1%}")

    with tempfile.TemporaryDirectory() as folder:
        fn.save(Path(folder) / "digits.safetensors", state.params)
        loaded = fn.load(Path(folder) / "digits.safetensors")
    assert all(map(jnp.array_equal, jax.tree.leaves(loaded), jax.tree.leaves(state.params)))
    assert accuracy(loaded, test) > 0.95


if __name__ == "__main__":
    main()
