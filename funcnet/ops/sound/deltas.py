"""Deltas: how features change, the slope of a line through the frames about each: Σ_k k x_{t+k} / Σ_k k².

Dimensions: *n any leading axes (batch), t frames, d features: x, y [*n, t, d]. k runs from −r to r,
r = (width − 1) / 2; the first and the last frame stand for those beyond them, as in torchaudio and HTK.
Twice applied it gives accelerations. Source: Furui, "Speaker-independent isolated word recognition using
dynamic features of speech spectrum", IEEE ASSP 34, 1986. Sums are in float32 or wider.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float

from funcnet import rules
from funcnet.errors import ValueRangeError
from funcnet.ops import _check
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._dtype import wide
from funcnet.ops.sound._frames import example

__all__ = ["apply", "cost", "matrix", "reference", "vjp"]


def reference(x: Float[Array, "*n t d"], width: int = 5) -> Float[Array, "*n t d"]:
    """The sum, frame by frame."""
    r, t = width // 2, x.shape[-2]
    h = x.astype(wide(x.dtype))
    at = lambda k: jnp.take(h, jnp.clip(jnp.arange(t) + k, 0, t - 1), axis=-2)
    total: Any = sum(k * at(k) for k in range(-r, r + 1))
    return (total / _squares(r)).astype(x.dtype)


@rules.operation
def apply(x: Float[Array, "*n t d"], width: int = 5) -> Float[Array, "*n t d"]:
    """The slope of every feature at every frame.

    JAX's own derivative of this is the formula of `vjp`, so nothing is attached to it.

    Args:
        x: [*n, t, d], features of frames, as of `log_mel` or `mfcc`.
        width: how many frames the line goes through, an odd number of at least 3; static.

    Returns:
        y of the shape and dtype of x.

    Raises:
        ShapeError: x has fewer than two axes.
        DTypeError: x is not floating-point, or width is no integer.
        ValueRangeError: width is even, or below 3.

    >>> fn.deltas.apply(jnp.arange(5.0)[:, None], width=3).ravel().tolist()
    [0.5, 1.0, 1.0, 1.0, 0.5]
    """
    x = _check.floating("deltas.apply", "x", x)
    _check.rank("deltas.apply", "x", x, 2, "*n, t, d")
    return _forward(x, _reach("deltas.apply", width))


def vjp(x: Float[Array, "*n t d"], width: int = 5) -> tuple[Float[Array, "*n t d"], Partial]:
    """y and its pullback: dx_t = −Σ_k k dy_{t+k} / Σ_k k², the ends with what they stood for."""
    r = _reach("deltas.vjp", width)
    return _forward(x, r), Partial(rules.bind(_pullback, r=r))


def _forward(x: Array, r: int) -> Array:
    t = x.shape[-2]
    if t == 0:
        return x
    h = jnp.pad(x.astype(wide(x.dtype)), [*[(0, 0)] * (x.ndim - 2), (r, r), (0, 0)], mode="edge")
    slope: Any = sum(
        k * (h[..., r + k : r + k + t, :] - h[..., r - k : r - k + t, :]) for k in range(1, r + 1)
    )
    return (slope / _squares(r)).astype(x.dtype)


def _pullback(dy: Array, *, r: int) -> tuple[Array]:
    t = dy.shape[-2]
    if t == 0:
        return (dy,)
    h = dy.astype(wide(dy.dtype)) / _squares(r)
    moved = lambda k: jnp.pad(h, [*[(0, 0)] * (dy.ndim - 2), (r + k, r - k), (0, 0)])
    wider: Any = sum(k * (moved(k) - moved(-k)) for k in range(1, r + 1))  # the cotangent of x with its ends
    first, last = (wider[..., part, :].sum(-2) for part in (slice(None, r), slice(r + t, None)))
    dx = wider[..., r : r + t, :].at[..., 0, :].add(first).at[..., -1, :].add(last)
    return (dx.astype(dy.dtype),)


def matrix(in_shape: tuple[int, ...], width: int = 5) -> Float[Array, "out in"]:
    """The map x → y as a matrix [t · d, t · d], for one x of shape (t, d): A ⊗ I."""
    (t, d), r = example("deltas.matrix", in_shape, "t", "d"), _reach("deltas.matrix", width)
    a = np.zeros((t, t))
    for k in range(-r, r + 1):
        np.add.at(a, (np.arange(t), (np.arange(t) + k).clip(0, t - 1)), k / _squares(r))
    return jnp.asarray(np.kron(a, np.eye(d)))


def cost(x: Float[Abstract, "*n t d"], width: int = 5) -> Cost:
    """No products of matrices: 0 flops, and the bytes of x and y."""
    return Cost(0, traffic(reference, x, width=width))


def _reach(where: str, width: int) -> int:
    """r, how many frames there are on either side."""
    width = _check.positive(where, "width", width, least=3)
    if width % 2 == 0:
        raise ValueRangeError(
            f"{where}: width is {width}, but a frame has as many before it as after.",
            path="width",
            expected="width: an odd number, at least 3",
            actual=f"width = {width}",
        )
    return width // 2


def _squares(r: int) -> float:
    return r * (r + 1) * (2 * r + 1) / 3
