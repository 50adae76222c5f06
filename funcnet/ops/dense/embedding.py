"""The rows of a table: y[n] = w[ids[n]]. The same as one_hot(ids) W, without the product.

Dimensions: *n any axes, v rows (the vocabulary), d features: ids [*n] integers in [0, v), w [v, d],
y [*n, d].
"""

from typing import Any, TypedDict

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float, Integer, PRNGKeyArray

from funcnet import rules, spec
from funcnet.errors import DTypeError, ShapeError, ValueRangeError, describe
from funcnet.ops import _check, _squares
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._draw import Initializer, drawn
from funcnet.ops._dtype import common, wide
from funcnet.ops._shape import align, count, known
from funcnet.spec import Spec

__all__ = ["Params", "add", "apply", "cost", "init", "reference", "specs", "squares", "vjp"]


class Params(TypedDict):
    """The table w [v, d]."""

    w: Float[Array, "v d"]


def init(
    key: PRNGKeyArray,
    vocabulary: int,
    d: int,
    *,
    padding_index: int | None = None,
    w: Initializer | None = None,
) -> Params:
    """Draw w uniformly, of variance 1: an output is one row, so its features have it. That of padding is 0.

    A net that uses w once more as its last layer, y Wᵀ, divides there by √d. This is the table of Vaswani et
    al., "Attention is all you need", arXiv 1706.03762, §3.4, who hold w/√d and multiply by √d.

    Args:
        key: a random key.
        vocabulary: rows.
        d: features of a row.
        padding_index: the row that is 0; None: none.
        w: what draws w instead: ``(key, (vocabulary, d)) -> w``, as ``jax.nn.initializers.normal(0.02)``. A
            row is picked, not summed over: an initialiser that reads fans off this shape is not meant for
            it.

    >>> jax.tree.map(jnp.shape, init(jax.random.key(0), 3, 5))
    {'w': (3, 5)}
    """
    where = "embedding.init"
    _check.key(where, key, none=False)
    shape = _check.positive(where, "vocabulary", vocabulary), _check.positive(where, "d", d)
    leaf = drawn(where, key, w, shape, "io", variance=1.0)
    if padding_index is None:
        return {"w": leaf}
    return {"w": leaf.at[_check_padding(where, padding_index, vocabulary)].set(0)}


def specs(params: Params, *, axes: str = "v d") -> dict[str, Spec]:
    """w is a table: its gradient has few rows that are not 0.

    Args:
        params: arrays, or `jax.ShapeDtypeStruct`.
        axes: the names of the axes of w.
    """
    return spec.tree("embedding.specs", params, {"w": (axes, "table")})


def reference(
    params: Params, ids: Integer[Array, "*n"], *, padding_index: int | None = None
) -> Float[Array, "*n d"]:
    """y[n] = w[ids[n]], and 0 where there is no such row; the padding's row is a constant."""
    w, ids = params["w"], ids.astype(jnp.int32) if ids.dtype.itemsize < 4 else ids
    if padding_index is not None:
        w = w.at[padding_index].set(lax.stop_gradient(w[padding_index]))
    inside = (ids >= 0) & (ids < w.shape[0])
    return jnp.where(inside[..., None], w[jnp.where(inside, ids, 0)], jnp.zeros((), w.dtype))


@rules.operation
def apply(
    params: Params, ids: Integer[Array, "*n"], *, padding_index: int | None = None
) -> Float[Array, "*n d"]:
    """Look up one row of w per id.

    Differentiated by `vjp`, which keeps only ids and adds in float32 or wider (JAX's own rule adds bfloat16
    rows in bfloat16).

    Args:
        params: w [v, d].
        ids: integers of any shape [*n], in [0, v).
        padding_index: the id of padding. Its row is looked up as it is, but gets no gradient, so that it
            stays what it was: zeros, if `init` was told.

    Returns:
        y [*n, d], in the dtype of w. Under `jax.jit` an id outside [0, v) gives zeros and no gradient.

    Raises:
        ValueRangeError: an id is outside [0, v), where ids are concrete, or padding_index is.
        DTypeError: ids or padding_index are not integers, or w is not floating-point.
        ShapeError: w does not have 2 axes.
        StructureError: params has no "w".

    >>> params = {"w": jnp.array([[1.0, 2.0], [3.0, 4.0]])}
    >>> fn.embedding.apply(params, jnp.array([1, 0, 1])).tolist()
    [[3.0, 4.0], [1.0, 2.0], [3.0, 4.0]]
    """
    w = _check.parameter("embedding.apply", params, "w", ndim=2)
    _check_ids("embedding.apply", ids, w)
    if padding_index is not None:
        padding_index = _check_padding("embedding.apply", padding_index, w.shape[0])
    return rules.call(vjp, params, jnp.asarray(ids), padding_index=padding_index)


def _check_padding(where: str, padding_index: int, v: int) -> int:
    index = _check.positive(where, "padding_index", padding_index, least=0)
    if index >= v:
        raise ValueRangeError(
            f"{where}: padding_index is {index}, but w has {v} rows.",
            path="padding_index",
            expected=f"0 ≤ padding_index < {v}",
            actual=f"padding_index = {index}",
        )
    return index


def _check_ids(where: str, ids: Array, w: Array) -> None:
    dtype = _check.dtype_of(ids)
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
    _check.indices(
        where,
        "ids",
        ids,
        w.shape[0],
        f'params["w"]: {describe(w)}',
        hint=lambda every, outside: (
            "do they count from 1? ids - 1."
            if every.min() > 0 and every.max() == w.shape[0]
            else f"to count from the last row, as Python does: ids % {w.shape[0]}."
            if outside.max() < 0 and outside.min() >= -w.shape[0]
            else None
        ),
    )


def vjp(
    params: Params, ids: Integer[Array, "*n"], *, padding_index: int | None = None
) -> tuple[Float[Array, "*n d"], Partial]:
    """y and its pullback: dw[r] = Σ dy[n] over the n with ids[n] = r, that is, one_hot(ids)ᵀ dY.

    The row of padding has dw[r] = 0.
    """
    _check.mapping("embedding.vjp", "params", params)
    w, ids = params["w"], _known(ids, params["w"].shape[0])
    y = w.at[ids].get(mode="fill", fill_value=0, wrap_negative_indices=False)
    if padding_index is not None:
        padding = ids == padding_index
        y = jnp.where(padding[..., None], lax.stop_gradient(y), y)
        ids = jnp.where(padding, count(w.shape[0], ids.dtype), ids)
    return y, Partial(rules.bind(_pullback, v=w.shape[0], params=jax.tree.structure(params)), ids)


def _known(ids: Array, v: int) -> Array:
    """ids in 32 bits, whatever they had, and v for those that are outside [0, v)."""
    ids = ids.astype(jnp.int32) if ids.dtype.itemsize < 4 else ids  # 8 bits cannot be compared with 300
    v = count(v, ids.dtype)
    return jnp.where((ids >= 0) & (ids < v), ids, v).astype(jnp.int32)


def _pullback(ids: Array, dy: Array, *, v: int, params: Any) -> tuple[Params, None]:
    dw = _add_rows(ids, dy, v=v)
    return rules.like(params, {"w": dw.astype(dy.dtype)}), None


def _add_rows(ids: Array, rows: Array, *, v: int) -> Array:
    """Σ rows by id [v, d] of rows [*n, d], in float32 or wider; v is dropped.

    Not as a product with one-hot rows: 0 · NaN would let one bad row into all of them. And not with *n as one
    axis: of positions that are split over devices each device would gather all.
    """
    if not ids.size:  # a scatter of nothing forgets over which devices its rows vary
        return rules.same_variance(jnp.zeros((v, rows.shape[-1]), wide(rows.dtype)), rows)[0]
    sums = jnp.zeros((v, rows.shape[-1]), wide(rows.dtype))
    return sums.at[ids].add(rows.astype(sums.dtype), mode="drop", wrap_negative_indices=False)


def cost(params: Params, ids: Integer[Abstract, "*n"], *, padding_index: int | None = None) -> Cost:
    """No products: 0 flops, and the bytes of w, ids and y."""
    _check.mapping("embedding.cost", "params", params)
    return Cost(0, traffic(reference, params, ids, padding_index=padding_index))


def squares(
    params: Params,
    ids: Integer[Array, "n ..."],
    dy: Float[Array, "n *t d"],
    *,
    padding_index: int | None = None,
) -> Float[Array, " n"]:
    """|dw|² of each example: Σ ⟨dy_t, dy_s⟩ over all pairs of positions with the same id."""
    _squares.examples("embedding.squares", "dy", dy, 1)
    dy = _squares.positions(dy)
    ids = _looked_up(params, ids, padding_index=padding_index).reshape(dy.shape[:2])
    same = (ids[:, :, None] == ids[:, None, :]) & (ids < params["w"].shape[0])[:, None]
    gram = jnp.einsum("ntd,nsd->nts", dy, dy, preferred_element_type=wide(dy.dtype))
    return jnp.maximum(jnp.where(same, gram, 0).sum((1, 2)), 0)


def _looked_up(params: Params, ids: Integer[Array, "*n"], *, padding_index: int | None = None) -> Array:
    """ids; and v, the number of rows, for those without a gradient: of padding, or of no row at all."""
    v = params["w"].shape[0]
    ids = _known(jnp.asarray(ids), v)
    return ids if padding_index is None else jnp.where(ids == padding_index, count(v, ids.dtype), ids)


def _add_squares(params: Params, x: Array, ids: Array, dy: Array) -> Array:
    del x
    return squares(params, jnp.broadcast_to(ids, dy.shape[:-1]), dy)


@rules.part(_add_squares)
def add(params: Params, x: Float[Array, "*n d"], ids: Integer[Array, "..."]) -> Float[Array, "*n d"]:
    """x plus the rows of ids: as ``x + apply(params, ids)``, with the axes that ids lack in front.

    The rows of positions are looked up once for a whole batch; and where gradients of single examples are
    counted, as in `analysis.example_norms`, they are counted for each.

    >>> add({"w": jnp.eye(3)}, jnp.zeros((2, 3, 3)), jnp.arange(3)).shape
    (2, 3, 3)

    Raises:
        ShapeError: x does not have d features, or ids do not fit its other axes.
        DTypeError, ValueRangeError, StructureError: as `apply`; or x is not floating-point.
    """
    where = "embedding.add"
    w, x = _check.parameter(where, params, "w", ndim=2), _check.floating(where, "x", x)
    _check.rank(where, "x", x, 1, f"*n, {w.shape[1]}")
    _check.features(where, x, w.shape[1], f'params["w"] ({describe(w)})')
    rows = apply(params, ids)
    pairs = list(zip(rows.shape[::-1], x.shape[::-1], strict=False))
    if rows.ndim > x.ndim or any(known(n, m) and n not in (1, m) for n, m in pairs):
        raise ShapeError(
            f"{where}: the rows of ids do not fit x.",
            path="ids",
            expected=f"ids: the last axes of [{', '.join(map(str, x.shape[:-1]))}]     (x: {describe(x)})",
            actual=f"ids: {describe(ids)}",
        )
    x, rows = common(x, rows)
    return x + align(rows, x.ndim)
