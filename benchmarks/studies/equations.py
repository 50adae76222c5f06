"""Equations in the traced program of a loss and of its gradient, beside plain JAX by hand.

They are what tracing, lowering and compiling walk through. Counted with all that are nested; a loop's body
once (the blocks of the GPTs are one loop), a convolution of funcnet's as one. Operations are those of the
StableHLO that the program is lowered to.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import jaxprs_in_params

import funcnet as fn
from benchmarks.harness import SMOKE, Scale, Table
from benchmarks.models import MODELS, TINY, Encoder, Gpt, Model, Resnet
from benchmarks.peers import ours, plain


def run(scale: Scale) -> list[Table]:
    """One row per model and program."""
    rows = []
    for name, model in (TINY if scale == SMOKE else MODELS).items():
        sides = {"funcnet": _ours(model), "plain JAX": _plain(model)}
        for part, of in (("loss", lambda loss: loss), ("gradient", jax.grad)):
            traced = {side: jax.jit(of(loss)).trace(*args) for side, (loss, *args) in sides.items()}
            row: dict[str, object] = {
                f"equations, {side}": count(t.jaxpr.jaxpr) for side, t in traced.items()
            }
            row |= {f"operations, {side}": t.lower().as_text().count(" = ") for side, t in traced.items()}
            rows.append({"model": name, "of": part, **row})
    return [Table("Equations of the traced program", rows)]


def count(jaxpr: Any) -> int:
    """The equations of a jaxpr, and of those in it."""
    inner = (getattr(sub, "jaxpr", sub) for e in jaxpr.eqns for sub in jaxprs_in_params(e.params))
    return len(jaxpr.eqns) + sum(map(count, inner))


def _ours(model: Model) -> tuple[Callable[..., Any], Any, Any]:
    """The loss of (params, batch), and these, as shapes."""
    if isinstance(model, Resnet):
        config = fn.nets.resnet.Config(model.image, model.channels, model.blocks, model.classes)
        stateful, state = ours._stateful_loss(config), fn.nets.resnet.init_state(config)
        loss = lambda params, batch: stateful(params, state, batch, None)[0]
    else:
        forward = ours._forward(model, **{"unroll": 1} if isinstance(model, Gpt) else {})
        keyed = ours._loss(forward, fn.mse if isinstance(model, Encoder) else fn.cross_entropy)
        loss = lambda params, batch: keyed(params, batch, None)
    return loss, *_shapes((ours.params_of(model), model.data()))


def _plain(model: Model) -> tuple[Callable[..., Any], Any, Any]:
    carry = (plain._statistics(model),) if isinstance(model, Resnet) else ()
    loss = plain._loss(model, True)
    return lambda params, batch: loss(params, *carry, *batch)[0], *_shapes((model.weights(), model.data()))


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), tree)
