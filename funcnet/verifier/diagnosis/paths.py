"""Naming a mistake from the forward pass: which path of the chain rule does the formula leave out or distort?

The derivative of every equation of the forward pass gets a gate, a factor that is 1. If the true gradient
with one gate at 0 is what the formula gives, then the formula lacks the path through that equation; with the
gate at -1 it has its sign wrong. The gated gradient is traced once, and run in NumPy for each setting of the
gates. The formula need not be seen.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funcnet.verifier import trace
from funcnet.verifier.diagnosis import unroll, words
from funcnet.verifier.diagnosis.arrays import SAME, is_mask
from funcnet.verifier.diagnosis.search import Guess, Named
from funcnet.verifier.diagnosis.unroll import Unrolled
from funcnet.verifier.diagnosis.work import Work
from funcnet.verifier.finding import Finding
from funcnet.verifier.point import Point
from funcnet.verifier.problem import Problem, is_float
from funcnet.verifier.wide import differs, largest

__all__ = ["family"]

MANY = 80  # gates; a longer forward pass is not searched
FACTORS = (0.0, -1.0, 2.0, 0.5)
_REDUCTIONS = ("reduce_sum", "reduce_max", "reduce_min", "dot_general", "argmax", "cumsum")


Forward = tuple[trace.Program, Unrolled | None]  # folded, if its loops are written out


class Gate(NamedTuple):
    """A place in the forward pass: the output of an equation, or one of the uses of a shared value."""

    equation: int
    operand: int | None  # None: the output
    slope: bool = False  # instead of a factor: the derivative of y = f(x) is taken for 1


class Setting(NamedTuple):
    """Some gates at another factor than 1."""

    gates: tuple[int, ...]
    factor: float


def family(problem: Problem, points: Sequence[Point], work: Work) -> Iterator[Guess]:
    """The settings that may explain wrong gradients.

    The points may differ in their sizes, as long as the forward pass has the same equations there.
    """
    each = [(_forward(problem, point.arrays), point) for point in points]
    (program, loops), _ = next(((forward, p) for forward, p in each if forward[1] is not None), each[0])
    gates = _gates(program, loops, problem.moving)
    if not 0 < len(gates) <= MANY:
        return
    checks: list[tuple[trace.Program, Point]] = []

    def names(setting: Setting, left: Sequence[int]) -> Iterator[Named]:
        if not checks:
            checks.extend(_checks(problem, each, gates, work))
        factors = np.ones(len(gates))
        factors[list(setting.gates)] = setting.factor
        for i in _explained(checks, factors, left, work):
            yield i, *_finding(problem.paths[i], program, loops, gates, setting)

    settings = sorted(_settings(program, gates), key=lambda setting: _effort(program, gates, setting))
    for setting in settings:
        yield Guess(_effort(program, gates, setting), functools.partial(names, setting))


def _forward(problem: Problem, arrays: Sequence[Any]) -> Forward:
    """The forward pass, its short loops written out if it has any."""
    program, _ = trace.trace(lambda *a: problem.y(a), *arrays)
    loops = unroll.unrolled(program)
    return (program, None) if loops is None else (loops.folded, loops)


def _checks(
    problem: Problem, each: Sequence[tuple[Forward, Point]], gates: Sequence[Gate], work: Work
) -> Iterator[tuple[trace.Program, Point]]:
    """The gated gradient at each point that has the same gates."""
    for (program, loops), point in each:
        if _gates(program, loops, problem.moving) == gates:
            work.pay(trace.TRACED * len((loops.full if loops is not None else program).equations))
            gated = _gated(problem, program, loops, gates, point.arrays)
            yield trace.trace(gated, np.ones(len(gates)), point.dys[0])[0], point


def _explained(
    checks: Sequence[tuple[trace.Program, Point]], factors: np.ndarray, wrong: Sequence[int], work: Work
) -> list[int]:
    """Those of the `wrong` gradients that are the true ones with gates at these factors, at every point."""
    left = list(wrong)
    for backward, point in checks:
        for dy, formula in zip(point.dys, point.formula, strict=True):
            if not left:
                return []
            work.pay(backward.cost)
            found = backward.results(trace.run(backward, [factors, *dy], forget=True))
            scale = {i: max(largest(f[i]) for f in point.formula) for i in left}
            shown = {i: point.shown(i, found[i]) for i in left}
            left = [i for i in left if not differs(shown[i], formula[i], SAME, scale[i])]
    return left


def _active(program: trace.Program, moving: Sequence[int]) -> set[int]:
    """The values that depend on the floats of the arguments, differentiably."""
    active = set(moving)
    for eqn in program.equations:
        if eqn.name != "stop_gradient" and any(v in active for v in eqn.inputs if isinstance(v, int)):
            active.update(v for v in eqn.outputs if is_float(program.avals[v]))
    return active


_LINEAR = ("neg", "add", "sub", "copy", "convert_element_type")  # their slope says nothing of its own


def _gates(program: trace.Program, loops: Unrolled | None, moving: Sequence[int]) -> list[Gate]:
    active = _active(program, moving) if loops is None else loops.reached(_active(loops.full, moving))
    used = [v for eqn in program.equations for v in eqn.inputs if isinstance(v, int)]
    gates = []
    for k, eqn in enumerate(program.equations):
        through = [j for j, v in enumerate(eqn.inputs) if isinstance(v, int) and v in active]
        if loops is not None and k in loops.carried and eqn.outputs[0] in active:
            gates.append(Gate(k, None))
        if eqn.primitive is None or len(eqn.outputs) != 1 or not through or eqn.outputs[0] not in active:
            continue
        if loops is not None and loops.is_made(k):
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
    uses = dict[Any, list[int]]()
    for i, gate in enumerate(gates):
        if gate.operand is not None and not gate.slope:
            uses.setdefault(program.equations[gate.equation].inputs[gate.operand], []).append(i)
    for some in uses.values():  # of several uses of a value only one was seen
        settings += [
            Setting((*some[:n], *some[n + 1 :]), 0.0) for n in range(len(some) if len(some) > 2 else 0)
        ]
    return settings


def _gated(
    problem: Problem,
    program: trace.Program,
    loops: Unrolled | None,
    gates: Sequence[Gate],
    arrays: Sequence[Any],
) -> Callable[..., list[Any]]:
    number = {gate: i for i, gate in enumerate(gates)}
    runs = program if loops is None else loops.full

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
        through = through if loops is None else loops.changed(through)
        return runs.results(trace.run(runs, values, through, by=trace.bind))

    return lambda factors, dy: problem.autodiff(arrays, dy, lambda values: y(values, factors))


def _effort(program: trace.Program, gates: Sequence[Gate], setting: Setting) -> float:
    """How far-fetched a setting is, at the least."""
    gate = gates[setting.gates[0]]
    whole = setting.factor == 0 or gate.slope
    within = gate.slope and _is_part(program, gate.equation)
    return 0.5 + 0.5 * len(setting.gates) + (0.0 if whole else 0.3) + (1.6 if within else 0.0)


def _is_part(program: trace.Program, k: int) -> bool:
    """Whether equation k is one of several by which JAX computes what is written as one function."""
    here = program.equations[k]
    plain = (*_LINEAR, *trace.RESHAPES)
    alike = (e for e in program.equations if (e.line, e.text) == (here.line, here.text))
    return bool(here.text) and sum(e.name not in plain for e in alike) > 1


def _finding(
    argument: str, program: trace.Program, loops: Unrolled | None, gates: Sequence[Gate], setting: Setting
) -> tuple[float, Finding]:
    gate = gates[setting.gates[0]]
    eqn = program.equations[gate.equation]
    names = dict.fromkeys(words.named(program, gates[i].equation) for i in setting.gates)
    where = " and ".join(names) + " of the forward pass"
    if loops is not None and gate.equation in loops.carried:
        where = "what a step of the forward pass hands on to the next"
    operand = where
    if gate.operand is not None:
        operand = words.operands(f"operand {gate.operand} of {{op}}", program, gate.equation)
        operand = operand.replace("{op}", where)
    effort, also = _effort(program, gates, setting), ""
    if gate.slope:
        turned = {"transpose": "transpose", "rev": "flip"}.get(eqn.name)
        fixed = map(program.fixed, eqn.inputs if eqn.name in ("mul", "div") else ())
        by = [c for c in fixed if c is not None]
        masks = eqn.name in ("max", "min", "select_n", "clamp") or any(is_mask(c) and np.ndim(c) for c in by)
        constant = any(np.size(c) == 1 for c in by)
        kind = turned or ("mask" if masks else "scale" if constant else "missing_term")
        message, fix = f"the derivative of {where} is left out", "multiply by it"
    elif setting.factor == 0 and any(_is_statistic(program, gates[i].equation) for i in setting.gates):
        kind, message = "statistics_constant", f"the statistic computed by {where} is held constant"
        fix = "add the term that flows through it"
    elif setting.factor == 0:
        kind, message = "missing_term", f"the path through {operand} is missing"
        also = (
            "statistics_constant" if any(_divides(program, gates[i].equation) for i in setting.gates) else ""
        )
        fix, effort = "add the term that flows there", effort + 0.2
    elif setting.factor == -1:
        kind, message = "sign", f"the path through {where} has the opposite sign"
        fix = "negate that term"
    else:
        kind, message = "scale", f"the path through {where} counts {setting.factor:g} times"
        also = "missing_term" if setting.factor < 1 else "extra_term"
        fix = f"multiply that term by {1 / setting.factor:g}"
    return effort, Finding(argument, kind, message, fix, eqn.line, also=also)


_ELEMENTWISE = ("sqrt", "square", "integer_pow", "pow", "log", "exp", "abs", "copy")


def _divides(program: trace.Program, k: int) -> bool:
    """Whether equation k is a sum or maximum, or a function of one, by which others are divided."""
    eqn, fixed = program.equations[k], lambda e: any(program.fixed(v) is not None for v in e.inputs)
    alone = lambda e: (
        e.name in (*_ELEMENTWISE, *trace.RESHAPES)
        or (e.name in ("add", "sub", "mul", "div", "max") and fixed(e))
    )
    made: trace.Equation | None = eqn
    while made is not None and alone(made):
        made = next((program.makers.get(v) for v in made.inputs if isinstance(v, int)), None)
    if made is None or made.name not in ("reduce_sum", "reduce_max", "reduce_min"):
        return False
    reached = set(eqn.outputs)
    for e in program.equations[k + 1 :]:
        if reached.isdisjoint(v for v in e.inputs if isinstance(v, int)):
            continue
        if e.name == "rsqrt" or (e.name == "div" and e.inputs[1] in reached):
            return True
        if alone(e):
            reached.update(e.outputs)
    return eqn.name == "rsqrt" or (eqn.name == "div" and program.fixed(eqn.inputs[0]) is not None)


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
