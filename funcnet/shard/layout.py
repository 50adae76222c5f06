"""Which axis of a leaf lies on which axis of a mesh: `specs` and a dict of rules, to shardings.

Of a leaf each axis has a name, and a rule gives to a name an axis of the mesh. An axis that it does not
divide stays whole; of two names that ask for one axis of the mesh the leftmost has it; small leaves stay
whole.
"""

import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding

from funcnet import spec
from funcnet._letters import as_spec
from funcnet.errors import DTypeError, ValueRangeError, describe
from funcnet.spec import Spec

__all__ = ["DP", "FSDP", "TP", "Rules", "check_axis", "init", "mesh_of", "of", "table"]

Rules = Mapping[str, str | tuple[str, ...] | None]

DP: dict[str, str] = {}
FSDP: dict[str, str] = {"d": "data", "d_in": "data", "c_in": "data"}
TP: dict[str, str] = {"h": "tensor", "h_kv": "tensor", "d_hidden": "tensor", "v": "tensor"}

WHOLE = 2**14  # elements: gathering fewer costs more in waiting than they take in memory


class Axis(NamedTuple):
    """What became of one axis of a leaf: the axes of the mesh that it is split over, or why it is whole."""

    over: tuple[str, ...]
    why: str = ""


def of(specs: Any, rules: Rules, mesh: Any = None, *, whole_below: int = WHOLE) -> Any:
    """The sharding of every leaf.

    Args:
        specs: a tree of `Spec`, as ``net.specs(config)`` gives.
        rules: the name of an axis -> the axis of the mesh that it is split over, or several.
        mesh: of `jax.make_mesh`; None: the one that is set.
        whole_below: leaves of fewer elements stay whole.

    Returns:
        A tree of `NamedSharding`, like specs.

    Raises:
        ValueRangeError: the mesh lacks an axis, there is none, or no leaf has a name of the rules.
        DTypeError: specs holds something else, or a rule is no name.
    """
    where, mesh = "shard.of", mesh_of("shard.of", mesh)
    _check(where, specs, rules, mesh)
    place = lambda s: NamedSharding(mesh, as_spec(axis.over for axis in _axes(s, rules, mesh, whole_below)))
    return jax.tree.map(place, specs, is_leaf=spec.is_spec)


def init(
    f: Callable[[Any], Any], key: Any, specs: Any, rules: Rules, mesh: Any = None, *, whole_below: int = WHOLE
) -> Any:
    """``f(key)``, every leaf born where it lies: no device ever holds what is not its own.

    The random numbers are those of one device.

    Args:
        f: gives params, ``lambda key: transformer.init(key, config)``.
        key: of `jax.random.key`.
        specs: of these params.
        rules: as in `of`.
        mesh: as in `of`.
        whole_below: as in `of`.

    Raises:
        StructureError, ShapeError: specs are those of other params.
        ValueRangeError, DTypeError: as in `of`.
    """
    to = of(specs, rules, mesh, whole_below=whole_below)
    spec.fits("shard.init", specs, jax.eval_shape(f, key))
    return jax.jit(f, out_shardings=to)(key)


def table(specs: Any, rules: Rules, mesh: Any = None, *, whole_below: int = WHOLE) -> str:
    """Every leaf as a line: its split, its bytes on a device, and what stayed whole and why."""
    mesh = mesh_of("shard.table", mesh)
    _check("shard.table", specs, rules, mesh)
    rows, total = [("leaf", "axes", "bytes a device", "")], 0
    for path, leaf in jax.tree.leaves_with_path(specs, is_leaf=spec.is_spec):
        axes = _axes(leaf, rules, mesh, whole_below)
        parts = math.prod(mesh.shape[name] for axis in axes for name in axis.over)
        size = math.prod(leaf.shape) // parts * np.dtype(leaf.dtype).itemsize
        split = [
            f"{name} {n}"
            + (f" / {'·'.join(axis.over)} {math.prod(mesh.shape[a] for a in axis.over)}" if axis.over else "")
            for name, n, axis in zip(leaf.axes, leaf.shape, axes, strict=True)
        ]
        why = dict.fromkeys(axis.why for axis in axes if axis.why)
        rows.append((_named(path), ", ".join(split), f"{size:,}", "; ".join(why)))
        total += size
    rows.append(("all", " × ".join(f"{name} {n}" for name, n in mesh.shape.items()), f"{total:,}", ""))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = (f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}  {d}".rstrip() for a, b, c, d in rows)
    return "\n".join(lines)


def _named(path: Any) -> str:
    return "".join(f"[{k.idx}]" if hasattr(k, "idx") else f".{k.key}" for k in path).lstrip(".")


def _axes(leaf: Spec, rules: Rules, mesh: Any, whole_below: int) -> list[Axis]:
    asked = [_tuple(rules.get(name)) for name in leaf.axes]
    if math.prod(leaf.shape) < whole_below and any(asked):
        return [Axis((), f"whole: fewer than {whole_below:,} elements")] * len(asked)
    taken, out = set[str](), list[Axis]()
    for name, n, over in zip(leaf.axes, leaf.shape, asked, strict=True):
        free = tuple(axis for axis in over if axis not in taken)
        parts = math.prod(mesh.shape[axis] for axis in free)
        if over and not free:
            out.append(Axis((), f"{name} whole: {', '.join(over)} is taken"))
        elif n % parts:
            out.append(Axis((), f"{name} whole: {parts} does not divide {n}"))
        else:
            taken.update(free)
            out.append(Axis(free))
    return out


def _tuple(over: Any) -> tuple[str, ...]:
    return (over,) if isinstance(over, str) else tuple(over or ())


def mesh_of(where: str, mesh: Any) -> Any:
    """The mesh that is given, or set."""
    mesh = jax.sharding.get_mesh() if mesh is None else mesh
    if mesh.empty:
        raise ValueRangeError(
            f"{where}: there is no mesh.",
            path="mesh",
            expected="a mesh that is set, or given",
            actual="none",
            hint='mesh = jax.make_mesh((4, 2), ("data", "tensor")); with jax.set_mesh(mesh): ...',
        )
    return mesh


def check_axis(where: str, path: str, axis: str, mesh: Any) -> None:
    """Refuse an axis that the mesh does not have."""
    if axis not in mesh.shape:
        near = difflib.get_close_matches(axis, mesh.shape, 1)
        raise ValueRangeError(
            f"{where}: the mesh has no axis {axis!r}.",
            path=path,
            expected=f"one of {', '.join(map(repr, mesh.shape))}",
            actual=repr(axis),
            hint=f"{near[0]!r}?" if near else None,
        )


def _check(where: str, specs: Any, rules: Any, mesh: Any) -> None:
    spec.check(where, specs)
    is_axes = lambda over: over is None or isinstance(over, str | tuple | list)
    pairs = rules.items() if isinstance(rules, Mapping) else [("", rules)]
    for name, over in pairs:
        if name and isinstance(name, str) and is_axes(over) and all(isinstance(a, str) for a in _tuple(over)):
            continue
        raise DTypeError(
            f"{where}: rules are not a dict of names.",
            path="rules",
            expected='rules: the name of an axis -> an axis of the mesh, {"d": "data"}',
            actual=f"rules[{name!r}]: {describe(over)}" if name else f"rules: {describe(rules)}",
        )
    for name, over in rules.items():
        for axis in _tuple(over):
            check_axis(where, f"rules[{name!r}]", axis, mesh)
    names = {name for leaf in jax.tree.leaves(specs, is_leaf=spec.is_spec) for name in leaf.axes}
    if rules and not names & set(rules):
        near = [m for name in rules for m in difflib.get_close_matches(name, names, 1)]
        raise ValueRangeError(
            f"{where}: no leaf has an axis that the rules name.",
            path="rules",
            expected=f"names of axes: {', '.join(sorted(names))}",
            actual=", ".join(rules),
            hint=f"{near[0]!r}?" if near else None,
        )
