import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

import funcnet as fn
from funcnet.errors import DTypeError, ValueRangeError
from funcnet.train import prefetch, stateful
from funcnet.train.stateful import _plain, _restored
from tests.errors import golden
from tests.train.positions import as_lists, resumes


class Count:
    """Counts to a limit; its state is what it works with, and no copy."""

    def __init__(self, limit=5):
        self.state = {"at": 0, "limit": limit}

    def __iter__(self):
        return self

    def __next__(self):
        if self.state["at"] == self.state["limit"]:
            raise StopIteration
        self.state["at"] += 1
        return np.array(self.state["at"])

    def get_state(self):
        return self.state

    def set_state(self, state):
        if state["limit"] != self.state["limit"]:
            raise ValueError("another limit")
        self.state = state


@pytest.mark.parametrize("ahead", [None, 0, 1, 4, 16])
@pytest.mark.parametrize("k", range(6))
def test_a_state_that_goes_on_living_is_copied(ahead, k):
    make = lambda: stateful(Count())
    whole = resumes(make if ahead is None else lambda: prefetch(make(), ahead, put=False), k)
    assert as_lists(whole) == as_lists(Count())


def test_the_law_finds_a_state_that_is_not_all():
    class Forgetful(Count):
        def set_state(self, state):
            super().set_state({**state, "at": 0})

    resumes(lambda: stateful(Forgetful()), 0)
    with pytest.raises(AssertionError):
        resumes(lambda: stateful(Forgetful()), 1)


def test_other_names_for_the_two():
    class Other(Count):
        get_state = set_state = None

    def make():
        inner = Other()
        return stateful(inner, get=lambda: inner.state["at"], set=lambda at: inner.state.update(at=at))

    resumes(make, 3)


def test_an_identity_tells_data_apart():
    first, second = (stateful(Count(), identity={"version": version}) for version in (1, 2))
    stateful(Count(), identity={"version": 1}).seek(first.position())
    with pytest.raises(ValueRangeError, match="identity"):
        second.seek(first.position())


@pytest.mark.parametrize(
    "state",
    [
        None,
        5,
        "text",
        b"\xff\x00",
        [1, (2, b"3"), [None, True]],
        {"a": {"b": [1.5]}, "c": {}},
        {3: {"at": 1}, "3": 2, (4, b"k"): 5},  # Grain's interleave has ints for names
        {"__bytes__": "MQ=="},
        {"__tuple__": [1]},
        {"__dict__": [[1, 2]], "more": 1},
        {"__dict__": {"__bytes__": {"__tuple__": {}}}},
    ],
)
def test_json_can_hold_every_state(state):
    plain = json.loads(json.dumps(_plain("state", state)))
    assert _restored(plain) == state
    assert repr(_restored(plain)) == repr(state)  # types, too


def test_numbers_of_numpy_are_numbers():
    assert json.dumps(_plain("state", {"at": np.int64(3)})) == '{"at": 3}'


class Held(Count):
    def __init__(self, state):
        self.state = state


test_errors = golden(
    [
        (
            lambda: stateful([1, 2]),
            DTypeError,
            "train.stateful: the iterator has no get_state.\n"
            "  expected  an iterator with get_state() and set_state(state), or get= and set=\n"
            "  got       a list_iterator",
        ),
        (
            lambda: stateful(Count(), get=lambda: 0),
            DTypeError,
            "train.stateful: set is not a function.\n"
            "  expected  a function, or neither get nor set\n"
            "  got       None (NoneType)",
        ),
        (
            lambda: stateful(Count(), identity=3),  # pyright: ignore
            DTypeError,
            "train.stateful: identity is no dict.\n  expected  a dict, or None\n  got       3 (int)",
        ),
        (
            lambda: stateful(Count(), identity={"rows": np.ones(2)}),
            DTypeError,
            "train.stateful: identity['rows'] is nothing that JSON can hold.\n"
            "  expected  numbers, texts, bytes, None, and lists, tuples and dicts of these\n"
            "  got       float64[2]\n"
            "  hint      get= and set= can be functions that convert it",
        ),
        (
            lambda: stateful(Held({"rng": [np.random.default_rng(0)]})).position(),
            DTypeError,
            "train.stateful: state['rng'][0] is nothing that JSON can hold.\n"
            "  expected  numbers, texts, bytes, None, and lists, tuples and dicts of these\n"
            "  got       a Generator\n"
            "  hint      get= and set= can be functions that convert it",
        ),
        (
            lambda: stateful(Held({"source": "a <Source object at 0x7f00>"})).position(),
            ValueRangeError,
            "train.stateful: state['source'] names an object by its address, "
            "which differs in every process.\n"
            "  expected  a state that another process can take\n"
            "  got       'a <Source object at 0x7f00>'\n"
            "  hint      give the object a __repr__ that tells its data from others",
        ),
        (
            lambda: stateful(Count(5)).seek(stateful(Count(6)).position()),
            ValueRangeError,
            "train.stateful: the iterator refuses the state of the position.\n"
            "  expected  a state of a Count over the same data\n"
            "  got       ValueError: another limit",
        ),
        (
            lambda: stateful(Count()).seek({"epoch": 0}),
            ValueRangeError,
            "train.stateful: this is a position in other batches.\n"
            "  expected  identity: a dict, epoch: none, state: 'a place'\n"
            "  got       identity: none, epoch: 0, state: none",
        ),
    ]
)


# --- Grain ------------------------------------------------------------------------------------------------


class Records:
    def __len__(self):
        return 22

    def __getitem__(self, i):
        return {"x": np.arange(i, i + 2), "y": np.int32(i)}

    def __repr__(self):
        return "Records()"


class Anonymous(Records):
    __repr__ = object.__repr__


def dataset(grain):
    return grain.MapDataset.source(Records()).shuffle(seed=3).batch(4).repeat(2)


def filtered(grain):
    return (
        grain.MapDataset.source(Records())
        .shuffle(seed=1)
        .to_iter_dataset()
        .filter(lambda record: record["y"] % 3 > 0)
        .batch(4)
    )


def mixed(grain):
    parts = [
        grain.MapDataset.source(Records()).shuffle(seed=seed).repeat(2).to_iter_dataset() for seed in (1, 2)
    ]
    return grain.IterDataset.mix(parts, [0.7, 0.3]).batch(3)


def loader(grain, workers=0, source=None):
    sampler = grain.samplers.IndexSampler(22, shuffle=True, seed=1, num_epochs=2)
    return grain.DataLoader(
        data_source=source or Records(),
        sampler=sampler,
        operations=[grain.transforms.Batch(4)],
        worker_count=workers,
    )


@pytest.fixture
def grain():
    return pytest.importorskip("grain")


@pytest.mark.parametrize(
    ("make", "ahead", "places"),
    [
        (dataset, 0, (0, 5, 12)),
        (filtered, 4, (2,)),
        (mixed, 4, (7,)),
        (loader, 0, (3,)),
        (loader, 4, (0, 5, 11)),
    ],
)
def test_grain_stopped_in_the_middle(grain, make, ahead, places):
    whole = as_lists(make(grain))
    for k in places:
        assert as_lists(resumes(lambda: prefetch(stateful(make(grain)), ahead, put=False), k)) == whole


def test_an_iterator_of_grain(grain):
    started = iter(dataset(grain))
    next(started)
    taken = stateful(started)
    again = stateful(dataset(grain))
    again.seek(taken.position())
    assert as_lists(taken) == as_lists(again) == as_lists(dataset(grain))[1:]


def test_a_loader_of_other_records_is_refused(grain):
    other = Records()
    Other = type("Other", (Records,), {"__repr__": lambda self: "Other()"})
    taken = stateful(loader(grain))
    with pytest.raises(ValueRangeError, match="DataSource in checkpoint does not match"):
        taken.seek(stateful(loader(grain, source=Other())).position())
    taken.seek(stateful(loader(grain, source=other)).position())
    with pytest.raises(ValueRangeError, match="names an object by its address"):
        stateful(loader(grain, source=Anonymous())).position()


WORKERS = """
import json, sys
from absl import flags
import grain
from funcnet.train import prefetch, stateful
from tests.train.test_stateful import as_lists, dataset, loader

def make(kind):
    if kind == "loader":
        return loader(grain, workers=2)
    options = grain.multiprocessing.MultiprocessingOptions(num_workers=2)
    return dataset(grain).to_iter_dataset().mp_prefetch(options)

if __name__ == "__main__":
    flags.FLAGS.mark_as_parsed()
    taken = prefetch(stateful(make(sys.argv[1])), 3, put=False)
    if position := json.loads(sys.argv[2]):
        taken.seek(position)
    first = [next(taken) for _ in range(4)]
    print(json.dumps([taken.position(), as_lists(first), as_lists(taken)]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["loader", "dataset"])
def test_two_workers_stopped_in_the_middle_and_resumed_in_another_process(grain, kind, tmp_path):
    script = tmp_path / "script.py"  # workers import it anew
    script.write_text(WORKERS)

    def run(position):
        command = [sys.executable, str(script), kind, json.dumps(position)]
        path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path}
        out = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
        assert out.returncode == 0, out.stderr
        return json.loads(out.stdout)

    position, first, rest = run(None)
    _, resumed, end = run(position)
    assert resumed + end == rest
    assert len(first) == 4
    seen = [i for batch in first + rest for _, _, leaf in batch[-1:] for i in leaf]
    assert sorted(seen) == sorted([*range(22)] * 2)


def test_names():
    assert fn.train.stateful is stateful
    assert list(islice(stateful(Count()), 2)) == [1, 2]
