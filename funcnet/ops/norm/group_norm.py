"""Group normalisation: y = w · x̂ + b, x̂ normalised over the positions and the channels of one group.

    x̂ = (x − mean) / √(variance + eps), the mean and the biased variance of each (example, group)

Dimensions: *n examples, *size positions (spatial axes), c channels in `groups` groups of c / groups
neighbours: x, y [*n, *size, c], w, b [c]. The first axis is the batch and all axes between it and the last
are positions, unless `spatial` says how many axes before the last are positions: then every axis before
those is batch. One group is layer normalisation over positions and channels, c groups instance normalisation.
Source: Wu and He, "Group Normalization", arXiv 1803.08494. Statistics are in float32 or wider.
"""

import math
from typing import Any, NotRequired, TypedDict

import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float, PRNGKeyArray

from funcnet import rules, spec
from funcnet.errors import ValueRangeError, describe
from funcnet.ops import _bias, _check, _squares
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._dtype import common, narrow, wide
from funcnet.ops._shape import align
from funcnet.ops.norm._moments import centred, moments
from funcnet.spec import Spec

__all__ = ["Params", "apply", "cost", "init", "reference", "specs", "squares", "vjp"]


class Params(TypedDict):
    """Gain w [c]; offset b [c], absent for a norm without offset."""

    w: Float[Array, " c"]
    b: NotRequired[Float[Array, " c"]]


def init(key: PRNGKeyArray, c: int, *, bias: bool = True) -> Params:
    """w = 1, b = 0; the key is not used.

    >>> import jax
    >>> jax.tree.map(jnp.shape, init(jax.random.key(0), 3))
    {'b': (3,), 'w': (3,)}
    """
    del key
    w = jnp.ones((_check.positive("group_norm.init", "c", c),))
    return {"w": w, "b": jnp.zeros_like(w)} if _check.flag("group_norm.init", "bias", bias) else {"w": w}


def specs(params: Params) -> dict[str, Spec]:
    """Gains and biases are no matrices."""
    return spec.tree("group_norm.specs", params, {"w": ("c",), "b": ("c",)})


def reference(
    params: Params,
    x: Float[Array, "*n_and_size c"],
    *,
    groups: int,
    eps: float = 1e-5,
    spatial: int | None = None,
) -> Float[Array, "*n_and_size c"]:
    """y = w · (x − mean) / √(variance + eps) + b, as it is written."""
    w, x = common(params["w"], x)
    h = x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups).astype(wide(x.dtype))
    first = 1 if spatial is None else x.ndim - 1 - spatial
    within = (*range(first, x.ndim - 1), x.ndim)  # the positions, and the channels of a group
    mean = h.mean(within, keepdims=True)
    variance = ((h - mean) ** 2).mean(within, keepdims=True)
    xhat = (h - mean) / jnp.sqrt(variance + eps)
    return _bias.add(align(w, x.ndim) * xhat.reshape(x.shape).astype(x.dtype), params)


@rules.operation
def apply(
    params: Params,
    x: Float[Array, "*n_and_size c"],
    *,
    groups: int,
    eps: float = 1e-5,
    spatial: int | None = None,
) -> Float[Array, "*n_and_size c"]:
    """Normalise each group of channels of each example over its positions, then scale by w and shift by b.

    Differentiated by `vjp`, which keeps x, the means and 1/σ; JAX's own rule keeps several arrays like x.

    Args:
        params: w [c] and, unless absent, b [c].
        x: [*n, *size, c]. Squares are taken: in float32 elements that differ by 1e19 overflow, and y is b.
        groups: the number of groups, a divisor of c.
        eps: added to the variance, at least 0; static.
        spatial: how many axes before the last are positions; None: all but the first, which is the batch.
            An image without a batch axis, [h, w, c], as inside `jax.vmap`, needs ``spatial=2``.

    Returns:
        y, of the shape of x, in the dtype that holds both w and x.

    Raises:
        ShapeError: x does not have c channels, or too few axes.
        ValueRangeError: groups do not divide c, or spatial or eps is negative.
        DTypeError: x or a parameter is not floating-point, or eps is traced.
        StructureError: params has no "w".

    >>> params = fn.group_norm.init(jax.random.key(0), 4)
    >>> print(fn.group_norm.apply(params, jnp.arange(4.0)[None], groups=2))
    [[-1.  1. -1.  1.]]
    """
    where = "group_norm.apply"
    w = _check.parameter(where, params, "w", ndim=1)
    x = _check.floating(where, "x", x)
    _check.channels(where, x, w.shape[0], f'params["w"] ({describe(w)})')
    _bias.check(where, params, w.shape[0])
    groups = _check_groups(where, groups, w.shape[0])
    spatial = _check.spatial(where, x, spatial, w.shape[0])
    eps = _check.number(where, "eps", eps)
    return rules.call(vjp, params, x, groups=groups, eps=eps, spatial=spatial)


def vjp(
    params: Params,
    x: Float[Array, "*n_and_size c"],
    *,
    groups: int,
    eps: float = 1e-5,
    spatial: int | None = None,
) -> tuple[Float[Array, "*n_and_size c"], Partial]:
    """y and its pullback: with g = w · dy, dx = (g − mean(g) − x̂ · mean(g · x̂)) / σ.

    dw = Σ dy · x̂, db = Σ dy; the means are over one (example, group), Σ over every axis but the last.
    """
    _check.mapping("group_norm.vjp", "params", params)
    w, x_ = common(params["w"], x)
    h = _split(x_, groups, spatial).astype(wide(x_.dtype))
    d, c, variance = moments(h, _WITHIN)
    rstd = lax.rsqrt(variance + eps)
    xhat = (d * rstd).reshape(x.shape)
    y = _bias.add(align(w.astype(h.dtype), x.ndim) * xhat, params)
    return y.astype(x_.dtype), Partial(
        rules.bind(_pullback, groups=groups, spatial=spatial), params, x, c, rstd
    )


def _pullback(
    params: Params, x: Array, c: Array, rstd: Array, dy: Array, *, groups: int, spatial: int | None
) -> tuple[Params, Array]:
    dy = dy.astype(rstd.dtype)
    xhat = centred(_split(x, groups, spatial).astype(rstd.dtype), c, _WITHIN) * rstd
    g = _split(align(params["w"].astype(rstd.dtype), x.ndim) * dy, groups, spatial)
    dx = rstd * (g - g.mean(_WITHIN, keepdims=True) - xhat * (g * xhat).mean(_WITHIN, keepdims=True))
    dw = (dy * xhat.reshape(x.shape)).sum(tuple(range(x.ndim - 1)))
    return _bias.gradients(params, dw, dy), narrow(dx.reshape(x.shape), x)


_WITHIN = (-3, -1)  # the axes of `_split` that one mean is taken over


def _split(x: Array, groups: int, spatial: int | None) -> Array:
    """x [*n, *size, c] as [*n, positions, groups, c / groups]."""
    first = 1 if spatial is None else x.ndim - 1 - spatial
    return x.reshape(*x.shape[:first], math.prod(x.shape[first:-1]), groups, x.shape[-1] // groups)


def cost(
    params: Params,
    x: Float[Abstract, "*n_and_size c"],
    *,
    groups: int,
    eps: float = 1e-5,
    spatial: int | None = None,
) -> Cost:
    """No products: 0 flops, and the bytes of params, x and y."""
    _check.mapping("group_norm.cost", "params", params)
    return Cost(0, traffic(reference, params, x, groups=groups, eps=eps, spatial=spatial))


def squares(
    params: Params,
    x: Float[Array, "n *size c"],
    dy: Float[Array, "n *size c"],
    *,
    groups: int,
    eps: float = 1e-5,
    spatial: int | None = None,
) -> Float[Array, " n"]:
    """|dw|² + |db|² of each example: |Σ dy · x̂|² + |Σ dy|², the sums over its positions."""
    _squares.examples("group_norm.squares", "x", x, 1 if spatial is None else 1 + spatial)
    _, _, c, rstd = vjp(params, x, groups=groups, eps=eps, spatial=spatial)[1].args
    xhat = centred(_split(x, groups, spatial).astype(rstd.dtype), c, _WITHIN) * rstd
    return _squares.gain(params, xhat.reshape(x.shape), dy)


def _check_groups(where: str, groups: Any, c: int) -> int:
    groups = _check.positive(where, "groups", groups)
    if c % groups:
        raise ValueRangeError(
            f"{where}: {groups} groups do not divide c = {c}.",
            path="groups",
            expected=f"a divisor of c = {c}",
            actual=f"groups = {groups}",
        )
    return groups
