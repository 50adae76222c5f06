"""A report as annotations of a workflow on GitHub, which shows them at the lines of a pull request.

https://docs.github.com/actions/reference/workflow-commands-for-github-actions
"""

import os
from collections.abc import Mapping
from pathlib import Path

from funcnet.verifier import Report
from funcnet.verifier.finding import together

__all__ = ["annotations"]


def annotations(report: Report, environment: Mapping[str, str] = os.environ) -> list[str]:
    """One command for each mistake, ``::error ...``, and for each row that is unseen, ``::warning ...``.

    Args:
        report: of a verification.
        environment: GITHUB_WORKSPACE is where paths begin; else the repository that the working folder is in.
    """
    root = _root(environment)
    lines = []
    for finding in together(report.wrong):
        what = f"gradient of {finding.argument}" if finding.argument else "gradient formula"
        lines.append(_command("error", finding.location, f"{what}: {finding.kind}", str(finding), root))
    named = {finding.argument for finding in report.wrong}
    for row in report.rows:
        title = f"{row.operation}: gradient of {row.argument}" if row.argument else row.operation
        if row.unseen and not row.ok:
            lines.append(_command("warning", row.location, title, row.unseen, root))
        elif not row.ok and not named & {row.argument, ""}:
            lines.append(_command("error", row.location, title, row.note or "wrong", root))
    return lines


def _root(environment: Mapping[str, str]) -> Path:
    if workspace := environment.get("GITHUB_WORKSPACE"):
        return Path(workspace).resolve()
    here = Path.cwd().resolve()
    return next((folder for folder in (here, *here.parents) if (folder / ".git").exists()), here)


def _command(level: str, location: str, title: str, message: str, root: Path) -> str:
    file, _, line = location.rpartition(":")
    properties = {"title": title}
    if file:
        path = Path(file).resolve()
        inside = path.is_relative_to(root)
        place = path.relative_to(root).as_posix() if inside else path.as_posix()
        properties = {"file": place, "line": line, **properties}
    listed = ",".join(f"{name}={_escaped(value, ':,')}" for name, value in properties.items())
    return f"::{level} {listed}::{_escaped(message)}"


def _escaped(text: str, more: str = "") -> str:
    r"""As GitHub reads it back.

    >>> _escaped("100 %\n"), _escaped("a:b,c", ":,")
    ('100 %25%0A', 'a%3Ab%2Cc')
    """
    for character in f"%\r\n{more}":  # % first, since it begins all others
        text = text.replace(character, f"%{ord(character):02X}")
    return text
