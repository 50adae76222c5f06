"""What `fit` does with its checkpoints, and what becomes of a run that ends in any way."""

import errno
import math
import os
import signal
from itertools import count
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import funcnet as fn
from funcnet.train import Checkpoints, _pieces, ends, records
from tests.train.test_loop import OPTIMIZER, STEP, X, Y, data, interrupting, loss, same, start


def fit(folder, step=STEP, batches=None, resume=True, keep_at=100, made=None, **options):
    """Go on with the run in a folder, or begin it."""
    batches = data() if batches is None else batches
    state = start()
    made = Checkpoints(folder / "checkpoints", every=keep_at) if made is None else made
    if resume:
        state, _ = made.restore(state, batches)
    return fn.train.fit(step, state, batches, checkpoints=made, log=folder, **{"progress": False, **options})


def told(history):
    """The records, times aside."""
    times = {"seconds", "steps_per_second", "waiting"}
    return [{name: value for name, value in record.items() if name not in times} for record in history]


def measure(state):
    return {"norm": np.linalg.norm(state.params["w"])}


EVALUATED = {"evaluate": measure, "every": 2}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of nine steps that nothing interrupted."""
    return fit(tmp_path_factory.mktemp("whole"), until=9, **EVALUATED)


def is_whole(whole, state, history):
    return same(state, whole[0]) and told(history) == told(whole[1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("at", [3, 4])  # an evaluation is due at 4, and is not made
def test_a_signal_leaves_a_checkpoint_and_the_run_goes_on(tmp_path, whole, number, at):
    state, history = fit(tmp_path, interrupting(at, sent=number), until=9, **EVALUATED)
    assert (int(state.step), history.ended) == (at, signal.Signals(number).name)
    assert Checkpoints(tmp_path / "checkpoints").steps() == [at]
    assert "eval_norm" not in history[-1]
    assert is_whole(whole, *fit(tmp_path, until=9, **EVALUATED))
    assert told(fn.train.History.read(tmp_path / "metrics.jsonl")) == told(whole[1])


def test_an_evaluation_that_is_owed_is_made_first_and_only_once(tmp_path):
    fit(tmp_path, interrupting(4, sent=signal.SIGTERM), until=9, **EVALUATED)
    asked = []

    def stop(history):
        asked.append((history[-1]["step"], "eval_norm" in history[-1]))
        return True

    state, history = fit(tmp_path, until=9, stop=stop, **EVALUATED)
    assert asked == [(4, True)], "stop sees what it would have seen"
    assert (int(state.step), history.ended, len(history)) == (4, "stop", 4)
    lines = (tmp_path / "metrics.jsonl").read_text("utf-8").splitlines()
    assert len(lines) == 4
    seen = []
    fit(tmp_path, until=5, evaluate=lambda state: seen.append(int(state.step)) or {"norm": 1.0}, every=2)
    assert seen == [5]


def test_whatever_is_raised_leaves_a_checkpoint(tmp_path, whole):
    def broken():
        for number, batch in zip(count(1), data(), strict=False):
            if number == 6:
                raise OSError("disk gone")
            yield batch

    with pytest.raises(OSError, match="disk gone"):
        fit(tmp_path, batches=broken(), until=9, **EVALUATED)
    assert Checkpoints(tmp_path / "checkpoints").steps() == [5]
    with pytest.raises(ZeroDivisionError):
        fit(tmp_path / "other", until=9, evaluate=lambda state: {"x": 1 / 0}, every=2)
    assert is_whole(whole, *fit(tmp_path / "other", until=9, **EVALUATED))


def test_who_says_it_twice_waits_for_no_checkpoint(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, interrupting(3, times=2), until=9)
    assert Checkpoints(tmp_path / "checkpoints").steps() == []


def test_a_nan_is_not_kept(tmp_path):
    step = fn.train.make_step(loss, OPTIMIZER, max_skipped=1)
    batches = [(x, Y[:8]) for x in (X[:8], X[:8], X[:8] * math.nan)]
    with pytest.raises(fn.train.NonFiniteError):
        fit(tmp_path, step, batches=batches, keep_at=2)
    assert Checkpoints(tmp_path / "checkpoints").steps() == [2]


def test_a_write_that_fails_is_a_warning_and_a_field_and_is_tried_again(tmp_path, monkeypatch):
    write, failing = _pieces.write, True

    def full(*args):
        if failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(*args)

    monkeypatch.setattr(_pieces, "write", full)

    def step(state, batch):
        nonlocal failing
        failing = int(state.step) < 4
        return STEP(state, batch)

    with pytest.warns(UserWarning, match="training goes on, but the checkpoint of step .* No space left"):
        state, history = fit(tmp_path, step, until=6, keep_at=2)
    assert "No space left" in next(record["checkpoint_error"] for record in history if len(record) > 6)
    assert state.step == 6
    assert Checkpoints(tmp_path / "checkpoints").steps()[-1] == 6


def test_the_last_checkpoint_must_be_written(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(_pieces, "write", broken)
    with pytest.raises(OSError, match="Input/output error") as raised:
        fit(tmp_path, until=3)
    assert raised.value.errno == errno.EIO
    assert vars(raised.value)["state"].step == 3
    assert len(vars(raised.value)["history"]) == 3


def test_an_evaluation_that_beats_the_best_is_kept(tmp_path):
    made = Checkpoints(tmp_path / "checkpoints", every=100, keep=1, best=("eval_score", "max"))
    scores = iter([0.5, 0.75, 0.75, 0.25])
    fit(tmp_path, made=made, until=8, evaluate=lambda state: {"score": next(scores)}, every=2)
    assert made.steps() == [4, 8], "the earlier of equals, and the newest"


def test_a_best_that_no_evaluation_has_is_said(tmp_path):
    made = Checkpoints(tmp_path / "checkpoints", every=2, best=("val_score", "max"))
    with pytest.warns(UserWarning, match=r"no checkpoint is the best: no 'val_score' in step, .*eval_score"):
        fit(tmp_path, made=made, until=2, evaluate=lambda state: {"score": 0.5}, every=2)


def test_time_goes_on_counting(tmp_path, monkeypatch):
    now = 0.0

    def step(state, batch):
        nonlocal now
        now += 20.0
        return STEP(state, batch)

    for module in (ends, records):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now))
    _, history = fit(tmp_path, step, until=2)
    assert history[-1]["seconds"] == 40.0
    state, history = fit(tmp_path, step, until=9, minutes=1)
    assert (int(state.step), history.ended) == (3, "minutes"), "two steps came before"
    assert [record["step"] for record in history] == [1, 2, 3]
    assert history[-1]["seconds"] == 60.0
    _, history = fit(tmp_path, step, until=9, minutes=1)
    assert (len(history), history.ended) == (3, "minutes")


def test_a_run_that_is_done_stays_as_it_is(tmp_path, whole):
    fit(tmp_path, until=9, **EVALUATED)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    state, history = fit(tmp_path, until=9, **EVALUATED)
    assert is_whole(whole, state, history)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert history.ended == "steps"


def test_lines_beyond_the_checkpoint_are_cut_off(tmp_path, whole):
    fit(tmp_path, until=4, **EVALUATED)
    with open(tmp_path / "metrics.jsonl", "ab") as file:  # of a process that was killed later
        file.write(b'{"step": 5, "loss": 0.1, "seconds": 1.0}\n{"step": 6, "lo')
    assert is_whole(whole, *fit(tmp_path, until=9, **EVALUATED))
    assert told(fn.train.History.read(tmp_path / "metrics.jsonl")) == told(whole[1])


def test_going_on_without_what_restore_found_is_another_run(tmp_path):
    fit(tmp_path, until=4)
    with pytest.raises(fn.errors.ValueRangeError, match="later steps"):
        fit(tmp_path, until=9, resume=False)
    assert jax.tree.leaves(start())  # which was not deleted
