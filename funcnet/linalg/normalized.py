"""Parameters as a function of others: w divided by its norm as a linear map, or by its columns' lengths.

Both are dict -> dict, between the parameters that an optimizer moves and the operation that is called with
what they give; JAX differentiates through them. What they give is a dict, typed as Any: the operation has its
own type for it.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from funcnet.errors import DTypeError, ShapeError, StructureError, ValueRangeError, describe
from funcnet.linalg._norms import norm
from funcnet.linalg.operator import Operator

__all__ = ["lengths", "spectral_norm", "weight_norm"]


def spectral_norm(
    params: Mapping[str, Any],
    operator: Callable[..., Operator],
    in_shape: tuple[int, ...],
    *,
    scale: float = 1.0,
    grow: bool = True,
    **options: Any,
) -> Any:
    """The same parameters with w · scale / ‖A‖, A the map of the layer: its norm is then at most scale.

    ‖A‖ is the certified upper bound ``operator(params, in_shape, **options).norm().upper``: of a
    convolution that of the convolution itself, with its stride, borders and groups, not of its kernel as a
    matrix, which can be several times smaller. It exceeds σ₁ by a few per cent at most (docs/linalg.md).
    The gradient goes through the bound: dW = (dŴ − ⟨dŴ, Ŵ⟩ d‖A‖/dW) / ‖A‖. A w of zeros stays zero, and its
    gradient is that of w itself. Source: Miyato, Kataoka, Koyama and Yoshida, "Spectral Normalization",
    arXiv 1802.05957, where σ₁ is estimated from below.

        params = fn.spectral_norm(params, fn.conv.operator, (28, 28, 1), stride=2)

    Args:
        params: {"w": ..., "b": ...}, of which w becomes another.
        operator: ``fn.linear.operator``, ``fn.conv.operator`` or ``fn.conv_transpose.operator``.
        in_shape: of one example that the layer is given.
        scale: the norm that it gets, above 0.
        grow: whether a norm below `scale` becomes `scale` too; False: such a w stays as it is.
        options: those of the layer: stride, padding ...

    Raises:
        StructureError: params is no dict with a "w".
        DTypeError: w is not floating-point.
        ValueRangeError: scale is not above 0.
        FuncnetError: what `operator` refuses.
    """
    w = _leaf("spectral_norm", params, "w")
    if not callable(operator):
        raise DTypeError(
            "spectral_norm: operator is no function.",
            path="operator",
            expected="operator: fn.linear.operator, fn.conv.operator or fn.conv_transpose.operator",
            actual=f"operator: {describe(operator)}",
        )
    if not (isinstance(scale, int | float) and 0 < scale < float("inf")):
        raise ValueRangeError(
            f"spectral_norm: scale is {scale!r}.",
            path="scale",
            expected="0 < scale < ∞",
            actual=f"scale = {scale!r}",
        )
    h = _widened(w)
    dead = jnp.all(h == 0)
    alive = jnp.where(dead, 1, h)  # the norm has no derivative at 0
    upper = operator({"w": alive}, in_shape, **options).norm(steps=1).upper
    upper = upper if grow else jnp.maximum(upper, scale)
    return {**params, "w": (h * jnp.where(dead, 1, scale / upper)).astype(w.dtype)}


def weight_norm(params: Mapping[str, Any]) -> Any:
    """{"w", "g", "b"} -> {"w", "b"}, w = g · w / ‖w‖: directions and lengths as parameters of their own.

    ‖w‖ is the Euclidean norm over the axes along which g has size 1: those that the outputs are summed
    over. The gradients are dg = ⟨dŵ, w⟩ / ‖w‖, and a dw that is orthogonal to w. A column of zeros stays
    zero, with gradient 0. Source: Salimans and Kingma, "Weight Normalization", arXiv 1602.07868.

    >>> params = lengths({"w": jnp.array([[3.0, 1.0], [4.0, 0.0]]), "b": jnp.zeros(2)})
    >>> params["g"].tolist(), weight_norm(params)["w"].tolist()
    ([[5.0, 1.0]], [[3.0, 1.0], [4.0, 0.0]])

    Args:
        params: w of any shape, g of the same rank, each of its axes of w's size or 1. `lengths` makes g.

    Raises:
        StructureError: params is no dict with a "w" and a "g".
        ShapeError: g does not fit w.
        DTypeError: they are not floating-point.
    """
    w, g = (_leaf("weight_norm", params, name) for name in ("w", "g"))
    if g.ndim != w.ndim or any(a not in (1, b) for a, b in zip(g.shape, w.shape, strict=True)):
        raise ShapeError(
            "weight_norm: g does not fit w.",
            path='params["g"]',
            expected=f'params["g"]: of rank {w.ndim}, sizes of w or 1     (w: {describe(w)})',
            actual=f'params["g"]: {describe(g)}',
            hint='lengths({"w": w}, axis) makes one.',
        )
    h = _widened(w)
    length, small = norm(h, tuple(i for i, size in enumerate(g.shape) if size == 1))
    dead = length == 0
    g, unit = jnp.where(dead, 0, g.astype(h.dtype)), h * small / jnp.where(dead, 1, length)
    rest = {name: leaf for name, leaf in params.items() if name != "g"}
    return {**rest, "w": (g * unit).astype(w.dtype)}


def lengths(params: Mapping[str, Any], axis: int | tuple[int, ...] = -1) -> dict[str, Any]:
    """{"w", "b"} -> {"w", "g", "b"}, g = ‖w‖ over all axes but `axis`: `weight_norm` changes nothing then.

    Args:
        params: the parameters of a layer.
        axis: the axis of w, or the axes, that its outputs lie along: −1 of linear and conv, −2 of
            conv_transpose, (1, 2) of the heads of a query.

    Raises:
        StructureError: params is no dict with a "w".
        ValueRangeError: w has no such axis.
        DTypeError: w is not floating-point.
    """
    w = _leaf("lengths", params, "w")
    kept = axis if isinstance(axis, tuple | list) else (axis,)
    if not all(isinstance(a, int) and -w.ndim <= a < w.ndim for a in kept):
        raise ValueRangeError(
            f"lengths: w has no axis {axis!r}.",
            path="axis",
            expected=f"{-w.ndim} ≤ axis < {w.ndim}     (w: {describe(w)})",
            actual=f"axis = {axis!r}",
        )
    h = _widened(w)
    own = {a % w.ndim for a in kept}
    length, small = norm(h, tuple(i for i in range(w.ndim) if i not in own))
    return {**params, "g": (length / small).astype(w.dtype)}


def _widened(w: jax.Array) -> jax.Array:
    return w if w.dtype.itemsize > 4 else w.astype(jnp.float32)


def _leaf(where: str, params: Any, name: str) -> jax.Array:
    if not isinstance(params, Mapping) or params.get(name) is None:
        raise StructureError(
            f'{where}: params has no "{name}".'
            if isinstance(params, Mapping)
            else f"{where}: params is not a dict.",
            path=f'params["{name}"]' if isinstance(params, Mapping) else "params",
            expected=f'params: a dict with the key "{name}"',
            actual=f"keys: {', '.join(map(repr, params)) or 'none'}"
            if isinstance(params, Mapping)
            else f"params: {describe(params)}",
        )
    leaf = params[name]
    if not jnp.issubdtype(getattr(leaf, "dtype", None) or jnp.bool_, jnp.floating):
        raise DTypeError(
            f'{where}: params["{name}"] is no array of floats.',
            path=f'params["{name}"]',
            expected=f'params["{name}"]: float[...]',
            actual=f'params["{name}"]: {describe(leaf)}',
        )
    return jnp.asarray(leaf)
