"""A run that goes on in another process gives, bit for bit, what the uninterrupted one gives."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.budget import many
from tests.train import resumed


def python(*args):
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "0"}
    done = subprocess.run(
        [sys.executable, *args],
        env=env,
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_every_step_can_be_gone_on_from(tmp_path):
    folder = str(tmp_path / "run")
    code = f"from pathlib import Path; from tests.train.resumed import train; print(train(Path({folder!r})))"
    whole = python("-c", code).strip()
    digests = json.loads(python("-m", "tests.train.resumed", folder).splitlines()[-1])
    for at in range(1, resumed.LAST + 1):
        assert digests[str(at)] == whole, f"other bits from step {at} on"
    for part in resumed.PARTS:
        assert digests[part] != whole, f"{part} was withheld, and nobody missed it"


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_once")
def test_killed_again_and_again(tmp_path):
    kills = many(50)
    code = "from pathlib import Path; from tests.train.killed import train; print(train(Path({!r}), print))"
    whole = python("-c", code.format(str(tmp_path / "whole"))).splitlines()[-1]
    told = python("-m", "tests.train.killed", str(tmp_path / "run"), str(kills), "0")
    result = json.loads(told.splitlines()[-1])
    assert result["digest"] == whole
    reached = result["reached"]
    assert reached == sorted(reached), "a checkpoint was lost"
    assert len(set(reached)) >= kills // 2, "it was killed before it had done anything"


SCHEDULED = """
import os, signal, socket
import jax
with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
jax.distributed.initialize(f"localhost:{port}", num_processes=1, process_id=0)  # takes SIGTERM for itself
import funcnet as fn
from tests.train import resumed
def kill(record):
    if record["step"] == 5:
        os.kill(os.getpid(), signal.SIGTERM)
state = resumed.start()
state, history = fn.train.fit(resumed.STEP, state, resumed.data(), steps=500, log=kill, stop=lambda h: False)
print(history.ended, int(state.step))
"""


@pytest.mark.slow
def test_sigterm_ends_a_run_also_where_jax_has_a_notifier_of_its_own():
    assert python("-c", SCHEDULED).splitlines()[-1] == "SIGTERM 5"
