"""What this process holds of an array that lies on several."""

from typing import Any

import jax
import numpy as np

__all__ = ["held", "is_whole"]


def is_whole(x: Any) -> bool:
    """Whether this process can read all of `x`."""
    return not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated


def held(x: Any) -> np.ndarray:
    """`x` in NumPy; of an array that is split over processes, what this one holds, in one axis."""
    if is_whole(x):
        return np.asarray(x)
    return np.concatenate([np.asarray(shard.data).ravel() for shard in x.addressable_shards])
