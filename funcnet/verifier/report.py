"""The outcome of a verification, readable in five seconds: as a table, as JSON, as one HTML page."""

import dataclasses
import json
import math
from typing import Any

from funcnet.verifier import html
from funcnet.verifier.finding import Finding, Row

__all__ = ["FormulaError", "Report"]


class FormulaError(AssertionError):
    """A gradient formula is wrong; the text is the report."""


def _state(row: Row) -> str:
    if row.unseen and not row.ok:
        return row.unseen
    return ("right" if row.ok else "WRONG") + (f": {row.note}" if row.note else "")


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
        """Whether every row was judged right, and nothing else is wrong."""
        return all(row.ok for row in self.rows) and not any(f.is_mistake for f in self.findings)

    @property
    def verdict(self) -> str:
        """One line: ``3 of 3 gradients right``."""
        wrong, total = sum(not row.ok and not row.unseen for row in self.rows), len(self.rows)
        if wrong:
            rest = f", {len(self.unseen)} not verified" if self.unseen else ""
            return f"{wrong} of {total} gradients WRONG{rest}"
        if kinds := dict.fromkeys(f.kind for f in self.findings if f.is_mistake):
            return f"WRONG ({', '.join(kinds)})"
        if not total:
            return "0 rules met"
        if self.unseen:
            return f"{total - len(self.unseen)} of {total} gradients verified, and right"
        return f"{total} of {total} gradients right"

    @property
    def wrong(self) -> tuple[Finding, ...]:
        """The mistakes."""
        return tuple(f for f in self.findings if f.is_mistake)

    @property
    def unseen(self) -> tuple[Row, ...]:
        """The rows of which nothing is known: undecided, or not verified."""
        return tuple(row for row in self.rows if row.unseen and not row.ok)

    @property
    def is_unseen(self) -> bool:
        """Whether nothing is known to be wrong, but something is undecided or was not verified."""
        return bool(self.unseen) and not self.wrong and all(row.ok or row.unseen for row in self.rows)

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
                _state(r),
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
        return html.page(self.verdict, self.ok, self.rows, self.findings, self.notes, self.sources)

    def raise_if_wrong(self) -> None:
        """Raise `FormulaError` with the table as its text, unless every row was judged right."""
        if not self.ok:
            raise FormulaError("\n" + self.table())

    def __str__(self) -> str:
        return self.table()
