"""Syllables: whose they are, what is held out, and that every part of the task works with the others."""

import base64
import dataclasses
import io
import json

import jax
import numpy as np
import pytest
import soundfile
from matplotlib.image import imread

import funcnet as fn
from funcnet.errors import FileFormatError, ValueRangeError
from funcnet.nets import crnn
from funcnet.tasks import tones
from funcnet.tasks._task import Saved
from tests.tasks import sounding


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return sounding.syllables(tmp_path_factory.mktemp("syllables"))


@pytest.fixture
def small(monkeypatch):
    whole = tones.config
    few = {"channels": (2,), "pools": ((2, 4),), "hidden": 3}
    monkeypatch.setattr(tones, "config", lambda options: dataclasses.replace(whole(options), **few))


def names(recorded):
    return {name.split()[0].rstrip("1234") for name in recorded.names}


def test_a_syllable_is_held_out_in_all_its_tones(folder):
    train, test = tones.data(tones.Options(data=folder))
    assert (len(train.names), len(test.names)) == (64, 16)
    assert not names(train) & names(test)
    assert names(test) == {"ㄅㄚ", "ㄆㄞ"}
    assert np.bincount(test.split.labels).tolist() == [4, 4, 4, 4]
    assert {name.split()[2] for name in test.names} == {"3", "5"}
    frames = (train.split.x != 0).any(-1).sum(1)
    assert (frames == 1 + 1600 // 160).all()
    again, _ = tones.data(tones.Options(data=folder, seed=1))
    np.testing.assert_array_equal(train.split.x, again.split.x)


def test_what_is_heard_of_a_syllable():
    tone, initial = (tones.CLASSES[label] for label in ("tone", "initial"))
    assert (len(tone), len(initial)) == (4, 23)
    for name, first, second in (
        ("ㄅㄚ", "first", "b"), ("ㄓ2", "second", "zh"), ("ㄧㄠ3", "third", "y"), ("ㄨㄛ4", "fourth", "w"),
        ("ㄅㄚ1", None, "b"), ("ㄢ4", "fourth", None), ("ㄩ", "first", None),
    ):  # fmt: skip
        found = tones._label(name, "tone"), tones._label(name, "initial")
        expected = (
            None if first is None else tone.index(first), None if second is None else initial.index(second)
        )  # fmt: skip
        assert found == expected, name


def test_the_task(folder, small, tmp_path):
    task = tones.prepare(tones.Options(data=folder, epochs=2, batch=16))
    assert task.steps == len(list(task.batches())) == 8
    assert task.data == {**task.data, "source": str(folder), "train": 64, "test": 16}
    assert "two speakers" in task.notes[0]
    assert all(licence in task.notes[1] for licence in ("GPL-3 or LGPL-3", "CC-BY-3"))
    batch = next(task.batches())
    params = jax.jit(lambda: crnn.init(jax.random.key(0), task.config))()
    measure = jax.jit(task.step.loss)
    (loss, metrics), (other, _) = (measure(params, batch, jax.random.key(seed)) for seed in (1, 2))
    assert loss != other, "stripes and dropout depend on the key"
    assert 0 <= metrics["accuracy"] <= 1
    state = fn.train.init(params, task.optimizer, key=jax.random.key(0))
    score = task.evaluate(state)
    assert score.keys() == {"loss", "accuracy"}
    task.finish(params, tmp_path)
    assert imread(tmp_path / "confusion.png").ndim == 3
    content = json.loads((tmp_path / "mistakes.json").read_text("utf-8"))
    wrong = round(16 * (1 - score["accuracy"]))
    assert content["title"] == f"{wrong} of 16 recordings wrong"
    assert len(content["mistakes"]) == wrong
    sound, rate = soundfile.read(io.BytesIO(base64.b64decode(content["mistakes"][0]["wav"])))
    assert (len(sound), rate) == (1600, 16_000)
    trained, held_out = task.examples(5)
    assert (len(trained.inputs), len(held_out.inputs)) == (5, 16)
    saved = Saved("tones", task.config, params, task.data)
    path = folder / "ㄅㄚ" / "3.ogg"
    prediction = tones.predict(saved, path)
    assert prediction.columns == ("class", "probability", "first", "second", "third", "fourth")
    (row,) = prediction.rows
    assert sum(map(float, row[2:])) == pytest.approx(1, abs=0.005)
    with pytest.raises(ValueError, match="does not hold the answers"):
        tones.predict(saved._replace(data={"answers": ["first"]}), path)


def test_the_order_depends_on_the_seed(folder, small):
    def first(**options):
        return next(tones.prepare(tones.Options(data=folder, batch=8, **options)).batches()).labels.tolist()

    assert first() == first()
    assert first() != first(seed=1)


def test_recordings_that_are_missing_few_or_damaged(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"package gcin-voice, or name their folder: --data DIR"):
        tones.data(tones.Options(data=tmp_path))
    sounding.syllables(tmp_path / "one", n=1)
    with pytest.raises(ValueRangeError, match="recordings of 1 syllables"):
        tones.data(tones.Options(data=tmp_path / "one"))
    sounding.syllables(tmp_path / "two", n=2)
    (tmp_path / "two" / "ㄅㄚ" / "3.ogg").write_bytes(b"OggS, but no more")
    with pytest.raises(FileFormatError, match=r"3\.ogg"):
        tones.data(tones.Options(data=tmp_path / "two"))
    with pytest.raises(ValueRangeError, match="batch is 100"):
        tones.prepare(tones.Options(data=sounding.syllables(tmp_path / "few", n=6), batch=100))


@pytest.mark.parametrize(("name", "value"), [("epochs", 0), ("batch", 0), ("seed", -1)])
def test_options_that_make_no_sense(name, value):
    with pytest.raises(ValueRangeError, match=f"{name} is "):
        tones.Options(**{name: value})


def test_a_label_that_is_none(unchecked):
    with pytest.raises(ValueRangeError, match="label is 'final'"):
        tones.Options(label="final")


@pytest.mark.slow
@pytest.mark.skipif(not tones.DEBIAN.is_dir(), reason="Debian's package gcin-voice is not installed")
def test_the_tones_of_the_package_are_heard():
    task = tones.prepare(tones.Options(epochs=12))
    assert len(list(tones.DEBIAN.glob("*/*.ogg"))) == 2358
    assert task.data["train"] + task.data["test"] == 2334, "all but 24 of the neutral tone"
    params = jax.jit(lambda: crnn.init(jax.random.key(0), task.config))()
    state = fn.train.init(params, task.optimizer, key=jax.random.key(1))
    for batch in task.batches():
        state, _ = task.step(state, batch)
    assert task.evaluate(state)["accuracy"] > 0.93
