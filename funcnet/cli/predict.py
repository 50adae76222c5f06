"""`funcnet predict RUN FILE`: what a trained model says about a file."""

from pathlib import Path
from typing import Annotated

import tyro

from funcnet import tasks
from funcnet.cli._options import parse
from funcnet.cli._text import heading, table

__all__ = ["run"]


def _options(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")],
) -> tuple[Path, Path]:
    """Apply a trained model to a file: classes of images or recordings, the loss and sequel of a text.

    Args:
        run: a run folder, as `funcnet train` writes it.
        file: digits and fashion: a .npy of images, or a grey .png, of the size of the training images, light
            on dark ground; chars: a UTF-8 text; tones and speech: a recording of any format and rate.
    """
    return run, file


def run(args: list[str]) -> int:
    """The command."""
    folder, file = parse(_options, args, "funcnet predict")
    from funcnet.tasks import _run

    saved = _run.read(folder)
    prediction = getattr(tasks, saved.task).predict(saved, file)
    table(prediction.columns, prediction.rows, right=prediction.columns)
    if prediction.text:
        heading("\nIt would go on like this:")
        print(prediction.text)
    return 0
