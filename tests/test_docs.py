"""The code in README.md and docs/ runs as it stands, block after block, in an empty folder."""

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
