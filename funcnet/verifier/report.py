"""What the verifier found: one row per gradient, one finding per mistake, readable in five seconds."""

import dataclasses
import json
import math
from typing import Any

import numpy as np

__all__ = ["KINDS", "Finding", "FormulaError", "Report", "Row"]

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
    "convention": "at a kink or tie another subgradient than autodiff's, just as right: not a mistake",
    "precision": "right in float64, less exact in the given dtype than it should be",
    "nondeterministic": "two runs on the same values differ",
    "nan": "not finite where the true gradient is",
    "shape": "another shape than the argument has",
    "structure": "another number or nesting of gradients than there are arguments",
    "dtype": "another dtype than the argument has",
    "truth_disputed": "autodiff of the forward pass itself disagrees with numerical differentiation",
    "unknown": "wrong, and the mistake has no name yet",
}


class FormulaError(AssertionError):
    """A gradient formula is wrong; the text is the report."""


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
    """

    argument: str
    kind: str
    message: str
    suggestion: str = ""
    location: str = ""
    error: float = math.inf
    where: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"Finding: no kind {self.kind!r}: there are {', '.join(KINDS)}.")

    @property
    def is_mistake(self) -> bool:
        """Whether the formula is wrong. Not so a `convention`, nor where autodiff is wrong instead."""
        return self.kind not in ("convention", "truth_disputed")

    def __str__(self) -> str:
        parts = [
            f"{self.kind}: {self.message}",
            self.suggestion,
            f"wrong at {self.where}" if self.where else "",
        ]
        return "; ".join(filter(None, parts)) + (f" ({self.location})" if self.location else "")


@dataclasses.dataclass(frozen=True)
class Row:
    """One gradient.

    Attributes:
        operation: what was verified: the forward function or operation.
        argument: the leaf: ``x``, ``params["w"]``; of a model, the worst leaf of the call.
        shapes: shapes of the arguments, as given.
        count: how many calls of the same shapes the row stands for.
        error: largest error over all cotangents, relative to the largest element of the true gradient.
        tolerance: the error that is allowed, derived from dtype, reduction length and conditioning.
        ok: whether the formula is right here.
        note: what is wrong, or worth knowing, where more is known than a number.
        errors: the error of every element, relative likewise; None of a model, or where shapes differ.
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


@dataclasses.dataclass(frozen=True)
class Report:
    """The outcome of a verification; prints as a table.

    Attributes:
        rows: one per gradient.
        findings: the mistakes, and conventions that differ; empty where all is as autodiff has it.
        notes: what was checked besides, what could not be, and why.
        sources: the text of the formulas, by name, where it is known: ``forward``, ``backward``.
    """

    rows: tuple[Row, ...]
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    sources: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether every formula is right."""
        return all(row.ok for row in self.rows) and not any(f.is_mistake for f in self.findings)

    @property
    def verdict(self) -> str:
        """One line: ``3 of 3 gradients right``."""
        wrong, total = sum(not row.ok for row in self.rows), len(self.rows)
        if wrong:
            return f"{wrong} of {total} gradients WRONG"
        if not self.ok:
            kinds = dict.fromkeys(f.kind for f in self.findings if f.is_mistake)
            return f"WRONG ({', '.join(kinds)})"
        return f"{total} of {total} gradients right"

    def table(self) -> str:
        """The rows as text, wrong ones marked, then the findings, with the verdict last."""
        columns = ["operation", "gradient of", "shapes", "calls", "error", "allowed", ""]
        cells = [
            [
                r.operation,
                r.argument,
                r.shapes,
                str(r.count),
                f"{r.error:.1e}",
                f"{r.tolerance:.0e}",
                ("right" if r.ok else "WRONG") + (f": {r.note}" if r.note else ""),
            ]
            for r in self.rows
        ]
        if all(r.count == 1 for r in self.rows):
            del columns[3]
            for row in cells:
                del row[3]
        widths = [max(len(row[i]) for row in [columns, *cells]) for i in range(len(columns))]
        lines = [
            "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
            for row in [columns, *cells]
        ]
        lines += [f"{f.argument or 'formula'}: {f}" for f in self.findings]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join([*lines, self.verdict])

    def to_json(self) -> str:
        """As JSON text: ``ok``, ``verdict``, ``rows``, ``findings``, ``notes``; infinite numbers are null."""

        def plain(record: Any) -> dict[str, Any]:
            return {
                k: None if isinstance(v, float) and not math.isfinite(v) else v
                for k, v in vars(record).items()
                if k != "errors"
            }

        return json.dumps(
            {
                "ok": self.ok,
                "verdict": self.verdict,
                "rows": [plain(row) for row in self.rows],
                "findings": [plain(finding) for finding in self.findings],
                "notes": list(self.notes),
            },
            indent=1,
            ensure_ascii=False,
            allow_nan=False,
        )

    def to_html(self) -> str:
        """As one page that needs no network: verdict, tables, heat maps of the errors, formulas."""
        from funcnet.verifier.html import page

        return page(self)

    def raise_if_wrong(self) -> None:
        """Raise `FormulaError` with the table as its text, unless every formula is right."""
        if not self.ok:
            raise FormulaError("\n" + self.table())

    def __str__(self) -> str:
        return self.table()
