"""Train the model on scikit-learn's handwritten digits: python train.py"""

import jax
import model
import numpy as np
import optax
from sklearn.datasets import load_digits

import funcnet as fn


def digits():
    """Images [n, 8, 8, 1] from 0 to 1 and labels [n]: 1,437 to train with, 360 to test with."""
    data = load_digits()
    images = (data.images[..., None] / 16).astype(np.float32)
    labels = data.target.astype(np.int32)
    order = np.random.default_rng(0).permutation(len(images))
    return tuple((images[i], labels[i]) for i in (order[360:], order[:360]))


def main():
    train, test = digits()
    params = model.init(jax.random.key(0))
    report = fn.verify_model(model.loss, params, (train[0][:32], train[1][:32]))
    print(report.verdict)
    report.raise_if_wrong()

    optimizer = optax.adamw(3e-3)
    state = fn.train.init(params, optimizer, key=jax.random.key(1))
    step = fn.train.make_step(model.loss, optimizer)
    for batch in fn.train.batches(train, 64, seed=0, epochs=10):
        state, metrics = step(state, batch)
    guesses = jax.jit(model.apply)(state.params, test[0]).argmax(-1)
    print(f"loss {metrics['loss']:.3f}, test accuracy {np.mean(guesses == test[1]):.1%}")
    fn.save("params.safetensors", state.params)


if __name__ == "__main__":
    main()
