"""Naming a mistake from its size: which product of intermediate values is the difference from the truth?

The difference is compared with every c · p · Σ(q · m): p and q values of the forward pass (or 1), m one that
follows dy, Σ over some axes or none. Layer norm's x̂ · mean(dy · x̂) is of this form.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from funcnet.verifier.diagnosis.slips import AXES, Edit, Scope, Term, added
from funcnet.verifier.diagnosis.work import Work
from funcnet.verifier.trace import CALL

__all__ = ["missing"]

MANY = 24  # values of one kind; more are not combined


class Product(NamedTuple):
    """p · Σ(q · m) over `axes`, which stay with size 1; p and q may be None, for 1."""

    p: Term | None
    q: Term | None
    m: Term
    axes: tuple[int, ...]

    def __call__(self, known: Sequence[Any]) -> Any:
        """What it is among all values."""
        inner = self.m(known) if self.q is None else self.q(known) * self.m(known)
        inner = inner.sum(self.axes, keepdims=True) if self.axes else inner
        return inner if self.p is None else self.p(known) * inner

    @property
    def words(self) -> str:
        """With placeholders for the values."""
        inner = self.m.words if self.q is None else f"{self.q.words} · {self.m.words}"
        inner = f"sum({inner}) over {', '.join(map(str, self.axes))}" if self.axes else inner
        return inner if self.p is None else f"{self.p.words} · {inner}"


def missing(
    scope: Scope,
    output: int,
    known: Sequence[Sequence[Any]],
    differences: Sequence[np.ndarray],
    work: Work,
) -> Iterator[Edit]:
    """The products that a gradient lacks a multiple of, as edits that add them.

    Args:
        scope: where the values are.
        output: the gradient's value.
        known: all values, for each cotangent.
        differences: truth minus formula, for each cotangent.
        work: what it may cost.
    """
    want = np.stack(differences)
    k = next(k for k, eqn in enumerate(scope.program.equations) if output in eqn.outputs)
    norm = _along(want, want)
    cost = lambda product: len(known) * (3 * CALL + np.size(known[0][product.m.value]))
    for product in _products(scope, want.shape[1:]):
        work.pay(CALL + 3 * want.size + cost(product))
        with np.errstate(all="ignore"):
            term = np.stack([np.broadcast_to(product(values), want.shape[1:]) for values in known])
        size, along = _along(term, term), _along(term, want)
        if size > 0 and along**2 >= (1 - 1e-12) * size * norm:
            add = added(k, product)
            yield Edit("missing_term", f"add {{c}} · {product.words}", k, add, 3.0, solved=True)


def _along(a: np.ndarray, b: np.ndarray) -> float:
    """Re ⟨a, b⟩, not by BLAS, which starts threads for it and waits for them."""
    return float((a.conj() * b).sum().real)


def _products(scope: Scope, shape: tuple[int, ...]) -> Iterator[Product]:
    fits = lambda x: x.ndim == 0 or (x.ndim <= len(shape) and all(_one(x.shape, shape)))
    floating = [(t, x) for t, x in scope.terms if np.issubdtype(x.dtype, np.inexact) and x.ndim]
    still = [(t, x) for t, x in floating if t.value not in scope.moved and not t.function]
    of = [(t, x) for t, x in floating if t.value in scope.moved][:MANY]
    outer: list[Any] = [None, *[t for t, x in still if fits(x)][:MANY]]
    for m, y in of:
        inner: list[Any] = [
            None,
            *[t for t, x in still if x.ndim == y.ndim and all(_one(x.shape, y.shape))][:MANY],
        ]
        for q in inner:
            for axes in itertools.islice(_sums(y.shape, shape), AXES):
                yield from (Product(p, q, m, axes) for p in outer)


def _sums(shape: tuple[int, ...], to: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The sets of axes whose sums, kept with size 1, broadcast to another shape; small ones first."""
    if len(shape) > len(to):
        return
    fits = [False] * len(shape)
    fits[::-1] = _one(shape, to)
    needed = {a for a, fit in enumerate(fits) if not fit}
    free = [a for a, fit in enumerate(fits) if fit and shape[a] > 1]
    for n in range(len(free) + 1):
        for some in itertools.combinations(free, n):
            yield tuple(sorted(needed.union(some)))


def _one(shape: Sequence[int], to: Sequence[int]) -> list[bool]:
    return [a in (1, b) for a, b in zip(reversed(shape), reversed(to), strict=False)]
