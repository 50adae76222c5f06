"""A checkpoint on the disk: a folder of pieces, files as `store` writes them, and an index, written last.

Every byte is under a SHA-256: those of the tensors are in their piece's header, the header's in the index,
and the index has its own. `docs/store.md` states the format.
"""

import math
import os
import re
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import metadata
from io import BufferedReader
from platform import python_version
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funcnet._safetensors import (
    CODE_OF,
    MAX_HEADER,
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
    """A tensor of a piece: the box of a leaf that begins at `start`."""

    leaf: str
    start: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def slices(self) -> tuple[Any, ...]:
        """The box as an index; never without an axis, so that it gives a view."""
        pairs = zip(self.start, self.shape, strict=True)
        return (*(slice(begin, begin + length) for begin, length in pairs), ...)


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
        array, _ = array_and_note(leaf)
    except DTypeError as error:
        return str(error)
    elsewhere = isinstance(array, jax.Array) and not array.is_fully_addressable
    return "a part of this array is on another process" if elsewhere else None


def to_host(
    leaves: Mapping[str, Any], kept: Mapping[str, tuple[np.ndarray, Leaf]]
) -> dict[str, tuple[np.ndarray, Leaf]]:
    """Copies of the leaves in host memory, in that of `kept` where they fit, and what they are."""
    copies = {}
    for name, leaf in leaves.items():
        buffer, known = kept.get(name, (None, None))
        array, weak = leaf, getattr(leaf, "weak_type", False)
        if (
            buffer is None
            or known is None
            or not isinstance(leaf, jax.Array)
            or (buffer.shape, buffer.dtype, known.weak) != (leaf.shape, leaf.dtype, weak)
        ):
            array, note = array_and_note(leaf)
            known = Leaf(jax.ShapeDtypeStruct(array.shape, array.dtype), note, weak)
            if buffer is None or (buffer.shape, buffer.dtype) != (array.shape, array.dtype):
                buffer = np.empty(array.shape, array.dtype)
        _copy(buffer, array)
        copies[name] = buffer, known
    return copies


def _copy(buffer: np.ndarray, array: Any) -> None:
    """Copy an array; a view is not enough, since the next step reuses the memory of its state."""
    if isinstance(array, jax.Array) and len(array.sharding.device_set) > 1:
        for shard in array.addressable_shards:
            if shard.replica_id == 0:
                np.copyto(_bits(buffer[(*shard.index, ...)]), _bits(np.asarray(shard.data)))
    else:
        np.copyto(_bits(buffer), _bits(np.asarray(array)))


def _bits(array: np.ndarray) -> np.ndarray:
    """`array`; of types that NumPy does not have, as integers: it copies those as memory."""
    return array if array.dtype.isbuiltin == 1 else array.view(f"u{array.dtype.itemsize}")


def placed(
    arrays: Mapping[str, np.ndarray], leaves: Mapping[str, Leaf], like: Mapping[str, Any]
) -> dict[str, Any]:
    """The leaves that `arrays` stand for, each where and what it is in `like`."""
    placed: dict[str, Any] = {}
    anywhere: dict[str, Any] = {}
    somewhere: dict[str, tuple[Any, jax.sharding.Sharding]] = {}
    for name, wanted in like.items():
        array, leaf = arrays[name], leaves[name]
        if isinstance(wanted, np.ndarray | np.generic) or "python" in leaf.note:
            array = leaf_of(array, leaf.note, as_numpy=True)
            placed[name] = array[()] if isinstance(wanted, np.generic) else array
            continue
        value = _weak(array) if leaf.weak else leaf_of(array, leaf.note, False) if leaf.note else array
        sharding = wanted.sharding if getattr(wanted, "committed", True) else None
        if sharding is None:
            anywhere[name] = value
        else:
            somewhere[name] = value, sharding
    values, shardings = ({name: pair[i] for name, pair in somewhere.items()} for i in (0, 1))
    return {**placed, **jax.device_put(anywhere), **jax.device_put(values, shardings)}


def _weak(array: np.ndarray) -> jax.Array:
    """`array` of the weak type that Python's numbers have; to set elements keeps it."""
    return jnp.broadcast_to(jnp.asarray(array.dtype.type(0).item()), array.shape).at[...].set(array)


# --- write ------------------------------------------------------------------------------------------------


def write(folder: str, index: Index, arrays: Mapping[str, np.ndarray]) -> None:
    """Fill the empty `folder` with the pieces of `arrays`, then the index; all synced to the disk."""
    pieces = []
    for number, tensors in enumerate(_pieces(arrays)):
        file = f"piece-{number:05}.safetensors"
        notes: dict[str, dict[str, str]] = {name: {} for name in tensors}
        parts = {name: stored(arrays[part.leaf][part.slices], notes[name]) for name, part in tensors.items()}
        target = os.path.join(folder, file)
        digest, chunks = file_chunks(target, parts, _tree(tensors), notes)
        write_file(target, chunks)
        pieces.append(Piece(file, digest, tensors))
    _, text = seal(json_bytes({"sha256": "0" * 64, "version": _VERSION, **_to_json(index, pieces)}))
    if len(text) > MAX_HEADER:
        raise ValueRangeError(
            "train.Checkpoints: the index is too long.",
            path="state",
            expected=f"at most {MAX_HEADER} bytes",
            actual=f"{len(text)} bytes",
        )
    write_file(os.path.join(folder, INDEX), [text])
    sync_folder(folder)


def _pieces(arrays: Mapping[str, np.ndarray]) -> Iterator[dict[str, Part]]:
    """The tensors of each piece, in the order of the leaves."""
    piece: dict[str, Part] = {}
    left = PIECE
    for leaf, array in arrays.items():
        header = 1024 + 8 * len(leaf)  # what a tensor takes in it, at most
        for start, shape in _boxes(array.shape, array.dtype.itemsize, PIECE - header):
            size = math.prod(shape) * array.dtype.itemsize + header
            if piece and (size > left or len(piece) == _MOST_TENSORS):
                yield piece
                piece, left = {}, PIECE
            name = leaf if shape == array.shape else f"{leaf}.@{','.join(map(str, start))}"
            piece[name] = Part(leaf, start, shape)
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


def _to_json(index: Index, pieces: list[Piece]) -> dict[str, Any]:
    leaves = {
        name: {
            "dtype": leaf.array.dtype.name,
            "shape": leaf.array.shape,
            **leaf.note,
            **({"weak": True} if leaf.weak else {}),
        }
        for name, leaf in index.leaves.items()
    }
    files = [
        {**piece._asdict(), "tensors": {name: part._asdict() for name, part in piece.tensors.items()}}
        for piece in pieces
    ]
    return {**index._asdict(), "leaves": leaves, "pieces": files}


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
    with _open(source) as file:
        text = file.read(MAX_HEADER + 1)
    stated = re.match(rb'{"sha256":"([0-9a-f]{64})",', text)
    if stated is None or len(text) > MAX_HEADER:
        raise refusal(source, "this is no index of a checkpoint, or too long.", actual=f"{len(text)} bytes")
    digest = stated[1].decode()
    if (computed := sealed(text, digest)) != digest:
        expected, actual = f"SHA-256 {digest}", f"SHA-256 {computed}"
        raise refusal(source, "the index is damaged.", expected=expected, actual=actual)
    content = parse_json(text, "the index", source)
    version = content.get("version")
    if type(version) is not int or version > _VERSION:
        hint = "upgrade funcnet" if type(version) is int else None
        raise refusal(
            source, "another version.", expected=f"version {_VERSION}", actual=f"{version!r:.60}", hint=hint
        )
    try:
        index = _from_json(content)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise refusal(source, f"the index is malformed: {error!r:.200}.") from error
    if index.step != step:
        expected, actual = f"step {step}", f"step {index.step}"
        raise refusal(source, "this is the index of another step.", expected=expected, actual=actual)
    return index


def _from_json(content: dict[str, Any]) -> Index:
    """The index in `content`. TypeError, ValueError, KeyError or AttributeError: it is none."""
    content = {name: value for name, value in content.items() if name not in ("sha256", "version")}
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
    begins = np.array([part.start for part in parts])
    ends = begins + np.array([part.shape for part in parts])
    pairs = zip(begins, ends, strict=True)
    return any(np.all((begins < end) & (begin < ends), axis=1).sum() > 1 for begin, end in pairs)


def read(folder: str, index: Index, wanted: Collection[str] = (), *, cached: bool = True) -> dict[str, Any]:
    """The arrays of the leaves `wanted`, once every byte of the checkpoint is known to be right.

    Args:
        folder: the checkpoint.
        index: its index.
        wanted: leaves by name; of the others no bytes are kept. If there are any, several threads read.
        cached: False: read from the disk itself what the system still has in memory, where it can.

    Raises:
        FileFormatError: a piece is damaged, or no file, or not the one that the index names.
        OSError: it is missing, or cannot be read.
    """
    arrays = {name: _empty(leaf.array) for name, leaf in index.leaves.items() if name in wanted}
    if not arrays:  # no threads: a program that ends starts none, and its last write is still to be checked
        for piece in index.pieces:
            _read_piece(folder, piece, index, arrays, cached)
        return arrays
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        reads = [pool.submit(_read_piece, folder, piece, index, arrays, cached) for piece in index.pieces]
        try:
            for done in reads:
                done.result()
        finally:
            pool.shutdown(cancel_futures=True)
    return arrays


def _empty(like: jax.ShapeDtypeStruct) -> np.ndarray:
    """An array that begins where JAX on a CPU wants it: it takes over such memory, and copies other."""
    size = math.prod(like.shape) * like.dtype.itemsize
    memory = np.empty(size + _ALIGNED, np.uint8)
    begin = -memory.ctypes.data % _ALIGNED
    return memory[begin : begin + size].view(like.dtype).reshape(like.shape)


def _read_piece(
    folder: str, piece: Piece, index: Index, arrays: Mapping[str, np.ndarray], cached: bool
) -> None:
    """Check a piece, and put its tensors into those of the arrays that are there."""
    source = os.path.join(folder, piece.file)
    with _open(source) as file:
        if not cached and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        for name, tensor in _tensors(file, source, piece, index).items():
            part = piece.tensors[name]
            if part.leaf not in arrays:
                read_bytes(file, name, tensor, source)
                continue
            box = arrays[part.leaf][part.slices]
            whole = box if box.flags.c_contiguous else np.empty(box.shape, box.dtype)
            read_bytes(file, name, tensor, source, whole.reshape(-1).view(np.uint8))
            if whole is not box:
                box[...] = whole


def _tensors(file: BufferedReader, source: str, piece: Piece, index: Index) -> dict[str, Tensor]:
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
        wanted = jax.ShapeDtypeStruct(part.shape, index.leaves[part.leaf].array.dtype)
        if tensor.leaf != wanted:
            raise refusal(source, f"tensor {name!r} is not what the index says.", name)
    return tensors


def _open(source: str) -> BufferedReader:
    if os.path.islink(source):
        raise refusal(source, "this is a symbolic link.")
    return open_file(source)
