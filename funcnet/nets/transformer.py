"""A decoder: tokens to the logits of the next token. Pre-norm blocks, learned positions, tied head.

    x = tokens[ids] + positions;  for each block: x += attention(norm(x)), x += down(gelu(up(norm(x))));
    logits = norm(x) · tokensᵀ

The blocks are one tree of arrays stacked along a first axis "layers" and run by `jax.lax.scan`, so that
compile time does not grow with depth. Source: Radford et al., "Language Models are Unsupervised Multitask
Learners", 2019 (GPT-2).
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from funcnet.errors import ShapeError
from funcnet.errors import describe as describe_value
from funcnet.nets.spec import describe
from funcnet.ops import dropout, embedding, gelu, layer_norm, linear, matmul, multihead

__all__ = ["Config", "apply", "init", "specs"]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Config:
    """The shape of the model.

    Attributes:
        vocabulary: number of tokens.
        context: longest sequence.
        layers: number of blocks.
        heads: attention heads in a block.
        d: features.
        expansion: features of a block's hidden layer, in multiples of d.
        dropout: rate on the embedding and on what each block adds, in training.
        unroll: blocks in one step of the scan; more of them run faster and compile longer.
    """

    vocabulary: int
    context: int = 128
    layers: int = 4
    heads: int = 4
    d: int = 128
    expansion: int = 4
    dropout: float = 0.0
    unroll: int = 1


def init(key: PRNGKeyArray, config: Config) -> dict[str, Any]:
    """{"tokens", "positions", "blocks" (stacked), "norm"}; weights N(0, 0.02²) or 1/√d_in, as in GPT-2.

    The two maps that write into the residual stream are scaled by 1/√(2 · layers), so that its variance
    does not grow with depth.
    """
    key_tokens, key_positions, key_blocks = jax.random.split(key, 3)
    small = lambda table: {"w": 0.02 * table["w"]}
    return {
        "tokens": small(embedding.init(key_tokens, config.vocabulary, config.d)),
        "positions": small(embedding.init(key_positions, config.context, config.d)),
        "blocks": jax.vmap(lambda k: _init_block(k, config))(jax.random.split(key_blocks, config.layers)),
        "norm": layer_norm.init(key, config.d),
    }


def _init_block(key: PRNGKeyArray, config: Config) -> dict[str, Any]:
    key_attention, key_up, key_down = jax.random.split(key, 3)
    scale = 1 / math.sqrt(2 * config.layers)
    block = {
        "norm1": layer_norm.init(key, config.d),
        "attention": multihead.init(key_attention, config.d, config.heads),
        "norm2": layer_norm.init(key, config.d),
        "up": linear.init(key_up, config.d, config.expansion * config.d),
        "down": linear.init(key_down, config.expansion * config.d, config.d),
    }
    block["attention"]["o"]["w"] *= scale
    block["down"]["w"] *= scale
    return block


def apply(
    params: dict[str, Any], ids: Int[Array, "*n t"], config: Config, *, key: PRNGKeyArray | None = None
) -> Float[Array, "*n t v"]:
    """Logits of the token that follows each of ids; position i sees ids[..., : i + 1] only.

    Args:
        params: from `init`.
        ids: [*n, t] integers in [0, vocabulary), t ≤ config.context.
        config: the model's.
        key: for dropout; None in evaluation.

    Raises:
        ShapeError: the sequence is longer than the context.
        ValueRangeError: an id is out of range (when ids are concrete).
    """
    t = ids.shape[-1]
    if t > config.context:
        raise ShapeError(
            f"transformer.apply: ids has {t} positions, but the context is {config.context}.",
            path="ids",
            expected=f"ids: int[*n, t], t ≤ {config.context}     (config.context)",
            actual=f"ids: {describe_value(ids)}",
            hint=f"the last ones fit: ids[..., -{config.context}:].",
        )
    key_embedding, key_blocks = (None, None) if key is None else jax.random.split(key)
    x = embedding.apply(params["tokens"], ids) + embedding.apply(params["positions"], jnp.arange(t))
    x = dropout.apply(x, rate=config.dropout, key=key_embedding)
    keys = None if key_blocks is None else jax.random.split(key_blocks, (config.layers, 2))
    x, _ = jax.lax.scan(
        lambda x, layer: (_apply_block(layer[0], x, config, layer[1]), None),
        x,
        (params["blocks"], keys),
        unroll=config.unroll,
    )
    return matmul.apply(layer_norm.apply(params["norm"], x), params["tokens"]["w"].T)


def _apply_block(block: dict[str, Any], x: Array, config: Config, keys: Array | None) -> Array:
    key_attention, key_mlp = (None, None) if keys is None else keys
    a = multihead.apply(block["attention"], layer_norm.apply(block["norm1"], x), causal=True)
    x = x + dropout.apply(a, rate=config.dropout, key=key_attention)
    h = linear.apply(
        block["down"], gelu.apply(linear.apply(block["up"], layer_norm.apply(block["norm2"], x)), True)
    )
    return x + dropout.apply(h, rate=config.dropout, key=key_mlp)


def specs(config: Config) -> dict[str, Any]:
    """The parallel tree of `spec.Spec`; the first axis of every leaf of "blocks" is "layers"."""
    norm = {"w": "layers d", "b": "layers d"}
    block = {
        "norm1": norm,
        "attention": {
            **{name: {"w": "layers d h e", "b": "layers h e"} for name in "qkv"},
            "o": {"w": "layers h e d", "b": "layers d"},
        },
        "norm2": norm,
        "up": {"w": "layers d d_hidden", "b": "layers d_hidden"},
        "down": {"w": "layers d_hidden d", "b": "layers d"},
    }
    return describe(
        init,
        config,
        {"tokens": {"w": "v d"}, "positions": {"w": "t d"}, "blocks": block, "norm": {"w": "d", "b": "d"}},
    )
