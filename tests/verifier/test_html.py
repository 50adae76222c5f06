"""The page: complete, escaped, without network, and what a browser makes of it."""

import dataclasses
import html.parser
import math
import re

import numpy as np
import pytest

from funcnet.verifier import html as module
from funcnet.verifier.finding import KINDS, Finding, Row, Sample
from funcnet.verifier.report import Report
from tests.browser import needs_browser, shown

HOSTILE = """</title></pre><script>alert("1")</script><img src='x' onerror=alert(1)>&amp;"""


def row(argument, errors, **changes):
    given = Row("affine", argument, "7×11, 11×13", 1, 0.25, 1e-10, False, "note", errors)
    return dataclasses.replace(given, **changes)


def sample_of_x():
    want = np.ones((7, 11))
    got = want.copy()
    got[6] += -0.25
    got[2, 3] += 1e-9
    got[:, 0] = np.nan
    return Sample(got, want, "values near")


REPORT = Report(
    (
        row("x", None, error=math.inf, sample=sample_of_x()),
        row("b", None, sample=Sample(np.ones((7, 3)), np.full(3, 7.0), "as given")),
        row('params["w"]', np.zeros((3, 3, 2, 5)), ok=True),
        row("none", None),
    ),
    (
        Finding("x", "transpose", "w stands for w.T", "write dy @ w.T", "model.py:57", 0.25, "row 6"),
        Finding("", "convention", "at ties"),
    ),
    ("linear in dy",),
    {"forward": "def f(x):\n    return x < 1  # 'one'", "backward": "dy @ w"},
)


class Reader(html.parser.HTMLParser):
    """The tags of a page with their attributes, and its text; every tag is closed in turn."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_everything_is_there():
    read = Reader(REPORT.to_html())
    for text in (
        REPORT.verdict, "affine", 'params["w"]', "w stands for w.T", "write dy @ w.T", "model.py:57", "row 6",
        KINDS["transpose"], KINDS["convention"], "linear in dy", "return x < 1", "dy @ w", "inf", "2.5e-01",
        "1e-10", "x formula − truth, at values near", "x[6, 4]: -0.25", "x[2, 3]: 1e-09", "x[0, 0]: nan",
        "−0.25", "b[6, 2]: 1", "b[2]: 7", "7×3", "wrong: note", "right: note",
    ):  # fmt: skip
        assert text in read.text, text
    assert sum(tag == "rect" for tag, _ in read.tags) == 3 * 7 * 11 + 7 * 3 + 3, "none of what is right"


def test_a_formula_has_colours_and_its_wrong_lines_are_marked(tmp_path):
    text = 'def backward(x, dy):\n    dx = dy  # "all"\n    return -dx, "a < b"\n'
    (tmp_path / "mine.py").write_text(text)
    finding = Finding("x", "sign", "m", location=f"{tmp_path / 'mine.py'}:3")
    page = Report((row("x", None),), (finding,), (), {"backward": text}).to_html()
    assert "<b>def</b> backward(x, dy):\n    dx = dy  <em># &quot;all&quot;</em>\n" in page
    assert "<mark>    <b>return</b> -dx, <s>&quot;a &lt; b&quot;</s></mark>" in page
    assert page.count("<mark>") == 1
    of_text = Report((row("x", None),), (Finding("w", "sign", "m"),), (), {"backward": "x = dy\nw = dy"})
    assert "<pre>x = dy\n<mark>w = dy</mark></pre>" in of_text.to_html()


def test_nothing_is_loaded_or_run():
    text = REPORT.to_html()
    assert not {"script", "link", "img", "iframe", "base", "object"} & {tag for tag, _ in Reader(text).tags}
    assert "default-src 'none'" in text
    assert "url(" not in text
    assert "http:" not in text.replace("http-equiv", "")
    assert "https:" not in text


def test_hostile_names_stay_text():
    finding = Finding(HOSTILE, "unknown", HOSTILE, HOSTILE, HOSTILE, 0.5, HOSTILE)
    bad = row(HOSTILE, np.ones((2, 2)), operation=HOSTILE, shapes=HOSTILE, note=HOSTILE)
    report = Report((bad, row("x", None)), (finding,), (HOSTILE,), {HOSTILE: HOSTILE})
    for given in (report, dataclasses.replace(report, rows=(bad,))):
        read = Reader(given.to_html())
        assert not {"script", "img"} & {tag for tag, _ in read.tags}
        assert not any(name.startswith("on") for _, attributes in read.tags for name in attributes)
        assert read.text.count(HOSTILE) >= 13


@pytest.mark.parametrize("report", [Report(()), Report((row("x", np.zeros((0, 3)), ok=True),))])
def test_what_is_empty_has_no_section(report):
    read = Reader(report.to_html())
    assert report.verdict in read.text
    assert not {"Findings", "Where the errors are", "Formulas", "Notes"} & set(read.text.splitlines())


@pytest.mark.parametrize(
    "shape", [(), (1,), (500,), (7, 1), (1, 7), (131, 97), (2, 3, 5, 7), (61, 3, 67), (1, 1, 1)]
)
def test_every_shape_becomes_a_grid_that_loses_no_error(shape):
    rng = np.random.default_rng(0)
    off = np.asarray(10.0 ** rng.uniform(-12, -1, shape))
    at = tuple(int(rng.integers(size)) for size in shape)
    off[at] = -0.875
    text = Report((row("x", None, sample=Sample(off, np.zeros(shape), "as given")),)).to_html()
    width, height = map(int, re.search(r'viewBox="0 0 (\d+) (\d+)"', text).groups())
    assert text.count("<rect ") == 3 * width * height <= 3 * off.size
    assert max(width, height) <= 32
    assert f"<title>x{list(at) if at else ''}: -0.88</title>" in text
    assert Report((row("x", np.asarray(np.abs(off))),)).to_html().count("<rect ") == width * height, (
        "of a model"
    )


def test_pooling_keeps_what_is_not_finite():
    got = np.zeros((100, 100))
    got[50, 50] = -math.inf
    got[50, 51] = 0.5
    page = Report((row("x", None, sample=Sample(got, np.zeros((100, 100)), "as given")),)).to_html()
    assert page.count('<rect class="nan"') == 2, "in the difference, and in the gradient"


def test_colours():
    colour = lambda value: module._colour(value, 1e-7, 2.0)
    assert [colour(v) for v in (0.0, 1e-7, -1e-7, 2e-7, -2e-7, 0.39, 0.41, -1.99, 2.0, 2.1, -9.0)] == [
        "z", "z", "z", "p1", "m1", "p1", "p2", "m5", "p5", "p5 over", "m5 over",
    ]  # fmt: skip
    assert [colour(v) for v in (math.nan, -math.inf)] == ["nan", "nan"]


def test_the_scale_shows_the_many_where_few_are_far_off():
    assert module._scale(np.array([0.0, 1.0, -3.0, math.nan])) == 3.0
    few = np.append(np.linspace(0.1, 1.0, 100), 1e6)
    assert module._scale(few) == np.quantile(few, 0.95) < 1
    assert module._scale(np.zeros(3)) == 1.0


@needs_browser
def test_a_browser_shows_it(tmp_path):
    finding = Finding(HOSTILE, "sign", "dw has the opposite sign")
    report = dataclasses.replace(REPORT, findings=(*REPORT.findings, finding))
    read = shown(tmp_path, report.to_html())
    assert f"{REPORT.verdict} · funcnet" in read.text
    assert "dw has the opposite sign" in read.text
    assert HOSTILE in read.text
    assert "return x < 1" in read.text
    assert "x[6, 4]: -0.25" in read.text
    assert sum(tag == "rect" for tag, _ in read.tags) == 3 * 7 * 11 + 7 * 3 + 3
    assert "script" not in {tag for tag, _ in read.tags}
