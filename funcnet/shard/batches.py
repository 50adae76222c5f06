"""Batches on a mesh: global arrays, each process with the rows that its devices hold."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from funcnet.errors import DTypeError, ShapeError, describe
from funcnet.shard.layout import check_axis, mesh_of
from funcnet.train._check import iterable, own
from funcnet.train.cursor import Position
from funcnet.train.cursor import place as position_of
from funcnet.train.wrap import refuse_placeless

__all__ = ["Placed", "place"]


def place(batches: Iterable[PyTree], over: str | Sequence[str] = ("data",), mesh: Any = None) -> "Placed":
    """Put batches on a mesh: their first axis, the examples, split over one of its axes or several.

    Every process gives the same iterator of the same global batches, and holds the rows of its devices: the
    order does not depend on the number of processes or devices. Of `train.batches` and `train.tokens` a
    process reads only these rows; but with a `transform`, whose draws are those of the whole batch, with
    `skip_bad`, and of any other iterable it reads whole batches, and keeps its rows. A number stays whole.

    Args:
        batches: any iterable of batches, trees of NumPy or JAX arrays: `train.batches`, `tokens`, `mapped`,
            `prefetch`, `stateful`, a list. NumPy arrays are copied. (`prefetch(place(...))` puts on the mesh
            what its thread reads; in `place(prefetch(...))` the thread reads whole batches: `put=False`.)
        over: axes of the mesh; none: every device has the whole batch.
        mesh: of `jax.make_mesh`; None: the one that is set now, in this thread.

    Returns:
        An iterator of trees of global arrays; it has `position` and `seek` if `batches` has, and `skipped`.

    Raises:
        ValueRangeError: there is no mesh, or it lacks the axis.
        DTypeError: `batches` is no iterable of batches, or `over` is no name.
        ShapeError: from the iterator, which then stands before that batch: it does not divide.

    >>> from funcnet.train import batches
    >>> with jax.set_mesh(jax.make_mesh((1, 1), ("data", "tensor"))):
    ...     placed = place(batches(np.arange(8.0), 4, seed=0))
    >>> jax.typeof(next(placed))
    ShapedArray(float32[4@data])
    """
    mesh = mesh_of("shard.place", mesh)
    axes = (over,) if isinstance(over, str) else over
    if not isinstance(axes, list | tuple) or not all(isinstance(axis, str) for axis in axes):
        raise DTypeError(
            "shard.place: over is no name.",
            path="over",
            expected='an axis of the mesh, or several: ("data",)',
            actual=describe(over),
        )
    for axis in axes:
        check_axis("shard.place", "over", axis, mesh)
    return Placed(iter(iterable("shard.place", batches)), tuple(axes), mesh)


class Placed(Iterator[PyTree]):
    """An iterator that `place` returns."""

    def __init__(self, source: Iterator[PyTree], over: tuple[str, ...], mesh: Any):
        self._source, self._over = source, over
        self._split, self._whole = jax.NamedSharding(mesh, jax.P(over)), jax.NamedSharding(mesh, jax.P())
        self._parts = int(np.prod([mesh.shape[axis] for axis in over]))
        self._lock = threading.Lock()

    def __next__(self) -> PyTree:
        with self._lock:
            before = position_of(self._source)
            try:
                part = getattr(self._source, "part", None)
                if part is None:
                    return jax.tree.map(self._of_whole, own("shard.place", next(self._source)))
                size, pieces = part(lambda size: [] if size % self._parts else self._rows(size))
                self._check(size, f"{size} examples")
                starts = [start for start, _ in self._rows(size)]
                return jax.tree.map(lambda *leaf: self._of_parts(size, _Parts(starts, leaf)), *pieces)
            except ShapeError:
                if before is not None:
                    self._source.seek(before)  # pyright: ignore[reportAttributeAccessIssue]
                raise

    def _rows(self, size: int) -> list[tuple[int, int]]:
        """Which rows of a batch the devices of this process hold: each once, neighbours together."""
        found = list[tuple[int, int]]()
        for start, stop in sorted({_range(at[0], size) for at in _indices(self._split, size)}):
            if found and found[-1][1] == start:
                found[-1] = found[-1][0], stop
            else:
                found.append((start, stop))
        return found

    def _check(self, size: int, what: str) -> None:
        if size % self._parts:
            raise ShapeError(
                "shard.place: a batch does not divide over the devices.",
                path="batches",
                expected=f"a multiple of {self._parts} examples: the mesh has {self._parts} devices along "
                f"{', '.join(self._over)}",
                actual=what,
                hint=f"a size of {size - size % self._parts or self._parts}",
            )

    def _of_whole(self, leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            raise DTypeError(
                "shard.place: a batch lies on several processes already.",
                path="batches",
                expected="arrays of this process, the same on all",
                actual=f"{describe(leaf)} over {leaf.sharding.mesh.shape}",  # pyright: ignore
            )
        array = np.asarray(leaf)
        if array.ndim:
            self._check(len(array), describe(leaf))
        return jax.make_array_from_callback(
            array.shape, self._split if array.ndim else self._whole, lambda at: array[at]
        )

    def _of_parts(self, size: int, parts: "_Parts") -> Any:
        shape = (size, *parts.arrays[0].shape[1:])
        rows: Callable[[Any], np.ndarray] = lambda at: parts.rows(*_range(at[0], size))
        return jax.make_array_from_callback(shape, self._split, rows)

    @property
    def skipped(self) -> int:
        """Batches left out up to here."""
        return getattr(self._source, "skipped", 0)

    @property
    def position(self) -> Callable[[], Position]:
        """`position()`: the place of the batch that comes next."""
        refuse_placeless("shard.place", self._source)
        return self._position

    @property
    def seek(self) -> Callable[[Mapping[str, Any]], None]:
        """`seek(position)`: go there."""
        refuse_placeless("shard.place", self._source)
        return self._seek

    def _position(self) -> Position:
        with self._lock:
            found = position_of(self._source)
            assert found is not None
            return found

    def _seek(self, position: Mapping[str, Any]) -> None:
        with self._lock:
            self._source.seek(position)  # pyright: ignore[reportAttributeAccessIssue]


class _Parts(NamedTuple):
    """Pieces of an array along its first axis, and where each begins."""

    starts: list[int]
    arrays: Sequence[np.ndarray]

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows that lie in one piece."""
        i = max(i for i, begin in enumerate(self.starts) if begin <= start)
        return self.arrays[i][start - self.starts[i] : stop - self.starts[i]]


def _indices(sharding: Any, size: int) -> list[tuple[slice, ...]]:
    return list(sharding.addressable_devices_indices_map((size,)).values())


def _range(rows: slice, size: int) -> tuple[int, int]:
    start, stop, _ = rows.indices(size)
    return start, stop
