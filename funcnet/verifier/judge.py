"""Is the formula right? Its gradients against the truth, leaf by leaf, at several points.

The truth is `jax.vjp` of the forward pass in float64: no differences, so no step and almost no noise. What
error is allowed follows from the narrowest dtype that takes part (its eps), from the length of the sums, and
from how much the true gradient itself moves when the arguments move by rounding (its conditioning).
"""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnet.verifier import referee, trace
from funcnet.verifier.problem import SMALL, Problem, cotangents, is_float, options

__all__ = ["Judge", "Point", "check", "differs", "judge_of", "largest", "measure", "scales"]

ROUNDINGS = 4096  # of eps, for each √length: a right formula may be a good deal less exact than autodiff
FLOOR = 2.0**-13  # of the largest gradient: a smaller one may be zero but for what cancellation leaves


@dataclasses.dataclass(frozen=True)
class Point:
    """Arguments, cotangents, and what truth and formula say there: one list of gradients per cotangent."""

    label: str
    arrays: list[Any]
    dys: list[list[np.ndarray]]
    truth: list[list[np.ndarray]]
    formula: list[list[Any]]  # None where it gives none


@dataclasses.dataclass(frozen=True)
class Judge:
    """The truth and the formula of one problem, as functions of (arrays, dy).

    Attributes:
        truth: the gradients of the floats.
        formula: the same by the formula; None where it gives none.
        y: the float leaves of the result.
        eps: of the narrowest dtype that takes part.
        jitted: whether the formula could be traced.
        notes: what the report should say of all this.
    """

    problem: Problem
    truth: Callable[[Sequence[Any], Sequence[Any]], list[Any]]
    formula: Callable[[Sequence[Any], Sequence[Any]], list[Any]]
    y: Callable[[Sequence[Any]], list[Any]]
    eps: float
    jitted: bool
    notes: tuple[str, ...]

    def at(self, label: str, arrays: Sequence[Any], rng: np.random.Generator) -> Point:
        """Truth and formula at `arrays`, for a constant cotangent and two random ones; if large, for one."""
        arrays = list(arrays)
        y = jax.eval_shape(self.y, arrays)
        dys = cotangents(y, rng)
        if sum(v.size for v in [*arrays, *y]) > SMALL:
            del dys[1]
        truth = [[np.asarray(v, np.float64) for v in self.truth(arrays, dy)] for dy in dys]
        formula = [
            [None if v is None else np.asarray(v, np.float64) for v in self.formula(arrays, dy)] for dy in dys
        ]
        return Point(label, arrays, dys, truth, formula)

    def without_compiling(self) -> "Judge":
        """The same, run in NumPy: for arguments of many sizes, none of them used often."""
        formula = in_numpy(self.formula) if self.jitted else self.formula
        return dataclasses.replace(self, truth=in_numpy(self.truth), formula=formula)

    def conditioning(self, point: Point) -> list[float]:
        """How much each true gradient moves, in units of the eps by which arguments and cotangent move."""
        h, rng = 2.0**-30, np.random.default_rng(0)
        by = lambda v: np.asarray(v) * (1 + h * rng.choice([-1.0, 1.0], np.shape(v)))
        move = lambda v: jnp.asarray(by(v)) if is_float(v) else v
        moved = self.truth([move(v) for v in point.arrays], [by(v) for v in point.dys[0]])
        return [
            float(np.nan_to_num(largest(np.asarray(a) - b) / (h * max(largest(b), 1e-300)), posinf=0.0))
            for a, b in zip(moved, point.truth[0], strict=True)
        ]

    def tolerances(self, point: Point) -> list[float]:
        """The error that is allowed for each leaf, relative to the largest element of its true gradient."""
        length = max([1, *(v.size for v in point.arrays), *(v.size for v in point.dys[0])])
        roundings = ROUNDINGS if self.in_float64 else 64
        return [self.eps * (roundings * math.sqrt(length) + 64 * moves) for moves in self.conditioning(point)]

    @property
    def in_float64(self) -> bool:
        """Whether no narrower dtype takes part."""
        return self.eps < 1e-12


def judge_of(problem: Problem, arrays: Sequence[Any]) -> Judge:
    """Prepare truth and formula; needs `jax.enable_x64`.

    Raises whatever the forward pass raises, and StructureError where the formula's gradients do not match
    the arguments.
    """
    notes: list[str] = []
    y: Callable[[Sequence[Any]], list[Any]] = lambda a: problem.y(a)

    program, shapes = trace.trace(lambda *a: problem.y(a), *arrays)
    plain = y
    if program.custom:
        plain = _without_rules(y)
        notes.append(
            "the forward pass contains custom derivative rules: the truth is numerical differentiation, "
            "and autodiff of the forward pass without those rules where the two agree"
        )
    jit = functools.partial(jax.jit, compiler_options=options(arrays, shapes))
    truth, jit_y = jit(lambda a, dy: problem.autodiff(a, dy, plain)), jit(y)
    jitted = True
    dy = [jnp.zeros(v.shape, jnp.float64) for v in shapes]
    narrow = list(program.avals)
    try:
        backward, _ = trace.trace(lambda a, d: _given(problem.gradients(a, d)), list(arrays), dy)
        narrow += backward.avals
        formula: Callable[..., Any] = jit(lambda a, d: problem.gradients(a, d))
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError) as error:
        jitted, formula = False, lambda a, d: problem.gradients(a, d)
        notes.append(
            f"the formula cannot be traced by JAX ({type(error).__name__}): it is run as plain Python"
        )
    eps = max((float(jnp.finfo(v.dtype).eps) for v in narrow if is_float(v)), default=2.0**-52)
    judge = Judge(problem, truth, formula, jit_y, eps, jitted, tuple(notes))
    if not judge.in_float64:
        less = "some of it is computed in less than float64, whatever the arguments: less error can be seen"
        judge = dataclasses.replace(judge, notes=(*judge.notes, less))
    if program.custom:
        judge = dataclasses.replace(judge, truth=_refereed(judge, arrays, dy))
    return judge


def _without_rules(y: Callable[..., Any]) -> Callable[..., Any]:
    """A forward pass by its equations, which leaves its custom rules out."""

    def run(arrays: Sequence[Any]) -> list[Any]:
        program, _ = trace.trace(lambda *a: y(a), *arrays)
        return program.results(trace.run(program, arrays, by=trace.bind))

    return run


def in_numpy(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of (arrays, dy), traced once for each set of shapes and run in NumPy.

    One that cannot be traced stays as it is.
    """
    programs: dict[Any, Any] = {}
    function = inspect.unwrap(function)  # without jit

    def run(arrays: Sequence[Any], dy: Sequence[Any]) -> Any:
        given = list(map(trace.constant, (*arrays, *dy)))
        key = tuple((v.shape, str(v.dtype)) for v in given)
        if key not in programs:
            try:
                programs[key] = trace.trace(function, list(arrays), list(dy))
            except (jax.errors.JAXTypeError, jax.errors.JAXIndexError):
                programs[key] = None
        if programs[key] is None:
            return function(arrays, dy)
        program, shape = programs[key]
        values = trace.run(program, given, forget=True)
        return jax.tree.unflatten(jax.tree.structure(shape), program.results(values))

    return run


def _given(grads: Sequence[Any]) -> list[Any]:
    return [g for g in grads if g is not None]


def _refereed(judge: Judge, arrays: Sequence[Any], zeros: Sequence[Any]) -> Callable[..., Any]:
    """Autodiff without custom rules if the referee agrees with it here, else numerical differentiation."""
    rng = np.random.default_rng(0)
    dy = [jnp.asarray(rng.standard_normal(v.shape)) for v in zeros]
    if all(check(judge, arrays, dy, i, [g], 1e-6)[0].agrees for i, g in enumerate(judge.truth(arrays, dy))):
        return judge.truth

    def numerical(a: Sequence[Any], d: Sequence[Any]) -> list[np.ndarray]:
        f = lambda values: judge.y(judge.problem.place(a, [jnp.asarray(v) for v in values]))
        return referee.gradient(f, [a[i] for i in judge.problem.moving], d)

    return numerical


@dataclasses.dataclass(frozen=True)
class Check:
    """One gradient along one direction, against differences."""

    claimed: float
    measured: float
    trust: float
    agrees: bool


def check(
    judge: Judge, arrays: Sequence[Any], dy: Sequence[Any], i: int, claims: Sequence[Any], tolerance: float
) -> list[Check]:
    """Ask the referee about several `claims` for gradient i, along a random direction."""
    problem = judge.problem
    values = [np.asarray(arrays[i], np.float64) for i in problem.moving]
    f = lambda moved: judge.y(problem.place(arrays, [jnp.asarray(v) for v in moved]))
    t = np.random.default_rng(1).standard_normal(values[i].shape)
    t = t * (float(np.abs(values[i]).mean()) if values[i].size else 1.0)
    along = [t if j == i else np.zeros(v.shape) for j, v in enumerate(values)]
    measured, trust = referee.derivative(f, values, along, dy)
    out = []
    for claim in claims:
        claimed = float(np.vdot(claim, t))
        size = max(abs(measured), abs(claimed), float(np.linalg.norm(t)) * 1e-8)
        out.append(Check(claimed, measured, trust, abs(claimed - measured) <= tolerance * size + 4 * trust))
    return out


# ---- measuring --------------------------------------------------------------------------------------------


def largest(x: Any) -> float:
    """The largest absolute value; 0 of an empty array, NaN if there is one."""
    x = np.asarray(x)
    return float(np.abs(x).max()) if x.size else 0.0


def measure(points: Sequence[Point], i: int) -> tuple[float, np.ndarray | None]:
    """The largest error of gradient i over points and cotangents, and that of every element at the first."""
    worst, errors = 0.0, None
    for n, point in enumerate(points):
        scale = scales(point)
        for want, got in zip(point.truth, point.formula, strict=True):
            mine = got[i]
            if mine is None:
                found = np.abs(want[i])
            elif mine.shape != want[i].shape:
                return math.inf, None
            else:
                with np.errstate(invalid="ignore"):  # not finite: counted as infinitely wrong
                    found = np.abs(mine - want[i])
            found = np.asarray(np.where(np.isfinite(found), found, math.inf) / scale[i])
            worst = max(worst, largest(found))
            if n == 0:
                errors = found if errors is None else np.asarray(np.maximum(errors, found))
    return worst, errors


def scales(point: Point) -> list[float]:
    """What the errors of each gradient are relative to: its largest element over all cotangents."""
    each = [max(largest(want[i]) for want in point.truth) for i in range(len(point.truth[0]))]
    return [max(scale, FLOOR * max(each), 1e-300) for scale in each]


def differs(got: Any, want: Any, tolerance: float, scale: float) -> bool:
    """Whether two arrays differ by more than rounding."""
    got, want = np.asarray(got), np.asarray(want)
    if got.shape != want.shape:
        return True
    with np.errstate(invalid="ignore"):
        error = np.abs(got - want)
    return not bool((error <= tolerance * max(scale, 1e-300)).all())
