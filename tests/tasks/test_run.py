"""Run folders: never overwritten, and a config that is read back exactly or refused."""

import dataclasses
import errno
import io
import json
from pathlib import Path
from typing import Literal

import jax
import pytest

import funcnet as fn
from funcnet.errors import FileFormatError, StructureError, ValueRangeError
from funcnet.nets import convnet, transformer
from funcnet.ops.attention import rope
from funcnet.tasks import _run

CONFIG = convnet.Config((8, 8, 1), channels=(2, 3), hidden=3, dropout=0.25)


def described(folder, task="digits", config=CONFIG, **facts):
    _run.write_config(folder, task, config, **{"data": {"sha256": "00"}, **facts})
    return folder


def create(folder=None):
    return _run.create(folder, "digits", CONFIG, data={})


def test_a_folder_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert create(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    folders = [create() for _ in range(3)]
    assert len(set(folders)) == 3, "three runs in one second"
    assert all(folder.name.startswith("digits-2") for folder in folders)
    assert sorted(Path("runs").iterdir()) == sorted(folders)
    assert {name.name for folder in folders for name in folder.iterdir()} == {"config.json"}


def test_a_folder_in_use_is_refused(tmp_path):
    with pytest.raises(OSError, match="exists"):
        create(Path(__file__))
    assert create(tmp_path) == tmp_path, "an empty one may be used"
    with pytest.raises(ValueRangeError, match="is not empty"):
        create(tmp_path)


def test_two_runs_that_begin_at_the_same_moment(tmp_path, monkeypatch):
    # Each of them has just found the folder empty.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_run, "any", lambda entries: False, raising=False)
    monkeypatch.setattr(_run.time, "strftime", lambda form: "now")
    assert [create().name for _ in range(2)] == ["digits-now", "digits-now-2"]
    create(tmp_path / "one")
    with pytest.raises(ValueRangeError, match="is not empty"):
        create(tmp_path / "one")


def test_a_config_is_whole_or_not_there(tmp_path, monkeypatch):
    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    def full(path, mode):
        path.touch()
        return Full()

    monkeypatch.setattr(_run, "open", full, raising=False)
    with pytest.raises(OSError, match="No space"):
        create(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_not_unicode(tmp_path):
    data = {"source": "/texts/\udcff \\", "characters": "é→\\"}
    described(tmp_path, data=data)
    assert _run.read_config(tmp_path)[2] == data
    assert "é→" in (tmp_path / "config.json").read_text("utf-8")


@pytest.mark.parametrize(
    ("task", "config"),
    [
        ("digits", CONFIG),
        ("fashion", dataclasses.replace(CONFIG, image=(28, 28, 1))),
        ("chars", transformer.Config(vocabulary=5, context=7, d=8)),
    ],
)
def test_what_is_written_is_read(tmp_path, task, config):
    described(tmp_path, task, config, seed=3)
    assert _run.read_config(tmp_path) == (task, config, {"sha256": "00"})


def test_a_run_of_before_the_later_fields_is_read(tmp_path):
    config = transformer.Config(vocabulary=5, context=7, d=8)
    described(tmp_path, "chars", config)
    written = json.loads((tmp_path / "config.json").read_text())["model"]
    assert "files" not in written
    for name in ("head", "classes", "stop"):
        assert name in written
        changed(tmp_path / "config.json", "model", name, ...)
    assert _run.read_config(tmp_path)[1] == config
    changed(tmp_path / "config.json", "model", "bias", ...)
    with pytest.raises(FileFormatError, match="config is wrong in bias"):
        _run.read_config(tmp_path)


def test_the_parameters_come_back(tmp_path):
    params = convnet.init(jax.random.key(0), CONFIG)
    fn.save(described(tmp_path) / "params.safetensors", params)
    saved = _run.read(tmp_path)
    assert (saved.task, saved.config) == ("digits", CONFIG)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), saved.params, params))


def test_parameters_of_another_model_are_refused(tmp_path):
    params = convnet.init(jax.random.key(0), dataclasses.replace(CONFIG, hidden=4))
    fn.save(described(tmp_path) / "params.safetensors", params)
    with pytest.raises(StructureError, match="does not fit"):
        _run.read(tmp_path)


def changed(path, *change):
    """config.json with the entry at a path of names replaced; `...` removes it."""
    *names, value = change
    content = json.loads(path.read_text(encoding="utf-8"))
    place = content
    for name in names[:-1]:
        place = place[name]
    place[names[-1]] = value
    if value is ...:
        del place[names[-1]]
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(
    "change",
    [
        ("version", ...),
        ("version", 2),
        ("version", "1"),
        ("task", "os"),
        ("task", ["digits"]),
        ("model", ...),
        ("model", []),
        ("data", None),
        ("model", "hidden", ...),
        ("model", "hidden", 3.0),
        ("model", "hidden", "3"),
        ("model", "hidden", True),
        ("model", "hidden", None),
        ("model", "more", 1),
        ("model", "image", [8, 8]),
        ("model", "image", [8, 8, "1"]),
        ("model", "image", 8),
        ("model", "channels", [2, -3]),
        ("model", "channels", {"2": 3}),
        ("model", "dropout", "0.1"),
    ],
    ids=str,
)
def test_a_config_that_is_wrong(tmp_path, change):
    described(tmp_path)
    changed(tmp_path / "config.json", *change)
    with pytest.raises(FileFormatError, match=r"config\.json"):
        _run.read_config(tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        rope.Config(),
        rope.Config(base=500000, layout="interleaved", width=4, scaling=rope.Linear(2.5)),
        rope.Config(scaling=rope.NTK(2)),
        rope.Config(scaling=rope.YaRN(4.0, 128)),
        rope.Config(scaling=rope.Llama3(8.0, 128, low=2)),
    ],
    ids=str,
)
def test_a_config_within_a_config(config):
    written = json.loads(json.dumps({"type": "Config", **_run._plain(config)}))
    read = _run._typed(written, rope.Config)
    assert read == config
    assert type(read.scaling) is type(config.scaling)


def test_values_by_their_annotations():
    fitting = [
        ([4, None], tuple[int | None, ...], (4, None)),
        ("split", Literal["split", "interleaved"], "split"),
        (None, int | None, None),
        ([[1, 2], [3, 4]], tuple[tuple[int, int], ...], ((1, 2), (3, 4))),
    ]
    for value, hint, expected in fitting:
        assert _run._typed(value, hint) == expected
    misfits = [
        ([4, -1], tuple[int | None, ...]),
        ("whole", Literal["split", "interleaved"]),
        ("1", int | None),
        ([1, 2, 3], tuple[int, int]),
        ({"type": "Linear", "factor": 2.0, "more": 1}, rope.Linear),
        ({"type": "Linear", "factor": "2"}, rope.Linear),
        ({"type": "Linear", "factor": 0.5}, rope.Linear),
        ({"type": "Linear"}, rope.Linear),
        ({"factor": 2.0}, rope.Linear),
        ({"type": "Linear", "factor": 2.0}, rope.NTK),
        ("rope", rope.Config),
        ([], dict[str, int]),
    ]
    for value, hint in misfits:
        with pytest.raises(ValueError):  # noqa: PT011
            _run._typed(value, hint)


def test_what_is_no_run_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        _run.read_config(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match=r"it has no config\.json"):
        _run.read_config(tmp_path)
    for content in (b"", b"{", b"[" * 100_000, b"\xff"):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(FileFormatError, match="no JSON"):
            _run.read_config(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no params\.safetensors"):
        _run.read(described(tmp_path))
