"""A step from make_step, and a loop by fit, against the same written by hand with jax.jit.

An MLP of width 16, batch 32, adam: so small that most of the time goes into handing the arrays over. A sample
is a chain of steps, waited for at its end, as in training. "By hand" is the barest step there is: parameters
and optimizer state go in and come out, donated. make_step carries a count and a key besides, so that every
step has a key of its own; "by hand, counted and keyed" does the same, with a typed key.
"""

import itertools
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import funcnet as fn
from benchmarks.harness import Table, summarise, wait_for_quiet

WIDTH, BATCH = 16, 32
OPTIMIZER = optax.adam(1e-3)

Loop = Callable[[int], Any]  # takes so many steps and returns the parameters


def run(quick: bool) -> list[Table]:
    """Wall and processor time of a step, by depth, and of a step within a loop."""
    rounds, work, depths, middle = (3, 40, (1, 4), 4) if quick else (400, 320, (1, 4, 16, 64), 16)
    timings = {depth: timed(step_loops(depth), rounds, work // depth) for depth in depths}
    with tempfile.TemporaryDirectory() as folder:
        loops = timed(fit_loops(middle, folder), rounds // 10, work)
    tables = []
    for clock, note in (
        ("wall", "Target: ×1.05 at 16 layers, against the step by hand."),
        ("processor", "The time of all threads of the process: other work on the machine disturbs it less."),
    ):
        rows = [{"layers": depth, **summarise(timing[clock])} for depth, timing in timings.items()]
        tables.append(Table(f"One step, {clock} time", rows, note))
    rows = [{"time": clock, **summarise(samples)} for clock, samples in loops.items()]
    note = (
        "fit reads the metrics of every step, one step behind, and writes a line of metrics.jsonl for each."
    )
    return [*tables, Table(f"One step within a loop, {middle} layers", rows, note)]


def timed(loops: dict[str, Loop], rounds: int, steps: int) -> dict[str, dict[str, list[float]]]:
    """Seconds per step, {clock: {loop: one per round}}, once all loops are known to compute the same.

    Samples are short, a few milliseconds, and rounds many, so that most escape what else the machine does; it
    is waited for, until it is quiet, at every tenth round only.
    """
    ends = [loop(steps) for loop in loops.values()]
    for end in ends[1:]:
        jax.tree.map(np.testing.assert_array_equal, end, ends[0])
    names = list(loops)
    samples = {clock: {name: [] for name in names} for clock in ("wall", "processor")}
    for turn in range(rounds):
        if turn % 10 == 0:
            wait_for_quiet()
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            wall, processor = time.perf_counter(), time.process_time()
            jax.block_until_ready(loops[name](steps))
            samples["processor"][name].append((time.process_time() - processor) / steps)
            samples["wall"][name].append((time.perf_counter() - wall) / steps)
    return samples


def init(depth: int) -> list[dict[str, jax.Array]]:
    keys = jax.random.split(jax.random.key(0), depth)
    return [{"w": jax.random.normal(key, (WIDTH, WIDTH)) / 4, "b": jnp.zeros(WIDTH)} for key in keys]


def loss(params: list[dict[str, jax.Array]], batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    x, y = batch
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    return jnp.mean((x @ params[-1]["w"] + params[-1]["b"] - y) ** 2)


def keyed_loss(params: Any, batch: Any, key: jax.Array) -> jax.Array:
    del key  # a model without dropout
    return loss(params, batch)


def update(params: Any, opt_state: Any, batch: Any) -> tuple[Any, Any, jax.Array]:
    value, grads = jax.value_and_grad(loss)(params, batch)
    updates, opt_state = OPTIMIZER.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, value


def step_loops(depth: int) -> dict[str, Loop]:
    """Chained steps, by hand and from make_step; each goes on where it stopped."""
    batch = a_batch()

    by_hand = jax.jit(update, donate_argnums=(0, 1))
    params, opt_state = init(depth), OPTIMIZER.init(init(depth))

    def hand(steps: int) -> Any:
        nonlocal params, opt_state
        for _ in range(steps):
            params, opt_state, _ = by_hand(params, opt_state, batch)
        return params

    def counted_update(params: Any, opt_state: Any, count: Any, key: Any, batch: Any) -> tuple[Any, ...]:
        jax.random.fold_in(key, count)
        return *update(params, opt_state, batch), count + 1, key

    by_hand_counted = jax.jit(counted_update, donate_argnums=(0, 1, 2, 3))
    carry = [init(depth), OPTIMIZER.init(init(depth)), jnp.zeros((), jnp.int32), jax.random.key(1)]

    def hand_counted(steps: int) -> Any:
        for _ in range(steps):
            carry[0], carry[1], _, carry[2], carry[3] = by_hand_counted(*carry, batch)
        return carry[0]

    step = fn.train.make_step(keyed_loss, OPTIMIZER)
    state = fn.train.init(init(depth), OPTIMIZER, key=jax.random.key(1))

    def made(steps: int) -> Any:
        nonlocal state
        for _ in range(steps):
            state, _ = step(state, batch)
        return state.params

    return {"by hand": hand, "by hand, counted and keyed": hand_counted, "make_step": made}


def fit_loops(depth: int, folder: str) -> dict[str, Loop]:
    """The loop over batches: bare, with the loss read at each step, and fit."""
    batch = a_batch()
    step = fn.train.make_step(keyed_loss, OPTIMIZER)
    states = [fn.train.init(init(depth), OPTIMIZER, key=jax.random.key(1)) for _ in range(4)]

    def bare(steps: int) -> Any:
        for each in itertools.repeat(batch, steps):
            states[0], _ = step(states[0], each)
        return states[0].params

    def reading(steps: int) -> Any:
        for each in itertools.repeat(batch, steps):
            states[1], metrics = step(states[1], each)
            float(metrics["loss"])
        return states[1].params

    def fit(steps: int) -> Any:
        states[2], _ = fn.train.fit(step, states[2], itertools.repeat(batch, steps), progress=False)
        return states[2].params

    def fit_written(steps: int) -> Any:
        batches = itertools.repeat(batch, steps)
        states[3], _ = fn.train.fit(step, states[3], batches, log=folder, progress=False)
        return states[3].params

    return {"bare": bare, "loss read at once": reading, "fit": fit, "fit, written down": fit_written}


def a_batch() -> tuple[jax.Array, jax.Array]:
    x = jax.random.normal(jax.random.key(2), (BATCH, WIDTH))
    return x, jnp.sin(x)
