"""Residual networks of basic blocks: y = relu(x' + norm(conv(relu(norm(conv(x)))))), x' = x or a projection.

`Config(image=(32, 32, 3))` is ResNet-20 for small images; ResNet-18 has four stages with channels
(64, 128, 256, 512), blocks (2, 2, 2, 2) and stem 7. Where a stage halves the image or changes its channels,
x' is a 1×1 convolution of x and its norm.
Source: K. He, X. Zhang, S. Ren and J. Sun, "Deep Residual Learning for Image Recognition", arXiv 1512.03385.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from funcnet.errors import ValueRangeError
from funcnet.nets import _images
from funcnet.nets.spec import describe
from funcnet.ops import batch_norm, conv, linear, max_pool, relu

__all__ = ["Config", "apply", "init", "init_state", "specs"]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Config:
    """The shape of the model.

    Attributes:
        image: height, width and channels of an image.
        channels: of each stage; every stage but the first halves the image.
        blocks: of each stage, two convolutions each: (3, 3, 3) has 20 layers with the first and the last.
        classes: number of outputs.
        stem: 3 for a 3×3 convolution at full size, 7 for a 7×7 one of stride 2 and 3×3 max pooling.
        momentum: of the running statistics.
    """

    image: tuple[int, int, int]
    channels: tuple[int, ...] = (16, 32, 64)
    blocks: tuple[int, ...] = (3, 3, 3)
    classes: int = 10
    stem: int = 3
    momentum: float = 0.9

    def __post_init__(self) -> None:
        """Refuse stages that do not pair up."""
        if len(self.channels) != len(self.blocks) or not self.channels:
            raise ValueRangeError(
                f"resnet.Config: {len(self.channels)} channels for {len(self.blocks)} stages of blocks.",
                path="blocks",
                expected="as many entries as channels has, at least 1",
                actual=f"channels = {self.channels}, blocks = {self.blocks}",
            )
        if self.stem not in (3, 7):
            raise ValueRangeError(
                f"resnet.Config: stem is {self.stem}.", path="stem", expected="3 or 7", actual=str(self.stem)
            )


def _stages(config: Config) -> list[list[tuple[int, int, int]]]:
    """(c_in, c_out, stride) of every block of every stage."""
    stages, c_in = [], config.channels[0]
    for i, (c, count) in enumerate(zip(config.channels, config.blocks, strict=True)):
        first = (c_in, c, 2 if i else 1)
        stages.append([first, *[(c, c, 1)] * (count - 1)][:count])
        c_in = c
    return stages


def _projects(c_in: int, c_out: int, stride: int) -> bool:
    return stride > 1 or c_in != c_out


def init(key: PRNGKeyArray, config: Config) -> dict[str, Any]:
    """{"stem", "stages": [[block, ...], ...], "head"}; the kernels have the variance 2 / fan_in of He et al.

    A block is {"conv1", "norm1", "conv2", "norm2"} and, where it projects, "project", "norm". The gain of
    each block's last norm is 0, so that every block starts as the identity (arXiv 1706.02677, §5.1).
    """

    def kernel(key: PRNGKeyArray, c_in: int, c_out: int, size: int) -> dict[str, Any]:
        params = conv.init(key, c_in, c_out, kernel=(size, size), bias=False)
        return {"w": jnp.sqrt(2.0).astype(params["w"].dtype) * params["w"]}

    def norm(c: int, gain: float = 1.0) -> dict[str, Any]:
        params, _ = batch_norm.init(key, c)
        return {**params, "w": gain * params["w"]}

    def block(key: PRNGKeyArray, c_in: int, c_out: int, stride: int) -> dict[str, Any]:
        key1, key2, key3 = jax.random.split(key, 3)
        params = {
            "conv1": kernel(key1, c_in, c_out, 3),
            "norm1": norm(c_out),
            "conv2": kernel(key2, c_out, c_out, 3),
            "norm2": norm(c_out, gain=0.0),
        }
        if _projects(c_in, c_out, stride):
            params |= {"project": kernel(key3, c_in, c_out, 1), "norm": norm(c_out)}
        return params

    key_stem, key_head, *keys = jax.random.split(key, 2 + sum(config.blocks))
    each = iter(keys)
    return {
        "stem": {
            "conv": kernel(key_stem, config.image[-1], config.channels[0], config.stem),
            "norm": norm(config.channels[0]),
        },
        "stages": [[block(next(each), *sizes) for sizes in stage] for stage in _stages(config)],
        "head": linear.init(key_head, config.channels[-1], config.classes),
    }


def init_state(config: Config) -> dict[str, Any]:
    """The running statistics of every norm: {"stem": {"norm"}, "stages": [[{"norm1", ...}, ...], ...]}."""

    def norm(c: int) -> dict[str, Any]:
        return dict(batch_norm.init(jax.random.key(0), c)[1])

    def block(c_in: int, c_out: int, stride: int) -> dict[str, Any]:
        names = ["norm1", "norm2", *(["norm"] if _projects(c_in, c_out, stride) else [])]
        return {name: norm(c_out) for name in names}

    return {
        "stem": {"norm": norm(config.channels[0])},
        "stages": [[block(*sizes) for sizes in stage] for stage in _stages(config)],
    }


def apply(
    params: dict[str, Any],
    state: dict[str, Any],
    images: Float[Array, "*n h w c"],
    config: Config,
    *,
    train: bool,
) -> tuple[Float[Array, "*n classes"], dict[str, Any]]:
    """Logits of images, and the running statistics after them.

    Args:
        params: from `init`.
        state: from `init_state`, or what the last call gave.
        images: [*n, *config.image].
        config: the model's.
        train: whether the norms take the statistics of these images, and update the running ones.

    Raises:
        ShapeError: the images do not have the shape config.image.
    """
    _images.check("resnet.apply", images, config.image)

    def normed(layer: dict[str, Any], old: dict[str, Any], name: str, new: dict[str, Any], x: Array) -> Array:
        y, new[name] = batch_norm.apply(layer[name], old[name], x, train=train, momentum=config.momentum)
        return y

    def block(layer: dict[str, Any], old: dict[str, Any], x: Array, stride: int) -> tuple[Array, dict]:
        new: dict[str, Any] = {}
        y = relu.apply(normed(layer, old, "norm1", new, conv.apply(layer["conv1"], x, stride=stride)))
        y = normed(layer, old, "norm2", new, conv.apply(layer["conv2"], y))
        if "project" in layer:
            x = normed(layer, old, "norm", new, conv.apply(layer["project"], x, stride=stride))
        return relu.apply(x + y), new

    new_stem: dict[str, Any] = {}
    x = conv.apply(params["stem"]["conv"], images, stride=1 if config.stem == 3 else 2)
    x = relu.apply(normed(params["stem"], state["stem"], "norm", new_stem, x))
    if config.stem == 7:
        x = max_pool.apply(x, kernel=(3, 3), stride=2, padding="same")
    new_stages = []
    for layers, olds, sizes in zip(params["stages"], state["stages"], _stages(config), strict=True):
        news = []
        for layer, old, (_, _, stride) in zip(layers, olds, sizes, strict=True):
            x, new = block(layer, old, x, stride)
            news.append(new)
        new_stages.append(news)
    return linear.apply(params["head"], x.mean((-3, -2))), {"stem": new_stem, "stages": new_stages}


def specs(config: Config) -> dict[str, Any]:
    """The parallel tree of `spec.Spec`."""
    kernel, norm = {"w": "h w c_in c_out"}, {"w": "c", "b": "c"}

    def block(c_in: int, c_out: int, stride: int) -> dict[str, Any]:
        plain = {"conv1": kernel, "norm1": norm, "conv2": kernel, "norm2": norm}
        return plain | ({"project": kernel, "norm": norm} if _projects(c_in, c_out, stride) else {})

    return describe(
        init,
        config,
        {
            "stem": {"conv": kernel, "norm": norm},
            "stages": [[block(*sizes) for sizes in stage] for stage in _stages(config)],
            "head": {"w": "d_in d_out", "b": "d_out"},
        },
    )
