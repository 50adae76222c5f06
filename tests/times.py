"""Where the time of the tests goes: `make times`, or `python -m pytest -p tests.times` with any other option.

Processor seconds, all threads of a worker counted: they hardly depend on what else the machine is doing.
Beside them stand the programs compiled, which most of the time goes into: an operation called eagerly
compiles one for each of its primitives. What it takes to start, collect and import is said apart.
"""

import collections
import os
from collections.abc import Iterator

import jax
import pytest

ROWS = int(os.environ.get("ROWS", 25))
_programs = 0
_of_workers = 0.0


def _count(event: str, _: float, **__: object) -> None:
    global _programs
    _programs += event.endswith("backend_compile_duration")


jax.monitoring.register_event_duration_secs_listener(_count)


def _used() -> tuple[float, int]:
    """Processor seconds of this process and the ended ones that it started, and programs compiled."""
    t = os.times()
    return t.user + t.system + t.children_user + t.children_system, _programs


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    item.stash[_before] = _used()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    if call.when == "teardown":
        item.user_properties.append(
            ("used", [now - then for now, then in zip(_used(), item.stash[_before], strict=True)])
        )
    return (yield)


_before = pytest.StashKey[tuple[float, int]]()


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["seconds"] = _used()[0]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object) -> None:
    global _of_workers
    _of_workers += getattr(node, "workeroutput", {}).get("seconds", 0.0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    tests = {
        report.nodeid: dict(report.user_properties)["used"]
        for reports in terminalreporter.stats.values()
        for report in reports
        if "used" in dict(getattr(report, "user_properties", ()))
    }
    files: dict[str, list[float]] = collections.defaultdict(lambda: [0, 0])
    laws: dict[str, list[float]] = collections.defaultdict(lambda: [0, 0])
    for name, used in tests.items():
        file, _, test = name.partition("::")
        groups = [files[file]]
        if file == "tests/test_laws.py":
            groups.append(laws[test.partition("-")[0].replace("[", " ")])
        for group in groups:
            group[:] = [a + b for a, b in zip(group, used, strict=True)]
    seconds, programs = (sum(used[i] for used in tests.values()) for i in (0, 1))
    write = terminalreporter.write_line
    terminalreporter.section("processor seconds and programs")
    write(f"{seconds:7.1f} {programs:6}  in {len(tests)} tests; {_of_workers - seconds:.1f} s besides")
    for title, rows in (("file", files), ("law", laws), ("test", tests)):
        write(f"by {title}:")
        for name, (s, n) in sorted(rows.items(), key=lambda row: -row[1][0])[:ROWS]:
            write(f"{s:7.1f} {n:6}  {name}")
