"""The verifier's score: wrong formulas found and named, right ones left alone, beside other checkers.

Formulas written by hand (`benchmarks/formulas.py`, by someone who had not seen the diagnosis) and mutants of
right ones (`benchmarks/mutations.py`). They are split in two by name: the diagnosis was developed on one half
and is scored on the other.
"""

import copy
import dataclasses
import importlib
import statistics
import time
import warnings
import zlib
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import funcnet as fn
from benchmarks.formulas import RIGHT, WRONG, Right, Wrong
from benchmarks.harness import Table
from benchmarks.mutations import mutants
from funcnet.verifier import compare
from funcnet.verifier.judge import judge_of, measure
from funcnet.verifier.problem import pose, wide

MUTANTS, ALARMS = 2, 1000  # mutants of each operation; (right formula, seed) pairs in each dtype


def exam(wrong: Wrong) -> bool:
    """Whether a formula belongs to the half that is scored."""
    return zlib.crc32(f"{wrong.operation}: {wrong.name}".encode()) % 2 == 0


def in_float32(forward: Any) -> Any:
    """A forward pass that computes in float32 whatever it is given, so that float64 cannot help."""
    return lambda *args: forward(*(_narrow(a) for a in args))


def _narrow(a: Any) -> Any:
    return a.astype(jnp.float32) if jnp.issubdtype(a.dtype, jnp.floating) else a


def _args(wrong: Right | Wrong, seed: int) -> tuple[Any, ...]:
    return tuple(jnp.asarray(a) for a in wrong.draw(np.random.default_rng(seed)))


def score(formulas: list[Wrong]) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """One row for all, and one per formula that was missed or named wrongly."""
    found = found32 = named = misnamed = unknown = localised = 0
    verdicts, diagnoses, rows = [], [], []
    for wrong in formulas:
        args = _args(wrong, 11)
        start = time.perf_counter()
        report = fn.verify(wrong.forward, wrong.backward, args)
        diagnoses.append(time.perf_counter() - start)
        found += not report.ok
        narrow = wrong._replace(forward=in_float32(wrong.forward), backward=_in_float32_backward(wrong))
        found32 += not _Ready(narrow, args).right(args)
        if len(diagnoses) % 8 == 0:
            verdicts.append(_warm(wrong, args))
        mine = [f for f in report.findings if f.is_mistake]
        right_place = bool(mine) and mine[0].argument.startswith(wrong.argument)
        kinds = [f.kind for f in mine if f.argument.startswith(wrong.argument)]
        kind = kinds[0] if kinds else "none"
        localised += right_place
        if kind in wrong.kinds:
            named += 1
            continue
        unknown += kind == "unknown"
        misnamed += kind not in ("unknown", "none")
        rows.append(
            {
                "operation": wrong.operation,
                "mistake": wrong.name,
                "label": ", ".join(wrong.kinds),
                "answer": kind,
                "found": "yes" if not report.ok else "NO",
            }
        )
    n = len(formulas)
    percent = lambda count: f"{100 * count / n:.1f} % ({count})"
    row = {
        "formulas": n,
        "found, float64": percent(found),
        "found, float32": percent(found32),
        "named right": percent(named),
        "named wrong": percent(misnamed),
        "unknown": percent(unknown),
        "argument right": percent(localised),
        "verdict, median s": statistics.median(verdicts),
        "verdict and diagnosis, median s": statistics.median(diagnoses),
        "longest, s": max(diagnoses),
    }
    return [row], rows


def _in_float32_backward(wrong: Wrong) -> Any:
    return lambda *args: wrong.backward(*(_narrow(a) for a in args))


def _warm(wrong: Wrong | Right, args: Any) -> float:
    """Seconds of a verdict when everything is compiled."""
    ready = _Ready(wrong, args)
    ready.verdict(args, 0)
    start = time.perf_counter()
    ready.verdict(args, 1)
    return time.perf_counter() - start


class _Ready:
    """One formula, compiled once and judged at many arguments."""

    def __init__(self, formula: Right | Wrong, args: Any):
        self.given = pose(formula.forward, formula.backward, args)
        with jax.enable_x64(True):
            problem = dataclasses.replace(self.given, args=wide(self.given.args))
            self.judge = judge_of(problem, problem.arrays)

    def right(self, args: Any) -> bool:
        """Whether the formula is right at these arguments, without any diagnosis."""
        with jax.enable_x64(True):
            point = self.judge.at("", list(map(jnp.asarray, wide(args))), np.random.default_rng(0))
            allowed = self.judge.tolerances(point)
        return all(measure([point], i)[0] <= bound for i, bound in enumerate(allowed))

    def verdict(self, args: Any, seed: int) -> Any:
        given = copy.copy(self.given)  # with what is compiled already
        vars(given).pop("arrays", None)
        object.__setattr__(given, "args", args)
        with jax.enable_x64(True):
            ready = dataclasses.replace(self.judge, problem=dataclasses.replace(given, args=wide(args)))
            return compare.verdict(ready, given, False, None, 0.0, np.random.default_rng(seed))


def false_alarms(pairs: int) -> list[dict[str, object]]:
    """Right formulas at many arguments, in three dtypes: how often is one called wrong?"""
    rows = []
    for dtype in ("float64", "float32", "bfloat16"):
        alarms: Counter[str] = Counter()
        done = 0
        for number, right in enumerate(RIGHT):
            seeds = range(number, pairs, len(RIGHT))
            with jax.enable_x64(dtype == "float64"):
                cast = lambda a, dtype=dtype: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a
                draws = [tuple(map(cast, _args(right, 1000 + seed))) for seed in seeds]
                if not draws:
                    continue
                ready = _Ready(right, draws[0])
                for seed, args in zip(seeds, draws, strict=True):
                    report = ready.verdict(args, seed)
                    done += 1
                    if not report.ok:
                        alarms[f"{right.operation}, {right.name}: {report.findings[0].kind}"] += 1
        rows.append(
            {
                "dtype": dtype,
                "right formulas": len(RIGHT),
                "pairs": done,
                "false alarms": sum(alarms.values()),
                "which": "; ".join(f"{name} ({n})" for name, n in alarms.items()),
            }
        )
    return rows


def peers(formulas: list[Wrong]) -> list[dict[str, object]]:
    """Other checkers, at their default settings, in float32, on the same formulas and the right ones."""
    checkers = {
        "jax.test_util.check_grads": _check_grads,
        "chex.assert_numerical_grads": _chex,
        "torch gradcheck": None,
    }
    rows: list[dict[str, object]] = []
    for name, check in checkers.items():
        module = name.partition(".")[0].split()[0]
        try:
            importlib.import_module(module)
        except ImportError:
            rows.append({"checker": name, "wrong": "not installed"})
            continue
        if check is None:
            rows.append({"checker": name, "wrong": "not run: it takes PyTorch functions"})
            continue
        passed = sum(_passes(check, wrong) for wrong in formulas)
        some = RIGHT[::3]
        alarms = sum(not _passes(check, right) for right in some)
        rows.append(
            {
                "checker": name,
                "wrong": len(formulas),
                "missed": passed,
                "right": len(some),
                "falsely flagged": alarms,
            }
        )
    return rows


def _passes(check: Any, formula: Right | Wrong) -> bool:
    args = _args(formula, 11)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check(_with_rule(formula, args), args)
    except Exception:  # an assertion, or gradients of a shape that JAX refuses
        return False
    return True


def _with_rule(formula: Right | Wrong, args: Any) -> Any:
    """The forward pass as a function of the differentiated arguments, with the formula as its rule."""
    moving = [i for i, a in enumerate(args) if jnp.issubdtype(a.dtype, jnp.floating)]
    given = formula.backward(*args, jnp.ones_like(formula.forward(*args)))
    listed = [given] if len(args) == 1 and not isinstance(given, tuple | list) else list(given)
    moving = [i for i in moving if listed[i] is not None]
    place = lambda values: [values[moving.index(i)] if i in moving else a for i, a in enumerate(args)]

    @jax.custom_vjp
    def f(*values: Any) -> Any:
        return formula.forward(*place(values))

    def backward(values: Any, dy: Any) -> Any:
        grads = formula.backward(*place(values), dy)
        grads = [grads] if len(args) == 1 and not isinstance(grads, tuple | list) else list(grads)
        return tuple(grads[i] for i in moving)

    f.defvjp(lambda *values: (f(*values), values), backward)
    return f, tuple(args[i] for i in moving)


def _check_grads(with_rule: Any, _: Any) -> None:
    from jax.test_util import check_grads

    f, values = with_rule
    check_grads(f, values, order=1, modes=["rev"])


def _chex(with_rule: Any, _: Any) -> None:
    f, values = with_rule
    importlib.import_module("chex").assert_numerical_grads(lambda *v: f(*v).sum(), values, order=1)


def run(quick: bool) -> list[Table]:
    """The score on both halves, the false alarms, the peers, and every formula that was not named."""
    generated = mutants(1 if quick else MUTANTS)
    formulas = (WRONG[::20] if quick else WRONG) + (generated[::10] if quick else generated)
    scored, other = [w for w in formulas if exam(w)], [w for w in formulas if not exam(w)]
    halves = {"scored half": scored, "a fifth of the other half": other[::5]}
    rows, missed = [], []
    for name, half in halves.items():
        (row,), failures = score(half)
        rows.append({"": name, **row})
        missed += [{"half": name, **failure} for failure in failures]
    operations = len({w.operation for w in formulas})
    hand = len([w for w in formulas if w in WRONG])
    return [
        Table(
            "Wrong formulas",
            rows,
            f"{len(formulas)} wrong formulas of {operations} operations: {hand} by hand, "
            f"{len(formulas) - hand} mutants. Named right: the first finding's kind is one of the labels.",
        ),
        Table("Right formulas", false_alarms(len(RIGHT) if quick else ALARMS)),
        Table("Other checkers at their defaults, float32, one seed, every third formula", peers(scored[::3])),
        Table("Not named as labelled", missed),
    ]
