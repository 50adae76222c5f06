"""Renews what pages show below their blocks: runs them as the tests do, and writes their output there.

python docs/shown.py                      # README.md and every page of docs
python docs/shown.py docs/how-to/freezing.md
"""

import contextlib
import io
import linecache
import os
import re
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(^```python\n)(.*?)(^```\n)(?:(```text\n)(.*?)(^```))?", re.DOTALL | re.MULTILINE)


def renewed(text: str) -> str:
    """A page with the output of its blocks, which are run in this process, in an empty folder."""
    names = {"__name__": "page"}

    def run(block: re.Match[str]) -> str:
        Path("mine.py").write_text(block[2], encoding="utf-8")
        linecache.checkcache()
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(block[2], "mine.py", "exec"), names)
        return "".join([*block.groups()[:4], out.getvalue(), block[6]]) if block[4] else block[0]

    return BLOCK.sub(run, text)


def main(pages: list[str]) -> None:
    """Renew pages, each in a process of its own: what one imports and compiles is not there for the next."""
    if len(pages) == 1:
        page = ROOT / pages[0]
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            page.write_text(renewed(page.read_text("utf-8")), encoding="utf-8")
        return
    every = ["README.md", *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md"))]
    for name in pages or every:
        if "```text" in (ROOT / name).read_text("utf-8"):
            print(name, flush=True)
            os.spawnl(os.P_WAIT, sys.executable, sys.executable, __file__, name)


if __name__ == "__main__":
    main(sys.argv[1:])
