"""Linear filter: a_0 y_t = Σ_i b_i x_{t−i} − Σ_{i ≥ 1} a_i y_{t−i}, a recurrence of any order.

Dimensions: *n any leading axes (batch), t samples, p and q coefficients: x, y [*n, t], b [p], a [q]. Before
the signal there is silence. Its transfer function is Σ b_i z^{−i} / Σ a_i z^{−i}. Source: Oppenheim and
Schafer, "Discrete-Time Signal Processing", §6. Sums are in float32 or wider.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float

from funcnet import rules
from funcnet.errors import ShapeError, ValueRangeError, describe
from funcnet.ops import _check
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._dtype import common, narrow, wide
from funcnet.ops._shape import known
from funcnet.ops.conv import _toeplitz
from funcnet.ops.conv._window import Window
from funcnet.ops.sound._frames import example

__all__ = ["apply", "cost", "matrix", "reference", "vjp"]


def reference(x: Float[Array, "*n t"], b: Float[Array, " p"], a: Float[Array, " q"]) -> Float[Array, "*n t"]:
    """Sample after sample, as it is written."""
    x_, b, a = common(x, b, a)
    h, b, a = (v.astype(wide(v.dtype)) for v in (x_, b, a))

    def one(past: tuple[Array, Array], sample: Array) -> tuple[tuple[Array, Array], Array]:
        xs, ys = past  # the newest first
        xs = jnp.concatenate([sample[None], xs])[: b.shape[0]]
        before = jnp.tensordot(a[1:], ys, 1)
        y = (jnp.tensordot(b, xs, 1) - before) / a[0]
        return (xs, jnp.concatenate([y[None], ys])[: a.shape[0] - 1]), y

    silence = lambda n: jnp.zeros((n, *h.shape[:-1]), h.dtype)
    _, y = lax.scan(one, (silence(b.shape[0]), silence(a.shape[0] - 1)), jnp.moveaxis(h, -1, 0))
    return jnp.moveaxis(y, 0, -1).astype(x_.dtype)


@rules.operation
def apply(x: Float[Array, "*n t"], b: Float[Array, " p"], a: Float[Array, " q"]) -> Float[Array, "*n t"]:
    """Filter a signal; b and a are those of `scipy.signal.lfilter`, and have gradients.

    The part of b is a convolution, that of a goes sample by sample: many at once would be wrong by far in
    float32, for the narrow filters of sound. Differentiated by `vjp`, the same filter from the end on.

    Args:
        x: [*n, t].
        b: [p], what is multiplied with x; ``b = [1.0]`` if nothing else is wanted.
        a: [q], what is multiplied with y; its first element, which divides, is not 0. A filter of high order
            in one piece is at the mercy of rounding: those of two poles in a row are not.

    Returns:
        y [*n, t], in the dtype that holds x, b and a.

    Raises:
        ShapeError: x has no axis, or b or a is not a row of at least one coefficient.
        DTypeError: an array is not floating-point.
        ValueRangeError: a[0], where it is concrete, is 0.

    >>> fn.lfilter.apply(jnp.ones(4), jnp.array([1.0]), jnp.array([1.0, -0.5])).tolist()
    [1.0, 1.5, 1.75, 1.875]
    """
    where = "lfilter.apply"
    x, (b, a) = _check.floating(where, "x", x), _coefficients(where, b, a)
    _check.rank(where, "x", x, 1, "*n, t")
    return rules.call(vjp, x, b, a)


def vjp(
    x: Float[Array, "*n t"], b: Float[Array, " p"], a: Float[Array, " q"]
) -> tuple[Float[Array, "*n t"], Partial]:
    """y and its pullback: a_0 λ_t = dy_t − Σ_{i ≥ 1} a_i λ_{t+i}, dx_t = Σ b_i λ_{t+i}.

    db_i = Σ_t λ_t x_{t−i}, da_i = −Σ_t λ_t y_{t−i}, also of a_0.
    """
    x_, b_, a_ = common(x, b, a)
    sums = wide(x_.dtype)
    y = _poles(_zeros(x_.astype(sums), b_.astype(sums)), a_.astype(sums))
    return y.astype(x_.dtype), Partial(_pullback, x, b, a, y)


def _pullback(x: Array, b: Array, a: Array, y: Array, dy: Array) -> tuple[Array, Array, Array]:
    turned = _poles(jnp.flip(dy.astype(y.dtype), -1), a.astype(y.dtype))
    dx, adjoint = jnp.flip(_zeros(turned, b.astype(y.dtype)), -1), jnp.flip(turned, -1)

    def met(v: Array, like: Array) -> Array:
        """Σ_t λ_t v_{t−i} for every i."""
        taps = jnp.zeros((like.shape[0], 1, 1), y.dtype)
        found = _toeplitz.kernel_gradient(v[..., None], adjoint[..., None], taps, _causal(v, taps))
        return narrow(jnp.flip(found[:, 0, 0]), like)

    return narrow(dx, x), met(x.astype(y.dtype), b), -met(y, a)


def _zeros(x: Array, b: Array) -> Array:
    """Σ_i b_i x_{t−i}, a causal convolution."""
    taps = jnp.flip(b)[:, None, None]
    return _toeplitz.forward(taps, x[..., None], _causal(x, taps))[..., 0]


def _causal(x: Array, taps: Array) -> _toeplitz.Map:
    p = taps.shape[0]
    return _toeplitz.Map(Window((x.shape[-1],), (p,), (1,), (1,), ((p - 1, 0),)), 1, "zeros")


@jax.jit
def _poles(v: Array, a: Array) -> Array:
    """y with a_0 y_t = v_t − Σ_{i ≥ 1} a_i y_{t−i}, sample after sample.

    What will be taken from later samples is kept, for each of the next (the transposed direct form).
    """
    v, a = rules.same_variance(v / a[0], a[1:] / a[0])
    if a.shape[0] == 0:
        return v
    a = a.reshape(-1, *[1] * (v.ndim - 1))

    def one(due: Array, sample: Array) -> tuple[Array, Array]:
        y = sample + due[0]
        return jnp.concatenate([due[1:], jnp.zeros_like(due[:1])]) - a * y[None], y

    _, y = lax.scan(one, jnp.zeros_like(v, shape=(a.shape[0], *v.shape[:-1])), jnp.moveaxis(v, -1, 0))
    return jnp.moveaxis(y, 0, -1)


def matrix(in_shape: tuple[int, ...], b: Float[Array, " p"], a: Float[Array, " q"]) -> Float[Array, "t t"]:
    """The map x → y as a matrix [t, t], for one x of shape (t,): the response to an impulse, moved down."""
    (t,), (b, a) = example("lfilter.matrix", in_shape, "t"), _coefficients("lfilter.matrix", b, a)
    b, a = common(b, a)
    response = vjp(jnp.zeros(t, b.dtype).at[:1].set(1), b, a)[0]
    after = np.subtract.outer(np.arange(t), np.arange(t))
    return jnp.where(after >= 0, response[after.clip(0)], 0) if t else jnp.zeros((0, 0), b.dtype)


def cost(x: Float[Abstract, "*n t"], b: Float[Abstract, " p"], a: Float[Abstract, " q"]) -> Cost:
    """2 · n · t · (p + q − 1) flops."""
    return Cost(2 * math.prod(x.shape) * (b.shape[0] + a.shape[0] - 1), traffic(reference, x, b, a))


def _coefficients(where: str, b: Any, a: Any) -> tuple[Array, Array]:
    b, a = _check.floating(where, "b", b), _check.floating(where, "a", a)
    for path, row in (("b", b), ("a", a)):
        if row.ndim != 1 or not known(row.shape[0]) or row.shape[0] == 0:
            raise ShapeError(
                f"{where}: {path} is not a row of coefficients.",
                path=path,
                expected=f"{path}: float[k], k ≥ 1 a known number",
                actual=f"{path}: {describe(row)}",
            )
    if _check.concrete(a) and np.asarray(a)[0] == 0:
        raise ValueRangeError(
            f"{where}: a[0], which divides, is 0.",
            path="a",
            expected="a[0] ≠ 0",
            actual=f"a: {describe(a)}, a[0] = 0",
        )
    return b, a
