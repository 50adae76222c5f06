"""Gradients as text: what `--forward` and `--grad` say, as the functions that `verify` takes."""

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from funcnet.verifier.formulas.expression import formula

__all__ = ["Formulas"]


@dataclasses.dataclass(frozen=True)
class Formulas:
    """A definition and its gradients as text; called as ``backward(*args, dy)``.

    Where the definition gives a number, a gradient without ``dy`` is that for dy = 1, as textbooks have it.

    Attributes:
        definition: the forward pass.
        texts: the gradient of each argument that is differentiated.
        given: all arguments, by name; those that are not differentiated are constants.
        forward: the definition as a function of those that are differentiated.

    Raises:
        ExpressionError: a text is no formula of the arguments, ``dy`` and ``y``.
    """

    definition: str
    texts: Mapping[str, str]
    given: Mapping[str, Any]
    forward: Callable[..., Any] = dataclasses.field(init=False)
    _backward: Callable[..., Any] = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        uses_y = any(re.search(r"\by\b", text) for text in self.texts.values())
        names = [*self.given, "dy", *["y"] * uses_y]
        value = formula(self.definition, list(self.given))
        gradients = {name: formula(text, names) for name, text in self.texts.items()}

        def forward(*args: Any) -> Any:
            return value(**self._all(args))

        def backward(*args_and_dy: Any) -> tuple[Any, ...]:
            *args, dy = args_and_dy
            values = {**self._all(args), "dy": dy, **({"y": forward(*args)} if uses_y else {})}
            of_one = {name for name, text in self.texts.items() if jnp.ndim(dy) == 0 and self.is_of_one(text)}
            return tuple(
                dy * gradient(**values) if name in of_one else gradient(**values)
                for name, gradient in gradients.items()
            )

        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        signature = inspect.Signature([inspect.Parameter(name, kind) for name in self.texts])
        forward.__signature__ = signature  # pyright: ignore[reportFunctionMemberAccess]
        object.__setattr__(self, "forward", forward)
        object.__setattr__(self, "_backward", backward)

    def _all(self, args: Sequence[Any]) -> dict[str, Any]:
        """All arguments: those that are not differentiated are constants, in the dtype of the others."""
        like = args[0].dtype
        constants = {
            name: v.astype(like) if jnp.issubdtype(v.dtype, jnp.floating) else v
            for name, v in self.given.items()
        }
        return {**constants, **dict(zip(self.texts, args, strict=True))}

    def __call__(self, *args_and_dy: Any) -> tuple[Any, ...]:
        """The gradients of the arguments that are differentiated, in their order."""
        return self._backward(*args_and_dy)

    @staticmethod
    def is_of_one(text: str) -> bool:
        """Whether a gradient does not say what becomes of dy."""
        return not re.search(r"\bdy\b", text)

    def symmetrised(self) -> Iterator[tuple[str, "Formulas"]]:
        """The same with one constant, a square matrix, made symmetric, and its name."""
        for name, v in self.given.items():
            if name not in self.texts and v.ndim == 2 and v.shape[0] == v.shape[1] > 1 and (v != v.T).any():
                yield name, dataclasses.replace(self, given={**self.given, name: (v + v.T) / 2})

    def replaced(self, texts: Mapping[str, str]) -> "Formulas":
        """The same with other texts for some gradients."""
        return dataclasses.replace(self, texts={**self.texts, **texts})
