"""The Gaussian error linear unit y = x · Φ(x), Φ the normal distribution function, element by element.

x, y [*n]. Φ(x) = ½ (1 + erf(x / √2)), or its approximation by tanh,
½ (1 + tanh(√(2/π) (x + 0.044715 x³))), which is off by less than 5e-4 in y.
Source: Hendrycks and Gimpel, "Gaussian Error Linear Units (GELUs)", arXiv 1606.08415. Computed in float32 or
wider and rounded once.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float

from funcnet import rules
from funcnet.ops import _check
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._dtype import narrow, wide

__all__ = ["apply", "cost", "reference", "vjp"]

_A, _B = math.sqrt(2 / math.pi), 0.044715

# Φ(−a) = t P(t) e^{−a²/2}, t = 1 / (1 + 0.28 a), for every a ≥ 0: the form of Abramowitz and Stegun, 7.1.26.
# P, from its constant up, was fitted so that the largest relative error, 1.7e-7, is least.
_TAIL = (
    0.111703858, 0.111699803, 0.103084664, 0.0836307969, 0.0727749879, -0.00644912432, 0.0924280455,
    -0.0935930753, 0.02471996,
)  # fmt: skip


def reference(x: Float[Array, "*n"], approximate: bool = False) -> Float[Array, "*n"]:
    """y = x/2 · (1 + erf(x / √2)), or with tanh in place of erf, as they are written."""
    if approximate:
        return x / 2 * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return x / 2 * (1 + lax.erf(x / math.sqrt(2)))


@rules.operation
def apply(x: Float[Array, "*n"], approximate: bool = False) -> Float[Array, "*n"]:
    """Multiply every element by the probability that a standard normal variable is smaller.

    Differentiated by `vjp`, which keeps only x; JAX's own rule keeps several arrays of x's size.

    Args:
        x: any shape.
        approximate: True: the form with tanh, as in GPT-2 and BERT's first code; False: the exact one.

    Returns:
        y, of the shape and dtype of x.

    Raises:
        DTypeError: x is not floating-point.
    """
    where = "gelu.apply"
    x, approximate = _check.floating(where, "x", x), _check.flag(where, "approximate", approximate)
    return rules.call(vjp, x, approximate=approximate)


def vjp(x: Float[Array, "*n"], approximate: bool = False) -> tuple[Float[Array, "*n"], Partial]:
    """y and its pullback: dx = dy · (Φ(x) + x · Φ′(x)).

    Φ′(x) = e^{−x²/2} / √(2π); approximate, with t the tanh, ½ (1 − t²) √(2/π) (1 + 3 · 0.044715 x²).
    """
    h = x.astype(wide(x.dtype))
    y = (h * _probability(h, approximate)).astype(x.dtype)
    return y, Partial(rules.bind(_pullback, approximate=approximate), x)


def _pullback(x: Array, dy: Array, *, approximate: bool) -> tuple[Array]:
    h = _bounded(x.astype(wide(x.dtype)))
    p = _probability(h, approximate)
    if approximate:  # 1 − t² = 4 p (1 − p)
        density = 2 * p * (1 - p) * (_A * (1 + 3 * _B * h**2))
    else:
        density = _bell(h) / math.sqrt(2 * math.pi)
    return (narrow(dy.astype(h.dtype) * (p + h * density), x),)


def _probability(h: Array, approximate: bool) -> Array:
    h = _bounded(h)
    if approximate:
        return (1 + jnp.tanh(_A * (h + _B * h**3))) / 2
    return _normal(h)


def _bounded(h: Array) -> Array:
    """h, cut off where Φ is 0 or 1 in every dtype: a power of a larger one overflows."""
    return h if rules.in_jet(h) else jnp.clip(h, -40, 40)  # which jet does not know


def _normal(h: Array) -> Array:
    """Φ, precise far to the left, where 1 + erf would cancel."""
    if h.dtype != jnp.float32 or rules.in_jet(h):
        return lax.erfc(-h / math.sqrt(2)) / 2
    return _normal_in_float32(h)


@jax.custom_jvp
def _normal_in_float32(h: Array) -> Array:
    """Faster than `lax.erfc` on CPU."""
    t, p = 1 / (1 + 0.28 * jnp.abs(h)), _TAIL[-1]
    for coefficient in _TAIL[-2::-1]:
        p = p * t + coefficient
    tail = t * p * _bell(h)
    return jnp.where(h < 0, tail, 1 - tail)


@_normal_in_float32.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (h,), (dh,) = primals, tangents
    return _normal_in_float32(h), dh * _bell(h) / math.sqrt(2 * math.pi)


def _bell(h: Array) -> Array:
    return jnp.exp(-h * h / 2)


def cost(x: Float[Abstract, "*n"], approximate: bool = False) -> Cost:
    """No products: 0 flops, and the bytes of x and y."""
    return Cost(0, traffic(reference, x, approximate=approximate))
