"""`funcnet train TASK`: verify, train, score; everything goes into a run folder."""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import tyro

from funcnet import tasks
from funcnet._signals import Stop, signals
from funcnet.cli import UsageError, choice
from funcnet.cli._options import parse
from funcnet.cli._text import heading

if TYPE_CHECKING:
    from funcnet.cli import _report
    from funcnet.tasks._task import Task
    from funcnet.tasks._training import Training
    from funcnet.train import Checkpoints, State
    from funcnet.train.history import History
    from funcnet.verifier import Report

__all__ = ["run"]

# Holds the place of the parameters in the folder of a run, which its own log may otherwise fill up.
_RESERVE = ".funcnet-reserve.tmp"

_SCORES = ("eval_accuracy", "eval_loss")  # of every task; what else one has is a share
_SECONDS_BETWEEN_PAGES = 30.0  # at most, while there is no evaluation

USAGE = """\
usage: funcnet train TASK [options]

Train a model on real data. Before the first step every gradient formula in the model is verified.

{}

`funcnet train TASK --help` shows the options of a task.
"""


class Prepared(NamedTuple):
    """A run that can begin, or go on: what it needs beside its state."""

    name: str
    task: "Task"
    folder: Path
    batches: Any
    checkpoints: "Checkpoints"
    page: "_report.Run"
    rates: dict[str, int | float]
    tensorboard: bool


def run(args: list[str]) -> int:
    """The command."""
    name = args[0] if args else ""
    if name in ("-h", "--help"):
        print(USAGE.format("\n".join(f"  {name:<9}{text}" for name, text in tasks.TASKS.items())), end="")
        return 0
    choice("task", name, tasks.TASKS, "funcnet train --help")
    module = getattr(tasks, name)

    def options(
        options: Annotated[module.Options, tyro.conf.arg(name="")],  # pyright: ignore[reportInvalidTypeForm]
        training: Annotated[module.Training, tyro.conf.arg(name="")],  # pyright: ignore[reportInvalidTypeForm]
        out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None,
        resume: bool = False,
    ) -> tuple[Any, Any, Path | None, bool]:
        """Options.

        Args:
            options: of the task.
            training: of every task.
            out: the run folder, new or empty; by default runs/TASK-TIME.
            resume: go on with the run in --out DIR, exactly as if it had not been interrupted. The other
                options are those that it was begun with.
        """
        return options, training, out, resume

    chosen = parse(options, args[1:], f"funcnet train {name}", f"Train {name}: {tasks.TASKS[name]}.")
    return train(name, *chosen)


def train(name: str, options: Any, training: "Training", out: Path | None, resume: bool = False) -> int:
    """Train a task and write its run folder.

    Args:
        name: of the task.
        options: its `Options`.
        training: how.
        out: the folder; None: runs/TASK-TIME.
        resume: go on with what is in it.

    Returns:
        0, or 1: a formula is wrong; 3: a number was not finite; 128 + the number of the signal that ended it.

    Once the training has begun, its parameters are saved before anything else is said or raised.
    """
    import jax

    import funcnet
    from funcnet import backend, store
    from funcnet.cli import _report
    from funcnet.cli.summary import table_of
    from funcnet.tasks import _run
    from funcnet.tasks._training import LOSS_SCALE
    from funcnet.train import Checkpoints, History, init

    if resume and out is None:
        raise UsageError(f"--resume goes on in a run folder: --out DIR (funcnet train {name} --help)")
    before = out if resume and out is not None and _run.begun(out) else None
    if training.tensorboard:
        _tensorboard()
    module = getattr(tasks, name)
    task = module.prepare(options, training)
    facts = {"funcnet": funcnet.__version__, **backend.facts()}
    parts = {
        "options": dataclasses.asdict(options),
        "training": dataclasses.asdict(training),
        "seed": options.seed,
        "data": task.data,
        "versions": facts,
    }
    described = _run.described(name, task.config, **parts)
    with signals() as stop, contextlib.ExitStack() as untrained:
        if before is not None:
            folder, notes = before, _run.same(before, described)
        else:
            folder, notes = _run.create(out, name, task.config, **parts), [f"{out} is empty: the run begins"]
            untrained.callback((folder / "config.json").unlink, missing_ok=True)  # so it can be used again
        heading(f"{name}: {tasks.TASKS[name]}")
        print("\n".join(f"{fact:<10}{value}" for fact, value in facts.items() if value))
        print("".join(f"note: {note}\n" for note in task.notes), end="")
        key_init, key_check, key_train = _run.keys(options.seed)
        scale = LOSS_SCALE if training.dtype == "float16" else None
        params = module.NET.init(key_init, task.config)
        state = init(params, task.optimizer, key=key_train, average=training.average, loss_scale=scale)
        batches = task.batches()
        every = training.checkpoint_every or task.every
        best = ("eval_accuracy", "max")
        config = _run.identity(described)
        checkpoints = Checkpoints(folder / "checkpoints", every=every, best=best, config=config)
        history = History()
        if resume and notes:
            print("\n".join(["", *notes]))
        if before is not None:
            state, history = checkpoints.restore(state, batches)
            _say_where(folder, state)
            if _is_over(task, state, batches) and (folder / "params.safetensors").exists():
                print(f"this run is done; {folder} holds its parameters, after step {state.step}")
                _score(task, history)
                return 0
        report = check(module, task, params, key_check)
        if not report.ok and not report.is_unseen:
            return 1
        kind = jax.local_devices()[0].device_kind
        prepared = Prepared(
            name,
            task,
            folder,
            batches,
            checkpoints,
            _report.Run(
                (name, tasks.TASKS[name]),
                task.held_out,
                task.unit,
                task.steps,
                table_of(module, task.config),
                report,
                {part: described[part] for part in ("options", "training", "model", "data", "versions")},
            ),
            rates(task, params, kind, training.dtype),
            training.tensorboard,
        )
        with stop.held():
            store.save(folder / _RESERVE, params)
            untrained.pop_all()
            return run_and_save(prepared, state, history, stop)


def _say_where(folder: Path, state: "State") -> None:
    """Where a run goes on; what was recorded of steps that no checkpoint holds is removed."""
    if int(state.step) == 0:
        (folder / "metrics.jsonl").unlink(missing_ok=True)
        print(f"{folder} holds no checkpoint yet: the run begins anew")
    else:
        print(f"going on after step {state.step}, from {folder / 'checkpoints'}")


def _is_over(task: "Task", state: "State", batches: Any) -> bool:
    """Whether a run has taken all its steps, or used up its time."""
    return (task.steps is not None and int(state.step) >= task.steps) or getattr(batches, "done", 0) >= 1


def check(module: ModuleType, task: "Task", params: Any, key: Any) -> "Report":
    """Show the layers of a model, and whether its gradient formulas are right."""
    from funcnet import verifier
    from funcnet.cli.summary import show

    heading("\nmodel")
    show(module, task.config)
    heading("\ngradient formulas in this model, against jax.vjp of their definitions, in float64")
    began = time.perf_counter()
    report = verifier.verify_model(task.step.loss, params, next(task.batches()), key=key)
    print(report.table())
    print(f"verified in {time.perf_counter() - began:.1f} s")
    if report.is_unseen:
        heading("trained all the same: what was not verified may be right", "bold yellow")
    elif not report.ok:
        heading("not trained: a gradient formula is wrong", "bold red")
    return report


def run_and_save(run: Prepared, state: "State", history: "History", stop: Stop) -> int:
    """Train, save, draw and score, with signals held; what goes wrong waits until the parameters are saved.

    Returns:
        The exit code of `train`.
    """
    from funcnet import store
    from funcnet.tasks import _plots
    from funcnet.tasks._training import weights
    from funcnet.train import NonFiniteError

    task, folder = run.task, run.folder
    left: State | None = state
    failure: BaseException | None = None
    try:
        heading(f"\ntraining, into {folder}")
        if not _is_over(task, state, run.batches):
            left, history = _fit(run, state, history)
    except BaseException as error:
        failure = error
        left, history = getattr(error, "state", None), getattr(error, "history", history)
    if left is not None:
        saved = f"the parameters after step {left.step}"
        try:
            folder.mkdir(parents=True, exist_ok=True)  # someone may have tidied up
            (folder / _RESERVE).unlink(missing_ok=True)
            store.save(folder / "params.safetensors", weights(left))
        except OSError as error:
            print(f"funcnet train: {saved} could not be saved: {error}", file=sys.stderr)
            return 1
        saved = f"{folder} holds {saved}"
    else:  # a step was broken off, which had taken the memory of the state
        saved = f"{folder} holds the last checkpoint"
    ended = _why(history, failure, stop)
    try:
        _plots.curves(
            folder / "curves.png", history, title=f"funcnet train {run.name}", held_out=task.held_out
        )
        saved += ", and the curves so far"
        if failure is None and left is not None and not stop.number and task.finish is not None:
            task.finish(weights(left), folder)
        _write_page(run, history, ended)
    except Exception as error:
        failure = failure or error
    if stop.number:
        say(saved)
        return 128 + stop.number
    if isinstance(failure, NonFiniteError):
        say(f"stopped: {_problem(failure)}\n{saved}")
        return 3
    if failure is not None:
        print(f"funcnet train: {saved}", file=sys.stderr)
        raise failure
    _score(task, history)
    print(f"trained in {history[-1]['seconds']:.0f} s; everything is in {folder}")
    return 0


def _fit(run: Prepared, state: "State", history: "History") -> tuple["State", "History"]:
    """Train, with everything written down that is."""
    from funcnet.train import fit

    with contextlib.suppress(OSError):  # a full disk does not end a run
        _write_page(run, history, None)
    with contextlib.ExitStack() as stack:
        logs: list[Any] = [run.folder, _page_log(run, history)]
        if run.tensorboard:
            writer = _tensorboard()(str(run.folder / "tensorboard"), purge_step=int(state.step) + 1)
            stack.callback(writer.close)
            logs.append(_tensorboard_log(writer))
        return fit(
            run.task.step,
            state,
            run.batches,
            until=run.task.steps,
            log=logs,
            evaluate=run.task.evaluate,
            every=run.task.every,
            rates=run.rates,
            checkpoints=run.checkpoints,
        )


def _problem(error: BaseException) -> str:
    return str(error).partition("\n")[0].removeprefix("train.fit: ").rstrip(".")


def _why(history: "History", failure: BaseException | None, stop: Stop) -> str:
    """Why a run ended, in a few words."""
    import signal

    if stop.number:
        return f"{signal.Signals(stop.number).name} after step {history[-1]['step'] if len(history) else 0:,}"
    if failure is not None:
        return _problem(failure) or type(failure).__name__
    return history.ended or "steps"


def _score(task: "Task", history: "History") -> None:
    """Say how good a run has become."""
    accuracy, loss = (history.column(f"eval_{name}")[1][-1] for name in ("accuracy", "loss"))
    others = [name for name in history.names() if name.startswith("eval_") and name not in _SCORES]
    more = "".join(f", {name[5:].replace('_', ' ')} {history.column(name)[1][-1]:.2%}" for name in others)
    heading(f"{task.held_out} accuracy {accuracy:.2%}, loss {loss:.4f} nats per {task.unit}{more}")


def _news() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A function that gives of a record what is new: the one of the last step may come again, with more."""
    last: dict[str, Any] = {}

    def new(record: dict[str, Any]) -> dict[str, Any]:
        nonlocal last
        before, last = last, record
        if before.get("step") != record["step"]:
            return record
        return {name: value for name, value in record.items() if name not in before}

    return new


def _page_log(run: Prepared, before: "History") -> Callable[[dict[str, Any]], None]:
    """A log that writes report.html: after each evaluation, and where there is none, now and then."""
    from funcnet.train import History
    from funcnet.train.log import evaluated

    history, news, written = History(before), _news(), time.monotonic()

    def report(record: dict[str, Any]) -> None:
        nonlocal written
        new = news(record)
        if new is record:
            history.append(record)
        else:
            history.amend(new)
        if evaluated(new) or time.monotonic() - written > _SECONDS_BETWEEN_PAGES:
            _write_page(run, history, None)
            written = time.monotonic()

    return report


def _write_page(run: Prepared, history: "History", ended: str | None) -> None:
    from funcnet.cli import _report

    _report.write(run.folder, run.page, history, ended)


def _tensorboard() -> Any:
    """What writes TensorBoard's files.

    Raises:
        MissingExtraError: it is not installed.
    """
    from funcnet.errors import MissingExtraError

    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise MissingExtraError(
            "tensorboardX is not installed.", path="tensorboard", hint="pip install 'funcnet[train]'"
        ) from error
    return SummaryWriter


def _tensorboard_log(writer: Any) -> Callable[[dict[str, Any]], None]:
    news = _news()

    def tensorboard(record: dict[str, Any]) -> None:
        for name, value in news(record).items():
            if name != "step" and isinstance(value, int | float):
                writer.add_scalar(name.replace("eval_", "eval/").replace(".", "/"), value, record["step"])

    return tensorboard


def say(text: str) -> None:
    """Print a text, on standard error if standard output is gone: `| tee` ends with Ctrl-C, too."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            print(text, file=stream, flush=True)
            return


def rates(task: "Task", params: Any, device_kind: str, dtype: str = "float32") -> dict[str, int | float]:
    """What a step amounts to, for `train.fit`: in tokens, and in seconds of a device at its peak.

    The second, times the steps per second, is the share of the peak: the FLOPs of the loss by formula
    (`analysis.layers`), times 3, since the backward pass has two products for one of the forward pass.

    Args:
        task: what is trained.
        params: of its model.
        device_kind: of the device that trains it; unless its peak is known, there is no share.
        dtype: what is computed in.
    """
    import jax

    from funcnet import backend
    from funcnet.analysis.layers import layers

    amounts: dict[str, int | float] = {} if task.tokens is None else {"tokens_per_second": task.tokens}
    peak = backend.peak_flops(device_kind, dtype)
    if peak is not None:
        key = jax.random.key(0)
        found = layers(lambda params, batch: task.step.loss(params, batch, key), params, next(task.batches()))
        amounts["share_of_peak"] = 3 * sum(layer.flops for layer in found) / peak
    return amounts
