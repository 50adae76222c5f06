"""Fair timing in one process, and the tables that it makes.

Candidates are timed in turn, A B C, B C A, C A B ..., so that a machine that slows down slows all of them.
What is published is the median with its range, and the ratio as the median of the ratios *within* a round.
The numbers mean something only beside the machine, the versions, the flags and the load: `header`.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

Sample = TypeVar("Sample")
_PACKAGES = ("funcnet", "jax", "jaxlib", "numpy", "optax")
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Timing:
    """Seconds per call: median, minimum and maximum over the rounds; ratio to the first candidate."""

    median: float
    low: float
    high: float
    ratio: float

    def __str__(self) -> str:
        scale, unit = next(p for p in _UNITS if self.median >= p[0] or p is _UNITS[-1])
        values = (value / scale for value in (self.median, self.low, self.high))
        median, low, high = (f"{value:.0f}" if value >= 100 else f"{value:.3g}" for value in values)
        return f"{median} {unit} ({low}–{high}) ×{self.ratio:.3f}"


_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


@dataclass(frozen=True)
class Table:
    """One result: rows of named cells (text, numbers, `Timing`s; columns as they appear) and notes.

    With `chart`, the ratios of its `Timing`s are drawn as bars, too.
    """

    title: str
    rows: Sequence[Mapping[str, object]]
    notes: str = ""
    chart: bool = False

    def markdown(self) -> str:
        """The table under its title, with its notes."""
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        lines = [columns, ["---"] * len(columns)]
        lines += [[_cell(row.get(name, "")) for name in columns] for row in self.rows]
        body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return "\n\n".join(part for part in (f"## {self.title}", body, self.notes) if part)


def compare(
    candidates: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 15,
    warmup: int = 3,
    sample_seconds: float = 0.02,
) -> dict[str, Timing]:
    """Time functions of no arguments against each other; the first is the one that ratios refer to.

    Args:
        candidates: name to function. It returns arrays (any pytree), which are waited for after every call.
        rounds: samples per candidate, taken in turn.
        warmup: calls of each before anything is timed (compilation, caches).
        sample_seconds: a sample repeats its call until it lasts about this long, the same number for all.
    """
    for call in candidates.values():
        seconds(call, warmup)
    calls = max(1, round(sample_seconds / max(seconds(call, 1) for call in candidates.values())))
    samplers = {name: partial(seconds, call, calls) for name, call in candidates.items()}
    return summarise(interleave(samplers, rounds))


def seconds(call: Callable[[], object], calls: int, wait: Callable[[object], object] | None = None) -> float:
    """Wall time of one call, as the mean of `calls` calls, each waited for."""
    if wait is None:
        import jax  # here, so that a benchmark of processes does not pay for it

        wait = jax.block_until_ready
    start = time.perf_counter()
    for _ in range(calls):
        wait(call())
    return (time.perf_counter() - start) / calls


def interleave(samplers: Mapping[str, Callable[[], Sample]], rounds: int) -> dict[str, list[Sample]]:
    """Ask samplers in turn; every round waits for a quiet machine, and starts with the next sampler."""
    samples: dict[str, list[Sample]] = {name: [] for name in samplers}
    names = list(samplers)
    for turn in range(rounds):
        wait_for_quiet()
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            samples[name].append(samplers[name]())
    return samples


class Worker:
    """A process of its own, `python -m MODULE`, that answers one question at a time (`answer`).

    XLA reads its flags once, and other frameworks bring their own threads: what is compared then lives in
    processes that take turns.
    """

    def __init__(self, module: str, environment: Mapping[str, str | None], *arguments: str):
        changed = {**os.environ, **environment}
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env={name: text for name, text in changed.items() if text is not None},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, *question: object) -> Any:
        """Put a question, and wait for the answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(question), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def answer(
    cases: Mapping[str, Callable[[], Callable[[], object]]],
    others: Mapping[str, Callable[..., object]] = {},  # noqa: B006: only read
    wait: Callable[[object], object] | None = None,
) -> None:
    """The other end of a `Worker`: a loop that ends with its standard input.

    Args:
        cases: name to a function that makes the arrays and gives the call to time.
        others: name to a function, for further questions.
        wait: what waits for the result of a call; `jax.block_until_ready`.
    """
    call = None
    for line in sys.stdin:
        question, *arguments = json.loads(line)
        if question == "cases":
            reply: object = list(cases)
        elif question == "prepare":  # compile, and say how many calls fill a sample
            call = cases[arguments[0]]()
            seconds(call, 2, wait)
            reply = max(1, round(0.03 / seconds(call, 2, wait)))
        elif question == "sample":
            assert call is not None
            start = time.process_time()
            wall = seconds(call, arguments[0], wait)
            reply = wall, (time.process_time() - start) / arguments[0]
        else:
            reply = others[question](*arguments)
        print(json.dumps(reply), flush=True)


def take_turns(workers: Mapping[str, Worker], case: str, rounds: int) -> dict[str, Timing]:
    """Time one case in every worker, in turn, each sample of as many calls as suit the slowest."""
    calls = min(worker.ask("prepare", case) for worker in workers.values())
    samplers = {name: partial(worker.ask, "sample", calls) for name, worker in workers.items()}
    samples = interleave(samplers, rounds)
    return summarise({name: [wall for wall, _ in values] for name, values in samples.items()})


def wait_for_quiet(limit: float = 0.6) -> bool:
    """Wait until the processors were 90 % idle for a fifth of a second, at most `limit` seconds."""
    stat, end = Path("/proc/stat"), time.monotonic() + limit
    while stat.exists() and time.monotonic() < end:
        before = [int(count) for count in stat.read_text().split(None, 9)[1:9]]
        time.sleep(0.2)
        spent = [
            int(count) - old for count, old in zip(stat.read_text().split(None, 9)[1:9], before, strict=True)
        ]
        if spent[3] >= 0.9 * sum(spent):  # user, nice, system, idle, ...
            return True
    return not stat.exists()


def summarise(samples: Mapping[str, Sequence[float]]) -> dict[str, Timing]:
    """Samples in seconds, one per round and candidate, as timings; ratios are to the first candidate."""
    baseline = next(iter(samples.values()))
    return {
        name: Timing(
            statistics.median(values),
            min(values),
            max(values),
            statistics.median(value / base for value, base in zip(values, baseline, strict=True)),
        )
        for name, values in samples.items()
    }


def header() -> dict[str, object]:
    """The machine, the versions, the flags and the load, as they are now."""
    installed = {found.name: found.version for found in metadata.distributions()}
    facts: dict[str, object] = {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": ", ".join(f"{name} {installed[name]}" for name in _PACKAGES if name in installed),
        "commit": _commit(),
        "flags": {k: v for k, v in sorted(os.environ.items()) if k.startswith(("XLA_", "JAX_", "FUNCNET_"))},
        "load": [round(load, 2) for load in os.getloadavg()],
        "nice": os.nice(0),
    }
    if "jax" in sys.modules:
        facts["devices"] = sorted({device.device_kind for device in sys.modules["jax"].devices()})
    return facts


def result_name(name: str) -> str:
    """The stem of a benchmark's result files: every figure belongs to one version of JAX."""
    return f"{name}-jax{metadata.version('jax')}"


def report(name: str, title: str, tables: Sequence[Table], facts: Mapping[str, object]) -> str:
    """A run as a Markdown page: command, header, tables."""
    lines = [f"{key}: {value}" for key, value in {"command": f"python -m benchmarks {name}", **facts}.items()]
    head = "\n".join(["```", *lines, "```"])
    return "\n\n".join([f"# {name}: {title}", head, *(table.markdown() for table in tables)]) + "\n"


def write(name: str, title: str, tables: Sequence[Table], facts: Mapping[str, object]) -> list[Path]:
    """Write results/NAME-jaxVERSION.json and .md, and .png if a table has a chart; return their paths."""
    RESULTS.mkdir(exist_ok=True)
    stem = result_name(name)
    data = {"benchmark": name, "header": facts, "tables": [asdict(table) for table in tables]}
    texts = {
        f"{stem}.json": json.dumps(data, indent=1) + "\n",
        f"{stem}.md": report(name, title, tables, facts),
    }
    for file, text in texts.items():
        (RESULTS / file).write_text(text, encoding="utf-8")
    charts = [table for table in tables if table.chart]
    if charts:
        _bars(RESULTS / f"{stem}.png", charts[0], f"{name}, jax {metadata.version('jax')}")
    return [RESULTS / file for file in (*texts, *([f"{stem}.png"] if charts else []))]


def _bars(path: Path, table: Table, title: str) -> None:
    """One bar per row and candidate: its time, in units of the first one's."""
    from matplotlib.figure import Figure

    labels = [str(next(iter(row.values()))) for row in table.rows]
    first, *names = [name for name, cell in table.rows[0].items() if isinstance(cell, Timing)]
    figure = Figure(figsize=(9, 1.2 + 0.42 * len(labels)), dpi=110, layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(names)
    for i, (name, colour) in enumerate(zip(names, ("#4477aa", "#66ccee", "#cc6677"), strict=False)):
        timings = [cell for row in table.rows if isinstance(cell := row[name], Timing)]
        places = [row + (i - (len(names) - 1) / 2) * height for row in range(len(labels))]
        axes.barh(places, [timing.ratio for timing in timings], height, label=name, color=colour)
    axes.axvline(1.0, color="black", linewidth=1.0)
    axes.set_xscale("log")
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set(xlabel=f"time ÷ {first}'s: right of the line, {first} is faster", title=title)
    axes.legend(frameon=False)
    figure.savefig(path)


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _cpu_model() -> str:
    """The processor's name and its widest vectors, which decide more than the name does."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor() or "unknown"
    pairs = (line.partition(":") for line in cpuinfo.read_text(encoding="utf-8").splitlines())
    facts = {name.strip(): value.strip() for name, _, value in pairs}
    widest = next(
        (isa for isa in ("amx_tile", "avx512f", "avx2") if isa in facts.get("flags", "").split()), ""
    )
    return f"{facts.get('model name', 'unknown')} {widest}".strip()


def _commit() -> str:
    """The commit, with a plus if the tree has changed since."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
