"""What is put round an iterator of batches, and keeps its position: a function of each, a queue ahead."""

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple, SupportsIndex

import jax
import numpy as np
from jaxtyping import PyTree

from funcnet.errors import describe
from funcnet.train._check import flag, iterable, whole
from funcnet.train._check import function as check_function
from funcnet.train.cursor import Position, agreeing, has_place, place


def mapped(batches: Iterable[PyTree], function: Callable[[PyTree, int], PyTree]) -> "Mapped":
    """Batches as a function makes them, with the position of those that it is given.

    For augmentation that draws, see `transform` of `batches` and `tokens`. A function that follows the clock,
    or draws of its own, is not repeated by a run that is resumed.

    Args:
        batches: any iterable of batches.
        function: `function(batch, number)` gives the batch in its place; `number` is how many came before, in
            all epochs, also after `seek`. If it raises, its batch is not counted as taken.

    Returns:
        An iterator; it has `position` and `seek` if `batches` has.

    Raises:
        DTypeError: `function` is none, or `batches` is no iterable of batches.

    >>> [batch for batch in mapped([10, 20, 30], lambda batch, number: batch + number)]
    [10, 21, 32]
    """
    source = iter(iterable("train.mapped", batches))
    check_function("train.mapped", "function", function, "function(batch, number)")
    return Mapped(source, function)


class Mapped(Iterator[PyTree]):
    """An iterator that `mapped` returns."""

    def __init__(self, source: Iterator[PyTree], function: Callable[[PyTree, int], PyTree]):
        self._source, self._function, self._number = source, function, 0
        self._lock = threading.Lock()

    def __next__(self) -> PyTree:
        with self._lock:
            before = place(self._source)
            batch = next(self._source)
            try:
                batch = self._function(batch, self._number)
            except BaseException:
                if before is not None:
                    self._source.seek(before)  # pyright: ignore[reportAttributeAccessIssue]
                raise
            self._number += 1
            return batch

    @property
    def skipped(self) -> int:
        """Batches left out up to here."""
        return getattr(self._source, "skipped", 0)

    @property
    def position(self) -> Callable[[], Position]:
        """`position()`: the place of the batch that comes next."""
        refuse_placeless("train.mapped", self._source)
        return self._position

    @property
    def seek(self) -> Callable[[Mapping[str, Any]], None]:
        """`seek(position)`: go there."""
        refuse_placeless("train.mapped", self._source)
        return self._seek

    def _position(self) -> Position:
        with self._lock:
            return {"number": self._number, "batches": place(self._source)}

    def _seek(self, position: Mapping[str, Any]) -> None:
        with self._lock:
            where = agreeing("train.mapped", position, {}, ("number", "batches"))
            number = whole("train.mapped", 'position["number"]', where["number"], 0)
            self._source.seek(where["batches"])  # pyright: ignore[reportAttributeAccessIssue]
            self._number = number


class Looked(Iterator[PyTree]):
    """Batches that can be read before they are asked for; their position is that of whoever asks.

    Attributes:
        skipped: batches left out up to the one that was asked for last.
    """

    def __init__(self, source: Iterator[PyTree]):
        self._source, self.skipped = source, getattr(source, "skipped", 0)
        self._ready: deque[_Read] = deque()
        self._before: deque[Position | None] = deque()

    def look(self) -> bool:
        """Read one more; False: there is none."""
        before = place(self._source)
        try:
            batch = next(self._source)
        except StopIteration:
            return False
        self._before.append(before)
        self._ready.append(_Read(batch, None, None, getattr(self._source, "skipped", 0)))
        return True

    def __next__(self) -> PyTree:
        if not self._ready and not self.look():
            raise StopIteration
        self._before.popleft()
        read = self._ready.popleft()
        self.skipped = read.skipped
        return read.batch

    def close(self) -> None:
        """Give the batches back where whoever asks stands; without positions, what was read is lost."""
        if self._before and self._before[0] is not None:
            self._source.seek(self._before[0])  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def position(self) -> Callable[[], Position]:
        """`position()`: the place of the batch that comes next."""
        refuse_placeless("train.fit", self._source)
        return self._position

    @property
    def seek(self) -> Callable[[Mapping[str, Any]], None]:
        """`seek(position)`: go there."""
        refuse_placeless("train.fit", self._source)
        return self._source.seek  # pyright: ignore[reportAttributeAccessIssue]

    def _position(self) -> Position:
        found = self._before[0] if self._before else place(self._source)
        assert found is not None
        return found


def prefetch(batches: Iterable[PyTree], ahead: SupportsIndex = 2, *, put: bool = True) -> "Prefetched":
    """Have the next batches ready: a thread reads them, and puts them on the device, while a step runs.

    The position is that of the batch that the consumer gets next, however many were read. An error in reading
    comes where its batch would have come; asked again, it is read again.

    `batches` are the thread's from then on: nobody else may read them, until `close`, which gives them back
    where the consumer stands. A thread left alone ends with the iterator or the program.

    Args:
        batches: any iterable of batches. NumPy arrays are copied, so that it may fill the same ones again.
        ahead: how many batches are prepared while one is used; each takes its memory. 0: none, and no thread.
        put: False leaves the arrays on the host.

    Returns:
        An iterator; it has `position` and `seek` if `batches` has, and `close`.

    Raises:
        DTypeError: `batches` is no iterable of batches, `ahead` no integer, or `put` neither True nor False.
        ValueRangeError: `ahead` is negative.

    >>> from funcnet.train import batches
    >>> taken = prefetch(batches(np.arange(7), 3, seed=0, epochs=2))
    >>> [next(taken).tolist() for _ in range(3)]
    [[1, 4, 5], [6, 2, 0], [6, 2, 3]]
    >>> taken.position()["epoch"], taken.position()["batch"]
    (1, 1)
    """
    source = iter(iterable("train.prefetch", batches))
    ahead = whole("train.prefetch", "ahead", ahead, 0)
    return Prefetched(source, ahead, flag("train.prefetch", "put", put))


class _Read(NamedTuple):
    """One batch, or what came in its place, and where the source stood after it."""

    batch: PyTree
    error: BaseException | None
    place: Position | None
    skipped: int


class Prefetched(Iterator[PyTree]):
    """An iterator that `prefetch` returns.

    Attributes:
        skipped: batches left out up to the one that the consumer got last.
    """

    def __init__(self, source: Iterator[PyTree], ahead: int, put: bool):
        self._source, self._ahead, self._put = source, ahead, put
        self._place: Position | None = None  # of the consumer, once the source has gone ahead of it
        self.skipped: int = getattr(source, "skipped", 0)
        self._closed = False
        self._jobs: deque[Future[_Read]] = deque()
        self._broken = threading.Event()  # a batch was none: those behind it are not to be read
        self._pool = ThreadPoolExecutor(1, "funcnet.train.prefetch")
        self._lock = threading.Lock()
        weakref.finalize(self, self._pool.shutdown, wait=False, cancel_futures=True)

    def __next__(self) -> PyTree:
        with self._lock:
            if self._closed:
                raise StopIteration
            if self._place is None:
                self._place = place(self._source)
            read = self._next()
            if read.error is not None:
                self._empty()
                if not isinstance(read.error, StopIteration):
                    self._give_back()
                    raise read.error
            self._place, self.skipped = read.place, read.skipped
            if read.error is not None:
                raise StopIteration
            return read.batch

    def _next(self) -> _Read:
        """What comes next; `ahead` more are on their way."""
        # The switches of JAX that belong to a thread: those of the consumer's.
        config: Any = jax.config
        asked = config.jax_enable_x64, config.jax_default_device
        job = self._source, self._put, asked, self._broken
        if not self._ahead:
            return _read(*job)
        while not self._jobs or (len(self._jobs) <= self._ahead and not self._broken.is_set()):
            self._jobs.append(self._pool.submit(_read, *job))
        read = self._jobs[0].result()  # Ctrl-C here loses nothing: it is still the first
        self._jobs.popleft()
        return read

    def _empty(self) -> None:
        """Forget what was read ahead, and wait until nothing reads."""
        self._broken.set()
        for job in self._jobs:
            job.cancel()
        wait(self._jobs)
        self._jobs.clear()
        self._broken = threading.Event()

    def _give_back(self) -> None:
        """Put the source where the consumer stands."""
        if self._place is not None:
            self._source.seek(self._place)  # pyright: ignore[reportAttributeAccessIssue]

    def close(self) -> None:
        """End the thread, and give `batches` back; without positions, what was read ahead is lost."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._empty()
                self._give_back()
                self._pool.shutdown()

    @property
    def position(self) -> Callable[[], Position]:
        """`position()`: the place of the batch that comes next."""
        refuse_placeless("train.prefetch", self._source)
        return self._position

    @property
    def seek(self) -> Callable[[Mapping[str, Any]], None]:
        """`seek(position)`: go there, and forget what was read ahead."""
        refuse_placeless("train.prefetch", self._source)
        return self._seek

    def _position(self) -> Position:
        with self._lock:
            found = place(self._source) if self._place is None else self._place
            assert found is not None
            return dict(found)

    def _seek(self, position: Mapping[str, Any]) -> None:
        with self._lock:
            self._empty()
            self._give_back()  # if the position is refused, all is as it was
            self._source.seek(position)  # pyright: ignore[reportAttributeAccessIssue]
            self._place, self.skipped = None, getattr(self._source, "skipped", 0)


def _read(source: Iterator[PyTree], put: bool, asked: tuple[bool, Any], broken: threading.Event) -> _Read:
    """The next batch with the place after it, or what came instead."""
    if broken.is_set():  # nobody waits for this one
        return _Read(None, None, None, 0)
    batch = error = None
    try:
        batch = _owned(next(source), put, *asked)
    except BaseException as raised:
        broken.set()
        error = raised
    return _Read(batch, error, place(source), getattr(source, "skipped", 0))


def _owned(batch: PyTree, put: bool, x64: bool, device: Any) -> PyTree:
    """The batch with its NumPy arrays copied, and put on the device."""
    batch = jax.tree.map(lambda leaf: np.array(leaf) if isinstance(leaf, np.ndarray) else leaf, batch)
    if not put:
        return batch
    with jax.enable_x64(x64), jax.default_device(device):
        return jax.tree.map(
            lambda leaf: jax.device_put(leaf) if isinstance(leaf, np.ndarray) else leaf, batch
        )


def refuse_placeless(where: str, source: Any) -> None:
    """Refuse to say where `source` is, or to send it elsewhere, if it has no position."""
    if not has_place(source):
        raise AttributeError(
            f"{where}: the batches have no position: {describe(source)} has no position() and seek(); "
            "see train.batches, train.tokens and train.stateful"
        )
