"""`funcnet compress RUN`: a trained model with fewer FLOPs, by low rank, and what that costs."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import tyro

from funcnet.cli import UsageError
from funcnet.cli._options import parse
from funcnet.cli._text import heading, table

if TYPE_CHECKING:
    from funcnet.analysis.lowrank import Changed, Compressed
    from funcnet.tasks._task import Examples, Saved, Task

__all__ = ["run"]

_CHUNK = 250  # examples in a batch


class Asked(NamedTuple):
    """What is asked for."""

    run: Path
    flops: float
    examples: int
    steps: int
    out: Path | None


def _options(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    flops: float = 0.5,
    examples: Annotated[int, tyro.conf.arg(metavar="N")] = 1000,
    steps: Annotated[int, tyro.conf.arg(metavar="N")] = 0,
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None,
) -> Asked:
    """Factor the linear maps and convolutions of a trained model, and say what of its accuracy is left.

    Args:
        run: a run folder, as `funcnet train` writes it.
        flops: how many of the model's FLOPs may be left, as a share.
        examples: of the training data, which give components and ranks; what is measured is measured on data
            that chose neither.
        steps: of training that follow, at a tenth of the run's learning rate, down to 0.
        out: the folder of the smaller model, new or empty; by default RUN-compressed.
    """
    return Asked(run, flops, examples, steps, out)


def run(args: list[str]) -> int:
    """The command."""
    asked = parse(_options, args, "funcnet compress")
    if not 0 < asked.flops < 1:
        raise UsageError(f"--flops is {asked.flops:g}, but it is a share, above 0 and below 1")
    for name, least in (("examples", 1), ("steps", 0)):
        if getattr(asked, name) < least:
            raise UsageError(f"--{name} is {getattr(asked, name)}, but {least} or more are needed")
    from funcnet import store, tasks
    from funcnet.analysis import lowrank
    from funcnet.tasks import _run

    saved, content = _run.read(asked.run), _run.facts(asked.run)
    if content.get("ranks"):
        raise UsageError(f"{asked.run} is compressed already: compress the run that it came from")
    out = asked.out or asked.run.with_name(f"{asked.run.name}-compressed")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is not an empty folder")
    task, net = _run.again(asked.run), getattr(tasks, saved.task).NET
    training, held_out = task.examples(asked.examples)
    heading(f"{asked.run}: {asked.flops:.0%} of the FLOPs, by {len(training.inputs):,} training examples")
    small = lowrank.compress(net, saved.params, saved.config, _batches(training.inputs), asked.flops)
    table(*_table(small, len(training.inputs[:_CHUNK])))

    def said(params: Any) -> None:
        inputs, labels = _batches(held_out.inputs), _batches(held_out.labels)
        found = lowrank.changed(net, saved.params, params, saved.config, inputs, labels)
        print("\n".join(_said(task, held_out, found)))
        print(_certain(net, saved, params, inputs))

    said(small.params)
    params = small.params
    if asked.steps:
        print(f"\nafter {asked.steps:,} steps of training:")
        specs = lowrank.specs(net.specs(saved.config), small.ranks)
        params = _trained(task, params, specs, content["options"], asked.steps)
        said(params)
    parts = {k: v for k, v in content.items() if k in ("options", "training", "seed", "data", "versions")}
    folder = _run.create(out, saved.task, saved.config, **parts, ranks=small.ranks, of=str(asked.run))
    store.save(folder / "params.safetensors", params)
    print(f"\nthe smaller model is in {folder}")
    return 0


def _batches(array: Any) -> list[Any]:
    return [array[i : i + _CHUNK] for i in range(0, len(array), _CHUNK)]


def _table(small: "Compressed", n: int) -> tuple[list[str], list[list[str]], list[str]]:
    """Layer by layer, the FLOPs of one example."""
    rows = [
        [
            layer.path,
            str(layer.full),
            "whole" if layer.rank is None else str(layer.rank),
            f"{layer.kept:.1%}",
            *(f"{flops // n:,}" for flops in layer.flops),
        ]
        for layer in small.layers
    ]
    before, after = small.flops
    rows.append(["total", "", "", f"{after / before:.1%}", f"{before // n:,}", f"{after // n:,}"])
    columns = ["map", "full rank", "rank", "variance kept", "FLOPs before", "after"]
    return columns, rows, columns[1:]


def _said(task: "Task", held_out: "Examples", found: "Changed") -> list[str]:
    """What is measured on data that chose neither components nor ranks."""
    unit = task.unit + ("s" if found.decisions != 1 else "")
    lines = []
    if found.accuracy is not None:
        before, after = found.accuracy
        lines.append(f"{task.held_out} accuracy {before:.2%} before, {after:.2%} after")
    lines.append(f"{found.changed:,} of {found.decisions:,} {unit} got another class")
    if held_out.labels.ndim == 1:
        lines[-1] += f": with 95 % confidence, below {math.ceil(1000 * found.at_most) / 1000:.1%} do"
    return lines


def _certain(net: Any, saved: "Saved", params: Any, inputs: list[Any]) -> str:
    """What the certified bound says."""
    import jax
    import numpy as np

    from funcnet.analysis import lowrank

    bounds, reason = lowrank.certified(net, saved.params, params, saved.config, inputs)
    if bounds is None:
        return f"no bound on the change of the outputs: {reason}"
    run = jax.jit(lambda x: net.apply(saved.params, x, saved.config))
    logits = np.concatenate([np.asarray(run(x)) for x in inputs])
    first, second = np.sort(logits, -1)[:, :-3:-1].T
    kept = int((first - second > 2**0.5 * bounds).sum())
    return (
        f"certified: the outputs change by at most {np.median(bounds):,.4g} (median), where the first class "
        f"leads by {np.median(first - second):,.4g}: {kept:,} of {len(bounds):,} cannot get another class"
    )


def _trained(task: "Task", params: Any, specs: Any, options: dict[str, Any], steps: int) -> Any:
    """The params after further steps on the loss of the run."""
    import itertools

    import jax

    from funcnet import train
    from funcnet.tasks import _training

    plain = _training.Training(warmup=steps // 10)
    rate = _training.by_steps(plain, options["learning_rate"] / 10, steps)
    optimizer = _training.optimizer(plain, rate, specs, options["weight_decay"])
    step = train.make_step(task.step.loss, optimizer)
    state = train.init(params, optimizer, key=jax.random.key(options["seed"]))
    batches = itertools.chain.from_iterable(task.batches() for _ in itertools.count())
    for batch in itertools.islice(batches, steps):
        state, _ = step(state, batch)
    return state.params
