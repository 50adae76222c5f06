"""The records of a run, read from the device when nobody waits for them."""

import math
import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxtyping import PyTree

from funcnet.errors import StructureError, ValueRangeError, describe
from funcnet.train.agreement import Peers
from funcnet.train.faults import non_finite, too_many
from funcnet.train.history import History, Record
from funcnet.train.metric import reading

__all__ = ["Records"]

# Metrics are read so many steps behind, and at most so many seconds: the device never waits for the host.
_BEHIND, _SECONDS_BEHIND = 64, 0.5
_BEHIND_TOGETHER = 2  # of several processes, which have agreed by then that the earlier steps are over


class _Step(NamedTuple):
    """A step whose metrics are not read yet."""

    number: int
    batch: PyTree
    metrics: Any
    bad: int  # records that could not be read, up to here
    mark: tuple[int, float]  # the step and the time from which on the speed is measured
    waited: float  # seconds since then in which there was no batch


class Records:
    """The records of a run, and the steps whose metrics are still to be read.

    Attributes:
        waited: the seconds since the last restart in which there was no batch.
    """

    def __init__(
        self,
        step: Any,
        history: History,
        write: Callable[..., None],
        show: Callable[[Sequence[Record]], None],
        rates: Mapping[str, float],
        first: int,
        earlier: float,
        peers: Peers,
    ) -> None:
        self._history, self._write, self._show, self._rates = history, write, show, rates
        self._peers = peers
        self._most = getattr(step, "max_skipped", None) or math.inf
        self._pending: deque[_Step] = deque()
        self._began = time.perf_counter()
        self._start = self._began - earlier
        self._fault: tuple[int, _Step] | None = None
        self._failed: str | None = None
        self.restart(first)

    @property
    def waiting(self) -> bool:
        """Whether there are steps to be read."""
        return bool(self._pending)

    def seconds(self) -> float:
        """Since the start of the run."""
        return time.perf_counter() - self._start

    def restart(self, number: int) -> float:
        """Measure the speed from this step on; returns the seconds since the start of this part."""
        self._mark = number, time.perf_counter()
        self._read_at, self.waited = self._mark[1], 0.0
        return self._mark[1] - self._began

    def add(self, number: int, batch: PyTree, metrics: Any, bad: int) -> None:
        """A step was started. Those that are over by now are read: none but the newest is under way."""
        self._pending.append(_Step(number, batch, metrics, bad, self._mark, self.waited))
        if self._peers.count > 1:  # what is raised here must be raised by all after the same step: no clock
            self.read(keep=_BEHIND_TOGETHER)
            return
        if len(self._pending) >= _BEHIND:
            self.read(keep=_BEHIND // 2)
        elif time.perf_counter() - self._read_at > _SECONDS_BEHIND:
            self.read(keep=1)

    def note(self, failed: str | None) -> None:
        """A checkpoint could not be written, if this is no None: a warning says so, and the next record."""
        if failed is not None:
            self._failed = failed
            warnings.warn(f"train.fit: training goes on, but {failed}", stacklevel=3)

    def read(self, keep: int = 0, evaluation: Callable[[], Record] | None = None) -> None:
        """Wait for all steps but `keep`, and write them down, the last one with an evaluation.

        Raises:
            NonFiniteError: one of them was not finite, or once too often.
        """
        read = [self._pending.popleft() for _ in range(max(len(self._pending) - keep, 0))]
        if not read:
            return
        self._peers.wait(read[-1].metrics)
        before, now = self._read_at, time.perf_counter()
        records: list[Record] = []
        try:
            for i, step in enumerate(read, 1):
                # One look at the clock for all that came by: between two looks they lie evenly.
                records.append(self._record(step, before + (now - before) * i / len(read)))
                self._look(step, records[-1])
            if evaluation is not None:
                records[-1] = _joined(records[-1], evaluation())
        finally:
            self._history.extend(records)
            if records:
                self._write(records)
                self._show(records)
            self._read_at = time.perf_counter()

    def amend(self, entries: Record) -> None:
        """Write the last record again, with more in it."""
        if entries:
            self._history.amend(entries)
            self._write([self._history[-1]], True)
            self._show([self._history[-1]])

    def _record(self, step: _Step, now: float) -> Record:
        values = _values(step.metrics)
        loss, skipped, rescaled = values.pop("loss"), values.pop("skipped", 0), values.pop("rescaled", 0)
        if not skipped and not math.isfinite(loss):
            raise non_finite(step.number, "loss", loss, step.batch)
        since, seconds = step.mark[0], max(now - step.mark[1], 1e-9)
        speed = (step.number - since) / seconds
        speeds = {"steps_per_second": speed}
        for name, amount in self._rates.items():
            speeds[name] = amount * speed
        times = {"waiting": min(step.waited / seconds, 1.0), "seconds": now - self._start}
        record = _joined({"step": step.number, "loss": loss}, values, speeds, times)
        if skipped:
            record["skipped"] = int(skipped)
        if rescaled:
            record["rescaled"] = int(rescaled)
        if step.bad:
            record["bad_records"] = step.bad
        if self._failed is not None:
            record["checkpoint_error"], self._failed = self._failed, None
        return record

    def _look(self, step: _Step, record: Record) -> None:
        """End the training once the step does nothing any more: its count of faults does not grow."""
        skipped = record.get("skipped", 0)
        before, self._fault = self._fault, (skipped, step) if skipped else None
        if before is not None and skipped == before[0]:
            raise too_many(before[1].number, skipped, before[1].batch)
        if skipped >= self._most:
            raise too_many(step.number, skipped, step.batch)


def _values(metrics: Any) -> Record:
    """The metrics of a step as Python's numbers, with the loss among them."""
    values = reading("train.fit", "step", metrics)
    loss = values.get("loss")
    if not isinstance(loss, float | int):
        raise StructureError(
            "train.fit: the step gives no loss.",
            path='metrics["loss"]',
            expected='a scalar under the name "loss"',
            actual=", ".join(values) if loss is None else describe(metrics["loss"]),
        )
    return values


def _joined(*parts: Record) -> Record:
    """One record of several, in which no name comes twice."""
    record: Record = {}
    for part in parts:
        record.update(part)
    if len(record) < sum(map(len, parts)):
        _refuse_twice(parts)
    return record


def _refuse_twice(parts: Sequence[Record]) -> None:
    record: Record = {}
    for part in parts:
        for name in filter(record.__contains__, part):
            raise ValueRangeError(
                f'train.fit: two things to be recorded have the name "{name}".',
                path=name,
                expected=f"names other than {', '.join(record)}",
                actual=", ".join(part),
            )
        record |= part
