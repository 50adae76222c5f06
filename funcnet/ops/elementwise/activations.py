"""Activations without parameters: functions of each element alone. x, y [*n].

A section is one operation, in the contract's order: the definition, as it is written; the value as it is
computed, where the definition overflows or cancels; the pullback, from x (of relu from y, which the next
operation needs anyway); and the operation, made of them. At a kink the derivative is PyTorch's. An
exponential is taken where it cannot overflow: of what is negative, what is not used being replaced before.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from funcnet import rules
from funcnet.errors import ValueRangeError
from funcnet.ops import _check
from funcnet.ops._dtype import common
from funcnet.ops._elementwise import elementwise, gated

__all__ = [
    "celu",
    "elu",
    "geglu",
    "gelu",
    "glu",
    "hard_shrink",
    "hard_sigmoid",
    "hard_silu",
    "hard_tanh",
    "leaky_relu",
    "log_sigmoid",
    "mish",
    "quick_gelu",
    "relu",
    "relu6",
    "selu",
    "sigmoid",
    "silu",
    "soft_shrink",
    "softplus",
    "softsign",
    "swiglu",
    "tanh",
    "tanh_shrink",
    "threshold",
]

_above_0 = functools.partial(_check.number, strict=True)

# ---- relu: y = max(x, 0) ----------------------------------------------------------------------------------


def _relu(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """y = max(x, 0): 0 where x ≤ 0, else x; a NaN stays one. At the kink x = 0 the derivative is 0."""
    return jnp.where(x <= 0, 0, x)


def _relu_pullback(y: Array, dy: Array) -> Array:
    return jnp.where(y == 0, 0, dy)


relu = elementwise(_relu, _relu_pullback, keeps="y")

# ---- leaky_relu: y = max(x, 0) + a min(x, 0) --------------------------------------------------------------


def _leaky_relu(x: Float[Array, "*n"], negative_slope: float = 0.01) -> Float[Array, "*n"]:
    """y = x where x > 0, else negative_slope · x. At the kink x = 0 the derivative is negative_slope.

    Source: Maas, Hannun and Ng, "Rectifier Nonlinearities Improve Neural Network Acoustic Models", 2013.
    """
    return jnp.where(x > 0, x, negative_slope * x)


def _leaky_relu_pullback(x: Array, dy: Array, negative_slope: float) -> Array:
    return jnp.where(x > 0, dy, negative_slope * dy)


leaky_relu = elementwise(_leaky_relu, _leaky_relu_pullback, checks={"negative_slope": _check.finite})

# ---- relu6, hard_tanh: y = min(max(x, low), high) ---------------------------------------------------------


def _relu6(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """y = min(max(x, 0), 6). At the kinks 0 and 6 the derivative is 0.

    Source: Krizhevsky, "Convolutional Deep Belief Networks on CIFAR-10", 2010.
    """
    return jnp.where(x <= 0, 0, jnp.where(x >= 6, 6, x))


def _relu6_pullback(x: Array, dy: Array) -> Array:
    return jnp.where((x <= 0) | (x >= 6), 0, dy)


relu6 = elementwise(_relu6, _relu6_pullback)


def _hard_tanh(x: Float[Array, "*n"], min_val: float = -1.0, max_val: float = 1.0) -> Float[Array, "*n"]:
    """y = min(max(x, min_val), max_val). At the two kinks the derivative is 0.

    Source: Collobert, "Large Scale Machine Learning", 2004. Raises ValueRangeError too where
    min_val > max_val.
    """
    if min_val > max_val:
        raise ValueRangeError(
            f"hard_tanh.apply: min_val is {min_val:g}, more than max_val, {max_val:g}.",
            path="min_val",
            expected=f"min_val ≤ max_val = {max_val:g}",
            actual=f"min_val = {min_val:g}",
        )
    return jnp.where(x <= min_val, min_val, jnp.where(x >= max_val, max_val, x))


def _hard_tanh_pullback(x: Array, dy: Array, min_val: float, max_val: float) -> Array:
    return jnp.where((x <= min_val) | (x >= max_val), 0, dy)


hard_tanh = elementwise(
    _hard_tanh, _hard_tanh_pullback, checks={"min_val": _check.finite, "max_val": _check.finite}
)

# ---- hard_sigmoid, hard_silu: the sigmoid as a line between 0 and 1 ---------------------------------------


def _hard_sigmoid(x: Float[Array, "*n"], alpha: float = 1 / 6, beta: float = 0.5) -> Float[Array, "*n"]:
    """y = min(max(alpha · x + beta, 0), 1). At the two kinks the derivative is 0.

    PyTorch's has alpha = 1/6, ONNX's 0.2. Sources: Courbariaux, Bengio and David, "BinaryConnect",
    arXiv 1511.00363; Howard et al., "Searching for MobileNetV3", arXiv 1905.02244.
    """
    line = alpha * x + beta
    return jnp.where(line <= 0, 0, jnp.where(line >= 1, 1, line))


def _hard_sigmoid_pullback(x: Array, dy: Array, alpha: float, beta: float) -> Array:
    line = alpha * x + beta
    return jnp.where((line <= 0) | (line >= 1), 0, alpha * dy)


hard_sigmoid = elementwise(
    _hard_sigmoid, _hard_sigmoid_pullback, checks={"alpha": _check.finite, "beta": _check.finite}
)


def _hard_silu(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """y = x · min(max(x + 3, 0), 6) / 6, or hard swish. At the kinks −3 and 3 the derivative is 0 and 1.

    Source: Howard et al., "Searching for MobileNetV3", arXiv 1905.02244.
    """
    return x * jnp.where(x <= -3, 0, jnp.where(x >= 3, 6, x + 3)) / 6


def _hard_silu_value(x: Array) -> Array:
    return jnp.where(x <= -3, 0, jnp.where(x >= 3, x, x * (x + 3) / 6))


def _hard_silu_pullback(x: Array, dy: Array) -> Array:
    return jnp.where(x <= -3, 0, jnp.where(x >= 3, dy, dy * (2 * x + 3) / 6))


hard_silu = elementwise(_hard_silu, _hard_silu_pullback, value=_hard_silu_value)

# ---- hard_shrink, soft_shrink, tanh_shrink, threshold -----------------------------------------------------


def _hard_shrink(x: Float[Array, "*n"], lambd: float = 0.5) -> Float[Array, "*n"]:
    """y = 0 where −lambd ≤ x ≤ lambd, where the derivative is 0 too, else x.

    Source: Donoho and Johnstone, "Ideal Spatial Adaptation by Wavelet Shrinkage", 1994.
    """
    return jnp.where((x >= -lambd) & (x <= lambd), 0, x)


def _hard_shrink_pullback(x: Array, dy: Array, lambd: float) -> Array:
    return jnp.where((x >= -lambd) & (x <= lambd), 0, dy)


hard_shrink = elementwise(_hard_shrink, _hard_shrink_pullback, checks={"lambd": _check.finite})


def _soft_shrink(x: Float[Array, "*n"], lambd: float = 0.5) -> Float[Array, "*n"]:
    """y = 0 where −lambd ≤ x ≤ lambd, where the derivative is 0 too, else x, nearer to 0 by lambd.

    Source: Donoho, "De-noising by Soft-Thresholding", 1995.
    """
    return jnp.where((x >= -lambd) & (x <= lambd), 0, jnp.where(x > 0, x - lambd, x + lambd))


soft_shrink = elementwise(_soft_shrink, _hard_shrink_pullback, checks={"lambd": _check.number})


def _tanh_shrink(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """y = x − tanh(x)."""
    return x - jnp.tanh(x)


def _tanh_shrink_value(x: Array) -> Array:
    """Near 0, where x and tanh(x) cancel, by tanh(x) = x / (1 + q), q = x² / (3 + x² / (5 + ...))."""
    near = jnp.where(abs(x) < 1, x, 0)
    square, fraction = near * near, 19.0 * jnp.ones_like(near)
    for odd in range(17, 1, -2):
        fraction = odd + square / fraction
    q = square / fraction
    return jnp.where(abs(x) < 1, near * q / (1 + q), x - jnp.tanh(x))


def _tanh_shrink_pullback(x: Array, dy: Array) -> Array:
    t = jnp.tanh(x)
    return dy * t * t


tanh_shrink = elementwise(_tanh_shrink, _tanh_shrink_pullback, value=_tanh_shrink_value)


def _threshold(x: Float[Array, "*n"], *, threshold: float, value: float) -> Float[Array, "*n"]:
    """y = value where x ≤ threshold, where the derivative is 0, else x."""
    return jnp.where(x <= threshold, value, x)


def _threshold_pullback(x: Array, dy: Array, threshold: float, value: float) -> Array:
    del value
    return jnp.where(x <= threshold, 0, dy)


threshold = elementwise(
    _threshold, _threshold_pullback, checks={"threshold": _check.finite, "value": _check.finite}
)

# ---- elu, celu, selu: an exponential to the left ----------------------------------------------------------


def _elu(x: Float[Array, "*n"], alpha: float = 1.0) -> Float[Array, "*n"]:
    """y = x where x > 0, else alpha · (eˣ − 1). At 0 the derivative is alpha.

    Source: Clevert, Unterthiner and Hochreiter, "Fast and Accurate Deep Network Learning by Exponential
    Linear Units (ELUs)", arXiv 1511.07289.
    """
    return jnp.where(x > 0, x, alpha * (jnp.exp(x) - 1))


def _elu_value(x: Array, alpha: float) -> Array:
    return jnp.where(x > 0, x, alpha * jnp.expm1(_left(x)))


def _elu_pullback(x: Array, dy: Array, alpha: float) -> Array:
    return jnp.where(x > 0, dy, dy * (alpha * jnp.exp(_left(x))))


def _left(x: Array) -> Array:
    """x, and 0 where it is positive and not used: there e^x overflows."""
    return jnp.where(x > 0, 0, x)


elu = elementwise(_elu, _elu_pullback, value=_elu_value, checks={"alpha": _check.finite})


def _celu(x: Float[Array, "*n"], alpha: float = 1.0) -> Float[Array, "*n"]:
    """y = x where x > 0, else alpha · (e^{x / alpha} − 1), alpha > 0. At 0 the derivative is 1, as around.

    Source: Barron, "Continuously Differentiable Exponential Linear Units", arXiv 1704.07483.
    """
    return jnp.where(x > 0, x, alpha * (jnp.exp(x / alpha) - 1))


def _celu_value(x: Array, alpha: float) -> Array:
    return jnp.where(x > 0, x, alpha * jnp.expm1(_left(x) / alpha))


def _celu_pullback(x: Array, dy: Array, alpha: float) -> Array:
    return jnp.where(x > 0, dy, dy * jnp.exp(_left(x) / alpha))


celu = elementwise(_celu, _celu_pullback, value=_celu_value, checks={"alpha": _above_0})

_ALPHA, _SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946


def _selu(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """y = 1.0507 · (x where x > 0, else 1.6733 · (eˣ − 1)). At 0 the derivative is 1.7581.

    With these two numbers mean 0 and variance 1 of x is a fixed point of layers. Source: Klambauer et al.,
    "Self-Normalizing Neural Networks", arXiv 1706.02515.
    """
    return _SCALE * jnp.where(x > 0, x, _ALPHA * (jnp.exp(x) - 1))


def _selu_value(x: Array) -> Array:
    return _SCALE * _elu_value(x, _ALPHA)


def _selu_pullback(x: Array, dy: Array) -> Array:
    return _elu_pullback(x, _SCALE * dy, _ALPHA)


selu = elementwise(_selu, _selu_pullback, value=_selu_value)

# ---- sigmoid, tanh, softsign: bounded ---------------------------------------------------------------------


def _sigmoid(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """y = σ(x) = 1 / (1 + e^{−x}), the logistic function.

    Source: Rumelhart, Hinton and Williams, "Learning Representations by Back-Propagating Errors", Nature 323,
    1986.
    """
    return 1 / (1 + jnp.exp(-x))


def _sigmoid_pullback(x: Array, dy: Array) -> Array:
    """dy · σ(x) σ(−x), from x: of a y rounded to nearly 1, 1 − y is not known well."""
    s, rest = _logistic(x)
    return dy * s * rest


def _logistic(x: Array) -> tuple[Array, Array]:
    """σ(x) and σ(−x) = 1 − σ(x), both to the last digits, fractions of e = e^{−abs(x)}."""
    e = _decayed(x)
    larger = 1 / (1 + e)
    return jnp.where(x < 0, e * larger, larger), jnp.where(x < 0, larger, e * larger)


def _decayed(x: Array) -> Array:
    """e^{−abs(x)}, differentiated at 0 as where x > 0: abs has derivative 0 there."""
    return jnp.exp(jnp.where(x < 0, x, -x))


sigmoid = elementwise(_sigmoid, _sigmoid_pullback, value=lax.logistic)


def _tanh(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """y = (eˣ − e⁻ˣ) / (eˣ + e⁻ˣ), the hyperbolic tangent.

    Source: LeCun, Bottou, Orr and Müller, "Efficient BackProp", 1998, §4.4.
    """
    return (jnp.exp(x) - jnp.exp(-x)) / (jnp.exp(x) + jnp.exp(-x))


def _tanh_pullback(x: Array, dy: Array) -> Array:
    """dy · (1 − y²) = dy · 4 σ(2x) σ(−2x), from x: of a y rounded to nearly ±1, 1 − y² is not known well."""
    s, rest = _logistic(2 * x)
    return dy * (4 * s * rest)


tanh = elementwise(_tanh, _tanh_pullback, value=jnp.tanh)


def _softsign(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """y = x / (1 + abs(x)). An infinite x gives NaN.

    Source: Turian, Bergstra and Bengio, "Quadratic Features and Deep Architectures for Chunking", 2009.
    """
    return x / (1 + abs(x))


def _softsign_pullback(x: Array, dy: Array) -> Array:
    r = 1 / (1 + abs(x))
    return dy * r * r


softsign = elementwise(_softsign, _softsign_pullback)

# ---- softplus, log_sigmoid: logarithms of the sigmoid -----------------------------------------------------


def _softplus(x: Float[Array, "*n"], beta: float = 1.0) -> Float[Array, "*n"]:
    """y = log(1 + e^{beta · x}) / beta, beta > 0: a smooth max(x, 0), to which it tends as beta grows.

    Source: Dugas et al., "Incorporating Second-Order Functional Knowledge for Better Option Pricing", 2000.
    """
    return jnp.log(1 + jnp.exp(beta * x)) / beta


def _softplus_value(x: Array, beta: float = 1.0) -> Array:
    return jnp.where(x > 0, x, 0) + jnp.log1p(_decayed(beta * x)) / beta


def _softplus_pullback(x: Array, dy: Array, beta: float) -> Array:
    return dy * _logistic(beta * x)[0]


softplus = elementwise(_softplus, _softplus_pullback, value=_softplus_value, checks={"beta": _above_0})


def _log_sigmoid(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """y = log σ(x) = −log(1 + e^{−x})."""
    return -jnp.log(1 + jnp.exp(-x))


def _log_sigmoid_value(x: Array) -> Array:
    return -_softplus_value(-x)


def _log_sigmoid_pullback(x: Array, dy: Array) -> Array:
    return dy * _logistic(x)[1]


log_sigmoid = elementwise(_log_sigmoid, _log_sigmoid_pullback, value=_log_sigmoid_value)

# ---- silu, quick_gelu, mish: x times a smooth step --------------------------------------------------------


def _silu(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """y = x · σ(x) = x / (1 + e^{−x}), the sigmoid linear unit, or swish.

    Source: Elfwing, Uchibe and Doya, "Sigmoid-Weighted Linear Units", arXiv 1702.03118.
    """
    return x / (1 + jnp.exp(-x))


def _silu_value(x: Array) -> Array:
    return x * lax.logistic(x)


def _silu_pullback(x: Array, dy: Array) -> Array:
    s, rest = _logistic(x)
    return dy * s * (1 + x * rest)


silu = elementwise(_silu, _silu_pullback, value=_silu_value)


def _quick_gelu(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """y = x · σ(1.702 x), the approximation of gelu in CLIP.

    Source: Hendrycks and Gimpel, "Gaussian Error Linear Units (GELUs)", arXiv 1606.08415.
    """
    return x / (1 + jnp.exp(-1.702 * x))


def _quick_gelu_value(x: Array) -> Array:
    return x * lax.logistic(1.702 * x)


def _quick_gelu_pullback(x: Array, dy: Array) -> Array:
    s, rest = _logistic(1.702 * x)
    return dy * (s + 1.702 * (s * rest) * x)


quick_gelu = elementwise(_quick_gelu, _quick_gelu_pullback, value=_quick_gelu_value)


def _mish(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """y = x · tanh(log(1 + eˣ)).

    Source: Misra, "Mish: A Self Regularized Non-Monotonic Activation Function", arXiv 1908.08681.
    """
    return x * jnp.tanh(jnp.log(1 + jnp.exp(x)))


def _mish_value(x: Array) -> Array:
    return x * _mish_step(x)[0]


def _mish_step(x: Array) -> tuple[Array, Array]:
    """t = tanh(log(1 + u)) = u (u + 2) / (u (u + 2) + 2), u = eˣ, and t′ = 4 u (u + 1) / (u (u + 2) + 2)².

    Both are written with e = e^{−abs(x)}: to the right of 0 u is 1 / e.
    """
    e = _decayed(x)
    top = jnp.where(x < 0, e * (e + 2), 1 + 2 * e)
    bottom = top + jnp.where(x < 0, 2, 2 * e * e)
    return top / bottom, 4 * e * (1 + e) / (bottom * bottom) * jnp.where(x < 0, 1, e)


def _mish_pullback(x: Array, dy: Array) -> Array:
    step, slope = _mish_step(x)
    return dy * (step + x * slope)


mish = elementwise(_mish, _mish_pullback, value=_mish_value)

# ---- gelu: x times the normal distribution function -------------------------------------------------------

_A, _B = math.sqrt(2 / math.pi), 0.044715

# Φ(−a) = t P(t) e^{−a²/2}, t = 1 / (1 + 0.28 a), for every a ≥ 0: the form of Abramowitz and Stegun, 7.1.26.
# P, from its constant up, was fitted so that the largest relative error, 1.7e-7, is least.
_TAIL = (
    0.111703858, 0.111699803, 0.103084664, 0.0836307969, 0.0727749879, -0.00644912432, 0.0924280455,
    -0.0935930753, 0.02471996,
)  # fmt: skip


def _gelu(x: Float[Array, "*n"], approximate: bool = False) -> Float[Array, "*n"]:
    """y = x/2 · (1 + erf(x / √2)) = x · Φ(x), Φ the normal distribution function.

    approximate: True: tanh(√(2/π) (x + 0.044715 x³)) in place of erf(x / √2), as in GPT-2 and BERT's first
    code, which is off by less than 5e-4 in y. Source: Hendrycks and Gimpel, "Gaussian Error Linear Units
    (GELUs)", arXiv 1606.08415.
    """
    if approximate:
        return x / 2 * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return x / 2 * (1 + lax.erf(x / math.sqrt(2)))


def _gelu_value(x: Array, approximate: bool) -> Array:
    return x * _probability(x, approximate)


def _gelu_pullback(x: Array, dy: Array, approximate: bool) -> Array:
    """dy · (Φ(x) + x · Φ′(x)); of the approximation Φ′ = 2 Φ (1 − Φ) √(2/π) (1 + 3 · 0.044715 x²)."""
    x = _bounded(x)
    p = _probability(x, approximate)
    if approximate:
        density = 2 * p * (1 - p) * (_A * (1 + 3 * _B * x**2))
    else:
        density = _bell(x) / math.sqrt(2 * math.pi)
    return dy * (p + x * density)


def _probability(x: Array, approximate: bool) -> Array:
    x = _bounded(x)
    if approximate:
        return (1 + jnp.tanh(_A * (x + _B * x**3))) / 2
    return _normal(x)


def _bounded(x: Array) -> Array:
    """x, cut off where Φ is 0 or 1 in every dtype: a power of a larger one overflows."""
    return x if rules.in_jet(x) else jnp.clip(x, -40, 40)  # which jet does not know


def _normal(x: Array) -> Array:
    """Φ, precise far to the left, where 1 + erf would cancel."""
    if x.dtype != jnp.float32 or rules.in_jet(x):
        return lax.erfc(-x / math.sqrt(2)) / 2
    return _normal_in_float32(x)


@jax.custom_jvp
def _normal_in_float32(x: Array) -> Array:
    """Faster than `lax.erfc` on CPU."""
    t, p = 1 / (1 + 0.28 * jnp.abs(x)), _TAIL[-1]
    for coefficient in _TAIL[-2::-1]:
        p = p * t + coefficient
    tail = t * p * _bell(x)
    return jnp.where(x < 0, tail, 1 - tail)


@_normal_in_float32.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    return _normal_in_float32(x), dx * _bell(x) / math.sqrt(2 * math.pi)


def _bell(x: Array) -> Array:
    return jnp.exp(-x * x / 2)


gelu = elementwise(_gelu, _gelu_pullback, value=_gelu_value, checks={"approximate": _check.flag})

# ---- glu, geglu, swiglu: an activation of one array times another -----------------------------------------
# The two products before it and the one after it are `linear`s.


def _glu(gate: Float[Array, "*n"], up: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """y = σ(gate) · up, the gated linear unit.

    Of one array, ``up, gate = jnp.split(x, 2, axis)``: the second half is the gate, as in PyTorch's glu.
    Source: Dauphin, Fan, Auli and Grangier, "Language Modeling with Gated Convolutional Networks",
    arXiv 1612.08083.
    """
    g, u = common(gate, up)
    return u / (1 + jnp.exp(-g))


glu = gated(_glu, sigmoid)


def _geglu(gate: Float[Array, "*n"], up: Float[Array, "*n"], approximate: bool = False) -> Float[Array, "*n"]:
    """y = gelu(gate) · up; approximate: gelu's form with tanh.

    Source: Shazeer, "GLU Variants Improve Transformer", arXiv 2002.05202.
    """
    g, u = common(gate, up)
    return _gelu(g, approximate) * u


geglu = gated(_geglu, gelu, checks={"approximate": _check.flag})


def _swiglu(gate: Float[Array, "*n"], up: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """y = silu(gate) · up = gate / (1 + e^{−gate}) · up.

    Source: Shazeer, "GLU Variants Improve Transformer", arXiv 2002.05202.
    """
    g, u = common(gate, up)
    return g / (1 + jnp.exp(-g)) * u


swiglu = gated(_swiglu, silu)
