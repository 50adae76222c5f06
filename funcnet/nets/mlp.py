"""A multilayer perceptron: linear maps with rectifiers between them."""

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Float, PRNGKeyArray

from funcnet import taps
from funcnet.errors import ValueRangeError
from funcnet.nets import maps
from funcnet.ops import _check
from funcnet.ops._draw import in_one_program
from funcnet.ops.dense import linear
from funcnet.ops.elementwise import relu

__all__ = ["Config", "apply", "init", "specs"]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Config:
    """The shape of the model.

    Attributes:
        sizes: features of the input, of each hidden layer and of the output.
        bias: whether the linear maps have one.
    """

    sizes: tuple[int, ...]
    bias: bool = True

    def __post_init__(self) -> None:
        _check.fields("mlp.Config", self)
        if len(self.sizes) < 2:
            raise ValueRangeError(
                f"mlp.Config: sizes has {len(self.sizes)} entries, but at least 2 are needed.",
                path="sizes",
                expected="(d_in, *hidden, d_out)",
                actual=f"sizes = {self.sizes}",
            )


@in_one_program
def init(key: PRNGKeyArray, config: Config) -> dict[str, Any]:
    """{"layers": [{"w", "b"}, ...]}.

    >>> params = init(jax.random.key(0), Config((3, 5, 2)))
    >>> [layer["w"].shape for layer in params["layers"]]
    [(3, 5), (5, 2)]
    """
    _check.config("mlp.init", config, Config)
    _check.key("mlp.init", key, none=False)
    pairs = list(zip(config.sizes, config.sizes[1:], strict=False))
    keys = jax.random.split(key, len(pairs))
    return {"layers": [linear.init(k, *pair, bias=config.bias) for k, pair in zip(keys, pairs, strict=True)]}


def apply(params: dict[str, Any], x: Float[Array, "*n d_in"], config: Config) -> Float[Array, "*n d_out"]:
    """x [*n, sizes[0]] to [*n, sizes[-1]]; no rectifier after the last map."""
    _check.config("mlp.apply", config, Config)
    _check.tree("mlp.apply", params, "layers")
    *hidden, last = _check.layers("mlp.apply", params, "layers")
    for i, layer in enumerate(hidden):
        x = taps.tap(f"layers.{i}", relu.apply(maps.linear(layer, x)))
    return maps.linear(last, x)


def specs(config: Config) -> dict[str, Any]:
    """The parallel tree of `spec.Spec`."""
    _check.config("mlp.specs", config, Config)
    params = jax.eval_shape(lambda: init(jax.random.key(0), config))
    return {"layers": [linear.specs(layer) for layer in params["layers"]]}
