"""Of many cases a few are taken, and none is lost where no limit is given."""

from types import SimpleNamespace

import pytest

from tests.budget import spread

ITEMS = [
    *(SimpleNamespace(nodeid=f"a.py::test_many[{i}]", keywords={"slow"}) for i in range(7)),
    *(SimpleNamespace(nodeid=f"a.py::test_pages[{i}]", keywords={"slow", "each"}) for i in range(5)),
    SimpleNamespace(nodeid="b.py::test_many", keywords={"slow"}),
]


@pytest.mark.parametrize(("most", "of_many"), [(None, range(7)), (7, range(7)), (3, (0, 3, 6)), (2, (0, 4))])
def test_cases_are_spread_and_those_of_each_are_whole(most, of_many):
    many = [f"a.py::test_many[{i}]" for i in of_many]
    assert [item.nodeid for item in spread(ITEMS, most)] == many + [item.nodeid for item in ITEMS[7:]]
