"""The decoder: causal, the same however its layers are run, whole or in pieces, of the published sizes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnet as fn
from funcnet.errors import ShapeError, ValueRangeError
from funcnet.nets import transformer
from funcnet.ops.attention import rope
from tests.budget import few

SMALL = transformer.Config(vocabulary=11, context=13, layers=3, heads=2, d=6, dropout=0.5)
LLAMA = transformer.Config(
    vocabulary=11,
    context=13,
    layers=3,
    heads=4,
    d=6,
    kv_heads=2,
    head_width=4,
    d_hidden=10,
    norm="rms",
    mlp="swiglu",
    positions="rope",
    rope=rope.Config(base=100.0),
    bias=False,
    qkv_bias=True,
    qk_norm=True,
    tied=False,
    windows=(3, None),
    softcap=5.0,
    logit_softcap=3.0,
)
FAMILIES = {
    "gpt2": SMALL,
    "llama": LLAMA,
    "alibi": dataclasses.replace(SMALL, positions="alibi", mlp="gelu", windows=(4,)),
    "none": dataclasses.replace(SMALL, positions="none", norm="rms", qkv_bias=False, head_width=5),
    "experts": dataclasses.replace(LLAMA, experts=3),
}
SLOW = ("alibi", "none", "experts")
# Two of them by default; all when CI runs what is slow.
EACH = ["gpt2", "llama", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


# Eager calls would compile every operation of every layer.
apply, init = jax.jit(transformer.apply), jax.jit(transformer.init)


def key(i=0):
    return jax.random.key(i)


@jax.jit
def drawn(config):
    """Parameters large enough that every part of the model shows in its logits."""
    return jax.tree.map(lambda v: 3.0 * v, transformer.init(key(), config))


def ids_of(config, *shape):
    return jnp.asarray(np.random.default_rng(1).integers(0, config.vocabulary, shape), jnp.int32)


@pytest.fixture
def decoder():
    return init(key(), SMALL), ids_of(SMALL, 2, 7)


@pytest.mark.parametrize("name", ["gpt2", pytest.param("llama", marks=pytest.mark.slow)])
def test_it_is_causal_by_gradient(name):
    """The logits at position i depend on the embeddings of positions ≤ i, and on no later one."""
    config, ids = (
        dataclasses.replace(FAMILIES[name], layers=2),
        jnp.arange(7),
    )  # every token once: its row is its position
    params = drawn(dataclasses.replace(config, tied=False))

    def logits(table):
        config_ = dataclasses.replace(config, tied=False)
        return apply({**params, "tokens": {"w": table}}, ids, config_).sum(-1)

    depends = jnp.abs(jax.jit(jax.jacobian(logits))(params["tokens"]["w"])).sum(-1)[:, :7] > 0
    np.testing.assert_array_equal(depends, np.tri(7, dtype=bool))


@pytest.mark.slow
def test_every_way_to_run_the_layers_gives_the_same_numbers():
    ids = ids_of(LLAMA, 2, 7)
    params = drawn(LLAMA)

    def gradient(**options):
        config = dataclasses.replace(LLAMA, **options)
        loss = lambda p: jnp.sum(jnp.sin(apply(p, ids, config)))
        return jax.jit(jax.value_and_grad(loss))(params)

    want = gradient()
    for got in (gradient(unroll=1), gradient(unroll=1, remat=True), gradient(remat=True)):
        errors = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max() / (1 + jnp.abs(b).max())), got, want)
        assert max(jax.tree.leaves(errors)) < 1e-11


def test_the_program_does_not_grow_with_depth():
    def size(layers):
        config = dataclasses.replace(SMALL, layers=layers)
        params = jax.eval_shape(lambda: transformer.init(key(), config))
        text = jax.jit(transformer.apply).lower(params, jnp.zeros((2, 7), int), config).as_text()
        return len(text.splitlines())

    assert size(28) == size(14)
    assert size(6) > size(3), "a few layers are unrolled"


CHANGES = {
    "norm": "rms",
    "norm_eps": 0.3,
    "mlp": "gelu",
    "positions": "none",
    "bias": False,
    "qk_norm": True,
    "tied": False,
    "windows": (2,),
    "softcap": 0.1,
    "logit_softcap": 0.1,
    "dtype": "bfloat16",
}


@pytest.mark.parametrize("field", CHANGES)
def test_every_field_changes_something(field):
    ids, config = ids_of(SMALL, 7), dataclasses.replace(SMALL, **{field: CHANGES[field]})
    noise = lambda p: jax.tree.map(lambda v: v + 0.3 * np.sin(np.arange(v.size)).reshape(v.shape), p)
    params, other = noise(init(key(), SMALL)), noise(init(key(), config))
    kept = {name: value for name, value in params.items() if name in other} | {
        name: value for name, value in other.items() if name not in params
    }
    same = jax.tree.structure(other) == jax.tree.structure(params)
    got = apply(params if same else other | (kept if field == "tied" else {}), ids, config)
    assert not np.allclose(got.astype(float), apply(params, ids, SMALL), rtol=1e-4)


def test_rope_turns_as_its_config_says():
    ids, params = ids_of(LLAMA, 7), drawn(LLAMA)
    other = dataclasses.replace(LLAMA, rope=rope.Config(base=7.0))
    assert not np.allclose(apply(params, ids, LLAMA), apply(params, ids, other))


def test_logits_are_those_of_hidden_and_head():
    for config in (SMALL, LLAMA):

        @jax.jit
        def both(params, ids, config=config):
            logits = transformer.hidden(params, ids, config) @ transformer.head(params, config)
            c = config.logit_softcap
            logits = logits if c is None else c * jnp.tanh(logits / c)
            return transformer.apply(params, ids, config), logits

        np.testing.assert_allclose(*both(drawn(config), ids_of(config, 2, 7)), rtol=1e-12)


@pytest.mark.slow
def test_heads_of_classes_and_none(unchecked):
    ids = ids_of(SMALL, 2, 7)
    params = transformer.init(key(), SMALL)
    for head, size in {"sequence": 3, "tokens": 3, "answer": 2, None: SMALL.d}.items():
        config = dataclasses.replace(SMALL, head=head, classes=3)
        own = transformer.init(key(), config)
        assert jax.tree.all(jax.tree.map(jnp.array_equal, params, {name: own[name] for name in params}))
        y, x = apply(own, ids, config), transformer.hidden(own, ids, config)
        assert y.shape == (2, 7, size)
        if head is not None:
            x = x @ own["head"]["w"] + own["head"].get("b", 0)
        np.testing.assert_allclose(y, x, rtol=1e-12)
        if head == "tokens":
            cache = transformer.init_cache(config, 2, 7, dtype=y.dtype)
            np.testing.assert_allclose(
                transformer.decode(own, ids, cache, config)[0], y, rtol=1e-9, atol=1e-12
            )
        with pytest.raises(ValueRangeError, match="generate: the model has no head for the next token"):
            fn.generate(own, [1], config, max_new_tokens=2)


@pytest.mark.parametrize("name", few(EACH, 1))
def test_packed_documents_have_the_logits_that_they_have_alone(name):
    config = FAMILIES[name]
    params, ids = drawn(config), ids_of(config, 9)
    packed = apply(params, ids, config, segment_ids=jnp.array([4, 4, 4, 7, 7, 7, 7, 2, 2]))
    alone = [apply(params, part, config) for part in (ids[:3], ids[3:7], ids[7:])]
    np.testing.assert_allclose(packed, np.concatenate(alone), rtol=1e-9, atol=1e-12)
    assert not np.allclose(packed, apply(params, ids, config))


@pytest.mark.parametrize("name", few(EACH, 1))
def test_pieces_have_the_logits_of_the_whole(name):
    config = FAMILIES[name]
    params, ids = drawn(config), ids_of(config, 2, 13)
    whole = apply(params, ids, config)
    decode = jax.jit(transformer.decode)
    cache, i = transformer.init_cache(config, 2, 13, dtype=whole.dtype), 0
    for t in (5, 1, 1, 5, 1):
        logits, cache = decode(params, ids[:, i : i + t], cache, config)
        np.testing.assert_allclose(logits, whole[:, i : i + t], rtol=1e-9, atol=1e-11)
        i += t
    unstacked = transformer.unstack(params, config)
    assert len(unstacked["blocks"]) == config.layers
    logits, _ = decode(unstacked, ids, transformer.init_cache(config, 2, 13, dtype=whole.dtype), config)
    np.testing.assert_allclose(logits, whole, rtol=1e-9, atol=1e-11)


@pytest.mark.slow
def test_pieces_of_different_lengths():
    params, ids = drawn(LLAMA), ids_of(LLAMA, 3, 9)
    cache = transformer.init_cache(LLAMA, 3, 9, dtype=params["tokens"]["w"].dtype)
    whole = apply(params, ids, LLAMA)
    first, then = jnp.array([2, 5, 0]), jnp.array([3, 1, 4])
    decode = jax.jit(transformer.decode)
    _, cache = decode(params, ids[:, :5], cache, LLAMA, lengths=first)
    rows = jnp.minimum(first[:, None] + jnp.arange(4), 8)
    logits, _ = decode(params, jnp.take_along_axis(ids, rows, 1), cache, LLAMA, lengths=then)
    for row in range(3):
        want = whole[row, first[row] : first[row] + then[row]]
        np.testing.assert_allclose(logits[row, : then[row]], want, rtol=1e-9, atol=1e-11)


def test_a_window_bounds_the_cache():
    cache = transformer.init_cache(LLAMA, 2, 13)
    assert [layer["k"].shape for layer in cache] == [(2, 2, 3, 4), (2, 2, 13, 4), (2, 2, 3, 4)]
    assert (
        transformer.init_cache(dataclasses.replace(LLAMA, dtype="bfloat16"), 2, 13)[0]["k"].dtype
        == "bfloat16"
    )


SIZES = {
    "gpt2-124m": 124_439_808,
    "gpt2-355m": 354_823_168,
    "gpt2-774m": 774_030_080,
    "gpt2-1.5b": 1_557_611_200,
    "qwen2-0.5b": 494_032_768,
    "qwen3-0.6b": 596_049_920,
    "llama3.2-1b": 1_235_814_400,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
}


def test_presets_have_the_published_numbers_of_parameters():
    assert SIZES.keys() == transformer.PRESETS.keys()
    for name, size in SIZES.items():
        config = transformer.preset(name)
        params = jax.eval_shape(lambda config=config: transformer.init(key(), config))
        assert sum(leaf.size for leaf in jax.tree.leaves(params)) == size, name


def test_dropout_needs_a_key(decoder):
    params, ids = decoder
    plain = apply(params, ids, SMALL)
    assert np.array_equal(plain, apply(params, ids, SMALL))
    assert not np.allclose(plain, apply(params, ids, SMALL, key=key(3)))


def test_the_first_residual_stream_is_small():
    """Each of the 2 · layers maps into it starts with variance 1 / (2 · layers) of what it would have."""
    config = transformer.Config(vocabulary=7, context=5, layers=8, heads=4, d=64)
    block = jax.tree.map(np.asarray, init(key(), config)["blocks"])
    assert abs(block["down"]["w"].var() * 256 * 16 - 1) < 0.05
    assert abs(block["attention"]["o"]["w"].var() * 64 * 16 - 1) < 0.05
    assert abs(block["up"]["w"].var() * 64 - 1) < 0.05


def test_what_it_refuses(decoder, unchecked):
    with pytest.raises(ShapeError) as error:
        transformer.apply(decoder[0], jnp.zeros((2, 14), int), SMALL)
    assert str(error.value) == (
        "transformer: ids has 14 positions, but the context is 13.\n"
        "  expected  ids: int[*n, t], t ≤ 13     (config.context)\n"
        "  got       ids: int64[2, 14]\n"
        "  hint      the last ones fit: ids[..., -13:]."
    )
    with pytest.raises(ValueRangeError, match="length is 14, but the context is 13"):
        transformer.init_cache(SMALL, 2, 14)
    with pytest.raises(ValueRangeError, match="there is no 'gpt3'"):
        transformer.preset("gpt3")
    with pytest.raises(ValueRangeError, match="mlp is 'relu'"):
        transformer.Config(11, mlp="relu")
    with pytest.raises(ValueRangeError, match="windows is empty"):
        transformer.Config(11, windows=())


MIXED = dataclasses.replace(SMALL, layers=2, experts=3, experts_per_token=1, dropout=0.0)


def test_the_routing_comes_beside_the_logits():
    params, ids = drawn(MIXED), ids_of(MIXED, 2, 7)

    @jax.jit
    def of(params):
        scarce = dataclasses.replace(MIXED, capacity=0.5)
        return [transformer.apply(params, ids, config, facts=True) for config in (MIXED, scarce)]

    (logits, facts), (fewer, scarce) = of(params)
    assert facts["dropped"] == 0 < scarce["dropped"] <= 2 * 2 * 7  # of two layers
    np.testing.assert_allclose(facts["load"].sum(), 1)
    assert 1 <= facts["balance"] + 1e-9 <= 3
    assert logits.shape == fewer.shape
    assert not np.allclose(logits, fewer)


@pytest.mark.slow
def test_the_losses_of_routing_teach_every_router():
    params, ids = drawn(MIXED), ids_of(MIXED, 2, 7)

    @jax.jit
    def taught(params):
        def of(name):
            facts = lambda p: transformer.apply(p, ids, MIXED, facts=True)[1][name].sum()
            return jax.grad(facts)(params)["blocks"]["moe"]["router"]["w"].any((1, 2))

        return [of(name) for name in ("balance", "z", "load", "dropped")]

    assert [each.tolist() for each in taught(params)] == [[True] * 2, [True] * 2, [False] * 2, [False] * 2]
    logits = jax.jit(lambda p: transformer.apply(p, ids, MIXED, facts=True)[0])(params)
    np.testing.assert_allclose(logits, apply(params, ids, MIXED), rtol=1e-9)


@pytest.mark.slow
def test_the_facts_are_those_of_the_layers_however_they_are_run():
    params, ids = drawn(MIXED), ids_of(MIXED, 2, 7)
    facts = [
        apply_facts(params, ids, dataclasses.replace(MIXED, unroll=unroll, remat=remat))
        for unroll, remat in ((None, False), (1, False), (1, True))
    ]
    for other in facts[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), facts[0], other)


@jax.jit
def apply_facts(params, ids, config):
    return transformer.apply(params, ids, config, facts=True)[1]


@pytest.mark.slow
def test_generation_takes_every_token_to_its_experts():
    """Its capacity does not count in pieces: what comes next is what the whole says without one."""
    config = dataclasses.replace(MIXED, capacity=0.5)
    params = drawn(config)
    tokens = np.asarray(fn.generate(params, [3, 1, 4], config, max_new_tokens=4))
    whole = jnp.asarray([3, 1, 4, *tokens], jnp.int32)
    want = np.asarray(apply(params, whole, MIXED)).argmax(-1)
    np.testing.assert_array_equal(tokens, want[2:-1])


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: transformer.Config(11, experts=2, experts_per_token=3), "a token goes to 3 experts, but"),
        (lambda: transformer.Config(11, capacity=0.0), "capacity is 0.0, outside its range"),
        (
            lambda: transformer.apply({}, jnp.zeros((1, 3), int), SMALL, facts=True),
            "facts are about experts, but there are none",
        ),
    ],
)
def test_what_experts_refuse(call, says, unchecked):
    with pytest.raises(ValueRangeError, match=says):
        call()


@pytest.mark.parametrize(
    "name", ["gpt2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("llama", "experts"))]
)
def test_every_formula_is_right(name):
    config = dataclasses.replace(FAMILIES[name], layers=1)
    params, ids = init(key(), config), ids_of(config, 2, 7)

    def loss(params, ids, key):
        logits = transformer.apply(params, ids, config, key=key)
        return fn.cross_entropy.apply(logits, ids).mean()

    report = fn.verify_model(loss, params, ids, key=key(4))
    assert report.ok, str(report)
    parts = {
        "gpt2": {"gelu", "layer_norm", "dropout"},
        "llama": {"swiglu", "rms_norm", "rope"},
        "experts": {"moe", "rms_norm", "rope"},
    }[name]
    assert {r.operation for r in report.rows} >= {"multihead", "attention", "embedding", "linear"} | parts
