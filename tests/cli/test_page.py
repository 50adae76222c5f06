"""Pages with curves: what is drawn, what can be hovered over, and that nothing else runs."""

import base64
import hashlib
import json
import math
import re

import numpy as np

from funcnet.cli import _page
from funcnet.cli._page import Curve, Panel
from tests.browser import Reader, needs_browser, shown

HOSTILE = """</script></title><script>alert("1")</script><img src='x' onerror=alert(1)>&amp;"""


def numbers(page):
    """The data of a page."""
    return json.loads(page.split('id="data">')[1].split("</script>")[0])


def test_a_short_curve_is_drawn_whole():
    curve = Curve("loss", np.array([1, 2, 5]), np.array([0.123456789, math.nan, 3e-9]))
    (panel,) = numbers(_page.page("", panels=[Panel("a", [curve])]))["panels"]
    assert panel["curves"][0]["x"] == [1, 5]
    assert panel["curves"][0]["values"] == [0.12346, 3e-9]


def test_of_a_long_curve_the_extremes_are_kept():
    values = np.random.default_rng(0).normal(size=30_011)
    values[[12_345, 20_001]] = 50.0, -50.0
    kept = _page.thinned(values, 2000)
    assert len(kept) <= 2000
    assert (kept[0], kept[-1]) == (0, 30_010)
    assert {12_345, 20_001} <= set(kept.tolist())
    assert (np.diff(kept) > 0).all()
    for start in range(0, 30_000, 3000):  # in every stretch of the picture
        within = kept[(kept >= start) & (kept < start + 3000)]
        assert values[within].max() == values[start : start + 3000].max()
        assert values[within].min() == values[start : start + 3000].min()


def test_the_page_stays_small():
    steps = np.arange(900_000, 1_000_001)
    values = np.random.default_rng(0).normal(size=len(steps)) * 1e-3
    panels = [Panel(str(i), [Curve("each step", steps, values)]) for i in range(60)]
    page = _page.page("many curves", panels=panels)
    assert len(page) < 2_000_000
    assert {len(panel["curves"][0]["x"]) for panel in numbers(page)["panels"]} <= set(range(900, 2001))


def test_nothing_runs_but_its_own_script():
    panel = Panel(HOSTILE, [Curve(HOSTILE, np.array([1]), np.array([1.0]))])
    page = _page.page(HOSTILE, _page.table([HOSTILE], [[HOSTILE]]), _page.facts({HOSTILE: HOSTILE}),
                      _page.charts([panel]), panels=[panel])  # fmt: skip
    read = Reader(page)
    assert [tag for tag, _ in read.tags if tag in ("script", "img", "link", "iframe")] == ["script", "script"]
    (policy,) = (v["content"] for _, v in read.tags if v.get("http-equiv") == "Content-Security-Policy")
    script = page.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert read.text.count(HOSTILE) == 6, "the title, twice the table and the facts, the panel"


def test_a_picture_is_part_of_the_page(tmp_path):
    (tmp_path / "a.png").write_bytes(b"PNG")
    assert (
        _page.picture(tmp_path / "a.png", "<x>") == '<img alt="&lt;x&gt;" src="data:image/png;base64,UE5H">'
    )
    assert _page.picture(tmp_path / "b.png", "none") == ""


def test_a_sound_is_part_of_a_row():
    table = _page.sounds(["name"], [["<a>"], ["b"]], ["UklG", '"><script>'])
    assert '<td>&lt;a&gt;</td><td><audio controls preload="none" src="data:audio/wav;base64,UklG">' in table
    assert "<script>" not in table
    assert "media-src data:" in _page.page("title", table)


HOVER = """
for (const svg of document.querySelectorAll("svg")) {
  const box = svg.getBoundingClientRect();
  svg.dispatchEvent(new PointerEvent("pointermove", {clientX: box.left + 54 + (box.width - 76) * %s}));
  break;
}
"""


@needs_browser
def test_a_browser_draws_the_curves_and_reads_them(tmp_path):
    steps = np.arange(1, 102)
    curves = [
        Curve("training", steps, 1.0 / steps, "line", 0),
        Curve(HOSTILE, steps[9::10], steps[9::10] / 100.0, "points", 1),
    ]
    panels = [Panel("loss", curves, scale="log"), Panel("share", [curves[0]], scale="share"), Panel("no", [])]
    page = _page.page("p", _page.charts(panels), panels=panels)
    end = shown(tmp_path, page)
    assert "training 0.009901" in end.text, "the last value, where nothing is hovered over"
    assert f"{HOSTILE} 1" in end.text
    assert "training 0.99 %" in end.text
    assert "nothing recorded yet" in end.text
    tags = [tag for tag, _ in end.tags]
    assert (tags.count("svg"), tags.count("circle")) == (2, 10)
    paths = [value["d"] for tag, value in end.tags if tag == "path"]
    assert [len(re.findall("[ML]", path)) for path in paths] == [101, 10, 101]
    hovered = shown(tmp_path, page, HOVER % 0.24)
    assert hovered.text.count("step 25") == 2, "in both panels"
    assert "training 0.04" in hovered.text
    assert "training 4.00 %" in hovered.text
    assert re.search(r"0\.[23] \(step [23]0\)", hovered.text), "the nearest that there is"


@needs_browser
def test_a_page_loads_itself_again(tmp_path):
    """Told by the text that the script keeps up to date, which a page of a run that is over does not have."""
    script = """
const now = Date.now; Date.now = () => now() + 100000;
setInterval = (f) => f();
Object.defineProperty(document, "hidden", {value: true});
"""
    page = _page.page("p", '<p id="written">at noon</p>', reload=1, written=0)
    page = page.replace("<script>", f"<script>{script}</script><script>", 1)
    page = page.replace("script-src 'sha256-", "script-src 'unsafe-inline' 'was-")
    assert "minutes ago" in shown(tmp_path, page).text
