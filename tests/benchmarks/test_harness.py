import itertools
from types import SimpleNamespace

import pytest

from benchmarks import harness
from benchmarks.harness import Entrant, Measure, Process, Scale

HERE = Process("tests.benchmarks.a_worker")
THERE = Process("tests.benchmarks.a_worker", environment=(("A_FLAG", "on"),))
SCALE = Scale("test", 3, 2)


@pytest.fixture(autouse=True)
def in_haste(monkeypatch):
    """Neither a wait for a quiet machine nor as many rounds as a budget allows."""
    monkeypatch.setattr(harness, "wait_for_quiet", lambda: True)
    monkeypatch.setattr(harness, "BUDGET", 0.0)


def race(**ways):
    return harness.race(ways, ["one", "three"], SCALE)


def test_candidates_are_asked_in_turn_and_follow_different_ones():
    asked = []
    samplers = {name: lambda name=name: asked.append(name) or len(asked) for name in "abc"}
    samples = harness.interleave(samplers, 12)
    rounds = ["".join(asked[i : i + 3]) for i in range(0, 36, 3)]
    assert {"".join(sorted(each)) for each in rounds} == {"abc"}
    assert len({*rounds}) > 3
    assert {each[each.index("c") - 1] for each in rounds if each[0] != "c"} == {"a", "b"}
    assert samples["a"] == [i + 1 for i, name in enumerate(asked) if name == "a"]


def test_the_ratio_is_that_within_a_round():
    # The machine slows down threefold; b takes twice as long as a throughout.
    slowing = {"a": [1.0, 2.0, 3.0, 3.0, 3.0], "b": [2.0, 4.0, 6.0, 6.0, 6.0]}
    measures = harness.summarise([slowing])
    assert measures["b"] == Measure(6.0, 2.0, 6.0, 2.0, 0.0)
    assert measures["a"].ratio == 1.0
    assert not measures["b"].noisy


def test_a_ratio_that_differs_between_generations_or_rounds_is_noisy():
    level = {"a": [1.0] * 5, "b": [1.0] * 5}
    tilted = {"a": [1.0] * 5, "b": [1.2] * 5}
    assert harness.summarise([level, tilted])["b"].noisy
    assert not harness.summarise([level, {"a": [1.0] * 5, "b": [1.04] * 5}])["b"].noisy
    assert harness.summarise([{"a": [1.0] * 8, "b": [1.0, 2.0] * 4}])["b"].noisy
    assert harness.summarise([{"a": [1.0] * 3, "b": [1.0, 1.0, 1.2]}])["b"].noisy


@pytest.mark.parametrize("values", [[1.0], [1.0, 1.02], [1.0, 1.05, 1.1], [1.0, 1.0, 1.15, 1.15]])
def test_few_samples_that_lie_together_say_little(values):
    measures = harness.summarise([{"a": [1.0] * len(values), "b": values}])
    assert measures["b"].noisy
    assert not measures["a"].noisy
    assert not harness.summarise([{"a": [1.0] * 4, "b": [1.0, 1.0, 1.02, 1.02]}])["b"].noisy


def test_the_same_every_time_is_not_noisy():
    assert harness.summarise([{"a": [1.0] * 2, "b": [1.3] * 2}])["b"].spread == 0.0


def test_a_measure_shows_its_unit_its_range_its_ratio_and_its_noise():
    assert str(Measure(0.0123, 0.012, 0.5, 1.234, 0.2)) == "12.3 ms (12–500) ×1.23~"
    assert str(Measure(3.2e-6, 3e-6, 4e-6)) == "3.2 µs (3–4) ×1"
    assert str(Measure(3 * 2**20, 3 * 2**20, 3 * 2**20, 2.0, unit="B")) == "3 MiB ×2"


def test_a_race_times_those_that_agree_and_says_why_there_is_no_time():
    rows = race(
        quick=Entrant(HERE, "quick"),
        slow=Entrant(THERE, "slow"),
        broken=Entrant(HERE, "broken"),
        absent=Entrant(HERE, "quick", "a-distribution-that-nobody-has"),
    )
    assert [*rows] == ["one", "three"]
    for row in rows.values():
        assert [*row] == ["quick", "slow", "broken", "absent"]
        assert row["broken"] == "failed: ValueError: no such layer"
        assert row["absent"] == "a-distribution-that-nobody-has is not installed"
        assert row["quick"].median >= 0.01
        assert row["slow"].ratio > 1.2


@pytest.mark.parametrize("way", ["other", "nothing"])
def test_a_race_refuses_a_row_whose_candidates_do_not_agree(way):
    row = race(quick=Entrant(HERE, "quick"), wrong=Entrant(HERE, way))["one"]
    assert row == {"refused": f"wrong has {'3.03' if way == 'other' else 'nan'} where quick has 3"}
    rows = harness.race(
        {"quick": Entrant(HERE, "quick"), "x": Entrant(HERE, way)}, ["one"], SCALE, tolerance=0.02
    )
    assert ("refused" in rows["one"]) == (way == "nothing")


def test_a_process_that_ends_is_said_to():
    row = race(quick=Entrant(HERE, "quick"), dead=Entrant(THERE, "deadly"))["one"]
    assert row["dead"] == "failed: the process ended with code 7"
    assert isinstance(row["quick"], Measure)


def test_a_candidate_that_fails_while_it_is_timed_loses_its_row_only():
    rows = race(quick=Entrant(HERE, "quick"), late=Entrant(HERE, "late"))
    assert [*rows["one"]] == ["refused"]
    assert rows["one"]["refused"].startswith("a candidate failed while it was timed: ")


def test_nothing_is_timed_without_the_first():
    row = race(broken=Entrant(HERE, "broken"), quick=Entrant(HERE, "quick"))["one"]
    assert row == {"broken": "failed: ValueError: no such layer", "quick": "not timed"}


def test_processes_have_their_own_environment_and_equal_ones_are_one():
    with harness.running([HERE, THERE, Process("tests.benchmarks.a_worker")]) as workers:
        assert len(workers) == 2
        assert workers[THERE].ask("environment", "A_FLAG") == "on"
        assert workers[HERE].ask("environment", "A_FLAG") is None
        with pytest.raises(RuntimeError, match="KeyError: 'unknown'"):
            workers[HERE].ask("unknown")
        processes = [worker.process for worker in workers.values()]
    assert all(process.poll() == 0 for process in processes)


def test_short_rounds_are_repeated_while_there_is_time(monkeypatch):
    rounds = []
    monkeypatch.setattr(harness, "interleave", lambda _, count: rounds.append(count) or {})
    worker = SimpleNamespace(ask=lambda *_: 0.01)
    for budget in (0.0, 0.3, 8.0):
        monkeypatch.setattr(harness, "BUDGET", budget)
        harness._sample({"a": (worker, "a"), "b": (worker, "b")}, 3, chained=False)
    assert rounds == [3, 5, 3 * harness.MOST]  # a round takes 2 × SAMPLE


def test_chained_calls_are_waited_for_once():
    waited = []
    counter = itertools.count()
    call = lambda: next(counter)
    harness.seconds(call, 3, waited.append)
    harness.seconds(call, 3, waited.append, chained=True)
    assert waited == [0, 1, 2, 5]
