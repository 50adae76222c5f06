"""Convolution in 1, 2 or 3 dimensions: y = T(w) x + b, with T(w) a (block-)Toeplitz matrix.

    y[n, o, j] = b[j] + Σ_k Σ_i  x̂[n, o·stride + k·dilation − low, i] · w[k, i, j]

x̂ is x continued beyond its border by `padding_mode`. Dimensions: *n any leading axes (batch), o and k
positions along 1 to 3 spatial axes, c channels, last: x [*n, *size, c_in], w [*kernel, c_in / groups, c_out],
b [c_out], y [*n, *out, c_out]. As in all deep learning, the kernel is not flipped (a cross-correlation).

PyTorch's weights, [c_out, c_in / groups, *kernel], are these with the first two axes moved to the end:
w = np.moveaxis(weight, (1, 0), (-2, -1)).
"""

import math
from collections.abc import Sequence
from typing import NotRequired, TypedDict

import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, PRNGKeyArray

from funcnet import rules, spec
from funcnet.linalg import Operator
from funcnet.ops import _bias, _check, _squares
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._draw import Initializer, drawn
from funcnet.ops._dtype import common, narrow
from funcnet.ops.conv import _toeplitz
from funcnet.ops.conv._window import Padding, kernel_sizes
from funcnet.spec import Spec

__all__ = ["Params", "apply", "cost", "init", "matrix", "operator", "reference", "specs", "squares", "vjp"]


class Params(TypedDict):
    """w [*kernel, c_in / groups, c_out]; b [c_out], absent for a convolution without bias."""

    w: Float[Array, "*kernel c_in c_out"]
    b: NotRequired[Float[Array, " c_out"]]


def init(
    key: PRNGKeyArray,
    c_in: int,
    c_out: int,
    *,
    kernel: Sequence[int],
    groups: int = 1,
    bias: bool = True,
    w: Initializer | None = None,
) -> Params:
    """Draw w uniformly, of variance 1/fan_in, fan_in = c_in / groups · Π kernel; b = 0.

    Args:
        key: a random key.
        c_in: channels of the input.
        c_out: channels of the output.
        kernel: one size per spatial axis, 1 to 3 of them.
        groups: both channel counts are split into so many independent convolutions.
        bias: whether there is a "b".
        w: what draws w instead, for each group by itself: ``(key, (taps · c_in / groups, c_out / groups))
            -> w``, as ``jax.nn.initializers.he_normal()``. Orthogonal as a map: `linalg.orthogonal_kernel`.

    Raises:
        DTypeError: kernel is not a tuple of integers, or w no initialiser.
        ValueRangeError: a size is not positive, or groups do not divide the channels.

    >>> jax.tree.map(jnp.shape, init(jax.random.key(0), 4, 6, kernel=(3, 3), groups=2))
    {'b': (6,), 'w': (3, 3, 2, 6)}
    """
    where = "conv.init"
    _check.key(where, key, none=False)
    c_in, c_out = _check.positive(where, "c_in", c_in), _check.positive(where, "c_out", c_out)
    sizes = kernel_sizes(where, kernel)
    _toeplitz.check_groups(where, groups, c_in, c_out)
    shape, each = (*sizes, c_in // groups, c_out), c_in // groups
    roles, matrices = "i" * len(sizes) + "iso", (*sizes, each, groups, c_out // groups)
    leaf = drawn(where, key, w, shape, roles, matrices, variance=1 / (each * math.prod(sizes)))
    bias = _check.flag(where, "bias", bias)
    return {"w": leaf, "b": jnp.zeros((c_out,), leaf.dtype)} if bias else {"w": leaf}


def specs(params: Params, *, groups: int = 1, axes: str | None = None) -> dict[str, Spec]:
    """Which matrix w is: by dW = Xᵀ dY, taps times channels of a patch by channels out, one for each group.

    Args:
        params: arrays, or `jax.ShapeDtypeStruct`.
        groups: as in `apply`.
        axes: the names of the axes of w; the last one is that of b.
    """
    *kernel, c_in, c_out = _toeplitz.grouped("conv.specs", params, groups)
    axes = axes or " ".join([*_toeplitz.AXES[len(kernel)], "c_in", "c_out"])
    shape = (*kernel, c_in, groups, c_out // groups)
    roles = "i" * len(kernel) + "iso"
    return spec.tree("conv.specs", params, {"w": (axes, roles, shape), "b": (axes.split()[-1],)})


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
    static = _static("conv.reference", w, x, stride, padding, dilation, groups, padding_mode)
    window, (c_in, c_out) = static.window, w.shape[-2:]
    lead = x.shape[: x.ndim - w.ndim + 1]
    ends = [(0, 0)] * len(lead) + [*window.padding, (0, 0)]
    x = jnp.pad(x, ends, mode=_toeplitz.PAD_MODES[padding_mode])
    x = x.reshape(*x.shape[:-1], groups, c_in)
    y = jnp.zeros((*lead, *window.out, groups, c_out // groups), x.dtype)
    for tap, seen in window.taps:
        w_tap = w[tap].reshape(c_in, groups, c_out // groups)
        y = y + jnp.einsum("...gi,igj->...gj", x[(..., *seen, slice(None), slice(None))], w_tap)
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
    method: str = "auto",
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
        method: how the products are computed, for study: "auto" (the fastest known on this platform),
            "direct" (XLA's convolution), "shifted", "unfold", "fold", "crossed", "polyphase", "winograd" or
            "fft" (docs/derivations/conv.md). All agree to rounding, but the last two mix neighbours: a NaN
            or a large element of x changes outputs that do not see it. "auto" takes neither of them, though
            "fft" is several times as fast for kernels of 64 taps and more. In all of them a border and what
            a stride leaves out may count as zeros that are multiplied, so that a NaN or an infinity in w
            may reach outputs whose tap meets such a zero.

    Returns:
        y [*n, *out, c_out], in the dtype that holds both w and x.

    Raises:
        ShapeError: x has the wrong rank or channels.
        DTypeError: x or a parameter is not floating-point.
        ValueRangeError: an option is out of range, groups do not divide the channels, the method does not
            fit the window, or a reflected border is wider than the signal.
        StructureError: params has no "w".

    >>> params = fn.conv.init(jax.random.key(0), 3, 8, kernel=(3, 3))
    >>> fn.conv.apply(params, jnp.ones((2, 32, 32, 3)), stride=2).shape
    (2, 16, 16, 8)
    """
    where = "conv.apply"
    w = _toeplitz.kernel(where, params)
    x = _check.floating(where, "x", x)
    _check.rank(where, "x", x, w.ndim - 1, "*n, " + ", ".join("dhw"[5 - w.ndim :]) + ", c")
    groups = _check.positive(where, "groups", groups)
    _toeplitz.check_groups(where, groups, w.shape[-2] * groups, w.shape[-1])
    _check_channels(where, w, x, groups)
    _check.one_of(where, "padding_mode", padding_mode, tuple(_toeplitz.PAD_MODES))
    _bias.check(where, params, w.shape[-1])
    static = _static(where, w, x, stride, padding, dilation, groups, padding_mode, method)
    _toeplitz.check_method(where, method, static.window)
    return _forward(params, x, static)


def vjp(
    params: Params,
    x: Float[Array, "*n_and_size c_in"],
    *,
    stride: int | Sequence[int] = 1,
    padding: Padding = "same",
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    method: str = "auto",
) -> tuple[Float[Array, "*n_and_out c_out"], Partial]:
    """y and its pullback: dx = T(w)ᵀ dy, folded back at the border; dw the kernel gradient; db = Σ dy.

    Written out: dx[n, p] = Σ w[k] dy[n, o] over the o and k with o·stride + k·dilation − low = p, and
    dw[k] = Σ_n,o x̂[n, o·stride + k·dilation − low]ᵀ dy[n, o].
    """
    _check.mapping("conv.vjp", "params", params)
    static = _static("conv.vjp", params["w"], x, stride, padding, dilation, groups, padding_mode, method)
    return _forward(params, x, static), Partial(rules.bind(_pullback, static=static), params, x)


def _forward(params: Params, x: Array, static: _toeplitz.Map) -> Array:
    return _bias.add(_toeplitz.forward(params["w"], x, static), params)


def _pullback(params: Params, x: Array, dy: Array, *, static: _toeplitz.Map) -> tuple[Params, Array]:
    dw = _toeplitz.kernel_gradient(x, dy, params["w"], static)
    dx = _toeplitz.transposed(params["w"], dy, static)
    return _bias.gradients(params, dw, dy), narrow(dx, x)


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
    """T(w) as a dense matrix [Π out · c_out, Π size · c_in], for one x of shape (*size, c_in)."""
    options = stride, padding, dilation, groups, padding_mode
    return _toeplitz.matrix(*_of_example("conv.matrix", params, in_shape, *options))


def operator(
    params: Params,
    in_shape: tuple[int, ...],
    *,
    stride: int | Sequence[int] = 1,
    padding: Padding = "same",
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
) -> Operator:
    """T(w), for one x of shape (*size, c_in), as an operator: A @ v, A.T, A.matrix(), its spectrum and norm.

    Rows and columns are the elements of y and x in C order; there is no bias. See `funcnet.linalg`.

    >>> A = operator({"w": jnp.ones((3, 1, 1))}, (5, 1))
    >>> A.shape, (A @ jnp.ones(5)).tolist()
    ((5, 5), [2.0, 3.0, 3.0, 3.0, 2.0])
    """
    options = stride, padding, dilation, groups, padding_mode
    return _toeplitz.operator(*_of_example("conv.operator", params, in_shape, *options))


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
    _check.mapping("conv.cost", "params", params)
    w = params["w"]
    static = _static("conv.cost", w, x, stride, padding, dilation, groups, padding_mode)
    outputs = math.prod(x.shape[: x.ndim - w.ndim + 1]) * math.prod(static.window.out)
    options = {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "padding_mode": padding_mode,
    }
    return Cost(2 * outputs * math.prod(w.shape), traffic(reference, params, x, **options))


def squares(
    params: Params,
    x: Float[Array, "n *size c_in"],
    dy: Float[Array, "n *out c_out"],
    *,
    stride: int | Sequence[int] = 1,
    padding: Padding = "same",
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    method: str = "auto",
) -> Float[Array, " n"]:
    """|dw|² + |db|² of each example: dw is the product of its patches of x, as rows, with dy."""
    w = params["w"]
    _squares.examples("conv.squares", "x", x, w.ndim - 1)
    static = _static("conv.squares", w, x, stride, padding, dilation, groups, padding_mode, method)
    return _toeplitz.squares(x, dy, w.ndim, static) + _squares.offset(params, dy)


def _static(
    where: str,
    w: Abstract,
    x: Abstract,
    stride: int | Sequence[int],
    padding: Padding,
    dilation: int | Sequence[int],
    groups: int,
    padding_mode: str,
    method: str = "auto",
) -> _toeplitz.Map:
    sizes = tuple(x.shape[len(x.shape) - w.ndim + 1 : -1])
    window = _toeplitz.window_of(where, w, sizes, stride, padding, dilation, padding_mode)
    return _toeplitz.Map(window, groups, padding_mode, method)


def _of_example(
    where: str,
    params: Params,
    in_shape: tuple[int, ...],
    stride: int | Sequence[int],
    padding: Padding,
    dilation: int | Sequence[int],
    groups: int,
    padding_mode: str,
) -> tuple[Array, _toeplitz.Map]:
    """w, and what is static about it over one x of shape `in_shape`."""
    w = _toeplitz.kernel(where, params)
    x = _toeplitz.example(where, w, in_shape)
    groups = _check.positive(where, "groups", groups)
    _toeplitz.check_groups(where, groups, w.shape[-2] * groups, w.shape[-1])
    _check_channels(where, w, x, groups)
    _check.one_of(where, "padding_mode", padding_mode, tuple(_toeplitz.PAD_MODES))
    return w, _static(where, w, x, stride, padding, dilation, groups, padding_mode)


def _check_channels(where: str, w: Abstract, x: Abstract, groups: int) -> None:
    hint = None
    other = x.shape[-1] // max(w.shape[-2], 1)
    if other and x.shape[-1] == other * w.shape[-2] and w.shape[-1] % other == 0:
        hint = f"groups={other} would fit."
    _toeplitz.check_channels(where, w, x, w.shape[-2] * groups, groups, hint)
