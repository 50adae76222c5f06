"""The table that the laws run over: operation x arguments x options.

A row says what to draw, not what came out: F(7, 3) is a float array of that shape, I(5, 7) integers in
[0, 5) of shape [7], B(7) booleans, K() a random key, P(7, 3) positive floats that sum to 1 along the last axis,
U(7) floats in [0, 1].
Sizes are distinct primes, so that a factor names itself; then all-square, a second prime set, 0 and 1.
"""

import dataclasses
import importlib
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Draw:
    kind: str
    shape: tuple[int, ...]
    high: int = 0

    def __call__(self, rng: np.random.Generator, dtype: str) -> jax.Array:
        if self.kind == "int":
            return jnp.asarray(rng.integers(0, self.high, self.shape), jnp.int32)
        if self.kind == "bool":
            return jnp.asarray(rng.random(self.shape) < 0.6)
        if self.kind == "key":
            return jax.random.key(int(rng.integers(2**31)))
        if self.kind == "probabilities":
            p = rng.random(self.shape) + 0.1
            return jnp.asarray(p / p.sum(-1, keepdims=True), dtype)
        if self.kind == "unit":
            return jnp.asarray(rng.random(self.shape), dtype)
        return jnp.asarray(rng.standard_normal(self.shape), dtype)


def F(*shape: int) -> Draw:
    return Draw("float", shape)


def I(high: int, *shape: int) -> Draw:  # noqa: E743
    return Draw("int", shape, high)


def B(*shape: int) -> Draw:
    return Draw("bool", shape)


def K() -> Draw:
    return Draw("key", ())


def P(*shape: int) -> Draw:
    return Draw("probabilities", shape)


def U(*shape: int) -> Draw:
    return Draw("unit", shape)


@dataclasses.dataclass(frozen=True)
class Case:
    op: str
    args: tuple[Any, ...]
    options: dict[str, Any]

    @property
    def module(self) -> ModuleType:
        return importlib.import_module(f"funcnet.ops.{self.op}")

    def draw(self, seed: int = 0, dtype: str = "float64") -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments and options, with every Draw replaced by an array."""
        rng = np.random.default_rng([seed, *map(ord, self.id)])
        is_draw = lambda v: isinstance(v, Draw)  # noqa: E731
        fill = lambda v: v(rng, dtype) if is_draw(v) else v  # noqa: E731
        args = jax.tree.map(fill, self.args, is_leaf=is_draw)
        return args, {k: jax.tree.map(fill, v, is_leaf=is_draw) if is_draw(v) else v for k, v in self.options.items()}

    @property
    def id(self) -> str:
        def text(v: Any) -> str:
            if isinstance(v, Draw):
                return v.kind[0] + "x".join(map(str, v.shape))
            if isinstance(v, dict):
                return "_".join(k + ("None" if u is None else text(u)[1:]) for k, u in v.items())
            return str(v).replace(" ", "")

        return "-".join([self.op, *map(text, self.args), *(f"{k}={text(v)}" for k, v in self.options.items())])


def case(op: str, *args: Any, **options: Any) -> Case:
    return Case(op, args, options)


CASES = [
    # linear
    case("linear", {"w": F(11, 13), "b": F(13)}, F(7, 11)),
    case("linear", {"w": F(11, 13)}, F(3, 5, 11)),
    case("linear", {"w": F(5, 5), "b": F(5)}, F(5, 5)),
    case("linear", {"w": F(3, 17), "b": None}, F(3)),
    case("linear", {"w": F(1, 1), "b": F(1)}, F(1, 1)),
    case("linear", {"w": F(3, 5), "b": F(5)}, F(0, 3)),
    # relu
    case("relu", F(7, 11)),
    case("relu", F(0, 3)),
    case("relu", F()),
    # layer_norm
    case("layer_norm", {"w": F(11), "b": F(11)}, F(7, 11)),
    case("layer_norm", {"w": F(5)}, F(2, 5, 5), eps=1e-3),
    case("layer_norm", {"w": F(1), "b": F(1)}, F(3, 1)),
    case("layer_norm", {"w": F(3), "b": F(3)}, F(0, 3)),
    case("layer_norm", {"w": F(13), "b": None}, F(13)),
    # conv
    case("conv", {"w": F(3, 2, 5), "b": F(5)}, F(7, 11, 2)),
    case("conv", {"w": F(2, 3, 2, 5), "b": F(5)}, F(3, 7, 5, 2), stride=2),
    case("conv", {"w": F(3, 2, 2, 6)}, F(2, 7, 5, 4), groups=2, dilation=(2, 1), padding="valid"),
    case("conv", {"w": F(3, 3, 1, 6), "b": F(6)}, F(2, 1, 5, 5, 3), groups=3, padding_mode="reflect"),
    case("conv", {"w": F(3, 3, 3, 3), "b": F(3)}, F(3, 3, 3, 3), padding_mode="circular", stride=(2, 1)),
    case("conv", {"w": F(2, 3, 2, 1, 2)}, F(2, 3, 5, 2, 1), padding=((1, 0), (0, 2), (1, 1)), stride=(1, 2, 1)),
    case("conv", {"w": F(4, 3, 2), "b": F(2)}, F(2, 7, 3), padding="causal", dilation=2),
    case("conv", {"w": F(7, 2, 3), "b": F(3)}, F(2, 5, 2), padding="valid"),  # longer than the signal
    case("conv", {"w": F(7, 1, 1)}, F(1, 3, 1), padding_mode="circular"),
    case("conv", {"w": F(2, 1, 3)}, F(5, 7, 1), stride=3),  # the stride skips elements
    case("conv", {"w": F(1, 1, 2, 3), "b": F(3)}, F(1, 1, 1, 2)),
    case("conv", {"w": F(3, 2, 3), "b": F(3)}, F(0, 5, 2)),
    case("conv", {"w": F(3, 2, 3), "b": F(3)}, F(2, 0, 2)),
    # ==== norms, activations, softmax, dropout: rms_norm group_norm batch_norm gelu silu sigmoid tanh softmax
    # ==== products: matmul embedding attention multihead
    # ==== pools and losses: max_pool avg_pool mse cross_entropy binary_cross_entropy
]

# Sizes above 60 with more than 32k reduced elements: where XLA:CPU has miscompiled (docs/guard.md).
LARGE = [
    case("linear", {"w": F(67, 71), "b": F(71)}, F(8, 64, 67)),
    case("conv", {"w": F(3, 3, 5, 64), "b": F(64)}, F(2, 64, 64, 5)),
    case("layer_norm", {"w": F(67), "b": F(67)}, F(8, 64, 67)),
    case("relu", F(8, 64, 67)),
    # ==== norms, activations, softmax, dropout
    # ==== products
    # ==== pools and losses
]
