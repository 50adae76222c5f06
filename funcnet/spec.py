"""Facts about the leaves of a model, in a tree of the same structure as its params.

The params stay bare arrays; what optimizers, shardings and tables want to know lies beside them. Every
operation with parameters gives its own, `specs(params, **options)`, and a net puts them together.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import jax

from funcnet.errors import DTypeError, ShapeError, StructureError, ValueRangeError, describe

__all__ = ["Matrix", "Spec", "decay_mask", "fits", "is_spec", "of", "stacked", "tree"]

Matrix = None | Literal["table"] | tuple[tuple[int, ...], str]


@dataclasses.dataclass(frozen=True)
class Spec:
    """What one leaf is.

    Attributes:
        shape: its shape.
        dtype: its dtype.
        axes: a name for each axis; "layers" for the axis of a stack of blocks.
        matrix: which matrix it is. None: none, but a gain or a bias. "table": its last two axes are rows and
            features, and rows are picked, not multiplied. Else a shape that the leaf is reshaped to, and for
            each axis of that one letter of the formula dW = Xᵀ dY: "i", an axis of X, which the forward pass
            sums over; "o", one of dY, which it gives; "s", along which matrices are stacked: layers, groups.

    >>> Spec((3, 3, 2, 6), "float32", ("h", "w", "c_in", "c_out"), ((3, 3, 2, 2, 3), "iiiso")).decay
    True
    """

    shape: tuple[int, ...]
    dtype: Any
    axes: tuple[str, ...]
    matrix: Matrix = None

    def __post_init__(self) -> None:
        if len(self.axes) != len(self.shape):
            raise ShapeError(
                f"Spec: {len(self.axes)} axes are named, of a leaf with {len(self.shape)}.",
                path="axes",
                expected=f"{len(self.shape)} names, for {self.shape}",
                actual=", ".join(self.axes) or "none",
            )
        if self.matrix is None or self.matrix == "table":
            return
        shape, roles = self.matrix
        if len(shape) != len(roles) or not {"i", "o"} <= set(roles) <= {"i", "o", "s"}:
            raise ValueRangeError(
                f'Spec: "{roles}" does not say which matrix {shape} is.',
                path="matrix",
                expected=f'{len(shape)} letters of "s" (stack), "i" (in), "o" (out), with an "i" and an "o"',
                actual=f'"{roles}"',
            )
        if math.prod(shape) != math.prod(self.shape):
            raise ShapeError(
                f"Spec: a leaf {self.shape} has no shape {shape}.",
                path="matrix",
                expected=f"{math.prod(self.shape)} elements",
                actual=f"{math.prod(shape)}",
            )

    @property
    def decay(self) -> bool:
        """Whether weight decay applies: to matrices and tables, not to biases and gains."""
        return self.matrix is not None


def of(leaf: Any, axes: str, roles: str | None = None, shape: tuple[int, ...] | None = None) -> Spec:
    """The `Spec` of an array, or of a `jax.ShapeDtypeStruct`.

    Args:
        leaf: its shape and dtype count.
        axes: "a b c", the names of its axes.
        roles: "table", or letters as in `Spec.matrix`. None: it is no matrix.
        shape: that the letters are for; None: the leaf's own.
    """
    matrix = roles if roles is None or roles == "table" else (shape or leaf.shape, roles)
    return Spec(tuple(leaf.shape), leaf.dtype, tuple(axes.split()), matrix)


def is_spec(leaf: Any) -> bool:
    """Where a tree of specs ends: ``jax.tree.map(f, specs, is_leaf=is_spec)``."""
    return isinstance(leaf, Spec)


def stacked(specs: Any, layers: int, axis: str = "layers") -> Any:
    """The specs of so many equal layers, their leaves stacked along a new first axis.

    >>> stacked(Spec((3, 5), "float32", ("a", "b"), ((3, 5), "io")), 2).matrix
    ((2, 3, 5), 'sio')
    """

    def stack(spec: Spec) -> Spec:
        matrix = spec.matrix
        if isinstance(matrix, tuple):
            matrix = (layers, *matrix[0]), f"s{matrix[1]}"
        return Spec((layers, *spec.shape), spec.dtype, (axis, *spec.axes), matrix)

    return jax.tree.map(stack, specs, is_leaf=is_spec)


def decay_mask(specs: Any) -> Any:
    """True where weight decay applies: ``optax.adamw(1e-3, mask=decay_mask(specs(config)))``."""
    check("spec.decay_mask", specs)
    return jax.tree.map(lambda spec: spec.decay, specs, is_leaf=is_spec)


def check(where: str, specs: Any) -> None:
    """Refuse a tree in which a leaf is no Spec."""
    leaves = jax.tree.leaves_with_path(specs, is_leaf=is_spec)
    bare = not leaves and not isinstance(specs, dict | list | tuple)  # None, or a Config, which has no leaves
    for path, leaf in [((), specs)] if bare else leaves:
        if not is_spec(leaf):
            name = f"specs{jax.tree_util.keystr(path)}"
            raise DTypeError(
                f"{where}: {name} is no Spec.",
                path=name,
                expected="specs: those of a net, specs(config), or of an operation, specs(params)",
                actual=describe(leaf),
                hint='of a net of your own: {"head": fn.linear.specs(params["head"]), ...}',
            )


def fits(where: str, specs: Any, params: Any) -> None:
    """Refuse specs that are not those of params.

    Raises:
        DTypeError: a leaf is no Spec.
        StructureError: they are those of another tree.
        ShapeError: one is of another leaf.
    """
    check(where, specs)
    pairs = jax.tree.leaves_with_path(specs, is_leaf=is_spec), jax.tree.leaves_with_path(params)
    if jax.tree.structure(specs, is_leaf=is_spec) != jax.tree.structure(params):
        theirs, own = (
            ", ".join(f"{jax.tree_util.keystr(at)} {list(leaf.shape)}" for at, leaf in leaves)
            for leaves in pairs
        )
        raise StructureError(
            f"{where}: specs are those of another tree than params.",
            path="specs",
            expected=own,
            actual=theirs,
        )
    for (at, leaf), (_, param) in zip(*pairs, strict=True):
        if leaf.shape != tuple(param.shape):
            name = f"specs{jax.tree_util.keystr(at)}"
            raise ShapeError(
                f"{where}: {name} is of another leaf.",
                path=name,
                expected=describe(param),
                actual=f"a Spec of {leaf.shape}",
            )


def tree(where: str, params: Any, facts: Mapping[str, Any]) -> Any:
    """The specs of an operation's params, in their containers.

    Args:
        where: who asks.
        params: a mapping of arrays or `jax.ShapeDtypeStruct`, or of further ones.
        facts: by name the arguments of `of` after the leaf, or further ones. A leaf may be absent.

    Raises:
        StructureError: params are no mapping, or hold what no fact is about.
        ShapeError: a leaf has another number of axes.
    """

    def spec(path: Any, leaf: Any) -> Spec:
        fact: Any = facts
        for entry in path:
            name = getattr(entry, "key", None)
            fact = fact.get(name) if isinstance(fact, Mapping) else None
        if not isinstance(fact, tuple) or not hasattr(leaf, "shape"):
            name = f"params{jax.tree_util.keystr(path)}"
            raise StructureError(
                f"{where}: {name} is no parameter of it.",
                path=name,
                expected=f"a dict with {', '.join(facts)}",
                actual=describe(leaf),
            )
        return of(leaf, *fact)

    return jax.tree.map_with_path(spec, params)
