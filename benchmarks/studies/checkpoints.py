"""Checkpoints: how long a step waits for one, and how long the run for its last.

One process, since it is the same memory and the same disk that are measured. The state is that of a GPT with
AdamW. A copy into kept memory, and a plain read with hashing, are the least that each could take.
"""

import hashlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.harness import SMOKE, WHOLE, Entrant, Process, Scale, Table

HERE = Process("benchmarks.studies.checkpoints")
STEPS = 50  # from one checkpoint to the next
COPY, READ, TRAIN = "copying the state to the host", "restoring it", f"{STEPS} steps"
WAYS = {
    COPY: ("np.copyto", "Checkpoints.save"),
    READ: ("read and hash", "Checkpoints.restore"),
    TRAIN: ("without", "with a checkpoint"),
}
GPT = "GPT 6 × 384, t = 256, batch 8"


def run(scale: Scale, questions: Iterable[str] = tuple(WAYS)) -> list[Table]:
    """A row per question."""
    model = "tiny GPT" if scale == SMOKE else GPT
    rows = []
    for question in questions:
        if question == TRAIN and scale not in (SMOKE, WHOLE):
            continue  # minutes
        entrants = {way: Entrant(HERE, way, "funcnet") for way in WAYS[question]}
        timed = harness.race(entrants, [model], scale)
        rows += [{"of": f"{question}, {case}", **row} for case, row in timed.items()]
    with harness.running([HERE]) as workers:
        memory = workers[HERE].ask("memory", model)
    note = (
        "Ratios are to the first candidate, the least that it could take. Targets on the GPT: the copy 1.2, "
        "restoring 1.3, a checkpoint in 50 steps 1.02. Restoring is read and hashed by several threads."
    )
    table = Table("Checkpoints", rows, note)
    note = "Resident memory of the process, in MiB: more by so much after two checkpoints than before."
    return [table, Table("Memory for checkpoints", [{"of": model, **memory}], note)]


def make(way: str, case: str) -> Callable[[], Any]:
    """The call to time."""
    import jax
    import numpy as np

    from funcnet.train import Checkpoints, _pieces

    step, state, batch = _program(case)
    folder = tempfile.mkdtemp(prefix="funcnet-checkpoints-")
    made = Checkpoints(folder, every=STEPS, keep=1)

    def save() -> None:
        made.save(state, position=None, log=None, seconds=0.0, record={})

    def train(checkpoint: bool) -> Any:
        nonlocal state
        metrics = None
        for _ in range(STEPS):
            state, metrics = step(state, batch)
        if checkpoint:
            save()
        return metrics

    def copy() -> None:
        named, _ = made._named(state)
        made._kept = _pieces.to_host(named, made._kept)

    match way:
        case "np.copyto":
            leaves = jax.tree.leaves(state)
            kept = [np.empty(leaf.shape, leaf.dtype) for leaf in leaves]
            return lambda: [np.copyto(*pair) for pair in zip(kept, map(np.asarray, leaves), strict=True)]
        case "Checkpoints.save":  # as far as the run waits for it
            return copy
        case "without" | "with a checkpoint":
            return lambda: train(way != "without")
    save()
    made.wait()
    written = Path(folder, f"step-{int(state.step)}")
    return (lambda: _hashed(written)) if way == "read and hash" else (lambda: made.restore(state)[0])


def memory(case: str) -> dict[str, float]:
    """MiB of the state, and what the process grows by."""
    import jax

    from funcnet.train import Checkpoints

    _, state, _ = _program(case)
    jax.block_until_ready(state)
    with tempfile.TemporaryDirectory() as folder:
        made = Checkpoints(folder, keep=1)
        before, most, done = _resident(), [0.0], threading.Event()

        def watch() -> None:
            while not done.wait(0.002):
                most[0] = max(most[0], _resident())

        watcher = threading.Thread(target=watch)
        watcher.start()
        for number in range(2):
            made.save(state, position=None, log=None, seconds=0.0, record={"number": number})
        made.wait()
        done.set()
        watcher.join()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 2**20
    return {"the state": round(size, 1), "at most more": round(most[0] - before, 1)}


def _program(case: str) -> tuple[Any, Any, Any]:
    from benchmarks.models import MODELS, TINY
    from benchmarks.peers import ours

    return ours._program((MODELS | TINY)[case])


def _hashed(folder: Path) -> str:
    """The SHA-256 of all files of a folder, one after the other, by one thread."""
    found, buffer = hashlib.sha256(), bytearray(2**20)
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            while length := file.readinto(buffer):
                found.update(memoryview(buffer)[:length])
    return found.hexdigest()


def _resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    harness.serve(make, others={"memory": memory})
