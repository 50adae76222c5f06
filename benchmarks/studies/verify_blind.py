"""The verifier on a second exam, by someone who had not seen it: what it finds, what it names, false alarms.

Wrong formulas are asked in float64, and in float32 with x64 off; right ones in every dtype that they are
meant for. A wrong one is found if the report holds a mistake; its name is that of the finding for the
argument that is wrong. A label of two equally true kinds is counted with and without its second, as is a
finding that names two. After the first score, the failures of every second case were looked at; the others
are the half that is still blind.
"""

import re
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from benchmarks.harness import SMOKE, Scale, Table
from benchmarks.studies import exam2
from benchmarks.studies.exam2 import Case


class Outcome(NamedTuple):
    """What the verifier said of one case in one dtype; `kind` and `second` are its names for the mistake."""

    name: str
    dtype: str
    verdict: str  # "wrong", "right", "undecided" or "crash"
    kind: str = ""
    second: str = ""
    argument: str = ""
    remark: str = ""
    seconds: float = 0.0


def run(scale: Scale) -> list[Table]:
    """Four tables: wrong formulas, right ones, what was not as it should be, names beside the labels."""
    every = 20 if scale == SMOKE else 1
    wrong, right = exam2.WRONG[::every], exam2.RIGHT[::every]
    asked = [(case, dtype) for dtype in exam2.EXACT for case in wrong]
    asked += [(case, dtype) for dtype in exam2.ALL for case in right if dtype in case.dtypes]
    return tables([judge(case, dtype) for case, dtype in asked])


def judge(case: Case, dtype: str) -> Outcome:
    """Ask the verifier; x64 is on for float64 alone."""
    import funcnet as fn

    start = time.process_time()
    with jax.enable_x64(dtype == "float64"):
        try:
            report: Any = fn.verify(case.forward, case.backward, case.args(dtype))
        except Exception as error:
            return Outcome(case.name, dtype, "crash", remark=f"{type(error).__name__}: {error}"[:200])
    seconds = time.process_time() - start
    mistakes = [finding for finding in report.findings if finding.is_mistake]
    # The finding for the argument that is wrong, if there is one, else the first.
    mistakes.sort(key=lambda finding: _leaf(finding.argument) != case.argument)
    if not mistakes:
        verdict, remark = ("right", "") if report.ok else ("undecided", str(report)[:200])
        return Outcome(case.name, dtype, verdict, remark=remark, seconds=seconds)
    first = mistakes[0]
    kind, second = first.kind, getattr(first, "also", None) or ""
    return Outcome(case.name, dtype, "wrong", kind, second, str(first.argument), str(first)[:200], seconds)


def tables(outcomes: Sequence[Outcome]) -> list[Table]:
    """The study's tables, of outcomes however they were collected."""
    cases = {case.name: case for case in (*exam2.WRONG, *exam2.RIGHT)}
    blind = {case.name for case in exam2.WRONG[1::2]}
    wrong_rows, right_rows, failures, names = [], [], [], []
    for dtype in exam2.ALL:
        of_dtype = [outcome for outcome in outcomes if outcome.dtype == dtype]
        wrong = [outcome for outcome in of_dtype if cases[outcome.name].kind]
        right = [outcome for outcome in of_dtype if not cases[outcome.name].kind]
        if wrong:
            wrong_rows.append({"dtype": dtype, **_scores(wrong, cases)})
            if still := [outcome for outcome in wrong if outcome.name in blind]:
                wrong_rows.append({"dtype": f"{dtype}, the blind half", **_scores(still, cases)})
        if right:
            words = {"right": "right", "false alarms": "wrong", "undecided": "undecided", "crashes": "crash"}
            counts = {word: _count(right, verdict) for word, verdict in words.items()}
            right_rows.append({"dtype": dtype, "of": len(right), **counts})
        failures += [outcome for outcome in wrong if outcome.verdict != "wrong"]
        failures += [outcome for outcome in right if outcome.verdict != "right"]
        names += [
            {
                "case": each.name,
                "dtype": dtype,
                "label": _label(cases[each.name]),
                "named": " or ".join(filter(None, (each.kind, each.second))),
                "argument": cases[each.name].argument,
                "named argument": each.argument,
            }
            for each in wrong
            if each.verdict == "wrong" and not _as_labelled(each, cases[each.name], also=True)
        ]
    return [
        Table(
            "Wrong formulas", wrong_rows, "“With also”: either kind of the label, either name of the finding."
        ),
        Table("Right formulas", right_rows),
        Table("Misses, false alarms, undecided, crashes", [_failure(outcome, cases) for outcome in failures]),
        Table("Named otherwise, or unknown", names),
    ]


def _scores(wrong: Sequence[Outcome], cases: dict[str, Case]) -> dict[str, object]:
    found = [outcome for outcome in wrong if outcome.verdict == "wrong"]
    share = lambda chosen: f"{len(chosen)} ({len(chosen) / max(len(found), 1):.1%})"
    labelled = lambda also: [each for each in found if _as_labelled(each, cases[each.name], also)]
    unknown = [each for each in found if each.kind == "unknown"]
    otherwise = lambda also: [each for each in found if each not in labelled(also) and each not in unknown]
    in_place = [each for each in found if cases[each.name].argument == _leaf(each.argument)]
    return {
        "of": len(wrong),
        "found": f"{len(found)} ({len(found) / len(wrong):.1%})",
        "missed": _count(wrong, "right"),
        "undecided": _count(wrong, "undecided"),
        "crashes": _count(wrong, "crash"),
        "as labelled": share(labelled(False)),
        "otherwise": share(otherwise(False)),
        "as labelled, with also": share(labelled(True)),
        "otherwise, with also": share(otherwise(True)),
        "unknown": share(unknown),
        "the right argument": share(in_place),
        "median seconds": sorted(each.seconds for each in wrong)[len(wrong) // 2],
    }


def _as_labelled(outcome: Outcome, case: Case, also: bool) -> bool:
    if not also:
        return outcome.kind == case.kind
    return outcome.kind in (case.kind, case.also) or outcome.second == case.kind


def _leaf(argument: str) -> str:
    """The name of an argument, without the path to a leaf of it."""
    return re.split(r"\W", argument)[0]


def _count(outcomes: Sequence[Outcome], verdict: str) -> int:
    return sum(outcome.verdict == verdict for outcome in outcomes)


def _label(case: Case) -> str:
    return " or ".join(filter(None, (case.kind, case.also))) or "right"


def _failure(outcome: Outcome, cases: dict[str, Case]) -> dict[str, object]:
    case = cases[outcome.name]
    said = f"{outcome.verdict} {outcome.kind}".strip()
    return {
        "case": outcome.name,
        "dtype": outcome.dtype,
        "label": _label(case),
        "said": said,
        "remark": " ".join(outcome.remark.split()),
    }
