"""The code in README.md and docs/ runs as it stands, block after block, in an empty folder."""

import importlib.util
import inspect
import re
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md"))]


def blocks(page):
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


# The contract, whose operation is written there; the others, README too, when CI runs what is slow.
AT_ONCE = ("docs/contract.md",)


@pytest.mark.parametrize(
    "page",
    [
        page if page in AT_ONCE else pytest.param(page, marks=pytest.mark.slow)
        for page in PAGES
        if blocks(page) and page != "docs/design.md"
    ],
)
def test_page_runs(page, tmp_path, monkeypatch, unchecked):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        for i, block in enumerate(blocks(page)):
            exec(compile(block, f"{page}, block {i + 1}", "exec"), names)


def test_every_operation_has_its_page():
    """Of its own, or that of its family, or of the file that it shares with others."""
    import funcnet

    pages = {p.stem for p in (ROOT / "docs/derivations").glob("*.md")}
    files = {name: file.rpartition(".")[2] for name, file in funcnet._FILES.items()}
    families = funcnet._OPERATIONS
    assert pages <= {*families, *families.values(), *files.values()}
    assert not [name for name, family in families.items() if not {name, family, files.get(name)} & pages]


def compared():
    spec = importlib.util.spec_from_file_location("compared", ROOT / "docs/compared.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_comparison_is_what_its_script_writes():
    """If not: python docs/compared.py."""
    import funcnet
    from benchmarks.studies import onnx_nodes

    tables = compared()
    assert (ROOT / "docs/compared.md").read_text() == tables.page()
    assert set(funcnet._OPERATIONS) <= {tables.name(row[0]) for row in tables.rows(tables.HAS)}
    assert {*onnx_nodes.NODES, *onnx_nodes.LEFT_OUT} == words(tables, 4)


def words(tables, column):
    every = [*tables.rows(tables.HAS), *tables.rows(tables.LEFT_OUT)]
    return {word for row in every for word in row[column].split()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("library", "base", "column"), [("torch.nn", "Module", 1), ("flax.nnx", "Module", 2)]
)
def test_the_comparison_knows_every_layer(library, base, column):
    module = pytest.importorskip(library)
    layers = {
        name
        for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, getattr(module, base)) and not name.startswith("_")
    }
    named = words(compared(), column)
    assert layers <= named
    assert not [
        name for name in named if name.isidentifier() and name[0].isupper() and not hasattr(module, name)
    ]
