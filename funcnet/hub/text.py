"""Text in, text out: a pretrained decoder and the tokenizer that lies beside it.

The tokenizer is the file tokenizer.json, read by the package `tokenizers` (the extra [hub]).
"""

import contextlib
import os
from collections.abc import Callable
from typing import Any

import jax

from funcnet.errors import FileFormatError, MissingExtraError, ValueRangeError
from funcnet.hub.files import read_json
from funcnet.hub.folder import load
from funcnet.nets import transformer
from funcnet.nets.generate import generate as next_tokens

__all__ = ["generate", "is_model"]


def is_model(folder: str | os.PathLike[str]) -> bool:
    """Whether the folder is one that `hub.load` reads, or would: its config.json has a model_type."""
    with contextlib.suppress(OSError, FileFormatError):
        return "model_type" in read_json(os.path.join(folder, "config.json"))
    return False


def generate(
    folder: str | os.PathLike[str],
    prompt: str,
    *,
    tokens: int,
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stream: Callable[[str], None] | None = None,
) -> str:
    """The text with which a pretrained model goes on, up to a token of config.stop, which is not shown.

    Args:
        folder: of the model, with tokenizer.json.
        prompt: the text before.
        tokens: how many to add at most.
        temperature: what the logits are divided by; 0 takes the most probable token.
        top_k: draw among the so many most probable tokens only.
        top_p: draw among the fewest most probable tokens whose probabilities add up to this.
        seed: of the draws.
        stream: called with the next piece of text as soon as it is known.

    Raises:
        ValueRangeError: the model is no language model, or an option makes no sense.
        ShapeError: the prompt is empty or longer than the context.
        FileFormatError, StructureError, OSError: from `load`, or of tokenizer.json.
        MissingExtraError: the package tokenizers is not installed.
    """
    tokenizer = _tokenizer(os.path.join(folder, "tokenizer.json"))
    params, config = load(folder)
    if not isinstance(config, transformer.Config) or config.head != "next":
        kind = config.files["config.json"]["model_type"]
        raise ValueRangeError(
            f"{os.fspath(folder)} holds a model of {kind} without a head for the next token.",
            path="folder",
            expected="a language model",
        )
    ids = tokenizer.encode(prompt).ids
    text = lambda more: tokenizer.decode([*ids, *(token for token in more if token not in config.stop)])
    known: list[int] = []
    said = len(text(known))

    def say(_: int, more: list[int]) -> None:
        nonlocal said
        known.extend(more)
        so_far = text(known)
        if stream is not None and not so_far.endswith("\ufffd"):  # the rest of a character is to come
            stream(so_far[said:])
            said = len(so_far)

    further = next_tokens(
        params,
        ids,
        config,
        max_new_tokens=tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        stop=config.stop,
        key=jax.random.key(seed),
        stream=None if stream is None else say,
    )
    whole = text(further[further >= 0].tolist())
    if stream is not None and len(whole) > said:
        stream(whole[said:])
    return whole[len(text([])) :]


def _tokenizer(path: str) -> Any:
    if not os.path.exists(path):
        writes = "transformers.AutoTokenizer.from_pretrained(...).save_pretrained(folder)"
        raise FileNotFoundError(f"there is no {path}; {writes} writes it")
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtraError(
            "the package tokenizers is not installed.", path="tokenizers", hint="pip install 'funcnet[hub]'"
        ) from error
    try:
        return Tokenizer.from_file(path)
    except Exception as error:  # of no type of its own
        raise FileFormatError(f"{path}: this is no tokenizer: {error}.", path=path) from error
