"""Where the metrics of a run go: a file of JSON lines, and the terminal."""

import json
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from funcnet.train.history import Record

_SECONDS_BETWEEN_LINES = 10.0

# What `make_step` and `fit` put into every record beside the metrics.
RESERVED = (
    "loss", "step", "steps_per_second", "seconds", "waiting", "skipped", "rescaled", "loss_scale",
    "bad_records", "checkpoint_error",
)  # fmt: skip

Log = str | os.PathLike[str] | Callable[[Record], Any]


@contextmanager
def logs(where: Sequence[Log], size: int | None = None) -> Iterator[Callable[..., None]]:
    """Open what records go to; gives `write(records, again=False)`, to be called with those that are new.

    With `again` there is one, and it takes the place of the last. A function that raises is not called again,
    after one warning: who watches a run must not end it.

    Args:
        where: folders, see `metrics_file`, and functions of a record.
        size: see `metrics_file`.
    """
    with ExitStack() as stack:
        writers = [
            _each(sink) if callable(sink) else stack.enter_context(metrics_file(sink, size)) for sink in where
        ]

        def write(records: Sequence[Record], again: bool = False) -> None:
            for writer in writers:
                writer(records, again)

        yield write


def _each(function: Callable[[Record], Any]) -> Callable[..., None]:
    def write(records: Sequence[Record], again: bool) -> None:
        del again  # a function is told twice
        nonlocal failed
        for record in () if failed else records:
            try:
                function(record)
            except Exception as error:
                failed = True
                name = getattr(function, "__qualname__", type(function).__name__)
                problem = f"train.fit: the log {name} failed, and training goes on without: {error!r}"
                warnings.warn(problem, stacklevel=2)
                break

    failed = False
    return write


@contextmanager
def metrics_file(folder: str | os.PathLike[str], size: int | None = None) -> Iterator[Callable[..., None]]:
    """Open FOLDER/metrics.jsonl for appending; gives `write(records, again)`, as `logs` does.

    A line is one JSON object; a number that is not finite becomes null. Lines are handed to the operating
    system as soon as they are complete, so that a process that is killed leaves all that were given. Lines
    that cannot be written, on a disk that is full, are left out as a whole.

    Args:
        folder: made if need be.
        size: of a run that goes on: lines that begin after so many bytes are cut off, and half a line.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    path = metrics_path(folder)
    with open(path, "a+b", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        last = end  # where the last line begins
        if size is not None:
            last, end = whole_lines(file, size)
            file.truncate(end)

        def write(records: Sequence[Record], again: bool = False) -> None:
            nonlocal last
            end = file.seek(0, os.SEEK_END)
            if again and last < end:
                file.truncate(last)
                end = last
            rest = lines = b"".join(map(_line, records))
            try:
                while rest:
                    rest = rest[file.write(rest) :]
            except OSError:
                lines = lines[: lines.rfind(b"\n", 0, len(lines) - len(rest)) + 1]
                with suppress(OSError):
                    file.truncate(end + len(lines))
                raise
            finally:
                last = end + lines.rfind(b"\n", 0, max(len(lines) - 1, 0)) + 1

        yield _outlived(write, str(path))


def whole_lines(file: IO[bytes], size: int) -> tuple[int, int]:
    """Where the last line begins that begins before `size`, and where it ends, if it has an end."""
    end = min(size, file.seek(0, os.SEEK_END))
    if end <= 0:
        return 0, 0
    last = _line_start(file, end - 1)
    file.seek(last)
    line = file.readline()
    if line.endswith(b"\n") or not last:
        return last, last + len(line) * line.endswith(b"\n")
    return _line_start(file, last - 1), last


def _line_start(file: IO[bytes], place: int) -> int:
    """Where the line begins that has the byte at `place`."""
    while place > 0:
        begin = max(0, place - 4096)
        file.seek(begin)
        found = file.read(place - begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        place = begin
    return 0


def metrics_path(folder: str | os.PathLike[str]) -> Path:
    """Where the records of a run lie."""
    return Path(folder) / "metrics.jsonl"


_ENCODE = json.JSONEncoder(allow_nan=False).encode  # json.dumps makes a new one at each call


def _line(record: Record) -> bytes:
    try:
        text = _ENCODE(record)
    except ValueError:  # rare, and to look for them takes longer than to write
        text = _ENCODE(_finite(record))
    return f"{text}\n".encode()


def _outlived(
    write: Callable[..., None], name: str, ending: tuple[type[OSError], ...] = ()
) -> Callable[..., None]:
    """`write`, with one warning in place of the errors of the operating system, but for those in `ending`."""
    warned = False

    def write_or_warn(*args: Any) -> None:
        nonlocal warned
        try:
            write(*args)
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
) -> Iterator[tuple[Callable[[Sequence[Record]], None], Callable[[str], None]]]:
    """Show records on standard output: a bar if that is a terminal and rich is installed, else plain lines.

    Gives two functions: one shows records, the other prints a message. A record with an evaluation stays, as
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
            task, last = bar.add_task("", total=steps), -1
            say = _shown(partial(bar.console.print, markup=False, highlight=False))

            def update(records: Sequence[Record]) -> None:
                nonlocal last
                new = sum(record["step"] > last for record in records)
                last = records[-1]["step"]
                bar.update(task, advance=new, description=line(records[-1]))
                for record in filter(evaluated, records):
                    say(line(record))

            yield update, say
    else:
        shown = -math.inf
        say = _shown(partial(print, flush=True))

        def show(records: Sequence[Record]) -> None:
            nonlocal shown
            waited = time.monotonic() - shown >= _SECONDS_BETWEEN_LINES
            for record in records:
                if evaluated(record) or waited:
                    shown, waited = time.monotonic(), False
                    say(line(record))

        yield show, say


def _shown(write: Callable[[Any], None]) -> Callable[[Any], None]:
    return _outlived(write, "standard output", ending=(BrokenPipeError,))


def line(record: Record) -> str:
    """A record in one line: the step, the loss, the other numbers (but those of single blocks), the speeds.

    >>> line({"step": 20, "loss": 0.25, "accuracy": 0.9375, "steps_per_second": 312.5, "seconds": 1.0})
    'step 20  loss 0.25  accuracy 0.9375  312 steps/s'
    """
    numbers = {
        name: value
        for name, value in record.items()
        if isinstance(value, int | float) and "_norm." not in name
    }
    step = numbers.pop("step")
    for name in ("seconds", "waiting", "param_norm", "update_norm"):
        numbers.pop(name, None)
    speeds = {name: numbers.pop(name) for name in list(numbers) if name.endswith("_per_second")}
    parts = [f"{name} {value:.4g}" for name, value in numbers.items()]
    for name, value in speeds.items():
        parts.append(f"{value:{',.0f' if value >= 100 else '.3g'}} {name.removesuffix('_per_second')}/s")
    return "  ".join([f"step {step}", *parts])


def evaluated(record: Record) -> bool:
    """Whether a record has an evaluation."""
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
