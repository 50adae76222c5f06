"""Curvature: products with the Hessian and the Gauss–Newton matrix, next to the gradient.

Each candidate is one jitted program of params and a batch, float32; targets: a product with the Hessian 3.2
gradients, one with the Gauss–Newton matrix 2. The Hessian's product with nine vectors at once is what a step
of `eigenvalues(5)` takes. Memory is XLA's temporary bytes of the program.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

import funcnet as fn
from benchmarks.harness import SMOKE, WHOLE, Scale, Table, compare
from benchmarks.models import MODELS, TINY
from benchmarks.peers import ours

SMALL = (
    "MLP 784–512–512–10, batch 128",
    "two convolutions, 28×28×1, batch 128",
    "GPT 4 × 128, t = 64, batch 12",
)
LARGE = ("GPT 6 × 384, t = 256, batch 8",)
BLOCK = 9  # vectors: of `eigenvalues(5)`


def run(scale: Scale) -> list[Table]:
    """A row per model."""
    names = ("tiny MLP", "tiny convnet", "tiny GPT") if scale == SMOKE else SMALL
    if scale == WHOLE:
        names += LARGE
    rows = []
    for name in names:
        model = (MODELS | TINY)[name]
        programs, args = _programs(model), _arguments(model)
        compiled = {way: program.lower(*args).compile() for way, program in programs.items()}
        calls = {way: partial(program, *args) for way, program in compiled.items()}
        row: dict[str, object] = {"model": name}
        row |= compare(calls, rounds={SMOKE: 1, WHOLE: 9}.get(scale, 4), warmup=1)
        rows.append(row | {f"{way}, temp MB": _memory(program) for way, program in compiled.items()})
    note = "× is relative to the gradient."
    return [Table("Curvature products", rows, note)]


def _programs(model: Any) -> dict[str, Any]:
    """By name, of (params, batch, a vector, nine vectors)."""
    forward = ours._forward(model)

    def outputs(params: Any, batch: Any) -> Any:
        return forward(params, batch[0])

    def of_outputs(z: Any, batch: Any) -> Any:
        return fn.cross_entropy.apply(z, batch[1]).mean()

    def loss(params: Any, batch: Any) -> Any:
        return of_outputs(outputs(params, batch), batch)

    hessian = lambda params, batch: fn.linalg.hessian(loss, params, batch)
    return {
        "gradient": jax.jit(lambda params, batch, v, vs: jax.grad(loss)(params, batch)),  # noqa: ARG005
        "Hessian": jax.jit(lambda params, batch, v, vs: hessian(params, batch) @ v),  # noqa: ARG005
        "Gauss–Newton": jax.jit(
            lambda params, batch, v, vs: fn.linalg.ggn(outputs, of_outputs, params, batch) @ v  # noqa: ARG005
        ),
        f"Hessian, {BLOCK} vectors": jax.jit(
            lambda params, batch, v, vs: hessian(params, batch).forward(vs)  # noqa: ARG005
        ),
    }


def _arguments(model: Any) -> tuple[Any, ...]:
    params, batch = ours.params_of(model), jax.tree.map(jnp.asarray, model.data())
    tangent = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(1), leaf.shape, leaf.dtype), params)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    return params, batch, tangent, jax.random.normal(jax.random.key(2), (BLOCK, size))


def _memory(program: jax.stages.Compiled) -> float:
    """Temporary megabytes of a compiled program."""
    analysis = program.memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes / 2**20
