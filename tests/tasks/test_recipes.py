"""The recipes of images: their data, and that every part of a task works with the others."""

import gzip
import struct

import jax
import numpy as np
import pytest

import funcnet as fn
from funcnet.errors import FileFormatError, ValueRangeError
from funcnet.nets import convnet, transformer
from funcnet.tasks import chars, digits, fashion
from funcnet.tasks._training import Training


def fashion_files(folder, train=40, test=20, seed=0):
    """Four files of Fashion-MNIST's form."""
    rng = np.random.default_rng(seed)
    for name, n in (("train", train), ("t10k", test)):
        images = rng.integers(0, 256, (n, 28, 28), np.uint8)
        labels = (np.arange(n) % 10).astype(np.uint8)
        head = struct.pack(">4B3I", 0, 0, 8, 3, n, 28, 28)
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + images.tobytes()))
        head = struct.pack(">4BI", 0, 0, 8, 1, n)
        (folder / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(head + labels.tobytes()))
    return folder


def test_the_digits():
    train, test = digits.data()
    assert train.images.shape == (1437, 8, 8, 1)
    assert test.images.shape == (360, 8, 8, 1)
    for split in (train, test):
        assert split.images.dtype == np.float32
        assert (split.images.min(), split.images.max()) == (0, 1)
        assert set(split.labels.tolist()) == set(range(10))
    pixels = {image.tobytes() for image in train.images}
    assert sum(image.tobytes() in pixels for image in test.images) == 0, "a test image was trained on"
    again, _ = digits.data()
    np.testing.assert_array_equal(train.images, again.images)


def test_the_digits_task(monkeypatch):
    small = convnet.Config((8, 8, 1), channels=(2,), hidden=3, dropout=0.3)
    monkeypatch.setattr(digits, "config", lambda options: small)
    task = digits.prepare(digits.Options(epochs=2, batch=400))
    assert task.steps == len(list(task.batches())) == 6
    batch = next(task.batches())
    params = convnet.init(jax.random.key(0), task.config)
    logits = jax.eval_shape(convnet.apply, params, digits.example(task.config), task.config)
    assert logits.shape == (1, len(digits.CLASSES))
    measure = jax.jit(task.step.loss)
    (loss, metrics), (other, _) = (measure(params, batch, jax.random.key(seed)) for seed in (1, 2))
    assert loss != other, "shifts and dropout depend on the key"
    assert 0 <= metrics["accuracy"] <= 1
    score = task.evaluate(fn.train.init(params, task.optimizer, key=jax.random.key(0)))
    assert score.keys() == {"loss", "accuracy"}
    assert 1 < score["loss"] < 20


def test_the_digits_order_depends_on_the_seed():
    def first(**options):
        return next(digits.prepare(digits.Options(**options)).batches()).labels.tolist()

    assert first() == first()
    assert first() != first(seed=1)


def test_fashion(tmp_path):
    folder = fashion_files(tmp_path)
    train, test = fashion.data(folder)
    assert train.images.shape == (40, 28, 28)
    assert test.labels.tolist() == [i % 10 for i in range(20)]
    task = fashion.prepare(fashion.Options(data=folder, epochs=3, batch=8))
    assert task.steps == len(list(task.batches())) == 15
    assert task.data == {**task.data, "train": 40, "test": 20, "source": str(folder)}
    assert task.data["sha256"] == fashion.prepare(fashion.Options(data=folder, batch=8)).data["sha256"]
    other = fashion_files(tmp_path, seed=1)
    assert task.data["sha256"] != fashion.prepare(fashion.Options(data=other, batch=8)).data["sha256"]


def test_fashion_files_that_are_missing_or_do_not_fit(tmp_path):
    with pytest.raises(FileNotFoundError, match="dataset-fashion-mnist, or name their folder: --data DIR"):
        fashion.data(tmp_path)
    fashion_files(tmp_path)
    labels = tmp_path / "t10k-labels-idx1-ubyte.gz"
    for content in (bytes([3] * 19), bytes([3] * 21), bytes([10] * 20)):
        labels.write_bytes(gzip.compress(struct.pack(">4BI", 0, 0, 8, 1, len(content)) + content))
        with pytest.raises(FileFormatError, match="labels do not fit the images"):
            fashion.data(tmp_path)
    labels.unlink()
    with pytest.raises(FileNotFoundError, match="t10k-labels"):
        fashion.data(tmp_path)


def test_a_batch_larger_than_the_data(tmp_path):
    with pytest.raises(ValueRangeError, match="batch is 41"):
        fashion.prepare(fashion.Options(data=fashion_files(tmp_path), batch=41))
    with pytest.raises(ValueRangeError, match="batch is 1438"):
        digits.Options(batch=1438)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_digits_in_half_precision(monkeypatch, dtype):
    small = convnet.Config((8, 8, 1), channels=(2,), hidden=3)
    monkeypatch.setattr(digits, "config", lambda options: small)
    task = digits.prepare(digits.Options(batch=4), Training(dtype=dtype))
    params = convnet.init(jax.random.key(0), small)
    program = str(jax.make_jaxpr(task.step.loss)(params, next(task.batches()), jax.random.key(0)))
    short = {"bfloat16": "bf16", "float16": "f16"}[dtype]
    assert f":{short}[4,10] = " in program, "the logits"
    assert (
        jax.eval_shape(task.step.loss, params, next(task.batches()), jax.random.key(0))[0].dtype == "float32"
    )


@pytest.mark.parametrize("module", [digits, fashion])
def test_a_time_for_images(module, tmp_path):
    data = {"data": fashion_files(tmp_path), "batch": 4} if module is fashion else {}
    task = module.prepare(module.Options(**data), Training(minutes=2.0))
    batches = task.batches()
    next(batches)
    assert 0 < batches.done < 0.5


@pytest.mark.parametrize("module", [digits, fashion])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("batch", 0),
        ("learning_rate", 1.5),
        ("learning_rate", float("nan")),
        ("weight_decay", -1.0),
        ("seed", -1),
        ("seed", 2**32),
    ],
)
def test_options_that_make_no_sense(module, name, value):
    with pytest.raises(ValueRangeError, match=f"{name} is "):
        module.Options(**{name: value})


def test_examples_are_what_the_net_takes(tmp_path):
    (tmp_path / "text.txt").write_text("abcde" * 60)
    prepared = {
        "digits": digits.prepare(digits.Options()),
        "fashion": fashion.prepare(fashion.Options(data=fashion_files(tmp_path), batch=10)),
        "chars": chars.prepare(chars.Options(text=tmp_path / "text.txt", context=9, steps=1)),
    }
    sizes = {"digits": (5, 360), "fashion": (5, 20), "chars": (5, 3)}
    for name, task in prepared.items():
        trained, held_out = task.examples(5)
        assert (len(trained.inputs), len(held_out.inputs)) == sizes[name]
        for part in (trained, held_out):
            assert len(part.labels) == len(part.inputs)
        net = {"chars": transformer}.get(name, convnet)
        params = jax.eval_shape(lambda net=net, task=task: net.init(jax.random.key(0), task.config))
        outputs = jax.eval_shape(
            lambda p, x, net=net, task=task: net.apply(p, x, task.config), params, trained.inputs
        )
        assert outputs.shape[:-1] == trained.labels.shape
    pixels = prepared["fashion"].examples(1)[0].inputs
    assert pixels.dtype == np.float32
    assert 0.5 < pixels.max() <= 1
    text = prepared["chars"].examples(2)[0]
    np.testing.assert_array_equal(text.inputs[:, 1:], text.labels[:, :-1])
