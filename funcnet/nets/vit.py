"""A vision transformer: an image, cut into patches, to logits. Pre-norm blocks, learned positions.

    x = [cls; patches W + b] + positions;
    for each block: x += attention(norm1(x)), x += down(gelu(up(norm2(x))));
    logits = head(norm(x)[0])

A patch is its pixels in one row, channels last. The blocks are stacked (`stack`). Source: Dosovitskiy et al.,
"An Image is Worth 16×16 Words: Transformers for Image Recognition at Scale", arXiv 2010.11929. `hub.load`
fills it with pretrained weights.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from funcnet import rules, spec, taps
from funcnet.errors import ValueRangeError
from funcnet.errors import describe as describe_value
from funcnet.nets import _blocks, _images, maps, stack
from funcnet.ops import _check, _squares
from funcnet.ops._draw import in_one_program
from funcnet.ops._shape import align
from funcnet.ops.attention import multihead
from funcnet.ops.dense import embedding, linear
from funcnet.ops.elementwise import gelu, tanh
from funcnet.ops.norm import layer_norm
from funcnet.ops.random import dropout

__all__ = ["Config", "apply", "hidden", "init", "patches", "pool_first", "specs"]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Config:
    """The shape of the model; the defaults are those of ViT-B/16.

    Attributes:
        image: height, width and channels of an image.
        patch: height and width of a patch, divisors of the image's.
        layers: number of blocks.
        heads: attention heads in a block.
        d: features.
        d_hidden: features of a block's hidden layer; None is 4 d.
        classes: number of logits; None: no head, `apply` gives features.
        qkv_bias: whether queries, keys and values have a bias.
        norm_eps: added to the variance by every norm.
        dropout: rate on the embedding and on what each block adds, where there is a key.
        attention_dropout: rate on the attention weights, where there is a key.
        unroll: blocks in one step of the loop over them; where it takes them all, there is no loop. None: all
            up to 12, otherwise 1; and 1 on a mesh with Explicit axes where a block gathers its parameters.
        remat: keep only what enters each block, and compute the block again in the backward pass.
        dtype: to compute in, "bfloat16" say; None is that of params.
        pooler: whether params have the layer of `pool_first`.
        files: what `hub.load` read beside the tensors, the contents of each file by its name, for `hub.save`
            to write again: labels ... No number depends on it, so Configs that differ in it are equal.
    """

    image: tuple[int, int, int] = (224, 224, 3)
    patch: tuple[int, int] = (16, 16)
    layers: int = 12
    heads: int = 12
    d: int = 768
    d_hidden: int | None = None
    classes: int | None = 1000
    qkv_bias: bool = True
    norm_eps: float = 1e-6
    dropout: float = 0.0
    attention_dropout: float = 0.0
    unroll: int | None = None
    remat: bool = False
    dtype: str | None = None
    pooler: bool = False
    files: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse patches that do not tile the image."""
        where = "vit.Config"
        _check.fields(where, self)
        for name in ("dropout", "attention_dropout"):
            _check.rate(where, name, getattr(self, name))
        if any(size % side for size, side in zip(self.image, self.patch, strict=False)):
            raise ValueRangeError(
                f"vit.Config: patches of {self.patch} do not tile an image of {self.image[:2]}.",
                path="patch",
                expected=f"divisors of {self.image[0]} and {self.image[1]}     (image)",
                actual=f"patch = {self.patch}",
            )


@in_one_program
def init(key: PRNGKeyArray, config: Config) -> dict[str, Any]:
    """{"patches", "cls" [d], "positions", "blocks" (stacked), "norm"} and, where config has them, the others.

    Those are "head" and "pooler". Positions are uniform of variance 0.02², the maps of 1/d_in; cls and the
    head are 0, as in the source.
    """
    _check.config("vit.init", config, Config)
    _check.key("vit.init", key, none=False)
    key_patches, key_positions, key_blocks, key_pooler = jax.random.split(key, 4)
    (height, width, c), (p, q), d = config.image, config.patch, config.d
    params: dict[str, Any] = {
        "patches": linear.init(key_patches, p * q * c, d),
        "cls": jnp.zeros((d,)),
        "positions": {
            "w": 0.02 * embedding.init(key_positions, 1 + (height // p) * (width // q), d)["w"],
        },
        "blocks": stack.init(key_blocks, config.layers, lambda k: _init_block(k, config)),
        "norm": layer_norm.init(key, d),
    }
    if config.classes is not None:
        params["head"] = {"w": jnp.zeros((d, config.classes)), "b": jnp.zeros(config.classes)}
    if config.pooler:
        params["pooler"] = linear.init(key_pooler, d, d)
    return params


def _init_block(key: PRNGKeyArray, config: Config) -> dict[str, Any]:
    key_attention, key_up, key_down = jax.random.split(key, 3)
    d, d_hidden = config.d, config.d_hidden or 4 * config.d
    attention: dict[str, Any] = {**multihead.init(key_attention, d, config.heads)}
    if not config.qkv_bias:
        attention |= {name: {"w": attention[name]["w"]} for name in "qkv"}
    return {
        "norm1": layer_norm.init(key, d),
        "attention": attention,
        "norm2": layer_norm.init(key, d),
        "up": linear.init(key_up, d, d_hidden),
        "down": linear.init(key_down, d_hidden, d),
    }


@rules.by_letters
def patches(images: Float[Array, "*n h w c"], patch: tuple[int, int]) -> Float[Array, "*n t d"]:
    """The patches of images [*n, h, w, c], row by row, each with its pixels in one row: [*n, t, p · q · c].

    >>> patches(jnp.arange(16.0).reshape(4, 4, 1), (2, 2))[1]  # the second of the first row
    Array([2., 3., 6., 7.], dtype=float32)
    """
    images = _check.floating("vit.patches", "images", images)
    _check.rank("vit.patches", "images", images, 3, "*n, h, w, c")
    sides = _check.integers("vit.patches", "patch", patch, like="(height, width)")
    (*n, height, width, c) = images.shape
    if len(sides) != 2 or height % sides[0] or width % sides[1]:
        raise ValueRangeError(
            f"vit.patches: patch {sides} does not tile the images.",
            path="patch",
            expected=f"divisors of {height} and {width}     (images: {describe_value(images)})",
            actual=f"patch = {sides}",
        )
    p, q = sides
    x = images.reshape(*n, height // p, p, width // q, q, c).swapaxes(-4, -3)
    return x.reshape(*n, (height // p) * (width // q), p * q * c)


def hidden(
    params: dict[str, Any],
    images: Float[Array, "*n h w c"],
    config: Config,
    *,
    key: PRNGKeyArray | None = None,
) -> Float[Array, "*n t d"]:
    """The features behind the last norm: of the class token first, then of each patch. See `apply`."""
    where = "vit.hidden"
    _check.config(where, config, Config)
    images = _images.check(where, images, config.image)
    blocks = "blocks.norm1", "blocks.attention", "blocks.norm2", "blocks.up", "blocks.down"
    _check.tree(where, params, "patches", "cls", "positions", "norm", "blocks", *blocks)
    if key is not None:
        _check.key(where, key)
    if config.dtype is not None:
        params, images = jax.tree.map(lambda v: v.astype(config.dtype), (params, images))
    key_embedding, key_blocks = (None, None) if key is None else jax.random.split(key)
    x = maps.linear(params["patches"], patches(images, config.patch))
    d = jax.ShapeDtypeStruct(x.shape[-1:], x.dtype)
    cls = _check.floating(where, 'params["cls"]', params["cls"])
    _check.same_shape(where, 'params["cls"]', cls, "a patch's features", d)
    table = _check.parameter(f'{where}: params["positions"]', params["positions"], "w")
    td = jax.ShapeDtypeStruct((x.shape[-2] + 1, x.shape[-1]), x.dtype)
    _check.same_shape(where, 'params["positions"]["w"]', table, "the class token and patches", td)
    x = _embed({"cls": cls, "positions": table}, x)
    x = dropout.apply(x, rate=config.dropout, key=key_embedding)
    keys = None if key_blocks is None else jax.random.split(key_blocks, (config.layers, 3))

    def block(layer: dict[str, Any], x: Array, keys: Array | None = None) -> Array:
        key_weights, key_attention, key_mlp = (None, None, None) if keys is None else keys
        x = taps.tap("in", x)
        with taps.scope("attention"):
            a = multihead.apply(
                layer["attention"],
                layer_norm.apply(layer["norm1"], x, config.norm_eps),
                dropout_rate=config.attention_dropout,
                key=key_weights,
            )
        a = taps.tap("attention", dropout.apply(a, rate=config.dropout, key=key_attention))
        x = taps.tap("middle", x + a)
        h = maps.linear(layer["up"], layer_norm.apply(layer["norm2"], x, config.norm_eps))
        h = maps.linear(layer["down"], taps.tap("mlp.hidden", gelu.apply(h)))
        h = taps.tap("mlp", dropout.apply(h, rate=config.dropout, key=key_mlp))
        return taps.tap("out", x + h)

    with taps.scope("blocks"):
        x = stack.apply(block, params["blocks"], x, keys, unroll=config.unroll, remat=config.remat)
    return layer_norm.apply(params["norm"], x, config.norm_eps)


def _squares_of_embed(params: dict[str, Any], x: Array, dy: Array) -> Array:
    """|d cls|² + |d positions|² of each example."""
    del params, x
    dy = _squares.over_leading(dy, 2)
    return _squares.summed(dy) + _squares.summed(dy[:, 0])


@rules.part(_squares_of_embed)
def _embed(params: dict[str, Any], x: Float[Array, "*n t d"]) -> Float[Array, "*n s d"]:
    """[cls; x] + positions, the same for every image."""
    cls = jnp.broadcast_to(params["cls"], (*x.shape[:-2], 1, x.shape[-1]))
    x = jnp.concatenate([cls, x], -2)
    return x + align(params["positions"], x.ndim)


def apply(
    params: dict[str, Any],
    images: Float[Array, "*n h w c"],
    config: Config,
    *,
    key: PRNGKeyArray | None = None,
) -> Float[Array, "*n classes"]:
    """Logits of images, or without a head the features of the class token [*n, d].

    Args:
        params: from `init`.
        images: [*n, *config.image].
        config: the model's.
        key: for dropout; None in evaluation.

    Raises:
        ShapeError: the images do not have the shape config.image.
    """
    x = hidden(params, images, config, key=key)[..., 0, :]
    if config.classes is None:
        return x
    head = (
        params["head"] if config.dtype is None else jax.tree.map(lambda w: w.astype(x.dtype), params["head"])
    )
    return maps.linear(head, x)


def pool_first(params: dict[str, Any], x: Float[Array, "*n t d"]) -> Float[Array, "*n d"]:
    """The summary of `hidden` features x [*n, t, d]: tanh of a linear map of the first, the class token's."""
    return tanh.apply(maps.linear(params["pooler"], x[..., 0, :]))


def specs(config: Config) -> dict[str, Any]:
    """The parallel tree of `spec.Spec`; the first axis of every leaf of "blocks" is "layers"."""
    _check.config("vit.specs", config, Config)
    params = jax.eval_shape(lambda: init(jax.random.key(0), config))
    facts = {
        "patches": linear.specs(params["patches"], axes="pixels d"),
        "cls": spec.of(params["cls"], "d"),
        "positions": embedding.specs(params["positions"], axes="t d"),
        "blocks": stack.specs(_blocks.specs, params["blocks"]),
        "norm": layer_norm.specs(params["norm"]),
    }
    heads = {"head": "d classes", "pooler": "d_in d_out"}
    return facts | {name: linear.specs(params[name], axes=a) for name, a in heads.items() if name in params}
