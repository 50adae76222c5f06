"""Bytes sent and held on meshes of eight devices: the formulas of `fn.shard.cost` beside compiled programs.

A decoder of 4 layers, d 64, 16 sequences of 64 positions, float32: value and gradients of its mean loss,
compiled by XLA for eight virtual CPU devices, on an Explicit mesh. Sent is what `fn.shard.collectives` reads
off the program; held is XLA's own count of arguments, results and temporary bytes. Nothing runs, so no time
is measured.
"""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding

import funcnet as fn
from benchmarks.harness import Scale, Table
from funcnet.nets import stack, transformer
from funcnet.shard.layout import Rules

CONFIG = transformer.Config(
    256, context=64, layers=4, heads=8, d=64, norm="rms", mlp="swiglu", positions="rope", bias=False,
    tied=False, unroll=1,
)  # fmt: skip
BATCH = 16, 64
DEEP = dataclasses.replace(CONFIG, vocabulary=64, context=16, layers=24, d=128, unroll=None)
MESHES: dict[str, tuple[dict[str, int], Rules]] = {
    "dp8": ({"data": 8}, {}),
    "fsdp8": ({"data": 8}, {"d": "data"}),
    "tp8": ({"tensor": 8}, dict(fn.shard.TP)),
    "dp4 × tp2": ({"data": 4, "tensor": 2}, dict(fn.shard.TP)),
    "fsdp4 × tp2": ({"data": 4, "tensor": 2}, {"d": "data", **fn.shard.TP}),
    "cp8": ({"context": 8}, {}),
    "dp2 × cp4": ({"data": 2, "context": 4}, {}),
    "pp4 × dp2": ({"stage": 4, "data": 2}, {"layers": "stage"}),
    "ep8": ({"experts": 8}, {"experts": "experts"}),
    "dp2 × ep4": ({"data": 2, "experts": 4}, {"experts": "experts"}),
}
MICROBATCHES = 2  # of "pp4 × dp2"
EXPERTS = dataclasses.replace(CONFIG, experts=8, d_hidden=64, capacity=1.25)  # of "ep8" and "dp2 × ep4"
FEWER: dict[str, tuple[dict[str, int], Rules]] = {  # devices, for the study of growth
    f"{name}{n}": ({axis: n}, rules)
    for n in (2, 4)
    for name, axis, rules in (
        ("dp", "data", {}),
        ("fsdp", "data", {"d": "data"}),
        ("tp", "tensor", dict(fn.shard.TP)),
    )
}


def run(_: Scale) -> list[Table]:
    """One table: a row for each mesh."""
    note = (
        "Sent: what one device sends. Held: params, gradients, copies and activations, without an optimizer."
    )
    again = "24 layers of d 128, vocabulary 64, batch 8 × 16. Types of parameters choose the loop of layers."
    return [
        Table("Formula and compiled program", rows(), note),
        Table("Temporary bytes of FSDP with remat", rows(["remat"]), again),
    ]


def rows(names: list[str] | None = None) -> list[dict[str, Any]]:
    """The rows, from a process of its own that has eight devices."""
    flags = os.environ.get("XLA_FLAGS", "").replace("--xla_cpu_use_fusion_emitters=false", "")  # of the tests
    flags = f"{flags} --xla_force_host_platform_device_count=8".strip()
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}
    command = [sys.executable, "-m", "benchmarks.studies.meshes", *(names or MESHES)]
    out = subprocess.run(
        command, env=env, check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )
    return [json.loads(line) for line in out.stdout.splitlines()]


def row(name: str) -> dict[str, Any]:
    """Formula and program on one mesh."""
    sizes, rules = (MESHES | FEWER)[name]
    config, m = EXPERTS if "experts" in sizes else CONFIG, MICROBATCHES if "stage" in sizes else 1
    program = compiled(config, sizes, rules, BATCH)
    said = fn.shard.cost(config, sizes, rules, BATCH, on_cpu=True, microbatches=m)
    sent: dict[str, int] = {}
    for one in fn.shard.collectives(program):
        sent[one.kind] = sent.get(one.kind, 0) + one.sent
    formula, total, memory = said.by_kind(), sum(sent.values()), program.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    by_kind = lambda sizes: ", ".join(f"{kind} {round(size):,}" for kind, size in sorted(sizes.items()))
    return {
        "mesh": name,
        "sent": by_kind(sent),
        "formula": by_kind(formula),
        "bytes": total,
        "by formula": round(sum(formula.values())),
        "sent ÷ formula": round(total / sum(formula.values()), 4),
        "held": held,
        "formula of held": round(said.held - said.optimizer),
        "formula ÷ held": round((said.held - said.optimizer) / held, 3),
    }


def remat() -> dict[str, Any]:
    """What a replicated step needs beside arguments and results, and FSDP with remat, on eight devices."""
    jax.config.update("jax_disable_most_optimizations", False)  # fused, as users have it, less is kept

    def temporary(rules: Rules, **options: Any) -> int:
        config = dataclasses.replace(DEEP, **options)
        return compiled(config, {"data": 8}, rules, (8, 16)).memory_analysis().temp_size_in_bytes

    replicated, split = temporary({}), temporary({"d": "data"}, remat=True)
    return {
        "mesh": "fsdp8",
        "replicated": replicated,
        "split": split,
        "quotient": round(replicated / split, 2),
    }


def compiled(
    config: transformer.Config,
    sizes: dict[str, int],
    rules: Rules,
    batch: tuple[int, int],
    kind: AxisType = AxisType.Explicit,
    **options: int,
) -> Any:
    """Value and gradients of the mean loss on a mesh of such sizes, split as parameters are.

    Options are those of `fn.shard.of`.
    """
    specs = transformer.specs(config)
    mesh = jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(kind,) * len(sizes))
    to = fn.shard.of(specs, rules, mesh, **options)
    out: dict[str, Any] = (
        {} if kind is AxisType.Explicit else {"out_shardings": (NamedSharding(mesh, jax.P()), to)}
    )
    shape = lambda spec, to: jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=to)
    params = jax.tree.map(shape, specs, to, is_leaf=fn.spec.is_spec)
    over = lambda *axes: tuple(axis for axis in axes if axis in sizes)
    split = jax.P(over("data", "experts"), over("context"))
    run = functools.partial(fn.shard.pipeline, microbatches=MICROBATCHES) if "stage" in sizes else stack.apply
    ids = jax.ShapeDtypeStruct(batch, jnp.int32, sharding=NamedSharding(mesh, split))

    def loss(params: Any, ids: jax.Array, labels: jax.Array) -> jax.Array:
        x, w = transformer.hidden(params, ids, config, run=run), transformer.head(params, config)
        return fn.linear_cross_entropy.apply(x, w, labels).mean()

    with jax.set_mesh(mesh):
        return jax.jit(jax.value_and_grad(loss), **out).lower(params, ids, ids).compile()


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(json.dumps(remat() if name == "remat" else row(name)), flush=True)
