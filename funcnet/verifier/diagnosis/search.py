"""The search for a name: one merge of families of guesses, the likeliest first, paid in work.

A family is a generator of `Guess`, in rising effort. All families are merged by effort as they are drawn, so
that no list of guesses is ever made, and the search for a gradient's name ends when nothing nearer can come.
Whoever tries a guess pays for it first (`work`); a family whose purse is empty ends, the others go on.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from funcnet.verifier.diagnosis.work import SpentError, Work
from funcnet.verifier.finding import Finding

__all__ = ["Guess", "Named", "late", "search", "within"]

Named = tuple[int, float, Finding]  # a gradient, how far-fetched its name is, the name


class Guess(NamedTuple):
    """What may be the mistake.

    Attributes:
        effort: how far-fetched it is; none of the names that it gives is nearer.
        names: of some gradients, those that it explains at every point, each with its name.
    """

    effort: float
    names: Callable[[Sequence[int]], Iterable[Named]]


def within(work: Work, family: Iterator[Guess]) -> Iterator[Guess]:
    """A family that ends when its purse is empty."""
    try:
        for guess in family:
            yield guess
            if work.is_spent:
                return
    except SpentError:
        return


def late(effort: float, family: Iterator[Guess]) -> Iterator[Guess]:
    """A family that begins when all that is nearer than `effort` has been tried.

    Whatever is merged is asked for its first guess at once: for one that must be searched for, too soon.
    """
    yield Guess(effort, lambda _: ())
    yield from family


def search(
    families: Iterable[Iterator[Guess]], wrong: Sequence[int], failures: list[Exception]
) -> dict[int, tuple[float, Finding]]:
    """For each of the `wrong` gradients that has a name, the least far-fetched, and how far-fetched it is.

    What a family raises, whatever a program holds that it does not expect, ends that guess or that family
    only, and is put down in `failures`.
    """
    best = dict[int, tuple[float, Finding]]()
    lasting = [_until_failure(family, failures) for family in families]
    for guess in heapq.merge(*lasting, key=lambda guess: guess.effort):
        left = [i for i in wrong if i not in best or guess.effort < best[i][0]]
        if not left:
            break
        try:
            for i, effort, finding in guess.names(left):
                if i not in best or effort < best[i][0]:
                    best[i] = effort, finding
        except SpentError:  # its family ends
            continue
        except Exception as error:
            failures.append(error)
    return best


def _until_failure(family: Iterator[Guess], failures: list[Exception]) -> Iterator[Guess]:
    try:
        yield from family
    except SpentError:
        return
    except Exception as error:
        failures.append(error)
