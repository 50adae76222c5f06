"""The verifier's score: wrong formulas found and named, beside other checkers.

The diagnosis was developed on the formulas of `benchmarks/studies/formulas.py`. It is scored on those of
`benchmarks/studies/exam.py`, written by hand by someone who had not seen it, and on mutants of its right ones
(`benchmarks/studies/mutations.py`).
"""

import importlib.util
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import funcnet as fn
from benchmarks.harness import WHOLE, Scale, Table
from benchmarks.studies import exam, formulas
from benchmarks.studies.census import Right, Wrong
from benchmarks.studies.mutations import listed, mutants
from benchmarks.studies.verify_right import RIGHTS, Ready, arguments
from funcnet.verifier.problem import wide
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
        found = [f for f in self.report.findings if f.argument.startswith(self.wrong.argument)]
        return found[0].kind if found else "none"

    @property
    def named(self) -> bool:
        """Whether that is one of the labels."""
        return self.kind in self.wrong.kinds


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


def peers(answers: Sequence[Answer]) -> list[dict[str, object]]:
    """The verifier and other checkers, these at their default settings, on the same formulas."""
    wrongs, rights = [a.wrong for a in answers], RIGHTS[::3]
    rows: list[dict[str, object]] = [
        _counted("funcnet.verify", "float64", sum(a.report.ok for a in answers), wrongs, _verify, rights)
    ]
    for name, dtype, check in (
        ("torch.autograd.gradcheck", "float64", _gradcheck),
        ("jax.test_util.check_grads", "float64", _check_grads),
        ("jax.test_util.check_grads", "float32", _check_grads),
        ("chex.assert_numerical_grads", "float32", _chex),
    ):
        if importlib.util.find_spec(name.partition(".")[0]) is None:
            rows.append({"checker": name, "dtype": dtype, "missed": "not installed"})
            continue
        with jax.enable_x64(dtype == "float64"):
            missed = sum(_passes(check, wrong) for wrong in wrongs)
            rows.append(_counted(name, dtype, missed, wrongs, check, rights))
    return rows


def _counted(
    name: str, dtype: str, missed: int, wrongs: Sequence[Wrong], check: Any, rights: Sequence[Right]
) -> dict[str, object]:
    flagged = sum(not _passes(check, right) for right in rights)
    of = lambda count, all_of_them: f"{count} of {len(all_of_them)}"
    return {
        "checker": name,
        "dtype": dtype,
        "missed": of(missed, wrongs),
        "false alarms": of(flagged, rights),
    }


def _passes(check: Callable[["Ruled"], None], formula: Right | Wrong) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check(_ruled(formula))
    except Exception:  # an assertion, or gradients of a shape that the checker refuses
        return False
    return True


class Ruled(NamedTuple):
    """A formula as functions of the arguments that it differentiates."""

    formula: Right | Wrong
    forward: Callable[..., Any]
    backward: Callable[..., tuple[Any, ...]]  # of the arguments, then dy
    values: tuple[Any, ...]


def _ruled(formula: Right | Wrong) -> Ruled:
    args = arguments(formula, 11)
    args = wide(args) if jax.config.read("jax_enable_x64") else args
    given = listed(formula.backward(*args, jnp.ones_like(formula.forward(*args))), len(args))
    moving = [i for i, a in enumerate(args) if jnp.issubdtype(a.dtype, jnp.floating) and given[i] is not None]
    place = lambda values: [values[moving.index(i)] if i in moving else a for i, a in enumerate(args)]

    def backward(*values_and_dy: Any) -> tuple[Any, ...]:
        *values, dy = values_and_dy
        grads = listed(formula.backward(*place(values), dy), len(args))
        return tuple(grads[i] for i in moving)

    return Ruled(
        formula,
        jax.jit(lambda *values: formula.forward(*place(values))),
        jax.jit(backward),
        tuple(args[i] for i in moving),
    )


def _with_rule(ruled: Ruled) -> Any:
    f = jax.custom_vjp(ruled.forward)
    f.defvjp(lambda *values: (ruled.forward(*values), values), lambda v, dy: ruled.backward(*v, dy))
    return f


def _verify(ruled: Ruled) -> None:
    formula = ruled.formula
    fn.verify(formula.forward, formula.backward, arguments(formula, 11)).raise_if_wrong()


def _check_grads(ruled: Ruled) -> None:
    from jax.test_util import check_grads

    check_grads(_with_rule(ruled), ruled.values, order=1, modes=["rev"])


def _chex(ruled: Ruled) -> None:
    chex = importlib.import_module("chex")
    f = _with_rule(ruled)
    chex.assert_numerical_grads(lambda *v: f(*v).sum(), ruled.values, order=1)


def _gradcheck(ruled: Ruled) -> None:
    """The functions as one of PyTorch, on the same memory."""
    torch: Any = importlib.import_module("torch")
    to_jax = lambda tensors: [jnp.asarray(t.detach().numpy()) for t in tensors]
    to_torch = lambda array: torch.from_numpy(np.array(array))

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, *tensors: Any) -> Any:
            context.save_for_backward(*tensors)
            return to_torch(ruled.forward(*to_jax(tensors)))

        @staticmethod
        def backward(context: Any, dy: Any) -> Any:
            return tuple(map(to_torch, ruled.backward(*to_jax((*context.saved_tensors, dy)))))

    tensors = [to_torch(v).requires_grad_() for v in ruled.values]
    torch.autograd.gradcheck(Function.apply, tensors)


def run(scale: Scale) -> list[Table]:
    """The score, the false alarms, the peers, and every formula of the exam that was not named."""
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
        Table("Other checkers at their defaults, on every third scored formula", peers(scored[::3])),
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
