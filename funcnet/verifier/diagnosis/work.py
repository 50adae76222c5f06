"""Work: what a search for a name may cost, counted in element operations, not in seconds.

Every search draws its candidates one by one, and pays for each what running it again costs, before it runs.
So a name depends on the functions and on the budget, never on how busy the machine is. The clock, that of the
processor in the thread that searches, is the last resort, for what costs far more than its count.
"""

import math
import time

from funcnet.verifier.trace import CALL

__all__ = ["RATE", "SpentError", "Work"]

RATE = 3e8  # element operations for each second of a budget
LATE = 4.0  # budgets; then the clock strikes
LOOK = 1e7  # element operations between two looks at the clock


class SpentError(Exception):
    """There is no work left."""


class Work:
    """A purse of element operations.

    Args:
        left: how many there are.
        until: when the clock strikes, in seconds of the thread.
        giver: the purse that pays, too.

    Attributes:
        late: whether the clock has struck.
    """

    def __init__(self, left: float, until: float = math.inf, giver: "Work | None" = None):
        self.left, self.until, self.giver = left, until, giver
        self.late, self.looked = False, left

    @classmethod
    def of(cls, seconds: float) -> "Work":
        """What a budget buys."""
        return cls(RATE * seconds, time.thread_time() + LATE * seconds)

    def pay(self, cost: float = CALL / 10) -> None:
        """Take from it, by default what it costs to look at a candidate that is not run.

        Raises:
            SpentError: there is less left.
        """
        if self.left < cost:
            self.left = 0.0
            raise SpentError
        self.left -= cost
        if self.giver is not None:
            self.giver.pay(cost)
        elif self.looked - self.left >= LOOK:
            self.looked = self.left
            if time.thread_time() > self.until:
                self.late, self.left = True, 0.0
                raise SpentError

    def share(self, part: float) -> "Work":
        """A purse with a part of what is left, so that other searches get theirs."""
        return Work(part * self.left, giver=self)

    @property
    def is_spent(self) -> bool:
        """Whether nothing can be paid."""
        return self.left <= 0 or (self.giver is not None and self.giver.is_spent)
