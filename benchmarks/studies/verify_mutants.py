"""The verifier's score: wrong formulas found and named.

The diagnosis was developed on the formulas of `benchmarks/studies/formulas.py`. It is scored on those of
`benchmarks/studies/exam.py`, written by hand by someone who had not seen it, and on mutants of its right ones
(`benchmarks/studies/mutations.py`).
"""

import statistics
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

import funcnet as fn
from benchmarks.harness import WHOLE, Scale, Table
from benchmarks.studies import exam, formulas
from benchmarks.studies.census import Wrong
from benchmarks.studies.mutations import mutants
from benchmarks.studies.verify_right import Ready, arguments
from funcnet.verifier.report import Report

MUTANTS = 2  # of each operation


def in_float32(forward: Any) -> Any:
    """A forward pass that computes in float32 whatever it is given, so that float64 cannot help."""
    return lambda *args: forward(*(_narrow(a) for a in args))


def _narrow(a: Any) -> Any:
    return a.astype(jnp.float32) if jnp.issubdtype(a.dtype, jnp.floating) else a


class Answer(NamedTuple):
    """What the verifier said of one wrong formula, and how long it took."""

    wrong: Wrong
    report: Report
    found32: bool
    seconds: float

    @property
    def kind(self) -> str:
        """The first name given to the gradient at fault; "none" if it was not found."""
        return kind(self.wrong, self.report)

    @property
    def named(self) -> bool:
        """Whether that is one of the labels."""
        return self.kind in self.wrong.kinds


def kind(wrong: Wrong, report: Report) -> str:
    """The first name given to the gradient at fault; "none" if it was not found."""
    found = [f for f in report.findings if f.argument.startswith(wrong.argument)]
    return found[0].kind if found else "none"


def ask(wrong: Wrong) -> Answer:
    """Verify one wrong formula, in float64 with its diagnosis, and in float32 for the verdict alone."""
    args = arguments(wrong, 11)
    start = time.perf_counter()
    report = fn.verify(wrong.forward, wrong.backward, args)
    seconds = time.perf_counter() - start
    narrow = wrong._replace(forward=in_float32(wrong.forward), backward=_in_float32_backward(wrong))
    try:
        found = not Ready(narrow, args).right(args)
    except TypeError:  # a formula that does not run in float32 is found out
        found = True
    return Answer(wrong, report, found, seconds)


def score(answers: Sequence[Answer]) -> dict[str, object]:
    """One row for all."""
    n = len(answers)
    percent = lambda count: f"{100 * count / n:.1f} % ({count})"
    mistakes = [(a, [f for f in a.report.findings if f.is_mistake]) for a in answers]
    return {
        "formulas": n,
        "found, float64": percent(sum(not a.report.ok for a in answers)),
        "found, float32": percent(sum(a.found32 for a in answers)),
        "named right": percent(sum(a.named for a in answers)),
        "named wrong": percent(sum(not a.named and a.kind not in ("unknown", "none") for a in answers)),
        "unknown": percent(sum(a.kind == "unknown" for a in answers)),
        "argument right": percent(
            sum(bool(found) and found[0].argument.startswith(a.wrong.argument) for a, found in mistakes)
        ),
        "verdict once compiled, median s": statistics.median(_warm(a.wrong) for a in answers[::8]),
        "verdict and diagnosis, median s": statistics.median(a.seconds for a in answers),
        "longest, s": max(a.seconds for a in answers),
    }


def _in_float32_backward(wrong: Wrong) -> Any:
    return lambda *args: wrong.backward(*(_narrow(a) for a in args))


def _warm(wrong: Wrong) -> float:
    """Seconds of a verdict when everything is compiled."""
    args = arguments(wrong, 11)
    ready = Ready(wrong, args)
    ready.verdict(args, 0)
    start = time.perf_counter()
    ready.verdict(args, 1)
    return time.perf_counter() - start


def run(scale: Scale) -> list[Table]:
    """The score, and every formula that was not named as labelled."""
    quick = scale != WHOLE
    generated = mutants(exam.RIGHT, MUTANTS)
    step = 20 if quick else 1
    groups = {
        "the exam": exam.WRONG[::step],
        "mutants of its right formulas": generated[::step],
        "developed on (a fifth)": formulas.WRONG[:: 5 * step],
    }
    answers = {name: list(map(ask, group)) for name, group in groups.items()}
    scored = [a for name in ("the exam", "mutants of its right formulas") for a in answers[name]]
    return [
        Table(
            "Wrong formulas",
            [{"": "all that is scored", **score(scored)}]
            + [{"": name, **score(some)} for name, some in answers.items()],
            f"Scored: {len(scored)} wrong formulas of {len({a.wrong.operation for a in scored})} operations. "
            "Named right: the first finding's kind is one of the labels.",
        ),
        Table("Scored, and not named as labelled", [_failure(a) for a in scored if not a.named]),
    ]


def _failure(answer: Answer) -> dict[str, object]:
    wrong = answer.wrong
    return {
        "operation": wrong.operation,
        "mistake": wrong.name,
        "label": ", ".join(wrong.kinds),
        "answer": answer.kind,
        "found": "no" if answer.report.ok else "yes",
    }
