"""What a mesh costs where it is not needed: a training step on a (1, 1) Explicit mesh beside the plain one.

A GPT of 4 layers, d 128, 12 sequences of 64 positions, in float32 with AdamW, in one process. Steps and
traces take turns; their times are the processor's, so that other programs disturb them less.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding

import funcnet as fn
from benchmarks.harness import SMOKE, WHOLE, Scale, Table
from funcnet.nets import transformer

CONFIG = transformer.Config(256, context=64, layers=4, heads=4, d=128)
TINY = transformer.Config(16, context=8, layers=2, heads=2, d=8)
BATCH = 12


def run(scale: Scale) -> list[Table]:
    """Two rows: a step, and its trace."""
    config = TINY if scale == SMOKE else CONFIG
    rounds = {SMOKE: 3, WHOLE: 40}.get(scale, 16)
    forms = {
        "plain": Form(config, None),
        "(1, 1) mesh": Form(config, jax.make_mesh((1, 1), ("data", "tensor"))),
    }
    sent = sum(len(fn.shard.collectives(form.compiled())) for form in forms.values())
    rows = [
        _row("a step", {name: form.steps for name, form in forms.items()}, rounds, "≤ 1.05"),
        _row("its trace", {name: form.trace for name, form in forms.items()}, max(3, rounds // 4), "≤ 1.15"),
    ]
    return [Table("A mesh of one device", rows, f"Collectives in both programs: {sent}.")]


class Form:
    """A step, its state and batch, on a mesh or none."""

    def __init__(self, config: transformer.Config, mesh: Any) -> None:
        def loss(params: Any, batch: jax.Array) -> jax.Array:
            logits = transformer.apply(params, batch[:, :-1], config)
            return fn.cross_entropy.apply(logits, batch[:, 1:]).mean()

        self.mesh, optimizer = mesh, optax.adamw(1e-3)
        rng = np.random.default_rng(0)
        ids = jnp.asarray(rng.integers(0, config.vocabulary, (BATCH, config.context + 1)), jnp.int32)
        init = lambda key: transformer.init(key, config)
        if mesh is None:
            params, self.batch = jax.jit(init)(jax.random.key(0)), ids
        else:
            rules = fn.shard.FSDP | fn.shard.TP
            with jax.set_mesh(mesh):
                params = fn.shard.init(init, jax.random.key(0), transformer.specs(config), rules)
                self.batch = jax.device_put(ids, NamedSharding(mesh, jax.P("data")))
        self.step = self.within(lambda: fn.train.make_step(loss, optimizer))
        self.state = self.within(lambda: fn.train.init(params, optimizer, key=jax.random.key(1)))

    def within(self, f: Callable[[], Any]) -> Any:
        """``f()`` on the mesh."""
        if self.mesh is None:
            return f()
        with jax.set_mesh(self.mesh):
            return f()

    def compiled(self) -> Any:
        """The program."""
        return self.within(lambda: self.step.lower(self.state, self.batch).compile())

    def steps(self) -> None:
        """Ten steps."""

        def steps() -> None:
            for _ in range(10):
                self.state, _ = self.step(self.state, self.batch)

        self.within(steps)
        jax.block_until_ready(self.state)

    def trace(self) -> None:
        """One trace, nothing of it known before."""
        jax.clear_caches()
        self.within(lambda: self.step.trace(self.state, self.batch))


def _row(what: str, runs: dict[str, Callable[[], None]], rounds: int, target: str) -> dict[str, object]:
    """Medians of times that alternate, and of their quotients."""
    times = dict[str, list[float]]({name: [] for name in runs})
    for number in range(rounds + 1):
        for name, f in runs.items():
            start = time.process_time()
            f()
            if number:  # the first compiles
                times[name].append(time.process_time() - start)
    first, second = times.values()
    quotient = statistics.median(b / a for a, b in zip(first, second, strict=True))
    medians = {name: f"{1e3 * statistics.median(values):.3g} ms" for name, values in times.items()}
    return {"of": what, **medians, "quotient": round(quotient, 3), "target": target}
