"""The bilinear map y_k = Σ_ij u_i W_ijk v_j + b_k.

Dimensions: *n any leading axes (batch), d_left and d_right features of the two, d_out: left u [*n, d_left],
right v [*n, d_right], w [d_left, d_right, d_out], b [d_out], y [*n, d_out].
"""

import math
from typing import NotRequired, TypedDict

import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, PRNGKeyArray

from funcnet import rules, spec
from funcnet.errors import ShapeError, describe
from funcnet.ops import _bias, _check, _squares
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._draw import Initializer, drawn
from funcnet.ops._dtype import common, narrow, wide
from funcnet.spec import Spec

__all__ = ["Params", "apply", "cost", "init", "reference", "specs", "squares", "vjp"]


class Params(TypedDict):
    """w [d_left, d_right, d_out]; b [d_out], absent for a map without bias."""

    w: Float[Array, "d_left d_right d_out"]
    b: NotRequired[Float[Array, " d_out"]]


def init(
    key: PRNGKeyArray,
    d_left: int,
    d_right: int,
    d_out: int,
    *,
    bias: bool = True,
    w: Initializer | None = None,
) -> Params:
    """Draw w uniformly, of variance 1 / (d_left · d_right): unit features give outputs like them; b = 0.

    Args:
        key: a random key.
        d_left: features of the left argument.
        d_right: features of the right one.
        d_out: features of y.
        bias: whether there is a "b".
        w: what draws w instead: ``(key, (d_left · d_right, d_out)) -> w``, as
            ``jax.nn.initializers.he_normal()``.

    >>> jax.tree.map(jnp.shape, init(jax.random.key(0), 3, 5, 2))
    {'b': (2,), 'w': (3, 5, 2)}
    """
    where = "bilinear.init"
    _check.key(where, key, none=False)
    sizes = {"d_left": d_left, "d_right": d_right, "d_out": d_out}
    shape = tuple(_check.positive(where, name, size) for name, size in sizes.items())
    leaf = drawn(where, key, w, shape, "iio", variance=1 / (shape[0] * shape[1]))
    bias = _check.flag(where, "bias", bias)
    return {"w": leaf, "b": jnp.zeros(shape[2:], leaf.dtype)} if bias else {"w": leaf}


def specs(params: Params, *, axes: str = "d_left d_right d_out") -> dict[str, Spec]:
    """Which matrix w is: by dW = (u ⊗ v)ᵀ dY, pairs of features by features out. b is none.

    Args:
        params: arrays, or `jax.ShapeDtypeStruct`.
        axes: the names of the axes of w; the last one is that of b.
    """
    return spec.tree("bilinear.specs", params, {"w": (axes, "iio"), "b": (axes.split()[-1],)})


def reference(
    params: Params, left: Float[Array, "*n d_left"], right: Float[Array, "*n d_right"]
) -> Float[Array, "*n d_out"]:
    """y_k = Σ_j (Σ_i u_i W_ijk) v_j + b_k, as it is written."""
    w, u, v = common(params["w"], left, right)
    return _bias.add(jnp.einsum("...jk,...j->...k", jnp.tensordot(u, w, 1), v), params)


@rules.operation
def apply(
    params: Params, left: Float[Array, "*n d_left"], right: Float[Array, "*n d_right"]
) -> Float[Array, "*n d_out"]:
    """Map pairs of features: y = left W right + b.

    XLA's own derivative of this program is the formula of `vjp`, so nothing is attached to it.

    Args:
        params: w [d_left, d_right, d_out] and, unless absent, b [d_out].
        left: [*n, d_left].
        right: [*n, d_right]; nothing is broadcast.

    Returns:
        y [*n, d_out], in the dtype that holds all; sums are in float32 or wider.

    Raises:
        ShapeError: left or right do not have the features of w, or not the same leading axes, or b not d_out.
        DTypeError: an argument or a parameter is not floating-point.
        StructureError: params has no "w".

    >>> params = fn.bilinear.init(jax.random.key(0), 3, 4, 5)
    >>> fn.bilinear.apply(params, jnp.ones((2, 3)), jnp.ones((2, 4))).shape
    (2, 5)
    """
    where = "bilinear.apply"
    w = _check.parameter(where, params, "w", ndim=3)
    left, right = _check.floating(where, "left", left), _check.floating(where, "right", right)
    for path, x, size in (("left", left, w.shape[0]), ("right", right, w.shape[1])):
        _check.features(where, x, size, f'params["w"] ({describe(w)})', path=path)
    if left.shape[:-1] != right.shape[:-1]:
        lead = ", ".join(map(str, left.shape[:-1]))
        raise ShapeError(
            f"{where}: left and right have different leading axes.",
            path="right",
            expected=f"right: float[{lead}, {w.shape[1]}]     (left: {describe(left)})",
            actual=f"right: {describe(right)}",
        )
    _bias.check(where, params, w.shape[2])
    return _forward(params, left, right)


def _forward(params: Params, left: Array, right: Array) -> Array:
    w, u, v = common(params["w"], left, right)
    sums = wide(u.dtype)
    rows = jnp.tensordot(u, w, 1, preferred_element_type=sums)
    y = jnp.einsum("...jk,...j->...k", rows, v.astype(sums))
    return _bias.add(y, params).astype(u.dtype)


def vjp(
    params: Params, left: Float[Array, "*n d_left"], right: Float[Array, "*n d_right"]
) -> tuple[Float[Array, "*n d_out"], Partial]:
    """y and its pullback: du_i = Σ_jk W_ijk v_j dy_k, dv_j = Σ_ik u_i W_ijk dy_k, dW_ijk = Σ u_i v_j dy_k.

    db = Σ dy; the sums of dW and db are over every leading axis.
    """
    _check.mapping("bilinear.vjp", "params", params)
    return _forward(params, left, right), Partial(_pullback, params, left, right)


def _pullback(params: Params, left: Array, right: Array, dy: Array) -> tuple[Params, Array, Array]:
    sums = wide(dy.dtype)
    w, u, v, g = (a.astype(sums) for a in common(params["w"], left, right, dy))
    outer = v[..., :, None] * g[..., None, :]  # v_j dy_k
    d_left = jnp.tensordot(outer, w, ((-2, -1), (1, 2)))
    d_right = jnp.einsum("...jk,...k->...j", jnp.tensordot(u, w, 1), g)
    n = tuple(range(u.ndim - 1))
    dw = jnp.tensordot(u, outer, (n, n))
    return _bias.gradients(params, dw, dy), narrow(d_left, left), narrow(d_right, right)


def cost(params: Params, left: Float[Abstract, "*n d_left"], right: Float[Abstract, "*n d_right"]) -> Cost:
    """2 · n · d_left · d_right · d_out flops of u W, and 2 · n · d_right · d_out of its product with v."""
    _check.mapping("bilinear.cost", "params", params)
    d_left, d_right, d_out = params["w"].shape
    flops = 2 * math.prod(left.shape[:-1]) * d_right * d_out * (d_left + 1)
    return Cost(flops, traffic(reference, params, left, right))


def squares(
    params: Params,
    left: Float[Array, "n *t d_left"],
    right: Float[Array, "n *t d_right"],
    dy: Float[Array, "n *t d_out"],
) -> Float[Array, " n"]:
    """|dW|² + |db|² of each example, with the pairs u_i v_j as the rows of a linear map."""
    _squares.examples("bilinear.squares", "left", left, 1)
    u, v, dy = map(_squares.positions, (left, right, dy))
    pairs = (u[..., :, None] * v[..., None, :]).reshape(*u.shape[:2], u.shape[2] * v.shape[2])
    return _squares.weights(params, pairs, dy)
