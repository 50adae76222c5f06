"""A decoder: tokens to the logits of the next token. From GPT-2 to the Llama and Qwen line by its Config.

    x = tokens[ids] + positions;  for each block: x += attention(norm(x)), x += mlp(norm(x));
    logits = norm(x) · head,  head = tokensᵀ where tied

mlp(x) is down(gelu(up(x))) or down(silu(gate(x)) · up(x)), or of several such networks, the experts, those
that a router chooses for each token (`moe`). The blocks are stacked and run by `stack`, so that compile time
does not grow with depth. `decode` runs them for a sequence that comes in pieces, with a cache.

Sources: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019 (GPT-2); Touvron et al.,
"LLaMA", arXiv 2302.13971; Yang et al., "Qwen3 Technical Report", arXiv 2505.09388.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, PRNGKeyArray

from funcnet import taps
from funcnet.errors import ShapeError, StructureError, ValueRangeError, shorten
from funcnet.errors import describe as describe_value
from funcnet.nets import _blocks, maps, stack
from funcnet.ops import _check
from funcnet.ops._draw import in_one_program
from funcnet.ops._dtype import wide
from funcnet.ops._shape import align, known
from funcnet.ops.attention import alibi, multihead
from funcnet.ops.attention import rope as rotary
from funcnet.ops.dense import embedding, linear, moe
from funcnet.ops.elementwise import gelu, swiglu
from funcnet.ops.norm import layer_norm, rms_norm
from funcnet.ops.random import dropout

__all__ = [
    "PRESETS",
    "Config",
    "apply",
    "cast",
    "decode",
    "decode_hidden",
    "head",
    "hidden",
    "init",
    "init_cache",
    "logits",
    "preset",
    "specs",
    "unstack",
]

_ROPE = rotary.Config()


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Config:
    """The shape of the model; the defaults make a small GPT-2.

    Attributes:
        vocabulary: number of tokens.
        context: longest sequence.
        layers: number of blocks.
        heads: attention heads of the queries in a block.
        d: features.
        kv_heads: heads of the keys and values, a divisor of heads; None is heads.
        head_width: features of one head; None is d / heads.
        d_hidden: features of a block's hidden layer; None is 4 d.
        norm: layer_norm or rms_norm.
        norm_eps: of every norm; None is 1e-5 for "layer", 1e-6 for "rms".
        mlp: a layer with gelu (exact, or its tanh form as in GPT-2), or gated by silu.
        experts: how many such layers a block has, each with d_hidden features; None: one, without a router.
        experts_per_token: to which its router sends a token, with gates that sum to 1.
        capacity: how many times its even share of a sequence's tokens an expert takes, as in `moe`; None:
            all. `decode` takes all, whatever it is.
        positions: a table of context positions, rope or alibi in the attention, or none.
        rope: how rope turns, where positions is "rope".
        bias: whether every linear map and layer_norm has a bias.
        qkv_bias: whether the maps to queries, keys and values have one; None is as bias.
        qk_norm: whether queries and keys are normalised, by rms_norm.
        tied: whether the head is the table of tokens.
        windows: of the attention, a pattern over the layers; None sees all that came before.
        softcap: bound of the attention's logits.
        logit_softcap: bound c of the model's logits, c · tanh(logits / c).
        dropout: rate on the embedding and on what each block adds, in training.
        unroll: rounds of the pattern of windows in one step of the loop over layers; None: all, without a
            loop, where there are at most 12 rounds, otherwise 1; and 1 on a mesh with Explicit axes where a
            layer gathers its parameters (FSDP).
        remat: keep only what enters each round, and compute the round again in the backward pass.
        dtype: to compute in, "bfloat16" say; None is that of params.
        head: what the logits are of: the next token; classes of the sequence (those behind its last token
            count) or of each token; or where an answer begins and where it ends. None: no head, `apply` gives
            features.
        classes: of a sequence or a token.
        stop: tokens that end a text: ``generate(..., stop=config.stop)``.
        files: what `hub.load` read beside the tensors, the contents of each file by its name, for `hub.save`
            to write again: labels, special tokens ... No number depends on it, so Configs that differ in it
            are equal.
    """

    vocabulary: int
    context: int = 128
    layers: int = 4
    heads: int = 4
    d: int = 128
    kv_heads: int | None = None
    head_width: int | None = None
    d_hidden: int | None = None
    norm: Literal["layer", "rms"] = "layer"
    norm_eps: float | None = None
    mlp: Literal["gelu", "gelu_tanh", "swiglu"] = "gelu_tanh"
    experts: int | None = None
    experts_per_token: int = 2
    capacity: float | None = None
    positions: Literal["learned", "rope", "alibi", "none"] = "learned"
    rope: rotary.Config = _ROPE
    bias: bool = True
    qkv_bias: bool | None = None
    qk_norm: bool = False
    tied: bool = True
    windows: tuple[int | None, ...] = (None,)
    softcap: float | None = None
    logit_softcap: float | None = None
    dropout: float = 0.0
    unroll: int | None = None
    remat: bool = False
    dtype: str | None = None
    head: Literal["next", "sequence", "tokens", "answer"] | None = "next"
    classes: int = 2
    stop: tuple[int, ...] = ()
    files: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        where = "transformer.Config"
        _check.fields(where, self, least={"stop": 0})
        _check.rate(where, "dropout", self.dropout)
        for name in ("softcap", "logit_softcap", "capacity"):
            if (bound := getattr(self, name)) is not None:
                _check.number(where, name, bound, strict=True)
        if self.experts is not None and self.experts_per_token > self.experts:
            raise ValueRangeError(
                f"{where}: a token goes to {self.experts_per_token} experts, but there are {self.experts}.",
                path="experts_per_token",
                expected=f"1 ≤ experts_per_token ≤ {self.experts}     (experts)",
                actual=f"experts_per_token = {self.experts_per_token}",
            )
        if not self.windows:
            raise ValueRangeError(
                "transformer.Config: windows is empty.",
                path="windows",
                expected="windows: one or more, (None,) for attention to all that came before",
                actual=f"windows = {self.windows!r}",
            )


def _llama(
    vocabulary: int, layers: int, d: int, heads: int, kv_heads: int, d_hidden: int, **more: Any
) -> Config:
    return Config(
        vocabulary,
        layers=layers,
        d=d,
        heads=heads,
        kv_heads=kv_heads,
        d_hidden=d_hidden,
        **{"norm": "rms", "mlp": "swiglu", "positions": "rope", "bias": False, **more},
    )


_LLAMA3 = rotary.Config(base=500_000.0)
_LLAMA3_2 = rotary.Config(base=500_000.0, scaling=rotary.Llama3(32.0, 8192))

PRESETS: dict[str, Config] = {
    "gpt2-124m": Config(50257, context=1024, layers=12, heads=12, d=768),
    "gpt2-355m": Config(50257, context=1024, layers=24, heads=16, d=1024),
    "gpt2-774m": Config(50257, context=1024, layers=36, heads=20, d=1280),
    "gpt2-1.5b": Config(50257, context=1024, layers=48, heads=25, d=1600),
    "qwen2-0.5b": _llama(151936, 24, 896, 14, 2, 4864, context=32768, rope=rotary.Config(1e6), qkv_bias=True),
    "qwen3-0.6b": _llama(
        151936, 28, 1024, 16, 8, 3072, context=40960, rope=rotary.Config(1e6), head_width=128, qk_norm=True
    ),
    "llama3.2-1b": _llama(128256, 16, 2048, 32, 8, 8192, context=131072, rope=_LLAMA3_2, norm_eps=1e-5),
    "llama3-8b": _llama(
        128256, 32, 4096, 32, 8, 14336, context=8192, rope=_LLAMA3, norm_eps=1e-5, tied=False
    ),
    "llama3-70b": _llama(
        128256, 80, 8192, 64, 8, 28672, context=8192, rope=_LLAMA3, norm_eps=1e-5, tied=False
    ),
}


def preset(name: str) -> Config:
    """The Config of a published model, by its name and size; `dataclasses.replace` changes it.

    Raises:
        ValueRangeError: there is no such preset.

    >>> preset("gpt2-124m").d
    768
    """
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueRangeError(
            f"transformer.preset: there is no {shorten(name)}.",
            path="name",
            expected=f"name: {', '.join(map(repr, PRESETS))}",
            actual=f"name = {shorten(name)}",
        )
    return PRESETS[name]


@in_one_program
def init(key: PRNGKeyArray, config: Config) -> dict[str, Any]:
    """{"tokens", "positions" (learned), "blocks" (stacked), "norm", "head" (untied, or of classes)}.

    All is uniform: the tables with the variance of GPT-2, 0.02², the maps with 1/d_in. The two maps
    that write into the residual stream are scaled by 1/√(2 · layers): its variance does not grow with depth.
    """
    _check.config("transformer.init", config, Config)
    _check.key("transformer.init", key, none=False)
    key_tokens, key_positions, key_blocks, key_head = jax.random.split(key, 4)
    small = lambda table: {"w": 0.02 * table["w"]}
    params = {
        "tokens": small(embedding.init(key_tokens, config.vocabulary, config.d)),
        "blocks": stack.init(key_blocks, config.layers, lambda k: _init_block(k, config)),
        "norm": _init_norm(key, config),
    }
    if config.positions == "learned":
        params["positions"] = small(embedding.init(key_positions, config.context, config.d))
    if config.head == "next" and not config.tied:
        params["head"] = linear.init(key_head, config.d, config.vocabulary, bias=False)
    elif config.head not in ("next", None):
        classes, bias = (2 if config.head == "answer" else config.classes), config.head != "sequence"
        params["head"] = linear.init(key_head, config.d, classes, bias=bias)
    return params


def _init_block(key: PRNGKeyArray, config: Config) -> dict[str, Any]:
    key_attention, key_up, key_gate, key_down = jax.random.split(key, 4)
    scale = 1 / math.sqrt(2 * config.layers)
    d, d_hidden, bias = config.d, config.d_hidden or 4 * config.d, config.bias
    block: dict[str, Any] = {
        "norm1": _init_norm(key, config),
        "attention": multihead.init(
            key_attention,
            d,
            config.heads,
            kv_heads=config.kv_heads,
            head_width=config.head_width,
            bias=bias if config.qkv_bias is None else config.qkv_bias,
            o_bias=bias,
            qk_norm=config.qk_norm,
        ),
        "norm2": _init_norm(key, config),
    }
    gated = config.mlp == "swiglu"
    if config.experts is not None:
        maps = block["moe"] = moe.init(key_up, d, d_hidden, config.experts, gated=gated, bias=bias)
    else:
        maps = {
            "up": linear.init(key_up, d, d_hidden, bias=bias),
            "down": linear.init(key_down, d_hidden, d, bias=bias),
        }
        if gated:
            maps["gate"] = linear.init(key_gate, d, d_hidden, bias=bias)
        block |= maps
    block["attention"]["o"]["w"] *= scale
    maps["down"]["w"] *= scale
    return block


def _init_norm(key: PRNGKeyArray, config: Config) -> Any:
    return (
        layer_norm.init(key, config.d, bias=config.bias)
        if config.norm == "layer"
        else rms_norm.init(key, config.d)
    )


def apply(
    params: dict[str, Any],
    ids: Integer[Array, "*n t"],
    config: Config,
    *,
    segment_ids: Integer[Array, "*n t"] | None = None,
    key: PRNGKeyArray | None = None,
    facts: bool = False,
    run: Callable[..., Any] = stack.apply,
) -> Any:
    """Logits of the token that follows each of ids; position i sees ids[..., : i + 1] only.

    Args:
        params: from `init`.
        ids: [*n, t] integers in [0, vocabulary), t ≤ config.context.
        config: the model's.
        segment_ids: [*n, t] integers: documents packed into one sequence, each of which sees itself only and
            has the logits that it has alone (with experts, where no capacity drops a token).
        key: for dropout; None in evaluation.
        facts: whether what `moe` tells of its routing comes beside the logits, for the loss of a model with
            experts: balance, z and load as means over the layers, dropped as their sum.
        run: what runs the blocks: `stack.apply`, or a function of its arguments, such as `shard.pipeline`:
            ``functools.partial(fn.shard.pipeline, microbatches=8)``.

    Returns:
        [*n, t, v]; or a pair, these and the `moe.Facts`.

    Raises:
        ShapeError: the sequence is longer than the context.
        ValueRangeError: an id is out of range (when ids are concrete), or there are no experts to tell of.
    """
    options: Any = {"segment_ids": segment_ids, "key": key, "run": run}
    if not _check.flag("transformer.apply", "facts", facts):
        return logits(params, hidden(params, ids, config, **options), config)
    x, told = hidden(params, ids, config, **options, facts=True)
    return logits(params, x, config), told


def hidden(
    params: dict[str, Any],
    ids: Integer[Array, "*n t"],
    config: Config,
    *,
    segment_ids: Integer[Array, "*n t"] | None = None,
    key: PRNGKeyArray | None = None,
    facts: bool = False,
    run: Callable[..., Any] = stack.apply,
) -> Any:
    """What `apply` multiplies by `head` [*n, t, d]; `linear_cross_entropy` takes both. Arguments as there."""
    where = "transformer.hidden"
    _check.config(where, config, Config)
    if _check.flag(where, "facts", facts) and config.experts is None:
        raise ValueRangeError(
            f"{where}: facts are about experts, but there are none.",
            path="facts",
            expected="facts=False, or a config with experts",
            actual=f"facts = {facts}, config.experts = None",
        )
    ids = _check_inputs(where, params, ids, config)
    if segment_ids is not None:
        segment_ids = _check.integer_array(where, "segment_ids", segment_ids, "*n, t")
        _check.same_shape(where, "segment_ids", segment_ids, "ids", ids)
    if key is not None:
        _check.key(where, key)
    params = cast(params, config)
    t = ids.shape[-1]
    key_embedding, key_blocks = (None, None) if key is None else jax.random.split(key)
    x = embedding.apply(params["tokens"], ids)
    if config.positions == "learned":
        _check_table(where, params, x)
        x = embedding.add(params["positions"], x, _positions(t, segment_ids))
    x = dropout.apply(x, rate=config.dropout, key=key_embedding)
    keys = None if key_blocks is None else jax.random.split(key_blocks, (config.layers, 2))
    is_alibi = config.positions == "alibi"
    of_alibi = lambda: alibi.apply(alibi.slopes(config.heads), t=t, s=t, causal=True) if is_alibi else None
    # Elsewhere than here a block must hold no array: what it needs goes with x, or is made anew.
    bias, given = (of_alibi(), None) if run is stack.apply else (None, segment_ids)

    def block(window: int | None) -> Callable[..., Any]:
        options = _attention(config, window) | {"causal": True}

        def one(block: dict[str, Any], carried: Any, keys: Array | None = None) -> Any:
            key_attention, key_mlp = (None, None) if keys is None else keys
            x, told, given = carried
            x = taps.tap("in", x)
            seen: Any = {"segment_ids": segment_ids if given is None else given}
            with taps.scope("attention"):
                h = _norm(block["norm1"], x, config)
                a = multihead.apply(
                    block["attention"], h, of_alibi() if bias is None else bias, **options, **seen
                )
            a = taps.tap("attention", dropout.apply(a, rate=config.dropout, key=key_attention))
            x = taps.tap("middle", x + a)
            h, more = _mlp(block, x, config, config.capacity)
            h = taps.tap("mlp", dropout.apply(h, rate=config.dropout, key=key_mlp))
            x = taps.tap("out", x + h)
            return x, jax.tree.map(jnp.add, told, more) if facts else None, given

        return one

    blocks = [block(window) for window in config.windows]
    carried = x, _no_facts(config, x) if facts else None, given
    with taps.scope("blocks"):
        x, told, _ = run(blocks, params["blocks"], carried, keys, unroll=config.unroll, remat=config.remat)
    if not facts:
        return _norm(params["norm"], x, config)
    mean = {name: told[name] / config.layers for name in ("balance", "z", "load")}
    return _norm(params["norm"], x, config), {**told, **mean}


def _no_facts(config: Config, x: Array) -> dict[str, Array]:
    """Those of no layer, to be added to."""
    zero = jnp.zeros((), wide(x.dtype))
    return dict.fromkeys(("balance", "z", "dropped"), zero) | {"load": jnp.zeros(config.experts, zero.dtype)}


def head(params: dict[str, Any], config: Config) -> Float[Array, "d v"]:
    """What `hidden` is multiplied by: the table of tokens, transposed, or the head of its own."""
    where = "transformer.head"
    _check.config(where, config, Config)
    _check.tree(where, params, "tokens", "tokens.w")
    params = cast(params, config)
    return params["head"]["w"] if "head" in params else params["tokens"]["w"].T


def cast(params: Any, config: Config) -> Any:
    """The params in config.dtype."""
    return params if config.dtype is None else jax.tree.map(lambda w: w.astype(config.dtype), params)


def logits(params: dict[str, Any], x: Float[Array, "*n d"], config: Config) -> Float[Array, "*n v"]:
    """What config.head makes of `hidden` features x: x · head, bent where config has a logit_softcap.

    Classes come by the head's own map, with a bias but for those of a sequence; without a head, x itself.
    """
    _check.config("transformer.logits", config, Config)
    _check.tree("transformer.logits", params, *(() if config.head in ("next", None) else ("head",)))
    if config.head is None:
        return x
    if config.head != "next":
        return maps.linear(cast(params["head"], config), x)
    y = linear.apply({"w": head(params, config)}, x)
    c = config.logit_softcap
    return y if c is None else c * jnp.tanh(y / c)


def _positions(t: int, segment_ids: Array | None) -> Array:
    """0, 1, 2 ..., from 0 again where a segment begins."""
    positions = jnp.arange(t)
    if segment_ids is None:
        return positions
    positions = align(positions, segment_ids.ndim)
    first = jnp.ones_like(segment_ids[..., :1], bool)  # split as they are
    begins = jnp.concatenate([first, segment_ids[..., 1:] != segment_ids[..., :-1]], -1)
    return positions - jax.lax.cummax(jnp.where(begins, positions, 0), axis=segment_ids.ndim - 1)


def _attention(config: Config, window: int | None) -> dict[str, Any]:
    """Options of multihead, the same for the whole sequence and for its pieces."""
    return {
        "window": window,
        "softcap": config.softcap,
        "rope": config.rope if config.positions == "rope" else None,
        "norm_eps": _eps(config),
    }


def _eps(config: Config) -> float:
    return config.norm_eps if config.norm_eps is not None else 1e-5 if config.norm == "layer" else 1e-6


def _norm(params: Any, x: Array, config: Config) -> Array:
    return (layer_norm if config.norm == "layer" else rms_norm).apply(params, x, _eps(config))


def _mlp(block: dict[str, Any], x: Array, config: Config, capacity: float | None = None) -> tuple[Array, Any]:
    """What a block adds after its attention, and what it tells of its experts, if it has any."""
    x = _norm(block["norm2"], x, config)
    if config.experts is not None:
        activation = "silu" if config.mlp == "swiglu" else config.mlp
        return moe.apply(
            block["moe"], x, k=config.experts_per_token, activation=activation, capacity=capacity
        )
    up = maps.linear(block["up"], x)
    if config.mlp == "swiglu":
        h = swiglu.apply(maps.linear(block["gate"], x), up)
    else:
        h = gelu.apply(up, config.mlp == "gelu_tanh")
    return maps.linear(block["down"], taps.tap("mlp.hidden", h)), None


# ---- decoding ---------------------------------------------------------------------------------------------


def init_cache(config: Config, n: int | tuple[int, ...], length: int, *, dtype: Any = None) -> list[Any]:
    """An empty cache of `multihead` for every layer.

    Args:
        config: the model's.
        n: sequences, or the leading axes of ids.
        length: positions of the longest sequence, prompt and all.
        dtype: of keys and values; None is config.dtype, or float32.

    Raises:
        ValueRangeError: length exceeds the context.
    """
    _check.config("transformer.init_cache", config, Config)
    if _check.positive("transformer.init_cache", "length", length) > config.context:
        raise ValueRangeError(
            f"transformer.init_cache: length is {length}, but the context is {config.context}.",
            path="length",
            expected=f"length ≤ {config.context}     (config.context)",
            actual=f"length = {length}",
        )
    shapes = jax.eval_shape(lambda: _init_block(jax.random.key(0), config)["attention"])
    windows = [config.windows[i % len(config.windows)] for i in range(config.layers)]
    if dtype is None:
        dtype = config.dtype or shapes["k"]["w"].dtype
    return [multihead.init_cache(shapes, n, length, window=window, dtype=dtype) for window in windows]


def decode(
    params: dict[str, Any],
    ids: Integer[Array, "*n t"],
    cache: list[Any],
    config: Config,
    *,
    lengths: Integer[Array, "*n"] | None = None,
) -> tuple[Float[Array, "*n t v"], list[Any]]:
    """`apply` for the next t tokens of sequences whose earlier tokens are in the cache.

    The layers are unrolled, each with a cache of its own, which is written in place where it is donated or
    carried by a loop. In such a loop, pass params that `unstack` took apart before it.

    Args:
        params: from `init`; "blocks" stacked, or a list.
        ids: [*n, t] integers in [0, vocabulary).
        cache: from `init_cache`, or from the call before.
        config: the model's.
        lengths: int [*n]: how many of the t tokens of each sequence are real; None: all. The others, at the
            end, are padding: they are not stored, and their logits mean nothing.

    Returns:
        Logits [*n, t, v] and the cache with the new tokens in it.

    Raises:
        ShapeError: ids, lengths or the cache do not fit.
        ValueRangeError: the cache is too small, or an id out of range (when they are concrete).
    """
    x, cache = decode_hidden(params, ids, cache, config, lengths=lengths)
    return logits(params, x, config), cache


def decode_hidden(
    params: dict[str, Any],
    ids: Integer[Array, "*n t"],
    cache: list[Any],
    config: Config,
    *,
    lengths: Integer[Array, "*n"] | None = None,
) -> tuple[Float[Array, "*n t d"], list[Any]]:
    """What `decode` multiplies by `head`; arguments as there."""
    where = "transformer.decode"
    ids = _check_inputs(where, params, ids, config)
    params = unstack(params, config)
    _check_caches(where, cache, params["blocks"], ids)
    x = embedding.apply(params["tokens"], ids)
    if config.positions == "learned":
        steps = align(jnp.arange(ids.shape[-1], dtype=jnp.int32), ids.ndim)
        positions = cache[0]["length"][..., None] + steps
        x = embedding.add(params["positions"], x, positions)
    slopes = alibi.slopes(config.heads) if config.positions == "alibi" else None

    def run(block: dict[str, Any], x: Array, old: Any, window: int | None) -> tuple[Array, Any]:
        x, options = taps.tap("in", x), _attention(config, window)
        given = block["attention"], _norm(block["norm1"], x, config), old
        with taps.scope("attention"):
            a, held = multihead.decode(*given, lengths=lengths, slopes=slopes, **options)
        x = taps.tap("middle", x + taps.tap("attention", a))
        return taps.tap("out", x + taps.tap("mlp", _mlp(block, x, config)[0])), held

    new, layers = [], len(cache)
    for i, (block, old) in enumerate(zip(params["blocks"], cache, strict=True)):
        with taps.scope("blocks"):
            one = taps.layer(run, i, layers)
            x, held = one(block, x, old, config.windows[i % len(config.windows)])
        new.append(held)
    return _norm(params["norm"], x, config), new


def unstack(params: dict[str, Any], config: Config) -> dict[str, Any]:
    """The params as a loop of `decode` reads them fastest: in config.dtype, blocks a list, a head of its own.

    A step multiplies few rows, and is slowed by every copy of a matrix: XLA:CPU copies the layers' parts of a
    stack, and multiplies few rows by a transposed table 3 to 6 times slower than by the table's transpose.
    """
    params = cast(params, config)
    if isinstance(params["blocks"], list):
        return params
    apart = params | {"blocks": stack.unstack(params["blocks"])}
    return apart | {"head": {"w": head(params, config)}} if config.head == "next" else apart


# ---- facts ------------------------------------------------------------------------------------------------


def specs(config: Config) -> dict[str, Any]:
    """The parallel tree of `spec.Spec`; the first axis of every leaf of "blocks" is "layers"."""
    _check.config("transformer.specs", config, Config)
    params = jax.eval_shape(lambda: init(jax.random.key(0), config))
    norm = layer_norm.specs if config.norm == "layer" else rms_norm.specs
    facts = {
        "tokens": embedding.specs(params["tokens"]),
        "blocks": stack.specs(lambda block: _blocks.specs(block, norm), params["blocks"]),
        "norm": norm(params["norm"]),
    }
    if "positions" in params:
        facts["positions"] = embedding.specs(params["positions"], axes="t d")
    if "head" in params:
        axes = "d v" if config.head == "next" else "d classes"
        facts["head"] = linear.specs(params["head"], axes=axes)
    return facts


def _check_inputs(where: str, params: Any, ids: Any, config: Any) -> Array:
    _check.config(where, config, Config)
    ids = _check.integer_array(where, "ids", ids, "*n, t")
    _check_ids(ids, config)
    check_params(where, params, config)
    return ids


def check_params(where: str, params: Any, config: Config) -> None:
    """The parts that every model of this kind has, in floats; blocks that `unstack` took apart are a list."""
    table = ("positions",) if config.positions == "learned" else ()
    apart = isinstance(params, Mapping) and isinstance(params.get("blocks"), list)
    mlp = ("up", "down") if config.experts is None else ("moe",)
    parts = () if apart else ("norm1", "attention", "norm2", *mlp)
    names = ["tokens", *table, "norm", "blocks", *(f"blocks.{part}" for part in parts)]
    _check.tree(where, params, *names)


def _check_table(where: str, params: Any, x: Array) -> None:
    """The table of positions has the rows and features that x [*n, t, d] needs."""
    path, (t, d) = 'params["positions"]["w"]', x.shape[-2:]
    table = _check.parameter(f'{where}: params["positions"]', params["positions"], "w", ndim=2)
    rows = t if known(t) else table.shape[0]
    _check.same_shape(where, path, table[:rows], "the tokens", jax.ShapeDtypeStruct((rows, d), x.dtype))


def _check_caches(where: str, cache: Any, blocks: list[Any], ids: Array) -> None:
    if not isinstance(cache, list | tuple) or len(cache) != len(blocks):
        raise StructureError(
            f"{where}: cache is not a list with one cache for each of {len(blocks)} layers.",
            path="cache",
            expected="cache: from transformer.init_cache, or from the call before",
            actual=f"cache: {describe_value(cache)}"
            + (f" of {len(cache)}" if isinstance(cache, list | tuple) else ""),
        )
    length: Any = cache[0].get("length") if isinstance(cache[0], Mapping) else None
    if _check.dtype_of(length) is None or length.shape != ids.shape[:-1]:
        raise ShapeError(
            f"{where}: cache does not fit ids.",
            path="cache",
            expected=f"cache: for {ids.shape[:-1]} sequences     (ids: {describe_value(ids)})",
            actual=f"cache[0]: length {describe_value(length)}",
        )


def _check_ids(ids: Array, config: Config) -> None:
    t = ids.shape[-1]
    if known(t) and t > config.context:
        raise ShapeError(
            f"transformer: ids has {t} positions, but the context is {config.context}.",
            path="ids",
            expected=f"ids: int[*n, t], t ≤ {config.context}     (config.context)",
            actual=f"ids: {describe_value(ids)}",
            hint=f"the last ones fit: ids[..., -{config.context}:].",
        )
