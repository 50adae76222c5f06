"""The derivative rules that a function meets while it runs: noted, or left out.

`jax.custom_vjp.__call__` and `jax.custom_jvp.__call__` are replaced inside one locked context that is part
of JAX's cache keys, so that rules in scan, cond, vmap and in functions that were compiled before are met too.
"""

import contextlib
import dataclasses
import functools
import itertools
import threading
import types
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jax.extend import source_info_util

from funcnet import rules
from funcnet.verifier import trace

__all__ = [
    "Call",
    "brought_by",
    "changed",
    "files_of",
    "function_of",
    "is_rule",
    "likeness",
    "line_of",
    "met",
    "name_of",
    "placed",
    "plain",
    "replaced",
    "tape",
    "unbatched",
    "written",
]

RULES = (jax.custom_vjp, jax.custom_jvp)
_lock = threading.RLock()
_replaced = jax.make_user_context(None)

Answer = Callable[[Callable[..., Any], Any, tuple[Any, ...], dict[str, Any]], Any]


@contextlib.contextmanager
def replaced(answer: Answer, kinds: Sequence[Any] = RULES, token: Any = None) -> Iterator[None]:
    """Let ``answer(call, rule, args, options)`` answer each call of a rule; `call` is how JAX does.

    JAX keeps what it has traced and compiled under a `token`: the same must stand for the same answers.
    """
    token = object() if token is None else token
    with _lock, contextlib.ExitStack() as stack:
        for kind in kinds:
            old = kind.__call__

            def new(self: Any, *args: Any, old: Any = old, **options: Any) -> Any:
                mine = _replaced.value is token  # another thread's calls are its own
                return answer(old, self, args, options) if mine else old(self, *args, **options)

            kind.__call__ = new
            stack.callback(setattr, kind, "__call__", old)
        stack.enter_context(_replaced(token))
        yield


@contextlib.contextmanager
def plain(of: Sequence[Any] = (), *, all_of_them: bool = True, token: Any = None) -> Iterator[None]:
    """Differentiate by JAX alone: what a rule is attached to is called without it.

    Args:
        of: rules that are left out in any case, and those that are made of the same code.
        all_of_them: leave out all but those that JAX brings.
        token: as `replaced` has it.
    """
    alike = set(map(likeness, of))

    def answer(call: Any, rule: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if (all_of_them and not brought_by(rule, "jax")) or (alike and likeness(rule) in alike):
            return rule.fun(*args, **options)
        return call(rule, *args, **options)

    with replaced(answer, token=token), rules.autodiff("jax") if all_of_them else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def unbatched() -> Iterator[None]:
    """Call what `jax.custom_batching.custom_vmap` is attached to without it: it has no gradient by itself."""
    with replaced(lambda _call, rule, args, options: rule.fun(*args, **options), (custom_vmap,)):
        yield


@contextlib.contextmanager
def met() -> Iterator[list[Any]]:
    """The rules that whatever is traced inside meets, each once, but for those that JAX brings."""
    found: list[Any] = []

    def answer(call: Any, rule: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if not brought_by(rule, "jax") and not any(rule is one for one in found):
            found.append(rule)
        return call(rule, *args, **options)

    with replaced(answer):
        yield found


@contextlib.contextmanager
def changed(change: Callable[[Any], Any]) -> Iterator[None]:
    """Let another rule answer for each, ``change(rule)``, but for those that JAX brings."""

    def answer(call: Any, rule: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        return call(rule if brought_by(rule, "jax") else change(rule), *args, **options)

    with replaced(answer):
        yield


@contextlib.contextmanager
def placed(token: Any) -> Iterator[None]:
    """Let each equation of a backward pass keep its line: JAX gives all of them that of the call."""

    def answer(call: Any, rule: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        backward = None if brought_by(rule, "jax") else getattr(rule, "bwd", None)
        return call(rule if backward is None else _with(rule, bwd=_placed(backward)), *args, **options)

    with replaced(answer, RULES[:1], token):
        yield


def _placed(backward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(backward)
    def run(*args: Any, **options: Any) -> Any:
        none: Any = ()  # None would leave that of the call
        context = source_info_util.user_context(none, name_stack=source_info_util.current_name_stack())
        context.__enter__()
        try:
            return backward(*args, **options)
        finally:
            context.__exit__(None, None, None)  # which would look into that of an error

    return run


def _with(rule: Any, **parts: Any) -> Any:
    """The rule with other parts."""
    other = type(rule)(rule.fun)
    vars(other).update(vars(rule) | parts)
    return other


@dataclasses.dataclass
class Call:
    """A rule, as it is called with arguments of one kind.

    Attributes:
        rule: a `jax.custom_vjp` or `custom_jvp`, the `vjp` of `rules.call`, or an operation that is not ours.
        tree: of its arguments and options.
        leaves: of these, but for arrays.
        keys: of each array, what makes it a random key, whose data is then the value; None of all others.
        kept: the arrays of the first call, of the last, and of the one with the largest number, as they were
            when it ran; none if it never ran.
        count: how often it ran.
        is_derived: whether its derivative was taken, as by a gradient within a loss.
    """

    rule: Any
    tree: Any
    leaves: list[Any]
    keys: list[Any]
    kept: dict[str, list[np.ndarray]] = dataclasses.field(default_factory=dict)
    count: int = 0
    largest: float = -1.0
    is_derived: bool = False

    def watched(self, rule: Any) -> Any:
        """The rule, which notes whether its derivative is taken."""
        part = "bwd" if isinstance(rule, jax.custom_vjp) else "jvp"
        if not is_rule(rule) or (derivative := getattr(rule, part, None)) is None:
            return rule

        @functools.wraps(derivative)
        def noted(*args: Any, **options: Any) -> Any:
            self.is_derived = True
            return derivative(*args, **options)

        return _with(rule, **{part: noted})

    def came(self, *values: Any) -> None:
        """Note a call with such arrays."""
        self.count += 1
        arrays = list(map(np.asarray, values))
        self.kept.setdefault("first", arrays)
        self.kept["last"] = arrays
        if (size := max(map(_size, arrays), default=0.0)) > self.largest:
            self.kept["largest"], self.largest = arrays, size

    @property
    def values(self) -> list[list[np.ndarray]]:
        """What is kept, each once."""
        same = lambda a, b: all(np.array_equal(v, w) for v, w in zip(a, b, strict=True))
        found: list[list[np.ndarray]] = []
        for arrays in self.kept.values():
            if not any(same(arrays, one) for one in found):
                found.append(arrays)
        return found

    def arguments(self, values: list[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Its arguments and options with such arrays."""
        arrays = iter(
            jnp.asarray(v) if impl is None else jax.random.wrap_key_data(v, impl=impl)
            for v, impl in zip(values, self.keys, strict=True)
        )
        return jax.tree.unflatten(self.tree, [next(arrays) if v is None else v for v in self.leaves])


def _size(x: np.ndarray) -> float:
    if not x.size or not jnp.issubdtype(x.dtype, jnp.number):
        return 0.0
    with np.errstate(all="ignore"):
        return float(np.nan_to_num(np.abs(x).astype(np.float64), posinf=0.0).max())


@contextlib.contextmanager
def tape() -> Iterator[list[Call]]:
    """Note every rule that whatever runs inside calls, those of JAX too, and its arguments.

    Read it when all has run: under `jax.jit`, in a loop or a branch the values come when that does.
    """
    calls: dict[Any, Call] = {}

    def note(rule: Any, args: Any, options: Any) -> Call:
        leaves, tree = jax.tree.flatten((args, options))
        is_array = [isinstance(v, jax.Array | np.ndarray | np.generic) for v in leaves]
        key = (
            likeness(rule),
            tree,
            *((v.shape, v.dtype) if a else likeness(v) for v, a in zip(leaves, is_array, strict=True)),
        )
        still = [None if a else v for v, a in zip(leaves, is_array, strict=True)]
        arrays = [v for v, a in zip(leaves, is_array, strict=True) if a]
        is_key = [jnp.issubdtype(v.dtype, jax.dtypes.prng_key) for v in arrays]
        keys = [jax.random.key_impl(v) if k else None for v, k in zip(arrays, is_key, strict=True)]
        call = calls.setdefault(key, Call(rule, tree, still, keys))
        data = [jax.random.key_data(v) if k else v for v, k in zip(arrays, is_key, strict=True)]
        if any(isinstance(v, jax.core.Tracer) for v in arrays):
            jax.debug.callback(call.came, *data)
        else:
            call.came(*data)
        return call

    def answer(call: Any, rule: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if not _ours(rule):
            noted = note(rule, args, options)
            rule = rule if brought_by(rule, "jax") else noted.watched(rule)
        return call(rule, *args, **options)

    def noted(rule: Any, args: Any, options: Any) -> None:
        if not _ours(rule):
            note(rule, args, options)

    found: list[Call] = []
    with replaced(answer, (*RULES, custom_vmap)), rules.noted(noted):
        yield found
        jax.effects_barrier()
    found.extend(calls.values())


# ---- what a rule is made of -------------------------------------------------------------------------------

_PARTS = ("fun", "fwd", "bwd", "jvp", "vmap_rule", "func", "__func__", "__wrapped__")


_CHECKERS = ("", "beartype", "jaxtyping")  # whose decorators may lie around a function, "" of what they wrote


def _parts(f: Any) -> list[Any]:
    """What a rule, a partial function, a method or a closure is made of."""
    if isinstance(f, types.ModuleType):
        return [f.vjp]
    parts = [part for name in _PARTS if (part := getattr(f, name, None)) is not None]
    for cell in getattr(f, "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # nothing is in it yet
            held = cell.cell_contents
            parts += held if isinstance(held, tuple | list) else [held]  # of defjvps a tuple of functions
    return parts


def _functions(f: Any) -> Iterator[Any]:
    """The Python functions in it, each once."""
    seen, left = set[int](), [f]
    while left:
        one = left.pop(0)
        if id(one) in seen or isinstance(one, type) or not (callable(one) or hasattr(one, "vjp")):
            continue
        seen.add(id(one))
        if hasattr(one, "__code__"):
            if _package(one) not in _CHECKERS:
                yield one
        elif not isinstance(one, (*RULES, custom_vmap)):
            left.append(type(one).__dict__.get("__call__"))  # of an object that is called
        left.extend(_parts(one))


def _package(function: Any) -> str:
    """That in whose file it is written, whatever `functools.wraps` says."""
    return str(function.__globals__.get("__name__", "")).partition(".")[0]


def brought_by(rule: Any, *packages: str) -> bool:
    """Whether all that a rule is made of is written in such packages: the name of a package, ``jax``.

    Not what somebody makes of their functions: ``rule.defjvp(partial(jax.jvp, jax.nn.sigmoid))``.
    """
    made = any(isinstance(getattr(rule, name, None), functools.partial) for name in ("fwd", "bwd", "jvp"))
    return not made and all(_package(f) in (*packages, "jaxlib") for f in _functions(rule))


def _ours(rule: Any) -> bool:
    """Whether funcnet brings it, or attaches it to an operation, which is noted itself."""
    if is_rule(rule):
        parts = (part for name in _PARTS if (part := getattr(rule, name, None)) is not None)
        return all(_package(f) == "funcnet" for part in parts for f in itertools.islice(_functions(part), 1))
    return brought_by(rule, "jax", "funcnet")


HELD = 2**16  # elements of an array that a rule sees; larger ones are equal to themselves


class _Option:
    """An option, equal to those that say so; to itself alone where it says neither yes nor no."""

    def __init__(self, v: Any):
        self.v = v

    def __hash__(self) -> int:
        try:
            return hash(self.v)
        except TypeError:  # as of a set
            return id(self.v)

    def __eq__(self, other: Any) -> bool:
        with contextlib.suppress(Exception):  # as of a dataclass that holds arrays
            return self.v is other.v or (hash(self.v) == hash(other.v) and bool(self.v == other.v))
        return False


def _is_of_numbers(v: Any) -> bool:
    return v.dtype != object and not jnp.issubdtype(v.dtype, jax.dtypes.extended)


_BOUND = ("__defaults__", "__kwdefaults__", "__self__", "nondiff_argnums", "args", "keywords")


def likeness(v: Any, within: tuple[int, ...] = ()) -> Hashable:
    """Equal for rules of the same code that see the same values, and for options that are equal."""
    if id(v) in within:  # it calls itself
        return ("itself", within.index(id(v)))
    inner = (*within, id(v))
    if isinstance(v, str | bytes | int | float | complex | bool | None):
        return type(v), v
    if isinstance(v, tuple | list):
        return type(v), *(likeness(each, inner) for each in v)
    if isinstance(v, jax.core.Tracer):  # which has no value; of one code it is made in one way
        return "traced", v.shape
    if isinstance(v, np.ndarray | np.generic | jax.Array) and v.size <= HELD and _is_of_numbers(v):
        return v.shape, str(v.dtype), np.asarray(v).tobytes()
    if isinstance(v, dict):
        return type(v), *((key, likeness(each, inner)) for key, each in v.items())
    code = getattr(v, "__code__", None)
    if code is None and not is_rule(v) and not isinstance(v, functools.partial):
        return type(v), _Option(v)
    return id(code), *(likeness(part, inner) for part in (*(getattr(v, n, None) for n in _BOUND), *_parts(v)))


def is_rule(function: Any) -> bool:
    """Whether a function is one with a derivative rule attached."""
    return isinstance(function, RULES)


def function_of(rule: Any) -> Any:
    """The function that has the rule, as it is written."""
    function = getattr(rule, "fun", rule)
    # Of JAX's own is the one that jax.custom_gradient makes of the user's.
    if hasattr(function, "__globals__") and _package(function) == "jax":
        return next((f for f in _functions(function) if _package(f) != "jax"), function)
    return function


def name_of(rule: Any) -> str:
    """The name of the function that has the rule."""
    name = getattr(function_of(rule), "__name__", "rule")
    return name.rpartition(".")[2].replace("<lambda>", "function")


def files_of(rule: Any) -> set[str]:
    """The files in which it is written."""
    return {f.__code__.co_filename for f in _functions(rule)}


def line_of(rule: Any) -> str:
    """``file.py:57``, where the derivative of a rule is written; "" where that is not known."""
    parts = (getattr(rule, "bwd", None), getattr(rule, "jvp", None), rule)
    written = [f for part in parts for f in _functions(part) if _package(f) != "funcnet"]
    for function in sorted(written, key=lambda f: _package(f) == "jax"):
        return trace.near(function.__code__.co_filename, function.__code__.co_firstlineno)
    return ""


def written(rule: Any) -> set[str]:
    """``file.py:57`` of each function in the one that has the rule, as JAX writes it."""
    return {
        f"{f.__code__.co_filename}:{f.__code__.co_firstlineno}"
        for f in _functions(getattr(rule, "fun", rule))
    }
