"""What a formula must keep besides being right at a point, and when it is autodiff that is wrong."""

import functools
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnet.errors import describe
from funcnet.verifier import trace
from funcnet.verifier.differences import check
from funcnet.verifier.finding import Finding
from funcnet.verifier.judge import CASTS, FLOOR, NARROW, Judge
from funcnet.verifier.point import TIMES, Leaf, Point, scale_of
from funcnet.verifier.problem import SMALL, Problem, is_float, numbers, options
from funcnet.verifier.spread import spread_of
from funcnet.verifier.wide import EPS, LEAST, Wide, as_wide, differs, largest, parts

__all__ = [
    "constants",
    "disputes",
    "in_own_dtypes",
    "of_activity",
    "of_dtypes",
    "of_the_formula",
    "of_values",
    "unused_residuals",
]

SAME = 1e-9  # relative: what two programs for one thing may differ by in float64
DIRECTIONS = 4  # along which the referee is asked
FAR = 2.0**24  # a cotangent may be so much larger or smaller


def of_the_formula(ready: Judge, point: Point, wrong: Sequence[int]) -> list[Finding]:
    """Linear in dy (but for the `wrong` gradients, which are diagnosed), eager = traced, the same twice."""
    problem, findings = ready.problem, []
    one, at = point.dys[0], point.arrays
    as_numpy: Callable[[Any], list[Any]] = lambda grads: [None if g is None else np.asarray(g) for g in grads]
    first, again = (problem.y(at) for _ in range(2))
    if not all(np.array_equal(a, b, equal_nan=True) for a, b in zip(first, again, strict=True)):
        message = "the forward pass gives other values each time it is run"
        findings.append(Finding("", "nondeterministic", message))
    plain = ready.jitted or not hasattr(ready.formula, "bound")  # else it is one of another library's
    run = problem.gradients if plain else ready.formula
    eager, once_more = (as_numpy(run(list(at), one)) for _ in range(2))
    scales = (-2.0, FAR, 1 / FAR) if ready.jitted else (-2.0,)
    scaled = [(c, as_numpy(ready.formula(at, [c * v for v in one]))) for c in scales]
    nothing = as_numpy(ready.formula(at, [0 * v for v in one]))
    odd = [np.arange(v.size).reshape(v.shape) % 2 for v in one]  # nothing of a number
    one_half, other_half = (
        as_numpy(ready.formula(at, [v * (m == n) for v, m in zip(one, odd, strict=True)])) for n in (0, 1)
    )
    rounding = SAME
    if ready.jitted and isinstance(ready.formula, Wide) and (eps := ready.formula.eps(at, one)) > EPS:
        rounding = 64 * eps * np.sqrt(max(v.size for v in (*at, *one)))  # it casts, which float64 leaves out
    for i, path in enumerate(problem.paths):
        first, seen = point.formula[0][i], point.seen[i]
        if first is None or first.shape != seen.shape or eager[i] is None:
            continue
        only = lambda v, seen=seen: np.where(seen, v, 0) if v.shape == seen.shape else v
        noise = 0 if point.seen[i].size == 0 else largest(np.where(point.jumps[i], 0, point.spread[i]))
        off = max(SAME, 64 * ready.eps)
        # A gradient that is zero but for rounding is as large as that.
        size = max(largest(first), scale_of(point, i), point.loose * noise / SAME)
        if not np.array_equal(eager[i], once_more[i], equal_nan=True):
            findings.append(Finding(path, "nondeterministic", "two runs on the same values differ"))
        elif differs(only(eager[i]), first, rounding, size) and np.isfinite(first).all():
            findings.append(Finding(path, "nondeterministic", "run eagerly and jitted, the formula differs"))
        elif i not in wrong and (zero := largest(only(nothing[i]))) != 0:
            kind, what = ("nan", "finite") if not np.isfinite(zero) else ("nonlinear_in_cotangent", "zero")
            findings.append(Finding(path, kind, f"not {what} where dy is zero"))
        elif i not in wrong and (
            any(differs(only(grads[i]) / c, first, off, size) for c, grads in scaled)
            or differs(only(one_half[i]) + only(other_half[i]), first, off, 2 * size)
        ):
            findings.append(
                Finding(path, "nonlinear_in_cotangent", "the gradient of c·dy is not c times that of dy")
            )
    return findings


def of_values(ready: Judge, points: Sequence[Point]) -> list[Finding]:
    """A rule's forward pass, and whatever else computes the same, gives the values of the definition."""
    problem = ready.problem
    definition = lambda a, _: numbers(problem.forward(*problem.unflatten(a)))
    program = ready.program(definition)
    wanted = [_run(program, definition, p) for p in points if problem.values]
    for name, values in problem.values.items():
        run = lambda a, _, values=values: values(problem.unflatten(a))
        other = ready.program(run)
        for point, want in zip(points, wanted, strict=True):
            try:
                got = _run(other, run, point)
            except Exception:  # it does not run at these sizes
                continue
            if len(got) != len(want) or any(a.shape != b.shape for a, b in zip(got, want, strict=True)):
                return [Finding("", "value", f"{name} gives results of another shape than the definition")]
            for i, (a, b) in enumerate(zip(got, want, strict=True)):
                off = _apart(a, b)
                size = largest(np.where(np.isfinite(b), b, 0))
                usual = TIMES * EPS * (np.abs(b) + FLOOR * size)
                usual += CASTS * ready.eps * (np.abs(b) + size) * (ready.eps > EPS)
                if (off <= np.nan_to_num(usual)).all():
                    continue
                if (off <= np.nan_to_num(usual) + TIMES * _rounding((other, program), point, i)).all():
                    continue  # it should cancel, and is what rounding left of a sum
                error = largest(np.where(np.isfinite(b), off, 0)) / max(size, LEAST)
                return [Finding("", "value", f"{name} gives other values than the definition", error=error)]
    return []


def _run(program: Any, function: Callable[..., Any], point: Point) -> list[np.ndarray]:
    """Values at a point; of a function that JAX cannot trace as they are."""
    try:
        values = program(point.arrays, ())
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError):
        values = function(point.arrays, ())
    return [as_wide(v) for v in values]


def _apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How far two results are apart; what is equally infinite or NaN is not."""
    with np.errstate(all="ignore"):
        same = (a == b) | (np.isnan(a) & np.isnan(b))
    return np.where(same, 0.0, parts(a, b))


def _rounding(both: Sequence[Any], point: Point, i: int) -> np.ndarray:
    """How far result i moves under rounding, by its definition or by another, whichever moves it further."""
    moves = [np.zeros(())]
    for f in both:
        try:
            center = [as_wide(v) for v in f(point.arrays, ())]
        except (jax.errors.JAXTypeError, jax.errors.JAXIndexError):  # it cannot be traced
            continue
        spread, *_ = spread_of(f, point.arrays, (), center, np.random.default_rng(0), EPS)
        moves.append(spread[i])
    return functools.reduce(np.maximum, moves)


def of_activity(ready: Judge, point: Point) -> list[Finding]:
    """A rule that knows what it is differentiated by, and what of its result is used: is it always right?"""
    problem = ready.problem
    if not any(getattr(rule, "symbolic_zeros", False) for rule in problem.rules):
        return []
    values = problem.values["the function"]
    dy, zero = [jnp.asarray(v) for v in point.dys[0]], [np.zeros_like(v) for v in point.dys[0]]

    def grad(i: int, of: Sequence[int], used: Sequence[int]) -> Any:
        def alone(moved: Mapping[int, Any]) -> list[Any]:
            arrays = [moved.get(j, a) for j, a in enumerate(at)]
            return [y for j, y in enumerate(values(problem.unflatten(arrays))) if j in used]

        moved = {problem.moving[j]: at[problem.moving[j]] for j in of}
        return np.asarray(jax.vjp(alone, moved)[1]([dy[j] for j in used])[0][problem.moving[i]])

    at = [jnp.asarray(v) if is_float(v) else v for v in point.arrays]
    every, inputs = range(len(dy)), range(len(problem.moving))
    findings = []
    for i, path in enumerate(problem.paths):
        of_two = [(i, j) for j in inputs if j != i and len(inputs) > 2]
        asked = [((i,), every), *((of, every) for of in of_two)]
        asked += [((i,), [j]) for j in every if len(every) > 1]
        for of, used in asked:
            dys = [v if j in used else z for j, (v, z) in enumerate(zip(point.dys[0], zero, strict=True))]
            want = point.truth[0][i] if used is every else np.asarray(ready.truth(point.arrays, dys)[i])
            what = "with one of its results alone" if used is not every else "of this argument alone"
            what = f"of this argument and {problem.paths[of[1]]}" if len(of) > 1 else what
            try:
                got = np.where(point.seen[i], grad(i, of, used), 0)
            except Exception as error:  # it is the user's rule
                message = f"asked for the gradient {what}, the rule raises {type(error).__name__}"
                findings.append(Finding(path, "structure", message))
                break
            scale = scale_of(point, i)
            if differs(got, np.where(point.seen[i], want, 0), SAME, scale):
                message = f"asked for the gradient {what}, the rule gives another"
                findings.append(Finding(path, "unknown", message, error=largest(parts(got, want)) / scale))
                break
    return findings


def unused_residuals(problem: Problem, dy: Sequence[Any]) -> list[str]:
    """What an operation keeps for its pullback and never reads: no NaN put there reaches a gradient.

    Such a residual is no mistake in the gradient, but memory for nothing.
    """
    if problem.pullback is None or len(dy) != 1:
        return []
    leaves, tree = jax.tree.flatten(problem.pullback(*problem.args))
    unused = []
    for i, leaf in enumerate(leaves):
        if not is_float(leaf) or not leaf.size:
            continue
        poisoned = [jnp.full_like(v, jnp.nan) if j == i else v for j, v in enumerate(leaves)]
        grads = jax.tree.leaves(jax.tree.unflatten(tree, poisoned)(jnp.asarray(dy[0])))
        if all(bool(jnp.isfinite(g).all()) for g in grads if is_float(g)):
            unused.append(f"the pullback keeps a residual that it never reads: {describe(leaf)}")
    return unused


def disputes(
    ready: Judge,
    points: Sequence[Point],
    leaves: Sequence[Sequence[Leaf]],
    wrong: Sequence[int],
    rng: np.random.Generator,
) -> dict[int, Finding]:
    """Where autodiff and formula differ, and differences say at every such point that autodiff is wrong."""
    excused: dict[int, Finding] = {}
    if ready.numerical or ready.problem.stops:
        return excused  # whoever writes a stop or a rule of his own means what autodiff says
    for i in wrong:
        for point, leaf in zip(points, leaves[i], strict=True):
            if leaf.state != "wrong":
                continue
            mine, size = point.formula[0][i], sum(v.size for v in point.arrays)
            fits = mine is not None and mine.shape == point.truth[0][i].shape and np.isfinite(mine).all()
            if not fits or size > SMALL:
                excused.pop(i, None)
                break
            claims = [point.truth[0][i], mine]
            asked = [
                check(ready.y, ready.problem, point.arrays, point.dys[0], i, claims, 1e-6, rng)
                for _ in range(DIRECTIONS)
            ]
            if not all(theirs.agrees for _, theirs in asked) or all(ours.agrees for ours, _ in asked):
                excused.pop(i, None)
                break
            ours, theirs = next(pair for pair in asked if not pair[0].agrees)
            message = (
                f"along a random direction autodiff says {ours.claimed:.6g}, your formula "
                f"{theirs.claimed:.6g} and numerical differentiation {ours.measured:.6g}: yours is right"
            )
            excused.setdefault(
                i, Finding(ready.problem.paths[i], "truth_disputed", message, error=leaf.error)
            )
    return excused


# ---- in the dtypes of the user ----------------------------------------------------------------------------


def of_dtypes(given: Problem, points: Sequence[Point], x64: bool) -> list[Finding]:
    """Has every gradient the dtype of its argument, at every size?"""
    findings: dict[int, Finding] = {}
    dtypes = [given.arrays[i].dtype for i in given.moving]
    for point in points:
        with jax.enable_x64(x64):
            try:
                arrays = [_as(v, like) for v, like in zip(point.arrays, given.arrays, strict=True)]
                y = given.shape_of_y(arrays)
                dy = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in y]
                grads = _shapes(given.gradients, arrays, dy)
            except Exception:  # it does not run in them: `in_own_dtypes` says so
                continue
        for i, (grad, dtype) in enumerate(zip(grads, dtypes, strict=True)):
            promoted = any(v.dtype == grad.dtype != dtype for v in y) if grad is not None else True
            if grad is not None and grad.dtype != dtype and not promoted and i not in findings:
                message = f"the gradient is {grad.dtype}, the argument {dtype}"
                path = given.paths[i]
                findings[i] = Finding(path, "dtype", message, f"cast it: .astype({path}.dtype)", error=0.0)
    return list(findings.values())


def _as(v: Any, like: Any) -> Any:
    return jnp.asarray(np.asarray(v), like.dtype) if is_float(like) else v


def _shapes(gradients: Callable[..., Any], arrays: Any, dy: Any) -> Any:
    try:
        return jax.eval_shape(gradients, arrays, dy)
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError):
        return gradients(arrays, [jnp.ones(v.shape, v.dtype) for v in dy])


def in_own_dtypes(
    given: Problem, ready: Judge, point: Point, leaves: Sequence[Leaf], x64: bool, *, is_off: bool
) -> tuple[list[Finding], list[str]]:
    """The formula, and what gives the values, run in the dtypes of args: are they as exact as they allow?

    The truth is traced in these dtypes, and run in float64, from the same values; the roundings that are
    redone are those of the dtypes in which autodiff of the definition computes. Where autodiff has no
    gradient they are those of the formula itself.

    Args:
        given: in these dtypes.
        ready: in float64.
        point: where.
        leaves: the verdict on each gradient there, in float64.
        x64: whether the user has float64 enabled.
        is_off: whether the values are wrong already in float64.

    Returns:
        What is wrong, and what to say of what could not be looked at.
    """
    named = ", ".join(map(str, dict.fromkeys(given.arrays[i].dtype for i in given.moving)))
    at = list(given.arrays)
    formula = Wide(lambda a, d: given.gradients(a, d))
    truth = ready.own or Wide(lambda a, d: given.autodiff(a, d))
    with jax.enable_x64(x64):
        try:
            y = given.shape_of_y(at)
            dy = [jnp.asarray(np.asarray(d), v.dtype) for d, v in zip(point.dys[0], y, strict=True)]
            if ready.numerical:
                given.y(at)
            elif isinstance(truth, Wide):
                truth.program(at, dy)
            if ready.own and all(jnp.finfo(v.dtype).eps <= EPS for v in (*y, *(at[i] for i in given.moving))):
                return [], []
        except Exception as error:  # as jnp.linalg in bfloat16
            if not x64 and "float64" in named:
                return [], []  # they are float32 wherever they are used
            return [], [f"not seen: {named}, in which the forward pass does not run ({type(error).__name__})"]
        try:
            traced = (formula, *(() if ready.numerical else (truth,)))
            if ready.jitted and max(f.eps(at, dy) for f in traced) <= EPS:
                return [], []  # all of it is float64, and judged
            mine = _jitted(given.gradients, ready.jitted, at)(at, dy)
        except Exception as error:  # of any kind: it is the user's function
            try:
                _jitted(given.gradients if ready.numerical else given.autodiff, ready.own is None, at)(at, dy)
            except Exception:  # nor does the definition
                return [], [f"not seen: {named}, in which the forward pass has no gradient"]
            if _is_of_jax(error):
                return [], [
                    f"not seen: {named}, in which a NumPy constant of 64 bits keeps the formula from running"
                ]
            return [Finding("", "dtype", f"the formula does not run in {named}")], []
    if ready.numerical and not ready.jitted:
        return [], []  # what is computed in them was judged as it is
    asked = [
        i
        for i, (leaf, got, want) in enumerate(zip(leaves, mine, point.truth[0], strict=True))
        if leaf.state in ("right", "convention") and got is not None and np.shape(got) == want.shape
    ]
    of_y = [v.dtype for v in y]
    exact = lambda i, *theirs: _is_exact(given, i, leaves[i], point, of_y, np.asarray(mine[i]), *theirs)
    asked, theirs = [i for i in asked if not exact(i)], None

    def usual() -> list[np.ndarray]:
        with jax.enable_x64(x64):
            return list(map(np.asarray, _jitted(given.autodiff, ready.own is None, at)(at, dy)))

    if asked and not ready.numerical and sum(v.size for v in at) > SMALL:  # a spread is costly there
        theirs = usual()
        asked = [i for i in asked if not exact(i, theirs[i])]
    want, spread, drift = point.truth[0], list[np.ndarray](), list[float]()
    if asked and ready.numerical:
        spread, drift = _of_formula(formula, ready, at, dy, mine)
        spread, drift = list(map(np.add, spread, point.spread)), list(map(float.__add__, drift, point.drift))
    elif asked:
        want = [
            np.asarray(v) for v in truth.bound(at, dy)(*([trace.constant(v) for v in w] for w in (at, dy)))
        ]
        spread, drift, _ = spread_of(truth, at, dy, want, np.random.default_rng(0))
    findings = list[Finding]()
    for i in asked:
        path, got = given.paths[i], np.asarray(mine[i])
        narrow = _Narrow.of(given, i, leaves[i], point, want[i], spread[i], drift[i], of_y)
        if not narrow.off(got).any() and not narrow.drifts(got):
            continue
        theirs = theirs or (None if ready.numerical else usual())
        if theirs is not None and narrow.no_worse(got, theirs[i]):
            continue
        error, size = largest(narrow.error(got)), largest(narrow.want) or 1.0
        of_autodiff = "" if theirs is None else f", autodiff by {largest(narrow.error(theirs[i])) / size:.1e}"
        message = f"in {given.arrays[given.moving[i]].dtype} it errs by {error / size:.1e}{of_autodiff}"
        fix = "accumulate and subtract in float32 or wider"
        findings.append(Finding(path, "precision", message, fix, error=error / size))
    return findings + ([] if is_off or ready.own else _values_in_own_dtypes(given, at, y, x64)), []


def _of_formula(
    formula: Wide, ready: Judge, at: Any, dy: Any, mine: Sequence[Any]
) -> tuple[list[np.ndarray], list[float]]:
    """The spread of the formula under its own roundings; none where it cannot be traced."""
    center = [np.zeros(()) if v is None else np.asarray(v, trace.widened(v.dtype)) for v in mine]
    if not ready.jitted or any(v is None for v in mine):
        return [0 * v for v in center], [0.0 for _ in center]
    spread, drift, _ = spread_of(formula, at, dy, center, np.random.default_rng(0))
    return spread, drift


def _is_of_jax(error: BaseException) -> bool:
    """Whether JAX raises it because it takes a NumPy constant of 64 bits for what it was with x64 on."""
    *_, last = traceback.extract_tb(error.__traceback__)
    return last.filename.startswith(trace.HIDDEN[0]) and all(
        name in str(error) for name in ("int64", "int32")
    )


def _values_in_own_dtypes(given: Problem, at: Any, y: Any, x64: bool) -> list[Finding]:
    """The same of the values of a rule or an operation."""
    truth = Wide(lambda a, _: given.y(a))
    for name, values in given.values.items():
        run = lambda a, values=values: values(given.unflatten(a))
        with jax.enable_x64(x64):
            try:
                truth.program(at, ())
                got = [np.asarray(v) for v in _jitted(run, True, at)(at)][: len(y)]
                usual = [np.asarray(v) for v in _jitted(given.y, True, at)(at)]
            except Exception:  # the formula does not run either, which was said
                continue
        want = [np.asarray(v) for v in truth.bound(at, ())([trace.constant(v) for v in at], ())]
        spread, drift, _ = spread_of(truth, at, (), want, np.random.default_rng(0))
        for i, (a, b) in enumerate(zip(got, want, strict=True)):
            narrow = _Narrow(b, spread[i], drift[i], np.isfinite(b), [v.dtype for v in y])
            if (narrow.off(a).any() or narrow.drifts(a)) and not narrow.no_worse(a, usual[i]):
                error = largest(narrow.error(a)) / (largest(np.where(np.isfinite(b), b, 0)) or 1.0)
                message = f"in {y[i].dtype} {name} gives other values than the definition"
                return [Finding("", "value", message, error=error)]
    return []


BLOCK = 2**18  # elements that are looked at together: so much is needed beside large arrays


def _is_exact(
    given: Problem,
    i: int,
    leaf: Leaf,
    point: Point,
    of_y: Sequence[Any],
    got: np.ndarray,
    *theirs: np.ndarray,
) -> bool:
    """Whether gradient i errs by no more than the rounding of its result, or than `theirs`, by autodiff."""
    want, seen = point.truth[0][i], point.seen[i]
    seen = seen if leaf.kinks is None else seen & ~leaf.kinks
    dtypes, flat = [given.arrays[given.moving[i]].dtype, *of_y], [np.reshape(v, -1) for v in (got, *theirs)]
    size = largest(want) if want.size > BLOCK else None
    for at in (slice(n, n + BLOCK) for n in range(0, want.size, BLOCK)):
        narrow = _Narrow(want.reshape(-1)[at], np.zeros(()), 0.0, seen.reshape(-1)[at], dtypes, size)
        mine, *others = (v[at] for v in flat)
        if (narrow.off(mine).any() or narrow.drifts(mine)) and not (
            others and narrow.no_worse(mine, others[0])
        ):
            return False
    return True


class _Narrow:
    """What a result may be off by in narrow dtypes: some spreads of the truth, and its own rounding."""

    @classmethod
    def of(
        cls, given: Problem, i: int, leaf: Leaf, point: Point, want: Any, spread: Any, drift: float, of_y: Any
    ) -> "_Narrow":
        """Of gradient i, but for its kinks."""
        seen = point.seen[i] & (~leaf.kinks if leaf.kinks is not None else True)
        return cls(want, spread, drift, seen, [given.arrays[given.moving[i]].dtype, *of_y])

    def __init__(
        self,
        want: np.ndarray,
        spread: np.ndarray,
        drift: float,
        seen: Any,
        dtypes: Sequence[Any],
        size: float | None = None,
    ):
        eps = max(float(jnp.finfo(d).eps) for d in dtypes)
        with np.errstate(all="ignore"):
            self.seen = seen & np.isfinite(want) & (np.abs(want) < 0.5 * float(jnp.finfo(dtypes[0]).max))
        self.want = np.where(self.seen, want, 0)
        size = largest(self.want) if size is None else size
        self.bound = NARROW * (spread + eps * (np.abs(self.want) + size))
        self.far = NARROW * (drift + eps) + 8 * eps

    def error(self, got: np.ndarray) -> np.ndarray:
        """By element."""
        off = parts(np.asarray(got, complex if np.iscomplexobj(got) else self.want.dtype), self.want)
        return np.where(self.seen, off, 0)

    def off(self, got: np.ndarray) -> np.ndarray:
        """Where it is off by more."""
        return np.asarray(self.error(got) > self.bound)

    def along(self, got: np.ndarray) -> float:
        """How much of the truth is missing, or too much."""
        norm = float(np.vdot(self.want, self.want).real)
        with np.errstate(all="ignore"):
            return (
                abs(float(np.vdot(self.want, np.where(self.seen, got, 0)).real) / norm - 1) if norm else 0.0
            )

    def drifts(self, got: np.ndarray) -> bool:
        """Whether too much of the truth is."""
        return not self.along(got) <= self.far

    def no_worse(self, got: np.ndarray, usual: np.ndarray) -> bool:
        """Whether it errs where autodiff errs, and not much more."""
        theirs = self.error(usual)
        if not np.isfinite(theirs).all():
            return True
        most = np.maximum(theirs, np.quantile(theirs, 0.9)) if theirs.size else theirs
        far = self.far + 8 * self.along(usual)
        return bool((self.error(got) <= self.bound + 8 * most).all()) and self.along(got) <= far


def constants(given: Problem, ready: Judge, point: Point, i: int, x64: bool) -> bool:
    """Whether gradient i is right but for numbers that are rounded to the dtypes of the user.

    The forward pass may hold 0.1 as float32, the formula as a number of Python, which is float64 here.
    """
    at = list(given.arrays)
    if not isinstance(ready.y, Wide):
        return False
    try:
        takes = {d for eqn in ready.y.program(point.arrays)[0].equations for d in eqn.takes}
        if not any(d is not None and jnp.issubdtype(d, jnp.floating) and d.itemsize < 8 for d in takes):
            return False
        with jax.enable_x64(x64):
            dy = [
                jnp.asarray(np.asarray(d), v.dtype)
                for d, v in zip(point.dys[0], given.shape_of_y(at), strict=True)
            ]
            both = [Wide(f) for f in (given.autodiff, given.gradients)]
            for f in both:
                f.program(at, dy)
        wide = [[trace.constant(v) for v in some] for some in (at, dy)]
        want, mine = (np.asarray(f.bound(at, dy)(*wide)[i]) for f in both)
    except Exception:  # it does not run in them, or not in JAX: `in_own_dtypes` says so
        return False
    bound = point.loose * (point.spread[i] + EPS * (np.abs(want) + FLOOR * largest(want)))
    return mine.shape == want.shape and bool((parts(mine, want)[point.seen[i]] <= bound[point.seen[i]]).all())


def _jitted(function: Callable[..., Any], jitted: bool, arrays: Sequence[Any]) -> Callable[..., Any]:
    """Compiled quickly if the arrays are small."""
    if not jitted:
        return function
    return jax.jit(function, compiler_options=options(arrays))
