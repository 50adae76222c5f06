"""What the verifier found: one row per gradient, readable in five seconds."""

import dataclasses

__all__ = ["FormulaError", "Report", "Row"]


class FormulaError(AssertionError):
    """A gradient formula is wrong; the text is the report."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One gradient.

    Attributes:
        operation: what was verified: the forward function or operation.
        argument: the leaf: ``x``, ``params["w"]``; of a model, the worst leaf of the call.
        shapes: shapes and dtypes of the arguments, as given.
        count: how many calls of the same shapes the row stands for.
        error: largest error over all cotangents, relative to the largest element of the true gradient.
        tolerance: the error that is allowed.
        ok: whether the formula is right here.
        note: what is wrong, where more is known than a number.
    """

    operation: str
    argument: str
    shapes: str
    count: int
    error: float
    tolerance: float
    ok: bool
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Report:
    """The outcome of a verification; prints as a table."""

    rows: tuple[Row, ...]

    @property
    def ok(self) -> bool:
        """Whether every formula is right."""
        return all(row.ok for row in self.rows)

    def table(self) -> str:
        """The rows as text, wrong ones marked, with the verdict last."""
        columns = ["operation", "gradient of", "shapes", "calls", "error", "allowed", ""]
        cells = [
            [
                r.operation,
                r.argument,
                r.shapes,
                str(r.count),
                f"{r.error:.1e}",
                f"{r.tolerance:.0e}",
                _verdict(r),
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
        wrong = sum(not row.ok for row in self.rows)
        total = len(self.rows)
        verdict = f"{wrong} of {total} gradients WRONG" if wrong else f"{total} of {total} gradients right"
        return "\n".join([lines[0], *lines[1:], verdict])

    def raise_if_wrong(self) -> None:
        """Raise `FormulaError` with the table as its text, unless every formula is right."""
        if not self.ok:
            raise FormulaError("\n" + self.table())

    def __str__(self) -> str:
        return self.table()


def _verdict(row: Row) -> str:
    return ("right" if row.ok else "WRONG") + (f": {row.note}" if row.note else "")
