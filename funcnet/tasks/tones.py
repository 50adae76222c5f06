"""tones: 2,358 recordings of Mandarin syllables, and a convolutional recurrent network that hears their tone.

The recordings are those of Debian's package gcin-voice: 1,200 syllables by one speaker (files named 3.ogg,
by Edward Der-Hua Liu, GPL-3 or LGPL-3) and 1,158 by another (5.ogg, by Chu Lo and ChionMeilin, CC-BY-3). A
folder is a syllable in bopomofo and its tone: nothing, the first; 2, 3, 4; 1, the neutral one.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from funcnet import recordings, train
from funcnet.errors import ValueRangeError
from funcnet.nets import crnn
from funcnet.ops.loss import cross_entropy
from funcnet.tasks import _plots, _sounds, _training
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

NET = crnn
LAST = "features"  # the tapped value that its head is applied to
DEBIAN = Path("/usr/share/gcin-voice/ogg")
TONES = {"": "first", "2": "second", "3": "third", "4": "fourth"}
INITIALS = {
    "ㄅ": "b", "ㄆ": "p", "ㄇ": "m", "ㄈ": "f", "ㄉ": "d", "ㄊ": "t", "ㄋ": "n", "ㄌ": "l",
    "ㄍ": "g", "ㄎ": "k", "ㄏ": "h", "ㄐ": "j", "ㄑ": "q", "ㄒ": "x", "ㄓ": "zh", "ㄔ": "ch", "ㄕ": "sh",
    "ㄖ": "r", "ㄗ": "z", "ㄘ": "c", "ㄙ": "s", "ㄧ": "y", "ㄨ": "w",
}  # fmt: skip
CLASSES = {"tone": tuple(TONES.values()), "initial": tuple(INITIALS.values())}
EVERY = 5  # one syllable of so many is held out
NOTES = (
    "two speakers, both of them in training and test: this is no measure of how unknown speakers are heard",
    "recordings: gcin-voice; 3.ogg by Edward Der-Hua Liu, GPL-3 or LGPL-3; 5.ogg by Chu Lo and ChionMeilin, "
    "CC-BY-3",
)


@dataclasses.dataclass(frozen=True)
class Options:
    """What can be chosen.

    Attributes:
        data: folder of the syllables' folders; by default where Debian's package gcin-voice puts them.
        label: what is to be heard: the tone, one of four; or the initial, the first of the letters of the
            syllable, one of the 23 that begin more than 20 syllables.
        epochs: times through the training recordings.
        batch: recordings in a step.
        learning_rate: at its highest: it rises over the first steps and then falls to 0.
        weight_decay: of kernels and matrices, in units of the learning rate.
        seed: of the first parameters, the order of the recordings, what is hidden of them, and dropout. The
            held-out syllables, a fifth, are the same for every seed; they are not trained on in any tone.
    """

    data: Path = DEBIAN
    label: Literal["tone", "initial"] = "tone"
    epochs: int = 15
    batch: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if self.label not in CLASSES:
            raise ValueRangeError(
                f"label is {self.label!r}.", path="label", expected=" or ".join(map(repr, CLASSES))
            )
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
    """Spectrograms, which end with frames of padding, and labels."""

    x: Float[np.ndarray, "n t bands"]
    labels: Int[np.ndarray, " n"]


class Recorded(NamedTuple):
    """Spectrograms, labels, and what a mistake is shown by."""

    split: Split
    names: list[str]
    samples: list[np.ndarray]


def data(options: Options) -> tuple[Recorded, Recorded]:
    """The recordings to train on, and those of held-out syllables.

    Raises:
        FileNotFoundError: there are none in the folder.
        ValueRangeError: they are of too few syllables.
        FileFormatError: a file is damaged.
        MissingExtraError: what reads them is not installed.
    """
    paths = sorted(options.data.glob("*/*.ogg"))
    if not paths:
        hint = "install Debian's package gcin-voice, or name their folder: --data DIR"
        raise FileNotFoundError(f"{options.data} holds no SYLLABLE/SPEAKER.ogg; for the recordings, {hint}")
    known = [
        (path, label) for path in paths if (label := _label(path.parent.name, options.label)) is not None
    ]
    order = {syllable: i for i, syllable in enumerate(sorted({_syllable(path) for path, _ in known}))}
    held = np.array([order[_syllable(path)] % EVERY == 0 for path, _ in known])
    if held.all() or not held.any():
        raise ValueRangeError(
            f"{options.data} holds recordings of {len(order)} syllables.",
            path="data",
            expected=f"{EVERY} or more, so that some can be held out",
        )
    samples = [recordings.read(path, _sounds.RATE) for path, _ in known]
    x, labels = _spectrograms(samples), np.array([label for _, label in known], np.int32)

    def taken(which: np.ndarray) -> Recorded:
        names = [f"{known[i][0].parent.name} by {known[i][0].stem}" for i in which]
        return Recorded(Split(x[which], labels[which]), names, [samples[i] for i in which])

    return taken(np.flatnonzero(~held)), taken(np.flatnonzero(held))


def _syllable(path: Path) -> str:
    """Without its tone."""
    return path.parent.name.rstrip("1234")


def _label(name: str, what: str) -> int | None:
    """The class of a syllable; None: it has none."""
    letters = name.rstrip("1234")
    classes = TONES if what == "tone" else INITIALS
    found = name[len(letters) :] if what == "tone" else letters[:1]
    return {value: i for i, value in enumerate(classes)}.get(found)


def _spectrograms(samples: list[np.ndarray]) -> np.ndarray:
    """All of one length, that of the longest: one program, some recordings at a time."""
    of = jax.jit(_sounds.spectrograms)
    joined = _sounds.joined(samples)
    return np.concatenate([np.asarray(of(*part)) for part in train.in_order(joined, 256)])


def config(options: Options) -> crnn.Config:
    """Two convolutions, then a GRU of 64 features each way, of whose steps the mean is taken."""
    return crnn.Config(
        d=_sounds.BANDS,
        classes=len(CLASSES[options.label]),
        channels=(16, 32),
        pools=((1, 2), (2, 2)),
        hidden=64,
        dropout=0.3,
        padding=_sounds.PADDING,
    )


def example(config: crnn.Config) -> Float[np.ndarray, "1 t bands"]:
    """One recording of a third of a second."""
    return np.ones((1, 33, config.d), np.float32)


def prepare(options: Options, training: Training = _DEFAULT) -> Task:
    """The data, the loss on spectrograms in part hidden, the optimizer, the score on new syllables."""
    training.check_batch(options.batch)
    train_set, test_set = data(options)
    check_range(options, batch=(1, len(train_set.names)))
    net, cast, classes = config(options), _training.cast(training), CLASSES[options.label]

    def loss(params: Any, batch: Split, key: Any) -> Any:
        x, labels = map(jnp.asarray, batch)
        key_stripes, key_dropout = jax.random.split(key)
        mask = (x != _sounds.PADDING).any(-1)
        if options.label == "tone":  # of an initial, which is short, nothing is left
            x = _sounds.striped(key_stripes, x, bands=8, frames=6)
        logits = crnn.apply(cast(params), cast(x), net, mask=mask, key=key_dropout)
        right = correct(logits, labels)
        return cross_entropy.apply(logits, labels).mean(), {"accuracy": right.mean()}

    def score(params: Any, batch: Split) -> Any:
        x, labels = map(jnp.asarray, batch)
        logits = crnn.apply(cast(params), cast(x), net)
        return {"loss": cross_entropy.apply(logits, labels), "accuracy": correct(logits, labels)}

    def taken(split: Split, which: Any) -> Examples:
        return Examples(split.x[which], split.labels[which], which)

    def finish(params: Any, folder: Path) -> None:
        (x, labels), names, samples = test_set
        guess = _sounds.classify(params, x, net).argmax(-1)
        _plots.confusion(folder / "confusion.png", labels, guess, classes)
        texts, guesses = ([classes[i] for i in each] for each in (labels, guess))
        _sounds.heard(folder, names, texts, guesses, samples.__getitem__)

    steps_in_epoch = len(train_set.names) // options.batch
    steps = options.epochs * steps_in_epoch
    rate = _training.by_steps(training, options.learning_rate, steps)
    chosen = _training.optimizer(training, rate, crnn.specs(net), options.weight_decay)
    return Task(
        config=net,
        optimizer=chosen,
        step=_training.make_step(loss, chosen, training),
        batches=lambda: _training.batches(training, train_set.split, options),
        steps=steps,
        evaluate=lambda state: train.evaluate(
            score, _training.weights(state), train.in_order(test_set.split, 500)
        ),
        every=4 * steps_in_epoch,
        held_out="held-out syllables",
        unit="recording",
        data={
            "source": str(options.data),
            "train": len(train_set.names),
            "test": len(test_set.names),
            "answers": list(classes),
            "sha256": fingerprint(*train_set.split, *test_set.split),
        },
        examples=lambda n: (
            taken(train_set.split, spread(len(train_set.names), n)),
            taken(test_set.split, np.arange(len(test_set.names))),
        ),
        finish=finish,
        notes=NOTES,
    )


def predict(saved: Saved, path: Path) -> Prediction:
    """The tone, or the initial, of a recording of one syllable.

    Raises:
        StructureError: config.json does not hold the classes of the model.
        FileFormatError, MissingExtraError, OSError: the recording cannot be read.
    """
    return _sounds.predict(saved, path, _sounds.answers(saved))
