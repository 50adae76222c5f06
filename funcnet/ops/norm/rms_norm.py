"""Root-mean-square normalisation: y = w · x̂ with x̂ = x / √(mean(x²) + eps), over the last axis.

Dimensions: *n any leading axes, d features: x, y [*n, d], w [d]. Nothing is subtracted, nothing is added.
Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", arXiv 1910.07467. The mean square is in
float32 or wider; eps = 1e-6 as in T5 and LLaMA.
"""

from typing import TypedDict

import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float, PRNGKeyArray

from funcnet import rules, spec
from funcnet.errors import describe
from funcnet.ops import _check, _squares
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._dtype import common, narrow, wide
from funcnet.ops._shape import align
from funcnet.spec import Spec

__all__ = ["Params", "apply", "cost", "init", "reference", "specs", "squares", "vjp"]


class Params(TypedDict):
    """Gain w [d]."""

    w: Float[Array, " d"]


def init(key: PRNGKeyArray, d: int) -> Params:
    """w = 1; the key is not used.

    >>> import jax
    >>> init(jax.random.key(0), 3)["w"].shape
    (3,)
    """
    del key
    return {"w": jnp.ones((_check.positive("rms_norm.init", "d", d),))}


def specs(params: Params) -> dict[str, Spec]:
    """Gains are no matrices."""
    return spec.tree("rms_norm.specs", params, {"w": ("d",)})


def reference(params: Params, x: Float[Array, "*n d"], eps: float = 1e-6) -> Float[Array, "*n d"]:
    """y = w · x / √(mean(x²) + eps), as it is written."""
    w, x = common(params["w"], x)
    h = x.astype(wide(x.dtype))
    return align(w, x.ndim) * (h / jnp.sqrt((h**2).mean(-1, keepdims=True) + eps)).astype(x.dtype)


@rules.operation
def apply(params: Params, x: Float[Array, "*n d"], eps: float = 1e-6) -> Float[Array, "*n d"]:
    """Divide the last axis of x by its root mean square, then scale it by w.

    Differentiated by `vjp`, which keeps x and 1/rms; JAX's own rule keeps several arrays of x's size.

    Args:
        params: w [d].
        x: [*n, d]. Squares are taken: in float32 elements beyond 1e19 overflow, and y is 0; with eps = 0 a
            row whose elements are all below 1e-19 vanishes, and y is infinite or NaN.
        eps: added to the mean square, at least 0; static.

    Returns:
        y [*n, d], in the dtype that holds both w and x.

    Raises:
        ShapeError: x does not have d features.
        DTypeError: x or w is not floating-point, or eps is traced.
        ValueRangeError: eps is below 0.
        StructureError: params has no "w".

    >>> params = fn.rms_norm.init(jax.random.key(0), 2)
    >>> print(fn.rms_norm.apply(params, jnp.array([3.0, 4.0])))
    [0.849 1.131]
    """
    w = _check.parameter("rms_norm.apply", params, "w", ndim=1)
    x = _check.floating("rms_norm.apply", "x", x)
    _check.features("rms_norm.apply", x, w.shape[0], f'params["w"] ({describe(w)})')
    return rules.call(vjp, params, x, eps=_check.number("rms_norm.apply", "eps", eps))


def vjp(params: Params, x: Float[Array, "*n d"], eps: float = 1e-6) -> tuple[Float[Array, "*n d"], Partial]:
    """y and its pullback: with g = w · dy, dx = (g − x̂ · mean(g · x̂)) / rms, dw = Σ dy · x̂.

    The mean is over the last axis, Σ over the leading ones.
    """
    _check.mapping("rms_norm.vjp", "params", params)
    w, x_ = common(params["w"], x)
    h = x_.astype(wide(x_.dtype))
    rrms = lax.rsqrt((h**2).mean(-1, keepdims=True) + eps)
    y = align(w.astype(h.dtype), h.ndim) * (h * rrms)
    return y.astype(x_.dtype), Partial(_pullback, params, x, rrms)


def _pullback(params: Params, x: Array, rrms: Array, dy: Array) -> tuple[Params, Array]:
    dy = dy.astype(rrms.dtype)
    xhat = x.astype(rrms.dtype) * rrms
    g = align(params["w"].astype(rrms.dtype), x.ndim) * dy
    dx = rrms * (g - xhat * (g * xhat).mean(-1, keepdims=True))
    dw = (dy * xhat).sum(tuple(range(x.ndim - 1)))
    return rules.like(params, {"w": narrow(dw, params["w"])}), narrow(dx, x)


def cost(params: Params, x: Float[Abstract, "*n d"], eps: float = 1e-6) -> Cost:
    """No products: 0 flops, and the bytes of w, x and y."""
    _check.mapping("rms_norm.cost", "params", params)
    return Cost(0, traffic(reference, params, x, eps=eps))


def squares(
    params: Params, x: Float[Array, "n *t d"], dy: Float[Array, "n *t d"], eps: float = 1e-6
) -> Float[Array, " n"]:
    """|dw|² of each example: |Σ dy · x̂|², the sum over its positions."""
    _squares.examples("rms_norm.squares", "x", x, 1)
    _, _, rrms = vjp(params, x, eps)[1].args
    return _squares.gain({}, x.astype(rrms.dtype) * rrms, dy)
