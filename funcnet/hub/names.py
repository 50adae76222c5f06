"""Which tensor of a checkpoint is which leaf of params: declared once, applied in both directions.

A family of models declares a tree of `Tensor` of the structure of its params. `from_tensors` builds params
from the tensors of a checkpoint; `to_tensors` is its inverse.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnet._safetensors import plain
from funcnet.errors import StructureError, describe

__all__ = ["Names", "Tensor", "from_tensors", "heads", "linear", "norm", "output", "to_tensors"]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where one leaf of params lies in a checkpoint.

    Attributes:
        name: the tensor's name. With "{layer}" in it there is one tensor for each layer, and the leaf has
            them stacked along its first axis.
        axes: the tensor's axes and the leaf's (without "layers"), "(h e) d -> d h e": letters in brackets
            are folded into one axis, the last fastest; 1 is an axis of size 1. Empty: they are the same.
        part: where several leaves share one tensor, as q, k and v do: the leaf is part 0, 1, ... of it.
        along: the axis of the tensor along which the parts follow each other.
    """

    name: str
    axes: str = ""
    part: int | None = None
    along: int = 0


@dataclasses.dataclass(frozen=True)
class Names:
    """The declaration of one model.

    Attributes:
        tree: of the structure of params, a `Tensor` at each leaf.
        sizes: the letters in `Tensor.axes` that no axis of a leaf has for itself.
        renamed: (pattern, replacement) pairs of `re.sub` that bring the names which a file may have instead
            to those in `tree`, applied one after the other.
        ignored: patterns of names that a file may have and params have not.
        tied: names that a file may have for a second copy, and of which tensor: the two must be equal.
    """

    tree: Any
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    renamed: Sequence[tuple[str, str]] = ()
    ignored: Sequence[str] = ()
    tied: Mapping[str, str] = dataclasses.field(default_factory=dict)


# The layers that every family has, as torch stores them: a linear map is [out, in].


def linear(name: str, *, bias: bool = True) -> dict[str, Tensor]:
    """A linear map."""
    return _layer(name, "o i -> i o", "", bias)


def heads(name: str, *, bias: bool = True) -> dict[str, Tensor]:
    """A linear map to the features of heads: multihead's q, k or v."""
    return _layer(name, "(h e) d -> d h e", "(h e) -> h e", bias)


def output(name: str, *, bias: bool = True) -> dict[str, Tensor]:
    """A linear map from the features of heads: multihead's o."""
    return _layer(name, "d (h e) -> h e d", "", bias)


def norm(name: str, *, bias: bool = True) -> dict[str, Tensor]:
    """The gain and offset of a norm."""
    return _layer(name, "", "", bias)


def _layer(name: str, w: str, b: str, bias: bool) -> dict[str, Tensor]:
    return {"w": Tensor(f"{name}.weight", w)} | ({"b": Tensor(f"{name}.bias", b)} if bias else {})


@dataclasses.dataclass(frozen=True)
class _Piece:
    """One layer of one leaf, as a part of one tensor."""

    tensor: Tensor
    leaf: str  # its path
    layer: int | None
    sizes: dict[str, int]  # of the letters
    stored: tuple[int, ...]  # its shape in the checkpoint


def from_tensors(names: Names, like: Any, tensors: Mapping[str, Any], source: str) -> Any:
    """Params of the structure and shapes of `like`, NumPy arrays in the dtypes of the tensors.

    Args:
        names: the declaration.
        like: the params' shapes, as from ``jax.eval_shape(init, key)``.
        tensors: of the checkpoint, by name.
        source: what to call it in an error.

    Raises:
        StructureError: the tensors do not fit; lists all that are missing, unexpected, wrongly shaped or not
            floating-point.
    """
    pieces = _pieces(names, like)
    tensors, problems = _known(names, tensors)
    problems += _differences(pieces, {name: tensors[name] for name in tensors if name not in names.tied})
    problems += [
        f"  unequal     {copy!r}: not a copy of {name!r}"
        for copy, name in names.tied.items()
        if copy in tensors and name in tensors and not np.array_equal(tensors[copy], tensors[name])
    ]
    if problems:
        raise StructureError("\n".join([f"load: {source}: the tensors do not fit the model:", *problems]))
    layers: dict[str, list[np.ndarray]] = {}
    for name, group in pieces.items():
        ends = np.cumsum([piece.stored[piece.tensor.along] for piece in group if piece.stored])
        parts = (
            np.split(tensors[name], ends[:-1], group[0].tensor.along) if len(group) > 1 else [tensors[name]]
        )
        for piece, part in zip(group, parts, strict=True):
            layers.setdefault(piece.leaf, []).append(_rearrange(part, piece))
    return jax.tree.map_with_path(
        lambda path, tensor: np.stack(layers[_name(path)]) if _stacked(tensor) else layers[_name(path)][0],
        names.tree,
    )


def to_tensors(names: Names, like: Any, params: Any) -> dict[str, np.ndarray]:
    """The tensors of the checkpoint that holds `params`, by name: the inverse of `from_tensors`.

    Raises:
        StructureError: params do not have the structure and shapes of `like`, or a leaf is not a plain array
            of floating-point numbers; lists all leaves at fault.
    """
    leaves = {_name(path): leaf for path, leaf in jax.tree.leaves_with_path(params)}
    wanted = {_name(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(like)}
    problems = [f"  missing     params{name}: {list(wanted[name])}" for name in wanted if name not in leaves]
    problems += [f"  unexpected  params{name}" for name in leaves if name not in wanted]
    problems += [
        f"  mismatched  params{name}: {plain(leaves[name]) or describe(leaves[name])}, expected {list(shape)}"
        for name, shape in wanted.items()
        if name in leaves and not _fits(leaves[name], shape)
    ]
    if problems:
        raise StructureError("\n".join(["save: params are not those of config:", *problems]), path="params")
    leaves = {name: np.asarray(leaf) for name, leaf in jax.device_get(leaves).items()}
    tensors = {}
    for name, group in _pieces(names, like).items():
        parts = [
            _rearrange(leaves[piece.leaf][() if piece.layer is None else piece.layer], piece, back=True)
            for piece in group
        ]
        tensors[name] = np.concatenate(parts, group[0].tensor.along) if len(group) > 1 else parts[0]
    return tensors


def _fits(leaf: Any, shape: tuple[int, ...]) -> bool:
    return plain(leaf) is None and leaf.shape == shape and jnp.issubdtype(leaf.dtype, jnp.floating)


def _pieces(names: Names, like: Any) -> dict[str, list[_Piece]]:
    """Of each tensor of the checkpoint, in order, the pieces that it holds."""
    declared = {_name(path): tensor for path, tensor in jax.tree.leaves_with_path(names.tree)}
    shapes = {_name(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(like)}
    pieces: dict[str, list[_Piece]] = {}
    for leaf, tensor in declared.items():
        shape = shapes[leaf]
        for layer in range(shape[0]) if _stacked(tensor) else [None]:
            sizes, stored = _shapes(tensor, shape if layer is None else shape[1:], names.sizes)
            name = tensor.name if layer is None else tensor.name.format(layer=layer)
            pieces.setdefault(name, []).append(_Piece(tensor, leaf, layer, sizes, stored))
    return {name: sorted(group, key=lambda piece: piece.tensor.part or 0) for name, group in pieces.items()}


def _known(names: Names, tensors: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The tensors by the names of the declaration, without those to ignore; and what stands in the way."""
    known, olds, problems = {}, {}, []
    for old, tensor in tensors.items():
        name = old
        for pattern, replacement in names.renamed:
            name = re.sub(pattern, replacement, name)
        if any(re.fullmatch(pattern, name) for pattern in names.ignored):
            continue
        if name in known:
            problems.append(f"  twice       {name!r}: as {olds[name]!r} and as {old!r}")
        known[name], olds[name] = tensor, old
    return known, problems


def _differences(pieces: Mapping[str, Sequence[_Piece]], tensors: Mapping[str, Any]) -> list[str]:
    """What the tensors lack, have over, and have in another shape, a line each."""
    missing, mismatched = [], []
    for name, group in pieces.items():
        shape = list(group[0].stored)
        if len(group) > 1:
            along = group[0].tensor.along
            shape[along] = sum(piece.stored[along] for piece in group)
        wanted = f"float[{', '.join(map(str, shape))}]     (params{group[0].leaf})"
        if name not in tensors:
            missing.append(f"  missing     {name!r}: {wanted}")
        elif tensors[name].shape != tuple(shape) or not jnp.issubdtype(tensors[name].dtype, jnp.floating):
            mismatched.append(f"  mismatched  {name!r}: {describe(tensors[name])}, expected {wanted}")
    unexpected = [
        f"  unexpected  {name!r}: {describe(tensors[name])}" for name in sorted(tensors) if name not in pieces
    ]
    return [*missing, *unexpected, *mismatched]


def _stacked(tensor: Tensor) -> bool:
    return "{layer}" in tensor.name


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path).replace("'", '"')


# --- axes -------------------------------------------------------------------------------------------------


def _sides(axes: str) -> list[list[list[str]]]:
    """The letters of each axis of the tensor, and of the leaf.

    >>> _sides("1 (h e) d -> d h e")
    [[[], ['h', 'e'], ['d']], [['d'], ['h'], ['e']]]
    """
    return [
        [re.findall(r"[a-z]+", axis) for axis in re.findall(r"\([^)]*\)|\w+", side)]
        for side in axes.split("->")
    ]


def _shapes(tensor: Tensor, leaf: tuple[int, ...], known: Mapping[str, int]) -> tuple[dict, tuple[int, ...]]:
    """The size of each letter, and the shape of the tensor that is rearranged to a leaf of shape `leaf`."""
    if not tensor.axes:
        return {}, leaf
    stored, wanted = _sides(tensor.axes)
    sizes = dict(known)
    for letters, size in zip(wanted, leaf, strict=True):
        if len(letters) == 1:
            sizes[letters[0]] = size
    return sizes, tuple(math.prod(sizes[letter] for letter in letters) for letters in stored)


def _rearrange(x: np.ndarray, piece: _Piece, *, back: bool = False) -> np.ndarray:
    if not piece.tensor.axes:
        return x
    source, target = _sides(piece.tensor.axes)[:: -1 if back else 1]
    letters, order = ([letter for group in side for letter in group] for side in (source, target))
    x = x.reshape([piece.sizes[letter] for letter in letters])
    x = x.transpose([letters.index(letter) for letter in order])
    return x.reshape([math.prod(piece.sizes[letter] for letter in group) for group in target])
