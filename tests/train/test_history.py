import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from funcnet.train import History

NAMES = st.sampled_from(["loss", "accuracy", "eval_loss", "skipped", "table"])
LISTS = st.lists(st.floats(0, 1), max_size=2)
VALUES = st.one_of(st.integers(-(2**70), 2**70), st.floats(allow_nan=False), st.booleans(), LISTS)
RECORDS = st.lists(st.dictionaries(NAMES, VALUES), max_size=12)


def alike(a, b):
    """Whether two records are equal, in their types too."""
    return a == b and all(type(a[name]) is type(b[name]) for name in a)


@settings(max_examples=200, deadline=None)
@given(RECORDS, st.integers(0, 12))
def test_it_is_a_list_of_dicts(records, cut):
    records = [{"step": step, **record} for step, record in enumerate(records, 5)]
    history = History(records[:cut])
    history.extend(records[cut : cut + 2])
    for record in records[cut + 2 :]:
        history.append(record)
    assert len(history) == len(records)
    assert history == records
    assert records == history
    assert all(map(alike, history, records))
    assert history[1:-1] == records[1:-1]
    assert list(reversed(history)) == records[::-1]
    if records:
        assert history[-1] == records[-1]
        assert history != records[:-1]
    for name in history.names():
        steps, values = history.column(name)
        numbers = [(r["step"], r[name]) for r in records if isinstance(r.get(name), int | float)]
        assert steps.tolist() == [step for step, _ in numbers]
        assert values.tolist() == [float(value) for _, value in numbers]
        assert (steps.dtype, values.dtype) == (np.int64, np.float64)


def test_the_last_record_can_get_more():
    history = History([{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}])
    history.amend({"eval_loss": 0.75})
    history.append({"step": 3, "loss": 0.125})
    assert history[1:] == [{"step": 2, "loss": 0.25, "eval_loss": 0.75}, {"step": 3, "loss": 0.125}]
    history[0]["loss"] = 9.0
    assert history[0]["loss"] == 0.5, "a record is built when it is asked for"


def test_what_is_not_there():
    history = History()
    assert (len(history), history[:], list(history), history.ended) == (0, [], [], None)
    assert [part.tolist() for part in history.column("loss")] == [[], []]
    for index in (0, -1, 3):
        with pytest.raises(IndexError):
            history[index]
    history.append({"step": 1, "loss": math.nan})
    assert math.isnan(history[0]["loss"])
    assert repr(history) == "<History of 1 records, the last {'step': 1, 'loss': nan}>"


def test_a_number_takes_eight_bytes():
    import sys

    history = History()
    for step in range(1, 10_001):
        history.append({"step": step, "loss": 0.5, "seconds": 0.1 * step})
    taken = sum(sys.getsizeof(column.values) for column in history._columns.values())
    assert taken < 1.2 * 8 * 3 * 10_000
    assert all(column.rows is None for column in history._columns.values())
