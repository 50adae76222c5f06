"""The law of every iterator with a position: stopped and resumed, it gives what it would have."""

import json

import jax
import numpy as np


def as_lists(batches):
    """Batches that can be compared, types included."""
    return [
        [(str(path), str(leaf.dtype), np.asarray(leaf).tolist()) for path, leaf in leaves]
        for leaves in map(jax.tree_util.tree_leaves_with_path, batches)
    ]


def resumes(make, k):
    """Take k batches, hand the position through JSON to a fresh iterator, and compare what follows.

    Returns all batches, taken by one iterator.
    """
    stopped, fresh = make(), make()
    taken = [next(stopped) for _ in range(k)]
    position = json.loads(json.dumps(stopped.position(), allow_nan=False))
    assert position == stopped.position()
    fresh.seek(position)
    assert fresh.position() == position
    assert fresh.skipped == stopped.skipped
    rest, resumed = list(stopped), list(fresh)
    assert as_lists(resumed) == as_lists(rest)
    assert fresh.position() == stopped.position()
    assert fresh.skipped == stopped.skipped
    fresh.seek(position)  # back again
    assert as_lists(fresh) == as_lists(rest)
    return taken + rest
