"""A part of a checkpoint as one file, which `load` and every reader of safetensors opens."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from funcnet._tensors import stream
from funcnet.train._pieces import PIECE, Index, Leaf, Part, read


def under(index: Index, path: str) -> dict[str, str]:
    """The leaves of a checkpoint at or below a path, by their names in a file of that part alone."""
    return {_below(name, path): name for name in index.leaves if _is_in(name, path)}


def write(folder: str, index: Index, path: str, target: str) -> None:
    """Write the leaves of a checkpoint at or below `path` to the file `target`, all of it or nothing.

    They are read one after the other, small ones together, so that memory is taken for the largest of them or
    for 64 MiB. Dict keys that were no text are text in the file.

    Args:
        folder: the checkpoint.
        index: its index.
        path: ``params``, ``average``, ``params.blocks.0`` ...; "~": the whole state.
        target: the file.

    Raises:
        FileFormatError: a piece is damaged, missing its tensors, or not the one that the index names.
        OSError: one cannot be read, or the file not be written.
    """
    names = under(index, path)
    leaves = {short: index.leaves[name] for short, name in names.items()}

    def arrays(order: Sequence[str]) -> Iterator[np.ndarray]:
        for group in _groups(order, leaves):
            parts = {short: Part.at(names[short], (), leaves[short].array.shape) for short in group}
            found = read(folder, index, parts.values())
            for part in parts.values():
                yield found.pop(part)

    notes = {short: leaf.note for short, leaf in leaves.items()}
    stream(target, {short: leaf.array for short, leaf in leaves.items()}, _tree(index, path), notes, arrays)


def _groups(order: Sequence[str], leaves: Mapping[str, Leaf]) -> Iterator[list[str]]:
    """Leaves that are read together."""
    group, size = list[str](), 0
    for short in order:
        leaf = leaves[short].array
        more = math.prod(leaf.shape) * leaf.dtype.itemsize
        if group and size + more > PIECE:
            yield group
            group, size = [], 0
        group.append(short)
        size += more
    yield group


def _is_in(name: str, path: str) -> bool:
    return path == "~" or name == path or name.startswith(f"{path}.")


def _below(name: str, path: str) -> str:
    """The name of a leaf in a tree that begins at `path`."""
    if name == path:
        return "~"
    short = name if path == "~" else name[len(path) + 1 :]
    return f"~{short}" if short in ("", "__metadata__") else short


def _tree(index: Index, path: str) -> Any:
    """The structure of the tree that begins at `path`, as `save` writes it."""
    below: dict[str, dict[str, str]] = {}  # of each node its children: part of the path, and path
    for name in [*index.nodes, *index.leaves]:
        if name != "~":
            above, _, part = name.rpartition(".") if "." in name else ("~", "", name)
            below.setdefault(above, {})[part] = name

    def build(name: str) -> Any:
        if name in index.leaves:
            return "leaf"
        kind, children = index.nodes[name], below.get(name, {})
        if kind == "None":
            return None
        if kind == "builtins.dict":
            keys = {part.replace("~1", ".").replace("~0", "~"): child for part, child in children.items()}
            return {"dict": {key: build(keys[key]) for key in sorted(keys)}}
        if kind in ("builtins.list", "builtins.tuple"):
            ordered = sorted(children, key=int)
            return {kind.removeprefix("builtins."): [build(children[part]) for part in ordered]}
        return {"node": kind.rpartition(".")[2]}

    return build(path)
