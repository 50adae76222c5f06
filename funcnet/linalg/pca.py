"""Principal components: the k directions in which rows of data vary most, and all that is made of them.

With rows x [n, d], their mean m and C = Σ (x − m)(x − m)ᵀ / (n − 1), the components V [k, d] are the first k
eigenvectors of C, and the variances its eigenvalues. No k directions leave out less of the rows than these
(Eckart and Young), and no linear autoencoder with k hidden units does better: docs/pca.md.

Sources: C. Eckart and G. Young, "The approximation of one matrix by another of lower rank", 1936; T. Chan,
G. Golub and R. LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from funcnet._numbers import index
from funcnet.errors import DTypeError, ShapeError, ValueRangeError, describe, shorten
from funcnet.linalg import _arguments
from funcnet.linalg.cholesky import conditioned

__all__ = [
    "METHODS",
    "PCA",
    "State",
    "empty",
    "finish",
    "fit",
    "left_out",
    "merge",
    "project",
    "projector",
    "reconstruct",
    "update",
    "whiten",
]

METHODS = ("auto", "covariance", "svd", "randomized")
_OVERSAMPLING, _POWERS = 20, 3
_HIGHEST = jax.lax.Precision.HIGHEST


class PCA(NamedTuple):
    """What `fit` and `finish` find.

    Attributes:
        mean: of the rows [d].
        components: [k, d], orthonormal rows; of each the element that is largest in size is positive.
        variances: [k], along the components, descending; sums of squares divided by n − 1.
        total: the variance in all d directions, so that variances / total are shares.
    """

    mean: Float[Array, " d"]
    components: Float[Array, "k d"]
    variances: Float[Array, " k"]
    total: Float[Array, ""]


class State(NamedTuple):
    """What is known of rows that have come so far: `empty`, `update`, `merge`, then `finish`.

    The mean is kept in two parts. Differences from the first are small and exact where data lie far from the
    origin; their mean is the second.

    Attributes:
        n: how many rows, at most 2³¹ − 1.
        origin: the first row [d].
        shift: the mean less the origin [d].
        scatter: the sum of (x − mean)(x − mean)ᵀ [d, d].
    """

    n: Int[Array, ""]
    origin: Float[Array, " d"]
    shift: Float[Array, " d"]
    scatter: Float[Array, "d d"]


# ---- all at once ------------------------------------------------------------------------------------------


def fit(
    x: Float[Array, "n d"], k: int | float, method: str = "auto", mask: Bool[Array, " n"] | None = None
) -> PCA:
    """The first k principal components of the rows of x, computed in float32 or wider.

    It can be jitted, and has first derivatives. Those of mean, variances and total always exist. That of the
    components is infinite where one of the first k variances is equal to another, to that of k + 1 too: there
    it is NaN, and so is what uses it; `projector` and `left_out` have theirs. A derivative takes the whole
    spectrum, whatever the method.

    Args:
        x: the rows.
        k: how many components, at most min(n, d); or a share of the variance in (0, 1): the fewest whose
            variances exceed that share of the total (outside `jax.jit`; not with "randomized").
        method: "covariance", by eigenvectors of C: variances below eps of the largest are noise; "svd", of
            the centred rows: they are not; "randomized", in the span of the first powers of C times k + 20
            random vectors (always the same ones), for few components of large data, the more exact the
            faster variances fall off; "auto", the fastest by `python -m benchmarks pca`.
        mask: which rows count; the others may hold anything. None: all.

    Returns:
        In the dtype of x, or float32 where that is narrower.

    Raises:
        ShapeError: x is not [n, d], or mask not [n].
        DTypeError: x is not floating-point, mask not boolean; k is no number, or a share where x is traced.
        ValueRangeError: k is out of range, fewer than two rows count, one of them is not finite (both if they
            can be looked at), or the method is another.

    >>> found = fit(jnp.array([[0.0, 1.0], [4.0, 1.0]]), 1)
    >>> found.components, found.variances, found.total
    (Array([[1., 0.]], dtype=float32), Array([8.], dtype=float32), Array(8., dtype=float32))
    """
    where = "pca.fit"
    x, mask, rows = _arguments.data(where, x, mask)
    _arguments.one_of(where, method, METHODS)
    most = min(rows, x.shape[1])
    count = _arguments.components(where, k, most, f"min(n, d) of n = {rows} rows, d = {x.shape[1]}")
    if count is None and method == "randomized":
        raise ValueRangeError(
            f"{where}: k is a share of the variance, which the randomized method does not know.",
            path="k",
            expected=f"k: an int, 1 to {most}",
            actual=f"k = {k}",
            hint='method="svd" or "covariance" finds all variances.',
        )
    wanted = most if count is None else count
    found = _fit(x, mask, wanted, _fastest((rows, x.shape[1]), wanted) if method == "auto" else method)
    _arguments.finite(where, found.total, x, mask)
    return found if count is not None else _upto(where, found, k)


def projector(x: Float[Array, "n d"], k: int, mask: Bool[Array, " n"] | None = None) -> Float[Array, "d d"]:
    """P = VᵀV, which takes a centred row to its nearest point in the span of the first k components.

    Its derivative is finite also where some of the k variances are equal and V has none: it is the sum over
    i ≤ k < j of (q_j q_jᵀ dC q_i q_iᵀ + its transpose) / (λ_i − λ_j), of components q and variances λ in all
    directions. Where those of k and k + 1 are equal, P itself is not unique, and the derivative is NaN.

    Raises:
        ShapeError, DTypeError, ValueRangeError: as `fit`; k is no share.
    """
    where = "pca.projector"
    x, k, mask = _prepared(where, x, k, mask)
    p = _projector_of(x, mask, k)
    _arguments.finite(where, p, x, mask)
    return p


def left_out(x: Float[Array, "n d"], k: int, mask: Bool[Array, " n"] | None = None) -> Float[Array, ""]:
    """The variance outside the first k components, Σ ‖(x − m)(I − P)‖² / (n − 1): the sum of all the others.

    Its derivative is 2 (x − m)(I − P) / (n − 1), also where some of the first k variances are equal: V is the
    best that there is, so that a small turn of it changes nothing. Where those of k and k + 1 are equal there
    is a kink, and it is the derivative for the V that was found, between those of the two sides.

    Raises:
        ShapeError, DTypeError, ValueRangeError: as `fit`; k is no share.
    """
    where = "pca.left_out"
    x, k, mask = _prepared(where, x, k, mask)
    left = _left_out_of(x, mask, k)
    _arguments.finite(where, left, x, mask)
    return left


# ---- what it is for ---------------------------------------------------------------------------------------


def project(pca: PCA, x: Float[Array, "*n d"]) -> Float[Array, "*n k"]:
    """The coordinates of x along the components, (x − m) Vᵀ.

    Raises:
        ShapeError: x does not have d features.
        DTypeError: x is not floating-point.
    """
    _arguments.kind("pca.project", "pca", pca, PCA)
    x = _arguments.features("pca.project", "x", x, pca.components.shape[1], "pca.components", pca.mean.dtype)
    return jnp.matmul(x - _aligned(pca.mean, x), pca.components.T.astype(x.dtype), precision=_HIGHEST)


def reconstruct(pca: PCA, y: Float[Array, "*n k"]) -> Float[Array, "*n d"]:
    """The point with these coordinates, y V + m: of those of x, the nearest to x of all such points.

    Raises:
        ShapeError: y does not have k coordinates.
        DTypeError: y is not floating-point.
    """
    y = _arguments.features(
        "pca.reconstruct", "y", y, pca.components.shape[0], "pca.components", pca.mean.dtype
    )
    x = jnp.matmul(y, pca.components.astype(y.dtype), precision=_HIGHEST)
    return x + _aligned(pca.mean, x)


def whiten(pca: PCA, x: Float[Array, "*n d"]) -> Float[Array, "*n k"]:
    """The coordinates of x divided by their standard deviations: of the fitted rows, their covariance is I.

    A coordinate whose variance is below eps of the largest, which is rounding, is 0.

    Raises:
        ShapeError: x does not have d features.
        DTypeError: x is not floating-point.
    """
    _arguments.kind("pca.whiten", "pca", pca, PCA)
    x = _arguments.features("pca.whiten", "x", x, pca.components.shape[1], "pca.components", pca.mean.dtype)
    eps = jnp.finfo(pca.variances.dtype).eps
    there = pca.variances > eps * pca.variances[0]
    scale = jnp.where(there, jax.lax.rsqrt(jnp.where(there, pca.variances, 1)), 0)
    y = project(pca, x)
    return y * _aligned(scale, y)


# ---- piece by piece ---------------------------------------------------------------------------------------


def empty(d: int, dtype: Any = jnp.float32) -> State:
    """The state of no rows, of d features; it is d² numbers large.

    Raises:
        DTypeError, ValueRangeError: d is no positive int, or dtype not float32 or float64.

    >>> state = empty(2)
    >>> for batch in (jnp.array([[0.0, 1.0], [4.0, 1.0]]), jnp.array([[8.0, 1.0]])):
    ...     state = update(state, batch)
    >>> finish(state, 1).variances
    Array([16.], dtype=float32)
    """
    where = "pca.empty"
    size = index(d)
    if size is None:
        raise DTypeError(f"{where}: d is not an integer.", path="d", expected="d: int", actual=describe(d))
    if size < 1:
        raise ValueRangeError(
            f"{where}: d is {size}.", path="d", expected="d ≥ 1", actual=f"d = {shorten(d)}"
        )
    try:
        wide = isinstance(dtype, str | type | np.dtype) and jnp.dtype(dtype) in (jnp.float32, jnp.float64)
    except TypeError:
        wide = False
    if not wide:
        raise DTypeError(
            f"{where}: sums are not kept in this dtype.",
            path="dtype",
            expected="dtype: jnp.float32 or jnp.float64",
            actual=f"dtype: {describe(dtype)}",
        )
    zeros = jnp.zeros((size,), dtype)
    return State(jnp.zeros((), jnp.int32), zeros, zeros, jnp.zeros((size, size), dtype))


def update(state: State, x: Float[Array, "n d"], mask: Bool[Array, " n"] | None = None) -> State:
    """The state after some more rows, of any number; the order and the sizes of the pieces do not matter.

    Rows that are not finite are found by `finish`, so that nothing waits for the device here.

    Raises:
        ShapeError: x is not [n, d], or mask not [n].
        DTypeError: x is not floating-point, or mask not boolean.
    """
    where = "pca.update"
    _arguments.kind(where, "state", state, State)
    x = _arguments.floating(where, "x", x)
    if x.ndim != 2 or x.shape[1] != state.origin.shape[0]:
        d = state.origin.shape[0]
        raise ShapeError(
            f"{where}: x does not fit the state.",
            path="x",
            expected=f"x: float[n, {d}]     (the state has {d} features)",
            actual=f"x: {describe(x)}",
            hint="one row: x[None]." if x.shape == (d,) else None,
        )
    mask = _arguments.row_mask(where, x, mask)
    return _update(state, x, mask) if x.shape[0] else state


def merge(a: State, b: State) -> State:
    """The state of the rows of both, as if one had seen all of them.

    Raises:
        ShapeError: they have different features.
    """
    for path, state in (("a", a), ("b", b)):
        _arguments.kind("pca.merge", path, state, State)
    if a.origin.shape != b.origin.shape:
        raise ShapeError(
            "pca.merge: the states have different numbers of features.",
            path="b",
            expected=f"b: of {a.origin.shape[0]} features, as a",
            actual=f"b: of {b.origin.shape[0]}",
        )
    return _merge(a, b)


def finish(state: State, k: int | float) -> PCA:
    """The principal components of the rows that have come, by the eigenvectors of their covariance.

    Args:
        state: after two rows at least.
        k: how many, or a share of the variance, as `fit` takes it.

    Raises:
        DTypeError: k is no number, or a share where the state is traced.
        ValueRangeError: k is out of range, fewer than two rows have come, or one was not finite.
    """
    where = "pca.finish"
    _arguments.kind(where, "state", state, State)
    known = not isinstance(state.n, jax.core.Tracer)
    d = state.origin.shape[0]
    rows = int(state.n) if known else None
    if rows is not None and rows < 2:
        raise _arguments.too_few(where, "state", rows)
    most = d if rows is None else min(rows, d)
    source = f"d = {d}" if rows is None else f"min(n, d) of n = {rows} rows, d = {d}"
    count = _arguments.components(where, k, most, source)
    found = _finish(state, most if count is None else count)
    if not isinstance(found.total, jax.core.Tracer) and not np.isfinite(found.total):
        raise ValueRangeError(
            f"{where}: a row that came was not finite, or squares of its elements were not.",
            path="state",
            expected="finite rows",
            actual=f"a total variance of {found.total}",
            hint="update(state, x, mask=jnp.isfinite(x).all(1)) leaves such rows out.",
        )
    return found if count is not None else _upto(where, found, k)


# ---- the mathematics --------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("k", "method"))
def _fit(x: Array, mask: Array | None, k: int, method: str) -> PCA:
    mean, z = _standard(x, mask)
    components, variances = _top(z, k, method)
    return PCA(mean, components, variances, (z * z).sum(1).sum())


def _centred(x: Array, mask: Array | None) -> tuple[Array, Array, Array, Array]:
    """How many rows, one of them, the mean less that one, and the rows less the mean, 0 where masked.

    The origin is a row as it is: one that were computed could be rounded where it is returned, and not where
    it is subtracted (by a fused multiply-add). A mean is rounded, so the rest is centred once more.
    """
    count = jnp.int32(x.shape[0]) if mask is None else mask.sum(dtype=jnp.int32)
    n = jnp.maximum(count, 1).astype(x.dtype)

    def less(x: Array, point: Array) -> Array:
        return x - point[None] if mask is None else jnp.where(mask[:, None], x - point[None], 0)

    if mask is not None:
        x = jnp.where(mask[:, None], x, 0)
    origin = jax.lax.stop_gradient(x[0] if mask is None else x[mask.argmax()])
    x = less(x, origin)
    first = jax.lax.stop_gradient(x.sum(0) / n)
    x = less(x, first)
    second = x.sum(0) / n
    return count, origin, first + second, less(x, second)


def _standard(x: Array, mask: Array | None) -> tuple[Array, Array]:
    """The mean, and z = (x − mean) / √(n − 1), so that C = zᵀz."""
    count, origin, shift, centred = _centred(x, mask)
    return origin + shift, centred * jax.lax.rsqrt(jnp.maximum(count - 1, 1).astype(x.dtype))


def _fastest(shape: tuple[int, int], k: int) -> str:
    small, large = min(shape), max(shape)
    if large > 500 and 5 * (k + _OVERSAMPLING) <= small:
        return "randomized"
    return "covariance" if shape[1] <= shape[0] else "svd"


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _top(z: Array, k: int, method: str) -> tuple[Array, Array]:
    """The first k eigenvectors of zᵀz as rows, and their eigenvalues."""
    return {"covariance": _covariance, "svd": _svd, "randomized": _randomized}[method](z, k)


def _covariance(z: Array, k: int) -> tuple[Array, Array]:
    return _eigen(jnp.matmul(z.T, z, precision=_HIGHEST), k)


def _eigen(c: Array, k: int) -> tuple[Array, Array]:
    variances, vectors = jnp.linalg.eigh(c, symmetrize_input=False)
    return _signed(vectors[:, ::-1].T[:k]), jnp.maximum(variances[::-1][:k], 0)


def _svd(z: Array, k: int) -> tuple[Array, Array]:
    _, s, v = jnp.linalg.svd(z, full_matrices=False)
    return _signed(v[:k]), s[:k] ** 2


def _randomized(z: Array, k: int) -> tuple[Array, Array]:
    """The eigenvectors of C in the span of C Ω, C² Ω and C³ Ω, for k + 20 random columns Ω.

    All three powers together are far better than the last one alone, for the same products. Source: C. Musco
    and C. Musco, "Randomized Block Krylov Methods for Stronger and Faster Approximate SVD", arXiv 1504.05477.
    """
    product = functools.partial(jnp.matmul, precision=_HIGHEST)
    width = min(k + _OVERSAMPLING, *z.shape)
    y = jax.random.normal(jax.random.key(0), (z.shape[1], width), z.dtype)
    powers = []
    for _ in range(_POWERS):
        y = conditioned(product(z.T, product(z, y)))
        powers.append(y)
    q = jnp.linalg.qr(jnp.concatenate(powers, 1))[0]
    b = product(z, q)
    variances, vectors = jnp.linalg.eigh(product(b.T, b), symmetrize_input=False)
    return _signed(product(q, vectors[:, ::-1][:, :k]).T), jnp.maximum(variances[::-1][:k], 0)


def _signed(v: Array) -> Array:
    """Each row with its largest element, in size, positive: scikit-learn's convention."""
    largest = jnp.take_along_axis(v, jnp.abs(v).argmax(1)[:, None], 1)
    return jnp.where(largest < 0, -v, v)


@_top.defjvp
def _top_jvp(k: int, method: str, primals: Any, tangents: Any) -> tuple[Any, Any]:
    """dλ_i = q_iᵀ dC q_i, dq_i = Σ_j≠i q_j (q_jᵀ dC q_i) / (λ_i − λ_j), over all directions j."""
    (z,), (dz,) = primals, tangents
    _, dv, dvariances = _turned(z, dz, k, within=True)
    return _top(z, k, method), (dv, dvariances)


def _turned(z: Array, dz: Array, k: int, within: bool) -> tuple[Array, Array, Array]:
    """The first k components, how they move, and how their variances do.

    Args:
        z: as `_standard` gives it.
        dz: its tangent.
        k: how many.
        within: or only out of their own span, which is all that a projector sees.
    """
    r = min(z.shape)
    q, variances = _top(z, r, "covariance" if r == z.shape[1] else "svd")
    product = functools.partial(jnp.matmul, precision=_HIGHEST)
    b, db = product(z, q.T), product(dz, q.T)
    m = product(b.T, db[:, :k]) + product(db.T, b[:, :k])  # q_jᵀ dC q_i
    least = 16 * jnp.finfo(z.dtype).eps * variances[0]
    gaps = variances[None, :k] - variances[:, None]
    inverse = _inverse(gaps, least)
    row, column = jnp.arange(r)[:, None], jnp.arange(k)[None]
    inverse = jnp.where(row == column if within else row < k, 0, inverse)
    dv = product((inverse * m).T, q)
    if r < z.shape[1]:  # directions in which nothing varies, which q does not span
        out = product(b[:, :k].T, dz)
        out = out - product(product(out, q.T), q)
        dv = dv + out * _inverse(variances[:k], least)[:, None]
    return q[:k], dv, m.diagonal()


def _inverse(gap: Array, least: Array) -> Array:
    """1 / gap, NaN where it is nothing but rounding."""
    apart = jnp.abs(gap) > least
    return jnp.where(apart, 1 / jnp.where(apart, gap, 1), jnp.nan)


@functools.partial(jax.jit, static_argnames="k")
def _projector_of(x: Array, mask: Array | None, k: int) -> Array:
    return _projector(_standard(x, mask)[1], k)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _projector(z: Array, k: int) -> Array:
    v, _ = _top(z, k, _fastest((z.shape[0], z.shape[1]), k))
    return jnp.matmul(v.T, v, precision=_HIGHEST)


@_projector.defjvp
def _projector_jvp(k: int, primals: Any, tangents: Any) -> tuple[Array, Array]:
    (z,), (dz,) = primals, tangents
    v, dv, _ = _turned(z, dz, k, within=False)
    half = jnp.matmul(v.T, dv, precision=_HIGHEST)
    return _projector(z, k), half + half.T


@functools.partial(jax.jit, static_argnames="k")
def _left_out_of(x: Array, mask: Array | None, k: int) -> Array:
    return _left_out(_standard(x, mask)[1], k)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _left_out(z: Array, k: int) -> Array:
    v, _ = _top(z, k, _fastest((z.shape[0], z.shape[1]), k))
    rest = z - jnp.matmul(jnp.matmul(z, v.T, precision=_HIGHEST), v, precision=_HIGHEST)
    return (rest * rest).sum(1).sum()


@_left_out.defjvp
def _left_out_jvp(k: int, primals: Any, tangents: Any) -> tuple[Array, Array]:
    (z,), (dz,) = primals, tangents
    rest = z - jnp.matmul(z, _projector(z, k), precision=_HIGHEST)
    return _left_out(z, k), 2 * (rest * dz).sum(1).sum()


@jax.jit
def _update(state: State, x: Array, mask: Array | None) -> State:
    count, origin, shift, centred = _centred(x.astype(state.scatter.dtype), mask)
    scatter = jnp.matmul(centred.T, centred, precision=_HIGHEST)
    return _merge(state, State(count, origin, shift, scatter))


@jax.jit
def _merge(a: State, b: State) -> State:
    count = a.n + b.n
    of_a, of_b, of_all = (n.astype(a.scatter.dtype) for n in (a.n, b.n, count))
    share = of_b / jnp.maximum(of_all, 1)
    apart = (b.origin - a.origin) + (b.shift - a.shift)
    began = a.n > 0
    return State(
        count,
        jnp.where(began, a.origin, b.origin),
        jnp.where(began, a.shift + apart * share, b.shift),
        a.scatter + b.scatter + apart[:, None] * apart[None, :] * (of_a * share),
    )


@functools.partial(jax.jit, static_argnames="k")
def _finish(state: State, k: int) -> PCA:
    c = state.scatter / jnp.maximum(state.n - 1, 1).astype(state.scatter.dtype)
    components, variances = _eigen(c, k)
    return PCA(state.origin + state.shift, components, variances, jnp.trace(c))


def _upto(where: str, found: PCA, share: float) -> PCA:
    """The fewest components whose variances exceed a share of the total."""
    if isinstance(found.total, jax.core.Tracer):
        raise DTypeError(
            f"{where}: k is a share of the variance, which is not known while it is traced.",
            path="k",
            expected=f"k: an int, 1 to {len(found.variances)}",
            actual=f"k = {share}",
        )
    sums = np.cumsum(np.asarray(found.variances, np.float64))
    k = min(int(np.searchsorted(sums, float(share) * float(found.total), side="right")) + 1, len(sums))
    return found._replace(components=found.components[:k], variances=found.variances[:k])


def _aligned(v: Array, like: Array) -> Array:
    return v.astype(like.dtype).reshape((1,) * (like.ndim - 1) + v.shape)


def _prepared(where: str, x: Any, k: Any, mask: Any) -> tuple[Array, int, Array | None]:
    x, mask, rows = _arguments.data(where, x, mask)
    most = min(rows, x.shape[1])
    count = _arguments.components(where, k, most, f"min(n, d) of n = {rows} rows, d = {x.shape[1]}")
    if count is None:
        raise ValueRangeError(
            f"{where}: k is a share of the variance.",
            path="k",
            expected=f"k: an int, 1 to {most}",
            actual=f"k = {k}",
            hint="of a share: len(pca.fit(x, share).variances).",
        )
    return x, count, mask
