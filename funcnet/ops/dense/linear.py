"""The affine map y = x W + b.

Dimensions: *n any leading axes (batch), d_in and d_out features. x [*n, d_in], w [d_in, d_out],
b [d_out], y [*n, d_out]. Examples are rows; textbooks that write y = Wx with columns hold the transpose
of this w (docs/derivations/linear.md).
"""

import math
from typing import NotRequired, TypedDict

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, Integer, PRNGKeyArray

from funcnet import rules, spec
from funcnet.errors import ShapeError, describe
from funcnet.linalg import Operator
from funcnet.ops import _bias, _check, _squares
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._draw import Initializer, drawn
from funcnet.ops._dtype import common, narrow, wide
from funcnet.spec import Spec

__all__ = [
    "Params",
    "apply",
    "cost",
    "init",
    "matrix",
    "operator",
    "reference",
    "rows",
    "specs",
    "squares",
    "vjp",
]


class Params(TypedDict):
    """w [d_in, d_out]; b [d_out], absent for a linear map without bias."""

    w: Float[Array, "d_in d_out"]
    b: NotRequired[Float[Array, " d_out"]]


def init(
    key: PRNGKeyArray, d_in: int, d_out: int, *, bias: bool = True, w: Initializer | None = None
) -> Params:
    """Draw w from N(0, 1/d_in), so that features of unit variance give outputs of unit variance; b = 0.

    Source: LeCun, Bottou, Orr and Müller, "Efficient BackProp", 1998, §4.6.

    Args:
        key: a random key.
        d_in: features of x.
        d_out: features of y.
        bias: whether there is a "b".
        w: what draws w instead: ``(key, (d_in, d_out)) -> w``, as ``jax.nn.initializers.he_normal()``.

    >>> jax.tree.map(jnp.shape, init(jax.random.key(0), 3, 5))
    {'b': (5,), 'w': (3, 5)}
    """
    where = "linear.init"
    _check.key(where, key, none=False)
    d_in, d_out = _check.positive(where, "d_in", d_in), _check.positive(where, "d_out", d_out)
    if w is None:
        leaf = jax.random.normal(key, (d_in, d_out)) / math.sqrt(d_in)
    else:
        leaf = drawn(where, key, w, (d_in, d_out), "io")
    bias = _check.flag(where, "bias", bias)
    return {"w": leaf, "b": jnp.zeros((d_out,), leaf.dtype)} if bias else {"w": leaf}


def specs(params: Params, *, axes: str = "d_in d_out") -> dict[str, Spec]:
    """Which matrix w is: by dW = Xᵀ dY, features in by features out. b is none.

    Args:
        params: arrays, or `jax.ShapeDtypeStruct`.
        axes: the names of the axes of w; the last one is that of b.
    """
    return spec.tree("linear.specs", params, {"w": (axes, "io"), "b": (axes.split()[-1],)})


def reference(params: Params, x: Float[Array, "*n d_in"]) -> Float[Array, "*n d_out"]:
    """y = x W + b, as it is written."""
    w, x = common(params["w"], x)
    return _bias.add(x @ w, params)


@rules.operation
def apply(params: Params, x: Float[Array, "*n d_in"]) -> Float[Array, "*n d_out"]:
    """Map the last axis of x: y = x W + b.

    XLA's own derivative of this program is the formula of `vjp`, so nothing is attached to it.

    Args:
        params: w [d_in, d_out] and, unless absent, b [d_out].
        x: [*n, d_in].

    Returns:
        y [*n, d_out], in the dtype that holds both w and x; sums are in float32 or wider.

    Raises:
        ShapeError: x does not have d_in features, or b not d_out.
        DTypeError: x or a parameter is not floating-point.
        StructureError: params has no "w".
    """
    w = _check.parameter("linear.apply", params, "w", ndim=2)
    x = _check.floating("linear.apply", "x", x)
    _check.features("linear.apply", x, w.shape[0], f'params["w"] ({describe(w)})')
    _bias.check("linear.apply", params, w.shape[1])
    return _affine(params, x)


def _affine(params: Params, x: Array) -> Array:
    w, x = common(params["w"], x)
    return _bias.add(jnp.matmul(x, w, preferred_element_type=wide(x.dtype)), params).astype(x.dtype)


def vjp(params: Params, x: Float[Array, "*n d_in"]) -> tuple[Float[Array, "*n d_out"], Partial]:
    """y and its pullback: dX = dY Wᵀ, dW = Xᵀ dY, db = Σ dY, the sums over every leading axis."""
    _check.mapping("linear.vjp", "params", params)
    return _affine(params, x), Partial(_pullback, params, x)


def _pullback(params: Params, x: Array, dy: Array) -> tuple[Params, Array]:
    n = tuple(range(x.ndim - 1))
    sums = wide(dy.dtype)
    wx, xw = common(params["w"], x)
    dx = jnp.matmul(dy, wx.T, preferred_element_type=sums)
    dw = jnp.tensordot(xw, dy, (n, n), preferred_element_type=sums)
    return _bias.gradients(params, dw, dy), narrow(dx, x)


def matrix(params: Params, in_shape: tuple[int, ...]) -> Float[Array, "d_out d_in"]:
    """Wᵀ [d_out, d_in]: the matrix that maps one example, as a column, to x W."""
    return _kernel("linear.matrix", params, in_shape).T


def _kernel(where: str, params: Params, in_shape: tuple[int, ...]) -> Array:
    """w, which takes one example of shape `in_shape`."""
    w = _check.parameter(where, params, "w", ndim=2)
    shape = _check.integers(where, "in_shape", in_shape, least=0, like=f"({w.shape[0]},)")
    if shape != w.shape[:1]:
        raise ShapeError(
            f'{where}: in_shape is {shape}, but params["w"] takes ({w.shape[0]},).',
            path="in_shape",
            expected=f"({w.shape[0]},)",
            actual=str(shape),
        )
    return w


def operator(params: Params, in_shape: tuple[int, ...] | None = None) -> Operator:
    """The map of one example, x -> x W, as an operator with the matrix Wᵀ: see `funcnet.linalg`.

    Args:
        params: w [d_in, d_out].
        in_shape: (d_in,), if it is to be checked.

    >>> operator({"w": jnp.diag(jnp.array([3.0, 2.0]))}).singular_values().tolist()
    [3.0, 2.0]
    """
    where = "linear.operator"
    w = _check.parameter(where, params, "w", ndim=2)
    if in_shape is not None:
        _kernel(where, params, in_shape)
    return Operator(
        Partial(_rows_times, w),
        Partial(_rows_times_transpose, w),
        Partial(jnp.transpose, w),
        None,
        Partial(_one_block, w),
        None,
        Partial(_absolute_sums, w),
        (w.shape[1], w.shape[0]),
        w.dtype.name,
    )


def _rows_times(w: Array, x: Array) -> Array:
    return x @ w


def _rows_times_transpose(w: Array, y: Array) -> Array:
    return y @ w.T


def _one_block(w: Array) -> Array:
    return w.T[None, None]


def _absolute_sums(w: Array) -> tuple[Array, Array]:
    return jnp.abs(w).sum(1).max(), jnp.abs(w).sum(0).max()


def cost(params: Params, x: Float[Abstract, "*n d_in"]) -> Cost:
    """2 · n · d_in · d_out flops."""
    _check.mapping("linear.cost", "params", params)
    return Cost(2 * math.prod(x.shape) * params["w"].shape[1], traffic(reference, params, x))


def squares(
    params: Params, x: Float[Array, "n *t d_in"], dy: Float[Array, "n *t d_out"]
) -> Float[Array, " n"]:
    """|dW|² + |db|² of each example: |Xᵀ dY|², by Gram matrices where they are smaller, and |Σ dY|²."""
    _squares.examples("linear.squares", "x", x, 1)
    return _squares.weights(params, *map(_squares.positions, (x, dy)))


def rows(
    params: Params, x: Float[Array, "n *t d_in"], ids: Integer[Array, "n s"], dy: Float[Array, "n *t d_out"]
) -> Float[Array, "n s d_in"]:
    """Of each example the rows of dWᵀ that ids name, Σ_t x dY[:, id], and 0 where there is none.

    For a table that is W transposed as well: the product of its two gradients needs these rows only.
    """
    del params
    x, dy = map(_squares.positions, (x, dy))
    ids = jnp.where(ids < 0, jnp.asarray(dy.shape[-1], ids.dtype), ids)  # else they count from the end
    picked = jnp.take_along_axis(dy, ids[:, None], 2, mode="fill", fill_value=0)
    return jnp.einsum("nts,nti->nsi", picked, x.astype(dy.dtype), preferred_element_type=wide(dy.dtype))
