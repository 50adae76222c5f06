"""What numerical differentiation says of a problem: the truth where autodiff has none."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnet.verifier import referee, trace
from funcnet.verifier.point import TIMES, Point
from funcnet.verifier.problem import Problem
from funcnet.verifier.wide import Wide, as_wide, largest, norm, typical

__all__ = ["SAMPLE", "ask_where_lost", "check", "numerical", "off_along", "slope"]

LOST = 16  # elements without a derivative by autodiff that are asked for; of more, as many are drawn
SAMPLE = 64  # elements whose derivative is measured where autodiff has none; of more, as many are drawn


def numerical(
    y: Callable[..., Any], problem: Problem, arrays: Sequence[Any], dy: Sequence[Any], *, trust: bool = False
) -> list[np.ndarray]:
    """The gradients by differences; of many elements a sample, the others NaN."""
    values = [as_wide(arrays[i]) for i in problem.moving]
    return referee.gradient(held(y, problem, arrays), values, dy, SAMPLE)[trust]


def ask_where_lost(
    y: Any,
    problem: Problem,
    arrays: list[Any],
    dys: list[list[np.ndarray]],
    high: float,
    truth: list[list[np.ndarray]],
    formula: list[list[Any]],
    spread: list[np.ndarray],
    seen: list[np.ndarray],
    rng: np.random.Generator,
) -> None:
    """Ask the referee where autodiff gives no number and the formula does; put in what it is sure of.

    Where a branch that is not taken has no derivative, ``where(x > 0, sqrt(x), 0)``, autodiff says NaN.
    """
    f, values = held(y, problem, arrays), [as_wide(arrays[k]) for k in problem.moving]
    for i, x in enumerate(values):
        mine = [grads[i] for grads in formula]
        if seen[i].all() or any(u is None or u.shape != x.shape for u in mine) or np.iscomplexobj(x):
            continue
        with np.errstate(invalid="ignore"):
            told = np.isfinite(sum(mine)) & ~seen[i]
        for index in map(tuple, rng.permutation(np.argwhere(told))[:LOST]):
            unit = max(abs(x[index]), typical(x))
            along = [np.zeros(v.shape) for v in values]
            along[i][index] = unit
            found = [referee.derivative(f, values, along, dy, smooth=True) for dy in dys]
            usual = max(map(largest, dys[0])) * high
            if not all(np.isfinite(slope) and trust <= 1e-5 * usual for slope, trust in found):
                continue
            for grads, (slope, _) in zip(truth, found, strict=True):
                grads[i] = np.where(_one(x.shape, index), slope / unit, grads[i])
            spread[i] = np.where(_one(x.shape, index), 1e-4 * usual / unit / TIMES, spread[i])
            seen[i] = seen[i] | _one(x.shape, index)


def slope(
    y: Any, problem: Problem, arrays: list[Any], dy: list[Any], i: int, rng: np.random.Generator
) -> Any:
    """Of a gradient of which a sample is measured: its part along a direction in which all move."""
    values = [as_wide(arrays[k]) for k in problem.moving]
    if values[i].size <= SAMPLE:
        return None
    t = _along(values[i], rng)
    moved = [t if j == i else np.zeros(v.shape) for j, v in enumerate(values)]
    f = held(y, problem, arrays)
    return t, *referee.derivative(f, values, moved, dy, smooth=True)


def off_along(point: Point, i: int) -> float:
    """How far the formula is off along such a direction; 0 where it is right."""
    if point.along is None or point.along[i] is None or point.formula[0][i] is None:
        return 0.0
    (t, measured, trust), mine = point.along[i], point.whole[i]
    size = norm(mine) * norm(t)
    off = abs(float(np.sum(mine * t).real) - measured)
    return off / max(size, 1e-300) if off > 4 * trust + 1e-7 * size else 0.0


def held(y: Callable[..., Any], problem: Problem, arrays: Sequence[Any]) -> Callable[..., Any]:
    """The result as a function of the floats, with what the forward pass stops held as it is at `arrays`."""
    place = lambda moved: problem.place(arrays, [jnp.asarray(v) for v in moved])
    if not isinstance(y, Wide) or "stop_gradient" not in y.program(arrays)[0].primitives:
        return lambda moved: y(place(moved))
    kept: list[Any] = []
    program, tree = y.program(arrays)

    def run(given: Sequence[Any], stopped: Callable[[Any], Any]) -> Any:
        values = trace.run(
            program, list(map(trace.constant, given)), by=functools.partial(by, stopped=stopped), forget=True
        )
        return jax.tree.unflatten(tree, program.results(values))

    def by(eqn: trace.Equation, operands: Sequence[Any], stopped: Callable[[Any], Any]) -> Sequence[Any]:
        if eqn.inner:
            return trace.loop(eqn, operands, functools.partial(by, stopped=stopped))
        return [stopped(operands[0])] if eqn.name == "stop_gradient" else trace.apply(eqn, operands)

    run(arrays, lambda v: (kept.append(v), v)[1])

    def of_floats(moved: Sequence[Any]) -> Any:
        stops = iter(kept)
        return run(place(moved), lambda v: next(stops, v))

    return of_floats


def _one(shape: Sequence[Any], index: Sequence[Any]) -> np.ndarray:
    """True at one element."""
    at = np.zeros(shape, bool)
    at[tuple(index)] = True
    return at


def _along(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A direction in which x may move, of its own size."""
    t = rng.standard_normal(x.shape) * (typical(x) if x.size else 1.0)
    return np.asarray(t + 1j * rng.permutation(t) if np.iscomplexobj(x) else t)


# ---- the referee between formula and autodiff -------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Check:
    """One gradient along one direction, against differences."""

    claimed: float
    measured: float
    trust: float
    agrees: bool


def check(
    y: Any,
    problem: Problem,
    arrays: Sequence[Any],
    dy: Sequence[Any],
    i: int,
    claims: Sequence[Any],
    tolerance: float,
    rng: np.random.Generator,
) -> list[Check]:
    """Ask the referee about several `claims` for gradient i, along a random direction."""
    values = [as_wide(arrays[i]) for i in problem.moving]
    f = lambda moved: y(problem.place(arrays, moved))
    t = _along(values[i], rng)
    along = [t if j == i else np.zeros(v.shape) for j, v in enumerate(values)]
    measured, trust = referee.derivative(f, values, along, dy)
    out = []
    for claim in claims:
        claimed = float(np.sum(claim * t).real)
        size = max(abs(measured), abs(claimed), float(np.linalg.norm(t)) * 1e-8)
        out.append(Check(claimed, measured, trust, abs(claimed - measured) <= tolerance * size + 4 * trust))
    return out
