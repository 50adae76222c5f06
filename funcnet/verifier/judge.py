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
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnet.verifier import differences, kinks, trace
from funcnet.verifier.point import TIMES, Leaf, Point
from funcnet.verifier.problem import SMALL, Problem, cotangents
from funcnet.verifier.spread import JUMP, spread_of
from funcnet.verifier.wide import EPS, LEAST, Wide, as_wide, largest, norm, parts

__all__ = ["CASTS", "FLOOR", "NARROW", "Judge", "judge_of"]

NARROW = 4.0  # spreads, and roundings of the largest element, that are allowed in a narrow dtype
CASTS = 16.0  # roundings of a formula that is run as it is, whose casts are not known
ITSELF = 1e-3  # relative: so well is an element known that has a look of its own
FLOOR = 2.0**-6  # of the largest element: so much of its rounding may be left where there is cancellation
SHOWN = 2**20  # elements; of a larger gradient that is right nobody reads every error
OWN = 64.0  # spreads of the formula under its own roundings, which are what they are
CLOSE = 1e-9  # relative: a formula that errs by more is not excused by them
HIDES = 0.1  # of the truth; rounding that hides so much of it leaves nothing to be known


@dataclasses.dataclass(frozen=True)
class Judge:
    """The truth and the formula of one problem, as functions of (arrays, dy), every float in float64.

    Attributes:
        truth: the gradients of the floats; an element that is not known is NaN.
        formula: the same by the formula; None where it gives none.
        y: the float leaves of the result.
        jitted: whether the formula could be traced.
        numerical: whether the truth is numerical differentiation.
        eps: of the narrowest rounding that is left: of float64, unless the formula cannot be traced, or holds
            a kernel or callback that is made for another dtype.
        notes: what the report should say of all this.
        narrow: the dtypes of the result for the user, to which cotangents are rounded.
        own: the truth as a program in the dtypes of the user, where it is not JAX that derives it.
        program: makes of a function of (arrays, dy) one whose roundings can be redone.
        untold: why the truth says nothing.
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
    own: Any = None
    program: Callable[..., Any] = lambda function: Wide(function)
    untold: str = ""

    def at(
        self,
        label: str,
        arrays: Sequence[Any],
        rng: np.random.Generator,
        dys: list[list[Any]] | None = None,
        known: Collection[int] = (),
    ) -> Point:
        """Truth and formula at `arrays`, for `dys`, else two random ones and a constant, if large one.

        Where the arrays are large no spread is asked for, if every gradient agrees plainly with the truth, or
        is `known` to be wrong elsewhere.
        """
        arrays = list(arrays)
        sampled = dys is None and not self.numerical
        unasked = sampled and sum(v.size for v in arrays) > SMALL  # y says only where a cotangent must be 0
        y = self._blank(arrays) if unasked else [np.asarray(v) for v in self.y(arrays)]
        large = sum(v.size for v in [*arrays, *y]) > SMALL
        dys = dys or cotangents(y, self.narrow, rng, 1 if large else 2 if self.numerical else 3)
        truth = [[as_wide(v) for v in self.truth(arrays, dy)] for dy in dys]
        formula = [[None if v is None else as_wide(v) for v in self.formula(arrays, dy)] for dy in dys]
        if unasked and not all(np.isfinite(t).all() for t in truth[0]):
            y = [np.asarray(v) for v in self.y(arrays)]
            return self.at(label, arrays, rng, cotangents(y, self.narrow, rng, 1))
        loose = NARROW if self.numerical or self.eps > EPS else TIMES
        if large and sampled and self._agree(truth[0], formula[0], known):
            zeros = [np.zeros(t.shape) for t in truth[0]]
            no, yes = ([np.full(t.shape, all_of_it) for t in truth[0]] for all_of_it in (False, True))
            drift = [0.0] * len(zeros)
            point = Point(label, arrays, dys, truth, formula, zeros, drift, yes, no, loose=loose)
            return dataclasses.replace(point, whole=formula[0], plain=True)
        y = [np.asarray(v) for v in self.y(arrays)] if unasked else y
        high = max((largest(_only(v, np.isfinite(v))) for v in y), default=0.0)
        spread, drift, seen, jumps = self._spread(arrays, dys[0], truth, rng)
        if not self.numerical and not self.problem.own_rules:
            differences.ask_where_lost(
                self.y, self.problem, arrays, dys, high, truth, formula, spread, seen, rng
            )
        whole = formula[0]
        hide: Any = lambda v, i: _only(v, seen[i]) if v is not None and v.shape == seen[i].shape else v
        truth, formula = (
            [[hide(v, i) for i, v in enumerate(grads)] for grads in of_all] for of_all in (truth, formula)
        )
        along = (
            [differences.slope(self.y, self.problem, arrays, dys[0], i, rng) for i in range(len(seen))]
            if self.numerical
            else None
        )
        return Point(
            label, arrays, dys, truth, formula, spread, drift, seen, jumps, high, loose, whole, along
        )

    def _blank(self, arrays: list[Any]) -> list[np.ndarray]:
        """Zeros of the shapes of the result, which need no memory."""
        return [np.broadcast_to(np.zeros((), v.dtype), v.shape) for v in self.problem.shape_of_y(arrays)]

    def _agree(self, truth: list[np.ndarray], formula: list[Any], known: Collection[int]) -> bool:
        """Whether truth and formula agree so well that no spread is needed, but for `known` gradients."""
        loose = NARROW if self.eps > EPS else TIMES
        for i, (t, u) in enumerate(zip(truth, formula, strict=True)):
            if not np.isfinite(t).all():
                return False
            if i in known:
                continue
            if u is None or u.shape != t.shape:
                return False
            error = parts(u, t)
            if largest(error) > loose * self.eps * FLOOR * largest(t) or (error > 0.5 * np.abs(t)).any():
                return False
        return True

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
            if self.eps > EPS:
                more, rest, _ = spread_of(self.truth, arrays, dy, truth[0], rng, self.eps, apart=jumps)
                spread, drift = list(map(np.maximum, spread, more)), list(map(max, drift, rest))
            return spread, drift, seen, jumps
        trust = self.truth(arrays, dy, trust=True)
        spread = [
            np.nan_to_num(v) + 4 * float(np.nanmedian(v)) if np.isfinite(v).any() else np.zeros(v.shape)
            for v in trust
        ]
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
            what = "known" if self.numerical else "finite"
            return Leaf("undecided", 0.0, 0.0, why=f"the true gradient is not {what} here")
        if self.untold:
            return Leaf("undecided", 0.0, 0.0, why=self.untold)
        unit = (
            size
            or max(
                [largest(np.nan_to_num(u, posinf=0, neginf=0)) for u in mine if u is not None], default=0.0
            )
            or 1.0
        )
        noise = _only(spread, ~jumps)
        floor, worst, allowed = FLOOR if self.eps <= EPS else 1.0, -1.0, 0.0
        errors, bad = np.zeros(want[0].shape), np.zeros(want[0].shape, bool)
        allow = lambda t, s: point.loose * (s + self.eps * (np.abs(t) + floor * size)) + LEAST
        for u, t in zip(mine, want, strict=True):
            error = parts(np.zeros_like(t) if u is None else u, t)
            share = np.asarray(allow(t, noise))
            np.divide(error, share, out=share)  # in place: the arrays may be large
            bad |= share > 1
            if share.size and (most := float(share.flat[at := int(share.argmax())])) > worst:
                worst, allowed = most, float(allow(t.flat[at], noise.flat[at])) / unit
            errors = np.maximum(errors, error, out=errors) if len(mine) > 1 else error
        errors /= unit
        error = largest(errors)
        if why := self._hidden(point, i, noise) if error * unit <= point.loose * largest(noise) else "":
            return Leaf("undecided", error, allowed, errors, why=why)
        if 0 < size < LEAST / HIDES:
            return Leaf(
                "undecided", error, allowed, errors, why="the true gradient is below what float64 holds"
            )
        if bad.any() and not (error <= CLOSE and self._is_own_rounding(point, i, lambda t: allow(t, noise))):
            may_be = not (self.numerical or point.plain or any(u is None for u in mine))
            proven = may_be and kinks.explain(self.problem, self.truth, self.y, point, i, bad)
            return Leaf("convention" if proven else "wrong", error, allowed, errors, bad if proven else None)
        if mine[0] is not None and (tiny := self._tiny(point, i)).any():
            errors = np.where(tiny, np.abs(mine[0] - want[0]) / np.maximum(np.abs(want[0]), LEAST), errors)
            return Leaf("wrong", largest(errors), ITSELF, errors)
        if off := differences.off_along(point, i):
            return Leaf("wrong", off, allowed, errors)
        return Leaf("right", error, allowed, errors if errors.size <= SHOWN else None)

    def _hidden(self, point: Point, i: int, noise: np.ndarray) -> str:
        """Why a mistake of 10 % could hide behind the rounding of the truth; "" where it could not.

        A truth that is zero but for rounding hides nothing, if that is far below what a change of the
        argument by its own size could do.
        """
        of_all = norm(point.truth[0][i])
        hides = (
            point.loose * max(point.drift[i] * of_all, norm(noise) if self.eps <= EPS else 0.0)
            >= HIDES * of_all
        )
        if not hides or not of_all:
            return ""
        x = as_wide(point.arrays[self.problem.moving[i]])
        usual = (
            max(map(largest, point.dys[0]), default=0.0)
            * point.high
            / max(float(np.std(x)), largest(x) * EPS, 1e-300)
        )
        if of_all <= 8 * norm(noise) and point.loose * largest(noise) <= 1e-3 * usual:
            return ""
        return "rounding moves the true gradient so far that a mistake of 10 % could hide"

    def _is_own_rounding(self, point: Point, i: int, allowed: Callable[[np.ndarray], np.ndarray]) -> bool:
        """Whether a gradient that is almost right errs by no more than the roundings of its own program.

        Of a softmax with one share of almost 1, autodiff keeps the digits that ``dy - dy @ p`` loses. What
        could hide more than `CLOSE` excuses nothing.
        """
        if not self.jitted or self.numerical or self.eps > EPS:
            return False
        size, mine = max(largest(t[i]) for t in point.truth), self._alone(i)
        for dy, truth, formula in zip(point.dys, point.truth, point.formula, strict=True):
            t, u = truth[i], formula[i]
            if u is None:
                return False
            own = OWN * _own(mine, point, dy, u)
            if largest(own) > CLOSE * size or (parts(u, t) > allowed(t) + own).any():
                return False
        return True

    def _alone(self, i: int) -> Wide:
        """Gradient i by the formula's own program."""
        return Wide(lambda a, d: [self.problem.gradients(a, d)[i]])

    def _tiny(self, point: Point, i: int) -> np.ndarray:
        """A second look at elements far below the largest: where is what is well known of them wrong?

        They are judged against themselves, with the rounding of the formula's own program: 1 - s where s is
        almost 1 is right, and has no digits left.
        """
        t, u, spread = point.truth[0][i], point.formula[0][i], point.spread[i]
        floor = point.loose * EPS * FLOOR * max(largest(v[i]) for v in point.truth) / ITSELF
        some = np.asarray(point.seen[i] & ~point.jumps[i] & (np.abs(t) < floor))
        if not some.any():
            return some
        some &= np.abs(t) > LEAST / ITSELF
        some &= np.abs(u - t) > ITSELF * np.abs(t) + point.loose * spread
        if some.any() and self.jitted and not self.numerical and self.eps <= EPS:
            some &= np.abs(u - t) > ITSELF * np.abs(t) + OWN * _own(self._alone(i), point, point.dys[0], u)
        else:
            some &= np.abs(u - t) > 0.5 * np.abs(t)
        return np.asarray(some)


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
        _try(y, arrays)
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError):
        y = lambda a: problem.y(a)  # in NumPy, or by other means
    dy = [np.zeros(v.shape, trace.widened(v.dtype)) for v in shapes]
    truth: Any = Wide(lambda a, d: problem.autodiff(a, d))
    numerical = False
    try:
        _try(truth, arrays, dy)
    except Exception as error:  # JAX has no reverse rule for what it holds, or cannot trace it
        numerical = True
        truth = functools.partial(differences.numerical, y, problem)
        first = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:80]
        notes.append(f"autodiff has no gradient here ({first}): the truth is numerical differentiation")
    untold = ""
    if numerical and problem.own_rules:
        untold = "the forward pass holds a rule of its own, which numerical differentiation cannot follow"
    eps, jitted = EPS, True
    formula: Any = Wide(lambda a, d: problem.gradients(a, d))
    try:
        _try(formula, arrays, dy)
        eps = max(formula.rounded(arrays, dy), EPS if numerical else truth.rounded(arrays, dy))
    except jax.errors.UnexpectedTracerError:
        raise  # it reads what the forward pass keeps
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError) as error:
        jitted, formula = False, lambda a, d: problem.gradients(a, d)
        formula(arrays, dy)
        eps = max([EPS, *(float(jnp.finfo(d).eps) for d in own if jnp.issubdtype(d, jnp.inexact))])
        notes.append(
            f"the formula cannot be traced by JAX ({type(error).__name__}): it is run as plain Python"
        )
    narrow = tuple(narrow) if len(narrow) == len(shapes) else ()
    return Judge(problem, truth, formula, y, jitted, numerical, eps, tuple(notes), narrow, untold)


def _own(mine: Wide, point: Point, dy: list[np.ndarray], center: np.ndarray) -> np.ndarray:
    """The spread of a gradient under the roundings of its own program."""
    (own,), *_ = spread_of(mine, point.arrays, dy, [center], np.random.default_rng(0), EPS)
    return own


def _only(x: Any, where: Any) -> Any:
    """x, and 0 elsewhere: no copy of what is wanted whole."""
    return x if where.all() else np.where(where, x, 0)


def _try(function: Any, *given: Sequence[Any]) -> None:
    """Trace a function, and run it, unless that is long and nothing in it may fail while it runs."""
    program, _ = function.program(*given)
    may_fail = any(name == "while" or "callback" in name for name in program.primitives)
    if may_fail or sum(v.size for some in given for v in some) <= SMALL:
        function(*given)
