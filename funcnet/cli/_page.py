"""Pages of one file for a browser: tables, pictures, and curves that can be hovered over; no network.

They have the frame and the style of the verifier's reports. The one script is named by its hash in the page's
own policy, so that no other runs, whatever a text holds; the numbers of the curves lie in the page as JSON.
Style and script beyond the frame are `_page.css` and `_page.js`, beside this file.
"""

import base64
import hashlib
import json
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from funcnet.verifier.html import frame, section

__all__ = [
    "Curve",
    "Panel",
    "charts",
    "facts",
    "page",
    "picture",
    "section",
    "sounds",
    "table",
    "thinned",
]

POINTS = 2000  # of a curve, at most
_NUMBERS = 60_000  # points of all curves, at most: 1.4 MB


_NO_SCRIPT = "<noscript><p>The curves are drawn by a script, which this browser does not run.</p></noscript>"


class Curve(NamedTuple):
    """A line, or points.

    Attributes:
        name: in the legend.
        x: steps, or seconds; ascending.
        values: one for each; what is not finite is left out.
        look: "line", "pale" (behind the others) or "points".
        color: of the palette, by number.
    """

    name: str
    x: Shaped[np.ndarray, " n"]
    values: Float[np.ndarray, " n"]
    look: str = "line"
    color: int = 0


class Panel(NamedTuple):
    """Curves over one axis.

    Attributes:
        title: above it.
        curves: those without a finite value are left out.
        x: what they run over: "step" or "seconds". What is hovered over in one panel is shown in all such.
        scale: of the values: "linear", "log", or "share", in per cent.
    """

    title: str
    curves: Sequence[Curve]
    x: str = "step"
    scale: str = "linear"


def page(title: str, *parts: str, panels: Sequence[Panel] = (), **facts: Any) -> str:
    """A page of its own.

    Args:
        title: plain text.
        parts: HTML, from above to below, `charts` among them.
        panels: what is drawn there.
        facts: what the script wants to know besides: `reload`, seconds, and `written`, seconds since 1970.
    """
    drawn = [(panel, [curve for curve in map(_finite, panel.curves) if len(curve.x)]) for panel in panels]
    most = min(POINTS, _NUMBERS // max(1, sum(len(curves) for _, curves in drawn)))
    content = {
        "panels": [
            {**panel._asdict(), "curves": [_plain(curve, most) for curve in curves]}
            for panel, curves in drawn
        ],
        **facts,
    }
    numbers = json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    script = _beside("_page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return frame(
        title,
        *parts,
        style=_beside("_page.css"),
        policy=f"; img-src data:; media-src data:; script-src 'sha256-{digest}'",
        end=f'\n<script type="application/json" id="data">{numbers}</script>\n<script>{script}</script>',
    )


def charts(panels: Sequence[Panel], *, first: int = 0) -> str:
    """Where panels are drawn; `first` is the number of the first one among those of the page."""
    boxes = (
        f'<figure class="chart" data-panel="{first + i}"><figcaption><h3>{escape(panel.title)}</h3>'
        '<p class="small soft legend"></p></figcaption></figure>'
        for i, panel in enumerate(panels)
    )
    inside = "\n".join([_NO_SCRIPT, *boxes])
    return f'<div class="charts">\n{inside}\n</div>' if panels else ""


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> str:
    """A table of plain texts; the columns in `right` are numbers."""

    def line(cells: Sequence[str], tag: str) -> str:
        marks = (' class="number"' if name in right else "" for name in columns)
        return "".join(f"<{tag}{m}>{escape(c)}</{tag}>" for m, c in zip(marks, cells, strict=True))

    body = "\n".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    head = f"<thead><tr>{line(columns, 'th')}</tr></thead>"
    return f'<div class="scroll">\n<table>\n{head}\n<tbody>\n{body}\n</tbody>\n</table>\n</div>'


def facts(pairs: dict[str, Any], kind: str = "") -> str:
    """Names and what they are, as plain texts."""
    lines = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(str(v))}</dd></div>" for k, v in pairs.items())
    return f'<dl class="{kind}">{lines}</dl>' if pairs else ""


def picture(path: Path, text: str) -> str:
    """A PNG file as part of the page; nothing if there is none."""
    if not path.is_file():
        return ""
    content = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{escape(text)}" src="data:image/png;base64,{content}">'


def sounds(columns: Sequence[str], rows: Sequence[Sequence[str]], wavs: Sequence[str]) -> str:
    """A table of plain texts; each row ends with a sound that can be played, a WAV file in base 64."""
    body = "\n".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}"
        f'<td><audio controls preload="none" src="data:audio/wav;base64,{escape(wav)}"></audio></td></tr>'
        for row, wav in zip(rows, wavs, strict=True)
    )
    head = "".join(f"<th>{escape(name)}</th>" for name in [*columns, "sound"])
    parts = f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>"
    return f'<div class="scroll">\n<table>\n{parts}\n</table>\n</div>'


def thinned(values: Float[np.ndarray, " n"], points: int) -> Int[np.ndarray, " m"]:
    """Which of many values are drawn: of each stretch the lowest and the highest, and both ends.

    >>> thinned(np.array([0.0, 9.0, 1.0, 2.0, 3.0, -5.0, 4.0, 4.0, 4.0, 4.0]), 6)
    array([0, 1, 5, 6, 9])
    """
    n = len(values)
    if n <= points:
        return np.arange(n)
    stretches = max(1, (points - 2) // 2)
    starts = np.arange(stretches) * n // stretches
    ends = np.append(starts[1:], n)
    width = int((ends - starts).max())
    places = np.minimum(starts[:, None] + np.arange(width), ends[:, None] - 1)
    rows, blocks = np.arange(stretches), values[places]
    lowest, highest = (places[rows, choice] for choice in (blocks.argmin(1), blocks.argmax(1)))
    return np.unique(np.concatenate([[0, n - 1], lowest, highest]))


def _beside(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _finite(curve: Curve) -> Curve:
    kept = np.isfinite(curve.values)
    return curve._replace(x=curve.x[kept], values=curve.values[kept])


def _plain(curve: Curve, points: int) -> dict[str, Any]:
    kept = thinned(curve.values, points)
    x = curve.x[kept]
    whole = np.issubdtype(x.dtype, np.integer)
    return {
        **curve._asdict(),
        "x": x.tolist() if whole else [_short(value) for value in x.tolist()],
        "values": [_short(value) for value in curve.values[kept].tolist()],
    }


def _short(value: float) -> int | float:
    """The number to five digits."""
    short = float(f"{value:.5g}")
    return int(short) if short.is_integer() and abs(short) < 1e6 else short if math.isfinite(short) else value
