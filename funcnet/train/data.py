"""Batches from arrays that fit in memory."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any, SupportsIndex

import jax
import numpy as np
from jaxtyping import Int, PyTree

from funcnet.errors import DTypeError, ShapeError, StructureError, ValueRangeError, describe
from funcnet.train._check import shown, whole
from funcnet.train.cursor import Cursor, Transform, over

# Of each array a fingerprint sees so many pieces of so many numbers, spread over it.
_PIECES, _PIECE = 64, 1024


def batches(
    arrays: PyTree,
    size: SupportsIndex,
    *,
    seed: SupportsIndex,
    epochs: SupportsIndex | None = None,
    drop_remainder: bool = True,
    transform: Transform | None = None,
    skip_bad: SupportsIndex = 0,
) -> Cursor:
    """Shuffled batches for training, with a position.

    The order is a function of `seed` and the number of the epoch alone: the same in every process, on every
    machine and version of NumPy, and independent of how many batches were taken before. Within an epoch no
    example comes twice.

    If `size` does not divide the number of examples, the remainder of an epoch is left out: a smaller batch
    at its end would make a jitted step compile again. The next epoch, in another order, leaves out others.

    Args:
        arrays: a pytree of NumPy or JAX arrays, whose first axes are equally long: one entry per example.
            JAX arrays are taken to the host once.
        size: examples per batch.
        seed: of the order; not negative.
        epochs: how often to go through the examples; None: without end.
        drop_remainder: False keeps the smaller batch at the end of each epoch.
        transform: `transform(batch, rng)` gives the batch in its place: augmentation on the host. `rng` is a
            `np.random.Generator`, a function of the seed, the epoch and the number of the batch, so that a
            resumed run draws the same. The batch is a copy, which it may change.
        skip_bad: leave out so many batches whose transform raises, with a warning each, before the next
            one is an error.

    Returns:
        An iterator of pytrees like `arrays`, of NumPy arrays whose first axis has length `size`. It can be
        used once; `fit` called again goes on where it stopped. Its `position()` is a small dict, which JSON
        can hold, and `seek(position)` goes there, also in another process; `skipped` counts what was left
        out.

    Raises:
        StructureError: there is no array in `arrays`.
        DTypeError: a leaf of `arrays` is none (or is masked), or a number is no integer.
        ShapeError: first axes differ, or an array has none.
        ValueRangeError: no examples, or a size, seed or number of epochs that makes no sense; from `seek`:
            a position in other data.
        RecordError: from the iterator: the transform raised.

    >>> [batch.tolist() for batch in batches(np.arange(7), 3, seed=0, epochs=2)]
    [[1, 4, 5], [6, 2, 0], [6, 2, 3], [1, 0, 4]]
    >>> stopped, again = (batches(np.arange(7), 3, seed=0, epochs=2) for _ in range(2))
    >>> [next(stopped).tolist() for _ in range(3)][-1]
    [6, 2, 3]
    >>> again.seek(stopped.position())
    >>> next(again).tolist()
    [1, 0, 4]
    """
    arrays, n = _examples("batches", arrays)
    seed = whole("train.batches", "seed", seed, 0)

    order = lru_cache(maxsize=1)(partial(_order, n, seed))
    return over(
        "train.batches",
        n,
        size,
        partial(_rows, arrays, order),
        lambda: {"fingerprint": _fingerprint(arrays)},
        seed=seed,
        epochs=epochs,
        drop_remainder=drop_remainder,
        transform=transform,
        skip_bad=skip_bad,
    )


def in_order(arrays: PyTree, size: SupportsIndex) -> Iterator[PyTree]:
    """Every example once, in the order given, for `evaluate`; the last batch may be smaller.

    Arguments and errors are those of `batches`.

    >>> [batch.tolist() for batch in in_order(np.arange(7), 3)]
    [[0, 1, 2], [3, 4, 5], [6]]
    """
    arrays, n = _examples("in_order", arrays)
    length = whole("train.in_order", "size", size, 1)
    return (
        jax.tree.map(lambda array, start=start: array[start : start + length], arrays)
        for start in range(0, n, length)
    )


def _rows(
    arrays: PyTree, order: Callable[[int], Int[np.ndarray, " n"]], epoch: int, start: int, stop: int
) -> PyTree:
    rows = order(epoch)[start:stop]
    return jax.tree.map(lambda array: array[rows], arrays)


def _order(n: int, seed: int, epoch: int) -> Int[np.ndarray, " n"]:
    """A permutation of n examples."""
    # Generator.permutation may change from one NumPy to the next; the raw bits are promised not to.
    bits = np.random.Philox(np.random.SeedSequence(seed, spawn_key=(epoch,)))
    return np.argsort(bits.random_raw(n), kind="stable")


def _fingerprint(arrays: PyTree) -> str:
    """A hash of the types, the shapes and a sample of the numbers of all arrays."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(arrays):
        digest.update(f"{describe(leaf)} ".encode())
        starts = np.linspace(0, max(leaf.size - _PIECE, 0), _PIECES).astype(np.int64)
        places = starts[:, None] + np.arange(_PIECE) if leaf.size > _PIECES * _PIECE else slice(None)
        digest.update(leaf.flat[places.ravel() if isinstance(places, np.ndarray) else places].tobytes())
    return digest.hexdigest()[:32]


def _in_numpy(name: str, path: Any, leaf: Any) -> np.ndarray:
    array = None
    if not isinstance(leaf, np.ma.MaskedArray):
        with contextlib.suppress(Exception):  # another library's: what it is will be refused by its name
            array = np.asarray(leaf)
    if array is None or array.dtype == object:
        path = f"arrays{jax.tree_util.keystr(path)}"
        raise DTypeError(
            f"train.{name}: {path} is no array.",
            path=path,
            expected="NumPy or JAX arrays",
            actual=shown(leaf),
        )
    return array


def _examples(name: str, arrays: PyTree) -> tuple[PyTree, int]:
    """The arrays in NumPy, and how many examples they hold."""
    arrays = jax.tree_util.tree_map_with_path(lambda path, leaf: _in_numpy(name, path, leaf), arrays)
    leaves = [
        (f"arrays{jax.tree_util.keystr(p)}", leaf) for p, leaf in jax.tree_util.tree_leaves_with_path(arrays)
    ]
    if not leaves:
        raise StructureError(
            f"train.{name}: there is no array in arrays.",
            path="arrays",
            expected="a pytree of arrays",
            actual=describe(arrays),
        )
    first_path, first = leaves[0]
    for path, leaf in leaves:
        if leaf.ndim == 0 or leaf.shape[0] != first.shape[0]:
            raise ShapeError(
                f"train.{name}: {path} does not have one entry per example.",
                path=path,
                expected=f"a first axis of length {len(first)}, that of {first_path}"
                if first.ndim
                else "[n, ...]",
                actual=describe(leaf),
            )
    if not len(first):
        raise ValueRangeError(
            f"train.{name}: there are no examples.",
            path=first_path,
            expected="a first axis of length 1 or more",
            actual=describe(first),
        )
    return arrays, len(first)
