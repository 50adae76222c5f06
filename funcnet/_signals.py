"""Ctrl-C, SIGTERM, SIGHUP and SIGUSR1: a run ends between two steps, never within one."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

# What ends a program, and what it does by default.
_DEFAULT = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
for _name in ("SIGHUP", "SIGUSR1"):  # Windows has none; schedulers send the second before the time is over
    if hasattr(signal, _name):
        _DEFAULT[getattr(signal, _name)] = signal.SIG_DFL

_ECHO = 0.2  # seconds; a terminal that closes and its shell both send SIGHUP, which is one wish


class Stop:
    """Whether a signal has asked for the end, and when it may interrupt.

    The first one raises KeyboardInterrupt at once, unless the program has said that it is `held`: then it is
    only noted. A second one raises in any case.

    Attributes:
        number: of the first signal; 0: none came.
        taken: the signals that this object handles, and what handled them before.
    """

    def __init__(self) -> None:
        self.number = 0
        self.taken: dict[int, Any] = {}
        self._when = 0.0
        self._held = False

    def __call__(self, number: int, _: Any = None) -> None:
        """Handle a signal."""
        now = time.monotonic()
        if not self.number:
            self.number, self._when = number, now
            if self._held:
                return
        elif _is_echo(number, now - self._when):
            return
        raise KeyboardInterrupt

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within, a first signal is only noted: what is done here must not be left halfway."""
        before, self._held = self._held, True
        try:
            yield
        finally:
            self._held = before

    def attempt(self, function: Callable[..., Any], *args: Any, otherwise: Any = None) -> Any:
        """`function(*args)`, also where signals are held; if a first one comes meanwhile, `otherwise`."""
        before = self._held
        try:  # no context manager: one that a signal meets at its first line has not begun, and fails
            self._held = False
            result = function(*args)
            self._held = before
            return result
        except KeyboardInterrupt:
            self.number = self.number or signal.SIGINT  # not every one comes from a signal
            return otherwise
        finally:
            self._held = before

    def until(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches, up to the first signal; waiting for one is interrupted by it."""
        iterator, end = iter(batches), object()
        while not self.number:
            batch = self.attempt(next, iterator, end, otherwise=end)
            if batch is end:
                return
            yield batch


@contextmanager
def signals() -> Iterator[Stop]:
    """Take the signals that end a program, as long as this lasts.

    Only those are taken that do what they do by default: one that is ignored (`nohup`) stays ignored, one
    that the program handles itself is left to it, and none is taken outside the main thread. Within another
    such block, its object is the one.
    """
    stop = Stop()
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in _DEFAULT}
        if outer := [handler for handler in before.values() if isinstance(handler, Stop)]:
            yield outer[0]
            return
        stop.taken = {number: now for number, now in before.items() if now == _DEFAULT[number]}
    try:
        for number in stop.taken:
            signal.signal(number, stop)
        yield stop
    finally:
        for number, handler in stop.taken.items():
            signal.signal(number, handler)


@contextmanager
def exit_at_the_second(stop: Stop) -> Iterator[None]:
    """A second signal ends the process, with 128 + its number as exit code, even while XLA compiles.

    Python calls handlers only between two of its own instructions: none while other code runs, and one for
    all the signals that came meanwhile. So a thread listens to them.
    """
    if not stop.taken:
        yield
        return
    listen, tell = os.pipe()
    os.set_blocking(tell, False)
    before = signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(listen, frozenset(stop.taken), os._exit), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(tell)


def _listen(source: int, numbers: frozenset[int], leave: Callable[[int], Any]) -> None:
    """Read the numbers of signals from a pipe until it is closed; leave at the second of `numbers`."""
    first = None
    with open(source, "rb", buffering=0) as pipe:
        while number := pipe.read(1):
            now = time.monotonic()
            if number[0] not in numbers:
                continue
            if first is None:
                first = now
            elif not _is_echo(number[0], now - first):
                leave(128 + number[0])


def _is_echo(number: int, seconds: float) -> bool:
    return number != signal.SIGINT and seconds < _ECHO
