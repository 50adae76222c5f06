"""How a decoder goes on with token sequences: one compiled program for the prompts, one for what follows.

Each new token is the most probable one, or is drawn from softmax(logits / temperature), cut to the most
probable tokens where that is asked for: Fan et al., arXiv 1805.04833 (top-k); Holtzman et al., arXiv
1904.09751 (top-p); Nguyen et al., arXiv 2407.01082 (min-p).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from funcnet.errors import DTypeError, ShapeError, ValueRangeError, describe
from funcnet.nets import transformer

__all__ = ["generate"]

PADDING = -1  # no token
_STREAMED = 8  # tokens between two calls of `stream`

Prompt = Sequence[int] | Sequence[Sequence[int]] | Int[np.ndarray, "..."] | Int[Array, "..."]


def generate(
    params: dict[str, Any],
    prompt: Prompt,
    config: transformer.Config,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    stop: Sequence[int] = (),
    lengths: Sequence[int] | Int[np.ndarray, " n"] | Int[Array, " n"] | None = None,
    key: PRNGKeyArray | None = None,
    stream: Callable[[int, list[int]], None] | None = None,
) -> Int[Array, "*n new"]:
    """The tokens that follow a prompt, or each of several.

    Compiled once for prompts and numbers of tokens of about the same size: sizes are rounded up. The
    parameters are copied once in a call, layer by layer, so that no step has to take them apart.

    Args:
        params: of `nets.transformer`.
        prompt: the ids of one sequence, [p]; or of several: [n, p], with lengths where they are padded at the
            end, or a list of lists.
        config: the model's.
        max_new_tokens: how many tokens to add.
        temperature: what the logits are divided by; 0 takes the most probable token.
        top_k: draw among the k most probable tokens.
        top_p: draw among the fewest most probable tokens whose probabilities (those that temperature and
            top_k leave) add up to top_p.
        min_p: draw among the tokens that are at least min_p times as probable as the most probable one.
        stop: tokens that end a sequence; they are part of it.
        lengths: [n], how many ids of each row of prompt are real.
        key: for draws; the same key draws the same tokens.
        stream: called with the number of a sequence and its next tokens, in order, a few at a time while
            others are still to come.

    Returns:
        int32 [max_new_tokens] for one sequence, [n, max_new_tokens] for several: the new tokens, and −1 after
        a stop token: ``tokens[tokens >= 0]``.

    Raises:
        ShapeError: the prompt is empty, or longer than the context, or lengths do not fit it.
        DTypeError: the prompt does not hold integers.
        ValueRangeError: an id or an option is out of its range, prompt and new tokens are longer than the
            context, or there is no key to draw with.
    """
    _check_head(config)
    ids, real, single = _read(prompt, lengths, config)
    _check_options(config, max_new_tokens, temperature, top_k, top_p, min_p, stop, key)
    longest = int(real.max())
    _check_room(longest, max_new_tokens, config)
    n, width = len(ids), min(_rounded(longest), config.context)
    slots = min(_rounded(longest + max_new_tokens), config.context)
    padded = np.zeros((n, width), np.int32)
    padded[:, :longest] = np.where(np.arange(longest) < real[:, None], ids[:, :longest], 0)
    draw = {
        "temperature": jnp.float32(temperature) if temperature else None,
        "top_p": None if top_p in (None, 1) else jnp.float32(top_p),
        "min_p": None if not min_p else jnp.float32(min_p),
        "key": key,
    }
    room = _rounded(max_new_tokens)
    stops = jnp.asarray(stop, jnp.int32).reshape(-1)
    params, state = _begin(params, padded, jnp.asarray(real), stops, draw, config, top_k, slots, room)
    sent = 0
    while stream is not None:
        sent = _send(stream, state["tokens"], sent, min(int(state["i"]), max_new_tokens))
        if sent == max_new_tokens or bool(state["done"].all()):
            break
        end = min(sent + _STREAMED, max_new_tokens)
        state = _go_on(params, state, stops, draw, jnp.int32(end), config, top_k)
    if stream is None:
        state = _go_on(params, state, stops, draw, jnp.int32(max_new_tokens), config, top_k)
    tokens = state["tokens"][:, :max_new_tokens]
    return tokens[0] if single else tokens


def _send(stream: Callable[[int, list[int]], None], tokens: Array, sent: int, end: int) -> int:
    for row, new in enumerate(np.asarray(tokens)[:, sent:end].tolist()):
        if some := [token for token in new if token != PADDING]:
            stream(row, some)
    return end


@functools.partial(jax.jit, static_argnames=("config", "top_k", "slots", "room"))
def _begin(
    params: Any,
    ids: Array,
    lengths: Array,
    stops: Array,
    draw: dict[str, Any],
    config: transformer.Config,
    top_k: int | None,
    slots: int,
    room: int,
) -> tuple[Any, dict[str, Any]]:
    """The prompts: params taken apart, and the state of the loop after the first new tokens."""
    params = transformer.unstack(params, config)
    # One sequence has no axis n: XLA:CPU copies a cache with an axis of size 1 in every step.
    cache = transformer.init_cache(config, _lead(ids), slots, dtype=params["tokens"]["w"].dtype)
    x, cache = _decode(params, ids, cache, config, lengths)
    last = jnp.take_along_axis(x, (lengths - 1)[:, None, None], 1)[:, 0]
    token = _pick(transformer.logits(params, last, config), 0, draw, top_k)
    return params, {
        "cache": cache,
        "token": token,
        "tokens": jnp.full((len(ids), room), PADDING, jnp.int32).at[:, 0].set(token),
        "done": _among(token, stops),
        "i": jnp.int32(1),
    }


@functools.partial(jax.jit, static_argnames=("config", "top_k"), donate_argnames=("state",))
def _go_on(
    params: Any,
    state: dict[str, Any],
    stops: Array,
    draw: dict[str, Any],
    end: Int[Array, ""],
    config: transformer.Config,
    top_k: int | None,
) -> dict[str, Any]:
    """The loop, until there are `end` new tokens or every sequence has met a stop token."""

    def step(state: dict[str, Any]) -> dict[str, Any]:
        i, done = state["i"], state["done"]
        real = jnp.where(done, 0, 1)
        x, cache = _decode(params, state["token"][:, None], state["cache"], config, real)
        token = _pick(transformer.logits(params, x[:, 0], config), i, draw, top_k)
        written = jnp.where(done, PADDING, token)
        return {
            "cache": cache,
            "token": token,
            "tokens": jax.lax.dynamic_update_slice_in_dim(state["tokens"], written[:, None], i, 1),
            "done": done | _among(token, stops),
            "i": i + 1,
        }

    return jax.lax.while_loop(lambda s: (s["i"] < end) & ~s["done"].all(), step, state)


def _decode(
    params: Any, ids: Array, cache: list[Any], config: transformer.Config, lengths: Array
) -> tuple[Array, list[Any]]:
    """`transformer.decode_hidden`, ids [n, t] to features [n, t, d]."""
    lead = _lead(ids)
    x, cache = transformer.decode_hidden(
        params, ids.reshape(*lead, -1), cache, config, lengths=lengths.reshape(lead)
    )
    return x.reshape(*ids.shape, -1), cache


def _lead(ids: Array) -> tuple[int, ...]:
    return () if len(ids) == 1 else (len(ids),)


def _among(token: Array, stops: Array) -> Array:
    return (token[:, None] == stops).any(-1)


def _pick(logits: Float[Array, "n v"], i: Any, draw: dict[str, Any], top_k: int | None) -> Int[Array, " n"]:
    """The next token of each sequence, number i of the new ones."""
    if draw["temperature"] is None:
        return logits.argmax(-1).astype(jnp.int32)
    logits, order = logits.astype(jnp.float32) / draw["temperature"], None
    if top_k is not None or draw["top_p"] is not None:  # the most probable first
        v = logits.shape[-1]
        logits, order = jax.lax.top_k(logits, v if top_k is None else min(top_k, v))
    if draw["top_p"] is not None:
        p = jax.nn.softmax(logits)
        logits = jnp.where(p.cumsum(-1) - p < draw["top_p"], logits, -jnp.inf)
    if draw["min_p"] is not None:
        logits = jnp.where(logits >= logits.max(-1, keepdims=True) + jnp.log(draw["min_p"]), logits, -jnp.inf)
    drawn = jax.random.categorical(jax.random.fold_in(draw["key"], i), logits)
    if order is not None:
        drawn = jnp.take_along_axis(order, drawn[:, None], -1)[:, 0]
    return drawn.astype(jnp.int32)


def _rounded(size: int) -> int:
    """`size` or somewhat more: a multiple of an eighth of the next power of 2, and of 16."""
    step = max(16, (1 << (size - 1).bit_length()) // 8)
    return -(-size // step) * step


# ---- checks -----------------------------------------------------------------------------------------------


def _read(prompt: Any, lengths: Any, config: transformer.Config) -> tuple[np.ndarray, np.ndarray, bool]:
    """Ids [n, p], the lengths [n] of the sequences, and whether there is one only, without an axis n."""
    if isinstance(prompt, jax.core.Tracer):
        raise DTypeError(
            "generate: prompt is traced, but generate compiles its own programs.",
            path="prompt",
            expected="prompt: integers, known",
            actual=f"prompt: {describe(prompt)}",
            hint="call it outside jax.jit.",
        )
    single = not hasattr(prompt, "dtype") and not any(isinstance(row, Sequence) for row in prompt)
    if not hasattr(prompt, "dtype") and not single:
        if lengths is not None:
            raise ShapeError(
                "generate: lengths are for a prompt that is one array; a list of lists has its own.",
                path="lengths",
                actual=f"lengths: {describe(lengths)}",
            )
        lengths = [len(row) for row in prompt]
        rows = [[*row, *[0] * (max(lengths) - len(row))] for row in prompt]
        ids = np.asarray(rows)
    else:
        ids = np.asarray(prompt)
    if ids.size and ids.dtype.kind not in "iu":
        raise DTypeError(
            f"generate: prompt has dtype {ids.dtype}, but ids are integers.",
            path="prompt",
            expected="prompt: int[p] or int[n, p]",
            actual=f"prompt: {describe(ids)}",
        )
    single = ids.ndim == 1
    if ids.ndim not in (1, 2) or not ids.size:
        raise ShapeError(
            "generate: prompt is not one sequence or several, of one token or more.",
            path="prompt",
            expected="prompt: int[p] or int[n, p], n ≥ 1, p ≥ 1",
            actual=f"prompt: {describe(ids)}",
            hint="begin with a token that stands for the beginning." if ids.ndim in (1, 2) else None,
        )
    ids = np.atleast_2d(ids)
    real = np.full(len(ids), ids.shape[1]) if lengths is None else np.asarray(lengths)
    if (
        real.shape != (len(ids),)
        or real.dtype.kind not in "iu"
        or real.min() < 1
        or real.max() > ids.shape[1]
    ):
        raise ShapeError(
            "generate: lengths do not fit prompt.",
            path="lengths",
            expected=f"lengths: int[{len(ids)}], from 1 to {ids.shape[1]}     (prompt: {describe(ids)})",
            actual=f"lengths: {real.tolist()!r:.80}",
        )
    if real.max() > config.context:
        raise ShapeError(
            f"generate: prompt has {real.max()} tokens, but the context is {config.context}.",
            path="prompt",
            expected=f"prompt: fewer than {config.context} tokens     (config.context)",
            actual=f"prompt: {describe(ids)}",
            hint=f"its last ones fit: prompt[..., -{config.context - 1}:] leaves room for one new token.",
        )
    seen = ids[np.arange(ids.shape[1]) < real[:, None]]
    outside = seen[(seen < 0) | (seen >= config.vocabulary)]
    if outside.size:
        raise ValueRangeError(
            f"generate: prompt holds the id {outside[0]}, but there are {config.vocabulary} tokens.",
            path="prompt",
            expected=f"0 ≤ prompt < {config.vocabulary}     (config.vocabulary)",
            actual=f"prompt: {describe(ids)}, from {seen.min()} to {seen.max()}",
        )
    return ids.astype(np.int32), real.astype(np.int32), single


def _check_head(config: transformer.Config) -> None:
    if config.head != "next":
        raise ValueRangeError(
            "generate: the model has no head for the next token.",
            path="config.head",
            expected="config.head: 'next'",
            actual=f"config.head = {config.head!r}",
        )


def _check_room(longest: int, new: int, config: transformer.Config) -> None:
    if longest + new > config.context:
        left = config.context - longest
        raise ValueRangeError(
            f"generate: a prompt of {longest} tokens and {new} new exceed the context, {config.context}.",
            path="max_new_tokens",
            expected=f"max_new_tokens ≤ {left}     (config.context − the longest prompt)",
            actual=f"max_new_tokens = {new}",
            hint=f"cut the prompt: prompt[..., -{config.context - new}:]." if new < config.context else None,
        )


def _check_options(
    config: transformer.Config,
    max_new_tokens: Any,
    temperature: Any,
    top_k: Any,
    top_p: Any,
    min_p: Any,
    stop: Any,
    key: Any,
) -> None:
    whole = lambda v: isinstance(v, int) and not isinstance(v, bool)
    for name, value, holds, text in (
        ("max_new_tokens", max_new_tokens, lambda v: whole(v) and v >= 1, "an int ≥ 1"),
        ("temperature", temperature, lambda v: 0 <= v < float("inf"), "≥ 0"),
        ("top_k", top_k, lambda v: whole(v) and v >= 1, "an int ≥ 1"),
        ("top_p", top_p, lambda v: 0 < v <= 1, "0 < top_p ≤ 1"),
        ("min_p", min_p, lambda v: 0 <= v <= 1, "0 ≤ min_p ≤ 1"),
        (
            "stop",
            stop,
            lambda v: all(0 <= s < config.vocabulary for s in v),
            f"ids below {config.vocabulary}",
        ),
    ):
        if value is not None and not holds(value):
            raise ValueRangeError(
                f"generate: {name} is {value!r}.",
                path=name,
                expected=f"{name}: {text}",
                actual=f"{name} = {value!r}",
            )
    cuts = {"top_k": top_k, "top_p": top_p, "min_p": min_p}
    if temperature == 0 and (cut := [name for name, value in cuts.items() if value is not None]):
        raise ValueRangeError(
            f"generate: {cut[0]} is for draws, but at temperature 0 the most probable token is taken.",
            path=cut[0],
            expected="temperature > 0",
            actual=f"temperature = {temperature}, {cut[0]} = {cuts[cut[0]]}",
        )
    if temperature > 0 and key is None:
        raise ValueRangeError(
            "generate: there is no key to draw with.",
            path="key",
            expected="key: jax.random.key(seed)",
            actual=f"temperature = {temperature}, key = None",
            hint="temperature=0 takes the most probable token and needs none.",
        )
