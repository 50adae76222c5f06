"""The page: complete, escaped, without network, and what a browser makes of it."""

import dataclasses
import html.parser
import math
import re

import numpy as np
import pytest

from funcnet.verifier import html as module
from funcnet.verifier.finding import KINDS, Finding, Row
from funcnet.verifier.report import Report
from tests.browser import needs_browser, shown

HOSTILE = """</title></pre><script>alert("1")</script><img src='x' onerror=alert(1)>&amp;"""


def row(argument, errors, **changes):
    given = Row("affine", argument, "7×11, 11×13", 1, 0.25, 1e-10, False, "note", errors)
    return dataclasses.replace(given, **changes)


def errors_of_x():
    errors = np.zeros((7, 11))
    errors[6], errors[2, 3], errors[:, 0] = 0.25, 1e-9, np.nan
    return errors


REPORT = Report(
    (
        row("x", errors_of_x(), error=math.inf),
        row('params["w"]', np.zeros((3, 3, 2, 5)), ok=True),
        row("none", None),
    ),
    (
        Finding("x", "transpose", "w stands for w.T", "write dy @ w.T", "model.py:57", 0.25, "row 6"),
        Finding("", "convention", "at ties"),
    ),
    ("linear in dy",),
    {"forward": "def f(x):\n    return x < 1", "backward": "dy @ w"},
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
        "1e-10", "x[6, 4]: 0.25", "x[2, 3]: 1e-09", "x[0, 0]: nan", "wrong: note", "right: note",
    ):  # fmt: skip
        assert text in read.text, text
    assert sum(tag == "rect" for tag, _ in read.tags) == 7 * 11 + 3 * 3 * 2 * 5


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
    errors = np.asarray(10.0 ** rng.uniform(-12, -1, shape))
    at = tuple(int(rng.integers(size)) for size in shape)
    errors[at] = 0.875
    text = Report((row("x", errors),)).to_html()
    width, height = map(int, re.search(r'viewBox="0 0 (\d+) (\d+)"', text).groups())
    assert text.count("<rect ") == width * height <= errors.size
    assert max(width, height) <= 48
    assert f"<title>x{list(at) if at else ''}: 0.88</title>" in text


def test_pooling_keeps_what_is_not_finite():
    errors = np.zeros((100, 100))
    errors[50, 50] = -math.inf
    errors[50, 51] = 0.5
    assert Report((row("x", errors),)).to_html().count('<rect class="nan"') == 1


def test_colours():
    level = lambda error: module._level(error, 1e-7)
    assert [level(e) for e in (0.0, 1e-7, 2e-7, 2e-4, 0.5, 1 - 1e-16, 1.0, 1e9)] == [
        "e0", "e0", "e1", "e4", "e7", "e7", "e7", "e7",
    ]  # fmt: skip
    assert [level(e) for e in (math.nan, math.inf)] == ["nan", "nan"]
    assert module._level(0.1, 0.0) == "e7"
    assert module._level(2.0, 1.5) == "e7"


@needs_browser
def test_a_browser_shows_it(tmp_path):
    finding = Finding(HOSTILE, "sign", "dw has the opposite sign")
    report = dataclasses.replace(REPORT, findings=(*REPORT.findings, finding))
    read = shown(tmp_path, report.to_html())
    assert f"{REPORT.verdict} · funcnet" in read.text
    assert "dw has the opposite sign" in read.text
    assert HOSTILE in read.text
    assert "return x < 1" in read.text
    assert "x[6, 4]: 0.25" in read.text
    assert sum(tag == "rect" for tag, _ in read.tags) == 7 * 11 + 3 * 3 * 2 * 5
    assert "script" not in {tag for tag, _ in read.tags}
