"""Naming a mistake from the forward pass: which path of the chain rule does the formula leave out or distort?

The derivative of every equation of the forward pass gets a gate, a factor that is 1. If the true gradient
with one gate at 0 is what the formula gives, then the formula lacks the path through that equation; with the
gate at -1 it has its sign wrong. The gated gradient is traced once, and run in NumPy for each setting of the
gates. The formula need not be seen.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funcnet.verifier import clock, trace
from funcnet.verifier.arrays import SAME, is_mask
from funcnet.verifier.finding import Finding
from funcnet.verifier.judge import Point, differs, largest
from funcnet.verifier.problem import Problem, is_float

__all__ = ["search"]

MANY = 80  # gates; a longer forward pass is not searched
FACTORS = (0.0, -1.0, 2.0, 0.5)
_REDUCTIONS = ("reduce_sum", "reduce_max", "reduce_min", "dot_general", "argmax", "cumsum")


class Gate(NamedTuple):
    """A place in the forward pass: the output of an equation, or one of the uses of a shared value."""

    equation: int
    operand: int | None  # None: the output
    slope: bool = False  # instead of a factor: the derivative of y = f(x) is taken for 1


class Setting(NamedTuple):
    """Some gates at another factor than 1."""

    gates: tuple[int, ...]
    factor: float


def search(
    problem: Problem, points: Sequence[Point], wrong: Sequence[int], deadline: float
) -> dict[int, list[tuple[float, Finding]]]:
    """For each of the `wrong` gradients the settings that explain it everywhere, and how far-fetched each is.

    The points may differ in their sizes, as long as the forward pass has the same equations there.
    """
    first = points[0]
    program, _ = trace.trace(lambda *a: problem.y(a), *first.arrays)
    gates = _gates(program, problem.moving)
    if not 0 < len(gates) <= MANY:
        return {i: [] for i in wrong}
    checks: list[tuple[trace.Program, Point]] = []
    for point in points:
        there, _ = trace.trace(lambda *a: problem.y(a), *point.arrays)
        if _gates(there, problem.moving) == gates:
            gated = _gated(problem, there, gates, point.arrays)
            checks.append((trace.trace(gated, np.ones(len(gates)), point.dys[0])[0], point))
    found: dict[int, list[tuple[float, Finding]]] = {i: [] for i in wrong}
    for setting in _settings(program, gates):
        if clock.is_over(deadline):
            break
        factors = np.ones(len(gates))
        factors[list(setting.gates)] = setting.factor
        for i in _explained(checks, factors, wrong):
            found[i].append(_finding(problem.paths[i], program, gates, setting))
    return found


def _explained(
    checks: Sequence[tuple[trace.Program, Point]], factors: np.ndarray, wrong: Sequence[int]
) -> list[int]:
    """Those of the `wrong` gradients that are the true ones with gates at these factors, at every point."""
    left = list(wrong)
    for backward, point in checks:
        for dy, formula in zip(point.dys, point.formula, strict=True):
            if not left:
                return []
            found = backward.results(trace.run(backward, [factors, *dy], forget=True))
            scale = {i: max(largest(f[i]) for f in point.formula) for i in left}
            left = [i for i in left if not differs(found[i], formula[i], SAME, scale[i])]
    return left


def _active(program: trace.Program, moving: Sequence[int]) -> set[int]:
    """The values that depend on the floats of the arguments, differentiably."""
    active = set(moving)
    for eqn in program.equations:
        if eqn.name != "stop_gradient" and any(v in active for v in eqn.inputs if isinstance(v, int)):
            active.update(v for v in eqn.outputs if is_float(program.avals[v]))
    return active


_LINEAR = ("neg", "add", "sub", "copy", "convert_element_type")  # their slope says nothing of its own


def _gates(program: trace.Program, moving: Sequence[int]) -> list[Gate]:
    active = _active(program, moving)
    used = [v for eqn in program.equations for v in eqn.inputs if isinstance(v, int)]
    gates = []
    for k, eqn in enumerate(program.equations):
        through = [j for j, v in enumerate(eqn.inputs) if isinstance(v, int) and v in active]
        if eqn.primitive is None or len(eqn.outputs) != 1 or not through or eqn.outputs[0] not in active:
            continue
        gates.append(Gate(k, None))
        gates += [Gate(k, j) for j in through if used.count(eqn.inputs[j]) > 1]
        shapes = {program.avals[v].shape for v in (eqn.inputs[through[0]], eqn.outputs[0])}
        if len(through) == 1 and len(shapes) == 1 and eqn.name not in _LINEAR:
            gates.append(Gate(k, through[0], slope=True))
    return gates


def _settings(program: trace.Program, gates: Sequence[Gate]) -> list[Setting]:
    """One gate at each factor; slopes; and statistics together, since whoever forgets one may forget two."""
    settings = [Setting((i,), c) for i, gate in enumerate(gates) for c in ((0.0,) if gate.slope else FACTORS)]
    statistics = [
        i
        for i, g in enumerate(gates)
        if g.operand is None and program.equations[g.equation].name in _REDUCTIONS
    ][:8]
    for many in (2, 3):
        settings += [Setting(some, 0.0) for some in itertools.combinations(statistics, many)]
    return settings


def _gated(
    problem: Problem, program: trace.Program, gates: Sequence[Gate], arrays: Sequence[Any]
) -> Callable[..., list[Any]]:
    number = {gate: i for i, gate in enumerate(gates)}

    def gated(x: Any, gate: Gate, factors: Any) -> Any:
        if gate not in number:
            return x
        c = factors[number[gate]].astype(x.dtype)
        return c * x + jax.lax.stop_gradient((1 - c) * x)

    def equation(k: int, factors: Any, operands: Sequence[Any], _: Any) -> list[Any]:
        operands = [gated(x, Gate(k, j), factors) for j, x in enumerate(operands)]
        (result,) = trace.bind(program.equations[k], operands)
        for j, x in enumerate(operands):
            if (gate := Gate(k, j, slope=True)) in number:
                straight = x + jax.lax.stop_gradient(result - x)
                result = jnp.where(factors[number[gate]] == 0, straight, result)
        return [gated(result, Gate(k, None), factors)]

    def y(values: Sequence[Any], factors: Any) -> list[Any]:
        through = {k: functools.partial(equation, k, factors) for k in {gate.equation for gate in gates}}
        return program.results(trace.run(program, values, through, by=trace.bind))

    return lambda factors, dy: problem.autodiff(arrays, dy, lambda values: y(values, factors))


def _finding(
    argument: str, program: trace.Program, gates: Sequence[Gate], setting: Setting
) -> tuple[float, Finding]:
    gate = gates[setting.gates[0]]
    eqn = program.equations[gate.equation]
    names = " and ".join(dict.fromkeys(program.equations[gates[i].equation].name for i in setting.gates))
    source = trace.source(eqn.line)
    where = f"`{names}` of the forward pass" + (f" (`{source}`)" if source else "")
    operand = where if gate.operand is None else f"operand {gate.operand} of {where}"
    effort = 0.5 + 0.5 * len(setting.gates)
    if gate.slope:
        turned = {"transpose": "transpose", "rev": "flip"}.get(eqn.name)
        fixed = map(program.fixed, eqn.inputs if eqn.name in ("mul", "div") else ())
        by = [c for c in fixed if c is not None]
        masks = eqn.name in ("max", "min", "select_n", "clamp") or any(is_mask(c) and np.ndim(c) for c in by)
        constant = any(np.size(c) == 1 for c in by)
        kind = turned or ("mask" if masks else "scale" if constant else "missing_term")
        message, fix = f"the derivative of {where} is left out", f"multiply by the derivative of {eqn.name}"
    elif setting.factor == 0 and any(_is_statistic(program, gates[i].equation) for i in setting.gates):
        kind, message = "statistics_constant", f"the statistic computed by {where} is held constant"
        fix = "add the term that flows through it"
    elif setting.factor == 0:
        kind, message = "missing_term", f"the path through {operand} is missing"
        fix, effort = "add the term that flows there", effort + 0.2
    elif setting.factor == -1:
        kind, message = "sign", f"the path through {where} has the opposite sign"
        fix, effort = "negate that term", effort + 0.3
    else:
        kind, message = "scale", f"the path through {where} counts {setting.factor:g} times"
        fix, effort = f"multiply that term by {1 / setting.factor:g}", effort + 0.3
    return effort, Finding(argument, kind, message, fix, eqn.line)


def _is_statistic(program: trace.Program, k: int) -> bool:
    """Whether equation k is part of a mean: a sum that is divided by a constant, or what follows from it."""
    eqn = program.equations[k]
    makers = program.makers

    def is_mean(e: trace.Equation) -> bool:
        if e.name not in ("div", "mul") or len(e.inputs) != 2:
            return False
        constant = any(np.size(c) == 1 for c in map(program.fixed, e.inputs) if c is not None)
        summed = next((makers.get(v) for v in e.inputs if isinstance(v, int)), None)
        while summed is not None and summed.name in ("broadcast_in_dim", "reshape", "expand_dims"):
            summed = makers.get(summed.inputs[0]) if isinstance(summed.inputs[0], int) else None
        return constant and summed is not None and summed.name == "reduce_sum"

    seen, todo = set(), [eqn]
    while todo:  # back to what this equation is made of, as long as the shape stays that of a statistic
        e = todo.pop()
        if is_mean(e):
            return True
        if e.name == "reduce_sum" or id(e) in seen:
            continue
        seen.add(id(e))
        size = np.prod(program.avals[eqn.outputs[0]].shape, dtype=int)
        for v in e.inputs:
            if isinstance(v, int) and v in makers and np.prod(program.avals[v].shape, dtype=int) <= size:
                todo.append(makers[v])
    if eqn.name == "reduce_sum":  # the sum itself: is it divided by a constant later?
        users = lambda v: [
            e for e in program.equations if any(isinstance(u, int) and u == v for u in e.inputs)
        ]
        after = users(eqn.outputs[0])
        while after and after[0].name in ("broadcast_in_dim", "reshape", "expand_dims"):
            after = users(after[0].outputs[0])
        return bool(after) and is_mean(after[0])
    return False
