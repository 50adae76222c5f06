"""The rectifier with a slope that is learnt: y = x where x > 0, else w · x.

Dimensions: *n any leading axes, c channels: x, y [*n, c], w [c], or [1], one slope for all channels. At the
kink x = 0 the derivative is w, as in PyTorch. Source: He, Zhang, Ren and Sun, "Delving Deep into
Rectifiers", arXiv 1502.01852. Computed in float32 or wider and rounded once.
"""

from typing import TypedDict

import jax.numpy as jnp
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
    """The slopes w [c], or [1]."""

    w: Float[Array, " c"]


def init(key: PRNGKeyArray, c: int = 1, *, slope: float = 0.25) -> Params:
    """w = slope; the key is not used.

    >>> import jax
    >>> init(jax.random.key(0), 3)["w"].tolist()
    [0.25, 0.25, 0.25]
    """
    del key
    where = "prelu.init"
    return {"w": jnp.full((_check.positive(where, "c", c),), _check.finite(where, "slope", slope))}


def specs(params: Params) -> dict[str, Spec]:
    """Slopes are no matrix: a decay of weights does not move them, as PyTorch recommends."""
    return spec.tree("prelu.specs", params, {"w": ("c",)})


def reference(params: Params, x: Float[Array, "*n c"]) -> Float[Array, "*n c"]:
    """y = x where x > 0, else w · x, as it is written."""
    w, x = common(params["w"], x)
    return jnp.where(x > 0, x, align(w, x.ndim) * x)


@rules.operation
def apply(params: Params, x: Float[Array, "*n c"]) -> Float[Array, "*n c"]:
    """Multiply negative elements by the slope of their channel.

    Differentiated by `vjp`, which keeps w and x; JAX's own rule keeps arrays of x's size beside it.

    Args:
        params: w [c], or [1].
        x: [*n, c].

    Returns:
        y [*n, c], in the dtype that holds both w and x.

    Raises:
        ShapeError: x does not have c channels, or no axis.
        DTypeError: x or w is not floating-point.
        StructureError: params has no "w".

    >>> fn.prelu.apply({"w": jnp.array([0.25])}, jnp.array([[-4.0], [2.0]])).ravel().tolist()
    [-1.0, 2.0]
    """
    where = "prelu.apply"
    w, x = _check.parameter(where, params, "w", ndim=1), _check.floating(where, "x", x)
    _check.rank(where, "x", x, 1, "*n, c")
    if w.shape[0] != 1:
        _check.channels(where, x, w.shape[0], f'params["w"] ({describe(w)})')
    return rules.call(vjp, params, x)


def vjp(params: Params, x: Float[Array, "*n c"]) -> tuple[Float[Array, "*n c"], Partial]:
    """y and its pullback: dx = dy where x > 0, else w · dy; dw = Σ dy · min(x, 0) over all that share it."""
    _check.mapping("prelu.vjp", "params", params)
    w, h, dtype = _widened(params, x)
    y = jnp.where(h > 0, h, w * h)
    return y.astype(dtype), Partial(_pullback, params, x)


def _pullback(params: Params, x: Array, dy: Array) -> tuple[Params, Array]:
    w, h, _ = _widened(params, x)
    dy = dy.astype(h.dtype)
    left, dleft = _left(h, dy)
    dx = jnp.where(h > 0, dy, w * dleft)
    shared = tuple(range(x.ndim - (w.shape[-1] == x.shape[-1])))
    dw = (left * dleft).sum(shared).reshape(params["w"].shape)
    return rules.like(params, {"w": narrow(dw, params["w"])}), narrow(dx, x)


def _left(h: Array, dy: Array) -> tuple[Array, Array]:
    """h and dy where w counts, and 0 elsewhere: 0 times what is infinite or NaN there would be NaN."""
    left = ~(h > 0)
    return jnp.where(left, h, 0), jnp.where(left, dy, 0)


def _widened(params: Params, x: Array) -> tuple[Array, Array, jnp.dtype]:
    w, x = common(params["w"], x)
    return align(w, x.ndim).astype(wide(x.dtype)), x.astype(wide(x.dtype)), x.dtype


def cost(params: Params, x: Float[Abstract, "*n c"]) -> Cost:
    """No products of matrices: 0 flops, and the bytes of w, x and y."""
    _check.mapping("prelu.cost", "params", params)
    return Cost(0, traffic(reference, params, x))


def squares(params: Params, x: Float[Array, "n *t c"], dy: Float[Array, "n *t c"]) -> Float[Array, " n"]:
    """|dw|² of each example: of Σ dy · min(x, 0) over its positions, and channels if they share w."""
    _squares.examples("prelu.squares", "x", x, 1)
    h = _widened(params, x)[1]
    left, dleft = _left(h, dy.astype(h.dtype))
    each = _squares.positions(left * dleft).sum(1)
    return _squares.summed(each if params["w"].shape[0] == x.shape[-1] else each.sum(1, keepdims=True))
