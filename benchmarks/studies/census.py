"""What a census of gradient formulas is made of: right and wrong ones, with the names of their mistakes.

Every wrong formula carries the names of its mistake, from `funcnet.verifier.finding.KINDS`: the label first,
then names that would be as true.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Operation", "Right", "Wrong", "normal"]


class Right(NamedTuple):
    """A right formula: `backward(*args, dy)` gives the gradients of `forward(*args)`."""

    operation: str
    name: str
    forward: Callable[..., Any]
    backward: Callable[..., Any]
    draw: Callable[[np.random.Generator], tuple[Any, ...]]


class Wrong(NamedTuple):
    """A wrong formula: only the gradient of `argument` is at fault; `kinds` names the mistake."""

    operation: str
    name: str
    argument: str
    kinds: tuple[str, ...]
    forward: Callable[..., Any]
    backward: Callable[..., Any]
    draw: Callable[[np.random.Generator], tuple[Any, ...]]


def but(backward, index, gradient):
    """`backward`, with the gradient of argument `index` replaced by `gradient(*args, dy)`."""

    def mutant(*args):
        if len(args) == 2:
            return gradient(*args)
        gradients = list(backward(*args))
        gradients[index] = gradient(*args)
        return tuple(gradients)

    return mutant


class Operation:
    """One operation: adds its formulas to the lists `rights` and `wrongs`, the textbook one first."""

    def __init__(self, rights, wrongs, name, forward, backward, draw):
        self.rights, self.wrongs = rights, wrongs
        self.name, self.forward, self.backward, self.draw = name, forward, backward, draw
        self.right("textbook", backward)

    def right(self, name, backward, draw=None):
        """Register a right formula for all arguments."""
        self.rights.append(Right(self.name, name, self.forward, backward, draw or self.draw))

    def wrong(self, name, argument, kinds, gradient, draw=None):
        """Register a mutant: the textbook's gradients, but that of `argument` is `gradient(*args, dy)`."""
        index = list(inspect.signature(self.forward).parameters).index(argument)
        mutant = but(self.backward, index, gradient)
        self.wrongs.append(Wrong(self.name, name, argument, kinds, self.forward, mutant, draw or self.draw))


def normal(*shapes):
    """A draw of standard normal arrays of the given shapes."""
    return lambda rng: tuple(rng.standard_normal(shape).astype(np.float32) for shape in shapes)
