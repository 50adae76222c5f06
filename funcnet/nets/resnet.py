"""Residual networks: y = relu(x' + norm(conv(relu(norm(conv(x)))))), x' = x or a projection.

`Config(image=(32, 32, 3))` is ResNet-20 for small images; ResNet-18 has four stages with channels
(64, 128, 256, 512), blocks (2, 2, 2, 2) and stem 7. Where a stage halves the image or changes its channels,
x' is a 1×1 convolution of x and its norm. ResNet-50 has blocks (3, 4, 6, 3) that are bottlenecks: a 1×1
convolution to c channels, 3×3, 1×1 to 4 c. The 3×3 one takes the stride, as in torchvision ("version 1.5").
Source: K. He, X. Zhang, S. Ren and J. Sun, "Deep Residual Learning for Image Recognition", arXiv 1512.03385.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from funcnet import taps
from funcnet.errors import ValueRangeError
from funcnet.nets import _images, maps
from funcnet.ops import _check
from funcnet.ops._draw import in_one_program
from funcnet.ops.conv import conv, max_pool
from funcnet.ops.conv._window import Padding
from funcnet.ops.dense import linear
from funcnet.ops.elementwise import relu
from funcnet.ops.norm import batch_norm

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
        bottleneck: three convolutions in each block rather than two, its output 4 times as wide.
        padding: "same", as XLA pads, or "symmetric", k // 2 at both ends, as PyTorch's models do. They differ
            where an even length is halved.
        dtype: what to compute in; None for the params' dtype. The statistics of norms are never narrower than
            float32.
    """

    image: tuple[int, int, int]
    channels: tuple[int, ...] = (16, 32, 64)
    blocks: tuple[int, ...] = (3, 3, 3)
    classes: int = 10
    stem: int = 3
    momentum: float = 0.9
    bottleneck: bool = False
    padding: str = "same"
    dtype: str | None = None

    def __post_init__(self) -> None:
        """Refuse stages that do not pair up."""
        _check.fields("resnet.Config", self)
        _check.rate("resnet.Config", "momentum", self.momentum)
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
        if self.padding not in ("same", "symmetric"):
            raise ValueRangeError(
                f'resnet.Config: padding is "{self.padding}".',
                path="padding",
                expected='"same" or "symmetric"',
                actual=f'"{self.padding}"',
            )


class _Conv(NamedTuple):
    """One convolution."""

    c_in: int
    c_out: int
    kernel: int
    stride: int = 1


class _Block(NamedTuple):
    """The convolutions of one block, in order, and that of its projection if it has one."""

    convs: list[_Conv]
    project: _Conv | None


def _stages(config: Config) -> list[list[_Block]]:
    """The blocks of every stage."""
    stages, c_in = [], config.channels[0]
    for i, (c, count) in enumerate(zip(config.channels, config.blocks, strict=True)):
        blocks = []
        for j in range(count):
            stride = 2 if i and not j else 1
            if config.bottleneck:
                convs = [_Conv(c_in, c, 1), _Conv(c, c, 3, stride), _Conv(c, 4 * c, 1)]
            else:
                convs = [_Conv(c_in, c, 3, stride), _Conv(c, c, 3)]
            c_out = convs[-1].c_out
            projects = stride > 1 or c_in != c_out
            blocks.append(_Block(convs, _Conv(c_in, c_out, 1, stride) if projects else None))
            c_in = c_out
        stages.append(blocks)
    return stages


def _stem(config: Config) -> _Conv:
    return _Conv(config.image[-1], config.channels[0], config.stem, 1 if config.stem == 3 else 2)


@in_one_program
def init(key: PRNGKeyArray, config: Config) -> dict[str, Any]:
    """{"stem", "stages": [[block, ...], ...], "head"}; the kernels have the variance 2 / fan_in of He et al.

    A block is {"conv1", "norm1", "conv2", "norm2"}, with bottlenecks "conv3", "norm3" too, and, where it
    projects, "project", "norm". The gain of each block's last norm is 0, so that every block starts as the
    identity (arXiv 1706.02677, §5.1).
    """
    _check.config("resnet.init", config, Config)
    _check.key("resnet.init", key, none=False)

    def kernel(key: PRNGKeyArray, sizes: _Conv) -> dict[str, Any]:
        params = conv.init(key, sizes.c_in, sizes.c_out, kernel=(sizes.kernel, sizes.kernel), bias=False)
        return {"w": jnp.sqrt(2.0).astype(params["w"].dtype) * params["w"]}

    def norm(c: int, gain: float = 1.0) -> dict[str, Any]:
        params, _ = batch_norm.init(key, c)
        return {**params, "w": gain * params["w"]}

    def block(key: PRNGKeyArray, sizes: _Block) -> dict[str, Any]:
        *keys, key_project = jax.random.split(key, len(sizes.convs) + 1)
        params: dict[str, Any] = {}
        for i, (key, each) in enumerate(zip(keys, sizes.convs, strict=True), 1):
            gain = 0.0 if i == len(keys) else 1.0
            params |= {f"conv{i}": kernel(key, each), f"norm{i}": norm(each.c_out, gain)}
        if sizes.project:
            params |= {"project": kernel(key_project, sizes.project), "norm": norm(sizes.project.c_out)}
        return params

    stages = _stages(config)
    key_stem, key_head, *keys = jax.random.split(key, 2 + sum(config.blocks))
    rest = iter(keys)
    return {
        "stem": {
            "conv": kernel(key_stem, _stem(config)),
            "norm": norm(config.channels[0]),
        },
        "stages": [[block(next(rest), sizes) for sizes in stage] for stage in stages],
        "head": linear.init(key_head, stages[-1][-1].convs[-1].c_out, config.classes),
    }


def init_state(config: Config) -> dict[str, Any]:
    """The running statistics of every norm: {"stem": {"norm"}, "stages": [[{"norm1", ...}, ...], ...]}."""
    _check.config("resnet.init_state", config, Config)

    def norm(c: int) -> dict[str, Any]:
        return dict(batch_norm.init(jax.random.key(0), c)[1])

    def block(sizes: _Block) -> dict[str, Any]:
        state = {f"norm{i}": norm(each.c_out) for i, each in enumerate(sizes.convs, 1)}
        return state | ({"norm": norm(sizes.project.c_out)} if sizes.project else {})

    return {
        "stem": {"norm": norm(config.channels[0])},
        "stages": [[block(sizes) for sizes in stage] for stage in _stages(config)],
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
        DTypeError: the images are not floating-point.
    """
    where = "resnet.apply"
    _check.config(where, config, Config)
    images, train = _images.check(where, images, config.image), _check.flag(where, "train", train)
    _check.tree(where, params, "stem", "stages", "head", "stem.conv", "stem.norm")
    _check.tree(where, state, "stem", "stages", "stem.norm", path="state")
    if config.dtype is not None:
        params, images = jax.tree.map(lambda v: v.astype(config.dtype), (params, images))

    def pads(kernel: int) -> Padding:
        return "same" if config.padding == "same" else [(kernel // 2, kernel // 2)] * 2

    def normed(layer: dict[str, Any], old: dict[str, Any], name: str, new: dict[str, Any], x: Array) -> Array:
        y, new[name] = batch_norm.apply(layer[name], old[name], x, train=train, momentum=config.momentum)
        return y

    def convolved(layer: Any, sizes: _Conv, x: Array) -> Array:
        return maps.conv(layer, x, stride=sizes.stride, padding=pads(sizes.kernel))

    def block(layer: dict[str, Any], old: dict[str, Any], x: Array, sizes: _Block) -> tuple[Array, dict]:
        new: dict[str, Any] = {}
        y = x = taps.tap("in", x)
        for i, each in enumerate(sizes.convs, 1):
            y = normed(layer, old, f"norm{i}", new, convolved(layer[f"conv{i}"], each, y))
            y = taps.tap(f"hidden{i}", relu.apply(y)) if i < len(sizes.convs) else taps.tap("branch", y)
        if sizes.project:
            x = normed(layer, old, "norm", new, convolved(layer["project"], sizes.project, x))
        return taps.tap("out", relu.apply(x + y)), new

    new_stem: dict[str, Any] = {}
    x = convolved(params["stem"]["conv"], _stem(config), images)
    x = taps.tap("stem", relu.apply(normed(params["stem"], state["stem"], "norm", new_stem, x)))
    if config.stem == 7:
        x = max_pool.apply(x, kernel=(3, 3), stride=2, padding=pads(3))
    both = _check.layers(where, params, "stages"), _check.layers(where, state, "stages", path="state")
    new_stages = []
    for i, (layers, olds, blocks) in enumerate(zip(*both, _stages(config), strict=True)):
        news = []
        for j, (layer, old, sizes) in enumerate(zip(layers, olds, blocks, strict=True)):
            with taps.scope("stages", i, j):
                x, new = block(layer, old, x, sizes)
            news.append(new)
        new_stages.append(news)
    return maps.linear(params["head"], x.mean((-3, -2))), {"stem": new_stem, "stages": new_stages}


def specs(config: Config) -> dict[str, Any]:
    """The parallel tree of `spec.Spec`."""
    _check.config("resnet.specs", config, Config)
    params = jax.eval_shape(lambda: init(jax.random.key(0), config))
    part = lambda name, p: (batch_norm if "norm" in name else conv).specs(p)
    block = lambda layer: {name: part(name, p) for name, p in layer.items()}
    return {
        "stem": block(params["stem"]),
        "stages": [[block(layer) for layer in stage] for stage in params["stages"]],
        "head": linear.specs(params["head"]),
    }
