"""The user's source, edited: the same functions with another text.

A formula's functions are found from the one that is called: by the names, the closures and the partials that
it refers to. The statement that holds a function is edited as text and compiled; the function is then made
anew with the code that comes of it, its own globals, defaults and closure. Nothing is executed but what the
user's formula executes, and no function of the user's is changed.
"""

import ast
import contextlib
import functools
import linecache
import os
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from funcnet.verifier import tape, trace

__all__ = ["Remake", "Source", "executed", "functions", "source_of", "within"]

_LIBRARIES = tuple(os.path.dirname(os.path.abspath(m.__file__ or "")) + os.sep for m in (jax, np, os))
FUNCTIONS = 200  # that are followed

Function = ast.FunctionDef | ast.Lambda


class Source(NamedTuple):
    """A piece of a file that holds functions: a definition, a lambda, or a statement of the outermost level.

    Attributes:
        file: where it is.
        line: of its first character, from 1.
        column: of its first character, from 0; lines are whole but for lambdas.
        around: what stands before it in its first line, and after it in its last.
        text: the piece.
        imports: those of the file, on which it depends how names are looked up.
        codes: of all the functions that it holds, in a fixed order.
    """

    file: str
    line: int
    column: int
    around: tuple[str, str]
    text: str
    imports: list[ast.stmt]
    codes: tuple[types.CodeType, ...] = ()

    def parsed(self, text: str) -> ast.stmt:
        """The tree of another text in its place, by lines and columns of that text.

        Raises:
            SyntaxError: it has none.
        """
        if self.column:
            return _moved(trace.parsed(f"({text})").body[0], 0, -1)
        if text[0] not in " \t":
            return _only(text)
        outer = trace.parsed(f"if 1:\n{text}").body[0]
        assert isinstance(outer, ast.If)
        return _moved(outer.body[0], -1, 0)

    def edited(self, text: str) -> dict[types.CodeType, types.CodeType] | None:
        """Which code each function has with another text; None where it no longer holds the same ones."""
        codes = self.compiled(text)
        if [c.co_name for c in codes] != [c.co_name for c in self.codes]:
            return None
        return {old: new for old, new in zip(self.codes, codes, strict=True) if old != new}

    def compiled(self, text: str) -> tuple[types.CodeType, ...]:
        """The codes of the functions of another text in its place."""
        tree = ast.Module([*self.imports, self.placed(text)], [])
        with trace.reading():
            return tuple(within(compile(tree, self.file, "exec", dont_inherit=True)))[1:]

    def placed(self, text: str) -> ast.stmt:
        """The tree of another text, by lines and columns of the file."""
        return _moved(self.parsed(text), self.line - 1, self.column)


def _only(text: str) -> ast.stmt:
    (statement,) = trace.parsed(text).body  # a ValueError where there are several on a line
    return statement


def _moved(statement: ast.stmt, lines: int, columns: int) -> ast.stmt:
    """A tree at another place: the columns are those of its first line."""
    first = statement.lineno if not columns else 1
    for node in ast.walk(statement):
        if isinstance(node, ast.stmt | ast.expr | ast.arg | ast.keyword | ast.alias):
            node.col_offset += columns * (node.lineno == first)
            node.end_col_offset = (node.end_col_offset or 0) + columns * (node.end_lineno == first)
    return ast.increment_lineno(statement, lines)


def functions(tree: ast.AST) -> list[Function]:
    """The definitions in a tree, in a fixed order."""
    return [node for node in ast.walk(tree) if isinstance(node, Function)]


def source_of(code: types.CodeType) -> tuple[Source, int] | None:
    """The smallest piece of source that a function's code comes from, and which of its `functions` it is.

    None where it cannot be read, or is no longer what runs.
    """
    lines = linecache.getlines(code.co_filename)
    try:
        body, imports = _read("".join(lines))
    except (SyntaxError, ValueError):
        return None
    nodes = (n for n in ast.walk(ast.Module(body, [])) if isinstance(n, ast.stmt | ast.Lambda))
    around = [n for n in nodes if _start(n) <= code.co_firstlineno <= (n.end_lineno or 0)]
    mine = [node for node in around if isinstance(node, Function) and _is_of(node, code)]
    if not mine:
        return None
    node = min(mine, key=lambda n: ((n.end_lineno or 0) - n.lineno, (n.end_col_offset or 0) - n.col_offset))
    pieces = [p for p in around if p in body or isinstance(p, Function | ast.ClassDef)]
    for piece in sorted(pieces, key=lambda p: ((p.end_lineno or 0) - p.lineno, -p.col_offset)):
        if not any(inner is node for inner in ast.walk(piece)):
            continue
        start, stop = _start(piece), piece.end_lineno or 0
        if isinstance(piece, ast.Lambda) and piece.col_offset:
            first, last = lines[start - 1].encode(), lines[stop - 1].encode()
            rest = (first[: piece.col_offset].decode(), last[piece.end_col_offset :].decode())
            text = "".join(lines[start - 1 : stop])
            text = text[len(rest[0]) : len(text) - len(rest[1])]
            found = Source(code.co_filename, start, piece.col_offset, rest, text, imports)
        else:
            text = "".join(lines[start - 1 : stop])
            found = Source(code.co_filename, start, 0, ("", ""), text, imports)
        with contextlib.suppress(SyntaxError, ValueError):
            found = found._replace(codes=found.compiled(text))
            if code in found.codes:
                places = [(n.lineno, n.col_offset) for n in functions(found.placed(text))]
                return found, places.index((node.lineno, node.col_offset))
    return None


@functools.lru_cache(maxsize=16)
def _read(text: str) -> tuple[list[ast.stmt], list[ast.stmt]]:
    """The statements of a file, and its imports."""
    body = trace.parsed(text).body
    return body, list(_imports(body))


def _imports(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            yield statement
        elif not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from _imports(
                [s for s in ast.walk(statement) if isinstance(s, ast.Import | ast.ImportFrom)]
            )


def _start(node: Any) -> int:
    """The line in which a definition begins, with what decorates it."""
    return min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])


def _is_of(node: Function, code: types.CodeType) -> bool:
    """Whether a code may be compiled from a definition: by name and line, a lambda by its columns."""
    if getattr(node, "name", "<lambda>") != code.co_name or _start(node) != code.co_firstlineno:
        return False
    if isinstance(node, ast.FunctionDef):
        return True
    body = node.body
    for start, stop, left, right in code.co_positions():
        if start is None or stop is None or left is None or right is None or left == right == 0:
            continue
        ends = (stop, right) <= (body.end_lineno or 0, body.end_col_offset or 0)
        if not (ends and (start, left) >= (body.lineno, body.col_offset)):
            return False
    return True


def within(code: types.CodeType) -> Iterator[types.CodeType]:
    """A code and those of the functions that it defines."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from within(constant)


class Remake:
    """Functions made anew with other codes, and those that they refer to; called with a function.

    A function that nothing changes in is given back as it is. `met` are those that were looked at.
    """

    def __init__(self, codes: Mapping[types.CodeType, types.CodeType]):
        self.codes, self.met, self._known = codes, list[types.FunctionType](), dict[int, Any]()

    def __call__(self, value: Any) -> Any:
        """The same function, or collection of functions, with the other codes."""
        if id(value) in self._known or len(self.met) >= FUNCTIONS:
            return self._known.get(id(value), value)
        self._known[id(value)] = value  # a function that refers to itself refers to the old one
        self._known[id(value)] = new = self._made(value)
        return new

    def _made(self, value: Any) -> Any:
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, functools.partial):
            inner = self(value.func)
            return value if inner is value.func else type(value)(inner, *value.args, **value.keywords)
        if isinstance(value, types.MethodType):
            inner = self(value.__func__)
            return value if inner is value.__func__ else types.MethodType(inner, value.__self__)
        if tape.is_rule(value):
            parts = {name: vars(value).get(name) for name in ("fun", "fwd", "bwd", "jvp")}
            new = {name: self(part) for name, part in parts.items()}
            if all(new[name] is part for name, part in parts.items()):
                return value
            other = object.__new__(type(value))
            vars(other).update({**vars(value), **{k: v for k, v in new.items() if k in vars(value)}})
            return other
        if type(value) in (tuple, list):
            new = [self(v) for v in value]
            return value if all(a is b for a, b in zip(new, value, strict=True)) else type(value)(new)
        if isinstance(inner := getattr(value, "__wrapped__", None), types.FunctionType):  # jax.jit
            new = self(inner)
            return value if new is inner else new
        return value

    def _function(self, f: types.FunctionType) -> Any:
        if f.__code__.co_filename.startswith(_LIBRARIES):
            return f
        self.met.append(f)
        code, held = self.codes.get(f.__code__, f.__code__), dict[str, Any]()
        for inner in within(f.__code__):
            for name in inner.co_names:
                if _may_change(old := f.__globals__.get(name)) and (new := self(old)) is not old:
                    held[name] = new
        cells = list(f.__closure__ or ())
        for i, cell in enumerate(cells):
            try:
                old = cell.cell_contents
            except ValueError:  # not assigned yet
                continue
            if _may_change(old) and (new := self(old)) is not old:
                cells[i] = types.CellType(new)
        old_cells = f.__closure__ or ()
        if code is f.__code__ and not held and all(a is b for a, b in zip(cells, old_cells, strict=True)):
            return f
        if code.co_freevars != f.__code__.co_freevars:
            raise ValueError("another closure")
        names = {**f.__globals__, **held} if held else f.__globals__
        new = types.FunctionType(code, names, f.__name__, f.__defaults__, tuple(cells) or None)
        new.__kwdefaults__ = f.__kwdefaults__
        new.__dict__.update({k: v for k, v in f.__dict__.items() if k != "__wrapped__"})
        return new


def _may_change(value: Any) -> bool:
    return not isinstance(value, type | types.ModuleType) and (
        callable(value) or (type(value) in (tuple, list) and any(map(callable, value)))
    )


def executed(run: Callable[[], Any]) -> set[types.CodeType]:
    """The codes of the functions that are called while something runs, whatever that raises.

    It runs in a thread of its own, whose profile nobody else has set.
    """
    seen = set[types.CodeType]()

    def note(frame: Any, event: str, _: Any) -> None:
        if event == "call":
            seen.add(frame.f_code)

    def watched() -> None:
        sys.setprofile(note)
        with contextlib.suppress(Exception):  # it is looked at elsewhere
            run()

    thread = threading.Thread(target=watched, daemon=True)
    thread.start()
    thread.join()
    return seen
