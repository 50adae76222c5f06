"""What every peer trains: five models, their initial weights and their batches, in NumPy.

The weights are in funcnet's layout (linear [d_in, d_out], convolution [*kernel, c_in, c_out], channels last).
A peer copies them into its own, so that all start at one point, and the losses after three steps must agree.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

Tree = dict[str, Any]

MOMENTUM, DECAY = 0.9, 0.1  # of SGD; of AdamW, on every leaf


@dataclass(frozen=True)
class Mlp:
    """Linear maps with rectifiers between them; mean cross entropy; Adam."""

    sizes: tuple[int, ...]
    batch: int
    rate: float = 1e-3

    def weights(self) -> Tree:
        """{"layers": [{"w", "b"}, ...]}."""
        rng = np.random.default_rng(0)
        pairs = zip(self.sizes, self.sizes[1:], strict=False)
        return {"layers": [_linear(rng, *pair) for pair in pairs]}

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """Features [batch, d], classes int32 [batch]."""
        return _labelled((self.batch, self.sizes[0]), self.sizes[-1])


@dataclass(frozen=True)
class Convnet:
    """For each of `channels`: 3×3 convolution, rectifier, 2×2 max pooling; then flat [h, w, c] and linear.

    Mean cross entropy; SGD with momentum.
    """

    image: tuple[int, int, int]
    channels: tuple[int, ...]
    batch: int
    classes: int = 10
    rate: float = 1e-3

    @property
    def side(self) -> tuple[int, int]:
        """Height and width after the last pooling."""
        height, width = (length >> len(self.channels) for length in self.image[:2])
        return height, width

    def weights(self) -> Tree:
        """{"convs": [{"w", "b"}, ...], "head": {"w", "b"}}."""
        rng = np.random.default_rng(0)
        pairs = zip((self.image[-1], *self.channels), self.channels, strict=False)
        convs = [_conv(rng, 3, *pair) | {"b": np.zeros(pair[1], np.float32)} for pair in pairs]
        flat = math.prod(self.side) * self.channels[-1]
        return {"convs": convs, "head": _linear(rng, flat, self.classes)}

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """Images [batch, h, w, c], classes int32 [batch]."""
        return _labelled((self.batch, *self.image), self.classes)


@dataclass(frozen=True)
class Resnet:
    """The residual network of `funcnet.nets.resnet`, in training mode.

    No bias in convolutions; batch norm with eps 1e-5 by the biased variance of the batch, running statistics
    with momentum 0.9 (new = 0.9 old + 0.1 batch's). Mean cross entropy; SGD with momentum. The peers train
    basic blocks and a 3×3 stem; bottlenecks and the 7×7 stem are for `benchmarks/gpu.py`.
    """

    channels: tuple[int, ...] = (16, 32, 64)
    blocks: tuple[int, ...] = (3, 3, 3)
    image: tuple[int, int, int] = (32, 32, 3)
    batch: int = 128
    classes: int = 10
    rate: float = 0.01
    bottleneck: bool = False
    stem: int = 3

    def layout(self) -> list[tuple[int, int, int]]:
        """(c_in, c_out, stride) of every block in order; it projects where stride > 1 or c_in != c_out."""
        out, c_in = [], self.channels[0]
        for i, (c, count) in enumerate(zip(self.channels, self.blocks, strict=True)):
            c_out = 4 * c if self.bottleneck else c
            out += [(c_in, c_out, 2 if i else 1), *[(c_out, c_out, 1)] * (count - 1)]
            c_in = c_out
        return out

    def convolutions(self, c_in: int, c_out: int, stride: int) -> list[tuple[int, int, int, int]]:
        """(kernel, c_in, c_out, stride) of those in a block's branch, in order."""
        if not self.bottleneck:
            return [(3, c_in, c_out, stride), (3, c_out, c_out, 1)]
        c = c_out // 4
        return [(1, c_in, c, 1), (3, c, c, stride), (1, c, c_out, 1)]

    def weights(self) -> Tree:
        """{"stem": {"conv", "norm"}, "blocks", "head"}; a convolution is {"w"}, a norm {"w", "b"}.

        A block is {"conv1", "norm1", "conv2", "norm2"[, "conv3", "norm3"]} and, where it projects, "project",
        "norm".
        """
        rng = np.random.default_rng(0)
        blocks = []
        for c_in, c_out, stride in self.layout():
            block = {}
            for i, (size, c, to, _) in enumerate(self.convolutions(c_in, c_out, stride), 1):
                block |= {f"conv{i}": _conv(rng, size, c, to), f"norm{i}": _norm(to)}
            if stride > 1 or c_in != c_out:
                block |= {"project": _conv(rng, 1, c_in, c_out), "norm": _norm(c_out)}
            blocks.append(block)
        c = self.channels[0]
        stem = {"conv": _conv(rng, self.stem, self.image[-1], c), "norm": _norm(c)}
        return {"stem": stem, "blocks": blocks, "head": _linear(rng, self.layout()[-1][1], self.classes)}

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """Images [batch, h, w, c], classes int32 [batch]."""
        return _labelled((self.batch, *self.image), self.classes)


@dataclass(frozen=True)
class Gpt:
    """GPT-2's model: learned positions, pre-norm with layer norm (eps 1e-5), gelu by tanh, biases, tied head.

    Mean cross entropy of the next token; AdamW with weight decay on every leaf.
    """

    layers: int
    heads: int
    d: int
    t: int
    batch: int
    vocabulary: int = 65
    rate: float = 1e-3

    def weights(self) -> Tree:
        """{"tokens", "positions", "blocks" (every leaf stacked along a first axis of layers), "norm"}.

        A block is {"norm1", "attention": {"q", "k", "v", "o"}, "norm2", "up", "down"}; q.w [d, h, e],
        o.w [h, e, d].
        """
        rng = np.random.default_rng(0)
        tables = {"tokens": _normal(rng, self.vocabulary, self.d), "positions": _normal(rng, self.t, self.d)}
        blocks = _block(rng, (self.layers,), self.heads, self.d)
        return tables | {"blocks": blocks, "norm": _norm(self.d)}

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens int32 [batch, t], and what follows each."""
        rng = np.random.default_rng(1)
        ids = rng.integers(0, self.vocabulary, (self.batch, self.t + 1)).astype(np.int32)
        return ids[:, :-1], ids[:, 1:]


@dataclass(frozen=True)
class Encoder:
    """One block of BERT: x = norm1(x + attention(x)), x = norm2(x + down(gelu(up(x)))).

    Exact gelu, eps 1e-12. Every position sees every other; mean squared difference from a target; AdamW with
    decay on every leaf.
    """

    heads: int
    d: int
    t: int
    batch: int
    rate: float = 1e-4

    def weights(self) -> Tree:
        """A block as that of `Gpt`, not stacked."""
        return _block(np.random.default_rng(0), (), self.heads, self.d)

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """Features [batch, t, d], and a target of the same shape."""
        x, y = np.random.default_rng(1).standard_normal((2, self.batch, self.t, self.d), np.float32)
        return x, y


Model = Mlp | Convnet | Resnet | Gpt | Encoder

MODELS: dict[str, Model] = {
    "MLP 784–512–512–10, batch 128": Mlp((784, 512, 512, 10), 128),
    "two convolutions, 28×28×1, batch 128": Convnet((28, 28, 1), (32, 64), 128),
    "ResNet-20, 32×32×3, batch 128": Resnet(),
    "GPT 6 × 384, t = 256, batch 8": Gpt(6, 6, 384, 256, 8),
    "GPT 4 × 128, t = 64, batch 12": Gpt(4, 4, 128, 64, 12),
    "BERT-base block, t = 128, batch 8": Encoder(12, 768, 128, 8),
}
TINY: dict[str, Model] = {  # the same five, for a smoke test
    "tiny MLP": Mlp((7, 11, 5), 3),
    "tiny convnet": Convnet((8, 8, 1), (3, 5), 2, classes=7),
    "tiny ResNet": Resnet((4, 6), (1, 1), (8, 8, 3), batch=5),
    "tiny GPT": Gpt(2, 2, 8, 6, 3, vocabulary=11),
    "tiny encoder block": Encoder(2, 8, 5, 3),
}

WIDTH, DEPTHS = 16, (1, 2, 4, 8, 16, 32, 64, 128)
NARROW: dict[str, Model] = {  # so little arithmetic that a step is overhead
    f"{depth} layers of width {WIDTH}": Mlp((WIDTH,) * (depth + 1), 32) for depth in DEPTHS
}
DEEP: dict[str, Model] = {  # steps so small that the first one is compilation
    f"{layers} blocks of width 64": Gpt(layers, 2, 64, 64, 4) for layers in (2, 6, 12, 24, 48, 96)
}
TWICE: dict[str, Model] = {  # examples, for what a further one costs
    f"twice {name}": replace(model, batch=2 * model.batch) for name, model in (MODELS | TINY).items()
}
ALL = MODELS | TINY | NARROW | DEEP | TWICE


def one_block(blocks: Tree, i: int) -> Tree:
    """The leaves of block i of a `Gpt`."""
    return {name: one_block(part, i) if isinstance(part, dict) else part[i] for name, part in blocks.items()}


def _labelled(shape: tuple[int, ...], classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.standard_normal(shape, np.float32), rng.integers(0, classes, shape[0]).astype(np.int32)


def _normal(rng: np.random.Generator, *shape: int, scale: float = 0.02) -> Tree:
    return {"w": (scale * rng.standard_normal(shape)).astype(np.float32)}


def _linear(rng: np.random.Generator, d_in: int, d_out: int) -> Tree:
    return _normal(rng, d_in, d_out, scale=d_in**-0.5) | {"b": np.zeros(d_out, np.float32)}


def _conv(rng: np.random.Generator, size: int, c_in: int, c_out: int) -> Tree:
    return _normal(rng, size, size, c_in, c_out, scale=(2 / (size * size * c_in)) ** 0.5)


def _norm(d: int, lead: Sequence[int] = ()) -> Tree:
    return {"w": np.ones((*lead, d), np.float32), "b": np.zeros((*lead, d), np.float32)}


def _block(rng: np.random.Generator, lead: tuple[int, ...], heads: int, d: int) -> Tree:
    """A transformer's block; N(0, 0.02²), as GPT-2 and BERT draw them."""

    def linear(d_in: Sequence[int], d_out: Sequence[int]) -> Tree:
        return _normal(rng, *lead, *d_in, *d_out) | {"b": np.zeros((*lead, *d_out), np.float32)}

    attention = {name: linear([d], [heads, d // heads]) for name in "qkv"}
    return {
        "norm1": _norm(d, lead),
        "attention": attention | {"o": linear([heads, d // heads], [d])},
        "norm2": _norm(d, lead),
        "up": linear([d], [4 * d]),
        "down": linear([4 * d], [d]),
    }
