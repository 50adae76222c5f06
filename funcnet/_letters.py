"""How the result of an operation is split over a mesh with Explicit axes: as its annotation's letters say.

The type of an array names the mesh axes that each of its axes is split over. A letter of the result, the d of
``Float[Array, "*n t d"]``, takes the mesh axes that it has in an argument: in an array first, in parameters
where no array has the letter. A mesh axis is taken once, by the leftmost. A letter that is summed over is in
no result: that is whole. Within the operation all axes are Auto, so that JAX's partitioner splits its
program, and cotangents come back split as the arguments are.
"""

import functools
import inspect
import math
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

__all__ = [
    "NOTHING",
    "Axes",
    "Told",
    "as_spec",
    "axes_of",
    "constrain",
    "devices",
    "examples_apart",
    "is_explicit",
    "of_product",
    "run",
]

Axes = tuple[str, ...]  # of a mesh, over which one axis of an array is split


def is_explicit() -> bool:
    """Whether the mesh has axes whose splits are part of the types of arrays."""
    return bool(jax.sharding.get_abstract_mesh().explicit_axes)


class Told(NamedTuple):
    """What an operation says of itself where the letters of its annotation do not.

    Attributes:
        split: ``(*args, **options) -> axes_of(result)``.
        options: ``(*args, **options)`` -> options that the types of the arguments say, which its program, on
            Auto axes, does not see.
        instead: ``(f, *args, **options) -> result``, what runs on the Explicit axes themselves; or
            `NotImplemented`, where that is not called for.
    """

    split: Callable[..., list[Axes]] | None = None
    options: Callable[..., dict[str, Any]] | None = None
    instead: Callable[..., Any] | None = None


NOTHING = Told()


def run(f: Callable[..., Any], told: Told, args: tuple[Any, ...], options: Mapping[str, Any]) -> Any:
    """``f(*args, **options)`` with its Explicit axes made Auto, the result split as its letters say."""
    mesh = jax.sharding.get_abstract_mesh()
    try:
        if told.instead is not None and (y := told.instead(f, *args, **options)) is not NotImplemented:
            return y
        if told.options is not None:
            options = {**options, **told.options(*args, **options)}
        inside, arrays = _of_arrays(f, args, options)
        out = _split_of(f, told, args, options, lambda: _shapes(inside, arrays, mesh))
    except Exception:
        _shapes(*_of_arrays(f, args, options), mesh)  # what f refuses, it refuses by an error of its own
        raise
    if out is None:  # it says nothing: it runs as it is
        return f(*args, **options)
    return jax.sharding.auto_axes(inside, axes=tuple(mesh.explicit_axes), out_sharding=out)(*arrays)


def _of_arrays(f: Callable[..., Any], args: Any, options: Any) -> tuple[Callable[..., Any], list[Any]]:
    """f as a function of its arrays, and these: `jax.sharding.auto_axes` casts positional arguments only."""
    leaves, tree = jax.tree.flatten((args, dict(options)))
    moving = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array | np.ndarray)]

    def inside(*arrays: Any) -> Any:
        given = list(leaves)
        for i, array in zip(moving, arrays, strict=True):
            given[i] = array
        args, options = jax.tree.unflatten(tree, given)
        return f(*args, **options)

    return inside, [leaves[i] for i in moving]


def _shapes(f: Callable[..., Any], arrays: list[Any], mesh: Any) -> Any:
    """What f gives, on a mesh whose axes are Auto."""
    auto = mesh.update_axis_types(dict.fromkeys(mesh.explicit_axes, jax.sharding.AxisType.Auto))
    with jax.sharding.use_abstract_mesh(auto):
        return jax.eval_shape(f, *(jax.ShapeDtypeStruct(v.shape, v.dtype) for v in arrays))


def axes_of(x: Any) -> list[Axes]:
    """For each axis of x the mesh axes over which its type says that it is split."""
    if not isinstance(x, jax.Array):
        return [()] * len(x.shape)
    each = [(one,) if isinstance(one, str) else tuple(one or ()) for one in jax.typeof(x).sharding.spec]
    return each + [()] * (x.ndim - len(each))


def as_spec(each: Iterable[Axes]) -> jax.P:
    """What an array is split over, axis by axis, as JAX writes it."""
    return jax.P(*(axes or None for axes in each))


def of_product(x: Any, w: Any, inputs: int) -> list[Axes]:
    """As `axes_of`, of x W where W takes the last `inputs` axes of x: what is summed over is in no result."""
    return axes_of(x)[: x.ndim - inputs] + axes_of(w)[inputs:]


def devices(axes: Axes) -> int:
    """Over how many devices of the mesh that is set these axes of it reach."""
    sizes = jax.sharding.get_abstract_mesh().shape
    return math.prod(sizes[axis] for axis in axes)


def constrain(x: jax.Array, *each: Axes) -> jax.Array:
    """x split over the axes of a mesh so, where one is set whose axes are Auto; else x."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.explicit_axes or mesh.manual_axes:
        return x
    return jax.lax.with_sharding_constraint(x, as_spec(each))


def examples_apart(x: Any) -> Any:
    """x [n, ..., d] with n split over "data" and d whole, on a mesh with Auto axes and one so named; else x.

    Of a product of [n, d], n split, and [d, f], d split over the same devices, the partitioner may as well
    split the sum over d: then every device has all of n. What is said here leaves it only to gather [d, f].
    No type says how x is split, so the axis is known by the name that the rules of `fn.shard` give it.
    """
    mesh = jax.typeof(x).sharding.mesh
    if x.ndim < 3 or not mesh.are_all_axes_auto or mesh.shape.get("data", 1) == 1:
        return x
    if not isinstance(x.shape[0], int) or x.shape[0] % mesh.shape["data"]:
        return x
    spec = jax.P("data", *[jax.P.UNCONSTRAINED] * (x.ndim - 2), None)
    return jax.lax.with_sharding_constraint(x, jax.sharding.NamedSharding(mesh, spec))


# ---- letters ----------------------------------------------------------------------------------------------

Known = dict[str, list[Axes]]  # a letter, or a group of them ("*n"), and what its axes are split over


def _split_of(
    f: Callable[..., Any],
    told: Told,
    args: tuple[Any, ...],
    options: Mapping[str, Any],
    shapes: Callable[[], Any],
) -> Any:
    """How the result of `run` is split: for each of its arrays a `jax.P`; `shapes` gives theirs."""
    if told.split is not None:
        return _once(told.split(*args, **options))
    signature = _signature(f)
    if not _letters_of(signature.return_annotation):
        return None
    arrays, params = Known(), Known()
    for name, value in signature.bind(*args, **options).arguments.items():
        known = params if isinstance(value, Mapping) else arrays
        _learn(known, signature.parameters[name].annotation, value)
    known, result = params | arrays, signature.return_annotation
    return _result(known, result, None if _is_told(known, result) else shapes())


_signature = functools.cache(inspect.signature)


def _learn(known: Known, hint: Any, value: Any) -> None:
    if isinstance(value, Mapping):
        for name, part in _fields(hint).items():
            _learn(known, part, value.get(name))
    elif hasattr(value, "dtype"):
        axes, dims = axes_of(value), _dims(hint, value.dtype)
        rest = len(axes) - len(dims) + 1  # axes of a group
        for dim in dims:
            count = rest if dim.startswith(("*", "...")) else 1
            mine, axes = axes[:count], axes[count:]
            old = known.get(dim, mine)
            known[dim] = [a or b for a, b in zip(old, mine, strict=True)] if len(old) == len(mine) else old


def _result(known: Known, hint: Any, shapes: Any) -> Any:
    if isinstance(shapes, tuple) or typing.get_origin(hint) is tuple:
        hints = typing.get_args(hint)
        return tuple(map(functools.partial(_result, known), hints, shapes or [None] * len(hints)))
    if fields := _fields(hint):
        return {name: _result(known, part, shapes and shapes[name]) for name, part in fields.items()}
    return _once([axes for dim in _dims(hint) for axes in _found(known, dim)], shapes)


def _found(known: Known, dim: str) -> list[Axes]:
    """What an axis of the result is split over, or a group of them: "*n_and_out" as "*n_and_size" is."""
    if dim in known or not dim.startswith("*"):
        return known.get(dim, [()] if dim != "..." else [])
    groups = [axes for name, axes in known.items() if name.startswith("*")]
    kin = [axes for name, axes in known.items() if name.partition("_and_")[0] == dim.partition("_and_")[0]]
    return max(kin or groups, key=len, default=[])


def _is_told(known: Known, hint: Any) -> bool:
    """Whether each group of the result is one of an argument, of the same sizes, or not split."""
    if typing.get_origin(hint) is tuple:
        return all(_is_told(known, part) for part in typing.get_args(hint))
    return all(d in known or not any(_found(known, d)) for d in _dims(hint) if d.startswith("*"))


def _letters_of(hint: Any) -> bool:
    """Whether an annotation has letters at all."""
    return any(map(_letters_of, typing.get_args(hint) if typing.get_origin(hint) is tuple else ())) or bool(
        _dims(hint) or _fields(hint)
    )


def _once(each: list[Axes], shape: Any = None) -> Any:
    """A `jax.P` in which a mesh axis is there once; of a result of a `shape`, where it divides."""
    taken, out = set[str](), list[Any]()
    for i, axes in enumerate(each):
        free = tuple(axis for axis in axes if axis not in taken)
        if shape is not None and shape.shape[i] % devices(free):
            free = ()
        taken.update(free)
        out.append(free or None)
    return jax.P(*out)


@functools.cache
def _fields(hint: Any) -> dict[str, Any]:
    """The annotations of a TypedDict, which may be one of several types; none of anything else."""
    for one in typing.get_args(hint) or (hint,):
        if typing.is_typeddict(one):
            return typing.get_type_hints(one)
    return {}


@functools.cache
def _dims(hint: Any, dtype: Any = None) -> tuple[str, ...]:
    """The letters of an annotation, of several that of the dtype."""
    for one in typing.get_args(hint) or (hint,):
        if hasattr(one, "dim_str") and (dtype is None or str(dtype) in one.dtypes):
            return tuple(one.dim_str.split())
    return ()
