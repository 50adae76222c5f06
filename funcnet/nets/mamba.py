"""A decoder without attention: tokens to the logits of the next token, by a state that each token selects.

    x = tokens[ids];  for each block: x += mixer(norm(x));  logits = norm(x) · head, head = tokensᵀ where tied
    mixer(x): u, g = in(x);  u = silu(conv(u)), causal, each channel by itself;  r, B, C = select(u);
    Δ = softplus(step(r));  h(t) = exp(Δ A) h(t − 1) + (Δ u) Bᵀ with A = −exp(a);  y = h C + skip · u;
    and out(y · silu(g)) is what comes out.

Of a channel the state h is a row of `state` numbers, each an element of a `linear_recurrence`, a chunk of
steps at a time: what is held is the states of a chunk, which the backward pass makes again, not those of all.
`decode` goes on with sequences that come in pieces, with a state whose size does not grow.
Source: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", arXiv 2312.00752.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, PRNGKeyArray

from funcnet import rules, spec, taps
from funcnet.errors import ShapeError, StructureError, describe
from funcnet.nets import maps, stack
from funcnet.ops import _check
from funcnet.ops._chunks import in_chunks
from funcnet.ops._draw import in_one_program
from funcnet.ops._dtype import wide
from funcnet.ops._shape import align, known
from funcnet.ops.conv import conv
from funcnet.ops.dense import embedding, linear
from funcnet.ops.elementwise import silu
from funcnet.ops.norm import rms_norm
from funcnet.ops.recurrent import linear_recurrence

__all__ = ["Config", "apply", "decode", "head", "hidden", "init", "init_state", "specs"]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Config:
    """The shape of the model; the defaults make a small one.

    Attributes:
        vocabulary: number of tokens.
        layers: number of blocks.
        d: features.
        expand: channels of a block, in multiples of d.
        state: numbers of the state of a channel.
        kernel: taps of the convolution.
        rank: features that the steps Δ are made of; None is ⌈d / 16⌉.
        bias: whether the maps into a block and out of it have one.
        conv_bias: whether the convolution has one.
        norm_eps: of every norm.
        tied: whether the head is the table of tokens.
        chunk: steps whose states are held at once.
        unroll: layers in one step of the loop over them.
        remat: keep only what enters each block, and compute the block again in the backward pass.
        dtype: to compute in, "bfloat16" say; None is that of params. States are in float32 or wider.
        head: "next", the logits of the next token; None: no head, `apply` gives features.
        stop: tokens that end a text.
        files: what `hub.load` read beside the tensors, for `hub.save` to write again.
    """

    vocabulary: int
    layers: int = 4
    d: int = 128
    expand: int = 2
    state: int = 16
    kernel: int = 4
    rank: int | None = None
    bias: bool = False
    conv_bias: bool = True
    norm_eps: float = 1e-5
    tied: bool = True
    chunk: int = 64
    unroll: int = 1
    remat: bool = False
    dtype: str | None = None
    head: Literal["next"] | None = "next"
    stop: tuple[int, ...] = ()
    files: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        _check.fields("mamba.Config", self, least={"stop": 0})


def _rank(config: Config) -> int:
    return -(-config.d // 16) if config.rank is None else config.rank


@in_one_program
def init(key: PRNGKeyArray, config: Config) -> dict[str, Any]:
    """{"tokens", "blocks" (stacked), "norm", "head" (untied)}.

    The table is uniform of variance 0.02², the maps of 1/d_in, that out of a block scaled by 1/√layers. A is
    −1, −2, ... for each channel, skip 1, and the bias of Δ such that log Δ is uniform, Δ from 0.001 to 0.1.

    >>> params = init(jax.random.key(0), Config(vocabulary=11, layers=3, d=8, state=4))
    >>> params["blocks"]["scan"]["a"].shape
    (3, 16, 4)
    """
    _check.config("mamba.init", config, Config)
    _check.key("mamba.init", key, none=False)
    key_tokens, key_blocks, key_head = jax.random.split(key, 3)
    params = {
        "tokens": {"w": 0.02 * embedding.init(key_tokens, config.vocabulary, config.d)["w"]},
        "blocks": stack.init(key_blocks, config.layers, lambda k: _init_block(k, config)),
        "norm": rms_norm.init(key, config.d),
    }
    if config.head == "next" and not config.tied:
        params["head"] = linear.init(key_head, config.d, config.vocabulary, bias=False)
    return params


def _init_block(key: PRNGKeyArray, config: Config) -> dict[str, Any]:
    d, channels, rank = config.d, config.expand * config.d, _rank(config)
    key_in, key_conv, key_select, key_step, key_bias, key_out = jax.random.split(key, 6)
    log_steps = jax.random.uniform(key_bias, (channels,), minval=math.log(1e-3), maxval=math.log(0.1))
    steps = jnp.exp(log_steps)
    rates = jnp.log(jnp.arange(1, config.state + 1, dtype=log_steps.dtype))
    out = linear.init(key_out, channels, d, bias=config.bias)
    return {
        "norm": rms_norm.init(key, d),
        "in": linear.init(key_in, d, 2 * channels, bias=config.bias),
        "conv": conv.init(
            key_conv, channels, channels, kernel=(config.kernel,), groups=channels, bias=config.conv_bias
        ),
        "select": linear.init(key_select, channels, rank + 2 * config.state, bias=False),
        "step": {
            "w": linear.init(key_step, rank, channels)["w"],
            "b": steps + jnp.log(-jnp.expm1(-steps)),  # softplus of it is the step
        },
        "scan": {"a": jnp.tile(rates[None], (channels, 1)), "skip": jnp.ones((channels,))},
        "out": {**out, "w": 1 / math.sqrt(config.layers) * out["w"]},
    }


def apply(params: dict[str, Any], ids: Integer[Array, "*n t"], config: Config) -> Float[Array, "*n t v"]:
    """Logits of the token that follows each of ids; position i sees ids[..., : i + 1] only.

    Args:
        params: from `init`.
        ids: [*n, t] integers in [0, vocabulary).
        config: the model's.

    Raises:
        ValueRangeError: an id is out of range (when ids are concrete).
    """
    return _logits(params, hidden(params, ids, config), config)


def hidden(params: dict[str, Any], ids: Integer[Array, "*n t"], config: Config) -> Float[Array, "*n t d"]:
    """What `apply` multiplies by `head`; `linear_cross_entropy` takes both. Arguments as of `apply`."""
    ids = _check_inputs("mamba.hidden", params, ids, config)
    params = _cast(params, config)

    def block(params: dict[str, Any], x: Array) -> Array:
        return taps.tap("out", x + _mixer(params, taps.tap("in", x), None, config)[0])

    with taps.scope("blocks"):
        x = embedding.apply(params["tokens"], ids)
        x = stack.apply(block, params["blocks"], x, unroll=config.unroll, remat=config.remat)
    return rms_norm.apply(params["norm"], x, config.norm_eps)


def head(params: dict[str, Any], config: Config) -> Float[Array, "d v"]:
    """What `hidden` is multiplied by: the table of tokens, transposed, or the head of its own."""
    _check.config("mamba.head", config, Config)
    _check.tree("mamba.head", params, "tokens", "tokens.w", *(["head", "head.w"] if "head" in params else []))
    params = _cast(params, config)
    return params["head"]["w"] if "head" in params else params["tokens"]["w"].T


def _logits(params: dict[str, Any], x: Array, config: Config) -> Array:
    return x if config.head is None else linear.apply({"w": head(params, config)}, x)


def _cast(params: Any, config: Config) -> Any:
    """The params in config.dtype, but for the rates of decay, of which the exponential is taken twice."""
    if config.dtype is None:
        return params
    narrow = lambda path, w: w if path[-2:-1] == (jax.tree_util.DictKey("scan"),) else w.astype(config.dtype)
    return jax.tree.map_with_path(narrow, params)


# ---- a block ----------------------------------------------------------------------------------------------


def _mixer(params: dict[str, Any], x: Array, state: Any, config: Config) -> tuple[Array, dict[str, Array]]:
    """What a block adds to x [*n, t, d], and the state after the last step; None is zeros."""
    s, rank, lead = config.state, _rank(config), x.shape[:-2]
    x = maps.linear(params["in"], rms_norm.apply(params["norm"], x, config.norm_eps))
    u, gate = jnp.split(x, 2, -1)
    if state is None:
        seen = jnp.pad(u, [(0, 0)] * len(lead) + [(config.kernel - 1, 0), (0, 0)])
        h = jnp.zeros((*lead, u.shape[-1], s), wide(u.dtype))
    else:
        seen, h = jnp.concatenate([state["conv"].astype(u.dtype), u], -2), state["h"]
    u = conv.apply(params["conv"], seen, padding="valid", groups=u.shape[-1])
    u = taps.tap("u", silu.apply(u))
    selected = maps.linear(params["select"], u)
    if selected.shape[-1] != rank + 2 * s:
        path = 'params["blocks"]["select"]["w"]'
        raise ShapeError(
            f"mamba: {path} does not fit config.",
            path=path,
            expected=f"{path}: {rank + 2 * s} columns     (config.rank and twice config.state)",
            actual=f"{selected.shape[-1]} columns",
        )
    low, b, c = jnp.split(selected, [rank, rank + s], -1)
    step = jax.nn.softplus(maps.linear(params["step"], low).astype(wide(u.dtype)))
    _check_scan(params["scan"], u.shape[-1], s)
    y, h = _select(params["scan"], u, taps.tap("step", step), b, c, h, chunk=config.chunk)
    y = taps.tap("mixer", maps.linear(params["out"], y.astype(u.dtype) * silu.apply(gate)))
    return y, {"conv": seen[..., seen.shape[-2] - (config.kernel - 1) :, :], "h": h}


def _check_scan(params: Any, channels: int, state: int) -> None:
    """The rates of decay, and what is added of u itself."""
    for name, shape in (("a", (channels, state)), ("skip", (channels,))):
        path = f'params["blocks"]["scan"]["{name}"]'
        leaf = _check.floating("mamba", path, params.get(name))
        if leaf.shape != shape:
            raise ShapeError(
                f"mamba: {path} does not fit the other parameters.",
                path=path,
                expected=f"{path}: float{list(shape)} in each layer",
                actual=f"{path}: {describe(leaf)}",
            )


def _squares(
    params: Any, x: Array, step: Array, b: Array, c: Array, h: Array, dy: Any, *, chunk: int
) -> Array:
    def one(dy: Any, *args: Array) -> Any:
        return jax.vjp(lambda params: _selected(params, *args, chunk=chunk), params)[1](dy)[0]

    grads = jax.vmap(one)(dy, x, step, b, c, h)
    return jnp.square(grads["a"]).sum((1, 2)) + jnp.square(grads["skip"]).sum(1)


@rules.part(_squares)
def _select(
    params: Mapping[str, Array],
    x: Float[Array, "*n t d"],
    step: Float[Array, "*n t d"],
    b: Float[Array, "*n t s"],
    c: Float[Array, "*n t s"],
    h: Float[Array, "*n d s"],
    *,
    chunk: int,
) -> tuple[Float[Array, "*n t d"], Float[Array, "*n d s"]]:
    """y and the last state."""
    return _selected(params, x, step, b, c, h, chunk=chunk)


def _selected(
    params: Mapping[str, Array], x: Array, step: Array, b: Array, c: Array, h: Array, *, chunk: int
) -> tuple[Array, Array]:
    sums = wide(x.dtype)
    rates, skip = -jnp.exp(params["a"].astype(sums)), params["skip"].astype(sums)
    lead, (t, d), s = x.shape[:-2], x.shape[-2:], rates.shape[-1]
    first = lambda v: jnp.swapaxes(v.reshape(math.prod(lead), t, v.shape[-1]), 0, 1).astype(sums)
    x, step, b, c = map(first, (x, step, b, c))

    def steps(h: Array, at: tuple[Array, ...]) -> tuple[Array, Array]:
        x, step, b, c = at
        kept = jnp.exp(step[..., None] * align(rates, 4))
        new = (step * x)[..., None] * b[:, :, None, :]
        flat = (kept.shape[0], math.prod(kept.shape[1:]))
        hs = linear_recurrence.apply(kept.reshape(flat), new.reshape(flat), h.reshape(-1)).reshape(new.shape)
        y = jnp.einsum("tnds,tns->tnd", hs, c) + align(skip, 3) * x
        return hs[-1] if not known(t) or t else h, y

    h = rules.same_variance(h.reshape(math.prod(lead), d, s).astype(sums), x, step, b, c, rates)[0]
    h, y = in_chunks(jax.checkpoint(steps, prevent_cse=False), h, (x, step, b, c), chunk)
    return jnp.swapaxes(y, 0, 1).reshape(*lead, t, d), h.reshape(*lead, d, s)


# ---- sequences in pieces ----------------------------------------------------------------------------------


def init_state(config: Config, n: int | tuple[int, ...] = (), *, dtype: Any = None) -> dict[str, Array]:
    """The state before the first token: {"conv" [layers, *n, kernel − 1, channels], "h" [..., channels, s]}.

    Args:
        config: the model's.
        n: sequences, or the leading axes of ids.
        dtype: of "conv"; None is config.dtype, or float32. That of "h" is float32 or wider.
    """
    where = "mamba.init_state"
    _check.config(where, config, Config)
    lead = _check.integers(where, "n", n if isinstance(n, tuple | list) else (n,), least=0)
    dtype = jnp.dtype(_check.dtype(where, "dtype", dtype or config.dtype or jnp.float32))
    lead, channels = (config.layers, *lead), config.expand * config.d
    return {
        "conv": jnp.zeros((*lead, config.kernel - 1, channels), dtype),
        "h": jnp.zeros((*lead, channels, config.state), wide(dtype)),
    }


def decode(
    params: dict[str, Any], ids: Integer[Array, "*n t"], state: dict[str, Array], config: Config
) -> tuple[Float[Array, "*n t v"], dict[str, Array]]:
    """`apply` for the next t tokens of sequences of which `state` holds what came before.

    Args:
        params: from `init`.
        ids: [*n, t] integers in [0, vocabulary).
        state: from `init_state`, or from the call before.
        config: the model's.

    Returns:
        Logits [*n, t, v], and the state after the last token.

    Raises:
        ShapeError, StructureError: the state does not fit ids.
        ValueRangeError: an id is out of range (when ids are concrete).
    """
    where = "mamba.decode"
    ids = _check_inputs(where, params, ids, config)
    _check_state(where, state, ids, config)
    cast = _cast(params, config)

    def block(x: Array, layer: Any) -> tuple[Array, Any]:
        y, after = _mixer(layer[0], x, layer[1], config)
        like = {name: v.astype(layer[1][name].dtype) for name, v in after.items()}
        return x + y.astype(x.dtype), like

    x = embedding.apply(cast["tokens"], ids)
    x, state = jax.lax.scan(block, x, (cast["blocks"], state))
    return _logits(params, rms_norm.apply(cast["norm"], x, config.norm_eps), config), state


def specs(config: Config) -> dict[str, Any]:
    """The parallel tree of `spec.Spec`; the first axis of every leaf of "blocks" is "layers"."""
    _check.config("mamba.specs", config, Config)
    params = jax.eval_shape(lambda: init(jax.random.key(0), config))

    def of_block(block: dict[str, Any]) -> dict[str, Any]:
        axes = {
            "in": "d channels",
            "select": "channels selected",
            "step": "rank channels",
            "out": "channels d",
        }
        of_maps = {name: linear.specs(block[name], axes=names) for name, names in axes.items()}
        scan = {
            "a": spec.of(block["scan"]["a"], "channels state"),
            "skip": spec.of(block["scan"]["skip"], "channels"),
        }
        depthwise = conv.specs(block["conv"], groups=block["conv"]["w"].shape[-1], axes="k one channels")
        return of_maps | {"norm": rms_norm.specs(block["norm"]), "conv": depthwise, "scan": scan}

    facts = {
        "tokens": embedding.specs(params["tokens"]),
        "blocks": stack.specs(of_block, params["blocks"]),
        "norm": rms_norm.specs(params["norm"]),
    }
    return facts | ({"head": linear.specs(params["head"], axes="d v")} if "head" in params else {})


def _check_inputs(where: str, params: Any, ids: Any, config: Any) -> Array:
    _check.config(where, config, Config)
    ids = _check.integer_array(where, "ids", ids, "*n, t")
    parts = ("norm", "in", "conv", "select", "step", "scan", "out")
    _check.tree(where, params, "tokens", "norm", "blocks", *(f"blocks.{part}" for part in parts))
    return ids


def _check_state(where: str, state: Any, ids: Array, config: Config) -> None:
    want = jax.eval_shape(lambda: init_state(config, ids.shape[:-1]))
    if not isinstance(state, Mapping) or set(state) != set(want):
        raise StructureError(
            f'{where}: state is not a dict with "conv" and "h".',
            path="state",
            expected="state: from mamba.init_state, or from the call before",
            actual=f"state: {describe(state)}",
        )
    for name, like in want.items():
        got = _check.floating(where, f'state["{name}"]', state[name])
        if got.shape != like.shape:
            raise ShapeError(
                f'{where}: state["{name}"] does not fit ids.',
                path=f'state["{name}"]',
                expected=f"float{list(like.shape)}     (ids: {describe(ids)})",
                actual=describe(got),
            )
