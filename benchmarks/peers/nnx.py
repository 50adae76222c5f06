"""Flax NNX: modules with the names of the weights' tree, and a training step in three of Flax's own forms.

Layers in a loop: blocks created by `nnx.vmap` and run by `nnx.scan`, as the latter's documentation shows:
https://flax.readthedocs.io/en/latest/api_reference/flax.nnx/transforms.html
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from benchmarks import models
from benchmarks.models import Model
from benchmarks.peers.plain import optimizer_of, planned, repeated, stages

PACKAGE = "flax"
IDIOM = (
    "the functional training loop, which stages the graph's traversals out: `nnx.split` once, `nnx.merge` "
    "and `nnx.state` within one donated `jax.jit`: https://flax.readthedocs.io/en/latest/guides/performance.html"
)


def train(model: Model) -> Callable[[], Any]:
    """A step of the functional training loop per call; gives the loss before it."""
    return repeated(*_program(model))


def train_nnx_jit(model: Model) -> Callable[[], Any]:
    """The same by `nnx.jit`, which takes the modules and changes them, as most users write it."""
    network, optimizer, data = *_built(model), _data(model)
    step = nnx.jit(partial(_update, _loss(model)), donate_argnums=(0, 1))
    return lambda: step(network, optimizer, *data)


def train_nnx_jit_partial(model: Model) -> Callable[[], Any]:
    """The same by `nnx.jit_partial`, which flattens the modules once: new in Flax 0.12, not in its guide."""
    network, optimizer, data = *_built(model), _data(model)
    update = partial(_update, _loss(model))
    step = nnx.jit_partial(update, network, optimizer, graph=False, donate_argnums=0)  # 0: all that is bound
    return lambda: step(*data)


def memory(model: Model) -> int:
    """Bytes that the compiled step plans."""
    step, carry, data = _program(model)
    return planned(step.lower(*carry, *data).compile())


def first(model: models.Gpt, loop: bool) -> dict[str, Callable[[Any], Any]]:
    """The stages up to the end of the first step; loop: `nnx.scan` over blocks that `nnx.vmap` created."""
    step, carry, data = _program(model, loop=loop)
    return stages(step, *carry, *data)


def _program(model: Model, *, loop: bool = False) -> tuple[Any, Any, Any]:
    """The jitted step, what it carries (the state of the network and of its optimizer), and the batch."""
    graphdef, state = nnx.split(_built(model, loop=loop))
    loss = _loss(model)

    @partial(jax.jit, donate_argnums=0)
    def step(state: Any, x: Any, y: Any) -> Any:
        network, optimizer = nnx.merge(graphdef, state)
        value = _update(loss, network, optimizer, x, y)
        return nnx.state((network, optimizer)), value

    return step, (state,), _data(model)


def _update(loss: Callable[..., Any], network: Any, optimizer: Any, x: Any, y: Any) -> Any:
    """One step in place."""
    value, grads = nnx.value_and_grad(loss)(network, x, y)
    optimizer.update(network, grads)
    return value


def _loss(model: Model) -> Callable[..., Any]:
    """(network, x, y) to the loss."""
    if isinstance(model, models.Encoder):
        return lambda network, x, y: jnp.mean((network(x) - y) ** 2)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    return lambda network, x, y: cross_entropy(network(x), y).mean()


def _data(model: Model) -> Any:
    return jax.tree.map(jnp.asarray, model.data())


def _built(model: Model, *, loop: bool = False) -> tuple[Any, Any]:
    """The network with the model's weights, and its optimizer."""
    weights = model.weights()
    if isinstance(model, models.Gpt):
        weights["positions"] = weights["positions"]["w"]
        if not loop:
            weights["blocks"] = [models.one_block(weights["blocks"], i) for i in range(model.layers)]
    networks = {
        models.Mlp: _Mlp,
        models.Convnet: _Convnet,
        models.Resnet: _Resnet,
        models.Gpt: partial(_Gpt, loop=loop),
        models.Encoder: _Encoder,
    }
    network = networks[type(model)](model, rngs=nnx.Rngs(0))
    nnx.update(network, _renamed(weights))
    return network, nnx.Optimizer(network, optimizer_of(model), wrt=nnx.Param)


def _renamed(tree: Any, w: str = "kernel") -> Any:
    """The weights as NNX's layers name theirs; `w` is the name of a weight in this branch."""
    if isinstance(tree, list):
        return {i: _renamed(leaf, w) for i, leaf in enumerate(tree)}
    if not isinstance(tree, dict):
        return jnp.asarray(tree)
    names = {"w": w, "b": "bias", "q": "query", "k": "key", "v": "value", "o": "out"}
    kinds = {"norm": "scale", "norm1": "scale", "norm2": "scale", "tokens": "embedding"}
    return {names.get(name, name): _renamed(leaf, kinds.get(name, w)) for name, leaf in tree.items()}


class _Mlp(nnx.Module):
    """Linear maps with rectifiers between them."""

    def __init__(self, model: models.Mlp, rngs: nnx.Rngs):
        pairs = zip(model.sizes, model.sizes[1:], strict=False)
        self.layers = nnx.List([nnx.Linear(*pair, rngs=rngs) for pair in pairs])

    def __call__(self, x: Any) -> Any:
        *hidden, last = self.layers
        for layer in hidden:
            x = nnx.relu(layer(x))
        return last(x)


class _Convnet(nnx.Module):
    """Convolutions with rectifiers and pooling, then a linear map."""

    def __init__(self, model: models.Convnet, rngs: nnx.Rngs):
        pairs = list(zip((model.image[-1], *model.channels), model.channels, strict=False))
        self.convs = nnx.List([nnx.Conv(*pair, (3, 3), rngs=rngs) for pair in pairs])
        height, width = model.side
        self.head = nnx.Linear(height * width * model.channels[-1], model.classes, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        for conv in self.convs:
            x = nnx.max_pool(nnx.relu(conv(x)), (2, 2), (2, 2))
        return self.head(x.reshape(x.shape[0], -1))


class _Stem(nnx.Module):
    """A convolution, its norm and a rectifier."""

    def __init__(self, c_in: int, c_out: int, rngs: nnx.Rngs):
        self.conv = _conv(c_in, c_out, 3, 1, rngs)
        self.norm = _batch_norm(c_out, rngs)

    def __call__(self, x: Any) -> Any:
        return nnx.relu(self.norm(self.conv(x)))


class _ResidualBlock(nnx.Module):
    """Two convolutions beside the identity, or beside a projection."""

    def __init__(self, c_in: int, c_out: int, stride: int, rngs: nnx.Rngs):
        self.conv1 = _conv(c_in, c_out, 3, stride, rngs)
        self.norm1 = _batch_norm(c_out, rngs)
        self.conv2 = _conv(c_out, c_out, 3, 1, rngs)
        self.norm2 = _batch_norm(c_out, rngs)
        self.projects = stride > 1 or c_in != c_out
        if self.projects:
            self.project = _conv(c_in, c_out, 1, stride, rngs)
            self.norm = _batch_norm(c_out, rngs)

    def __call__(self, x: Any) -> Any:
        y = self.norm2(self.conv2(nnx.relu(self.norm1(self.conv1(x)))))
        if self.projects:
            x = self.norm(self.project(x))
        return nnx.relu(x + y)


class _Resnet(nnx.Module):
    """The stem, the blocks, the mean over the image and a linear map."""

    def __init__(self, model: models.Resnet, rngs: nnx.Rngs):
        self.stem = _Stem(model.image[-1], model.channels[0], rngs)
        self.blocks = nnx.List([_ResidualBlock(*sizes, rngs) for sizes in model.layout()])
        self.head = nnx.Linear(model.channels[-1], model.classes, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


def _conv(c_in: int, c_out: int, size: int, stride: int, rngs: nnx.Rngs) -> nnx.Conv:
    return nnx.Conv(c_in, c_out, (size, size), stride, use_bias=False, rngs=rngs)


def _batch_norm(c: int, rngs: nnx.Rngs) -> nnx.BatchNorm:
    return nnx.BatchNorm(c, use_running_average=False, momentum=0.9, epsilon=1e-5, rngs=rngs)


class _Block(nnx.Module):
    """A block of a transformer with the norms first."""

    def __init__(self, model: models.Gpt, rngs: nnx.Rngs):
        d = model.d
        self.norm1 = nnx.LayerNorm(d, epsilon=1e-5, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(model.heads, d, decode=False, rngs=rngs)
        self.norm2 = nnx.LayerNorm(d, epsilon=1e-5, rngs=rngs)
        self.up = nnx.Linear(d, 4 * d, rngs=rngs)
        self.down = nnx.Linear(4 * d, d, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = x + self.attention(self.norm1(x), is_causal=True)
        return x + self.down(nnx.gelu(self.up(self.norm2(x))))


class _Gpt(nnx.Module):
    """Embeddings, the blocks in a list or, for a loop, stacked, a norm and the tied head."""

    def __init__(self, model: models.Gpt, rngs: nnx.Rngs, loop: bool):
        self.tokens = nnx.Embed(model.vocabulary, model.d, rngs=rngs)
        self.positions = nnx.Param(jnp.zeros((model.t, model.d)))

        @nnx.split_rngs(splits=model.layers)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def stacked(rngs: nnx.Rngs) -> _Block:
            return _Block(model, rngs)

        self.loop = loop
        layers = range(model.layers)
        self.blocks: Any = stacked(rngs) if loop else nnx.List([_Block(model, rngs) for _ in layers])
        self.norm = nnx.LayerNorm(model.d, epsilon=1e-5, rngs=rngs)

    def __call__(self, ids: Any) -> Any:
        x = self.tokens(ids) + self.positions

        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def scanned(x: Any, block: _Block) -> Any:
            return block(x)

        if self.loop:
            x = scanned(x, self.blocks)
        else:
            for block in self.blocks:
                x = block(x)
        return self.tokens.attend(self.norm(x))


class _Encoder(nnx.Module):
    """A block of BERT: the norms last."""

    def __init__(self, model: models.Encoder, rngs: nnx.Rngs):
        d = model.d
        self.attention = nnx.MultiHeadAttention(model.heads, d, decode=False, rngs=rngs)
        self.norm1 = nnx.LayerNorm(d, epsilon=1e-12, rngs=rngs)
        self.up = nnx.Linear(d, 4 * d, rngs=rngs)
        self.down = nnx.Linear(4 * d, d, rngs=rngs)
        self.norm2 = nnx.LayerNorm(d, epsilon=1e-12, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.down(nnx.gelu(self.up(x), approximate=False)))
