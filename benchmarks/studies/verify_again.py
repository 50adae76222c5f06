"""The verifier's names in ten runs: each run a fresh process, in two of them every core is busy besides.

Of every 16th wrong formula of the second exam all findings are compared: kinds, words and places.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence

from benchmarks import harness
from benchmarks.harness import SMOKE, Process, Scale, Table

NAMES = Process("benchmarks.studies.verify_again")
RUNS, CROWDED = 10, 2
Names = list[list[str]]  # of each finding: argument, kind, also, message, suggestion, location, code


def run(scale: Scale) -> list[Table]:
    """One row per formula."""
    from benchmarks.studies import exam2

    step, runs = (160, 2) if scale == SMOKE else (16, RUNS)
    numbers = range(0, len(exam2.WRONG), step)
    each: list[list[Names]] = []
    for n in range(runs):
        crowded = n >= runs - min(CROWDED, runs // 2)
        with _busy(os.cpu_count() if crowded else 0), harness.running([NAMES]) as workers:
            each.append([workers[NAMES].ask("names", k) for k in numbers])
    return [table([exam2.WRONG[k].name for k in numbers], each)]


def table(formulas: Sequence[str], runs: Sequence[Sequence[Names]]) -> Table:
    """How often each formula's findings are those of the first run."""
    rows: list[dict[str, object]] = [
        {
            "formula": formula,
            "named": ", ".join(kind for _, kind, *_ in runs[0][k]),
            "the same": f"{sum(names[k] == runs[0][k] for names in runs)} of {len(runs)}",
        }
        for k, formula in enumerate(formulas)
    ]
    return Table("Names in several runs", rows)


@contextlib.contextmanager
def _busy(count: int | None) -> Iterator[list[subprocess.Popen[bytes]]]:
    """So many processes that count, as long as the block lasts."""
    jobs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count or 0)]
    try:
        yield jobs
    finally:
        for job in jobs:
            job.kill()
            job.wait()


def _names(number: int) -> Names:
    import jax

    import funcnet as fn
    from benchmarks.studies import exam2

    case = exam2.WRONG[number]
    with jax.enable_x64(True):
        report = fn.verify(case.forward, case.backward, case.args("float64"))
    return [
        [f.argument, f.kind, f.also, f.message, f.suggestion, f.location, f.code] for f in report.findings
    ]


if __name__ == "__main__":
    harness.serve(others={"names": _names})
