"""Instance normalisation: y = w · x̂ + b, x̂ normalised over the positions of each channel alone.

Dimensions: *n examples, *size positions (spatial axes), c channels: x, y [*n, *size, c], w, b [c]; which
axes are positions is said as in `group_norm`, which with c groups this is. Source: Ulyanov, Vedaldi and
Lempitsky, "Instance Normalization: The Missing Ingredient for Fast Stylization", arXiv 1607.08022.
Statistics are in float32 or wider.
"""

import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, PRNGKeyArray

from funcnet import rules, spec
from funcnet.errors import describe
from funcnet.ops import _bias, _check
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._dtype import common, wide
from funcnet.ops._shape import align
from funcnet.ops.norm import group_norm
from funcnet.ops.norm.group_norm import Params
from funcnet.spec import Spec

__all__ = ["Params", "apply", "cost", "init", "reference", "specs", "squares", "vjp"]


def init(key: PRNGKeyArray, c: int, *, bias: bool = True) -> Params:
    """w = 1, b = 0; the key is not used.

    >>> import jax
    >>> jax.tree.map(jnp.shape, init(jax.random.key(0), 3))
    {'b': (3,), 'w': (3,)}
    """
    del key
    where = "instance_norm.init"
    w = jnp.ones((_check.positive(where, "c", c),))
    return {"w": w, "b": jnp.zeros_like(w)} if _check.flag(where, "bias", bias) else {"w": w}


def specs(params: Params) -> dict[str, Spec]:
    """Gains and biases are no matrices."""
    return spec.tree("instance_norm.specs", params, {"w": ("c",), "b": ("c",)})


def reference(
    params: Params, x: Float[Array, "*n_and_size c"], *, eps: float = 1e-5, spatial: int | None = None
) -> Float[Array, "*n_and_size c"]:
    """y = w · (x − mean) / √(variance + eps) + b, as it is written."""
    w, x = common(params["w"], x)
    h = x.astype(wide(x.dtype))
    positions = tuple(range(1 if spatial is None else x.ndim - 1 - spatial, x.ndim - 1))
    mean = h.mean(positions, keepdims=True)
    variance = ((h - mean) ** 2).mean(positions, keepdims=True)
    return _bias.add(align(w, x.ndim) * ((h - mean) / jnp.sqrt(variance + eps)).astype(x.dtype), params)


@rules.operation
def apply(
    params: Params, x: Float[Array, "*n_and_size c"], *, eps: float = 1e-5, spatial: int | None = None
) -> Float[Array, "*n_and_size c"]:
    """Normalise each channel of each example over its positions, then scale by w and shift by b.

    Differentiated by `vjp`, which keeps x, the means and 1/σ; JAX's own rule keeps several arrays like x.

    Args:
        params: w [c] and, unless absent, b [c].
        x: [*n, *size, c]. Squares are taken: in float32 elements that differ by 1e19 overflow, and y is b.
        eps: added to the variance, at least 0; static. A channel of one position gives b.
        spatial: how many axes before the last are positions; None: all but the first, which is the batch.

    Returns:
        y, of the shape of x, in the dtype that holds both w and x.

    Raises:
        ShapeError: x does not have c channels, or too few axes.
        ValueRangeError: spatial or eps is negative.
        DTypeError: x or a parameter is not floating-point, or eps is traced.
        StructureError: params has no "w".

    >>> params = fn.instance_norm.init(jax.random.key(0), 1)
    >>> print(fn.instance_norm.apply(params, jnp.array([[1.0], [3.0]]), spatial=1).ravel())
    [-1.  1.]
    """
    where = "instance_norm.apply"
    w = _check.parameter(where, params, "w", ndim=1)
    x = _check.floating(where, "x", x)
    _check.channels(where, x, w.shape[0], f'params["w"] ({describe(w)})')
    _bias.check(where, params, w.shape[0])
    spatial = _check.spatial(where, x, spatial, w.shape[0])
    return rules.call(vjp, params, x, eps=_check.number(where, "eps", eps), spatial=spatial)


def vjp(
    params: Params, x: Float[Array, "*n_and_size c"], *, eps: float = 1e-5, spatial: int | None = None
) -> tuple[Float[Array, "*n_and_size c"], Partial]:
    """y and its pullback, those of `group_norm` with c groups."""
    _check.mapping("instance_norm.vjp", "params", params)
    return group_norm.vjp(params, x, groups=x.shape[-1], eps=eps, spatial=spatial)


def cost(
    params: Params, x: Float[Abstract, "*n_and_size c"], *, eps: float = 1e-5, spatial: int | None = None
) -> Cost:
    """No products: 0 flops, and the bytes of params, x and y."""
    _check.mapping("instance_norm.cost", "params", params)
    return Cost(0, traffic(reference, params, x, eps=eps, spatial=spatial))


def squares(
    params: Params,
    x: Float[Array, "n *size c"],
    dy: Float[Array, "n *size c"],
    *,
    eps: float = 1e-5,
    spatial: int | None = None,
) -> Float[Array, " n"]:
    """|dw|² + |db|² of each example, those of `group_norm` with c groups."""
    return group_norm.squares(params, x, dy, groups=x.shape[-1], eps=eps, spatial=spatial)
