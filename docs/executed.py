"""Pages whose code runs while the site is built, and the notebooks made of them: `python docs/executed.py`.

A Sphinx extension: below each block of a page in docs/notebooks/ comes what it printed and drew. One process
runs a page. The same pages, without outputs, are the notebooks in examples/.
"""

import contextlib
import io
import json
import linecache
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
EXAMPLES = DOCS.parent / "examples"
PAGES = ("training", "verifying", "linear-algebra")
PICTURES = DOCS / "reference" / "pictures"  # which git ignores
_BLOCK = re.compile(r"^```python\n(.*?)^```\n", re.DOTALL | re.MULTILINE)
_SOFT = "#808890"  # is read on white and on black


def parts(text: str) -> list[tuple[str, str]]:
    """A page as ("markdown" or "code", its text)."""
    found = _BLOCK.split(text)
    kinds = (("markdown", "code")[i % 2] for i in range(len(found)))
    return [(kind, part.strip("\n")) for kind, part in zip(kinds, found, strict=True) if part.strip()]


# ---- notebooks --------------------------------------------------------------------------------------------


def notebook(name: str) -> str:
    """The notebook of a page, without outputs, as JSON."""
    text = (DOCS / "notebooks" / f"{name}.md").read_text("utf-8").replace("](../", "](../docs/")
    cells = [_cell(i, kind, part) for i, (kind, part) in enumerate(parts(text))]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    about = {"kernelspec": kernel, "language_info": {"name": "python"}}
    whole = {"cells": cells, "metadata": about, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def _cell(number: int, kind: str, text: str) -> dict[str, Any]:
    outputs = {"execution_count": None, "outputs": []} if kind == "code" else {}
    lines = text.splitlines(keepends=True)
    return {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, **outputs, "source": lines}


# ---- running a page ---------------------------------------------------------------------------------------


def run(name: str) -> list[dict[str, Any]]:
    """What each block of a page printed, and the files of what it drew."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    soft = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    mpl.rcParams.update(dict.fromkeys(soft, _SOFT) | {"savefig.transparent": True, "figure.dpi": 110})
    PICTURES.mkdir(parents=True, exist_ok=True)
    code = [
        text for kind, text in parts((DOCS / "notebooks" / f"{name}.md").read_text("utf-8")) if kind == "code"
    ]
    names, outputs, drawn = {"__name__": "page"}, [], list[str]()

    def show() -> None:
        for number in plt.get_fignums():
            drawn.append(f"{name}-{len(drawn) + 1}.png")
            plt.figure(number).savefig(PICTURES / drawn[-1])
        plt.close("all")

    plt.show = show
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for text in code:
            before, printed = len(drawn), io.StringIO()
            Path("mine.py").write_text(text, "utf-8")
            linecache.checkcache()
            with contextlib.redirect_stdout(printed):
                exec(compile(text, "mine.py", "exec"), names)
            outputs.append({"printed": printed.getvalue().rstrip(), "drawn": drawn[before:]})
    return outputs


def _with_outputs(_app: Any, docname: str, source: list[str]) -> None:
    """Before a page is parsed: run it, and put below each block what came of it."""
    folder, _, name = docname.rpartition("/")
    if folder != "notebooks":
        return
    done = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True, env=os.environ)
    if done.returncode:
        raise RuntimeError(f"{docname}: {done.stderr}")
    outputs, text, title = iter(json.loads(done.stdout)), "", ""
    for kind, part in parts(source[0]):
        if kind == "markdown":
            title = [title, *re.findall(r"^#+ (.*)$", part, re.MULTILINE)][-1]
            text += f"{part}\n\n"
            continue
        output = next(outputs)
        text += f"```python\n{part}\n```\n"
        text += f"```text\n{output['printed']}\n```\n" if output["printed"] else ""
        text += "".join(f"\n![{title}](../reference/pictures/{file})\n" for file in output["drawn"]) + "\n"
    source[0] = text


def _order(_app: Any, _env: Any, docnames: list[str]) -> None:
    """The tour shows what these pages draw, so they are read first."""
    docnames.sort(key=lambda name: not name.startswith("notebooks/"))


def setup(app: Any) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("source-read", _with_outputs)
    app.connect("env-before-read-docs", _order)
    return {"parallel_read_safe": False}


if __name__ == "__main__":
    if sys.argv[1:]:
        print(json.dumps(run(sys.argv[1])))
    else:
        for page in PAGES:
            (EXAMPLES / f"{page}.ipynb").write_text(notebook(page), "utf-8")
