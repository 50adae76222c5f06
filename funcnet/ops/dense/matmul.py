"""The product of two matrices C = A B: C[i, j] = Σ_k A[i, k] · B[k, j].

Dimensions: a [*n, i, k], b [*m, k, j]; the leading axes *n and *m (batch) broadcast to those of c [*l, i, j].
"""

import math

import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from funcnet import rules
from funcnet.errors import ShapeError, describe
from funcnet.ops import _check
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._dtype import common, narrow, wide

__all__ = ["apply", "cost", "matrix", "reference", "vjp"]


def reference(a: Float[Array, "*n i k"], b: Float[Array, "*m k j"]) -> Float[Array, "*l i j"]:
    """C = A B, as it is written."""
    a, b = common(a, b)
    return a @ b


@rules.operation
def apply(a: Float[Array, "*n i k"], b: Float[Array, "*m k j"]) -> Float[Array, "*l i j"]:
    """Multiply the matrices in the last two axes of a and of b, for every index of the leading axes.

    XLA's own derivative of this program is the formula of `vjp`, so nothing is attached to it.

    Args:
        a: [*n, i, k].
        b: [*m, k, j]; *m broadcasts with *n, as in NumPy.

    Returns:
        c [*l, i, j], in the dtype that holds both a and b; sums are in float32 or wider.

    Raises:
        ShapeError: a or b is no matrix, b does not have k rows, or *n and *m do not broadcast.
        DTypeError: a or b is not floating-point.

    >>> fn.matmul.apply(jnp.array([[1.0, 2.0]]), jnp.array([[3.0], [4.0]])).tolist()
    [[11.0]]
    """
    where = "matmul.apply"
    a, b = _check.floating(where, "a", a), _check.floating(where, "b", b)
    for path, x, dims in (("a", a, "*n, i, k"), ("b", b, "*m, k, j")):
        if x.ndim < 2:
            raise ShapeError(
                f"{where}: {path} has rank {x.ndim}, but at least 2 is needed.",
                path=path,
                expected=f"{path}: float[{dims}]",
                actual=f"{path}: {describe(x)}",
                hint=f"as a row: {path}[None]; as a column: {path}[:, None]." if x.ndim == 1 else None,
            )
    if a.shape[-1] != b.shape[-2]:
        fits = {"a": a.shape[-2] == b.shape[-2], "b": a.shape[-1] == b.shape[-1]}
        path = next((path for path, transposed in fits.items() if transposed), None)
        raise ShapeError(
            f"{where}: a has {a.shape[-1]} columns, but b has {b.shape[-2]} rows.",
            path="b",
            expected=f"b: float[*m, {a.shape[-1]}, j]     (a: {describe(a)})",
            actual=f"b: {describe(b)}",
            hint=f"the transpose of {path} fits: {path}.mT." if path is not None else None,
        )
    try:
        jnp.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    except ValueError:
        raise ShapeError(
            f"{where}: the leading axes of a and b do not broadcast.",
            path="b",
            expected=f"b: leading axes that broadcast with {a.shape[:-2]}     (a: {describe(a)})",
            actual=f"b: {describe(b)}",
        ) from None
    return _product(a, b)


def _product(a: Array, b: Array) -> Array:
    a, b = common(a, b)
    return jnp.matmul(a, b, preferred_element_type=wide(a.dtype)).astype(a.dtype)


def vjp(a: Float[Array, "*n i k"], b: Float[Array, "*m k j"]) -> tuple[Float[Array, "*l i j"], Partial]:
    """c and its pullback: dA = dC Bᵀ, dB = Aᵀ dC, each summed over the axes along which it was broadcast."""
    return _product(a, b), Partial(_pullback, a, b)


def _pullback(a: Array, b: Array, dc: Array) -> tuple[Array, Array]:
    i, j, k = -3, -2, -1  # labels of the axes; those of the leading axes of dc are 0, 1, ...
    (a_, a_lead), (b_, b_lead), (dc, lead) = (_unbroadcast(x, dc.ndim) for x in (*common(a, b), dc))
    sums = wide(dc.dtype)
    da = jnp.einsum(dc, [*lead, i, j], b_, [*b_lead, k, j], [*a_lead, i, k], preferred_element_type=sums)
    db = jnp.einsum(a_, [*a_lead, i, k], dc, [*lead, i, j], [*b_lead, k, j], preferred_element_type=sums)
    return narrow(da.reshape(a.shape), a), narrow(db.reshape(b.shape), b)


def _unbroadcast(x: Array, ndim: int) -> tuple[Array, list[int]]:
    """`x` without its leading axes of size 1, and the leading axes of the product that the others become."""
    kept = [axis for axis in range(x.ndim - 2) if x.shape[axis] != 1]
    x_ = x.reshape(*(x.shape[axis] for axis in kept), *x.shape[-2:])
    return x_, [ndim - x.ndim + axis for axis in kept]


def matrix(b: Float[Array, "k j"], in_shape: tuple[int, ...]) -> Float[Array, "ij ik"]:
    """I ⊗ Bᵀ [i · j, i · k]: the map A → A B for one A of shape in_shape = (i, k)."""
    if b.ndim != 2 or len(in_shape) != 2 or in_shape[1] != b.shape[0]:
        raise ShapeError(
            f"matmul.matrix: in_shape is {tuple(in_shape)}, but b is {describe(b)}.",
            path="in_shape",
            expected=f"(i, {b.shape[0]})" if b.ndim == 2 else "one matrix b: float[k, j]",
            actual=str(tuple(in_shape)) if b.ndim == 2 else f"b: {describe(b)}",
        )
    return jnp.kron(jnp.eye(in_shape[0], dtype=b.dtype), b.T)


def cost(a: Float[Abstract, "*n i k"], b: Float[Abstract, "*m k j"]) -> Cost:
    """2 · Π l · i · k · j flops."""
    lead = jnp.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    return Cost(2 * math.prod(lead) * a.shape[-2] * a.shape[-1] * b.shape[-1], traffic(reference, a, b))
