"""Transposed convolution in 1, 2 or 3 dimensions: y = T(w)ᵀ x + b, the adjoint of `conv` with the same w.

    y[n, p, i] = b[i] + Σ_j Σ_{o, k : o·stride + k·dilation − low = p}  x[n, o, j] · w[k, i, j]

Every position of x spreads over a kernel of outputs, `stride` apart; what falls beyond the border is dropped
("zeros") or returns to the element that the border copies. Dimensions: *n any leading axes (batch), p and o
positions along 1 to 3 spatial axes, c channels, last: x [*n, *in, c_in], w [*kernel, c_out / groups, c_in],
b [c_out], y [*n, *size, c_out]. The w of a `conv` from c_out to c_in channels is the w of its adjoint.

PyTorch's weights, [c_in, c_out / groups, *kernel], are these with the first two axes moved to the end:
w = np.moveaxis(weight, (1, 0), (-2, -1)).
"""

import math
from collections.abc import Sequence
from typing import NotRequired, TypedDict

import jax
import jax.core
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, PRNGKeyArray

from funcnet import rules, spec
from funcnet.errors import ShapeError
from funcnet.linalg import Operator
from funcnet.ops import _bias, _check, _squares
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._draw import Initializer, drawn
from funcnet.ops._dtype import common, narrow
from funcnet.ops.conv import _toeplitz
from funcnet.ops.conv._window import Padding, explicit, kernel_sizes, per_axis
from funcnet.spec import Spec

__all__ = ["Params", "apply", "cost", "init", "matrix", "operator", "reference", "specs", "squares", "vjp"]


class Params(TypedDict):
    """w [*kernel, c_out / groups, c_in]; b [c_out], absent for a convolution without bias."""

    w: Float[Array, "*kernel c_out c_in"]
    b: NotRequired[Float[Array, " c_out"]]


def init(
    key: PRNGKeyArray,
    c_in: int,
    c_out: int,
    *,
    kernel: Sequence[int],
    stride: int | Sequence[int] = 1,
    groups: int = 1,
    bias: bool = True,
    w: Initializer | None = None,
) -> Params:
    """Draw w uniformly, of variance 1/fan_in, fan_in = c_in / groups · Π kernel / Π stride on average; b = 0.

    Args:
        key: a random key.
        c_in: channels of the input.
        c_out: channels of the output.
        kernel: one size per spatial axis, 1 to 3 of them.
        stride: that of `apply`: only every stride-th output meets a given tap.
        groups: both channel counts are split into so many independent convolutions.
        bias: whether there is a "b".
        w: what draws w instead, for each group by itself: ``(key, (taps · c_in / groups, c_out / groups))
            -> w``, as ``jax.nn.initializers.he_normal()``. With a stride an output meets one in Π stride of
            these taps, so that a w of the same variance is √(Π stride) times as large.

    Raises:
        DTypeError: kernel is not a tuple of integers, or w no initialiser.
        ValueRangeError: a size is not positive, or groups do not divide the channels.

    >>> jax.tree.map(jnp.shape, init(jax.random.key(0), 6, 4, kernel=(3, 3), groups=2))
    {'b': (4,), 'w': (3, 3, 2, 6)}
    """
    where = "conv_transpose.init"
    _check.key(where, key, none=False)
    c_in, c_out = _check.positive(where, "c_in", c_in), _check.positive(where, "c_out", c_out)
    sizes = kernel_sizes(where, kernel)
    _toeplitz.check_groups(where, groups, c_in, c_out)
    fan_in = c_in // groups * math.prod(sizes) / math.prod(per_axis(where, "stride", stride, len(sizes)))
    shape = (*sizes, c_out // groups, c_in)
    roles = "i" * len(sizes) + "osi"  # in by out as an output sums, not as the gradient does (`specs`)
    matrices = *shape[:-1], groups, c_in // groups
    leaf = drawn(where, key, w, shape, roles, matrices, variance=1 / fan_in)
    bias = _check.flag(where, "bias", bias)
    return {"w": leaf, "b": jnp.zeros((c_out,), leaf.dtype)} if bias else {"w": leaf}


def specs(params: Params, *, groups: int = 1, axes: str | None = None) -> dict[str, Spec]:
    """Which matrix w is: channels in by taps times channels out, one for each group: dW = Xᵀ (patches of dY).

    Args:
        params: arrays, or `jax.ShapeDtypeStruct`.
        groups: as in `apply`.
        axes: the names of the axes of w; the last but one is that of b.
    """
    *kernel, c_out, c_in = _toeplitz.grouped("conv_transpose.specs", params, groups)
    axes = axes or " ".join([*_toeplitz.AXES[len(kernel)], "c_out", "c_in"])
    shape = (*kernel, c_out, groups, c_in // groups)
    roles = "o" * len(kernel) + "osi"
    return spec.tree("conv_transpose.specs", params, {"w": (axes, roles, shape), "b": (axes.split()[-2],)})


def reference(
    params: Params,
    x: Float[Array, "*n_and_in c_in"],
    *,
    stride: int | Sequence[int] = 1,
    padding: Padding = "same",
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    output_shape: Sequence[int] | None = None,
) -> Float[Array, "*n_and_size c_out"]:
    """For every tap of the kernel, the product of x with one slice of w, added where the tap puts it."""
    w, x = common(params["w"], x)
    where = "conv_transpose.reference"
    window = _static(where, w, x, stride, padding, dilation, groups, padding_mode, output_shape).window
    c_out, c_in = w.shape[-2:]
    lead = x.shape[: x.ndim - w.ndim + 1]
    xs = x.reshape(math.prod(lead), *window.out, groups, c_in // groups)
    padded = [n + low + high for n, (low, high) in zip(window.sizes, window.padding, strict=True)]
    y = jnp.zeros((xs.shape[0], *padded, groups, c_out), x.dtype)
    for tap, put in window.taps:
        w_tap = w[tap].reshape(c_out, groups, c_in // groups)
        y = y.at[(slice(None), *put)].add(jnp.einsum("...gj,igj->...gi", xs, w_tap))
    if padding_mode == "zeros":
        inside = [slice(low, low + n) for n, (low, _) in zip(window.sizes, window.padding, strict=True)]
        y = y[(slice(None), *inside)]
    y = _toeplitz.fold_border(y, window, padding_mode)
    return _bias.add(y.reshape(*lead, *window.sizes, groups * c_out), params)


@rules.operation
def apply(
    params: Params,
    x: Float[Array, "*n_and_in c_in"],
    *,
    stride: int | Sequence[int] = 1,
    padding: Padding = "same",
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    output_shape: Sequence[int] | None = None,
    method: str = "auto",
) -> Float[Array, "*n_and_size c_out"]:
    """Apply the transpose of the convolution with w: ⟨conv x, y⟩ = ⟨x, conv_transpose y⟩, without biases.

    Args:
        params: w [*kernel, c_out / groups, c_in] and, unless absent, b [c_out].
        x: [*n, *in, c_in], channels last: the shape of what the convolution gives.
        stride: step between the places that neighbours of x spread from: the output grows by it.
        padding: that of the convolution: "same" (in · stride outputs), "valid", "causal", or one (low, high)
            pair per spatial axis, by which the output is cut.
        dilation: step between the taps of the kernel, an int or one per spatial axis.
        groups: output group g sees only input group g.
        padding_mode: where what falls beyond the border goes: "zeros" drops it, "circular" and "reflect"
            return it to the element that such a border copies.
        output_shape: sizes of the output, one per spatial axis, where the stride leaves several that the
            convolution maps to the size of x; by default stride · in for "same" and "causal", else the least.
        method: how the products are computed, for study: see `conv.apply`.

    Returns:
        y [*n, *size, c_out], in the dtype that holds both w and x.

    Raises:
        ShapeError: x has the wrong rank or channels, or no convolution maps output_shape to its size.
        DTypeError: x or a parameter is not floating-point.
        ValueRangeError: an option is out of range, groups do not divide the channels, the method does not
            fit the window, or a reflected border is wider than the signal.
        StructureError: params has no "w".

    >>> params = fn.conv_transpose.init(jax.random.key(0), 8, 3, kernel=(3, 3), stride=2)
    >>> fn.conv_transpose.apply(params, jnp.ones((2, 16, 16, 8)), stride=2).shape
    (2, 32, 32, 3)
    """
    where = "conv_transpose.apply"
    w = _toeplitz.kernel(where, params)
    x = _check.floating(where, "x", x)
    _check.rank(where, "x", x, w.ndim - 1, "*n, " + ", ".join("dhw"[5 - w.ndim :]) + ", c")
    groups = _check.positive(where, "groups", groups)
    _toeplitz.check_groups(where, groups, w.shape[-1], w.shape[-2] * groups)
    _check_channels(where, w, x, groups)
    _check.one_of(where, "padding_mode", padding_mode, tuple(_toeplitz.PAD_MODES))
    _bias.check(where, params, w.shape[-2] * groups)
    static = _static(where, w, x, stride, padding, dilation, groups, padding_mode, output_shape, method)
    _toeplitz.check_method(where, method, static.window)
    return _forward(params, x, static)


def vjp(
    params: Params,
    x: Float[Array, "*n_and_in c_in"],
    *,
    stride: int | Sequence[int] = 1,
    padding: Padding = "same",
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    output_shape: Sequence[int] | None = None,
    method: str = "auto",
) -> tuple[Float[Array, "*n_and_size c_out"], Partial]:
    """y and its pullback: dx = T(w) dy, a convolution; dw the kernel gradient of (dy, x); db = Σ dy."""
    _check.mapping("conv_transpose.vjp", "params", params)
    where = "conv_transpose.vjp"
    static = _static(
        where, params["w"], x, stride, padding, dilation, groups, padding_mode, output_shape, method
    )
    return _forward(params, x, static), Partial(rules.bind(_pullback, static=static), params, x)


def _forward(params: Params, x: Array, static: _toeplitz.Map) -> Array:
    return _bias.add(_toeplitz.transposed(params["w"], x, static), params)


def _pullback(params: Params, x: Array, dy: Array, *, static: _toeplitz.Map) -> tuple[Params, Array]:
    dw = _toeplitz.kernel_gradient(dy, x, params["w"], static)
    dx = _toeplitz.forward(params["w"], dy, static)
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
    output_shape: Sequence[int] | None = None,
) -> Float[Array, "out in"]:
    """T(w)ᵀ as a dense matrix [Π size · c_out, Π in · c_in], for one x of shape (*in, c_in)."""
    options = stride, padding, dilation, groups, padding_mode, output_shape
    return _toeplitz.matrix(*_of_example("conv_transpose.matrix", params, in_shape, *options)).T


def operator(
    params: Params,
    in_shape: tuple[int, ...],
    *,
    stride: int | Sequence[int] = 1,
    padding: Padding = "same",
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    output_shape: Sequence[int] | None = None,
) -> Operator:
    """T(w)ᵀ, for one x of shape (*in, c_in), as an operator: that of the convolution, transposed."""
    options = stride, padding, dilation, groups, padding_mode, output_shape
    return _toeplitz.operator(*_of_example("conv_transpose.operator", params, in_shape, *options)).T


def cost(
    params: Params,
    x: Float[Abstract, "*n_and_in c_in"],
    *,
    stride: int | Sequence[int] = 1,
    padding: Padding = "same",
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    output_shape: Sequence[int] | None = None,
) -> Cost:
    """2 · n · Π in · Π kernel · c_in / groups · c_out flops; products beyond the border are counted."""
    _check.mapping("conv_transpose.cost", "params", params)
    options = {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "padding_mode": padding_mode,
        "output_shape": output_shape,
    }
    flops = 2 * math.prod(x.shape[:-1]) * math.prod(params["w"].shape)
    return Cost(flops, traffic(reference, params, x, **options))


def squares(
    params: Params,
    x: Float[Array, "n *in c_in"],
    dy: Float[Array, "n *size c_out"],
    *,
    stride: int | Sequence[int] = 1,
    padding: Padding = "same",
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    output_shape: Sequence[int] | None = None,
    method: str = "auto",
) -> Float[Array, " n"]:
    """|dw|² + |db|² of each example: dw is the product of its patches of dy, as rows, with x."""
    w, where = params["w"], "conv_transpose.squares"
    _squares.examples(where, "x", x, w.ndim - 1)
    static = _static(where, w, x, stride, padding, dilation, groups, padding_mode, output_shape, method)
    return _toeplitz.squares(dy, x, w.ndim, static) + _squares.offset(params, dy)


def _static(
    where: str,
    w: Abstract,
    x: Abstract,
    stride: int | Sequence[int],
    padding: Padding,
    dilation: int | Sequence[int],
    groups: int,
    padding_mode: str,
    output_shape: Sequence[int] | None,
    method: str = "auto",
) -> _toeplitz.Map:
    """The convolution of which this is the transpose: its input has the sizes of our output."""
    d, kernel = w.ndim - 2, tuple(w.shape[: w.ndim - 2])
    outs = tuple(x.shape[len(x.shape) - d - 1 : -1])
    strides, dilations = per_axis(where, "stride", stride, d), per_axis(where, "dilation", dilation, d)
    grown = tuple(o * s for o, s in zip(outs, strides, strict=True))
    named = isinstance(padding, str)
    if output_shape is not None:
        sizes = per_axis(where, "output_shape", output_shape, d, least=0)
    elif named and padding in ("same", "causal"):
        sizes = grown
    else:  # the least that holds every position that x spreads to
        cut = (0,) * d if named else [sum(pair) for pair in explicit(where, padding, d)]
        sizes = tuple(
            jax.core.max_dim((o - 1) * s + e * (k - 1) + 1 - c, 0) if o else 0
            for o, s, e, k, c in zip(outs, strides, dilations, kernel, cut, strict=True)
        )
    window = _toeplitz.window_of(where, w, sizes, stride, padding, dilation, padding_mode)
    if window.out != outs:
        raise ShapeError(
            f"{where}: no convolution with these options maps sizes {sizes} to those of x.",
            path="output_shape" if output_shape is not None else "padding",
            expected=f"sizes that the convolution maps to {outs}",
            actual=f"{sizes}, which it maps to {window.out}",
            hint=f"output_shape={grown} would fit." if named and padding == "same" else None,
        )
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
    output_shape: Sequence[int] | None,
) -> tuple[Array, _toeplitz.Map]:
    """w, and what is static about it over one x of shape `in_shape`."""
    w = _toeplitz.kernel(where, params)
    x = _toeplitz.example(where, w, in_shape)
    groups = _check.positive(where, "groups", groups)
    _toeplitz.check_groups(where, groups, w.shape[-1], w.shape[-2] * groups)
    _check_channels(where, w, x, groups)
    _check.one_of(where, "padding_mode", padding_mode, tuple(_toeplitz.PAD_MODES))
    return w, _static(where, w, x, stride, padding, dilation, groups, padding_mode, output_shape)


def _check_channels(where: str, w: Abstract, x: Abstract, groups: int) -> None:
    hint = None
    if x.shape[-1] == w.shape[-2] * groups:
        hint = "this w maps the channels of x to the other ones in conv.apply; here it goes back."
    _toeplitz.check_channels(where, w, x, w.shape[-1], 1, hint)
