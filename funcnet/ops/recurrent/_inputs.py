"""The arguments that recurrences share: their parameters, x, the state and the mask, each checked."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from funcnet.errors import ShapeError, StructureError, describe
from funcnet.linalg.haar import orthogonal
from funcnet.ops import _bias, _check
from funcnet.ops._draw import Initializer, drawn, weights

__all__ = ["check", "draw"]


def draw(
    where: str,
    key: PRNGKeyArray,
    d: int,
    hidden: int,
    gates: int,
    bias: bool,
    initial: Initializer | None,
    projection: int | None = None,
) -> dict[str, Array]:
    """w of variance 1/d or by `initial`, u orthogonal, both by gates; b = 0, if any; r of variance 1/m."""
    _check.key(where, key, none=False)
    d, m = _check.positive(where, "d", d), _check.positive(where, "hidden", hidden)
    p = m if projection is None else _check.positive(where, "projection", projection)
    kw, ku = jax.random.split(key)
    w = drawn(where, kw, initial, (d, gates * m), "iso", (d, gates, m), variance=1 / d)
    u = jnp.concatenate(list(orthogonal(ku, p, m, stack=gates)), 1)
    bias = _check.flag(where, "bias", bias)
    r = {"r": weights(jax.random.fold_in(key, 2), (m, p), 1 / m)}
    b = {"b": jnp.zeros(gates * m, w.dtype)} if bias else {}
    return {"w": w, "u": u} | b | ({} if projection is None else r)


def check(
    where: str,
    gates: int,
    names: tuple[str, ...],
    params: Any,
    x: Any,
    state: Any,
    mask: Any,
    chunk: Any,
    *,
    projected: bool = False,
) -> tuple[Array, Array | None, int | None]:
    """x, the mask and the chunk, where all fits: w [d, gates · m], u [m, gates · m], a state of `names`.

    Where a cell may be `projected` and params have r [m, p], u is [p, gates · m] and the state "h" [*n, p].
    """
    w = _check.parameter(where, params, "w", ndim=2)
    u = _check.parameter(where, params, "u", ndim=2)
    m = u.shape[0]
    if projected and params.get("r") is not None:
        m = _check_projection(where, gates, _check.parameter(where, params, "r", ndim=2), u)
    k = gates * m
    for name, wrong, columns in (("u", u, f"m, {gates} m" if gates > 1 else "m, m"), ("w", w, f"d, {k}")):
        if wrong.shape[1] == k:
            continue
        path = f'params["{name}"]'
        lacks = "does not have the columns of params" + '["u"]'
        if name == "u":
            lacks = f"does not hold {gates} square gates side by side" if gates > 1 else "is not square"
        fits = wrong.shape[0] == (gates * wrong.shape[1] if name == "u" else k)
        raise ShapeError(
            f"{where}: {path} {lacks}.",
            path=path,
            expected=f"{path}: float[{columns}]" + f"     (u: {describe(u)})" * (name == "w"),
            actual=f"{path}: {describe(wrong)}",
            hint=f"its transpose fits: {path}.T." if fits else None,
        )
    _bias.check(where, params, k)
    x = _check.floating(where, "x", x)
    _check.rank(where, "x", x, 2, f"*n, t, {w.shape[0]}")
    _check.features(where, x, w.shape[0], f'params["w"] ({describe(w)})', dims="*n, t")
    if state is not None:
        _check_state(where, names, state, x, u, m)
    chunk = None if chunk is None else _check.positive(where, "chunk", chunk)
    return x, None if mask is None else _checked_mask(where, mask, x), chunk


def _check_projection(where: str, gates: int, r: Array, u: Array) -> int:
    p, m = u.shape[0], u.shape[1] // gates
    if r.shape != (m, p):
        raise ShapeError(
            f'{where}: params["r"] does not map the state to the rows of params["u"].',
            path='params["r"]',
            expected=f'params["r"]: float[{m}, {p}]     (u: {describe(u)})',
            actual=f'params["r"]: {describe(r)}',
            hint='its transpose fits: params["r"].T.' if r.shape == (p, m) else None,
        )
    return m


def _check_state(where: str, names: tuple[str, ...], state: Any, x: Array, u: Array, m: int) -> None:
    for name in names:
        shape = (*x.shape[:-2], u.shape[0] if name == "h" else m)
        text = f"float[{', '.join(map(str, shape))}]"
        path = f'state["{name}"]'
        if not isinstance(state, Mapping) or state.get(name) is None:
            given = isinstance(state, Mapping)
            raise StructureError(
                f'{where}: state has no "{name}".',
                path=path,
                expected="state: a dict with "
                + " and ".join(f'"{n}"' for n in names)
                + f", {text} each, or None",
                actual="keys: " + (", ".join(f'"{key}"' for key in state) or "none")
                if given
                else f"state: {describe(state)}",
                hint="a mask goes by its name: mask=..." if _check.dtype_of(state) == jnp.bool_ else None,
            )
        _check.mapping(where, "state", state)
        s = _check.floating(where, path, state[name])
        if s.shape != shape:
            raise ShapeError(
                f"{where}: {path} is not one row of {shape[-1]} for each sequence of x.",
                path=path,
                expected=f"{path}: {text}     (x: {describe(x)}, u: {describe(u)})",
                actual=f"{path}: {describe(s)}",
            )


def _checked_mask(where: str, mask: Any, x: Array) -> Array:
    dtype, shape = _check.dtype_of(mask), getattr(mask, "shape", None)
    lengths = dtype is not None and jnp.issubdtype(dtype, jnp.integer) and shape == x.shape[:-2]
    hint = "of lengths: jnp.arange(t) < lengths[..., None]." if lengths else None
    return _check.mask(where, mask, x, "step", dtype_hint=hint, shape_hint=None)
