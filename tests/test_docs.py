"""The code in README.md and docs/ runs as it stands, block after block, in an empty folder."""

import ast
import importlib.util
import inspect
import json
import linecache
import re
from pathlib import Path

import jax
import pytest

from tests.budget import few

ROOT = Path(__file__).parents[1]
GUIDES = [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs/how-to").glob("*.md")]
PAGES = ["README.md", *sorted(str(page.relative_to(ROOT)) for page in GUIDES)]


def script(name):
    """A module of docs/."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SHOWN = script("shown")


def blocks(page):
    """Its code, each block of it."""
    return [block[2] for block in SHOWN.BLOCK.finditer((ROOT / page).read_text())]


def without_numbers(text):
    """Digits differ between versions and machines, and the table's columns with them."""
    return re.sub(r"[-\d.]+(e[-+]?\d+)?", "#", re.sub(r" +", " ", text))


# The contract, whose operation is written there; the others, README too, when CI runs what is slow.
AT_ONCE = ("docs/contract.md",)


@pytest.mark.each
@pytest.mark.parametrize(
    "page", few((page for page in PAGES if blocks(page) and page != "docs/design.md"), AT_ONCE)
)
def test_page_runs(page, tmp_path, monkeypatch, unchecked):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / page).read_text()
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        assert without_numbers(SHOWN.renewed(text)) == without_numbers(text)


def test_every_operation_has_its_page():
    """Of its own, or that of its family, or of the file that it shares with others."""
    import funcnet

    pages = {p.stem for p in (ROOT / "docs/derivations").glob("*.md")}
    files = {name: file.rpartition(".")[2] for name, file in funcnet._FILES.items()}
    families = funcnet._OPERATIONS
    assert pages <= {*families, *families.values(), *files.values()}
    assert not [name for name, family in families.items() if not {name, family, files.get(name)} & pages]


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("from-*.md")), ids=lambda page: page.stem)
def test_every_row_of_a_cheat_sheet_runs(page, tmp_path, monkeypatch, unchecked):
    monkeypatch.chdir(tmp_path)
    (setup,) = blocks(page.relative_to(ROOT))
    rows = re.findall(r"^\| .* \| `([^`]+)` \|$", page.read_text(), re.MULTILINE)
    assert len(rows) == len(re.findall(r"^\| ", page.read_text(), re.MULTILINE)) - page.read_text().count(
        "\n|---"
    )
    names = {}
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        exec(setup, names)
        for row in rows:
            assert eval(row, names) is not None or "save" in row, row


def documented():
    """What the pages of docs/api list: page, module, name."""
    for page in sorted((ROOT / "docs/api").glob("*.md")):
        text = page.read_text()
        for module, names in re.findall(r"automodule:: (\S+)\n   :members: (.*)", text):
            yield from ((page.stem, module, name) for name in names.split(", "))
        for module, name in re.findall(r"auto(?:function|class|data):: (\S+)\.(\w+)", text):
            yield page.stem, module, name


def public(module, depth=0):
    """What a package's `__all__` names, and that of the modules in it."""
    for name in module.__all__:
        value = getattr(module, name)
        if not inspect.ismodule(value):
            yield module.__name__, name, value
        elif depth < 2 and not value.__name__.startswith("funcnet.ops"):
            yield from public(value, depth + 1)


def test_every_public_name_is_on_one_page():
    import funcnet

    pages = {}
    for page, module, name in documented():
        value = id(getattr(importlib.import_module(module), name))
        assert value not in pages, f"{module}.{name} is on {page} and on {pages[value]}"
        pages[value] = page
    packages = [getattr(funcnet, name) for name in funcnet._PACKAGES if name not in ("ops", "tasks")]
    assert not [f"{m}.{n}" for p in packages for m, n, value in public(p) if id(value) not in pages]
    assert not [
        name
        for name in funcnet._FUNCTIONS
        if not (inspect.ismodule(f := getattr(funcnet, name)) or id(f) in pages)
    ]


def test_every_family_has_a_title_in_the_table_of_operations():
    import funcnet

    reference = ast.parse((ROOT / "docs/reference.py").read_text("utf-8"))
    (titles,) = [
        ast.literal_eval(node.value)
        for node in reference.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FAMILIES"
    ]
    assert titles.keys() == set(funcnet._OPERATIONS.values())


def test_every_operation_shows_its_verification():
    import funcnet

    shown = json.loads((ROOT / "docs/verified.json").read_text("utf-8"))
    assert {row["operation"] for row in shown["rows"]} == set(funcnet._OPERATIONS), "renew it: verify --all"
    assert shown["ok"], shown["verdict"]
    assert all(row["ok"] for row in shown["rows"])


def compared():
    return script("compared")


NOTEBOOKS = ("training", "verifying", "linear-algebra")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_what_its_page_says(name):
    """If not: python docs/executed.py."""
    executed = script("executed")
    assert (
        {path.stem for path in (ROOT / "docs/notebooks").glob("*.md")} == set(executed.PAGES) == {*NOTEBOOKS}
    )
    text = (ROOT / f"examples/{name}.ipynb").read_text("utf-8")
    assert text == executed.notebook(name)
    assert not [cell for cell in json.loads(text)["cells"] if cell.get("outputs")]


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_from_top_to_bottom(name, tmp_path, monkeypatch, unchecked):
    import matplotlib.pyplot as plt

    drawn = []
    monkeypatch.setattr(plt, "show", lambda: (drawn.append(plt.get_fignums()), plt.close("all")))
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "notebook"}
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        for cell in json.loads((ROOT / f"examples/{name}.ipynb").read_text("utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                (tmp_path / "mine.py").write_text(code := "".join(cell["source"]))
                linecache.checkcache()
                exec(compile(code, "mine.py", "exec"), names)
    assert drawn
    assert all(len(figures) == 1 for figures in drawn)


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


def test_every_operation_in_a_file_of_its_own_has_an_example():
    """What `make doctest` runs and its page shows; those that share a file are shown by docs/reference.py."""
    import funcnet

    alone = [name for name in funcnet._OPERATIONS if name not in funcnet._FILES]
    assert not [name for name in alone if f"fn.{name}.apply(" not in getattr(funcnet, name).apply.__doc__]
