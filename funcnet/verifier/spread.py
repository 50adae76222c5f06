"""How far a truth moves when every rounding of its program, and its arguments, are redone at random.

The error allowed follows from it. What rounding moves much further than rounding can is a jump: a kink of the
forward pass.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from funcnet.verifier import trace
from funcnet.verifier.problem import SMALL, is_float
from funcnet.verifier.wide import Touch, as_wide, largest, parts, typical

__all__ = ["JUMP", "spread_of"]

JUMP = 2.0**-20  # relative; what rounding in float64 moves further than that is a kink
ROUNDS = 8  # times that all roundings are redone
LONG = 20_000  # equations that are run; of a longer program two rounds must do
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
    size = sum(v.size for v in (*arrays, *dy))
    rounds = ROUNDS if size <= SMALL and truth.length(arrays, dy) <= LONG else 2
    run = truth.bound(arrays, dy)
    own = [eps or float(jnp.finfo(v.dtype).eps) if is_float(v) else 0.0 for v in (*arrays, *dy)]
    low, high = [np.copy(t) for t in center], [np.copy(t) for t in center]
    drift, there = [0.0] * len(center), [np.zeros(t.shape, bool) for t in center]
    for n in range(rounds):
        moved = [
            _shaken(trace.constant(v), e, rng, n % 2 == 0) if is_float(v) else v
            for v, e in zip((*arrays, *dy), own, strict=True)
        ]
        grads = run(moved[: len(arrays)], moved[len(arrays) :], touch=_redone(rng, eps))
        for i, (grad, t) in enumerate(zip(map(as_wide, grads), center, strict=True)):
            finite = np.isfinite(grad)
            there[i] |= finite
            keep = np.where(finite, grad, t)
            low[i], high[i] = _least(low[i], keep), -_least(-high[i], -keep)
            sure = np.where(finite & np.isfinite(t), t, 0)
            unit = largest(sure) or 1.0
            if apart is not None:  # and what jumps in this round
                jumped = np.abs(keep - sure) > 256 * JUMP * (np.abs(sure) + JUMP * largest(sure))
                sure = np.where(apart[i] | jumped, 0, sure)
            sure, keep = sure / unit, keep / unit
            if of_all := float(np.vdot(sure, sure).real):
                drift[i] = max(
                    drift[i], abs(float(np.vdot(sure, np.where(sure != 0, keep, 0)).real) / of_all - 1)
                )
    spread = [np.asarray(np.nan_to_num(parts(b, a) / 2, posinf=0.0)) for a, b in zip(low, high, strict=True)]
    return spread, drift, there


def _least(a: Any, b: Any) -> Any:
    if not np.iscomplexobj(a):
        return np.minimum(a, b)
    return np.minimum(a.real, b.real) + 1j * np.minimum(a.imag, b.imag)


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
        return np.where(x == 0, eps / 2 * 2.0**-10 * typical(x) * _signs(x.shape, rng), moved)
    return moved


@np.errstate(all="ignore")
def _is_whole(x: Any) -> bool:
    return not np.iscomplexobj(x) and bool((np.asarray(x) == np.round(x)).all())


def _redone(rng: np.random.Generator, eps: float | None) -> Touch:
    """Round it anew."""

    def touch(name: str, operands: Sequence[Any], value: Any, dtype: Any) -> Any:
        if not jnp.issubdtype(dtype, jnp.inexact) or (name in _WHOLE and all(map(_is_whole, operands))):
            return value
        return _shaken(value, eps or float(jnp.finfo(dtype).eps), rng)

    return touch
