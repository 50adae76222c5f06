"""What a run has recorded: a sequence of dicts to its reader, kept as columns of 8 bytes a number."""

import json
import math
import operator
import os
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, SupportsIndex, overload

import numpy as np
from jaxtyping import Float, Int

from funcnet.errors import FileFormatError

__all__ = ["History", "Record"]

Record = dict[str, Any]


class History(Sequence[Record]):
    """The records of a run, one per step: `history[-1]["loss"]`, `for record in history`.

    It equals a list of the same dicts. A record is built when it is asked for, so that to change it changes
    nothing; a slice is a list of them.

    Attributes:
        ended: why `fit` returned: "steps" (as many as asked for), "data" (no more batches), "minutes",
            "stop" (the function of that name), or the signal that came, "SIGTERM"; None: it has not.

    >>> history = History([{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25, "eval_loss": 0.75}])
    >>> history[-1], len(history)
    ({'step': 2, 'loss': 0.25, 'eval_loss': 0.75}, 2)
    >>> history.column("eval_loss")
    (array([2]), array([0.75]))
    """

    def __init__(self, records: Sequence[Record] = ()) -> None:
        self.ended: str | None = None
        self._length = 0
        self._columns: dict[str, _Column] = {}
        self.extend(records)

    def extend(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Add the records of the next steps."""
        for names, alike in groupby(records, tuple):
            rows = list(alike)
            first, self._length = self._length, self._length + len(rows)
            for name in names:
                self._column(name, first).extend(first, [row[name] for row in rows])

    def append(self, record: Mapping[str, Any]) -> None:
        """Add the record of the next step."""
        self.extend([record])

    def amend(self, entries: Mapping[str, Any]) -> None:
        """Add to the last record what it does not have yet."""
        for name, value in entries.items():
            self._column(name, self._length - 1).extend(self._length - 1, [value])

    def column(self, name: str) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """The steps at which a number was recorded, and its values; both empty if it never was.

        What is no number, such as a list of them, is left out.
        """
        if name not in self._columns:
            return np.zeros(0, np.int64), np.zeros(0)
        rows, values = self._columns[name].numbers()
        steps = self._columns["step"].numbers()[1] if "step" in self._columns else np.arange(self._length) + 1
        return steps[rows].astype(np.int64), values

    def _column(self, name: str, first: int) -> "_Column":
        column = self._columns.get(name)
        if column is None:
            column = self._columns[name] = _Column(first)
        return column

    def names(self) -> list[str]:
        """What was recorded, in the order of its first appearance."""
        return list(self._columns)

    @classmethod
    def read(cls, path: str | os.PathLike[str], size: int | None = None) -> "History":
        """The records of a metrics.jsonl, or of the lines that begin in its first `size` bytes; null is NaN.

        Half a line at the end, of a process that was killed, is left out.

        Raises:
            FileFormatError: a line is no JSON object.
            OSError: it cannot be read.
        """
        history = cls()
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if (size is not None and size <= 0) or not line.endswith(b"\n"):
                    break
                size = None if size is None else size - len(line)
                history.append(_record(Path(path), number, line))
        return history

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: SupportsIndex) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> Record | list[Record]:
        """A record, or a list of them."""
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(self._length))]
        row = operator.index(index)
        row += self._length * (row < 0)
        if not 0 <= row < self._length:
            raise IndexError(f"record {row} of a history of {self._length}")
        pairs = ((name, column.at(row)) for name, column in self._columns.items())
        return {name: value for name, value in pairs if value is not _ABSENT}

    def __eq__(self, other: object) -> bool:
        """Whether the records are equal; NaN is not, as in a list of dicts."""
        if not isinstance(other, History | list):
            return NotImplemented
        return len(self) == len(other) and all(map(operator.eq, self, other))

    __hash__ = None  # pyright: ignore[reportAssignmentType]  (it can be appended to)

    def __iter__(self) -> Iterator[Record]:
        return (self[row] for row in range(self._length))

    def __repr__(self) -> str:
        """The number of records, and the last one."""
        last = f", the last {self[-1]}" if self._length else ""
        return f"<History of {self._length} records{last}>"


_ABSENT = object()


class _Column:
    """The values of one name; `rows` says of which rows, and is None if from `first` on every one has it."""

    def __init__(self, first: int) -> None:
        self.first = first
        self.rows: array[int] | None = None
        self.values: Any = None

    def extend(self, row: int, values: list[Any]) -> None:
        """Add the values of consecutive rows."""
        kinds = {_KINDS.get(type(value)) for value in values}
        kind = kinds.pop() if len(kinds) == 1 else None
        if kind == "q" and not all(-(2**63) <= value < 2**63 for value in values):
            kind = None
        if self.values is None:
            self.values = array(kind) if kind else []
        elif isinstance(self.values, array) and self.values.typecode != kind:
            self.values = list(self.values)
        if self.rows is None and row != self.first + len(self.values):
            self.rows = array("q", range(self.first, self.first + len(self.values)))
        if self.rows is not None:
            self.rows.extend(range(row, row + len(values)))
        self.values.extend(values)

    def at(self, row: int) -> Any:
        if self.rows is None:
            place = row - self.first
            return self.values[place] if 0 <= place < len(self.values) else _ABSENT
        place = bisect_left(self.rows, row)
        return self.values[place] if place < len(self.rows) and self.rows[place] == row else _ABSENT

    def numbers(self) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Rows and values, of those that are numbers."""
        rows = range(self.first, self.first + len(self.values)) if self.rows is None else self.rows
        rows = np.array(rows, np.int64)
        if isinstance(self.values, array):
            return rows, np.array(self.values, float)
        pairs = zip(rows, self.values, strict=True)
        kept = [(row, value) for row, value in pairs if isinstance(value, int | float)]
        return np.array([row for row, _ in kept], np.int64), np.array([value for _, value in kept], float)


_KINDS = {int: "q", float: "d"}


def _record(path: Path, number: int, line: bytes) -> Record:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise FileFormatError(
            f"{path}: line {number} is no record.",
            path=str(path),
            expected="a JSON object",
            actual=repr(line[:60]),
        )
    return {name: math.nan if value is None else value for name, value in record.items()}
