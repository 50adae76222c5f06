"""`funcnet summary TASK | RUN`: the layers of a model."""

from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import tyro

from funcnet import tasks
from funcnet.cli import UsageError
from funcnet.cli._options import parse
from funcnet.cli._text import table

__all__ = ["run", "show", "table_of"]


def _options(model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TASK|RUN")]) -> str:
    """Show the layers of a model: paths, shapes, parameters, and the FLOPs of a forward pass.

    Args:
        model: a task, for the model that it trains by default: digits, fashion, chars, tones; or a run.
    """
    return model


def run(args: list[str]) -> int:
    """The command."""
    from funcnet.tasks import _run

    model = parse(_options, args, "funcnet summary")
    if model in tasks.TASKS:
        module = getattr(tasks, model)
        config, params = module.config(module.Options()), None
    elif Path(model).exists():
        task, config, _ = _run.read_config(Path(model))
        module, params = getattr(tasks, task), _run.shapes(Path(model))
    else:
        raise UsageError(f"{model!r} is neither a task ({', '.join(tasks.TASKS)}) nor a run folder")
    show(module, config, params)
    return 0


def show(module: ModuleType, config: Any, params: Any = None) -> None:
    """Print the layers of a task's model.

    Args:
        module: of the task.
        config: of the model.
        params: theirs, arrays or shapes; None: those of `init`.
    """
    columns, rows, right, note = table_of(module, config, params)
    table(columns, rows, right)
    print(note)


def table_of(
    module: ModuleType, config: Any, params: Any = None
) -> tuple[list[str], list[list[str]], list[str], str]:
    """The layers of a task's model: columns, rows, which columns are numbers, and a note."""
    import math

    import jax

    from funcnet.analysis.layers import layers

    def apply(params: Any, x: Any) -> Any:
        return module.NET.apply(params, x, config)

    if params is None:
        params = jax.eval_shape(lambda: module.NET.init(jax.random.key(0), config))
    example = module.example(config)
    found = layers(apply, params, example)
    rows = []
    for layer in found:
        calls = ", ".join(f"{name} × {n}" if n > 1 else name for name, n in layer.operations.items())
        cells = [
            [path, "×".join(map(str, shape)) or "scalar", f"{math.prod(shape):,}", "", ""]
            for path, shape in layer.shapes.items()
        ] or [["", "", "", "", ""]]
        cells[0][3:] = [calls, f"{layer.flops:,}"]
        rows += cells
    parameters = sum(math.prod(shape) for layer in found for shape in layer.shapes.values())
    rows.append(["total", "", f"{parameters:,}", "", f"{sum(layer.flops for layer in found):,}"])
    shape = "×".join(map(str, example.shape))
    note = f"FLOPs of one example forward ({shape}): 2 × multiply-adds of products, by formula."
    return ["path", "shape", "parameters", "calls", "FLOPs"], rows, ["parameters", "FLOPs"], note
