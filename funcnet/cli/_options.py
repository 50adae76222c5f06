"""Options from the command line, by tyro, with errors of one line."""

import contextlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from funcnet.cli import UsageError

__all__ = ["files", "parse", "with_minus"]

R = TypeVar("R")


def files(*paths: Path | None, suffixes: Sequence[str], command: str) -> None:
    """Refuse files that could not be written before any work is done for them.

    Raises:
        UsageError: a name ends otherwise, or there is no such folder.
    """
    for path in filter(None, paths):
        if path.suffix not in suffixes:
            raise UsageError(f"{path} is no {' or '.join(suffixes)} file ({command} --help)")
        if not path.parent.is_dir():
            raise UsageError(f"{path}: there is no folder {path.parent}")


def with_minus(args: list[str], *options: str) -> list[str]:
    """The arguments; what follows some options is their value, though it begins with a minus sign."""
    joined = list[str]()
    for arg in args:
        if (
            joined
            and joined[-1] in options
            and arg.startswith("-")
            and not arg.startswith("--")
            and arg != "-h"
        ):
            joined[-1] += f"={arg}"
        else:
            joined.append(arg)
    return joined


def parse(function: Callable[..., R], args: list[str], command: str, description: str | None = None) -> R:
    """Call `function` with the options in `args`.

    Args:
        function: its parameters are the options; their types, defaults and docstrings make the help.
        args: what follows `command`.
        command: as the user wrote it: ``funcnet train digits``.
        description: above the options in the help; None: the function's docstring.

    Raises:
        UsageError: an option is unknown, or its value of the wrong kind.
        SystemExit: the help was asked for, and is printed.
    """
    out, errors, plain = sys.stdout, io.StringIO(), io.StringIO()
    config: Any = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stderr(errors))
        if "NO_COLOR" in os.environ:  # tyro looks at the terminal only
            stack.enter_context(contextlib.redirect_stdout(plain))
        try:
            return tyro.cli(function, args=args, prog=command, description=description, config=config)
        except SystemExit as stop:
            if stop.code in (0, None):
                out.write(plain.getvalue())
                raise
    raise UsageError(f"{_message(errors.getvalue())} ({command} --help)")


def _message(box: str) -> str:
    """What tyro says in its box above the first rule, without the help of options, and what it suggests."""
    lines = [line[2:].rstrip("│ ") for line in box.splitlines()[1:]]  # below the title
    if lines and _is_rule(lines[0]):  # boxes without UTF-8 have one there
        del lines[0]
    end = next((i for i, line in enumerate(lines) if _is_rule(line)), len(lines))
    text = " ".join(line.strip() for line in lines[:end] if not line.startswith(" " * 8)).rstrip(".")
    suggested = lines[end:] if "Perhaps you meant:" in lines else []
    names = [line.split()[0] for line in suggested if line.startswith("    --")]
    return text[:1].lower() + text[1:] + (f"; perhaps {' or '.join(names)}" if names else "")


def _is_rule(line: str) -> bool:
    return bool(line) and set(line.strip()) <= {"─", "-"}
