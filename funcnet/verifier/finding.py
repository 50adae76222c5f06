"""What the verifier finds, as data: a row per gradient, a finding per mistake."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

__all__ = ["KINDS", "Finding", "Row", "Sample", "sizes", "together"]

# The closed set of kinds, each with what it means. `convention` and `truth_disputed` are no mistakes.
KINDS = {
    "sign": "the gradient has the opposite sign",
    "scale": "the gradient is off by a constant factor",
    "transpose": "a matrix stands where its transpose is needed",
    "zero": "the gradient is zero, or none is given, where it is not zero",
    "missing_term": "a term or a factor of the gradient is missing",
    "extra_term": "the gradient holds a term or a factor that does not belong there",
    "missing_batch_sum": "the gradient of a shared argument is not summed over the batch",
    "wrong_axis": "a sum, mean or the like runs over another axis",
    "unbroadcast": "the gradient of a broadcast argument is not summed back to its shape",
    "ignores_cotangent": "the gradient does not depend on dy, or not on all of it",
    "nonlinear_in_cotangent": "the gradient is not linear in dy",
    "wrong_residual": "another value stands where a value of the forward pass is needed",
    "mask": "a mask is missing, added or inverted",
    "border": "right inside, wrong at the border",
    "flip": "reversed along an axis",
    "shift": "shifted along an axis",
    "swapped": "two gradients or two operands are exchanged",
    "statistics_constant": "a statistic of the forward pass (a mean, a variance) is held constant",
    "value": "the forward pass gives other values than its definition",
    "convention": "at a kink or tie another subgradient than autodiff's, just as right: not a mistake",
    "precision": "right in float64, less exact in the given dtype than it should be",
    "nondeterministic": "two runs on the same values differ",
    "nan": "not finite where the true gradient is",
    "shape": "another shape than the argument has",
    "structure": "another number or nesting of gradients than there are arguments",
    "layout": "another where tensors of PyTorch are not contiguous, or some need no gradient",
    "dtype": "another dtype than the argument has",
    "truth_disputed": "autodiff of the forward pass itself disagrees with numerical differentiation",
    "unknown": "wrong, and the mistake has no name yet",
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One mistake, or one thing worth knowing.

    Attributes:
        argument: the gradient at fault, as the user writes the leaf: ``x``, ``params["w"]``; "" of all.
        kind: one of `KINDS`.
        message: what is wrong, in one sentence.
        suggestion: the edit that makes it right, in words; "" where it is not known.
        location: ``file.py:57`` of the line at fault; "" where it is not known.
        error: largest error relative to the largest element of the true gradient.
        where: the elements of the gradient that are wrong, in words: ``rows 0 and 6``; "" where all are.
        example: ``fails at x = [2, 1], dy = [1, 3]: expected [4, 6], got [2, 1]``, at the smallest sizes at
            which the functions run; "" where these are not small, and of all but the first wrong gradient.
        code: what to write instead of the line at `location`, or of the formula as text: it was run, and is
            right; "" where that is not known.
        given: what arguments must be for `code` to be right, as the given ones are: ``A is symmetric``; ""
            where they may be anything.
        also: one more of `KINDS` that is as true, as a residual that lacks a factor is a wrong one; of two
            mistakes in one gradient that of the second; "" as a rule.
    """

    argument: str
    kind: str
    message: str
    suggestion: str = ""
    location: str = ""
    error: float = math.inf
    where: str = ""
    example: str = ""
    code: str = ""
    given: str = ""
    also: str = ""

    def __post_init__(self) -> None:
        for kind in (self.kind, *([self.also] if self.also else [])):
            if kind not in KINDS:
                raise ValueError(f"Finding: no kind {kind!r}: there are {', '.join(KINDS)}.")

    @property
    def is_mistake(self) -> bool:
        """Whether the formula is wrong. Not so a `convention`, nor where autodiff is wrong instead."""
        return self.kind not in ("convention", "truth_disputed")

    def __str__(self) -> str:
        parts = [
            f"{self.kind}{f' and {self.also}' if self.also else ''}: {self.message}",
            self.suggestion,
            f"wrong at {self.where}" if self.where else "",
            f"write: `{self.code}`{f', right where {self.given}' if self.given else ''}" if self.code else "",
        ]
        return "; ".join(filter(None, parts)) + (f" ({self.location})" if self.location else "")


def together(findings: Iterable[Finding]) -> list[Finding]:
    """The findings, those that say the same of several arguments as one: ``x, w: transpose: ...``."""
    alike: dict[tuple[str, ...], list[Finding]] = {}
    for one in findings:
        known = (one.kind, one.also, one.message, one.suggestion, one.location, one.code, one.given)
        alike.setdefault(known, []).append(one)
    return [
        dataclasses.replace(
            many[0],
            argument=", ".join(dict.fromkeys(one.argument for one in many)),
            error=max(one.error for one in many),
            where=many[0].where if len({one.where for one in many}) == 1 else "",
        )
        for many in alike.values()
    ]


class Sample(NamedTuple):
    """One gradient as it was computed, along one cotangent.

    Attributes:
        got: by the formula, in whatever shape it gives; None where it gives none.
        want: the true one.
        at: which arguments these were: ``as given``, ``values near``.
    """

    got: np.ndarray | None
    want: np.ndarray
    at: str


@dataclasses.dataclass(frozen=True)
class Row:
    """One gradient.

    Attributes:
        operation: what was verified: the forward function or operation.
        argument: the leaf: ``x``, ``params["w"]``; of a model, the worst leaf of the call.
        shapes: shapes of the arguments, as given.
        count: how many calls of the same shapes the row stands for.
        error: largest error over all cotangents, relative to the largest element of the true gradient.
        tolerance: the error that is allowed: how far roundings redone at random move the true gradient.
        ok: whether the formula was judged right here.
        note: what is wrong, or worth knowing, where more is known than a number.
        errors: the error of every element, relative likewise; None of a model, where shapes differ, or
            where a gradient of more than a million elements is right.
        unseen: why it was judged neither right nor wrong: ``undecided: ...``, ``not verified: ...``.
        location: ``file.py:57``, where the rule is written; "" where that is not known, or nobody's rule.
        sample: where it is wrong, the gradient and the true one; None of a model, and of large ones.
    """

    operation: str
    argument: str
    shapes: str
    count: int
    error: float
    tolerance: float
    ok: bool
    note: str = ""
    errors: np.ndarray | None = dataclasses.field(default=None, compare=False, repr=False)
    unseen: str = ""
    location: str = ""
    sample: Sample | None = dataclasses.field(default=None, compare=False, repr=False)


def sizes(arrays: Iterable[Any]) -> str:
    """The shapes of arrays: ``7×11, 11×13``."""
    return ", ".join("×".join(map(str, v.shape)) or "scalar" for v in arrays)
