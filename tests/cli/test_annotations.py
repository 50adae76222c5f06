"""Annotations of a workflow on GitHub: one for each mistake and each unseen row, at its line, escaped."""

import re
from pathlib import Path

import pytest

from funcnet.cli._annotations import annotations
from funcnet.verifier import Finding, Report, Row

HOSTILE = "100 %,\r\n::error file=a.py,line=1::b: c"


def row(**changes):
    given = {"operation": "f", "argument": "x", "shapes": "7", "count": 1, "error": 0.5, "tolerance": 1e-9}
    return Row(**{**given, "ok": False, **changes})


def read(line):
    """A command as GitHub's runner reads it."""
    found = re.fullmatch("::(error|warning) ([^:\r\n]*)::([^\r\n]*)", line)
    assert found, line
    plain = lambda text: text.replace("%0D", "\r").replace("%0A", "\n")
    listed = (part.split("=", 1) for part in found[2].split(","))
    properties = {k: plain(v).replace("%3A", ":").replace("%2C", ",").replace("%25", "%") for k, v in listed}
    return found[1], properties, plain(found[3]).replace("%25", "%")


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "repository" / ".git").mkdir(parents=True)
    (tmp_path / "repository" / "src").mkdir()
    monkeypatch.chdir(tmp_path / "repository" / "src")
    return tmp_path / "repository"


def test_a_mistake_is_an_error_at_its_line(here):
    report = Report((row(),), (Finding("x", "sign", "negative", "negate it", "model.py:57"),))
    (line,) = annotations(report, {})
    place = "file=src/model.py,line=57,title=gradient of x%3A sign"
    assert line == f"::error {place}::sign: negative; negate it (model.py:57)"


def test_what_is_unseen_is_a_warning(here):
    report = Report((row(unseen="not verified: why", location=str(here / "a.py") + ":3"), row(ok=True)))
    (line,) = annotations(report, {})
    assert line == "::warning file=a.py,line=3,title=f%3A gradient of x::not verified: why"


def test_a_wrong_row_without_a_finding_is_an_error(here):
    (line,) = annotations(Report((row(argument="", note="a law"),)), {})
    assert line == "::error title=f::a law"


def test_paths_begin_where_the_workflow_says(here):
    report = Report((row(),), (Finding("x", "sign", "", "", "model.py:57"),))
    assert "file=repository/src/model.py," in annotations(report, {"GITHUB_WORKSPACE": str(here.parent)})[0]
    outside = Report((row(),), (Finding("x", "sign", "", "", "/elsewhere/model.py:57"),))
    assert "file=/elsewhere/model.py," in annotations(outside, {})[0]


@pytest.mark.parametrize("text", [HOSTILE, "%0A", "%25", "a\nb", "::warning::"])
def test_nothing_escapes(here, text):
    finding = Finding(text, "sign", text, text, f"{Path('a,b:c%.py')}:57")
    (line,) = annotations(Report((row(argument=text),), (finding,)), {})
    level, properties, message = read(line)
    assert level == "error"
    assert properties == {"file": "src/a,b:c%.py", "line": "57", "title": f"gradient of {text}: sign"}
    assert message == str(finding)


def test_right_is_silent(here):
    allowed = row(ok=True, note="allowed: differs")
    convention = Finding("x", "convention", "at a tie")
    assert annotations(Report((allowed,), (convention,)), {}) == []
