"""What a formula must keep besides being right at a point, and when it is autodiff that is wrong."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnet.errors import describe
from funcnet.verifier import judge
from funcnet.verifier.finding import Finding
from funcnet.verifier.judge import EPS, Judge, Leaf, Point, Wide, largest, spread_of
from funcnet.verifier.problem import SMALL, Problem, is_float

__all__ = ["disputes", "in_own_dtypes", "of_dtypes", "of_the_formula", "of_values", "unused_residuals"]

SAME = 1e-9  # relative: what two programs for one thing may differ by in float64
NARROW = 4.0  # spreads, and roundings of the largest element, that a formula may err by in a narrow dtype


def of_the_formula(ready: Judge, point: Point, wrong: Sequence[int]) -> list[Finding]:
    """Linear in dy (but for the `wrong` gradients, which are diagnosed), eager = traced, the same twice."""
    problem, findings = ready.problem, []
    (one, two, *_), at = point.dys, point.arrays
    as_numpy: Callable[[Any], list[Any]] = lambda grads: [None if g is None else np.asarray(g) for g in grads]
    first, again = (problem.y(at) for _ in range(2))
    if not all(np.array_equal(a, b, equal_nan=True) for a, b in zip(first, again, strict=True)):
        message = "the forward pass gives other values each time it is run"
        findings.append(Finding("", "nondeterministic", message))
    eager, once_more = (as_numpy(problem.gradients(list(at), one)) for _ in range(2))
    twice = as_numpy(ready.formula(at, [2 * v for v in one]))
    both = as_numpy(ready.formula(at, [a + b for a, b in zip(one, two, strict=True)]))
    rounding = SAME
    if ready.jitted and isinstance(ready.formula, Wide) and (eps := ready.formula.eps(at, one)) > EPS:
        rounding = 64 * eps * np.sqrt(max(v.size for v in (*at, *one)))  # it casts, which float64 leaves out
    for i, path in enumerate(problem.paths):
        first, second, seen = point.formula[0][i], point.formula[1][i], point.seen[i]
        if first is None or second is None or first.shape != seen.shape or eager[i] is None:
            continue
        only = lambda v, seen=seen: np.where(seen, v, 0) if v.shape == seen.shape else v
        noise = 0 if point.seen[i].size == 0 else largest(np.where(point.jumps[i], 0, point.spread[i]))
        # A gradient that is zero but for rounding is as large as that.
        size = max(largest(first), judge.scale_of(point, i), point.loose * noise / SAME)
        if not np.array_equal(eager[i], once_more[i], equal_nan=True):
            findings.append(Finding(path, "nondeterministic", "two runs on the same values differ"))
        elif judge.differs(only(eager[i]), first, rounding, size) and np.isfinite(first).all():
            findings.append(Finding(path, "nondeterministic", "run eagerly and jitted, the formula differs"))
        elif i not in wrong and (
            judge.differs(only(twice[i]), 2 * first, max(SAME, 64 * ready.eps), 2 * size)
            or judge.differs(only(both[i]), first + second, max(SAME, 64 * ready.eps), 2 * size)
        ):
            findings.append(
                Finding(path, "nonlinear_in_cotangent", "the gradient of 2·dy is not twice that of dy")
            )
    return findings


def of_values(ready: Judge, points: Sequence[Point]) -> list[Finding]:
    """A rule's forward pass, and whatever else computes the same, gives the values of the definition."""
    problem = ready.problem
    for name, values in problem.values.items():
        run = Wide(lambda a, _, values=values: values(problem.unflatten(a)))
        for point in points:
            want = [np.asarray(v) for v in ready.y(point.arrays)]
            try:
                got = [np.asarray(v) for v in run(point.arrays, ())]
            except Exception:  # it cannot be traced, or does not run at these sizes
                continue
            if len(got) != len(want) or any(a.shape != b.shape for a, b in zip(got, want, strict=True)):
                return [Finding("", "value", f"{name} gives results of another shape than the definition")]
            for i, (a, b) in enumerate(zip(got, want, strict=True)):
                finite = b[np.isfinite(b)]
                if judge.differs(a, b, max(SAME, 64 * ready.eps), largest(finite)):
                    if largest(judge.parts(a, b)) <= judge.TIMES * _rounding(ready, run, point, i):
                        continue  # it should cancel, and is what rounding left of a sum
                    off = judge.parts(a, b)[np.isfinite(b)]
                    error = largest(off) / max(largest(finite), 1e-300)
                    return [
                        Finding("", "value", f"{name} gives other values than the definition", error=error)
                    ]
    return []


def _rounding(ready: Judge, run: Wide, point: Point, i: int) -> float:
    """How far result i moves under rounding, by its definition or by `run`, whichever moves it further."""
    both = [run, *([Wide(lambda a, _: ready.problem.y(a))] if isinstance(ready.y, Wide) else [])]
    moves = []
    for f in both:
        center = [np.asarray(v) for v in f(point.arrays, ())]
        spread, *_ = spread_of(f, point.arrays, (), center, np.random.default_rng(0), EPS)
        moves.append(largest(spread[i]))
    return max(moves)


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
    ready: Judge, points: Sequence[Point], leaves: Sequence[Sequence[Leaf]], wrong: Sequence[int]
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
            ours, theirs = judge.check(ready, point.arrays, point.dys[0], i, [point.truth[0][i], mine], 1e-6)
            if not theirs.agrees or ours.agrees:
                excused.pop(i, None)
                break
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
    given: Problem, ready: Judge, point: Point, leaves: Sequence[Leaf], x64: bool, rng: np.random.Generator
) -> list[Finding]:
    """The formula run in the dtypes of args: is it as exact as they allow?

    The truth is that of float64, from the same values; the roundings that are redone are those of the dtypes
    in which autodiff of the definition computes.
    """
    dtypes = [given.arrays[i].dtype for i in given.moving]
    dy64, at = point.dys[0], list(given.arrays)
    truth = Wide(lambda a, d: given.autodiff(a, d))
    formula = Wide(lambda a, d: given.gradients(a, d))
    with jax.enable_x64(x64):
        try:
            y = given.shape_of_y(at)
            dy = [jnp.asarray(np.asarray(d), v.dtype) for d, v in zip(dy64, y, strict=True)]
            if not ready.numerical:
                truth.program(at, dy)
            given.y(at) if ready.numerical else None
        except Exception:  # the forward pass itself does not run in them, as jnp.linalg in bfloat16
            return []
        try:
            if not ready.numerical and ready.jitted and max(f.eps(at, dy) for f in (truth, formula)) <= EPS:
                return []  # all of it is float64, and judged
            mine = _jitted(given.gradients, ready.jitted, at)(at, dy)
        except Exception as error:  # of any kind: it is the user's function
            if "int64" in str(error) and "int32" in str(error):
                return []  # JAX takes a NumPy constant of 64 bits for what it was with x64 on
            try:
                _jitted(given.autodiff, True, at)(at, dy)
            except Exception:  # nor does the definition
                return []
            named = ", ".join(map(str, dict.fromkeys(dtypes)))
            return [Finding("", "dtype", f"the formula does not run in {named}")]
    mine = [None if v is None else np.asarray(v) for v in mine]
    if ready.numerical:
        return []  # what is computed in them was judged as it is
    spread, drift, _ = spread_of(truth, at, dy, point.truth[0], rng)
    findings, theirs = [], None
    for i, path in enumerate(given.paths):
        want, leaf, got = point.truth[0][i], leaves[i], mine[i]
        if (
            got is None
            or got.shape != want.shape
            or leaf.state not in ("right", "convention")
            or not want.size
        ):
            continue
        info = jnp.finfo(dtypes[i])
        eps = max([float(info.eps), *(float(jnp.finfo(v.dtype).eps) for v in y)])
        size = judge.scale_of(point, i)
        seen = point.seen[i] & (np.abs(want) < 0.5 * float(info.max))
        seen &= ~leaf.kinks if leaf.kinks is not None else True
        off = lambda v, seen=seen, want=want: np.where(seen, judge.parts(np.asarray(v, want.dtype), want), 0)
        error = off(got)
        worst = error > NARROW * (spread[i] + eps * (np.abs(want) + size))
        sure = np.where(seen, want, 0)
        norm = float(np.vdot(sure, sure).real)
        with np.errstate(all="ignore"):
            along = float(np.vdot(sure, np.where(seen, got, 0)).real) / norm - 1 if norm else 0.0
        drifts = not abs(along) <= NARROW * (drift[i] + eps) + 8 * eps
        if not worst.any() and not drifts:
            continue
        if theirs is None:
            with jax.enable_x64(x64):
                theirs = _jitted(given.autodiff, True, at)(at, dy)
        usual = largest(off(theirs[i]))
        if largest(error) <= 8 * usual or not np.isfinite(usual):
            continue  # no less exact than autodiff of the definition itself
        message = f"in {dtypes[i]} it errs by {largest(error) / size:.1e}, autodiff by {usual / size:.1e}"
        fix = "accumulate and subtract in float32 or wider"
        findings.append(Finding(path, "precision", message, fix, error=largest(error) / size))
    return findings


def _jitted(function: Callable[..., Any], jitted: bool, arrays: Sequence[Any]) -> Callable[..., Any]:
    """Compiled quickly if the arrays are small."""
    if not jitted:
        return function
    quick = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(function, compiler_options=None if sum(v.size for v in arrays) > SMALL else quick)
