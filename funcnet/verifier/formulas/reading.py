"""Formulas as text, read into terms. What has no term stays text: it can be printed, not differentiated."""

import ast
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import jax

from funcnet.verifier.formulas.algebra import (
    ELEMENTWISE,
    Term,
    add,
    apply,
    count,
    expand,
    mul,
    name,
    neg,
    number,
    power,
    unsqueeze,
)
from funcnet.verifier.formulas.expression import _FUNCTIONS, _METHODS, _bind, _parse, formula, plain
from funcnet.verifier.formulas.matrices import inverse, matmul, outer, summed, trace, transpose

__all__ = ["read"]


class _Foreign(Exception):  # noqa: N818
    """Something that terms do not have."""


def read(text: str, arguments: Mapping[str, jax.ShapeDtypeStruct], symmetric: Sequence[str] = ()) -> Term:
    """The term of a formula that `expression.formula` has accepted for these arguments.

    Args:
        text: the formula.
        arguments: by name, shapes and dtypes.
        symmetric: names of symmetric matrices.
    """
    return _Reader(arguments, symmetric).term(_parse(plain(text)))


class _Reader:
    def __init__(self, arguments: Mapping[str, jax.ShapeDtypeStruct], symmetric: Sequence[str]):
        self.arguments = arguments
        self.names = {k: name(k, v.shape, k in symmetric) for k, v in arguments.items()}

    def term(self, node: ast.expr) -> Term:
        """The term of a subexpression; of a foreign one its text, with the arguments in it as operands."""
        try:
            return self.known(node)
        except _Foreign:
            text = ast.unparse(node)
            inside = sorted({n.id for n in ast.walk(node) if isinstance(n, ast.Name) and n.id in self.names})
            function = formula(text, inside)
            value = jax.eval_shape(lambda given: function(**given), {k: self.arguments[k] for k in inside})
            text = text if isinstance(node, ast.Call | ast.Attribute | ast.Subscript) else f"({text})"
            return apply("foreign", *(self.names[k] for k in inside), shape=value.shape, data=text)

    def known(self, node: ast.expr) -> Term:
        match node:
            case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
                return number(value)
            case ast.Name(id=text):
                return self.names[text] if text in self.names else apply("constant", shape=(), data=text)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return neg(self.term(operand))
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return self.term(operand)
            case ast.BinOp(left=left, op=op, right=right):
                return self.binary(op, left, right)
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARISONS:
                a, b = self.term(left), self.term(right)
                return apply("mask", a, b, shape=add(a, b).shape, data=_COMPARISONS[type(op)])
            case ast.Attribute(value=value, attr="T" | "mT" as attribute):
                x = self.term(value)
                if x.ndim != 2 and (x.ndim > 2 or attribute == "mT"):
                    raise _Foreign
                return transpose(x)
            case ast.Attribute(value=value, attr="size"):
                x = self.term(value)
                return count(x, range(x.ndim))
            case ast.Subscript(value=ast.Attribute(value=value, attr="shape"), slice=index):
                x = self.term(value)
                return count(x, [self.static(index) % x.ndim])
            case ast.Subscript(value=value, slice=index):
                return self.new_axes(self.term(value), index)
            case ast.Call(func=ast.Name(id=text), args=args, keywords=keywords):
                return self.call(node, text, args, keywords)
            case ast.Call(func=ast.Attribute(value=value, attr=text), args=args, keywords=keywords) if (
                text in _METHODS
            ):
                return self.call(node, text, [value, *args], keywords)
        raise _Foreign

    def binary(self, op: ast.operator, left: ast.expr, right: ast.expr) -> Term:
        a, b = self.term(left), self.term(right)
        match op:
            case ast.Add():
                return add(a, b)
            case ast.Sub():
                return add(a, neg(b))
            case ast.Mult():
                return mul(a, b)
            case ast.Div():
                return mul(a, power(b, -1))
            case ast.MatMult() if a.ndim in (1, 2) and b.ndim in (1, 2):
                return matmul(a, b)
            case ast.Pow() if b.op == "number" and abs(b.data) <= 64:
                return power(a, b.data)
        raise _Foreign

    def new_axes(self, x: Term, index: ast.expr) -> Term:
        """x[:, None] and the like."""
        entries = index.elts if isinstance(index, ast.Tuple) else [index]
        axes = []
        for i, entry in enumerate(entries):
            match entry:
                case ast.Constant(value=None):
                    axes.append(i)
                case ast.Slice(lower=None, upper=None, step=None):
                    pass
                case _:
                    raise _Foreign
        return unsqueeze(x, axes)

    def static(self, node: ast.expr) -> Any:
        """A number, a tuple or None that is no array."""
        match node:
            case ast.Constant(value=int() | None as value):
                return value
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() as value)):
                return -value
            case ast.Tuple(elts=elements) | ast.List(elts=elements):
                values = tuple(map(self.static, elements))
                return values[0] if len(values) == 1 and isinstance(values[0], tuple) else values
        raise _Foreign

    def call(
        self, node: ast.expr, text: str, args: Sequence[ast.expr], keywords: Sequence[ast.keyword]
    ) -> Term:
        if text not in _CALLS and text not in ELEMENTWISE:
            raise _Foreign
        parameters = _FUNCTIONS[text][1].split()
        bound = _bind(node, text, parameters, args, keywords)
        options = {p.strip("=*"): bound.pop(p.strip("=*")) for p in parameters if p[0] == "*" or p[-1] == "="
                   if p.strip("=*") in bound}  # fmt: skip
        statics = {p: self.static(value) for p, value in options.items() if not _is_empty(value)}
        terms = [self.term(value) for value in bound.values()]
        if text in ELEMENTWISE:
            return apply(text, *terms)
        return _CALLS[text](*terms, **statics)


def _is_empty(value: ast.expr) -> bool:
    return isinstance(value, ast.Tuple) and not value.elts


_COMPARISONS = {ast.Gt: ">", ast.GtE: ">=", ast.Lt: "<", ast.LtE: "<=", ast.Eq: "==", ast.NotEq: "!="}


def _axes(x: Term, axis: Any) -> tuple[int, ...]:
    axes = range(x.ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    return tuple(sorted({a % x.ndim for a in axes}))


def _reduction(op: str) -> Callable[..., Term]:
    def reduced(x: Term, axis: Any = None, keepdims: bool = False) -> Term:
        axes = _axes(x, axis)
        if op == "sum":
            return summed(x, axes, keepdims)
        kept = [1 if i in axes else d for i, d in enumerate(x.shape)]
        shape = kept if keepdims else [d for i, d in enumerate(x.shape) if i not in axes]
        return apply(op, x, shape=shape, data=(axes, keepdims))

    return reduced


def _rowwise(op: str) -> Callable[..., Term]:
    return lambda x, axis=-1: apply(op, x, data=_axes(x, axis))


def _matrix(function: Callable[[Term], Term]) -> Callable[[Term], Term]:
    def of_matrix(x: Term) -> Term:
        if x.ndim != 2:
            raise _Foreign
        return function(x)

    return of_matrix


def _product(a: Term, b: Term) -> Term:
    if a.ndim not in (1, 2) or b.ndim not in (1, 2):
        raise _Foreign
    return matmul(a, b)


def _solve(a: Term, b: Term) -> Term:
    if a.ndim != 2 or b.ndim > 2:
        raise _Foreign
    return matmul(inverse(a), b)


def _outer(a: Term, b: Term) -> Term:
    if a.ndim != 1 or b.ndim != 1:
        raise _Foreign
    return outer(a, b)


def _transpose(x: Term, axes: Any = None) -> Term:
    if x.ndim > 2 or axes not in (None, (1, 0)):
        raise _Foreign
    return transpose(x)


def _where(mask: Term, a: Term, b: Term) -> Term:
    if mask.op != "mask":
        raise _Foreign
    return apply("where", mask, a, b, shape=add(mask, a, b).shape)


def _either(op: str) -> Callable[[Term, Term], Term]:
    return lambda a, b: a if a is b else apply(op, a, b, shape=add(a, b).shape)


def _one_hot(ids: Term, n: Term) -> Term:
    return apply("one_hot", ids, n, shape=[*ids.shape, _size(n)])


def _eye(n: Term) -> Term:
    return apply("eye", n, shape=[_size(n)] * 2)


def _size(n: Term) -> int:
    """The value of a number, or of x.shape[0]."""
    if n.op == "count":
        return math.prod(n.args[0].shape[axis] for axis in n.data)
    if n.op != "number":
        raise _Foreign
    return int(n.data)


def _diag(x: Term) -> Term:
    if x.ndim == 2 and x.shape[0] != x.shape[1]:
        raise _Foreign
    return apply("diag", x, shape=x.shape[:1] * (3 - x.ndim))


def _norm(x: Term, axis: Any = None, keepdims: bool = False) -> Term:
    return _reduction("norm")(x, axis, keepdims)


_CALLS: dict[str, Callable[..., Term]] = {
    "sqrt": lambda x: power(x, Fraction(1, 2)),
    "rsqrt": lambda x: power(x, Fraction(-1, 2)),
    "square": lambda x: power(x, 2),
    **{op: _reduction(op) for op in ("sum", "mean", "var", "std", "logsumexp")},
    "softmax": _rowwise("softmax"),
    "log_softmax": _rowwise("log_softmax"),
    "maximum": _either("maximum"),
    "minimum": _either("minimum"),
    "where": _where,
    "dot": _product,
    "matmul": _product,
    "outer": _outer,
    "transpose": _transpose,
    "zeros_like": lambda x: expand(number(0), x),
    "ones_like": lambda x: expand(number(1), x),
    "one_hot": _one_hot,
    "eye": _eye,
    "inv": _matrix(inverse),
    "solve": _solve,
    "det": _matrix(lambda x: apply("det", x, shape=())),
    "logdet": _matrix(lambda x: apply("logdet", x, shape=())),
    "trace": _matrix(trace),
    "norm": _norm,
    "diag": _diag,
}
