"""SOAP and Shampoo: for every matrix the two Kronecker factors of its gradients' second moments.

Of gradients G [i, o], L is the mean of G Gᵀ and R that of Gᵀ G; in the basis of their eigenvectors the
squares of the gradient's elements hardly mix. SOAP runs Adam in that basis. Shampoo, L^(-1/4) M R^(-1/4),
divides by the fourth root of the eigenvalues there, and is as long as Adam's step.
Sources: N. Vyas et al., "SOAP: Improving and stabilizing Shampoo using Adam", arXiv 2409.11321; V. Gupta, T.
Koren and Y. Singer, "Shampoo: Preconditioned stochastic tensor optimization", arXiv 1802.09568; the length of
another step: N. Agarwal et al., arXiv 2002.11803.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Integer

from funcnet.linalg import kronecker
from funcnet.linalg.matrices import as_matrices, from_matrices, sizes
from funcnet.optim._parts import Rate, by_matrices, in_batches, length, wide_dtype
from funcnet.spec import Spec, is_spec

__all__ = ["Moments", "Side", "State", "scale_by_factors", "shampoo", "soap"]

_ROUNDING = 16  # times eps of the whole gradient: an element below it is rounding, and must not be made 1
_DAMPING = 1e-6  # of Shampoo's largest eigenvalue, added to all


class Side(NamedTuple):
    """One of the two factors of a leaf: rows (in) or columns (out).

    Attributes:
        factor: [s, n, n], the mean of G Gᵀ, or of Gᵀ G.
        basis: [s, n, n], its eigenvectors, as of the last refresh.
    """

    factor: Float[Array, "s n n"]
    basis: Float[Array, "s n n"]


class Moments(NamedTuple):
    """What is kept for one leaf.

    Attributes:
        mean: [s, i, o], of the gradients, in the two bases.
        square: [s, i, o], of their squares: in the bases for SOAP, as they are for Shampoo.
        left: of rows; None beyond the cap, where the basis is the identity.
        right: of columns.
    """

    mean: Float[Array, "s i o"]
    square: Float[Array, "s i o"]
    left: Side | None
    right: Side | None


class State(NamedTuple):
    """How many updates there were, and the moments of every leaf that is a matrix."""

    steps: Integer[Array, ""]
    moments: Any


def soap(
    rate: Rate,
    specs: Any,
    *,
    every: int = 10,
    most: int = 1024,
    weight_decay: float = 0.0,
    tables: bool = False,
    b1: float = 0.95,
    b2: float = 0.95,
    eps: float = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    """Adam in the eigenbasis of each matrix's Kronecker factors; AdamW for gains, biases and tables.

    The first update makes the bases, and leaves the matrices as they are.

    Args:
        rate: the learning rate, or a function of the number of updates before.
        specs: the net's ``specs(config)``: they say which leaf is which matrix.
        every: updates between two refreshes of the bases.
        most: a side longer than that has no factor: its basis is the identity.
        weight_decay: of matrices and tables, in units of the rate.
        tables: whether tables are matrices, too.
        b1: the share of the earlier mean in that of the gradients.
        b2: and in those of the squares and of the factors.
        eps: added to the root of the mean square.

    Raises:
        DTypeError: a leaf of specs is no Spec.
        StructureError, ShapeError: from `init`, if they are those of another tree.
    """
    rule = lambda chosen: scale_by_factors(chosen, every=every, most=most, b1=b1, b2=b2, eps=eps)
    return by_matrices(
        "optim.soap", rate, specs, rule, tables=tables, weight_decay=weight_decay, b1=b1, b2=b2, eps=eps
    )


def shampoo(
    rate: Rate,
    specs: Any,
    *,
    every: int = 10,
    most: int = 1024,
    weight_decay: float = 0.0,
    tables: bool = False,
    b1: float = 0.9,
    b2: float = 0.95,
    eps: float = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    """L^(-1/4) M R^(-1/4) for each matrix, as long as Adam's step; AdamW for gains, biases and tables.

    The arguments are those of `soap`.
    """
    rule = lambda chosen: scale_by_factors(
        chosen, every=every, most=most, b1=b1, b2=b2, eps=eps, elementwise=False
    )
    return by_matrices(
        "optim.shampoo", rate, specs, rule, tables=tables, weight_decay=weight_decay, b1=b1, b2=b2, eps=eps
    )


def scale_by_factors(
    specs: Any,
    *,
    every: int = 10,
    most: int = 1024,
    b1: float = 0.95,
    b2: float = 0.95,
    eps: float = 1e-8,
    elementwise: bool = True,
) -> optax.GradientTransformation:
    """The transformation behind both, for a tree in which every leaf is a matrix (or `optax.MaskedNode`).

    `elementwise` says whether the mean squares are those of elements in the basis (SOAP), or products of the
    eigenvalues (Shampoo); the others are those of `soap`.
    """

    def init(params: Any) -> State:
        del params
        moments = jax.tree.map(lambda leaf: _start(leaf, most), specs, is_leaf=is_spec)
        return State(jnp.zeros((), jnp.int32), moments)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, State]:
        del params
        first = state.steps == 0
        # The bases of the first update are used from the second on; SOAP has no squares in them before.
        squares = state.steps if elementwise else state.steps + 1
        shares = 1 - b1 ** (state.steps + 1), 1 - b2 ** jnp.maximum(squares, 1)

        def one(leaf: Spec, grad: Array, was: Moments) -> tuple[Array, Moments]:
            g = as_matrices(grad, leaf).astype(was.mean.dtype)
            left = _seen(was.left, g, b2, first)
            right = _seen(was.right, g.swapaxes(1, 2), b2, first)
            rotated = _into(g, left, right)
            mean = b1 * was.mean + (1 - b1) * rotated
            if elementwise:
                square = b2 * was.square + (1 - b2) * rotated * rotated
                least = eps + _ROUNDING * float(jnp.finfo(g.dtype).eps) * jnp.sqrt(
                    square.sum((1, 2), keepdims=True)
                )
                step = mean / shares[0] / (jnp.sqrt(square / shares[1]) + least)
            else:
                square = b2 * was.square + (1 - b2) * g * g
                adam = _back(mean, left, right) / shares[0] / (jnp.sqrt(square / shares[1]) + eps)
                step = mean / _roots(left, right, g.shape)
                step = step * (length(adam) / jnp.maximum(length(step), 1e-30))
            step = jnp.where(first, 0, _back(step, left, right))
            return from_matrices(step, leaf).astype(grad.dtype), Moments(mean, square, left, right)

        leaves, tree = jax.tree.flatten(specs, is_leaf=is_spec)
        moments = tree.flatten_up_to(state.moments)
        pairs = [one(*each) for each in zip(leaves, jax.tree.leaves(updates), moments, strict=True)]
        kept = jax.lax.cond(
            state.steps % every == 0,
            lambda moments: _refresh(moments, first, elementwise),
            lambda moments: moments,
            [moments for _, moments in pairs],
        )
        return tree.unflatten([step for step, _ in pairs]), State(state.steps + 1, tree.unflatten(kept))

    return optax.GradientTransformation(init, update)


def _start(leaf: Spec, most: int) -> Moments:
    stack, rows, columns = sizes(leaf)
    wide = wide_dtype(leaf.dtype)

    def side(n: int) -> Side | None:
        square = jnp.zeros((stack, n, n), wide)
        return None if n > most else Side(square, square + jnp.eye(n, dtype=wide))

    zeros = jnp.zeros((stack, rows, columns), wide)
    return Moments(zeros, jnp.zeros_like(zeros), side(rows), side(columns))


def _seen(side: Side | None, g: Array, decay: float, first: Array) -> Side | None:
    """The factor of rows after one more gradient; the first one is the mean of itself."""
    if side is None:
        return None
    decay_now = jnp.where(first, 0, decay).astype(g.dtype)
    new = jnp.matmul(g, g.swapaxes(1, 2), preferred_element_type=side.factor.dtype)
    return side._replace(factor=decay_now * side.factor + (1 - decay_now) * new)


def _into(g: Array, left: Side | None, right: Side | None) -> Array:
    """Qₗᵀ G Qᵣ: the gradient in the two bases."""
    g = g if left is None else left.basis.swapaxes(1, 2) @ g
    return g if right is None else g @ right.basis


def _back(g: Array, left: Side | None, right: Side | None) -> Array:
    """Qₗ G Qᵣᵀ: out of them."""
    g = g if left is None else left.basis @ g
    return g if right is None else g @ right.basis.swapaxes(1, 2)


def _roots(left: Side | None, right: Side | None, shape: tuple[int, ...]) -> Array:
    """(λ μᵀ)^(1/4), of the eigenvalues of both factors in their bases; of a side without factor 1."""

    def values(side: Side | None, n: int) -> Array:
        if side is None:
            return jnp.ones((shape[0], n))
        sizes = kronecker.eigenvalues(side.factor, side.basis)
        return sizes + _DAMPING * sizes.max(-1, keepdims=True) + 1e-30

    return (values(left, shape[1])[:, :, None] * values(right, shape[2])[:, None, :]) ** 0.25


def _refresh(was: list[Moments], first: Array, elementwise: bool) -> list[Moments]:
    """New bases, and the means in them; squares of elements in the bases follow the order of columns."""

    def start(factor: Array, basis: Array) -> tuple[Array, Array]:
        del basis
        return kronecker.eigenbasis(factor), jnp.broadcast_to(jnp.arange(factor.shape[-1]), factor.shape[:2])

    sides = [side for moments in was for side in (moments.left, moments.right) if side is not None]
    ways = [functools.partial(in_batches, way) for way in (start, kronecker.refreshed)]
    found = iter(jax.lax.cond(first, *ways, [side.factor for side in sides], [side.basis for side in sides]))

    def new(side: Side | None, axis: int, square: Array) -> tuple[Side | None, Array]:
        if side is None:
            return None, square
        basis, order = next(found)
        if elementwise:
            square = jnp.take_along_axis(square, jnp.expand_dims(order, 3 - axis), axis)
        return side._replace(basis=basis), square

    kept = []
    for moments in was:
        left, square = new(moments.left, 1, moments.square)
        right, square = new(moments.right, 2, square)
        mean = _into(_back(moments.mean, moments.left, moments.right), left, right)
        if elementwise:  # those of the first gradient are of no basis
            square = jnp.where(first, 0, square)
        kept.append(Moments(mean, square, left, right))
    return kept
