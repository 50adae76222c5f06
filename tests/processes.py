"""Several real processes that make up one run: started together on one machine, and ended together."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Ended(NamedTuple):
    """How a process ended: its exit code, and all that it has written."""

    code: int
    text: str


def launch(
    folder: Path, count: int, *command: str, devices: int = 2, seconds: float = 120.0, **environment: str
) -> list[Ended]:
    """Run `python COMMAND` as so many processes of one run, each with so many CPU devices.

    A program finds the run in the variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.
    All that are left after `seconds` are killed, with what they have started.
    """
    variables = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
        "OMP_NUM_THREADS": "1",
        "JAX_NUM_PROCESSES": str(count),
        **environment,
    }
    started = list[subprocess.Popen[bytes]]()
    logs = [folder / f"process-{index}.log" for index in range(count)]
    deadline = time.monotonic() + seconds
    try:
        for index, log in enumerate(logs):
            with open(log, "wb") as file:
                process = subprocess.Popen(
                    [sys.executable, *command],
                    env={**variables, "JAX_PROCESS_ID": str(index)},
                    cwd=ROOT,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            started.append(process)
        for process in started:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(deadline - time.monotonic(), 0.0))
    finally:
        for process in started:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return [Ended(p.returncode, log.read_text("utf-8")) for p, log in zip(started, logs, strict=True)]


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return asked.getsockname()[1]


def join(**options: int) -> int:
    """Within a process: come to the run; gives its index."""
    import jax

    index = int(os.environ["JAX_PROCESS_ID"])
    jax.distributed.initialize(
        num_processes=int(os.environ["JAX_NUM_PROCESSES"]),
        process_id=index,
        **{"initialization_timeout": 60, "heartbeat_timeout_seconds": 100, "shutdown_timeout_seconds": 60}
        | options,
    )
    return index
