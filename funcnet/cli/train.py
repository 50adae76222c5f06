"""`funcnet train TASK`: verify, train, score; everything goes into a run folder."""

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from funcnet import tasks
from funcnet.cli import choice
from funcnet.cli._options import parse
from funcnet.cli._text import heading

if TYPE_CHECKING:
    from funcnet.tasks._task import Task

__all__ = ["run"]

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
        0, or 1: a formula is wrong; 3: a loss was not finite; 130: Ctrl-C.
    """
    import jax

    import funcnet
    from funcnet import backend, store, verifier
    from funcnet.cli.summary import show
    from funcnet.tasks import _plots, _run
    from funcnet.train import NonFiniteError, fit, init

    module = getattr(tasks, name)
    folder = _run.choose(out, name)
    task = module.prepare(options)
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"funcnet": funcnet.__version__, **backend.facts()}
    heading(f"{name}: {tasks.TASKS[name]}")
    print("\n".join(f"{fact:<10}{value}" for fact, value in facts.items() if value))

    heading("\nmodel")
    show(module, task.config)

    key_init, key_check, key_train = jax.random.split(jax.random.key(options.seed), 3)
    params = module.NET.init(key_init, task.config)
    heading("\ngradient formulas in this model, against jax.vjp of their definitions, in float64")
    began = time.perf_counter()
    report = verifier.verify_model(task.step.loss, params, next(task.batches()), key=key_check)
    print(report.table())
    print(f"verified in {time.perf_counter() - began:.1f} s")
    if not report.ok:
        heading("not trained: a gradient formula is wrong", "bold red")
        return 1

    _run.write_config(
        folder,
        name,
        task.config,
        options=dataclasses.asdict(options),
        seed=options.seed,
        data=task.data,
        versions=facts,
    )
    heading(f"\ntraining, into {folder}")
    state, history, code = init(params, task.optimizer, key=key_train), [], 0
    try:
        state, history = fit(
            task.step,
            state,
            task.batches(),
            steps=task.steps,
            log=folder,
            evaluate=task.evaluate,
            every=task.every,
            rates=rates(task, params, jax.local_devices()[0].device_kind),
        )
        # What ends by itself has been evaluated; what Ctrl-C ends has not.
        code = 0 if history and "eval_loss" in history[-1] else 130
    except NonFiniteError as error:
        state, code = error.state, 3
        heading(f"stopped: the loss of step {error.step} is {error.actual}", "bold red")
    store.save(folder / "params.safetensors", state.params)
    records = _run.metrics(folder)
    _plots.curves(folder / "curves.png", records, title=f"funcnet train {name}", held_out=task.held_out)
    if code:
        print(f"{folder} holds the parameters after step {int(state.step)}, and the curves so far")
        return code
    if task.finish is not None:
        task.finish(state.params, folder)
    last = history[-1]
    score = f"accuracy {last['eval_accuracy']:.2%}, loss {last['eval_loss']:.4f} nats per {task.unit}"
    heading(f"{task.held_out} {score}")
    print(f"trained in {last['seconds']:.0f} s; everything is in {folder}")
    return 0


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
