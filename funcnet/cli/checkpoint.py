"""`funcnet checkpoint FOLDER`: what a checkpoint holds, every byte of it checked; or one file made of it."""

import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import tyro

from funcnet._numbers import of_bytes
from funcnet.cli import UsageError
from funcnet.cli._options import files, parse
from funcnet.cli._text import heading, table

if TYPE_CHECKING:
    from funcnet.train._pieces import Index

__all__ = ["run"]


class Asked(NamedTuple):
    """What is asked for."""

    folder: Path
    to: Path | None
    step: int | None
    of: str


def _options(
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")],
    to: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    step: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    of: Annotated[str, tyro.conf.arg(metavar="PATH")] = "params",
) -> Asked:
    """Say what a checkpoint holds, every byte of it checked, or make one safetensors file of its parameters.

    The file holds the tensors under their names, each whole, however many devices and processes wrote it:
    `fn.load` gives the tree, other readers of safetensors the tensors. It takes memory for the largest of
    them.

    Args:
        folder: a checkpoint (step-300), a folder of them, or a run folder; of several the newest is taken.
        to: the file to write, .safetensors, which must not be there yet.
        step: the checkpoint of this step.
        of: which part of the state is written: params, average, model_state, params.blocks ..., or all.
    """
    return Asked(folder, to, step, of)


def run(args: list[str]) -> int:
    """The command."""
    asked = parse(_options, args, "funcnet checkpoint")
    files(asked.to, suffixes=(".safetensors",), command="funcnet checkpoint")
    if asked.to is not None and os.path.lexists(asked.to):
        raise UsageError(f"{asked.to} is there already: name a new file")
    from funcnet.train import _pieces, _plain

    folder, step = _found(asked.folder, asked.step)
    index = _pieces.read_index(str(folder), step)
    if asked.to is None:
        _pieces.check(str(folder), index.leaves, index.pieces)
        _say(folder, index)
        return 0
    path = "~" if asked.of == "all" else asked.of
    leaves = _plain.under(index, path)
    if not leaves:
        there = dict.fromkeys(name.partition(".")[0] for name in index.leaves)
        raise UsageError(f"{folder} has nothing at {asked.of!r}: there are {', '.join(there)}, all")
    _plain.write(str(folder), index, path, str(asked.to))
    size = of_bytes(asked.to.stat().st_size)
    print(f"{asked.to}: {len(leaves)} tensors, {size}, {asked.of} after step {step}")
    return 0


def _found(folder: Path, step: int | None) -> tuple[Path, int]:
    """The checkpoint that is asked for, and its step."""
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder: give a checkpoint, a folder of them, or a run folder")
    from funcnet.train import Checkpoints

    resolved = folder.resolve()
    if match := re.fullmatch(r"step-(0|[1-9][0-9]*)", resolved.name):
        folder, step = resolved.parent, int(match[1]) if step is None else step
    elif (folder / "checkpoints").is_dir():
        folder = folder / "checkpoints"
    steps = Checkpoints(folder).steps()
    if step is None and not steps:
        raise UsageError(f"{folder} holds no checkpoint")
    step = max(steps) if step is None else step
    if not (folder / f"step-{step}").is_dir():
        raise UsageError(
            f"{folder} has no checkpoint of step {step}: there are {', '.join(map(str, steps)) or 'none'}"
        )
    return folder / f"step-{step}", step


def _say(folder: Path, index: "Index") -> None:
    heading(f"{folder}: after step {index.step}, every byte is right")
    parts: dict[str, list[int]] = {}
    for name, leaf in index.leaves.items():
        size = math.prod(leaf.array.shape) * leaf.array.dtype.itemsize
        parts.setdefault(name.partition(".")[0], []).append(size)
    rows = [[name, str(len(sizes)), of_bytes(sum(sizes))] for name, sizes in parts.items()]
    table(["part", "leaves", "size"], rows, ["leaves", "size"])
    boxes = sum(len(piece.tensors) for piece in index.pieces)
    written = " ".join(f"{name} {version}" for name, version in index.versions.items())
    print(f"{len(index.pieces)} pieces of {boxes} tensors; written by {written}")
