"""The rules of matrix calculus: what each operation makes of the gradient of its result.

A rule takes the operation's term y and its cotangent g, the gradient by y, and gives one cotangent for each
operand. They are this file's whole knowledge of derivatives, a closed list; an operation that is not in it is
not derived. Constants (comparisons, one-hot vectors, sizes) have no gradient.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction

from funcnet.verifier.formulas.algebra import (
    ONE,
    Term,
    add,
    apply,
    count,
    expand,
    mul,
    neg,
    number,
    opposite,
    power,
    unsqueeze,
)
from funcnet.verifier.formulas.matrices import eye, inverse, matmul, outer, summed, transpose

__all__ = ["CONSTANTS", "RULES", "NotDerived", "gradients"]

MAX_SIZE = 1200  # operations and names of a gradient that is not simplified; what is longer nobody reads
CONSTANTS = ("number", "constant", "count", "mask", "one_hot", "eye", "sign")

Rule = Callable[[Term, Term], Sequence[Term | None]]


class NotDerived(Exception):  # noqa: N818
    """There is no rule for an operation; the text says which."""


def gradients(y: Term, dy: Term, arguments: Sequence[Term]) -> dict[Term, Term | NotDerived]:
    """The gradient of Σ dy · y by each argument, in reverse mode: every term once, the last first.

    Args:
        y: the formula.
        dy: its cotangent.
        arguments: names in it.

    Returns:
        For each argument its gradient, or why there is none.
    """
    cotangents: dict[Term, list[Term]] = {y: [dy]}
    reasons: dict[Term, NotDerived] = {}
    for term in reversed(list(y)):
        if term not in reasons and term in cotangents and term.op not in ("name", *CONSTANTS):
            try:
                total = _total(term, cotangents[term])
                if term.op not in RULES:
                    what = term.data if term.op == "foreign" else term.op
                    raise NotDerived(f"there is no rule for {what if len(what) < 60 else what[:59] + '…'}")
                given: Sequence[Term | None] = RULES[term.op](term, total)
            except NotDerived as reason:
                reasons[term] = reason
            else:
                for arg, cotangent in zip(term.args, given, strict=True):
                    if cotangent is not None:
                        cotangents.setdefault(arg, []).append(cotangent)
        if term in reasons:
            reasons |= dict.fromkeys((arg for arg in term.args if arg.op not in CONSTANTS), reasons[term])
    found: dict[Term, Term | NotDerived] = {}
    for argument in arguments:
        try:
            found[argument] = reasons.get(argument) or _total(argument, cotangents.get(argument, []))
        except NotDerived as reason:
            found[argument] = reason
    return found


def _total(term: Term, cotangents: Sequence[Term]) -> Term:
    """The sum of what a term's uses give, in the shape of the term."""
    total = add(*cotangents) if cotangents else expand(number(0), term)
    total = expand(total.args[0], term) if total.op == "expand" else total
    if total.size > MAX_SIZE:
        raise NotDerived(f"the gradient has more than {MAX_SIZE} operations")
    return total


# ---- element by element -----------------------------------------------------------------------------------

# dy/dx from x and y.
DERIVATIVES: dict[str, Callable[[Term, Term], Term]] = {
    "exp": lambda _x, y: y,
    "log": lambda x, _y: power(x, -1),
    "log1p": lambda x, _y: power(add(ONE, x), -1),
    "expm1": lambda x, _y: apply("exp", x),
    "abs": lambda x, _y: apply("sign", x),
    "sin": lambda x, _y: apply("cos", x),
    "cos": lambda x, _y: neg(apply("sin", x)),
    "tanh": lambda _x, y: add(ONE, neg(power(y, 2))),
    "erf": lambda x, _y: mul(
        number(2),
        power(apply("constant", shape=(), data="pi"), Fraction(-1, 2)),
        apply("exp", neg(power(x, 2))),
    ),
    "sigmoid": lambda _x, y: mul(y, add(ONE, neg(y))),
    "relu": lambda x, _y: apply("mask", x, number(0), data=">"),
}


def _elementwise(y: Term, g: Term) -> list[Term]:
    (x,) = y.args
    return [mul(g, DERIVATIVES[y.op](x, y))]


def _add(y: Term, g: Term) -> list[Term]:
    return [_unbroadcast(g, x) for x in y.args]


def _mul(y: Term, g: Term) -> list[Term]:
    return [
        _unbroadcast(mul(g, *(other for j, other in enumerate(y.args) if j != i)), x)
        for i, x in enumerate(y.args)
    ]


def _pow(y: Term, g: Term) -> list[Term]:
    (x,) = y.args
    return [mul(g, number(y.data), power(x, y.data - 1))]


def _maximum(y: Term, g: Term) -> list[Term]:
    """Of the operand that is chosen; of equal ones the second."""
    a, b = y.args
    first = apply("mask", a, b, shape=y.shape, data=">" if y.op == "maximum" else "<")
    return [_unbroadcast(mul(g, first), a), _unbroadcast(mul(g, opposite(first)), b)]


def _where(y: Term, g: Term) -> list[Term | None]:
    mask, a, b = y.args
    return [None, _unbroadcast(mul(g, mask), a), _unbroadcast(mul(g, opposite(mask)), b)]


def _unbroadcast(g: Term, x: Term) -> Term:
    """What was repeated is summed."""
    extra = g.ndim - x.ndim
    repeated = [extra + i for i, d in enumerate(x.shape) if d == 1 and g.shape[extra + i] != 1]
    g = summed(g, repeated, keepdims=True)
    return summed(g, range(extra))


# ---- sums and what is made of them ------------------------------------------------------------------------


def _spread(g: Term, axes: Sequence[int], keepdims: bool) -> Term:
    """The gradient of a reduced result, with its lost axes again, of size 1."""
    return g if keepdims else unsqueeze(g, axes) if g.ndim else g


def _sum(y: Term, g: Term) -> list[Term]:
    (x,) = y.args
    return [expand(_spread(g, *y.data), x)]


def _mean(y: Term, g: Term) -> list[Term]:
    (x,) = y.args
    return [mul(expand(_spread(g, *y.data), x), power(count(x, y.data[0]), -1))]


def _var(y: Term, g: Term) -> list[Term]:
    (x,) = y.args
    axes = y.data[0]
    shape = [1 if i in axes else d for i, d in enumerate(x.shape)]
    centred = add(x, neg(apply("mean", x, shape=shape, data=(axes, True))))
    slope = number(2) if y.op == "var" else power(_spread(y, *y.data), -1)
    return [mul(_spread(g, *y.data), slope, centred, power(count(x, axes), -1))]


def _norm(y: Term, g: Term) -> list[Term]:
    (x,) = y.args
    return [mul(_spread(g, *y.data), x, power(_spread(y, *y.data), -1))]


def _logsumexp(y: Term, g: Term) -> list[Term]:
    (x,) = y.args
    return [mul(_spread(g, *y.data), apply("softmax", x, data=y.data[0]))]


def _softmax(y: Term, g: Term) -> list[Term]:
    keepdims = len(y.data) < y.ndim
    return [mul(y, add(g, neg(summed(mul(g, y), y.data, keepdims))))]


def _log_softmax(y: Term, g: Term) -> list[Term]:
    (x,) = y.args
    keepdims = len(y.data) < y.ndim
    return [add(g, neg(mul(apply("softmax", x, data=y.data), summed(g, y.data, keepdims))))]


# ---- linear algebra ---------------------------------------------------------------------------------------


def _matmul(y: Term, g: Term) -> list[Term]:
    """Of A₁ … Aₙ: (A₁ … Aᵢ₋₁)ᵀ g (Aᵢ₊₁ … Aₙ)ᵀ, an outer product where one side is a vector."""
    cotangents = []
    for i in range(len(y.args)):
        left, right = [transpose(t) for t in reversed(y.args[:i])], y.args[i + 1 :]
        if y.ndim == 2:
            cotangents.append(matmul(*left, g, *map(transpose, reversed(right))))
        elif y.ndim == 1:  # matrices, then a vector
            cotangents.append(outer(matmul(*left, g), matmul(*right)) if right else matmul(*left, g))
        elif left and right:  # a vector on either side
            cotangents.append(mul(g, outer(matmul(*left), matmul(*right))))
        else:
            cotangents.append(mul(g, matmul(*left, *right)))
    return cotangents


def _outer(y: Term, g: Term) -> list[Term]:
    a, b = y.args
    return [matmul(g, b), matmul(transpose(g), a)]


def _inv(y: Term, g: Term) -> list[Term]:
    back = transpose(y)
    return [neg(matmul(back, g, back))]


def _det(y: Term, g: Term) -> list[Term]:
    (x,) = y.args
    back = transpose(inverse(x))
    return [mul(g, y, back) if y.op == "det" else mul(g, back)]


def _trace(y: Term, g: Term) -> list[Term]:
    (x,) = y.args
    return [mul(g, eye(x))]


def _diag(y: Term, g: Term) -> list[Term]:
    return [apply("diag", g, shape=y.args[0].shape)]


RULES: dict[str, Rule] = {
    **dict.fromkeys(DERIVATIVES, _elementwise),
    "add": _add,
    "mul": _mul,
    "pow": _pow,
    "maximum": _maximum,
    "minimum": _maximum,
    "where": _where,
    "expand": lambda y, g: [_unbroadcast(g, y.args[0]), None],
    "unsqueeze": lambda y, g: [summed(g, y.data)],
    "sum": _sum,
    "mean": _mean,
    "var": _var,
    "std": _var,
    "norm": _norm,
    "logsumexp": _logsumexp,
    "softmax": _softmax,
    "log_softmax": _log_softmax,
    "matmul": _matmul,
    "T": lambda _y, g: [transpose(g)],
    "outer": _outer,
    "inv": _inv,
    "det": _det,
    "logdet": _det,
    "trace": _trace,
    "diag": _diag,
}
