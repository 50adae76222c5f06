"""Muon: for every matrix the orthogonalised momentum, U Vᵀ of M = U S Vᵀ; AdamW for everything else.

Of all steps of one length in the spectral norm it is the one that goes down most (docs/optim.md derives it).
Source: K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; the scale that lets
AdamW's rates and decay carry over: J. Liu et al., "Muon is scalable for LLM training", arXiv 2502.16982.
NorMuon: Z. Li et al., arXiv 2510.05491.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from funcnet.linalg.matrices import as_matrices, from_matrices, sizes
from funcnet.linalg.polar import polar
from funcnet.optim._parts import Rate, by_matrices, in_batches, length, wide_dtype
from funcnet.spec import is_spec

__all__ = ["State", "muon", "normuon", "scale_by_muon"]

_RMS = 0.2  # about the root mean square of what Adam adds


class State(NamedTuple):
    """What is kept of the steps before.

    Attributes:
        momentum: the mean of the gradients, like params.
        second: of NorMuon: for every matrix the mean square of each column, [s, o]; else None.
    """

    momentum: Any
    second: Any


def muon(
    rate: Rate,
    specs: Any,
    *,
    momentum: float = 0.95,
    nesterov: bool = True,
    weight_decay: float = 0.0,
    tables: bool = False,
    method: str = "auto",
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    """Matrices by their orthogonalised momentum, gains, biases and tables by AdamW.

    A matrix's step is scaled to the root mean square of Adam's, 0.2, so that AdamW's rates and decay carry
    over; matrices of one shape are orthogonalised in one batch.

    Args:
        rate: the learning rate, or a function of the number of updates before.
        specs: the net's ``specs(config)``: they say which leaf is which matrix.
        momentum: the share of the earlier mean in that of the gradients.
        nesterov: whether the new gradient counts once more, ahead of it.
        weight_decay: of matrices and tables, in units of the rate.
        tables: whether tables are matrices, too.
        method: of `linalg.polar`.
        b1: Adam's, of everything else.
        b2: Adam's.
        eps: Adam's.

    Raises:
        DTypeError: a leaf of specs is no Spec.
        StructureError, ShapeError: from `init`, if they are those of another tree.
    """
    rule = lambda chosen: scale_by_muon(chosen, momentum=momentum, nesterov=nesterov, method=method)
    return by_matrices(
        "optim.muon", rate, specs, rule, tables=tables, weight_decay=weight_decay, b1=b1, b2=b2, eps=eps
    )


def normuon(
    rate: Rate,
    specs: Any,
    *,
    momentum: float = 0.95,
    decay: float = 0.95,
    nesterov: bool = True,
    weight_decay: float = 0.0,
    tables: bool = False,
    method: str = "auto",
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    """`muon`, with what the neurons have been given evened out: each column is divided by its mean square.

    `decay` is the share of the earlier mean in that of the squares; the others are those of `muon`.
    """
    rule = lambda chosen: scale_by_muon(
        chosen, momentum=momentum, nesterov=nesterov, method=method, decay=decay
    )
    return by_matrices(
        "optim.normuon", rate, specs, rule, tables=tables, weight_decay=weight_decay, b1=b1, b2=b2, eps=eps
    )


def scale_by_muon(
    specs: Any,
    *,
    momentum: float = 0.95,
    nesterov: bool = True,
    method: str = "auto",
    decay: float | None = None,
) -> optax.GradientTransformation:
    """The transformation behind both, for a tree in which every leaf is a matrix (or `optax.MaskedNode`).

    `decay` is that of NorMuon's mean squares, and None is plain Muon; the others are those of `muon`.
    """

    def init(params: Any) -> State:
        second = None
        if decay is not None:
            columns = lambda leaf: jnp.zeros(sizes(leaf)[::2], wide_dtype(leaf.dtype))
            second = jax.tree.map(columns, specs, is_leaf=is_spec)
        return State(jax.tree.map(jnp.zeros_like, params), second)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, State]:
        del params
        mean = lambda old, new: (momentum * old + (1 - momentum) * new).astype(old.dtype)
        kept = jax.tree.map(mean, state.momentum, updates)
        ahead = jax.tree.map(mean, kept, updates) if nesterov else kept
        leaves, tree = jax.tree.flatten(specs, is_leaf=is_spec)
        stacks = [as_matrices(m, leaf) for m, leaf in zip(jax.tree.leaves(ahead), leaves, strict=True)]
        factors = in_batches(functools.partial(polar, method=method), stacks)
        second = state.second
        if decay is not None:
            pairs = [
                _evened(factor, before, decay)
                for factor, before in zip(factors, jax.tree.leaves(second), strict=True)
            ]
            factors, seconds = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
            second = tree.unflatten(seconds)
        steps = [
            from_matrices(_scale(factor) * factor, leaf) for factor, leaf in zip(factors, leaves, strict=True)
        ]
        return tree.unflatten(steps), State(kept, second)

    return optax.GradientTransformation(init, update)


def _scale(factor: Array) -> float:
    """What brings the root mean square of a polar factor [s, i, o] to that of Adam's steps."""
    return _RMS * math.sqrt(max(factor.shape[1:]))


def _evened(factor: Array, before: Array, decay: float) -> tuple[Array, Array]:
    """Each column over its root mean square; the whole as long as it was; the new mean squares."""
    wide = factor.astype(before.dtype)
    second = decay * before + (1 - decay) * (wide * wide).mean(1)
    even = wide / (jnp.sqrt(second) + 1e-8)[:, None, :]
    new = length(even)
    return (even * (length(wide) / jnp.where(new > 0, new, 1))).astype(factor.dtype), second
