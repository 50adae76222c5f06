"""A report as one HTML page, or a notebook's cell: no script, no network, light and dark, fit for a phone.

The frame and the style are those of every page that funcnet writes (`cli/_page.py` has the others).
"""

import keyword
import linecache
import math
import re
from collections.abc import Iterator
from html import escape

import numpy as np

from funcnet.verifier.finding import KINDS, Finding, Row, together

__all__ = ["cell", "frame", "gradients", "page", "section"]

CELLS = 32  # of a picture, at most, along either side
STEPS = 5  # of colour, on either side of zero

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
_LIGHT = """
  --paper: #fdfdfb; --ink: #1d2327; --soft: #667078; --line: #e3e5e2; --panel: #f5f5f1;
  --right: #1f7a4d; --wrong: #b3261e; --nan: #7c4dd6; --word: #7a3e9d; --text: #24713f; --fault: #fbe3df;
  --z: #e9ebe8; --p1: #f7d9c4; --p2: #f2b48c; --p3: #e58456; --p4: #c9512d; --p5: #96230f;
  --m1: #cfe1ee; --m2: #a0c5e0; --m3: #669fca; --m4: #3575ab; --m5: #164c80;
"""
_DARK = """
  --paper: #14181a; --ink: #e3e7e8; --soft: #939da3; --line: #2b3134; --panel: #1b2022;
  --right: #5cc28e; --wrong: #ff8a7a; --nan: #b092ff; --word: #c9a4e6; --text: #84cf9e; --fault: #4a2320;
  --z: #2a3033; --p1: #533424; --p2: #83452a; --p3: #b85f35; --p4: #e5854f; --p5: #ffc39c;
  --m1: #22384a; --m2: #28567b; --m3: #3878ab; --m4: #62a4d8; --m5: #b0dbff;
"""
_OF_A_PAGE = f"""
:root {{{_LIGHT}}}
@media (prefers-color-scheme: dark) {{ :root {{{_DARK}}} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }}
main {{ max-width: 56rem; margin: 0 auto; padding: 3.5rem 1.25rem 5rem; }}
"""
_STYLE = """
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
th, td { padding: .5rem clamp(.3rem, 1.2vw, 1.25rem) .5rem 0;
  border-bottom: 1px solid var(--line); vertical-align: baseline; }
th.number, td.number { text-align: right; white-space: nowrap; }
td:last-child, th:last-child { padding-right: 0; }
article { border-left: 3px solid var(--wrong); padding: .1rem 0 .1rem 1.1rem; margin: 0 0 1.75rem; }
article.convention { border-color: var(--line); }
article p { max-width: 44rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: .6rem 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.maps { display: flex; flex-wrap: wrap; gap: 2rem 2.5rem; align-items: flex-start; }
.maps + .maps { margin-top: 2rem; }
figure { margin: 0; max-width: 100%; }
figcaption { margin-bottom: .5rem; }
svg { display: block; max-width: 100%; height: auto; }
rect { stroke: var(--paper); stroke-width: .08; }
.z { fill: var(--z); background: var(--z); }
.p1 { fill: var(--p1); background: var(--p1); }
.p2 { fill: var(--p2); background: var(--p2); }
.p3 { fill: var(--p3); background: var(--p3); }
.p4 { fill: var(--p4); background: var(--p4); }
.p5 { fill: var(--p5); background: var(--p5); }
.m1 { fill: var(--m1); background: var(--m1); }
.m2 { fill: var(--m2); background: var(--m2); }
.m3 { fill: var(--m3); background: var(--m3); }
.m4 { fill: var(--m4); background: var(--m4); }
.m5 { fill: var(--m5); background: var(--m5); }
.nan { fill: var(--nan); background: var(--nan); }
.over { stroke: var(--ink); stroke-width: .12; }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.75rem; margin: 0 0 1.5rem; }
.legend i, .scale i { display: inline-block; width: .9rem; height: .7rem; }
.legend i.over { border: 2px solid var(--ink); background: var(--p5); }
.scale { margin: .4rem 0 0; white-space: nowrap; } .scale i { width: .8rem; }
pre b { font-weight: 500; color: var(--word); } pre s { text-decoration: none; color: var(--text); }
pre em { font-style: normal; color: var(--soft); }
pre mark { display: inline-block; min-width: 100%; background: var(--fault); color: inherit;
  box-shadow: -.35rem 0 0 var(--fault), -.5rem 0 0 var(--wrong); }
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
        section("Findings", *map(_finding, together(findings))),
        section("Gradients", gradients(rows) if rows else ""),
        section("Where the errors are", _maps(rows)),
        section("Formulas", *(_formula(name, text, findings) for name, text in sources.items())),
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
        style=_OF_A_PAGE + _STYLE + style,
        policy=policy,
        body="\n".join(filter(None, parts)),
        end=end,
    )


def cell(
    verdict: str, ok: bool, rows: tuple[Row, ...], findings: tuple[Finding, ...], notes: tuple[str, ...]
) -> str:
    """A report as a part of somebody else's page: verdict, findings, gradients and notes.

    Args:
        verdict: of the `Report`, and so the rest, as in `page`.
        ok: whether every formula is right.
        rows: one per gradient.
        findings: the mistakes.
        notes: what else is worth knowing.

    Returns:
        HTML whose style reaches nothing beside it, light or dark as the notebook is.
    """
    parts = [
        f'<h3 class="{_mood(ok)}">{escape(verdict)}</h3>',
        *map(_finding, together(findings)),
        gradients(rows) if rows else "",
        f'<div class="small soft">{_notes(notes)}</div>' if notes else "",
    ]
    inside = "\n".join(filter(None, parts))
    return f'<div class="funcnet-report">\n<style>{_OF_A_CELL}</style>\n{inside}\n</div>'


def _within(place: str, style: str) -> str:
    """The rules of a style, for what lies in a place only."""
    selectors = lambda found: ", ".join(f"{place} {s.strip()}" for s in found[1].split(","))
    return re.sub(r"([^{}]+)(?=\{)", selectors, style)


_CELL = ".funcnet-report"
_OF_A_CELL = f"""
{_CELL} {{{_LIGHT}}}
@media (prefers-color-scheme: dark) {{ {_CELL} {{{_DARK}}} }}
[data-jp-theme-light="true"] {_CELL}, .vscode-light {_CELL} {{{_LIGHT}}}
[data-jp-theme-light="false"] {_CELL}, .vscode-dark {_CELL}, html[theme="dark"] {_CELL} {{{_DARK}}}
{_CELL} {{ background: var(--paper); color: var(--ink); font: 14px/1.5 system-ui, sans-serif; }}
{_within(_CELL, _STYLE)}
{_CELL} {{ padding: 1rem; }}
{_CELL} td, {_CELL} th {{ text-align: left; background: none; }}
{_CELL} td.number, {_CELL} th.number {{ text-align: right; }}
"""


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
        cells = {
            "operation": f"<code>{escape(row.operation)}</code>",
            "gradient of": f"<code>{escape(row.argument)}</code>",
            "shapes": escape(row.shapes),
            "calls": str(row.count),
            "error": f"{row.error:.1e}",
            "allowed": f"{row.tolerance:.0e}",
            "": _state(row),
        }
        body.append("<tr>" + "".join(f"<td{_number(c)}>{cells[c]}</td>" for c in columns) + "</tr>")
    lines = "\n".join(body)
    table = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}\n</tbody>\n</table>"
    return f'<div class="scroll">\n{table}\n</div>'


def _state(row: Row) -> str:
    if row.unseen and not row.ok:
        return escape(row.unseen)
    verdict = f'<span class="{_mood(row.ok)}">{_mood(row.ok)}</span>'
    return verdict + (f": {escape(row.note)}" if row.note else "")


def _number(column: str) -> str:
    return ' class="number"' if column in ("calls", "error", "allowed") else ""


def _finding(finding: Finding) -> str:
    facts = {
        "fix": _prose(finding.suggestion),
        "write": f"<code>{escape(finding.code)}</code>" if finding.code else "",
        "wrong at": escape(finding.where),
        "example": escape(finding.example),
        "line": f"<code>{escape(finding.location)}</code>" if finding.location else "",
        "error": f"{finding.error:.2g} of the largest element" if math.isfinite(finding.error) else "",
    }
    lines = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in facts.items() if text)
    return (
        f'<article class="{"mistake" if finding.is_mistake else "convention"}">\n'
        f"<h3><code>{escape(finding.argument or 'formula')}</code>: {_prose(finding.message)}</h3>\n"
        + (f"<dl>{lines}</dl>\n" if lines else "")
        + f'<p class="soft small"><code>{finding.kind}</code>: {escape(KINDS[finding.kind])}.</p>\n</article>'
    )


def _prose(text: str) -> str:
    """A sentence, whose code stands between backticks."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(text))


def _notes(notes: tuple[str, ...]) -> str:
    return "<ul>\n" + "\n".join(f"<li>{_prose(note)}</li>" for note in notes) + "\n</ul>" if notes else ""


# ---- formulas ---------------------------------------------------------------------------------------------

_TOKEN = re.compile(
    r"""(?P<em>\#.*)|(?P<s>[rbf]{0,2}(?:\"{3}.*?(?:\"{3}|$)|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'))|"""
    rf"(?P<b>\b(?:{'|'.join(keyword.kwlist)})\b)"
)


def _formula(name: str, text: str, findings: tuple[Finding, ...]) -> str:
    """A formula's text in colours, with the lines that are at fault marked."""
    places = [f.location.rpartition(":") for f in findings if f.is_mistake and f.location]
    at_fault = {linecache.getline(file, int(n)).strip() for file, _, n in places if n.isdigit()} - {""}
    begins = tuple(f"{f.argument} = " for f in findings if f.is_mistake and f.argument and not f.location)
    lines = []
    for line in text.splitlines():
        coloured = _coloured(line)
        wrong = line.strip() in at_fault or (begins and line.startswith(begins))
        lines.append(f"<mark>{coloured}</mark>" if wrong else coloured)
    return f"<h3>{escape(name)}</h3>\n<pre>" + "\n".join(lines) + "</pre>"


def _coloured(line: str) -> str:
    """A line of Python: its words, texts and comments."""
    parts, end = [], 0
    for found in _TOKEN.finditer(line):
        tag = str(found.lastgroup)
        parts += [escape(line[end : found.start()]), f"<{tag}>{escape(found[0])}</{tag}>"]
        end = found.end()
    return "".join([*parts, escape(line[end:])])


# ---- pictures of gradients --------------------------------------------------------------------------------


def _maps(rows: tuple[Row, ...]) -> str:
    """Of every wrong gradient: its difference from the true one, and both."""
    drawn = ["".join(_pictures(row)) for row in rows if not row.ok]
    groups = [f'<div class="maps">\n{pictures}\n</div>' for pictures in drawn if pictures]
    if not groups:
        return ""
    legend = (
        '<p class="legend small soft"><span><i class="z"></i> zero, or as near as is allowed</span>'
        '<span><i class="over"></i> beyond the scale</span><span><i class="nan"></i> not finite</span></p>\n'
    )
    return legend + "\n".join(groups)


def _pictures(row: Row) -> Iterator[str]:
    if row.sample is None:
        if row.errors is not None and row.errors.size:
            yield _picture(row.argument, "size of the error", row.errors, row.tolerance)
        return
    got, want, at = row.sample
    want = np.asarray(want)
    got = np.zeros_like(want) if got is None else np.asarray(got)
    where = "" if at == "as given" else f", at {at}"
    if not got.size or not want.size:
        return
    size = float(np.abs(np.where(np.isfinite(want), want, 0)).max()) or 1.0
    if got.shape == want.shape:
        with np.errstate(all="ignore"):
            yield _picture(
                row.argument, f"formula − truth{where}", np.asarray(got - want), row.tolerance * size
            )
    scale = max(_scale(got), _scale(want)) if got.shape == want.shape else None
    yield _picture(row.argument, "by the formula", got, 0.0, scale)
    yield _picture(row.argument, "true", want, 0.0, scale)


def _picture(argument: str, what: str, values: np.ndarray, allowed: float, scale: float | None = None) -> str:
    """An array as cells. One that stands for several elements has the largest of them."""
    shape, name = "×".join(map(str, values.shape)) or "scalar", escape(argument)
    flat, scale = _flat(np.asarray(values, np.float64)), scale or _scale(values)
    height, width = (min(size, CELLS) for size in flat.shape)
    cells = "".join(
        f'<rect class="{_colour(value, allowed, scale)}" x="{x}" y="{y}" width="1" height="1">'
        f"<title>{name}{where or ''}: {value:.2g}</title></rect>"
        for y, x, where, value in _pooled(flat, values.shape)
    )
    pooled = "" if flat.shape == (height, width) else "; a cell is the largest of a block"
    size = min(20, max(6, 240 // max(height, width)))
    box = f'width="{size * width}" viewBox="0 0 {width} {height}"'
    steps = [f"m{step}" for step in range(STEPS, 0, -1)] if (values < 0).any() else []
    strip = "".join(f'<i class="{step}"></i>' for step in [*steps, "z", *(f"p{i + 1}" for i in range(STEPS))])
    least = f"−{scale:.2g}" if steps else "0"
    return (
        f'<figure>\n<figcaption><code>{name}</code> {escape(what)} <span class="soft small">{shape}{pooled}'
        f'</span></figcaption>\n<svg role="img" aria-label="{escape(what)}: {name}" {box}>{cells}</svg>\n'
        f'<p class="scale small soft">{least} {strip} {scale:.2g}</p>\n</figure>\n'
    )


def _scale(values: np.ndarray) -> float:
    """Where the colours end: the largest element, unless a few are far above nearly all others."""
    sizes = np.abs(values[np.isfinite(values) & (values != 0)])
    if not sizes.size:
        return 1.0
    most, nearly = float(sizes.max()), float(np.quantile(sizes, 0.95))
    return nearly if most > 4 * nearly else most


def _flat(values: np.ndarray) -> np.ndarray:
    """The array with two axes, merged where the picture comes closest to a square."""
    shape = values.shape if values.ndim > 1 else (1, values.size)
    ratios = [abs(math.log(math.prod(shape[:k]) / math.prod(shape[k:]))) for k in range(1, len(shape))]
    k = ratios.index(min(ratios)) + 1
    return values.reshape(math.prod(shape[:k]), -1)


def _pooled(flat: np.ndarray, shape: tuple[int, ...]) -> Iterator[tuple[int, int, list[int], float]]:
    """Row, column, the largest element's index in `shape` and its value, of every cell."""
    sizes = np.where(np.isfinite(flat), np.abs(flat), np.inf)
    rows, columns = ((np.arange(min(n, CELLS) + 1) * n) // min(n, CELLS) for n in flat.shape)
    for y in range(len(rows) - 1):
        for x in range(len(columns) - 1):
            block = sizes[rows[y] : rows[y + 1], columns[x] : columns[x + 1]]
            i, j = np.unravel_index(block.argmax(), block.shape)
            at = int(rows[y] + i) * flat.shape[1] + int(columns[x] + j)
            yield y, x, [int(i) for i in np.unravel_index(at, shape)], float(flat.flat[at])


def _colour(value: float, allowed: float, scale: float) -> str:
    """The class of a cell: its sign and its share of the scale, in equal steps."""
    if not math.isfinite(value):
        return "nan"
    if abs(value) <= allowed or not value:
        return "z"
    step = min(STEPS, 1 + int(STEPS * abs(value) / scale))
    return f"{'m' if value < 0 else 'p'}{step}{' over' * (abs(value) > scale)}"
