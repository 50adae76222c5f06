"""A run that goes on in another process gives, bit for bit, what the uninterrupted one gives."""

import json
import os
import subprocess
import sys
from pathlib import Path

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


def test_every_step_can_be_gone_on_from(tmp_path):
    code = f"from pathlib import Path; from tests.train.resumed import train; print(train(Path({str(tmp_path / 'run')!r})))"
    whole = python("-c", code).strip()
    digests = json.loads(python("-m", "tests.train.resumed", str(tmp_path / "run")).splitlines()[-1])
    for at in range(1, resumed.LAST + 1):
        assert digests[str(at)] == whole, f"other bits from step {at} on"
    for part in resumed.PARTS:
        assert digests[part] != whole, f"{part} was withheld, and nobody missed it"
