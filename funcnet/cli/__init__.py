"""The command line: `funcnet COMMAND ...`; one file per command.

Exit codes: 0 done; 1 a check failed (a gradient formula, a probe) or the machine did (a full disk, a closed
pipe); 2 a wrong command, option, path or file; 3 a loss that is not finite; 4 what could not be verified; 5
what could not be derived; 70 a fault of funcnet itself; 75 another process of the run has ended it, or is
lost; 128 + the number of a signal: 130 Ctrl-C, 143 SIGTERM, 129 SIGHUP.
"""

import codecs
import contextlib
import errno
import importlib
import io
import os
import re
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib.util import find_spec

from funcnet._signals import Stop, exit_at_the_second, signals
from funcnet.cli import _cache

__all__ = ["main"]

COMMANDS = {
    "train": "TASK [options]    train a model on real data, its gradient formulas verified first",
    "predict": "RUN FILE        apply a trained model",
    "generate": "FOLDER [options] go on with a text, by a language model",
    "listen": "FILE ... | -      where someone speaks in recordings",
    "compare": "RUN RUN ...     how runs differ, and which is best",
    "summary": "TASK | RUN      the layers of a model: shapes, parameters, FLOPs",
    "pca": "digits | FILE | RUN principal components: variances, pictures, the rows along the first two",
    "xray": "RUN                a trained model seen through: weights, activations, gradients, what is odd",
    "compress": "RUN [options]  fewer FLOPs by low rank, and what of the accuracy is left",
    "checkpoint": "FOLDER       what a checkpoint of a run holds, every byte checked; one file of it",
    "plan": "MODEL --chips N    meshes of many chips for a decoder: step time, MFU, memory, what bounds it",
    "verify": "FORWARD BACKWARD a gradient formula: right, or what the mistake is",
    "new": "DIR                 a small project to start from: a model, its training, its tests",
    "derive": "--forward FORMULA the gradient of a formula, as a verified formula",
    "doctor": "                 versions, known faults, and whether this machine computes right",
}
USAGE = """\
usage: funcnet COMMAND [options]

{}

`funcnet COMMAND --help` says more, `funcnet --version` the version.
"""
FIRST = """\
Neural networks as plain functions, every gradient formula proven. Try one of these:

  funcnet verify --forward "x @ w" --shape x=7,11 --shape w=11,13 --grad "x = dy @ w.T" --grad "w = x.T @ x"
      a gradient formula that you have on paper: right, or what the mistake is
  funcnet verify --example
      a file with a wrong gradient, and how to find it; then your own: funcnet verify mine.py --shape x=7,11
  funcnet verify mine.py:loss --model
      every custom gradient that your loss meets
  funcnet train digits
      a convolutional network on real data, its formulas verified first: half a minute
  funcnet new my_project
      a model, its training and its tests, to start from

`funcnet --help` lists all commands.
"""
_NEEDED = ("matplotlib", "rich", "sklearn", "tyro")  # the extra [cli]


_WRONG_PATH = (  # the others are the machine's
    errno.EACCES, errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR,
    errno.EPERM, None,  # raised by funcnet, as FileNotFoundError
)  # fmt: skip
_SIMPLE = str.maketrans(
    {"×": "x", "·": "*", "−": "-", "≤": "<=", "≥": ">=", "√": "sqrt ", "Σ": "sum ", "²": "^2", "…": "..."}
)


def _simpler(error: UnicodeError) -> tuple[str | bytes, int]:
    """What is written for characters that an encoding has not."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(_SIMPLE)
    return text.encode("ascii", "backslashreplace").decode(), error.end


codecs.register_error("funcnet", _simpler)


class UsageError(Exception):
    """The command line cannot be understood; the text is one line."""


def main(args: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        args: what follows `funcnet`; None: sys.argv.

    Returns:
        The exit code.
    """
    args = list(sys.argv[1:] if args is None else args)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="funcnet")
    with signals() as stop, exit_at_the_second(stop):
        code = _code(args, stop)
        for stream in filter(None, (sys.stdout, sys.stderr)):
            try:
                stream.flush()
            except OSError:  # at exit it would fail again, with a traceback
                code = code or 1
                with contextlib.suppress(OSError):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return code


def _code(args: list[str], stop: Stop) -> int:
    """The exit code of a command; its errors are told in one line."""
    try:
        return _run(args)
    except UsageError as error:
        return _fail(args, str(error), 2)
    except KeyboardInterrupt:
        return _fail(args, "interrupted", 128 + (stop.number or signal.SIGINT))
    except BrokenPipeError:  # `funcnet ... | head`
        return 1
    except SystemExit as error:  # --help
        return error.code if isinstance(error.code, int) else 0
    except OSError as error:
        return _fail(args, _one_line(error), 2 if error.errno in _WRONG_PATH else 1)
    except Exception as error:
        from funcnet.errors import FuncnetError

        if not isinstance(error, FuncnetError):
            traceback.print_exc()
            return 70
        from funcnet.train.agreement import EXIT, PeersError

        return _fail(args, _one_line(error), EXIT if isinstance(error, PeersError) else 2)


def _run(args: list[str]) -> int:
    if not args:
        print(FIRST, end="")
        return 0
    command = args[0]
    if command in ("-h", "--help"):
        print(USAGE.format("\n".join(f"  {name} {text}" for name, text in COMMANDS.items())), end="")
        return 0
    if command == "--version":
        from funcnet import __version__

        print(f"funcnet {__version__}")
        return 0
    choice("command", command, COMMANDS, "funcnet --help")
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        raise UsageError(f"{', '.join(missing)} not installed: pip install 'funcnet[cli]'")
    if "jax" not in sys.modules:
        _cache.keep()
    return importlib.import_module(f"funcnet.cli.{command}").run(args[1:])


def choice(what: str, given: str, names: Sequence[str] | dict[str, str], hint: str) -> None:
    """Raise UsageError unless `given` is one of `names`."""
    if given not in names:
        problem = f"no {what} {given!r}" if given else f"which {what}"
        raise UsageError(f"{problem}: there are {', '.join(names)} ({hint})")


def _fail(args: list[str], problem: str, code: int) -> int:
    command = " ".join(["funcnet", *(args[:1] if args[:1] and args[0] in COMMANDS else [])])
    with contextlib.suppress(OSError):
        print(f"{command}: {problem}", file=sys.stderr)
    return code


def _one_line(error: BaseException) -> str:
    r"""The text of an error without line breaks.

    >>> _one_line(ValueError("epochs is 0.\n  expected  1 or more\n  got       0"))
    'epochs is 0; expected 1 or more; got 0'
    """
    lines = [re.sub(r"\s+", " ", line).strip() for line in str(error).splitlines()]
    return "; ".join([line.rstrip(".") for line in lines[:-1]] + lines[-1:])
