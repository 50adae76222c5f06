"""Terms: formulas in one normal form, so that what is equal looks equal and can be collected.

A term is an operation, its operands and its shape. Equal terms are one object. The functions that make them
flatten sums and products, collect equal summands into one with a number before it and equal factors into a
power, take scalars out of sums and products of matrices, and push a transpose down to the names. They never
multiply out, so that no formula grows. Here: sums and products element by element, which broadcast as in
NumPy, and shapes; `matrices` has the rest.
"""

import dataclasses
import functools
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

__all__ = [
    "ELEMENTWISE",
    "ONE",
    "ROWWISE",
    "Term",
    "add",
    "apply",
    "count",
    "expand",
    "factors",
    "inner",
    "is_fixed",
    "is_zero",
    "mul",
    "name",
    "neg",
    "number",
    "opposite",
    "parts",
    "power",
    "scalars",
    "split",
    "unsqueeze",
]

ELEMENTWISE = (
    "exp", "log", "log1p", "expm1", "abs", "sign", "sin", "cos", "tanh", "erf", "sigmoid", "relu",
)  # fmt: skip
ROWWISE = ("softmax", "log_softmax")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Term:
    """An operation on terms.

    Attributes:
        op: its name: that of a function of formulas, or ``name``, ``number``, ``add``, ``mul``, ``pow``,
            ``matmul`` (of a chain), ``T``, ``expand`` (repeat to a shape), ``unsqueeze`` (new axes of 1),
            ``count`` (a product of sizes), ``mask`` (1 where a comparison holds, else 0).
        args: its operands.
        shape: of its value.
        data: what it is besides: a name, a number, axes.
        size: how many operations, names and numbers it holds; a minus sign counts nothing.
    """

    op: str
    args: tuple["Term", ...]
    shape: tuple[int, ...]
    data: Any
    size: int

    @functools.cached_property
    def key(self) -> str:
        """Text that orders terms, the same in every run."""
        return f"{self.op}({self.data}|{','.join(arg.key for arg in self.args)})"

    @property
    def ndim(self) -> int:
        """How many axes its value has."""
        return len(self.shape)

    def __iter__(self) -> Iterator["Term"]:
        """All different terms within, operands before what is made of them."""
        return iter(_within(self))

    def __repr__(self) -> str:
        return self.key


def _within(term: Term) -> list[Term]:
    found: dict[Term, None] = {}

    def visit(t: Term) -> None:
        if t not in found:
            for arg in t.args:
                visit(arg)
            found[t] = None

    visit(term)
    return list(found)


_TERMS: weakref.WeakValueDictionary[Any, Term] = weakref.WeakValueDictionary()


def apply(op: str, *args: Term, shape: Sequence[int] | None = None, data: Any = None) -> Term:
    """The term as it stands: the same object for the same parts.

    Args:
        op: the operation.
        args: its operands.
        shape: of the result; None: that of the first operand.
        data: what it is besides.
    """
    shape = args[0].shape if shape is None else tuple(map(int, shape))
    operations = len(args) - 1 if op in ("add", "mul", "matmul") else 1
    if op == "mul" and args[0].data == -1 and args[0].op == "number":
        operations -= 2
    term = Term(op, args, shape, data, operations + sum(arg.size for arg in args))
    return _TERMS.setdefault((op, args, shape, data), term)


def name(text: str, shape: Sequence[int], symmetric: bool = False) -> Term:
    """An argument, or dy."""
    return apply("name", shape=shape, data=(text, symmetric))


def number(value: int | float | Fraction) -> Term:
    """A number; decimals are taken as written, so that 0.1 is a tenth."""
    exact = value if isinstance(value, Fraction) else Fraction(str(value))
    return apply("number", shape=(), data=exact)


ONE = number(1)


def is_zero(term: Term) -> bool:
    """Whether it is 0, or an array of zeros."""
    return inner(term).data == 0 if inner(term).op == "number" else False


def inner(term: Term) -> Term:
    """What is repeated by an expand; any other term itself."""
    return term.args[0] if term.op == "expand" else term


# ---- sums and products, element by element ----------------------------------------------------------------


def factors(term: Term) -> tuple[Fraction, dict[Term, Fraction]]:
    """The number before a product, and its factors with their exponents."""
    if term.op == "number":
        return term.data, {}
    if term.op == "mul":
        coefficient, powers = Fraction(1), dict[Term, Fraction]()
        for factor in term.args:
            if factor.op == "number":
                coefficient = factor.data
            else:
                base, exponent = _base(factor)
                powers[base] = exponent
        return coefficient, powers
    base, exponent = _base(term)
    return Fraction(1), {base: exponent}


def _base(term: Term) -> tuple[Term, Fraction]:
    return (term.args[0], term.data) if term.op == "pow" else (term, Fraction(1))


def _shape(terms: Sequence[Term]) -> tuple[int, ...]:
    return np.broadcast_shapes(*(t.shape for t in terms)) if terms else ()


def _of_shape(term: Term, shape: Sequence[int], terms: Sequence[Term]) -> Term:
    """`term`, repeated to the shape that these terms gave together before some of them went."""
    if term.shape == tuple(shape):
        return term
    like = next((t for t in terms if t.shape == tuple(shape)), None)
    return expand(term, like if like is not None else apply("together", *terms, shape=shape))


def mul(*terms: Term) -> Term:
    """The product, element by element."""
    shape, coefficient, powers = _shape(terms), Fraction(1), dict[Term, Fraction]()
    for term in terms:
        c, those = factors(inner(term))
        coefficient *= c
        for base, exponent in those.items():
            powers[base] = powers.get(base, Fraction(0)) + exponent
    _join_exponentials(powers)
    if coefficient == 0:
        return _of_shape(number(0), shape, terms)
    kept = [_pow(base, exponent) for base, exponent in powers.items() if exponent]
    kept.sort(key=_factor_order)
    if coefficient != 1 or not kept:
        kept.insert(0, number(coefficient))
    product = kept[0] if len(kept) == 1 else apply("mul", *kept, shape=_shape(kept))
    return _of_shape(product, shape, terms)


def _join_exponentials(powers: dict[Term, Fraction]) -> None:
    """e^u / (1 + e^u) is σ(u), and e^u / Σ e^u softmax(u): the same numbers, and never inf / inf."""
    for base in [base for base, exponent in powers.items() if exponent < 0]:
        if base.op == "add" and len(base.args) == 2 and base.args[0] is ONE:
            exp, joined = base.args[1], "sigmoid"
        elif base.op == "sum" and (base.data[1] or base.ndim == 0):
            exp, joined = base.args[0], "softmax"
        else:
            continue
        if exp.op == "exp" and powers.get(exp, 0) > 0:
            term = apply(joined, exp.args[0], data=base.data[0] if joined == "softmax" else None)
            for part, change in ((base, 1), (exp, -1), (term, 1)):
                powers[part] = powers.get(part, Fraction(0)) + change


def _factor_order(term: Term) -> Any:
    """Scalars before arrays, dy first, then names, then the shorter before the longer."""
    base = _base(term)[0]
    is_dy = base.op == "name" and base.data[0] == "dy"
    return term.ndim > 0, term.op != "count", not is_dy, base.op != "name", term.size, term.key


def add(*terms: Term) -> Term:
    """The sum, element by element."""
    shape, constant, collected = _shape(terms), Fraction(0), dict[Term, Fraction]()
    whole = Counter(map(inner, terms))
    for term, times in whole.items():
        for part in parts(term) if times == 1 else [term]:  # r + r is 2 r, not twice each part of r
            c, rest = split(part)
            if rest is ONE:
                constant += c * times
            else:
                collected[rest] = collected.get(rest, Fraction(0)) + c * times
    kept = [mul(number(c), rest) for rest, c in collected.items() if c]
    if constant or not kept:
        kept.append(number(constant))
    kept.sort(key=_summand_order)
    total = kept[0] if len(kept) == 1 else apply("add", *kept, shape=_shape(kept))
    return _of_shape(total, shape, terms)


def parts(term: Term) -> tuple[Term, ...]:
    """The summands."""
    return term.args if term.op == "add" else (term,)


def _summand_order(term: Term) -> Any:
    """What is added before what is subtracted; numbers, products, names, transposed names."""
    coefficient, rest = split(term)
    kinds = {"number": 0, "name": 2, "T": 3}
    return coefficient < 0, kinds.get(rest.op, 1), rest.size, rest.key


def split(term: Term) -> tuple[Fraction, Term]:
    """The number before a term, and the rest."""
    if term.op == "number":
        return term.data, ONE
    if term.op == "mul" and term.args[0].op == "number":
        rest = term.args[1:]
        return term.args[0].data, rest[0] if len(rest) == 1 else apply("mul", *rest, shape=term.shape)
    if term.op == "expand":
        coefficient, rest = split(term.args[0])
        return coefficient, expand(rest, term.args[1])
    return Fraction(1), term


def neg(term: Term) -> Term:
    """−term."""
    return mul(number(-1), term)


def power(base: Term, exponent: Fraction | int) -> Term:
    """base ** exponent, for a number as the exponent."""
    exponent = Fraction(exponent)
    if exponent == 0:
        return expand(ONE, base)
    if base.op == "expand":
        return expand(power(base.args[0], exponent), base)
    whole = exponent.denominator == 1
    if whole and base.op == "number" and base.data and abs(exponent) * _bits(base.data) < 64:
        return number(base.data ** int(exponent))
    if whole and base.op in ("mul", "pow"):  # (x²)^½ is |x|: other exponents stay where they are
        c, powers = factors(base)
        return mul(power(number(c), exponent), *(_pow(b, e * exponent) for b, e in powers.items()))
    return _pow(base, exponent)


def _bits(value: Fraction) -> int:
    return max(abs(value.numerator), value.denominator).bit_length() - 1


def _pow(base: Term, exponent: Fraction) -> Term:
    return base if exponent == 1 else apply("pow", base, data=exponent)


def scalars(term: Term) -> tuple[Term, Term]:
    """The factors without axes, and the rest."""
    if term.op == "expand":
        scalar, rest = scalars(term.args[0])
        return scalar, expand(rest, term.args[1])
    if term.ndim == 0:
        return term, ONE
    if term.op != "mul":
        return ONE, term
    return mul(*(f for f in term.args if not f.ndim)), mul(*(f for f in term.args if f.ndim))


# ---- shapes -----------------------------------------------------------------------------------------------


def expand(term: Term, like: Term) -> Term:
    """`term`, repeated to the shape of another, as broadcasting does."""
    if term.shape == like.shape:
        return term
    if term.op == "expand":
        return expand(term.args[0], like)
    if term.op == "unsqueeze" and term.data == tuple(range(len(term.data))):
        return expand(term.args[0], like)
    return apply("expand", term, _shaped(like), shape=like.shape)


def _shaped(like: Term) -> Term:
    """The simplest term whose shape is that of another whatever the sizes are."""
    if like.op in ("expand", "together"):
        candidates = like.args[1:] if like.op == "expand" else like.args
    elif like.op in ("add", "mul", "pow", "inv", *ELEMENTWISE, *ROWWISE):
        candidates = like.args
    else:
        return like
    same = [c for c in candidates if c.shape == like.shape]
    return _shaped(min(same, key=lambda c: (c.size, c.key))) if same else like


def unsqueeze(term: Term, axes: Sequence[int]) -> Term:
    """New axes of size 1 at these places of the result."""
    axes = tuple(sorted(axes))
    if not axes:
        return term
    sizes = iter(term.shape)
    ndim = term.ndim + len(axes)
    return apply("unsqueeze", term, shape=[1 if i in axes else next(sizes) for i in range(ndim)], data=axes)


def count(term: Term, axes: Sequence[int]) -> Term:
    """The product of the sizes of some axes, as sizes of arguments where it can be told which."""
    term = _shaped(term)
    if term.op == "name" or (len(axes) > 1 and not _origin(term, axes[0])):
        return apply("count", term, shape=(), data=tuple(axes)) if axes else ONE
    sizes = [_origin(term, axis) or (term, axis) for axis in axes]
    return mul(*(apply("count", t, shape=(), data=(axis,)) for t, axis in sizes))


def _origin(term: Term, axis: int) -> tuple[Term, int] | None:
    """The argument, and its axis, whose size an axis has."""
    term = _shaped(term)
    match term.op:
        case "name":
            return term, axis
        case "T":
            return _origin(term.args[0], term.ndim - 1 - axis)
        case "axis":
            return _origin(term.args[0], term.data)
        case "outer":
            return _origin(term.args[axis], 0)
        case "matmul":
            first, last = term.args[0], term.args[-1]
            return _origin(first, 0) if axis == 0 else _origin(last, last.ndim - 1)
        case "add" | "mul":
            for t in term.args:
                own = axis - term.ndim + t.ndim
                if own >= 0 and t.shape[own] == term.shape[axis] and (found := _origin(t, own)):
                    return found
    return None


def is_fixed(term: Term, ndim: int, axes: Sequence[int]) -> bool:
    """Whether a factor of an array with `ndim` axes is the same all along some of them."""
    own = [axis - ndim + term.ndim for axis in axes]
    return all(axis < 0 or term.shape[axis] == 1 for axis in own)


def opposite(mask: Term) -> Term:
    """1 where a mask is 0."""
    other = {">": "<=", ">=": "<", "<": ">=", "<=": ">", "==": "!=", "!=": "=="}
    return apply("mask", *mask.args, shape=mask.shape, data=other[mask.data])
