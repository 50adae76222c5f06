"""Reports of tests as files: every one, under its test's name, of workers too; nothing if not asked."""

import json
import os
import subprocess
import sys

import pytest

TESTS = """
import threading

import pytest

from funcnet._heard import reported
from funcnet.verifier import Finding, Report, Row


@reported
def verify(ok, nested=False):
    inner = verify(False) if nested else None  # is part of the report that is told
    row = Row("f", "x", "7", 1, 0.5, 1e-9, ok)
    return Report((row,), () if ok else (Finding("x", "sign", "<b>negative</b>"),), seed=3)


verify(False)  # no test made it


@pytest.fixture
def made():
    return verify(True)


def test_right(made):
    verify(True, nested=True)


@pytest.mark.parametrize("name", ["a/../b", "<i>ü</i>", "x" * 300])
def test_wrong(name):
    verify(False).raise_if_wrong()


def test_bare():
    assert verify(False).ok


def test_thread():
    thread = threading.Thread(target=verify, args=(True,))
    thread.start()
    thread.join()


def test_nothing():
    pass
"""


def run(folder, *options):
    (folder / "test_it.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-p", "funcnet.pytest_plugin", "-c", os.devnull, "--rootdir=."]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"}
    command += ["-p", "no:cacheprovider", "-rf", *options]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_every_report_is_written_under_its_tests_name(tmp_path):
    out = run(tmp_path, "--verify-report", "deep/er", "-n", "2")
    folder = tmp_path / "deep" / "er"
    data = [json.loads(file.read_text("utf-8")) for file in folder.glob("*.json")]
    names = [one["test"].partition("::")[2].partition("[")[0] for one in data]
    assert sorted(names) == ["test_bare", "test_right", "test_right", "test_thread", *["test_wrong"] * 3]
    assert {one["test"] for one in data if not one["ok"]} >= {"test_it.py::test_bare"}
    assert all(one["seed"] == 3 for one in data)
    index = (folder / "index.html").read_text("utf-8")
    assert index.count("<tr><td>") == 7
    assert "7 reports, 4 not right" in index
    assert "<i>" not in index
    pages = {file.name for file in folder.glob("*.html")}
    assert len(pages) == 8
    assert all(f'href="{name}"' in index for name in pages - {"index.html"})
    assert any("made by test_it.py::test_bare" in (folder / name).read_text("utf-8") for name in pages)
    assert "funcnet verify: 7 reports, 4 not right: deep" in out
    assert "E       x: sign: <b>negative</b>" in out, "the report is the message"
    assert "x: sign: <b>negative</b>\nnote" in out, "and where a bare assertion failed, it is added"
    assert "raise_if_wrong(self)" not in out, "the traceback ends in the test"
    assert "FormulaError: 1 of 1 gradients WRONG" in out


def test_a_folder_that_cannot_be_is_refused(tmp_path):
    assert "ERROR: --verify-report test_it.py" in run(tmp_path, "--verify-report", "test_it.py")


def test_nothing_happens_without_the_option(tmp_path):
    assert "funcnet verify" not in run(tmp_path, "-k", "nothing")
    assert {file.name for file in tmp_path.iterdir()} == {"test_it.py"}


def test_the_plugin_imports_no_jax():
    code = "import sys, funcnet.pytest_plugin; sys.exit('jax' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def test_the_entry_point_is_the_plugin():
    tomllib = pytest.importorskip("tomllib")
    with open("pyproject.toml", "rb") as file:
        points = tomllib.load(file)["project"]["entry-points"]["pytest11"]
    assert points == {"funcnet.pytest_plugin": "funcnet.pytest_plugin"}, "-p of that name is then the same"
