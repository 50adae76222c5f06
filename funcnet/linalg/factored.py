"""The inverse of a Fisher matrix from Kronecker factors, matrix by matrix.

Of one weight matrix [i, o] with the gradients G of single examples, L = mean G Gᵀ and R = mean Gᵀ G, its
block of the Fisher matrix is taken for

    F ≈ L ⊗ R / t,    t = tr L = tr R = mean ‖G‖²

For G = x dyᵀ with x and dy independent that is E[x xᵀ] ⊗ E[dy dyᵀ], K-FAC's block, which then is exact; it
needs the gradients only, so that it holds for shared weights, too, and the factors are those of Shampoo.
With L = U λ Uᵀ and R = V ρ Vᵀ the damped inverse needs no further approximation:

    (F + d 1)⁻¹ M = U [(Uᵀ M V) / (λ ρᵀ / t + d)] Vᵀ

Sources: J. Martens and R. Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature",
arXiv 1503.05671; the quotient: D. Morwani et al., "A new perspective on Shampoo's preconditioner", arXiv
2406.17748.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, PRNGKeyArray, PyTree

from funcnet import spec as facts
from funcnet.linalg import _batches, _check, kronecker, space
from funcnet.linalg._batches import Groups
from funcnet.linalg.curvature import of_examples
from funcnet.linalg.matrices import as_matrices, from_matrices
from funcnet.linalg.operator import Operator, symmetric
from funcnet.linalg.space import Space
from funcnet.mean import wide
from funcnet.spec import Spec, is_spec

__all__ = ["kfac"]

_WHERE = "linalg.kfac"


def kfac(
    losses: Callable[..., Any],
    params: PyTree,
    batches: PyTree,
    specs: PyTree,
    *,
    damping: Any,
    key: PRNGKeyArray | None = None,
    most: int = 1024,
) -> Operator:
    """(F + damping · 1)⁻¹ as an operator, for an F near `fisher(losses, params, batches)`.

    Blocks of different leaves are taken to be independent. That of a matrix is a Kronecker product; that of a
    gain, a bias or a table its diagonal, which is exact. The gradients of single examples are taken one after
    the other, once; a product costs four small ones per matrix.

    Args:
        losses: as in `fisher`; it is called with one example at a time, a batch of one.
        params: as in `fisher`.
        batches: as in `fisher`; their arrays have one entry per example.
        specs: the net's ``specs(config)``: they say which leaf is which matrix.
        damping: added to the diagonal, above 0; it may be traced.
        key: as in `fisher`; every example has its own.
        most: of a side longer than that only the diagonal of its factor is taken.

    Raises:
        ValueRangeError: damping is not positive.
        StructureError, DTypeError, ShapeError: as in `fisher`; or the specs are those of another tree.

    >>> losses = lambda p, x: ((x @ p["w"]) ** 2).sum(-1)
    >>> specs = {"w": Spec((2, 1), "float32", ("a", "b"), ((2, 1), "io"))}
    >>> K = kfac(losses, {"w": jnp.ones((2, 1))}, jnp.array([[1.0, 0.0]]), specs, damping=1.0)
    >>> [round(x, 6) for x in (K @ jnp.array([5.0, 1.0])).tolist()]
    [1.0, 1.0]
    """
    own = space.of(_WHERE, params)
    groups = _batches.grouped(_WHERE, batches)
    _check.key(_WHERE, key)
    most = _check.whole(_WHERE, "most", most, 0)
    damping = _check.damping(_WHERE, damping, own.dtype, zero=False)
    facts.fits(_WHERE, specs, params)
    plan = _Plan(losses, own, tuple(jax.tree.leaves(specs, is_leaf=is_spec)), most)
    blocks = _blocks(plan, jax.tree.map(jnp.asarray, params), groups, key, damping)
    return symmetric(Partial(_Inverse(own, plan.specs), blocks), own.size, own.dtype, own)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What the factors are made from, but for the arrays; hashable."""

    losses: Callable[..., Any]
    space: Space
    specs: tuple[Spec, ...]
    most: int


@dataclasses.dataclass(frozen=True)
class _Inverse:
    """x [m, p] -> (F + d)⁻¹ x, of the leaves' blocks."""

    space: Space
    specs: tuple[Spec, ...]

    def __call__(self, blocks: list[Any], x: Any) -> Array:
        return _product(self, blocks, x)


def _run(plan: _Plan, params: PyTree, groups: Groups, key: Any, damping: Array) -> list[Any]:
    """For each leaf (U, V, the inverse of λ ρᵀ / t + d), or only the latter, of its diagonal."""

    def of_example(one: PyTree, number: Array, place: Array) -> list[Any]:
        own = None if key is None else jax.random.fold_in(jax.random.fold_in(key, number), place)
        loss = lambda p: of_examples(_WHERE, plan.losses, p, one, own).sum()
        gradients = jax.tree.leaves(jax.grad(loss)(params))
        return [_moments(g, spec, plan.most) for g, spec in zip(gradients, plan.specs, strict=True)]

    def of_batch(batch: PyTree, number: Array) -> tuple[list[Any], Array]:
        n = _batches.examples(_WHERE, batch)
        leaves, tree = jax.tree.flatten(batch)
        split = [leaf[:, None] if leaf.ndim else None for leaf in leaves]

        def one(entry: list[Any], place: Array) -> list[Any]:
            whole = [leaf if part is None else part for leaf, part in zip(leaves, entry, strict=True)]
            return of_example(jax.tree.unflatten(tree, whole), number, place)

        shapes = jax.eval_shape(lambda: one([None if p is None else p[0] for p in split], jnp.int32(0)))
        start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        add = lambda sums, entry: (jax.tree.map(jnp.add, sums, one(*entry)), None)
        sums, _ = jax.lax.scan(add, start, (split, jnp.arange(n, dtype=jnp.int32)))
        return sums, jnp.asarray(n)

    sums, count = _batches.total(of_batch, groups)
    means = jax.tree.map(lambda leaf: leaf / jnp.maximum(count, 1).astype(leaf.dtype), sums)
    return [
        _inverted(mean[0], mean[1], damping)
        if isinstance(mean, tuple)
        else 1 / (mean + damping.astype(mean.dtype))
        for mean in means
    ]


_blocks = jax.jit(_run, static_argnums=0)


def _moments(gradient: Array, spec: Spec, most: int) -> Any:
    """G Gᵀ and Gᵀ G of a matrix, or the diagonals of those beyond the cap; else the squares."""
    if not isinstance(spec.matrix, tuple):
        return jnp.square(wide(gradient))
    g = wide(as_matrices(gradient, spec))
    _, rows, columns = g.shape
    left = jnp.einsum("sio,sjo->sij", g, g) if rows <= most else (g * g).sum(2)
    right = jnp.einsum("sio,sip->sop", g, g) if columns <= most else (g * g).sum(1)
    return left, right


def _inverted(left: Array, right: Array, damping: Array) -> tuple[Array | None, Array | None, Array]:
    """U, V and 1 / (λ ρᵀ / t + d)."""
    (u, rows), (v, columns) = _spectrum(left), _spectrum(right)
    t = rows.sum(-1)[:, None, None]
    values = rows[:, :, None] * columns[:, None, :] / jnp.where(t > 0, t, 1)
    return u, v, 1 / (values + damping.astype(values.dtype))


def _spectrum(factor: Array) -> tuple[Array | None, Array]:
    """The eigenvectors [s, n, n] and eigenvalues [s, n] of a factor; of a diagonal no vectors."""
    if factor.ndim == 2:
        return None, factor
    basis = kronecker.eigenbasis(factor)
    return basis, kronecker.eigenvalues(factor, basis)


def _times(inverse: _Inverse, blocks: list[Any], x: Array) -> Array:
    own = inverse.space

    def of_row(row: Array) -> Array:
        leaves = jax.tree.leaves(own.split(row))
        pairs = zip(leaves, blocks, inverse.specs, strict=True)
        return jnp.concatenate([jnp.ravel(_block(*pair)).astype(own.dtype) for pair in pairs])

    return jax.vmap(of_row)(x)


_product = jax.jit(_times, static_argnums=0)


def _block(leaf: Array, block: Any, spec: Spec) -> Array:
    """The inverse of one leaf's block, times it."""
    if not isinstance(block, tuple):
        return leaf.astype(block.dtype) * block
    u, v, scale = block
    m = as_matrices(leaf, spec).astype(scale.dtype)
    m = m if u is None else jnp.einsum("sir,sio->sro", u, m)
    m = (m if v is None else m @ v) * scale
    m = m if v is None else m @ v.swapaxes(1, 2)
    return from_matrices(m if u is None else u @ m, spec)
