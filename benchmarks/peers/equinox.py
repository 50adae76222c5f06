"""Equinox: modules that are pytrees, called on one example; `jax.vmap` over the batch; channels first."""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import nn

from benchmarks import models
from benchmarks.models import Model
from benchmarks.peers import plain

PACKAGE = "equinox"
IDIOM = (
    "low-overhead training loop: the step takes and gives flat leaves, under `jax.jit` with donation, the "
    "rest split off by `eqx.partition`: https://docs.kidger.site/equinox/tricks/#low-overhead-training-loops"
)
KEY = jax.random.key(0)  # of layers whose weights are replaced at once


def train(model: Model) -> Callable[[], Any]:
    """A step per call, from leaves to leaves; gives the loss before it."""
    return plain.repeated(*_program(model))


def train_filter_jit(model: Model) -> Callable[[], Any]:
    """A step per call, as most users write it; gives the loss before it."""
    update, carry, data = _parts(model)

    @eqx.filter_jit(donate="all-except-first")
    def step(data: Any, carry: Any) -> Any:
        return update(carry, *data)

    def call() -> Any:
        nonlocal carry
        carry, value = step(data, carry)
        return value

    return call


def memory(model: Model) -> int:
    """Bytes that the compiled step plans."""
    step, carry, data = _program(model)
    return plain.planned(step.lower(*carry, *data).compile())


def first(model: models.Gpt, loop: bool) -> dict[str, Callable[[Any], Any]]:
    """The stages up to the end of the first step; a loop is the 'scan-over-layers' of the page of tricks."""
    step, carry, data = _program(model, loop)
    return plain.stages(step, *carry, *data)


def _program(model: Model, loop: bool = False) -> tuple[Any, Any, Any]:
    """The jitted step, what it carries (a list of leaves), and the batch."""
    update, carry, data = _parts(model, loop)
    arrays, static = eqx.partition(carry, eqx.is_array)
    leaves, tree = jax.tree.flatten(arrays)

    @partial(jax.jit, donate_argnums=0)
    def step(leaves: Any, x: Any, y: Any) -> Any:
        carry, value = update(eqx.combine(jax.tree.unflatten(tree, leaves), static), x, y)
        return jax.tree.leaves(eqx.filter(carry, eqx.is_array)), value

    return step, (leaves,), data


def _parts(model: Model, loop: bool = False) -> tuple[Any, Any, Any]:
    """The step, not jitted; what it carries (module, its state, that of the optimizer); and the batch."""
    net, state = _build(model, loop)
    optimizer = plain.optimizer_of(model)
    x, y = map(jnp.asarray, model.data())
    if isinstance(model, models.Convnet | models.Resnet):
        x = x.transpose(0, 3, 1, 2)

    @partial(eqx.filter_value_and_grad, has_aux=True)
    def loss(net: Any, state: Any, x: Any, y: Any) -> Any:
        if state is None:
            predicted = jax.vmap(net)(x)
        else:
            batched = jax.vmap(net, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
            predicted, state = batched(x, state)
        if isinstance(model, models.Encoder):
            return jnp.mean((predicted - y) ** 2), state
        return optax.softmax_cross_entropy_with_integer_labels(predicted, y).mean(), state

    def update(carry: Any, x: Any, y: Any) -> Any:
        net, state, opt_state = carry
        (value, state), grads = loss(net, state, x, y)
        updates, opt_state = optimizer.update(grads, opt_state, eqx.filter(net, eqx.is_inexact_array))
        return (eqx.apply_updates(net, updates), state, opt_state), value

    return update, (net, state, optimizer.init(eqx.filter(net, eqx.is_inexact_array))), (x, y)


def _build(model: Model, loop: bool) -> tuple[Any, Any]:
    """The module with the weights of the model, and its state; None where it has none."""
    weights = jax.tree.map(jnp.asarray, model.weights())
    if isinstance(model, models.Mlp):
        return _Mlp(weights), None
    if isinstance(model, models.Convnet):
        return _Convnet(model, weights), None
    if isinstance(model, models.Resnet):
        return eqx.nn.make_with_state(_Resnet)(model, weights)
    if isinstance(model, models.Gpt):
        return _Gpt(model, weights, loop), None
    return _Encoder(model.heads, weights), None


class _Mlp(eqx.Module):
    layers: list[eqx.nn.Linear]

    def __init__(self, weights: Any):
        self.layers = [_linear(leaves) for leaves in weights["layers"]]

    def __call__(self, x: Any) -> Any:
        for layer in self.layers[:-1]:
            x = nn.relu(layer(x))
        return self.layers[-1](x)


class _Convnet(eqx.Module):
    convs: list[eqx.nn.Conv2d]
    pool: eqx.nn.MaxPool2d
    head: eqx.nn.Linear

    def __init__(self, model: models.Convnet, weights: Any):
        self.convs = [_conv(leaves) for leaves in weights["convs"]]
        self.pool = eqx.nn.MaxPool2d(2, 2)
        w, b = weights["head"]["w"], weights["head"]["b"]
        rows = w.reshape(*model.side, model.channels[-1], -1).transpose(2, 0, 1, 3)  # flat here is [c, h, w]
        self.head = _linear({"w": rows.reshape(w.shape), "b": b})

    def __call__(self, x: Any) -> Any:
        for conv in self.convs:
            x = self.pool(nn.relu(conv(x)))
        return self.head(x.ravel())


class _Residual(eqx.Module):
    conv1: eqx.nn.Conv2d
    norm1: eqx.nn.BatchNorm
    conv2: eqx.nn.Conv2d
    norm2: eqx.nn.BatchNorm
    project: eqx.nn.Conv2d | None
    norm: eqx.nn.BatchNorm | None

    def __init__(self, weights: Any, stride: int):
        self.conv1, self.norm1 = _conv(weights["conv1"], stride), _batch_norm(weights["norm1"])
        self.conv2, self.norm2 = _conv(weights["conv2"]), _batch_norm(weights["norm2"])
        self.project = _conv(weights["project"], stride) if "project" in weights else None
        self.norm = _batch_norm(weights["norm"]) if "project" in weights else None

    def __call__(self, x: Any, state: eqx.nn.State) -> tuple[Any, eqx.nn.State]:
        y, state = self.norm1(self.conv1(x), state)
        y, state = self.norm2(self.conv2(nn.relu(y)), state)
        if self.project is not None and self.norm is not None:
            x, state = self.norm(self.project(x), state)
        return nn.relu(x + y), state


class _Resnet(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    blocks: list[_Residual]
    head: eqx.nn.Linear

    def __init__(self, model: models.Resnet, weights: Any):
        self.conv, self.norm = _conv(weights["stem"]["conv"]), _batch_norm(weights["stem"]["norm"])
        pairs = zip(weights["blocks"], model.layout(), strict=True)
        self.blocks = [_Residual(leaves, stride) for leaves, (_, _, stride) in pairs]
        self.head = _linear(weights["head"])

    def __call__(self, x: Any, state: eqx.nn.State) -> tuple[Any, eqx.nn.State]:
        x, state = self.norm(self.conv(x), state)
        x = nn.relu(x)
        for block in self.blocks:
            x, state = block(x, state)
        return self.head(x.mean((1, 2))), state


class _Block(eqx.Module):
    norm1: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention
    norm2: eqx.nn.LayerNorm
    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self, heads: int, weights: Any):
        self.norm1, self.norm2 = _layer_norm(weights["norm1"]), _layer_norm(weights["norm2"])
        self.attention = _attention(heads, weights["attention"])
        self.up, self.down = _linear(weights["up"]), _linear(weights["down"])

    def __call__(self, x: Any) -> Any:
        causal = jnp.tril(jnp.ones((len(x), len(x)), bool))
        y = jax.vmap(self.norm1)(x)
        x = x + self.attention(y, y, y, causal)
        hidden = nn.gelu(jax.vmap(self.up)(jax.vmap(self.norm2)(x)))
        return x + jax.vmap(self.down)(hidden)


class _Gpt(eqx.Module):
    tokens: eqx.nn.Embedding
    positions: eqx.nn.Embedding
    blocks: Any  # a list of them; in a loop, one with every leaf stacked
    norm: eqx.nn.LayerNorm
    loop: bool = eqx.field(static=True)

    def __init__(self, model: models.Gpt, weights: Any, loop: bool):
        self.tokens = eqx.nn.Embedding(weight=weights["tokens"]["w"])
        self.positions = eqx.nn.Embedding(weight=weights["positions"]["w"])
        make = partial(_Block, model.heads)
        if loop:
            self.blocks = eqx.filter_vmap(make)(weights["blocks"])
        else:
            self.blocks = [make(models.one_block(weights["blocks"], i)) for i in range(model.layers)]
        self.norm = _layer_norm(weights["norm"])
        self.loop = loop

    def __call__(self, ids: Any) -> Any:
        x = jax.vmap(self.tokens)(ids) + jax.vmap(self.positions)(jnp.arange(len(ids)))
        if self.loop:
            arrays, static = eqx.partition(self.blocks, eqx.is_array)
            x, _ = jax.lax.scan(lambda x, layer: (eqx.combine(layer, static)(x), None), x, arrays)
        else:
            for block in self.blocks:
                x = block(x)
        return jax.vmap(self.norm)(x) @ self.tokens.weight.T


class _Encoder(eqx.Module):
    attention: eqx.nn.MultiheadAttention
    norm1: eqx.nn.LayerNorm
    up: eqx.nn.Linear
    down: eqx.nn.Linear
    norm2: eqx.nn.LayerNorm

    def __init__(self, heads: int, weights: Any):
        self.attention = _attention(heads, weights["attention"])
        self.norm1, self.norm2 = (_layer_norm(weights[name], 1e-12) for name in ("norm1", "norm2"))
        self.up, self.down = _linear(weights["up"]), _linear(weights["down"])

    def __call__(self, x: Any) -> Any:
        x = jax.vmap(self.norm1)(x + self.attention(x, x, x))
        hidden = nn.gelu(jax.vmap(self.up)(x), approximate=False)
        return jax.vmap(self.norm2)(x + jax.vmap(self.down)(hidden))


def _linear(leaves: Any) -> eqx.nn.Linear:
    """Its weight is [d_out, d_in]."""
    layer = eqx.nn.Linear(*leaves["w"].shape, key=KEY)
    return _filled(layer, leaves["w"].T, leaves["b"])


def _conv(leaves: Any, stride: int = 1) -> eqx.nn.Conv2d:
    """Its weight is [c_out, c_in, h, w]."""
    size, _, c_in, c_out = leaves["w"].shape
    bias = leaves["b"][:, None, None] if "b" in leaves else None
    layer = eqx.nn.Conv2d(c_in, c_out, size, stride, "SAME", use_bias=bias is not None, key=KEY)
    return _filled(layer, leaves["w"].transpose(3, 2, 0, 1), bias)


def _batch_norm(leaves: Any) -> eqx.nn.BatchNorm:
    layer = eqx.nn.BatchNorm(len(leaves["w"]), "batch", eps=1e-5, momentum=0.9, mode="batch")
    return _filled(layer, leaves["w"], leaves["b"])


def _layer_norm(leaves: Any, eps: float = 1e-5) -> eqx.nn.LayerNorm:
    return _filled(eqx.nn.LayerNorm(leaves["w"].shape[-1], eps), leaves["w"], leaves["b"])


def _attention(heads: int, leaves: Any) -> eqx.nn.MultiheadAttention:
    """Self-attention with a bias everywhere; the heads are one axis of its projections."""
    d = leaves["o"]["w"].shape[-1]
    biases = {f"use_{name}_bias": True for name in ("query", "key", "value", "output")}
    flat = [
        _linear({"w": leaves[name]["w"].reshape(d, d), "b": leaves[name]["b"].ravel()}) for name in "qkvo"
    ]
    layer = eqx.nn.MultiheadAttention(heads, d, **biases, key=KEY)
    return eqx.tree_at(lambda a: [a.query_proj, a.key_proj, a.value_proj, a.output_proj], layer, flat)


def _filled(layer: Any, weight: Any, bias: Any) -> Any:
    """A layer with other parameters ('Custom parameter initialisation' on the page of tricks)."""
    layer = eqx.tree_at(lambda own: own.weight, layer, weight)
    return layer if bias is None else eqx.tree_at(lambda own: own.bias, layer, bias)
