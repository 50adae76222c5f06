import json
import math
import signal
import threading
from contextlib import contextmanager
from itertools import count
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.core import Tracer

import funcnet as fn
from funcnet.errors import DTypeError, ShapeError, StructureError, ValueRangeError
from funcnet.train import ends, loop, records
from funcnet.train.history import History
from funcnet.train.log import RESERVED

OPTIMIZER = optax.adam(0.05)
X = np.random.default_rng(0).normal(size=(24, 3))
Y = X @ np.array([1.0, -2.0, 0.5])


def loss(params, batch, key):
    x, y = batch
    error = x @ params["w"] - y
    return jnp.mean(error**2) + 0.01 * jax.random.normal(key, ()), {"worst": jnp.max(jnp.abs(error))}


def start(optimizer=OPTIMIZER):
    return fn.train.init({"w": jnp.zeros(3)}, optimizer, key=jax.random.key(3))


def data(epochs=None):
    return fn.train.batches((X, Y), 8, seed=1, epochs=epochs)


STEP = fn.train.make_step(loss, OPTIMIZER)


def fit(step: Any = STEP, state=None, batches=None, **options):
    state = start() if state is None else state
    return fn.train.fit(step, state, data() if batches is None else batches, **{"progress": False, **options})


def by_hand(steps):
    """The states and metrics of a plain loop."""
    state, states, metrics = start(), [], []
    for _, batch in zip(range(steps), data(), strict=False):
        state, values = STEP(state, batch)
        states.append(jax.tree.map(jnp.copy, state))
        metrics.append({name: float(value) for name, value in values.items() if name != "skipped"})
    return states, metrics


def same(a, b):
    """Whether two states are equal, bit by bit."""
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


@pytest.mark.as_users
def test_fit_is_the_plain_loop_and_writes_it_down(tmp_path):
    states, metrics = by_hand(7)
    state, history = fit(steps=7, log=tmp_path)
    assert same(state, states[-1])
    assert not same(state, states[-2])
    assert [{name: record[name] for name in ("loss", "worst")} for record in history] == metrics
    assert [record["step"] for record in history] == list(range(1, 8))
    lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == history
    seconds = [record["seconds"] for record in history]
    assert seconds == sorted(seconds)
    assert all(record["steps_per_second"] > 0 for record in history)


def test_rates_are_amounts_times_the_speed():
    _, history = fit(steps=3, rates={"tokens_per_second": 40, "share_of_peak": 1e-6})
    for record in history:
        assert record["tokens_per_second"] == 40 * record["steps_per_second"]
        assert record["share_of_peak"] == 1e-6 * record["steps_per_second"]
    assert "tokens_per_second" not in fit(steps=1)[1][0]


def test_a_rate_with_a_name_of_the_records_own():
    with pytest.raises(ValueRangeError) as caught:
        fit(steps=1, rates={"tokens_per_second": 40, "steps_per_second": 1})
    assert str(caught.value) == (
        'train.fit: a rate has the name "steps_per_second", which training records itself.\n'
        f"  expected  names other than {', '.join(RESERVED)}\n"
        "  got       tokens_per_second, steps_per_second"
    )


def test_fit_goes_on_where_it_stopped():
    batches = data()
    state, first = fit(batches=batches, steps=3)
    state, second = fit(state=state, batches=batches, steps=2)
    assert same(state, by_hand(5)[0][-1])
    assert [record["step"] for record in [*first, *second]] == [1, 2, 3, 4, 5]


def test_fit_ends_with_its_batches():
    assert int(fit(batches=data(epochs=2))[0].step) == 6
    state = start()
    assert fit(state=state, steps=0) == (state, [])


@pytest.mark.parametrize("seconds", [0.0, 1.0])
def test_metrics_are_read_late(monkeypatch, seconds):
    now, events = 0.0, []

    class Metric:
        def __init__(self, number):
            self.number = number

        def __array__(self, *_, **__):
            events.append(f"read {self.number}")
            return np.ones((), np.float32)

    def step(state, batch):
        nonlocal now
        now += seconds
        number = int(state.step) + 1
        events.append(f"step {number}")
        return state._replace(step=state.step + 1), {"loss": Metric(number)}

    for module in (ends, records):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setattr(records, "_BEHIND", 4)
    fit(step=step, steps=6)
    if seconds:  # slow steps: one behind
        assert " ".join(events).startswith("step 1 step 2 read 1 step 3 read 2 step 4 read 3")
    else:
        assert " ".join(events).startswith("step 1 step 2 step 3 step 4 read 1 read 2 step 5 step 6 read 3")
    assert [event for event in events if "read" in event] == [f"read {n}" for n in range(1, 7)]


def test_evaluation_every_so_many_steps_and_after_the_last():
    seen = []

    def evaluate(state):
        seen.append(jax.tree.map(jnp.copy, state))
        return {"steps": state.step, "norm": np.float32(2.0)}

    states, _ = by_hand(7)
    for every, at in ((3, [3, 6, 7]), (7, [7]), (None, [7]), (100, [7])):
        seen.clear()
        _, history = fit(steps=7, evaluate=evaluate, every=every)
        assert [record["step"] for record in history if "eval_norm" in record] == at
        assert [record["eval_steps"] for record in history if "eval_steps" in record] == at
        assert all(same(state, states[number - 1]) for state, number in zip(seen, at, strict=True))
    for every in (1, 2, None):
        assert "eval_norm" in fit(steps=1, evaluate=evaluate, every=every)[1][0]


def test_the_speed_is_that_since_the_last_evaluation(monkeypatch):
    now = 0.0

    def step(state, batch):  # takes a second, and ten more for compiling
        nonlocal now
        now += 11.0 if state.step == 0 else 1.0
        return state._replace(step=state.step + 1), {"loss": 1.0}

    def evaluate(state):
        nonlocal now
        now += 100.0
        return {}

    for module in (ends, records):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now))
    _, history = fit(step, steps=8, evaluate=evaluate, every=3)
    # The speed counts from the end of step 1, which compiles, and then from each evaluation.
    speeds = [record["steps_per_second"] for record in history]
    assert speeds[1:] == pytest.approx([1 / 1, 2 / 2, 1, 1, 1, 1, 1], rel=0.6)
    assert [speeds[2], speeds[5], speeds[7]] == [1, 1, 1]
    assert [record["seconds"] for record in history][-1] == 11 + 7 + 2 * 100


def test_plain_lines_tell_of_the_start_and_the_evaluations(capsys):
    fit(steps=3, evaluate=lambda state: {"norm": 2.0}, progress=True)
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("first step after ")
    assert shown[1].startswith("step 1  loss ")
    assert shown[2].startswith("step 3  loss ")
    assert "eval_norm 2  " in shown[2]
    assert len(shown) == 3


def test_the_first_batch_goes_through_the_loss_unjitted():
    seen = []

    def checked(params, batch, key):
        _, labels = batch
        if not isinstance(labels, Tracer):
            seen.append((labels, key))
            if labels.max() > 2:
                raise ValueRangeError("a label is out of range")
        return jnp.mean(params["w"][labels])

    def labels(n):
        return iter([(X[:3], np.array([0, 1, n])), (X[:3], np.array([0, 1, 2]))])

    step = fn.train.make_step(checked, OPTIMIZER)
    step(start(), next(labels(3)))  # jit cannot see it
    assert seen == []
    with pytest.raises(ValueRangeError, match="label"):
        fit(step, batches=labels(3))
    seen.clear()
    fit(step, batches=labels(2))
    assert len(seen) == 1
    assert seen[0][1] == jax.random.fold_in(jax.random.key(3), 0), "not the key of the first step"


def test_the_check_knows_the_model_state():
    calls = []

    def stateful(params, model_state, batch, key):
        calls.append(isinstance(params["w"], Tracer))
        return jnp.mean(params["w"]), (model_state + 1, {})

    state = fn.train.init({"w": jnp.ones(3)}, OPTIMIZER, key=jax.random.key(0), model_state=0)
    state, _ = fit(fn.train.make_step(stateful, OPTIMIZER), state, steps=4)
    assert calls == [False, True]
    assert state.model_state == 4


def interrupting(at, times=1, sent=signal.SIGINT):
    """The step, with a signal in the middle of one."""

    def step(state, batch):
        number = int(state.step) + 1
        state, metrics = STEP(state, batch)
        for _ in range(times if number == at else 0):
            signal.raise_signal(sent)
        return state, metrics

    return step


def test_ctrl_c_ends_the_run_after_the_step(tmp_path, capsys):
    handler = signal.getsignal(signal.SIGINT)
    evaluated = []
    state, history = fit(
        interrupting(at=3), steps=7, log=tmp_path, evaluate=evaluated.append, every=100, progress=True
    )
    assert same(state, by_hand(3)[0][-1])
    lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == history
    assert [record["step"] for record in history] == [1, 2, 3]
    assert evaluated == [], "who presses Ctrl-C does not want to wait for an evaluation"
    assert capsys.readouterr().out.splitlines()[-1] == "interrupted: the state after step 3 is returned"
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_second_ctrl_c_is_raised_at_once():
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as raised:
        fit(interrupting(at=3, times=2), steps=7)
    assert signal.getsignal(signal.SIGINT) is handler
    assert "state" not in vars(raised.value), "step 3 was broken off, and had taken the memory of its state"
    assert [record["step"] for record in vars(raised.value)["history"]] == [1, 2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_sigterm_and_its_like_end_the_run_as_ctrl_c_does(number):
    handler = signal.getsignal(number)
    state, history = fit(interrupting(at=3, sent=number), steps=7)
    assert same(state, by_hand(3)[0][-1])
    assert [record["step"] for record in history] == [1, 2, 3]
    assert signal.getsignal(number) is handler


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        state, _ = fit(interrupting(at=2, sent=signal.SIGHUP), steps=4)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert state.step == 4


@pytest.mark.parametrize("every", [2, None])
def test_ctrl_c_in_an_evaluation_ends_it_at_once(every, tmp_path):
    def evaluate(state):
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the evaluation went on")

    state, history = fit(steps=5, evaluate=evaluate, every=every, log=tmp_path)
    last = every or 5
    assert same(state, by_hand(last)[0][-1])
    assert [record["step"] for record in history] == list(range(1, last + 1))
    assert not any(name.startswith("eval_") for name in history[-1])
    lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == history


def test_ctrl_c_before_the_first_step():
    def checked(params, batch, key):
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the check went on")

    before = start()
    assert fit(fn.train.make_step(checked, OPTIMIZER), before, steps=5) == (before, [])


@pytest.mark.parametrize("how", ["signal", "exception"])
def test_ctrl_c_while_waiting_for_a_batch(how):
    def slow():
        for number, batch in zip(count(1), data(), strict=False):
            if number == 4 and how == "signal":
                signal.raise_signal(signal.SIGINT)
                raise AssertionError("waiting was not interrupted")
            if number == 4:
                raise KeyboardInterrupt
            yield batch

    state, history = fit(batches=slow())
    assert same(state, by_hand(3)[0][-1])
    assert len(history) == 3


def test_outside_the_main_thread_signals_are_left_alone():
    results = []
    thread = threading.Thread(target=lambda: results.append(fit(steps=2)))
    thread.start()
    thread.join()
    assert same(results[0][0], by_hand(2)[0][-1])


def test_a_handler_of_the_programs_own_is_left_alone():
    pressed = []
    before = signal.signal(signal.SIGINT, lambda *_: pressed.append(1))
    try:
        state, _ = fit(interrupting(at=2), steps=4)
    finally:
        signal.signal(signal.SIGINT, before)
    assert pressed == [1]
    assert state.step == 4


def poisoned(at):
    """The batches, one of them with a NaN."""
    for number, (x, y) in zip(count(1), data(), strict=False):
        yield x, y * (math.nan if number == at else 1.0)


BARE = fn.train.make_step(loss, OPTIMIZER, guard=False)


@pytest.mark.parametrize("at", [1, 2, 3, 6])
def test_a_non_finite_loss_of_an_unguarded_step_stops_the_run(tmp_path, at):
    with pytest.raises(fn.train.NonFiniteError) as raised:
        fit(BARE, batches=poisoned(at), steps=8, log=tmp_path)
    error = raised.value
    assert error.step == at
    assert np.isnan(error.batch[1]).all()
    assert str(error) == (
        f"train.fit: the loss of step {at} is nan.\n"
        "  expected  a finite loss\n"
        "  got       nan\n"
        "  hint      error.explain() names the operation; "
        "with guard=True in make_step such a step changes nothing"
    )
    assert error.history == History.read(tmp_path / "metrics.jsonl")
    assert [record["step"] for record in error.history] == list(range(1, at))


def overflowing(params, batch, key):
    """A finite loss; its gradient is NaN where the batch is 0."""
    return jnp.sum(jnp.sqrt(params["w"] ** 2 * batch))


def test_the_last_gradient_of_an_unguarded_step_is_looked_at():
    step = fn.train.make_step(overflowing, OPTIMIZER, guard=False)
    evaluated = []
    with pytest.raises(fn.train.NonFiniteError) as raised:
        fit(step, batches=[np.float64(0.0)], evaluate=lambda state: evaluated.append(1) or {})
    error = raised.value
    assert str(error).startswith(
        "train.fit: state.params['w'] after step 1 is nan.\n  expected  finite numbers\n"
    )
    assert (error.step, error.path, error.batch) == (1, "state.params['w']", 0.0)
    assert [record["loss"] for record in error.history] == [0.0], "the loss says nothing"
    assert evaluated == [], "what is spoilt is not measured at the end"


@pytest.mark.parametrize("at", [1, 4, 7])
def test_a_guarded_step_is_skipped_and_the_run_goes_on(tmp_path, at):
    state, history = fit(batches=poisoned(at), steps=7, log=tmp_path)
    assert state.step == len(history) == 7
    assert [record["step"] for record in history if "skipped" in record] == [at]
    assert history[at - 1]["skipped"] == 1
    assert math.isnan(history[at - 1]["loss"])
    assert [record["step"] for record in History.read(tmp_path / "metrics.jsonl")] == list(range(1, 8))
    assert optax.tree.get(state.opt_state, "count") == 6, "the optimizer has not seen it"


@pytest.mark.parametrize("most", [1, 3])
@pytest.mark.parametrize("behind", [1, 64])
def test_so_many_skipped_in_a_row_end_the_run_exactly(monkeypatch, most, behind):
    monkeypatch.setattr(records, "_BEHIND", behind)
    step = fn.train.make_step(loss, OPTIMIZER, max_skipped=most)
    good = by_hand(3)[0][-1]

    def broken():
        for number, (x, y) in zip(count(1), data(), strict=False):
            yield x, y * (math.nan if (number == 2 and most > 1) or number > 3 else 1.0)

    if most > 1:
        good = fit(step, batches=broken(), steps=3)[0]
    with pytest.raises(fn.train.NonFiniteError) as raised:
        fit(step, batches=broken(), steps=100)
    error = raised.value
    assert error.step == error.state.step == 3 + most
    assert np.isnan(error.batch[1]).all()
    assert same(error.state.params, good.params)
    assert same(error.state.opt_state, good.opt_state)
    assert [record.get("skipped", 0) for record in error.history][3:] == list(range(1, most + 1))
    # Given to fit again, it tries again.
    state, history = fit(step, error.state, steps=1)
    assert "skipped" not in history[0]
    assert state.step == 4 + most


def test_what_ended_the_run_is_explained():
    step = fn.train.make_step(overflowing, OPTIMIZER, max_skipped=1)
    with pytest.raises(fn.train.NonFiniteError) as raised:
        fit(step, batches=[np.float64(0.0)] * 3)
    found = str(raised.value.explain())
    assert "test_loop.py" in found
    assert "div" in found or "mul" in found


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("state.params['w']", math.nan),
        ("state.params['w']", math.inf),
        ("state.opt_state[0].mu['w']", -math.inf),
        ("state.model_state", math.nan),
    ],
)
def test_a_state_that_is_spoilt_is_refused(path, value):
    def spoil(place, leaf):
        return leaf.at[1].set(value) if f"state{jax.tree_util.keystr(place)}" == path else leaf

    state = fn.train.init({"w": jnp.zeros(3)}, OPTIMIZER, key=jax.random.key(0), model_state=jnp.zeros(3))
    with pytest.raises(ValueRangeError) as raised:
        fit(state=jax.tree_util.tree_map_with_path(spoil, state), steps=3)
    kind = "nan" if math.isnan(value) else "inf"
    assert str(raised.value) == (
        f"train.fit: {path} is not finite already.\n  expected  finite numbers\n  got       {kind}"
    )
    assert raised.value.path == path


def test_infinities_that_begin_so():
    # The best loss so far, and a running minimum.
    optimizer = optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau())

    def stateful(params, model_state, batch, key):
        return jnp.mean(params["w"] ** 2), (model_state, {})

    state = fn.train.init(
        {"w": jnp.ones(3)}, optimizer, key=jax.random.key(0), model_state=jnp.full(3, jnp.inf)
    )
    assert any(jnp.isinf(leaf).any() for leaf in jax.tree.leaves(state.opt_state))
    assert fit(fn.train.make_step(stateful, optimizer), state, steps=2)[0].step == 2


def test_other_errors_carry_the_state_along():
    def broken():
        for number, batch in zip(count(1), data(), strict=False):
            if number == 4:
                raise OSError("disk gone")
            yield batch

    def at_once():
        raise OSError("at once")
        yield

    with pytest.raises(OSError, match="disk gone") as raised:
        fit(batches=broken())
    assert same(vars(raised.value)["state"], by_hand(3)[0][-1])
    assert raised.value.__notes__ == ["train.fit: the state after step 3 is this error's attribute `state`"]
    with pytest.raises(ZeroDivisionError) as raised:
        fit(steps=5, every=2, evaluate=lambda state: {"x": 1 / 0})
    assert same(vars(raised.value)["state"], by_hand(2)[0][-1])
    with pytest.raises(OSError, match="at once") as raised:
        fit(batches=at_once())
    assert same(vars(raised.value)["state"], start())


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), BrokenPipeError(), MemoryError()])
def test_an_error_out_of_a_step_carries_the_history_along(error):
    def step(state, batch):
        if state.step == 5:
            STEP(state, batch)
            raise error
        return STEP(state, batch)

    with pytest.raises(type(error)) as raised:
        fit(step, steps=9)
    assert "state" not in vars(raised.value), "its memory is taken"
    assert [record["step"] for record in vars(raised.value)["history"]] == [1, 2, 3, 4, 5]


def test_a_closed_pipe_at_the_very_end(monkeypatch):
    # The bar is taken down when the training is over.
    @contextmanager
    def terminal(steps, progress):
        yield lambda records: None, lambda text: None
        raise BrokenPipeError

    monkeypatch.setattr(loop, "terminal", terminal)
    with pytest.raises(BrokenPipeError) as raised:
        fit(steps=3)
    assert same(vars(raised.value)["state"], by_hand(3)[0][-1])
    assert len(vars(raised.value)["history"]) == 3


def test_an_empty_batch_is_refused():
    with pytest.raises(ShapeError) as raised:
        fit(batches=[(X[:8], Y[:8]), (X[:0], Y[:0])])
    assert str(raised.value) == (
        "train.fit: the batch of step 2 is empty.\n"
        "  expected  one example or more\n"
        "  got       float64[0, 3], float64[0]"
    )


def test_no_batch_at_all_is_an_error():
    used = data(epochs=1)
    fit(batches=used)
    with pytest.raises(ValueRangeError) as raised:
        fit(batches=used)
    assert str(raised.value) == (
        "train.fit: there was no batch.\n"
        "  expected  one batch or more\n"
        "  got       none\n"
        "  hint      an iterator can be used once: make it anew"
    )
    with pytest.raises(ValueRangeError) as raised:
        fit(batches=[])
    assert raised.value.hint is None


@pytest.mark.parametrize(("name", "value"), [("steps", -1), ("every", 0)])
def test_counts_that_make_no_sense(name, value):
    with pytest.raises(ValueRangeError, match=f"{name} is {value}"):
        fit(**{name: value})


def refilled():
    """The batches, all in the same two arrays."""
    x, y = np.empty((8, 3)), np.empty(8)
    for batch in data():
        x[:], y[:] = batch
        yield x, y


def test_an_iterable_may_fill_the_same_arrays_again():
    states, metrics = by_hand(6)
    state, history = fit(batches=refilled(), steps=6)
    assert same(state, states[-1])
    assert [record["loss"] for record in history] == [values["loss"] for values in metrics]

    def poisoned_buffers():
        for number, (x, y) in zip(count(1), refilled(), strict=False):
            y *= math.nan if number == 2 else 1.0
            yield x, y

    with pytest.raises(fn.train.NonFiniteError) as raised:
        fit(fn.train.make_step(loss, OPTIMIZER, max_skipped=1), batches=poisoned_buffers())
    assert np.isnan(raised.value.batch[1]).all(), "not the batch of the step, but the one after"


def test_a_state_that_a_step_was_given_is_refused():
    state = start()
    fit(state=state, steps=1)
    with pytest.raises(ValueRangeError) as raised:
        fit(state=state)
    assert str(raised.value) == (
        "train.fit: state.step is deleted: "
        "a step was given it, and reuses the memory of its state (donation).\n"
        "  expected  what the last step, or fit, returned\n"
        "  got       what was given to it\n"
        "  hint      to start from one state twice, give each a copy: jax.tree.map(jnp.copy, state)"
    )
    with pytest.raises(ValueRangeError, match=r"train\.evaluate: params\['w'\] is deleted"):
        fn.train.evaluate(measure, state.params, [(X, Y)])
    with pytest.raises(ValueRangeError, match=r"train\.init: params\['w'\] is deleted"):
        fn.train.init(state.params, OPTIMIZER, key=jax.random.key(0))
    state = start()
    states = [fit(state=jax.tree.map(jnp.copy, state), steps=2)[0] for _ in range(2)]
    assert same(*states)


def test_losses_without_a_key():
    def drawless(params, batch):
        x, y = batch
        return jnp.mean((x @ params["w"] - y) ** 2)

    step = fn.train.make_step(drawless, OPTIMIZER)
    keyed = fn.train.make_step(lambda params, batch, key: drawless(params, batch), OPTIMIZER)
    assert same(fit(step, steps=3)[0], fit(keyed, steps=3)[0])


def stepping(result):
    """A step that returns what `result` makes of the next state."""
    return lambda state, batch: result(state._replace(step=state.step + 1))


WRONG = {  # options of fit, and the error
    "no step": ({"step": None}, DTypeError, "step is not a function"),
    "a pair": ({"state": (None, {})}, DTypeError, "state is not a state"),
    "a function": ({"batches": data}, DTypeError, "call it: a generator function"),
    "one array": ({"batches": X}, DTypeError, r"put one batch into a list: \[batch\]"),
    "one dict": ({"batches": {"x": X}}, DTypeError, "batches is no iterable of batches"),
    "a data set": ({"batches": (X, X[:, 0])}, DTypeError, r"train.batches\(arrays, size, seed=0\)"),
    "a number": ({"batches": 3}, DTypeError, "batches is no iterable of batches"),
    "text": ({"batches": [("text", X)]}, DTypeError, r"batch\[0\] is no array of numbers"),
    "objects": ({"batches": [np.array([None])]}, DTypeError, r"object\[1\]"),
    "masked": ({"batches": [np.ma.masked_array(X, X > 0)]}, DTypeError, r"float64\[24, 3\], masked"),
    "half a step": ({"steps": 1.5}, DTypeError, "steps is no integer"),
    "NaN steps": ({"steps": math.nan}, DTypeError, "steps is no integer"),
    "steps as text": ({"steps": "3"}, DTypeError, "steps is no integer"),
    "True steps": ({"steps": True}, DTypeError, "steps is no integer"),
    "every half": ({"every": 0.5}, DTypeError, "every is no integer"),
    "log": ({"log": 3}, DTypeError, "log is neither a folder nor a function"),
    "evaluate": ({"evaluate": {"x": 1}}, DTypeError, "evaluate is not a function"),
    "None from it": ({"evaluate": lambda state: None}, StructureError, "does it return its result?"),
    "text from it": ({"evaluate": lambda state: {"x": "good"}}, DTypeError, r'metrics\["x"\]'),
    "rates": ({"rates": [1]}, StructureError, "rates is no dict"),
    "rate": ({"rates": {"x": None}}, DTypeError, r'rates\["x"\] is not a real number'),
    "state alone": ({"step": stepping(lambda s: s)}, StructureError, "did not return a state and metrics"),
    "no metrics": ({"step": stepping(lambda s: (s, None))}, StructureError, "did not return a dict"),
    "no loss": ({"step": stepping(lambda s: (s, {"x": 1.0}))}, StructureError, "the step gives no loss"),
    "losses": ({"step": stepping(lambda s: (s, {"loss": X}))}, StructureError, r"got       float64\[24, 3\]"),
    "a step's own": ({"step": stepping(lambda s: (s, {"loss": 1.0, "step": 7}))}, ValueRangeError, '"step"'),
    "two of a name": (
        {"step": stepping(lambda s: (s, {"loss": 1.0, "eval_x": 7})), "evaluate": lambda state: {"x": 1}},
        ValueRangeError,
        'two things to be recorded have the name "eval_x"',
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_fit_cannot_use_is_refused(unchecked, case):
    options, error, text = WRONG[case]
    with pytest.raises(error, match=text):
        fit(**{"steps": 1, **options})


def test_numbers_of_other_libraries_are_numbers(unchecked, tmp_path):
    _, history = fit(
        steps=np.int64(2),
        every=jnp.int32(1),
        rates={"x_per_second": np.float32(2)},
        evaluate=lambda state: {"mean": fn.train.Mean(3, 2), "list": [1, 2.5], "half": jnp.bfloat16(0.5)},
        log=tmp_path,
    )
    assert len(history) == 2
    assert [history[0][f"eval_{name}"] for name in ("mean", "list", "half")] == [1.5, [1.0, 2.5], 0.5]


def test_loops_run_on_the_host(unchecked):
    with pytest.raises(DTypeError, match=r"state\.step is traced"):
        jax.jit(lambda state: fit(state=state))(start())
    with pytest.raises(DTypeError, match=r"params\['w'\] is traced"):
        jax.jit(lambda params: fn.train.evaluate(measure, params, [(X, Y)]))({"w": jnp.ones(3)})


# evaluate


def measure(params, batch):
    x, y = batch
    error = (x @ params["w"] - y) ** 2
    return {
        "per_example": error,
        "mean": error.mean(),
        "close": error < 1,
        "table": x**2,
        "half": (error < 1).astype(jnp.bfloat16),
    }


@pytest.mark.parametrize("size", [1, 5, 7, 24, 100])
def test_evaluate_is_the_mean_over_all_examples(size):
    params = {"w": jnp.ones(3)}
    error = (X @ np.ones(3) - Y) ** 2
    means = fn.train.evaluate(measure, params, fn.train.in_order((X, Y), size))
    expected = {
        "per_example": error.mean(),
        "mean": error.mean(),
        "close": np.mean(error < 1),
        "table": (X**2).mean(),
        "half": np.mean(error < 1),
    }
    assert means.keys() == expected.keys()
    assert all(type(value) is float for value in means.values())
    for name, value in expected.items():
        np.testing.assert_allclose(means[name], value, rtol=1e-12, err_msg=name)


def test_evaluate_with_a_model_state():
    def metrics(params, model_state, batch):
        return {"shifted": batch * params + model_state["shift"]}

    means = fn.train.evaluate(metrics, 2.0, fn.train.in_order(np.arange(5.0), 2), model_state={"shift": 10.0})
    assert means == {"shifted": 14.0}


def test_evaluate_reads_a_batch_before_it_asks_for_the_next():
    def refilled(n=100_000):  # so long that the mean is not there when the call returns
        memory = np.zeros(64 + 4 * n, np.uint8)
        start = -memory.ctypes.data % 64  # where JAX reads a NumPy array in place
        buffer = memory[start : start + 4 * n].view(np.float32)
        for number in range(8):
            buffer[:] = number
            yield buffer

    means = fn.train.evaluate(lambda params, batch: {"mean": batch.mean()}, {}, refilled())
    assert means == {"mean": 3.5}


def test_evaluate_passes_over_empty_batches():
    batches = [np.ones((0, 2)), np.ones((3, 2)), np.ones((0, 2))]
    assert fn.train.evaluate(lambda params, batch: {"x": batch}, {}, batches) == {"x": 1.0}


def test_evaluate_compiles_once_per_shape():
    traces = []

    def metrics(params, batch):
        traces.append(batch.shape)
        return {"x": batch * params}

    for _ in range(3):
        fn.train.evaluate(metrics, 1.0, fn.train.in_order(np.arange(10.0), 4))
    assert traces == [(4,), (2,)]


@pytest.mark.parametrize(
    ("metrics", "batches", "error", "text"),
    [
        (
            lambda params, batch: {"x": batch},
            [],
            ValueRangeError,
            """train.evaluate: there was no example.
  expected  one batch or more
  got       none""",
        ),
        (
            lambda params, batch: batch,
            [np.ones(3)],
            StructureError,
            """train.evaluate: metrics did not return a dict.
  expected  a dict of arrays
  got       float64[3]""",
        ),
        (
            lambda params, batch: {"x": batch["x"]},
            [{"x": np.ones(3), "y": np.ones((2, 3))}],
            ShapeError,
            """train.evaluate: the arrays of a batch do not agree on the number of examples.
  expected  arrays whose first axes are equally long
  got       float64[3], float64[2, 3]""",
        ),
        (
            lambda params, batch: {"x" if len(batch) == 3 else "y": batch},
            [np.ones(3), np.ones(2)],
            StructureError,
            """train.evaluate: metrics gave other metrics for another batch.
  expected  x
  got       y""",
        ),
        (
            lambda params, batch, key: {"x": batch},
            [np.ones(3)],
            StructureError,
            """train.evaluate: metrics does not take the arguments that it is given.
  expected  metrics(params, batch)
  got       metrics(params, batch, key)
  hint      no key is given here: bind one, functools.partial(metrics, key=...)""",
        ),
        (
            lambda params, batch: {"x": batch},
            fn.train.batches(np.ones(3), 1, seed=0),
            ValueRangeError,
            """train.evaluate: batches never end.
  expected  a finite iterable
  got       batches of epochs=None
  hint      train.in_order(arrays, size) gives each example once""",
        ),
        (
            lambda params, batch: {"x": batch},
            lambda: [np.ones(3)],
            DTypeError,
            """train.evaluate: batches is no iterable of batches.
  expected  an iterable, each element a batch: train.batches(...), a list, a generator
  got       a function
  hint      call it: a generator function gives its iterator then""",
        ),
    ],
)
def test_evaluate_errors(unchecked, metrics, batches, error, text):
    with pytest.raises(error) as raised:
        fn.train.evaluate(metrics, 1.0, batches)
    assert str(raised.value) == text


def test_until_is_the_number_of_the_last_step():
    state, history = fit(until=3)
    assert (int(state.step), len(history), history.ended) == (3, 3, "steps")
    state, history = fit(state=state, until=5)
    assert same(state.params, by_hand_from(3, 5))
    assert [record["step"] for record in history] == [4, 5]
    state, history = fit(state=state, until=5)
    assert (int(state.step), len(history), history.ended) == (5, 0, "steps")
    assert fit(state=state, until=2)[0].step == 5


def by_hand_from(first, last):
    """The params of the plain loop whose batches begin anew after some steps."""
    state = start()
    for _, batch in zip(range(first), data(), strict=False):
        state, _ = STEP(state, batch)
    for _, batch in zip(range(last - first), data(), strict=False):
        state, _ = STEP(state, batch)
    return state.params


def test_minutes_end_a_run_without_an_evaluation(monkeypatch):
    now = 0.0

    def step(state, batch):
        nonlocal now
        now += 20.0
        return state._replace(step=state.step + 1), {"loss": 1.0}

    for module in (ends, records):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now))
    state, history = fit(step, minutes=1, evaluate=lambda state: {"x": 1.0})
    assert (int(state.step), history.ended) == (3, "minutes")
    assert "eval_x" not in history[-1]
    assert fit(step, minutes=0)[1].ended == "minutes"
    # The last step of all is one, whatever the time.
    state, history = fit(step, steps=3, minutes=1, evaluate=lambda state: {"x": 1.0})
    assert (history.ended, history[-1]["eval_x"]) == ("steps", 1.0)


def test_stop_is_asked_after_each_evaluation():
    asked = []

    def stop(history):
        asked.append(history[-1]["step"])
        return history[-1]["eval_x"] >= 4

    state, history = fit(steps=9, evaluate=lambda state: {"x": int(state.step)}, every=2, stop=stop)
    assert (int(state.step), history.ended, asked) == (4, "stop", [2, 4])
    assert [record["step"] for record in history if "eval_x" in record] == [2, 4]


def test_stop_without_an_evaluation_is_asked_after_each_step():
    losses = [record["loss"] for record in fit(steps=6)[1]]
    state, history = fit(steps=9, stop=lambda history: history[-1]["loss"] < losses[2])
    at = next(number for number, loss in enumerate(losses, 1) if loss < losses[2])
    assert (int(state.step), len(history), history.ended) == (at, at, "stop")


def test_why_it_ended():
    assert fit(steps=2)[1].ended == "steps"
    assert fit(batches=data(epochs=1))[1].ended == "data"
    assert fit(interrupting(at=2, sent=signal.SIGTERM), steps=7)[1].ended == "SIGTERM"


def test_records_go_wherever_one_likes(tmp_path):
    seen = []
    _, history = fit(steps=3, log=[seen.append, tmp_path])
    assert seen == history == History.read(tmp_path / "metrics.jsonl")
    seen.clear()
    assert fit(steps=2, log=seen.append)[1] == seen


def test_the_share_of_time_without_a_batch(monkeypatch):
    now = 0.0

    def wait():
        nonlocal now
        for batch in data():
            now += 3.0
            yield batch

    def step(state, batch):
        nonlocal now
        now += 1.0
        return state._replace(step=state.step + 1), {"loss": 1.0}

    for module in (ends, records):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now))
    _, history = fit(step, batches=wait(), steps=4)
    assert history[-1]["waiting"] == pytest.approx(0.75)


def test_records_that_could_not_be_read_are_counted():
    class Skipping:
        skipped = 0

        def __iter__(self):
            return self

        def __next__(self):
            self.skipped += self.skipped < 2
            return X[:8], Y[:8]

    _, history = fit(batches=Skipping(), steps=3)
    assert [record["bad_records"] for record in history] == [1, 2, 2]
    assert "bad_records" not in fit(steps=1)[1][0]


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"steps": 1, "until": 2}, ValueRangeError, "both steps and until"),
        ({"until": -1}, ValueRangeError, "until is -1"),
        ({"until": 1.5}, DTypeError, "until is no integer"),
        ({"minutes": -1.0}, ValueRangeError, "minutes is -1"),
        ({"minutes": math.nan}, ValueRangeError, "minutes is nan"),
        ({"minutes": "3"}, DTypeError, "minutes is not a real number"),
        ({"stop": True}, DTypeError, "stop is not a function"),
        ({"log": [3]}, DTypeError, "log is neither a folder nor a function"),
    ],
)
def test_ends_and_logs_that_make_no_sense(unchecked, options, error, text):
    with pytest.raises(error, match=text):
        fit(**options)
