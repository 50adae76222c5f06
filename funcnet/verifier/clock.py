"""Time for a search: every search for a name draws its candidates one by one, and stops at a deadline.

It is that of the processor, in the thread that searches, so that a busy machine changes no name.
"""

import time

__all__ = ["is_over", "now", "part"]


def now() -> float:
    """Seconds of this thread's work, of which only differences mean something."""
    return time.thread_time()


def is_over(deadline: float) -> bool:
    """Whether a deadline, by `now`, has passed."""
    return now() > deadline


def part(deadline: float, share: float) -> float:
    """The deadline of a search that may take a share of the time left, so that others get theirs."""
    at = now()
    return at + share * max(deadline - at, 0.0)
