"""What of many cases the fast run takes, and CI of the slow ones: time is a budget, see CONTRIBUTING."""

import collections
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import hypothesis
import pytest


def few(cases: Iterable[Any], kept: int | Collection[Any]) -> list[Any]:
    """All cases, as parameters: the first `kept`, or those that are `kept`, and the others slow."""
    params = []
    for i, case in enumerate(cases):
        is_kept = i < kept if isinstance(kept, int) else case in kept
        param = case if isinstance(case, type(pytest.param())) else None
        param = param or (pytest.param(*case) if isinstance(case, tuple) else pytest.param(case))
        params.append(param if is_kept else param._replace(marks=(*param.marks, pytest.mark.slow)))
    return params


def many(times: int) -> int:
    """How often a slow test tries, with examples, damages or kills: in CI a fifth of it."""
    return times // 5 if hypothesis.settings.get_current_profile_name() == "ci" else times


def spread(items: Iterable[pytest.Item], most: int | None) -> Iterator[pytest.Item]:
    """Of each test at most so many of its cases, evenly; all where they are marked `each`."""
    tests = collections.defaultdict(list)
    for item in items:
        tests[item.nodeid if "each" in item.keywords else item.nodeid.partition("[")[0]].append(item)
    for cases in tests.values():
        yield from cases[:: -(-len(cases) // (most or len(cases)))]
