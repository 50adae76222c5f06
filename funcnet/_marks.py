"""Values marked in a traced program, and that program run with an eye on them: what `taps` is made of.

A mark is a primitive that gives what it is given. A program that has some is run again, equation by
equation, by JAX's own evaluation; only the loops, branches, calls and checkpoints that have a mark inside are
built anew, with the values as further results.
"""

import dataclasses
import fnmatch
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.core
import jax.extend.core as jex
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from funcnet._programs import CALLS, line, origin, parts_of_scan
from funcnet.errors import DTypeError, ShapeError, StructureError, describe, shorten

__all__ = ["Layer", "Look", "Mark", "Place", "enter_p", "full", "joined", "looking", "tap_p"]


class Layer(NamedTuple):
    """A scope that is a layer: its number, of how many; in a loop that of the first step, and the stride."""

    number: int
    of: int
    step: int | None


@dataclasses.dataclass(frozen=True)
class Place:
    """Who looks, and where the program is.

    Attributes:
        lookers: of each the scopes around its function, and the names that it asks for, None for all.
        scopes: around what is traced now.
    """

    lookers: tuple[tuple[int, tuple[str, ...] | None], ...]
    scopes: tuple[str | Layer, ...] = ()

    def marks(self, name: str, asked: bool = False) -> bool:
        """Whether somebody wants a value; if `asked`, whether by its name."""
        return any(
            not asked if only is None else _matches(_path(self.scopes[start:], name), only)
            for start, only in self.lookers
        )


# Of JAX's own kind, as in `rules`: it is part of JAX's cache keys.
looking = jax.make_user_context(None)


def _path(scopes: Sequence[Any], name: str) -> str:
    return ".".join([*(scope for scope in scopes if isinstance(scope, str)), name])


def _matches(path: str, only: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in only)


# ---- the marks as primitives: what they are given, by every transformation --------------------------------

tap_p = Primitive("tap")
enter_p = Primitive("tap_layer")  # says at how many loops a layer begins
for _p in (tap_p, enter_p):
    _p.def_impl(lambda x, **_: x)
    _p.def_abstract_eval(lambda x, **_: x)
    mlir.register_lowering(_p, lambda _ctx, x, **_: [x])
    ad.primitive_jvps[_p] = lambda p, t, *, _p=_p, **static: (_p.bind(*p, **static), t[0])
    ad.primitive_transposes[_p] = lambda ct, _x, **_: [ct]
    batching.primitive_batchers[_p] = lambda x, d, *, _p=_p, **static: (
        _p.bind(jnp.moveaxis(x[0], d[0], 0), **static),
        0,
    )

# x, with a second argument that is not looked at, and has the cotangent of x.
_sink_p = Primitive("tap_sink")
_sink_p.def_impl(lambda x, _: x)
_sink_p.def_abstract_eval(lambda x, _: x)
mlir.register_lowering(_sink_p, lambda _ctx, x, _: [x])


def _sink_jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
    moving = [t for t in tangents if type(t) is not ad.Zero]
    return _sink_p.bind(*primals), sum(moving[1:], moving[0]) if moving else tangents[0]


def _sink_batch(operands: Any, dims: Any) -> tuple[Any, int]:
    size = next(x.shape[d] for x, d in zip(operands, dims, strict=True) if d is not None)
    return _sink_p.bind(*(batching.bdim_at_front(x, d, size) for x, d in zip(operands, dims, strict=True))), 0


ad.primitive_jvps[_sink_p] = _sink_jvp
batching.primitive_batchers[_sink_p] = _sink_batch


# ---- a program with marks, run ----------------------------------------------------------------------------

_Slot = tuple[str, tuple[Layer, ...]]


class Mark(NamedTuple):
    """A tap in a program.

    Attributes:
        path: from the function on.
        layers: around it.
        depth: how many loops are around each of these.
        lengths: of the loops around the tap.
        aval: of the value in one step.
        eqn: the equation.
    """

    path: str
    layers: tuple[Layer, ...]
    depth: tuple[int, ...]
    lengths: tuple[Any, ...]
    aval: Any
    eqn: Any

    @property
    def slot(self) -> _Slot:
        return self.path, self.layers

    @property
    def form(self) -> Any:
        return self.aval.shape, self.aval.dtype

    def axes(self) -> list[tuple[int | None, int | None]]:
        """Of each axis in front the number of its loop, and of its layer; None where there is none."""
        return _axes(self.layers, self.depth, len(self.lengths))


def _axes(
    layers: tuple[Layer, ...], depth: tuple[int, ...], loops: int
) -> list[tuple[int | None, int | None]]:
    found: list[tuple[int | None, int | None]] = []
    for loop in range(loops + 1):
        here = [k for k, d in enumerate(depth[: len(layers)]) if d == loop]
        found += [(None, k) for k in here if layers[k].step is None]
        if loop < loops:
            found.append((loop, next((k for k in here if layers[k].step is not None), None)))
    return found


class _Program(NamedTuple):
    """A traced function with its arguments."""

    closed: Any
    tree: Any
    inputs: list[Any]
    marks: list[Mark]

    @property
    def jaxpr(self) -> Any:
        return self.closed.jaxpr

    @property
    def consts(self) -> Any:
        return self.closed.consts

    def given(self, leaves: list[Any]) -> list[Any]:
        """The leaves of arguments as the program takes them: numbers of Python's as arrays."""
        avals = self.closed.in_avals
        return [
            leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf, aval.dtype)
            for leaf, aval in zip(leaves, avals, strict=True)
        ]

    def outputs(self, leaves: Sequence[Any]) -> Any:
        return jax.tree.unflatten(self.tree, leaves)


class Look:
    """One who looks into a function: which taps are meant, and what is done to their values."""

    def __init__(
        self,
        where: str,
        only: tuple[str, ...] | None,
        changes: Mapping[str, Callable[..., Any]] | None = None,
    ):
        self.where, self.only, self.changes = where, only, changes or {}
        self.outer: Place | None = looking.value
        scopes = () if self.outer is None else self.outer.scopes
        self.start, self.levels = len(scopes), sum(isinstance(scope, Layer) for scope in scopes)

    def trace(self, f: Callable[..., Any], args: Any, kwargs: Any) -> _Program:
        """The program of f with the taps that are meant; also with those that others around it mean."""
        lookers = () if self.outer is None else self.outer.lookers
        scopes = () if self.outer is None else self.outer.scopes

        def traced(only: tuple[str, ...] | None) -> tuple[Any, Any, list[Mark]]:
            with looking(Place((*lookers, (self.start, only)), scopes)), jax.disable_jit(False):
                call = lambda args, kwargs: f(*args, **kwargs)
                closed, shape = jax.make_jaxpr(call, return_shape=True)(args, kwargs)
            self.only = only
            return closed, jax.tree.structure(shape), self.marks(closed.jaxpr)

        wanted = self.only
        closed, tree, marks = traced(wanted)
        if lost := [p for p in wanted or () if not any(_matches(mark.path, (p,)) for mark in marks)]:
            there = sorted({mark.path for mark in traced(None)[2]})
            raise StructureError(
                f"{self.where}: nothing is tapped as {shorten(lost[0])}.",
                path="changes" if self.changes else "only",
                expected="one of the names in the function",
                actual=", ".join(there) if there else "no taps at all",
            )
        self.check_once(marks)
        program = _Program(closed, tree, [], marks)
        return program._replace(inputs=program.given(jax.tree.leaves((args, kwargs))))

    def path(self, eqn: Any) -> str | None:
        """Of a tap, from the function on; None if it is not meant."""
        path = _path(eqn.params["scopes"][self.start :], eqn.params["name"])
        return path if self.only is None or _matches(path, self.only) else None

    def layers(self, eqn: Any) -> tuple[Layer, ...]:
        return tuple(scope for scope in eqn.params["scopes"][self.start :] if isinstance(scope, Layer))

    def entered(self, depth: tuple[int, ...], eqn: Any, loops: int) -> tuple[int, ...]:
        return (*depth[: eqn.params["level"] - self.levels], loops - eqn.params["looped"])

    def marks(self, jaxpr: Any, lengths: tuple[Any, ...] = (), depth: tuple[int, ...] = ()) -> list[Mark]:
        """The taps that are meant, in their order; one in several branches once."""
        found: list[Mark] = []
        for eqn in jaxpr.eqns:
            if eqn.primitive is enter_p:
                depth = self.entered(depth, eqn, len(lengths))
            elif eqn.primitive is tap_p:
                if (path := self.path(eqn)) is not None:
                    layers = self.layers(eqn)
                    mark = Mark(path, layers, depth[: len(layers)], lengths, eqn.invars[0].aval, eqn)
                    if {k for _, k in mark.axes() if k is not None} != {*range(len(layers))}:
                        raise self.moved(mark)
                    found.append(mark)
            else:
                found += self.inner_marks(eqn, lengths, depth)
        return found

    def inner_marks(self, eqn: Any, lengths: tuple[Any, ...], depth: tuple[int, ...]) -> list[Mark]:
        """Those inside of an equation."""
        name, params = eqn.primitive.name, eqn.params
        if params.get("differentiated"):  # what `jax.checkpoint` computes for the second time
            return []
        loops = (*lengths, params["length"]) if name == "scan" else lengths
        found: dict[_Slot, Mark] = {}
        marks: list[Mark] = []
        for inner in jex.jaxprs_in_params(params):
            marks = self.marks(getattr(inner, "jaxpr", inner), loops, depth)
            self.check_once(marks)
            for mark in marks:
                other = found.setdefault(mark.slot, mark)
                if other.form != mark.form:
                    raise self.used_twice(other, mark, "with another shape in another branch")
        if found and not (name in ("scan", "cond") or (name in CALLS and "custom" not in name)):
            raise self.refused(next(iter(found.values())), name)
        return list(found.values()) if name == "cond" else marks

    def check_once(self, marks: list[Mark]) -> None:
        """A path is used twice only in the layers of one stack."""
        first: dict[Any, Mark] = {}
        for mark in marks:
            if mark.slot in first:
                raise self.used_twice(first[mark.slot], mark)
            first[mark.slot] = mark
            other = first.setdefault(mark.path, mark)
            if _stacks(other) != _stacks(mark):
                raise self.used_twice(other, mark)
            if other.form != mark.form:
                raise self.used_twice(other, mark, "with another shape in another layer")

    def refused(self, mark: Mark, name: str) -> StructureError:
        inside = {
            "custom_jvp_call": "a custom rule",
            "custom_vjp_call": "a custom rule",
            "while": "a while loop",
        }
        hint = "of a loop of a fixed length use jax.lax.scan." if name == "while" else None
        return StructureError(
            f'{self.where}: the tap "{mark.path}" stands in {inside.get(name, f"a {name}")}, '
            "out of which no value can be brought.",
            path=mark.path,
            expected="a tap in plain code, jax.jit, jax.vmap, jax.lax.scan, jax.lax.cond or jax.checkpoint",
            actual=_written(mark.eqn),
            hint=hint,
        )

    def moved(self, mark: Mark) -> StructureError:
        """Of a tap that is not in its layers any more, as it needs neither x nor params."""
        return StructureError(
            f'{self.where}: the tap "{mark.path}" has been taken out of its layers; it is the same in all.',
            path=mark.path,
            expected="a value that depends on x or params",
            actual=_written(mark.eqn),
            hint="it was a jax.grad inside of the function that did it: use taps.grads.",
        )

    def used_twice(self, one: Mark, other: Mark, how: str = "twice") -> StructureError:
        return StructureError(
            f'{self.where}: the name "{one.path}" is used {how}.',
            path=one.path,
            expected="each name once; in layers and branches, for the same value",
            actual=f"{_written(one.eqn)}, and {_written(other.eqn)}",
            hint='a scope makes names different: with fn.taps.scope("first"): ...',
        )

    def run(
        self,
        jaxpr: Any,
        consts: Sequence[Any],
        inputs: Sequence[Any],
        sinks: Mapping[_Slot, Any] | None = None,
        at: tuple[Any, ...] = (),
        depth: tuple[int, ...] = (),
    ) -> tuple[list[Any], dict[_Slot, Any]]:
        """The outputs, and the values that are meant; `at` are the steps in which the loops around are."""
        values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs], strict=True))
        got: dict[_Slot, Any] = {}
        read = lambda v: v.val if isinstance(v, jex.Literal) else values[v]
        for eqn in jaxpr.eqns:
            if eqn.primitive is enter_p:
                depth = self.entered(depth, eqn, len(at))
                x = read(eqn.invars[0])
                results = [x if self.outer is None else enter_p.bind(x, **eqn.params)]
            elif eqn.primitive is tap_p:
                results = [self.at_tap(eqn, read(eqn.invars[0]), sinks or {}, at, depth, got)]
            elif marks := self.inner_marks(eqn, (None,) * len(at), depth):
                results, inner = self.inside(eqn, [*map(read, eqn.invars)], marks, sinks or {}, at, depth)
                got.update(zip([mark.slot for mark in marks], inner, strict=True))
            else:
                results = _evaluate(jaxpr, eqn, read)
            values.update(zip(eqn.outvars, results, strict=True))
        return [read(v) for v in jaxpr.outvars], got

    def at_tap(self, eqn: Any, x: Any, sinks: Any, at: Any, depth: Any, got: dict[_Slot, Any]) -> Any:
        path, layers, x = self.path(eqn), self.layers(eqn), jnp.asarray(x)
        if path is not None:
            for pattern, change in self.changes.items():
                if _matches(path, (pattern,)):
                    x = self.changed(path, change, x, _numbers(layers, depth, at))
            if (path, layers) in sinks:
                x = _sink_p.bind(x, sinks[path, layers])
            got[path, layers] = x
        scopes, name = eqn.params["scopes"], eqn.params["name"]
        if self.outer is not None and dataclasses.replace(self.outer, scopes=scopes).marks(name):
            x = tap_p.bind(x, **eqn.params)
        return x

    def changed(self, path: str, change: Callable[..., Any], x: Any, numbers: list[Any]) -> Any:
        y: Any = change(x, *numbers)
        shape, dtype = getattr(y, "shape", None), getattr(y, "dtype", None)
        if shape == x.shape and dtype == x.dtype:
            return jnp.asarray(y)
        error, what = (DTypeError, "dtype") if shape == x.shape else (ShapeError, "shape")
        raise error(
            f'{self.where}: what takes the place of "{path}" has another {what}.',
            path=f"changes[{path!r}]",
            expected=describe(x),
            actual=describe(y),
        )

    def inside(
        self,
        eqn: Any,
        x: list[Any],
        marks: list[Mark],
        sinks: Mapping[_Slot, Any],
        at: tuple[Any, ...],
        depth: tuple[int, ...],
    ) -> tuple[Sequence[Any], list[Any]]:
        """The outputs of an equation with taps in it, and their values in the order of marks."""
        name, p = eqn.primitive.name, eqn.params

        def run(program: Any, inputs: Any, sinks: Any = sinks, at: Any = at) -> tuple[list[Any], list[Any]]:
            inner, consts = getattr(program, "jaxpr", program), getattr(program, "consts", ())
            outputs, got = self.run(inner, consts, inputs, sinks, at, depth)
            loops = len(at)
            elsewhere = lambda m: full(m.aval, m.lengths[loops:], m.aval.shape, jnp.nan)  # in another branch
            return outputs, [got[m.slot] if m.slot in got else elsewhere(m) for m in marks]

        if name == "scan":
            return self.scanned(eqn, x, marks, sinks, at, run)
        if name == "cond":
            branches = [lambda *given, program=program: run(program, given) for program in p["branches"]]
            return jax.lax.switch(x[0], branches, *x[1:])
        if CALLS[name] == "jaxpr" and "policy" in p:
            again = jax.checkpoint(
                lambda *given: run(p["jaxpr"], given), prevent_cse=p["prevent_cse"], policy=p["policy"]
            )
            return again(*x)
        return run(p[CALLS[name]], x)

    def scanned(
        self,
        eqn: Any,
        x: list[Any],
        marks: list[Mark],
        sinks: Mapping[_Slot, Any],
        at: tuple[Any, ...],
        run: Callable[..., Any],
    ) -> tuple[Sequence[Any], list[Any]]:
        p, (consts, carried) = eqn.params, parts_of_scan(eqn)

        def body(carry: list[Any], step: Any) -> tuple[list[Any], Any]:
            number, here, xs = step
            inputs, sinks = [*x[:consts], *carry, *xs], dict(zip(slots, here, strict=True))
            outputs, values = run(p["jaxpr"], inputs, sinks, (*at, number))
            return outputs[:carried], (outputs[carried:], values)

        begins = consts + carried
        numbers = jnp.arange(p["length"], dtype=jnp.int32)
        here = {mark.slot: sinks[mark.slot] for mark in marks if mark.slot in sinks}
        slots, xs = list(here), (numbers, list(here.values()), x[begins:])
        options = {name: p[name] for name in ("length", "reverse", "unroll")}
        carry, (ys, values) = jax.lax.scan(body, x[consts:begins], xs, **options)
        return [*carry, *ys], values


def _evaluate(jaxpr: Any, eqn: Any, read: Callable[[Any], Any]) -> Sequence[Any]:
    """An equation as it stands, by JAX's own evaluation, which keeps the place where it was written."""
    free = list(dict.fromkeys(v for v in eqn.invars if not isinstance(v, jex.Literal)))
    one = jex.Jaxpr((), free, eqn.outvars, [eqn], eqn.effects, jaxpr.debug_info)
    return jax.core.eval_jaxpr(one, (), *map(read, free))


def _numbers(layers: tuple[Layer, ...], depth: tuple[int, ...], at: tuple[Any, ...]) -> list[jax.Array]:
    """Of the loops and layers around a tap."""
    found = []
    for loop, k in _axes(layers, depth, len(at)):
        number = 0 if loop is None else at[loop]
        if k is not None:
            number = layers[k].number + (layers[k].step or 0) * number
        found.append(jnp.asarray(number, jnp.int32))
    return found


def full(like: Any, lengths: tuple[Any, ...], shape: tuple[Any, ...], number: float) -> jax.Array:
    """An array of one number, or of zeros where integers are wanted, split over devices as `like` is."""
    number = number if jnp.issubdtype(like.dtype, jnp.inexact) else 0
    x = jnp.full((*lengths, *shape), number, like.dtype)
    spec = like.sharding.spec
    if any(part is not None for part in spec):
        whole = jax.sharding.PartitionSpec(*(None,) * len(lengths), *spec)
        x = jax.sharding.reshard(x, jax.sharding.NamedSharding(like.sharding.mesh, whole))
    varying = tuple(like.manual_axis_type.varying)
    return jax.lax.pcast(x, varying, to="varying") if varying else x


# ---- one value of many ------------------------------------------------------------------------------------


def _stacks(mark: Mark) -> Any:
    """What all layers have in common: the axes in front, and how long those of loops are."""
    axes = [(None if loop is None or k is not None else mark.lengths[loop], k) for loop, k in mark.axes()]
    return axes, [layer.of for layer in mark.layers]


def joined(marks: list[Mark], got: Mapping[_Slot, Any], missing: float) -> dict[str, jax.Array]:
    """The values by path, with one axis for all layers of a stack."""
    paths: dict[str, dict[tuple[Layer, ...], Any]] = {}
    for mark in marks:
        value = got[mark.slot]
        for place, (loop, _) in enumerate(mark.axes()):
            value = value if loop is not None else jnp.expand_dims(value, place)
        paths.setdefault(mark.path, {})[mark.layers] = value
    places = {mark.path: [k for _, k in mark.axes()] for mark in marks}
    return {path: _join(values, places[path], missing) for path, values in paths.items()}


def _join(values: dict[tuple[Layer, ...], Any], places: list[int | None], missing: float) -> jax.Array:
    """The pieces of a value as one: layers that came in a loop, then those that came one by one."""
    for k in reversed(range(len(next(iter(values))))):
        groups: dict[tuple[Layer, ...], dict[Layer, Any]] = {}
        for layers, value in values.items():
            groups.setdefault(layers[:k], {})[layers[k]] = value
        values = {rest: _in_order(pieces, places.index(k), missing) for rest, pieces in groups.items()}
    return values[()]


def _in_order(pieces: dict[Layer, Any], axis: int, missing: float) -> jax.Array:
    of, some = next(iter(pieces)).of, next(iter(pieces.values()))
    step = next((layer.step for layer in pieces if layer.step is not None), None)

    def piece(layer: Layer, size: int) -> Any:
        sizes = (*some.shape[:axis], size, *some.shape[axis + 1 :])
        return pieces[layer] if layer in pieces else full(jax.typeof(some), (), sizes, missing)

    parts, rounds = [], 0
    if step is not None:
        rounds = next(value.shape[axis] for layer, value in pieces.items() if layer.step is not None)
        looped = [piece(Layer(i, of, step), rounds) for i in range(step)]
        sizes = (*some.shape[:axis], rounds * step, *some.shape[axis + 1 :])
        parts = [jnp.stack(looped, axis + 1).reshape(sizes) if step > 1 else looped[0]]
    parts += [piece(Layer(i, of, None), 1) for i in range(rounds * (step or 0), of)]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis)


def _written(eqn: Any) -> str:
    """The user's line that an equation is of; where there is none, funcnet's."""
    frame = origin(eqn)
    return "where, is not known" if frame is None else ": ".join(filter(None, line(frame)))
