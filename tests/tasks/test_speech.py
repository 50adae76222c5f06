"""One's own recordings: found, named where they are bad, made into batches, learned and written down."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnet as fn
from funcnet import recordings
from funcnet.errors import FileFormatError, StructureError, ValueRangeError
from funcnet.nets import crnn
from funcnet.tasks import _recorded, _sounds, speech
from funcnet.tasks._task import Saved
from tests.tasks import sounding

TEXTS = ["ab", "ba", "Cab", "abc", "bca", "cc", "a  b", "acb", "b", "c", "ca", "bb"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "funcnet"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return sounding.classes(tmp_path_factory.mktemp("classes"))


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    return sounding.transcripts(tmp_path_factory.mktemp("said"), TEXTS)


@pytest.fixture
def small(monkeypatch):
    whole = speech.config
    few = {"channels": (2,), "pools": ((2, 4),), "hidden": 3, "layers": 1}
    monkeypatch.setattr(
        speech, "config", lambda options, found=None: dataclasses.replace(whole(options, found), **few)
    )


def find(data, **options):
    return _recorded.find(data, **{"longest": 20.0, "workers": 2} | options)


# ---- what there is ----------------------------------------------------------------------------------------


def test_folders_of_any_format_and_rate(folders):
    found = find(folders)
    assert found.names == [
        f"{letter}/{i}.{('wav', 'flac', 'ogg')[i % 3]}" for letter in "ab" for i in range(6)
    ]
    assert (found.texts, found.answers, found.spoken) == (["a"] * 6 + ["b"] * 6, ("a", "b"), False)
    assert not found.notes
    for name, length in zip(found.names, found.lengths, strict=True):
        assert abs(len(recordings.read(folders / name, 16_000)) - length) <= 1


def test_lists_of_what_is_said(said):
    found = find(said)
    assert find(said / "transcripts.tsv").names == found.names
    assert found.spoken
    assert found.answers == (" ", "a", "b", "c")
    assert found.texts[2] == "cab"
    assert found.texts[6] == "a b"


def test_headers_are_read_once(folders, tmp_path, cache, monkeypatch):
    folder = shutil.copytree(folders, tmp_path / "copy")
    read = []
    about = recordings.about
    monkeypatch.setattr(recordings, "about", lambda path: read.append(path.name) or about(path))
    first = find(folder)
    assert len(read) == 12
    same = find(folder)
    np.testing.assert_array_equal(same.lengths, first.lengths)
    assert len(read) == 12
    sounding.write(folder / "a" / "0.wav", sounding.sine("abc"))
    assert find(folder).lengths[0] == 4800
    assert read[12:] == ["0.wav"]
    (kept,) = cache.iterdir()
    for damage in ("{", "[]", '{"a/0.wav": [1, 2]}', '{"a/0.wav": [1, 2, -5, ""]}'):
        kept.write_text(damage)
        assert find(folder).lengths[0] == 4800
    shutil.rmtree(cache)
    cache.write_text("no folder")
    assert find(folder).lengths[0] == 4800


def test_what_cannot_be_read_is_named_and_counted(folders, tmp_path):
    folder = shutil.copytree(folders, tmp_path / "copy")
    (folder / "a" / "broken.wav").write_bytes(b"RIFF no sound")
    (folder / "b" / "empty.ogg").touch()
    (folder / "b" / "notes.txt").write_text("no recording, and none by its name")
    (folder / "b" / ".hidden.wav").touch()
    (folder / "b" / "gone.wav").symlink_to(tmp_path / "nowhere.wav")
    sounding.write(folder / "a" / "long.wav", np.zeros(16_000 * 3, np.float32))
    found = find(folder, longest=2.0)
    assert len(found.names) == 12
    bad, long = found.notes
    assert bad.startswith("3 of 16 files cannot be read and are left out: a/broken.wav: this is no sound")
    assert "b/gone.wav: No such file or directory" in bad
    assert long == "1 recordings of more than 2 s are left out"
    for name in found.names:
        (folder / name).write_bytes(b"")
    (folder / "a" / "long.wav").unlink()
    with pytest.raises(FileFormatError, match="none of the 15 recordings can be read"):
        find(folder)


def test_what_is_no_data(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a folder of recordings nor a list"):
        find(tmp_path / "nowhere")
    sounding.write(tmp_path / "a.wav", sounding.sine("a"))
    with pytest.raises(FileNotFoundError, match=r"no recordings in folders, CLASS/NAME\.wav"):
        find(tmp_path)
    with pytest.raises(ValueRangeError, match="no recording is short enough"):
        find(sounding.classes(tmp_path / "folders", n=1), longest=0.05)
    path = tmp_path / "list.tsv"
    for text, problem in (
        ("a.wav no tab\n", "line 1 is none of a recording"),
        ("a.wav\tsaid\n\na.wav\tone\ttwo\n", "line 3 is none"),
        ("\tsaid\n", "line 1"),
        ("a.wav\tsaid \ud800\n", "no UTF-8"),
    ):
        path.write_text(text, "utf-8", "surrogatepass")
        with pytest.raises(FileFormatError, match=problem):
            find(path)
    path.write_text("\n \n")
    with pytest.raises(FileNotFoundError, match="lists no recordings"):
        find(path)


def test_what_cannot_be_learned(folders, said, tmp_path):
    with pytest.raises(ValueRangeError, match="--data DIR"):
        speech.find(speech.Options())
    one = shutil.copytree(folders / "a", tmp_path / "one" / "a").parent
    with pytest.raises(ValueRangeError, match="of one class only, 'a'"):
        speech.find(speech.Options(data=one))
    with pytest.raises(ValueRangeError, match="holds too few recordings"):
        speech.find(speech.Options(data=sounding.classes(tmp_path / "few", n=1)))
    with pytest.raises(ValueRangeError, match="has transcripts, the other has not"):
        speech.find(speech.Options(data=folders, test=said))
    new = sounding.classes(tmp_path / "new")
    (new / "b").rename(new / "c")
    with pytest.raises(ValueRangeError, match=r"c/0\.wav has a class that no recording of .* has: 'c'"):
        speech.find(speech.Options(data=folders, test=new))
    new = sounding.transcripts(tmp_path / "letters", ["ab", "acb"])
    data = sounding.transcripts(tmp_path / "fewer", ["ab", "ba"])
    with pytest.raises(ValueRangeError, match=r"wav/1\.wav has letters that no recording of .* has: 'c'"):
        speech.find(speech.Options(data=data, test=new))
    (data / "transcripts.tsv").write_text("wav/0.wav\t\nwav/1.wav\t \n")
    with pytest.raises(ValueRangeError, match="nothing is said"):
        speech.find(speech.Options(data=data))
    with pytest.raises(ValueRangeError, match=r"(?s)batch is 11, and there are \d+ recordings .*--batch \d"):
        speech.prepare(speech.Options(data=folders, batch=11))


def test_a_share_of_each_class_is_held_out():
    texts = ["a"] * 10 + ["b"] * 2 + ["c"]
    found = _recorded.Found(
        [f"{i}.wav" for i in range(13)], None, np.arange(13), texts, False, ("a", "b", "c")
    )
    trained, held = _recorded.halves(found, 0.3)
    assert sorted([*trained, *held]) == list(range(13))
    assert [texts[i] for i in held] == ["a", "a", "a", "b"]
    backwards = found._replace(names=found.names[::-1], texts=texts[::-1])
    again = _recorded.halves(backwards, 0.3)[1]
    assert {found.names[i] for i in held} == {backwards.names[i] for i in again}, "by the names alone"


# ---- batches ----------------------------------------------------------------------------------------------


def test_the_order_brings_like_lengths_together():
    lengths = np.random.default_rng(0).integers(1, 1000, 1003)
    order = _recorded._order(lengths, 4, 0, 0)
    assert sorted(order) == list(range(1003))
    groups = lengths[order[:1000]].reshape(-1, 4)
    assert np.ptp(groups, axis=1).mean() < 30
    assert np.corrcoef(groups[:-1, 0], groups[1:, 0])[0, 1] < 0.2, "in no order of the batches"
    np.testing.assert_array_equal(order, _recorded._order(lengths, 4, 0, 0))
    for other in ((1, 0), (0, 1)):
        assert (order != _recorded._order(lengths, 4, *other)).mean() > 0.9


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_batch_is_a_function_of_its_place(folders, small):
    task = speech.prepare(speech.Options(data=folders, batch=4, epochs=3, workers=3))
    batches = task.batches()
    first = [jax.device_get(next(batches)) for _ in range(3)]
    place = json.loads(json.dumps(batches.position()))
    rest = [jax.device_get(batch) for batch in batches]
    assert len(rest) == 3
    again = speech.prepare(speech.Options(data=folders, batch=4, epochs=3, workers=1)).batches()
    again.seek(place)
    assert all(same(a, b) for a, b in zip(rest, again, strict=True))
    assert not same(first[0], first[2])
    other = speech.prepare(speech.Options(data=folders, batch=4, epochs=3, seed=1)).batches()
    with pytest.raises(ValueRangeError, match="position in other batches"):
        other.seek(place)
    assert len({batch.samples.shape for batch in first + rest}) <= 6
    for batch in first + rest:
        ends = np.arange(batch.samples.shape[1]) >= batch.lengths[:, None]
        assert not batch.samples[ends].any()


def test_what_breaks_later_does_not_count(folders, small, tmp_path):
    folder = shutil.copytree(folders, tmp_path / "copy")
    options = speech.Options(data=folder, batch=10, epochs=1, held_out=0.1)
    task = speech.prepare(options)
    name = next(iter(speech.find(options)[0].names))
    (folder / name).write_bytes(b"RIFF")
    with pytest.warns(UserWarning, match=rf"{name} cannot be decoded and does not count: this is no sound"):
        batch = jax.device_get(next(task.batches()))
    assert (batch.lengths == 0).sum() == 1
    params = jax.jit(lambda: crnn.init(jax.random.key(0), task.config))()
    loss, metrics = jax.jit(task.step.loss)(params, batch, jax.random.key(0))
    assert float(loss.weight) == float(metrics["accuracy"].weight) == 9


def test_recordings_as_they_could_have_been():
    samples = sounding.sine("abc")
    draw = lambda seed, **options: _sounds.varied(samples, np.random.default_rng(seed), **options)
    np.testing.assert_array_equal(draw(0), samples)
    np.testing.assert_array_equal(draw(1, noise=0.0, speed=0.1), draw(1, noise=0.0, speed=0.1))
    lengths = [len(draw(seed, speed=0.1)) / len(samples) for seed in range(20)]
    assert 0.9 < min(lengths) < 0.97
    assert 1.03 < max(lengths) < 1.12
    later = [int(np.argmax(draw(seed, shift=0.05) != 0)) for seed in range(20)]
    assert 600 < max(later) <= 801
    ratios = [
        10 * np.log10((samples**2).mean() / ((draw(seed, noise=5.0) - samples) ** 2).mean())
        for seed in range(40)
        if (draw(seed, noise=5.0) != samples).any()
    ]
    assert 10 < len(ratios) < 30, "every other one"
    assert 4.9 < min(ratios) < 15
    assert 25 < max(ratios) < 35.1
    silence = np.zeros(100, np.float32)
    np.testing.assert_array_equal(_sounds.varied(silence, np.random.default_rng(0), noise=0.0), silence)


def test_spectrograms_do_not_know_how_loud_a_recording_is():
    of = jax.jit(_sounds.spectrograms)
    parts = [sounding.sine("ab"), 0.001 * sounding.sine("ab"), np.zeros(800, np.float32)]
    samples, lengths = _sounds.joined([*parts, np.zeros(0, np.float32)])
    x = np.asarray(of(samples, lengths))
    assert x.shape == (4, _sounds.frames(3200), 40)
    np.testing.assert_allclose(x[0], x[1], atol=5e-3)
    assert (x[0].min(), x[0].max()) == pytest.approx((-2, 2))
    real = (x != _sounds.PADDING).any(-1).sum(1)
    np.testing.assert_array_equal(real, [21, 21, 6, 0])
    assert np.isfinite(x).all()
    assert x[0, 2].argmax() < x[0, 15].argmax(), "b is higher than a"


def test_stripes():
    x = jnp.ones((50, 30, 40), jnp.float32)
    striped = jax.jit(_sounds.striped, static_argnames=("bands", "frames", "stripes"))
    hidden = np.asarray(striped(jax.random.key(0), x, bands=5, frames=3)) == 0
    bands, frames = hidden.all(1).sum(1), hidden.all(2).sum(1)
    assert (bands.max(), frames.max()) <= (10, 6)
    assert bands.max() > 5
    assert frames.max() > 3
    np.testing.assert_array_equal(hidden, hidden.all(1)[:, None] | hidden.all(2)[..., None])
    assert not (np.asarray(striped(jax.random.key(0), x, bands=0, frames=0)) == 0).any()


# ---- the task ---------------------------------------------------------------------------------------------


def trained(task, key=0):
    params = jax.jit(lambda: crnn.init(jax.random.key(key), task.config))()
    state = fn.train.init(params, task.optimizer, key=jax.random.key(key))
    losses = []
    for batch in task.batches():
        state, metrics = task.step(state, batch)
        losses.append(float(metrics["loss"]))
    return state, losses


def test_classes(folders, small, tmp_path):
    options = speech.Options(data=folders, batch=10, held_out=0.1, epochs=40, learning_rate=0.03, seconds=1.0)
    task = speech.prepare(options)
    assert task.steps == 40
    assert task.notes[0].startswith("2 of 12 recordings are held out, one by one: who speaks in them")
    assert task.notes[1] == "a: 5, b: 5"
    state, losses = trained(task)
    assert np.mean(losses[-5:]) < 0.7 * losses[0]
    score = task.evaluate(state)
    assert score.keys() == {"loss", "accuracy"}
    task.finish(state.params, tmp_path)
    assert (tmp_path / "confusion.png").exists()
    content = json.loads((tmp_path / "mistakes.json").read_text("utf-8"))
    assert content["title"] == f"{round(2 * (1 - score['accuracy']))} of 2 recordings wrong"
    trained_on, held = task.examples(3)
    assert (len(trained_on.inputs), len(held.inputs)) == (3, 2)
    saved = Saved("speech", task.config, state.params, task.data)
    prediction = speech.predict(saved, folders / "a" / "0.wav")
    assert prediction.columns == ("class", "probability", "a", "b")
    assert prediction.rows[0][0] in ("a", "b")


def test_transcripts(said, small, tmp_path):
    folder = shutil.copytree(said, tmp_path / "copy")
    with (folder / "transcripts.tsv").open("a") as file:
        file.write("wav/0.wav\t" + "abc" * 20 + "\n")
    options = speech.Options(data=folder, batch=5, held_out=0.2, epochs=6, learning_rate=0.02)
    task = speech.prepare(options)
    assert any("1 of 10 recordings are too short for what is said in them" in note for note in task.notes)
    assert task.data["answers"] == [" ", "a", "b", "c"]
    assert task.config.classes == 5
    state, losses = trained(task)
    assert np.isfinite(losses).all()
    assert np.mean(losses[-3:]) < losses[0]
    score = task.evaluate(state)
    assert score["accuracy"] == 1 - score["character_error_rate"]
    task.finish(state.params, tmp_path)
    assert "of 3 recordings wrong" in json.loads((tmp_path / "mistakes.json").read_text("utf-8"))["title"]
    with pytest.raises(StructureError, match="which letter each step"):
        task.examples(3)
    saved = Saved("speech", task.config, state.params, task.data)
    prediction = speech.predict(saved, folder / "wav" / "0.wav")
    assert prediction.columns == ("seconds", "said")
    assert prediction.rows[0][0] == "0.20"
    assert set(prediction.rows[0][1]) <= set(" abc")


def test_what_is_read_out_of_steps():
    config = crnn.Config(40, 4, channels=(), pools=(), pooled=False)
    best = np.array([[0, 1, 1, 0, 1, 2, 2, 3], [3, 3, 2, 0, 0, 1, 1, 1]])
    logits = np.eye(4)[best]
    assert speech._texts(logits, [7 * 160, 2 * 160], tuple("abc"), config) == ["aabc", "cb"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("held_out", 0.0), ("seconds", 0.0), ("noise", 200.0), ("speed", 0.6), ("mask", 41), ("workers", 0)],
)
def test_options_that_make_no_sense(name, value):
    with pytest.raises(ValueRangeError, match=f"{name} is "):
        speech.Options(**{name: value})
