"""What `import funcnet` costs: whole processes, against `import jax`.

A process imports and exits; its wall time is taken from outside, in turn with the others'. Target of the
project: `import funcnet` at most 1.15 times `import jax`.
"""

import resource
import subprocess
import sys
import time
from functools import partial

from benchmarks import harness
from benchmarks.harness import Table

PROGRAMS = {
    "import jax": "import jax",
    "import funcnet": "import funcnet",
    "import funcnet, jax": "import funcnet, jax",
    "import jax, funcnet": "import jax, funcnet",
    "(Python alone)": "pass",
}


def run(quick: bool) -> list[Table]:
    """Time one process per program and round."""
    for code in PROGRAMS.values():
        _process_seconds(code)  # byte code compiled, files in the page cache
    samplers = {name: partial(_process_seconds, code) for name, code in PROGRAMS.items()}
    samples = harness.interleave(samplers, 3 if quick else 25)
    wall, cpu = (
        harness.summarise({name: [s[i] for s in taken] for name, taken in samples.items()}) for i in (0, 1)
    )
    rows = [{"program": name, "wall time": wall[name], "processor time": cpu[name]} for name in PROGRAMS]
    return [Table("Start, import and exit of a process", rows, "Ratios are to `import jax`.")]


def _process_seconds(code: str) -> tuple[float, float]:
    """Wall time and processor time of one process."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
