"""Save a pytree to one safetensors file, and load exactly what was saved or an error that says what is not.

The file is the pytree's leaves as named tensors (``conv1.w``), which any safetensors reader opens, and in
the header's ``__metadata__`` the tree's structure, the SHA-256 of each tensor and that of the header
itself: safetensors has no checksum, so a flipped bit would load as a wrong number. `docs/store.md` states
the format.

`_safetensors` reads and writes the bytes.
"""

import contextlib
import hashlib
import os
import re
from io import BufferedReader
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funcnet import _safetensors
from funcnet._safetensors import (
    a,
    contiguous,
    is_text,
    open_file,
    parse_json,
    path_text,
    plain,
    read_header,
    read_rows,
    refusal,
)
from funcnet.errors import DTypeError, StructureError, describe

__all__ = ["load", "save"]

_VERSION = 1
_MAX_DEPTH = 100  # containers within containers

# Element types that safetensors does not name: stored as bytes (U8, one more axis).
_AS_BYTES = (
    "complex128", "float4_e2m1fn", "float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz",
    "int2", "int4", "uint2", "uint4",
)  # fmt: skip
_PYTHON_DTYPES = {bool: "bool", int: "int64", float: "float64", complex: "complex128"}
_PYTHON_TYPES = {kind.__name__: kind for kind in _PYTHON_DTYPES}

# The two entries of `__metadata__`. The checksum covers the length field and the header, itself as zeros.
_INFO, _CHECKSUM = "funcnet", "funcnet.sha256"
_NO_CHECKSUM = "0" * 64


class _Tensor(NamedTuple):
    """One row of a file's header: which bytes, and the leaf that they are."""

    stored: np.dtype  # of the bytes
    shape: tuple[int, ...]  # of the bytes
    begin: int  # in the file
    end: int
    note: dict[str, str]  # "sha256", and "dtype", "key" or "python" where the leaf is not what is stored
    leaf: jax.ShapeDtypeStruct | type  # a type is a Python scalar's


# --- save -------------------------------------------------------------------------------------------------


def save(path: str | os.PathLike[str], tree: Any) -> None:
    """Write `tree` to `path`, all of it or nothing.

    The bytes go to a temporary file in the same folder, are synced to the disk, and then take the name
    `path` in one step: at any moment, also after a power cut, `path` is the whole old file or the whole new
    one. If something fails before that step the old file stays and the temporary one is removed. A symbolic
    link stays a link; the file that it points to is replaced. The same tree gives the same bytes.

    Args:
        path: the file's name; its folder must exist.
        tree: a pytree of JAX arrays, NumPy arrays, typed PRNG keys and Python numbers, each stored exactly
            as it is. `load` rebuilds dicts with string keys, lists, tuples and None by itself; a tree with
            other nodes (a NamedTuple, an optax state) it rebuilds from its argument `like`.

    Raises:
        StructureError: a leaf, dict key or nesting that cannot be stored; the text lists all of them.
        ValueRangeError: so many leaves that the header would pass `load`'s limit of 16 MiB.
        OSError: the disk is full, the folder is missing or not writable, ...
    """
    target = path_text("save", "path", path)
    leaves: dict[str, Any] = {}
    problems: list[str] = []
    structure = _walk(tree, (), leaves, problems)
    arrays: dict[str, Any] = {}
    notes: dict[str, dict[str, str]] = {}
    for name, leaf in leaves.items():
        try:
            arrays[name], notes[name] = _array_and_note(leaf)
        except DTypeError as error:
            problems.append(f"{name!r}: {error}")
    if problems:
        raise StructureError(_listing(f"save: {target}: the tree cannot be stored", problems), path="tree")

    arrays = {name: _stored(array, notes[name]) for name, array in jax.device_get(arrays).items()}
    rows, data = _safetensors.layout(arrays)
    for name in rows:
        notes[name]["sha256"] = hashlib.sha256(data[name]).hexdigest()
    info = {"version": _VERSION, "tree": structure, "tensors": {name: notes[name] for name in rows}}
    metadata = {_CHECKSUM: _NO_CHECKSUM, _INFO: _safetensors.json_bytes(info).decode()}
    header = _safetensors.make_header(target, rows, metadata)
    # The checksum is the first thing in the header, so the first run of zeros is its own.
    header = header.replace(_NO_CHECKSUM.encode(), hashlib.sha256(header).hexdigest().encode(), 1)
    _safetensors.replace_file(target, [header, *data.values()])


def _walk(node: Any, parts: tuple[str, ...], leaves: dict[str, Any], problems: list[str]) -> Any:
    """The structure of `node` as JSON, its leaves put into `leaves` by tensor name, in JAX's order."""
    if node is None:
        return None
    children = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)[0]
    name, place = _tensor_name(parts), _place(parts)
    if children and not children[0][0]:  # an empty path: the node is itself a leaf
        if name in leaves:  # possible below a node that names its own children
            problems.append(f"{place}: two leaves have this name")
        leaves[name] = node
        return "leaf"
    if len(parts) == _MAX_DEPTH:
        problems.append(f"{place}: nested deeper than {_MAX_DEPTH} containers")
        return None
    structures = []
    for (entry,), child in children:
        if isinstance(entry, jax.tree_util.DictKey):
            if not isinstance(entry.key, str):
                problems.append(
                    f"{place}: the dict key {entry.key!r} is {a(type(entry.key).__name__)}, not a str"
                )
            elif not is_text(entry.key):
                problems.append(f"{place}: the dict key {entry.key!r} is not valid Unicode")
        part = jax.tree_util.keystr((entry,), simple=True)
        structures.append((part, _walk(child, (*parts, part), leaves, problems)))
    if type(node) is dict:
        return {"dict": dict(structures)}
    if type(node) in (list, tuple):
        return {type(node).__name__: [structure for _, structure in structures]}
    return {"node": type(node).__name__}


def _tensor_name(parts: tuple[str, ...]) -> str:
    """The parts of a leaf's path joined by dots, one name for each path.

    >>> _tensor_name(("blocks", "0", "w")), _tensor_name(("v1.5", "~")), _tensor_name(())
    ('blocks.0.w', 'v1~15.~0', '~')
    """
    name = ".".join(part.replace("~", "~0").replace(".", "~1") for part in parts)
    return "~" + name if name in ("", "__metadata__") else name  # the last is safetensors' own


def _place(parts: tuple[str, ...]) -> str:
    return repr(_tensor_name(parts)) if parts else "the root"


def _array_and_note(leaf: Any) -> tuple[Any, dict[str, str]]:
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
    if leaf.dtype.name not in _safetensors.CODE_OF and leaf.dtype.name not in _AS_BYTES:
        raise DTypeError(f"elements of type {leaf.dtype} cannot be stored")
    return leaf, {}


def _stored(array: Any, note: dict[str, str]) -> np.ndarray:
    """`array` as it lies in the file, of a type that safetensors names."""
    array = contiguous(array)
    if array.dtype.name in _AS_BYTES:
        note["dtype"] = array.dtype.name
        return array[..., None].view(np.uint8)
    return array


# --- load -------------------------------------------------------------------------------------------------


def load(path: str | os.PathLike[str], like: Any = None) -> Any:
    """Read the tree that `save` wrote to `path`.

    Every byte is checked: a damaged or malformed file gives an error, never wrong numbers. Nothing is cast,
    padded or left out. Nothing in the file is executed or used as a path, so that a hostile file can hold
    wrong numbers (whoever can write it can write its checksums too) and do no other harm.

    A safetensors file of another program gives a flat dict from tensor names to arrays, or the tree `like`
    where the names fit. Such a file has no checksums, so damage to its numbers cannot be seen.

    Args:
        path: the file.
        like: a tree of arrays or `jax.ShapeDtypeStruct` with the structure, shapes and dtypes that the file
            must have, as from ``jax.eval_shape(init, key)``. Leaves are matched by their path in the tree.
            Needed where the tree has nodes other than dict, list, tuple and None.

    Returns:
        The tree, of `like`'s structure or, without `like`, of the structure in the file. Arrays are JAX
        arrays on the default device, NumPy arrays where `like` has one; typed keys and Python numbers are
        what they were.

    Raises:
        FileFormatError: the file is damaged, of another format or of a later version; names the tensor.
        StructureError: the file does not fit `like` (lists all missing, unexpected and mismatched leaves),
            or has nodes for which `like` is needed.
        DTypeError: the file holds 64-bit arrays and JAX's 64-bit mode is off.
        OSError: the file is missing or cannot be read.
    """
    source = path_text("load", "path", path)
    with open_file(source) as file:
        tensors, info = _read_header(file, source)
        as_numpy = set()
        if like is not None:
            wanted = _match(like, tensors, source)
            names, treedef = list(wanted), jax.tree.structure(like)
            as_numpy = {name for name in names if isinstance(wanted[name], np.ndarray | np.generic)}
        else:
            template = {name: name for name in tensors} if info is None else _template(info, tensors, source)
            names, treedef = jax.tree.flatten(template)
        _refuse_64_bits({name: tensors[name] for name in names if name not in as_numpy}, source)
        leaves = {
            name: _read_leaf(file, name, tensor, source, name in as_numpy) for name, tensor in tensors.items()
        }
    return treedef.unflatten([leaves[name] for name in names])


def _read_header(file: BufferedReader, source: str) -> tuple[dict[str, _Tensor], dict[str, Any] | None]:
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
            leaf = _leaf_type(row.dtype, row.shape, notes[name])
        except (TypeError, ValueError) as error:
            raise refusal(source, f"tensor {name!r}: its note does not fit: {error}", name) from error
        tensors[name] = _Tensor(*row, notes[name], leaf)
    return tensors, info


def _check_info(head: bytes, metadata: dict[str, str], source: str) -> dict[str, Any]:
    """The entry of the header that `save` wrote, once its checksum and version are right."""
    if _INFO not in metadata or not re.fullmatch("[0-9a-f]{64}", metadata.get(_CHECKSUM, "")):
        raise refusal(source, f"the header lacks `{_INFO}` or `{_CHECKSUM}`.")
    stated = metadata[_CHECKSUM]
    computed = hashlib.sha256(head.replace(stated.encode(), _NO_CHECKSUM.encode(), 1)).hexdigest()
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
    return info


def _leaf_type(stored: np.dtype, shape: tuple[int, ...], note: dict[str, str]) -> jax.ShapeDtypeStruct | type:
    """What a tensor is as a leaf. ValueError or TypeError: it cannot be what its note says."""
    dtype = stored
    if "dtype" in note:
        if note["dtype"] not in _AS_BYTES:
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


def _match(like: Any, tensors: dict[str, _Tensor], source: str) -> dict[str, Any]:
    """`like`'s leaves by tensor name, after comparing each with the file's."""
    wanted: dict[str, Any] = {}
    problems: list[str] = []
    _walk(like, (), wanted, problems)
    if problems:
        raise StructureError(_listing("load: `like` has parts that no file can have", problems), path="like")
    types = {name: _type_of(leaf) for name, leaf in wanted.items()}
    missing = [f"missing     {name!r}: {_say(types[name])}" for name in wanted if name not in tensors]
    mismatched = [
        f"mismatched  {name!r}: `like` has {_say(types[name])}, the file {_say(tensors[name].leaf)}"
        for name in wanted
        if name in tensors and types[name] != tensors[name].leaf
    ]
    unexpected = [
        f"unexpected  {name!r}: {_say(tensors[name].leaf)}" for name in sorted(tensors) if name not in wanted
    ]
    if not missing and not mismatched and not unexpected:
        return wanted
    shapes_fit = all(
        getattr(types[name], "shape", None) == getattr(tensors[name].leaf, "shape", None)
        for name in wanted
        if name in tensors
    )
    raise StructureError(
        _listing(f"load: {source} does not fit `like`", [*missing, *unexpected, *mismatched]),
        path="like",
        hint="only dtypes differ: give `like` those of the file, and cast what you load"
        if shapes_fit and not missing and not unexpected
        else None,
    )


def _type_of(leaf: Any) -> jax.ShapeDtypeStruct | type:
    """What a leaf of `like` asks for; a type that is not in `_PYTHON_DTYPES` fits no leaf of any file."""
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        with contextlib.suppress(TypeError):  # the dtypes of another library are none here
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    return type(leaf)


def _template(info: dict[str, Any], tensors: dict[str, _Tensor], source: str) -> Any:
    """The tree that the header describes, with the tensor's name at each leaf."""
    nodes: list[str] = []  # those that cannot be rebuilt

    def rebuild(structure: Any, parts: tuple[str, ...]) -> Any:
        if len(parts) > _MAX_DEPTH:
            raise refusal(source, f"the tree is nested deeper than {_MAX_DEPTH} containers.")
        match structure:
            case None:
                return None
            case "leaf" if (name := _tensor_name(parts)) in tensors:
                return name
            case {"dict": dict(items), **rest} if not rest:
                return {key: rebuild(item, (*parts, key)) for key, item in items.items()}
            case {"list": list(items), **rest} if not rest:
                return [rebuild(item, (*parts, str(i))) for i, item in enumerate(items)]
            case {"tuple": list(items), **rest} if not rest:
                return tuple(rebuild(item, (*parts, str(i))) for i, item in enumerate(items))
            case {"node": str(kind), **rest} if not rest:
                nodes.append(f"{_place(parts)}: {kind!r}")
                return None
        raise refusal(source, f"the tree in the header is malformed at {_place(parts)}.")

    template = rebuild(info["tree"], ())
    if nodes:
        text = f"load: {source}: the tree has nodes that only `like` can rebuild"
        hint = "pass `like`, a tree of the same structure, as from jax.eval_shape"
        raise StructureError(_listing(text, nodes), path="like", hint=hint)
    if len(jax.tree.leaves(template)) != len(tensors):
        raise refusal(source, "the tree in the header leaves out some tensors.")
    return template


def _refuse_64_bits(tensors: dict[str, _Tensor], source: str) -> None:
    """JAX would cast these to 32 bits without a word."""
    wide = [
        f"{name!r}: {_say(leaf)}"
        for name, (*_, leaf) in tensors.items()
        if isinstance(leaf, jax.ShapeDtypeStruct)
        and not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        and jax.dtypes.canonicalize_dtype(leaf.dtype) != leaf.dtype
    ]
    if wide:
        raise DTypeError(
            _listing(f"load: {source} holds 64-bit arrays, and JAX's 64-bit mode is off", wide),
            path=source,
            hint="load it within jax.enable_x64(True), or give `like` NumPy arrays to get such",
        )


def _read_leaf(file: BufferedReader, name: str, tensor: _Tensor, source: str, as_numpy: bool) -> Any:
    """A tensor's leaf, its checksum verified."""
    data = np.empty(tensor.end - tensor.begin, np.uint8)
    file.seek(tensor.begin)
    if file.readinto(data.data) < data.size:
        raise refusal(source, f"tensor {name!r}: the file became shorter while it was read.", name)
    computed = hashlib.sha256(data.data).hexdigest()
    stated = tensor.note.get("sha256", computed)
    if computed != stated:
        raise refusal(
            source,
            f"tensor {name!r} (bytes {tensor.begin} to {tensor.end}) is damaged.",
            name,
            expected=f"SHA-256 {stated}",
            actual=f"SHA-256 {computed}",
        )
    if tensor.stored == np.bool_ and (data > 1).any():
        raise refusal(source, f"tensor {name!r}: a boolean is neither 0 nor 1.", name)
    array = data.view(tensor.stored).reshape(tensor.shape)
    if "dtype" in tensor.note:
        array = array.view(jnp.dtype(tensor.note["dtype"]))[..., 0]
    if "python" in tensor.note:
        return array.item()
    if "key" in tensor.note:
        return jax.random.wrap_key_data(jnp.asarray(array), impl=tensor.note["key"])
    return array if as_numpy else jnp.asarray(array)


# --- both -------------------------------------------------------------------------------------------------


def _say(leaf: jax.ShapeDtypeStruct | type) -> str:
    return f"Python {leaf.__name__}" if isinstance(leaf, type) else describe(leaf)


def _listing(problem: str, lines: list[str]) -> str:
    return "\n".join([f"{problem}:", *(f"  {line}" for line in lines)])
