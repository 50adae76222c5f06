"""Batch norm: its sums as they are, or several in one pass by a variadic reduction along runs of 32 rows.

XLA:CPU writes out what it adds up along a long axis, x less its first element, then the squares; of a
reduction of several arrays at once it does not. Forward and backward in float32, then the gradient of a
residual net. "Corrected" takes the mean first, then the mean and the squares of what is left, so that it is
as exact as what runs; "at once" takes them together, and is wrong where the first example lies far off.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial

import funcnet as fn
from benchmarks.harness import SMOKE, Scale, Table, compare
from benchmarks.models import MODELS, Model, Resnet
from benchmarks.peers import ours
from funcnet.ops.norm import batch_norm


def run(scale: Scale) -> list[Table]:
    """One row each."""
    small = scale == SMOKE
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4 if small else 128, 32, 32, 16)), jnp.float32)
    name = "ResNet-20, 32×32×3, batch 128"
    model = Resnet((4, 6), (1, 1), (8, 8, 3), batch=8) if small else MODELS[name]
    rows = []
    for what, of in (
        ("batch norm, forward and backward", partial(_norm, x)),
        (f"gradient of {name}", partial(_net, model)),
    ):
        programs = {form: of(vjp) for form, vjp in FORMS.items()}
        rows.append({"what": what, **compare(programs, rounds=scale.rounds)})
    return [Table("One pass", rows, "Ratios are to what runs.")]


def _sums(*arrays: jax.Array) -> list[jax.Array]:
    runs = [a.reshape(-1, 32, a.shape[-1]) for a in arrays]
    added = lax.reduce(
        runs, [jnp.float32(0)] * len(runs), lambda a, b: [u + v for u, v in zip(a, b, strict=True)], (1,)
    )
    return [a.sum(0, keepdims=True) for a in added]


def _vjp(params: Any, state: Any, x: Any, *, corrected: bool, eps: float = 1e-5, **_: Any) -> Any:
    """`batch_norm.vjp`, of whole runs without a mask; the state stays as it is."""
    rows = x.reshape(-1, x.shape[-1])
    d, n = rows - rows[:1], len(rows)
    if corrected:
        first, second = _sums(*jnp.split(d, 2))
        c = (first + second) / n
        left, square = (v / n for v in _sums(d - c, (d - c) ** 2))
        c, variance = c + left, square - left**2
    else:
        c, square = (v / n for v in _sums(d, d**2))
        variance = square - c**2
    rstd = lax.rsqrt(variance + eps)
    y = (params["w"] * ((d - c) * rstd) + params["b"]).reshape(x.shape)
    return (y, state), Partial(_pullback, params, x, c, rstd)


def _pullback(params: Any, x: Any, c: Any, rstd: Any, dy: Any) -> Any:
    rows, g = x.reshape(-1, x.shape[-1]), dy[0].reshape(-1, x.shape[-1])
    xhat = (rows - rows[:1] - c) * rstd
    db, dw = _sums(g, g * xhat)
    dx = params["w"] * rstd * (g - db / len(rows) - xhat * (dw / len(rows)))
    return {"w": dw[0], "b": db[0]}, None, dx.reshape(x.shape)


FORMS: dict[str, Callable[..., Any]] = {
    "as they are": batch_norm.vjp,
    "corrected": partial(_vjp, corrected=True),
    "at once": partial(_vjp, corrected=False),
}


def _norm(x: jax.Array, vjp: Callable[..., Any]) -> Callable[[], Any]:
    params, state = fn.batch_norm.init(jax.random.key(0), x.shape[-1])

    @jax.jit
    def both(x: jax.Array, dy: jax.Array) -> Any:
        (y, _), pullback = vjp(params, state, x, train=True)
        return y, pullback((dy, None))

    return partial(both, x, jnp.cos(x))


def _net(model: Model, vjp: Callable[..., Any]) -> Callable[[], Any]:
    assert isinstance(model, Resnet)
    config = fn.nets.resnet.Config(model.image, model.channels, model.blocks, model.classes)
    state, loss = fn.nets.resnet.init_state(config), ours._stateful_loss(config)
    args = ours.params_of(model), jax.tree.map(jnp.asarray, model.data())
    kept, batch_norm.vjp = batch_norm.vjp, vjp
    try:
        gradient = jax.jit(jax.grad(lambda params, batch: loss(params, state, batch, None)[0]))
        return partial(gradient.lower(*args).compile(), *args)
    finally:
        batch_norm.vjp = kept
