"""The character model's data, clock, loss and sampling."""

import itertools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnet as fn
from funcnet.errors import FileFormatError, StructureError, ValueRangeError
from funcnet.nets import transformer
from funcnet.tasks import chars
from funcnet.tasks._task import Saved
from funcnet.tasks._training import Training

OPTIONS = {"norm": "rms", "mlp": "swiglu", "positions": "rope", "bias": False, "windows": (5,)}
CONFIG = transformer.Config(vocabulary=7, context=1000, layers=2, heads=2, d=8, **OPTIONS)
TEXT = "".join("abcdefg"[i] for i in np.random.default_rng(0).integers(0, 7, 400))


@pytest.fixture(scope="module")
def params():
    # Larger weights than `init` draws: its logits are all but equal, whatever the past.
    return jax.tree.map(lambda leaf: 5 * leaf, transformer.init(jax.random.key(0), CONFIG))


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def options(path, **more):
    return chars.Options(**{"text": path, "context": 5, "batch": 3, "steps": 4, **more})


def test_the_manual_is_english_without_repetition():
    text = chars.read(None)
    paragraphs = text.split("\n\n")
    assert len(set(paragraphs)) == len(paragraphs)
    assert len(text) > 300_000
    assert text.count(" the ") > 2000
    assert "syntactically nested" in text


def test_the_manual_is_read_and_not_run(tmp_path, monkeypatch):
    def source(text):
        (tmp_path / "topics.py").write_text(text, encoding="utf-8")

    monkeypatch.setattr(chars.importlib.resources, "files", lambda name: tmp_path)
    source("topics = {'b': 'two\\n\\none', 'a': '\\none\\n\\nthree'}")
    assert chars.read(None) == "one\n\nthree\n\ntwo"
    for text in (
        "raise SystemExit",
        "topics = open('x')",
        "topics = {'a': open('x')}",
        "topics = {'a': 1}",
        "topics = {**{}}",
        "topics = {",
    ):
        source(text)
        with pytest.raises(FileFormatError, match="--text FILE"):
            chars.read(None)
    (tmp_path / "topics.py").unlink()
    with pytest.raises(FileNotFoundError, match="--text FILE"):
        chars.read(None)


def test_a_text_of_ones_own(tmp_path):
    path = tmp_path / "text"
    path.write_text("a\né\n", encoding="utf-8")
    assert chars.read(path) == "a\né\n"
    path.write_bytes(b"a\xff")
    with pytest.raises(FileFormatError, match="no UTF-8 text"):
        chars.read(path)


def test_encode():
    np.testing.assert_array_equal(chars.encode("cab", "abc"), [2, 0, 1])
    assert chars.decode([2, 0, 1], "abc") == "cab"
    with pytest.raises(ValueRangeError) as raised:
        chars.encode("abxéx", "abc")
    assert str(raised.value) == (
        "the text has characters that the model has not seen: 'xé'.\n"
        "  expected  the 3 characters of its training text"
    )


def test_the_schedule_rises_and_falls():
    rates = [chars.schedule(i, i / 5000) for i in range(5001)]
    assert 0 < rates[0] <= 0.01
    assert rates[-1] == pytest.approx(0.1)
    top = rates.index(max(rates))
    assert max(rates) == pytest.approx(1, abs=0.01)
    assert 95 <= top <= 105
    assert rates == sorted(rates[: top + 1]) + sorted(rates[top + 1 :], reverse=True)


def test_batches_are_pieces_of_the_training_text(written):
    task = chars.prepare(options(written))
    batches = list(itertools.islice(task.batches(), 4))
    assert [batch.rate for batch in batches] == [chars.schedule(i, i / 4) for i in range(4)]
    training = TEXT[: len(TEXT) - len(TEXT) // 10]
    for batch in batches:
        assert batch.ids.shape == (3, 6)
        for piece in batch.ids:
            assert "".join("abcdefg"[i] for i in piece) in training
    again = list(itertools.islice(task.batches(), 4))
    assert all(np.array_equal(a.ids, b.ids) for a, b in zip(batches, again, strict=True))
    other = next(chars.prepare(options(written, seed=1)).batches())
    assert not np.array_equal(other.ids, batches[0].ids)


def test_the_clock_ends_the_batches(written):
    task = chars.prepare(options(written, steps=None), Training(minutes=0.01))
    assert task.steps is None
    began = time.monotonic()
    rates = [batch.rate for batch in task.batches()]
    assert time.monotonic() - began >= 0.6
    assert len(rates) > 200
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert rates[100] > 0.9
    assert rates[-1] < 0.11


def test_the_options_of_every_task(written):
    rates = [chars.schedule(i, i / 10, Training(schedule="linear", warmup=2)) for i in range(11)]
    assert rates == pytest.approx([0.5, *(1 - 0.09 * i for i in range(1, 11))])
    assert chars.prepare(options(written), Training(dtype="bfloat16")).config.dtype == "bfloat16"
    assert chars.prepare(options(written)).config.dtype is None


def test_batches_go_on_where_they_were(written):
    whole = list(itertools.islice(chars.prepare(options(written)).batches(), 4))
    first = chars.prepare(options(written)).batches()
    for _ in range(2):
        next(first)
    again = chars.prepare(options(written)).batches()
    again.seek(first.position())
    for expected in whole[2:]:
        batch = next(again)
        np.testing.assert_array_equal(batch.ids, expected.ids)
        assert batch.rate == expected.rate


@pytest.mark.slow
def test_the_learning_rate_follows_what_the_batch_says(written, monkeypatch):
    monkeypatch.setattr(chars, "config", lambda options: CONFIG)
    task = chars.prepare(options(written, learning_rate=0.01, weight_decay=0.0))
    params = transformer.init(jax.random.key(0), CONFIG)

    def moved(rate):
        state = fn.train.init(params, task.optimizer, key=jax.random.key(0))
        batch = next(task.batches())._replace(rate=rate)
        state, metrics = task.step(state, batch)
        assert float(metrics["learning_rate"]) == pytest.approx(0.01 * rate)
        changes = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), state.params, params)
        return max(jax.tree.leaves(changes))

    assert moved(0.0) == 0
    assert moved(0.5) == pytest.approx(0.005, rel=1e-3), "Adam's first step"
    assert moved(1.0) == pytest.approx(0.01, rel=1e-3)


def test_the_score_is_of_the_last_tenth(written, monkeypatch, params):
    monkeypatch.setattr(chars, "config", lambda options: CONFIG)
    task = chars.prepare(options(written))
    state = fn.train.init(params, task.optimizer, key=jax.random.key(0))
    held_out = chars.encode(TEXT[-40:], "abcdefg")
    expected = chars.mean_loss(params, held_out[:36], CONFIG)  # 7 whole pieces of 5
    assert task.evaluate(state)["loss"] == pytest.approx(expected, rel=1e-6)
    assert task.data["train"] == 360
    assert task.data["validation"] == 40
    assert task.data["measured"] == 35
    assert task.held_out == "validation"


def test_the_score_of_a_long_text_is_of_some_pieces(written, monkeypatch, params):
    monkeypatch.setattr(chars, "config", lambda options: CONFIG)
    monkeypatch.setattr(chars, "MEASURED", 14)
    task = chars.prepare(options(written))
    state = fn.train.init(params, task.optimizer, key=jax.random.key(0))
    held_out = chars.encode(TEXT[-40:], "abcdefg")
    pieces = [chars.mean_loss(params, held_out[start : start + 6], CONFIG) for start in (0, 30)]
    assert task.evaluate(state)["loss"] == pytest.approx(np.mean(pieces), rel=1e-6)
    assert task.data["measured"] == 10
    assert task.held_out == "validation (on 2 of 7 pieces)"


def test_a_text_that_is_too_short(tmp_path):
    path = tmp_path / "short"
    path.write_text("abc" * 16, encoding="utf-8")
    with pytest.raises(ValueRangeError, match="the text has 48 characters"):
        chars.prepare(options(path))


@pytest.mark.parametrize("n", [2, 6, 13])
def test_the_mean_loss_takes_piece_by_piece(params, n):
    ids = np.random.default_rng(1).integers(0, 7, n).astype(np.int32)
    total = 0.0
    for start in range(0, n - 1, 5):
        piece = ids[start : start + 6]
        logits = np.asarray(transformer.apply(params, jnp.asarray(piece[:-1]), CONFIG))
        total += (np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(piece) - 1), piece[1:]]).sum()
    assert chars.mean_loss(params, ids, CONFIG) == pytest.approx(total / (n - 1), rel=1e-6)


@pytest.mark.slow
def test_a_text_goes_on_by_its_own_past(params):
    saved = Saved("chars", CONFIG, params, {"characters": "abcdefg"})

    def generate(prompt="bcd", tokens=9, temperature=1.0, **options):
        return chars.generate(saved, prompt, tokens=tokens, temperature=temperature, **options)

    text = np.zeros(12, np.int32)
    text[:3] = chars.encode("bcd", "abcdefg")
    apply = jax.jit(lambda params, ids: transformer.apply(params, ids, CONFIG))
    for i in range(3, 12):
        text[i] = apply(params, jnp.asarray(text))[i - 1].argmax()  # what comes later is not seen
    assert generate(temperature=0.0) == chars.decode(text[3:].tolist(), "abcdefg")
    assert generate() == generate()
    assert len({generate(seed=seed) for seed in range(3)}) == 3
    assert generate("abcdef" * 9 + "bcd", temperature=0.0) == generate("defbcd"[1:], temperature=0.0)
    heard = []
    assert generate(tokens=20, stream=heard.append) == "".join(heard)
    assert 1 < len(heard) <= 20, "as they are known"


def test_a_prompt_that_cannot_be_gone_on_from(params):
    saved = Saved("chars", CONFIG, params, {"characters": "abcdefg"})
    for prompt, words in (("", "the prompt is empty"), ("abz", "has not seen: 'z'")):
        with pytest.raises(ValueRangeError, match=words):
            chars.generate(saved, prompt, tokens=3, temperature=1.0)
    with pytest.raises(StructureError, match=r"config\.json"):
        chars.generate(saved._replace(data={}), "abc", tokens=3, temperature=1.0)


@pytest.mark.slow
def test_a_prediction(params, written):
    saved = Saved("chars", CONFIG, params, {"characters": "abcdefg"})
    prediction = chars.predict(saved, written)
    assert prediction.rows[0][0] == "400"
    assert len(prediction.text) == 400
    assert set(prediction.text) <= set("abcdefg")
    assert prediction == chars.predict(saved, written), "the same file, the same answer"
    written.write_text("a", encoding="utf-8")
    with pytest.raises(ValueRangeError, match="nothing to predict"):
        chars.predict(saved, written)
    for characters in ("abc", None, 7):
        with pytest.raises(StructureError, match=r"config\.json"):
            chars.predict(saved._replace(data={"characters": characters}), written)


def test_options_that_make_no_sense():
    wrong: list[dict[str, Any]] = [
        {"steps": 0},
        {"batch": 0},
        {"context": 1},
        {"learning_rate": -1.0},
        {"weight_decay": -0.1},
        {"seed": -1},
    ]
    for option in wrong:
        with pytest.raises(ValueRangeError, match=next(iter(option))):
            chars.Options(**option)
