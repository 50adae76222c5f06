"""Two mistakes in one gradient: two edits whose changes add up to what is lacking.

Every single edit that is tried leaves a few numbers: what it changes, along three random directions. Two
edits of different terms mend a gradient together if these numbers add up to those of the difference from the
truth, one of them perhaps times a factor; so two of thousands are found by sorting, not by running each two.
An edit after which the gradient is the true one times a number mends it together with that factor.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from funcnet.verifier import trace
from funcnet.verifier.diagnosis.arrays import ratio
from funcnet.verifier.diagnosis.slips import Changed, Edit

__all__ = ["BOTH", "Halves", "both"]

MANY = 3000  # edits that are remembered
TRIED = 30  # pairs that are tried
BOTH = 0.7  # what two mistakes are more far-fetched than both
FAR = 2.5  # how far-fetched one of two may be
EXACT = 1e-8  # of the numbers: they add up


class Half(NamedTuple):
    """An edit, and what it changes along the directions: by itself, or for each unit of its factor."""

    edit: Edit
    change: np.ndarray


class Halves:
    """What single edits change of one gradient.

    Args:
        want: the true gradient for one cotangent.
        got: what the formula gives.
        whole: the edit that multiplies the whole gradient.
    """

    def __init__(self, want: np.ndarray, got: np.ndarray, whole: Edit):
        self.want, self.whole, self.scaled = want, whole, list[Edit]()
        self.got, self.plain, self.solved = got, list[Half](), list[Half]()
        self.along = np.random.default_rng(0).standard_normal((3, want.size))
        self.lacking = self.along @ (want - got).ravel() if want.shape == got.shape else None

    def add(self, edit: Edit, change: np.ndarray) -> None:
        """Remember an edit that does not mend the gradient by itself."""
        if self.lacking is None or edit.effort > FAR or len(self.plain) + len(self.solved) >= MANY:
            return
        with np.errstate(all="ignore"):
            numbers = self.along @ change.ravel()
        if np.isfinite(numbers).all() and numbers.any():
            (self.solved if edit.solved else self.plain).append(Half(edit, numbers))
            new = self.got + change
            if not edit.solved and (c := ratio([(new, self.want)])) is not None and abs(c - 1) > EXACT:
                self.scaled.append(edit)

    def __iter__(self) -> Iterator[tuple[Edit, Edit]]:
        """Pairs that may mend it, the likeliest first."""
        yield from ((edit, self.whole) for edit in self.scaled)
        if not self.plain or self.lacking is None:
            return
        changes, near = np.stack([half.change for half in self.plain]), EXACT * np.abs(self.lacking).max()
        order = np.argsort(changes[:, 0])
        first = changes[order, 0]
        found = list[tuple[int, Edit, Edit]]()
        for n, (edit, change) in enumerate(self.plain):
            rest = self.lacking - change
            low, high = np.searchsorted(first, (rest[0] - near, rest[0] + near))
            found += [
                (n + int(m), edit, self.plain[m].edit)
                for m in order[low:high]
                if m > n and np.abs(changes[m] - rest).max() <= near
            ]
        for m, (edit, slope) in enumerate(self.solved):
            with np.errstate(all="ignore"):
                factors = (self.lacking - changes) / slope
                same = np.abs(factors - factors[:, :1]).max(1) <= 1e-6 * np.abs(factors[:, 0])
            found += [(int(n) + m, self.plain[n].edit, edit) for n in np.flatnonzero(same)]
        found.sort(key=lambda pair: pair[0])
        yield from ((one, two) for _, one, two in found[:TRIED])


def both(one: Edit, two: Edit) -> Edit:
    """Two edits as one; a factor is that of the second."""

    def build(program: trace.Program) -> Changed:
        first, second = one.build(program), two.build(program)
        if not first.keys().isdisjoint(second):
            raise ValueError("two edits of one equation")
        plain: Any = lambda f: lambda operands, known, *_: f(operands, known)
        return {**{k: plain(f) for k, f in first.items()}, **second}

    effort = one.effort + two.effort + BOTH
    return Edit(one.kind, f"{one.words}, and {two.words}", one.at, build, effort, two.solved)
