"""Haiku: functions of modules, made pure by `hk.transform_with_state`, in one donated `jax.jit`.

`hk.BatchNorm` keeps its running statistics as means without bias towards zero, so they differ from the other
peers'; nothing in training reads them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.models import Convnet, Encoder, Gpt, Mlp, Model, Resnet, one_block
from benchmarks.peers.plain import optimizer_of, planned, repeated, stages

PACKAGE = "dm-haiku"
IDIOM = (
    "`hk.transform_with_state`, its pure `apply` in one `jax.jit` with `donate_argnums`; `hk.layer_stack` "
    "for deep models: https://dm-haiku.readthedocs.io/en/latest/api.html"
)


def train(model: Model) -> Callable[[], Any]:
    """A step per call; gives the loss before it."""
    return repeated(*_program(model))


def memory(model: Model) -> int:
    """Bytes that the compiled step plans."""
    step, carry, data = _program(model)
    return planned(step.lower(*carry, *data).compile())


def first(model: Gpt, loop: bool) -> dict[str, Callable[[Any], Any]]:
    """The stages up to the end of the first step; loop: `hk.layer_stack`."""
    step, carry, data = _program(model, loop=loop)
    return stages(step, *carry, *data)


def _program(model: Model, *, loop: bool = False) -> tuple[Any, Any, Any]:
    """The jitted step, what it carries (params, state, optimizer's state), and the batch."""
    forward = {Mlp: _mlp, Convnet: _convnet, Resnet: _resnet, Gpt: partial(_gpt, loop), Encoder: _encoder}
    network = hk.transform_with_state(partial(forward[type(model)], model))
    optimizer = optimizer_of(model)
    data = jax.tree.map(jnp.asarray, model.data())
    params, state = jax.jit(network.init)(jax.random.key(0), data[0])
    params = _filled(params, model, loop)

    def loss(params: Any, state: Any, x: Any, y: Any) -> Any:
        out, state = network.apply(params, state, None, x)
        if isinstance(model, Encoder):
            return jnp.mean((out - y) ** 2), state
        return optax.softmax_cross_entropy_with_integer_labels(out, y).mean(), state

    @partial(jax.jit, donate_argnums=(0, 1, 2))
    def step(params: Any, state: Any, opt_state: Any, x: Any, y: Any) -> Any:
        (value, state), grads = jax.value_and_grad(loss, has_aux=True)(params, state, x, y)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), state, opt_state, value

    return step, (params, state, optimizer.init(params)), data


def _filled(params: Any, model: Model, loop: bool) -> Any:
    """The params with the model's weights; a module's name is that of its branch, `_` for an index."""
    weights = model.weights()
    if isinstance(model, Gpt) and not loop:
        weights["blocks"] = [one_block(weights["blocks"], i) for i in range(model.layers)]
    short = {
        "query": "q",
        "key": "k",
        "value": "v",
        "linear": "o",
        "scale": "w",
        "embeddings": "w",
        "offset": "b",
    }

    def weight(module: str, name: str, like: Any) -> Any:
        branch: Any = weights
        for part in (*module.split("/"), name):
            name, _, place = part.partition("_")
            branch = branch[short.get(name, name)]
            branch = branch[int(place)] if place else branch
        return jnp.asarray(branch).reshape(like.shape)

    return hk.data_structures.map(weight, params)


def _mlp(model: Mlp, x: Any) -> Any:
    *hidden, last = [hk.Linear(size, name=f"layers_{i}") for i, size in enumerate(model.sizes[1:])]
    for layer in hidden:
        x = jax.nn.relu(layer(x))
    return last(x)


def _convnet(model: Convnet, x: Any) -> Any:
    for i, c in enumerate(model.channels):
        x = jax.nn.relu(hk.Conv2D(c, 3, name=f"convs_{i}")(x))
        x = hk.max_pool(x, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return hk.Linear(model.classes, name="head")(hk.Flatten()(x))


def _resnet(model: Resnet, x: Any) -> Any:
    def conv(c: int, size: int, stride: int, name: str) -> Callable[[Any], Any]:
        return hk.Conv2D(c, size, stride, with_bias=False, name=name)

    def norm(name: str, x: Any) -> Any:
        module = hk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.9, name=name)
        return module(x, is_training=True)

    with hk.name_scope("stem"):
        x = jax.nn.relu(norm("norm", conv(model.channels[0], 3, 1, "conv")(x)))
    for i, (c_in, c_out, stride) in enumerate(model.layout()):
        with hk.name_scope(f"blocks_{i}"):
            y = jax.nn.relu(norm("norm1", conv(c_out, 3, stride, "conv1")(x)))
            y = norm("norm2", conv(c_out, 3, 1, "conv2")(y))
            if stride > 1 or c_in != c_out:
                x = norm("norm", conv(c_out, 1, stride, "project")(x))
            x = jax.nn.relu(x + y)
    return hk.Linear(model.classes, name="head")(x.mean((1, 2)))


def _gpt(loop: bool, model: Gpt, ids: Any) -> Any:
    causal: Any = np.tril(np.ones((1, 1, model.t, model.t), bool))

    def block(x: Any) -> Any:
        h = _layer_norm("norm1", x)
        x = x + _attention(model)(h, h, h, causal)
        up, down = hk.Linear(4 * model.d, name="up"), hk.Linear(model.d, name="down")
        return x + down(jax.nn.gelu(up(_layer_norm("norm2", x))))

    tokens = hk.Embed(model.vocabulary, model.d, name="tokens")
    with hk.name_scope("positions"):
        positions = hk.get_parameter("w", (model.t, model.d), init=jnp.zeros)
    x = tokens(ids) + positions
    if loop:
        x = hk.layer_stack(model.layers, name="blocks")(block)(x)
    else:
        for i in range(model.layers):
            with hk.name_scope(f"blocks_{i}"):
                x = block(x)
    return _layer_norm("norm", x) @ tokens.embeddings.T


def _encoder(model: Encoder, x: Any) -> Any:
    x = _layer_norm("norm1", x + _attention(model)(x, x, x), 1e-12)
    up, down = hk.Linear(4 * model.d, name="up"), hk.Linear(model.d, name="down")
    return _layer_norm("norm2", x + down(jax.nn.gelu(up(x), approximate=False)), 1e-12)


def _attention(model: Gpt | Encoder) -> hk.MultiHeadAttention:
    init = hk.initializers.Constant(0.0)  # `_filled` gives the weights
    return hk.MultiHeadAttention(model.heads, model.d // model.heads, w_init=init, name="attention")


def _layer_norm(name: str, x: Any, eps: float = 1e-5) -> Any:
    return hk.LayerNorm(axis=-1, param_axis=-1, create_scale=True, create_offset=True, eps=eps, name=name)(x)
