"""The derivative rules that a function meets while it runs: noted, or left out.

`jax.custom_vjp.__call__` and `jax.custom_jvp.__call__` are replaced inside one locked context that is part
of JAX's cache keys, so that rules in scan, cond, vmap and in functions that were compiled before are met too.
"""

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from funcnet import rules
from funcnet.verifier import trace

__all__ = [
    "Call",
    "is_rule",
    "line_of",
    "met",
    "name_of",
    "of_jax",
    "package_of",
    "plain",
    "replaced",
    "tape",
]

RULES = (jax.custom_vjp, jax.custom_jvp)
_lock = threading.RLock()
_replaced = jax.make_user_context(None)

Answer = Callable[[Callable[..., Any], Any, tuple[Any, ...], dict[str, Any]], Any]


@contextlib.contextmanager
def replaced(answer: Answer) -> Iterator[None]:
    """Let ``answer(call, rule, args, options)`` answer each call of a rule; `call` is how JAX does."""
    token = object()
    with _lock, contextlib.ExitStack() as stack:
        for kind in RULES:
            old = kind.__call__

            def new(self: Any, *args: Any, old: Any = old, **options: Any) -> Any:
                mine = _replaced.value is token  # another thread's calls are its own
                return answer(old, self, args, options) if mine else old(self, *args, **options)

            kind.__call__ = new
            stack.callback(setattr, kind, "__call__", old)
        stack.enter_context(_replaced(token))
        yield


@contextlib.contextmanager
def plain(of: Any = None, *, all_of_them: bool = True) -> Iterator[None]:
    """Differentiate by JAX alone: what a rule is attached to is called without it.

    Args:
        of: a rule that is left out in any case.
        all_of_them: leave out all but those that JAX brings.
    """

    def answer(call: Any, rule: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if rule is of or (all_of_them and not of_jax(rule)):
            return rule.fun(*args, **options)
        return call(rule, *args, **options)

    with replaced(answer), rules.autodiff("jax") if all_of_them else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def met() -> Iterator[list[Any]]:
    """The rules that whatever is traced inside meets, each once, but for those that JAX brings."""
    found: list[Any] = []

    def answer(call: Any, rule: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if not of_jax(rule) and not any(rule is one for one in found):
            found.append(rule)
        return call(rule, *args, **options)

    with replaced(answer):
        yield found


@dataclasses.dataclass
class Call:
    """A rule, as it is called with arguments of one kind: a `jax.custom_vjp`, or the `vjp` of `rules.call`.

    Attributes:
        rule: what is called.
        tree: of its arguments and options.
        leaves: of these, but for arrays.
        values: the arrays of the first call and of the last, as they were when it ran; none if it never ran.
        count: how often it ran.
    """

    rule: Any
    tree: Any
    leaves: list[Any]
    values: list[list[np.ndarray]] = dataclasses.field(default_factory=list)
    count: int = 0

    def arguments(self, values: list[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Its arguments and options with such arrays."""
        arrays = iter(values)
        return jax.tree.unflatten(self.tree, [next(arrays) if v is None else v for v in self.leaves])


@contextlib.contextmanager
def tape() -> Iterator[list[Call]]:
    """Note every rule that whatever runs inside calls, those of JAX too, and its arguments.

    Read it when all has run: under `jax.jit`, in a loop or a branch the values come when that does.
    """
    calls: dict[Any, Call] = {}

    def note(rule: Any, args: Any, options: Any) -> None:
        leaves, tree = jax.tree.flatten((args, options))
        is_array = [hasattr(v, "dtype") and hasattr(v, "shape") for v in leaves]
        key = (
            id(rule),
            tree,
            *((v.shape, v.dtype) if a else repr(v) for v, a in zip(leaves, is_array, strict=True)),
        )
        still = [None if a else v for v, a in zip(leaves, is_array, strict=True)]
        call = calls.setdefault(key, Call(rule, tree, still))

        def came(*values: Any) -> None:
            call.count += 1
            call.values[1:] = [list(map(np.asarray, values))] if call.values else []
            call.values = call.values or [list(map(np.asarray, values))]

        arrays = [v for v, a in zip(leaves, is_array, strict=True) if a]
        if any(isinstance(v, jax.core.Tracer) for v in arrays):
            keys = [jnp.issubdtype(v.dtype, jax.dtypes.prng_key) for v in arrays]
            if any(keys):
                return  # it stays without values: a random key cannot be handed out
            jax.debug.callback(came, *arrays)
        else:
            came(*arrays)

    def answer(call: Any, rule: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if not package_of(rule).startswith("funcnet"):
            note(rule, args, options)
        return call(rule, *args, **options)

    def noted(vjp: Any, args: Any, options: Any) -> None:
        if not vjp.__module__.startswith("funcnet."):
            note(vjp, args, options)

    found: list[Call] = []
    with replaced(answer), rules.noted(noted):
        yield found
        jax.effects_barrier()
    found.extend(calls.values())


def is_rule(function: Any) -> bool:
    """Whether a function is one with a derivative rule attached."""
    return isinstance(function, RULES)


def package_of(rule: Any) -> str:
    """The package whose function has the rule: ``jax``; that of a script is ``__main__``."""
    return (getattr(getattr(rule, "fun", rule), "__module__", None) or "").partition(".")[0]


def of_jax(rule: Any) -> bool:
    """Whether JAX itself brings a rule."""
    return package_of(rule) in ("jax", "jaxlib")


def name_of(rule: Any) -> str:
    """The name of the function that has the rule."""
    return getattr(getattr(rule, "fun", rule), "__name__", "rule").replace("<lambda>", "function")


def line_of(rule: Any) -> str:
    """``file.py:57``, where the derivative of a rule is written; "" where that is not known."""
    function: Any
    for function in (getattr(rule, "bwd", None), getattr(rule, "jvp", None), getattr(rule, "fun", rule)):
        while hasattr(function, "__wrapped__") or hasattr(function, "func"):
            function = getattr(function, "__wrapped__", None) or function.func
        if (code := getattr(function, "__code__", None)) is not None:
            return trace.near(code.co_filename, code.co_firstlineno)
    return ""
