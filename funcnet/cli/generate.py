"""`funcnet generate FOLDER --prompt TEXT`: a language model goes on with a text."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import tyro

from funcnet import tasks
from funcnet.cli import UsageError
from funcnet.cli._options import parse

__all__ = ["run"]


def _options(
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")],
    prompt: str,
    tokens: int = 400,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
) -> tuple[Path, str, dict[str, Any]]:
    """Print a text and how a language model goes on with it, as it is produced.

    Args:
        folder: a run folder, as `funcnet train chars` writes it; or a pretrained model's, with config.json,
            model.safetensors and tokenizer.json, which ends a text by the tokens that are for that.
        prompt: the beginning of the text.
        tokens: how many to add at most; a token of chars is a character.
        temperature: what the logits are divided by; 0 takes the most probable token.
        top_k: draw among the so many most probable tokens only.
        top_p: draw among the fewest most probable tokens whose probabilities add up to this.
        seed: of the draws.
    """
    options = {"tokens": tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    return folder, prompt, options


def run(args: list[str]) -> int:
    """The command."""
    folder, prompt, options = parse(_options, args, "funcnet generate")
    said = False

    def say(text: str) -> None:  # the prompt only once the options are known to be right
        nonlocal said
        print(text if said else prompt + text, end="", flush=True)
        said = True

    _model(folder)(prompt, **options, stream=say)
    print("" if said else prompt)  # where the text ends at once, nothing came
    return 0


def _model(folder: Path) -> Callable[..., str]:
    """The language model in a folder, as a function of a prompt."""
    from funcnet.hub import text
    from funcnet.tasks import _run

    if text.is_model(folder):
        return functools.partial(text.generate, folder)
    saved = _run.read(folder)
    module = getattr(tasks, saved.task)
    if not hasattr(module, "generate"):
        raise UsageError(f"{folder} holds a model of {saved.task}, which is not a language model")
    return functools.partial(module.generate, saved)
