"""An encoder: tokens to features, every position seeing every other. Post-norm blocks, learned positions.

    x = norm(tokens[ids] + positions + types);
    for each block: x = norm1(x + attention(x)), x = norm2(x + down(gelu(up(x))))

and `logits` of x, where it has a head. The blocks are stacked (`stack`). Source: Devlin, Chang, Lee and
Toutanova, "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding", arXiv
1810.04805. `hub.load` fills it with the weights of BERT and MiniLM.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer, PRNGKeyArray

from funcnet import rules, spec, taps
from funcnet.errors import DTypeError, ShapeError, ValueRangeError
from funcnet.errors import describe as describe_value
from funcnet.nets import _blocks, maps, stack
from funcnet.ops import _check as checks
from funcnet.ops import _squares
from funcnet.ops._draw import in_one_program
from funcnet.ops._dtype import wide
from funcnet.ops._shape import align, known
from funcnet.ops.attention import multihead
from funcnet.ops.dense import embedding, linear
from funcnet.ops.elementwise import gelu, tanh
from funcnet.ops.norm import layer_norm
from funcnet.ops.random import dropout

__all__ = ["Config", "apply", "init", "logits", "next_sentence", "pool", "pool_first", "specs"]

Head = Literal["masked", "sequence", "tokens", "answer"]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Config:
    """The shape of the model; the defaults are those of BERT's base model.

    Attributes:
        vocabulary: number of tokens.
        context: longest sequence.
        types: number of token types (first or second sentence).
        layers: number of blocks.
        heads: attention heads in a block.
        d: features.
        d_hidden: features of a block's hidden layer; None is 4 d.
        norm_eps: added to the variance by every norm.
        pooler: whether params have the layer of `pool_first`.
        dropout: rate on the embedding and on what each block adds, where there is a key.
        attention_dropout: rate on the attention weights, where there is a key.
        unroll: blocks in one step of the loop over them; where it takes them all, there is no loop. None: all
            up to 12, otherwise 1; and 1 on a mesh with Explicit axes where a block gathers its parameters.
        remat: keep only what enters each block, and compute the block again in the backward pass.
        dtype: to compute in, "bfloat16" say; None is that of params.
        head: what `logits` are of: masked tokens, by the table of tokens; classes of a sequence, from the
            pooler; classes of each token; or where an answer begins and where it ends. None: no head.
        classes: of a sequence or a token.
        next_sentence: whether params have the layer of `next_sentence`.
        files: what `hub.load` read beside the tensors, the contents of each file by its name, for `hub.save`
            to write again: labels, special tokens ... No number depends on it, so Configs that differ in it
            are equal.
    """

    vocabulary: int = 30522
    context: int = 512
    types: int = 2
    layers: int = 12
    heads: int = 12
    d: int = 768
    d_hidden: int | None = None
    norm_eps: float = 1e-12
    pooler: bool = True
    dropout: float = 0.0
    attention_dropout: float = 0.0
    unroll: int | None = None
    remat: bool = False
    dtype: str | None = None
    head: Head | None = None
    classes: int = 2
    next_sentence: bool = False
    files: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        where = "encoder.Config"
        checks.fields(where, self)
        for name in ("dropout", "attention_dropout"):
            checks.rate(where, name, getattr(self, name))
        if not self.pooler and (self.head == "sequence" or self.next_sentence):
            raise ValueRangeError(
                "encoder.Config: a class of the whole sequence is read from the pooler, and there is none.",
                path="pooler",
                expected="pooler: True",
                actual=f"pooler = False, head = {self.head!r}, next_sentence = {self.next_sentence}",
            )


@in_one_program
def init(key: PRNGKeyArray, config: Config) -> dict[str, Any]:
    """{"tokens", "positions", "types", "norm", "blocks" (stacked)} and, where config has them, the others.

    Those are "pooler", "head" and "next_sentence". All is uniform: the tables with BERT's variance,
    0.02², the maps with 1/d_in.
    """
    checks.config("encoder.init", config, Config)
    checks.key("encoder.init", key, none=False)
    d, (key_blocks, key_pooler, *keys, key_head, key_next) = config.d, jax.random.split(key, 7)
    sizes = {"tokens": config.vocabulary, "positions": config.context, "types": config.types}
    tables = {name: embedding.init(k, v, d)["w"] for (name, v), k in zip(sizes.items(), keys, strict=True)}
    params: dict[str, Any] = {name: {"w": 0.02 * w} for name, w in tables.items()}
    params["norm"] = layer_norm.init(key, d)
    params["blocks"] = stack.init(key_blocks, config.layers, lambda k: _init_block(k, config))
    if config.pooler:
        params["pooler"] = linear.init(key_pooler, d, d)
    if config.head is not None:
        params["head"] = _init_head(key_head, config)
    if config.next_sentence:
        params["next_sentence"] = linear.init(key_next, d, 2)
    return params


def _init_head(key: PRNGKeyArray, config: Config) -> dict[str, Any]:
    d = config.d
    if config.head == "masked":
        inner = {"linear": linear.init(key, d, d), "norm": layer_norm.init(key, d)}
        return {**inner, "b": jnp.zeros((config.vocabulary,))}
    return {**linear.init(key, d, 2 if config.head == "answer" else config.classes)}


def _init_block(key: PRNGKeyArray, config: Config) -> dict[str, Any]:
    key_attention, key_up, key_down = jax.random.split(key, 3)
    d, d_hidden = config.d, config.d_hidden or 4 * config.d
    return {
        "attention": multihead.init(key_attention, d, config.heads),
        "norm1": layer_norm.init(key, d),
        "up": linear.init(key_up, d, d_hidden),
        "down": linear.init(key_down, d_hidden, d),
        "norm2": layer_norm.init(key, d),
    }


def apply(
    params: dict[str, Any],
    ids: Integer[Array, "*n t"],
    config: Config,
    *,
    mask: Bool[Array, "*n t"] | None = None,
    types: Integer[Array, "*n t"] | None = None,
    key: PRNGKeyArray | None = None,
) -> Float[Array, "*n t d"]:
    """Features of every token.

    Args:
        params: from `init`.
        ids: [*n, t] integers in [0, vocabulary), t ≤ config.context.
        config: the model's.
        mask: [*n, t], True = a token, False = padding, which no position sees; None: no padding. What comes
            out at the padding means nothing.
        types: [*n, t] integers in [0, config.types); None is 0 everywhere.
        key: for dropout; None in evaluation.

    Raises:
        ShapeError: the sequence is longer than the context, or mask or types do not have the shape of ids.
        DTypeError: mask is not boolean.
        ValueRangeError: an id or type is out of range (when they are concrete).
    """
    where = "encoder.apply"
    checks.config(where, config, Config)
    ids = checks.integer_array(where, "ids", ids, "*n, t")
    _check(ids, config, mask, types)
    blocks = "blocks.norm1", "blocks.attention", "blocks.norm2", "blocks.up", "blocks.down"
    checks.tree(where, params, "tokens", "positions", "types", "norm", "blocks", *blocks)
    if key is not None:
        checks.key(where, key)
    params = _cast(params, config)
    key_embedding, key_blocks = (None, None) if key is None else jax.random.split(key)
    types = (
        jnp.zeros((1,), ids.dtype) if types is None else checks.integer_array(where, "types", types, "*n, t")
    )
    x = embedding.apply(params["tokens"], ids)
    table = checks.parameter(f'{where}: params["positions"]', params["positions"], "w", ndim=2)
    t, d = x.shape[-2:]
    rows = t if known(t) else table.shape[0]
    td = jax.ShapeDtypeStruct((rows, d), x.dtype)
    checks.same_shape(where, 'params["positions"]["w"]', table[:rows], "the tokens", td)
    x = _add_positions(params["positions"], x)
    kinds = checks.parameter(f'{where}: params["types"]', params["types"], "w", ndim=2)
    checks.features(
        where, kinds, x.shape[-1], 'params["tokens"]["w"]', dims="types", path='params["types"]["w"]'
    )
    x = embedding.add(params["types"], x, types)
    x = layer_norm.apply(params["norm"], x, config.norm_eps)
    x = dropout.apply(x, rate=config.dropout, key=key_embedding)
    keys = None if key_blocks is None else jax.random.split(key_blocks, (config.layers, 3))
    seen = None if mask is None else mask[..., None, None, :]  # by every head and query

    def block(layer: dict[str, Any], x: Array, keys: Array | None = None) -> Array:
        key_weights, key_attention, key_mlp = (None, None, None) if keys is None else keys
        x = taps.tap("in", x)
        with taps.scope("attention"):
            a = multihead.apply(
                layer["attention"], x, mask=seen, dropout_rate=config.attention_dropout, key=key_weights
            )
        a = taps.tap("attention", dropout.apply(a, rate=config.dropout, key=key_attention))
        x = taps.tap("middle", layer_norm.apply(layer["norm1"], x + a, config.norm_eps))
        h = taps.tap("mlp.hidden", gelu.apply(maps.linear(layer["up"], x)))
        h = dropout.apply(maps.linear(layer["down"], h), rate=config.dropout, key=key_mlp)
        h = taps.tap("mlp", h)
        return taps.tap("out", layer_norm.apply(layer["norm2"], x + h, config.norm_eps))

    with taps.scope("blocks"):
        return stack.apply(block, params["blocks"], x, keys, unroll=config.unroll, remat=config.remat)


def _squares_of_positions(params: Any, x: Array, dy: Array) -> Array:
    del params, x
    return _squares.summed(_squares.over_leading(dy, 2))


@rules.part(_squares_of_positions)
def _add_positions(params: Any, x: Float[Array, "*n t d"]) -> Float[Array, "*n t d"]:
    """x plus the first rows of the table: as `embedding.add`, but cut rather than picked."""
    t = x.shape[-2]
    if not known(t):
        return embedding.add(params, x, jnp.arange(t))
    return x + align(params["w"][:t], x.ndim)


def pool(x: Float[Array, "*n t d"], *, mask: Bool[Array, "*n t"] | None = None) -> Float[Array, "*n d"]:
    """The mean of x [*n, t, d] over the positions where mask [*n, t] is True; 0 where it is so nowhere."""
    x = checks.floating("encoder.pool", "x", x)
    checks.rank("encoder.pool", "x", x, 2, "*n, t, d")
    if mask is None:
        return x.mean(-2)
    if checks.dtype_of(mask) != jnp.bool_ or mask.shape != x.shape[:-1]:
        raise ShapeError(
            "encoder.pool: mask does not say of every position whether it counts.",
            path="mask",
            expected=f"mask: bool[{', '.join(map(str, x.shape[:-1]))}]     (x: {describe_value(x)})",
            actual=f"mask: {describe_value(mask)}",
        )
    weights = mask[..., None].astype(wide(x.dtype))
    total = (x.astype(weights.dtype) * weights).sum(-2)
    return (total / jnp.maximum(weights.sum(-2), 1)).astype(x.dtype)


def pool_first(params: dict[str, Any], x: Float[Array, "*n t d"]) -> Float[Array, "*n d"]:
    """BERT's own summary of x [*n, t, d]: tanh of a linear map of the first position, the token [CLS]."""
    where = "encoder.pool_first"
    checks.tree(where, params, "pooler")
    x = checks.floating(where, "x", x)
    checks.rank(where, "x", x, 2, "*n, t, d")
    return tanh.apply(maps.linear(params["pooler"], x[..., 0, :]))


def logits(
    params: dict[str, Any], x: Float[Array, "*n t d"], config: Config
) -> Float[Array, "*n t v"] | Float[Array, "*n classes"]:
    """What config.head makes of features x [*n, t, d] of `apply`.

    Returns:
        Of "masked" norm(gelu(linear(x))) · tokensᵀ + b, [*n, t, vocabulary]; of "tokens" [*n, t, classes]; of
        "answer" begin and end, [*n, t, 2]; of "sequence" [*n, classes], of `pool_first`.

    Raises:
        ValueRangeError: config has no head.
    """
    params = _cast(params, config)
    match config.head:
        case "masked":
            head = params["head"]
            h = layer_norm.apply(head["norm"], gelu.apply(maps.linear(head["linear"], x)), config.norm_eps)
            return linear.apply({"w": params["tokens"]["w"].T, "b": head["b"]}, h)
        case "sequence":
            return maps.linear(params["head"], pool_first(params, x))
        case "tokens" | "answer":
            return maps.linear(params["head"], x)
    raise ValueRangeError(
        "encoder.logits: the model has no head.",
        path="config.head",
        expected=f"config.head: {', '.join(map(repr, get_args(Head)))}",
        actual="config.head = None",
    )


def next_sentence(params: dict[str, Any], x: Float[Array, "*n t d"]) -> Float[Array, "*n 2"]:
    """BERT's logits of x [*n, t, d]: the second sentence follows the first, or comes from elsewhere."""
    return maps.linear(params["next_sentence"], pool_first(params, x))


def _cast(params: dict[str, Any], config: Config) -> dict[str, Any]:
    return params if config.dtype is None else jax.tree.map(lambda w: w.astype(config.dtype), params)


def specs(config: Config) -> dict[str, Any]:
    """The parallel tree of `spec.Spec`; the first axis of every leaf of "blocks" is "layers"."""
    checks.config("encoder.specs", config, Config)
    params = jax.eval_shape(lambda: init(jax.random.key(0), config))
    tables = {"tokens": "v d", "positions": "t d", "types": "types d"}
    facts = {name: embedding.specs(params[name], axes=axes) for name, axes in tables.items()}
    facts |= {
        "norm": layer_norm.specs(params["norm"]),
        "blocks": stack.specs(_blocks.specs, params["blocks"]),
    }
    maps = {"pooler": "d_in d_out", "head": "d classes", "next_sentence": "d classes"}
    for name in maps.keys() & params.keys():
        masked = name == "head" and config.head == "masked"
        facts[name] = _masked_specs(params[name]) if masked else linear.specs(params[name], axes=maps[name])
    return facts


def _masked_specs(head: dict[str, Any]) -> dict[str, Any]:
    inner = {"linear": linear.specs(head["linear"]), "norm": layer_norm.specs(head["norm"])}
    return {**inner, "b": spec.of(head["b"], "v")}


def _check(ids: Any, config: Config, mask: Any, types: Any) -> None:
    where, t = "encoder.apply", ids.shape[-1]
    if known(t) and t > config.context:
        raise ShapeError(
            f"{where}: ids has {t} positions, but the context is {config.context}.",
            path="ids",
            expected=f"ids: int[*n, t], t ≤ {config.context}     (config.context)",
            actual=f"ids: {describe_value(ids)}",
            hint=f"cut them: ids[..., :{config.context}].",
        )
    for path, value in (("mask", mask), ("types", types)):
        if value is not None and (checks.dtype_of(value) is None or value.shape != ids.shape):
            raise ShapeError(
                f"{where}: {path} and ids have different shapes.",
                path=path,
                expected=f"{path}: [{', '.join(map(str, ids.shape))}]     (ids: {describe_value(ids)})",
                actual=f"{path}: {describe_value(value)}",
            )
    if mask is not None and mask.dtype != jnp.bool_:
        raise DTypeError(
            f"{where}: mask has dtype {mask.dtype}, but booleans are needed.",
            path="mask",
            expected="mask: bool[*n, t], True = a token",
            actual=f"mask: {describe_value(mask)}",
            hint="1 = a token, 0 = padding? mask == 1." if jnp.issubdtype(mask.dtype, jnp.integer) else None,
        )
