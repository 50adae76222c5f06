"""What a formula must keep besides being right at a point, and when two answers may both be right."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnet.errors import describe
from funcnet.verifier import judge
from funcnet.verifier.arrays import support
from funcnet.verifier.finding import Finding
from funcnet.verifier.judge import Judge, Point, largest
from funcnet.verifier.problem import SMALL, Problem, fresh, is_float

__all__ = ["disputes", "in_own_dtypes", "of_the_formula", "unused_residuals"]


def of_the_formula(
    ready: Judge, point: Point, tolerances: Sequence[float], wrong: list[int]
) -> list[Finding]:
    """Linear in dy (but for the `wrong` gradients, which are diagnosed), eager = jitted, the same twice."""
    problem, findings = ready.problem, []
    (one, two, _), at = point.dys, point.arrays
    scales = judge.scales(point)
    as_numpy = lambda grads: [None if g is None else np.asarray(g, np.float64) for g in grads]
    again = as_numpy(ready.formula(at, one))
    eager = as_numpy(problem.gradients(list(at), one)) if ready.jitted else again
    twice = as_numpy(ready.formula(at, [2 * v for v in one]))
    both = as_numpy(ready.formula(at, [a + b for a, b in zip(one, two, strict=True)]))
    rounding = max(1e-9, 64 * ready.eps)
    if any(
        judge.differs(a, b, rounding, largest(a)) for a, b in zip(ready.y(at), problem.y(at), strict=True)
    ):
        message = "the forward pass gives other values each time it is run"
        findings.append(Finding("", "nondeterministic", message))
    for i, path in enumerate(problem.paths):
        first, second = point.formula[0][i], point.formula[1][i]
        if first is None or second is None or (once_more := again[i]) is None:
            continue
        same = max(tolerances[i], 1e-9)
        if not np.array_equal(once_more, first, equal_nan=True):
            findings.append(Finding(path, "nondeterministic", "two runs on the same values differ"))
        elif (
            judge.differs(eager[i], first, same, max(scales[i], largest(first))) and np.isfinite(first).all()
        ):
            findings.append(Finding(path, "nondeterministic", "run eagerly and jitted, the formula differs"))
        elif i not in wrong and (
            judge.differs(twice[i], 2 * first, same, 2 * scales[i])
            or judge.differs(both[i], first + second, same, 2 * scales[i])
        ):
            findings.append(
                Finding(path, "nonlinear_in_cotangent", "the gradient of 2·dy is not twice that of dy")
            )
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
        grads = jax.tree.leaves(jax.tree.unflatten(tree, poisoned)(jnp.asarray(dy[0], jnp.float64)))
        if all(bool(jnp.isfinite(g).all()) for g in grads if is_float(g)):
            unused.append(f"the pullback keeps a residual that it never reads: {describe(leaf)}")
    return unused


def disputes(
    ready: Judge, points: list[Point], wrong: Sequence[int], tolerances: Sequence[float]
) -> dict[int, Finding]:
    """Where autodiff and formula differ: is autodiff wrong, or is it a kink where both are right?"""
    problem, point = ready.problem, points[0]
    excused: dict[int, Finding] = {}
    for i in wrong:
        path, mine = problem.paths[i], point.formula[0][i]
        if mine is None or mine.shape != point.truth[0][i].shape or not np.isfinite(mine).all():
            continue
        if (found := _convention(ready, points, i, tolerances[i])) is not None:
            excused[i] = found
            continue
        if sum(v.size for v in point.arrays) > SMALL:
            continue
        ours, theirs = judge.check(ready, point.arrays, point.dys[0], i, [point.truth[0][i], mine], 1e-6)
        if theirs.agrees and not ours.agrees:
            excused[i] = Finding(
                path,
                "truth_disputed",
                f"along a random direction autodiff says {ours.claimed:.6g}, your formula "
                f"{theirs.claimed:.6g} and numerical differentiation {ours.measured:.6g}: yours is right",
                error=judge.measure([point], i)[0],
            )
    return excused


def _convention(ready: Judge, points: list[Point], i: int, tolerance: float) -> Finding | None:
    """A convention: right at every point nearby, and here between what the truth is on the sides."""
    point, rng = points[0], np.random.default_rng(3)
    if sum(v.size for v in point.arrays) > SMALL:
        return None
    if any(not judge.measure([p], i)[0] <= tolerance for p in points[1:2]):
        return None
    sides = []
    for _ in range(8):
        near = [fresh(v, rng, 1e-4) for v in point.arrays]
        truth = np.asarray(ready.truth(near, point.dys[0])[i])
        mine = np.asarray(ready.formula(near, point.dys[0])[i])
        if judge.differs(mine, truth, max(tolerance, 1e-9), largest(truth)):
            return None
        sides.append(truth)
    want, got = point.truth[0][i], point.formula[0][i]
    assert got is not None
    scale = max(largest(want), 1e-300)
    low, high = np.min([want, *sides], 0) - 1e-2 * scale, np.max([want, *sides], 0) + 1e-2 * scale
    at = np.abs(got - want) > tolerance * scale
    if not ((low <= got) & (got <= high)).all():
        return None
    return Finding(
        ready.problem.paths[i],
        "convention",
        "at a kink or tie of the forward pass it takes another subgradient than autodiff, just as right",
        error=judge.measure([point], i)[0],
        where=support(at),
    )


# ---- in the dtypes of the user ----------------------------------------------------------------------------


def in_own_dtypes(
    given: Problem, ready: Judge, point: Point, x64: bool, judged: Sequence[int]
) -> list[Finding]:
    """The formula in the dtypes of args: are its gradients of those dtypes, and as exact as they can be?"""
    dtypes = [given.arrays[i].dtype for i in given.moving]
    if all(d == jnp.float64 for d in dtypes) or not ready.jitted:
        return []
    findings = []
    with jax.enable_x64(x64):
        formula, autodiff = given.compiled
        try:
            y = jax.eval_shape(given.y, list(given.arrays))
            dy = [jnp.asarray(np.asarray(d), v.dtype) for d, v in zip(point.dys[0], y, strict=True)]
            theirs = autodiff(list(given.arrays), dy)
        except Exception:  # the forward pass itself does not run in them, as jnp.linalg in bfloat16
            return []
        try:
            mine = formula(list(given.arrays), dy)
        except Exception as error:  # of any kind: it is the user's function
            if "int64" in str(error) and "int32" in str(error):
                return []  # JAX takes a NumPy constant of 64 bits for what it was with x64 on
            named = ", ".join(map(str, dict.fromkeys(dtypes)))
            return [Finding("", "dtype", f"the formula does not run in {named}")]
    truth = ready.truth(point.arrays, [jnp.asarray(np.asarray(v, np.float64)) for v in dy])
    for i, path in enumerate(given.paths):
        if mine[i] is None:
            continue
        promoted = any(v.dtype == mine[i].dtype != dtypes[i] for v in dy)  # by the forward pass already
        if mine[i].dtype != dtypes[i] and not promoted:
            findings.append(
                Finding(
                    path,
                    "dtype",
                    f"the gradient is {mine[i].dtype}, the argument {dtypes[i]}",
                    f"cast it: .astype({path}.dtype)",
                    error=0.0,
                )
            )
        if i not in judged or mine[i].shape != truth[i].shape:
            continue
        want = np.asarray(truth[i], np.float64)
        scale = max(largest(want), 1e-2 * max(largest(t) for t in truth))
        eps = max(float(jnp.finfo(d).eps) for d in (dtypes[i], *(v.dtype for v in dy)))
        error, usual = (largest(np.asarray(g, np.float64) - want) for g in (mine[i], theirs[i]))
        if not error <= 8 * usual + 32 * eps * scale and math.isfinite(usual):
            findings.append(
                Finding(
                    path,
                    "precision",
                    f"in {dtypes[i]} it errs by {error / scale:.1e}, autodiff by {usual / scale:.1e}",
                    "accumulate and subtract in float32 or wider",
                    error=error / scale,
                )
            )
    return findings
