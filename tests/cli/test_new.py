"""What a newcomer tries first: `funcnet`, `funcnet verify --example`, `funcnet new`."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import funcnet
from funcnet import cli
from funcnet.cli import main, new


def test_without_arguments_it_says_what_to_try(capsys):
    assert main([]) == 0
    assert capsys.readouterr() == (cli.FIRST, "")


@pytest.mark.slow
def test_what_it_says_to_try_runs(capsys, unchecked):
    (line,) = [line for line in cli.FIRST.splitlines() if "--forward" in line]
    assert main(shlex.split(line)[1:]) == 1
    assert "WRONG" in capsys.readouterr().out


def test_every_command_that_it_names_exists():
    lines = [line.split() for line in cli.FIRST.splitlines() if line.startswith("  funcnet")]
    assert {line[1] for line in lines} <= cli.COMMANDS.keys()


@pytest.mark.slow
def test_an_example_is_written_once_and_its_mistake_is_found(tmp_path, monkeypatch, capsys, unchecked):
    monkeypatch.chdir(tmp_path)
    assert main(["verify", "--example"]) == 0
    command = capsys.readouterr().out.splitlines()[-1]
    assert main(["verify", "--example"]) == 2
    assert "would be overwritten" in capsys.readouterr().err
    assert main(shlex.split(command)[1:]) == 1
    assert "write: `dw = x.T @ dz`" in capsys.readouterr().out
    file = tmp_path / "wrong_gradient.py"
    file.write_text(file.read_text().replace("dw = x.T @ dy", "dw = x.T @ dz"))
    assert main(shlex.split(command)[1:]) == 0


def test_a_project_is_written_and_nothing_is_overwritten(tmp_path, capsys):
    folder = tmp_path / "deep" / "project"
    assert main(["new", str(folder)]) == 0
    assert {file.name for file in folder.iterdir()} == {*new.FILES}
    (folder / "model.py").unlink()
    (folder / "train.py").write_text("mine")
    capsys.readouterr()
    assert main(["new", str(folder)]) == 2
    assert "train.py, test_model.py, README.md already" in capsys.readouterr().err
    assert not (folder / "model.py").exists()
    assert (folder / "train.py").read_text() == "mine"
    assert main(["new", str(folder / "train.py")]) == 2


@pytest.mark.slow
def test_the_project_trains_and_its_tests_pass(tmp_path):
    main(["new", str(tmp_path)])
    env = os.environ | {"PYTHONPATH": str(Path(funcnet.__file__).parents[1])}

    def run(*args):
        done = subprocess.run([sys.executable, *args], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    out = run("train.py")
    assert "gradients right" in out
    assert float(out.rpartition("accuracy ")[2].rstrip().rstrip("%")) > 95
    assert (tmp_path / "params.safetensors").exists()
    assert "3 passed" in run("-m", "pytest", "-q", "-p", "no:cacheprovider")
