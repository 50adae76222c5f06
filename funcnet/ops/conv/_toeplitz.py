"""The Toeplitz matrix T(w) of a convolution, never built: its products, for `conv` and `conv_transpose`.

y = T(w) x, its transpose T(w)ᵀ dy and the kernel gradient are each other's transposes; they are primitives,
so that every order of differentiation stays inside them. docs/derivations/conv.md derives them.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from funcnet import rules
from funcnet.errors import ShapeError, ValueRangeError, describe
from funcnet.linalg import Operator
from funcnet.ops import _check, _squares
from funcnet.ops._cost import Abstract
from funcnet.ops._dtype import common, narrow, wide
from funcnet.ops._shape import known
from funcnet.ops.conv import _toeplitz_forms as forms
from funcnet.ops.conv._window import Padding, Window, pads, per_axis

__all__ = [
    "AXES",
    "PAD_MODES",
    "Map",
    "check_channels",
    "check_groups",
    "check_method",
    "example",
    "fold_border",
    "forward",
    "grouped",
    "kernel",
    "kernel_gradient",
    "matrix",
    "operator",
    "squares",
    "transposed",
    "window_of",
]

Array = jax.Array
AXES = {1: ("t",), 2: ("h", "w"), 3: ("z", "h", "w")}  # the names of the spatial ones, by their number
PAD_MODES = {"zeros": "constant", "circular": "wrap", "reflect": "reflect"}


class Map(NamedTuple):
    """What is static about the linear map x -> T(w) x."""

    window: Window
    groups: int
    padding_mode: str
    method: str = "auto"


def forward(w: Array, x: Array, static: Map) -> Array:
    """y [*n, *out, c_out] = T(w) x, x [*n, *size, c_in], in the dtype that holds both."""
    w, x = common(w, x)
    xs, window = _border(_split(x, w.ndim - 2, static.groups), static)
    y = _toeplitz(_of_groups(w, static.groups), xs, window=window, method=static.method)
    return y.reshape(*x.shape[: x.ndim - w.ndim + 1], *static.window.out, w.shape[-1])


def transposed(w: Array, dy: Array, static: Map) -> Array:
    """dx [*n, *size, c_in] = T(w)ᵀ dy, dy [*n, *out, c_out]: what lies beyond the border is folded back."""
    w, dy = common(w, dy)
    lead, c_in = dy.shape[: dy.ndim - w.ndim + 1], w.shape[-2] * static.groups
    dys = _split(dy, w.ndim - 2, static.groups)
    inner = _inside_border(static)
    dxs = _transposed(dys, _of_groups(w, static.groups), window=inner, method=static.method)
    return fold_border(dxs, static.window, static.padding_mode).reshape(*lead, *static.window.sizes, c_in)


def kernel_gradient(x: Array, dy: Array, like: Array, static: Map) -> Array:
    """dw [*kernel, c_in / groups, c_out], the kernel gradient, in the shape and dtype of w, `like`."""
    x, dy = common(x, dy)
    xs, window = _border(_split(x, like.ndim - 2, static.groups), static)
    dys = _split(dy, like.ndim - 2, static.groups)
    dws = _kernel_gradient(xs, dys, window=window, method=static.method)
    dws = dws if static.groups == 1 else jnp.moveaxis(dws, -3, -2)
    return narrow(dws.reshape(like.shape), like)


def squares(x: Array, dy: Array, ndim: int, static: Map) -> Array:
    """|dw|² [n] of each example, of the kernel with `ndim` axes: of its patches of x, as rows, times dy.

    As `kernel_gradient` of one example after the other; the first axis is that of the examples.
    """
    x, dy = common(x, dy)
    n, d = x.shape[0], ndim - 2
    xs, window = _border(_split(x, d, static.groups), static)
    dys = _split(dy, d, static.groups)
    padded = jnp.pad(xs, _ends(xs, window))
    patches = jnp.stack([padded[(slice(None), *seen)] for _, seen in window.taps], -2)  # [..., g, taps, c]

    t = math.prod((*x.shape[1 : x.ndim - d - 1], *window.out))

    def apart(v: Array, last: int) -> Array:
        """[n · g, positions, the last axes as one]."""
        features = math.prod(v.shape[v.ndim - last :])
        v = v.reshape(n, t, static.groups, features).swapaxes(1, 2)
        return v.reshape(n * static.groups, t, features)

    return _squares.product(apart(patches, 2), apart(dys, 1)).reshape(n, static.groups).sum(1)


def matrix(w: Array, static: Map) -> Array:
    """T(w) [Π out · c_out, Π size · c_in], dense, in C order.

    T(w) = Σ_k S(k) ⊗ w[k]ᵀ, where S(k) [out, size] is 1 where output o sees input p through tap k; over
    several spatial axes S is the Kronecker product of one factor per axis.
    """
    window, groups, padding_mode, _ = static
    d, c_in, c_out = w.ndim - 2, w.shape[-2] * groups, w.shape[-1]
    group = jnp.repeat(jnp.eye(groups, dtype=w.dtype), c_out // groups, 1)  # [g, c_out]: is j in group g?
    taps = jnp.einsum("...ij,gj->...jgi", w, group).reshape(*window.kernel, c_out, c_in)
    for axis in range(d):  # the leading kernel axis becomes a pair (out, size) at the end
        seen = _positions(window, axis, padding_mode)[0][..., None] == np.arange(window.sizes[axis])
        taps = jnp.einsum("kop,k...->...op", jnp.asarray(seen, w.dtype), taps)
    rows, columns = range(2, 2 + 2 * d, 2), range(3, 3 + 2 * d, 2)
    taps = taps.transpose(*rows, 0, *columns, 1)
    return taps.reshape(math.prod(window.out) * c_out, math.prod(window.sizes) * c_in)


def operator(w: Array, static: Map) -> Operator:
    """T(w) as an operator; every function of it is one of this module, bound to `static`."""
    window = static.window
    of_w = lambda function: Partial(rules.bind(function, static=static), w)
    circulant = all(s * o == n for s, o, n in zip(window.stride, window.out, window.sizes, strict=True)) and (
        static.padding_mode == "circular" or not any(itertools.chain(*window.padding))
    )
    empty = 0 in (*window.sizes, *window.out)
    return Operator(
        of_w(_forward_rows),
        of_w(_back_rows),
        of_w(matrix),
        of_w(_entries),
        of_w(_circulant_taps) if circulant and not empty else None,
        of_w(_taps_above) if static.padding_mode == "zeros" and not empty else None,
        of_w(_absolute_sums),
        (math.prod(window.out) * w.shape[-1], math.prod(window.sizes) * w.shape[-2] * static.groups),
        w.dtype.name,
    )


def _forward_rows(w: Array, x: Array, *, static: Map) -> Array:
    x = x.reshape(x.shape[0], *static.window.sizes, w.shape[-2] * static.groups)
    return forward(w, x, static).reshape(x.shape[0], -1)


def _back_rows(w: Array, y: Array, *, static: Map) -> Array:
    return transposed(w, y.reshape(y.shape[0], *static.window.out, -1), static).reshape(y.shape[0], -1)


def _absolute_sums(w: Array, *, static: Map) -> tuple[Array, Array]:
    """The largest Σ |T(w)| over a column and over a row: |T(w)| is T(|w|), applied to ones."""
    ones = lambda sizes, channels: jnp.ones((*sizes, channels), w.dtype)
    down = transposed(jnp.abs(w), ones(static.window.out, w.shape[-1]), static)
    across = forward(jnp.abs(w), ones(static.window.sizes, w.shape[-2] * static.groups), static)
    return down.max(), across.max()


def _circulant_taps(w: Array, *, static: Map) -> Array:
    return _periodic(w, static, static.window.sizes, [low for low, _ in static.window.padding])


def _taps_above(w: Array, *, static: Map) -> Array:
    """Zeros beyond the border are a part of a longer period: T(w) is a block of that circulant matrix."""
    window = static.window
    longer = [
        -(-(n + low + high) // s) * s
        for n, (low, high), s in zip(window.sizes, window.padding, window.stride, strict=True)
    ]
    return _periodic(w, static, longer, [0] * len(longer))


def _periodic(w: Array, static: Map, sizes: Sequence[int], lows: Sequence[int]) -> Array:
    """The block that each offset of a periodic signal meets, [*sizes / stride, g, phases · c_in, c_out].

    The phases of the stride are channels, as in `_toeplitz_forms.polyphase`: y_o = Σ_q x_{o + q} taps_q.
    """
    window, d = static.window, len(sizes)
    at = np.ix_(
        *(
            (np.arange(k) * e - low) % n
            for k, e, low, n in zip(window.kernel, window.dilation, lows, sizes, strict=True)
        )
    )
    split = _split_kernel(w, static.groups)
    taps = jnp.zeros((*sizes, *split.shape[d:]), w.dtype).at[at].add(split)
    pairs = itertools.chain(*((n // s, s) for n, s in zip(sizes, window.stride, strict=True)))
    taps = taps.reshape(*pairs, *split.shape[d:])
    taps = jnp.moveaxis(taps, range(1, 2 * d, 2), range(d + 1, 2 * d + 1))  # [*n / s, g, *s, c_in, c_out]
    return taps.reshape(*taps.shape[: d + 1], -1, split.shape[-1])


def _entries(w: Array, *, static: Map) -> Any:  # BCOO
    """The elements of T(w) that are products of a tap; where taps meet, their sum is the element."""
    window, groups = static.window, static.groups
    d, c_in, c_out = w.ndim - 2, w.shape[-2], w.shape[-1]
    seen, inside = zip(*(_positions(window, a, static.padding_mode) for a in range(d)), strict=True)
    along = lambda v, a: v.reshape([n for b in range(d) for n in (v.shape if b == a else (1, 1))])
    where = functools.reduce(np.logical_and, [along(v, a) for a, v in enumerate(inside)])
    columns = np.zeros(where.shape, int)
    for a in range(d):
        columns = columns * window.sizes[a] + along(seen[a], a)
    rows_first = lambda v: v.transpose(*range(0, 2 * d, 2), *range(1, 2 * d, 2)).reshape(
        math.prod(window.kernel), -1
    )  # [kernel, out]
    tap, out = np.nonzero(rows_first(where))
    position = rows_first(columns)[tap, out]
    i, j = np.arange(c_in), np.arange(c_out)
    group = j // (c_out // groups)
    shape = (len(tap), c_in, c_out)
    row = np.broadcast_to(out[:, None, None] * c_out + j, shape)
    column = position[:, None, None] * (c_in * groups) + group * c_in + i[:, None]
    indices = jnp.asarray(np.stack([row, np.broadcast_to(column, shape)], -1).reshape(-1, 2), jnp.int32)
    values = w.reshape(-1, c_in, c_out)[tap].reshape(-1)
    rows = math.prod(window.out) * c_out
    from jax.experimental.sparse import BCOO  # with scipy: only whoever asks waits for it

    return BCOO((values, indices), shape=(rows, math.prod(window.sizes) * c_in * groups))


# ---- checks -----------------------------------------------------------------------------------------------


def kernel(where: str, params: Any) -> Array:
    """params["w"], with 1 to 3 kernel axes."""
    w = _check.parameter(where, params, "w")
    if not 3 <= w.ndim <= 5:
        raise ShapeError(
            f'{where}: params["w"] has {w.ndim} axes, but 3, 4 or 5 are needed.',
            path='params["w"]',
            expected='params["w"]: float[*kernel, c_in / groups, c_out], with 1 to 3 kernel axes',
            actual=f'params["w"]: {describe(w)}',
        )
    if 0 in w.shape[:-2]:
        raise ShapeError(
            f'{where}: the kernel of params["w"] has no taps along axis {w.shape.index(0)}.',
            path='params["w"]',
            expected="at least one tap along every spatial axis",
            actual=f'params["w"]: {describe(w)}',
        )
    return w


def example(where: str, w: Array, in_shape: Sequence[int]) -> jax.ShapeDtypeStruct:
    """One x of shape `in_shape`, (*size, c), without its batch."""
    d = w.ndim - 2
    shape = _check.integers(where, "in_shape", in_shape, least=0, like=f"({', '.join('dhw'[-d:])}, c)")
    if len(shape) != d + 1:
        raise ShapeError(
            f"{where}: in_shape has {len(shape)} entries, but one x has {d + 1} axes.",
            path="in_shape",
            expected=f"({', '.join('dhw'[-d:])}, c), without a batch     (w: {describe(w)})",
            actual=f"in_shape = {shape}",
        )
    return jax.ShapeDtypeStruct(shape, w.dtype)


def check_channels(where: str, w: Abstract, x: Abstract, takes: int, groups: int, other: str | None) -> None:
    """x has the channels that w takes; `other` is the hint where the layout of x explains nothing."""
    d = w.ndim - 2
    if x.shape[-1] == takes:
        return
    hint = other
    if len(x.shape) > d and x.shape[-d - 1] == takes:
        axis = len(x.shape) - d - 1
        hint = f"axis {axis} has {takes}: channels first? jnp.moveaxis(x, {-d - 1}, -1) puts them last."
    elif len(x.shape) in (d, d + 1) and takes == 1:
        hint = "is the channel axis missing? x[..., None] adds it."
    axes = "".join(f"{a}, " for a in "dhw"[-d:])
    times = f" times {groups} groups" if groups > 1 else ""
    raise ShapeError(
        f'{where}: x has {x.shape[-1]} channels in its last axis, but params["w"] takes {takes}.',
        path="x",
        expected=f"x: float[*n, {axes}{takes}]     (w: {describe(w)}{times})",
        actual=f"x: {describe(x)}",
        hint=hint,
    )


def check_groups(where: str, groups: int, c_in: int, c_out: int) -> None:
    """`groups` divide both channel counts."""
    _check.positive(where, "groups", groups)
    for name, channels in (("c_in", c_in), ("c_out", c_out)):
        if channels % groups:
            raise ValueRangeError(
                f"{where}: {groups} groups do not divide {name} = {channels}.",
                path="groups",
                expected=f"a divisor of c_in = {c_in} and of c_out = {c_out}",
                actual=f"groups = {groups}",
            )


def grouped(where: str, params: Any, groups: int) -> tuple[int, ...]:
    """The shape of w, whose last axis is split into groups."""
    w = _check.mapping(where, "params", params) or params.get("w")
    rank = len(getattr(w, "shape", ()))
    if rank - 2 not in AXES:
        raise ShapeError(
            f'{where}: params["w"] is no kernel.',
            path='params["w"]',
            expected='params["w"]: 1 to 3 axes of taps, and two of channels',
            actual=f'params["w"]: {describe(w)}',
        )
    if w.shape[-1] % _check.positive(where, "groups", groups):
        raise ValueRangeError(
            f"{where}: {groups} groups do not divide {w.shape[-1]} channels.",
            path="groups",
            expected=f'a divisor of {w.shape[-1]}     (params["w"]: {describe(w)})',
            actual=f"groups = {groups}",
        )
    return tuple(w.shape)


def check_method(where: str, method: str, window: Window) -> None:
    """`method` is known, and fits the window."""
    _check.one_of(where, "method", method, ("auto", *forms.METHODS))
    needs, fits = forms.NEEDS.get(method, ("", lambda _: True))
    if not fits(window):
        raise ValueRangeError(
            f'{where}: method "{method}" does not fit this window.',
            path="method",
            expected=needs,
            actual=f"kernel {window.kernel}, stride {window.stride}, dilation {window.dilation}",
            hint='method="auto" chooses one that fits.',
        )


def window_of(
    where: str,
    w: Abstract,
    sizes: tuple[int, ...],
    stride: int | Sequence[int],
    padding: Padding,
    dilation: int | Sequence[int],
    padding_mode: str,
) -> Window:
    """The window of the kernel w over an input of `sizes`."""
    d, kernel = w.ndim - 2, tuple(w.shape[: w.ndim - 2])
    strides, dilations = per_axis(where, "stride", stride, d), per_axis(where, "dilation", dilation, d)
    window = Window(
        sizes, kernel, strides, dilations, pads(where, padding, sizes, kernel, strides, dilations)
    )
    for axis, (size, pair) in enumerate(zip(sizes, window.padding, strict=True)):
        if not known(size):
            continue
        widest = {"zeros": max(pair), "circular": max(pair) if size else 0, "reflect": max(size - 1, 0)}[
            padding_mode
        ]
        if max(pair) > widest:
            raise ValueRangeError(
                f"{where}: a {padding_mode} border of {max(pair)} is too wide for spatial axis {axis} of x.",
                path="padding",
                expected=f"at most {widest}     (the axis has size {size})",
                actual=f"padding = {window.padding}",
                hint='padding_mode "circular" may be wider.' if size and padding_mode == "reflect" else None,
            )
    return window


# ---- borders ----------------------------------------------------------------------------------------------


def _inside_border(static: Map) -> Window:
    """The window that is left for the product, once x is continued beyond its border."""
    window = static.window
    if static.padding_mode == "zeros":
        return window
    sizes = tuple(n + low + high for n, (low, high) in zip(window.sizes, window.padding, strict=True))
    return window._replace(sizes=sizes, padding=((0, 0),) * len(sizes))


def _border(x: Array, static: Map) -> tuple[Array, Window]:
    """x of `_split` continued beyond its border, and the window that is left for the product."""
    if static.padding_mode != "zeros":
        x = jnp.pad(x, _ends(x, static.window), mode=PAD_MODES[static.padding_mode])
    return x, _inside_border(static)


def _ends(x: Array, window: Window) -> list[tuple[int, int]]:
    """The padding of each axis of x [n, *size, ...]."""
    padded = [(0, 0), *window.padding]
    return padded + [(0, 0)] * (x.ndim - len(padded))


def fold_border(dx: Array, window: Window, padding_mode: str) -> Array:
    """The transpose of `_border`: every element beyond the border returns to the one that it copies.

    dx [n, *(low + size + high), ...] gives [n, *size, ...]; with zeros beyond, it is without border already.
    """
    if padding_mode == "zeros":
        return dx
    for axis, (size, (low, high)) in enumerate(zip(window.sizes, window.padding, strict=True), start=1):
        dx = jnp.moveaxis(dx, axis, 0)
        if padding_mode == "circular" and size:  # line the periods up, then add them
            dx = jnp.pad(dx, [(-low % size, -high % size)] + [(0, 0)] * (dx.ndim - 1))
            dx = dx.reshape(-1, size, *dx.shape[1:]).sum(0)
        elif padding_mode == "reflect":
            first, dx, last = jnp.split(dx, [low, low + size])
            dx = dx.at[1 : low + 1].add(first[::-1]).at[size - 1 - high : size - 1].add(last[::-1])
        dx = jnp.moveaxis(dx, 0, axis)
    return dx


def _positions(window: Window, axis: int, padding_mode: str) -> tuple[np.ndarray, np.ndarray]:
    """Along one axis, the position that output o sees through tap k [kernel, out]; whether it is inside."""
    size, reach = window.sizes[axis], np.arange(window.kernel[axis]) * window.dilation[axis]
    seen = np.arange(window.out[axis]) * window.stride[axis] + reach[:, None] - window.padding[axis][0]
    if padding_mode == "circular":
        seen = seen % max(size, 1)
    elif padding_mode == "reflect":
        seen = size - 1 - np.abs(size - 1 - np.abs(seen))
    return seen, (seen >= 0) & (seen < size)


# ---- the three products: x [n, *size, g, c_in], w [*kernel, g, c_in, c_out], y [n, *out, g, c_out] --------
#
# Of one group without the axis g, which the primitive adds when it is lowered: the traced program has none.


def _split(x: Array, d: int, groups: int) -> Array:
    """x [*n, *size, g · c] as [n, *size, g, c]; of one group as [n, *size, c]."""
    at = x.ndim - d - 1
    channels = (groups, x.shape[-1] // groups) if groups > 1 else x.shape[-1:]
    return x.reshape(math.prod(x.shape[:at]), *x.shape[at:-1], *channels)


def _of_groups(w: Array, groups: int) -> Array:
    return w if groups == 1 else _split_kernel(w, groups)


def _split_kernel(w: Array, groups: int) -> Array:
    """w [*kernel, c_in, g · c_out] as [*kernel, g, c_in, c_out]."""
    return jnp.moveaxis(w.reshape(*w.shape[:-1], groups, w.shape[-1] // groups), -2, -3)


def _toeplitz_problem(w: Array, x: Array, window: Window) -> forms.Problem:
    g, c_in, c_out = w.shape[-3:]
    return forms.Problem(window, x.shape[0], g, c_in, c_out, x.dtype)


def _kernel_problem(x: Array, dy: Array, window: Window) -> forms.Problem:
    return forms.Problem(window, x.shape[0], x.shape[-2], x.shape[-1], dy.shape[-1], x.dtype)


def _primitive(name: str, field: str, problem: Any, result: str, groups: tuple[int, ...]) -> rules.Bilinear:
    """One of the three products: XLA's convolution, but on CPU the form that `forms.on_cpu` chooses.

    groups: the axes g of a, of b and of the result.
    """

    def run(a: Array, b: Array, window: Window, form: Any) -> Array:
        if a.ndim == len(window.sizes) + 2:
            a, b = (jnp.expand_dims(v, at) for v, at in zip((a, b), groups[:2], strict=True))
            return run(a, b, window, form).squeeze(groups[2])
        p = problem(a, b, window)
        if 0 in (*p.x, *p.w, *p.y):
            return jnp.zeros(getattr(p, result), a.dtype)
        return getattr(form(p), field)(a, b)

    def in_wide(a: Array, b: Array, window: Window, form: Any) -> Array:
        return run(a.astype(wide(a.dtype)), b.astype(wide(b.dtype)), window, form).astype(a.dtype)

    def product(a: Array, b: Array, *, window: Window, method: str) -> Array:
        if method in ("auto", "direct"):
            return run(a, b, window, forms.direct)
        return in_wide(a, b, window, forms.METHODS[method])

    def on_cpu(a: Array, b: Array, *, window: Window, method: str) -> Array:
        if method != "auto":
            return product(a, b, window=window, method=method)
        return in_wide(a, b, window, lambda p: forms.on_cpu(p, field))

    return rules.bilinear(name, product, "window", "method", on_cpu=on_cpu)


_toeplitz = _primitive("conv", "toeplitz", _toeplitz_problem, "y", (-3, -2, -2))
_transposed = _primitive(
    "conv_transposed", "transposed", lambda dy, w, window: _toeplitz_problem(w, dy, window), "x", (-2, -3, -2)
)
_kernel_gradient = _primitive("conv_kernel_gradient", "kernel_gradient", _kernel_problem, "w", (-2, -2, -3))


def _batch(
    product: rules.Bilinear, only_a: tuple[int, ...], only_b: tuple[int, ...], groups: tuple[int, ...]
):
    """The batching rule of `product`: the new axis joins one that is there already.

    Each triple says which axis of a, of b and of the result takes it in: batch or channels where one
    operand is shared, the groups where both have the axis.
    """

    def batch(a: Array, b: Array, a_axis: int | None, b_axis: int | None, **static: Any) -> tuple[Array, int]:
        into_a, into_b, into_c = only_a if b_axis is None else only_b if a_axis is None else groups
        size = next(x.shape[axis] for x, axis in ((a, a_axis), (b, b_axis)) if axis is not None)
        if size == 0:  # joined to another axis it would take that with it
            empty = [
                (x.shape[:at] + x.shape[at + 1 :] if at is not None else x.shape)
                for x, at in ((a, a_axis), (b, b_axis))
            ]
            c = product(*(jnp.zeros(shape, a.dtype) for shape in empty), **static)
            return jnp.zeros((0, *c.shape), c.dtype), 0
        if a_axis is not None and b_axis is not None and a.ndim == len(static["window"].sizes) + 3:
            c = product(jnp.moveaxis(a, a_axis, into_a), jnp.moveaxis(b, b_axis, into_b), **static)
            return c, into_c % c.ndim  # of one group: the new axis is that of the groups
        a = a if a_axis is None else _join(a, a_axis, into_a)
        b = b if b_axis is None else _join(b, b_axis, into_b)
        c = product(a, b, **static)
        at = into_c % c.ndim
        return c.reshape(*c.shape[:at], size, c.shape[at] // size, *c.shape[at + 1 :]), at

    return batch


def _join(x: Array, axis: int, into: int) -> Array:
    at = into % (x.ndim - 1)
    x = jnp.moveaxis(x, axis, at)
    return x.reshape(*x.shape[:at], x.shape[at] * x.shape[at + 1], *x.shape[at + 2 :])


rules.close(
    _toeplitz,
    to_a=lambda dy, x, **static: _kernel_gradient(x, dy, **static),
    to_b=lambda dy, w, **static: _transposed(dy, w, **static),
    batch=_batch(_toeplitz, only_a=(-1, 0, -1), only_b=(0, 0, 0), groups=(-3, -2, -2)),
)
rules.close(
    _transposed,
    to_a=lambda dx, w, **static: _toeplitz(w, dx, **static),
    to_b=lambda dx, dy, **static: _kernel_gradient(dx, dy, **static),
    batch=_batch(_transposed, only_a=(0, 0, 0), only_b=(-2, -2, -1), groups=(-2, -3, -2)),
)
rules.close(
    _kernel_gradient,
    to_a=lambda dw, dy, **static: _transposed(dy, dw, **static),
    to_b=lambda dw, x, **static: _toeplitz(dw, x, **static),
    batch=_batch(_kernel_gradient, only_a=(-1, 0, -2), only_b=(0, -1, -1), groups=(-2, -2, -3)),
)
