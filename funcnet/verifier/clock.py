"""Time for a search: every search for a name draws its candidates one by one, and stops at a deadline."""

import time

__all__ = ["is_over", "part"]


def is_over(deadline: float) -> bool:
    """Whether a deadline, by `time.monotonic`, has passed."""
    return time.monotonic() > deadline


def part(deadline: float, share: float) -> float:
    """The deadline of a search that may take a share of the time left, so that others get theirs."""
    now = time.monotonic()
    return now + share * max(deadline - now, 0.0)
