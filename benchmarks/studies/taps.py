"""A look inside: what values and cotangents cost in a training step, and taps when nobody looks.

The step of a GPT, loss, gradient and AdamW, float32, as one jitted program: plain; with everything that is
tapped in it among its results; with the cotangents of all that too; and with the residual stream alone. That
nobody looking costs nothing is no measurement: the programs, with the taps and with every tap taken out, are
compared as XLA is given them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

import funcnet as fn
from benchmarks.harness import WHOLE, Scale, Table, compare
from funcnet.nets import transformer

GPT = transformer.Config(65, context=256, layers=6, heads=6, d=384)
SIZES = {"GPT 6 × 384, 8 × 256 tokens": (GPT, 8)}
QUICK = {"GPT 2 × 64, 2 × 32 tokens": (transformer.Config(65, context=32, layers=2, heads=2, d=64), 2)}
OPTIMIZER = optax.adamw(1e-3)

Step = Callable[..., Any]


def run(scale: Scale) -> list[Table]:
    """One table: the steps, side by side."""
    quick = scale != WHOLE
    rows = []
    for name, (config, n) in (QUICK if quick else SIZES).items():
        params = transformer.init(jax.random.key(0), config)
        given = params, OPTIMIZER.init(params), jnp.asarray(_ids(config, n))
        programs = {name: jax.jit(step).lower(*given).compile() for name, step in _steps(config).items()}
        calls = {name: partial(program, *given) for name, program in programs.items()}
        row: dict[str, object] = {"model": name, **compare(calls, rounds=2 if quick else 7, warmup=1)}
        row |= {f"{name}, temp MB": _memory(program) for name, program in programs.items()}
        rows.append(row | {"program with taps, nobody looking": _off(config, given)})
    note = "× is relative to the plain step: above 1, the plain one is faster."
    return [Table("A look inside of a step", rows, note)]


def _ids(config: transformer.Config, n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, config.vocabulary, (n, config.context + 1))


def _steps(config: transformer.Config) -> dict[str, Step]:
    def loss(params: Any, ids: jax.Array) -> jax.Array:
        x = transformer.hidden(params, ids[:, :-1], config)
        head = transformer.head(params, config)
        return fn.linear_cross_entropy.apply(x, head, ids[:, 1:]).mean()

    def update(params: Any, state: Any, grads: Any) -> Any:
        updates, state = OPTIMIZER.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def plain(params: Any, state: Any, ids: jax.Array) -> Any:
        value, grads = jax.value_and_grad(loss)(params, ids)
        return value, update(params, state, grads)

    def values(params: Any, state: Any, ids: jax.Array, only: str | None = None) -> Any:
        looked = fn.taps.collect(loss, only)
        (value, seen), grads = jax.value_and_grad(looked, has_aux=True)(params, ids)
        return value, update(params, state, grads), seen

    def cotangents(params: Any, state: Any, ids: jax.Array) -> Any:
        seen = fn.taps.grads(loss, argnums=0)(params, ids)
        return seen.value, update(params, state, seen.grads), seen.values, seen.cotangents

    return {
        "plain": plain,
        "blocks.out": partial(values, only="blocks.out"),
        "values": values,
        "values and cotangents": cotangents,
    }


def _off(config: transformer.Config, given: Any) -> str:
    """Whether XLA is given the same program with the taps taken out."""
    with_taps = jax.jit(_steps(config)["plain"]).lower(*given).as_text()
    with (
        mock.patch.object(fn.taps, "tap", lambda _, x: x),
        mock.patch.object(fn.taps, "layer", lambda f, *_: f),
    ):
        without = jax.jit(_steps(config)["plain"]).lower(*given).as_text()
    return "the same" if with_taps == without else "another"


def _memory(program: jax.stages.Compiled) -> float:
    """Temporary megabytes of a compiled program."""
    analysis = program.memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes / 2**20
