"""Safetensors of other programs: what is read, where it lies, and what is refused."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import funcnet as fn
from funcnet import _safetensors, hub
from funcnet.errors import DTypeError, FileFormatError, ValueRangeError
from funcnet.hub import read_safetensors, write_safetensors
from funcnet.nets import encoder
from tests.errors import golden
from tests.test_store import MALFORMED, random_array

TENSORS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.arange(5, dtype=np.int64)}


def shards(folder, *files, listed=None):
    """A checkpoint of several files, each a dict of tensors, and its index."""
    names = [f"model-{i + 1}-of-{len(files)}.safetensors" for i in range(len(files))]
    for name, tensors in zip(names, files, strict=True):
        safetensors.numpy.save_file(tensors, folder / name)
    own = {tensor: name for name, tensors in zip(names, files, strict=True) for tensor in tensors}
    index = {"metadata": {"total_size": 0}, "weight_map": own if listed is None else listed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        assert (actual[name].dtype, actual[name].shape) == (array.dtype, array.shape)
        assert actual[name].tobytes() == array.tobytes()


def test_what_the_safetensors_package_writes_is_read(tmp_path):
    safetensors.numpy.save_file(TENSORS, tmp_path / "f", metadata={"format": "pt"})
    same(read_safetensors(tmp_path / "f"), TENSORS)


@pytest.mark.parametrize("dtype", _safetensors.CODES.values())
def test_every_dtype_and_shape_comes_back(tmp_path, dtype):
    tensors = {f"{shape}": random_array(dtype, shape, 3) for shape in [(), (0,), (3,), (2, 0, 3), (2, 3)]}
    write_safetensors(tmp_path / "f", tensors)
    same(read_safetensors(tmp_path / "f"), tensors)
    safetensors.deserialize((tmp_path / "f").read_bytes())


def test_what_is_written_the_safetensors_package_reads(tmp_path):
    write_safetensors(tmp_path / "f", {**TENSORS, "c": jnp.ones((2, 2))}, {"format": "pt"})
    same(safetensors.numpy.load_file(tmp_path / "f"), {**TENSORS, "c": np.ones((2, 2))})
    with safetensors.safe_open(tmp_path / "f", "numpy") as file:
        assert file.metadata() == {"format": "pt"}


W = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.mark.parametrize(
    "array",
    [W.T, W[::2, ::-1], W.astype(">f4"), W.astype(">i2").T, np.asfortranarray(W), np.float64(2), W[:0]],
)
def test_arrays_are_written_as_their_elements_say(tmp_path, array):
    write_safetensors(tmp_path / "f", {"w": array, "é\0\n": array})
    for read in (safetensors.numpy.load_file, read_safetensors):
        again = read(tmp_path / "f")
        assert again.keys() == {"w", "é\0\n"}
        assert np.array_equal(again["w"], array)


@pytest.mark.parametrize(
    ("tensors", "metadata", "error", "path"),
    [
        ({"w": W}, {"step": 1000}, DTypeError, "metadata"),
        ({"w": W}, {1: "x"}, DTypeError, "metadata"),
        ({"w": W}, {"x": None}, DTypeError, "metadata"),
        ({"w": W}, {"x": "\ud800"}, ValueRangeError, "metadata"),
        ({"w": W}, "pt", DTypeError, "metadata"),
        ({"__metadata__": W}, None, ValueRangeError, "tensors"),
        ({"\ud800": W}, None, ValueRangeError, "tensors"),
        ({1: W}, None, DTypeError, "tensors"),
        ([W], None, DTypeError, "tensors"),
        ({"w": [1.0]}, None, DTypeError, "w"),
        ({"w": 1.0}, None, DTypeError, "w"),
        ({"w": None}, None, DTypeError, "w"),
        ({"w": {"b": W}}, None, DTypeError, "w"),
        ({"w": np.ma.masked_array(W, W > 3)}, None, DTypeError, "w"),
        ({"w": np.array(["x"])}, None, DTypeError, "w"),
        ({"w": np.zeros(3, [("a", "f4")])}, None, DTypeError, "w"),
        ({"w": np.zeros(3, np.longdouble)}, None, DTypeError, "w"),
        ({"w": jnp.zeros(3, jnp.int4)}, None, DTypeError, "w"),
        ({"w": jax.random.key(0)}, None, DTypeError, "w"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_no_reader_could_open_is_not_written(tmp_path, tensors, metadata, error, path):
    with pytest.raises(error) as caught:
        write_safetensors(tmp_path / "f", tensors, metadata)
    assert caught.value.path == path
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("path", [None, 3, b"f", ["f"], "a\0b"])
@pytest.mark.usefixtures("unchecked")
def test_a_path_is_a_path(path):
    calls = [
        lambda: read_safetensors(path),
        lambda: write_safetensors(path, {}),
        lambda: hub.load(path),
        lambda: hub.save(path, {}, encoder.Config()),
        lambda: fn.load(path),
        lambda: fn.save(path, {}),
    ]
    for call in calls:
        with pytest.raises((DTypeError, ValueRangeError), match=r"(path|folder) is not a path"):
            call()


def test_tensors_are_views_of_the_file_that_cannot_be_written(tmp_path):
    write_safetensors(tmp_path / "f", TENSORS)
    tensors = read_safetensors(tmp_path / "f")
    write_safetensors(tmp_path / "f", {"other": np.zeros(99)})  # a new file of this name; the old one stays
    same(tensors, TENSORS)
    with pytest.raises(ValueError, match="read-only"):
        tensors["b"][0] = 1


def test_a_folder_with_one_file_or_with_several(tmp_path):
    first, second = {"a": np.ones(2)}, {"b": np.zeros(3), "c": np.ones(1, np.float32)}
    same(read_safetensors(shards(tmp_path, first, second)), first | second)
    write_safetensors(tmp_path / "model.safetensors", TENSORS)
    same(read_safetensors(tmp_path), TENSORS)


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_files_are_refused(tmp_path, name):
    content, message = MALFORMED[name]
    path = tmp_path / "hostile"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=message) as caught:
        read_safetensors(path)
    assert str(caught.value).startswith(f"load: {path}: ")


def test_every_truncation_and_extension_is_found(tmp_path):
    path = tmp_path / "f"
    write_safetensors(path, TENSORS)
    good = path.read_bytes()
    for damaged in [*(good[:n] for n in range(len(good))), good + b"\0"]:
        path.write_bytes(damaged)
        with pytest.raises(FileFormatError):
            read_safetensors(path)


def test_a_pipe_and_a_missing_file_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileFormatError, match="not a regular file"):
        read_safetensors(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError):
        read_safetensors(tmp_path / "nothing")


@pytest.mark.parametrize("file", ["../f", "/etc/f", "..", "", "a/b"])
def test_an_index_cannot_name_files_elsewhere(tmp_path, file):
    write_safetensors(tmp_path / "f", TENSORS)
    (tmp_path / "sub").mkdir()
    with pytest.raises(FileFormatError, match="is not the name of a file in this folder"):
        read_safetensors(shards(tmp_path / "sub", listed={"b": file}))


@pytest.mark.parametrize("text", ["[]", "{", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "{}", "\xff"])
def test_a_malformed_index_is_refused(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(FileFormatError, match=r"JSON|weight_map"):
        read_safetensors(tmp_path)


def mislabelled():
    folder = _fresh("mislabelled")
    one = "model-1-of-2.safetensors"
    files = [{"a": np.ones(2)}, {"b": np.zeros(3), "c": np.ones(1, np.float32)}]
    read_safetensors(shards(folder, *files, listed={"a": one, "b": one, "c": "model-2-of-2.safetensors"}))


def pickled_file():
    path = _fresh("pickled") / "weights.safetensors"
    path.write_bytes(b"PK\x03\x04rest of a zip")
    read_safetensors(path)


def pickled_folder():
    folder = _fresh("pickled")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02")
    read_safetensors(folder)


def old_pickle():
    path = _fresh("pickled") / "pytorch_model.bin"
    path.write_bytes(b"\x80\x02and so on")
    read_safetensors(path)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # so that the texts below can be exact


def _fresh(name):
    from pathlib import Path

    Path(name).mkdir()
    return Path(name)


CONVERT = (
    "  hint      pickled files can run code, so none is opened. Where torch is: "
    "transformers.AutoModel.from_pretrained(folder).save_pretrained(other_folder) writes safetensors; of "
    "a plain state_dict, fn.hub.write_safetensors(file, {k: v.numpy() for k, v in torch.load(this).items()})."
)
test_errors = golden(
    [
        (
            mislabelled,
            FileFormatError,
            "load: mislabelled/model.safetensors.index.json: the files do not hold what it lists:\n"
            "  missing     'b': not in model-1-of-2.safetensors\n"
            "  unexpected  'b': in model-2-of-2.safetensors",
        ),
        (
            pickled_file,
            FileFormatError,
            "load: pickled/weights.safetensors: "
            "this is a pickled checkpoint or another zip archive, not safetensors.\n" + CONVERT,
        ),
        (
            pickled_folder,
            FileFormatError,
            "load: pickled: no safetensors checkpoint is here.\n"
            "  expected  model.safetensors, or model.safetensors.index.json\n"
            "  got       pytorch_model.bin\n" + CONVERT,
        ),
        (
            old_pickle,
            FileFormatError,
            "load: pickled/pytorch_model.bin: this is a pickled checkpoint, not safetensors.\n" + CONVERT,
        ),
        (
            lambda: read_safetensors(_fresh("empty")),
            FileFormatError,
            "load: empty: no safetensors checkpoint is here.\n"
            "  expected  model.safetensors, or model.safetensors.index.json\n"
            "  got       neither",
        ),
        (
            lambda: write_safetensors("f", {"z": np.zeros(2, np.complex128)}),
            DTypeError,
            "save: f: safetensors has no elements like those of 'z'.\n"
            f"  expected  {', '.join(_safetensors.CODES.values())}\n"
            "  got       complex128[2]",
        ),
    ]
)
