"""Does the verifier cry wolf? Right formulas at many arguments, in three dtypes.

Formulas written by hand, many in several spellings: `formulas.py` and `exam.py` beside this file.
"""

import copy
import dataclasses
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import WHOLE, Scale, Table
from benchmarks.studies import exam, formulas
from benchmarks.studies.census import Right, Wrong
from funcnet.verifier import compare
from funcnet.verifier.judge import judge_of
from funcnet.verifier.problem import pose, wide
from funcnet.verifier.report import Report

ALARMS = 1000  # (right formula, seed) pairs in each dtype
RIGHTS = formulas.RIGHT + exam.RIGHT


def arguments(wrong: Right | Wrong, seed: int) -> tuple[Any, ...]:
    """Of a formula, float32."""
    return tuple(jnp.asarray(a) for a in wrong.draw(np.random.default_rng(seed)))


class Ready:
    """One formula, compiled once and judged at many arguments."""

    def __init__(self, formula: Right | Wrong, args: Any):
        self.given = pose(formula.forward, formula.backward, args)
        with jax.enable_x64(True):
            problem = dataclasses.replace(self.given, args=wide(self.given.args))
            self.judge = judge_of(problem)

    def right(self, args: Any) -> bool:
        """Whether the formula is right at these arguments, without any diagnosis."""
        with jax.enable_x64(True):
            point = self.judge.at("", list(map(jnp.asarray, wide(args))), np.random.default_rng(0))
            leaves = [self.judge.leaf(point, i) for i in range(len(point.seen))]
        return all(leaf.state in ("right", "convention") for leaf in leaves)

    def verdict(self, args: Any, seed: int) -> Report:
        """The whole report at these arguments."""
        given = copy.copy(self.given)
        vars(given).pop("arrays", None)
        object.__setattr__(given, "args", args)
        x64 = any(a.dtype == np.float64 for a in jax.tree.leaves(args))
        with jax.enable_x64(True):
            ready = dataclasses.replace(self.judge, problem=dataclasses.replace(given, args=wide(args)))
            return compare.verdict(ready, given, x64, None, 0.0, np.random.default_rng(seed))


def false_alarms(pairs: int) -> list[dict[str, object]]:
    """Right formulas at many arguments, in three dtypes: how often is one called wrong?"""
    rows = []
    for dtype in ("float64", "float32", "bfloat16"):
        alarms: Counter[str] = Counter()
        done = 0
        for number, right in enumerate(RIGHTS):
            seeds = range(number, pairs, len(RIGHTS))
            with jax.enable_x64(dtype == "float64"):
                cast = lambda a, dtype=dtype: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a
                draws = [tuple(map(cast, arguments(right, 1000 + seed))) for seed in seeds]
                if not draws:
                    continue
                ready = Ready(right, draws[0])
                for seed, args in zip(seeds, draws, strict=True):
                    report = ready.verdict(args, seed)
                    done += 1
                    if not report.ok:
                        alarms[f"{right.operation}, {right.name}: {report.findings[0].kind}"] += 1
        rows.append(
            {
                "dtype": dtype,
                "right formulas": len(RIGHTS),
                "pairs": done,
                "false alarms": sum(alarms.values()),
                "which": "; ".join(f"{name} ({n})" for name, n in alarms.items()),
            }
        )
    return rows


def run(scale: Scale) -> list[Table]:
    """One row per dtype."""
    quick = scale != WHOLE
    return [Table("Right formulas", false_alarms(len(RIGHTS) if quick else ALARMS))]
