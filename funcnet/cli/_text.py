"""Headings and tables on standard output; styles only where it is a terminal."""

from collections.abc import Sequence

from rich.console import Console

__all__ = ["duration", "heading", "table"]


def heading(text: str, style: str = "bold") -> None:
    """Print a line in a style of rich."""
    Console(highlight=False, soft_wrap=True).print(text, style=style, markup=False)


def duration(seconds: float) -> str:
    """A time in seconds, or, from two of them on, in minutes."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> None:
    """Print aligned columns, two spaces apart.

    Args:
        columns: their names.
        rows: their cells.
        right: the names of the columns that are aligned to the right.
    """
    lines = [list(columns), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        cells = [
            cell.rjust(width) if name in right else cell.ljust(width)
            for name, cell, width in zip(columns, line, widths, strict=True)
        ]
        print("  ".join(cells).rstrip())
