"""What a forward pass costs, by formula."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from funcnet import rules

__all__ = ["Abstract", "Cost", "traffic"]

Abstract = jax.Array | jax.ShapeDtypeStruct  # a cost is known without values


class Cost(NamedTuple):
    """The cost of one forward pass.

    Attributes:
        flops: 2 x multiply-adds of its products; padding is counted, additions of a bias are not.
        bytes: every input and output, once.
    """

    flops: int
    bytes: int


def traffic(function: Callable[..., Any], *args: Any, **options: Any) -> int:
    """Bytes of every array in `args`, `options` and the output of `function`; nothing is computed."""
    traced, static = rules.split(options)
    fixed = functools.partial(function, **static)
    out = jax.eval_shape(lambda args, traced: fixed(*args, **traced), args, traced)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((args, traced, out)))
