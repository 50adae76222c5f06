"""The leaves of a tree as named tensors with checksums: what `store` and the checkpoints of training write.

A file is in the safetensors format. In its ``__metadata__`` are a note about each tensor, its SHA-256 with
it, and the SHA-256 of the header itself, so that every byte is under one. `docs/store.md` states the format.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from io import BufferedReader
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funcnet import _safetensors
from funcnet._safetensors import contiguous, parse_json, plain, read_header, read_rows, refusal
from funcnet.errors import DTypeError, describe

__all__ = [
    "AS_BYTES",
    "Tensor",
    "array_and_note",
    "children",
    "differences",
    "file_chunks",
    "leaf_of",
    "leaf_type",
    "listing",
    "place",
    "read_bytes",
    "read_tensors",
    "refuse_64_bits",
    "say",
    "seal",
    "sealed",
    "stored",
    "stream",
    "tensor_name",
    "type_of",
]

_VERSION = 1
_CHUNK = 2**20  # bytes that are read and hashed at once: they stay in the processor's cache

# Element types that safetensors does not name: stored as bytes (U8, one more axis).
AS_BYTES = (
    "complex128", "float4_e2m1fn", "float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz",
    "int2", "int4", "uint2", "uint4",
)  # fmt: skip
_PYTHON_DTYPES = {bool: "bool", int: "int64", float: "float64", complex: "complex128"}
_PYTHON_TYPES = {kind.__name__: kind for kind in _PYTHON_DTYPES}

# The two entries of `__metadata__`. The checksum covers the length field and the header, itself as zeros.
_INFO, _CHECKSUM = "funcnet", "funcnet.sha256"
_NO_CHECKSUM = "0" * 64


class Tensor(NamedTuple):
    """One row of a file's header: which bytes, and the leaf that they are."""

    stored: np.dtype  # of the bytes
    shape: tuple[int, ...]  # of the bytes
    begin: int  # in the file
    end: int
    note: dict[str, str]  # "sha256", and "dtype", "key" or "python" where the leaf is not what is stored
    leaf: jax.ShapeDtypeStruct | type  # a type is a Python scalar's


def tensor_name(parts: tuple[str, ...]) -> str:
    """The parts of a leaf's path joined by dots, one name for each path.

    >>> tensor_name(("blocks", "0", "w")), tensor_name(("v1.5", "~")), tensor_name(())
    ('blocks.0.w', 'v1~15.~0', '~')
    """
    name = ".".join(part.replace("~", "~0").replace(".", "~1") for part in parts)
    return "~" + name if name in ("", "__metadata__") else name  # the last is safetensors' own


def place(parts: tuple[str, ...]) -> str:
    """`tensor_name` for a message."""
    return repr(tensor_name(parts)) if parts else "the root"


def children(node: Any) -> list[tuple[Any, str, Any]] | None:
    """What is directly below `node`: its entry of a path, that as a part of a name, and it. None: a leaf."""
    if isinstance(node, jax.Array | np.ndarray):  # most are, and to ask JAX takes ten times as long
        return None
    found = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)[0]
    if found and not found[0][0]:  # an empty path: the node is itself a leaf
        return None
    return [(entry, jax.tree_util.keystr((entry,), simple=True), child) for (entry,), child in found]


def array_and_note(leaf: Any) -> tuple[Any, dict[str, str]]:
    """The array that stands for `leaf`, and what `load` must know to turn it back."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        implementation = jax.random.key_impl(leaf)
        if not isinstance(implementation, str):
            raise DTypeError(f"keys of an implementation without a name ({implementation})")
        return jax.random.key_data(leaf), {"key": implementation}
    if type(leaf) in _PYTHON_DTYPES:
        try:
            array = np.asarray(leaf, _PYTHON_DTYPES[type(leaf)])
        except OverflowError:
            raise DTypeError("this Python int does not fit into 64 bits") from None
        return array, {"python": type(leaf).__name__}
    if why := plain(leaf):
        raise DTypeError(f"a leaf must be an array, a key or a number, not {why}")
    if leaf.dtype.name not in _safetensors.CODE_OF and leaf.dtype.name not in AS_BYTES:
        raise DTypeError(f"elements of type {leaf.dtype} cannot be stored")
    return leaf, {}


def stored(array: Any, note: dict[str, str]) -> np.ndarray:
    """`array` as it lies in the file, of a type that safetensors names."""
    array = contiguous(array)
    if array.dtype.name in AS_BYTES:
        note["dtype"] = array.dtype.name
        return array[..., None].view(np.uint8)
    return array


def file_chunks(
    target: str, arrays: Mapping[str, np.ndarray], tree: Any, notes: Mapping[str, dict[str, str]]
) -> tuple[str, list[Any]]:
    """The bytes of a file that holds `arrays`, which are `stored`, and the SHA-256 of its header."""
    rows, data = _safetensors.layout(arrays)
    for name in rows:
        notes[name]["sha256"] = hashlib.sha256(data[name]).hexdigest()
    digest, header = head(target, rows, tree, notes)
    return digest, [header, *data.values()]


def stream(
    target: str,
    types: Mapping[str, jax.ShapeDtypeStruct],
    tree: Any,
    notes: Mapping[str, dict[str, str]],
    arrays: Callable[[Sequence[str]], Iterable[np.ndarray]],
) -> None:
    """Write the file `target` as `file_chunks` makes it, of arrays that are never all in memory.

    Args:
        target: the file.
        types: of the arrays, by name.
        tree: their structure.
        notes: what is to be known of each.
        arrays: gives those that it is asked for by name, one after the other.
    """
    notes = {name: dict(notes[name]) for name in types}
    for name in types:
        if types[name].dtype.name in AS_BYTES:
            notes[name]["dtype"] = types[name].dtype.name
    shapes = {name: _stored_type(types[name]) for name in types}
    rows = _safetensors.make_rows(shapes)

    def chunks() -> Iterator[Any]:
        yield head(target, rows, tree, {name: {**notes[name], "sha256": _NO_CHECKSUM} for name in rows})[1]
        for name, array in zip(rows, arrays([*rows]), strict=True):
            data = contiguous(array).reshape(-1).view(np.uint8).data
            notes[name]["sha256"] = hashlib.sha256(data).hexdigest()
            yield data

    _safetensors.replace_file(target, chunks(), lambda: head(target, rows, tree, notes)[1])


def _stored_type(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """The type of what `stored` gives."""
    if leaf.dtype.name not in AS_BYTES:
        return leaf
    return jax.ShapeDtypeStruct((*leaf.shape, leaf.dtype.itemsize), np.uint8)


def head(
    target: str, rows: Mapping[str, Any], tree: Any, notes: Mapping[str, dict[str, str]]
) -> tuple[str, bytes]:
    """The SHA-256 of a file's header, and the file up to its end."""
    info = {"version": _VERSION, "tree": tree, "tensors": {name: notes[name] for name in rows}}
    metadata = {_CHECKSUM: _NO_CHECKSUM, _INFO: _safetensors.json_bytes(info).decode()}
    return seal(_safetensors.make_header(target, rows, metadata))


def seal(text: bytes) -> tuple[str, bytes]:
    """The SHA-256 of `text`, and `text` with it in the place of its first 64 zeros."""
    digest = hashlib.sha256(text).hexdigest()
    return digest, text.replace(_NO_CHECKSUM.encode(), digest.encode(), 1)


def sealed(text: bytes, stated: str) -> str:
    """The SHA-256 that `seal` gave, computed again: equal to `stated` if nothing has changed since."""
    return hashlib.sha256(text.replace(stated.encode(), _NO_CHECKSUM.encode(), 1)).hexdigest()


def read_tensors(file: BufferedReader, source: str) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """The tensors in the order of their bytes, and funcnet's own entry; None: another program's file."""
    head, rows, metadata = read_header(file, source)
    info, notes = None, {name: {} for name in rows}
    if _INFO in metadata or _CHECKSUM in metadata:
        info = _check_info(head, metadata, source)
        notes = info["tensors"]
        if notes.keys() != rows.keys():
            odd = ", ".join(map(repr, sorted(notes.keys() ^ rows.keys())))
            raise refusal(source, f"the header describes some tensors in only one of two places: {odd}.")
    tensors = {}
    for name, row in read_rows(rows, len(head), os.fstat(file.fileno()).st_size, source).items():
        try:
            leaf = leaf_type(row.dtype, row.shape, notes[name])
        except (TypeError, ValueError) as error:
            raise refusal(source, f"tensor {name!r}: its note does not fit: {error}", name) from error
        tensors[name] = Tensor(*row, notes[name], leaf)
    return tensors, info


def _check_info(head: bytes, metadata: dict[str, str], source: str) -> dict[str, Any]:
    """The entry of the header that `save` wrote, and its checksum, once that and the version are right."""
    if _INFO not in metadata or not re.fullmatch("[0-9a-f]{64}", metadata.get(_CHECKSUM, "")):
        raise refusal(source, f"the header lacks `{_INFO}` or `{_CHECKSUM}`.")
    stated = metadata[_CHECKSUM]
    computed = sealed(head, stated)
    if computed != stated:
        expected, actual = f"SHA-256 {stated}", f"SHA-256 {computed}"
        raise refusal(source, "the header is damaged.", expected=expected, actual=actual)
    info = parse_json(metadata[_INFO], f"the header's `{_INFO}`", source)
    version = info.get("version") if isinstance(info, dict) else None
    if type(version) is not int or version < 1:
        raise refusal(source, f"the header's `{_INFO}` has no version.")
    if version > _VERSION:
        expected, actual, hint = f"version {_VERSION}", f"version {version}", "upgrade funcnet"
        raise refusal(source, "a later funcnet wrote this.", expected=expected, actual=actual, hint=hint)
    if info.keys() != {"version", "tree", "tensors"} or not isinstance(info["tensors"], dict):
        raise refusal(source, f"the header's `{_INFO}` has other parts than `tree` and `tensors`.")
    for name, note in info["tensors"].items():
        if (
            not isinstance(note, dict)
            or not all(isinstance(value, str) for value in note.values())
            or note.keys() - {"dtype", "key", "python"} != {"sha256"}
        ):
            raise refusal(source, f"tensor {name!r}: its note in `{_INFO}` is malformed.", name)
    return {**info, "sha256": stated}


def leaf_type(stored: np.dtype, shape: tuple[int, ...], note: dict[str, str]) -> jax.ShapeDtypeStruct | type:
    """What a tensor is as a leaf. ValueError or TypeError: it cannot be what its note says."""
    dtype = stored
    if "dtype" in note:
        if note["dtype"] not in AS_BYTES:
            raise ValueError(f"unknown dtype {note['dtype']!r}")
        dtype = jnp.dtype(note["dtype"])
        if stored != np.uint8 or shape[-1:] != (dtype.itemsize,):
            raise ValueError(f"{dtype} needs U8 with a last axis of {dtype.itemsize}")
        shape = shape[:-1]
    if "python" in note:
        python = _PYTHON_TYPES.get(note["python"])
        if python is None or "key" in note or shape != () or dtype != jnp.dtype(_PYTHON_DTYPES[python]):
            raise ValueError(f"a Python {note['python']} cannot be {dtype}{list(shape)}")
        return python
    if "key" in note:
        data = jax.ShapeDtypeStruct(shape, dtype)
        return jax.eval_shape(lambda data: jax.random.wrap_key_data(data, impl=note["key"]), data)
    return jax.ShapeDtypeStruct(shape, dtype)


def type_of(leaf: Any) -> jax.ShapeDtypeStruct | type:
    """What a leaf of `like` asks for; a type that is not in `_PYTHON_DTYPES` fits no leaf of any file."""
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        with contextlib.suppress(TypeError):  # the dtypes of another library are none here
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    return type(leaf)


def refuse_64_bits(tensors: dict[str, Tensor], source: str) -> None:
    """JAX would cast these to 32 bits without a word."""
    wide = [
        f"{name!r}: {say(leaf)}"
        for name, (*_, leaf) in tensors.items()
        if isinstance(leaf, jax.ShapeDtypeStruct)
        and not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        and jax.dtypes.canonicalize_dtype(leaf.dtype) != leaf.dtype
    ]
    if wide:
        raise DTypeError(
            listing(f"load: {source} holds 64-bit arrays, and JAX's 64-bit mode is off", wide),
            path=source,
            hint="load it within jax.enable_x64(True), or give `like` NumPy arrays to get such",
        )


def differences(
    wanted: Mapping[str, Any], found: Mapping[str, Any], asking: str, holding: str
) -> tuple[list[str], list[str], list[str]]:
    """Missing, unexpected and mismatched leaves, a line for each: what `asking` wants, and `holding` has."""
    missing = [f"missing     {name!r}: {say(leaf)}" for name, leaf in wanted.items() if name not in found]
    unexpected = [f"unexpected  {name!r}: {say(found[name])}" for name in sorted(found) if name not in wanted]
    mismatched = [
        f"mismatched  {name!r}: {asking} has {say(leaf)}, {holding} {say(found[name])}"
        for name, leaf in wanted.items()
        if name in found and leaf != found[name]
    ]
    return missing, unexpected, mismatched


def read_bytes(
    file: BufferedReader, name: str, tensor: Tensor, source: str, into: np.ndarray | None = None
) -> None:
    """Read a tensor's bytes, which must have its checksum, `into` an array of them, or nowhere."""
    size, computed = tensor.end - tensor.begin, hashlib.sha256()
    scratch = np.empty(min(size, _CHUNK), np.uint8)
    file.seek(tensor.begin)
    for start in range(0, size, _CHUNK):
        length = min(_CHUNK, size - start)
        chunk = scratch[:length] if into is None else into[start : start + length]
        if file.readinto(chunk.data) < length:
            raise refusal(source, f"tensor {name!r}: the file became shorter while it was read.", name)
        computed.update(chunk.data)
        if tensor.stored == np.bool_ and (chunk > 1).any():
            raise refusal(source, f"tensor {name!r}: a boolean is neither 0 nor 1.", name)
    stated = tensor.note.get("sha256")
    if stated is not None and computed.hexdigest() != stated:
        raise refusal(
            source,
            f"tensor {name!r} (bytes {tensor.begin} to {tensor.end}) is damaged.",
            name,
            expected=f"SHA-256 {stated}",
            actual=f"SHA-256 {computed.hexdigest()}",
        )


def leaf_of(array: np.ndarray | jax.Array, note: Mapping[str, str], as_numpy: bool) -> Any:
    """What `array_and_note` took apart."""
    if "python" in note:
        return array.item()
    if "key" in note:
        return jax.random.wrap_key_data(jnp.asarray(array), impl=note["key"])
    return array if as_numpy else jnp.asarray(array)


def say(leaf: jax.ShapeDtypeStruct | type) -> str:
    """A leaf's type in a message."""
    return f"Python {leaf.__name__}" if isinstance(leaf, type) else describe(leaf)


def listing(problem: str, lines: list[str]) -> str:
    """A problem and its lines."""
    return "\n".join([f"{problem}:", *(f"  {line}" for line in lines)])
