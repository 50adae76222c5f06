"""funcnet: its operations and nets, and a step by `fn.train.make_step`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import funcnet as fn
from benchmarks.models import Convnet, Encoder, Gpt, Mlp, Model, Resnet
from benchmarks.peers.plain import optimizer_of, planned, stages

PACKAGE = "funcnet"
IDIOM = "`fn.train.make_step`, which is one `jax.jit` function with its state donated: docs/training.md"


def train(model: Model, **options: Any) -> Callable[[], Any]:
    """A step per call; gives the loss before it. Further options are those of a GPT's Config."""
    return repeated(*_program(model, **options))


def memory(model: Model) -> int:
    """Bytes that the compiled step plans."""
    step, state, data = _program(model)
    return planned(step.lower(state, data).compile())


def memory_by_jax(model: Model) -> int:
    """Those of the same step with the gradients that JAX derives."""
    with fn.autodiff("jax"):
        return memory(model)


def first(model: Gpt, loop: bool) -> dict[str, Callable[[Any], Any]]:
    """The stages up to the end of the first step."""
    step, state, data = _program(model, unroll=1 if loop else model.layers)
    return stages(step, state, data)


def repeated(step: Any, state: Any, batch: Any) -> Callable[[], Any]:
    """A step of `make_step` per call; gives the loss before it."""

    def call() -> Any:
        nonlocal state
        state, metrics = step(state, batch)
        return metrics["loss"]

    return call


def params_of(model: Model) -> Any:
    """The weights, on the device; those of a residual network by stages."""
    tree = model.weights()
    if isinstance(model, Resnet):
        blocks = iter(tree.pop("blocks"))
        tree["stages"] = [[next(blocks) for _ in range(count)] for count in model.blocks]
    return jax.tree.map(jnp.asarray, tree)


def _program(model: Model, **options: Any) -> tuple[Any, Any, Any]:
    """The jitted step, its state, and the batch."""
    params, data = params_of(model), jax.tree.map(jnp.asarray, model.data())
    optimizer, model_state = optimizer_of(model), None
    if isinstance(model, Resnet):
        config = fn.nets.resnet.Config(model.image, model.channels, model.blocks, model.classes)
        loss, model_state = _stateful_loss(config), fn.nets.resnet.init_state(config)
    else:
        loss = _loss(_forward(model, **options), fn.mse if isinstance(model, Encoder) else fn.cross_entropy)
    state = fn.train.init(params, optimizer, key=jax.random.key(0), model_state=model_state)
    return fn.train.make_step(loss, optimizer, guard=False), state, data  # as the peers: `run` has the guard


def _loss(forward: Callable[[Any, Any], Any], of_each: Any) -> Callable[..., Any]:
    def loss(params: Any, batch: Any, key: Any) -> Any:
        del key
        return of_each.apply(forward(params, batch[0]), batch[1]).mean()

    return loss


def _stateful_loss(config: Any) -> Callable[..., Any]:
    def loss(params: Any, state: Any, batch: Any, key: Any) -> Any:
        del key
        logits, state = fn.nets.resnet.apply(params, state, batch[0], config, train=True)
        return fn.cross_entropy.apply(logits, batch[1]).mean(), (state, {})

    return loss


def _forward(model: Model, **options: Any) -> Callable[[Any, Any], Any]:
    """(params, x) to what the loss takes."""
    if isinstance(model, Mlp):
        return lambda params, x: fn.nets.mlp.apply(params, x, fn.nets.mlp.Config(model.sizes))
    if isinstance(model, Gpt):
        config = gpt_config(model, **options)
        return lambda params, ids: fn.nets.transformer.apply(params, ids, config)
    return _convnet if isinstance(model, Convnet) else _encoder


def gpt_config(model: Gpt, **options: Any) -> Any:
    """The model's Config."""
    return fn.nets.transformer.Config(
        model.vocabulary,
        context=model.t,
        layers=model.layers,
        heads=model.heads,
        d=model.d,
        norm="layer",
        mlp="gelu_tanh",
        positions="learned",
        **options,
    )


def _convnet(params: Any, x: Any) -> Any:
    for conv in params["convs"]:
        x = fn.max_pool.apply(fn.relu.apply(fn.conv.apply(conv, x)), kernel=(2, 2))
    return fn.linear.apply(params["head"], x.reshape(x.shape[0], -1))


def _encoder(params: Any, x: Any) -> Any:
    x = fn.layer_norm.apply(params["norm1"], x + fn.multihead.apply(params["attention"], x), 1e-12)
    hidden = fn.gelu.apply(fn.linear.apply(params["up"], x))
    return fn.layer_norm.apply(params["norm2"], x + fn.linear.apply(params["down"], hidden), 1e-12)
