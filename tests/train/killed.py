"""A run that is killed at random moments, each time by a process that knows nothing of the one before.

    python -m tests.train.killed FOLDER KILLS SEED

prints the digest of the final state and metrics.jsonl, and how far the run was at each kill. JAX is imported
once, and started in each of the processes.
"""

import json
import os
import random
import signal
import sys
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import funcnet as fn
from funcnet.train import Checkpoints
from tests.train import resumed

LAST = 1500


def train(folder: Path, log: Any) -> str:
    """Begin or go on, as a script would that is started again and again."""
    checkpoints = Checkpoints(folder / "checkpoints", every=3, keep=2)
    batches = resumed.data()
    state, _ = checkpoints.restore(resumed.start(), batches)
    state, _ = fn.train.fit(
        resumed.STEP,
        state,
        batches,
        until=LAST,
        log=[folder, log],
        evaluate=resumed.evaluate,
        every=50,
        checkpoints=checkpoints,
        progress=False,
    )
    return resumed.digest(state, folder)


def slow(tell: int, record: Any) -> None:
    """A log that says that a step was taken, and leaves time to kill."""
    del record
    os.write(tell, b".")
    time.sleep(0.01)


def main(folder: Path, kills: int, seed: int) -> None:
    draw = random.Random(seed)
    reached = []
    while len(reached) < kills:
        told, tell = os.pipe()
        child = os.fork()
        if not child:
            train(folder, partial(slow, tell))
            os._exit(0)
        os.close(tell)
        # Some die while they start and compile, most in the middle of steps and writes. The wait is counted
        # in steps, not in seconds: however slow the machine is, each run gets further than the one before.
        for _ in range(draw.randint(4, 20) if len(reached) % 5 else 0):
            assert os.read(told, 1), "it failed"
        time.sleep(draw.uniform(0, 0.1))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        os.close(told)
        assert os.WIFSIGNALED(status), "the run was over before it was killed, or failed"
        reached.append(max(Checkpoints(folder / "checkpoints").steps(), default=0))
    print(json.dumps({"digest": train(folder, lambda record: None), "reached": reached}))


if __name__ == "__main__":
    warnings.simplefilter("ignore", RuntimeWarning)  # JAX warns of every fork; no thread of its own runs yet
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
