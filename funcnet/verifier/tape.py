"""The derivative rules that a function meets while it runs: noted, or left out.

`jax.custom_vjp.__call__` and `jax.custom_jvp.__call__` are replaced inside one locked context that is part
of JAX's cache keys, so that rules in scan, cond, vmap and in functions that were compiled before are met too.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax

from funcnet import rules
from funcnet.verifier import trace

__all__ = ["is_rule", "line_of", "met", "name_of", "of_jax", "plain", "replaced"]

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


def is_rule(function: Any) -> bool:
    """Whether a function is one with a derivative rule attached."""
    return isinstance(function, RULES)


def of_jax(rule: Any) -> bool:
    """Whether JAX itself brings a rule."""
    return getattr(rule.fun, "__module__", "").partition(".")[0] in ("jax", "jaxlib")


def name_of(rule: Any) -> str:
    """The name of the function that has the rule."""
    return getattr(rule.fun, "__name__", "rule").replace("<lambda>", "function")


def line_of(rule: Any) -> str:
    """``file.py:57``, where the derivative of a rule is written; "" where that is not known."""
    for function in (getattr(rule, "bwd", None), getattr(rule, "jvp", None), rule.fun):
        while hasattr(function, "__wrapped__") or hasattr(function, "func"):
            function = getattr(function, "__wrapped__", None) or function.func
        if (code := getattr(function, "__code__", None)) is not None:
            return trace.near(code.co_filename, code.co_firstlineno)
    return ""
