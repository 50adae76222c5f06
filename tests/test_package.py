"""The package as a whole: its names, what importing it costs, what its source must not contain."""

import ast
import configparser
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import funcnet as fn

ROOT = Path(fn.__file__).parents[1]
SOURCES = sorted((ROOT / "funcnet").rglob("*.py"))


def names_for_type_checkers():
    tree = ast.parse((ROOT / "funcnet/__init__.py").read_text())
    block = next(n for n in tree.body if isinstance(n, ast.If))
    return {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}


def test_lazy_names_are_those_that_type_checkers_see():
    assert names_for_type_checkers() == {*fn.__all__}
    for name in fn.__all__:
        assert getattr(fn, name) is not None
    assert set(fn.__all__) <= set(dir(fn))
    with pytest.raises(AttributeError, match="module 'funcnet' has no attribute 'lineer'"):
        fn.lineer  # noqa: B018


def test_operations_are_the_files_of_ops():
    files = {f"{p.parent.name}.{p.stem}" for p in (ROOT / "funcnet/ops").glob("[a-z]*/[a-z]*.py")}
    assert {file_of(name) for name in fn._OPERATIONS} == files
    for file, names in fn._OBJECTS.items():
        module = importlib.import_module(f"funcnet.ops.{file}")
        assert sorted(names) == sorted(module.__all__)
        for name in names:
            operation = getattr(fn, name)
            assert operation is getattr(module, name)
            assert operation.__name__ == operation.apply.__module__ == f"{module.__name__}.{name}"


def file_of(name):
    """The file of an operation in funcnet/ops, as family.file."""
    return fn._FILES.get(name, f"{fn._OPERATIONS[name]}.{name}")


def test_every_operation_has_the_names_of_the_contract():
    order = ["init", "reference", "apply", "vjp", "matrix", "cost", "squares"]
    for name in fn._OPERATIONS:
        op = getattr(fn, name)
        public = [n for n, v in vars(op).items() if n in op.__all__ and callable(v)]
        if name not in fn._FILES:
            functions = [
                n for n in ast.parse(Path(op.__file__).read_text()).body if isinstance(n, ast.FunctionDef)
            ]
            public = [n.name for n in functions if not n.name.startswith("_")]
        assert {"reference", "apply", "vjp", "cost"} <= set(public), name
        assert [n for n in public if n in order] == [n for n in order if n in public], (
            f"{name}: another order"
        )
        assert set(op.__all__) >= set(public), name
        for function in public:
            assert getattr(op, function).__doc__, f"{name}.{function} says nothing"


def test_importing_funcnet_imports_neither_jax_nor_an_extra():
    heavy = ("jax", "numpy", "optax", "rich", "tyro", "matplotlib")
    code = f"import sys, funcnet; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_using_operations_starts_no_backend():
    code = (
        "import funcnet as fn\n"
        "for name in fn.__all__: getattr(fn, name)\n"
        "import jax._src.xla_bridge as xb; print(xb.backends_are_initialized())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_no_pickle_and_no_evaluated_text():
    forbidden = re.compile(
        r"\b(pickle|marshal|shelve|dill|cloudpickle)\b|allow_pickle=True|(?<![\w.])(eval|exec|__import__)\("
    )
    for path in SOURCES:
        code = ast.unparse(_without_docstrings(ast.parse(path.read_text())))
        assert not forbidden.search(code), path


def _without_docstrings(tree):
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            body[0] = ast.Pass()
    return tree


def test_import_linter_knows_every_operation():
    contracts = configparser.ConfigParser()
    contracts.read(ROOT / ".importlinter")
    modules = contracts["importlinter:contract:operations"]["modules"].split()
    assert modules == list(dict.fromkeys(f"funcnet.ops.{file_of(name)}" for name in fn._OPERATIONS))
