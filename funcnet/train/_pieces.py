"""A checkpoint on the disk: a folder of pieces, files as `store` writes them, and an index, written last.

Every byte is under a SHA-256: those of the tensors are in their piece's header, the header's in the index,
and the index has its own. `docs/store.md` states the format.

What is copied, written and read are boxes of leaves: of an array that is split over devices, what one device
holds. So no process ever needs more of an array than its own devices do.
"""

import math
import os
import re
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from importlib import metadata
from io import BufferedReader
from platform import python_version
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funcnet._safetensors import (
    CODE_OF,
    is_text,
    json_bytes,
    open_file,
    parse_json,
    refusal,
    sync_folder,
    write_file,
)
from funcnet._tensors import (
    AS_BYTES,
    Tensor,
    array_and_note,
    children,
    file_chunks,
    leaf_of,
    leaf_type,
    listing,
    place,
    read_bytes,
    read_tensors,
    seal,
    sealed,
    stored,
    tensor_name,
)
from funcnet.errors import DTypeError, StructureError, ValueRangeError

PIECE = 64 * 2**20  # bytes of a file, at most
INDEX = "index.json"
_MOST_TENSORS = 10_000  # in a piece: its header has a limit, too
_MOST_INDEX = 2**28  # bytes; two million boxes: 500 leaves, each split over 4,000 devices
_MAX_DEPTH = 100  # containers within containers
_VERSION = 1
_THREADS = 4  # that read pieces, at most; hashing is what takes the time
_ALIGNED = 64  # bytes


class Leaf(NamedTuple):
    """What an index says of a leaf of the state.

    Attributes:
        array: shape and dtype of the array that stands for it.
        note: "key", a typed key's implementation, or "python", a number's type; else empty.
        weak: whether JAX's type of it is weak.
    """

    array: jax.ShapeDtypeStruct
    note: dict[str, str]
    weak: bool

    @property
    def type(self) -> jax.ShapeDtypeStruct | type:
        """What it is in the state."""
        return leaf_type(np.dtype(self.array.dtype), self.array.shape, self.note)


class Part(NamedTuple):
    """A box of a leaf, which begins at `start`: what a tensor of a piece is."""

    leaf: str
    start: tuple[int, ...]
    shape: tuple[int, ...]

    @classmethod
    def at(cls, leaf: str, index: tuple[slice, ...], shape: tuple[int, ...]) -> "Part":
        """The box that `index` takes of a leaf of `shape`; of axes that it does not name, all.

        >>> Part.at("w", (slice(2, 4),), (4, 3))
        Part(leaf='w', start=(2, 0), shape=(2, 3))
        """
        slices = (*index, *[slice(None)] * (len(shape) - len(index)))
        bounds = [at.indices(size)[:2] for at, size in zip(slices, shape, strict=True)]
        return cls(leaf, tuple(begin for begin, _ in bounds), tuple(end - begin for begin, end in bounds))

    @property
    def slices(self) -> tuple[Any, ...]:
        """The box as an index; never without an axis, so that it gives a view."""
        pairs = zip(self.start, self.shape, strict=True)
        return (*(slice(begin, begin + length) for begin, length in pairs), ...)

    def within(self, other: "Part") -> "Part":
        """The box as one of `other`, which holds it."""
        start = tuple(mine - theirs for mine, theirs in zip(self.start, other.start, strict=True))
        return self._replace(start=start)

    def meet(self, other: "Part") -> "Part | None":
        """What it has in common with another box of the leaf; None: no element."""
        axes = [*zip(self.start, self.shape, other.start, other.shape, strict=True)]
        begins = tuple(max(mine, theirs) for mine, _, theirs, _ in axes)
        ends = (min(mine + length, theirs + other) for mine, length, theirs, other in axes)
        shape = tuple(end - begin for begin, end in zip(begins, ends, strict=True))
        return Part(self.leaf, begins, shape) if all(length > 0 for length in shape) else None


class Piece(NamedTuple):
    """A file: its name, the SHA-256 of its header, and its tensors."""

    file: str
    sha256: str
    tensors: dict[str, Part]


class Index(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        step: of the run.
        seconds: that the run has taken.
        position: of the data, as `batches.position()` gave it.
        log: the path of the run's log, from the folder of checkpoints, and its length in bytes.
        record: the step's record.
        config: the caller's.
        versions: of Python and of the packages that wrote it.
        nodes: the class of each node of the state, by its path.
        leaves: its leaves, by their path.
        pieces: the files.
    """

    step: int
    seconds: float
    position: dict[str, Any] | None
    log: tuple[str, int] | None
    record: dict[str, Any]
    config: Any
    versions: dict[str, str]
    nodes: dict[str, str]
    leaves: dict[str, Leaf]
    pieces: list[Piece]


# What is kept of a leaf: what it is, and copies of the boxes that this process writes.
Kept = tuple[Leaf, dict[Part, np.ndarray]]


@cache
def versions() -> dict[str, str]:
    """Of Python and of the packages on which the numbers depend."""
    names = ("funcnet", "jax", "jaxlib", "numpy", "optax")
    found = {"python": python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # run from its source
            found[name] = "unknown"
    return found


# --- the state --------------------------------------------------------------------------------------------


def survey(where: str, tree: Any, *, stored: bool = True) -> tuple[dict[str, Any], dict[str, str]]:
    """The leaves of `tree` by name, in JAX's order, and the class of each of its nodes.

    Raises:
        StructureError: something in it has no name of its own, or, if it is to be `stored`, cannot be; the
            text lists all of that.
    """
    leaves: dict[str, Any] = {}
    nodes: dict[str, str] = {}
    problems: list[str] = []

    def walk(node: Any, parts: tuple[str, ...]) -> None:
        name, below = tensor_name(parts), children(node)
        if name in leaves or name in nodes or not is_text(name):
            problems.append(f"{place(parts)}: the name is not valid Unicode, or that of another part")
        elif below is None:
            leaves[name] = node
            if stored and (problem := _unfit(node)):
                problems.append(f"{place(parts)}: {problem}")
        elif len(parts) == _MAX_DEPTH:
            problems.append(f"{place(parts)}: nested deeper than {_MAX_DEPTH} containers")
        else:
            nodes[name] = "None" if node is None else f"{type(node).__module__}.{type(node).__qualname__}"
            for _, part, child in below:
                walk(child, (*parts, part))

    walk(tree, ())
    if problems:
        raise StructureError(listing(f"{where}: the state cannot be stored", problems), path="state")
    return leaves, nodes


def _unfit(leaf: Any) -> str | None:
    """Why a leaf cannot be stored."""
    try:
        array_and_note(leaf)
    except DTypeError as error:
        return str(error)
    return None


def to_host(leaves: Mapping[str, Any], kept: Mapping[str, Kept], *, first: bool = True) -> dict[str, Kept]:
    """Copies in host memory of what this process writes of the leaves, in that of `kept` where they fit.

    Args:
        leaves: of the state, by name.
        kept: what it gave the last time.
        first: whether this is the first process, which writes what each process has for itself.
    """
    copies = {}
    for name, leaf in leaves.items():
        known, buffers = kept.get(name, (None, {}))
        array, weak = leaf, getattr(leaf, "weak_type", False)
        if (
            known is None
            or not isinstance(leaf, jax.Array)
            or (known.array.shape, known.array.dtype, known.weak) != (leaf.shape, leaf.dtype, weak)
        ):
            array, note = array_and_note(leaf)
            known = Leaf(jax.ShapeDtypeStruct(array.shape, array.dtype), note, weak)
        boxes = held(name, array, first)
        copies[name] = known, {part: _copy(box, buffers.get(part)) for part, box in boxes.items()}
    return copies


def held(name: str, array: Any, first: bool) -> dict[Part, Any]:
    """The boxes of an array that are this process's to write: over all processes each element is in one."""
    alone = not isinstance(array, jax.Array) or array.is_fully_addressable
    if alone and not first:
        return {}
    if not alone or (isinstance(array, jax.Array) and len(array.sharding.device_set) > 1):
        shards = (shard for shard in array.addressable_shards if shard.replica_id == 0)
        return {Part.at(name, shard.index, array.shape): shard.data for shard in shards}
    return {Part.at(name, (), array.shape): array}


def _copy(array: Any, buffer: np.ndarray | None) -> np.ndarray:
    """Copy an array; a view is not enough, since the next step reuses the memory of its state."""
    fits = buffer is not None and (buffer.shape, buffer.dtype) == (array.shape, array.dtype)
    copy = buffer if buffer is not None and fits else np.empty(array.shape, array.dtype)
    np.copyto(_bits(copy), _bits(np.asarray(array)))
    return copy


def _bits(array: np.ndarray) -> np.ndarray:
    """`array`; of types that NumPy does not have, as integers: it copies those as memory."""
    return array if array.dtype.isbuiltin == 1 else array.view(f"u{array.dtype.itemsize}")


# The boxes of a leaf that this process needs, by the device for which; None: for none in particular.
Needed = dict[jax.Device | None, Part]


def needed(name: str, leaf: Leaf, wanted: Any) -> Needed:
    """What this process needs of a leaf to have it where `wanted` is.

    Raises:
        ValueRangeError: `wanted` is split over a mesh that is only described, and no such one is set.
    """
    sharding = _sharding(name, leaf, wanted)
    if sharding is None or leaf.weak:
        return {None: Part.at(name, (), leaf.array.shape)}
    places = sharding.addressable_devices_indices_map(wanted.shape)
    return {device: Part.at(name, index or (), leaf.array.shape) for device, index in places.items()}


def _sharding(name: str, leaf: Leaf, wanted: Any) -> jax.sharding.Sharding | None:
    """Where a leaf shall lie; None: in the memory of the host, or on the default device."""
    if isinstance(wanted, np.ndarray | np.generic) or "python" in leaf.note:
        return None
    sharding = wanted.sharding if getattr(wanted, "committed", True) else None
    if not isinstance(sharding, jax.NamedSharding) or isinstance(sharding.mesh, jax.sharding.Mesh):
        return sharding
    mesh = jax.sharding.get_mesh()  # what eval_shape gives knows the mesh's axes alone
    if mesh.axis_sizes != sharding.mesh.axis_sizes or mesh.axis_names != sharding.mesh.axis_names:
        raise ValueRangeError(
            f"train.Checkpoints.restore: {name!r} is split over a mesh without devices.",
            path=name,
            expected=f"jax.set_mesh of {dict(sharding.mesh.shape)}, or arrays of a mesh",
            actual="no mesh is set" if mesh.empty else f"set is {dict(mesh.shape)}",
        )
    return jax.NamedSharding(mesh, sharding.spec)


def placed(
    arrays: Mapping[Part, np.ndarray], leaves: Mapping[str, Leaf], like: Mapping[str, Any]
) -> dict[str, Any]:
    """The leaves of `like`, each where and what it is there, of the boxes that it needs of them."""
    placed: dict[str, Any] = {}
    anywhere: dict[str, Any] = {}
    shards: dict[str, list[np.ndarray]] = {}
    devices: dict[str, list[jax.sharding.Sharding]] = {}  # of the shards
    shardings: dict[str, jax.sharding.Sharding] = {}
    for name, wanted in like.items():
        leaf, sharding = leaves[name], _sharding(name, leaves[name], wanted)
        boxes = {device: arrays[part] for device, part in needed(name, leaf, wanted).items()}
        if isinstance(wanted, np.ndarray | np.generic) or "python" in leaf.note:
            array = leaf_of(boxes[None], leaf.note, as_numpy=True)
            placed[name] = array[()] if isinstance(wanted, np.generic) else array
        elif sharding is None:
            anywhere[name] = (
                _weak(boxes[None]) if leaf.weak else leaf_of(boxes[None], leaf.note, not leaf.note)
            )
        elif leaf.weak:
            if sharding.is_fully_addressable:
                placed[name] = jax.device_put(_weak(boxes[None]), sharding)
            else:  # device_put knows only devices of this process
                placed[name] = jax.jit(_weak, out_shardings=sharding)(boxes[None])
        else:
            kind = sharding.memory_kind
            shards[name], shardings[name] = [*boxes.values()], sharding
            devices[name] = [jax.sharding.SingleDeviceSharding(device, memory_kind=kind) for device in boxes]
    for name, arrays_of in jax.device_put(shards, devices).items():
        note = leaves[name].note
        parts = [leaf_of(array, note, as_numpy=False) for array in arrays_of] if note else arrays_of
        placed[name] = jax.make_array_from_single_device_arrays(like[name].shape, shardings[name], parts)
    return {**placed, **jax.device_put(anywhere)}


def _weak(array: np.ndarray | jax.Array) -> jax.Array:
    """`array` of the weak type that Python's numbers have; to set elements keeps it."""
    return jnp.broadcast_to(jnp.asarray(array.dtype.type(0).item()), array.shape).at[...].set(array)


# --- write ------------------------------------------------------------------------------------------------


def write(
    folder: str, leaves: Mapping[str, Leaf], boxes: Mapping[Part, np.ndarray], name: str
) -> list[Piece]:
    """Write boxes of leaves to new files of `folder`, pieces ``name-00000`` and so on, and read them back.

    Raises:
        FileFormatError: what is read is not what was written.
        OSError: it cannot be written.
    """
    pieces = []
    for number, tensors in enumerate(_cut(leaves, boxes)):
        file, notes = f"{name}-{number:05}.safetensors", {tensor: {} for tensor in tensors}
        parts = {tensor: stored(array, notes[tensor]) for tensor, (_, array) in tensors.items()}
        target = os.path.join(folder, file)
        digest, chunks = file_chunks(target, parts, _tree(tensors), notes)
        write_file(target, chunks)
        pieces.append(Piece(file, digest, {tensor: part for tensor, (part, _) in tensors.items()}))
    check(folder, leaves, pieces, cached=False)
    return pieces


def write_index(folder: str, index: Index) -> None:
    """Write the index of `folder`, whose pieces are there, and read it back; all synced to the disk.

    Raises:
        ValueRangeError: it is too long.
        FileFormatError: its pieces do not make up the leaves, or what is read is not what was written.
        OSError: it cannot be written.
    """
    _write_sealed(os.path.join(folder, INDEX), _to_json(index))
    sync_folder(folder)
    read_index(folder, index.step)


def write_share(folder: str, name: str, step: int, pieces: list[Piece]) -> None:
    """Write down, for the process that writes the index, which pieces this one has written; synced."""
    _write_sealed(os.path.join(folder, f"{name}.json"), {"step": step, "pieces": _pieces_to_json(pieces)})
    sync_folder(folder)


def read_share(folder: str, name: str, step: int, leaves: Mapping[str, Leaf]) -> list[Piece]:
    """What `write_share` wrote, once the headers of its pieces are known to be there.

    Raises:
        FileFormatError: that, or a piece, is damaged, or of another step.
        OSError: it is missing.
    """
    source = os.path.join(folder, f"{name}.json")
    content = _read_sealed(source)
    try:
        pieces = [_piece(row, leaves) for row in content["pieces"]]
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise refusal(source, f"it is malformed: {error!r:.200}.") from error
    if content["step"] != step:
        raise refusal(source, "it is of another step.", expected=f"step {step}", actual=f"{content['step']}")
    for piece in pieces:
        _read_piece(folder, piece, leaves, {})
    return pieces


def _write_sealed(target: str, content: dict[str, Any]) -> None:
    """Write JSON that begins with its own SHA-256."""
    _, text = seal(json_bytes({"sha256": "0" * 64, "version": _VERSION, **content}))
    if len(text) > _MOST_INDEX:
        raise ValueRangeError(
            "train.Checkpoints: the index is too long.",
            path="state",
            expected=f"at most {_MOST_INDEX} bytes",
            actual=f"{len(text)} bytes",
        )
    write_file(target, [text])


def _cut(
    leaves: Mapping[str, Leaf], boxes: Mapping[Part, np.ndarray]
) -> Iterator[dict[str, tuple[Part, np.ndarray]]]:
    """The tensors of each piece, in the order of the boxes."""
    piece: dict[str, tuple[Part, np.ndarray]] = {}
    left = PIECE
    for box, array in boxes.items():
        header = 1024 + 8 * len(box.leaf)  # what a tensor takes in it, at most
        for start, shape in _boxes(array.shape, array.dtype.itemsize, PIECE - header):
            size = math.prod(shape) * array.dtype.itemsize + header
            if piece and (size > left or len(piece) == _MOST_TENSORS):
                yield piece
                piece, left = {}, PIECE
            within = Part(box.leaf, start, shape)
            part = within._replace(start=tuple(map(sum, zip(box.start, start, strict=True))))
            whole = shape == leaves[box.leaf].array.shape
            name = box.leaf if whole else f"{box.leaf}.@{','.join(map(str, part.start))}"
            piece[name] = part, array[within.slices]
            left -= size
    if piece:
        yield piece


def _boxes(
    shape: tuple[int, ...], itemsize: int, most: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Start and shape of boxes that make up an array, each of at most `most` bytes, and contiguous.

    >>> list(_boxes((5, 2), 1, 4)), list(_boxes((2, 3), 1, 2))[:2]
    ([((0, 0), (2, 2)), ((2, 0), (2, 2)), ((4, 0), (1, 2))], [((0, 0), (1, 2)), ((0, 2), (1, 1))])
    """
    if not shape or math.prod(shape) * itemsize <= most:
        yield (0,) * len(shape), shape
        return
    rows = most // (math.prod(shape[1:]) * itemsize)
    if rows:
        for begin in range(0, shape[0], rows):
            yield (begin, *[0] * len(shape[1:])), (min(rows, shape[0] - begin), *shape[1:])
        return
    for row in range(shape[0]):
        for start, box in _boxes(shape[1:], itemsize, most):
            yield (row, *start), (1, *box)


def _tree(names: Collection[str]) -> dict[str, Any]:
    """The names of a piece as nested dicts, so that `load` opens the file."""
    tree: dict[str, Any] = {}
    for name in names:
        *parents, last = (part.replace("~1", ".").replace("~0", "~") for part in name.split("."))
        node = tree
        for parent in parents:
            node = node.setdefault("dict", {}).setdefault(parent, {})
        node.setdefault("dict", {})[last] = "leaf"
    return tree


def _to_json(index: Index) -> dict[str, Any]:
    leaves = {
        name: {
            "dtype": leaf.array.dtype.name,
            "shape": leaf.array.shape,
            **leaf.note,
            **({"weak": True} if leaf.weak else {}),
        }
        for name, leaf in index.leaves.items()
    }
    return {**index._asdict(), "leaves": leaves, "pieces": _pieces_to_json(index.pieces)}


def _pieces_to_json(pieces: list[Piece]) -> list[dict[str, Any]]:
    return [
        {**piece._asdict(), "tensors": {name: part._asdict() for name, part in piece.tensors.items()}}
        for piece in pieces
    ]


# --- read -------------------------------------------------------------------------------------------------


def read_index(folder: str, step: int) -> Index:
    """The index of `folder`, whose name says that it is of `step`.

    Raises:
        FileFormatError: it is damaged, of another step, or of a later version.
        OSError: it is missing, or cannot be read.
    """
    if os.path.islink(folder) or not os.path.isdir(folder):
        raise refusal(folder, "this is not a folder." if os.path.lexists(folder) else "it is gone.")
    source = os.path.join(folder, INDEX)
    content = _read_sealed(source)
    try:
        index = _from_json(content)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise refusal(source, f"the index is malformed: {error!r:.200}.") from error
    if index.step != step:
        expected, actual = f"step {step}", f"step {index.step}"
        raise refusal(source, "this is the index of another step.", expected=expected, actual=actual)
    return index


def _read_sealed(source: str) -> dict[str, Any]:
    """What `_write_sealed` wrote, without its checksum and version."""
    with _open(source) as file:
        size = os.fstat(file.fileno()).st_size
        text = file.read() if size <= _MOST_INDEX else b""
    stated = re.match(rb'{"sha256":"([0-9a-f]{64})",', text)
    if stated is None:
        raise refusal(source, "this is no index of a checkpoint, or too long.", actual=f"{size} bytes")
    digest = stated[1].decode()
    if (computed := sealed(text, digest)) != digest:
        expected, actual = f"SHA-256 {digest}", f"SHA-256 {computed}"
        raise refusal(source, "the index is damaged.", expected=expected, actual=actual)
    content = parse_json(text, "the index", source)
    version = content.pop("version", None)
    if type(version) is not int or version > _VERSION:
        hint = "upgrade funcnet" if type(version) is int else None
        raise refusal(
            source, "another version.", expected=f"version {_VERSION}", actual=f"{version!r:.60}", hint=hint
        )
    del content["sha256"]
    return content


def _from_json(content: dict[str, Any]) -> Index:
    """The index in `content`. TypeError, ValueError, KeyError or AttributeError: it is none."""
    leaves = {name: _leaf(dict(row)) for name, row in content.pop("leaves").items()}
    pieces = [_piece(row, leaves) for row in content.pop("pieces")]
    index = Index(**content, leaves=leaves, pieces=pieces)
    kinds = {
        "step": int,
        "seconds": int | float,
        "position": dict | None,
        "log": list | None,
        "record": dict,
        "versions": dict,
        "nodes": dict,
    }
    for name, kind in kinds.items():
        if not isinstance(getattr(index, name), kind):
            raise TypeError(f"{name} is {getattr(index, name)!r:.60}")
    if len({piece.file for piece in pieces}) < len(pieces):
        raise ValueError("a piece is there twice")
    _check_cover(leaves, pieces)
    if index.log is None:
        return index
    path, size = index.log
    if type(size) is not int or size < 0 or os.path.basename(path) != "metrics.jsonl" or "\0" in path:
        raise ValueError(f"log is {index.log!r:.60}")
    return index._replace(log=(path, size))


def _leaf(row: dict[str, Any]) -> Leaf:
    name, shape, weak = row.pop("dtype"), row.pop("shape"), row.pop("weak", False)
    if name not in CODE_OF and name not in AS_BYTES:
        raise ValueError(f"unknown dtype {name!r:.60}")
    if row.keys() - {"key", "python"} or not all(isinstance(value, str) for value in row.values()):
        raise ValueError(f"a leaf has {row!r:.60}")
    leaf = Leaf(jax.ShapeDtypeStruct(_sizes(shape), jnp.dtype(name)), row, weak is True)
    _ = leaf.type  # it must have one
    return leaf


def _piece(row: dict[str, Any], leaves: Mapping[str, Leaf]) -> Piece:
    file, sha256, tensors = row["file"], row["sha256"], {}
    if len(row) > 3 or not re.fullmatch(r"piece-[0-9]+(-[0-9]+)*\.safetensors", file):  # never a path
        raise ValueError(f"a piece is {file!r:.60}")
    for name, entry in row["tensors"].items():
        part = Part(entry["leaf"], _sizes(entry["start"]), _sizes(entry["shape"]))
        triples = zip(part.start, part.shape, leaves[part.leaf].array.shape, strict=True)
        if any(begin + length > whole for begin, length, whole in triples):
            raise ValueError(f"tensor {name!r} is out of its leaf")
        tensors[name] = part
    return Piece(file, sha256, tensors)


def _sizes(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(n) is int and 0 <= n < 2**63 for n in value):
        raise ValueError(f"{value!r:.60} is no list of sizes")
    return tuple(value)


def _check_cover(leaves: Mapping[str, Leaf], pieces: list[Piece]) -> None:
    """ValueError: there is an element that no tensor holds, or two do."""
    boxes: dict[str, list[Part]] = {name: [] for name in leaves}
    for piece in pieces:
        for part in piece.tensors.values():
            boxes[part.leaf].append(part)
    for name, parts in boxes.items():
        size = sum(math.prod(part.shape) for part in parts)
        if not parts or size != math.prod(leaves[name].array.shape) or (len(parts) > 1 and _overlap(parts)):
            raise ValueError(f"the tensors of {name!r} do not make it up")


def _overlap(parts: list[Part]) -> bool:
    """Whether two boxes do; those that begin before another ends along one axis are compared with it."""
    begins = np.array([part.start for part in parts])
    ends = begins + np.array([part.shape for part in parts])
    axis = max(range(begins.shape[1]), key=lambda axis: len(np.unique(begins[:, axis])))
    order = np.argsort(begins[:, axis], kind="stable")
    begins, ends = begins[order], ends[order]
    upto = np.searchsorted(begins[:, axis], ends[:, axis])
    return any(
        np.all((begins[i + 1 : upto[i]] < ends[i]) & (begins[i] < ends[i + 1 : upto[i]]), axis=1).any()
        for i in range(len(parts))
    )


def read(folder: str, index: Index, wanted: Collection[Part]) -> dict[Part, np.ndarray]:
    """The boxes `wanted`, of the pieces in which there is something of them; every byte of them is checked.

    Raises:
        FileFormatError: a piece is damaged, or no file, or not the one that the index names.
        OSError: it is missing, or cannot be read.
    """
    boxes: dict[str, dict[Part, np.ndarray]] = {}
    for part in wanted:
        array = _empty(jax.ShapeDtypeStruct(part.shape, index.leaves[part.leaf].array.dtype))
        boxes.setdefault(part.leaf, {})[part] = array
    pieces = [piece for piece in index.pieces if any(map(partial(_meeting, boxes), piece.tensors.values()))]
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        reads = [pool.submit(_read_piece, folder, piece, index.leaves, boxes) for piece in pieces]
        try:
            for done in reads:
                done.result()
        finally:
            pool.shutdown(cancel_futures=True)
    return {part: array for found in boxes.values() for part, array in found.items()}


def check(folder: str, leaves: Mapping[str, Leaf], pieces: list[Piece], *, cached: bool = True) -> None:
    """Read every byte of some pieces, and keep nothing.

    Args:
        folder: the checkpoint.
        leaves: those of its index.
        pieces: of its index.
        cached: False: read from the disk itself what the system still has in memory, where it can.

    Raises:
        FileFormatError, OSError: as `read`.
    """
    for piece in pieces:
        _read_piece(folder, piece, leaves, None, cached)


def _meeting(boxes: Mapping[str, Mapping[Part, np.ndarray]], part: Part) -> list[tuple[Part, Part]]:
    """The boxes that have something in common with a part, and what."""
    pairs = ((box, box.meet(part)) for box in boxes.get(part.leaf, ()))
    return [(box, common) for box, common in pairs if common is not None]


def _empty(like: jax.ShapeDtypeStruct) -> np.ndarray:
    """An array that begins where JAX on a CPU wants it: it takes over such memory, and copies other."""
    size = math.prod(like.shape) * like.dtype.itemsize
    memory = np.empty(size + _ALIGNED, np.uint8)
    begin = -memory.ctypes.data % _ALIGNED
    return memory[begin : begin + size].view(like.dtype).reshape(like.shape)


def _read_piece(
    folder: str,
    piece: Piece,
    leaves: Mapping[str, Leaf],
    boxes: Mapping[str, Mapping[Part, np.ndarray]] | None,
    cached: bool = True,
) -> None:
    """Check a piece, and put its tensors into the boxes; what is in none is not read.

    Args:
        folder: the checkpoint.
        piece: what the index says of it.
        leaves: those of the index.
        boxes: by leaf; None: read everything, and keep nothing.
        cached: False: read from the disk itself what the system still has in memory, where it can.
    """
    source = os.path.join(folder, piece.file)
    with _open(source) as file:
        if not cached and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        for name, tensor in _tensors(file, source, piece, leaves).items():
            if boxes is None:
                read_bytes(file, name, tensor, source)
                continue
            part = piece.tensors[name]
            meeting = _meeting(boxes, part)
            if not meeting:
                continue
            into = [boxes[part.leaf][box][common.within(box).slices] for box, common in meeting]
            direct = len(into) == 1 and into[0].shape == part.shape and into[0].flags.c_contiguous
            whole = into[0] if direct else np.empty(part.shape, into[0].dtype)
            read_bytes(file, name, tensor, source, whole.reshape(-1).view(np.uint8))
            for array, (_, common) in () if direct else zip(into, meeting, strict=True):
                np.copyto(_bits(array), _bits(whole[common.within(part).slices]))


def _tensors(
    file: BufferedReader, source: str, piece: Piece, leaves: Mapping[str, Leaf]
) -> dict[str, Tensor]:
    """The tensors of a piece, which are those that the index says."""
    tensors, info = read_tensors(file, source)
    stated = None if info is None else info["sha256"]
    if stated != piece.sha256:
        expected, actual = f"SHA-256 {piece.sha256}", f"SHA-256 {stated}"
        raise refusal(source, "this is not the piece of the index.", expected=expected, actual=actual)
    for name in sorted(tensors.keys() ^ piece.tensors.keys()):
        where = "the index lacks it" if name in tensors else "it is missing"
        raise refusal(source, f"tensor {name!r}: {where}.", name)
    for name, tensor in tensors.items():
        part = piece.tensors[name]
        wanted = jax.ShapeDtypeStruct(part.shape, leaves[part.leaf].array.dtype)
        if tensor.leaf != wanted:
            raise refusal(source, f"tensor {name!r} is not what the index says.", name)
    return tensors


def _open(source: str) -> BufferedReader:
    if os.path.islink(source):
        raise refusal(source, "this is a symbolic link.")
    return open_file(source)
