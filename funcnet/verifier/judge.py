"""Is the formula right? Its gradients against the truth, leaf by leaf, at several points.

One rule judges: the error allowed is how far the truth moves when every rounding of its own program, and its
arguments, are redone at random. It is asked twice. In float64 both the truth and the formula are run with
every float in float64, whatever they are cast to: what differs there is a mistake of mathematics. In the
dtypes of the user the formula is run as it is, and the roundings are those of these dtypes.

Where the truth jumps, the two-sided derivative says between which numbers a right formula may choose. An
element at which the truth is not finite is set apart.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funcnet.verifier import referee, trace
from funcnet.verifier.problem import SMALL, Problem, cotangents, is_float

__all__ = [
    "Judge",
    "Leaf",
    "Point",
    "Wide",
    "check",
    "differs",
    "judge_of",
    "largest",
    "measure",
    "parts",
    "scale_of",
    "spread_of",
]

EPS = 2.0**-52
TIMES = 4096.0  # the spread in float64: a right formula may be a good deal less exact than autodiff
FLOOR = 2.0**-6  # of the largest element: so much of its rounding may be left where there is cancellation
JUMP = 2.0**-20  # relative; what rounding in float64 moves further than that is a kink
KINKS = 48  # elements at which a kink is proven; of more, as many are drawn
ROUNDS = 8  # times that all roundings are redone
LONG = 20_000  # equations that are run; of a longer program two rounds must do
SAMPLE = 64  # elements whose derivative is measured where autodiff has none; of more, as many are drawn


@dataclasses.dataclass(frozen=True)
class Point:
    """Arguments, cotangents, and what truth and formula say there: one list of gradients per cotangent.

    What is not `seen` is 0 in both: where the truth is not finite, or was not asked for.
    """

    label: str
    arrays: list[Any]
    dys: list[list[np.ndarray]]
    truth: list[list[np.ndarray]]
    formula: list[list[Any]]  # None where it gives none
    spread: list[np.ndarray]  # of each gradient, under rounding in float64
    drift: list[float]  # the spread of the gradient as a whole, along itself
    seen: list[np.ndarray]
    jumps: list[np.ndarray]  # where the spread is that of a kink
    loose: float = TIMES  # how many spreads are allowed


class Leaf(NamedTuple):
    """The verdict on one gradient at one point.

    Attributes:
        state: "right"; "convention", right but for kinks; "wrong"; "undecided".
        error: the largest, relative to the largest element of the truth; of the formula's if that is 0.
        allowed: what was allowed at the element that is the worst.
        errors: of every element, relative likewise; None where shapes differ.
        kinks: where the formula takes another side of a kink than the truth; None without.
        why: where it is undecided.
    """

    state: str
    error: float
    allowed: float
    errors: np.ndarray | None = None
    kinks: np.ndarray | None = None
    why: str = ""


@dataclasses.dataclass(frozen=True)
class Judge:
    """The truth and the formula of one problem, as functions of (arrays, dy), every float in float64.

    Attributes:
        truth: the gradients of the floats; an element that is not known is NaN.
        formula: the same by the formula; None where it gives none.
        y: the float leaves of the result.
        jitted: whether the formula could be traced.
        numerical: whether the truth is numerical differentiation.
        eps: of the narrowest rounding that is left in the formula: of float64, unless it cannot be traced.
        notes: what the report should say of all this.
        narrow: the dtypes of the result for the user, to which cotangents are rounded.
    """

    problem: Problem
    truth: Any  # of (arrays, dy): a `Wide`, or by differences
    formula: Callable[[Sequence[Any], Sequence[Any]], list[Any]]
    y: Callable[[Sequence[Any]], list[Any]]
    jitted: bool
    numerical: bool = False
    eps: float = EPS
    notes: tuple[str, ...] = ()
    narrow: tuple[Any, ...] = ()

    def at(self, label: str, arrays: Sequence[Any], rng: np.random.Generator) -> Point:
        """Truth and formula at `arrays`, for a constant cotangent and two random ones; if large, for one."""
        arrays = list(arrays)
        y = [np.asarray(v) for v in self.y(arrays)]
        dys = cotangents(y, self.narrow, rng)
        if sum(v.size for v in [*arrays, *y]) > SMALL:
            del dys[1]
        if self.numerical:
            del dys[2:]
        truth = [[_wide(v) for v in self.truth(arrays, dy)] for dy in dys]
        formula = [[None if v is None else _wide(v) for v in self.formula(arrays, dy)] for dy in dys]
        spread, drift, seen, jumps = self._spread(arrays, dys[0], truth, rng)
        hide: Any = lambda v, i: np.where(seen[i], v, 0) if v is not None and v.shape == seen[i].shape else v
        truth, formula = (
            [[hide(v, i) for i, v in enumerate(grads)] for grads in of_all] for of_all in (truth, formula)
        )
        loose = 4.0 if self.numerical else TIMES
        return Point(label, arrays, dys, truth, formula, spread, drift, seen, jumps, loose)

    def _spread(
        self, arrays: list[Any], dy: list[Any], truth: list[list[np.ndarray]], rng: np.random.Generator
    ) -> tuple[list[np.ndarray], list[float], list[np.ndarray], list[np.ndarray]]:
        with np.errstate(invalid="ignore"):
            seen = [np.asarray(np.isfinite(sum(t[i] for t in truth))) for i in range(len(truth[0]))]
        if not self.numerical:
            spread, drift, there = spread_of(self.truth, arrays, dy, truth[0], rng, EPS)
            seen = [np.asarray(a & b) for a, b in zip(seen, there, strict=True)]
            jumps = [
                np.asarray(a & (s > JUMP * (np.abs(t) + JUMP * largest(np.where(a, t, 0)))))
                for s, t, a in zip(spread, truth[0], seen, strict=True)
            ]
            if any(at.any() for at in jumps):  # a kink stays what it is, noise grows with the rounding
                more, rest, _ = spread_of(self.truth, arrays, dy, truth[0], rng, 256 * EPS, apart=jumps)
                noise = [
                    float(np.linalg.norm(m[at])) > 64 * float(np.linalg.norm(s[at]))
                    for at, m, s in zip(jumps, more, spread, strict=True)
                ]
                jumps = [
                    np.zeros(at.shape, bool) if grows else np.asarray(at & (m < 16 * s))
                    for at, m, s, grows in zip(jumps, more, spread, noise, strict=True)
                ]
                drift = [  # of what is no kink
                    min(d, r / 256) if at.any() else d for at, d, r in zip(jumps, drift, rest, strict=True)
                ]
            return spread, drift, seen, jumps
        trust = self.truth(arrays, dy, trust=True)
        spread = [np.nan_to_num(v) + 4 * float(np.nanmedian(v)) if v.size else v for v in trust]
        norm = lambda v: float(np.linalg.norm(np.nan_to_num(v)))
        drift = [norm(s) / max(norm(t), 1e-300) for s, t in zip(spread, truth[0], strict=True)]
        return spread, drift, seen, [np.zeros(s.shape, bool) for s in spread]

    def leaf(self, point: Point, i: int) -> Leaf:
        """The verdict on gradient i at a point."""
        mine, want = [g[i] for g in point.formula], [t[i] for t in point.truth]
        seen, spread = point.seen[i], point.spread[i]
        size, jumps = max(largest(t) for t in want), point.jumps[i]
        if any(u is not None and u.shape != want[0].shape for u in mine):
            return Leaf("wrong", np.inf, 0.0)
        if want[0].size and not seen.any():
            return Leaf("undecided", 0.0, 0.0, why="the true gradient is not finite here")
        unit = size or max([largest(u) for u in mine if u is not None], default=0.0) or 1.0
        errors, bounds = np.zeros(want[0].shape), np.full(want[0].shape, 1e-300)
        worst = np.full(want[0].shape, -1.0)
        for u, t in zip(mine, want, strict=True):
            error = parts(np.zeros_like(t) if u is None else u, t)
            bound = (
                point.loose * (np.where(jumps, 0, spread) + self.eps * (np.abs(t) + FLOOR * size)) + 1e-300
            )
            share = error / bound
            errors = np.maximum(errors, error)
            bounds, worst = np.where(share > worst, bound, bounds), np.maximum(share, worst)
        errors, bounds = np.asarray(errors / unit), np.asarray(bounds / unit)
        error = largest(errors)
        allowed = float(bounds.flat[int(worst.argmax())]) if worst.size else 0.0
        bad, noise = worst > 1, np.where(jumps, 0, spread)
        is_zero = float(np.linalg.norm(want[0])) <= 8 * float(np.linalg.norm(noise))  # but for rounding
        if (
            point.loose * point.drift[i] >= 0.1
            and not is_zero
            and error * unit <= point.loose * largest(noise)
        ):
            why = "rounding moves the true gradient so far that a mistake of 10 % could hide"
            return Leaf("undecided", error, allowed, errors, why=why)
        if bad.any():
            proven = not self.numerical and all(u is not None for u in mine) and self._kinks(point, i, bad)
            return Leaf("convention" if proven else "wrong", error, allowed, errors, bad if proven else None)
        if mine[0] is not None and (tiny := self._tiny(point, i)).any():
            errors = np.where(tiny, np.abs(mine[0] - want[0]) / np.maximum(np.abs(want[0]), 1e-300), errors)
            return Leaf("wrong", largest(errors), 0.5, errors)
        return Leaf("right", error, allowed, errors)

    def _tiny(self, point: Point, i: int) -> np.ndarray:
        """A second look at elements far below the largest: where is what is well known of them wrong?

        They are judged against themselves, with the rounding of the formula's own program: 1 - s where s is
        almost 1 is right, and has no digits left.
        """
        t, u, spread = point.truth[0][i], point.formula[0][i], point.spread[i]
        floor = 16 * point.loose * self.eps * FLOOR * max(largest(v[i]) for v in point.truth)
        some = (
            point.seen[i] & ~point.jumps[i] & (np.abs(t) < floor) & (point.loose * spread < 0.1 * np.abs(t))
        )
        some &= np.abs(u - t) > 0.5 * np.abs(t)
        if some.any() and self.jitted and not self.numerical:
            mine = Wide(lambda a, d: [self.problem.gradients(a, d)[i]])
            rng = np.random.default_rng(0)
            (own,), *_ = spread_of(mine, point.arrays, point.dys[0], [u], rng, EPS)
            some &= np.abs(u - t) > 0.5 * np.abs(t) + 8 * own
        return np.asarray(some)

    def _kinks(self, point: Point, i: int, bad: np.ndarray) -> bool:
        """Whether formula and truth differ at kinks only, and the formula lies between the two sides there.

        The sides are those of the element itself, and of what is exactly 0 on the way: a layer of zeros has
        every unit at its kink.
        """
        at = np.random.default_rng(0).permutation(np.argwhere(bad))[:KINKS]
        k = self.problem.moving[i]
        x = _wide(point.arrays[k])
        typical = float(np.sqrt(np.mean(np.abs(x) ** 2))) or 1.0
        for dy, truth, mine in zip(point.dys, point.truth, point.formula, strict=True):
            slack = TIMES * EPS * largest(truth[i])
            zeros = [
                _wide(self.truth(*moved, by=by)[i])
                for sign in (1.0, -1.0)
                for moved, by in (
                    ((_off_zero(point.arrays, sign), dy), trace.apply),
                    ((point.arrays, dy), _zeros_to(sign)),
                )
            ]
            for index in map(tuple, at):
                step = np.zeros(x.shape, x.dtype)
                step[index] = 2.0**-26 * max(abs(x[index]), typical)
                sides = [truth[i], *zeros]
                for moved in (x + step, x - step):
                    arrays = [moved if j == k else v for j, v in enumerate(point.arrays)]
                    sides.append(_wide(self.truth(arrays, dy)[i]))
                # What moves with this element is tied to it: of a maximum all together get dy, not each.
                tied = bad & np.any([np.abs(s - truth[i]) > 1e-3 * np.abs(s).max() for s in sides[-2:]], 0)
                for total in (lambda v, at=index: v[at], lambda v, tied=tied: np.sum(v[tied])):
                    for part in (np.real, np.imag):
                        values = [v for v in (part(total(s)) for s in sides) if np.isfinite(v)]
                        low, high = min(values), max(values)
                        wide = 0.01 * (high - low) + slack * tied.sum() + slack
                        if not low - wide <= part(total(mine[i])) <= high + wide:
                            return False
        return True


def judge_of(problem: Problem, own: Sequence[Any] = (), narrow: Sequence[Any] = ()) -> Judge:
    """Prepare truth and formula; needs `jax.enable_x64`.

    Args:
        problem: with its arguments in float64.
        own: the dtypes of the arguments, for the user.
        narrow: those of the result.

    Raises:
        StructureError: where the formula's gradients do not match the arguments. Whatever the formula raises.
    """
    notes, arrays = list[str](), problem.arrays
    y: Callable[..., Any] = Wide(lambda a: problem.y(a))
    shapes = problem.shape_of_y(arrays)
    try:
        y(arrays)
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError):
        y = lambda a: problem.y(a)  # in NumPy, or by other means
    dy = [np.zeros(v.shape, trace.widened(v.dtype)) for v in shapes]
    truth, numerical = Wide(lambda a, d: problem.autodiff(a, d)), False
    try:
        truth(arrays, dy)
    except Exception as error:  # JAX has no reverse rule for what it holds, or cannot trace it
        numerical = True
        truth = functools.partial(_numerical, y, problem)
        first = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:80]
        notes.append(f"autodiff has no gradient here ({first}): the truth is numerical differentiation")
    eps, jitted = EPS, True
    formula = Wide(lambda a, d: problem.gradients(a, d))
    try:
        formula(arrays, dy)
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError) as error:
        jitted, formula = False, lambda a, d: problem.gradients(a, d)
        eps = max([EPS, *(float(jnp.finfo(d).eps) for d in own if jnp.issubdtype(d, jnp.inexact))])
        notes.append(
            f"the formula cannot be traced by JAX ({type(error).__name__}): it is run as plain Python"
        )
    narrow = tuple(narrow) if len(narrow) == len(shapes) else ()
    return Judge(problem, truth, formula, y, jitted, numerical, eps, tuple(notes), narrow)


class Wide:
    """A function of lists of arrays, traced once for each set of shapes, with every float in float64."""

    def __init__(self, function: Callable[..., Any]):
        self.function, self.programs = function, dict[Any, Any]()

    def program(self, *given: Sequence[Any]) -> tuple[trace.Program, Any]:
        """Its equations, and the tree of its result."""
        key = tuple((v.shape, str(v.dtype)) for values in given for v in values)
        if key not in self.programs:
            program, shape = trace.trace(self.function, *map(list, given))
            self.programs[key] = program.pruned(), jax.tree.structure(shape)
        return self.programs[key]

    def bound(self, *given: Sequence[Any]) -> Callable[..., Any]:
        """The function as it was traced with such arrays, for arrays in float64."""
        program, tree = self.program(*given)

        def run(*given: Sequence[Any], by: Callable[..., Any] = trace.apply) -> Any:
            values = [trace.constant(v) for some in given for v in some]
            return jax.tree.unflatten(tree, program.results(trace.run(program, values, by=by, forget=True)))

        return run

    def __call__(self, *given: Sequence[Any], by: Callable[..., Any] = trace.apply) -> Any:
        """Its result, by `by` in place of each equation."""
        return self.bound(*given)(*given, by=by)

    def eps(self, *given: Sequence[Any]) -> float:
        """Of the narrowest dtype that it is traced with."""
        dtypes = (d for d in self.program(*given)[0].dtypes if jnp.issubdtype(d, jnp.inexact))
        return max((float(jnp.finfo(d).eps) for d in dtypes), default=EPS)


def _numerical(
    y: Callable[..., Any], problem: Problem, arrays: Sequence[Any], dy: Sequence[Any], *, trust: bool = False
) -> list[np.ndarray]:
    """The gradients by differences; of many elements a sample, the others NaN."""
    values = [_wide(arrays[i]) for i in problem.moving]
    f = lambda moved: y(problem.place(arrays, [jnp.asarray(v) for v in moved]))
    return referee.gradient(f, values, dy, SAMPLE)[trust]


# ---- the spread -------------------------------------------------------------------------------------------

_EXACT = frozenset(
    """abs broadcast_in_dim ceil clamp complex concatenate conj copy copy_p dynamic_slice dynamic_update_slice
    expand_dims floor gather imag iota max min neg pad real reduce_max reduce_min reshape rev round select_n
    sign slice sort squeeze stop_gradient transpose""".split()  # noqa: SIM905
)
_WHOLE = frozenset(("add", "convert_element_type", "mul", "sub"))  # exact between whole numbers: of a floor


def spread_of(
    truth: Any,
    arrays: Sequence[Any],
    dy: Sequence[Any],
    center: Sequence[np.ndarray],
    rng: np.random.Generator,
    eps: float | None = None,
    apart: Sequence[np.ndarray] | None = None,
) -> tuple[list[np.ndarray], list[float], list[np.ndarray]]:
    """How far the truth moves when all roundings are redone.

    Args:
        truth: its program; the rounding of each equation is that of the dtype in which it was traced.
        arrays: the arguments, in the dtypes whose roundings count.
        dy: the cotangent, likewise.
        center: the truth without it.
        rng: of the roundings.
        eps: of all roundings; None: each that of the dtype in which it was traced.
        apart: elements of each gradient that its move along itself leaves out.

    Returns:
        For each gradient half the width of what it may be, by element; how far it moves along itself; and
        where it is finite, by element.
    """
    program, _ = truth.program(arrays, dy)
    size = sum(v.size for v in (*arrays, *dy))
    rounds = ROUNDS if size <= SMALL and _length(program) <= LONG else 2
    run = truth.bound(arrays, dy)
    own = [eps or float(jnp.finfo(v.dtype).eps) if is_float(v) else 0.0 for v in (*arrays, *dy)]
    low, high = [np.copy(t) for t in center], [np.copy(t) for t in center]
    drift, there = [0.0] * len(center), [np.zeros(t.shape, bool) for t in center]
    for n in range(rounds):
        moved = [
            _shaken(trace.constant(v), e, rng, n % 2 == 0) if is_float(v) else v
            for v, e in zip((*arrays, *dy), own, strict=True)
        ]
        grads = run(moved[: len(arrays)], moved[len(arrays) :], by=_redone(rng, eps))
        for i, (grad, t) in enumerate(zip(map(_wide, grads), center, strict=True)):
            finite = np.isfinite(grad)
            there[i] |= finite
            keep = np.where(finite, grad, t)
            low[i], high[i] = _least(low[i], keep), -_least(-high[i], -keep)
            sure = np.where(finite & np.isfinite(t), t, 0)
            if apart is not None:  # and what jumps in this round
                jumped = np.abs(keep - sure) > 256 * JUMP * (np.abs(sure) + JUMP * largest(sure))
                sure = np.where(apart[i] | jumped, 0, sure)
            if norm := float(np.vdot(sure, sure).real):
                drift[i] = max(
                    drift[i], abs(float(np.vdot(sure, np.where(sure != 0, keep, 0)).real) / norm - 1)
                )
    spread = [np.asarray(np.nan_to_num(parts(b, a) / 2, posinf=0.0)) for a, b in zip(low, high, strict=True)]
    return spread, drift, there


def _least(a: Any, b: Any) -> Any:
    if not np.iscomplexobj(a):
        return np.minimum(a, b)
    return np.minimum(a.real, b.real) + 1j * np.minimum(a.imag, b.imag)


def _length(program: trace.Program) -> int:
    """How many equations it runs, those in loops many times."""
    return sum(
        1 + sum(map(_length, eqn.inner)) * (eqn.params.get("length", 100) if eqn.name != "cond" else 1)
        for eqn in program.equations
    )


_SIGNS = np.random.default_rng(0).choice([-1.0, 1.0], 2**16)


def _signs(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    size = int(np.prod(shape))
    if size > len(_SIGNS) // 2:
        return rng.choice([-1.0, 1.0], shape)
    start = int(rng.integers(len(_SIGNS) - size))
    return _SIGNS[start : start + size].reshape(shape)


@np.errstate(all="ignore")
def _shaken(x: Any, eps: float, rng: np.random.Generator, zeros: bool = False) -> Any:
    """x with every element rounded anew; zeros, which have no rounding, move off their kinks if asked."""
    if np.iscomplexobj(x):
        return _shaken(x.real, eps, rng, zeros) + 1j * _shaken(x.imag, eps, rng, zeros)
    moved = x * (1 + eps / 2 * _signs(np.shape(x), rng))
    if zeros and (x == 0).any() and not (np.isin(x, (0.0, 1.0, -np.inf)).all() and x.any()):
        return np.where(x == 0, eps / 2 * 2.0**-10 * _typical(x) * _signs(x.shape, rng), moved)
    return moved


@np.errstate(all="ignore")
def _is_whole(x: Any) -> bool:
    return not np.iscomplexobj(x) and bool((np.asarray(x) == np.round(x)).all())


def _typical(x: np.ndarray) -> float:
    finite = x[np.isfinite(x)]
    return float(np.sqrt(np.mean(np.abs(finite) ** 2))) or 1.0 if finite.size else 1.0


def _redone(rng: np.random.Generator, eps: float | None) -> Callable[..., Any]:
    """An equation in float64, its result rounded anew."""

    def by(eqn: trace.Equation, operands: Sequence[Any]) -> Sequence[Any]:
        if eqn.inner:
            return trace.loop(eqn, operands, by)
        results = trace.apply(eqn, operands)
        if eqn.primitive is None or eqn.name in _EXACT:
            return results
        if eqn.name in _WHOLE and all(_is_whole(v) for v in operands):
            return results
        return [
            _shaken(v, eps or float(jnp.finfo(d).eps), rng) if jnp.issubdtype(d, jnp.inexact) else v
            for v, d in zip(results, eqn.dtypes, strict=True)
        ]

    return by


def _off_zero(arrays: Sequence[Any], sign: float) -> list[Any]:
    """The arguments with their zeros a little above or below."""
    move = lambda x: np.where(x == 0, sign * 2.0**-60 * _typical(x), x)
    return [move(_wide(v)) if is_float(v) else v for v in arrays]


def _zeros_to(sign: float) -> Callable[..., Any]:
    """An equation in float64 whose result, where it is 0, is a little above or below."""

    def by(eqn: trace.Equation, operands: Sequence[Any]) -> Sequence[Any]:
        if eqn.inner:
            return trace.loop(eqn, operands, by)
        results = trace.apply(eqn, operands)
        if eqn.primitive is None or eqn.name in _EXACT:
            return results
        return [np.where(v == 0, sign * 2.0**-60, v) if is_float(v) else v for v in results]

    return by


def _wide(x: Any) -> np.ndarray:
    x = np.asarray(x)
    return np.asarray(x, trace.widened(x.dtype)) if is_float(x) else np.asarray(x, np.float64)


# ---- the referee ------------------------------------------------------------------------------------------


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
    values = [_wide(arrays[i]) for i in problem.moving]
    f = lambda moved: judge.y(problem.place(arrays, moved))
    rng = np.random.default_rng(1)
    t = rng.standard_normal(values[i].shape)
    t = t * (float(np.abs(values[i]).mean()) if values[i].size else 1.0)
    t = t + 1j * rng.permutation(t) if np.iscomplexobj(values[i]) else t
    along = [t if j == i else np.zeros(v.shape) for j, v in enumerate(values)]
    measured, trust = referee.derivative(f, values, along, dy)
    out = []
    for claim in claims:
        claimed = float(np.sum(claim * t).real)
        size = max(abs(measured), abs(claimed), float(np.linalg.norm(t)) * 1e-8)
        out.append(Check(claimed, measured, trust, abs(claimed - measured) <= tolerance * size + 4 * trust))
    return out


# ---- measuring --------------------------------------------------------------------------------------------


def largest(x: Any) -> float:
    """The largest absolute value; 0 of an empty array, NaN if there is one."""
    x = np.asarray(x)
    with np.errstate(invalid="ignore"):
        return float(np.abs(x).max()) if x.size else 0.0


def parts(a: Any, b: Any) -> np.ndarray:
    """How far a and b are apart, by element; infinite where that is not finite."""
    with np.errstate(all="ignore"):
        off = np.abs(a - b)
    return np.where(np.isfinite(off), off, np.inf)


def measure(points: Sequence[Point], i: int) -> tuple[float, np.ndarray | None]:
    """The largest error of gradient i over points and cotangents, and that of every element at the first."""
    worst, errors = 0.0, None
    for n, point in enumerate(points):
        scale = scale_of(point, i)
        for want, got in zip(point.truth, point.formula, strict=True):
            mine = got[i]
            if mine is not None and mine.shape != want[i].shape:
                return np.inf, None
            found = parts(np.zeros_like(want[i]) if mine is None else mine, want[i]) / scale
            worst = max(worst, largest(found))
            if n == 0:
                errors = found if errors is None else np.maximum(errors, found)
    return worst, errors


def scale_of(point: Point, i: int) -> float:
    """What the errors of a gradient are relative to: its largest element over all cotangents."""
    return max([largest(want[i]) for want in point.truth] + [1e-300])


def differs(got: Any, want: Any, tolerance: float, scale: float) -> bool:
    """Whether two arrays differ by more than rounding."""
    got, want = np.asarray(got), np.asarray(want)
    if got.shape != want.shape:
        return True
    with np.errstate(invalid="ignore"):
        error = np.where(got == want, 0, np.abs(got - want))  # infinities are equal
        error = np.where(np.isnan(got) & np.isnan(want), 0, error)
    return not bool((error <= tolerance * max(scale, 1e-300)).all())
