"""Batches of windows from files of token ids larger than memory, and a writer of such files."""

import hashlib
import math
import os
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple, SupportsIndex

import jax
import numpy as np
from jaxtyping import Int, UInt64

from funcnet._safetensors import open_file, path_text, replace_file
from funcnet.errors import DTypeError, FileFormatError, ShapeError, StructureError, ValueRangeError, describe
from funcnet.train._check import function, whole
from funcnet.train.cursor import Cursor, Transform, over

Path = str | os.PathLike[str]

_MAGIC = b"\x93NUMPY"
_LARGEST = np.iinfo(np.int32).max
# Of all files together a fingerprint sees so many pieces of so many bytes, spread over them.
_PIECES, _PIECE = 64, 4096
_OPEN_FILES = 64
_ROUNDS = 12
_TEXT = 2**20  # characters that are encoded at once
_COPIED = 2**20  # ids that are copied at once


def tokens(
    paths: Path | Sequence[Path],
    context: SupportsIndex,
    size: SupportsIndex,
    *,
    seed: SupportsIndex,
    epochs: SupportsIndex | None = None,
    drop_remainder: bool = True,
    dtype: Any = None,
    transform: Transform | None = None,
    skip_bad: SupportsIndex = 0,
) -> Cursor:
    """Shuffled batches of windows from files of token ids, which may be larger than memory.

    A window is `context` ids and the one that follows them, so `batch[:, :-1]` predicts `batch[:, 1:]`. The
    windows of a file begin at 0, `context`, 2 `context` ...; every id but the first of a file is predicted
    once in an epoch, but for those at its end that fill no window. No window spans two files.

    The order is a permutation of all windows of all files which is computed from `seed` and the number of the
    epoch, place by place: it takes no memory. What of the files is read is read when its batch comes, by
    `pread`: a file that is cut short, or a disk that fails, is then an error (with mmap, it would end the
    process).

    Args:
        paths: one file or several, in an order that counts. A ``.npy`` file holds one axis of uint16 or
            uint32 (`write_tokens` writes it); any other is raw, its numbers as they lie in memory, and
            needs `dtype`.
        context: ids in a window, without the one that follows.
        size: windows per batch.
        seed: of the order; not negative.
        epochs: how often to go through all windows; None: without end.
        drop_remainder: False keeps the smaller batch at the end of each epoch.
        dtype: np.uint16 or np.uint32: of raw files; ``.npy`` files must agree.
        transform: as in `batches`: `transform(batch, rng)` gives the batch in its place.
        skip_bad: leave out so many batches that cannot be read, with a warning each, before the next one is
            an error.

    Returns:
        An iterator of int32 arrays [size, context + 1], with `position`, `seek` and `skipped` as that of
        `batches` has them.

    Raises:
        FileFormatError: a file is no array of one axis of uint16 or uint32, is cut short, or has fewer than
            context + 1 ids.
        DTypeError, ValueRangeError: an argument makes no sense; from `seek`: a position in other data.
        RecordError: from the iterator: a batch cannot be read; its text names file and place.
        OSError: a file cannot be opened.
    """
    where = "train.tokens"
    context, seed = whole(where, "context", context, 1), whole(where, "seed", seed, 0)
    width = None if dtype is None else _width(where, dtype)
    files = [_File.of(path, width) for path in _several(paths)]
    for file in files:
        if file.length <= context:
            raise FileFormatError(
                f"{where}: {file.path} is too short for one window.",
                path=file.path,
                expected=f"{context + 1} ids or more: a context of {context} and the one that follows",
                actual=f"{file.length} ids",
            )
    ends = np.cumsum([(file.length - 1) // context for file in files])
    n = int(ends[-1])
    keys = lru_cache(maxsize=1)(partial(_keys, seed))
    opened = lru_cache(maxsize=_OPEN_FILES)(_Open)
    return over(
        where,
        n,
        size,
        partial(_windows, files, ends, context, keys, opened),
        lambda: {"context": context, "fingerprint": _fingerprint(files, opened)},
        seed=seed,
        epochs=epochs,
        drop_remainder=drop_remainder,
        transform=transform,
        skip_bad=skip_bad,
    )


def _windows(
    files: Sequence["_File"],
    ends: Int[np.ndarray, " files"],
    context: int,
    keys: Callable[[int], UInt64[np.ndarray, " r"]],
    opened: Callable[[str], "_Open"],
    epoch: int,
    start: int,
    stop: int,
) -> Int[np.ndarray, "n t_and_1"]:
    """The windows that an epoch has at the places `start` to `stop`; file i has those below `ends[i]`."""
    windows = permuted(np.arange(start, stop), int(ends[-1]), keys(epoch))
    which = np.searchsorted(ends, windows, side="right")
    batch = np.empty((stop - start, context + 1), np.int32)
    for row, (window, i) in enumerate(zip(windows.tolist(), which.tolist(), strict=True)):
        first = (window - int(ends[i - 1]) if i else window) * context
        batch[row] = files[i].read(opened(files[i].path), first, context + 1)
    return batch


# --- the order --------------------------------------------------------------------------------------------


def permuted(places: Int[np.ndarray, " k"], n: int, keys: UInt64[np.ndarray, " r"]) -> Int[np.ndarray, " k"]:
    """Where a permutation of 0 ... n − 1 takes these places; nothing of the size n is made.

    A place is two digits (l, r), l < a and r < b, a b >= n. A round adds to one digit a function of the
    other, modulo the digit's base, which subtraction undoes: so all rounds together are a bijection of
    0 ... a b − 1. A result of n or more is put in again until one below n comes. That is a bijection of
    0 ... n − 1: a permutation goes in cycles, and each member below n of a cycle is the next one below n of
    exactly one other.
    """
    a = math.isqrt(n - 1) + 1
    b = -(-n // a)  # a b < n + a, so that few have to go round again
    out = _rounds(places.astype(np.uint64), a, b, keys)
    while (over := np.flatnonzero(out >= n)).size:
        out[over] = _rounds(out[over], a, b, keys)
    return out.astype(np.int64)


def _rounds(x: np.ndarray, a: int, b: int, keys: np.ndarray) -> np.ndarray:
    left, right = x // b, x % b
    for even, odd in keys.reshape(-1, 2):
        left = (left + _mix(right + even) % a) % a
        right = (right + _mix(left + odd) % b) % b
    return left * b + right


def _mix(x: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64: every bit of the result depends on every bit of x."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


def _keys(seed: int, epoch: int) -> UInt64[np.ndarray, " r"]:
    return np.random.SeedSequence(seed, spawn_key=(epoch,)).generate_state(_ROUNDS, np.uint64)


# --- files ------------------------------------------------------------------------------------------------


class _File(NamedTuple):
    """A file of ids: `length` of them from byte `begin`."""

    path: str
    dtype: np.dtype
    begin: int
    length: int

    @classmethod
    def of(cls, path: str, dtype: np.dtype | None) -> "_File":
        """What a file holds, by its name, its header and its size."""
        with open_file(path) as file:
            size, raw = os.fstat(file.fileno()).st_size, not path.endswith(".npy")
            if raw and file.peek(len(_MAGIC)).startswith(_MAGIC):
                raise _refusal(path, "this is a .npy file by its first bytes", "a name that ends in .npy")
            if raw and dtype is None:
                raise ValueRangeError(
                    f"train.tokens: {path} does not say of which width its ids are.",
                    path="dtype",
                    expected="dtype=np.uint16 or np.uint32, or a .npy file",
                    actual="None",
                )
            found, shape = (dtype, None) if raw else _header(path, file)
            begin = 0 if raw else file.tell()
        assert found is not None
        length, rest = divmod(size - begin, found.itemsize)
        if shape is None and rest:
            raise _refusal(
                path, "the file is cut short", f"whole ids of {found.itemsize} bytes", f"{size} bytes"
            )
        if shape is not None and (length, rest) != (shape[0], 0):
            whole_size = begin + shape[0] * found.itemsize
            problem = "the file is cut short" if size < whole_size else "something follows its array"
            raise _refusal(path, problem, f"{whole_size} bytes, as its header says", f"{size} bytes")
        if dtype is not None and (found.kind, found.itemsize) != (dtype.kind, dtype.itemsize):
            raise _refusal(path, "its ids have another width", f"{dtype}, from dtype=", str(found))
        return cls(path, found, begin, length)

    def read(self, opened: "_Open", first: int, count: int) -> np.ndarray:
        """`count` ids from the one with the number `first`."""
        wanted, place = count * self.dtype.itemsize, f"ids {first} to {first + count - 1}"
        try:
            data = os.pread(opened.descriptor, wanted, self.begin + first * self.dtype.itemsize)
        except OSError as error:
            raise _refusal(self.path, f"{place} cannot be read: {error.strerror}") from error
        if len(data) < wanted:
            raise _refusal(
                self.path, f"{place}: the file was cut short", f"{wanted} bytes", f"{len(data)} bytes"
            )
        ids = np.frombuffer(data, self.dtype)
        if self.dtype.itemsize == 4 and ids.max() > _LARGEST:
            raise _refusal(self.path, f"{place}: an id is too large", f"at most {_LARGEST}", str(ids.max()))
        return ids


class _Open:
    """A file open for reading, until nobody has it."""

    def __init__(self, path: str):
        self.descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.descriptor)


def _header(path: str, file: Any) -> tuple[np.dtype, tuple[int]]:
    """Type and shape in the header of a .npy file, which is read to its end."""
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        shape, _, dtype = read[np.lib.format.read_magic(file)](file)
    except (ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise _refusal(path, "this is no .npy file, or it is cut short", actual=reason) from error
    if len(shape) != 1 or dtype.kind != "u" or dtype.itemsize not in (2, 4):
        expected, actual = "uint16[n] or uint32[n]", f"{dtype}[{', '.join(map(str, shape))}]"
        raise _refusal(path, "its array is none of token ids", expected, actual)
    return dtype, shape


def _fingerprint(files: Sequence[_File], opened: Callable[[str], _Open]) -> str:
    """A hash of the widths, the lengths and a sample of the bytes of all files."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.dtype.str} {file.length} ".encode())
        size = file.length * file.dtype.itemsize
        pieces = min(max(_PIECES // len(files), 2), -(-size // _PIECE))
        for start in np.linspace(0, max(size - _PIECE, 0), pieces).astype(np.int64).tolist():
            digest.update(os.pread(opened(file.path).descriptor, _PIECE, file.begin + start))
    return digest.hexdigest()[:32]


def _several(paths: Any) -> list[str]:
    several = [paths] if isinstance(paths, str | os.PathLike) else paths
    if not isinstance(several, Sequence) or isinstance(several, bytes):
        return [path_text("train.tokens", "paths", paths)]  # which says what a path is
    if not several:
        raise StructureError(
            "train.tokens: there is no file.", path="paths", expected="one path or more", actual="none"
        )
    return [path_text("train.tokens", f"paths[{i}]", path) for i, path in enumerate(several)]


def _width(where: str, dtype: Any) -> np.dtype:
    """The dtype uint16 or uint32 that was asked for."""
    try:
        found = None if isinstance(dtype, np.ndarray | np.generic | jax.Array) else np.dtype(dtype)
    except (TypeError, ValueError):
        found = None
    if found is None or found.kind != "u" or found.itemsize not in (2, 4):
        raise DTypeError(
            f"{where}: dtype is no width of ids.",
            path="dtype",
            expected="np.uint16 or np.uint32",
            actual=describe(dtype) if found is None else str(found),
        )
    return found


def _refusal(
    path: str, problem: str, expected: str | None = None, actual: str | None = None
) -> FileFormatError:
    return FileFormatError(f"train.tokens: {path}: {problem}.", path=path, expected=expected, actual=actual)


# --- the writer -------------------------------------------------------------------------------------------


def write_tokens(
    path: Path,
    source: Path | Iterable[Any],
    *,
    encode: Callable[[str], Any] | None = None,
    dtype: Any = None,
) -> int:
    """Write a ``.npy`` file of token ids for `tokens`, from ids or from text, piece by piece.

    The file is there whole or not at all: it is written under another name in the same folder, synced and
    renamed. Meanwhile the folder's disk holds the ids twice.

    Args:
        path: the file to write; it ends in ``.npy``.
        source: with `encode`: the path of a file of UTF-8 text, or an iterable of texts, one after the other.
            Without: an array of ids with one axis, or an iterable of such arrays, or of ids.
        encode: `encode(text)` gives the ids of a piece of text. A file is given to it in pieces of about a
            million characters, which end with a line.
        dtype: np.uint16 or np.uint32; None: uint16 if all ids are below 65,536.

    Returns:
        How many ids were written.

    Raises:
        ValueRangeError: an id is negative or does not fit, or there are none.
        DTypeError: an id is no integer, or an argument is not what it should be.
        ShapeError: ids have more than one axis.
        FileFormatError: the file is no UTF-8 text.
        OSError: a file cannot be read or written.
    """
    where = "train.write_tokens"
    target = path_text(where, "path", path)
    if not target.endswith(".npy"):
        raise ValueRangeError(
            f"{where}: the file is a .npy file, and is not called one.",
            path="path",
            expected="a name that ends in .npy",
            actual=os.path.basename(target),
        )
    width = None if dtype is None else _width(where, dtype)
    largest = np.iinfo(np.uint32 if width is None else width).max
    folder = os.path.dirname(os.path.realpath(target))
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{where}: there is no folder {folder}; create it first")
    n = highest = 0
    with tempfile.TemporaryFile(dir=folder) as spool:
        for ids in _pieces(where, source, encode):
            ids = _checked(where, ids, n, largest)
            n, highest = n + len(ids), max(highest, int(ids.max(initial=0)))
            spool.write(ids.astype("<u4").tobytes())
        if not n:
            raise ValueRangeError(
                f"{where}: there are no ids.", path="source", expected="one id or more", actual="none"
            )
        width = width or np.dtype(np.uint16 if highest < 2**16 else np.uint32)
        spool.seek(0)
        replace_file(target, _npy(spool, n, width.newbyteorder("<")))
    return n


def _npy(spool: Any, n: int, dtype: np.dtype) -> Iterator[bytes]:
    """The bytes of a .npy file of `n` ids, which lie in `spool` as uint32."""
    header = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': ({n},), }}".ljust(117) + "\n"
    yield _MAGIC + b"\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
    while block := spool.read(4 * _COPIED):
        yield np.frombuffer(block, "<u4").astype(dtype).tobytes()


def _pieces(where: str, source: Any, encode: Any) -> Iterator[Any]:
    """The ids, some at a time."""
    if encode is not None:
        function(where, "encode", encode, "encode(text), or None")
        for text in _texts(where, source):
            if not isinstance(text, str):
                raise DTypeError(
                    f"{where}: there is what is no text.",
                    path="source",
                    expected="texts, since encode is given",
                    actual=describe(text),
                )
            yield encode(text)
    elif isinstance(source, str | os.PathLike):
        raise DTypeError(
            f"{where}: encode is missing, which makes ids of text.",
            path="encode",
            expected="encode(text), since source is the path of a text",
            actual="None",
        )
    elif isinstance(source, np.ndarray) and source.ndim:  # of a memory map no more than this
        yield from (source[i : i + _COPIED] for i in range(0, len(source), _COPIED))
    elif isinstance(source, list | tuple | range) and not any(map(np.ndim, source[:1])):
        yield source
    else:
        yield from _iterated(where, source)


def _texts(where: str, source: Any) -> Iterator[Any]:
    """The texts, or the pieces of the file that `source` names."""
    if not isinstance(source, str | os.PathLike):
        yield from _iterated(where, source)
        return
    name = path_text(where, "source", source)
    with open(name, encoding="utf-8", newline="") as file:
        try:
            while text := file.read(_TEXT):
                yield text + file.readline()
        except UnicodeDecodeError as error:
            raise FileFormatError(f"{where}: {name}: this is no UTF-8 text: {error}.", path=name) from error


def _iterated(where: str, source: Any) -> Iterator[Any]:
    try:
        return iter(source)
    except TypeError:
        raise DTypeError(
            f"{where}: source is neither ids nor text.",
            path="source",
            expected="a path, an array, or an iterable",
            actual=describe(source),
        ) from None


def _checked(where: str, ids: Any, before: int, largest: int) -> np.ndarray:
    """Ids as an array with one axis; `before` of them came earlier."""
    try:
        array = np.atleast_1d(np.asarray(ids))
    except Exception:  # rows of unequal length, another library's
        array = np.empty(0, object)
    if array.size and array.dtype.kind not in "iu":
        raise DTypeError(
            f"{where}: id {before} and those after it are no integers.",
            path="source",
            expected="integers",
            actual=describe(ids),
        )
    if array.ndim > 1:
        raise ShapeError(
            f"{where}: ids have more than one axis.", path="source", expected="[n]", actual=describe(array)
        )
    bad = np.flatnonzero((array < 0) | (array > largest)) if array.size else array
    if len(bad):
        value = int(array[bad[0]])
        raise ValueRangeError(
            f"{where}: id {before + int(bad[0])}, the first being 0, is {value}.",
            path="source",
            expected=f"0 to {largest}",
            actual=str(value),
            hint="dtype=np.uint32" if 0 <= value < 2**32 else None,
        )
    return array
