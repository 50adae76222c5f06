"""Time to the end of the first training step, by depth: GPTs of 2 to 96 blocks, compiled.

Trace, lower, compile and run, with the blocks as one scanned loop, as each peer's documentation recommends
for deep models, or unrolled. A process per peer and round answers all depths, up or down, JAX's caches
cleared before each; another depth goes first, since a process's first compilation also loads what compiling
needs.
"""

import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from benchmarks import harness, models, peers
from benchmarks.harness import Entrant, Scale, Table

# What JAX wrote to a persistent cache would be read, not compiled.
FRESH = peers.GUARDED._replace(environment=(("JAX_ENABLE_COMPILATION_CACHE", "false"),))
FIELD = {
    "funcnet": Entrant(FRESH, "ours.first", "funcnet"),
    "plain JAX": Entrant(FRESH, "plain.first"),
    "Flax NNX": Entrant(FRESH, "nnx.first", "flax"),
    "Equinox": Entrant(FRESH, "equinox.first", "equinox"),
    "Haiku": Entrant(FRESH, "haiku.first", "dm-haiku"),
}
LOOPS = tuple(models.DEEP)
UNROLLED = LOOPS[:4]  # up to 24 blocks: the time grows with them
BASE = LOOPS[1]  # 6 blocks
WARM_UP = "tiny GPT"

Stages = dict[str, float]  # seconds by stage
Answers = dict[str, list[dict[str, Stages]]]  # peer to, for each round, its stages by case


def run(scale: Scale) -> list[Table]:
    """Loops: peers by depth, growth with depth, the stages; then the unrolled form beside the loop."""
    if scale.name == "smoke":
        two = dict(itertools.islice(FIELD.items(), 2))
        answers, absent = measured(two, [WARM_UP], loop=True, rounds=1)
        return [_by_depth(answers, absent, [WARM_UP])]
    if scale.name == "quick":
        cases = [BASE, LOOPS[-1]]
        answers, absent = measured(dict(itertools.islice(FIELD.items(), 2)), cases, loop=True, rounds=1)
        return [_by_depth(answers, absent, cases), _growth(answers, cases), _stages(answers, cases)]
    answers, absent = measured(FIELD, LOOPS, loop=True, rounds=3)
    ours = {name: FIELD[name] for name in ("funcnet", "plain JAX")}
    unrolled, _ = measured(ours, UNROLLED, loop=False, rounds=2)
    return [
        _by_depth(answers, absent, LOOPS),
        _growth(answers, LOOPS),
        _stages(answers, (BASE, LOOPS[-1])),
        _growth(unrolled, UNROLLED, "unrolled"),
    ]


def measured(
    field: Mapping[str, Entrant], cases: Sequence[str], *, loop: bool, rounds: int
) -> tuple[Answers, dict[str, str]]:
    """The stages of every peer, and why others have none."""
    absent = {
        name: f"{e.package} is not installed" for name, e in field.items() if not harness.installed(e.package)
    }
    samplers = {}
    for name, entrant in field.items():
        if name not in absent:
            orders = itertools.cycle([cases, cases[::-1]])
            samplers[name] = partial(_ask, entrant, orders, loop)
    answers, failed = {}, {}
    for name, rounds_of in harness.interleave(samplers, rounds).items():
        if errors := [answer for answer in rounds_of if isinstance(answer, str)]:
            failed[name] = errors[0]
        else:
            answers[name] = rounds_of
    return answers, absent | failed


def _ask(entrant: Entrant, orders: Iterator[Sequence[str]], loop: bool) -> dict[str, Stages] | str:
    """A new process's stages by case, or why there are none."""
    cases = next(orders)
    with harness.running([entrant.process]) as workers:
        ask = partial(workers[entrant.process].ask, "first", entrant.way)
        try:
            if WARM_UP not in cases:
                ask(WARM_UP, loop)
            return {case: ask(case, loop) for case in cases}
        except RuntimeError as error:
            return f"failed: {error}"


def _by_depth(answers: Answers, absent: Mapping[str, str], cases: Sequence[str]) -> Table:
    rows = []
    for case in cases:
        totals = {name: [sum(answer[case].values()) for answer in given] for name, given in answers.items()}
        rows.append({"loop over": case, **harness.summarise([totals]), **absent})
    note = "Width 64, t = 64, batch 4, AdamW. No persistent cache. Ratios are to the first column."
    return Table("To the end of the first step, the blocks as a loop", rows, note)


def _growth(answers: Answers, cases: Sequence[str], form: str = "as a loop") -> Table:
    """The same by peer: how it grows."""
    columns = [BASE, *(case for case in cases if case != BASE)]
    rows = []
    for name, given in answers.items():
        totals = {case: [sum(answer[case].values()) for answer in given] for case in columns}
        rows.append({f"blocks {form}": name, **harness.summarise([totals])})
    note = f"Ratios are to {BASE}."
    if form == "as a loop":
        note += " Target: 96 blocks at most 1.3. What still grows is the step itself, which runs once."
    return Table(f"Growth with depth, {form}", rows, note)


def _stages(answers: Answers, cases: Sequence[str]) -> Table:
    rows = []
    for case, (name, given) in itertools.product(cases, answers.items()):
        medians = {
            stage: statistics.median(answer[case][stage] for answer in given) for stage in given[0][case]
        }
        rows.append({"stages of": f"{name}, {case}"} | {s: f"{t:.3f} s" for s, t in medians.items()})
    return Table("Stages, the blocks as a loop", rows, "Medians.")
