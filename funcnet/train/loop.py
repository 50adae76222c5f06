"""The loops: training over batches, and averages over a data set."""

import itertools
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from funcnet import signature
from funcnet._signals import signals
from funcnet.errors import DTypeError, FuncnetError, ShapeError, StructureError, ValueRangeError, describe
from funcnet.train import _check
from funcnet.train.log import RESERVED, Record, metrics_file, terminal
from funcnet.train.metric import Mean, checked, reading, scalar
from funcnet.train.state import State, step_key

# Of the time, at most, that goes into copying the state to the host.
_COPYING = 0.01


class NonFiniteError(FuncnetError, ArithmeticError):
    """A loss, or what the last step left, was infinite or not a number.

    Attributes:
        step: the number of the step, the first being 1.
        batch: its batch.
        state: a state from before, the newest that was kept and gave a finite loss; `state.step` says after
            how many steps. (The state just before may hold a NaN already, from a gradient.)
        history: the records up to the fault.
    """

    def __init__(
        self, problem: str, *, step: int, batch: PyTree, state: State, path: str = "loss", **details: str
    ):
        super().__init__(problem, path=path, **details)
        self.step, self.batch, self.state = step, batch, state
        self.history: list[Record] = []


def fit(
    step: Callable[[State, PyTree], tuple[State, Mapping[str, Any]]],
    state: State,
    batches: Iterable[PyTree],
    *,
    steps: SupportsIndex | None = None,
    log: str | Path | None = None,
    evaluate: Callable[[State], Mapping[str, Any]] | None = None,
    every: SupportsIndex | None = None,
    rates: Mapping[str, int | float] | None = None,
    progress: bool = True,
) -> tuple[State, list[Record]]:
    """Train: one step per batch, with progress shown and metrics written down.

    The metrics of a step are read when the next one is on its way, so that the device does not wait for them.
    Before the first step the loss (`step.loss`, which `make_step` sets) runs once without jit on the first
    batch, so that operations can check values that jit hides: labels and ids in range.

    Ctrl-C, SIGTERM and SIGHUP end the training after the step that is running, or at once in an evaluation,
    and it returns as usual, with `state.step` below what was asked for; a second signal is raised at once, as
    KeyboardInterrupt. (They are left alone outside the main thread, where the program handles them itself,
    and where it ignores them.)

    A log that cannot be written does not end the training: one warning says so.

    Args:
        step: from `make_step`, or any function like it; its metrics contain "loss".
        state: from `init`, or where an earlier run ended. The first step deletes it.
        batches: any iterable of batches; see `train.batches`. NumPy arrays are copied: an iterable may fill
            the same ones again and again.
        steps: take this many steps; None: as many as there are batches.
        log: a folder, made if need be, where each step appends a line to metrics.jsonl.
        evaluate: `evaluate(state)` gives a dict of numbers, arrays or Means, as `train.evaluate` makes it;
            they are recorded as ``eval_...``. The next step deletes the state, so it should not be kept.
        every: evaluate after every so many steps; in any case after the last one.
        rates: other units of speed, name to amount in one step, such as {"tokens_per_second": 2048}; the
            amount times the steps per second is recorded.
        progress: whether to print anything.

    Returns:
        The state, and one record per step, as written to metrics.jsonl: "step" (the first is 1), "loss" and
        the other metrics (of the parameters before the update), "steps_per_second" since the last evaluation,
        or the first step, the `rates`, "seconds" since the start, and the evaluation if there was one.

    Raises:
        NonFiniteError: a loss was infinite or not a number, or the state after the last step is; it holds the
            step, the batch, and a good state, which was copied to host memory while training (this takes at
            most a hundredth of the time).
        ShapeError: a batch is empty.
        DTypeError: an argument, a leaf of a batch, or a metric is not what it should be.
        StructureError: the step or `evaluate` returns anything else.
        ValueRangeError: there was no batch, `state` has a NaN or an infinity or was given to a step before,
            which deleted it, two things are recorded under one name, or `steps`, `every` or the name of a
            rate makes no sense.

    Whatever is raised once it has begun, by batches, by `evaluate`, by a closed standard output,
    KeyboardInterrupt and SystemExit too, carries in its attributes `state` and `history` what the training
    had come to: the state after the last step, or, where a step was broken off or left a NaN, the newest one
    that was kept.

    >>> import optax
    >>> from funcnet.train import batches, init, make_step
    >>> loss = lambda params, batch, key: jnp.mean((batch - params) ** 2)
    >>> state = init(jnp.zeros(()), optax.sgd(0.5), key=jax.random.key(0))
    >>> data = batches(jnp.ones((8, 1)), 4, seed=0)
    >>> state, history = fit(make_step(loss, optax.sgd(0.5)), state, data, steps=3, progress=False)
    >>> [record["loss"] for record in history], float(state.params)
    ([1.0, 0.0, 0.0], 1.0)
    """
    _check_arguments(step, state, batches, log, evaluate)
    if steps is not None:
        steps = min(_check.whole("train.fit", "steps", steps, 0), sys.maxsize)
    if every is not None:
        every = _check.whole("train.fit", "every", every, 1)
    rates = _rates(rates)
    first = done = int(state.step)
    history: list[Record] = []
    batch: PyTree = None
    pending: tuple[int, PyTree, Any, tuple[int, float]] | None = None  # a step to be noted
    copies: list[State] = []  # on the host; the first is good, a second one waits until a loss came of it
    clock = time.perf_counter
    start = clock()
    mark = first, start  # the speed is measured from this step and time

    def keep() -> float:
        """Copy the state to the host, unless it is spoilt; returns the time of the next copy."""
        began = clock()
        copy = _to_host(state)
        copies.extend([] if _spoilt(copy) else [copy])
        return clock() + max(1.0, (clock() - began) / _COPYING)

    def note(
        number: int, batch: PyTree, metrics: Any, since: tuple[int, float], evaluate: Any = None
    ) -> None:
        """Wait for the metrics of a step, and write them down."""
        values = _values(metrics)
        if not math.isfinite(values["loss"]):
            raise _non_finite(number, "loss", values["loss"], batch, _put(copies[0], state))
        if copies[-1].step < number:
            del copies[:-1]
        now = clock()
        speed = (number - since[0]) / (now - since[1])
        speeds = {"steps_per_second": speed, **{name: amount * speed for name, amount in rates.items()}}
        own = {"step": number, "loss": values.pop("loss")}
        record = _joined(own, values, speeds, {"seconds": now - start})
        if evaluate is not None and not stop.number:
            measured = stop.attempt(evaluate, state, otherwise={})
            measured = reading("train.fit", "evaluate", measured)
            record = _joined(record, {f"eval_{name}": value for name, value in measured.items()})
        history.append(record)
        write(record)
        show(record)

    def good() -> State:
        """The newest state that is whole: the present one, or what was copied."""
        with suppress(RuntimeError):  # deleted by a step that was broken off, or its computation failed
            if not _spoilt(state):
                return state
        return _put(copies[0], state)

    try:
        with (
            metrics_file(log) as write,
            terminal(steps, progress) as (show, say),
            signals() as stop,
            stop.held(),
        ):
            copy_at = keep()
            if not copies:
                raise _refused(state)
            for batch in stop.until(itertools.islice(batches, steps)):
                batch = _check.own("train.fit", batch)
                _refuse_empty(batch, done + 1)
                if done == first:
                    stop.attempt(_check_values, step, state, batch)
                    if stop.number:
                        break
                state, metrics = _pair(step(state, batch))
                done += 1
                if pending is not None:
                    note(*pending)
                pending = done, batch, metrics, mark
                if done == first + 1:
                    jax.block_until_ready(metrics)
                    mark = done, clock()
                    say(f"first step after {mark[1] - start:.1f} s: values checked, step compiled")
                if evaluate is not None and every is not None and done % every == 0:
                    note(*pending, evaluate)
                    pending, mark = None, (done, clock())
                if clock() >= copy_at and len(copies) == 1:
                    copy_at = keep()
            spoilt = _spoilt(state)  # a NaN in the last gradient: no loss came of it that would show it
            if pending is not None:
                note(*pending, None if spoilt else evaluate)
            if spoilt:
                raise _non_finite(done, *spoilt, batch, _put(copies[0], state))
            if stop.number:
                say(f"interrupted: the state after step {done} is returned")
            elif done == first and steps != 0:
                raise ValueRangeError(
                    "train.fit: there was no batch.",
                    path="batches",
                    expected="one batch or more",
                    actual="none",
                    hint="an iterator can be used once: make it anew" if iter(batches) is batches else None,
                )
    except BaseException as error:
        # The caller's own state is deleted, and this one would go with the frame.
        if copies and not isinstance(error, NonFiniteError):
            vars(error)["state"] = kept = good()
            error.add_note(f"train.fit: the state after step {kept.step} is this error's attribute `state`")
        vars(error)["history"] = history
        raise
    return state, history


def _check_arguments(step: Any, state: Any, batches: Any, log: Any, evaluate: Any) -> None:
    """What `fit` is given, looked at before anything is computed."""
    _check.function("train.fit", "step", step, "step(state, batch), as train.make_step makes it")
    if not isinstance(state, State):
        raise DTypeError(
            "train.fit: state is not a state.",
            path="state",
            expected="a State, from train.init or an earlier run",
            actual=describe(state),
        )
    _check.here("train.fit", "state", state)
    _check.iterable("train.fit", batches)
    if log is not None and not isinstance(log, str | os.PathLike):
        raise DTypeError(
            "train.fit: log is no folder.", path="log", expected="a path, or None", actual=describe(log)
        )
    if evaluate is not None:
        _check.function("train.fit", "evaluate", evaluate, "evaluate(state), or None")


def _rates(rates: Any) -> dict[str, float]:
    """The rates of `fit`, if they can be."""
    if not isinstance(rates, Mapping | None):
        raise StructureError(
            "train.fit: rates is no dict.",
            path="rates",
            expected="a dict: name to amount in one step",
            actual=describe(rates),
        )
    rates = {} if rates is None else rates
    for name, amount in rates.items():
        scalar("train.fit", f'rates["{name}"]', amount)
        if name in RESERVED:
            raise ValueRangeError(
                f'train.fit: a rate has the name "{name}", which training records itself.',
                path=f'rates["{name}"]',
                expected=f"names other than {', '.join(RESERVED)}",
                actual=", ".join(rates),
            )
    return {str(name): float(amount) for name, amount in rates.items()}


def _pair(result: Any) -> tuple[State, Any]:
    """What a step returned, if it can be."""
    if type(result) is tuple and len(result) == 2 and isinstance(result[0], State):
        return result
    raise StructureError(
        "train.fit: the step did not return a state and metrics.",
        path="step",
        expected="(state, metrics)",
        actual=f"({', '.join(map(describe, result))})" if type(result) is tuple else describe(result),
    )


def _values(metrics: Any) -> Record:
    """The metrics of a step as Python's numbers, with the loss among them."""
    values = reading("train.fit", "step", metrics)
    loss = values.get("loss")
    if not isinstance(loss, float | int):
        raise StructureError(
            "train.fit: the step gives no loss.",
            path='metrics["loss"]',
            expected='a scalar under the name "loss"',
            actual=", ".join(values) if loss is None else describe(metrics["loss"]),
        )
    return values


def _joined(*parts: Record) -> Record:
    """One record of several, in which no name comes twice."""
    record: Record = {}
    for part in parts:
        for name in part.keys() & record.keys():
            raise ValueRangeError(
                f'train.fit: two things to be recorded have the name "{name}".',
                path=name,
                expected=f"names other than {', '.join(record)}",
                actual=", ".join(part),
            )
        record |= part
    return record


def _check_values(step: Any, state: State, batch: PyTree) -> None:
    """Run the loss once, not jitted: operations check values, such as labels, wherever they can see them."""
    loss = getattr(step, "loss", None)
    if loss is not None:
        signature.call("train.fit", loss, state.params, state.model_state, batch, step_key(state))


def _refuse_empty(batch: PyTree, number: int) -> None:
    if all(np.shape(leaf)[:1] != (0,) for leaf in jax.tree.leaves(batch)):
        return
    raise ShapeError(
        f"train.fit: the batch of step {number} is empty.",
        path="batch",
        expected="one example or more",
        actual=", ".join(map(describe, jax.tree.leaves(batch))),
    )


def _to_host(state: State) -> State:
    """A copy that outlives the donation of `state` and takes no memory on the device."""

    def copy(leaf: jax.Array) -> Any:
        return leaf.copy() if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else np.array(leaf)

    return jax.tree.map(copy, state)


def _put(good: State, like: State) -> State:
    """A state from the host, where another one lies or lay."""

    def put(leaf: Any, like: jax.Array) -> jax.Array:
        return jax.device_put(leaf, like.sharding if like.committed else None)

    return jax.tree.map(put, good, like)


def _spoilt(state: State) -> tuple[str, str] | None:
    """The first leaf with a NaN or an infinity, and which of the two it has.

    Some begin with an infinity, and that is right: of the model state, such as a running minimum, only a NaN
    counts; and of the optimizer's, a number by itself does not, such as the best loss so far.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = f"state{jax.tree_util.keystr(path)}"
        if not jnp.issubdtype(leaf.dtype, jnp.inexact) or np.isfinite(np.asarray(leaf)).all():
            continue
        kind = "nan" if np.isnan(np.asarray(leaf)).any() else "inf"
        at_will = name.startswith("state.opt_state") and not leaf.shape
        if not at_will and (kind == "nan" or not name.startswith("state.model_state")):
            return name, kind
    return None


def _refused(state: State) -> ValueRangeError:
    """The error of a state that is not finite when it is given."""
    path, kind = _spoilt(state) or ("", "")
    return ValueRangeError(
        f"train.fit: {path} is not finite already.", path=path, expected="finite numbers", actual=kind
    )


def _non_finite(number: int, path: str, value: float | str, batch: PyTree, good: State) -> NonFiniteError:
    """The error of step `number`."""
    where = f"the loss of step {number}" if path == "loss" else f"{path} after step {number}"
    return NonFiniteError(
        f"train.fit: {where} is {value}.",
        path=path,
        step=number,
        batch=batch,
        state=good,
        expected="a finite loss" if path == "loss" else "finite numbers",
        actual=str(value),
        hint=f"error.state is the state after step {good.step}, error.batch the batch of step {number}; "
        "`with jax.debug_nans(True):` names the operation",
    )
