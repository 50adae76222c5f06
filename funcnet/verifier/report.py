"""The outcome of a verification, readable in five seconds: a table, JSON, an HTML page, a notebook's cell."""

import dataclasses
import json
import math
from typing import Any

from funcnet.verifier import html
from funcnet.verifier.finding import Finding, Row, together

__all__ = ["FormulaError", "Report"]

VERSION = 1  # of the JSON: changes where a key goes or means something else; new keys may come at any time
_COLUMN = {  # the heading of the rows' arguments, by what the rows are
    "gradients": "gradient of",
    "tangents": "tangent along",
    "values and gradients": "value, gradient of",
}


class FormulaError(AssertionError):
    """A gradient formula is wrong; the text is the report."""


def _state(row: Row) -> str:
    if row.unseen and not row.ok:
        return row.unseen
    return ("right" if row.ok else "WRONG") + (f": {row.note}" if row.note else "")


@dataclasses.dataclass(frozen=True, repr=False)
class Report:
    """The outcome of a verification; prints as a table, and a notebook shows it as one.

    Attributes:
        rows: one per gradient.
        findings: the mistakes, and conventions that differ; empty where all is as autodiff has it.
        notes: what was checked besides, what could not be, and why.
        sources: the text of the formulas, by name, where it is known: ``forward``, ``backward``.
        seed: of all that was drawn at random; None where it is not known.
        of: what the rows are: "gradients", "tangents", "values and gradients".
    """

    rows: tuple[Row, ...]
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    sources: dict[str, str] = dataclasses.field(default_factory=dict)
    seed: int | None = None
    of: str = "gradients"

    def and_then(self, other: "Report") -> "Report":
        """This report and another below it."""
        return dataclasses.replace(
            self,
            rows=self.rows + other.rows,
            findings=self.findings + other.findings,
            notes=tuple(dict.fromkeys(self.notes + other.notes)),
            sources={
                name: "\n\n".join(dict.fromkeys(r.sources[name] for r in (self, other) if name in r.sources))
                for name in {**self.sources, **other.sources}
            },
        )

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
            return f"{wrong} of {total} {self.of} WRONG{rest}"
        if kinds := dict.fromkeys(f.kind for f in self.findings if f.is_mistake):
            return f"WRONG ({', '.join(kinds)})"
        if not total:
            return "0 rules met"
        if self.unseen:
            return f"{total - len(self.unseen)} of {total} {self.of} verified, and right"
        return f"{total} of {total} {self.of} right"

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
        return "\n".join([*self._lines(), self.verdict])

    def _lines(self) -> list[str]:
        columns = ["operation", _COLUMN[self.of], "shapes", "calls", "error", "allowed", ""]
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
        for f in together(self.findings):
            lines += [f"{f.argument or 'formula'}: {f}", *[f"  {f.example}"] * bool(f.example)]
        return lines + [f"note: {note}" for note in self._notes]

    @property
    def _notes(self) -> tuple[str, ...]:
        return self.notes if self.seed is None else (*self.notes, f"drawn at random with seed {self.seed}")

    def to_json(self) -> str:
        """As JSON text, whose keys docs/verify-reports.md lists; a number that is not finite is null."""
        data = {"version": VERSION, "ok": self.ok, "verdict": self.verdict, "seed": self.seed}
        data |= {"rows": [_plain(row) for row in self.rows]}
        data |= {"findings": [_plain(finding) for finding in self.findings]}
        data |= {"notes": list(self.notes), "sources": self.sources}
        return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False)

    def to_html(self) -> str:
        """As one page that needs no network: verdict, tables, heat maps of the errors, formulas."""
        return html.page(self.verdict, self.ok, self.rows, self.findings, self._notes, self.sources)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return html.cell(self.verdict, self.ok, self.rows, self.findings, self._notes)

    def raise_if_wrong(self) -> None:
        """Raise `FormulaError` with the table as its text, unless every row was judged right."""
        __tracebackhide__ = True  # pytest then shows the line of the test
        if not self.ok:
            raise FormulaError("\n".join([self.verdict, *self._lines()]))

    def __repr__(self) -> str:
        return self.table()


def _plain(record: Row | Finding) -> dict[str, Any]:
    """The fields of a row or a finding, but for arrays."""
    names = [f.name for f in dataclasses.fields(record) if f.name not in ("errors", "sample")]
    fields = {name: getattr(record, name) for name in names}
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in fields.items()}
