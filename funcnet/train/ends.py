"""What ends a training, or makes a checkpoint due: known by one process, decided by all.

One that is alone decides at once. Several hear a step later what each of them has said (`agreement`), so that
they take the same steps and write the same checkpoints: a batch is read one step before it is used, and a
signal ends the training after one step more.
"""

import itertools
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from jaxtyping import PyTree

from funcnet._signals import Stop
from funcnet.train.agreement import Peers, Said
from funcnet.train.checkpoints import Checkpoints
from funcnet.train.history import History
from funcnet.train.records import Records
from funcnet.train.wrap import Looked

__all__ = ["Ends"]

_END = object()


class Ends:
    """The decisions of a run."""

    def __init__(
        self,
        peers: Peers,
        signal: Stop,
        records: Records,
        limit: float | None,
        checkpoints: Checkpoints | None,
    ) -> None:
        self._peers, self._signal, self._records = peers, signal, records
        self._limit, self._checkpoints = limit, checkpoints
        self._alone, self._said, self._saved = peers.count == 1, Said(), 0

    @property
    def signal(self) -> int:
        """The number of the signal that ends the training; 0: none does."""
        return self._signal.number if self._alone else self._said.signal

    def attempt(self, function: Callable[..., Any], *args: Any, otherwise: Any = None) -> Any:
        """`function(*args)`; `otherwise`, if a signal ends the training first, or of one process in it."""
        if self.signal:
            return otherwise
        if self._alone:
            return self._signal.attempt(function, *args, otherwise=otherwise)
        return function(*args)  # the others are in it, too

    def batches(self, iterator: Iterator[PyTree], count: int | None, first: int) -> Iterator[PyTree]:
        """The batches, up to a signal, the limit of seconds or the count; how long they let wait is noted."""
        if isinstance(iterator, Looked):
            yield from self._together(iterator, count, first)
            return
        for _ in itertools.count() if count is None else range(count):
            if self._signal.number or self._over():
                return
            asked = time.perf_counter()
            batch = self._signal.attempt(next, iterator, _END, otherwise=_END)
            if batch is _END:
                return
            self._records.waited += time.perf_counter() - asked
            yield batch

    def _together(self, iterator: Looked, count: int | None, first: int) -> Iterator[PyTree]:
        """The same of several processes: a batch that all have."""
        error: Exception | None = None
        more = True

        def look(number: int) -> None:
            """Read a batch ahead, and say what this process knows by now."""
            nonlocal error, more
            if more and error is None and number != count:
                asked = time.perf_counter()
                try:
                    with self._peers.doing(f"reading the batch of step {first + number + 1}"):
                        more = self._signal.attempt(iterator.look, otherwise=False)
                except Exception as raised:
                    error = raised
                    self._peers.fail(raised)
                self._records.waited += time.perf_counter() - asked
            self._say(ended=int(not more))

        look(0)
        self._said = self._peers.agree()
        for number in itertools.count() if count is None else range(count):
            look(number + 1)
            self._said = said = self._peers.exchange()
            if self._checkpoints is not None:
                self._checkpoints.heard(said)
            if said.failed:
                self._peers.parted = True
                raise error or self._peers.failure(said)
            if said.signal or said.over or said.ended:
                return
            yield next(iterator)

    def _say(self, **levels: int) -> None:
        first = self._peers.index == 0
        due = first and self._checkpoints is not None and self._checkpoints.overdue()
        self._peers.say(
            signal=self._signal.number,
            over=int(first and self._over()),
            due=due * (self._saved + 1),
            **levels,
        )

    def _over(self) -> bool:
        return self._limit is not None and self._records.seconds() >= self._limit

    def asked(self, stop: Callable[[History], bool] | None, history: History) -> bool:
        """Whether `stop(history)` says to end, on any process."""
        if stop is None:
            return False
        return bool(self._peers.agree(stop=int(bool(stop(history)))).stop)

    def due(self, step: int, record: dict[str, Any] | None) -> bool:
        """Whether a checkpoint is due after a step; `record` is given after an evaluation."""
        checkpoints = self._checkpoints
        if checkpoints is None:
            return False
        if record is not None and self._peers.index == 0:
            best = checkpoints.settings()["best"]
            if best is not None and best[0] not in record:
                names = ", ".join(record)
                warnings.warn(
                    f"train.fit: no checkpoint is the best: no {best[0]!r} in {names}", stacklevel=3
                )
        if self._alone:
            return checkpoints.due(step, record)
        if record is not None:  # the state that is kept must be the one that was evaluated
            mine = self._peers.index == 0 and checkpoints.due(step, record)
            self._said = self._peers.agree(due=mine * (self._saved + 1))
        due = checkpoints.due_at(step) or self._said.due > self._saved
        self._saved += due
        return due

    def last(self) -> Said:
        """What all say once no step is under way: the signal, and whether the time is over."""
        self._say()
        self._said = self._peers.agree(over=int(self._over()))
        return self._said
