"""Other texts of an expression: the slips that people make, undone in the source as they wrote it.

Each rewriting changes one place of the text and leaves the rest as it stands. It says nothing about what is
right: `mended` runs what comes of it, and judges.
"""

import ast
import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from funcnet.verifier import trace

__all__ = ["Place", "Rewriting", "applied", "atoms", "rewritings", "scaled", "size"]

KEPT = 2**13  # texts: several gradients are mended in the same statements, and what was read is read once


class Rewriting(NamedTuple):
    """Another text in place of ``text[start:stop]``, which is an expression, or only a part of one."""

    start: int
    stop: int
    text: str
    part: bool = False


class Place(NamedTuple):
    """Where the text is rewritten, and with what.

    Attributes:
        text: all of it.
        nodes: the expressions that may be rewritten.
        names: what may be put in: names, and parts of them, as they stand in the text.
        module: how a function of jax.numpy is written: ``jnp.``, or nothing.
    """

    text: str
    nodes: Sequence[ast.expr]
    names: Sequence[str]
    module: str

    def span(self, node: ast.AST) -> tuple[int, int]:
        """Where a node begins and ends in the text; the syntax tree counts in bytes of lines."""
        lines = self.text.splitlines(keepends=True)
        ends = ((node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset))  # pyright: ignore
        start, stop = (
            sum(map(len, lines[: n - 1])) + len(lines[n - 1].encode()[:c].decode()) for n, c in ends
        )
        return start, stop

    def of(self, node: ast.AST) -> str:
        """The text of a node."""
        start, stop = self.span(node)
        return self.text[start:stop]


def applied(text: str, rewriting: Rewriting, parse: Callable[[str], ast.AST]) -> str | None:
    """The text rewritten, with no more parentheses than it needs; None where it would have other lines."""
    before, after = text[: rewriting.start], text[rewriting.stop :]
    safe = f"{before}({rewriting.text}){after}"
    plain = f"{before}{rewriting.text}{after}"
    if plain.count("\n") != text.count("\n"):
        return None
    read = _tree(plain, parse)
    if rewriting.part:
        return plain if read is not None else None
    meant = _tree(safe, parse)
    return plain if read == meant else safe if meant is not None else None


def size(place: Place, rewriting: Rewriting) -> int:
    """How much a rewriting changes, in characters; what is left out, kept axes and squares count little."""
    texts = place.text[rewriting.start : rewriting.stop], rewriting.text
    old, new = (text.replace(", keepdims=True", "").replace(" ** 2", "²") for text in texts)
    added, dropped = (Counter(a) - Counter(b) for a, b in ((new, old), (old, new)))
    return max(added.total(), bool(dropped), 1)


def _tree(text: str, parse: Callable[[str], ast.AST] = trace.parsed) -> str | None:
    try:
        return ast.dump(parse(text))
    except (SyntaxError, ValueError):
        return None


def atoms(node: ast.AST, text: str, before: int) -> list[str]:
    """The values that a function names before a line: its parameters and what it assigns, parts of these."""
    seen: dict[str, None] = {}
    for part in ast.walk(node):
        if isinstance(part, ast.arg):
            seen[part.arg] = None
        elif isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store) and part.lineno < before:
            seen[part.id] = None
    for part in ast.walk(node):
        if isinstance(part, ast.Subscript) and isinstance(part.slice, ast.Constant) and part.lineno <= before:
            owner = part.value
            if isinstance(owner, ast.Name) and owner.id in seen:
                seen[ast.get_source_segment(text, part) or owner.id] = None
    return list(seen)


Family = Callable[[Place], Iterator[tuple[ast.AST, str] | Rewriting]]


def rewritings(place: Place, kind: str, likely: bool) -> Iterator[Rewriting]:
    """Those that undo a mistake of the `kind`, as far as one knows; or all others, if not `likely`."""
    first = (_names, *_FIRST.get(kind, ()))  # a name mistaken for another is a mistake of any kind
    for family in first if likely else (f for f in _ALL if f not in first):
        for one in family(place):
            if isinstance(one, Rewriting):
                yield one
            else:
                yield Rewriting(*place.span(one[0]), one[1])


@functools.lru_cache(KEPT)
def _filled(template: str, *parts: str) -> str:
    """A template of an expression, its parts in parentheses where these are needed."""
    kept = [part if _is_atom(part) else f"({part})" for part in parts]
    meant = _tree(template.format(*kept))
    for i, part in enumerate(parts):
        bare = [*kept[:i], part, *kept[i + 1 :]]
        if kept[i] != part and _tree(template.format(*bare)) == meant:
            kept = bare
    return template.format(*kept)


@functools.lru_cache(KEPT)
def _is_atom(text: str) -> bool:
    try:
        node = trace.parsed(text, mode="eval").body
    except (SyntaxError, ValueError):
        return False
    return isinstance(node, ast.Name | ast.Call | ast.Attribute | ast.Subscript | ast.Constant | ast.Tuple)


def _values(place: Place) -> Iterator[ast.expr]:
    """The expressions that may be arrays, each once."""
    for node in place.nodes:
        if isinstance(node, ast.Name | ast.Call | ast.Attribute | ast.Subscript | ast.BinOp | ast.UnaryOp):
            yield node


# ---- signs, transposes, axes ------------------------------------------------------------------------------


def _signs(place: Place) -> Iterator[tuple[ast.AST, str] | Rewriting]:
    for node in place.nodes:
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            yield node, place.of(node.operand)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
            yield from _operator(place, node, *("+-" if isinstance(node.op, ast.Add) else "-+"))
    for node in _values(place):
        yield node, _filled("-{}", place.of(node))


def _operator(place: Place, node: ast.BinOp | ast.Compare, old: str, new: str) -> Iterator[Rewriting]:
    """Another operator between two operands."""
    right = node.right if isinstance(node, ast.BinOp) else node.comparators[0]
    start, stop = place.span(node.left)[1], place.span(right)[0]
    gap = place.text[start:stop]
    if gap.count(old) == 1:
        yield Rewriting(start, stop, gap.replace(old, new), part=True)


def _transposes(place: Place) -> Iterator[tuple[ast.AST, str] | Rewriting]:
    for node in place.nodes:
        if isinstance(node, ast.Attribute) and node.attr in ("T", "mT"):
            yield node, place.of(node.value)
    for node in _values(place):
        if isinstance(node, ast.Attribute) and node.attr in ("T", "mT"):
            continue
        text = place.of(node)
        yield node, _filled("{}.T", text)
        yield node, _filled("{}.mT", text)
    for node in place.nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "," in node.value:
            yield from ((node, f'"{other}"') for other in _subscripts(node.value))


def _subscripts(text: str) -> Iterator[str]:
    """Two letters of one term of an einsum exchanged, or one exchanged for another of the text."""
    letters = sorted({c for c in text if c.isalpha()})
    places = [i for i, c in enumerate(text) if c.isalpha()]
    terms = list(itertools.accumulate((c in ",>" for c in text), initial=0))
    for i, j in itertools.combinations(places, 2):
        if terms[i] == terms[j]:
            yield text[:i] + text[j] + text[i + 1 : j] + text[i] + text[j + 1 :]
    for i, c in itertools.product(places, letters):
        if text[i] != c:
            yield text[:i] + c + text[i + 1 :]


_REDUCE = ("sum", "mean", "max", "min", "prod", "var", "std", "logsumexp", "softmax", "log_softmax", "cumsum")


def _axes(place: Place) -> Iterator[tuple[ast.AST, str] | Rewriting]:
    for node in place.nodes:
        if not isinstance(node, ast.Call) or (name := _called(node)) not in _REDUCE:
            continue
        given = [k.value for k in node.keywords if k.arg == "axis"]
        method = isinstance(node.func, ast.Attribute) and not _is_module(node.func.value)
        given += node.args[0 if method else 1 :][:1]
        for axis in given:
            for other in ("0", "1", "-1", "-2", "2", "(0, 1)", "None"):
                if other != place.of(axis):
                    yield axis, other
        stop = place.span(node)[1] - 1
        comma = ", " if node.args or node.keywords else ""
        if not given:
            for axis in ("0", "-1", "1", "(0, 1)"):
                yield Rewriting(stop, stop, f"{comma}axis={axis}", part=True)
                yield Rewriting(stop, stop, f"{comma}axis={axis}, keepdims=True", part=True)
        elif not any(k.arg == "keepdims" for k in node.keywords) and "soft" not in name and name != "cumsum":
            yield Rewriting(stop, stop, ", keepdims=True", part=True)
    for node in place.nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, bool):
            yield node, str(not node.value)


def _called(node: ast.Call) -> str:
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def _is_module(node: ast.expr) -> bool:
    root = node
    while isinstance(root, ast.Attribute):
        root = root.value
    return isinstance(root, ast.Name) and root.id in ("jnp", "np", "jax", "lax", "numpy", "nn")


# ---- constants, operations left out or exchanged ----------------------------------------------------------


def _constants(place: Place) -> Iterator[tuple[ast.AST, str] | Rewriting]:
    products = [n for n in place.nodes if isinstance(n, ast.BinOp) and isinstance(n.op, ast.Mult | ast.Div)]
    factors = {id(part) for n in products for part in (n.left, n.right)}
    for node in place.nodes:
        if not isinstance(node, ast.Constant) or isinstance(node.value, bool | str | None | complex):
            continue
        value = node.value
        if isinstance(value, int):
            others: list[float] = [value + 1, value - 1, -value, *(v for v in (0, 1, 2, 3, 4)), 0.5]
        elif isinstance(value, float):
            others = [-value, 2 * value, value / 2, 1 / value if value else 1.0, value * value, 1.0, 0.0, 2.0]
            others += [1 - value, value + 1]
        else:
            continue
        for other in dict.fromkeys(others):
            if other != value and not (other == 1 and id(node) in factors):  # that is to leave it out
                yield node, f"{other:.12g}" if isinstance(other, float) and other % 1 else f"{other!r}"


def _dropped(place: Place) -> Iterator[tuple[ast.AST, str] | Rewriting]:
    for node in place.nodes:
        match node:
            case ast.BinOp(left=left, right=right):
                yield node, place.of(left)
                yield node, place.of(right)
            case ast.UnaryOp(operand=operand):
                yield node, place.of(operand)
            case ast.Call(func=ast.Attribute(value=value), args=args) if not _is_module(value):
                yield node, place.of(value)
                yield from ((node, place.of(arg)) for arg in args[:1])
            case ast.Call(args=args):
                yield from ((node, place.of(arg)) for arg in args[:3])
            case ast.Subscript(value=value):
                yield node, place.of(value)
        inner = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and n is not node}
        yield from ((node, name) for name in place.names if name in inner)


_SWAPS = [
    ("mean", "sum"), ("sin", "cos"), ("sinh", "cosh"), ("maximum", "minimum"), ("max", "min"),
    ("exp", "log"), ("sqrt", "square"), ("sqrt", "rsqrt"), ("tril", "triu"), ("var", "std"),
    ("argmax", "argmin"), ("zeros_like", "ones_like"), ("exp", "expm1"), ("log", "log1p"), ("abs", "sign"),
    ("softmax", "log_softmax"), ("tanh", "sigmoid"), ("set", "add"), ("tanh", "cosh"), ("zeros", "ones"),
]  # fmt: skip


def _calls(place: Place) -> Iterator[tuple[ast.AST, str] | Rewriting]:
    """Another function."""
    for node in place.nodes:
        if not isinstance(node, ast.Call):
            continue
        name, stop = _called(node), place.span(node.func)[1]
        for pair in _SWAPS:
            if name in pair:
                yield Rewriting(stop - len(name), stop, pair[name == pair[0]], part=True)


_OPERATORS: dict[type[ast.AST], tuple[str, str]] = {
    ast.Mult: ("*", "/"), ast.Div: ("/", "*"), ast.MatMult: ("@", "*"),
    ast.Gt: (">", "<"), ast.Lt: ("<", ">"), ast.GtE: (">=", "<="), ast.LtE: ("<=", ">="),
    ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="), ast.BitAnd: ("&", "|"), ast.BitOr: ("|", "&"),
}  # fmt: skip


def _operators(place: Place) -> Iterator[tuple[ast.AST, str] | Rewriting]:
    for node in place.nodes:
        if not isinstance(node, ast.BinOp | ast.Compare):
            continue
        op = node.op if isinstance(node, ast.BinOp) else node.ops[0]
        if type(op) in _OPERATORS:
            old, new = _OPERATORS[type(op)]
            yield from _operator(place, node, old, new)
            if old in (">", "<"):
                yield from _operator(place, node, old, f"{old}=")
                yield from _operator(place, node, old, f"{new}=")
            if old in (">=", "<="):
                yield from _operator(place, node, old, old[0])


def _exchanged(place: Place) -> Iterator[tuple[ast.AST, str] | Rewriting]:
    """Two operands, arguments, or parts of a tuple exchanged."""
    for node in place.nodes:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub | ast.Div | ast.MatMult | ast.Pow):
            op = {ast.Sub: "-", ast.Div: "/", ast.MatMult: "@", ast.Pow: "**"}[type(node.op)]
            yield node, _filled(f"{{}} {op} {{}}", place.of(node.right), place.of(node.left))
    for node in place.nodes:
        names = {n.id: n for n in ast.walk(node) if isinstance(n, ast.Name) and n.id in place.names}
        for a, b in itertools.combinations(names, 2) if isinstance(node, ast.BinOp) else ():
            turn = {a: b, b: a}
            found = [n for n in ast.walk(node) if isinstance(n, ast.Name) and n.id in turn]
            yield node, _replaced(place, node, [(*place.span(n), turn[n.id]) for n in found])
    for node in place.nodes:
        parts = node.args if isinstance(node, ast.Call) else node.elts if isinstance(node, ast.Tuple) else ()
        for a, b in itertools.combinations(parts, 2):
            (start, after), (before, stop) = place.span(a), place.span(b)
            if place.of(a) != place.of(b):
                yield Rewriting(start, stop, place.of(b) + place.text[after:before] + place.of(a), part=True)


# ---- another value, a factor, a term ----------------------------------------------------------------------


def _names(place: Place) -> Iterator[tuple[ast.AST, str] | Rewriting]:
    """Another name in place of one."""
    for node in place.nodes:
        if isinstance(node, ast.Name) and not _is_module(node):
            yield from ((node, name) for name in place.names if name.isidentifier() and name != node.id)


def _others(place: Place) -> Iterator[tuple[ast.AST, str] | Rewriting]:
    """Another value in place of one, or a function of it."""
    for node in place.nodes:
        text = place.of(node)
        if text in place.names or (isinstance(node, ast.Name) and not _is_module(node)):
            yield from ((node, other) for other in place.names if other != text)
    for node in place.nodes:
        if (text := place.of(node)) in place.names:
            for function in ("tanh", "exp", "cos", "sin", "sign", "sqrt", "abs", "log"):
                yield node, f"{place.module}{function}({text})"


def _powers(place: Place) -> Iterator[tuple[ast.AST, str] | Rewriting]:
    for node in _values(place):
        is_power = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow)
        if not is_power:
            yield from ((node, _filled("{} ** " + n, place.of(node))) for n in ("2", "3"))
    for node in _values(place):
        yield node, _filled("1 / {}", place.of(node))


_FACTORS = (
    "{0} * {1}", "{0} / {1}", "{0} * (1 - {1})", "{0} * (1 - {1} ** 2)", "{0} * ({1} > 0)", "{0} * {1} ** 2",
    "{0} / {1} ** 2", "{0} * {1} * (1 - {1})",
)  # fmt: skip


def _factors(place: Place) -> Iterator[tuple[ast.AST, str] | Rewriting]:
    for template, node, name in itertools.product(_FACTORS, list(_values(place)), place.names):
        if place.of(node) != name or template not in ("{0} / {1}", "{0} * {1}"):
            yield node, _filled(template, place.of(node), name)


def _masks(place: Place) -> Iterator[tuple[ast.AST, str] | Rewriting]:
    for node in place.nodes:
        if (text := place.of(node)) in place.names or isinstance(node, ast.Compare):
            yield node, _filled("~{}", text)
            yield node, _filled("1 - {}", text)
    for node, name in itertools.product(list(_values(place)), place.names):
        yield node, f"{place.module}where({name}, {place.of(node)}, 0)"
        yield node, f"{place.module}where({name}, 0, {place.of(node)})"


def _sums(place: Place) -> Iterator[tuple[ast.AST, str] | Rewriting]:
    """Summed over some axes, or in the shape of another value."""
    ways = (
        "sum(0)", "sum((0, 1))", "sum(-1)", "sum(1)", "sum(0, keepdims=True)", "sum(-1, keepdims=True)",
        "sum(1, keepdims=True)", "sum()", "mean(0)", "sum((0, 1, 2))", "sum(-2)", "sum((1, 2))",
        "sum((0, 2))",
    )  # fmt: skip
    for node, way in itertools.product(list(_values(place)), ways):
        yield node, _filled("{}." + way, place.of(node))
    for node, name in itertools.product(list(_values(place)), place.names):
        if place.of(node) != name:
            yield node, _filled("{}.reshape({}.shape)", place.of(node), name)


_TERMS = (
    "{0} - ({0} * {1}).sum(-1, keepdims=True)", "{0} - {1} * ({0} * {1}).sum(-1, keepdims=True)",
    "{0} - {1} * ({0} * {1}).mean(-1, keepdims=True)", "{0} + {1}", "{0} - {1}", "{1} - {0}",
    "{0} - ({0} * {1}).sum()", "{0} - {1} * ({0} * {1}).sum()", "{0} - ({0} * {1}).sum(0)",
)  # fmt: skip


def _terms(place: Place) -> Iterator[tuple[ast.AST, str] | Rewriting]:
    for node in _values(place):
        text = place.of(node)
        for way in ("mean(-1, keepdims=True)", "mean(0)", "mean()", "mean(0, keepdims=True)"):
            yield node, _filled("{} - {}." + way, text, text)
    for template, node, name in itertools.product(_TERMS, list(_values(place)), place.names):
        if place.of(node) != name:
            yield node, _filled(template, place.of(node), name)


def _ones(place: Place) -> Iterator[tuple[ast.AST, str] | Rewriting]:
    for node in _values(place):
        yield from ((node, _filled(template, place.of(node))) for template in ("{} + 1", "{} - 1", "1 - {}"))


def _sizes(place: Place) -> Iterator[tuple[ast.AST, str] | Rewriting]:
    """Another size of the same value."""
    for node in place.nodes:
        match node:
            case ast.Subscript(value=ast.Attribute(value=value, attr="shape")):
                yield node, f"{place.of(value)}.size"
            case ast.Attribute(value=value, attr="size"):
                yield from ((node, f"{place.of(value)}.shape[{axis}]") for axis in (0, 1, -1))


def _symmetrised(place: Place) -> Iterator[tuple[ast.AST, str] | Rewriting]:
    """A + A.T in place of 2 A, of A + A, of A."""
    for node in place.nodes[:1]:
        for factor in ast.walk(node):
            match factor:
                case ast.BinOp(left=ast.Constant(value=2 | 2.0), op=ast.Mult(), right=other):
                    pass
                case ast.BinOp(left=other, op=ast.Mult(), right=ast.Constant(value=2 | 2.0)):
                    pass
                case _:
                    continue
            for name in (n for n in ast.walk(node) if isinstance(n, ast.Name) and n.id in place.names):
                both = [
                    (*place.span(factor), place.of(other)),
                    (*place.span(name), f"({name.id} + {name.id}.T)"),
                ]
                if name is other:
                    both[:1] = []
                    both[0] = (*place.span(factor), both[0][2])
                elif any(n is name for n in ast.walk(other)):
                    start, stop = (at - place.span(other)[0] for at in place.span(name))
                    text = both[0][2]
                    both = [(*both[0][:2], text[:start] + both[1][2] + text[stop:])]
                yield node, _replaced(place, node, both)
    for node in place.nodes:
        if isinstance(node, ast.Name) and node.id in place.names:
            yield node, f"{node.id} + {node.id}.T"
    for node in _values(place):
        yield node, _filled("{} + {}.T", place.of(node), place.of(node))


def _replaced(place: Place, node: ast.AST, texts: Sequence[tuple[int, int, str]]) -> str:
    """The text of a node with others in some places of it."""
    (begin, _), text = place.span(node), place.of(node)
    for start, stop, new in sorted(texts, reverse=True):
        text = text[: start - begin] + new + text[stop - begin :]
    return text


def _turned(place: Place) -> Iterator[tuple[ast.AST, str] | Rewriting]:
    for node in _values(place):
        text = place.of(node)
        if isinstance(node, ast.Call) and _called(node) in ("cumsum", "cumprod") and node.args:
            start, stop = (at - place.span(node)[0] for at in place.span(node.args[0]))
            for turn in ("[::-1]", "[:, ::-1]"):
                if _is_module(node.func) or isinstance(node.func, ast.Name):
                    yield node, text[:start] + _filled(f"{{}}{turn}", text[start:stop]) + text[stop:] + turn
        yield node, _filled("{}[::-1]", text)
        yield node, _filled("{}[:, ::-1]", text)
        for by in ("1", "-1"):
            yield node, f"{place.module}roll({text}, {by}, 0)"
            yield node, f"{place.module}roll({text}, {by}, -1)"


_ALL: tuple[Family, ...] = (
    _signs, _transposes, _axes, _constants, _dropped, _calls, _operators, _exchanged, _others, _powers, _sums,
    _factors, _symmetrised, _terms, _masks, _turned, _ones, _sizes,
)  # fmt: skip
_FIRST: dict[str, tuple[Family, ...]] = {
    "sign": (_signs, _exchanged),
    "scale": (_dropped, _constants, _axes, _calls, _sizes, _operators),
    "transpose": (_transposes, _symmetrised, _exchanged),
    "zero": (_others,),
    "missing_term": (_powers, _factors, _terms, _symmetrised, _operators),
    "extra_term": (_dropped, _others, _constants, _operators),
    "missing_batch_sum": (_sums,),
    "unbroadcast": (_sums, _axes),
    "shape": (_sums, _axes),
    "wrong_axis": (_axes, _calls, _sums, _transposes),
    "ignores_cotangent": (_others, _factors),
    "nonlinear_in_cotangent": (_dropped, _others),
    "wrong_residual": (_others, _calls, _dropped, _powers, _exchanged, _operators),
    "mask": (_operators, _exchanged, _dropped, _factors, _masks, _calls),
    "border": (_constants,),
    "flip": (_turned, _dropped),
    "shift": (_constants, _turned, _dropped),
    "swapped": (_exchanged, _others),
    "statistics_constant": (_terms,),
}


def scaled(node: ast.expr, place: Place, c: float, sizes: Sequence[int]) -> Iterator[Rewriting]:
    """An expression times a number c, by a name where it is a size of some value."""
    text, span = place.of(node), place.span(node)
    for k in (1, 2, 3, 4):
        if abs(c * k - round(c * k)) < 1e-9 * k and round(c * k):
            n = round(c * k)
            by = "" if n == 1 else "-" if n == -1 else f"{n} * "
            yield Rewriting(*span, _filled(by + "{}" + (f" / {k}" if k > 1 else ""), text))
            break
    else:
        if abs(c - float(f"{c:.4g}")) < 1e-9 * abs(c):
            yield Rewriting(*span, _filled(f"{c:.4g} * {{}}", text))
    for way, of in (
        ("{} / {}", lambda n: 1 / n), ("{} * {}", float), ("{} / {} ** 0.5", lambda n: n**-0.5),
        ("{} * {} ** 0.5", lambda n: n**0.5), ("{} / ({} - 1)", lambda n: 1 / (n - 1) if n > 1 else 0),
        ("{} * ({} - 1)", lambda n: n - 1), ("{} / {} ** 2", lambda n: n**-2.0),
    ):  # fmt: skip
        for factor in (1, 2, 0.5, -1, -2):
            if not any(n > 1 and abs(c - factor * of(n)) < 1e-9 * abs(c) for n in sizes):
                continue
            by = "" if factor == 1 else "-" if factor == -1 else f"{factor:g} * "
            for name, part in itertools.product(place.names, ("shape[0]", "shape[1]", "shape[-1]", "size")):
                yield Rewriting(*span, _filled(by + way, text, f"{name}.{part}"))
