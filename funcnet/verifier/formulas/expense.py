"""What a program costs, counted before it is run: operations and bytes, from its jaxpr."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

__all__ = ["Expense", "expense"]

# Multiplications and additions of a factorisation of an n × n matrix, in n³.
_CUBES = {"cholesky": 1 / 3, "lu": 2 / 3, "qr": 4 / 3, "geqrf": 4 / 3, "eigh": 9, "eig": 25, "svd": 20}


class Expense(NamedTuple):
    """Of one run.

    Attributes:
        flops: multiplications, additions and functions of numbers.
        bytes: of all values on the way together, in double precision.
    """

    flops: float
    bytes: float

    def __add__(self, other: Any) -> "Expense":
        return Expense(self.flops + other.flops, self.bytes + other.bytes)


def expense(closed: Any) -> Expense:
    """Of a closed jaxpr. Loops whose length is not known count as one step."""
    total = Expense(0.0, 0.0)
    for eqn in closed.jaxpr.eqns if hasattr(closed, "jaxpr") else closed.eqns:
        inner = [expense(body) for body in _bodies(eqn)]
        times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        for one in inner:
            total += Expense(times * one.flops, times * one.bytes)
        if not inner:
            total += Expense(_flops(eqn), 8.0 * sum(_size(v) for v in eqn.outvars))
    return total


def _bodies(eqn: Any) -> Iterator[Any]:
    for leaf in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
        if hasattr(leaf, "eqns") or hasattr(leaf, "jaxpr"):
            yield leaf


def _flops(eqn: Any) -> float:
    name, given = eqn.primitive.name, [v.aval.shape for v in eqn.invars]
    out = sum(_size(v) for v in eqn.outvars)
    if name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        return 2.0 * out * math.prod(given[0][a] for a in contracted)
    if name == "triangular_solve":
        return float(out * given[0][-1])
    if name in _CUBES:
        return _CUBES[name] * math.prod(given[0]) * min(given[0][-2:])
    return float(max([out, *map(math.prod, given)], default=0))


def _size(v: Any) -> int:
    return math.prod(getattr(v.aval, "shape", ()))
