"""Batches with a position: a cursor over batches that are a function of their place.

The protocol is two methods beside `__next__`: `position()`, a small dict that JSON can hold, the place of the
batch that comes next, and `seek(position)`, after which that batch does.
"""

import math
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from itertools import chain
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import PyTree

from funcnet import signature
from funcnet.errors import DTypeError, FuncnetError, ValueRangeError, describe, shorten
from funcnet.train._check import flag, whole

Position = dict[str, Any]
Transform = Callable[[PyTree, np.random.Generator], PyTree]
Rows = Callable[[int], list[tuple[int, int]]]

_PLACE = ("epoch", "batch", "skipped")


class RecordError(FuncnetError, ValueError):
    """A batch could not be read, or its transform raised: the cause is chained (`__cause__`).

    Attributes:
        epoch: of the batch, the first being 0.
        batch: its number in the epoch, the first being 0.
    """

    def __init__(self, problem: str, *, epoch: int, batch: int, **details: str | None):
        super().__init__(problem, **details)
        self.epoch, self.batch = epoch, batch


class Cursor(Iterator[PyTree]):
    """Batches by their place: each is a pure function of (epoch, number), and this is where one stands.

    It may be read from several threads: each batch comes once.

    Attributes:
        skipped: batches that could not be read and were left out, up to here (`skip_bad`).
    """

    def __init__(
        self,
        where: str,
        read: Callable[[int, int], PyTree],
        per_epoch: int,
        identity: Callable[[], Position],
        epochs: int | None,
        skip_bad: int,
        part: Callable[[Rows, int, int], tuple[int, list[PyTree]]] | None = None,
    ):
        self._where, self._read, self._per_epoch, self._part = where, read, per_epoch, part
        self._identity, self._epochs, self._skip_bad = cache(identity), epochs, skip_bad
        self._at = self.skipped = 0
        self._lock = threading.Lock()

    def __next__(self) -> PyTree:
        return self._advance(self._read)

    @property
    def endless(self) -> bool:
        """Whether they go on for ever."""
        return self._epochs is None

    @property
    def part(self) -> Callable[[Rows], tuple[int, list[PyTree]]] | None:
        """`part(rows)`, in place of `next`: of the next batch its size, and some of its rows.

        `rows(size)` says which, as pairs of the first one and the one after the last. Where more than the
        rows must be looked at, by a transform or to leave out what is bad, this is None.
        """
        return None if self._part is None else self._of_parts

    def _of_parts(self, rows: Rows) -> tuple[int, list[PyTree]]:
        assert self._part is not None
        return self._advance(partial(self._part, rows))

    def _advance(self, read: Callable[[int, int], Any]) -> Any:
        with self._lock:
            while True:
                epoch, number = divmod(self._at, self._per_epoch)
                if self._epochs is not None and epoch >= self._epochs:
                    raise StopIteration
                try:
                    batch = read(epoch, number)
                except MemoryError:
                    raise
                except Exception as error:
                    self._leave_out(epoch, number, error)
                    continue
                self._at += 1  # only now: what raises is read again
                return batch

    def _leave_out(self, epoch: int, number: int, error: Exception) -> None:
        """Pass over a bad batch, or raise its error if there were too many."""
        problem = f"{self._where}: batch {number} of epoch {epoch} cannot be read."
        reason = f"{type(error).__name__}: {error}"
        if self.skipped >= self._skip_bad:
            raise RecordError(
                problem,
                path=getattr(error, "path", None) or f"batch {number} of epoch {epoch}",
                actual=reason.replace("\n", "\n            "),
                hint=f"skip_bad={self.skipped + 1} leaves it out",
                epoch=epoch,
                batch=number,
            ) from error
        warnings.warn(f"{problem[:-1]}, and is left out: {reason}", stacklevel=3)
        self.skipped, self._at = self.skipped + 1, self._at + 1

    def position(self) -> Position:
        """The place of the batch that comes next, with what tells these data from others; JSON can hold it.

        The "fingerprint" in it, made when it is first asked for, is a hash of the data's types and sizes
        and of a bounded sample of their bytes, spread over them: other files, or other preprocessing, have
        another one; a single number that was changed may not.
        """
        with self._lock:
            epoch, number = divmod(self._at, self._per_epoch)
            return {"epoch": epoch, "batch": number, "skipped": self.skipped, **self._identity()}

    def seek(self, position: Mapping[str, Any]) -> None:
        """Go to a place that `position()` gave, in this process or another; no batch in between is read.

        Raises:
            ValueRangeError: it is a position in other data, or in batches of another size or seed (all
                differences are listed), or beyond the last epoch.
            DTypeError: it is no position.
        """
        with self._lock:
            place = agreeing(self._where, position, self._identity(), _PLACE)
            epoch, number, skipped = (
                whole(self._where, f'position["{name}"]', place[name], 0) for name in _PLACE
            )
            at = epoch * self._per_epoch + number
            last = math.inf if self._epochs is None else self._epochs * self._per_epoch
            if number >= self._per_epoch or at > last:
                raise ValueRangeError(
                    f"{self._where}: the position lies beyond the end.",
                    path="position",
                    expected=f"{self._per_epoch} batches in an epoch"
                    + ("" if self._epochs is None else f", {self._epochs} epochs"),
                    actual=f"batch {number} of epoch {epoch}, the first being 0",
                )
            self._at, self.skipped = at, skipped


def over(
    where: str,
    n: int,
    size: SupportsIndex,
    take: Callable[[int, int, int], PyTree],
    identity: Callable[[], Position],
    *,
    seed: int,
    epochs: SupportsIndex | None,
    drop_remainder: bool,
    transform: Transform | None,
    skip_bad: SupportsIndex,
) -> Cursor:
    """Batches of `size` of `n` examples, of which `take(epoch, start, stop)` gives those of these places."""
    size, epochs = (
        whole(where, "size", size, 1),
        None if epochs is None else whole(where, "epochs", epochs, 0),
    )
    skip_bad = whole(where, "skip_bad", skip_bad, 0)
    drop_remainder = flag(where, "drop_remainder", drop_remainder)
    if transform is not None:
        signature.check(where, "transform", transform, ("batch", "rng"))
    if size > n and drop_remainder:
        raise ValueRangeError(
            f"{where}: a batch of {size} cannot be filled with {n} examples.",
            path="size",
            expected=f"at most {n}",
            actual=str(size),
            hint=f"size={n}, or drop_remainder=False for a smaller batch",
        )

    # No functions in functions here: the tests check annotations, and would compile the checks at every call.
    read = partial(_read, take, transform, n, size, seed)
    whose = partial(_identity, identity, n=n, size=size, seed=seed, drop_remainder=drop_remainder)
    per_epoch = n // size if drop_remainder else -(-n // size)
    part = None if transform is not None or skip_bad else partial(_parts, take, n, size)
    return Cursor(where, read, per_epoch, whose, epochs, skip_bad, part)


def _parts(
    take: Callable[[int, int, int], PyTree], n: int, size: int, rows: Rows, epoch: int, number: int
) -> tuple[int, list[PyTree]]:
    """Of the batch of a place its size, and the rows that are asked for."""
    first, last = number * size, min((number + 1) * size, n)
    return last - first, [take(epoch, first + start, first + stop) for start, stop in rows(last - first)]


def _read(
    take: Callable[[int, int, int], PyTree],
    transform: Transform | None,
    n: int,
    size: int,
    seed: int,
    epoch: int,
    number: int,
) -> PyTree:
    """The batch of a place."""
    batch = take(epoch, number * size, min((number + 1) * size, n))
    return batch if transform is None else transform(batch, _rng(seed, epoch, number))


def _identity(further: Callable[[], Position], **known: Any) -> Position:
    return known | further()


def _rng(seed: int, epoch: int, number: int) -> np.random.Generator:
    """The generator of one batch; the order of an epoch has the spawn key (epoch,)."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(epoch, number, 1))))


def agreeing(
    where: str, position: Any, identity: Mapping[str, Any], places: tuple[str, ...]
) -> Mapping[str, Any]:
    """The position, if it has these places and is one in the data of this identity."""
    if not isinstance(position, Mapping):
        raise DTypeError(
            f"{where}: this is no position.",
            path="position",
            expected="a dict, from position()",
            actual=describe(position),
        )
    absent = object()
    names = dict.fromkeys(chain(identity, position))
    pairs = {name: (identity.get(name, absent), position.get(name, absent)) for name in names}
    differ = {name: pair for name, pair in pairs.items() if name not in places and not _same(*pair)} | {
        name: ("a place", absent) for name in places if name not in position
    }
    if differ:
        mine, given = (
            ", ".join(
                f"{name}: {'none' if pair[i] is absent else shorten(pair[i])}"
                for name, pair in differ.items()
            )
            for i in (0, 1)
        )
        raise ValueRangeError(
            f"{where}: this is a position in other batches.", path="position", expected=mine, actual=given
        )
    return position


def _same(a: Any, b: Any) -> bool:
    """Whether two values that JSON can hold are one; True is not 1."""
    return type(a) is type(b) and bool(a == b)


def place(batches: Any) -> Position | None:
    """The position of batches that have one."""
    return batches.position() if has_place(batches) else None


def has_place(batches: Any) -> bool:
    """Whether `batches` has the two methods of the protocol."""
    return all(callable(getattr(batches, name, None)) for name in ("position", "seek"))
