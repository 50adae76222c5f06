"""digits: scikit-learn's 1,797 handwritten digits, 8 x 8 pixels, and a convolutional network.

The digits were written by 43 people and are real: E. Alpaydin and C. Kaynak, "Optical Recognition of
Handwritten Digits", UCI Machine Learning Repository, 1998 (its test set).
"""

import dataclasses
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from funcnet import train
from funcnet.nets import convnet
from funcnet.ops.loss import cross_entropy
from funcnet.tasks import _images, _plots, _training
from funcnet.tasks._task import (
    EPOCHS,
    SEEDS,
    Examples,
    Prediction,
    Saved,
    Task,
    check_range,
    correct,
    fingerprint,
    spread,
)
from funcnet.tasks._training import Training

NET = convnet
LAST = "hidden"  # the tapped value that its head is applied to
CLASSES = tuple("0123456789")


@dataclasses.dataclass(frozen=True)
class Options:
    """What can be chosen.

    Attributes:
        epochs: times through the 1,437 training images.
        batch: images in a step.
        learning_rate: at its highest: it rises over the first steps and then falls to 0.
        weight_decay: of kernels and matrices, in units of the learning rate.
        seed: of the first parameters, the order of the images, their shifts and dropout. The 360 test images
            are the same for every seed.
    """

    epochs: int = 40
    batch: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        check_range(
            self,
            epochs=EPOCHS,
            batch=(1, 1437),
            learning_rate=(0, 1),
            weight_decay=(0, math.inf),
            seed=SEEDS,
        )


_DEFAULT = Training()


class Split(NamedTuple):
    """images in [0, 1], labels 0 to 9."""

    images: Float[np.ndarray, "n 8 8 1"]
    labels: Int[np.ndarray, " n"]


def data() -> tuple[Split, Split]:
    """1,437 images for training and 360 for the test, always the same."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits: Any = load_digits()
    images, labels = (digits.images[..., None] / 16).astype(np.float32), digits.target.astype(np.int32)
    parts: Any = train_test_split(images, labels, test_size=0.2, random_state=0)
    x_train, x_test, y_train, y_test = parts
    return Split(x_train, y_train), Split(x_test, y_test)


def config(options: Options) -> convnet.Config:
    """Two stages of two convolutions each, then 128 features."""
    del options
    return convnet.Config(image=(8, 8, 1), channels=(32, 64), depth=2, hidden=128, dropout=0.3)


def example(config: convnet.Config) -> Float[np.ndarray, "1 h w c"]:
    """One image."""
    return np.zeros((1, *config.image), np.float32)


def prepare(options: Options, training: Training = _DEFAULT) -> Task:
    """The data, the loss on shifted images with dropout, the optimizer, and the score on the test images."""
    training.check_batch(options.batch)
    train_set, test_set = data()
    net, cast = config(options), _training.cast(training)

    def loss(params: Any, batch: Split, key: Any) -> Any:
        images, labels = map(jnp.asarray, batch)
        key_shift, key_dropout = jax.random.split(key)
        images = cast(_images.shifted(key_shift, images, by=1))
        logits = convnet.apply(cast(params), images, net, key=key_dropout)
        right = correct(logits, labels)
        return cross_entropy.apply(logits, labels).mean(), {"accuracy": right.mean()}

    def score(params: Any, batch: Split) -> Any:
        images, labels = map(jnp.asarray, batch)
        logits = convnet.apply(cast(params), cast(images), net)
        return {"loss": cross_entropy.apply(logits, labels), "accuracy": correct(logits, labels)}

    def taken(split: Split, which: Any) -> Examples:
        return Examples(split.images[which], split.labels[which], which)

    def finish(params: Any, folder: Path) -> None:
        guess = _images.classify(params, test_set.images, net).argmax(-1)
        _plots.mistakes(folder / "mistakes.png", test_set.images[..., 0], test_set.labels, guess, CLASSES)

    steps_in_epoch = len(train_set.labels) // options.batch
    steps = options.epochs * steps_in_epoch
    rate = _training.by_steps(training, options.learning_rate, steps)
    chosen = _training.optimizer(training, rate, convnet.specs(net), options.weight_decay)
    return Task(
        config=net,
        optimizer=chosen,
        step=_training.make_step(loss, chosen, training),
        batches=lambda: _training.batches(training, train_set, options),
        steps=steps,
        evaluate=lambda state: train.evaluate(score, _training.weights(state), train.in_order(test_set, 360)),
        every=2 * steps_in_epoch,
        held_out="test",
        unit="image",
        data={
            "source": "sklearn.datasets.load_digits",
            "train": len(train_set.labels),
            "test": len(test_set.labels),
            "sha256": fingerprint(*train_set, *test_set),
        },
        examples=lambda n: (
            taken(train_set, spread(len(train_set.labels), n)),
            taken(test_set, np.arange(len(test_set.labels))),
        ),
        finish=finish,
    )


def predict(saved: Saved, path: Path) -> Prediction:
    """The digits in a .npy file (8 x 8; whole numbers 0 to 16, or floats 0 to 1) or in a grey 8 x 8 .png."""
    return _images.predict(saved, path, CLASSES, maximum=16)
