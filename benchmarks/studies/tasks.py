"""The tasks of the command line: score and wall time of the whole command, as a user runs it.

Each is one process, from start to exit, without the installation: `funcnet train digits`, `funcnet train
fashion --epochs 5` (where Fashion-MNIST is installed) and `funcnet train chars` (three minutes).
"""

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import WHOLE, Scale, Table

RUNS = {
    "digits": ([], "eval_accuracy", "≥ 0.985, under 60 s, verified in under 15 s"),
    "fashion": (["--epochs", "5"], "eval_accuracy", "≥ 0.910"),
    "chars": ([], "eval_loss", "< 2.0 nats per character after 3 minutes"),
}
_MAIN = "import sys; from funcnet.cli import main; sys.exit(main())"  # what the command `funcnet` runs
QUICK = {"digits": ["--epochs", "1"], "fashion": ["--epochs", "1"], "chars": ["--minutes", "0.1"]}


def _train(task: str, options: list[str], score: str) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", _MAIN, "train", task, *options, "--out", str(out)],
            capture_output=True,
            text=True,
            check=False,
        )
        wall = time.perf_counter() - start
        if done.returncode:
            return {"score": f"not run: {done.stderr.strip().splitlines()[-1]}"}
        last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    verified = re.search(r"verified in ([\d.]+) s", done.stdout)
    formulas = re.search(r"(\d+) of \d+ gradients right", done.stdout)
    return {
        "score": f"{score.removeprefix('eval_')} {last[score]:.4f}",
        "wall, s": wall,
        "verified, s": float(verified[1]) if verified else "",
        "formulas verified": formulas[1] if formulas else "",
        "steps": last["step"],
    }


def run(scale: Scale) -> list[Table]:
    """One row per task."""
    quick = scale != WHOLE
    rows = []
    for task, (options, score, target) in RUNS.items():
        options = QUICK[task] if quick else options
        command = " ".join(["funcnet train", task, *options])
        rows.append({"command": command, **_train(task, options, score), "target": "" if quick else target})
    return [
        Table("Training tasks, seed 0", rows, "The score is that of the held-out data at the end of the run.")
    ]
