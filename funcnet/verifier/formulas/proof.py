"""Derived gradients, as they are printed, put to the verifier: what it does not call right is not shown."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnet.verifier.compare import verify
from funcnet.verifier.formulas.expression import MAX_TEXT, formula

__all__ = ["differing", "doubts", "point"]

Values = Mapping[str, np.ndarray]


def point(
    forward: Callable[..., Any],
    shapes: Mapping[str, tuple[int, ...]],
    given: Values,
    symmetric: Sequence[str],
    seed: int,
) -> dict[str, np.ndarray] | None:
    """Values at which a formula is finite, in float64, its own as ``y``; None: none were found.

    Args:
        forward: the function of the formula.
        shapes: of every argument, by name.
        given: the values of those that are not drawn.
        symmetric: the matrices that must be.
        seed: of what is drawn: normal values, then with positive determinants, positive, between 0 and 1.
    """
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True):
        for kind in ("normal", "dominant", "positive", "shares"):
            values: dict[str, np.ndarray] = {}
            for key, shape in shapes.items():
                x = given[key] if key in given else _drawn(kind, shape, rng)
                x = x.astype(np.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x
                values[key] = (x + x.T) / 2 if key in symmetric else x
            y = np.asarray(forward(**values))
            if np.isfinite(y).all():
                return {**values, "y": y}
    return None


def _drawn(kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    x = rng.standard_normal(shape)
    if kind == "positive":
        x = np.abs(x) + 0.1
    if kind == "shares":
        x = 1 / (1 + np.exp(x))
    if kind != "normal" and x.ndim == 2 and x.shape[0] == x.shape[1]:
        x = x + 2 * len(x) * np.eye(len(x))
    return x


def doubts(
    forward: Callable[..., Any], there: Values, texts: Mapping[str, str], symmetric: Sequence[str], seed: int
) -> dict[str, str]:
    """Why gradients are not shown: of those that the verifier does not call right, by argument.

    A symmetric matrix S is (A + Aᵀ) / 2 of a free A, whose gradient is (dS + dSᵀ) / 2.

    Args:
        forward: the function of the formula.
        there: values of all arguments, and y.
        texts: the gradients, by argument, of the arguments, ``y`` and ``dy``.
        symmetric: the arguments that are symmetric.
        seed: of what the verifier draws.
    """
    gradients = {key: formula(text, [*there, "dy"]) for key, text in texts.items() if len(text) <= MAX_TEXT}
    too_long = f"the formula has more than {MAX_TEXT:,} characters"
    reasons = {key: too_long for key in texts if key not in gradients}
    if not gradients:
        return reasons
    constants = {key: v for key, v in there.items() if key not in gradients and key != "y"}

    def symmetrised(arrays: Mapping[str, Any]) -> dict[str, Any]:
        return {key: (v + v.T) / 2 if key in symmetric else v for key, v in arrays.items()}

    def known(args: Sequence[Any]) -> dict[str, Any]:
        return {**constants, **symmetrised(dict(zip(gradients, args, strict=True)))}

    def backward(*args_and_dy: Any) -> tuple[Any, ...]:
        *args, dy = args_and_dy
        values = known(args)
        values |= {"y": forward(**values), "dy": dy}
        return tuple(symmetrised({key: g(**values) for key, g in gradients.items()}).values())

    args = tuple(there[key] for key in gradients)
    try:
        with jax.enable_x64(True):
            report = verify(lambda *args: forward(**known(args)), backward, args, seed=seed, budget=0.0)
    except Exception as error:  # a right formula runs wherever its definition does
        return reasons | dict.fromkeys(gradients, _doubt(str(error).partition("\n")[0]))
    if len(report.rows) != len(gradients):
        return reasons | dict.fromkeys(gradients, _doubt(report.verdict))
    for key, row in zip(gradients, report.rows, strict=True):
        if not row.ok:
            reasons[key] = _doubt(row.unseen or f"{row.note}, error {row.error:.0e}")
    return reasons


def _doubt(note: str) -> str:
    return f"the verifier does not call what was found right ({note})"


def differing(there: Values, texts: Mapping[str, str], shown: Mapping[str, str]) -> bool:
    """Whether gradients as they are shown are others than those that were verified, if only by rounding.

    Args:
        there: values of all arguments, and y.
        texts: the gradients that were verified.
        shown: by name, expressions of names before them: dx of x; of a scalar y for dy = 1.
    """
    y = there["y"]
    dy = np.random.default_rng(0).standard_normal(y.shape) if y.ndim else np.ones(())
    known: dict[str, Any] = {**there, "dy": dy}
    with jax.enable_x64(True):
        for name, text in shown.items():
            known[name] = value = np.asarray(formula(text, list(known))(**known))
            if name.startswith("d") and name[1:] in texts:
                right = np.asarray(formula(texts[name[1:]], [*there, "dy"])(**there, dy=dy))
                size = float(np.abs(right).max(initial=0))
                if value.shape != right.shape or not np.allclose(value, right, rtol=1e-9, atol=1e-9 * size):
                    return True
    return False
