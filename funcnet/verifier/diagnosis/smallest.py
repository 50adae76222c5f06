"""The smallest sizes at which a formula is wrong, with numbers that can be followed by hand.

Sizes that are equal as given stay equal. All of them are made 1, 2 or 3, then each by itself smaller, as long
as the functions run and the gradient is wrong; the last case found is judged like any other.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnet.verifier.judge import Judge
from funcnet.verifier.point import Point
from funcnet.verifier.problem import Problem, is_float, resized
from funcnet.verifier.wide import largest

__all__ = ["example"]

TRIES = 24  # sizes at which truth and formula are asked
SHOWN = 16  # numbers in arguments and cotangent; of more nobody reads a sentence
Sizes = Mapping[int, int]  # by the size as given
Case = tuple[list[Any], list[np.ndarray]]  # arguments and cotangent


def example(ready: Judge, given: Point, i: int) -> str:
    """Where gradient i fails at the smallest sizes, what is expected there, and what the formula gives.

    Args:
        ready: truth and formula.
        given: the point as given.
        i: of the gradients.

    Returns:
        ``fails at x = [2, 1], dy = [1, 3]: expected [4, 6], got [2, 1]``; "" where the functions do not run
        at sizes that a sentence can show.
    """
    case = _smallest(ready, i, _fits(given, i))
    if case is None:
        return ""
    arrays, dy = case
    point = ready.at("smallest", arrays, np.random.default_rng(0), [dy])
    if ready.leaf(point, i).state != "wrong":
        return ""
    names = [*ready.problem.all_paths, *(["dy"] if len(dy) == 1 else [f"dy[{k}]" for k in range(len(dy))])]
    values = [f"{name} = {_text(v)}" for name, v in zip(names, [*arrays, *dy], strict=True) if not _is_key(v)]
    got, want = point.formula[0][i], point.truth[0][i]
    tiny = 1e-9 * max(largest(want), 0.0 if got is None else largest(got))
    text = lambda v: "none" if v is None else _text(np.where(np.abs(v) < tiny, 0, v))
    return f"fails at {', '.join(values)}: expected {text(want)}, got {text(got)}"


def _smallest(ready: Judge, i: int, fits: bool) -> Case | None:
    """The smallest case at which gradient i differs; if its shape `fits` as given, then by more than that."""
    problem, tries = ready.problem, iter(range(TRIES))
    sizes = sorted({d for v in problem.arrays for d in v.shape if d > 1}, reverse=True)

    def failing(new: Sizes) -> Case | None:
        shapes = [tuple(new.get(d, d) for d in v.shape) for v in problem.arrays]
        if sum(map(math.prod, shapes)) > SHOWN or next(tries, None) is None:
            return None
        for draw in (_whole, _two_digits):
            arrays = draw(problem, shapes)
            try:
                y = [np.asarray(v) for v in ready.y(arrays)]
                dy = [np.where(np.isfinite(v), _signed(v.shape, len(arrays)), 0.0) for v in y]
                if sum(v.size for v in (*arrays, *dy)) <= SHOWN and _differs(ready, arrays, dy, i, fits):
                    return arrays, dy
            except Exception:  # whatever functions may raise at sizes or numbers that they are not made for
                continue
        return None

    best = None
    for size in (1, 2, 3):
        new: Sizes = dict.fromkeys(sizes, size)
        if (best := failing(new)) is not None:
            break
    else:
        new = {d: d for d in sizes}
    for d in sizes:
        for size in range(1, min(new[d], 4)):
            if (smaller := failing({**new, d: size})) is not None:
                best, new = smaller, {**new, d: size}
                break
    return failing(new) if best is None else best


def _fits(point: Point, i: int) -> bool:
    return all(
        u[i] is None or u[i].shape == t[i].shape for u, t in zip(point.formula, point.truth, strict=True)
    )


def _differs(ready: Judge, arrays: list[Any], dy: list[np.ndarray], i: int, fits: bool) -> bool:
    want, got = np.asarray(ready.truth(arrays, dy)[i]), ready.formula(arrays, dy)[i]
    got = np.zeros_like(want) if got is None else np.asarray(got)
    if got.shape != want.shape:
        return not fits
    return bool(np.isfinite(want).all()) and not largest(got - want) <= 1e-3 * largest(want)


# ---- numbers ----------------------------------------------------------------------------------------------


def _signed(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.resize(np.random.default_rng(seed).permutation([1.0, -2.0, 3.0, -1.0, 2.0, -3.0]), shape)


def _whole(problem: Problem, shapes: Sequence[Any]) -> list[Any]:
    """Whole numbers from 1 to 3, of both signs if the given ones are; what lies within 0 and 1 stays."""

    def whole(k: int, given: Any, drawn: Any) -> Any:
        x: Any = np.asarray(given) if is_float(given) else np.zeros(0)
        x = x.real
        if not x.size or (x.min() >= 0 and x.max() <= 1):
            return drawn
        v = _signed(drawn.shape, k)
        v = np.abs(v) * np.sign(x.flat[0]) if (x > 0).all() or (x < 0).all() else v
        square = v.ndim == 2 and v.shape[0] == v.shape[1]
        v = np.triu(v) + np.triu(v, 1).T if square and x.ndim == 2 and np.array_equal(x, x.T) else v
        return jnp.asarray(v + 1j * _signed(drawn.shape, k + 99) if jnp.iscomplexobj(given) else v)

    drawn = _two_digits(problem, shapes)
    return [whole(k, v, d) for k, (v, d) in enumerate(zip(problem.arrays, drawn, strict=True))]


def _two_digits(problem: Problem, shapes: Sequence[Any]) -> list[Any]:
    """Numbers of the kind of those given, with two digits."""
    drawn = resized(problem, shapes, np.random.default_rng(0))
    return [jnp.asarray(np.round(np.asarray(v), 2)) if is_float(v) else v for v in drawn]


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _text(x: Any) -> str:
    """An array as nested lists, of four digits."""
    x = np.asarray(x)
    return (
        f"[{', '.join(map(_text, x))}]" if x.ndim else f"{x[()]:.4g}" if x.dtype.kind in "fc" else str(x[()])
    )
