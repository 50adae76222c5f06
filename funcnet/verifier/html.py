"""A report as one HTML page: no script, no network, light and dark, fit for a phone and for paper.

The frame and the style are those of every page that funcnet writes (`cli/_page.py` has the others).
"""

import math
from collections.abc import Iterator
from html import escape

import numpy as np

from funcnet.verifier.finding import KINDS, Finding, Row

__all__ = ["frame", "gradients", "page", "section"]

CELLS = 48  # of a heat map, at most, along either side
STEPS = 7  # of colour between the allowed error and 1

_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'{policy}">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>{end}
</body>
</html>
"""
_STYLE = """
:root {
  --paper: #fdfdfb; --ink: #1d2327; --soft: #667078; --line: #e3e5e2; --panel: #f5f5f1;
  --right: #1f7a4d; --wrong: #b3261e; --nan: #7c4dd6;
  --e0: #e4ebe8; --e1: #fbeec2; --e2: #f8d88c; --e3: #f4b95a; --e4: #ec923f; --e5: #da6330; --e6: #bb3a26;
  --e7: #8a1b1f;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14181a; --ink: #e3e7e8; --soft: #939da3; --line: #2b3134; --panel: #1b2022;
    --right: #5cc28e; --wrong: #ff8a7a; --nan: #b092ff;
    --e0: #263033; --e1: #4d3d1a; --e2: #705019; --e3: #96601c; --e4: #bd6d25; --e5: #dc7e40; --e6: #f39a6b;
    --e7: #ffc7a8;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 56rem; margin: 0 auto; padding: 3.5rem 1.25rem 5rem; }
header { border-bottom: 1px solid var(--line); padding-bottom: 1.75rem; }
h1, h2, h3 { font-weight: 600; }
h1 { font-size: clamp(1.6rem, 5vw, 2.2rem); line-height: 1.2; letter-spacing: -.015em; margin: .2rem 0; }
h2 { font-size: .8rem; letter-spacing: .08em; text-transform: uppercase; margin: 2.75rem 0 1rem; }
h2, .soft { color: var(--soft); }
h3 { font-size: 1rem; margin: 0 0 .25rem; }
p { margin: 0 0 .5rem; }
code, pre, td.number { font: .875em/1.6 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.small { font-size: .875rem; }
.right { color: var(--right); } .wrong { color: var(--wrong); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 500; font-size: .875rem; color: var(--soft); }
th, td { padding: .5rem 1.25rem .5rem 0; border-bottom: 1px solid var(--line); vertical-align: baseline; }
th.number, td.number { text-align: right; white-space: nowrap; }
td:last-child, th:last-child { padding-right: 0; }
article { border-left: 3px solid var(--wrong); padding: .1rem 0 .1rem 1.1rem; margin: 0 0 1.75rem; }
article.convention { border-color: var(--line); }
article p { max-width: 44rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: .6rem 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.maps { display: flex; flex-wrap: wrap; gap: 2rem 2.5rem; align-items: flex-start; }
figure { margin: 0; max-width: 100%; }
figcaption { margin-bottom: .5rem; }
svg { display: block; max-width: 100%; height: auto; }
rect { stroke: var(--paper); stroke-width: .08; }
.e0 { fill: var(--e0); background: var(--e0); } .e1 { fill: var(--e1); background: var(--e1); }
.e2 { fill: var(--e2); background: var(--e2); } .e3 { fill: var(--e3); background: var(--e3); }
.e4 { fill: var(--e4); background: var(--e4); } .e5 { fill: var(--e5); background: var(--e5); }
.e6 { fill: var(--e6); background: var(--e6); } .e7 { fill: var(--e7); background: var(--e7); }
.nan { fill: var(--nan); background: var(--nan); }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.75rem; margin: 0 0 1.5rem; }
.legend i { display: inline-block; width: 1.1rem; height: .75rem; }
pre { background: var(--panel); border-radius: 6px; padding: 1rem; margin: 0 0 1.5rem; overflow-x: auto; }
ul { margin: 0; padding-left: 1.1rem; }
footer { margin-top: 4rem; }
"""


def page(
    verdict: str,
    ok: bool,
    rows: tuple[Row, ...],
    findings: tuple[Finding, ...],
    notes: tuple[str, ...],
    sources: dict[str, str],
) -> str:
    """A report as a page of its own: verdict, gradients, findings, heat maps, formulas and notes.

    Args:
        verdict: of the `Report`, and so the rest; its texts are escaped, whatever they hold.
        ok: whether every formula is right.
        rows: one per gradient.
        findings: the mistakes.
        notes: what else is worth knowing.
        sources: the text of the formulas, by name.

    Returns:
        HTML that opens from a file: it has no script, and its own policy forbids every one, and every load.
    """
    parts = [
        _header(verdict, ok, rows),
        section("Findings", *map(_finding, findings)),
        section("Gradients", gradients(rows) if rows else ""),
        section("Where the errors are", _maps(rows)),
        section("Formulas", *(f"<h3>{escape(k)}</h3>\n<pre>{escape(v)}</pre>" for k, v in sources.items())),
        section("Notes", _notes(notes)),
    ]
    return frame(verdict, *parts)


def frame(title: str, *parts: str, style: str = "", policy: str = "", end: str = "") -> str:
    """A whole page.

    Args:
        title: plain text.
        parts: HTML, from above to below; empty ones are left out.
        style: CSS beside that of all pages.
        policy: what the page may do besides having a style: ``; img-src data:``.
        end: HTML below what is shown: scripts.
    """
    return _PAGE.format(
        title=escape(f"{title} · funcnet"),
        style=_STYLE + style,
        policy=policy,
        body="\n".join(filter(None, parts)),
        end=end,
    )


def section(title: str, *parts: str) -> str:
    """A part of a page below its heading, both HTML; nothing if there is nothing in it."""
    inside = "\n".join(filter(None, parts))
    return f"<section>\n<h2>{title}</h2>\n{inside}\n</section>" if inside else ""


def _header(verdict: str, ok: bool, rows: tuple[Row, ...]) -> str:
    operations = {row.operation for row in rows}
    names = f"{len(operations)} operations" if len(operations) > 1 else escape("".join(operations))
    return (
        f'<header>\n<p class="soft small">funcnet verify · <code>{names}</code></p>\n'
        f'<h1 class="{_mood(ok)}">{escape(verdict)}</h1>\n'
        '<p class="soft">Every gradient formula, element by element, against autodiff of its definition.</p>'
        "\n</header>"
    )


def _mood(ok: bool) -> str:
    return "right" if ok else "wrong"


def gradients(rows: tuple[Row, ...]) -> str:
    """The table of gradients, as HTML."""
    several = len({row.operation for row in rows}) > 1
    counted = any(row.count > 1 for row in rows)
    columns = [
        *["operation"] * several,
        "gradient of",
        "shapes",
        *["calls"] * counted,
        "error",
        "allowed",
        "",
    ]
    head = "".join(f"<th{_number(column)}>{column}</th>" for column in columns)
    body = []
    for row in rows:
        verdict = f'<span class="{_mood(row.ok)}">{_mood(row.ok)}</span>'
        cells = {
            "operation": f"<code>{escape(row.operation)}</code>",
            "gradient of": f"<code>{escape(row.argument)}</code>",
            "shapes": escape(row.shapes),
            "calls": str(row.count),
            "error": f"{row.error:.1e}",
            "allowed": f"{row.tolerance:.0e}",
            "": verdict + (f": {escape(row.note)}" if row.note else ""),
        }
        body.append("<tr>" + "".join(f"<td{_number(c)}>{cells[c]}</td>" for c in columns) + "</tr>")
    lines = "\n".join(body)
    table = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}\n</tbody>\n</table>"
    return f'<div class="scroll">\n{table}\n</div>'


def _number(column: str) -> str:
    return ' class="number"' if column in ("calls", "error", "allowed") else ""


def _finding(finding: Finding) -> str:
    facts = {
        "fix": escape(finding.suggestion),
        "wrong at": escape(finding.where),
        "line": f"<code>{escape(finding.location)}</code>" if finding.location else "",
        "error": f"{finding.error:.2g} of the largest element" if math.isfinite(finding.error) else "",
    }
    lines = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in facts.items() if text)
    return (
        f'<article class="{"mistake" if finding.is_mistake else "convention"}">\n'
        f"<h3><code>{escape(finding.argument or 'formula')}</code>: {escape(finding.message)}</h3>\n"
        + (f"<dl>{lines}</dl>\n" if lines else "")
        + f'<p class="soft small"><code>{finding.kind}</code>: {escape(KINDS[finding.kind])}.</p>\n</article>'
    )


def _notes(notes: tuple[str, ...]) -> str:
    return "<ul>\n" + "\n".join(f"<li>{escape(note)}</li>" for note in notes) + "\n</ul>" if notes else ""


# ---- heat maps --------------------------------------------------------------------------------------------


def _maps(rows: tuple[Row, ...]) -> str:
    drawn = [
        _map(row.argument, row.errors, row.tolerance)
        for row in rows
        if row.errors is not None and row.errors.size
    ]
    if not drawn:
        return ""
    steps = "".join(f'<i class="e{step}"></i>' for step in range(1, STEPS + 1))
    return (
        '<p class="legend small soft"><span><i class="e0"></i> allowed</span>'
        f"<span>{steps} up to the largest element of the gradient, and beyond</span>"
        '<span><i class="nan"></i> not finite</span></p>\n'
        '<div class="maps">\n' + "\n".join(drawn) + "\n</div>"
    )


def _map(argument: str, errors: np.ndarray, tolerance: float) -> str:
    """One heat map. A cell that stands for several elements has the largest error of them."""
    shape, name = "×".join(map(str, errors.shape)) or "scalar", escape(argument)
    flat = _flat(errors)
    height, width = (min(size, CELLS) for size in flat.shape)
    cells = "".join(
        f'<rect class="{_level(error, tolerance)}" x="{x}" y="{y}" width="1" height="1">'
        f"<title>{name}{where or ''}: {error:.2g}</title></rect>"
        for y, x, where, error in _pooled(flat, errors.shape)
    )
    pooled = "" if flat.shape == (height, width) else "; each cell is the worst of a block"
    size = min(24, max(7, 360 // max(height, width)))
    box = f'width="{size * width}" viewBox="0 0 {width} {height}"'
    return (
        f'<figure>\n<figcaption><code>{name}</code> <span class="soft small">{shape}, '
        f"allowed {tolerance:.0e}{pooled}</span></figcaption>\n"
        f'<svg role="img" aria-label="errors of {name}" {box}>{cells}</svg>\n</figure>'
    )


def _flat(errors: np.ndarray) -> np.ndarray:
    """The array with two axes, merged where the picture comes closest to a square."""
    shape = errors.shape if errors.ndim > 1 else (1, errors.size)
    ratios = [abs(math.log(math.prod(shape[:k]) / math.prod(shape[k:]))) for k in range(1, len(shape))]
    k = ratios.index(min(ratios)) + 1
    return errors.reshape(math.prod(shape[:k]), -1)


def _pooled(flat: np.ndarray, shape: tuple[int, ...]) -> Iterator[tuple[int, int, list[int], float]]:
    """Row, column, the worst element's index in `shape` and its error, of every cell."""
    worst = np.where(np.isfinite(flat), flat, np.inf)
    rows, columns = ((np.arange(min(n, CELLS) + 1) * n) // min(n, CELLS) for n in flat.shape)
    for y in range(len(rows) - 1):
        for x in range(len(columns) - 1):
            block = worst[rows[y] : rows[y + 1], columns[x] : columns[x + 1]]
            i, j = np.unravel_index(block.argmax(), block.shape)
            at = int(rows[y] + i) * flat.shape[1] + int(columns[x] + j)
            yield y, x, [int(i) for i in np.unravel_index(at, shape)], float(flat.flat[at])


def _level(error: float, tolerance: float) -> str:
    """The colour of an error, in equal steps of its logarithm."""
    if not math.isfinite(error):
        return "nan"
    if error <= tolerance:
        return "e0"
    if error >= 1 or tolerance <= 0:
        return f"e{STEPS}"
    return f"e{min(STEPS, 1 + int(STEPS * math.log(error / tolerance) / -math.log(tolerance)))}"
