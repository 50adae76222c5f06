"""Generation: what is drawn, when it ends, what is streamed, and that nothing is compiled twice."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnet as fn
from funcnet.errors import DTypeError, ShapeError, ValueRangeError
from funcnet.nets import transformer
from funcnet.nets.generate import _begin, _go_on, _pick, _rounded, _row_keys
from tests.budget import few
from tests.errors import golden
from tests.nets.test_transformer import EACH, FAMILIES

CONTEXT = 24
CONFIG = dataclasses.replace(FAMILIES["gpt2"], context=CONTEXT, layers=2)
apply = jax.jit(transformer.apply)


@jax.jit
def drawn(config):
    return jax.tree.map(lambda v: 3 * v, transformer.init(jax.random.key(6), config))


PARAMS = drawn(CONFIG)
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]


def by_argmax(params, prompt, config, new):
    """Greedy decoding by the whole net at every step; zeros at the end are not seen."""
    ids = list(prompt)
    for _ in range(new):
        padded = np.zeros(config.context, np.int32)
        padded[: len(ids)] = ids
        ids.append(int(apply(params, padded, config)[len(ids) - 1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("name", few(EACH, 1))
def test_greedy_is_the_argmax_of_the_whole_net(name):
    """For one sequence and for several of different lengths, every kind of positions, windows and norms."""
    config = dataclasses.replace(FAMILIES[name], context=CONTEXT, layers=2)
    params = drawn(config)
    together = fn.generate(params, PROMPTS, config, max_new_tokens=12)
    assert together.shape == (3, 12)
    assert together.tolist() == [by_argmax(params, prompt, config, 12) for prompt in PROMPTS]


def test_every_form_of_a_prompt(unchecked):
    want = fn.generate(PARAMS, PROMPTS, CONFIG, max_new_tokens=5).tolist()
    padded = np.array([[1, 2, 3, 9, 9], [4, -1, 99, 0, 0], [5, 6, 7, 8, 9]])  # padding is not looked at
    by_lengths = fn.generate(PARAMS, padded, CONFIG, max_new_tokens=5, lengths=[3, 1, 5])
    assert by_lengths.tolist() == want
    assert fn.generate(PARAMS, jnp.array([1, 2, 3]), CONFIG, max_new_tokens=5).tolist() == want[0]
    assert fn.generate(PARAMS, [1, 2, 3], CONFIG, max_new_tokens=5).tolist() == want[0]
    assert fn.generate(PARAMS, (1, 2, 3), CONFIG, max_new_tokens=5).tolist() == want[0]
    assert fn.generate(PARAMS, np.array([1, 2, 3], np.uint8), CONFIG, max_new_tokens=5).tolist() == want[0]
    arrays = [np.array([1, 2, 3]), np.array([4], np.uint8), jnp.array([5, 6, 7, 8, 9])]
    assert fn.generate(PARAMS, arrays, CONFIG, max_new_tokens=np.int64(5)).tolist() == want


@pytest.mark.slow
def test_it_fills_the_context_to_its_end():
    assert len(fn.generate(PARAMS, [1, 2, 3], CONFIG, max_new_tokens=CONTEXT - 3)) == CONTEXT - 3


def test_a_stop_token_ends_its_sequence_only(unchecked):
    free = fn.generate(PARAMS, PROMPTS, CONFIG, max_new_tokens=12)
    stop = [int(free[0, 4])]
    got = fn.generate(PARAMS, PROMPTS, CONFIG, max_new_tokens=12, stop=stop)
    ends = []
    for row, whole in zip(got.tolist(), free.tolist(), strict=True):
        end = whole.index(stop[0]) + 1 if stop[0] in whole else 12
        assert row == whole[:end] + [-1] * (12 - end)
        ends.append(end)
    assert len(set(ends)) > 1, "all end at once: choose another seed"
    first = int(free[0, 0])
    for stop in (
        first,
        np.int64(first),
        [np.uint8(first)],
        jnp.array([first]),
        {first},
        range(first, first + 1),
    ):
        alone = fn.generate(PARAMS, PROMPTS[0], CONFIG, max_new_tokens=12, stop=stop)
        assert alone.tolist() == [first] + [-1] * 11


def test_the_same_key_draws_the_same_tokens():
    draw = lambda seed, **more: fn.generate(
        PARAMS, PROMPTS, CONFIG, max_new_tokens=12, temperature=1.0, key=jax.random.key(seed), **more
    ).tolist()
    assert draw(1) == draw(1) == draw(1, stream=lambda *_: None)
    assert draw(1) != draw(2)
    assert draw(1, top_k=1) == fn.generate(PARAMS, PROMPTS, CONFIG, max_new_tokens=12).tolist()


@pytest.mark.slow
def test_each_sequence_draws_as_it_would_alone():
    """Several with one key: the first with it, the i-th with `fold_in(key, i)`; or each with its own."""
    key = jax.random.key(5)
    draw = lambda prompt, key: fn.generate(
        PARAMS, prompt, CONFIG, max_new_tokens=12, temperature=1.0, key=key
    ).tolist()
    keys = [key, jax.random.fold_in(key, 1), jax.random.fold_in(key, 2)]
    alone = [draw(prompt, k) for prompt, k in zip(PROMPTS, keys, strict=True)]
    assert draw(PROMPTS, key) == draw(PROMPTS, jnp.stack(keys)) == alone
    assert len({tuple(row) for row in draw([[1, 2, 3]] * 3, key)}) == 3, "equal prompts differ"


@pytest.mark.parametrize("make", [jax.random.key, jax.random.PRNGKey])
def test_one_key_or_one_for_each(make):
    same = lambda a, b: (jax.random.key_data(a) == jax.random.key_data(b)).all()
    keys = _row_keys(make(3), 4)
    assert same(keys, jnp.stack([make(3), *(jax.random.fold_in(make(3), i) for i in (1, 2, 3))]))
    assert same(_row_keys(keys, 4), keys)


@pytest.mark.parametrize("temperature", [1e-38, 1e-45, 5e-324, 1e-30])
def test_a_temperature_near_zero_takes_the_most_probable_token(temperature):
    draw = fn.generate(
        PARAMS, PROMPTS, CONFIG, max_new_tokens=12, temperature=temperature, key=jax.random.key(0)
    )
    assert draw.tolist() == fn.generate(PARAMS, PROMPTS, CONFIG, max_new_tokens=12).tolist()


@pytest.mark.parametrize("row", [[-3e38, 3e38, 0.0], [-np.inf, 1e8, -np.inf], [np.inf, 0.0, 0.0]], ids=str)
def test_logits_of_any_size_are_drawn_from(row):
    draw = {"temperature": jnp.float32(1e30), "top_p": 0.9, "min_p": 0.1}
    draw["key"] = jax.random.split(jax.random.key(0), 64)
    picked = _pick(jnp.tile(jnp.asarray(row, jnp.float32), (64, 1)), 0, draw, None)
    assert set(picked.tolist()) == {int(np.argmax(row))}


@pytest.mark.parametrize("stop", [(), (3, 5)])
def test_the_stream_has_every_token_once_in_order(stop):
    options = {"max_new_tokens": 19, "temperature": 1.0, "key": jax.random.key(3), "stop": stop}
    parts, calls = [[] for _ in PROMPTS], []

    def stream(row, tokens):
        assert tokens
        parts[row] += tokens
        calls.append(len(tokens))

    got = fn.generate(PARAMS, PROMPTS, CONFIG, stream=stream, **options)
    assert [[t for t in row if t >= 0] for row in got.tolist()] == parts
    assert calls[0] == 1, "the first token is not held back"
    assert len(calls) > len(PROMPTS)
    assert got.tolist() == fn.generate(PARAMS, PROMPTS, CONFIG, **options).tolist()


# ---- what may be drawn ------------------------------------------------------------------------------------


def allowed(logits, temperature=1.0, top_k=None, top_p=None, min_p=None):
    """The probability of every token, as the papers define it; 0 for those that are cut."""
    p = {i: math.exp(v / temperature) for i, v in enumerate(logits)}
    order = sorted(p, key=p.get, reverse=True)[:top_k]
    p = {i: p[i] / sum(p[j] for j in order) for i in order}
    if top_p is not None:
        kept, total = [], 0.0
        for i in order:
            kept.append(i)
            total += p[i]
            if total >= top_p:
                break
        p = {i: p[i] for i in kept}
    if min_p is not None:
        p = {i: v for i, v in p.items() if v >= min_p * max(p.values())}
    return {i: v / sum(p.values()) for i, v in p.items()}


@pytest.mark.parametrize(
    "cut",
    [
        {},
        {"temperature": 0.5},
        {"top_k": 3},
        {"top_p": 0.6},
        {"min_p": 0.3},
        {"top_k": 5, "top_p": 0.7, "min_p": 0.4, "temperature": 1.5},
        {"top_k": 100},
        {"top_p": 1e-6},
    ],
    ids=str,
)
def test_what_may_be_drawn(cut):
    """The frequency of every token in 20,000 draws is its probability; a token that is cut never comes."""
    logits = np.random.default_rng(0).normal(size=13) * 1.5
    want = allowed(logits, **cut)
    draw = {name: cut.get(name) for name in ("top_p", "min_p")}
    draw |= {"key": jax.random.split(jax.random.key(1), 20_000), "temperature": cut.get("temperature", 1.0)}
    rows = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (20_000, 13))
    got = np.bincount(np.asarray(jax.jit(lambda x: _pick(x, 7, draw, cut.get("top_k")))(rows)), minlength=13)
    assert set(np.flatnonzero(got)) <= set(want)
    for i in range(13):
        p = want.get(i, 0.0)
        assert abs(got[i] / 20_000 - p) <= 5 * math.sqrt(p * (1 - p) / 20_000) + 2 / 20_000, (i, p)
    assert len(want) < 13 or cut in ({}, {"temperature": 0.5}, {"top_k": 100}), "it cuts nothing"


# ---- compilation ------------------------------------------------------------------------------------------


def test_nothing_is_compiled_again():
    """As the sequence grows, for other prompts and numbers of tokens of about the size, other options."""
    config = dataclasses.replace(CONFIG, context=96)
    params = drawn(config)
    options = {"temperature": 1.0, "top_p": 0.9, "key": jax.random.key(0)}
    fn.generate(params, [1, 2], config, max_new_tokens=20, **options)
    before = _begin._cache_size(), _go_on._cache_size()
    fn.generate(params, [3, 4, 5, 6, 7], config, max_new_tokens=26, **options | {"temperature": 0.3})
    fn.generate(params, [8], config, max_new_tokens=17, stream=lambda *_: None, **options)
    assert (_begin._cache_size(), _go_on._cache_size()) == before
    fn.generate(params, [8], config, max_new_tokens=60, **options)
    assert _go_on._cache_size() > before[1], "the counter counts"


def test_sizes_are_rounded_up_a_little():
    for size in range(1, 5000):
        assert size <= _rounded(size) <= max(16 + size - 1, size * 1.25)
        assert _rounded(_rounded(size)) == _rounded(size)
    assert len({_rounded(size) for size in range(513, 1025)}) == 4


# ---- errors -----------------------------------------------------------------------------------------------


def go(prompt=(1, 2, 3), new=2, **options):
    return lambda: fn.generate(PARAMS, prompt, CONFIG, max_new_tokens=new, **options)


ERRORS = [
    (
        go(list(range(10)) * 3),
        ShapeError,
        "generate: prompt has 30 tokens, but the context is 24.\n"
        "  expected  prompt: fewer than 24 tokens     (config.context)\n"
        "  got       prompt: int64[1, 30]\n"
        "  hint      its last ones fit: prompt[..., -23:] leaves room for one new token.",
    ),
    (
        go(new=22),
        ValueRangeError,
        "generate: a prompt of 3 tokens and 22 new exceed the context, 24.\n"
        "  expected  max_new_tokens ≤ 21     (config.context − the longest prompt)\n"
        "  got       max_new_tokens = 22\n"
        "  hint      cut the prompt: prompt[..., -2:].",
    ),
    (
        go([1, 11, -2]),
        ValueRangeError,
        "generate: prompt holds the id 11, but there are 11 tokens.\n"
        "  expected  0 ≤ prompt < 11     (config.vocabulary)\n"
        "  got       prompt: int64[1, 3], from -2 to 11",
    ),
    (
        go([]),
        ShapeError,
        "generate: prompt is not one sequence or several, of one token or more.\n"
        "  expected  prompt: int[p] or int[n, p], n ≥ 1, p ≥ 1\n"
        "  got       prompt: float64[0]\n"
        "  hint      begin with a token that stands for the beginning.",
    ),
    (
        go([[1], []]),
        ShapeError,
        "generate: lengths do not fit prompt.\n"
        "  expected  lengths: int[2], from 1 to 1     (prompt: int64[2, 1])\n"
        "  got       lengths: [1, 0]",
    ),
    (
        go(np.ones((2, 3))),
        DTypeError,
        "generate: prompt has dtype float64, but ids are integers.\n"
        "  expected  prompt: int[p] or int[n, p]\n"
        "  got       prompt: float64[2, 3]",
    ),
    (
        go(temperature=1.0),
        ValueRangeError,
        "generate: there is no key to draw with.\n"
        "  expected  key: jax.random.key(seed)\n"
        "  got       temperature = 1.0, key = None\n"
        "  hint      temperature=0 takes the most probable token and needs none.",
    ),
    (
        go(top_p=1.5, temperature=1.0, key=jax.random.key(0)),
        ValueRangeError,
        "generate: top_p is 1.5.\n  expected  top_p: 0 < top_p ≤ 1\n  got       top_p = 1.5",
    ),
    (
        go(top_p=0.5),
        ValueRangeError,
        "generate: top_p is for draws, but at temperature 0 the most probable token is taken.\n"
        "  expected  temperature > 0\n"
        "  got       temperature = 0.0, top_p = 0.5",
    ),
    (
        lambda: jax.jit(lambda prompt: fn.generate(PARAMS, prompt, CONFIG, max_new_tokens=2))(jnp.arange(3)),
        DTypeError,
        "generate: prompt is traced, but generate compiles its own programs.\n"
        "  expected  prompt: integers, known\n"
        "  got       prompt: int64[3]\n"
        "  hint      call it outside jax.jit.",
    ),
]

test_errors = golden(ERRORS)


@pytest.mark.parametrize(
    "options",
    [
        {"new": 0},
        {"new": -1},
        {"new": 2.0},
        {"new": 2**40},
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"temperature": "1"},
        {"temperature": None},
        {"top_k": 1.5, "temperature": 1.0},
        {"top_p": math.nan, "temperature": 1.0},
        {"top_p": "a", "temperature": 1.0},
        {"min_p": -0.1, "temperature": 1.0},
        {"key": 0, "temperature": 1.0},
        {"key": jax.random.split(jax.random.key(0), 2), "temperature": 1.0},
        {"key": np.arange(3), "temperature": 1.0},
        {"stop": 11},
        {"stop": -1},
        {"stop": "a"},
        {"stop": [1.0]},
        {"stop": [[1]]},
        {"stop": True},
        {"stream": 1},
        {"prompt": "abc"},
        {"prompt": ["abc"]},
        {"prompt": None},
        {"prompt": 3},
        {"prompt": np.int64(3)},
        {"prompt": [1, [2]]},
        {"prompt": [[1, [2]]]},
        {"prompt": [[[1]]]},
        {"prompt": [1.5]},
        {"prompt": [True]},
        {"prompt": [10**30]},
        {"prompt": [[]]},
        {"prompt": np.array([2**63], np.uint64)},
        {"lengths": "a", "prompt": np.array([[1, 2, 3]])},
        {"lengths": [[1], [2, 3]], "prompt": np.array([[1, 2, 3]])},
        {"top_k": 0, "temperature": 1.0},
        {"top_p": 0.0, "temperature": 1.0},
        {"min_p": 1.1, "temperature": 1.0},
        {"stop": [11]},
        {"lengths": [4], "prompt": np.array([[1, 2, 3]])},
        {"lengths": [1, 1], "prompt": np.array([[1, 2, 3]])},
        {"lengths": [1], "prompt": [[1, 2, 3]]},
    ],
    ids=str,
)
def test_options_out_of_range(options, unchecked):
    with pytest.raises((ValueRangeError, ShapeError, DTypeError), match=r"^generate: ") as raised:
        go(**options)()
    assert raised.value.path in {*options, "max_new_tokens"}


@pytest.mark.only_as_users
@pytest.mark.parametrize("n", [1, 3])
def test_no_step_copies_a_cache(n):
    """In the compiled loop, a new token is written in place, and attention reads the cache as it lies."""
    config = transformer.Config(vocabulary=11, context=512, layers=2, heads=6, d=96)
    params = transformer.init(jax.random.key(0), config)
    draw = dict.fromkeys(("temperature", "top_p", "min_p", "key"))
    stops, ids = jnp.zeros(0, jnp.int32), jnp.ones((n, 16), jnp.int32)
    params, state = _begin(params, ids, jnp.full(n, 16, jnp.int32), stops, draw, config, None, 256, 256)
    text = _go_on.lower(params, state, stops, draw, jnp.int32(256), config, None).compile().as_text()
    moves = [
        line for line in text.splitlines() if re.search(r"6,256,16\]\S* (copy|transpose|concatenate)\(", line)
    ]
    assert re.search(r"6,256,16\]\S* (dynamic-update-slice|scatter)\(", text), "the pattern finds the cache"
    assert not moves, moves
