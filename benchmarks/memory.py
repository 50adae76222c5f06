"""Memory: what XLA plans for the peers on JAX, and the peak resident memory beside PyTorch.

XLA's plan is `memory_analysis()` of a compiled step: arguments, temporaries and results, without the results
that take the place of arguments. PyTorch plans nothing: there, what counts is by how much the resident memory
of a fresh process rises at most in four steps; processes on JAX are measured in the same way beside it, where
the compiler's own memory counts, too.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from benchmarks import attention, conv, harness, models, peers
from benchmarks.harness import SMOKE, WHOLE, Entrant, Measure, Process, Scale, Table

PLANNED = {
    "funcnet": Entrant(peers.GUARDED, "ours.memory", "funcnet"),
    "funcnet, gradients by JAX": Entrant(peers.GUARDED, "ours.memory_by_jax", "funcnet"),
    "plain JAX": Entrant(peers.GUARDED, "plain.memory"),
    "Flax NNX": Entrant(peers.GUARDED, "nnx.memory", "flax"),
    "Equinox": Entrant(peers.GUARDED, "equinox.memory", "equinox"),
    "Haiku": Entrant(peers.GUARDED, "haiku.memory", "dm-haiku"),
}
RESIDENT = {name: peers.TRAINING[name] for name in ("funcnet", "plain JAX, guard's flag", "PyTorch")}
KIB = 2**10  # what is less is nothing
ROOM = 8 * 2**30
QUICK_MODELS = ("two convolutions, 28×28×1, batch 128", "GPT 4 × 128, t = 64, batch 12")


def run(scale: Scale) -> list[Table]:
    """A row per training step, convolution and attention."""
    cases = list(models.TINY)[:1] if scale == SMOKE else models.MODELS if scale == WHOLE else QUICK_MODELS
    note = "Above 1, funcnet needs less."
    planned = _planned(PLANNED, "step of", [*cases, *(f"twice {case}" for case in cases)])
    once, twice = planned[: len(cases)], planned[len(cases) :]
    largest = [_largest(case, *rows) for case, *rows in zip(cases, once, twice, strict=True)]
    tables = [
        Table("What XLA plans for a training step", once, note, chart=True),
        Table("Largest batch in 8 GiB", largest, "Further examples take what those of twice the batch take."),
    ]
    if scale == SMOKE:
        return tables
    every = 1 if scale == WHOLE else 6
    temporary = f"Besides arguments and results. {note}"
    for what, suite in ("a convolution", conv), ("attention", attention):
        rows = _planned(suite.MEMORY, "case", list(suite.CASES)[::every])
        tables.append(Table(f"Temporary memory of {what} and its gradients", rows, temporary))
    some = list(cases) if scale == WHOLE else list(cases)[:1]
    resident = [{"step of": case, **_resident(case)} for case in some]
    return [*tables, Table("Rise of the resident memory of a fresh process", resident, note)]


def _planned(entrants: Mapping[str, Entrant], what: str, cases: Iterable[str]) -> list[dict[str, object]]:
    """A row per case; every candidate compiles in a process of its own, side by side."""
    alone = {name: entrant._replace(process=_own(entrant)) for name, entrant in entrants.items()}
    with harness.running(e.process for e in alone.values() if harness.installed(e.package)) as workers:
        ask = lambda entrant, case: workers[entrant.process].ask("memory", entrant.way, case)
        return [{what: case, **_row(alone, case, ask)} for case in cases]


def _largest(case: str, once: dict[str, object], twice: dict[str, object]) -> dict[str, object]:
    """How many examples fit, of each peer: a plan is a constant and so much for an example."""
    n = models.ALL[case].batch

    def fits(one: object, two: object) -> object:
        if isinstance(one, Measure) and isinstance(two, Measure):
            return n + int((ROOM - one.median) / (two.median - one.median) * n)
        return two if isinstance(one, Measure) else one

    return {name: case if name == "step of" else fits(value, twice[name]) for name, value in once.items()}


def _own(entrant: Entrant) -> Process:
    """Its process with an argument that no other has."""
    process = entrant.process
    return process._replace(arguments=(*process.arguments, entrant.way))


def _resident(case: str) -> dict[str, object]:
    def ask(entrant: Entrant, case: str) -> int:
        with harness.running([entrant.process]) as workers:  # a fresh one
            return workers[entrant.process].ask("peak", entrant.way, case)

    return _row(RESIDENT, case, ask, spread=0.05)  # measured: up to 8 % from run to run


def _row(
    entrants: Mapping[str, Entrant], case: str, ask: Callable[[Entrant, str], int], spread: float = 0.0
) -> dict[str, object]:
    """Bytes of each, in units of the first's too."""

    def size(entrant: Entrant) -> int | str:
        if not harness.installed(entrant.package):
            return f"{entrant.package} is not installed"
        try:
            return ask(entrant, case)
        except RuntimeError as error:
            return f"failed: {error}"

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        sizes = dict(zip(entrants, pool.map(size, entrants.values()), strict=True))
    first = next((found for found in sizes.values() if isinstance(found, int)), 0)

    def measure(found: int) -> Measure:
        return Measure(found, found, found, max(found, KIB) / max(first, KIB), spread, "B")

    return {name: found if isinstance(found, str) else measure(found) for name, found in sizes.items()}
