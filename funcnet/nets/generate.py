"""How a decoder goes on with token sequences: one compiled program for the prompts, one for what follows.

Each new token is the most probable one, or is drawn from softmax(logits / temperature), cut to the most
probable tokens where that is asked for: Fan et al., arXiv 1805.04833 (top-k); Holtzman et al., arXiv
1904.09751 (top-p); Nguyen et al., arXiv 2407.01082 (min-p).
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer, Key, PRNGKeyArray, UInt32

from funcnet._letters import is_explicit
from funcnet.errors import DTypeError, ShapeError, ValueRangeError, describe
from funcnet.nets import transformer
from funcnet.ops import _check

__all__ = ["generate"]

PADDING = -1  # no token
_COLDEST = float(jnp.finfo(jnp.float32).tiny)
_STREAMED = 8  # tokens between two calls of `stream`

Ids = Sequence[int] | Integer[np.ndarray, "..."] | Integer[Array, "..."]
Prompt = Ids | Sequence[Ids]


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
    stop: int | Iterable[int] = (),
    lengths: Sequence[int] | Int[np.ndarray, " n"] | Int[Array, " n"] | None = None,
    key: PRNGKeyArray | Key[Array, " n"] | UInt32[Array, "n 2"] | None = None,
    stream: Callable[[int, list[int]], None] | None = None,
) -> Int[Array, "*n new"]:
    """The tokens that follow a prompt, or each of several.

    Compiled once for prompts and numbers of tokens of about the same size: sizes are rounded up. The
    parameters are copied once in a call, layer by layer, so that no step has to take them apart.

    On a mesh with Explicit axes caches are split as the heads of the keys are; sequences are not, whatever
    the prompt is.

    Args:
        params: of `nets.transformer`.
        prompt: the ids of one sequence, [p]; or of several: [n, p], with lengths where they are padded at the
            end, or a list of sequences.
        config: the model's.
        max_new_tokens: how many tokens to add.
        temperature: what the logits are divided by; 0 takes the most probable token, the first of several.
        top_k: draw among the k most probable tokens.
        top_p: draw among the fewest most probable tokens whose probabilities (those that temperature and
            top_k leave) add up to top_p.
        min_p: draw among the tokens that are at least min_p times as probable as the most probable one.
        stop: a token that ends a sequence, or several; it is part of it.
        lengths: [n], how many ids of each row of prompt are real.
        key: for draws. With one key, the first sequence draws as it would alone, and the i-th, counted from
            0, as it would alone with ``jax.random.fold_in(key, i)``; or n keys, one for each sequence. The
            logits of sequences of several are those of each alone but for rounding.
        stream: called with the number of a sequence and its next tokens, in order, a few at a time while
            others are still to come.

    Returns:
        int32 [max_new_tokens] for one sequence, [n, max_new_tokens] for several: the new tokens, and −1 after
        a stop token: ``tokens[tokens >= 0]``. A token whose logit is −∞ is not drawn; with NaN among the
        logits, as parameters that are not finite give, the tokens mean nothing.

    Raises:
        ShapeError: the prompt is empty, or longer than the context, or lengths or keys do not fit it.
        DTypeError: the prompt does not hold integers, or an option is of the wrong type.
        ValueRangeError: an id or an option is out of its range, prompt and new tokens are longer than the
            context, or there is no key to draw with.
    """
    where = "generate"
    _check.config(where, config, transformer.Config)
    _check_head(config)
    transformer.check_params(where, params, config)
    ids, real, single = _read(prompt, lengths, config)
    max_new_tokens = _check.positive(where, "max_new_tokens", max_new_tokens)
    temperature = _check.number(where, "temperature", temperature)
    top_k = None if top_k is None else _check.positive(where, "top_k", top_k)
    top_p, min_p = _fraction("top_p", top_p), _fraction("min_p", min_p, zero=True)
    _check_draw(temperature, {"top_k": top_k, "top_p": top_p, "min_p": min_p}, key)
    stops = _stops(stop, config)
    if stream is not None and not callable(stream):
        raise DTypeError(
            "generate: stream is not a function.",
            path="stream",
            expected="stream(row, tokens)",
            actual=f"stream: {describe(stream)}",
        )
    longest = int(real.max())
    _check_room(longest, max_new_tokens, config)
    n, width = len(ids), min(_rounded(longest), config.context)
    slots = min(_rounded(longest + max_new_tokens), config.context)
    padded = np.zeros((n, width), np.int32)
    padded[:, :longest] = np.where(np.arange(longest) < real[:, None], ids[:, :longest], 0)
    draw = {
        "temperature": jnp.float32(max(temperature, _COLDEST)) if temperature else None,
        "top_p": None if top_p in (None, 1) else jnp.float32(top_p),
        "min_p": None if not min_p else jnp.float32(min_p),
        "key": _row_keys(key, n) if temperature else None,
    }
    room, stops = _rounded(max_new_tokens), jnp.asarray(stops)
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
    if is_explicit():  # of a vocabulary that is split each device asks for all
        logits = jax.reshard(logits, jax.P())
    if draw["temperature"] is None:
        return logits.argmax(-1).astype(jnp.int32)
    logits, order = logits.astype(jnp.float32), None
    largest = logits.max(-1, keepdims=True)  # is kept exactly, at any temperature
    logits = jnp.where(logits == largest, 0, (logits - largest) / draw["temperature"])
    if top_k is not None or draw["top_p"] is not None:  # the most probable first
        v = logits.shape[-1]
        logits, order = jax.lax.top_k(logits, v if top_k is None else min(top_k, v))
    if draw["top_p"] is not None:
        p = jax.nn.softmax(logits)
        logits = jnp.where(p.cumsum(-1) - p < draw["top_p"], logits, -jnp.inf)
    if draw["min_p"] is not None:
        logits = jnp.where(logits >= logits.max(-1, keepdims=True) + jnp.log(draw["min_p"]), logits, -jnp.inf)
    # Tokens count from 2³² − 1 down: `_row_keys` counts rows from 1 up.
    keys = jax.vmap(jax.random.fold_in, (0, None))(draw["key"], ~jnp.asarray(i, jnp.uint32))
    drawn = jax.vmap(jax.random.categorical)(keys, logits)
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
    ids, lengths = _padded(prompt, lengths)
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
    real = np.full(len(ids), ids.shape[1]) if lengths is None else _array("lengths", lengths)
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


def _padded(prompt: Any, lengths: Any) -> tuple[np.ndarray, Any]:
    """A prompt as one array, and the lengths of its rows: those given, or of a list of sequences its own."""
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((prompt, lengths))):
        raise DTypeError(
            "generate: prompt is traced, but generate compiles its own programs.",
            path="prompt",
            expected="prompt: integers, known",
            actual=f"prompt: {describe(prompt)}",
            hint="call it outside jax.jit.",
        )
    if hasattr(prompt, "dtype"):
        return _array("prompt", prompt), lengths
    several = [_is_row(row) for row in prompt] if _is_row(prompt) else [True, False]
    if several and any(several) != all(several):
        raise DTypeError(
            "generate: prompt is neither ids nor sequences of ids.",
            path="prompt",
            expected="prompt: int[p] or int[n, p], or a list of sequences",
            actual=f"prompt: {describe(prompt)}",
            hint="encode the text first." if isinstance(prompt, str) else None,
        )
    if not any(several):
        return _array("prompt", prompt), lengths
    if lengths is not None:
        raise ShapeError(
            "generate: lengths are for a prompt that is one array; a list of sequences has its own.",
            path="lengths",
            actual=f"lengths: {describe(lengths)}",
        )
    lengths = [len(row) for row in prompt]
    return _array("prompt", [[*row, *[0] * (max(lengths) - len(row))] for row in prompt]), lengths


def _is_row(value: Any) -> bool:
    """Whether a value is a sequence or an array with axes; a text is neither."""
    is_sequence = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    return is_sequence or getattr(value, "ndim", 0) > 0


def _array(name: str, value: Any) -> np.ndarray:
    try:
        return np.asarray(value)
    except (ValueError, TypeError) as error:
        raise DTypeError(
            f"generate: {name} is no array of integers.", path=name, actual=f"{name}: {describe(value)}"
        ) from error


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


def _stops(stop: Any, config: transformer.Config) -> np.ndarray:
    """The tokens that end a sequence, given as one id or several, int32 [k]."""
    several = isinstance(stop, Iterable) and not isinstance(stop, str | bytes) and getattr(stop, "ndim", 1)
    ids: list[Any] = [] if stop is None else list(stop) if several else [stop]
    for i in ids:
        if isinstance(i, bool | jax.core.Tracer) or not hasattr(i, "__index__") or np.ndim(i):
            raise DTypeError(
                "generate: stop does not hold ids.",
                path="stop",
                expected="stop: an id, or several",
                actual=f"stop: {describe(i)}",
            )
        if not 0 <= int(i) < config.vocabulary:
            raise ValueRangeError(
                f"generate: stop holds the id {i}, but there are {config.vocabulary} tokens.",
                path="stop",
                expected=f"0 ≤ stop < {config.vocabulary}     (config.vocabulary)",
                actual=f"stop = {stop!r:.80}",
            )
    return np.asarray(ids, np.int32)


def _fraction(name: str, value: Any, *, zero: bool = False) -> float | None:
    """An option in (0, 1], or in [0, 1] where `zero` is one too."""
    if value is None:
        return None
    found = _check.number("generate", name, value, least=-math.inf)
    if not (0 < found <= 1 or (zero and found == 0)):
        raise ValueRangeError(
            f"generate: {name} is {value}.",
            path=name,
            expected=f"{name}: 0 {'≤' if zero else '<'} {name} ≤ 1",
            actual=f"{name} = {value}",
        )
    return found


def _check_draw(temperature: float, cuts: dict[str, Any], key: Any) -> None:
    """Draws need a key, and where nothing is drawn nothing can be cut."""
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


def _row_keys(key: Any, n: int) -> Array:
    """The keys of n sequences: those given, or one key itself, and `fold_in(key, i)` from the second on."""
    dtype, shape = _check.dtype_of(key), tuple[int, ...](getattr(key, "shape", ()))
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if (raw := dtype == jnp.uint32 and len(shape) == 2) or (typed and len(shape) == 1):
        if shape[0] != n:
            raise ShapeError(
                f"generate: there are {shape[0]} keys for {n} sequences.",
                path="key",
                expected=f"key: one random key, or {n}",
                actual=f"key: {describe(key)}",
            )
        key = jnp.asarray(key) if raw else key
        _check.key("generate", key[0])
        return key
    _check.key("generate", key)
    return jnp.stack([key, *(jax.random.fold_in(key, i) for i in range(1, n))])
