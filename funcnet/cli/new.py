"""`funcnet new`: a small project to start from."""

import dataclasses
import shutil
from pathlib import Path
from typing import Annotated

import tyro

from funcnet.cli import UsageError
from funcnet.cli._options import parse
from funcnet.cli._text import heading

__all__ = ["copy", "run"]

FILES = "model.py", "train.py", "test_model.py", "README.md"
_HERE = Path(__file__).parent / "_new"


@dataclasses.dataclass(frozen=True)
class Options:
    """Write a small project: a model with a gradient formula of its own, a script that trains it on real
    digits, tests, and a README.

    Attributes:
        folder: where; it is made, and none of its files is overwritten.
    """  # noqa: D205

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]


def run(args: list[str]) -> int:
    """The command."""
    folder = parse(Options, args, "funcnet new").folder
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file")
    if there := [name for name in FILES if (folder / name).exists()]:
        raise UsageError(f"{folder} has {', '.join(there)} already, which would be overwritten")
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        copy(name, folder)
    heading(f"{folder}: {', '.join(FILES)}")
    print(f"next: cd {folder} && python train.py, then python -m pytest")
    return 0


def copy(name: str, folder: Path) -> Path:
    """One of the files that can be written, into a folder where there is none of that name."""
    to = folder / name
    with (_HERE / name).open("rb") as read, to.open("xb") as written:
        shutil.copyfileobj(read, written)
    return to
