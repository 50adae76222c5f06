"""The pictures of a run are drawn, whatever it left behind."""

import errno
import math

import numpy as np
import pytest
from matplotlib.image import imread

from funcnet.tasks import _plots

RECORDS = [
    {
        "step": i + 1,
        "loss": 1 / (i + 1),
        "accuracy": i / 100,
        **({"eval_loss": 0.5, "eval_accuracy": 0.7} if i % 20 == 19 else {}),
    }
    for i in range(100)
]


@pytest.mark.parametrize(
    "records",
    [
        RECORDS,
        RECORDS[:1],
        RECORDS[:10],
        [],
        [*RECORDS, {"step": 101, "loss": math.nan, "accuracy": math.inf}],
    ],
    ids=["whole", "one step", "never evaluated", "no step", "not finite"],
)
def test_curves(tmp_path, records):
    path = tmp_path / "curves.png"
    _plots.curves(path, records, title="a run", held_out="test")
    assert imread(path).shape == (480, 1200, 4)


def test_a_picture_is_whole_or_not_there(tmp_path, monkeypatch):
    def full(figure, path):
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    with pytest.raises(OSError, match="No space"):
        _plots.curves(tmp_path / "curves.png", RECORDS, title="a run", held_out="test")
    assert list(tmp_path.iterdir()) == []


def test_the_running_mean():
    values = np.random.default_rng(0).random(130)
    expected = [values[max(0, i - 1) : i + 1].mean() for i in range(130)]  # 130 // 50 = 2 steps
    np.testing.assert_allclose(_plots.running_mean(values), expected)
    np.testing.assert_allclose(_plots.running_mean(values[:7]), values[:7])


@pytest.mark.parametrize("wrong", [0, 1, 9, 50])
def test_mistakes(tmp_path, wrong):
    labels = np.arange(60) % 10
    predicted = np.where(np.arange(60) < wrong, (labels + 1) % 10, labels)
    path = tmp_path / "mistakes.png"
    _plots.mistakes(path, np.random.default_rng(0).random((60, 8, 8)), labels, predicted, "0123456789")
    assert imread(path).ndim == 3


def test_confusion(tmp_path):
    rng = np.random.default_rng(0)
    for k in (2, 23, 60):
        labels, predicted = rng.integers(0, k, (2, 100))
        names = ["ㄅ", "a long name, longer than most", "$x_1$", *map(str, range(k))][:k]
        _plots.confusion(tmp_path / "confusion.png", labels, predicted, names)
        assert imread(tmp_path / "confusion.png").ndim == 3
    assert _plots._drawable(["ㄅ", "b" * 30, "é"]) == ["#0", "b" * 20, "é"]
