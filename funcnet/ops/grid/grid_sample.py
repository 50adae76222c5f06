"""Samples between the points of a grid: y[n, o, c] = Σ_i Π_a f(i_a − p_a) x[n, i, c], p = p(grid[n, o]).

`grid` says where each output lies: its last axis has one coordinate per spatial axis of x, the *last* axis
first, as (x, y) of an image, from −1 at one edge to 1 at the other: p = ((g + 1) size − 1) / 2, or (g + 1)
(size − 1) / 2 where corners are aligned. Dimensions: *n any leading axes (batch), i positions along 2 or 3
spatial axes (or 1), o those of y, any number of axes, c channels: x [*n, *size, c], grid [*n, *out, d], y
[*n, *out, c]. The filters f are those of `resize`: "nearest" (halves to even), "linear", "cubic" (a = −0.75).
Source: Jaderberg et al., "Spatial transformer networks", arXiv 1506.02025; conventions of PyTorch's
`grid_sample`. Computed in float32 or wider.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from funcnet import rules
from funcnet.errors import ShapeError, describe
from funcnet.ops import _check
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._dtype import common, narrow, wide
from funcnet.ops._shape import count, known

__all__ = ["apply", "cost", "reference", "vjp"]

_MODES = ("zeros", "border", "reflection")
_METHODS = {
    "nearest": (0,),
    "linear": (0, 1),
    "cubic": (-1, 0, 1, 2),
    "bilinear": (0, 1),
    "bicubic": (-1, 0, 1, 2),
}
_A = -0.75


def reference(
    x: Float[Array, "*n_and_size c"],
    grid: Float[Array, "*n_and_out d"],
    *,
    method: str = "linear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
) -> Float[Array, "*n_and_out c"]:
    """For every neighbour of p, its element of x times the filter's value along each axis."""
    x, grid = common(x, grid)
    xs, g, y_shape = _flat(x, grid)
    y = jnp.zeros((*g.shape[:2], x.shape[-1]), xs.dtype)
    rows = jnp.arange(g.shape[0])[:, None]
    for tap in itertools.product(_METHODS[method], repeat=g.shape[-1]):
        weight, place = jnp.ones((), xs.dtype), []
        for a, k in enumerate(tap):
            index, w, _ = _tap(g[..., -1 - a], xs.shape[1 + a], k, method, padding_mode, align_corners)
            weight, place = weight * w, [*place, index]
        y = y + jnp.where(weight[..., None] != 0, xs[(rows, *place)], 0) * weight[..., None]
    return y.reshape(y_shape).astype(x.dtype)


@rules.operation
def apply(
    x: Float[Array, "*n_and_size c"],
    grid: Float[Array, "*n_and_out d"],
    *,
    method: str = "linear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
) -> Float[Array, "*n_and_out c"]:
    """Look x up at the points of `grid`.

    Differentiated by `vjp`, which keeps x and grid; JAX's own rule keeps every neighbour of every point.

    Args:
        x: [*n, *size, c], channels last.
        grid: [*n, *out, d], its last axis (x), (x, y) or (x, y, z): how many there are is how many spatial
            axes x has. −1 and 1 are the edges; what lies beyond is allowed. Where it is NaN, y is NaN, or 0
            if zeros lie beyond the edges.
        method: "nearest", "linear" or "cubic", or PyTorch's "bilinear" and "bicubic".
        padding_mode: what lies beyond the edges: "zeros", "border" (the last element), or "reflection".
        align_corners: whether −1 and 1 are the centres of the first and last elements, not their outer edges.

    Returns:
        y [*n, *out, c], in the dtype that holds both x and grid. "nearest" has no derivative in grid; at a
        point of x "linear" has that of the right side, at and beyond the edge of a "border" it is 0.

    Raises:
        ShapeError: x and grid have other leading axes, or x no elements.
        DTypeError: x or grid is not floating-point.
        ValueRangeError: an option is none of those.

    >>> x = jnp.array([1.0, 2.0, 3.0])[:, None]
    >>> grid = jnp.array([[-1.0], [0.5]])  # from -1, the first, to 1, the last
    >>> fn.grid_sample.apply(x, grid, align_corners=True).ravel().tolist()
    [1.0, 2.5]
    """
    where = "grid_sample.apply"
    x, grid = _check.floating(where, "x", x), _check.floating(where, "grid", grid)
    _check_shapes(where, x, grid)
    _check.one_of(where, "method", method, tuple(_METHODS))
    _check.one_of(where, "padding_mode", padding_mode, _MODES)
    align_corners = _check.flag(where, "align_corners", align_corners)
    options = {"padding_mode": padding_mode, "align_corners": align_corners}
    return rules.call(vjp, x, grid, method=method, **options)


def vjp(
    x: Float[Array, "*n_and_size c"],
    grid: Float[Array, "*n_and_out d"],
    *,
    method: str = "linear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
) -> tuple[Float[Array, "*n_and_out c"], Partial]:
    """y and its pullback, with w_k = Π_a f(i_a − p_a).

    dx[i_k] = Σ w_k dy, dg_a = Σ_k ∂w_k/∂g_a ⟨x[i_k], dy⟩.
    """
    options = {"method": method, "padding_mode": padding_mode, "align_corners": bool(align_corners)}
    y = reference(x, grid, **options)
    return y, Partial(rules.bind(_pullback, **options), x, grid)


def _pullback(
    x: Array, grid: Array, dy: Array, *, method: str, padding_mode: str, align_corners: bool
) -> tuple[Array, Array]:
    x_, grid_ = common(x, grid)
    xs, g, _ = _flat(x_, grid_)
    d, dys = g.shape[-1], dy.astype(xs.dtype).reshape(*g.shape[:2], x.shape[-1])
    rows = jnp.arange(g.shape[0], dtype=jnp.int32)[:, None]
    dx, dg = jnp.zeros_like(xs), [jnp.zeros_like(g[..., 0])] * d
    offsets = _METHODS[method]
    taps = [
        {k: _tap(g[..., -1 - a], xs.shape[1 + a], k, method, padding_mode, align_corners) for k in offsets}
        for a in range(d)
    ]
    for tap in itertools.product(offsets, repeat=d):
        index, w, dw = zip(*(taps[a][k] for a, k in enumerate(tap)), strict=True)
        weight = _times(w)[..., None]
        seen = (weight != 0) & (weight == weight)  # a point that is NaN sees nothing
        dx = dx.at[(rows, *index)].add(jnp.where(seen, weight * dys, 0))
        if method == "nearest":
            continue
        slopes = [_times((dw[a], *w[:a], *w[a + 1 :])) for a in range(d)]
        seen = functools.reduce(jnp.logical_or, (s != 0 for s in slopes))
        dot = jnp.where(seen[..., None], xs[(rows, *index)] * dys, 0).sum(-1)
        dg = [total + jnp.where(s != 0, s * dot, 0) for total, s in zip(dg, slopes, strict=True)]
    dgrid = jnp.stack(dg[::-1], -1)
    return narrow(dx.reshape(x.shape), x), narrow(dgrid.reshape(grid.shape), grid)


def _times(factors: Sequence[Array]) -> Array:
    return functools.reduce(jnp.multiply, factors)


def cost(
    x: Float[Abstract, "*n_and_size c"],
    grid: Float[Abstract, "*n_and_out d"],
    *,
    method: str = "linear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
) -> Cost:
    """No products of matrices: 0 flops, and the bytes of x, grid and y."""
    options = {"method": method, "padding_mode": padding_mode, "align_corners": align_corners}
    return Cost(0, traffic(reference, x, grid, **options))


def _flat(x: Array, grid: Array) -> tuple[Array, Array, tuple[Any, ...]]:
    """x [n, *size, c] and grid [n, points, d] with one leading axis, wide; and the shape of y."""
    d = grid.shape[-1]
    lead, sizes = x.shape[: x.ndim - d - 1], x.shape[x.ndim - d - 1 :]
    out = grid.shape[len(lead) : -1]
    x, grid = x.astype(wide(x.dtype)), grid.astype(wide(grid.dtype))
    n = math.prod(lead)
    return x.reshape(n, *sizes), grid.reshape(n, math.prod(out), d), (*lead, *out, x.shape[-1])


def _tap(
    g: Array, size: Any, k: int, method: str, padding_mode: str, align_corners: bool
) -> tuple[Array, Array, Array]:
    """Along one axis, of the k-th neighbour of each point: its place in x, its weight, and d weight / dg."""
    n = count(size, g.dtype)
    slope = (n - 1) / 2 if align_corners else n / 2
    p = (g + 1) * slope + (0 if align_corners else -0.5)
    cubic = len(_METHODS[method]) == 4
    sign = jnp.ones_like(p)
    if not cubic:  # what the border does to the point itself
        p, sign = _within(p, n, padding_mode, align_corners)
    low = jnp.round(p) if method == "nearest" else jnp.floor(p)
    t = p - low - k
    if method == "nearest":
        weight, dw = jnp.ones_like(p), jnp.zeros_like(p)
    elif cubic:
        weight, dw = _cubic(t)
    else:
        weight, dw = (t + 1, jnp.ones_like(t)) if k else (1 - t, -jnp.ones_like(t))
    place = low + k
    if cubic:  # what it does to each neighbour
        place = jnp.round(_within(place, n, padding_mode, align_corners)[0])
    inside = (place >= 0) & (place <= n - 1)
    if padding_mode == "zeros":
        weight, dw = jnp.where(inside, weight, 0), jnp.where(inside, dw, 0)
    index = _clipped(jnp.where(inside, place, 0), 0, n - 1)[0].astype(jnp.int32)
    return index, weight, dw * sign * slope


def _within(p: Array, n: Any, padding_mode: str, align_corners: bool) -> tuple[Array, Array]:
    """p brought into the grid, and the sign that this gives its derivative."""
    if padding_mode == "zeros":
        return _clipped(p, -3, n + 2)[0], jnp.ones_like(p)
    sign = jnp.ones_like(p)
    if padding_mode == "reflection":
        low, span = (0.0, n - 1) if align_corners else (-0.5, n)
        span = jnp.maximum(jnp.asarray(span, p.dtype), jnp.finfo(p.dtype).tiny)
        from_low = p - low
        turns = jnp.floor(jnp.abs(from_low) / span)
        rest = jnp.abs(from_low) - turns * span
        odd = turns % 2 == 1
        p = jnp.where(odd, span - rest, rest) + low
        sign = jnp.where(odd, -1.0, 1.0).astype(p.dtype) * jnp.where(from_low < 0, -1.0, 1.0).astype(p.dtype)
    p, inside = _clipped(p, 0, n - 1)
    return p, jnp.where(inside, sign, 0)


def _clipped(p: Array, low: Any, high: Any) -> tuple[Array, Array]:
    """p brought into [low, high], by comparisons (jet has a fault in jnp.clip), and where it was inside."""
    below, above = p <= low, p >= high
    low, high = (jnp.asarray(end, p.dtype) for end in (low, high))
    return jnp.where(below, low, jnp.where(above, high, p)), ~(below | above)


def _cubic(t: Array) -> tuple[Array, Array]:
    """The filter at t, −2 ≤ t ≤ 2, and its derivative."""
    s, sign = jnp.abs(t), jnp.where(t < 0, -1.0, 1.0).astype(t.dtype)
    near = ((_A + 2) * s - (_A + 3)) * s * s + 1, (3 * (_A + 2) * s - 2 * (_A + 3)) * s
    far = _A * (((s - 5) * s + 8) * s - 4), _A * ((3 * s - 10) * s + 8)
    value, slope = (jnp.where(s <= 1, a, b) for a, b in zip(near, far, strict=True))
    return value, slope * sign


def _check_shapes(where: str, x: jax.Array, grid: jax.Array) -> None:
    d = grid.shape[-1] if grid.ndim else 0
    if d not in (1, 2, 3):
        raise ShapeError(
            f"{where}: the last axis of grid has {d} coordinates.",
            path="grid",
            expected="grid: float[*n, *out, d], d 1, 2 or 3, one coordinate per spatial axis of x",
            actual=f"grid: {describe(grid)}",
        )
    _check.rank(where, "x", x, d + 1, "*n, " + ", ".join("dhw"[-d:]) + ", c")
    lead = x.shape[: x.ndim - d - 1]
    if grid.shape[: len(lead)] != lead or grid.ndim < len(lead) + 1:
        raise ShapeError(
            f"{where}: x and grid have different leading axes.",
            path="grid",
            expected=f"grid: float[{', '.join(map(str, (*lead, '*out', d)))}]     (x: {describe(x)})",
            actual=f"grid: {describe(grid)}",
        )
    if any(known(n) and n == 0 for n in x.shape[x.ndim - d - 1 : -1]):
        raise ShapeError(
            f"{where}: x has no elements along a spatial axis.",
            path="x",
            expected="at least one along each spatial axis",
            actual=f"x: {describe(x)}",
        )
