"""CTC: the loss and its gradient beside optax, torch and JAX's own derivative of the definition.

b sequences of t frames over v classes with l labels, float32, loss and gradient. Errors are those of a
gradient against float64. The textbook's posterior is the product of two recursions, one from each end (α and
β, centred frame by frame); funcnet's is one recursion of shares.
"""

import functools
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import funcnet as fn
from benchmarks.harness import WHOLE, Scale, Table, compare


def run(scale: Scale) -> list[Table]:
    """Two tables: time and memory, and errors."""
    quick = scale != WHOLE
    sizes = [(2, 20, 5, 7)] if quick else [(16, 500, 60, 32), (16, 500, 60, 1000), (1, 500, 60, 32)]
    rounds = 2 if quick else 9
    lengths = [(2, 20, 5, 7)] if quick else [(4, 500, 60, 32), (4, 1500, 200, 32)]
    return [
        Table(
            "CTC of b sequences, t frames, l labels and v classes, with its gradient",
            [_timed(*size, rounds) for size in sizes],
            "× is relative to funcnet: above 1, it is faster.",
        ),
        Table(
            "The largest error of a float32 gradient",
            [_errors(*size) for size in lengths],
            "Against float64; the largest element of a gradient is nearly 1.",
        ),
    ]


def _drawn(b: int, t: int, l: int, v: int) -> tuple[np.ndarray, jax.Array]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((b, t, v)).astype(np.float32)
    return x, jnp.asarray(rng.integers(1, v, (b, l)), jnp.int32)


def _ways(labels: jax.Array, t: int) -> dict[str, Callable[[jax.Array], jax.Array]]:
    b, l = labels.shape
    none = [jnp.zeros((b, n), jnp.float32) for n in (t, l)]
    return {
        "funcnet": lambda x: fn.ctc.apply(x, labels),
        "reference": lambda x: fn.ctc.reference(x, labels),
        "optax": lambda x: optax.ctc_loss(x, none[0].astype(x.dtype), labels, none[1].astype(x.dtype)),
    }


def _timed(b: int, t: int, l: int, v: int, rounds: int) -> dict[str, object]:
    x, labels = _drawn(b, t, l, v)
    given = jnp.asarray(x)
    programs = {
        name: jax.jit(jax.value_and_grad(lambda x, f=f: f(x).sum())).lower(given).compile()
        for name, f in _ways(labels, t).items()
    }
    calls: dict[str, Callable[[], object]] = {}
    calls |= {name: functools.partial(program, given) for name, program in programs.items()}
    if find_spec("torch") is not None:
        calls["torch"] = _torch(x, np.array(labels))
    row: dict[str, object] = {"size": f"{b} × {t}, {l} of {v}"}
    row |= compare(calls, rounds=rounds, warmup=1)
    return row | {f"{name}, temp MB": _memory(program) for name, program in programs.items()}


def _torch(x: np.ndarray, labels: np.ndarray) -> Callable[[], object]:
    import torch

    (b, t, _), l = x.shape, labels.shape[1]
    inputs, targets = torch.from_numpy(x.copy()).requires_grad_(), torch.from_numpy(labels).long()

    def call() -> object:
        inputs.grad = None
        log_p = torch.log_softmax(inputs, -1).transpose(0, 1)
        torch.nn.functional.ctc_loss(log_p, targets, [t] * b, [l] * b, reduction="sum").backward()
        return ()

    return call


def _errors(b: int, t: int, l: int, v: int) -> dict[str, object]:
    x, labels = _drawn(b, t, l, v)
    grads = {
        name: np.asarray(jax.jit(jax.grad(lambda x, f=f: f(x).sum()))(jnp.asarray(x)), np.float64)
        for name, f in _ways(labels, t).items()
    }
    grads["α and β"] = np.asarray(jax.jit(_textbook)(jnp.asarray(x), labels), np.float64)
    with jax.enable_x64(True):
        wide = jnp.asarray(x.astype(np.float64))
        want = np.asarray(jax.jit(jax.grad(lambda x: fn.ctc.reference(x, labels).sum()))(wide))
    row: dict[str, object] = {"size": f"{b} × {t}, {l} of {v}"}
    return row | {name: f"{np.abs(grad - want).max():.1e}" for name, grad in grads.items()}


def _textbook(x: jax.Array, labels: jax.Array) -> jax.Array:
    """softmax − γ with γ ∝ e^{α + β} / p, each recursion centred frame by frame."""
    log_p = jax.nn.log_softmax(x)
    states = jnp.zeros((labels.shape[0], 2 * labels.shape[1] + 1), labels.dtype).at[:, 1::2].set(labels)
    at = jnp.swapaxes(jnp.take_along_axis(log_p, states[:, None], -1), 0, 1)

    def alphas(at: jax.Array, states: jax.Array) -> jax.Array:
        moved = lambda v, by, filling: jnp.pad(v, ((0, 0), (by, 0)), constant_values=filling)[:, : v.shape[1]]
        skips = (states != 0) & (states != moved(states, 2, 0))

        def frame(alpha: jax.Array, at: jax.Array) -> Any:
            two = jnp.where(skips, moved(alpha, 2, -jnp.inf), -jnp.inf)
            alpha = at + jax.nn.logsumexp(jnp.stack([alpha, moved(alpha, 1, -jnp.inf), two]), 0)
            alpha -= alpha.max(-1, keepdims=True)
            return alpha, alpha

        first = jnp.full(states.shape, -jnp.inf, at.dtype).at[:, 0].set(0)
        return jax.lax.scan(frame, first, at)[1]

    both = alphas(at, states) + jnp.flip(alphas(jnp.flip(at, (0, 2)), jnp.flip(states, 1)), (0, 2)) - at
    hot = jax.nn.one_hot(states, x.shape[-1], dtype=x.dtype)
    gamma = jnp.einsum("tbs,bsv->btv", jax.nn.softmax(both), hot)
    return jnp.exp(log_p) - gamma


def _memory(program: jax.stages.Compiled) -> float:
    analysis = program.memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes / 2**20
