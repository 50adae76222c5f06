"""speech: recordings of one's own, and a convolutional recurrent network that says what they are.

In folders, `--data DIR` with DIR/CLASS/NAME.wav, it tells the classes apart. With transcripts.tsv in DIR, or
such a list itself, a line `path<tab>what is said` for each recording, it writes down what is said, letter by
letter, by connectionist temporal classification.
"""

import dataclasses
import functools
import math
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from funcnet import recordings, train
from funcnet.errors import StructureError, ValueRangeError
from funcnet.mean import Mean, quotient
from funcnet.nets import crnn
from funcnet.ops.loss import cross_entropy, ctc
from funcnet.tasks import _plots, _recorded, _sounds, _training
from funcnet.tasks._recorded import Batch, Decoded, Found
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
MEASURED = 2000  # held-out recordings, at most, that an evaluation listens to
_SCORED = 50  # of them in a batch


@dataclasses.dataclass(frozen=True)
class Options:
    """What can be chosen.

    Attributes:
        data: folder of folders with recordings, one for each class; or a list of recordings and what is said
            in them, or the folder of such a list, transcripts.tsv.
        test: the same, to score on; by default a share of the data is held out.
        held_out: that share, of each class.
        epochs: times through the training recordings.
        batch: recordings in a step.
        learning_rate: at its highest: it rises over the first steps and then falls to 0.
        weight_decay: of kernels and matrices, in units of the learning rate.
        seconds: recordings that are longer are left out.
        noise: every other recording gets noise, of this signal-to-noise ratio, in dB, or up to 30 more; None:
            none does.
        speed: each is played faster or slower by up to this share.
        shift: each begins later by up to so many seconds.
        mask: two stripes of bands and of frames, up to so many wide, are hidden in each (SpecAugment).
        workers: threads that read and decode.
        seed: of the first parameters, the order of the recordings, what is made of them, and dropout. What is
            held out follows from the files' names alone.
    """

    data: Path | None = None
    test: Path | None = None
    held_out: float = 0.2
    epochs: int = 30
    batch: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    seconds: float = 20.0
    noise: float | None = 10.0
    speed: float = 0.1
    shift: float = 0.1
    mask: int = 8
    workers: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        check_range(
            self,
            held_out=(0.01, 0.9),
            epochs=EPOCHS,
            batch=(1, math.inf),
            learning_rate=(0, 1),
            weight_decay=(0, math.inf),
            seconds=(0.05, 600),
            noise=(-30, 100),
            speed=(0, 0.5),
            shift=(0, 10),
            mask=(0, _sounds.BANDS),
            workers=(1, 256),
            seed=SEEDS,
        )


_DEFAULT = Training()


def find(options: Options) -> tuple[Found, Found]:
    """The recordings to train on, and those to score on.

    Raises:
        ValueRangeError: no data are named; there is one class only, or nothing can be held out; the test has
            a class, or a letter, that is not in the training.
        FileNotFoundError, FileFormatError, MissingExtraError, OSError: from `_recorded.find`.
    """
    if options.data is None:
        raise ValueRangeError(
            "speech learns recordings of your own.", path="data", hint="name their folder: --data DIR"
        )
    listen = functools.partial(_recorded.find, longest=options.seconds, workers=options.workers)
    found = listen(options.data)
    if options.test is None:
        trained, held = (found.of(which) for which in _recorded.halves(found, options.held_out))
        if not held.names:
            raise ValueRangeError(
                f"{options.data} holds too few recordings.",
                path="data",
                expected="2 or more, one is held out",
            )
    else:
        trained, held = found, listen(options.test)
        if held.spoken != trained.spoken:
            raise ValueRangeError(
                f"one of {options.data} and {options.test} has transcripts, the other has not.", path="test"
            )
    known = set(found.answers)
    if not found.spoken and len(known) < 2:
        raise ValueRangeError(
            f"{options.data} holds recordings of one class only, {found.texts[0]!r}.",
            path="data",
            expected="two folders with recordings or more",
        )
    if not known:
        raise ValueRangeError(f"in {options.data} nothing is said.", path="data", expected="transcripts")
    for name, text in zip(held.names, held.texts, strict=True):
        if unknown := set(text if found.spoken else [text]) - known:
            raise ValueRangeError(
                f"{name} has {'letters' if found.spoken else 'a class'} that no recording of {options.data} "
                f"has: {', '.join(map(repr, sorted(unknown)))}.",
                path="test",
                expected=", ".join(map(repr, sorted(known)))[:400],
            )
    return trained, held._replace(answers=found.answers)


def _labels(found: Found) -> tuple[Int[np.ndarray, "n ..."], Int[np.ndarray, " n"]]:
    """Classes [n]; or letters [n, l], from 1 on since 0 is the blank, and how many of them."""
    number = {answer: i for i, answer in enumerate(found.answers)}
    if not found.spoken:
        return np.array([number[text] for text in found.texts], np.int32), np.ones(len(found.texts), np.int32)
    lengths = np.array([len(text) for text in found.texts], np.int32)
    letters = np.zeros((len(lengths), max(1, lengths.max())), np.int32)
    for row, text in zip(letters, found.texts, strict=True):
        row[: len(text)] = [number[letter] + 1 for letter in text]
    return letters, lengths


def config(options: Options, found: Found | None = None) -> crnn.Config:
    """Two convolutions, then GRUs of 128 features each way: one for classes, two for transcripts."""
    found = find(options)[0] if found is None else found
    return crnn.Config(
        d=_sounds.BANDS,
        classes=len(found.answers) + found.spoken,
        channels=(16, 32),
        pools=((1, 2), (2, 2)),
        hidden=128,
        layers=1 + found.spoken,
        pooled=not found.spoken,
        dropout=0.2,
        padding=_sounds.PADDING,
    )


def example(config: crnn.Config) -> Float[np.ndarray, "1 t bands"]:
    """One recording of a second."""
    return np.ones((1, _sounds.frames(_sounds.RATE), config.d), np.float32)


def prepare(options: Options, training: Training = _DEFAULT) -> Task:
    """The data, the loss on varied recordings with dropout, the optimizer, the score on held-out ones."""
    training.check_batch(options.batch)
    trained, every = find(options)
    if options.batch > len(trained.names):  # the default's fault, more often than not
        raise ValueRangeError(
            f"batch is {options.batch}, and there are {len(trained.names)} recordings to train on.",
            path="batch",
            hint=f"smaller batches: --batch {max(1, len(trained.names) // 4)}, say",
        )
    net, cast = config(options, trained), _training.cast(training)
    held = every.of(spread(len(every.names), MEASURED))

    most = lambda length: (
        np.ceil(length / (1 - options.speed)).astype(int) + math.ceil(options.shift * _sounds.RATE)
    )
    vary = functools.partial(_sounds.varied, speed=options.speed, shift=options.shift, noise=options.noise)
    source = Decoded(trained, *_labels(trained), options.workers, vary, most)
    listened = Decoded(held, *_labels(held), options.workers)

    def logits(params: Any, batch: Batch, key: Any = None) -> Any:
        x = _sounds.spectrograms(jnp.asarray(batch.samples), jnp.asarray(batch.lengths))
        mask = (x != _sounds.PADDING).any(-1)
        if key is not None:
            key_stripes, key = jax.random.split(key)
            x = _sounds.striped(key_stripes, x, bands=options.mask, frames=options.mask)
        return crnn.apply(cast(params), cast(x), net, mask=mask, key=key)

    measure = _measure_text if trained.spoken else _measure_class

    def loss(params: Any, batch: Batch, key: Any) -> Any:
        measured = measure(logits(params, batch, key), batch, net)
        return measured.pop("loss"), measured

    def score(params: Any, batch: Batch) -> Any:
        return measure(logits(params, batch), batch, net)

    compiled = jax.jit(logits)

    texts, names = ([parts[i] for i in listened.order] for parts in (held.texts, held.names))

    def heard(params: Any, guesses: list[str]) -> Iterator[Batch]:
        """The held-out recordings, batch by batch; what they are taken for is added to a list."""
        for batch in listened.in_order(_SCORED):
            guesses += _texts(compiled(params, batch), batch.lengths, held.answers, net)
            yield batch

    def evaluate(state: train.State) -> dict[str, float]:
        params, guesses = _training.weights(state), []
        if not held.spoken:
            return train.evaluate(score, params, listened.in_order(_SCORED))
        found = train.evaluate(score, params, heard(params, guesses))
        wrong = float(quotient(train.character_error_rate(guesses, texts)))
        return found | {"accuracy": 1 - wrong, "character_error_rate": wrong}

    def examples(n: int) -> tuple[Examples, Examples]:
        if trained.spoken:
            raise StructureError(
                "which letter each step of a recording is is not known.",
                path="data",
                expected="recordings in folders, one for each class",
            )
        which = spread(len(trained.names), n)
        return _examples(source, which), _examples(listened, np.arange(len(held.names)))

    def finish(params: Any, folder: Path) -> None:
        guesses: list[str] = []
        for _ in heard(params, guesses):
            pass
        if not held.spoken:
            of = {answer: i for i, answer in enumerate(held.answers)}
            labels, taken = (np.array([of[text] for text in each]) for each in (texts, guesses))
            _plots.confusion(folder / "confusion.png", labels, taken, held.answers)
        _sounds.heard(folder, names, texts, guesses, lambda i: listened.read(int(listened.order[i])))

    steps_in_epoch = len(trained.names) // options.batch
    steps = options.epochs * steps_in_epoch
    rate = _training.by_steps(training, options.learning_rate, steps)
    chosen = _training.optimizer(training, rate, crnn.specs(net), options.weight_decay)
    every_text = [*trained.names, *held.names, *trained.texts, *held.texts]
    digest = fingerprint(
        np.frombuffer("\0".join(every_text).encode(errors="surrogateescape"), np.uint8),
        trained.lengths,
        held.lengths,
    )

    def batches() -> Any:
        shuffled = source.training(
            options.batch, seed=options.seed, epochs=options.epochs, identity={"sha256": digest}
        )
        return _training.Timed(train.prefetch(shuffled, ahead=4), training.minutes, time.monotonic)

    some = "" if len(held.names) == len(every.names) else f" (on {len(held.names):,} of {len(every.names):,})"
    return Task(
        config=net,
        optimizer=chosen,
        step=_training.make_step(loss, chosen, training),
        batches=batches,
        steps=steps,
        evaluate=evaluate,
        every=max(steps_in_epoch, steps // 10),
        held_out="held-out" + some,
        unit="recording",
        data={
            "source": str(options.data),
            "train": len(trained.names),
            "test": len(held.names),
            "answers": list(trained.answers),
            "sha256": digest,
        },
        examples=examples,
        finish=finish,
        notes=_notes(trained, every, options, net),
    )


def _notes(trained: Found, held: Found, options: Options, net: crnn.Config) -> tuple[str, ...]:
    notes = [*trained.notes]
    if options.test is None:
        notes.append(
            f"{len(held.names):,} of {len(held.names) + len(trained.names):,} recordings are held out, one "
            "by one: who speaks in them is heard in the training, too; --test DIR takes recordings of others"
        )
    elif held.notes:
        notes += [f"test: {note}" for note in held.notes]
    if trained.spoken:
        letters, lengths = map(jnp.asarray, _labels(trained))
        steps = jnp.asarray(crnn.steps(_sounds.frames(trained.lengths), net), jnp.int32)
        fits = np.asarray(ctc.feasible(letters, steps, label_lengths=lengths))
        if not fits.all():
            short = _recorded.some([trained.names[i] for i in np.flatnonzero(~fits)])
            notes.append(
                f"{(~fits).sum():,} of {len(fits):,} recordings are too short for what is said in them, "
                f"and do not count: {short}"
            )
    else:
        counts = Counter(trained.texts)
        notes.append(
            ", ".join(f"{answer}: {counts[answer]:,}" for answer in trained.answers[:20])
            + (", ..." if len(counts) > 20 else "")
        )
    return (*notes,)


def _measure_class(logits: Any, batch: Batch, net: crnn.Config) -> dict[str, Mean]:
    del net
    labels, counts = jnp.asarray(batch.labels), jnp.asarray(batch.lengths) > 0
    losses = jnp.where(counts, cross_entropy.apply(logits, labels), 0)
    right = counts & correct(logits, labels)
    return {"loss": Mean(losses.sum(), counts.sum()), "accuracy": Mean(right.sum(), counts.sum())}


def _measure_text(logits: Any, batch: Batch, net: crnn.Config) -> dict[str, Mean]:
    """The loss of those that can be aligned."""
    _, lengths, labels, letters = map(jnp.asarray, batch)
    steps = jnp.where(lengths > 0, crnn.steps(_sounds.frames(lengths), net), 0)
    counts = (lengths > 0) & ctc.feasible(labels, steps, label_lengths=letters)
    losses = ctc.apply(logits, labels, lengths=steps, label_lengths=letters)
    return {"loss": Mean(jnp.where(counts, losses, 0).sum(), counts.sum())}


def _texts(logits: Any, lengths: Any, known: tuple[str, ...] | list[str], net: crnn.Config) -> list[str]:
    """What recordings are taken for: the most probable class, or the letters of the most probable steps."""
    if net.pooled:
        return [known[i] for i in np.asarray(logits).argmax(-1)]
    steps = jnp.asarray(crnn.steps(_sounds.frames(np.asarray(lengths)), net), jnp.int32)
    letters = np.asarray(ctc.greedy(jnp.asarray(logits), lengths=steps)[0])
    return ["".join(known[i - 1] for i in row if i > 0) for row in letters]


def _examples(source: Decoded, which: Int[np.ndarray, " n"]) -> Examples:
    """Spectrograms of recordings as they stand, which end with frames of padding."""
    of = jax.jit(_sounds.spectrograms)
    batches = [source.batch(part) for part in np.array_split(which, -(-len(which) // _SCORED))]
    parts = [np.asarray(of(batch.samples, batch.lengths)) for batch in batches]
    longest = max(part.shape[1] for part in parts)
    padded = [
        np.pad(p, ((0, 0), (0, longest - p.shape[1]), (0, 0)), constant_values=_sounds.PADDING) for p in parts
    ]
    return Examples(np.concatenate(padded), np.concatenate([batch.labels for batch in batches]), which)


def predict(saved: Saved, path: Path) -> Prediction:
    """The class of a recording and the probabilities of all; or what is said in it.

    Raises:
        StructureError: config.json does not hold the classes, or the letters, of the model.
        FileFormatError, MissingExtraError, OSError: the recording cannot be read.
    """
    known = _sounds.answers(saved)
    if saved.config.pooled:
        return _sounds.predict(saved, path, known)
    samples = recordings.read(path, _sounds.RATE)
    x = jax.jit(_sounds.spectrograms)(samples[None], np.array([len(samples)], np.int32))
    logits = jax.jit(lambda params, x: crnn.apply(params, x, saved.config))(saved.params, x)
    (text,) = _texts(logits, [len(samples)], known, saved.config)
    return Prediction(("seconds", "said"), [(f"{len(samples) / _sounds.RATE:.2f}", text)])
