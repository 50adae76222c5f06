"""Where the metrics of a run go: a file of JSON lines, and the terminal."""

import json
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_SECONDS_BETWEEN_LINES = 10.0

Record = dict[str, Any]

# What `make_step` and `fit` put into every record beside the metrics.
RESERVED = ("loss", "step", "steps_per_second", "seconds", "skipped", "rescaled", "loss_scale", "waiting")


@contextmanager
def metrics_file(folder: str | Path | None) -> Iterator[Callable[[Record], None]]:
    """Open FOLDER/metrics.jsonl for appending; what is given is called with each record.

    A line is one JSON object; a number that is not finite becomes null. Each line is handed to the operating
    system as soon as it is complete, so that a process that is killed leaves all but the current one. A line
    that cannot be written, on a disk that is full, is left out as a whole.
    """
    if folder is None:
        yield _ignore
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    path = Path(folder) / "metrics.jsonl"
    with open(path, "ab", buffering=0) as file:

        def write(record: Record) -> None:
            rest = f"{json.dumps(_finite(record), allow_nan=False)}\n".encode()
            end = file.seek(0, os.SEEK_END)
            try:
                while rest:
                    rest = rest[file.write(rest) :]
            except OSError:
                with suppress(OSError):
                    file.truncate(end)
                raise

        yield _outlived(write, str(path))


def _outlived(
    write: Callable[[Any], None], name: str, ending: tuple[type[OSError], ...] = ()
) -> Callable[[Any], None]:
    """`write`, with one warning in place of the errors of the operating system, but for those in `ending`."""
    warned = False

    def write_or_warn(entry: Any) -> None:
        nonlocal warned
        try:
            write(entry)
        except ending:
            raise
        except OSError as error:
            if not warned:
                warned = True
                problem = f"train.fit: {name} cannot be written, and training goes on without: {error}"
                warnings.warn(problem, stacklevel=2)

    return write_or_warn


@contextmanager
def terminal(
    steps: int | None, progress: bool
) -> Iterator[tuple[Callable[[Record], None], Callable[[str], None]]]:
    """Show records on standard output: a bar if that is a terminal and rich is installed, else plain lines.

    Gives two functions: one shows a record, the other prints a message. A record with an evaluation stays, as
    a line; beside a bar no others do, otherwise the first one, and one every ten seconds.

    Who reads may go away: a closed pipe is an error. A full disk or a terminal that is gone is a warning.
    """
    if not progress:
        yield _ignore, _ignore
    elif sys.stdout is not None and sys.stdout.isatty() and find_spec("rich"):
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}", markup=False),
        )
        with Progress(*columns) as bar:
            task = bar.add_task("", total=steps)
            say = _shown(partial(bar.console.print, markup=False, highlight=False))

            def update(record: Record) -> None:
                bar.update(task, advance=1, description=line(record))
                if _evaluated(record):
                    say(line(record))

            yield update, say
    else:
        shown = -math.inf
        say = _shown(partial(print, flush=True))

        def show(record: Record) -> None:
            nonlocal shown
            if _evaluated(record) or time.monotonic() - shown >= _SECONDS_BETWEEN_LINES:
                shown = time.monotonic()
                say(line(record))

        yield show, say


def _shown(write: Callable[[Any], None]) -> Callable[[Any], None]:
    return _outlived(write, "standard output", ending=(BrokenPipeError,))


def line(record: Record) -> str:
    """A record in one line: the step, the loss, the other numbers, the speeds.

    >>> line({"step": 20, "loss": 0.25, "accuracy": 0.9375, "steps_per_second": 312.5, "seconds": 1.0})
    'step 20  loss 0.25  accuracy 0.9375  312 steps/s'
    """
    numbers = {name: value for name, value in record.items() if isinstance(value, int | float)}
    step = numbers.pop("step")
    del numbers["seconds"]
    speeds = {name: numbers.pop(name) for name in list(numbers) if name.endswith("_per_second")}
    parts = [f"{name} {value:.4g}" for name, value in numbers.items()]
    for name, value in speeds.items():
        parts.append(f"{value:{',.0f' if value >= 100 else '.3g'}} {name.removesuffix('_per_second')}/s")
    return "  ".join([f"step {step}", *parts])


def _evaluated(record: Record) -> bool:
    return any(name.startswith("eval_") for name in record)


def _ignore(_: Any) -> None:
    """Take something and do nothing."""


def _finite(value: Any) -> Any:
    """`value` for strict JSON, which has no NaN and no infinity."""
    match value:
        case dict():
            return {name: _finite(entry) for name, entry in value.items()}
        case list():
            return [_finite(entry) for entry in value]
        case float() if not math.isfinite(value):
            return None
    return value
