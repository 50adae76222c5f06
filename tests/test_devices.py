"""The page "several devices and hosts": its script on meshes, its commands."""

import importlib.util
import inspect
import os
import re
import subprocess

import jax
import numpy as np
import pytest

from funcnet.cli import UsageError, _mesh, train
from funcnet.train import History
from tests import processes

PAGE = (processes.ROOT / "docs" / "devices.md").read_text("utf-8")
SCRIPT = processes.ROOT / "examples" / "several_devices.py"


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("several_devices", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_shows_the_script(script):
    assert inspect.getsource(script.main).rstrip() in PAGE


# Instead of each launcher: what it starts, once. Instead of what is started: its arguments.
LAUNCHER = """#!/bin/bash
for word; do shift; case $word in
    --command=*) exec bash -c "${word#--command=}";;
    funcnet | bash) exec "$word" "$@";;
esac; done
"""
STARTED = """#!/bin/bash
printf '%s\\n' START "$@" >> "$STARTED"
"""


def started(block, folder):
    """The arguments of each `funcnet` that a block of the page starts, in one of the processes."""
    for name in ("srun", "mpirun", "gcloud", "funcnet"):
        path = folder / name
        path.write_text(STARTED if name == "funcnet" else LAUNCHER)
        path.chmod(0o755)
    log = folder / "started"
    log.write_text("")
    which = {"JOB_COMPLETION_INDEX": "3", "OMPI_COMM_WORLD_SIZE": "32", "OMPI_COMM_WORLD_RANK": "9"}
    env = os.environ | which | {"PATH": f"{folder}:{os.environ['PATH']}", "STARTED": str(log)}
    subprocess.run(["bash", "-eu"], input=block + "\nwait\n", text=True, check=True, env=env)
    return [text.splitlines()[1:] for text in log.read_text().split("START")[1:]]


@pytest.fixture
def parsed(monkeypatch):
    """What the command line makes of arguments: on which devices a run trains."""
    found = []
    monkeypatch.setattr(train, "train", lambda *chosen: found.append(chosen[-1]) or 0)
    monkeypatch.setattr(_mesh, "_join", lambda said: None)

    def parse(args):
        assert args[0] == "train"
        assert train.run(args[1:]) == 0
        return found.pop()

    return parse


def test_its_commands_are_commands(parsed, tmp_path):
    """Each is run by bash without its launcher, and what it starts is understood by the command line."""
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    devices = [parsed(args) for block in blocks for args in started(block, tmp_path)]
    assert len(blocks) == 7
    assert len(devices) == 8, "in the last block two processes, the others are of one"
    assert {one.mesh for one in devices} == {"data=8,tensor=4", "data=64,tensor=4", "data=4,tensor=2", None}
    assert [one.distributed for one in devices] == [one.mesh != "data=4,tensor=2" for one in devices]
    assert [(one.coordinator, one.processes, one.process) for one in devices if one.coordinator] == [
        ("host-0:1234", 32, 9)
    ]
    with pytest.raises(UsageError, match="unrecognized"):
        parsed(["train", "digits", "--distribute"])


@pytest.mark.slow
def test_the_script_says_the_same_everywhere(script, tmp_path):
    """On one device; on eight along one axis; on four by two, of two processes; where one goes on."""

    def launched(data, tensor, count):
        ended = processes.launch(
            tmp_path, count, str(SCRIPT), data, tensor, str(tmp_path / f"{data}-{tensor}"),
            *(["--distributed"] if count > 1 else []), devices=8 // count, seconds=400.0,
        )  # fmt: skip
        for one in ended:
            assert one.code == 0, one.text
        return ended

    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        script.main(1, 1, folder=str(tmp_path / "1-1"), steps=24)
        (along,) = launched("8", "1", 1)
        first, second = launched("4", "2", 2)
        assert "loss" in along.text
        assert "after 20 steps" in first.text
        assert "after 20 steps" not in second.text, "the first process prints"
        history = script.main(2, 2, folder=str(tmp_path / "4-2"), steps=24)
    assert [record["step"] for record in history] == [*range(1, 25)], "it goes on, on another mesh"
    losses = {
        name: History.read(tmp_path / name / "metrics.jsonl").column("loss")[1]
        for name in ("1-1", "8-1", "4-2")
    }
    np.testing.assert_allclose(losses["8-1"], losses["1-1"][:20], rtol=1e-4)
    np.testing.assert_allclose(losses["4-2"], losses["1-1"], rtol=1e-4)
    assert losses["1-1"][-1] < losses["1-1"][0] - 0.1
