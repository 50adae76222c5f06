"""Kernels whose convolution is orthogonal, exactly: all its singular values are 1.

With P a projection, P + (1 − P) z is unitary for every z of length 1, since P (1 − P) = 0. So is a product
of such factors in z, the shift along an axis, times an orthogonal matrix: multiplied out, its coefficients
are the taps of a kernel. Source: Xiao, Bahri, Sohl-Dickstein, Schoenholz and Pennington, "Dynamical
Isometry and a Mean Field Theory of CNNs", arXiv 1806.05393; Li, Haque, Anil, Lucas, Grosse and Jacobsen,
"Preventing Gradient Attenuation in Lipschitz Constrained Convolutional Networks", arXiv 1911.00937.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from funcnet._numbers import whole
from funcnet.errors import DTypeError, ValueRangeError, describe
from funcnet.linalg import _check
from funcnet.linalg.haar import orthogonal

__all__ = ["orthogonal_kernel"]


def orthogonal_kernel(
    key: PRNGKeyArray, c_in: int, c_out: int, *, kernel: Sequence[int], groups: int = 1
) -> Float[Array, "*kernel c_in_each c_out"]:
    """A random w for `conv` whose map x -> y is orthogonal, with stride 1, dilation 1 and circular borders.

    It keeps lengths: of x where c_out ≥ c_in, of the gradient where c_out ≤ c_in. With zeros as borders its
    norm is at most 1. A multiple, √2 before a relu say, is w · √2.

        params = fn.conv.init(key, 8, 8, kernel=(3, 3)) | {"w": orthogonal_kernel(key, 8, 8, kernel=(3, 3))}

    >>> orthogonal_kernel(jax.random.key(0), 4, 6, kernel=(3, 3), groups=2).shape
    (3, 3, 2, 6)

    Args:
        key: a random key.
        c_in: channels of the input.
        c_out: channels of the output.
        kernel: one size per spatial axis.
        groups: as in `conv`.

    Raises:
        ValueRangeError: a size is not positive, or groups do not divide the channels.
        DTypeError: a size is no integer, kernel no tuple, key no random key.
    """
    where = "orthogonal_kernel"
    _check.key(where, key, none=False)
    if not isinstance(kernel, tuple | list):
        raise DTypeError(
            f"{where}: kernel is not a tuple of ints.",
            path="kernel",
            expected="kernel: one size per spatial axis",
            actual=f"kernel: {describe(kernel)}",
        )
    taps = [whole(where, "kernel", size, 1) for size in kernel]
    counts = {"c_in": c_in, "c_out": c_out, "groups": groups}
    c_in, c_out, groups = (whole(where, name, value, 1) for name, value in counts.items())
    if c_in % groups or c_out % groups:
        raise ValueRangeError(
            f"{where}: {groups} groups do not divide {c_in} and {c_out} channels.",
            path="groups",
            expected="a divisor of c_in and of c_out",
            actual=f"groups = {groups}",
        )
    each = jax.vmap(lambda key: _one(key, c_in // groups, c_out // groups, taps), out_axes=-2)
    w = each(jax.random.split(key, groups))  # [*kernel, c_in / groups, groups, c_out / groups]
    return w.reshape(*taps, c_in // groups, c_out)


def _one(key: jax.Array, c_in: int, c_out: int, taps: list[int]) -> jax.Array:
    c, first = max(c_in, c_out), jax.random.fold_in(key, 0)
    mixed = orthogonal(first, c)
    w = (mixed[:c_in] if c_in <= c_out else jnp.eye(c)).reshape(*[1] * len(taps), min(c_in, c), c)
    number = 0
    for axis, size in enumerate(taps):
        for _ in range(size - 1):
            number += 1
            q = orthogonal(jax.random.fold_in(key, number), c)[:, : (c + 1) // 2]
            p = q @ q.T
            none = [(0, 0)] * w.ndim
            shift = lambda low, high: [*none[:axis], (low, high), *none[axis + 1 :]]  # noqa: B023
            w = jnp.pad(w @ p, shift(0, 1)) + jnp.pad(w - w @ p, shift(1, 0))
    return w if c_in <= c_out else w @ mixed[:, :c_out]
