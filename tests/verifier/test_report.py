"""A report for people and for programs: as text, as JSON whose keys are promised, in a notebook."""

import dataclasses
import json
import math
import re
import threading
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import funcnet as fn
from funcnet.verifier import Finding, FormulaError, Report, Row
from tests.verifier.test_html import HOSTILE, REPORT, Reader

X = jnp.asarray(np.random.default_rng(0).standard_normal(7))
RIGHT = lambda x, dy: dy * (1 - jnp.tanh(x) ** 2)
WRONG = lambda x, dy: dy * (1 - jnp.tanh(x))


def documented():
    """The keys that docs/verify-reports.md promises: of the whole, of a row, of a finding."""
    page = Path("docs/verify-reports.md").read_text("utf-8")
    part = page.partition("\n## As JSON\n")[2]
    tables = re.split(r"\n\| `?(?:key|rows\[\]|findings\[\])`? \|", part)[1:]
    return [re.findall(r"^\| `(\w+)`", table, re.M) for table in tables]


def test_json_has_the_keys_that_are_documented():
    data = json.loads(REPORT.to_json())
    whole, row, finding = documented()
    assert list(data) == whole
    assert all(list(one) == row for one in data["rows"])
    assert all(list(one) == finding for one in data["findings"])
    assert data["version"] == 1


def test_json_is_json():
    strange = [math.nan, math.inf, -math.inf, np.float64("nan")]
    rows = tuple(Row("f", HOSTILE, "\u2028\x00", 1, v, v, False) for v in strange)
    report = Report(rows, (Finding("x", "sign", HOSTILE, error=math.nan),), (HOSTILE,), {"f": HOSTILE}, 7)

    def refuse(token):
        raise AssertionError(token)

    data = json.loads(report.to_json(), parse_constant=refuse)
    assert [row["error"] for row in data["rows"]] == [None] * 4
    assert data["notes"] == [HOSTILE]
    assert data["seed"] == 7


def test_the_seed_is_printed():
    assert "seed 5" in str(fn.verify(jnp.tanh, RIGHT, (X,), seed=5))
    report = fn.verify_model(lambda params, batch: jnp.sum(params * batch), X, X, seed=5)
    assert "seed 5" in str(report)
    assert report.verdict == "0 rules met"


def test_an_error_begins_with_the_verdict():
    report = Report((Row("f", "x", "7", 1, 0.5, 1e-9, False),), (Finding("x", "sign", "negative"),))
    with pytest.raises(
        FormulaError, match=r"^1 of 1 gradients WRONG\noperation .*\n(.*\n)*x: sign: negative$"
    ):
        report.raise_if_wrong()
    assert repr(report) == str(report) == report.table()


def test_threads_get_what_one_alone_gets():
    formulas = [RIGHT, WRONG] * 2
    alone = [fn.verify(jnp.tanh, formula, (X,)).to_json() for formula in formulas[:2]]
    found = [""] * len(formulas)

    def work(i):
        found[i] = fn.verify(jnp.tanh, formulas[i], (X,)).to_json()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(formulas))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == alone * 2


# ---- in a notebook ----------------------------------------------------------------------------------------


def test_a_notebook_shows_all_and_runs_nothing():
    read = Reader(REPORT._repr_html_())
    for text in (REPORT.verdict, 'params["w"]', "w stands for w.T", "model.py:57", "linear in dy"):
        assert text in read.text, text
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in read.tags}
    assert not any(name.startswith("on") for _, attributes in read.tags for name in attributes)


def test_hostile_texts_stay_texts():
    row, finding = REPORT.rows[0], REPORT.findings[0]
    fields = ("operation", "argument", "shapes", "note", "unseen")
    rows = (dataclasses.replace(row, errors=None, **dict.fromkeys(fields, HOSTILE)),)
    texts = dict.fromkeys(("argument", "message", "suggestion", "location", "where", "code"), HOSTILE)
    text = Report(rows, (dataclasses.replace(finding, **texts),), (HOSTILE,))._repr_html_()
    read = Reader(text)
    assert not {"script", "img"} & {tag for tag, _ in read.tags}
    assert read.text.count(HOSTILE) >= 8


def test_the_style_reaches_nothing_beside_the_report():
    style = re.search("<style>(.*)</style>", REPORT._repr_html_(), re.S)
    assert style
    selectors = re.findall(r"([^{}]+)\{", re.sub(r"@media[^{]*\{", "", style[1]))
    assert len(selectors) > 20
    assert all(".funcnet-report" in one for text in selectors for one in text.split(","))
