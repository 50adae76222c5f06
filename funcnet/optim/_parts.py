"""What the optimizers share: matrices by one rule, everything else by AdamW, one rate for both."""

import functools
import operator
from collections import defaultdict
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from funcnet import spec

__all__ = ["Rate", "by_matrices", "in_batches", "length", "wide_dtype"]

Rate = float | jax.Array | Callable[[Any], Any]


def wide_dtype(dtype: Any) -> Any:
    """What is kept of matrices of this dtype: float32 or wider."""
    return jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype


def length(x: Float[Array, "s i o"]) -> Float[Array, "s 1 1"]:
    """The Frobenius norm of each."""
    return jnp.sqrt((x * x).sum((1, 2), keepdims=True))


def in_batches(f: Callable[..., Any], *lists: list[Array]) -> list[Any]:
    """f of each stack [s, ...], or of those at one place of several lists; equal shapes in one batch."""
    groups: dict[Any, list[int]] = defaultdict(list)
    for place, stacks in enumerate(zip(*lists, strict=True)):
        groups[tuple((stack.shape[1:], stack.dtype) for stack in stacks)].append(place)
    found: list[Any] = [None] * len(lists[0])
    for places in groups.values():
        batch = f(*(jnp.concatenate([stacks[place] for place in places]) for stacks in lists))
        end = 0
        for place in places:
            start, end = end, end + lists[0][place].shape[0]
            found[place] = jax.tree.map(operator.itemgetter(slice(start, end)), batch)
    return found


def by_matrices(
    where: str,
    rate: Rate,
    specs: Any,
    rule: Callable[[Any], optax.GradientTransformation],
    *,
    tables: bool,
    weight_decay: float,
    b1: float,
    b2: float,
    eps: float,
) -> optax.GradientTransformationExtraArgs:
    """`rule(specs of the matrices)` for matrices, Adam for the rest, decay by role, one rate.

    Args:
        where: who asks.
        rate: the learning rate, or a function of the number of updates before.
        specs: of the params.
        rule: gives what is added for matrices, before decay and rate, and of the sign of the gradient.
        tables: whether tables are matrices, too.
        weight_decay: of matrices and tables, in units of the rate.
        b1: of Adam.
        b2: of Adam.
        eps: of Adam.
    """
    spec.check(where, specs)
    counts = lambda leaf: isinstance(leaf.matrix, tuple) or (tables and leaf.matrix == "table")
    each = functools.partial(jax.tree.map, is_leaf=spec.is_spec)
    chosen = each(lambda leaf: leaf if counts(leaf) else optax.MaskedNode(), specs)
    labels = each(lambda leaf: "matrix" if counts(leaf) else "rest", specs)
    parts: dict[Hashable, optax.GradientTransformation] = {
        "matrix": rule(chosen),
        "rest": optax.scale_by_adam(b1, b2, eps),
    }
    chained = optax.chain(
        optax.partition(parts, labels),
        optax.add_decayed_weights(weight_decay, mask=spec.decay_mask(specs)),
        optax.scale_by_learning_rate(rate),
    )

    def init(params: Any) -> Any:
        spec.fits(where, specs, params)
        return chained.init(params)

    return optax.GradientTransformationExtraArgs(init, chained.update)
