"""The encoder: padding is not seen, positions and types are, dropout and the forms of the stack."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

import funcnet as fn
from funcnet.errors import DTypeError, ShapeError, ValueRangeError
from funcnet.nets import encoder
from tests.errors import golden

CONFIG = encoder.Config(vocabulary=11, context=7, types=3, layers=3, heads=2, d=6, d_hidden=5, unroll=1)


apply = jax.jit(encoder.apply)


def key(i=0):
    return jax.random.key(i)


def changed(**fields):
    return dataclasses.replace(CONFIG, **fields)


@pytest.fixture(scope="module")
def params():
    """Away from where init puts them: no bias is 0, no gain 1."""
    moved = lambda w: w + 0.3 * jax.random.normal(key(9), w.shape)
    return jax.jit(lambda: jax.tree.map(moved, encoder.init(key(), CONFIG)))()


@pytest.fixture(scope="module")
def ids():
    return jax.random.randint(key(1), (2, 5), 0, 11)


MASK = jnp.array([[True, True, True, False, False], [True] * 5])


@pytest.mark.slow
def test_it_is_bert(params, ids):
    """Against the definition, in plain jnp, layer by layer."""

    def norm(p, x):
        x = x - x.mean(-1, keepdims=True)
        return p["w"] * x / jnp.sqrt((x**2).mean(-1, keepdims=True) + CONFIG.norm_eps) + p["b"]

    def attention(p, x):
        q, k, v = (jnp.einsum("ntd,dhe->nhte", x, p[c]["w"]) + p[c]["b"][:, None] for c in "qkv")
        logits = jnp.einsum("nhte,nhse->nhts", q, k) / jnp.sqrt(3.0)
        weights = jax.nn.softmax(jnp.where(MASK[:, None, None], logits, -jnp.inf))
        return jnp.einsum("nhts,nhse,hed->ntd", weights, v, p["o"]["w"]) + p["o"]["b"]

    types = jnp.array([[0, 0, 1, 1, 2]] * 2)
    x = params["tokens"]["w"][ids] + params["positions"]["w"][:5] + params["types"]["w"][types]
    x = norm(params["norm"], x)
    for i in range(CONFIG.layers):
        p = jax.tree.map(lambda w, i=i: w[i], params["blocks"])
        x = norm(p["norm1"], x + attention(p["attention"], x))
        h = jax.nn.gelu(x @ p["up"]["w"] + p["up"]["b"], approximate=False)
        x = norm(p["norm2"], x + h @ p["down"]["w"] + p["down"]["b"])
    got = apply(params, ids, CONFIG, mask=MASK, types=types)
    assert jnp.allclose(got, x, rtol=0, atol=1e-12)
    first = jnp.tanh(x[:, 0] @ params["pooler"]["w"] + params["pooler"]["b"])
    assert jnp.allclose(encoder.pool_first(params, got), first, rtol=0, atol=1e-12)


def test_tokens_do_not_see_padding_by_gradient(params, ids):
    def tokens(shift):
        moved = {**params, "positions": {"w": params["positions"]["w"] + shift}}
        return jnp.sin(apply(moved, ids[:1], CONFIG, mask=MASK[:1]))[MASK[:1]].sum()

    seen = jnp.abs(jax.grad(tokens)(jnp.zeros((7, 6)))).sum(-1)
    assert (seen[:3] > 0).all()
    assert (seen[3:] == 0).all()


def test_without_padding_no_mask_and_a_full_one_are_the_same(params, ids):
    want = apply(params, ids, CONFIG)
    assert jnp.allclose(apply(params, ids, CONFIG, mask=MASK | True), want, atol=1e-12)
    assert not jnp.allclose(apply(params, ids, CONFIG, mask=MASK), want)
    zeros = apply(params, ids, CONFIG, types=jnp.zeros_like(ids))
    assert jnp.array_equal(zeros, want)


def test_dropout_needs_a_key_and_each_rate_does_something(params, ids):
    want = apply(params, ids, CONFIG)
    for name in ("dropout", "attention_dropout"):
        config = changed(**{name: 0.5})
        assert jnp.array_equal(apply(params, ids, config), want)
        assert not jnp.allclose(apply(params, ids, config, key=key(2)), want)
    assert jnp.array_equal(apply(params, ids, CONFIG, key=key(2)), want)


def test_every_size_is_the_config_s():
    config = encoder.Config(vocabulary=11, context=7, layers=2, heads=2, d=6, pooler=False)
    params = jax.eval_shape(lambda: encoder.init(key(), config))
    assert params["blocks"]["up"]["w"].shape == (2, 6, 24)
    assert "pooler" not in params
    base = jax.eval_shape(lambda: encoder.init(key(), encoder.Config()))
    assert sum(leaf.size for leaf in jax.tree.leaves(base)) == 109_482_240  # BERT's base model


def test_it_computes_in_its_dtype(params, ids):
    half = apply(params, ids, changed(dtype="bfloat16"))
    assert half.dtype == jnp.bfloat16
    assert jnp.allclose(half.astype(float), apply(params, ids, CONFIG), atol=0.2)


@pytest.mark.slow
def test_scan_equals_unrolled_and_rematerialised(params, ids):
    loss = lambda c: lambda p: jnp.sin(apply(p, ids, c, mask=MASK, key=key(3)))[MASK].sum()
    want = jax.grad(loss(changed(dropout=0.2, attention_dropout=0.2)))(params)
    for fields in ({"unroll": 3}, {"remat": True}):
        got = jax.grad(loss(changed(dropout=0.2, attention_dropout=0.2, **fields)))(params)
        errors = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), got, want)
        assert max(jax.tree.leaves(errors)) < 1e-10


def test_pool_is_the_mean_of_the_tokens():
    x = jax.random.normal(key(), (2, 5, 3))
    assert jnp.allclose(encoder.pool(x), x.mean(1))
    got = encoder.pool(x, mask=MASK)
    assert jnp.allclose(got[0], x[0, :3].mean(0))
    assert jnp.allclose(got[1], x[1].mean(0))
    assert jnp.array_equal(encoder.pool(x, mask=MASK & False), jnp.zeros((2, 3)))
    half = encoder.pool(jnp.ones((1, 3000, 1), jnp.bfloat16), mask=jnp.ones((1, 3000), bool))
    assert (half.dtype, float(half[0, 0])) == (jnp.bfloat16, 1.0)  # summed in float32


@pytest.mark.slow
def test_every_formula_in_it_is_right(params, ids):
    def loss(params, ids, key):
        config = changed(dropout=0.2, attention_dropout=0.2)
        x = apply(params, ids, config, mask=MASK, key=key)
        return jnp.sin(encoder.pool(x, mask=MASK)).sum() + encoder.pool_first(params, x).sum()

    report = fn.verify_model(loss, params, ids, key=key(4))
    assert report.ok, str(report)


def test_every_head_has_its_shape_and_its_dtype(params, ids):
    x = apply(params, ids, CONFIG)
    shapes = {"masked": (2, 5, 11), "sequence": (2, 3), "tokens": (2, 5, 3), "answer": (2, 5, 2)}
    for name, shape in shapes.items():
        config = changed(head=name, classes=3, dtype="bfloat16")
        head = jax.eval_shape(lambda config=config: encoder.init(key(), config)["head"])
        of = lambda params, x, config=config: encoder.logits(params, x.astype(jnp.bfloat16), config)
        logits = jax.eval_shape(of, params | {"head": head}, x)
        assert (logits.shape, logits.dtype) == (shape, jnp.bfloat16)
    masked = changed(head="masked")
    logits = encoder.logits(params | encoder.init(key(), masked), x, masked)
    assert not jnp.allclose(logits, encoder.logits(params | encoder.init(key(1), masked), x, masked))
    second = encoder.init(key(), changed(next_sentence=True))
    assert encoder.next_sentence(second, x).shape == (2, 2)


def test_a_head_does_not_change_the_encoder_of_a_key():
    plain, more = encoder.init(key(), CONFIG), encoder.init(key(), changed(head="masked", next_sentence=True))
    assert jax.tree.all(jax.tree.map(jnp.array_equal, plain, {name: more[name] for name in plain}))


IDS = jnp.zeros((2, 5), int)
test_errors = golden(
    [
        (
            lambda: encoder.apply({}, jnp.zeros((2, 8), int), CONFIG),
            ShapeError,
            "encoder.apply: ids has 8 positions, but the context is 7.\n"
            "  expected  ids: int[*n, t], t ≤ 7     (config.context)\n"
            "  got       ids: int64[2, 8]\n"
            "  hint      cut them: ids[..., :7].",
        ),
        (
            lambda: encoder.apply({}, IDS, CONFIG, mask=MASK[:1]),
            ShapeError,
            "encoder.apply: mask and ids have different shapes.\n"
            "  expected  mask: [2, 5]     (ids: int64[2, 5])\n"
            "  got       mask: bool[1, 5]",
        ),
        (
            lambda: encoder.apply({}, IDS, CONFIG, types=IDS[0]),
            ShapeError,
            "encoder.apply: types and ids have different shapes.\n"
            "  expected  types: [2, 5]     (ids: int64[2, 5])\n"
            "  got       types: int64[5]",
        ),
        (
            lambda: encoder.apply({}, IDS, CONFIG, mask=MASK.astype(int)),
            DTypeError,
            "encoder.apply: mask has dtype int64, but booleans are needed.\n"
            "  expected  mask: bool[*n, t], True = a token\n"
            "  got       mask: int64[2, 5]\n"
            "  hint      1 = a token, 0 = padding? mask == 1.",
        ),
        (
            lambda: encoder.logits({}, jnp.zeros((2, 5, 6)), CONFIG),
            ValueRangeError,
            "encoder.logits: the model has no head.\n"
            "  expected  config.head: 'masked', 'sequence', 'tokens', 'answer'\n"
            "  got       config.head = None",
        ),
        (
            lambda: encoder.Config(head="mask"),
            ValueRangeError,
            "encoder.Config: head is 'mask'.\n"
            "  expected  head: 'masked', 'sequence', 'tokens', 'answer', None\n"
            "  got       head = 'mask'",
        ),
        (
            lambda: encoder.Config(head="sequence", pooler=False),
            ValueRangeError,
            "encoder.Config: a class of the whole sequence is read from the pooler, and there is none.\n"
            "  expected  pooler: True\n"
            "  got       pooler = False, head = 'sequence', next_sentence = False",
        ),
    ]
)


def test_ids_and_types_out_of_range_are_refused(params, ids, unchecked):
    with pytest.raises(ValueRangeError, match="ids hold 11"):
        encoder.apply(params, jnp.full((1, 2), 11), CONFIG)
    with pytest.raises(ValueRangeError, match="ids hold 3"):
        encoder.apply(params, ids, CONFIG, types=jnp.full((2, 5), 3))
