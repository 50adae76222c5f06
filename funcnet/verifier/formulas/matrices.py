"""Sums, transposes, inverses and products of matrices, in the normal form of `algebra`.

A product is one flat chain. A vector may stand first in it, as a row, or last, as a column; a chain whose
value is a vector has it last, so that xᵀA and Aᵀx are one term. A row of ones beside a matrix is a sum over
an axis, an outer product within a chain makes it an outer product, and an inverse beside its matrix goes.
"""

import functools
import operator
from collections.abc import Sequence
from typing import Any

from funcnet.verifier.formulas.algebra import (
    ONE,
    Term,
    add,
    apply,
    count,
    expand,
    inner,
    is_fixed,
    mul,
    power,
    scalars,
    unsqueeze,
)

__all__ = ["eye", "inverse", "matmul", "outer", "rebuilt", "summed", "trace", "transpose"]


def summed(term: Term, axes: Sequence[int], keepdims: bool = False) -> Term:
    """The sum over axes."""
    axes = tuple(sorted(axes))
    if not axes:
        return term
    scalar, rest = scalars(term)
    if rest is not term and scalar is not ONE:
        return mul(scalar, summed(rest, axes, keepdims))
    if keepdims and term.op == "mul" and (fixed := [f for f in term.args if is_fixed(f, term.ndim, axes)]):
        moving = mul(*(f for f in term.args if f not in fixed))
        if moving.shape == term.shape:
            return mul(*fixed, summed(moving, axes, keepdims))
    left = [d for i, d in enumerate(term.shape) if i not in axes]
    leading = axes == tuple(range(len(axes)))
    if term.op == "expand" and leading and not keepdims and term.args[0].shape in ((), tuple(left)):
        like = apply("sum", term, shape=left, data=(axes, False))
        return mul(count(term, axes), expand(term.args[0], like))
    if term.op == "one_hot" and axes == (term.ndim - 1,) and not keepdims:
        return expand(ONE, term.args[0])
    if term.op == "one_hot" and axes == (term.ndim - 1,):
        return expand(ONE, apply("sum", term, shape=[*left, 1], data=(axes, True)))
    if term.op == "T" and not keepdims:
        return summed(term.args[0], [term.ndim - 1 - axis for axis in axes])
    if term.op == "sum" and term.data == (axes, True):
        return summed(term.args[0], axes, keepdims)
    if not keepdims and term.op == "mul" and len(term.args) == 2 and (product := _as_product(term, axes)):
        return product
    shape = [1 if i in axes else d for i, d in enumerate(term.shape)] if keepdims else left
    return apply("sum", term, shape=shape, data=(axes, keepdims))


def _as_product(term: Term, axes: Sequence[int]) -> Term | None:
    """Σ a b of vectors is a b, Σ M b along the rows of a matrix M b, along its columns Mᵀ b."""
    b, m = sorted(term.args, key=lambda t: (t.ndim, t.op != "unsqueeze"))
    if term.ndim == 1:
        return matmul(*term.args)
    if term.ndim != 2 or m.shape != term.shape or len(axes) != 1:
        return None
    if axes == (1,) and b.shape == term.shape[1:]:
        return matmul(m, b)
    if axes == (0,) and b.op == "unsqueeze" and b.shape == (term.shape[0], 1) and b.args[0].ndim == 1:
        return matmul(transpose(m), b.args[0])
    return None


# ---- products of matrices ---------------------------------------------------------------------------------


@functools.lru_cache(4096)
def transpose(term: Term) -> Term:
    """The transpose of a matrix; anything with fewer axes is its own."""
    if term.ndim < 2:
        return term
    match term.op:
        case "T":
            return term.args[0]
        case "name" if term.data[1]:  # symmetric
            return term
        case "matmul":
            return matmul(*map(transpose, reversed(term.args)))
        case "add" | "mul" if all(arg.ndim in (0, 2) for arg in term.args):
            return (add if term.op == "add" else mul)(*map(transpose, term.args))
        case "pow":
            return power(transpose(term.args[0]), term.data)
        case "outer":
            return outer(term.args[1], term.args[0])
        case "inv":
            return inverse(transpose(term.args[0]))
        case "eye" | "diag":
            return term
        case "expand" if term.args[0].ndim == 0:
            return expand(term.args[0], transpose(term.args[1]))
    return apply("T", term, shape=term.shape[::-1])


def eye(like: Term) -> Term:
    """The identity with as many rows as a matrix has."""
    return apply("eye", count(like, (0,)), shape=(like.shape[0],) * 2)


def inverse(term: Term) -> Term:
    """The inverse of a matrix."""
    scalar, rest = scalars(term)
    if scalar is not ONE and rest.ndim:
        return mul(power(scalar, -1), inverse(rest))
    if term.op == "eye":
        return term
    if term.op == "inv":
        return term.args[0]
    flipped = transpose(term)
    if flipped.op == "inv":
        return transpose(flipped.args[0])
    if (flipped.size, flipped.key) < (term.size, term.key):  # of A⁻ᵀ and (Aᵀ)⁻¹ one is the normal form
        return apply("T", apply("inv", flipped))
    return apply("inv", term)


def outer(a: Term, b: Term) -> Term:
    """The products of each element of a vector and each of another."""
    (s, a), (r, b) = scalars(a), scalars(b)
    both = apply("outer", a, b, shape=a.shape + b.shape)
    if a.op == "expand":  # ones
        return expand(mul(s, r, inner(b)), both)
    if b.op == "expand":
        return expand(mul(s, r, unsqueeze(a, (1,))), both)
    return mul(s, r, both)


def matmul(*terms: Term) -> Term:
    """The product from left to right, as NumPy's ``@``: of matrices, and vectors as rows or columns."""
    return functools.reduce(_matmul, terms)


def _matmul(left: Term, right: Term) -> Term:
    (s, left), (r, right) = scalars(left), scalars(right)
    scalar = mul(s, r)
    row = [left] if left.ndim == 1 and left.op != "matmul" else list(_chain(left))
    if left.op == "matmul" and left.ndim == 1:  # a column: as a row it is reversed
        row = [transpose(t) for t in reversed(row)]
    return mul(scalar, _product(_cancelled([*row, *_chain(right)])))


def _chain(term: Term) -> tuple[Term, ...]:
    return term.args if term.op == "matmul" else (term,)


def _cancelled(chain: list[Term]) -> list[Term]:
    """Without identities, and without inverses beside what they invert."""
    done: list[Term] = []
    for i, term in enumerate(chain):
        if term.op == "eye" and (done or i + 1 < len(chain)):
            continue
        if done and _is_inverse(term, done[-1]):
            before = done.pop()
            if not done and i + 1 == len(chain):
                return [eye(before)]
            continue
        done.append(term)
    return done


def _is_inverse(a: Term, b: Term) -> bool:
    return (
        a.shape == b.shape == a.shape[::-1]
        and a.ndim == 2
        and "inv" in (_under(a), _under(b))
        and inverse(a) is b
    )


def _under(term: Term) -> str:
    return term.args[0].op if term.op == "T" else term.op


def _product(chain: list[Term]) -> Term:
    """The product of a chain that holds no scalars."""
    if len(chain) == 1:
        return chain[0]
    for i, term in enumerate(chain):  # a bᵀ in the middle: (L a) (bᵀ R)
        if term.ndim == 2 and (pair := _as_outer(term)):
            scalar, a, b = pair
            before = _product([*chain[:i], a])
            after = _product([transpose(t) for t in reversed([b, *chain[i + 1 :]])])
            together = outer(before, after) if before.ndim and after.ndim else mul(before, after)
            return mul(scalar, together)
    first, last = chain[0], chain[-1]
    if first.ndim == 1 and last.ndim == 1 and len(chain) == 2 and _ones(first) and _ones(last):
        return count(first, (0,))
    if first.ndim == 1 and _ones(first):
        return _product([summed(chain[1], (0,)), *chain[2:]])
    if last.ndim == 1 and _ones(last):
        return _product([*chain[:-2], summed(chain[-2], (chain[-2].ndim - 1,))])
    back = tuple(transpose(t) for t in reversed(chain))
    if first.ndim == 1 and last.ndim == 1:  # a number: read it in the direction with fewer transposes
        chain = list(min(tuple(chain), back, key=_chain_order))
        return apply("matmul", *chain, shape=())
    if first.ndim == 1:
        return _product(list(back))
    return apply("matmul", *chain, shape=first.shape[:1] + last.shape[1:])


def _chain_order(chain: Sequence[Term]) -> Any:
    return sum(t.op == "T" for t in chain), [t.key for t in chain]


def _ones(term: Term) -> bool:
    return term.op == "expand" and inner(term) is ONE


def _as_outer(term: Term) -> tuple[Term, Term, Term] | None:
    """(s, a, b) with term = s a bᵀ."""
    if term.op == "outer":
        return ONE, term.args[0], term.args[1]
    if term.op != "expand":
        return None
    scalar, repeated = scalars(term.args[0])
    rows, columns = (
        expand(ONE, apply("axis", term.args[1], shape=term.shape[i : i + 1], data=i)) for i in range(2)
    )
    if repeated.ndim == 0:
        return scalar, rows, columns
    if repeated.ndim == 1:
        return scalar, rows, repeated
    if repeated.op == "unsqueeze" and repeated.args[0].ndim == 1:  # a column
        return scalar, repeated.args[0], columns
    return None


def trace(term: Term) -> Term:
    """The sum of the diagonal."""
    scalar, rest = scalars(term)
    if scalar is not ONE:
        return mul(scalar, trace(rest))
    if term.op == "outer":
        return matmul(*term.args)
    if term.op == "T":
        return trace(term.args[0])
    if term.op == "eye":
        return term.args[0]
    return apply("trace", term, shape=())


# ---- the same term of other parts -------------------------------------------------------------------------


def rebuilt(term: Term, args: Sequence[Term]) -> Term:
    """The term with other operands of the same shapes, in normal form again."""
    if all(map(operator.is_, term.args, args)):
        return term
    match term.op:
        case "add":
            return add(*args)
        case "mul":
            return mul(*args)
        case "pow":
            return power(args[0], term.data)
        case "matmul":
            return matmul(*args)
        case "T" if args[0].op in ("name", "T"):  # of a sum it stands where it makes it shorter
            return transpose(args[0])
        case "inv":
            return inverse(args[0])
        case "outer":
            return outer(*args)
        case "sum":
            return summed(args[0], *term.data)
        case "trace":
            return trace(args[0])
        case "expand":
            return expand(*args)
    return apply(term.op, *args, shape=term.shape, data=term.data)
