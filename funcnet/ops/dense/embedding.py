"""The rows of a table: y[n] = w[ids[n]]. The same as one_hot(ids) W, without the product.

Dimensions: *n any axes, v rows (the vocabulary), d features: ids [*n] integers in [0, v), w [v, d],
y [*n, d].
"""

import functools
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float, Integer, PRNGKeyArray

from funcnet import rules
from funcnet.errors import DTypeError, ValueRangeError, describe
from funcnet.ops import _check
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._dtype import wide
from funcnet.ops._shape import known

__all__ = ["Params", "apply", "cost", "init", "reference", "vjp"]

# Up to so many rows the gradient is a product, except on CPU. There the scatter-add was 2 to 800 times as
# fast as the product for v from 65 to 4096 (float32, n = 2048 and 8192, d = 64 and 384, ids uniform and all
# equal, JAX 0.10.1 and 0.12.0.1: `python -m benchmarks loss`). On a GPU, not measured here, rows that meet in
# one id wait for each other and add in no fixed order; the product does neither.
_FEW = 1024


class Params(TypedDict):
    """The table w [v, d]."""

    w: Float[Array, "v d"]


def init(key: PRNGKeyArray, vocabulary: int, d: int) -> Params:
    """Draw w from N(0, 1): an output is one row, so its features have unit variance.

    A net that uses w once more as its last layer, y Wᵀ, divides there by √d. This is the table of Vaswani et
    al., "Attention is all you need", arXiv 1706.03762, §3.4, who hold w/√d and multiply by √d.

    >>> jax.tree.map(jnp.shape, init(jax.random.key(0), 3, 5))
    {'w': (3, 5)}
    """
    where = "embedding.init"
    shape = _check.positive(where, "vocabulary", vocabulary), _check.positive(where, "d", d)
    return {"w": jax.random.normal(key, shape)}


def reference(params: Params, ids: Integer[Array, "*n"]) -> Float[Array, "*n d"]:
    """y[n] = w[ids[n]], and 0 where there is no such row."""
    w, ids = params["w"], ids.astype(jnp.int32) if ids.dtype.itemsize < 4 else ids
    inside = (ids >= 0) & (ids < w.shape[0])
    return jnp.where(inside[..., None], w[jnp.where(inside, ids, 0)], jnp.zeros((), w.dtype))


@rules.operation
def apply(params: Params, ids: Integer[Array, "*n"]) -> Float[Array, "*n d"]:
    """Look up one row of w per id.

    Differentiated by `vjp`, which keeps only ids, adds in float32 or wider (JAX's own rule adds bfloat16 rows
    in bfloat16) and, on accelerators, does not scatter into a small table.

    Args:
        params: w [v, d].
        ids: integers of any shape [*n], in [0, v).

    Returns:
        y [*n, d], in the dtype of w. Under `jax.jit` an id outside [0, v) gives zeros and no gradient.

    Raises:
        ValueRangeError: an id is outside [0, v), where ids are concrete.
        DTypeError: ids are not integers, or w is not floating-point.
        ShapeError: w does not have 2 axes.
        StructureError: params has no "w".
    """
    w = _check.parameter("embedding.apply", params, "w", ndim=2)
    _check_ids("embedding.apply", ids, w)
    return rules.call(vjp, params, jnp.asarray(ids))


def _check_ids(where: str, ids: Array, w: Array) -> None:
    dtype = getattr(ids, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.integer):
        hint = None if dtype is not None else "wrap them: jnp.asarray(...)."
        if dtype is not None and jnp.issubdtype(dtype, jnp.floating):
            one_hot = ids.ndim > 0 and ids.shape[-1] == w.shape[0]
            hint = "are they one-hot? ids.argmax(-1)." if one_hot else "cast them: ids.astype(jnp.int32)."
        raise DTypeError(
            f"{where}: ids are not an array of integers.",
            path="ids",
            expected="ids: int[*n]",
            actual=f"ids: {describe(ids)}",
            hint=hint,
        )
    if _check.concrete(ids):
        values, v = np.asarray(ids), w.shape[0]
        outside = values[(values < 0) | (values >= v)]
        if outside.size:
            raise ValueRangeError(
                f"{where}: ids hold {outside[0]}, outside [0, {v}).",
                path="ids",
                expected=f'0 ≤ ids < {v}     (params["w"]: {describe(w)})',
                actual=f"ids: {describe(ids)}, {outside.size} of {values.size} outside, "
                f"from {outside.min()} to {outside.max()}",
                hint="do they count from 1? ids - 1." if values.min() > 0 and values.max() == v else None,
            )


def vjp(params: Params, ids: Integer[Array, "*n"]) -> tuple[Float[Array, "*n d"], Partial]:
    """y and its pullback: dw[r] = Σ dy[n] over the n with ids[n] = r, that is, one_hot(ids)ᵀ dY."""
    w, ids = params["w"], _known(ids, params["w"].shape[0])
    y = w.at[ids].get(mode="fill", fill_value=0, wrap_negative_indices=False)
    return y, Partial(rules.bind(_pullback, v=w.shape[0], params=jax.tree.structure(params)), ids)


def _known(ids: Array, v: int) -> Array:
    """ids in 32 bits, whatever they had, and −1 for those that are outside [0, v)."""
    ids = ids.astype(jnp.int32) if ids.dtype.itemsize < 4 else ids  # 8 bits cannot be compared with 300
    return jnp.where((ids >= 0) & (ids < v), ids.astype(jnp.int32), -1)


def _pullback(ids: Array, dy: Array, *, v: int, params: Any) -> tuple[Params, None]:
    dw = _add_rows(ids.reshape(-1), dy.reshape(ids.size, dy.shape[-1]), v=v)
    return rules.like(params, {"w": dw.astype(dy.dtype)}), None


@functools.partial(jax.jit, static_argnames="v")  # so that an eager call does not trace the branches again
def _add_rows(ids: Array, rows: Array, *, v: int) -> Array:
    """Σ rows by id [v, d] of rows [n, d], in float32 or wider; −1 is dropped."""
    if not ids.size:
        return _product(v, ids, rows)  # a scatter of nothing forgets over which devices its rows vary
    scatter, product = functools.partial(_scatter, v), functools.partial(_product, v)
    return lax.platform_dependent(ids, rows, cpu=scatter, default=product if known(v) and v <= _FEW else scatter)


def _scatter(v: int, ids: Array, rows: Array) -> Array:
    return jax.ops.segment_sum(rows.astype(wide(rows.dtype)), ids, v)


def _product(v: int, ids: Array, rows: Array) -> Array:
    one_hot = jax.nn.one_hot(ids, v, axis=0, dtype=rows.dtype)
    return jnp.matmul(one_hot, rows, preferred_element_type=wide(rows.dtype))


def cost(params: Params, ids: Integer[Abstract, "*n"]) -> Cost:
    """No products: 0 flops, and the bytes of w, ids and y."""
    return Cost(0, traffic(reference, params, ids))
