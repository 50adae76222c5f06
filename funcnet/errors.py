"""The errors that funcnet raises: typed, complete, and with a hint only when a condition proves it.

Every one carries what its text says, as attributes: ``problem`` (its first sentence), ``path`` (the argument
or leaf), ``expected``, ``actual`` and ``hint``. They are raised when a function is traced, so the text is the
same under `jax.jit`, `jax.vmap` and `jax.grad`.
"""

from typing import Any

__all__ = [
    "DTypeError",
    "FileFormatError",
    "FuncnetError",
    "MissingExtraError",
    "ShapeError",
    "StructureError",
    "ValueRangeError",
    "describe",
    "shorten",
]


class FuncnetError(Exception):
    """The base of funcnet's errors; catch the subclasses, or the built-in types that they extend.

    Args:
        problem: one sentence, "where: what is wrong".
        path: the argument or leaf at fault, as the user wrote it: ``x``, ``params["w"]``.
        expected: what was wanted, in full, with the source of each number.
        actual: what came.
        hint: what to do, given only when a condition proves it.
    """

    def __init__(
        self,
        problem: str,
        *,
        path: str | None = None,
        expected: str | None = None,
        actual: str | None = None,
        hint: str | None = None,
    ):
        self.problem, self.path = problem, path
        self.expected, self.actual, self.hint = expected, actual, hint
        rows = [("expected", expected), ("got", actual), ("hint", hint)]
        super().__init__("\n".join([problem, *(f"  {name:<8}  {text}" for name, text in rows if text)]))


class ShapeError(FuncnetError, ValueError):
    """An array has the wrong rank or sizes."""


class DTypeError(FuncnetError, TypeError):
    """A value has the wrong type, or an array the wrong element type."""


class ValueRangeError(FuncnetError, ValueError):
    """A value lies outside the range in which it means something."""


class StructureError(FuncnetError, ValueError):
    """A pytree has missing, unexpected or misplaced parts."""


class FileFormatError(FuncnetError, ValueError):
    """A file is damaged, of another format, or does not hold what it should."""


class MissingExtraError(FuncnetError, ImportError):
    """A feature needs an optional dependency; the text names the extra that brings it."""


def describe(value: Any) -> str:
    """`value` in a few characters: ``float32[7, 3]`` for an array, never its elements.

    >>> import numpy as np
    >>> describe(np.zeros((7, 3), np.float32))
    'float32[7, 3]'
    >>> describe(0.5)
    '0.5 (float)'
    """
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if isinstance(shape, tuple) and dtype is not None:
        return f"{dtype}[{', '.join(map(str, shape))}]"
    if value is None or isinstance(value, bool | int | float | complex | str):
        return f"{shorten(value)} ({type(value).__name__})"
    if isinstance(value, type):
        return f"the type {value.__name__}"
    return f"a {type(value).__name__}"


def shorten(value: Any) -> str:
    """`value` as Python writes it, in at most 60 characters.

    >>> shorten("funcnet"), shorten("a" * 70)[-4:], shorten(2**10000)
    ("'funcnet'", 'aaa…', 'an int of 10001 bits')
    """
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an int of {value.bit_length()} bits"
    if isinstance(value, bool | int | float | complex | str | bytes | None):
        text = repr(value[:60] if isinstance(value, str | bytes) else value)
        return text if len(text) <= 60 else f"{text[:59]}…"
    return describe(value)
