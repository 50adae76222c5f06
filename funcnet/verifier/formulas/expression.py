"""Formulas as text: ``dy @ w.T``. Parsed by Python, checked against a closed list, computed with jax.numpy.

Nothing is ever executed as Python: the syntax tree may hold only what this file lists, and everything that
a text could make large is bounded: its length, its depth, its numbers, and every array on the way. What does
not fit is one error that points at the character.
"""

import ast
import difflib
import keyword as python
import math
import operator
import re
import types
import unicodedata
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from funcnet.errors import ValueRangeError, describe

__all__ = ["ExpressionError", "formula", "plain"]

MAX_TEXT = 2000  # characters
MAX_DEPTH = 50  # expressions within expressions
MAX_SIZE = 2**24  # elements of any array on the way
MAX_PRODUCTS = 2**32  # multiply-adds of an einsum

Run = Callable[[Mapping[str, Any]], Any]  # a compiled subexpression: from the values of the names to its own


class ExpressionError(ValueRangeError):
    """A formula that cannot be understood or computed; the text points at the place.

    Attributes:
        problem: what is wrong, in one line.
        text: the formula.
        column: of the first character at fault, from 0.
    """

    def __init__(self, problem: str, text: str, start: int, stop: int):
        super().__init__(f"{problem}\n{_pointed(text, start, stop)}")
        self.problem, self.text, self.column = problem, text, start


class _Fault(Exception):  # noqa: N818
    """An ExpressionError in the making: where it is raised, the text is not at hand."""

    def __init__(self, problem: str, node: ast.expr | ast.keyword):
        self.problem, self.node = problem, node


def formula(text: str, names: Sequence[str]) -> Callable[..., jax.Array]:
    """The function that a text describes.

    The text is an expression of Python: the names, numbers, ``+ - * / ** @``, comparisons, ``& | ~`` of
    booleans, indices and slices, ``.T .mT .shape .size .ndim``, and the functions that this file lists,
    among them the methods ``sum mean max min var std reshape transpose``.

    Args:
        text: one expression, at most 2,000 characters.
        names: what the text may refer to: the arguments, ``y``, ``dy``. They hide the constants pi and e.

    Returns:
        A function of these names, given by keyword as arrays; it returns an array. It is plain jax.numpy:
        it works under every transform, and what it raises is an ExpressionError.

    Raises:
        ExpressionError: the text holds anything else.

    >>> f = formula("dy @ w.T", ("w", "dy"))
    >>> f(w=jnp.ones((3, 2)), dy=jnp.ones((1, 2)))
    Array([[2., 2., 2.]], dtype=float32)
    """
    text = plain(text)
    try:
        tree = _parse(text)
        compiled = _compile(tree, tuple(names))
    except _Fault as fault:
        raise _located(fault, text) from None

    def run(values: dict[str, jax.Array]) -> jax.Array:
        return _array(tree, compiled(values))

    def call(**values: Any) -> jax.Array:
        if values.keys() != set(names):
            raise TypeError(f"formula {text!r} takes {', '.join(names)} by keyword, not {', '.join(values)}")
        arrays = {name: jnp.asarray(value) for name, value in values.items()}
        try:
            jax.eval_shape(run, arrays)  # shapes only: what is too large is refused before it exists
            return run(arrays)
        except _Fault as fault:
            raise _located(fault, text) from fault.__cause__

    return call


def plain(text: str) -> str:
    """A formula on one line, as an `ExpressionError` holds it."""
    return re.sub(r"\s", " ", text).strip()


# ---- the functions ----------------------------------------------------------------------------------------
# Plain jax.numpy without custom rules, so that autodiff of a formula is autodiff of what is written here.


def _softmax(x: jax.Array, axis: Any = -1) -> jax.Array:
    terms = jnp.exp(x - x.max(axis, keepdims=True))
    return terms / terms.sum(axis, keepdims=True)


def _logsumexp(x: jax.Array, axis: Any = None, keepdims: bool = False) -> jax.Array:
    largest = x.max(axis, keepdims=True)
    y = largest + jnp.log(jnp.exp(x - largest).sum(axis, keepdims=True))
    return y if keepdims else y.squeeze(axis)


def _log_softmax(x: jax.Array, axis: Any = -1) -> jax.Array:
    return x - _logsumexp(x, axis, keepdims=True)


def _gelu(x: jax.Array) -> jax.Array:
    return 0.5 * x * (1.0 + lax.erf(x / math.sqrt(2)))


def _norm(x: jax.Array, axis: Any = None, keepdims: bool = False) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.square(x), axis, keepdims=keepdims))


def _logdet(x: jax.Array) -> jax.Array:
    return jnp.linalg.slogdet(x)[1]


def _eye(n: int) -> jax.Array:
    return _one_hot(jnp.arange(n), n)


def _one_hot(ids: jax.Array, n: int) -> jax.Array:
    is_id = ids[..., None] == jnp.arange(n, dtype=ids.dtype)
    return jnp.where(is_id, 1.0, 0.0)  # weakly typed: it takes the dtype of what it meets


def _einsum(subscripts: str, operands: tuple[jax.Array, ...]) -> jax.Array:
    terms = subscripts.replace(" ", "").partition("->")[0].split(",")
    sizes = {
        letter: size
        for term, x in zip(terms, operands, strict=True)
        for letter, size in zip(term, x.shape, strict=True)
    }
    if math.prod(sizes.values()) > MAX_PRODUCTS:
        raise ValueError(f"{math.prod(sizes.values()):,} multiply-adds, more than {MAX_PRODUCTS:,}")
    return jnp.einsum(subscripts, *operands)


# Each with its parameters: `axis=` may be left out or given by name, `*shape` is one tuple or several values.
_FUNCTIONS: dict[str, tuple[Callable[..., Any], str]] = {
    "exp": (jnp.exp, "x"),
    "log": (jnp.log, "x"),
    "log1p": (jnp.log1p, "x"),
    "expm1": (jnp.expm1, "x"),
    "sqrt": (jnp.sqrt, "x"),
    "rsqrt": (lax.rsqrt, "x"),
    "square": (jnp.square, "x"),
    "abs": (jnp.abs, "x"),
    "sign": (jnp.sign, "x"),
    "sin": (jnp.sin, "x"),
    "cos": (jnp.cos, "x"),
    "tanh": (jnp.tanh, "x"),
    "erf": (lax.erf, "x"),
    "sigmoid": (lax.logistic, "x"),
    "relu": (lambda x: jnp.maximum(x, 0), "x"),
    "gelu": (_gelu, "x"),
    "softmax": (_softmax, "x axis="),
    "log_softmax": (_log_softmax, "x axis="),
    "logsumexp": (_logsumexp, "x axis= keepdims="),
    "maximum": (jnp.maximum, "x1 x2"),
    "minimum": (jnp.minimum, "x1 x2"),
    "where": (jnp.where, "condition x1 x2"),
    "sum": (jnp.sum, "x axis= keepdims="),
    "mean": (jnp.mean, "x axis= keepdims="),
    "max": (jnp.max, "x axis= keepdims="),
    "min": (jnp.min, "x axis= keepdims="),
    "var": (jnp.var, "x axis= keepdims="),
    "std": (jnp.std, "x axis= keepdims="),
    "cumsum": (jnp.cumsum, "x axis="),
    "flip": (jnp.flip, "x axis="),
    "roll": (jnp.roll, "x shift axis="),
    "reshape": (jnp.reshape, "x *shape"),
    "transpose": (lambda x, axes: jnp.transpose(x, axes or None), "x *axes"),
    "swapaxes": (jnp.swapaxes, "x axis1 axis2"),
    "concatenate": (jnp.concatenate, "arrays axis="),
    "stack": (jnp.stack, "arrays axis="),
    "dot": (jnp.dot, "x1 x2"),
    "matmul": (jnp.matmul, "x1 x2"),
    "outer": (jnp.outer, "x1 x2"),
    "inv": (jnp.linalg.inv, "x"),
    "solve": (jnp.linalg.solve, "x1 x2"),
    "det": (jnp.linalg.det, "x"),
    "logdet": (_logdet, "x"),  # of the determinant's absolute value
    "trace": (jnp.trace, "x"),
    "norm": (_norm, "x axis= keepdims="),  # of all elements, or those along axes
    "diag": (jnp.diag, "x"),
    "einsum": (_einsum, "subscripts *operands"),
    "cholesky": (jnp.linalg.cholesky, "x"),
    "kron": (jnp.kron, "x1 x2"),
    "take_along_axis": (jnp.take_along_axis, "x ids axis="),
    "zeros_like": (jnp.zeros_like, "x"),
    "ones_like": (jnp.ones_like, "x"),
    "tril": (jnp.tril, "x k="),
    "triu": (jnp.triu, "x k="),
    "eye": (_eye, "n"),
    "one_hot": (_one_hot, "x n"),
}
_METHODS = ("sum", "mean", "max", "min", "var", "std", "reshape", "transpose")
_ATTRIBUTES = ("T", "mT", "shape", "size", "ndim")
_CONSTANTS = {"pi": math.pi, "e": math.e}
_MODULES = ("jnp", "np", "jax", "lax", "math", "numpy", "torch")

# What a parameter takes, in words and as a test; one that is not listed takes an array.
_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "axis": (
        "an integer, a tuple of integers or None",
        lambda v: v is None or _is_int(v) or _are(_is_int, v),
    ),
    **dict.fromkeys(("axis1", "axis2", "shift", "k", "n"), ("an integer", lambda v: _is_int(v))),
    **dict.fromkeys(("shape", "axes"), ("integers", lambda v: _are(_is_int, v))),
    "keepdims": ("True or False", lambda v: isinstance(v, bool)),
    **dict.fromkeys(("arrays", "operands"), ("arrays", lambda v: _are(_is_array, v))),
    "subscripts": ('text such as "ij,jk->ik"', lambda v: isinstance(v, str)),
}
_SUBSCRIPTS = re.compile(r"[A-Za-z]*(,[A-Za-z]*)*(->[A-Za-z]*)?")
_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.MatMult: operator.matmul,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.Invert: operator.invert,
}
_LOGICAL = (ast.BitAnd, ast.BitOr, ast.Invert)
_INSTEAD: dict[type[ast.AST], str] = {
    ast.And: "write & for `and`, with comparisons in parentheses",
    ast.Or: "write | for `or`, with comparisons in parentheses",
    ast.Not: "write ~ for `not`",
    ast.BitXor: "a power is x ** 2",
    ast.IfExp: "write where(condition, a, b)",
    ast.Compare: "one comparison at a time: (a < b) & (b < c)",
}


# What is written on paper, where the text is no Python, and what to write.
_AS_ON_PAPER = (
    (r"[\w)\]]'", "a transpose is A.T, and a product of matrices has its sign: x'Ax is x @ A @ x"),
    (r"(?<![\w.])(\d+)([A-Za-z_]\w*)", "a product has its sign: {0} * {1}"),
    (r"\d\(", "a product has its sign: 2 * (x + y)"),
    (r"\)\s*(\w+)", "a product has its sign: (x + y) * z"),
    (r"([^\W\d]\w*)\s+([^\W\d]\w*)", "a product has its sign: x * y of elements, A @ B of matrices"),
)


# ---- from text to a function ------------------------------------------------------------------------------


def _parse(text: str) -> ast.expr:
    """The syntax tree, neither too long nor too deep."""
    if len(text) > MAX_TEXT:
        problem = f"the formula has {len(text):,} characters, more than {MAX_TEXT:,}"
        raise ExpressionError(problem, text, MAX_TEXT, len(text))
    if not text:
        raise ExpressionError("the formula is empty", text, 0, 0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of "\d" and the like, which are refused later
            tree = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        start = min(error.offset - 1, len(text)) if error.offset else len(text)
        problem = "the formula stops too early" if error.offset == 0 else error.msg
        for pattern, instead in _AS_ON_PAPER:
            match = re.search(pattern, text)
            if match and not any(map(python.iskeyword, match.groups())):
                problem, start = instead.format(*match.groups()), match.end() - 1
                break
        raise ExpressionError(problem, text, start, start) from None
    except (ValueError, MemoryError, RecursionError):  # a null, half a surrogate, a thousand signs
        raise ExpressionError("this is no expression", text, 0, len(text)) from None
    level: list[Any] = [tree]
    for _ in range(MAX_DEPTH):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
    if level:
        raise _Fault(f"more than {MAX_DEPTH} expressions within each other", tree)
    return tree


def _compile(node: ast.expr, names: Collection[str]) -> Run:
    """The function of a subexpression; whatever is not listed here is refused."""
    match node:
        case ast.Constant(value=bool() | None | types.EllipsisType() as constant):
            return lambda _: constant
        case ast.Constant(value=int() | float() as constant):
            number = _number(node, constant)
            return lambda _: number
        case ast.Name(id=name):
            return _name(node, name, names)
        case ast.Tuple(elts=elements) | ast.List(elts=elements):
            return _tuple(elements, names)
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATORS:
            return _operation(node, op, [operand], names)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _operation(node, op, [left, right], names)
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _OPERATORS:
            return _operation(node, op, [left, right], names)
        case ast.Attribute():
            return _attribute(node, names)
        case ast.Subscript(value=value, slice=index):
            return _subscript(node, value, index, names)
        case ast.Slice(lower=lower, upper=upper, step=step):
            bounds = [_compile(bound, names) if bound else lambda _: None for bound in (lower, upper, step)]
            return lambda values: slice(*(bound(values) for bound in bounds))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
            return _call(node, name, args, keywords, names)
        case ast.Call(func=ast.Attribute(value=value, attr=name), args=args, keywords=keywords) if (
            name in _METHODS
        ):
            return _call(node, name, [value, *args], keywords, names)
        case ast.Call(func=ast.Attribute() as function):
            return _attribute(function, names)  # which says what is wrong with it
        case ast.Call(func=ast.Constant()):
            raise _Fault("a product has its sign: 2 * (x + y)", node)
        case ast.Constant(value=str()):
            raise _Fault("text may stand only in einsum, as its first argument", node)
    instead = _INSTEAD.get(type(getattr(node, "op", node)))
    raise _Fault("this is not allowed here" + (f": {instead}" if instead else ""), node)


def _name(node: ast.expr, name: str, names: Collection[str]) -> Run:
    if name in names:
        return operator.itemgetter(name)
    if name in _CONSTANTS:
        return lambda _: _CONSTANTS[name]
    if name in _FUNCTIONS:
        raise _Fault(f"{name} is a function: write {_signature(name)}", node)
    if name in _MODULES:
        raise _Fault(f"functions stand alone: exp(x), not {name}.exp(x)", node)
    there = [*names, *_CONSTANTS]
    if parts := _product(name, names):
        raise _Fault(f'there is no "{name}": a product is {" @ ".join(parts)}, or of elements *', node)
    raise _Fault(f'there is no "{name}": there are {", ".join(there)}{_perhaps(name, there)}', node)


def _product(text: str, names: Collection[str]) -> list[str]:
    """The names that a text is made of, side by side; none if it is not."""
    for name in names:
        if text == name:
            return [name]
        if text.startswith(name) and (rest := _product(text[len(name) :], names)):
            return [name, *rest]
    return []


def _tuple(elements: Sequence[ast.expr], names: Collection[str]) -> Run:
    parts = [
        (_compile(element.value, names), element)
        if isinstance(element, ast.Starred)
        else (_compile(element, names), None)
        for element in elements
    ]

    def run(values: Mapping[str, Any]) -> tuple[Any, ...]:
        result: list[Any] = []
        for part, starred in parts:
            value = part(values)
            if starred and not isinstance(value, tuple):
                raise _Fault(f"* takes a tuple, such as x.shape, not {_described(value)}", starred)
            result += value if starred else [value]
        return tuple(result)

    return run


def _operation(node: ast.expr, op: ast.AST, operands: Sequence[ast.expr], names: Collection[str]) -> Run:
    function, logical = _OPERATORS[type(op)], isinstance(op, _LOGICAL)
    compiled = [_compile(operand, names) for operand in operands]

    def run(values: Mapping[str, Any]) -> Any:
        given = [operand(values) for operand in compiled]
        for operand, value in zip(operands, given, strict=True):
            if logical and not (isinstance(value, jax.Array) and value.dtype == jnp.bool_):
                problem = f"& | ~ take booleans, not {_described(value)}; comparisons need parentheses"
                raise _Fault(problem, operand)
            if not _is_array(value):
                raise _Fault(f"this is {_described(value)}, not an array or a number", operand)
        if isinstance(op, ast.Div) and not isinstance(given[1], jax.Array) and given[1] == 0:
            raise _Fault(f"{_shortened(ast.unparse(node))} cannot be computed: division by zero", node)
        if any(isinstance(value, jax.Array) for value in given):
            return _compute(node, dict(zip(operands, given, strict=True)), function, *given)
        value = _compute(node, {}, _power if isinstance(op, ast.Pow) else function, *given)
        return jnp.asarray(value) if isinstance(value, bool) else _number(node, value)

    return run


def _power(base: int | float, exponent: int | float) -> int | float:
    """base ** exponent of numbers, by way of floats: 9**9**9 overflows at once instead of filling memory."""
    value = math.pow(base, exponent)
    exact = isinstance(base, int) and isinstance(exponent, int) and exponent >= 0 and abs(value) < 2**53
    return int(value) if exact else value


def _attribute(node: ast.Attribute, names: Collection[str]) -> Run:
    owner, name = _compile(node.value, names), node.attr
    if name in _METHODS:
        raise _Fault(f"{name} is a method: write .{name}(...)", node)
    if name not in _ATTRIBUTES:
        there = f"attributes are {', '.join(_ATTRIBUTES)}, methods {', '.join(_METHODS)}"
        raise _Fault(f'"{name}" is not allowed here; {there}', node)

    def run(values: Mapping[str, Any]) -> Any:
        value = _array(node.value, owner(values))
        return _compute(node, {node.value: value}, getattr, value, name)

    return run


def _subscript(node: ast.expr, owner: ast.expr, index: ast.expr, names: Collection[str]) -> Run:
    compiled, compiled_index = _compile(owner, names), _compile(index, names)

    def run(values: Mapping[str, Any]) -> Any:
        value, at = compiled(values), compiled_index(values)
        if not isinstance(value, tuple):
            value = _array(owner, value)
        if isinstance(at, jax.Array) and jnp.issubdtype(at.dtype, jnp.integer):
            return _compute(node, {owner: value, index: at}, operator.getitem, value, at)
        for entry in at if isinstance(at, tuple) else (at,):
            if not (_is_int(entry) or entry is None or isinstance(entry, slice | types.EllipsisType)):
                problem = f"an index is an integer, a slice, None or ..., not {_described(entry)}"
                raise _Fault(problem, index)
        return _compute(node, {owner: value}, _item, value, at)

    return run


def _item(value: Any, index: Any) -> Any:
    if isinstance(value, jax.Array):
        np.broadcast_to(np.empty(()), value.shape)[index]  # raises where jax.numpy would clamp the index
    return value[index]


def _call(
    node: ast.expr,
    name: str,
    args: Sequence[ast.expr],
    keywords: Sequence[ast.keyword],
    names: Collection[str],
) -> Run:
    if name not in _FUNCTIONS:
        if name in names:
            raise _Fault(f"{name} is an array, not a function", node)
        hint = _perhaps(name, _FUNCTIONS) or f"; there are {', '.join(_FUNCTIONS)}"
        raise _Fault(f'there is no function "{name}"{hint}', node)
    function, parameters = _FUNCTIONS[name]
    bound = _bind(node, name, parameters.split(), args, keywords)
    compiled = {parameter: _argument(parameter, value, names) for parameter, value in bound.items()}

    def run(values: Mapping[str, Any]) -> Any:
        given = {parameter: argument(values) for parameter, argument in compiled.items()}
        for parameter, value in given.items():
            if isinstance(value, tuple) and len(value) == 1 and isinstance(value[0], tuple):
                given[parameter] = value = value[0]  # reshape(x, (2, 3)) as reshape(x, 2, 3)
            wanted, fits = _KINDS.get(parameter, ("an array", _is_array))
            if not fits(value):
                problem = f"{parameter} of {name} is {_described(value)}, not {wanted}"
                raise _Fault(problem, bound[parameter])
            if parameter not in _KINDS:
                given[parameter] = jnp.asarray(value)
        optional = {p: v for p, v in given.items() if f"{p}=" in parameters.split()}
        required = [v for p, v in given.items() if p not in optional]
        arrays = {bound[p]: v for p, v in given.items() if p not in _KINDS or p in ("arrays", "operands")}
        return _compute(node, arrays, function, *required, **optional)

    return run


def _argument(parameter: str, node: ast.expr, names: Collection[str]) -> Run:
    if parameter != "subscripts":
        return _compile(node, names)
    if not (isinstance(node, ast.Constant) and isinstance(node.value, str)):
        raise _Fault(f"the first argument of einsum is {_KINDS[parameter][0]}", node)
    subscripts = node.value
    if not _SUBSCRIPTS.fullmatch(subscripts.replace(" ", "")):
        raise _Fault('subscripts are letters, commas and one arrow, such as "ij,jk->ik"', node)
    return lambda _: subscripts


def _bind(
    node: ast.expr,
    name: str,
    parameters: Sequence[str],
    args: Sequence[ast.expr],
    keywords: Sequence[ast.keyword],
) -> dict[str, ast.expr]:
    """Which parameter each argument is; what a `*parameter` takes becomes a tuple."""
    single = [parameter.strip("=") for parameter in parameters if not parameter.startswith("*")]
    bound = dict(zip(single, args, strict=False))
    rest = list(args[len(single) :])
    for keyword in keywords:
        if f"{keyword.arg}=" not in parameters or keyword.arg is None:
            raise _Fault(f"not an option of {_signature(name)}", keyword)
        if keyword.arg in bound:
            raise _Fault(f"{keyword.arg} is given twice", keyword)
        bound[keyword.arg] = keyword.value
    if any(parameter not in bound and f"{parameter}=" not in parameters for parameter in single):
        raise _Fault(f"too few arguments for {_signature(name)}", node)
    if parameters[-1].startswith("*"):
        bound[parameters[-1][1:]] = ast.copy_location(ast.Tuple(rest, ast.Load()), node)
    elif rest:
        raise _Fault(f"too many arguments for {_signature(name)}", rest[0])
    return bound


# ---- values -----------------------------------------------------------------------------------------------


def _compute(
    node: ast.expr, operands: Mapping[ast.expr, Any], function: Callable[..., Any], *args: Any, **options: Any
) -> Any:
    """function(*args, **options), whose errors name the subexpression and the shapes of its operands."""
    try:
        value = function(*args, **options)
    except _Fault:
        raise
    except Exception as error:  # of any kind: what jax.numpy raises is not documented
        shapes = ", ".join(
            f"{_shortened(ast.unparse(operand))} is {_described(value)}"
            for operand, value in operands.items()
            if not isinstance(operand, ast.Constant)
        )
        problem = f"{_shortened(ast.unparse(node))} cannot be computed"
        reason = _shortened(str(error).partition("\n")[0].rstrip("."), 200)
        raise _Fault(f"{problem}{' where ' if shapes else ''}{shapes}: {reason}", node) from error
    if isinstance(value, jax.Array) and value.size > MAX_SIZE:
        raise _Fault(f"this has {value.size:,} elements, more than {MAX_SIZE:,}", node)
    return value


def _array(node: ast.expr, value: Any) -> jax.Array:
    if not _is_array(value):
        raise _Fault(f"this is {_described(value)}, not an array", node)
    return jnp.asarray(value)


def _number(node: ast.expr, value: Any) -> int | float:
    if not isinstance(value, int | float) or not abs(value) < math.inf:
        raise _Fault("this is not a finite real number", node)
    if isinstance(value, int) and abs(value) >= 2**31:
        raise _Fault("whole numbers stay below 2,147,483,648; with a decimal point they may be larger", node)
    return value


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_array(value: Any) -> bool:
    return isinstance(value, jax.Array | float) or _is_int(value)


def _are(test: Callable[[Any], bool], value: Any) -> bool:
    return isinstance(value, tuple) and all(map(test, value))


# ---- messages ---------------------------------------------------------------------------------------------


def _described(value: Any) -> str:
    if isinstance(value, tuple):
        parts = (str(part) if _is_int(part) else _described(part) for part in value)
        return f"({', '.join(parts)})"
    return describe(value)


def _signature(name: str) -> str:
    parameters = _FUNCTIONS[name][1].replace("*", "...").replace("=", "=...")
    return f"{name}({', '.join(parameters.split())})"


def _perhaps(name: str, there: Collection[str]) -> str:
    close = difflib.get_close_matches(name, there, n=1)
    return f"; perhaps {close[0]}" if close else ""


def _shortened(text: str, length: int = 60) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _located(fault: _Fault, text: str) -> ExpressionError:
    """The error with its place in the text: the syntax tree counts in bytes of UTF-8."""
    node, line = fault.node, text.encode()
    start, stop = (len(line[:offset].decode()) for offset in (node.col_offset, node.end_col_offset or 0))
    if isinstance(node, ast.Attribute) and (name := re.search(r"\w+\Z", text[start:stop])):
        start += name.start()
    return ExpressionError(fault.problem, text, start, stop)


def _pointed(text: str, start: int, stop: int) -> str:
    """The text, or what surrounds the place, and a line of carets below."""
    left = max(0, start - 50) if len(text) > 100 else 0
    shown = ("…" if left else "") + text[left : left + 100]
    shown = "".join(c if c.isprintable() else "\ufffd" for c in shown)
    begin = start - left + bool(left)
    carets = max(1, _width(shown[begin : begin + stop - start]))
    return f"  {shown}\n  {' ' * _width(shown[:begin])}{'^' * carets}"


def _width(text: str) -> int:
    """Columns of a terminal."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(map(bool, map(unicodedata.combining, text)))
