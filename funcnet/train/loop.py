"""The loop: training over batches."""

import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from signal import Signals
from typing import Any, SupportsIndex

import jax
from jaxtyping import PyTree

from funcnet import signature
from funcnet._signals import signals
from funcnet.errors import DTypeError, StructureError, ValueRangeError, describe
from funcnet.mean import scalar
from funcnet.train import _check, _mesh, agreement
from funcnet.train._pieces import versions
from funcnet.train.agreement import gathered
from funcnet.train.checkpoints import Checkpoints
from funcnet.train.cursor import place
from funcnet.train.ends import Ends
from funcnet.train.faults import NonFiniteError, non_finite, refused, spoilt, thawed
from funcnet.train.history import History, Record
from funcnet.train.log import RESERVED, Log, evaluated, logs, metrics_path, terminal
from funcnet.train.metric import reading
from funcnet.train.records import Records
from funcnet.train.state import State, step_key
from funcnet.train.wrap import Looked


def fit(
    step: Callable[[State, PyTree], tuple[State, Mapping[str, Any]]],
    state: State,
    batches: Iterable[PyTree],
    *,
    steps: SupportsIndex | None = None,
    until: SupportsIndex | None = None,
    minutes: int | float | None = None,
    log: Log | Sequence[Log] | None = None,
    evaluate: Callable[[State], Mapping[str, Any]] | None = None,
    every: SupportsIndex | None = None,
    rates: Mapping[str, int | float] | None = None,
    checkpoints: Checkpoints | None = None,
    stop: Callable[[History], bool] | None = None,
    progress: bool = True,
    timeout: int | float = agreement.TIMEOUT,
) -> tuple[State, History]:
    """Train: one step per batch, with progress shown and metrics written down.

    Metrics are read later, at most 64 steps and half a second, so that the device does not wait for the host.
    Before the first step the loss (`step.loss`, which `make_step` sets) runs once without jit on the first
    batch, so that operations can check values that jit hides: labels and ids in range.

    Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 end the training after the step that is running, or at once in an
    evaluation, and it returns as usual, with a checkpoint, and `state.step` below what was asked for; a
    second signal is raised at once, as KeyboardInterrupt. (They are left alone outside the main thread, where
    the program handles them itself, and where it ignores them.)

    With a guarded step (see `make_step`) what is not finite changes nothing, and its record says "skipped";
    `max_skipped` of them in a row end the training.

    A log or a checkpoint that cannot be written does not end the training: one warning says so.

    In several processes (`jax.distributed`) each calls it with the same program, and with batches of global
    arrays (`shard.place`). Whatever one of them alone knows, a signal, its clock, the end of its data, an
    error of its batches, all hear a step later: they take the same steps. Process 0 writes the log, calls its
    functions, prints, and has the clock; `history` is on all, and all call `evaluate` and `stop`. A process
    that is lost or stuck, or leaves by an error, ends the others: by PeersError, or, where they are held
    within JAX, by the exit code 75 with its text on standard error.

    Args:
        step: from `make_step`, or any function like it; its metrics contain "loss".
        state: from `init`, from `Checkpoints.restore`, or where an earlier run ended. The first step deletes
            it.
        batches: any iterable of batches; see `train.batches`. NumPy arrays are copied: an iterable may fill
            the same ones again and again. A checkpoint holds its `position()`, if its iterator has one.
        steps: take this many steps; None: as many as there are batches.
        until: end when `state.step` is this, whatever it was at the start; not with `steps`.
        minutes: end after the step that runs when so much time is over, earlier parts of the run counted.
        log: a folder, made if need be, in which metrics.jsonl gets a line for each step; or a function that
            is called with each record; or several of them.
        evaluate: `evaluate(state)` gives a dict of numbers, arrays or Means, as `train.evaluate` makes it;
            they are recorded as ``eval_...``. The next step deletes the state, so it should not be kept.
        every: evaluate after every so many steps; in any case after the last one, unless a signal or
            `minutes` ended the training.
        rates: other units of speed, name to amount in one step, such as {"tokens_per_second": 2048}; the
            amount times the steps per second is recorded.
        checkpoints: a `Checkpoints`, where the run is kept so that it can go on.
        stop: `stop(history)` says whether to end: after each evaluation; without `evaluate` after each step,
            for which the host then waits.
        progress: whether to print anything.
        timeout: seconds that a process waits for the others: a step, the compilation of the first one and an
            evaluation must take less. One process waits for nobody.

    Returns:
        The state, and one record per step, as written to metrics.jsonl, those before a restored checkpoint
        among them: "step" (the first is 1), "loss" and the other metrics (of the parameters before the
        update), "steps_per_second" since the last evaluation, or the first step, the `rates`, "waiting", the
        share of that time in which there was no batch, "seconds" since the start, and the evaluation if there
        was one. A step that was skipped says "skipped": the number of them in a row. `history.ended` says why
        the training ended.

    Raises:
        NonFiniteError: a loss was infinite or not a number, or the state after the last step is; of a guarded
            step, `max_skipped` in a row were. It holds the step, the batch and the state.
        ShapeError: a batch is empty.
        DTypeError: an argument, a leaf of a batch, or a metric is not what it should be.
        StructureError: the step or `evaluate` returns anything else; several processes differ in the state,
            an option, the batch or the program of the step.
        ValueRangeError: there was no batch, `state` has a NaN or an infinity or was given to a step before,
            which deleted it, it or the batch lies elsewhere than on the mesh, two things are recorded under
            one name, or `steps`, `until`, `minutes`, `every` or the name of a rate makes no sense.
        OSError: the last checkpoint cannot be written.
        PeersError: of several processes one is lost, does not come within `timeout`, or has ended the run by
            an error of its own. It names them.

    Whatever is raised once it has begun, by batches, by `evaluate`, by a closed standard output,
    KeyboardInterrupt and SystemExit too, carries in its attributes `state` and `history` what the training
    had come to (no `state` where a step was broken off, which had taken its memory).

    >>> import jax.numpy as jnp
    >>> import optax
    >>> from funcnet.train import batches, init, make_step
    >>> loss = lambda params, batch, key: jnp.mean((batch - params) ** 2)
    >>> state = init(jnp.zeros(()), optax.sgd(0.5), key=jax.random.key(0))
    >>> data = batches(jnp.ones((8, 1)), 4, seed=0)
    >>> state, history = fit(make_step(loss, optax.sgd(0.5)), state, data, steps=3, progress=False)
    >>> [record["loss"] for record in history], float(state.params), history.ended
    ([1.0, 0.0, 0.0], 1.0, 'steps')
    """
    sinks = _sinks(log)
    _check_arguments(step, state, batches, sinks, evaluate, stop)
    first = done = int(state.step)
    count = _count(steps, until, first)
    every = None if every is None else _check.whole("train.fit", "every", every, 1)
    rates, limit = _rates(rates), _seconds(minutes)
    state, mesh = thawed(step, state), _mesh.home(state)
    _mesh.check("train.fit", "state", state, mesh)
    state = _mesh.placed(state, state)
    with gathered("train.fit", agreement.seconds("train.fit", timeout)) as peers:
        alone, sinks = peers.count == 1, sinks if peers.index == 0 else ()
        if not alone:
            peers.same("state", _types("state", state))
            peers.same("option", _options(first, count, every, limit, evaluate, checkpoints, stop))
        if found := spoilt(state, peers):
            raise refused(*found)
        resumed = None if checkpoints is None else checkpoints.begin(state, peers)
        history = History() if resumed is None else resumed.history
        earlier, size = (0.0, None) if resumed is None else (resumed.seconds, resumed.log_bytes)
        iterator = iter(batches) if alone else Looked(iter(batches))
        metrics_at = next((metrics_path(sink) for sink in sinks if not callable(sink)), None)
        records: Records | None = None
        whole = True  # no step is under way: the state and the position in the data are of one moment

        def kept() -> dict[str, Any]:
            """What a checkpoint holds beside the state."""
            assert records is not None
            return {
                "position": place(iterator),
                "log": _size_of(metrics_at),
                "seconds": records.seconds(),
                "record": history[-1] if len(history) else {},
            }

        try:
            with (
                logs(sinks, size) as write,
                terminal(count, progress and peers.index == 0) as (show, say),
                signals() as signal,
                signal.held(),
            ):
                records = Records(step, history, write, show, rates, first, earlier, peers)
                ends = Ends(peers, signal, records, limit, checkpoints)

                def measured() -> Record:
                    """The evaluation, as it is recorded; nothing, if a signal ends it."""
                    assert evaluate is not None
                    with peers.doing("evaluating"):
                        values = ends.attempt(evaluate, state, otherwise={})
                    return {f"eval_{name}": v for name, v in reading("train.fit", "evaluate", values).items()}

                ended, batch = None, None
                owed = evaluate is not None and _owed(history, first, every, count)
                if owed:
                    records.amend(measured())
                    records.restart(first)
                    ended = "stop" if ends.asked(stop, history) else None
                for batch in () if ended else ends.batches(iterator, count, done):
                    whole = False
                    batch = _check.own("train.fit", batch, done + 1)
                    if done == first:
                        _mesh.check("train.fit", "batch", batch, mesh)
                        if not alone:
                            peers.same("batch", _types("batch", batch))
                            peers.same("step", _program(step, state, batch))
                        ends.attempt(_check_values, step, state, batch)
                        if ends.signal:
                            break
                    state, metrics = _pair(step(state, batch))
                    metrics = peers.whole(metrics)
                    done, whole = done + 1, True
                    records.add(done, batch, metrics, getattr(iterator, "skipped", 0))
                    if done == first + 1:
                        peers.wait(metrics)
                        say(f"first step after {records.restart(done):.1f} s: values checked, step compiled")
                        if mesh is not None and mesh.size > 1 and not _mesh.is_split((state.params, batch)):
                            say(f"nothing is split: each of {mesh.size} devices does all (fn.shard.place)")
                    at = evaluate is not None and every is not None and done % every == 0
                    if at:
                        records.read(evaluation=measured)
                        records.restart(done)
                    elif stop is not None and evaluate is None:
                        records.read()
                    if (at or evaluate is None) and ends.asked(stop, history):
                        ended = "stop"
                    if checkpoints is not None and ends.due(done, history[-1] if at else None):
                        records.read()
                        checkpoints.save(state, **kept())
                    if checkpoints is not None:
                        records.note(checkpoints.error())
                    if ended or (alone and signal.number):
                        break
                # A NaN in the last gradient: no loss came of it that would show it.
                found = spoilt(state, peers)
                over = ends.last().over
                if ended is None:
                    over = over and done - first != count
                    ended = "minutes" if over else "steps" if done - first == count else "data"
                last = evaluate is not None and not found and not ends.signal and ended != "minutes"
                records.read(evaluation=measured if last and records.waiting else None)
                if found:
                    raise non_finite(done, *found, batch)
                if last and done > first and not evaluated(history[-1]):
                    records.amend(measured())
                if ends.signal:
                    ended = Signals(ends.signal).name
                    signal.number = ends.signal  # for the program, if another process has got it
                    say(f"interrupted: the state after step {done} is returned")
                elif done == first and ended == "data":
                    raise ValueRangeError(
                        "train.fit: there was no batch.",
                        path="batches",
                        expected="one batch or more",
                        actual="none",
                        hint="an iterator can be used once: make it anew"
                        if iter(batches) is batches
                        else None,
                    )
                if checkpoints is not None and whole and (done > first or owed):
                    whole = False  # if this fails it is not tried again
                    checkpoints.finish(state, **kept())
                history.ended = ended
        except BaseException as raised:
            if isinstance(raised, NonFiniteError):
                raised.loss = getattr(step, "loss", None)
                peers.parted = True  # all read the same numbers
            error = peers.explained(raised)
            if records is not None and not isinstance(error, NonFiniteError):
                with suppress(Exception):
                    records.read()
            _carry(error, state, history)
            together = alone or peers.parted
            if checkpoints is not None and records is not None and whole and done > first and together:
                _save_at_last(error, checkpoints, state, kept)
            if error is not raised:
                raise error from raised
            raise
        finally:
            if isinstance(iterator, Looked):
                iterator.close()
    return state, history


def _options(
    first: int,
    count: int | None,
    every: int | None,
    limit: float | None,
    evaluate: Any,
    checkpoints: Any,
    stop: Any,
) -> dict[str, str]:
    """What several processes must have been told alike."""
    settings = {} if checkpoints is None else checkpoints.settings()
    return {
        "the step to begin at": str(first),
        "steps": str(count),
        "every": str(every),
        "seconds": str(limit),
        "evaluate": "no" if evaluate is None else "yes",
        "stop": "no" if stop is None else "yes",
        "checkpoints": "no" if checkpoints is None else "yes",
        **{f"checkpoints.{name}": repr(value) for name, value in settings.items()},
        **versions(),
    }


def _types(path: str, tree: PyTree) -> dict[str, str]:
    """What each leaf is, and how it is split."""
    split = lambda leaf: getattr(getattr(leaf, "sharding", None), "spec", "")
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {f"{path}{jax.tree_util.keystr(at)}": f"{describe(leaf)} {split(leaf)}" for at, leaf in leaves}


_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def _program(step: Any, state: State, batch: PyTree) -> dict[str, str]:
    """The program of a step as a hash of its words, in an order that no process chooses."""
    if not hasattr(step, "trace"):
        return {}
    words = sorted(_ADDRESS.sub("", str(step.trace(state, batch).jaxpr)).split())
    return {"program": hashlib.sha256(" ".join(words).encode()).hexdigest()[:16]}


def _owed(history: History, first: int, every: int | None, count: int | None) -> bool:
    """Whether the last step before this part should have been followed by an evaluation, and was not."""
    due = count == 0 or (every is not None and first % every == 0)
    return due and len(history) > 0 and history[-1]["step"] == first and not evaluated(history[-1])


def _carry(error: BaseException, state: State, history: History) -> None:
    """Give an error what the training had come to."""
    vars(error)["history"] = history
    leaves = (leaf for leaf in jax.tree.leaves(state) if isinstance(leaf, jax.Array))
    if any(leaf.is_deleted() for leaf in leaves):
        return
    with suppress(jax.errors.JaxRuntimeError):  # of a step that broke off
        error.add_note(f"train.fit: the state after step {int(state.step)} is this error's attribute `state`")
        vars(error)["state"] = state


def _save_at_last(
    error: BaseException, checkpoints: Checkpoints, state: State, kept: Callable[[], dict[str, Any]]
) -> None:
    """Keep a run that an error ends; not where a number was not finite, or one was told to end at once."""
    if not isinstance(error, Exception):
        return
    if isinstance(error, NonFiniteError):
        checkpoints.wait()
        return
    try:
        checkpoints.finish(state, **kept())
    except Exception as second:
        error.add_note(f"train.fit: nor could a last checkpoint be written: {second}")


def _sinks(log: Any) -> Sequence[Log]:
    if log is None:
        return ()
    return log if isinstance(log, list | tuple) else [log]


def _count(steps: Any, until: Any, first: int) -> int | None:
    """How many steps to take."""
    if steps is not None and until is not None:
        raise ValueRangeError(
            "train.fit: both steps and until say when to end.",
            path="until",
            expected="one of them: steps counts those of this call, until those of the run",
            actual=f"steps={steps}, until={until}",
        )
    if steps is not None:
        return min(_check.whole("train.fit", "steps", steps, 0), sys.maxsize)
    return None if until is None else max(_check.whole("train.fit", "until", until, 0) - first, 0)


def _seconds(minutes: Any) -> float | None:
    if minutes is None:
        return None
    scalar("train.fit", "minutes", minutes)
    if not minutes >= 0:
        raise ValueRangeError(
            f"train.fit: minutes is {minutes}.", path="minutes", expected="0 or more", actual=str(minutes)
        )
    return 60.0 * float(minutes)


def _check_arguments(
    step: Any, state: Any, batches: Any, sinks: Sequence[Any], evaluate: Any, stop: Any
) -> None:
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
    for sink in sinks:
        if not isinstance(sink, str | os.PathLike) and not callable(sink):
            raise DTypeError(
                "train.fit: log is neither a folder nor a function.",
                path="log",
                expected="a path, a function of a record, a list of them, or None",
                actual=describe(sink),
            )
    if evaluate is not None:
        _check.function("train.fit", "evaluate", evaluate, "evaluate(state), or None")
    if stop is not None:
        _check.function("train.fit", "stop", stop, "stop(history), or None")


def _size_of(path: Path | None) -> tuple[str, int] | None:
    """A log and its bytes, if there is one: someone may have tidied up."""
    with suppress(FileNotFoundError):
        return None if path is None else (str(path), path.stat().st_size)
    return None


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


def _check_values(step: Any, state: State, batch: PyTree) -> None:
    """Run the loss once, not jitted: operations check values, such as labels, wherever they can see them."""
    loss = getattr(step, "loss", None)
    if loss is not None:
        signature.call("train.fit", loss, state.params, state.model_state, batch, step_key(state))
