"""Convolution in 1, 2 or 3 dimensions: y = T(w) x + b, with T(w) a (block-)Toeplitz matrix.

    y[n, o, j] = b[j] + Σ_k Σ_i  x̂[n, o·stride + k·dilation − low, i] · w[k, i, j]

x̂ is x continued beyond its border by `padding_mode`. Dimensions: *n any leading axes (batch), o and k
positions along 1 to 3 spatial axes, c channels, last: x [*n, *size, c_in], w [*kernel, c_in / groups, c_out],
b [c_out], y [*n, *out, c_out]. As in all deep learning, the kernel is not flipped (a cross-correlation).

Its three products, T(w) x, its transpose T(w)ᵀ dy and the kernel gradient, are each other's transposes;
they are primitives, so that every order of differentiation stays inside them.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, NotRequired, TypedDict

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float, PRNGKeyArray

from funcnet import rules
from funcnet.errors import ShapeError, ValueRangeError, describe
from funcnet.ops import _bias, _check
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._dtype import common, narrow, wide
from funcnet.ops._window import Padding, out_size, pads, per_axis

__all__ = ["Params", "apply", "cost", "init", "matrix", "reference", "vjp"]

_PAD_MODES = {"zeros": "constant", "circular": "wrap", "reflect": "reflect"}


class Window(NamedTuple):
    """Everything static about a convolution, in full: one entry per spatial axis."""

    sizes: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]

    @property
    def out(self) -> tuple[int, ...]:
        """The sizes of the output."""
        return tuple(itertools.starmap(out_size, zip(self.sizes, *self[1:], strict=True)))


class Params(TypedDict):
    """w [*kernel, c_in / groups, c_out]; b [c_out], absent for a convolution without bias."""

    w: Float[Array, "*kernel c_in c_out"]
    b: NotRequired[Float[Array, " c_out"]]


def init(
    key: PRNGKeyArray,
    c_in: int,
    c_out: int,
    *,
    kernel: int | Sequence[int],
    groups: int = 1,
    bias: bool = True,
) -> Params:
    """Draw w from N(0, 1/fan_in), fan_in = c_in / groups · Π kernel; b = 0.

    Args:
        key: a random key.
        c_in: channels of the input.
        c_out: channels of the output.
        kernel: one size per spatial axis; an int is a 1-D kernel.
        groups: both channel counts are split into so many independent convolutions.
        bias: whether there is a "b".

    Raises:
        ValueRangeError: a size is not positive, or groups do not divide the channels.

    >>> jax.tree.map(jnp.shape, init(jax.random.key(0), 4, 6, kernel=(3, 3), groups=2))
    {'b': (6,), 'w': (3, 3, 2, 6)}
    """
    where = "conv.init"
    c_in, c_out = _check.positive(where, "c_in", c_in), _check.positive(where, "c_out", c_out)
    sizes = per_axis(where, "kernel", kernel, len(kernel) if isinstance(kernel, Sequence) else 1)
    if not 1 <= len(sizes) <= 3:
        raise ShapeError(
            f"{where}: kernel has {len(sizes)} axes.",
            path="kernel",
            expected="1, 2 or 3 sizes",
            actual=f"kernel = {sizes}",
        )
    _check_groups(where, groups, c_in, c_out)
    w = jax.random.normal(key, (*sizes, c_in // groups, c_out)) / math.sqrt(c_in // groups * math.prod(sizes))
    return {"w": w, "b": jnp.zeros((c_out,), w.dtype)} if bias else {"w": w}


def reference(
    params: Params,
    x: Float[Array, "*n_and_size c_in"],
    *,
    stride: int | Sequence[int] = 1,
    padding: Padding = "same",
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
) -> Float[Array, "*n_and_out c_out"]:
    """The sum over the taps of the kernel, each a product of a shifted, strided x with one slice of w."""
    w, x = common(params["w"], x)
    window = _window("conv.reference", w, x, stride, padding, dilation, padding_mode)
    c_in, c_out = w.shape[-2:]
    lead = x.shape[: x.ndim - w.ndim + 1]
    x = jnp.pad(x, [(0, 0)] * len(lead) + [*window.padding, (0, 0)], mode=_PAD_MODES[padding_mode])
    x = x.reshape(*x.shape[:-1], groups, c_in)
    y = jnp.zeros((*lead, *window.out, groups, c_out // groups), x.dtype)
    for tap in itertools.product(*map(range, window.kernel)):
        w_tap = w[tap].reshape(c_in, groups, c_out // groups)
        y = y + jnp.einsum("...gi,igj->...gj", x[(..., *_seen(tap, window), slice(None), slice(None))], w_tap)
    return _bias.add(y.reshape(*lead, *window.out, c_out), params)


@rules.operation
def apply(
    params: Params,
    x: Float[Array, "*n_and_size c_in"],
    *,
    stride: int | Sequence[int] = 1,
    padding: Padding = "same",
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
) -> Float[Array, "*n_and_out c_out"]:
    """Convolve x with w over its spatial axes, of which w has as many as it has axes less two.

    Args:
        params: w [*kernel, c_in / groups, c_out] and, unless absent, b [c_out].
        x: [*n, *size, c_in], channels last.
        stride: step between outputs, an int or one per spatial axis.
        padding: "same" (⌈size / stride⌉ outputs, as XLA pads), "valid" (none), "causal" (all at the start),
            or one (low, high) pair per spatial axis.
        dilation: step between the taps of the kernel, an int or one per spatial axis.
        groups: output group g sees only input group g.
        padding_mode: what lies beyond the border: "zeros", "circular" or "reflect".

    Returns:
        y [*n, *out, c_out], in the dtype that holds both w and x.

    Raises:
        ShapeError: x has the wrong rank or channels.
        DTypeError: x or a parameter is not floating-point.
        ValueRangeError: an option is out of range, groups do not divide the channels, or a reflected
            border is wider than the signal.
        StructureError: params has no "w".
    """
    where = "conv.apply"
    w = _kernel(where, params)
    x = _check.floating(where, "x", x)
    _check.rank(where, "x", x, w.ndim - 1, "*n, " + ", ".join("dhw"[5 - w.ndim :]) + ", c")
    groups = _check.positive(where, "groups", groups)
    _check_groups(where, groups, w.shape[-2] * groups, w.shape[-1])
    _check_channels(where, w, x, groups)
    _check.one_of(where, "padding_mode", padding_mode, tuple(_PAD_MODES))
    _bias.check(where, params, w.shape[-1])
    window = _window(where, w, x, stride, padding, dilation, padding_mode)
    return _forward(params, x, window, groups, padding_mode)


def vjp(
    params: Params,
    x: Float[Array, "*n_and_size c_in"],
    *,
    stride: int | Sequence[int] = 1,
    padding: Padding = "same",
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
) -> tuple[Float[Array, "*n_and_out c_out"], Partial]:
    """y and its pullback: dx = T(w)ᵀ dy, folded back at the border; dw the kernel gradient; db = Σ dy.

    Written out: dx[n, p] = Σ w[k] dy[n, o] over the o and k with o·stride + k·dilation − low = p, and
    dw[k] = Σ_n,o x̂[n, o·stride + k·dilation − low]ᵀ dy[n, o].
    """
    window = _window("conv.vjp", params["w"], x, stride, padding, dilation, padding_mode)
    y = _forward(params, x, window, groups, padding_mode)
    return y, Partial(
        rules.bind(_pullback, window=window, groups=groups, padding_mode=padding_mode), params, x
    )


def _forward(params: Params, x: Array, window: Window, groups: int, padding_mode: str) -> Array:
    w, x = common(params["w"], x)
    xs, inner = _border(_split(x, w.ndim - 2, groups), window, padding_mode)
    y = _toeplitz(_split_kernel(w, groups), xs, window=inner)
    return _bias.add(y.reshape(*x.shape[: x.ndim - w.ndim + 1], *window.out, w.shape[-1]), params)


def _pullback(
    params: Params, x: Array, dy: Array, *, window: Window, groups: int, padding_mode: str
) -> tuple[dict, Array]:
    w, x_ = common(params["w"], x)
    xs, inner = _border(_split(x_, w.ndim - 2, groups), window, padding_mode)
    dys = _split(dy, w.ndim - 2, groups)
    dxs = _transposed(dys, _split_kernel(w, groups), window=inner)
    dws = _kernel_gradient(xs, dys, window=inner)
    dw = jnp.moveaxis(dws, -3, -2).reshape(w.shape)
    dx = _fold_border(dxs, window, padding_mode).reshape(x.shape)
    return {"w": narrow(dw, params["w"]), **_bias.gradient(params, dy)}, narrow(dx, x)


def matrix(
    params: Params,
    in_shape: tuple[int, ...],
    *,
    stride: int | Sequence[int] = 1,
    padding: Padding = "same",
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
) -> Float[Array, "out in"]:
    """T(w) as a dense matrix [Π out · c_out, Π size · c_in], for one x of shape (*size, c_in).

    T(w) = Σ_k S(k) ⊗ w[k]ᵀ, where S(k) [out, size] is 1 where output o sees input p through tap k; over
    several spatial axes S is the Kronecker product of one factor per axis.
    """
    where = "conv.matrix"
    w = _kernel(where, params)
    x = jax.ShapeDtypeStruct(tuple(in_shape), w.dtype)
    _check_channels(where, w, x, groups)
    window = _window(where, w, x, stride, padding, dilation, padding_mode)
    d, c_out = w.ndim - 2, w.shape[-1]
    group = jnp.repeat(jnp.eye(groups, dtype=w.dtype), c_out // groups, 1)  # [g, c_out]: is j in group g?
    taps = jnp.einsum("...ij,gj->...jgi", w, group).reshape(*window.kernel, c_out, x.shape[-1])
    for axis in range(d):  # the leading kernel axis becomes a pair (out, size) at the end
        seen = _selection(window, axis, padding_mode)
        taps = jnp.einsum("kop,k...->...op", seen.astype(w.dtype), taps)
    rows, columns = range(2, 2 + 2 * d, 2), range(3, 3 + 2 * d, 2)
    return taps.transpose(*rows, 0, *columns, 1).reshape(math.prod(window.out) * c_out, math.prod(in_shape))


def cost(
    params: Params,
    x: Float[Abstract, "*n_and_size c_in"],
    *,
    stride: int | Sequence[int] = 1,
    padding: Padding = "same",
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
) -> Cost:
    """2 · n · Π out · Π kernel · c_in / groups · c_out flops; products with the border are counted."""
    w = params["w"]
    window = _window("conv.cost", w, x, stride, padding, dilation, padding_mode)
    outputs = math.prod(x.shape[: x.ndim - w.ndim + 1]) * math.prod(window.out)
    options = {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "padding_mode": padding_mode,
    }
    return Cost(2 * outputs * math.prod(w.shape), traffic(reference, params, x, **options))


# ---- checks -----------------------------------------------------------------------------------------------


def _kernel(where: str, params: Params) -> Array:
    w = _check.parameter(where, params, "w")
    if not 3 <= w.ndim <= 5:
        raise ShapeError(
            f'{where}: params["w"] has {w.ndim} axes, but 3, 4 or 5 are needed.',
            path='params["w"]',
            expected='params["w"]: float[*kernel, c_in / groups, c_out], with 1 to 3 kernel axes',
            actual=f'params["w"]: {describe(w)}',
        )
    return w


def _check_groups(where: str, groups: int, c_in: int, c_out: int) -> None:
    _check.positive(where, "groups", groups)
    for name, channels in (("c_in", c_in), ("c_out", c_out)):
        if channels % groups:
            raise ValueRangeError(
                f"{where}: {groups} groups do not divide {name} = {channels}.",
                path="groups",
                expected=f"a divisor of c_in = {c_in} and of c_out = {c_out}",
                actual=f"groups = {groups}",
            )


def _check_channels(where: str, w: Array, x: Abstract, groups: int) -> None:
    d, c_in = w.ndim - 2, w.shape[-2] * groups
    if x.shape[-1] == c_in:
        return
    hint = None
    if len(x.shape) > d and x.shape[-d - 1] == c_in:
        axis = len(x.shape) - d - 1
        hint = f"axis {axis} has {c_in}: channels first? jnp.moveaxis(x, {-d - 1}, -1) puts them last."
    elif w.shape[-2] and x.shape[-1] % w.shape[-2] == 0 and w.shape[-1] % (x.shape[-1] // w.shape[-2]) == 0:
        hint = f"groups={x.shape[-1] // w.shape[-2]} would fit."
    elif len(x.shape) == d and c_in == 1:
        hint = "is the channel axis missing? x[..., None] adds it."
    times = f" times {groups} groups" if groups > 1 else ""
    raise ShapeError(
        f'{where}: x has {x.shape[-1]} channels in its last axis, but params["w"] takes {c_in}.',
        path="x",
        expected=f"x: float[*n, {''.join(f'{a}, ' for a in 'dhw'[-d:])}{c_in}]     (w: {describe(w)}{times})",
        actual=f"x: {describe(x)}",
        hint=hint,
    )


def _window(
    where: str,
    w: Abstract,
    x: Abstract,
    stride: int | Sequence[int],
    padding: Padding,
    dilation: int | Sequence[int],
    padding_mode: str,
) -> Window:
    d = w.ndim - 2
    sizes, kernel = tuple(x.shape[len(x.shape) - d - 1 : -1]), tuple(w.shape[:d])
    strides, dilations = per_axis(where, "stride", stride, d), per_axis(where, "dilation", dilation, d)
    window = Window(
        sizes, kernel, strides, dilations, pads(where, padding, sizes, kernel, strides, dilations)
    )
    for axis, (size, pair) in enumerate(zip(sizes, window.padding, strict=True)):
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


def _border(x: Array, window: Window, padding_mode: str) -> tuple[Array, Window]:
    """x [n, *size, g, c] continued beyond its border, and the window that is left for the product."""
    if padding_mode == "zeros":
        return x, window
    x = jnp.pad(x, [(0, 0), *window.padding, (0, 0), (0, 0)], mode=_PAD_MODES[padding_mode])
    return x, window._replace(sizes=x.shape[1:-2], padding=((0, 0),) * len(window.sizes))


def _fold_border(dx: Array, window: Window, padding_mode: str) -> Array:
    """The transpose of `_border`: every element beyond the border returns to the one that it copies."""
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


def _selection(window: Window, axis: int, padding_mode: str) -> Array:
    """S [kernel, out, size] of one axis: whether output o sees input p through tap k."""
    size, reach = window.sizes[axis], jnp.arange(window.kernel[axis]) * window.dilation[axis]
    seen = jnp.arange(window.out[axis]) * window.stride[axis] + reach[:, None] - window.padding[axis][0]
    if padding_mode == "circular":
        seen = seen % max(size, 1)
    elif padding_mode == "reflect":
        seen = size - 1 - jnp.abs(size - 1 - jnp.abs(seen))
    return seen[..., None] == jnp.arange(size)


# ---- the three products: x [n, *size, g, c_in], w [*kernel, g, c_in, c_out], y [n, *out, g, c_out] --------


def _split(x: Array, d: int, groups: int) -> Array:
    """x [*n, *size, g · c] as [n, *size, g, c]."""
    at = x.ndim - d - 1
    return x.reshape(math.prod(x.shape[:at]), *x.shape[at:-1], groups, x.shape[-1] // groups)


def _split_kernel(w: Array, groups: int) -> Array:
    """w [*kernel, c_in, g · c_out] as [*kernel, g, c_in, c_out]."""
    return jnp.moveaxis(w.reshape(*w.shape[:-1], groups, w.shape[-1] // groups), -2, -3)


def _grouped(
    x: Array, w: Array, stride: tuple, dilation: tuple, padding: tuple, spread: tuple | None = None
) -> Array:
    """One grouped convolution of XLA: channels last, the window not reversed, x spread out by `spread`.

    Reversal and batch groups would leave XLA:CPU's fast path, and so would spreading grouped channels.
    """
    *kernel, g, c_in, c_out = w.shape
    spatial = "DHW"[-len(kernel) :]
    y = lax.conv_general_dilated(
        x.reshape(*x.shape[:-2], g * c_in),
        jnp.moveaxis(w, -3, -2).reshape(*kernel, c_in, g * c_out),
        stride,
        padding,
        lhs_dilation=spread,
        rhs_dilation=dilation,
        dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
        feature_group_count=g,
        preferred_element_type=wide(x.dtype),
    )
    return y.astype(x.dtype).reshape(*y.shape[:-1], g, c_out)


def _toeplitz_product(w: Array, x: Array, *, window: Window) -> Array:
    """y = T(w) x."""
    if 0 in x.shape or 0 in w.shape or 0 in window.out:
        return jnp.zeros((x.shape[0], *window.out, *w.shape[-3::2]), x.dtype)
    return _grouped(x, w, window.stride, window.dilation, window.padding)


def _transposed_product(dy: Array, w: Array, *, window: Window) -> Array:
    """dx = T(w)ᵀ dy: dy spread out by the stride, convolved with the reversed kernel."""
    d = len(window.kernel)
    if 0 in dy.shape or 0 in w.shape or 0 in window.sizes:
        return jnp.zeros((dy.shape[0], *window.sizes, *w.shape[-3:-1]), dy.dtype)
    reversed_w = jnp.flip(w, tuple(range(d))).swapaxes(-1, -2)
    padding = _pads_of_transpose(window)
    if w.shape[-3] == 1:
        return _grouped(dy, reversed_w, (1,) * d, window.dilation, padding, window.stride)
    return _grouped(_spread(dy, window), reversed_w, (1,) * d, window.dilation, ((0, 0),) * d)


def _pads_of_transpose(window: Window) -> tuple[tuple[int, int], ...]:
    """Of dy, spread out by the stride; negative where it is cut."""
    return tuple(
        (e * (k - 1) - low, p + low - (o - 1) * s - 1)
        for p, k, s, e, (low, _), o in zip(*window, window.out, strict=True)
    )


def _spread(dy: Array, window: Window) -> Array:
    """dy [n, *out, g, c] with stride - 1 zeros between its positions, and its border."""
    pads = [(*pair, s - 1) for pair, s in zip(_pads_of_transpose(window), window.stride, strict=True)]
    return lax.pad(dy, jnp.zeros((), dy.dtype), [(0, 0, 0), *pads, (0, 0, 0), (0, 0, 0)])


def _kernel_product(x: Array, dy: Array, *, window: Window) -> Array:
    """dw: the convolution of x with dy in which batch and channels, stride and dilation change places."""
    if 0 in x.shape or 0 in dy.shape:
        return jnp.zeros((*window.kernel, x.shape[-2], x.shape[-1], dy.shape[-1]), dy.dtype)
    padding = tuple(
        (low, e * (k - 1) + (o - 1) * s + 1 - p - low)
        for p, k, s, e, (low, _), o in zip(*window, window.out, strict=True)
    )
    image = jnp.moveaxis(x, (-1, 0), (0, -1))  # [c_in, *size, g, n]
    kernel = jnp.moveaxis(dy, 0, -2)  # [*out, g, n, c_out]
    dw = _grouped(image, kernel, window.dilation, window.stride, padding)  # [c_in, *kernel, g, c_out]
    return jnp.moveaxis(dw, 0, -2)


# ---- on CPU: depthwise as products of shifted images, other groups one by one -----------------------------
#
# XLA:CPU is fast for one group only: `python -m benchmarks conv` has the cases.

MANY_TAPS, MANY_GROUPS = 128, 32  # of a kernel, of a convolution; more are left to XLA


def _is_depthwise(c_in: int, groups: int, window: Window) -> bool:
    """Whether every channel is convolved alone, and there are enough of them to fill a vector."""
    return c_in == 1 and groups >= 8 and math.prod(window.kernel) <= MANY_TAPS


def _shifted(x: Array, window: Window) -> list[Array]:
    """x [n, *size, g, c] as each tap of the kernel sees it: [n, *out, g, c], in the order of the taps."""
    x = jnp.pad(x, [(0, 0), *window.padding, (0, 0), (0, 0)])
    return [x[(slice(None), *_seen(tap, window))] for tap in itertools.product(*map(range, window.kernel))]


def _seen(tap: tuple[int, ...], window: Window) -> tuple[slice, ...]:
    """The positions of the padded x that a tap meets, in the order of the outputs."""
    return tuple(
        slice(k * e, k * e + o * s - s + 1 if o else k * e, s)
        for k, e, o, s in zip(tap, window.dilation, window.out, window.stride, strict=True)
    )


def _group_by_group(
    product: Callable[..., Array], a: Array, b: Array, axes: tuple[int, int, int], window: Window
) -> Array:
    """A product as one of each group; `axes` are the groups' in a, in b and in the result."""
    groups = a.shape[axes[0]]
    if not 1 < groups <= MANY_GROUPS:
        return product(a, b, window=window)
    one = lambda v, axis, i: lax.slice_in_dim(v, i, i + 1, axis=axis % v.ndim)
    parts = [product(one(a, axes[0], i), one(b, axes[1], i), window=window) for i in range(groups)]
    return jnp.concatenate(parts, axes[2])


def _shifted_products(x: Array, w: Array, window: Window) -> Array:
    """Σ_k of x as tap k sees it times w[k], channel by channel: w [*kernel, g, 1, c_out]."""
    taps = w.reshape(-1, *w.shape[-3:])
    products = [seen * tap[:, 0] for seen, tap in zip(_shifted(x, window), taps, strict=True)]
    return functools.reduce(jnp.add, products)


def _toeplitz_on_cpu(w: Array, x: Array, *, window: Window) -> Array:
    if not _is_depthwise(w.shape[-2], w.shape[-3], window) or 0 in x.shape or 0 in window.out or 0 in w.shape:
        return _group_by_group(_toeplitz_product, w, x, (-3, -2, -2), window)
    y = _shifted_products(x.astype(wide(x.dtype)), w.astype(wide(x.dtype)), window)
    return y.astype(x.dtype)


def _transposed_on_cpu(dy: Array, w: Array, *, window: Window) -> Array:
    if not _is_depthwise(w.shape[-2], w.shape[-3], window) or 0 in dy.shape or 0 in window.sizes:
        return _group_by_group(_transposed_product, dy, w, (-2, -3, -2), window)
    spread = _spread(dy, window).astype(wide(dy.dtype))
    d = len(window.kernel)
    alone = Window(spread.shape[1:-2], window.kernel, (1,) * d, window.dilation, ((0, 0),) * d)
    reversed_w = jnp.flip(w, tuple(range(d))).astype(spread.dtype)
    dx = _shifted_products(spread, reversed_w, alone)
    return dx.sum(-1, keepdims=True).astype(dy.dtype)


def _kernel_on_cpu(x: Array, dy: Array, *, window: Window) -> Array:
    if not _is_depthwise(x.shape[-1], x.shape[-2], window) or 0 in x.shape or 0 in dy.shape:
        return _group_by_group(_kernel_product, x, dy, (-2, -2, -3), window)
    g, m = dy.shape[-2:]
    flat = lambda v: jnp.broadcast_to(v, (*v.shape[:-1], m)).reshape(*v.shape[:-2], g * m)
    wide_x, wide_dy = x.astype(wide(x.dtype)), flat(dy.astype(wide(x.dtype)))

    def one(image: Array, dy: Array) -> Array:
        """The sum over all but the last axis of space, so that vectors are long: [taps, last, g · m]."""
        over = tuple(range(dy.ndim - 2))
        return jnp.stack([(flat(seen[0]) * dy).sum(over) for seen in _shifted(image[None], window)])

    # One image at a time stays in the cache; a loop over a batch that several devices share would gather it.
    if jax.local_device_count() == 1:
        zeros = jnp.zeros((math.prod(window.kernel), window.out[-1], g * m), wide_x.dtype)
        zeros = rules.same_variance(zeros, wide_x, wide_dy)[0]
        dw, _ = lax.scan(lambda dw, pair: (dw + one(*pair), None), zeros, (wide_x, wide_dy))
    else:
        dw = jax.vmap(one)(wide_x, wide_dy).sum(0)
    return dw.sum(1).reshape(*window.kernel, g, 1, m).astype(dy.dtype)


_toeplitz = rules.bilinear("conv", _toeplitz_product, "window", on_cpu=_toeplitz_on_cpu)
_transposed = rules.bilinear("conv_transposed", _transposed_product, "window", on_cpu=_transposed_on_cpu)
_kernel_gradient = rules.bilinear("conv_kernel_gradient", _kernel_product, "window", on_cpu=_kernel_on_cpu)


def _batch(
    product: rules.Bilinear, only_a: tuple[int, ...], only_b: tuple[int, ...], groups: tuple[int, ...]
):
    """The batching rule of `product`: the new axis joins one that is there already.

    Each triple says which axis of a, of b and of the result takes it in: batch or channels where one
    operand is shared, the groups where both have the axis.
    """

    def batch(
        a: Array, b: Array, a_axis: int | None, b_axis: int | None, *, window: Window
    ) -> tuple[Array, int]:
        into_a, into_b, into_c = only_a if b_axis is None else only_b if a_axis is None else groups
        size = next(x.shape[axis] for x, axis in ((a, a_axis), (b, b_axis)) if axis is not None)
        if size == 0:  # joined to another axis it would take that with it
            empty = [
                (x.shape[:at] + x.shape[at + 1 :] if at is not None else x.shape)
                for x, at in ((a, a_axis), (b, b_axis))
            ]
            c = product(*(jnp.zeros(shape, a.dtype) for shape in empty), window=window)
            return jnp.zeros((0, *c.shape), c.dtype), 0
        a = a if a_axis is None else _join(a, a_axis, into_a)
        b = b if b_axis is None else _join(b, b_axis, into_b)
        c = product(a, b, window=window)
        at = into_c % c.ndim
        return c.reshape(*c.shape[:at], size, c.shape[at] // size, *c.shape[at + 1 :]), at

    return batch


def _join(x: Array, axis: int, into: int) -> Array:
    at = into % (x.ndim - 1)
    x = jnp.moveaxis(x, axis, at)
    return x.reshape(*x.shape[:at], x.shape[at] * x.shape[at + 1], *x.shape[at + 2 :])


rules.close(
    _toeplitz,
    to_a=lambda dy, x, window: _kernel_gradient(x, dy, window=window),
    to_b=lambda dy, w, window: _transposed(dy, w, window=window),
    batch=_batch(_toeplitz, only_a=(-1, 0, -1), only_b=(0, 0, 0), groups=(-3, -2, -2)),
)
rules.close(
    _transposed,
    to_a=lambda dx, w, window: _toeplitz(w, dx, window=window),
    to_b=lambda dx, dy, window: _kernel_gradient(dx, dy, window=window),
    batch=_batch(_transposed, only_a=(0, 0, 0), only_b=(-2, -2, -1), groups=(-2, -3, -2)),
)
rules.close(
    _kernel_gradient,
    to_a=lambda dw, dy, window: _transposed(dy, dw, window=window),
    to_b=lambda dw, x, window: _toeplitz(dw, x, window=window),
    batch=_batch(_kernel_gradient, only_a=(-1, 0, -2), only_b=(0, -1, -1), groups=(-2, -2, -3)),
)
