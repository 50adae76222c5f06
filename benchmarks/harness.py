"""Fair timing: processes that take turns, and what is made of their samples.

Candidates are sampled in turn, A B C, C A B, B A C ..., so that a machine that slows down slows all of them.
Those on JAX live in one process; XLA's other flags and other frameworks need processes of their own. A whole
run starts every process twice ("generations"), since the placement of code and memory differs from one to the
next; what is published is the median over both with its range, the ratio as the median of the ratios *within*
a round, and the ratio's spread: by how much another run may differ.

Nothing here imports jax, nor does anything else in the process that runs the benchmarks.
"""

import contextlib
import json
import math
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

Sample = TypeVar("Sample")

SAMPLE = 0.03  # seconds
BUDGET, MOST = 8.0, 6  # seconds, times
NOISY = 0.10  # a ratio that may differ by more in another run is marked
# Freed memory stays with the process. Else every call returns its results to the system and faults them in
# again, page by page: on the machine of the results 5 to 15 ms a call, at random, for all of them alike.
KEEP_MEMORY = {
    "MALLOC_TRIM_THRESHOLD_": "8000000000",
    "MALLOC_TOP_PAD_": "500000000",
    "MALLOC_MMAP_MAX_": "0",
}


class Scale(NamedTuple):
    """How much is measured: samples of each candidate in each of so many generations of processes."""

    name: str
    rounds: int
    generations: int


SMOKE, QUICK, WHOLE = Scale("smoke", 1, 1), Scale("quick", 4, 1), Scale("whole", 6, 2)


# ---- what is measured -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measure:
    """Seconds per call, or bytes: less is better.

    Attributes:
        median: over all samples; low and high are the extremes.
        ratio: to the first candidate of the row, within a round: above 1, that one is better.
        spread: by how much the ratio of another run may differ, relative to it.
        unit: "s" or "B".
    """

    median: float
    low: float
    high: float
    ratio: float = 1.0
    spread: float = 0.0
    unit: str = "s"

    @property
    def noisy(self) -> bool:
        """Whether another run may give another ratio."""
        return self.spread > NOISY

    def __str__(self) -> str:
        scale, unit = next(p for p in _UNITS[self.unit] if self.median >= p[0] or p is _UNITS[self.unit][-1])
        values = (value / scale for value in (self.median, self.low, self.high))
        median, low, high = (f"{value:.0f}" if value >= 100 else f"{value:.3g}" for value in values)
        extremes = "" if self.low == self.high else f" ({low}–{high})"
        return f"{median} {unit}{extremes} ×{self.ratio:.3g}{'~' * self.noisy}"


_UNITS = {
    "s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")),
    "B": ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")),
}


@dataclass(frozen=True)
class Table:
    """One result: rows of named cells (text, numbers, `Measure`s; columns as they appear) and notes.

    A row's first cell names it. With `chart`, the ratios of its `Measure`s are drawn as bars, too.
    """

    title: str
    rows: Sequence[Mapping[str, object]]
    notes: str = ""
    chart: bool = False


def summarise(generations: Sequence[Mapping[str, Sequence[float]]], unit: str = "s") -> dict[str, Measure]:
    """Samples {candidate: one per round} of each generation; ratios are to the first candidate."""
    first = next(iter(generations[0]), "")
    measures = {}
    for name in generations[0]:
        values = [value for generation in generations for value in generation[name]]
        ratios = [
            [value / base for value, base in zip(generation[name], generation[first], strict=True)]
            for generation in generations
        ]
        pooled = [ratio for generation in ratios for ratio in generation]
        ratio = statistics.median(pooled)
        medians = [statistics.median(generation) for generation in ratios]
        between = max(medians) - min(medians)
        spread = 0.0 if name == first else max(_uncertainty(pooled), between) / ratio
        measures[name] = Measure(statistics.median(values), min(values), max(values), ratio, spread, unit)
    return measures


STUDENT = {2: 12.7, 3: 4.30, 4: 3.18}  # of how many values, the 97.5 % quantile of its distribution


def _uncertainty(values: Sequence[float]) -> float:
    """Of the median: half its 95 % interval (McGill, Tukey and Larsen 1978); of few values, the mean's.

    The range of two or three values is no bound: it is small by chance. A single one says nothing of itself.
    """
    if len(values) < 2:
        return values[0]
    if len(values) < 5:
        return STUDENT[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    low, _, high = statistics.quantiles(values, n=4)
    return 1.57 * (high - low) / math.sqrt(len(values))


# ---- taking turns -----------------------------------------------------------------------------------------


def seconds(
    call: Callable[[], object],
    calls: int,
    wait: Callable[[Any], object] | None = None,
    chained: bool = False,
) -> float:
    """Wall time of one call, as the mean of `calls` calls, each waited for, or if chained only the last."""
    if wait is None:
        import jax  # here, so that a benchmark of processes does not pay for it

        wait = jax.block_until_ready
    result, start = None, time.perf_counter()
    for i in range(calls):
        result = call()
        if not chained or i == calls - 1:
            wait(result)
    return (time.perf_counter() - start) / calls


def interleave(samplers: Mapping[str, Callable[[], Sample]], rounds: int) -> dict[str, list[Sample]]:
    """Ask samplers in turn, every round in another order, once a second after a wait for quiet.

    In a fixed order each would always follow the same one, and pay for the threads that this one's process
    keeps spinning for a while: measured, 30 % on a step of 3 ms after PyTorch's.
    """
    samples: dict[str, list[Sample]] = {name: [] for name in samplers}
    names, waited, order = list(samplers), -math.inf, random.Random(0)
    for _ in range(rounds):
        if time.monotonic() > waited + 1.0:
            quiet.append(wait_for_quiet())
            waited = time.monotonic()
        for name in order.sample(names, len(names)):
            samples[name].append(samplers[name]())
    return samples


def compare(
    candidates: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 15,
    warmup: int = 3,
    sample_seconds: float = 0.02,
) -> dict[str, Measure]:
    """Time functions of no arguments against each other, in this process.

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
    return summarise([interleave(samplers, rounds)])


quiet: list[bool] = []  # of every round so far, whether the machine was quiet when it began


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


# ---- processes --------------------------------------------------------------------------------------------


class Process(NamedTuple):
    """`python -m MODULE ARGUMENTS...`, which calls `serve`, with these environment variables."""

    module: str
    arguments: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()


class Entrant(NamedTuple):
    """A candidate: the process where it lives, its name there, and the distribution that it needs."""

    process: Process
    way: str
    package: str = "jax"


class Worker:
    """A running `Process` that answers one question at a time."""

    def __init__(self, process: Process):
        self.process = subprocess.Popen(
            [sys.executable, "-m", process.module, *process.arguments],
            env={**os.environ, **KEEP_MEMORY, **dict(process.environment)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, *question: object) -> Any:
        """Put a question, and wait for the answer; what fails there raises RuntimeError here."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(question), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process ended with code {self.process.wait()}")
        reply, error = json.loads(line)
        if error:
            raise RuntimeError(error)
        return reply

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(BrokenPipeError):
            self.process.communicate()


@contextlib.contextmanager
def running(processes: Iterable[Process]) -> Iterator[dict[Process, Worker]]:
    """A worker for each of them, equal ones being the same; all end with the block."""
    workers = {process: Worker(process) for process in dict.fromkeys(processes)}
    try:
        yield workers
    finally:
        for worker in workers.values():
            worker.close()


def serve(
    make: Callable[[str, str], Callable[[], Any]] | None = None,
    *,
    check: Callable[[Any], Sequence[float]] = lambda _: (),
    others: Mapping[str, Callable[..., object]] = {},
    wait: Callable[[Any], object] | None = None,
) -> None:
    """The other end of a `Worker`: a loop that ends with its standard input.

    Args:
        make: from a candidate's name and a case's, the call to time, its arrays made; None: others only.
        check: numbers of what the fourth call gives, which must be those of the other candidates.
        others: name to a function, for further questions.
        wait: what waits for the result of a call; `jax.block_until_ready`.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a framework prints must not pass for an answer
    calls: dict[str, Callable[[], Any]] = {}
    lasts: dict[str, float] = {}  # seconds of the third call

    def reply(question: str, *arguments: Any) -> object:
        if question == "prepare" and make:  # compile
            way, case = arguments
            calls[way] = make(way, case)
            seconds(calls[way], 2, wait)
            lasts[way] = seconds(calls[way], 1, wait)
            return list(map(float, check(calls[way]())))
        if question == "seconds":  # of a call, at a first look
            (way,) = arguments
            return lasts[way] if lasts[way] > 0.1 else seconds(calls[way], 2, wait)
        if question == "sample":
            way, count, chained = arguments
            if lasts[way] < 0.1:
                # Its arrays are in the caches again, and the others' threads asleep.
                seconds(calls[way], 1, wait)
            return seconds(calls[way], count, wait, chained)
        if question == "release":
            return calls.clear()
        return others[question](*arguments)

    for line in sys.stdin:
        try:
            answer = reply(*json.loads(line)), None
        except Exception as error:  # the run goes on, and its table says so
            answer = None, f"{type(error).__name__}: {error}".partition("\n")[0]
        print(json.dumps(answer), file=answers, flush=True)


# ---- side by side -----------------------------------------------------------------------------------------


def race(
    entrants: Mapping[str, Entrant],
    cases: Iterable[str],
    scale: Scale,
    *,
    tolerance: float = 1e-3,
    chained: bool = False,
) -> dict[str, dict[str, object]]:
    """{case: {candidate: its Measure, or why there is none}}; ratios are to the first candidate.

    Where the numbers that the candidates compute do not agree, nothing is timed: the row says "refused".

    Args:
        entrants: the candidates by name.
        cases: by the names that their processes know.
        scale: how many samples.
        tolerance: relative, for the numbers of `serve`'s check.
        chained: do not wait for each call, but for the last of a sample.
    """
    present = {name: entrant for name, entrant in entrants.items() if installed(entrant.package)}
    absent = {name: f"{e.package} is not installed" for name, e in entrants.items() if name not in present}
    rows: dict[str, dict[str, object]] = {case: {} for case in cases}
    samples: dict[str, list[dict[str, list[float]]]] = {case: [] for case in rows}
    for _ in range(scale.generations if rows else 0):
        with running(entrant.process for entrant in present.values()) as workers:
            field = {name: (workers[entrant.process], entrant.way) for name, entrant in present.items()}
            for case, row in rows.items():
                if "refused" not in row:
                    row |= _prepare(field, case, tolerance)
                    ready = {name: field[name] for name in field if name not in row}
                    try:
                        samples[case].append(
                            {} if "refused" in row else _sample(ready, scale.rounds, chained)
                        )
                    except RuntimeError as error:
                        row["refused"] = f"a candidate failed while it was timed: {error}"
                    for worker in workers.values():
                        with contextlib.suppress(RuntimeError):  # a process that has ended
                            worker.ask("release")
    for case, row in rows.items():
        if "refused" not in row:
            kept = [name for name in present if name not in row]
            kept = kept if kept[:1] == [next(iter(entrants))] else []  # nothing without what ratios are to
            timed = summarise([{name: taken[name] for name in kept} for taken in samples[case]])
            row |= {name: "not timed" for name in present if name not in kept and name not in row}
            rows[case] = {name: (absent | row | timed)[name] for name in entrants}
    return rows


Field = Mapping[str, tuple[Worker, str]]  # candidate to its process, and its name there


def _prepare(field: Field, case: str, tolerance: float) -> dict[str, object]:
    """Compile every candidate, the processes side by side; says who failed, or who is "refused"."""
    numbers: dict[str, Sequence[float]] = {}
    failed: dict[str, object] = {}

    def prepare(worker: Worker) -> None:
        for name, (own, way) in field.items():
            if own is worker:
                try:
                    numbers[name] = worker.ask("prepare", way, case)
                except RuntimeError as error:
                    failed[name] = f"failed: {error}"

    with ThreadPoolExecutor() as pool:
        list(pool.map(prepare, dict.fromkeys(worker for worker, _ in field.values())))
    difference = disagreement({name: numbers[name] for name in field if name in numbers}, tolerance)
    return {"refused": difference} if difference else failed


def _sample(field: Field, rounds: int, chained: bool) -> dict[str, list[float]]:
    """Seconds per call of each candidate, one per round, each of the calls that fill SAMPLE for the slowest.

    Short rounds are easily disturbed: there are up to MOST times as many of them, while they take BUDGET.
    """
    each = [worker.ask("seconds", way) for worker, way in field.values()] or [SAMPLE]
    calls = max(1, round(SAMPLE / max(each)))
    rounds = max(rounds, min(MOST * rounds, round(BUDGET / (calls * sum(each)))))
    samplers = {
        name: partial(worker.ask, "sample", way, calls, chained) for name, (worker, way) in field.items()
    }
    return interleave(samplers, rounds)


def disagreement(numbers: Mapping[str, Sequence[float]], tolerance: float) -> str:
    """Who differs from the first by more than a relative tolerance, and how; empty where all agree."""
    first, wanted = next(iter(numbers.items()), ("", ()))
    differences = []
    for name, values in numbers.items():
        for value, want in zip(values, wanted, strict=True):
            if not abs(value - want) <= tolerance * abs(want):  # NaN differs
                differences.append(f"{name} has {value:.6g} where {first} has {want:.6g}")
                break
    return "; ".join(differences)


def installed(package: str) -> bool:
    """Whether a distribution is."""
    try:
        metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return False
    return True
