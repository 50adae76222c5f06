"""Contrastive losses of pairs: S = scale · x yᵀ + bias, where row i and column i belong together.

pairs="softmax", of CLIP: loss[i] = −½ log softmax(S[i, :])[i] − ½ log softmax(S[:, i])[i]: which of all y
belongs to x_i, and which of all x to y_i. Radford et al., "Learning transferable visual models from natural
language supervision", arXiv 2103.00020, figure 3.
pairs="sigmoid", of SigLIP: loss[i] = −Σ_j log sigmoid(z_ij S[i, j]), z = 1 for i = j, else −1: of every pair
whether it belongs together. Zhai, Mustafa, Kolesnikov and Beyer, "Sigmoid loss for language image
pre-training", arXiv 2303.15343, §3.2.

Dimensions: n pairs, d features: x, y [n, d], scale and bias numbers, with a gradient; one value per pair, and
the mean is the caller's. Under `axis_name` n pairs lie on each device, and all together are the batch. What
is summed is in float32 or wider.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float

from funcnet import rules
from funcnet.errors import DTypeError, ShapeError, ValueRangeError, describe
from funcnet.ops import _check
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._dtype import common, narrow, wide
from funcnet.ops.loss._classes import logsumexp

__all__ = ["apply", "cost", "reference", "vjp"]

Axis = str | tuple[str, ...]


def reference(
    x: Float[Array, "n d"],
    y: Float[Array, "n d"],
    scale: Float[Array, ""],
    bias: Float[Array, ""] | None = None,
    *,
    pairs: str = "softmax",
    axis_name: Axis | None = None,
) -> Float[Array, " n"]:
    """The losses of all pairs, of which those of this device are taken."""
    n = x.shape[0]
    x, y, scale, bias = _wide(_gathered(x, axis_name), _gathered(y, axis_name), scale, bias)
    s = scale * (x @ y.T) + bias
    if pairs == "softmax":
        rows, columns = jax.nn.log_softmax(s, -1), jax.nn.log_softmax(s, 0)
        every = -(jnp.diagonal(rows) + jnp.diagonal(columns)) / 2
    else:
        every = -jax.nn.log_sigmoid(jnp.where(jnp.eye(s.shape[0], dtype=bool), s, -s)).sum(-1)
    return every if axis_name is None else lax.dynamic_slice_in_dim(every, lax.axis_index(axis_name) * n, n)


@rules.operation
def apply(
    x: Float[Array, "n d"],
    y: Float[Array, "n d"],
    scale: Float[Array, ""],
    bias: Float[Array, ""] | None = None,
    *,
    pairs: str = "softmax",
    axis_name: Axis | None = None,
) -> Float[Array, " n"]:
    """The loss of each pair (x_i, y_i) among all n² of its batch.

    JAX's own derivative keeps the n² exponentials and multiplies, as `vjp` does, so nothing is attached. CLIP
    and SigLIP take unit vectors, and learn log scale: ``fn.l2_norm.apply(x)``, ``jnp.exp(log_scale)``.

    Args:
        x: [n, d], of images, say.
        y: [n, d], of their texts.
        scale: what the products are multiplied by, 1 / temperature.
        bias: what is added to them, for "sigmoid" alone: a softmax does not see it. None is 0.
        pairs: "softmax" or "sigmoid".
        axis_name: of the mesh, under `jax.shard_map`, or of `jax.vmap`: x and y are this device's part of a
            batch, and compared with those of all. The vectors are gathered, not the products: a device has
            those of its own with all, for "softmax" twice. The sum of the losses over all devices has the
            gradients of the whole batch.

    Returns:
        The losses [n], in the dtype that holds all, but at least float32.

    Raises:
        ShapeError: x and y are not [n, d], or scale or bias no scalars.
        DTypeError: an array is not floating-point, or axis_name no name.
        ValueRangeError: pairs is something else, a bias comes with "softmax", or there is no such axis here.

    >>> x = jnp.eye(3)
    >>> print(fn.contrastive.apply(x, x, jnp.array(1.0)))
    [0.551 0.551 0.551]
    """
    where = "contrastive.apply"
    x, y = _check.floating(where, "x", x), _check.floating(where, "y", y)
    _check.same_shape(where, "y", y, "x", x)
    if x.ndim != 2:
        raise ShapeError(
            f"{where}: x has rank {x.ndim}, but 2 is needed.",
            path="x",
            expected="x: float[n, d]",
            actual=f"x: {describe(x)}",
        )
    scale = _scalar(where, "scale", scale)
    _check.one_of(where, "pairs", pairs, ("softmax", "sigmoid"))
    if bias is not None:
        bias = _scalar(where, "bias", bias)
        if pairs == "softmax":
            raise ValueRangeError(
                f"{where}: bias comes with a softmax, which does not see it.",
                path="bias",
                expected='bias: None, or pairs: "sigmoid"',
                actual=f"bias: {describe(bias)}, pairs = 'softmax'",
            )
    return _forward(x, y, scale, bias, pairs, _axis(where, axis_name))


def vjp(
    x: Float[Array, "n d"],
    y: Float[Array, "n d"],
    scale: Float[Array, ""],
    bias: Float[Array, ""] | None = None,
    *,
    pairs: str = "softmax",
    axis_name: Axis | None = None,
) -> tuple[Float[Array, " n"], Partial]:
    """The losses and their pullback: dx = scale · dS y, dy = scale · dSᵀ x, dscale = ⟨dS, x yᵀ⟩, dbias = ΣdS.

    With the cotangent g of the losses and δ = 1 on the diagonal, dS = ½ g_i (softmax(S[i, :]) − δ) + ½ g_j
    (softmax(S[:, j]) − δ), or g_i (sigmoid(S) − δ). S is computed again. Under `axis_name` dscale and dbias
    are the part of this device, to be summed over all.
    """
    axis_name = tuple(axis_name) if isinstance(axis_name, list) else axis_name
    out = _forward(x, y, scale, bias, pairs, axis_name)
    return out, Partial(rules.bind(_pullback, pairs=pairs, axis_name=axis_name), x, y, scale, bias)


def _pullback(
    x: Array, y: Array, scale: Array, bias: Array | None, g: Array, *, pairs: str, axis_name: Axis | None
) -> tuple[Array, Array, Array, Array | None]:
    a, b, k, offset = _wide(x, y, scale, bias)
    every_a, every_b = _gathered(a, axis_name), _gathered(b, axis_name)
    products, hot = a @ every_b.T, _hot(x.shape[0], every_b.shape[0], axis_name)
    if pairs == "sigmoid":
        ds = g[:, None] * jnp.where(hot, -jax.nn.sigmoid(-(k * products + offset)), 0)
        ds += g[:, None] * jnp.where(hot, 0, jax.nn.sigmoid(k * products + offset))
        da, db, dk = k * (ds @ every_b), k * _scattered(ds.T @ a, axis_name), (ds * products).sum()
    else:
        others = products.T if axis_name is None else b @ every_a.T
        ds = g[:, None] / 2 * _slope(k * products, hot)
        ds_ = g[:, None] / 2 * _slope(k * others, hot)
        da = k * (ds @ every_b + _scattered(ds_.T @ b, axis_name))
        db = k * (ds_ @ every_a + _scattered(ds.T @ a, axis_name))
        dk = (ds * products).sum() + (ds_ * others).sum()
    grads = narrow(da, x), narrow(db, y), narrow(dk, scale)
    return *grads, None if bias is None else narrow(ds.sum(), bias)


def cost(
    x: Float[Abstract, "n d"],
    y: Float[Abstract, "n d"],
    scale: Float[Abstract, ""],
    bias: Float[Abstract, ""] | None = None,
    *,
    pairs: str = "softmax",
    axis_name: Axis | None = None,
) -> Cost:
    """2 n² d flops of x yᵀ, on one device, and the bytes of its arrays; `axis_name` adds nothing."""
    del axis_name
    n, d = x.shape
    return Cost(2 * n * n * d, traffic(reference, x, y, scale, bias, pairs=pairs))


def _forward(
    x: Array, y: Array, scale: Array, bias: Array | None, pairs: str, axis_name: Axis | None
) -> Array:
    a, b, k, offset = _wide(x, y, scale, bias)
    every_b = _gathered(b, axis_name)
    s, hot = k * (a @ every_b.T) + offset, _hot(x.shape[0], every_b.shape[0], axis_name)
    if pairs == "sigmoid":
        return jax.nn.softplus(jnp.where(hot, -s, s)).sum(-1)
    others = s.T if axis_name is None else k * (b @ _gathered(a, axis_name).T)
    return (_of_diagonal(s, hot) + _of_diagonal(others, hot)) / 2


def _of_diagonal(s: Array, hot: Array) -> Array:
    """−log softmax of each row at its own pair, from two numbers: see `_classes.logsumexp`."""
    m, r = logsumexp(s)
    return jnp.log1p(r) + jnp.where(hot, m[:, None] - s, 0).sum(-1)


def _slope(s: Array, hot: Array) -> Array:
    """softmax − δ; at its own pair as expm1, since a certain p rounds to 1."""
    m, r = logsumexp(s)
    log_p = s - m[:, None] - jnp.log1p(r)[:, None]
    return jnp.where(hot, jnp.expm1(log_p), jnp.exp(log_p))


def _wide(x: Array, y: Array, scale: Array, bias: Array | None) -> list[Array]:
    arrays = common(x, y, scale, *([] if bias is None else [bias]))
    arrays = [v.astype(wide(v.dtype)) for v in arrays]
    return arrays if bias is not None else [*arrays, jnp.zeros((), arrays[0].dtype)]


def _hot(n: Any, every: Any, axis_name: Axis | None) -> Array:
    """Whether a column is that of the row's own pair."""
    row, column = (lax.broadcasted_iota(jnp.int32, (n, every), axis) for axis in (0, 1))
    return row + (0 if axis_name is None else lax.axis_index(axis_name) * n) == column


def _gathered(v: Array, axis_name: Axis | None) -> Array:
    return v if axis_name is None else lax.all_gather(v, axis_name, tiled=True)


def _scattered(v: Array, axis_name: Axis | None) -> Array:
    """Summed over all devices, of which each takes its own rows: the transpose of `_gathered`."""
    return v if axis_name is None else lax.psum_scatter(v, axis_name, tiled=True)


def _scalar(where: str, path: str, value: Any) -> Array:
    value = _check.floating(where, path, value)
    if value.shape != ():
        raise ShapeError(
            f"{where}: {path} is not one number.",
            path=path,
            expected=f"{path}: float[]",
            actual=f"{path}: {describe(value)}",
        )
    return value


def _axis(where: str, axis_name: Any) -> Axis | None:
    names = tuple(axis_name) if isinstance(axis_name, list | tuple) else (axis_name,)
    if axis_name is None:
        return None
    if not names or not all(isinstance(name, str) for name in names):
        raise DTypeError(
            f"{where}: axis_name is no name of an axis.",
            path="axis_name",
            expected="axis_name: a string, a tuple of them, or None",
            actual=f"axis_name: {describe(axis_name)}",
        )
    try:
        lax.axis_index(names)
    except NameError:
        raise ValueRangeError(
            f"{where}: there is no axis {', '.join(map(repr, names))[:60]} here.",
            path="axis_name",
            expected="axis_name: an axis of the mesh of jax.shard_map, or of jax.vmap, around this call",
            actual=f"axis_name = {names!r}"[:100],
        ) from None
    return axis_name if isinstance(axis_name, str) else names
