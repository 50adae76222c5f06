"""`funcnet train TASK`: verify, train, score; everything goes into a run folder."""

import contextlib
import dataclasses
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from funcnet import tasks
from funcnet._signals import Stop, signals
from funcnet.cli import choice
from funcnet.cli._options import parse
from funcnet.cli._text import heading

if TYPE_CHECKING:
    from funcnet.tasks._task import Task
    from funcnet.train import State

__all__ = ["run"]

# Holds the place of the parameters in the folder of a run, which its own log may otherwise fill up.
_RESERVE = ".funcnet-reserve.tmp"

USAGE = """\
usage: funcnet train TASK [options]

Train a model on real data. Before the first step every gradient formula in the model is verified.

{}

`funcnet train TASK --help` shows the options of a task.
"""


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
        out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None,
    ) -> tuple[Any, Path | None]:
        """Options.

        Args:
            options: of the task.
            out: the run folder, new or empty; by default runs/TASK-TIME.
        """
        return options, out

    chosen, out = parse(options, args[1:], f"funcnet train {name}", f"Train {name}: {tasks.TASKS[name]}.")
    return train(name, chosen, out)


def train(name: str, options: Any, out: Path | None) -> int:
    """Train a task and write its run folder.

    Args:
        name: of the task.
        options: its `Options`.
        out: the folder; None: runs/TASK-TIME.

    Returns:
        0, or 1: a formula is wrong; 3: a number was not finite; 128 + the number of the signal that ended it.

    Once the training has begun, its parameters are saved before anything else is said or raised.
    """
    import jax

    import funcnet
    from funcnet import backend, store
    from funcnet.tasks import _run
    from funcnet.train import init

    module = getattr(tasks, name)
    task = module.prepare(options)
    facts = {"funcnet": funcnet.__version__, **backend.facts()}
    described = {"options": dataclasses.asdict(options), "seed": options.seed, "data": task.data}
    with signals() as stop, contextlib.ExitStack() as untrained:
        folder = _run.create(out, name, task.config, **described, versions=facts)
        untrained.callback((folder / "config.json").unlink, missing_ok=True)  # so it can be used again
        heading(f"{name}: {tasks.TASKS[name]}")
        print("\n".join(f"{fact:<10}{value}" for fact, value in facts.items() if value))
        key_init, key_check, key_train = jax.random.split(jax.random.key(options.seed), 3)
        params = module.NET.init(key_init, task.config)
        if not check(module, task, params, key_check):
            return 1
        amounts = rates(task, params, jax.local_devices()[0].device_kind)
        state = init(params, task.optimizer, key=key_train)
        with stop.held():
            store.save(folder / _RESERVE, params)
            untrained.pop_all()
            return run_and_save(name, task, state, folder, amounts, stop)


def check(module: ModuleType, task: "Task", params: Any, key: Any) -> bool:
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
    if not report.ok:
        heading("not trained: a gradient formula is wrong", "bold red")
    return report.ok


def run_and_save(
    name: str, task: "Task", state: "State", folder: Path, rates: dict[str, int | float], stop: Stop
) -> int:
    """Train, save, draw and score, with signals held; what goes wrong waits until the parameters are saved.

    Returns:
        The exit code of `train`.
    """
    from funcnet import store
    from funcnet.tasks import _plots
    from funcnet.train import NonFiniteError, fit

    history, failure = [], None
    try:
        heading(f"\ntraining, into {folder}")
        state, history = fit(
            task.step,
            state,
            task.batches(),
            steps=task.steps,
            log=folder,
            evaluate=task.evaluate,
            every=task.every,
            rates=rates,
        )
    except BaseException as error:
        failure = error
        state, history = getattr(error, "state", state), getattr(error, "history", history)
    saved = f"the parameters after step {state.step}"
    try:
        folder.mkdir(parents=True, exist_ok=True)  # someone may have tidied up
        (folder / _RESERVE).unlink(missing_ok=True)
        store.save(folder / "params.safetensors", state.params)
    except OSError as error:
        print(f"funcnet train: {saved} could not be saved: {error}", file=sys.stderr)
        return 1
    saved = f"{folder} holds {saved}"
    try:
        _plots.curves(folder / "curves.png", history, title=f"funcnet train {name}", held_out=task.held_out)
        saved += ", and the curves so far"
        if failure is None and not stop.number and task.finish is not None:
            task.finish(state.params, folder)
    except Exception as error:
        failure = failure or error
    if stop.number:
        say(saved)
        return 128 + stop.number
    if isinstance(failure, NonFiniteError):
        problem = str(failure).partition("\n")[0].removeprefix("train.fit: ").rstrip(".")
        say(f"stopped: {problem}\n{saved}")
        return 3
    if failure is not None:
        print(f"funcnet train: {saved}", file=sys.stderr)
        raise failure
    last = history[-1]
    score = f"accuracy {last['eval_accuracy']:.2%}, loss {last['eval_loss']:.4f} nats per {task.unit}"
    heading(f"{task.held_out} {score}")
    print(f"trained in {last['seconds']:.0f} s; everything is in {folder}")
    return 0


def say(text: str) -> None:
    """Print a text, on standard error if standard output is gone: `| tee` ends with Ctrl-C, too."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            print(text, file=stream, flush=True)
            return


def rates(task: "Task", params: Any, device_kind: str) -> dict[str, int | float]:
    """What a step amounts to, for `train.fit`: in tokens, and in seconds of a device at its peak.

    The second, times the steps per second, is the share of the peak: the FLOPs of the loss by formula
    (`tasks.layers`), times 3, since the backward pass has two products for one of the forward pass.

    Args:
        task: what is trained.
        params: of its model.
        device_kind: of the device that trains it; unless its peak is known, there is no share.
    """
    import jax

    from funcnet import backend
    from funcnet.tasks.layers import layers

    amounts: dict[str, int | float] = {} if task.tokens is None else {"tokens_per_second": task.tokens}
    peak = backend.peak_flops(device_kind, getattr(task.config, "dtype", None) or "float32")
    if peak is not None:
        key = jax.random.key(0)
        found = layers(lambda params, batch: task.step.loss(params, batch, key), params, next(task.batches()))
        amounts["share_of_peak"] = 3 * sum(layer.flops for layer in found) / peak
    return amounts
