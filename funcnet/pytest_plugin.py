"""`pytest --verify-report DIR`: every report of the verifier that tests make, as files with an index page.

pytest loads this module in each run where funcnet is installed, so it imports no JAX; without the option it
does nothing. Under pytest-xdist each worker writes its files, and the one that gathers the index.
"""

import dataclasses
import hashlib
import html
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from funcnet import _heard

__all__ = ["pytest_addoption", "pytest_configure"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option."""
    help = "write each report of funcnet's verifier made by a test into this folder, as JSON and HTML"
    parser.getgroup("funcnet").addoption("--verify-report", metavar="DIR", help=help)


def pytest_configure(config: pytest.Config) -> None:
    """Begin to listen, if asked."""
    if (given := config.getoption("--verify-report")) is None:
        return
    folder = Path(config.invocation_params.dir, given)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise pytest.UsageError(f"--verify-report {given}: {error.strerror}") from error
    config.option.verify_report = str(folder)  # workers may run elsewhere
    config.pluginmanager.register(_Writer(folder), "funcnet reports")


class _Writer:
    """Writes what is heard while a test runs, and where it was written says on the test's own report."""

    def __init__(self, folder: Path):
        self.folder, self.heard, self.written = folder, list[Any](), list[dict[str, Any]]()
        self.count = 0  # of the reports of a test

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self) -> Iterator[None]:
        self.count = 0
        with _heard.hearing(self.heard.append):
            yield

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: Any) -> Iterator[None]:
        outcome: Any = yield
        of_test = outcome.get_result()
        reports, self.heard[:] = tuple(self.heard), ()
        of_test.verified = [self._write(item.nodeid, report) for report in reports]
        if of_test.failed and call.excinfo.typename != "FormulaError":  # whose text is the report
            wrong = (report for report in reports if not report.ok)
            of_test.sections += [("funcnet verify", report.table()) for report in wrong]

    def _write(self, test: str, report: Any) -> dict[str, Any]:
        self.count += 1
        name = f"{_file_name(test)}-{self.count}"
        data = {"test": test, **json.loads(report.to_json())}
        text = json.dumps(data, indent=1, allow_nan=False)
        (self.folder / f"{name}.json").write_text(text + "\n", "utf-8")
        page = dataclasses.replace(report, notes=(f"made by {test}", *report.notes)).to_html()
        (self.folder / f"{name}.html").write_text(page, "utf-8", errors="backslashreplace")
        return {"test": test, "verdict": report.verdict, "ok": report.ok, "file": name}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.written += getattr(report, "verified", ())

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not hasattr(session.config, "workerinput"):
            page = _index(self.written)
            (self.folder / "index.html").write_text(page, "utf-8", errors="backslashreplace")

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        where = os.path.relpath(self.folder / "index.html")
        terminalreporter.write_line(f"funcnet verify: {_summary(self.written)}: {where}")


def _file_name(test: str) -> str:
    """Of a test's files: its name as far as file systems take it, and what tells it from all others."""
    plain = re.sub(r"[^\w.=-]+", "-", test, flags=re.ASCII).strip("-.")
    return f"{plain[-100:]}-{hashlib.sha256(test.encode(errors='backslashreplace')).hexdigest()[:8]}"


def _summary(written: list[dict[str, Any]]) -> str:
    wrong = sum(not one["ok"] for one in written)
    total = f"{len(written)} report{'s' * (len(written) != 1)}"
    return f"{total}, {wrong} not right" if wrong else f"{total}, all right" if written else "no reports"


def _index(written: list[dict[str, Any]]) -> str:
    """The page of all reports, those first that are not right."""
    from funcnet.verifier.html import frame

    title = _summary(written)
    rows = [
        f"<tr><td><code>{html.escape(one['test'])}</code></td>"
        f'<td><a class="{_mood(one["ok"])}" href="{(file := quote(one["file"]))}.html">'
        f'{html.escape(one["verdict"])}</a></td><td><a class="soft" href="{file}.json">json</a></td></tr>'
        for one in sorted(written, key=lambda one: one["ok"])
    ]
    mood = _mood(all(one["ok"] for one in written))
    header = f'<header>\n<p class="soft small">funcnet verify</p>\n<h1 class="{mood}">{title}</h1>\n</header>'
    return frame(title, header, _TABLE.format("\n".join(rows)) if rows else "")


def _mood(ok: bool) -> str:
    return "right" if ok else "wrong"


_TABLE = """\
<div class="scroll">
<table>
<thead><tr><th>test</th><th>verdict</th><th></th></tr></thead>
<tbody>
{}
</tbody>
</table>
</div>"""
