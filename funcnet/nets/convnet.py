"""A convolutional classifier of images: stages of convolutions, each halving the image, then linear maps."""

import dataclasses
import math
from typing import Any

import jax
from jaxtyping import Array, Float, PRNGKeyArray

from funcnet import taps
from funcnet.errors import ShapeError
from funcnet.nets import _images, maps
from funcnet.ops import _check
from funcnet.ops._draw import in_one_program
from funcnet.ops.conv import conv, max_pool
from funcnet.ops.dense import linear
from funcnet.ops.elementwise import relu
from funcnet.ops.random import dropout

__all__ = ["Config", "apply", "init", "specs"]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Config:
    """The shape of the model.

    Attributes:
        image: height, width and channels of an image.
        channels: of each stage; a stage is `depth` convolutions with rectifiers, then 2 x 2 max pooling.
        depth: convolutions in a stage.
        hidden: features of the hidden linear map.
        classes: number of outputs.
        dropout: rate before the last map, in training.
    """

    image: tuple[int, int, int]
    channels: tuple[int, ...] = (32, 64)
    depth: int = 1
    hidden: int = 128
    classes: int = 10
    dropout: float = 0.0

    def __post_init__(self) -> None:
        _check.fields("convnet.Config", self)
        _check.rate("convnet.Config", "dropout", self.dropout)


def _flat(config: Config) -> int:
    height, width, _ = config.image
    return math.prod(side >> len(config.channels) for side in (height, width)) * config.channels[-1]


@in_one_program
def init(key: PRNGKeyArray, config: Config) -> dict[str, Any]:
    """{"stages": [[{"w", "b"}, ...], ...], "hidden": {"w", "b"}, "head": {"w", "b"}}."""
    _check.config("convnet.init", config, Config)
    _check.key("convnet.init", key, none=False)
    if not _flat(config):
        raise ShapeError(
            f"convnet.init: {len(config.channels)} stages halve the image to nothing.",
            path="config.channels",
            expected=f"at most {min(config.image[:2]).bit_length() - 1} stages for image {config.image}",
            actual=f"channels = {config.channels}",
        )
    key_hidden, key_head, key_stages = jax.random.split(key, 3)
    stages, c_in = [], config.image[-1]
    for stage_key, c in zip(jax.random.split(key_stages, len(config.channels)), config.channels, strict=True):
        sizes = [c_in] + [c] * (config.depth - 1)
        keys = jax.random.split(stage_key, config.depth)
        stages.append([conv.init(k, size, c, kernel=(3, 3)) for k, size in zip(keys, sizes, strict=True)])
        c_in = c
    return {
        "stages": stages,
        "hidden": linear.init(key_hidden, _flat(config), config.hidden),
        "head": linear.init(key_head, config.hidden, config.classes),
    }


def apply(
    params: dict[str, Any],
    images: Float[Array, "*n h w c"],
    config: Config,
    *,
    key: PRNGKeyArray | None = None,
) -> Float[Array, "*n classes"]:
    """Logits of images.

    Args:
        params: from `init`.
        images: [*n, *config.image].
        config: the model's.
        key: for dropout; None in evaluation.

    Raises:
        ShapeError: the images do not have the shape config.image.
    """
    where = "convnet.apply"
    _check.config(where, config, Config)
    x = _images.check(where, images, config.image)
    _check.tree(where, params, "stages", "hidden", "head")
    for i, stage in enumerate(_check.layers(where, params, "stages")):
        for j, layer in enumerate(stage):
            x = taps.tap(f"stages.{i}.{j}", relu.apply(maps.conv(layer, x)))
        x = max_pool.apply(x, kernel=(2, 2))
    x = maps.linear(params["hidden"], _images.flat(x))
    x = taps.tap("hidden", relu.apply(x))
    return maps.linear(params["head"], dropout.apply(x, rate=config.dropout, key=key))


def specs(config: Config) -> dict[str, Any]:
    """The parallel tree of `spec.Spec`."""
    _check.config("convnet.specs", config, Config)
    params = jax.eval_shape(lambda: init(jax.random.key(0), config))
    return {
        "stages": [[conv.specs(layer) for layer in stage] for stage in params["stages"]],
        "hidden": linear.specs(params["hidden"]),
        "head": linear.specs(params["head"]),
    }
