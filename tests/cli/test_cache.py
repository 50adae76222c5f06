"""What a command keeps for the next one: compiled programs, and which formulas were found right."""

import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

import funcnet as fn
from funcnet import rules
from funcnet.cli import _cache, summary, train
from funcnet.tasks import digits

MAIN = "from funcnet.cli import main; raise SystemExit(main())"


def kept(**environment):
    """What `keep` makes of an environment: that, and what it has added."""
    before = dict(environment)
    _cache.keep(environment)
    return {name: value for name, value in environment.items() if before.get(name) != value}


def test_programs_are_kept_in_the_users_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(_cache.backend, "jaxlib_version", lambda: "0.10.1")
    added = kept(XDG_CACHE_HOME=str(tmp_path), XLA_FLAGS="--a")
    assert added == {
        "JAX_COMPILATION_CACHE_DIR": added["JAX_COMPILATION_CACHE_DIR"],
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    assert added["JAX_COMPILATION_CACHE_DIR"].startswith(str(tmp_path / "funcnet" / "programs"))
    assert os.path.isdir(added["JAX_COMPILATION_CACHE_DIR"])


@pytest.mark.parametrize("changed", ["jaxlib", "processor", "XLA_FLAGS"])
def test_each_processor_jaxlib_and_flags_have_a_folder(changed, tmp_path, monkeypatch):
    environment = {"XDG_CACHE_HOME": str(tmp_path), "XLA_FLAGS": "--a"}
    before = _cache.folder(environment)
    if changed == "jaxlib":
        monkeypatch.setattr(_cache.backend, "jaxlib_version", lambda: "0.99")
    elif changed == "processor":
        monkeypatch.setattr(_cache, "_processor", lambda: "another")
    else:
        environment["XLA_FLAGS"] = "--b"
    assert _cache.folder(environment) != before


def test_what_is_left_alone(tmp_path):
    home = {"XDG_CACHE_HOME": str(tmp_path)}
    assert kept(**home, FUNCNET_CACHE="off") == {}
    assert kept(**home, JAX_COMPILATION_CACHE_DIR="/mine") == {}
    (tmp_path / "file").write_text("")
    assert kept(XDG_CACHE_HOME=str(tmp_path / "file")) == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_the_oldest_go_first(tmp_path, monkeypatch):
    monkeypatch.setattr(_cache, "LIMIT", 25)
    folder = _cache.folder({"XDG_CACHE_HOME": str(tmp_path)})
    elsewhere = folder.with_name("of another jaxlib")
    for i, name in enumerate(("b", "c", "a")):
        at = elsewhere if name == "b" else folder
        at.mkdir(parents=True, exist_ok=True)
        (at / f"{name}-cache").write_bytes(bytes(10))
        os.utime(at / f"{name}-cache", (i, i))
    kept(XDG_CACHE_HOME=str(tmp_path))
    assert sorted(path.name for path in folder.parent.rglob("*-cache")) == ["a-cache", "c-cache"]


def test_what_doctor_says(tmp_path):
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    _cache.keep(environment)
    (_cache.folder(environment) / "a-cache").write_bytes(bytes(3_000_000))
    assert _cache.state(environment).startswith(f"1 programs, 3 MB in {tmp_path}")
    assert _cache.state(environment | {"JAX_COMPILATION_CACHE_DIR": "/mine"}).endswith("DIR=/mine")
    assert _cache.state(environment | {"FUNCNET_CACHE": "off"}) == "off: FUNCNET_CACHE=off"


@pytest.mark.slow
def test_a_second_run_compiles_nothing_and_trains_the_same(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "FUNCNET_CACHE"}
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "JAX_PLATFORMS": "cpu"}

    def train(name, **more):
        command = [sys.executable, "-c", MAIN, "train", "digits", "--epochs", "1", "--out", name]
        subprocess.run(command, cwd=tmp_path, env=environment | more, check=True, capture_output=True)
        return (tmp_path / name / "params.safetensors").read_bytes()

    programs = lambda: sorted(path.name for path in (tmp_path / "cache").rglob("*-cache"))
    without = train("without", FUNCNET_CACHE="off")
    assert not programs()
    first, compiled = train("first"), programs()
    assert len(compiled) > 5
    assert train("second") == first == without
    assert programs() == compiled


# ---- what was found right ---------------------------------------------------------------------------------

CALL = rules.Call(fn.softmax, (jax.ShapeDtypeStruct((2, 3), "float32"),), {})


@pytest.mark.parametrize("changed", ["python", "jax", "jaxlib", "numpy", "XLA_FLAGS", "devices", "processor"])
def test_what_was_found_right_is_so_under_these_facts(changed, tmp_path, monkeypatch):
    facts = _cache.backend.facts()
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    before = _cache.memory(True, environment).key(CALL)
    assert before == _cache.memory(True, environment).key(CALL) != ""
    if changed == "processor":
        monkeypatch.setattr(_cache, "_processor", lambda: "another")
    else:
        assert changed in facts
        monkeypatch.setattr(_cache.backend, "facts", lambda: {**facts, changed: "another"})
    assert _cache.memory(True, environment).key(CALL) != before


@pytest.mark.parametrize(
    ("option", "environment", "is_read"),
    [
        (None, {}, True),
        ("remembered", {}, True),
        ("always", {}, False),
        (None, {"CI": "true"}, False),
        (None, {"CI": "false"}, True),
        ("remembered", {"CI": "true"}, True),
        ("remembered", {"FUNCNET_CACHE": "off"}, None),
        ("off", {}, None),
    ],
)
def test_when_it_is_read(option, environment, is_read, tmp_path, monkeypatch, capsys):
    for name in ("CI", "FUNCNET_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"XDG_CACHE_HOME": str(tmp_path), **environment}.items():
        monkeypatch.setenv(name, value)
    params = {"w": jnp.ones((3, 2))}
    fn.verify_model(loss, params, jnp.ones((5, 3)), memory=_cache.memory(False))
    assert (tmp_path / "funcnet" / "verified.json").exists() is ("FUNCNET_CACHE" not in environment)
    task = SimpleNamespace(
        config=None, step=SimpleNamespace(loss=loss), batches=lambda: iter([jnp.ones((5, 3))])
    )
    monkeypatch.setattr(summary, "show", lambda *_: None)
    report = train.check(digits, task, params, None, option)
    assert report.ok
    out = capsys.readouterr().out
    assert ("--verify always" in out) is bool(is_read)
    assert [row.note.startswith("since") for row in report.rows] == [bool(is_read)] * (option != "off")
    assert ("not verified (--verify off)" in out) is (option == "off")


def loss(params, batch):
    return fn.linear.apply(params, batch).sum()
