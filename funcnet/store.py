"""Save a pytree to one safetensors file, and load exactly what was saved or an error that says what is not.

The file is the pytree's leaves as named tensors (``conv1.w``), which any safetensors reader opens, and in
the header's ``__metadata__`` the tree's structure, the SHA-256 of each tensor and that of the header
itself: safetensors has no checksum, so a flipped bit would load as a wrong number. `docs/store.md` states
the format.

`_safetensors` reads and writes the bytes.
"""

import os
from io import BufferedReader
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnet import _safetensors
from funcnet._safetensors import a, is_text, open_file, path_text, refusal
from funcnet._tensors import (
    Tensor,
    array_and_note,
    children,
    differences,
    file_chunks,
    leaf_of,
    listing,
    place,
    read_bytes,
    read_tensors,
    refuse_64_bits,
    stored,
    tensor_name,
    type_of,
)
from funcnet.errors import DTypeError, StructureError

__all__ = ["load", "save"]

_MAX_DEPTH = 100  # containers within containers


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
            arrays[name], notes[name] = array_and_note(leaf)
        except DTypeError as error:
            problems.append(f"{name!r}: {error}")
    if problems:
        raise StructureError(listing(f"save: {target}: the tree cannot be stored", problems), path="tree")

    arrays = {name: stored(array, notes[name]) for name, array in jax.device_get(arrays).items()}
    _, chunks = file_chunks(target, arrays, structure, notes)
    _safetensors.replace_file(target, chunks)


def _walk(node: Any, parts: tuple[str, ...], leaves: dict[str, Any], problems: list[str]) -> Any:
    """The structure of `node` as JSON, its leaves put into `leaves` by tensor name, in JAX's order."""
    if node is None:
        return None
    below = children(node)
    if below is None:
        name = tensor_name(parts)
        if name in leaves:  # possible below a node that names its own children
            problems.append(f"{place(parts)}: two leaves have this name")
        leaves[name] = node
        return "leaf"
    if len(parts) == _MAX_DEPTH:
        problems.append(f"{place(parts)}: nested deeper than {_MAX_DEPTH} containers")
        return None
    structures = []
    for entry, part, child in below:
        if isinstance(entry, jax.tree_util.DictKey):
            if not isinstance(entry.key, str):
                problems.append(
                    f"{place(parts)}: the dict key {entry.key!r} is {a(type(entry.key).__name__)}, not a str"
                )
            elif not is_text(entry.key):
                problems.append(f"{place(parts)}: the dict key {entry.key!r} is not valid Unicode")
        structures.append((part, _walk(child, (*parts, part), leaves, problems)))
    if type(node) is dict:
        return {"dict": dict(structures)}
    if type(node) in (list, tuple):
        return {type(node).__name__: [structure for _, structure in structures]}
    return {"node": type(node).__name__}


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
        tensors, info = read_tensors(file, source)
        as_numpy = set()
        if like is not None:
            wanted = _match(like, tensors, source)
            names, treedef = list(wanted), jax.tree.structure(like)
            as_numpy = {name for name in names if isinstance(wanted[name], np.ndarray | np.generic)}
        else:
            template = {name: name for name in tensors} if info is None else _template(info, tensors, source)
            names, treedef = jax.tree.flatten(template)
        refuse_64_bits({name: tensors[name] for name in names if name not in as_numpy}, source)
        leaves = {
            name: _read_leaf(file, name, tensor, source, name in as_numpy) for name, tensor in tensors.items()
        }
    return treedef.unflatten([leaves[name] for name in names])


def _match(like: Any, tensors: dict[str, Tensor], source: str) -> dict[str, Any]:
    """`like`'s leaves by tensor name, after comparing each with the file's."""
    wanted: dict[str, Any] = {}
    problems: list[str] = []
    _walk(like, (), wanted, problems)
    if problems:
        raise StructureError(listing("load: `like` has parts that no file can have", problems), path="like")
    types = {name: type_of(leaf) for name, leaf in wanted.items()}
    found = {name: tensor.leaf for name, tensor in tensors.items()}
    missing, unexpected, mismatched = differences(types, found, "`like`", "the file")
    if not missing and not mismatched and not unexpected:
        return wanted
    shapes_fit = all(
        getattr(types[name], "shape", None) == getattr(tensors[name].leaf, "shape", None)
        for name in wanted
        if name in tensors
    )
    raise StructureError(
        listing(f"load: {source} does not fit `like`", [*missing, *unexpected, *mismatched]),
        path="like",
        hint="only dtypes differ: give `like` those of the file, and cast what you load"
        if shapes_fit and not missing and not unexpected
        else None,
    )


def _template(info: dict[str, Any], tensors: dict[str, Tensor], source: str) -> Any:
    """The tree that the header describes, with the tensor's name at each leaf."""
    nodes: list[str] = []  # those that cannot be rebuilt

    def rebuild(structure: Any, parts: tuple[str, ...]) -> Any:
        if len(parts) > _MAX_DEPTH:
            raise refusal(source, f"the tree is nested deeper than {_MAX_DEPTH} containers.")
        match structure:
            case None:
                return None
            case "leaf" if (name := tensor_name(parts)) in tensors:
                return name
            case {"dict": dict(items), **rest} if not rest:
                return {key: rebuild(item, (*parts, key)) for key, item in items.items()}
            case {"list": list(items), **rest} if not rest:
                return [rebuild(item, (*parts, str(i))) for i, item in enumerate(items)]
            case {"tuple": list(items), **rest} if not rest:
                return tuple(rebuild(item, (*parts, str(i))) for i, item in enumerate(items))
            case {"node": str(kind), **rest} if not rest:
                nodes.append(f"{place(parts)}: {kind!r}")
                return None
        raise refusal(source, f"the tree in the header is malformed at {place(parts)}.")

    template = rebuild(info["tree"], ())
    if nodes:
        text = f"load: {source}: the tree has nodes that only `like` can rebuild"
        hint = "pass `like`, a tree of the same structure, as from jax.eval_shape"
        raise StructureError(listing(text, nodes), path="like", hint=hint)
    if len(jax.tree.leaves(template)) != len(tensors):
        raise refusal(source, "the tree in the header leaves out some tensors.")
    return template


def _read_leaf(file: BufferedReader, name: str, tensor: Tensor, source: str, as_numpy: bool) -> Any:
    """A tensor's leaf, its checksum verified."""
    data = np.empty(tensor.end - tensor.begin, np.uint8)
    read_bytes(file, name, tensor, source, data)
    array = data.view(tensor.stored).reshape(tensor.shape)
    if "dtype" in tensor.note:
        array = array.view(jnp.dtype(tensor.note["dtype"]))[..., 0]
    return leaf_of(array, tensor.note, as_numpy)
