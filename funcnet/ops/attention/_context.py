"""Attention whose positions lie on several devices: no device holds all of the queries.

Where both numbers of heads divide, heads are split in place of positions: two all-to-alls each way, and every
device attends over the whole sequence for its own heads, so that blocks that causality empties are skipped as
ever. Else every device keeps its queries and gathers all keys and values.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jaxtyping import Array

from funcnet._letters import axes_of, devices

__all__ = ["attend"]


def attend(
    attention: Callable[..., Array],
    q: Array,
    k: Array,
    v: Array,
    bias: Array | None = None,
    sinks: Array | None = None,
    *,
    q_offset: Any = 0,
    segment_ids: Any = None,
    mask: Array | None = None,
    key: Array | None = None,
    **options: Any,
) -> Any:
    """``attention(q, k, v, ...)`` on a mesh with Explicit axes that positions are split over.

    Not implemented where they are not; with a bias, a mask or dropout, which know the places of all; with an
    offset that is traced; and where the heads of the queries are split too, and those of the keys cannot be.
    """
    *n, over, heads, _ = axes_of(q)
    at = len(n)
    known = bias is None and mask is None and key is None and isinstance(q_offset, int)
    if not over or not known or k.shape[-2] % devices(heads):
        return NotImplemented
    by_heads = sinks is None and all(x.shape[-2] % devices((*over, *heads)) == 0 for x in (q, k))
    of_q, of_k = segment_ids if isinstance(segment_ids, tuple | list) else (segment_ids, segment_ids)
    gathered = lambda x: None if x is None else lax.all_gather(x, over, axis=at, tiled=True)

    def local(q: Array, k: Array, v: Array, of_q: Any, of_k: Any, sinks: Any) -> Array:
        if by_heads:
            turned = lambda x, a, b: lax.all_to_all(x, over, split_axis=a, concat_axis=b, tiled=True)
            q, k, v = (turned(x, at + 1, at) for x in (q, k, v))
            ids = None if of_q is None else (gathered(of_q), gathered(of_k))
            return turned(attention(q, k, v, segment_ids=ids, q_offset=q_offset, **options), at, at + 1)
        first = lax.axis_index(over) * q.shape[at] + q_offset
        ids = None if of_q is None else (of_q, gathered(of_k))
        return attention(q, gathered(k), gathered(v), None, sinks, segment_ids=ids, q_offset=first, **options)

    lead, of_heads = [axes or None for axes in n], heads or None
    of = lambda x, *rest: None if x is None else jax.P(*lead, over, *rest)
    arrays = q, k, v, of_q, of_k, sinks
    specs = (
        *(of(x, of_heads) for x in arrays[:3]),
        of(of_q),
        of(of_k),
        None if sinks is None else jax.P(of_heads),
    )
    given: Any = (None if x is None else jax.reshard(x, spec) for x, spec in zip(arrays, specs, strict=True))
    return jax.shard_map(local, in_specs=specs, out_specs=specs[0])(*given)
