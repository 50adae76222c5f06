"""Layers of lstm, gru or rnn, read one way or both ways, each over what the one below it gives.

Of a layer that reads both ways the features are those of the way on, then those of the way back. A projection
is a linear map of them, so that the next layer has fewer to read. Dropout is between the layers, after the
projection; with `one_mask` an element is dropped at every step of a sequence or at none.
Sources: Graves, Mohamed and Hinton, "Speech recognition with deep recurrent neural networks", arXiv
1303.5778; one mask over time: Gal and Ghahramani, arXiv 1512.05287.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from funcnet import taps
from funcnet.errors import StructureError, ValueRangeError, describe
from funcnet.nets import maps
from funcnet.ops import _check
from funcnet.ops._draw import in_one_program
from funcnet.ops.dense import linear
from funcnet.ops.random import dropout
from funcnet.ops.recurrent import gru, lstm, rnn

__all__ = ["Config", "apply", "init", "specs"]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Config:
    """The shape of the model.

    Attributes:
        d: features of the input.
        hidden: of the state of every cell.
        layers: how many.
        cell: which operation a layer is.
        bidirectional: every layer reads the steps from the last to the first, too.
        projection: features that each layer's are mapped to; None: they are not.
        dropout: rate between two layers, in training.
        one_mask: the mask of dropout is the same at every step.
        reset: of gru.
        activation: of rnn.
        shown: of lstm: features of what comes out of a cell, projected within it; None: hidden.
        bias: whether cells and projections have one.
        dtype: to compute in, "bfloat16" say; None is that of params and x. c of lstm is in float32 or wider.
    """

    d: int
    hidden: int
    layers: int = 1
    cell: Literal["lstm", "gru", "rnn"] = "lstm"
    bidirectional: bool = False
    projection: int | None = None
    dropout: float = 0.0
    one_mask: bool = False
    reset: Literal["after", "before"] = "after"
    activation: Literal["tanh", "relu"] = "tanh"
    shown: int | None = None
    bias: bool = True
    dtype: str | None = None

    def __post_init__(self) -> None:
        _check.fields("recurrent.Config", self)
        _check.rate("recurrent.Config", "dropout", self.dropout)
        if self.shown is not None and self.cell != "lstm":
            raise ValueRangeError(
                f"recurrent.Config: shown is {self.shown}, but only an lstm projects what it shows.",
                path="shown",
                expected='shown=None, or cell="lstm"',
                actual=f"cell = {self.cell!r}, shown = {self.shown}",
                hint="projection maps what comes out of a layer of any cells.",
            )


def _ways(config: Config) -> tuple[str, ...]:
    return ("forward", "backward") if config.bidirectional else ("forward",)


def _cell(config: Config) -> Any:
    return {"lstm": lstm, "gru": gru, "rnn": rnn}[config.cell]


@in_one_program
def init(key: PRNGKeyArray, config: Config) -> dict[str, Any]:
    """{"layers": [{"forward": the params of the cell, and as asked for "backward" and "project"}, ...]}.

    >>> params = init(jax.random.key(0), Config(3, 5, layers=2, bidirectional=True, projection=2))
    >>> [layer["backward"]["w"].shape for layer in params["layers"]]
    [(3, 20), (2, 20)]
    """
    _check.config("recurrent.init", config, Config)
    _check.key("recurrent.init", key, none=False)
    layers, d = [], config.d
    options = {} if config.shown is None else {"projection": config.shown}
    for k in jax.random.split(key, config.layers):
        *ways, of_map = jax.random.split(k, 3)
        cells = zip(_ways(config), ways, strict=False)
        layer = {
            way: _cell(config).init(k, d, config.hidden, bias=config.bias, **options) for way, k in cells
        }
        d = (config.shown or config.hidden) * len(layer)
        if config.projection is not None:
            layer["project"] = linear.init(of_map, d, config.projection, bias=config.bias)
            d = config.projection
        layers.append(layer)
    return {"layers": layers}


def apply(
    params: dict[str, Any],
    x: Float[Array, "*n t d"],
    config: Config,
    state: list[dict[str, Any]] | None = None,
    *,
    mask: Bool[Array, "*n t"] | None = None,
    key: PRNGKeyArray | None = None,
) -> tuple[Float[Array, "*n t k"], list[dict[str, Any]]]:
    """Features of every step, and the state of every cell after the last one that it has read.

    Args:
        params: as `init` gives them.
        x: [*n, t, d].
        config: the shape of the model.
        state: of each layer {"forward": the state of the cell, and "backward" as well}, with a gradient; None
            is zeros. So a sequence may come in pieces, if it is read one way.
        mask: boolean [*n, t], False where there is padding, over which states are carried; y is 0 there, but
            for the bias of a projection.
        key: for dropout; None in evaluation.

    Returns:
        y [*n, t, k], k = projection, or shown or hidden for each way; the states in the structure of `state`.

    Raises:
        StructureError: params or state are those of another model.
        And what the cells raise.
    """
    where = "recurrent.apply"
    _check.config(where, config, Config)
    _check.tree(where, params, "layers")
    layers = _check.layers(where, params, "layers")
    states = [None] * len(layers) if state is None else state
    _check_layers(where, 'params["layers"]', layers, config)
    _check_layers(where, "state", states, config, of_params=False)
    if key is not None:
        _check.key(where, key)
    if config.dtype is not None:
        x = _check.floating(where, "x", x)
        layers, x = jax.tree.map(lambda v: v.astype(config.dtype), (layers, x))
    options = {"gru": {"reset": config.reset}, "rnn": {"activation": config.activation}}.get(config.cell, {})
    last = []
    for i, (layer, given) in enumerate(zip(layers, states, strict=True)):
        if i and key is not None and config.dropout:
            x = _dropped(x, config, jax.random.fold_in(key, i))
        outs: dict[str, Any] = {}
        for way in _ways(config):
            before = None if given is None else given[way]
            outs[way] = _cell(config).apply(
                layer[way], x, before, mask=mask, reverse=way == "backward", **options
            )
        x = jnp.concatenate([y for y, _ in outs.values()], -1) if config.bidirectional else outs["forward"][0]
        last.append({way: state for way, (_, state) in outs.items()})
        if config.projection is not None:
            x = maps.linear(layer["project"], x)
        x = taps.tap(f"layers.{i}", x)
    return x, last


def _dropped(x: Array, config: Config, key: PRNGKeyArray) -> Array:
    if not config.one_mask:
        return dropout.apply(x, rate=config.dropout, key=key)
    kept = dropout.apply(jnp.ones_like(x[..., :1, :]), rate=config.dropout, key=key)
    return x * kept


def _check_layers(where: str, path: str, layers: Any, config: Config, *, of_params: bool = True) -> None:
    """Layers are as many as config has, each with all of its parts."""
    known = isinstance(layers, list | tuple)
    if not known or len(layers) != config.layers:
        raise StructureError(
            f"{where}: {path} has {len(layers)} layers, but config {config.layers}."
            if known
            else f"{where}: {path} is not a list of layers.",
            path=path,
            expected=f"{path}: a list of {config.layers}, one entry per layer",
            actual=f"{path}: " + (f"{len(layers)} entries" if known else describe(layers)),
        )
    names = _ways(config) + (("project",) if of_params and config.projection is not None else ())
    for i, layer in enumerate(layers):
        if layer is None and not of_params:
            continue
        given = set(layer) if isinstance(layer, Mapping) else set()
        if given == set(names):
            continue
        raise StructureError(
            f"{where}: {path}[{i}] does not have the parts that config asks for.",
            path=f"{path}[{i}]",
            expected=f"{path}[{i}]: a dict with the keys " + ", ".join(f'"{name}"' for name in names),
            actual="keys: " + (", ".join(f'"{name}"' for name in layer) or "none")
            if isinstance(layer, Mapping)
            else f"{path}[{i}]: {describe(layer)}",
        )


def specs(config: Config) -> dict[str, Any]:
    """The parallel tree of `spec.Spec`."""
    _check.config("recurrent.specs", config, Config)
    params = jax.eval_shape(lambda: init(jax.random.key(0), config))
    of = lambda name, part: (linear if name == "project" else _cell(config)).specs(part)
    return {"layers": [{name: of(name, part) for name, part in layer.items()} for layer in params["layers"]]}
