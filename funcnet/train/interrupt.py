"""Ctrl-C, kept away from the middle of a step."""

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def ctrl_c() -> Iterator[tuple[Callable[[Iterable[Any]], Iterator[Any]], Callable[[], bool]]]:
    """Ctrl-C between two steps, never within one.

    An interrupt within a step would lose the state: the old one is deleted, the new one not assigned yet. So
    a first Ctrl-C is remembered, and raised only while a batch is waited for; a second one is raised at once.
    Outside the main thread, and where the program has a handler of its own, nothing is changed.

    Gives two functions: one iterates over batches until Ctrl-C, the other says whether it was pressed.
    """
    pressed = waiting = False

    def press(*_: Any) -> None:
        nonlocal pressed
        if pressed or waiting:
            raise KeyboardInterrupt
        pressed = True

    def until(batches: Iterable[Any]) -> Iterator[Any]:
        nonlocal pressed, waiting
        iterator, end = iter(batches), object()
        while not pressed:
            try:
                waiting = True
                batch = next(iterator, end)
                waiting = False
            except KeyboardInterrupt:
                pressed = True
                return
            if batch is end:
                return
            yield batch

    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ours = ours and threading.current_thread() is threading.main_thread()
    if ours:
        signal.signal(signal.SIGINT, press)
    try:
        yield until, lambda: pressed
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
