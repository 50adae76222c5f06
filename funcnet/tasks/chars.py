"""chars: a text, and a transformer that predicts its next character.

Without a text of yours it learns Python's reference manual, which CPython has in pydoc_data/topics.py.
"""

import ast
import contextlib
import dataclasses
import importlib.resources
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from funcnet import train
from funcnet.errors import FileFormatError, StructureError, ValueRangeError, describe
from funcnet.nets import transformer
from funcnet.nets.generate import generate as next_tokens
from funcnet.ops.loss import cross_entropy
from funcnet.tasks import _training
from funcnet.tasks._optimizer import share
from funcnet.tasks._task import (
    SEEDS,
    STEPS,
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

NET = transformer
LAST = "blocks.out"  # the tapped value that its head is applied to
MANUAL = "pydoc_data/topics.py"
LONGEST = 2**20  # characters that a model goes on for; its memory does not depend on it
MEASURED = 2**16  # characters of the held-out text, at most, that an evaluation reads
MINUTES = 3.0  # of the training, where nothing else ends it
SAMPLE = 400  # characters that a trained model is shown to write


@dataclasses.dataclass(frozen=True)
class Options:
    """What can be chosen.

    Attributes:
        text: a file of UTF-8 text; by default Python's reference manual (pydoc_data/topics.py).
        steps: take so many steps; by default the clock ends the training, and the learning rate follows it.
            Only with this a run can be repeated exactly.
        batch: pieces of text in a step.
        context: characters in a piece, and the past that each layer sees.
        learning_rate: at its highest: it rises over the first steps and falls to a tenth.
        weight_decay: of matrices and tables, in units of the learning rate.
        seed: of the first parameters and the order of the pieces.
    """

    text: Path | None = None
    steps: int | None = None
    batch: int = 8
    context: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        check_range(
            self,
            steps=STEPS,
            batch=(1, math.inf),
            context=(2, 8192),
            learning_rate=(0, 1),
            weight_decay=(0, math.inf),
            seed=SEEDS,
        )


_DEFAULT = Training()


class Batch(NamedTuple):
    """ids [n, t + 1]: pieces of t characters and what follows them; rate: share of the learning rate."""

    ids: Int[np.ndarray, "n t_and_1"]
    rate: float


def read(path: Path | None) -> str:
    """The text of a file, or Python's reference manual.

    Raises:
        FileFormatError: it is not UTF-8 text, or the manual is not what it was in Python 3.11 to 3.13.
        OSError: it cannot be read.
    """
    if path is None:
        return _manual()
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path}: this is no UTF-8 text: {error}.", path=str(path)) from error


def _manual() -> str:
    """The topics of Python's `help()`, in alphabetical order; a paragraph that comes again is left out.

    Long topics contain short ones. Were they kept, much of the validation text would have been trained on.
    """
    try:
        source = (importlib.resources.files("pydoc_data") / "topics.py").read_text(encoding="utf-8")
    except (ImportError, OSError) as error:
        raise FileNotFoundError(f"this Python has no {MANUAL}; name a text: --text FILE") from error
    topics = _dict_of_texts(source, "topics")
    paragraphs = "\n\n".join(topics[name].strip("\n") for name in sorted(topics)).split("\n\n")
    return "\n\n".join(dict.fromkeys(paragraphs))


def _dict_of_texts(source: str, name: str) -> dict[str, str]:
    """The dict of strings that is assigned to `name` in Python code; the code is not run."""
    with contextlib.suppress(SyntaxError, ValueError, TypeError):
        for statement in ast.parse(source).body:
            match statement:
                case ast.Assign(targets=[ast.Name(target)], value=ast.Dict() as value) if target == name:
                    texts = ast.literal_eval(value)
                    if all(isinstance(text, str) for pair in texts.items() for text in pair):
                        return texts
    raise FileFormatError(f"{MANUAL} holds no dict of texts; name a text: --text FILE", path=MANUAL)


def encode(text: str, characters: str) -> Int[np.ndarray, " n"]:
    """The place of each character of `text` in `characters`.

    Raises:
        ValueRangeError: a character is not among them.
    """
    places = {character: i for i, character in enumerate(characters)}
    if unknown := sorted(set(text) - places.keys()):
        raise ValueRangeError(
            f"the text has characters that the model has not seen: {''.join(unknown[:20])!r}.",
            path="text",
            expected=f"the {len(characters)} characters of its training text",
        )
    return np.array([places[character] for character in text], np.int32)


def decode(ids: Iterable[int], characters: str) -> str:
    """The text whose places in `characters` are `ids`."""
    return "".join(characters[i] for i in ids)


def config(options: Options) -> transformer.Config:
    """Four blocks of width 128, as in Llama.

    Every layer sees the last `options.context` characters, so that a text can go on for as long as one likes.
    """
    return transformer.Config(
        vocabulary=len(set(read(options.text))),
        context=LONGEST,
        layers=4,
        heads=4,
        d=128,
        d_hidden=344,
        norm="rms",
        mlp="swiglu",
        positions="rope",
        bias=False,
        windows=(options.context,),
    )


def example(config: transformer.Config) -> Int[np.ndarray, "1 t"]:
    """One piece of text."""
    return np.zeros((1, _piece(config)), np.int32)


def schedule(step: int, done: float, training: Training = _DEFAULT) -> float:
    """Share of the highest learning rate: up over 100 steps, and down to a tenth along a cosine.

    Args:
        step: how many steps came before.
        done: the share of the training that is over, 0 to 1.
        training: says otherwise, if it does.
    """
    warmup = 100 if training.warmup is None else training.warmup
    return min((step + 1) / max(1, warmup), 1.0) * float(share(training.schedule, done, 0.1))


def prepare(options: Options, training: Training = _DEFAULT) -> Task:
    """The data, the loss, the optimizer with its clock, and the score on the last tenth of the text.

    Of a long text, the score is that of pieces spread over the last tenth: an evaluation takes seconds.
    """
    training.check_batch(options.batch)
    text = read(options.text)
    characters = "".join(sorted(set(text)))
    net = config(options)
    if training.dtype != "float32":
        net = dataclasses.replace(net, dtype=training.dtype)
    ids = encode(text, characters)
    train_ids, held_out = np.split(ids, [len(ids) - len(ids) // 10])
    t = options.context
    if len(held_out) <= t:
        raise ValueRangeError(
            f"the text has {len(text)} characters.",
            path="text",
            expected=f"more than {10 * t + 9}, so that its last tenth fills a context of {t}",
            actual=str(len(text)),
        )
    windows = held_out[: (len(held_out) - 1) // t * t + 1]
    windows = np.lib.stride_tricks.sliding_window_view(windows, t + 1)[::t]
    pieces, called = len(windows), "validation"
    if pieces * t > MEASURED:
        windows = windows[spread(pieces, MEASURED // t)]
        called += f" (on {len(windows):,} of {pieces:,} pieces)"

    def loss(params: Any, ids: Any, key: Any) -> Any:
        del key
        measured = score(params, ids)
        return measured["loss"].mean(), {"accuracy": measured["accuracy"].mean()}

    def score(params: Any, ids: Any) -> Any:
        ids = jnp.asarray(ids)
        logits, labels = transformer.apply(params, ids[:, :-1], net), ids[:, 1:]
        return {"loss": cross_entropy.apply(logits, labels), "accuracy": correct(logits, labels)}

    minutes = training.minutes or (None if options.steps else MINUTES)

    def batches() -> Any:
        pieces = train.batches(
            np.arange(len(train_ids) - t),
            options.batch,
            seed=options.seed,
            transform=lambda start, _: train_ids[start[:, None] + np.arange(t + 1)],
        )

        def rated(ids: np.ndarray, number: int) -> Batch:
            done = number / options.steps if options.steps else timed.done
            return Batch(ids, schedule(number, done, training))

        rates = train.mapped(pieces, rated)
        timed = _training.Timed(rates, minutes, time.monotonic)
        return timed

    # The rate is set before each step.
    chosen = _training.optimizer(training, 0.0, transformer.specs(net), options.weight_decay)
    inner = _training.make_step(loss, chosen, training)

    def step(state: train.State, batch: Batch) -> Any:
        rate = jnp.float32(options.learning_rate * batch.rate)
        hyperparams = state.opt_state.hyperparams | {"learning_rate": rate}
        opt_state = state.opt_state._replace(hyperparams=hyperparams)
        return inner(state._replace(opt_state=opt_state), batch.ids)

    vars(step)["loss"] = lambda params, batch, key: loss(params, batch.ids, key)
    vars(step)["max_skipped"] = inner.max_skipped

    def taken(ids: np.ndarray, starts: np.ndarray) -> Examples:
        windows = ids[starts[:, None] + np.arange(t + 1)]
        return Examples(windows[:, :-1], windows[:, 1:], starts)

    def finish(params: Any, folder: Path) -> None:
        prompt = decode(held_out[:t].tolist(), characters)
        more = generate(Saved("chars", net, params, facts), prompt, tokens=SAMPLE, temperature=0.8)
        (folder / "sample.txt").write_text(prompt + more, encoding="utf-8")

    facts = {
        "source": MANUAL if options.text is None else str(options.text),
        "train": len(train_ids),
        "validation": len(held_out),
        "measured": len(windows) * t,
        "characters": characters,
        "sha256": fingerprint(np.frombuffer(text.encode(), np.uint8)),
    }
    return Task(
        config=net,
        optimizer=chosen,
        step=step,
        batches=batches,
        steps=options.steps,
        evaluate=lambda state: train.evaluate(score, _training.weights(state), train.in_order(windows, 64)),
        every=200,
        held_out=called,
        unit="character",
        data=facts,
        examples=lambda n: (
            taken(train_ids, spread(len(train_ids) - t, n)),
            taken(held_out, t * spread(pieces, MEASURED // t)),
        ),
        tokens=options.batch * t,
        finish=finish,
    )


def generate(
    saved: Saved,
    prompt: str,
    *,
    tokens: int,
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stream: Callable[[str], None] | None = None,
) -> str:
    """The characters with which the model goes on after a text.

    Args:
        saved: the model.
        prompt: the text, of which the model sees the end.
        tokens: how many characters to add.
        temperature: what the logits are divided by; 0 takes the most probable character.
        top_k: draw among the so many most probable ones only.
        top_p: draw among the fewest most probable ones whose probabilities add up to this.
        seed: of the draws.
        stream: called with the next characters as soon as they are known, a few at a time.

    Raises:
        ValueRangeError: the text is empty, or has characters that the model has not seen; or an option makes
            no sense.
        StructureError: config.json does not hold the characters of the model.
    """
    if not SEEDS[0] <= seed <= SEEDS[1]:
        raise ValueRangeError(f"seed is {seed}.", path="seed", expected=f"{SEEDS[0]} to {SEEDS[1]}")
    characters = _characters(saved)
    ids = encode(prompt, characters)
    if not len(ids):
        raise ValueRangeError("the prompt is empty.", path="prompt", expected="1 character or more")
    further = next_tokens(
        saved.params,
        ids[-_piece(saved.config) :],
        saved.config,
        max_new_tokens=tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        key=jax.random.key(seed),
        stream=None if stream is None else lambda _, ids: stream(decode(ids, characters)),
    )
    return decode(further.tolist(), characters)


def predict(saved: Saved, path: Path) -> Prediction:
    """How well the model predicts a text, in nats per character, and how it would go on.

    Raises:
        ValueRangeError: the text has fewer than 2 characters, or some that the model has not seen.
        FileFormatError, OSError: from `read`.
    """
    characters, text = _characters(saved), read(path)
    ids = encode(text, characters)
    if len(ids) < 2:
        raise ValueRangeError(
            f"{path}: there is nothing to predict.",
            path=str(path),
            expected="2 characters or more",
            actual=str(len(ids)),
        )
    return Prediction(
        columns=("characters", "nats per character"),
        rows=[(str(len(ids)), f"{mean_loss(saved.params, ids, saved.config):.4f}")],
        text=generate(saved, text, tokens=400, temperature=0.8),
    )


def _characters(saved: Saved) -> str:
    """The characters of the model, in the order of their ids."""
    characters = saved.data.get("characters")
    if not isinstance(characters, str) or len(characters) != saved.config.vocabulary:
        raise StructureError(
            "config.json does not hold the characters of the model.",
            path="data.characters",
            expected=f"a string of {saved.config.vocabulary}",
            actual=describe(characters),
        )
    return characters


def _piece(config: transformer.Config) -> int:
    """Characters in a piece of text: what the attention of a layer sees."""
    return config.windows[0] or config.context


def mean_loss(params: Any, ids: Int[np.ndarray, " n"], config: transformer.Config) -> float:
    """Mean loss of every character but the first, in nats; each piece of the text sees its own past only."""
    t = _piece(config)

    @jax.jit
    def losses(params: Any, ids: Any) -> Any:
        return cross_entropy.apply(transformer.apply(params, ids[:, :-1], config), ids[:, 1:]).sum(-1)

    whole = (len(ids) - 1) // t
    total = 0.0
    if whole:
        pieces = np.lib.stride_tricks.sliding_window_view(ids[: whole * t + 1], t + 1)[::t]
        total += sum(float(losses(params, part).sum()) for part in train.in_order(pieces, 64))
    if whole * t < len(ids) - 1:
        total += float(losses(params, ids[None, whole * t :]).sum())
    return total / (len(ids) - 1)
