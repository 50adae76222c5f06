"""Pages that the source writes: one for each operation, a table of them, and the command line's `--help`.

A Sphinx extension: it runs before the pages are read, and writes into docs/reference/, which git ignores.
Signatures are shown as the source has them, shapes as the errors write them: `x: float[*n, d]`.
"""

import ast
import functools
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import compared
import jax
import jax.numpy as jnp
import numpy as np
from sphinx.ext.napoleon import Config, GoogleDocstring

import funcnet as fn

CONTRACT = "init", "specs", "reference", "apply", "vjp", "matrix", "operator", "cost", "squares", "rows"
KINDS = {"Float": "float", "Integer": "int", "Int": "int", "Bool": "bool", "Complex": "complex", "Key": "key"}
KINDS |= {
    "Num": "number",
    "Inexact": "float or complex",
    "Shaped": "array",
    "UInt32": "uint32",
    "Real": "real",
}
FAMILIES = {
    "dense": "Linear layers", "conv": "Convolution and pools", "attention": "Attention",
    "recurrent": "Recurrence", "norm": "Norms and softmax", "elementwise": "Activations",
    "grid": "Images", "loss": "Losses",
    "random": "Random masks", "sound": "Sound",
}  # fmt: skip


# ---- signatures -------------------------------------------------------------------------------------------


@functools.cache
def _parsed(path: str) -> dict[int, ast.FunctionDef]:
    """The functions of a file, by the line of their `def` and of their first decorator."""
    found = {}
    for node in ast.walk(ast.parse(Path(path).read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef):
            found |= dict.fromkeys((node.lineno, *(d.lineno for d in node.decorator_list)), node)
    return found


class _Readable(ast.NodeTransformer):
    """jaxtyping's Float[Array, "*n d"] as float[*n, d]."""

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        match node:
            case ast.Subscript(ast.Name(kind), ast.Tuple([_, ast.Constant(str(shape))])) if kind in KINDS:
                return ast.Name(f"{KINDS[kind]}[{', '.join(shape.split())}]")
        return self.generic_visit(node)


def signature(function: Any) -> tuple[str, str]:
    """The arguments of a function and what it returns, as its source has them."""
    function = inspect.unwrap(function)
    code = getattr(function, "__code__", None)
    node = _parsed(code.co_filename).get(code.co_firstlineno) if code else None
    if node is None:
        return str(inspect.signature(function)), ""
    node = _Readable().visit(ast.parse(ast.unparse(node)).body[0])
    arguments = re.sub(r"'([^']*)'", r'"\1"', ast.unparse(node.args))
    return f"({arguments})", ast.unparse(node.returns) if node.returns else ""


def _signature_of_source(_app, what, _name, found, _options, arguments, returned):
    if what == "function" and arguments is not None:
        arguments, returned = signature(found)
    return arguments, returned


# ---- operations -------------------------------------------------------------------------------------------


def _text(found: Any, indent: str = "") -> str:
    """A docstring as reStructuredText."""
    options = Config(napoleon_use_param=False, napoleon_use_rtype=False)
    lines = GoogleDocstring(_marked(inspect.getdoc(found) or ""), options).lines()
    return textwrap.indent("\n".join(lines), indent) + "\n"


def _title(text: str, line: str = "=") -> str:
    return f"{text}\n{line * len(text)}\n\n"


def first_sentence(found: Any) -> str:
    """Of a docstring: up to the full stop that ends it."""
    text = " ".join((inspect.getdoc(found) or "").split("\n\n")[0].split())
    return re.split(r"(?<=[^.])\. (?=[A-Z])", text)[0].rstrip(".")


def derivation(name: str) -> str:
    """The page that derives its gradient: its own, its file's or its family's."""
    files = {n: file.rpartition(".")[2] for n, file in fn._FILES.items()}
    pages = Path(__file__).parent / "derivations"
    candidates = (name, files.get(name), fn._OPERATIONS[name])
    return next(c for c in candidates if c and (pages / f"{c}.md").exists())


def page(name: str) -> str:
    """An operation's page."""
    operation: ModuleType = getattr(fn, name)
    source = inspect.getsourcefile(inspect.unwrap(operation.reference))
    where = Path(str(source)).relative_to(Path(fn.__file__).parents[1])
    out = f".. index:: {', '.join(f'! {word}' for word in sought(name))}\n\n" if sought(name) else ""
    out += _title(name) + f".. py:module:: fn.{name}\n\n" + _text(operation) + "\n"
    out += elsewhere(name)
    for part in CONTRACT:
        if function := getattr(operation, part, None):
            arguments, returned = signature(function)
            if arguments.startswith("(*args"):  # of an operation of each element: as its definition has them
                arguments, _ = signature(operation.reference)
            arrow = f" -> {returned}" if returned else ""
            out += f".. py:function:: {part}{arguments}{arrow}\n   :module: fn.{name}\n\n"
            out += _text(function, "   ") + "\n"
    if ">>>" not in out:
        out += _example(name)
    out += _title("The gradient", "-")
    out += f":doc:`Its derivation </derivations/{derivation(name)}>`. Source: ``{where.as_posix()}``.\n\n"
    return out + verified(name)


@functools.cache
def _verified() -> dict[str, Any]:
    """What `funcnet verify --all --json docs/verified.json` said, by operation."""
    rows = json.loads((Path(__file__).parent / "verified.json").read_text("utf-8"))["rows"]
    return {row["operation"]: row for row in rows}


def verified(name: str) -> str:
    """The verdict on an operation, in words."""
    row = _verified()[name]
    cases = f"{row['count']} case{'s' * (row['count'] > 1)}"
    errors = f"float64 {row['error']:.0e}, {row['note']}"
    return (
        f"Verified by ``funcnet verify --all``: {'right' if row['ok'] else 'WRONG'} in {cases}.\n"
        f"The largest error of a gradient, against ``jax.vjp`` of ``reference`` in float64:\n"
        f"{errors}. Row by row: ``funcnet verify --op {name}``.\n"
    )


def _peers(name: str) -> dict[str, list[str]]:
    """What other libraries call an operation: library to names, by docs/compared.py."""
    rows = [row[1:] for row in compared.rows(compared.HAS) if compared.name(row[0]) == name]
    columns = zip(compared.LIBRARIES, zip(*rows, strict=True), strict=False)
    called = {
        library: [w for cell in cells for w in cell.split() if not w.startswith("Lazy")]
        for library, cells in columns
    }
    return {library: list(dict.fromkeys(words)) for library, words in called.items() if words}


def elsewhere(name: str) -> str:
    """A line with these names."""
    called = [f"{library} ``{'``, ``'.join(words)}``" for library, words in _peers(name).items()]
    return f"Elsewhere: {'; '.join(called)}.\n\n" if called else ""


# What people look for by a word that is no name.
_SOUGHT = {"conv": ("kernel size", "stride", "dilation"), "batch_norm": ("running mean",)}


def sought(name: str) -> list[str]:
    """Entries of the index, which the search looks through: what it is called here and elsewhere."""
    words = [word for called in _peers(name).values() for word in called]
    return list(dict.fromkeys((*_SOUGHT.get(name, ()), *words)))


# Of functions that are a line each, what they are shown with; of one argument it is x.
_SHOWN = {
    "geglu": "x, 2 * jnp.ones(4)", "glu": "x, 2 * jnp.ones(4)", "swiglu": "x, 2 * jnp.ones(4)",
    "threshold": "x, threshold=0.1, value=-1.0", "drop_path": "jnp.ones((4, 2)), rate=0.5, key=key",
    "spatial_dropout": "jnp.ones((1, 2, 4)), rate=0.5, key=key",
    "embedding_dropout": "jnp.ones((4, 2)), ids=jnp.array([0, 1, 2, 0]), vocabulary=3, rate=0.5, key=key",
    "cosine": "jnp.eye(2), jnp.ones((2, 2))",
    "dice": "x, jnp.array([0, 0, 1, 1])", "focal": "x, jnp.array([0, 0, 1, 1])",
    "hinge": "x, jnp.array([-1.0, -1, 1, 1])", "huber": "x, 0 * x", "smooth_l1": "x, 0 * x",
    "kl_div": "jnp.log(jnp.ones(4) / 4), jnp.array([0.5, 0.5, 0, 0])", "triplet": "x, x + 1, -x",
}  # fmt: skip


def _example(name: str) -> str:
    """What it gives of four numbers, computed now."""
    shown = _SHOWN.get(name, "x")
    given = {"x": "jnp.array([-2.0, -0.5, 0.0, 3.0])", "key": "jax.random.key(0)"}
    lines = [f"{n} = {text}" for n, text in given.items() if re.search(rf"\b{n}\b(?!=)", shown)]
    names = {"fn": fn, "jnp": jnp, "jax": jax}
    exec("\n".join(lines), names)
    call = f"fn.{name}.apply({shown})"
    with np.printoptions(precision=3, suppress=True):
        printed = str(eval(call, names))
    return "\n".join(f">>> {line}" for line in [*lines, f"print({call})"]) + f"\n{printed}\n\n"


def table() -> str:
    """All operations, family by family: how each is called, and what it is."""
    out = _title("All operations")
    out += "Each is a namespace with the functions of the :doc:`contract </contract>`; this is how\n"
    out += "``apply`` is called.\n\n"
    for family, title in FAMILIES.items():
        out += _title(title, "-") + ".. list-table::\n   :widths: 45 55\n\n"
        for name in sorted(n for n, f in fn._OPERATIONS.items() if f == family):
            arguments, returned = signature(getattr(fn, name).apply)
            if arguments.startswith("(*args"):
                arguments, returned = signature(getattr(fn, name).reference)
            positional = arguments[1:-1].partition("*, ")[0].strip(", ")
            shapes = f"{positional} → {returned}".replace("`", "")
            what = _escaped(first_sentence(getattr(fn, name)))
            out += f"   * - :doc:`{name} <operations/{name}>`\n\n       ``{shapes}``\n     - {what}\n"
        out += "\n"
    out += ".. toctree::\n   :hidden:\n\n" + "".join(
        f"   operations/{name}\n" for name in sorted(fn._OPERATIONS)
    )
    return out


# ---- the command line -------------------------------------------------------------------------------------


_MAIN = "import sys; from funcnet.cli import main; sys.exit(main())"
_PLAIN = os.environ | {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}


def commands() -> str:
    """`funcnet --help`, and that of each command, as it is printed."""

    def helped(*command: str) -> str:
        run = [sys.executable, "-c", _MAIN, *command, "--help"]
        printed = subprocess.run(run, capture_output=True, text=True, check=True, env=_PLAIN).stdout
        printed = re.sub(r" +$", "", printed, flags=re.MULTILINE)
        return ".. code-block:: text\n\n" + textwrap.indent(printed, "   ") + "\n"

    names = importlib.import_module("funcnet.cli").COMMANDS
    out = (
        _title("The command line")
        + ":doc:`What it is for </cli>`. This is what it says itself.\n\n"
        + helped()
    )
    return out + "".join(_title(f"funcnet {name}", "-") + helped(name) for name in names)


# ---- Sphinx -----------------------------------------------------------------------------------------------


def _marked(text: str) -> str:
    """A docstring in whose text *n are axes and |x| is a size; what it sets in, formulas, stays as it is."""
    parts, after_formula = list[str](), False
    for part in text.split("\n\n"):
        is_formula = all(line.startswith("    ") for line in part.split("\n"))
        if is_formula:
            parts.append(part if after_formula else f"::\n\n{part}")
        else:
            parts.append(part if part.startswith(">>>") else _escaped(part))
        after_formula = is_formula
    return "\n\n".join(parts)


def _escaped(text: str) -> str:
    """Outside of `code` a star and a bar stand for themselves."""
    return re.sub(
        r"(``.*?``|`[^`]*`)|([*|])", lambda found: found[1] or f"\\{found[2]}", text, flags=re.DOTALL
    )


def _before_napoleon(_app, what, _name, found, _options, lines):
    """The same of what autodoc shows; a constant has no text but its type's."""
    if what == "data" and getattr(found, "__doc__", None) == type(found).__doc__:
        lines.clear()
    lines[:] = _marked("\n".join(lines)).split("\n")


def _write(path: Path, text: str) -> None:
    """If it has changed: Sphinx reads again what is newer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text("utf-8") != text:
        path.write_text(text, "utf-8")


def write(app: Any) -> None:
    """All pages."""
    into = Path(app.srcdir) / "reference"
    _write(into / "operations.rst", table())
    for name in fn._OPERATIONS:
        _write(into / "operations" / f"{name}.rst", page(name))
    _write(into / "commands.rst", commands())


def setup(app: Any) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("builder-inited", write)
    app.connect("autodoc-process-signature", _signature_of_source)
    app.connect("autodoc-process-docstring", _before_napoleon, priority=400)
    return {"parallel_read_safe": True}
