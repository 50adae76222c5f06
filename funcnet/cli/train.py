"""`funcnet train TASK`: verify, train, score; everything goes into a run folder."""

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import tyro

from funcnet import tasks
from funcnet._signals import Stop, signals
from funcnet.cli import UsageError, _cache, _mesh, choice
from funcnet.cli._options import parse
from funcnet.cli._text import heading

if TYPE_CHECKING:
    from funcnet.cli import _report
    from funcnet.tasks._task import Task
    from funcnet.tasks._training import Training
    from funcnet.train import Checkpoints, State
    from funcnet.train.agreement import Peers
    from funcnet.train.history import History
    from funcnet.verifier import Report

__all__ = ["run"]

# Holds the place of the parameters in the folder of a run, which its own log may otherwise fill up.
_RESERVE = ".funcnet-reserve.tmp"

_SCORES = ("eval_accuracy", "eval_loss")  # of every task; what else one has is a share
_TRY = "Try a --learning-rate ten times smaller, or larger"
_HARDLY = 1.5  # times the accuracy of always the commonest class
_SOME, _STILL = 2, 0.98  # steps in a tenth of a run, to judge it by; the share of a loss that is left of it
_SECONDS_BETWEEN_PAGES = 30.0  # at most, while there is no evaluation
_ONE = _mesh.Devices()
_NO = ("", "0", "false")  # of a variable that is a switch

Verify = Literal["always", "remembered", "off"]

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
    mesh: Any = None
    first: bool = True  # of several processes, the one that writes


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
        verify: Verify | None = None,
        devices: Annotated[_mesh.Devices, tyro.conf.arg(name="")] = _ONE,
    ) -> tuple[Any, ...]:
        """Options.

        Args:
            options: of the task.
            training: of every task.
            out: the run folder, new or empty; by default runs/TASK-TIME.
            resume: go on with the run in --out DIR, exactly as if it had not been interrupted. The other
                options are those that it was begun with.
            verify: gradient formulas before the first step: always; those that are not remembered, as this
                software has found them right on this machine; or off. By default remembered; where CI is set,
                always.
            devices: on which.
        """
        return options, training, out, resume, verify, devices

    chosen = parse(options, args[1:], f"funcnet train {name}", f"Train {name}: {tasks.TASKS[name]}.")
    with _mesh.joined(chosen[-1]):
        return train(name, *chosen)


def train(
    name: str,
    options: Any,
    training: "Training",
    out: Path | None,
    resume: bool = False,
    verify: Verify | None = None,
    devices: _mesh.Devices = _ONE,
) -> int:
    """Train a task and write its run folder.

    Args:
        name: of the task.
        options: its `Options`.
        training: how.
        out: the folder; None: runs/TASK-TIME.
        resume: go on with what is in it.
        verify: formulas; None: those that are not remembered, all where CI is set.
        devices: on which; of several processes each calls this, and the first one writes.

    Returns:
        0, or 1: a formula is wrong; 3: a number was not finite; 128 + the number of the signal that ended it.

    Once the training has begun, its parameters are saved before anything else is said or raised.
    """
    from funcnet import store
    from funcnet.train.agreement import gathered

    if resume and out is None:
        raise UsageError(f"--resume goes on in a run folder: --out DIR (funcnet train {name} --help)")
    with signals() as stop, contextlib.ExitStack() as untrained:
        with gathered("funcnet train") as peers:
            made = _prepared(name, options, training, out, resume, verify, devices, peers, untrained)
        if isinstance(made, int):
            return made
        run, state, history, params = made
        with stop.held():
            if run.first:
                store.save(run.folder / _RESERVE, params)
            untrained.pop_all()
            return run_and_save(run, state, history, stop)


def _prepared(
    name: str,
    options: Any,
    training: "Training",
    out: Path | None,
    resume: bool,
    verify: Verify | None,
    devices: _mesh.Devices,
    peers: "Peers",
    untrained: contextlib.ExitStack,
) -> Any:
    """A run up to its first step, its state and history, and its first parameters; or an exit code."""
    import jax

    import funcnet
    from funcnet import backend
    from funcnet.cli import _report
    from funcnet.cli.summary import table_of
    from funcnet.tasks import _run
    from funcnet.tasks._training import LOSS_SCALE
    from funcnet.train import Checkpoints, History, init

    layout = _mesh.mesh_of(devices.mesh)
    rules = _mesh.rules_of(devices.shard, layout)
    first = peers.index == 0
    goes_on = peers.of_first(first and resume and out is not None and _run.begun(out))
    before = out if goes_on else None
    if training.tensorboard:
        _tensorboard()
    module = getattr(tasks, name)
    task = module.prepare(options, training)
    if peers.count > 1 and task.steps is None:
        raise UsageError(
            f"--distributed: the learning rate follows a clock, of which each process has its own: --steps "
            f"(funcnet train {name} --help)"
        )
    facts = {"funcnet": funcnet.__version__, **backend.facts()}
    if peers.count > 1:
        facts["processes"] = f"{peers.count}, with {jax.device_count()} devices"
    parts = {
        "options": dataclasses.asdict(options),
        "training": dataclasses.asdict(training),
        "seed": options.seed,
        "data": task.data,
        "versions": facts,
    }
    described = _run.described(name, task.config, **parts)
    config = _run.identity(described)
    same = {"--out": out, "--resume": resume, "--mesh": devices.mesh, "--shard": devices.shard}
    peers.same("command", {name: str(value) for name, value in {**same, **config}.items()})
    folder, notes = before, list[str]()
    if before is not None:
        notes = _run.same(before, described)
    elif first:
        folder, notes = _run.create(out, name, task.config, **parts), [f"{out} is empty: the run begins"]
        untrained.callback((folder / "config.json").unlink, missing_ok=True)  # so it can be used again
    folder = Path(peers.of_first(str(folder)))
    heading(f"{name}: {tasks.TASKS[name]}")
    print("\n".join(f"{fact:<10}{value}" for fact, value in facts.items() if value))
    print("".join(f"note: {note}\n" for note in task.notes), end="")
    key_init, key_check, key_train = _run.keys(options.seed)
    scale = LOSS_SCALE if training.dtype == "float16" else None
    params = module.NET.init(key_init, task.config)
    with _set(layout):
        laid = params if layout is None else _laid(module, task.config, params, rules)
        state = init(laid, task.optimizer, key=key_train, average=training.average, loss_scale=scale)
    batches = task.batches()
    every = training.checkpoint_every or task.every
    best = ("eval_accuracy", "max")
    checkpoints = Checkpoints(folder / "checkpoints", every=every, best=best, config=config)
    history = History()
    if resume and notes:
        print("\n".join(["", *notes]))
    if before is not None:
        state, history = checkpoints.restore(state, batches)
        if first:
            _say_where(folder, state)
        done = _is_over(task, state, batches) and (folder / "params.safetensors").exists()
        if peers.of_first(done):
            print(f"this run is done; {folder} holds its parameters, after step {state.step}")
            _score(task, history)
            return 0
    report = check(module, task, params, key_check, verify)
    if not report.ok and not report.is_unseen:
        return 1
    kind = jax.local_devices()[0].device_kind
    run = Prepared(
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
        layout,
        first,
    )
    return run, state, history, params


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


def check(module: ModuleType, task: "Task", params: Any, key: Any, verify: Verify | None = None) -> "Report":
    """Show the layers of a model, and whether its gradient formulas are right."""
    from funcnet import verifier
    from funcnet.cli.summary import show

    heading("\nmodel")
    show(module, task.config)
    if verify == "off":
        heading("\ngradient formulas in this model: not verified (--verify off)")
        return verifier.Report(())
    heading("\ngradient formulas in this model, against jax.vjp of their definitions, in float64")
    began = time.perf_counter()
    verify = verify or ("remembered" if os.environ.get("CI", "").lower() in _NO else "always")
    memory = _cache.memory(read=verify == "remembered")
    report = verifier.verify_model(task.step.loss, params, next(task.batches()), key=key, memory=memory)
    print(report.table())
    print(f"verified in {time.perf_counter() - began:.1f} s")
    if any(row.note.startswith("since") for row in report.rows):
        print("what is right since a day was not verified again: --verify always does")
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
    import jax

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
    together = failure is None or isinstance(failure, NonFiniteError)
    if left is not None and run.mesh is not None:  # by collectives: not where a process may be alone
        left = _here(left) if together or jax.process_count() == 1 else None
    if left is not None and run.first:
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
        if run.first:
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
    if nothing := _learned_nothing(history) or _knows_one_class(history, task):
        say(nothing)
    return 0


def _fit(run: Prepared, state: "State", history: "History") -> tuple["State", "History"]:
    """Train, with everything written down that is."""
    import jax

    from funcnet import shard
    from funcnet.train import fit

    with contextlib.suppress(OSError):  # a full disk does not end a run
        if run.first:
            _write_page(run, history, None)
    with contextlib.ExitStack() as stack:
        logs: list[Any] = [run.folder, _page_log(run, history)]
        if run.tensorboard and run.first:
            writer = _tensorboard()(str(run.folder / "tensorboard"), purge_step=int(state.step) + 1)
            stack.callback(writer.close)
            logs.append(_tensorboard_log(writer))
        stack.enter_context(_set(run.mesh))
        return fit(
            run.task.step,
            state,
            run.batches if run.mesh is None else shard.place(run.batches),
            until=run.task.steps,
            log=logs,
            evaluate=run.task.evaluate if jax.process_count() == 1 else _apart(run.task),
            every=run.task.every,
            rates=run.rates,
            checkpoints=run.checkpoints,
        )


def _set(mesh: Any) -> contextlib.AbstractContextManager[Any]:
    """Within, the mesh is set, if there is one."""
    import jax

    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def _here(state: "State") -> "State":
    """A state that lies on a mesh, on one device of this process; all processes call it."""
    import jax

    from funcnet.train.agreement import everywhere

    return jax.device_put(jax.device_get(everywhere(state)), jax.local_devices()[0])


def _apart(task: "Task") -> Callable[["State"], dict[str, float]]:
    """The evaluation of a task for several processes: each does all of it, on one device of its own."""
    import jax

    own = jax.make_mesh((1,), ("data",), devices=jax.local_devices()[:1])

    def evaluate(state: "State") -> dict[str, float]:
        here = _here(state)
        with jax.set_mesh(own):
            return task.evaluate(here)

    return evaluate


def _laid(module: ModuleType, config: Any, params: Any, rules: Any) -> Any:
    """The parameters where the rules say; what lies where is printed."""
    import jax

    from funcnet import shard

    specs = module.NET.specs(config)
    heading("\nparameters on the mesh")
    print(shard.table(specs, rules))
    return jax.device_put(params, shard.of(specs, rules))


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


def _learned_nothing(history: "History") -> str:
    """What to say of a run whose loss is where it was; nothing of one that learned, or is too short."""
    _, losses = history.column("loss")
    tenth = len(losses) // 10
    if tenth < _SOME or not losses[-tenth:].mean() >= _STILL * losses[:tenth].mean():
        return ""
    fell = f"{losses[:tenth].mean():.3g} in its first steps, {losses[-tenth:].mean():.3g} in its last"
    return f"it learned nothing: the loss was {fell}. {_TRY}"


def _knows_one_class(history: "History", task: "Task") -> str:
    """What to say of a run whose accuracy is hardly that of always the commonest class, of three or more."""
    import numpy as np

    last = history.column("eval_accuracy")[1][-1:]  # of a recipe that has one
    if len(history.column("loss")[1]) // 10 < _SOME or not last.size or not last[0] <= _HARDLY / 3:
        return ""
    labels = task.examples(1)[1].labels
    if not np.issubdtype(labels.dtype, np.integer):
        return ""
    commonest = np.bincount(labels[labels >= 0]).max() / labels.size
    if commonest > 1 / 3 or not last[0] <= _HARDLY * commonest:
        return ""
    return f"it learned next to nothing: always the commonest class would have {commonest:.2%}. {_TRY}"


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
