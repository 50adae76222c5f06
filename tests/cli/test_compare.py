"""Runs compared: tables, pictures, and what cannot be."""

import json
from pathlib import Path

import pytest
from matplotlib.image import imread

from funcnet.cli import main
from funcnet.nets import convnet
from funcnet.tasks import _run
from tests.browser import Reader

CONFIG = convnet.Config((8, 8, 1), channels=(2,), hidden=3)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_folder(path, losses, *, speed=1.0, rate=0.1, task="digits", every=2, **facts):
    """A folder of a run whose evaluations come every two steps."""
    path.mkdir()
    options = {"learning_rate": rate, "seed": 0}
    _run.write_config(path, task, CONFIG, options=options, data={"sha256": "00"}, **facts)
    lines = []
    for step, loss in enumerate(losses, 1):
        record = {"step": step, "loss": loss, "accuracy": 1 / (1 + loss), "steps_per_second": speed,
                  "seconds": step / speed}  # fmt: skip
        if step % every == 0:
            record |= {"eval_loss": loss, "eval_accuracy": 1 / (1 + loss)}
        lines.append(json.dumps(record))
    (path / "metrics.jsonl").write_text("\n".join([*lines, ""]), "utf-8")
    return path


@pytest.fixture
def two(here):
    """One that is quick and gets stuck, and one that is slow and goes further."""
    run_folder(here / "quick", [1.0, 0.5, 0.5, 0.5], speed=4.0)
    run_folder(here / "slow", [1.0, 0.75, 0.5, 0.25, 0.1, 0.05], rate=0.2)
    return ["quick", "slow"]


def compare(capsys, *args):
    code = main(["compare", *map(str, args)])
    return code, *capsys.readouterr()


def test_a_table_what_differs_and_the_best(two, capsys):
    code, out, err = compare(capsys, *two)
    assert (code, err) == (0, "")
    assert out == (
        "digits, by eval loss\n"
        "run    steps  time  eval loss  eval accuracy  best eval loss  steps/s\n"
        "quick      4   1 s        0.5         0.6667        0.5 at 2        4\n"
        "slow       6   6 s       0.05         0.9524       0.05 at 6        1\n"
        "\nwhat differs\n"
        "config                 quick  slow\n"
        "options.learning_rate  0.1    0.2\n"
        "\n"
        "best at 4 steps: slow (quick 0.5, slow 0.25)\n"
        "best at 1 s: quick (quick 0.5, slow none yet)\n"
    )


def test_what_is_compared_can_be_chosen(two, capsys):
    out = compare(capsys, *two, "--by", "steps_per_second")[1]
    assert "digits, by steps per second" in out
    assert "best at 4 steps: quick (quick 4, slow 1)" in out
    assert (
        "best at 4 steps: slow (quick 0.6667, slow 0.8)" in compare(capsys, *two, "--by", "eval_accuracy")[1]
    )


def test_equal_runs(here, capsys):
    for name in ("a", "b"):
        run_folder(here / name, [1.0, 0.5])
    out = compare(capsys, "a", "b")[1]
    assert "nothing differs in their configs" in out
    assert "best at 2 steps: a (a 0.5, b 0.5)" in out, "of equals the first"


def test_runs_of_one_name_are_told_apart(here, capsys):
    for name in ("a", "b"):
        (here / name).mkdir()
        run_folder(here / name / "run", [1.0, 0.5])
    assert "\na/run " in compare(capsys, "a/run", "b/run")[1]


def test_pictures_and_a_page(two, capsys):
    code, out, _ = compare(capsys, *two, "--out", "a.png", "--out", "a.html")
    assert code == 0
    assert out.endswith("the curves are in a.png\nthe curves are in a.html\n")
    assert imread("a.png").ndim == 3
    page = Path("a.html").read_text("utf-8")
    text = Reader(page).text
    for told in ("2 runs of digits", "best at 4 steps: slow", "options.learning_rate", "0.05 at 6"):
        assert told in text
    panels = json.loads(page.split('id="data">')[1].split("</script>")[0])["panels"]
    assert [panel["title"] for panel in panels] == [
        "eval loss", "eval loss over time", "loss, running mean", "accuracy, running mean", "eval accuracy",
    ]  # fmt: skip
    assert [curve["x"] for curve in panels[1]["curves"]] == [[0.5, 1], [2, 4, 6]]


def test_what_cannot_be_compared(two, here, capsys):
    (here / "empty").mkdir()
    run_folder(here / "none", [])
    run_folder(here / "other", [1.0], task="fashion")
    run_folder(here / "short", [1.0])
    (here / "damaged").mkdir()
    (here / "damaged" / "config.json").write_text("{")
    run_folder(here / "cut", [1.0, 0.5])
    with open(here / "cut" / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "lo\n')
    for args, message in [
        ([], "compare takes two runs or more"),
        (["quick"], "compare takes two runs or more"),
        (["quick", "quick/../quick"], "one run is given twice"),
        (["quick", "nowhere"], "nowhere is no run folder: there is no such folder"),
        (["quick", "empty"], "empty is no run folder: it has no config.json"),
        (["quick", "damaged"], "this is no JSON"),
        (["quick", "none"], "none has no steps in its metrics.jsonl yet"),
        (["quick", "cut"], "line 3 is no record"),
        (["quick", "other"], "these are runs of different tasks: digits, fashion"),
        (["quick", "short"], "no 'eval_loss' in short: recorded are step, loss, accuracy"),
        (["quick", "slow", "--by", "los"], "no 'los' in quick, slow: recorded are step, loss"),
        (["quick", "slow", "--out", "a.jpg"], "a.jpg is no .png or .html file"),
        (["quick", "slow", "--out", "nowhere/a.png"], "nowhere/a.png: there is no folder nowhere"),
    ]:
        code, _, err = compare(capsys, *args)
        assert (code, err.count("\n")) == (2, 1), args
        assert message in err, args
