"""A look inside of a plain function: values marked by name, then collected, replaced or differentiated.

    x = fn.tap("middle", x)                                 # in the function: x itself
    y, values = fn.taps.collect(f)(params, images)          # from outside: {"blocks.middle": [layers, ...]}

Nobody looking, `tap` returns what it was given, and the program is that without it. `collect`, `replace` and
`grads` trace the function with its marks, and run that program again as ordinary JAX code, so that they work
under `jax.jit`, `jax.grad`, `jax.vmap`, on any mesh, and in one another. Names are put together from the
scopes around a tap. In a loop (`jax.lax.scan`, or the layers of `nets.stack`) a value gets an axis of steps
or layers; a branch that is not taken gives NaN, or 0 of integers.
"""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from funcnet._marks import Layer, Look, Place, enter_p, full, joined, looking, tap_p
from funcnet.errors import DTypeError, ShapeError, StructureError, ValueRangeError, describe, shorten

__all__ = ["Seen", "asked", "collect", "grads", "layer", "replace", "scope", "tap"]

T = TypeVar("T")
Only = str | Sequence[str] | None


def tap(name: str, x: T) -> T:
    """x itself, to be found under its name by `collect`, `replace` and `grads`.

    Args:
        name: without the scopes around it; with dots, if there are to be scopes of its own.
        x: an array, or a number.

    Raises:
        DTypeError: the name is no str, or x no array of numbers.
        ValueRangeError: the name is empty, or has a space or one of ``*?[]``.

    >>> tap("middle", 3.0)
    3.0
    """
    _check_name("tap", "name", name)
    dtype = getattr(x, "dtype", None) if not isinstance(x, bool | int | float | complex) else jnp.bool_
    if dtype is None or not (jnp.issubdtype(dtype, jnp.number) or dtype == jnp.bool_):
        raise DTypeError(
            f'tap: "{name}" is not an array of numbers.',
            path="x",
            expected="x: an array; of a tree, tap each leaf",
            actual=f"x: {describe(x)}",
        )
    place = looking.value
    if place is None or not place.marks(name):
        return x
    return tap_p.bind(jnp.asarray(x), scopes=place.scopes, name=name)


def asked(name: str) -> bool:
    """Whether somebody asks for a name, not just for all: for what is computed only to be looked at.

    >>> asked("pattern")
    False
    """
    _check_name("asked", "name", name)
    place = looking.value
    return place is not None and place.marks(name, asked=True)


@contextlib.contextmanager
def scope(*names: str | int) -> Iterator[None]:
    """Put names before those of the taps inside, each with a dot; a number as it is written.

    >>> with scope("stages", 0):
    ...     x = tap("out", 3.0)  # stages.0.out
    """
    texts = tuple(str(name) if type(name) is int else name for name in names)
    for text in texts:
        _check_name("taps.scope", "names", text)
    place = looking.value
    if place is None:
        yield
        return
    with looking(dataclasses.replace(place, scopes=place.scopes + texts)), contextlib.ExitStack() as names_:
        for text in texts:
            names_.enter_context(jax.named_scope(f"@{text}"))  # by which `find_nan` says where it is
        yield


def layer(block: Callable[..., Any], number: int, of: int, step: int | None = None) -> Callable[..., Any]:
    """The function of one layer, whose taps are those of all layers at that layer's place.

    Args:
        block: ``(params, x, ...) -> ...``; x is a tree of arrays, not empty.
        number: which layer it is; in a loop, which it is in the first step.
        of: how many layers there are.
        step: in a body of `jax.lax.scan`, by how many layers each step goes on; None: not in a loop.

    Returns:
        `block` itself if nobody looks.
    """
    if looking.value is None:
        return block

    def marked(params: Any, x: Any, *rest: Any) -> Any:
        place = looking.value
        level = sum(isinstance(scope, Layer) for scope in place.scopes)
        first, *others = jax.tree.leaves(x)
        first = enter_p.bind(jnp.asarray(first), level=level, looped=step is not None)
        x = jax.tree.unflatten(jax.tree.structure(x), [first, *others])
        name = jax.named_scope(f"@{number}") if step is None else contextlib.nullcontext()
        with looking(dataclasses.replace(place, scopes=(*place.scopes, Layer(number, of, step)))), name:
            return block(params, x, *rest)

    return marked


@contextlib.contextmanager
def named() -> Iterator[None]:
    """Let scopes name the equations that are traced inside, with no value marked: for `find_nan`."""
    with looking(Place(((0, ()),))):
        yield


def names(eqn: Any) -> list[str]:
    """The scopes around an equation that was traced while somebody looked."""
    return re.findall(r"@([^/()]+)", str(eqn.source_info.name_stack))


# ---- looking ----------------------------------------------------------------------------------------------


def collect(f: Callable[..., Any], only: Only = None) -> Callable[..., tuple[Any, dict[str, jax.Array]]]:
    """``collect(f)(*args)`` is what ``f(*args)`` gives, and a dict of the values tapped in it, by path.

    It calls f anew each time: put `jax.jit` around it, or call it in a function that is compiled.

    Args:
        f: any function of JAX arrays; its arguments are traced, others are bound by `functools.partial`.
        only: the paths that are wanted, one or several; ``*`` stands for any part. None: all but what is
            computed only if asked for, such as attention's pattern.

    Returns:
        The function. Each value has the axes that it has in f, behind those of the loops and stacks of layers
        around it, the outermost first; with a `jax.vmap` in f also the mapped axis, if it has one. (Where f
        itself takes a `jax.grad`, JAX takes out of a loop what is the same in each step: no axis then.)

    Raises:
        StructureError: by the function: a path is used twice; a tap stands in a while loop, a custom rule or
            a shard_map; nothing is tapped that `only` asks for.

    >>> collect(lambda x: tap("square", x * x) + 1)(3.0)[1]
    {'square': Array(9., dtype=float32)}
    """
    wanted = _check("taps.collect", f, only)

    def collected(*args: Any, **kwargs: Any) -> tuple[Any, dict[str, jax.Array]]:
        look = Look("taps.collect", wanted)
        program = look.trace(f, args, kwargs)
        outputs, got = look.run(program.jaxpr, program.consts, program.inputs)
        return program.outputs(outputs), joined(program.marks, got, jnp.nan)

    return collected


def replace(f: Callable[..., Any], changes: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    """f, in which tapped values are others: ``replace(f, {path: g})(*args)``.

    Args:
        f: any function of JAX arrays; its arguments are traced.
        changes: by path, in which ``*`` stands for any part, ``g(x, *numbers) -> x'``: of the shape and dtype
            of x. The numbers are those of the steps of the loops around the tap and of the layers, the
            outermost first, int32 arrays that may be traced: ``jnp.where(layer == 3, 0, x)``. Of several that
            fit, each is given what the one before it gave.

    Raises:
        StructureError: by the function, as of `collect`.
        ShapeError, DTypeError: by the function: g changes the shape or dtype.

    >>> replace(lambda x: tap("square", x * x) + 1, {"square": lambda x: x * 0})(3.0)
    Array(1., dtype=float32)
    """
    if not isinstance(changes, Mapping) or not changes or not all(map(callable, changes.values())):
        raise DTypeError(
            "taps.replace: changes are not functions by path.",
            path="changes",
            expected="changes: {path: a function of the value, and of the numbers of loops and layers}",
            actual=f"changes: {describe(changes)}",
        )
    wanted = _check("taps.replace", f, tuple(changes)) or ()

    def replaced(*args: Any, **kwargs: Any) -> Any:
        look = Look("taps.replace", wanted, changes)
        program = look.trace(f, args, kwargs)
        return program.outputs(look.run(program.jaxpr, program.consts, program.inputs)[0])

    return replaced


class Seen(NamedTuple):
    """What `grads` gives.

    Attributes:
        value: what the function gave.
        values: what was tapped, by path.
        cotangents: the derivatives of the value by each of these, of floating-point numbers.
        grads: the derivatives by arguments; None if none was asked for.
    """

    value: Any
    values: dict[str, jax.Array]
    cotangents: dict[str, jax.Array]
    grads: Any


def grads(
    f: Callable[..., Any],
    only: Only = None,
    *,
    argnums: int | tuple[int, ...] | None = None,
    has_aux: bool = False,
) -> Callable[..., Seen]:
    """Values and cotangents of what is tapped in a loss, in one backward pass.

    The cotangent of a value is the derivative by it of all that comes after its tap. What did not run, a
    branch, has a cotangent of 0.

    Args:
        f: a function of JAX arrays to a number.
        only: as of `collect`.
        argnums: by which arguments to differentiate in the same pass, as of `jax.grad`.
        has_aux: whether f gives a pair, of the number and of something else.

    Raises:
        ShapeError: by the function: f does not give one number.
        DTypeError: by the function: that number is not a float.
        ValueRangeError: by the function: there is no argument of such a number.
        StructureError: by the function, as of `collect`; f gives no pair.

    >>> grads(lambda x: 3 * tap("square", x * x))(2.0).cotangents
    {'square': Array(3., dtype=float32)}
    """
    wanted = _check("taps.grads", f, only)

    def differentiated(*args: Any, **kwargs: Any) -> Seen:
        look = Look("taps.grads", wanted)
        program = look.trace(f, args, kwargs)
        marks = [mark for mark in program.marks if jnp.issubdtype(mark.aval.dtype, jnp.inexact)]
        zeros = [full(mark.aval, mark.lengths, mark.aval.shape, 0.0) for mark in marks]
        numbers = _positions(argnums, len(args))

        def run(zeros: list[jax.Array], chosen: tuple[Any, ...]) -> tuple[jax.Array, Any]:
            given = dict(zip(numbers, chosen, strict=True))
            inputs = jax.tree.leaves((tuple(given.get(i, arg) for i, arg in enumerate(args)), kwargs))
            sinks = {mark.slot: zero for mark, zero in zip(marks, zeros, strict=True)}
            outputs, got = look.run(program.jaxpr, program.consts, program.given(inputs), sinks)
            result = program.outputs(outputs)
            return _loss(result, has_aux), (result, got)

        chosen = tuple(args[i] for i in numbers)
        (_, (result, got)), (dvalues, dargs) = jax.value_and_grad(run, (0, 1), has_aux=True)(zeros, chosen)
        cotangents = {mark.slot: d for mark, d in zip(marks, dvalues, strict=True)}
        return Seen(
            result,
            joined(program.marks, got, jnp.nan),
            joined(marks, cotangents, 0.0),
            None if argnums is None else dargs if isinstance(argnums, tuple) else dargs[0],
        )

    return differentiated


# ---- checks -----------------------------------------------------------------------------------------------


def _check(where: str, f: Any, only: Any) -> tuple[str, ...] | None:
    if not callable(f):
        raise DTypeError(
            f"{where}: f is not a function.",
            path="f",
            expected="f: a function of JAX arrays",
            actual=f"f: {describe(f)}",
        )
    if only is None:
        return None
    wanted = (only,) if isinstance(only, str) else tuple(only) if isinstance(only, list | tuple) else ()
    if not wanted or not all(isinstance(path, str) for path in wanted):
        raise DTypeError(
            f"{where}: only is neither a path nor several.",
            path="only",
            expected='only: None, "blocks.mlp", or ["blocks.*", "head"]',
            actual=f"only: {describe(only)}",
        )
    return wanted


def _check_name(where: str, path: str, name: Any) -> None:
    if not isinstance(name, str):
        raise DTypeError(
            f"{where}: a name is a str.",
            path=path,
            expected=f'{path}: "middle", say',
            actual=f"{path}: {describe(name)}",
        )
    if not name or any(letter.isspace() or letter in "*?[]" for letter in name):
        raise ValueRangeError(
            f"{where}: {shorten(name)} cannot be a name.",
            path=path,
            expected=f"{path}: one letter or more, no space, none of *?[]",
            actual=f"{path} = {shorten(name)}",
        )


def _positions(argnums: Any, count: int) -> tuple[int, ...]:
    """Which of the arguments are meant, from the first."""
    asked = argnums if isinstance(argnums, tuple) else () if argnums is None else (argnums,)
    if not all(type(i) is int and -count <= i < count for i in asked):
        raise ValueRangeError(
            "taps.grads: argnums are not numbers of arguments.",
            path="argnums",
            expected=f"argnums: an int or several, below {count}     (f is given {count} arguments)",
            actual=f"argnums = {argnums if isinstance(argnums, tuple) else shorten(argnums)}",
        )
    return tuple(i % count for i in asked)


def _loss(result: Any, has_aux: bool) -> Any:
    """The number in what a loss gives."""
    if has_aux and not (isinstance(result, tuple) and len(result) == 2):
        raise StructureError(
            "taps.grads: has_aux is True, but f does not give a pair.",
            path="f",
            expected="f: gives (loss, anything)",
            actual=f"f gives {describe(result)}",
        )
    value: Any = result[0] if has_aux else result
    if getattr(value, "shape", None) != ():
        raise ShapeError(
            "taps.grads: f does not give one number.",
            path="f",
            expected="f: a loss, float[]; with has_aux a pair, the loss first",
            actual=f"f gives {describe(value)}",
        )
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise DTypeError(
            "taps.grads: f does not give a float.",
            path="f",
            expected="f: a loss, float[]",
            actual=f"f gives {describe(value)}",
        )
    return value
