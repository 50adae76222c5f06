"""Recurrences: an lstm forward and backward beside JAX's own derivative, a naive scan and torch.

One layer, float32, of 256 features and a state of 256 over 256 steps: the forward pass, and value and
gradients of a weighted sum of its outputs. Naive is a `jax.lax.scan` over steps with [x, h] W in one product,
differentiated by JAX. The second table has a linear recurrence by both forms of its forward pass.
"""

import functools
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import funcnet as fn
from benchmarks.harness import WHOLE, Scale, Table, compare
from funcnet.ops.recurrent import linear_recurrence


def run(scale: Scale) -> list[Table]:
    """Two tables: lstm, and linear_recurrence."""
    quick = scale != WHOLE
    sizes = [(2, 16, 8)] if quick else [(32, 256, 256), (8, 256, 256), (1, 256, 256)]
    rounds = 2 if quick else 7
    rows = [row for size in sizes for row in _lstm(*size, rounds)]
    note = "× is relative to funcnet: above 1, it is faster."
    linear = [_linear(*size, rounds) for size in ([(2, 16, 8)] if quick else [(8, 1024, 256), (1, 8192, 64)])]
    return [
        Table("An lstm of b sequences, t steps and d features", rows, note),
        Table(
            "A linear recurrence, step by step and all steps at once",
            linear,
            "On this device; value and gradients.",
        ),
    ]


def _lstm(b: int, t: int, d: int, rounds: int) -> list[dict[str, object]]:
    rng = np.random.default_rng(0)
    x, weight = (jnp.asarray(rng.standard_normal((b, t, d)), jnp.float32) for _ in range(2))
    params = fn.lstm.init(jax.random.key(0), d, d)
    ways: dict[str, Callable[..., Any]] = {
        "funcnet": lambda p, x: fn.lstm.apply(p, x)[0],
        "funcnet, chunk=16": lambda p, x: fn.lstm.apply(p, x, chunk=16)[0],
        "reference": lambda p, x: fn.lstm.reference(p, x)[0],
        "naive": _naive,
    }
    both = lambda f: jax.value_and_grad(lambda p, x: (f(p, x) * weight).sum(), (0, 1))
    rows = []
    for what, wrap in (("forward", lambda f: f), ("with gradients", both)):
        programs = {name: jax.jit(wrap(f)).lower(params, x).compile() for name, f in ways.items()}
        calls: dict[str, Callable[[], object]] = {}
        calls |= {name: functools.partial(program, params, x) for name, program in programs.items()}
        if find_spec("torch") is not None:
            calls["torch"] = _torch(np.array(x), np.array(weight), gradients=wrap is both)
        row: dict[str, object] = {"size": f"{b} × {t} × {d}, {what}"}
        row |= compare(calls, rounds=rounds, warmup=1)
        rows.append(row | {f"{name}, temp MB": _memory(program) for name, program in programs.items()})
    return rows


def _naive(p: Any, x: jax.Array) -> jax.Array:
    w = jnp.concatenate([p["w"], p["u"]])

    def step(s: Any, x: jax.Array) -> Any:
        h, c = s
        i, f, g, o = jnp.split(jnp.concatenate([x, h], -1) @ w + p["b"], 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zeros = jnp.zeros((x.shape[0], p["u"].shape[0]), x.dtype)
    return jnp.swapaxes(jax.lax.scan(step, (zeros, zeros), jnp.swapaxes(x, 0, 1))[1], 0, 1)


def _torch(x: np.ndarray, weight: np.ndarray, *, gradients: bool) -> Callable[[], object]:
    import torch

    model = torch.nn.LSTM(x.shape[-1], x.shape[-1], batch_first=True)
    inputs, weights = torch.from_numpy(x).requires_grad_(gradients), torch.from_numpy(weight)

    def call() -> object:
        if not gradients:
            with torch.no_grad():
                model(inputs)
            return ()
        model.zero_grad()
        inputs.grad = None
        (model(inputs)[0] * weights).sum().backward()
        return ()

    return call


def _linear(b: int, t: int, d: int, rounds: int) -> dict[str, object]:
    rng = np.random.default_rng(0)
    a = jnp.asarray(rng.random((b, t, d)), jnp.float32)
    x = jnp.asarray(rng.standard_normal((b, t, d)), jnp.float32)

    def at_once(a: jax.Array, x: jax.Array, chunk: int = t) -> jax.Array:
        first = jnp.zeros((b, d), jnp.float32)
        turned = (jnp.moveaxis(a, 1, 0), first, jnp.moveaxis(x, 1, 0))
        return jnp.moveaxis(linear_recurrence._at_once(*turned, back=False, chunk=chunk), 0, 1)

    ways = {
        "funcnet": fn.linear_recurrence.apply,
        "reference": fn.linear_recurrence.reference,
        "at once": at_once,
        "256 at once": functools.partial(at_once, chunk=256),
    }
    programs = {
        name: jax.jit(jax.value_and_grad(lambda a, x, f=f: (f(a, x) ** 2).sum(), (0, 1)))
        .lower(a, x)
        .compile()
        for name, f in ways.items()
    }
    calls = {name: functools.partial(program, a, x) for name, program in programs.items()}
    row: dict[str, object] = {"size": f"{b} × {t} × {d}"}
    row |= compare(calls, rounds=rounds, warmup=1)
    return row | {f"{name}, temp MB": _memory(program) for name, program in programs.items()}


def _memory(program: jax.stages.Compiled) -> float:
    analysis = program.memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes / 2**20
