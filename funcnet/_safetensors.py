"""The safetensors format: a file's header read and checked, its rows laid out and written.

A file is 8 bytes, the length of the header; the header, JSON from each tensor's name to its dtype, shape and
place; then the tensors' bytes, without holes. `store` keeps trees in such files, `hub` reads those of other
programs. The bytes are handled here rather than by the `safetensors` package, which does not sync what it
writes, cannot read bfloat16 into NumPy, accepts a tensor that is listed twice, and refuses a file without
naming the tensor (0.8.0). The tests hold the two against each other.
"""

import contextlib
import json
import math
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterable, Mapping
from io import BufferedReader
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from funcnet.errors import DTypeError, FileFormatError, ValueRangeError, describe

__all__ = [
    "CODES",
    "CODE_OF",
    "CONVERT",
    "MAX_HEADER",
    "Row",
    "a",
    "contiguous",
    "is_text",
    "json_bytes",
    "layout",
    "make_header",
    "make_rows",
    "open_file",
    "parse_json",
    "path_text",
    "plain",
    "read_header",
    "read_rows",
    "refusal",
    "refuse_foreign",
    "replace_file",
    "sync_folder",
    "write_file",
]

MAX_HEADER = 16 * 2**20  # bytes; some 50,000 tensors
_MAX_RANK = 64  # NumPy's own

# The element types that safetensors names.
CODES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32",
    "I32": "int32", "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32",
    "F64": "float64", "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu", "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
}  # fmt: skip
CODE_OF = {dtype: code for code, dtype in CODES.items()}

CONVERT = (
    "pickled files can run code, so none is opened. Where torch is: "
    "transformers.AutoModel.from_pretrained(folder).save_pretrained(other_folder) writes safetensors; of "
    "a plain state_dict, fn.hub.write_safetensors(file, {k: v.numpy() for k, v in torch.load(this).items()})."
)
# How files begin that lie where a safetensors file should, what they are, and what to do about it. The length
# of a header does not begin so.
_FOREIGN = (
    (rb"$", "an empty file", None),
    (rb"version https://git-lfs", "a git-lfs pointer, not the file that it stands for", "git lfs pull."),
    (rb"PK\x03\x04", "a pickled checkpoint or another zip archive, not safetensors", CONVERT),
    (rb"\x80[\x02-\x05](?:..[^\0]|\x95)", "a pickled checkpoint, not safetensors", CONVERT),
    (rb"\x1f\x8b", "compressed by gzip", "gunzip it."),
    (rb"\x93NUMPY", "a NumPy array, not safetensors", None),
    (rb"GGUF", "a GGUF file, not safetensors", None),
    (rb"\x89HDF", "an HDF5 file, not safetensors", None),
    (rb"\s*<[!?a-zA-Z]", "a page of HTML or XML, as a failed download leaves", None),
    (rb"\s*{", "JSON, not safetensors", None),
)


class Row(NamedTuple):
    """One row of a file's header: which bytes of the file are which array."""

    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def path_text(where: str, name: str, path: Any) -> str:
    """The argument `name` of `where`, a path, as a str."""
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str) or "\0" in text:
        error = DTypeError if not isinstance(text, str) else ValueRangeError
        raise error(
            f"{where}: {name} is not a path.",
            path=name,
            expected=f"{name}: a str or a pathlib.Path",
            actual=f"{name}: {describe(path)}",
        )
    return text


# --- read -------------------------------------------------------------------------------------------------


def open_file(source: str) -> BufferedReader:
    """The file `source`, once it is known to be one: opening a pipe would wait for ever."""
    if not stat.S_ISREG(os.stat(source).st_mode):
        raise refusal(source, "this is not a regular file.")
    return open(source, "rb")


def read_header(file: BufferedReader, source: str) -> tuple[bytes, dict[str, Any], dict[str, str]]:
    """The file's first bytes, header included; the rows in it, not yet checked; and its `__metadata__`."""
    size, begin = os.fstat(file.fileno()).st_size, file.peek(32)
    length_field = file.read(8)
    length = int.from_bytes(length_field, "little")
    if len(length_field) < 8 or length > min(size - 8, MAX_HEADER):
        refuse_foreign(begin, source)
    if len(length_field) < 8 or length > size - 8:
        raise refusal(source, "this is no safetensors file, or it is cut short.", actual=f"{size} bytes")
    if length > MAX_HEADER:
        expected, actual = f"at most {MAX_HEADER} bytes", f"{length} bytes"
        raise refusal(source, "the header is too long.", expected=expected, actual=actual)
    header = file.read(length)
    rows = parse_json(header, "the header", source)
    if not header.startswith(b"{") or not isinstance(rows, dict):
        raise refusal(source, "the header is not a JSON object.")
    metadata = rows.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise refusal(source, "`__metadata__` does not map names to texts.")
    return length_field + header, rows, metadata


def refuse_foreign(begin: bytes, source: str) -> None:
    """Say what the file is if its first bytes do."""
    for pattern, what, hint in _FOREIGN:
        if re.match(pattern, begin, re.DOTALL):
            raise refusal(source, f"this is {what}.", hint=hint)


def read_rows(rows: Mapping[str, Any], start: int, size: int, source: str) -> dict[str, Row]:
    """The rows of a file of `size` bytes, checked, in the order of their bytes, which begin at `start`."""
    checked = {name: _check_row(name, row, start, source) for name, row in rows.items()}
    checked = dict(sorted(checked.items(), key=lambda item: (item[1].begin, item[1].end)))
    position = start
    for name, row in checked.items():
        if row.begin != position:
            fault = "overlaps the tensor before it" if row.begin < position else "leaves a hole before it"
            expected, actual = f"a start at byte {position}", f"byte {row.begin}"
            raise refusal(source, f"tensor {name!r} {fault}.", name, expected=expected, actual=actual)
        position = row.end
    if position != size:
        fault = "is cut short" if position > size else "has bytes after its last tensor"
        raise refusal(source, f"the file {fault}.", expected=f"{position} bytes", actual=f"{size} bytes")
    return checked


def _check_row(name: str, row: Any, start: int, source: str) -> Row:
    if not isinstance(row, dict) or row.keys() != {"dtype", "shape", "data_offsets"}:
        raise refusal(source, f"tensor {name!r}: its row is not dtype, shape and data_offsets.", name)
    code, shape, offsets = row["dtype"], row["shape"], row["data_offsets"]
    if not isinstance(code, str) or code not in CODES:
        expected, actual = ", ".join(CODES), f"{code!r:.80}"
        raise refusal(source, f"tensor {name!r}: unknown dtype.", name, expected=expected, actual=actual)
    dtype = jnp.dtype(CODES[code])
    # NumPy holds the axes of an empty array too to this limit, as if its zeros were ones.
    if not _are_sizes(shape, _MAX_RANK) or math.prod(max(n, 1) for n in shape) * dtype.itemsize >= 2**63:
        raise refusal(source, f"tensor {name!r}: impossible shape.", name, actual=f"{shape!r:.80}")
    if not _are_sizes(offsets, 2):
        raise refusal(source, f"tensor {name!r}: impossible data_offsets.", name, actual=f"{offsets!r:.80}")
    size = math.prod(shape) * dtype.itemsize
    if len(offsets) != 2 or offsets[1] - offsets[0] != size:
        expected, actual = f"{size} bytes for {code} {shape}", f"data_offsets {offsets}"
        problem = f"tensor {name!r}: its bytes do not fit its shape."
        raise refusal(source, problem, name, expected=expected, actual=actual)
    return Row(dtype, tuple(shape), start + offsets[0], start + offsets[1])


def _are_sizes(value: Any, most: int) -> bool:
    """Whether `value` is a list of at most `most` integers from 0 to 2⁶³ - 1."""
    return (
        isinstance(value, list)
        and len(value) <= most
        and all(type(n) is int and 0 <= n < 2**63 for n in value)
    )


# --- write ------------------------------------------------------------------------------------------------


def plain(leaf: Any) -> str | None:
    """What `leaf` is, if it is not an array whose elements are all of it; None: it is one."""
    if isinstance(leaf, jax.Array) and not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        deleted = not isinstance(leaf, jax.core.Tracer) and leaf.is_deleted()
        return "an array that was deleted, or donated to a jitted function" if deleted else None
    if type(leaf) in (np.ndarray, np.memmap) or isinstance(leaf, np.generic):
        return None
    if isinstance(leaf, np.ma.MaskedArray):
        return "a masked array, whose mask would be lost: store its data and its mask, or leaf.filled(value)"
    if isinstance(leaf, np.ndarray):
        return f"{a(type(leaf).__name__)}, which would come back as a plain array: store numpy.asarray(leaf)"
    return a(type(leaf).__name__)


def a(noun: str) -> str:
    """`noun` with its article."""
    return f"{'an' if noun[:1] in tuple('aeiouAEIOU') else 'a'} {noun}"


def contiguous(array: Any) -> np.ndarray:
    """`array` as it lies in a file: C order, little-endian."""
    array = np.asarray(array, order="C")
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def layout(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, memoryview]]:
    """The header's rows and the bytes of `contiguous` arrays, in the order of a file."""
    rows = make_rows(arrays)
    return rows, {name: arrays[name].reshape(-1).view(np.uint8).data for name in rows}


def make_rows(arrays: Mapping[str, np.ndarray | jax.ShapeDtypeStruct]) -> dict[str, Any]:
    """The header's rows of arrays, in the order of a file.

    The widest elements come first, as safetensors does: every tensor is then aligned in the file.
    """
    rows: dict[str, Any] = {}
    end = 0
    for name in sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name)):
        shape, dtype = arrays[name].shape, arrays[name].dtype
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        rows[name] = {"dtype": CODE_OF[dtype.name], "shape": shape, "data_offsets": [begin, end]}
    return rows


def make_header(target: str, rows: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
    """A file's first bytes: the length of the header and the header."""
    header = json_bytes({"__metadata__": metadata, **rows})
    header += b" " * (-len(header) % 8)
    if len(header) > MAX_HEADER:
        raise ValueRangeError(
            f"save: {target}: the names and structure of {len(rows)} leaves are too long.",
            path="tree",
            expected=f"a header of at most {MAX_HEADER} bytes",
            actual=f"{len(header)} bytes",
        )
    return len(header).to_bytes(8, "little") + header


def replace_file(target: str, chunks: Iterable[Any], head: Callable[[], bytes] | None = None) -> None:
    """Make `target` the file that holds `chunks`, all of it or nothing.

    `head` is asked for the first bytes once the chunks are written, if they are known only then.

    The bytes go to a temporary file in the same folder, are synced to the disk, and then take the name in one
    step. A symbolic link stays a link; the file that it points to is replaced, and the new one has its mode.
    """
    target = os.path.realpath(target)
    folder = os.path.dirname(target)
    if os.path.isdir(target):
        raise IsADirectoryError(f"save: {target} is a folder; name a file in it")
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"save: there is no folder {folder}; create it first")
    temporary = os.path.join(folder, f".funcnet-{secrets.token_hex(8)}.tmp")
    mode = stat.S_IMODE(os.stat(target).st_mode) if os.path.exists(target) else None
    try:
        write_file(temporary, chunks, mode, head)
        os.replace(temporary, target)
    except BaseException as error:  # Ctrl-C too
        with contextlib.suppress(OSError):
            os.remove(temporary)
        error.add_note(f"save: {target} is as it was before.")
        raise
    sync_folder(folder)  # without it a power cut may undo the new name


def write_file(
    path: str, chunks: Iterable[Any], mode: int | None = None, head: Callable[[], bytes] | None = None
) -> None:
    """Make the new file `path` of `chunks`, its first bytes those of `head`, and sync it to the disk."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    descriptor = os.open(path, flags, 0o666 if mode is None else 0o600)  # less the umask
    with open(descriptor, "wb") as file:
        if mode is not None:
            os.chmod(path, mode)
        for chunk in chunks:
            file.write(chunk)
        if head is not None:
            file.seek(0)
            file.write(head())
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: str) -> None:
    """Sync the names in `folder` to the disk."""
    if hasattr(os, "O_DIRECTORY"):  # Windows cannot
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# --- both -------------------------------------------------------------------------------------------------


def json_bytes(value: Any) -> bytes:
    """`value` as JSON, the same bytes for the same value."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def is_text(text: str) -> bool:
    """Whether `text` is Unicode that UTF-8 has: no lone surrogate."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def parse_json(text: bytes | str, what: str, source: str) -> Any:
    """JSON as the standard has it: UTF-8, no NaN, no key twice."""
    try:
        decoded = text.decode() if isinstance(text, bytes) else text
        return json.loads(
            decoded, object_pairs_hook=_unique_keys, parse_constant=_no_constant, parse_float=_finite
        )
    except (ValueError, RecursionError) as error:
        raise refusal(source, f"{what} is not valid JSON: {error}.") from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {key!r} is there twice")
        result[key] = value
    return result


def _finite(text: str) -> float:
    if math.isinf(value := float(text)):
        raise ValueError(f"{text} is too large")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def refusal(source: str, problem: str, tensor: str | None = None, **details: str | None) -> FileFormatError:
    """The error for the file `source`; `details` are FileFormatError's expected, actual and hint."""
    return FileFormatError(f"load: {source}: {problem}", path=tensor or source, **details)
