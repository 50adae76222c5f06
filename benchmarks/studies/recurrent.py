"""Recurrences: lstm and gru beside JAX's own derivative, a naive scan, Flax NNX, Haiku and torch.

One layer, float32, of 256 features and a state of 256 over 256 steps: the forward pass, and value and
gradients of a weighted sum of its outputs. Naive is a `jax.lax.scan` over steps with [x, h] W in one product
(of a gru, x W and h U), differentiated by JAX. The last table has a linear recurrence by both forms.
"""

import functools
import time
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
    """A table for each cell, and one for linear_recurrence."""
    quick = scale != WHOLE
    sizes = [(2, 16, 8)] if quick else [(32, 256, 256), (8, 256, 256), (1, 256, 256)]
    rounds = 2 if quick else 7
    note = "× is relative to funcnet: above 1, it is faster. Compile: seconds to trace and compile, once."
    tables = [
        Table(
            f"{name} of b sequences, t steps and d features",
            [row for size in sizes for row in _cell(name, *size, rounds)],
            note,
        )
        for name in ("lstm", "gru")
    ]
    linear = [_linear(*size, rounds) for size in ([(2, 16, 8)] if quick else [(8, 1024, 256), (1, 8192, 64)])]
    return [
        *tables,
        Table(
            "A linear recurrence, step by step and all steps at once",
            linear,
            "On this device; value and gradients.",
        ),
    ]


def _cell(name: str, b: int, t: int, d: int, rounds: int) -> list[dict[str, object]]:
    rng = np.random.default_rng(0)
    x, weight = (jnp.asarray(rng.standard_normal((b, t, d)), jnp.float32) for _ in range(2))
    op, naive = getattr(fn, name), {"lstm": _naive_lstm, "gru": _naive_gru}[name]
    params = op.init(jax.random.key(0), d, d)
    ways: dict[str, tuple[Callable[..., Any], Any]] = {
        "funcnet": (lambda p, x: op.apply(p, x)[0], params),
        "funcnet, chunk=16": (lambda p, x: op.apply(p, x, chunk=16)[0], params),
        "reference": (lambda p, x: op.reference(p, x)[0], params),
        "naive": (naive, params),
    }
    ways |= {
        peer: made(name, x) for peer, made in (("nnx", _nnx), ("haiku", _haiku)) if find_spec(_PACKAGE[peer])
    }
    both = lambda f: jax.value_and_grad(lambda p, x: (f(p, x) * weight).sum(), (0, 1))
    rows = []
    for what, wrap in (("forward", lambda f: f), ("with gradients", both)):
        programs, compiling = {}, {}
        for way, (f, p) in ways.items():
            start = time.perf_counter()
            programs[way] = jax.jit(wrap(f)).lower(p, x).compile()
            compiling[way] = time.perf_counter() - start
        calls: dict[str, Callable[[], object]] = {}
        calls |= {way: functools.partial(program, ways[way][1], x) for way, program in programs.items()}
        if find_spec("torch") is not None:
            calls["torch"] = _torch(name, np.array(x), np.array(weight), gradients=wrap is both)
        row: dict[str, object] = {"size": f"{b} × {t} × {d}, {what}"}
        row |= compare(calls, rounds=rounds, warmup=1)
        row |= {f"{way}, temp MB": _memory(program) for way, program in programs.items()}
        rows.append(row | {"compile": compiling["funcnet"]})
    return rows


_PACKAGE = {"nnx": "flax", "haiku": "haiku"}


def _scanned(step: Any, first: Any, x: jax.Array) -> jax.Array:
    return jnp.swapaxes(jax.lax.scan(step, first, jnp.swapaxes(x, 0, 1))[1], 0, 1)


def _naive_lstm(p: Any, x: jax.Array) -> jax.Array:
    w = jnp.concatenate([p["w"], p["u"]])

    def step(s: Any, x: jax.Array) -> Any:
        h, c = s
        i, f, g, o = jnp.split(jnp.concatenate([x, h], -1) @ w + p["b"], 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zeros = jnp.zeros((x.shape[0], p["u"].shape[0]), x.dtype)
    return _scanned(step, (zeros, zeros), x)


def _naive_gru(p: Any, x: jax.Array) -> jax.Array:
    def step(h: Any, x: jax.Array) -> Any:
        (a_r, a_z, a_n), (q_r, q_z, q_n) = (jnp.split(v, 3, -1) for v in (x @ p["w"] + p["b"], h @ p["u"]))
        r, z = jax.nn.sigmoid(a_r + q_r), jax.nn.sigmoid(a_z + q_z)
        h = (1 - z) * jnp.tanh(a_n + r * (q_n + p["c"])) + z * h
        return h, h

    return _scanned(step, jnp.zeros((x.shape[0], p["u"].shape[0]), x.dtype), x)


def _nnx(name: str, x: jax.Array) -> tuple[Callable[..., Any], Any]:
    from flax import nnx

    cell = {"lstm": nnx.OptimizedLSTMCell, "gru": nnx.GRUCell}[name]
    d = x.shape[-1]
    graph, params, rest = nnx.split(nnx.RNN(cell(d, d, rngs=nnx.Rngs(0))), nnx.Param, ...)
    zeros = jnp.zeros((x.shape[0], d), x.dtype)
    carry = (zeros, zeros) if name == "lstm" else zeros  # without one it would draw one
    return lambda p, x: nnx.merge(graph, p, rest)(x, initial_carry=carry), params


def _haiku(name: str, x: jax.Array) -> tuple[Callable[..., Any], Any]:
    import haiku as hk

    def forward(x: jax.Array) -> Any:
        core = {"lstm": hk.LSTM, "gru": hk.GRU}[name](x.shape[-1])
        return hk.dynamic_unroll(core, x, core.initial_state(x.shape[0]), time_major=False)[0]

    net = hk.without_apply_rng(hk.transform(forward))
    return net.apply, net.init(jax.random.key(0), x)


def _torch(name: str, x: np.ndarray, weight: np.ndarray, *, gradients: bool) -> Callable[[], object]:
    import torch

    model = getattr(torch.nn, name.upper())(x.shape[-1], x.shape[-1], batch_first=True)
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
