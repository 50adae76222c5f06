"""Growth: by which powers time and memory of a training step grow, and what the formulas say.

A GPT of 4 layers, d 128, 8 sequences of 128 positions, float32: loss and gradients, jitted. One size at a
time is doubled three times. An exponent k is the slope of log(step) over log(size), by least squares over all
four, and over the last doubling alone, where what does not grow has the least weight. FLOPs and bytes by
formula are those of `fn.shard.cost`; held is XLA's own count of arguments, results and temporary bytes. On
devices, eight virtual ones, nothing runs: bytes that one device holds and sends, of the compiled program.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import funcnet as fn
from benchmarks.harness import SMOKE, WHOLE, Measure, Scale, Table, compare
from benchmarks.studies import meshes
from funcnet.nets import transformer

CONFIG = transformer.Config(256, context=128, layers=4, heads=4, d=128)
BATCH = 8
Size = tuple[transformer.Config, int]  # and how many sequences


def _wide(d: int) -> Size:
    return dataclasses.replace(CONFIG, d=d, heads=d // 32), BATCH


def _deep(layers: int) -> Size:
    return dataclasses.replace(CONFIG, layers=layers), BATCH


def _long(context: int) -> Size:
    return dataclasses.replace(CONFIG, context=context), BATCH


def _many(n: int) -> Size:
    return CONFIG, n


SWEEPS: dict[str, tuple[Callable[[int], Size], tuple[int, ...]]] = {
    "width d": (_wide, (64, 128, 256, 512)),
    "depth": (_deep, (2, 4, 8, 16)),
    "length t": (_long, (128, 256, 512, 1024)),
    "batch n": (_many, (4, 8, 16, 32)),
}


def run(scale: Scale) -> list[Table]:
    """Three tables: exponents on one device, the steps that they are fitted to, exponents on meshes."""
    whole = scale == WHOLE
    exponents, steps = [], []
    for name, (size, values) in list(SWEEPS.items())[: 1 if scale == SMOKE else None]:
        values = values if whole else values[:2]
        found = _steps({value: size(value) for value in values}, rounds=scale.rounds)
        fit = lambda column, values=values, found=found: _exponent(values, [row[column] for row in found])
        exponents.append(
            {"what grows": f"{name}, {values[0]} to {values[-1]}"} | {c: fit(c) for c in found[0]}
        )
        steps += [{"size": f"{name} = {value}"} | row for value, row in zip(values, found, strict=True)]
    shown = [{key: _shown(value) for key, value in step.items()} for step in steps]
    note = "Of all four sizes; in brackets, of the last doubling."
    return [
        Table("Exponents of a step", exponents, note),
        Table("The steps", shown),
        Table("Exponents by the number of devices", _on_devices(whole), "Of one device, of 2, 4 and 8."),
    ]


def _steps(sizes: Mapping[int, Size], *, rounds: int) -> list[dict[str, float]]:
    """Of each size: seconds, FLOPs by formula, bytes held by XLA's count and by formula."""
    programs = {value: _compiled(*size) for value, size in sizes.items()}
    seconds = compare(
        {str(v): partial(program, *args) for v, (program, args) in programs.items()}, rounds=rounds
    )
    rows = []
    for value, (config, n) in sizes.items():
        said = fn.shard.cost(config, {"data": 1}, {}, (n, config.context))
        memory, time = programs[value][0].memory_analysis(), seconds[str(value)]
        assert memory is not None
        assert isinstance(time, Measure)
        held = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
        row = {"time": time.median, "FLOPs by formula": said.flops}
        rows.append(row | {"held": held, "held by formula": said.held - said.optimizer})
    return rows


def _compiled(config: transformer.Config, n: int) -> tuple[jax.stages.Compiled, tuple[Any, ...]]:
    """Loss and gradients, and their arguments."""
    ids = np.random.default_rng(0).integers(config.vocabulary, size=(n, config.context + 1))
    args = transformer.init(jax.random.key(0), config), jnp.asarray(ids[:, :-1]), jnp.asarray(ids[:, 1:])

    def loss(params: Any, ids: jax.Array, labels: jax.Array) -> jax.Array:
        x, w = transformer.hidden(params, ids, config), transformer.head(params, config)
        return fn.linear_cross_entropy.apply(x, w, labels).mean()

    return jax.jit(jax.value_and_grad(loss)).lower(*args).compile(), args


def _on_devices(whole: bool) -> list[dict[str, object]]:
    counts = (2, 4, 8) if whole else (2, 4)
    kinds = ("dp", "fsdp", "tp") if whole else ("dp",)
    rows = []
    for kind in kinds:
        found = meshes.rows([f"{kind}{n}" for n in counts])
        fit = lambda column, found=found: _exponent(counts, [row[column] for row in found])
        names = {
            "held": "held",
            "held by formula": "formula of held",
            "sent": "bytes",
            "sent by formula": "by formula",
        }
        rows.append({"mesh": kind} | {shown: fit(column) for shown, column in names.items()})
    return rows


def _exponent(sizes: Sequence[int], values: Sequence[float]) -> str:
    """The slope over all, and over the last two."""
    x, y = np.log(sizes), np.log(values)
    return f"{np.polyfit(x, y, 1)[0]:.2f} ({(y[-1] - y[-2]) / (x[-1] - x[-2]):.2f})"


def _shown(value: object) -> object:
    return f"{value:.3g}" if isinstance(value, float | int) else value
