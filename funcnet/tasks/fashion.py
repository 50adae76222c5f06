"""fashion: Fashion-MNIST, 70,000 grey pictures of clothes, 28 x 28 pixels, and a convolutional network.

Source: H. Xiao, K. Rasul and R. Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine
Learning Algorithms", 2017. Debian's package dataset-fashion-mnist installs its files.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8

from funcnet import train
from funcnet.errors import FileFormatError
from funcnet.nets import convnet
from funcnet.ops.loss import cross_entropy
from funcnet.tasks import _idx, _images, _plots, _training
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
CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
DEBIAN = Path("/usr/share/datasets/fashion-mnist")


@dataclasses.dataclass(frozen=True)
class Options:
    """What can be chosen.

    Attributes:
        data: folder of the four files (train-images-idx3-ubyte.gz and so on); by default where Debian's
            package dataset-fashion-mnist puts them.
        epochs: times through the 60,000 training images.
        batch: images in a step.
        learning_rate: at its highest: it rises over the first steps and then falls to 0.
        weight_decay: of kernels and matrices, in units of the learning rate.
        seed: of the first parameters, the order of the images and dropout.
    """

    data: Path = DEBIAN
    epochs: int = 5
    batch: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        check_range(
            self,
            epochs=EPOCHS,
            batch=(1, math.inf),
            learning_rate=(0, 1),
            weight_decay=(0, math.inf),
            seed=SEEDS,
        )


_DEFAULT = Training()


class Split(NamedTuple):
    """images from 0 to 255, labels 0 to 9."""

    images: UInt8[np.ndarray, "n 28 28"]
    labels: Int[np.ndarray, " n"]


def data(folder: Path) -> tuple[Split, Split]:
    """The training and the test images.

    Raises:
        FileNotFoundError: a file is not there.
        FileFormatError: a file is damaged, or the files do not fit together.
    """
    return _split(folder, "train"), _split(folder, "t10k")


def _split(folder: Path, name: str) -> Split:
    paths = folder / f"{name}-images-idx3-ubyte.gz", folder / f"{name}-labels-idx1-ubyte.gz"
    for path in paths:
        if not path.is_file():
            hint = "install Debian's package dataset-fashion-mnist, or name their folder: --data DIR"
            raise FileNotFoundError(f"{path} is not there; for the files of Fashion-MNIST, {hint}")
    images, labels = _idx.read(paths[0], (None, 28, 28)), _idx.read(paths[1], (None,))
    if len(images) != len(labels) or labels.max() > 9:
        raise FileFormatError(
            f"{paths[1]}: the labels do not fit the images.",
            path=str(paths[1]),
            expected=f"{len(images)} labels, 0 to 9",
            actual=f"{len(labels)} labels, {labels.min()} to {labels.max()}",
        )
    return Split(images, labels.astype(np.int32))


def config(options: Options) -> convnet.Config:
    """Two stages of one convolution each, then 128 features."""
    del options
    return convnet.Config(image=(28, 28, 1), channels=(32, 64), hidden=128, dropout=0.3)


def example(config: convnet.Config) -> Float[np.ndarray, "1 h w c"]:
    """One image."""
    return np.zeros((1, *config.image), np.float32)


def prepare(options: Options, training: Training = _DEFAULT) -> Task:
    """The data, the loss with dropout, the optimizer, and the score on the test images."""
    training.check_batch(options.batch)
    train_set, test_set = data(options.data)
    check_range(options, batch=(1, len(train_set.labels)))
    net, cast = config(options), _training.cast(training)

    def scaled(images: Any) -> Any:  # on the device: bytes travel faster than floats
        return jnp.asarray(images, jnp.float32)[..., None] / 255

    def loss(params: Any, batch: Split, key: Any) -> Any:
        images, labels = scaled(batch.images), jnp.asarray(batch.labels)
        logits = convnet.apply(cast(params), cast(images), net, key=key)
        right = correct(logits, labels)
        return cross_entropy.apply(logits, labels).mean(), {"accuracy": right.mean()}

    def score(params: Any, batch: Split) -> Any:
        images, labels = scaled(batch.images), jnp.asarray(batch.labels)
        logits = convnet.apply(cast(params), cast(images), net)
        return {"loss": cross_entropy.apply(logits, labels), "accuracy": correct(logits, labels)}

    def taken(split: Split, which: Any) -> Examples:
        images = split.images[which].astype(np.float32)[..., None] / 255
        return Examples(images, split.labels[which], which)

    def finish(params: Any, folder: Path) -> None:
        images = test_set.images.astype(np.float32) / 255
        guess = _images.classify(params, images[..., None], net).argmax(-1)
        _plots.mistakes(folder / "mistakes.png", images, test_set.labels, guess, CLASSES)

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
        evaluate=lambda state: train.evaluate(score, _training.weights(state), train.in_order(test_set, 500)),
        every=steps_in_epoch,
        held_out="test",
        unit="image",
        data={
            "source": str(options.data),
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
    """The clothes in a .npy file (28 x 28; whole numbers 0 to 255, or floats 0 to 1) or in a grey .png."""
    return _images.predict(saved, path, CLASSES, maximum=255)
