"""A loop over the first axis of arrays, a chunk at a time."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from funcnet.ops._shape import known

__all__ = ["in_chunks"]


def in_chunks(body: Any, carry: Any, xs: Any, chunk: int, *, reverse: bool = False) -> tuple[Any, Any]:
    """body(carry, chunk of xs) -> (carry, chunk of ys), chunk after chunk; the first may be shorter.

    A leaf of xs or ys has a row for each step, or one for each chunk.
    """
    rows = [v.shape[0] for v in jax.tree.leaves(xs)]
    if not known(*rows) or max(rows) <= chunk:
        return body(carry, xs)
    t = max(rows)
    chunks, rest = divmod(t, chunk)
    ahead = lambda v: rest if v.shape[0] == t else int(rest > 0)  # rows of the shorter chunk
    split = lambda v: v[ahead(v) :].reshape(chunks, (v.shape[0] - ahead(v)) // chunks, *v.shape[1:])
    many, few = jax.tree.map(split, xs), jax.tree.map(lambda v: v[: ahead(v)], xs)
    first = None
    if rest and not reverse:
        carry, first = body(carry, few)
    carry, ys = lax.scan(body, carry, many, reverse=reverse)
    if rest and reverse:
        carry, first = body(carry, few)
    ys = jax.tree.map(lambda v: v.reshape(v.shape[0] * v.shape[1], *v.shape[2:]), ys)
    return carry, jax.tree.map(lambda *v: jnp.concatenate(v), first, ys) if rest else ys
