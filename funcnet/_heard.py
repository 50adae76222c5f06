"""Who hears of the reports of the verifier: the plugin of pytest, where it writes them down.

It knows no JAX, so that the plugin costs a run of tests nothing that does not ask for it.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

__all__ = ["hearing", "reported"]

P = ParamSpec("P")
R = TypeVar("R")
_listeners: list[Callable[[Any], None]] = []
_thread = threading.local()


@contextlib.contextmanager
def hearing(listener: Callable[[Any], None]) -> Iterator[None]:
    """Call ``listener(report)`` with each report that is made inside, in whatever thread."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def reported(function: Callable[P, R]) -> Callable[P, R]:
    """A function whose result is told to all who listen, but for the calls that it makes of its like."""

    @functools.wraps(function)
    def run(*args: P.args, **options: P.kwargs) -> R:
        if getattr(_thread, "is_inside", False):
            return function(*args, **options)
        _thread.is_inside = True
        try:
            report = function(*args, **options)
        finally:
            _thread.is_inside = False
        for listener in tuple(_listeners):
            listener(report)
        return report

    return run
