"""Layer normalisation: y = w · x̂ + b with x̂ = (x − mean) / √(variance + eps), over the last axis.

Dimensions: *n any leading axes, d features: x, y [*n, d], w, b [d]. The variance is the biased one (1/d).
Source: Ba, Kiros and Hinton, "Layer Normalization", arXiv 1607.06450. Statistics are in float32 or wider.
"""

from typing import NotRequired, TypedDict

import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float, PRNGKeyArray

from funcnet import rules, spec
from funcnet.errors import describe
from funcnet.ops import _bias, _check, _squares
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._dtype import common, narrow, wide
from funcnet.ops._shape import align
from funcnet.ops.norm._moments import centred, moments
from funcnet.spec import Spec

__all__ = ["Params", "apply", "cost", "init", "reference", "specs", "squares", "vjp"]


class Params(TypedDict):
    """Gain w [d]; offset b [d], absent for a norm without offset."""

    w: Float[Array, " d"]
    b: NotRequired[Float[Array, " d"]]


def init(key: PRNGKeyArray, d: int, *, bias: bool = True) -> Params:
    """w = 1, b = 0; the key is not used.

    >>> import jax
    >>> jax.tree.map(jnp.shape, init(jax.random.key(0), 3))
    {'b': (3,), 'w': (3,)}
    """
    del key
    w = jnp.ones((_check.positive("layer_norm.init", "d", d),))
    return {"w": w, "b": jnp.zeros_like(w)} if _check.flag("layer_norm.init", "bias", bias) else {"w": w}


def specs(params: Params) -> dict[str, Spec]:
    """Gains and biases are no matrices."""
    return spec.tree("layer_norm.specs", params, {"w": ("d",), "b": ("d",)})


def reference(params: Params, x: Float[Array, "*n d"], eps: float = 1e-5) -> Float[Array, "*n d"]:
    """y = w · (x − mean) / √(variance + eps) + b, as it is written."""
    w, x = common(params["w"], x)
    h = x.astype(wide(x.dtype))
    mean = h.mean(-1, keepdims=True)
    variance = ((h - mean) ** 2).mean(-1, keepdims=True)
    return _bias.add(align(w, x.ndim) * ((h - mean) / jnp.sqrt(variance + eps)).astype(x.dtype), params)


@rules.operation
def apply(params: Params, x: Float[Array, "*n d"], eps: float = 1e-5) -> Float[Array, "*n d"]:
    """Normalise the last axis of x, then scale it by w and shift it by b.

    Differentiated by `vjp`, which keeps x, the mean and 1/σ; JAX's own rule keeps several arrays of x's size.

    Args:
        params: w [d] and, unless absent, b [d].
        x: [*n, d]. Squares are taken: in float32 elements that differ by 1e19 overflow, and y is b.
        eps: added to the variance, at least 0; static.

    Returns:
        y [*n, d], in the dtype that holds both w and x.

    Raises:
        ShapeError: x does not have d features.
        DTypeError: x or a parameter is not floating-point, or eps is traced.
        ValueRangeError: eps is below 0.
        StructureError: params has no "w".

    >>> params = fn.layer_norm.init(jax.random.key(0), 2)
    >>> print(fn.layer_norm.apply(params, jnp.array([1.0, 3.0])))
    [-1.  1.]
    """
    w = _check.parameter("layer_norm.apply", params, "w", ndim=1)
    x = _check.floating("layer_norm.apply", "x", x)
    _check.features("layer_norm.apply", x, w.shape[0], f'params["w"] ({describe(w)})')
    _bias.check("layer_norm.apply", params, w.shape[0])
    return rules.call(vjp, params, x, eps=_check.number("layer_norm.apply", "eps", eps))


def vjp(params: Params, x: Float[Array, "*n d"], eps: float = 1e-5) -> tuple[Float[Array, "*n d"], Partial]:
    """y and its pullback: with g = w · dy, dx = (g − mean(g) − x̂ · mean(g · x̂)) / σ.

    dw = Σ dy · x̂, db = Σ dy; the means are over the last axis, Σ over the leading ones.
    """
    _check.mapping("layer_norm.vjp", "params", params)
    w, x_ = common(params["w"], x)
    h = x_.astype(wide(x_.dtype))
    d, c, variance = moments(h, (-1,))
    rstd = lax.rsqrt(variance + eps)
    y = _bias.add(align(w.astype(h.dtype), h.ndim) * (d * rstd), params)
    return y.astype(x_.dtype), Partial(_pullback, params, x, c, rstd)


def _pullback(params: Params, x: Array, c: Array, rstd: Array, dy: Array) -> tuple[Params, Array]:
    n = tuple(range(x.ndim - 1))
    dy = dy.astype(rstd.dtype)
    xhat = centred(x.astype(rstd.dtype), c, (-1,)) * rstd
    g = align(params["w"].astype(rstd.dtype), x.ndim) * dy
    dx = rstd * (g - g.mean(-1, keepdims=True) - xhat * (g * xhat).mean(-1, keepdims=True))
    return _bias.gradients(params, (dy * xhat).sum(n), dy), narrow(dx, x)


def cost(params: Params, x: Float[Abstract, "*n d"], eps: float = 1e-5) -> Cost:
    """No products: 0 flops, and the bytes of params, x and y."""
    _check.mapping("layer_norm.cost", "params", params)
    return Cost(0, traffic(reference, params, x, eps=eps))


def squares(
    params: Params, x: Float[Array, "n *t d"], dy: Float[Array, "n *t d"], eps: float = 1e-5
) -> Float[Array, " n"]:
    """|dw|² + |db|² of each example: |Σ dy · x̂|² + |Σ dy|², the sums over its positions."""
    _squares.examples("layer_norm.squares", "x", x, 1)
    _, _, c, rstd = vjp(params, x, eps)[1].args
    return _squares.gain(params, centred(x.astype(rstd.dtype), c, (-1,)) * rstd, dy)
