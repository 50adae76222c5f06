"""The page of a run: everything that it should tell, while it goes on and afterwards."""

import base64
import io
import json
import math

import numpy as np
import PIL.Image
import pytest
import soundfile

from funcnet.cli import _report
from funcnet.tasks import _sounds
from funcnet.train.history import History
from funcnet.verifier.finding import Row
from funcnet.verifier.report import Report
from tests.browser import Reader, needs_browser, shown
from tests.tasks.sounding import sine

HOSTILE = "<script>alert('x')</script>"
RUN = _report.Run(
    task=("chars", "a text"),
    held_out="validation",
    unit="character",
    steps=40,
    layers=(["path", "FLOPs"], [["head.w", "12,345"]], ["FLOPs"], "FLOPs of one example"),
    formulas=Report((Row("conv", "params", "3×3", 1, 3e-15, 1e-10, True),)),
    config={"options": {"text": HOSTILE}, "seed": 17, "versions": {"jax": "0.10.1"}},
)


def history(n=40):
    return History(
        [
            {
                "step": i,
                "loss": 4.0 / i,
                "accuracy": i / 100,
                "gradient_norm": 2.0,
                "gradient_norm.head": 1.5,
                "param_norm": 30.0,
                "update_norm": 0.01,
                "learning_rate": 1e-3 / i,
                "steps_per_second": 12.5,
                "waiting": 0.125,
                "seconds": i / 12.5,
                **({"eval_loss": 5.0 / i, "eval_accuracy": i / 128} if i % 10 == 0 else {}),
                **({"skipped": 1, "perplexity": math.nan} if i == 7 else {}),
            }
            for i in range(1, n + 1)
        ]
    )


def data(page):
    return json.loads(page.split('id="data">')[1].split("</script>")[0])


def test_everything_is_told(tmp_path):
    (tmp_path / "sample.txt").write_text(f"The {HOSTILE} for statement", "utf-8")
    PIL.Image.new("L", (4, 4)).save(tmp_path / "mistakes.png")
    page = _report.render(tmp_path, RUN, history(), "steps")
    text = Reader(page).text
    for told in (
        "funcnet train chars: a text", "Step 40 of 40", "done: all steps are taken",
        "validation accuracy31.25%", "validation loss, nats per character0.1250", "steps per second12.5",
        "waiting for data12.5%",
        "learning rate2.5e-05", "skipped steps1", "time3 s", "params", "3.0e-15", "1 of 1 gradients right",
        "head.w", "12,345", "FLOPs of one example", "seed", "17", "0.10.1", f"The {HOSTILE} for statement",
    ):  # fmt: skip
        assert told in text, told
    assert "data:image/png;base64," in page
    assert "<script>alert" not in page
    assert "reload" not in data(page)


def test_mistakes_can_be_listened_to(tmp_path):
    read = {0: sine("ab"), 2: sine("c")}.__getitem__
    _sounds.heard(tmp_path, ["0.wav", "1.wav", HOSTILE], ["a", "b", "c"], ["b", "b", "d"], read)
    page = _report.render(tmp_path, RUN, history(), "steps")
    reader = Reader(page)
    assert "2 of 3 recordings wrong" in reader.text
    assert f"{HOSTILE}cd" in reader.text
    sounds = [tag[1]["src"] for tag in reader.tags if tag[0] == "audio"]
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(sounds[0].partition("base64,")[2])))
    assert rate == 16_000
    np.testing.assert_allclose(samples, read(0), atol=1e-4)
    assert "<script>alert" not in page


def test_a_page_does_not_hold_more_sound_than_it_should(tmp_path):
    n = 60
    _sounds.heard(tmp_path, ["x"] * n, ["a"] * n, ["b"] * n, lambda i: np.zeros(16_000 * 3, np.float32))
    content = json.loads((tmp_path / "mistakes.json").read_text("utf-8"))
    assert content["title"] == "60 of 60 recordings wrong; 13 of them"
    assert (tmp_path / "mistakes.json").stat().st_size < 1_800_000


@pytest.mark.parametrize(
    ("title", "curves", "scale"),
    [
        ("loss, nats", ["each step", "running mean", "validation"], "log"),
        ("accuracy", ["each step", "running mean", "validation"], "share"),
        ("learning rate, as applied", ["learning rate"], "linear"),
        ("norms", ["gradient norm", "update norm", "param norm"], "log"),
        ("gradient norm by block", ["head"], "log"),
        ("steps per second", ["steps per second"], "linear"),
        ("time spent waiting for data", ["waiting"], "share"),
    ],
)
def test_the_curves(title, curves, scale):
    panels = {panel.title: panel for panel in _report.panels(history(), "validation")}
    assert [curve.name for curve in panels[title].curves] == curves
    assert panels[title].scale == scale
    assert len(panels) == 7, "a metric that was never finite has none"


def test_a_run_that_goes_on_and_one_that_ended_badly(tmp_path):
    going_on = _report.render(tmp_path, RUN, history(5))
    assert data(going_on)["reload"] == _report.RELOAD
    assert "Step 5 of 40 training" in Reader(going_on).text
    ended = _report.render(tmp_path, RUN, history(5), "the loss of step 6 is nan")
    assert "ended: the loss of step 6 is nan" in Reader(ended).text
    assert "reload" not in data(ended)
    assert "Step 0" in Reader(_report.render(tmp_path, RUN, History())).text, "before the first step"


def test_a_page_is_whole_or_the_one_before(tmp_path, monkeypatch):
    _report.write(tmp_path, RUN, history(3))
    before = (tmp_path / "report.html").read_text("utf-8")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_report.os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        _report.write(tmp_path, RUN, history(4))
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text("utf-8") == before


@pytest.mark.slow
def test_a_million_steps(tmp_path):
    long, rng = History(), np.random.default_rng(0)
    for first in range(1, 1_000_000, 10_000):
        losses = enumerate(rng.random(10_000).tolist(), first)
        long.extend({"step": i, "loss": 1 + x / i, "accuracy": x, "gradient_norm": x} for i, x in losses)
    assert len(long) == 1_000_000
    page = _report.render(tmp_path, RUN, long, "steps")
    assert len(page.encode()) < 2_000_000


@needs_browser
def test_a_browser_shows_the_run(tmp_path):
    text = shown(tmp_path, _report.render(tmp_path, RUN, history(), "steps")).text
    for told in (
        "Step 40 of 40",
        "done: all steps are taken",
        "validation 0.125",
        "gradient norm 2",
        "head 1.5",
    ):
        assert told in text
