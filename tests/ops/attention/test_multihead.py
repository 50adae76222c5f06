import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet import rules
from funcnet.errors import DTypeError, ShapeError, StructureError, ValueRangeError
from funcnet.ops.attention import alibi, attention, multihead, rope
from tests.errors import golden


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


X = normal(2, 5, 6)


@functools.partial(jax.jit, static_argnames=("dtype", "kv_heads", "head_width", "qk_norm"))
def drawn(seed, dtype, **options):
    params = multihead.init(jax.random.key(seed), 6, 4, kv_heads=2, **options)
    return jax.tree.map(lambda v: v.astype(dtype), params)


PARAMS = drawn(0, jnp.float32, head_width=3)


def with_leaf(name, leaf, value):
    return {**PARAMS, name: {**PARAMS[name], leaf: value}}


def test_init():
    shapes = jax.tree.map(jnp.shape, multihead.init(jax.random.key(0), 6, 2))
    assert shapes == {
        "q": {"w": (6, 2, 3), "b": (2, 3)},
        "k": {"w": (6, 2, 3), "b": (2, 3)},
        "v": {"w": (6, 2, 3), "b": (2, 3)},
        "o": {"w": (2, 3, 6), "b": (6,)},
    }
    grouped = multihead.init(jax.random.key(0), 100, 20, kv_heads=5, head_width=10, bias=False)
    for name, fan_in in {"q": 100, "k": 100, "v": 100, "o": 200}.items():
        assert abs(grouped[name]["w"].var() * fan_in - 1) < 0.1
    assert all(set(p) == {"w"} for p in grouped.values())
    qwen2 = multihead.init(jax.random.key(0), 6, 2, o_bias=False)
    assert {name: set(p) for name, p in qwen2.items()} == {
        "q": {"w", "b"},
        "k": {"w", "b"},
        "v": {"w", "b"},
        "o": {"w"},
    }
    qwen3 = multihead.init(jax.random.key(0), 6, 2, head_width=5, bias=False, qk_norm=True, sinks=True)
    assert jax.tree.map(jnp.shape, {name: qwen3[name] for name in ("q_norm", "k_norm", "sinks")}) == {
        "q_norm": {"w": (5,)},
        "k_norm": {"w": (5,)},
        "sinks": (2,),
    }


def test_positions_are_permuted_with_the_output():
    y = multihead.apply(PARAMS, X)
    np.testing.assert_allclose(multihead.apply(PARAMS, X[:, ::-1]), y[:, ::-1], rtol=1e-4, atol=1e-5)


def test_causal_output_does_not_depend_on_later_positions():
    f = lambda x: multihead.apply(PARAMS, x, causal=True).sum((0, 2))
    depends = jnp.any(jax.jit(jax.jacobian(f))(X) != 0, (1, 3))
    np.testing.assert_array_equal(depends, np.tri(5, dtype=bool))


def test_mask_changes_something_and_true_is_attend():
    alone = multihead.apply(PARAMS, X, mask=jnp.eye(5, dtype=bool))  # every position sees itself only
    np.testing.assert_allclose(alone[:, 2:3], multihead.apply(PARAMS, X[:, 2:3]), rtol=1e-4, atol=1e-5)
    assert not jnp.allclose(alone, multihead.apply(PARAMS, X))


def test_bias_changes_something():
    y = multihead.apply(PARAMS, X)
    for name in "qvo":
        moved = with_leaf(name, "b", PARAMS[name]["b"] + normal(*PARAMS[name]["b"].shape))
        assert not jnp.allclose(multihead.apply(moved, X), y), name
    # a constant added to every key moves all logits of a query alike
    moved = with_leaf("k", "b", PARAMS["k"]["b"] + 1)
    np.testing.assert_allclose(multihead.apply(moved, X), y, rtol=1e-4, atol=1e-5)


def test_it_is_attention_between_projections():
    with rules.record() as calls:
        multihead.apply(PARAMS, X, causal=True)
    assert [call.operation for call in calls] == [multihead, attention]
    assert calls[1].options["causal"] is True


@pytest.mark.parametrize(
    "options",
    [
        {"window": (1, 0)},
        {"segment_ids": jnp.array([[0, 0, 1, 1, 1], [0, 1, 1, 2, 2]])},
        {"scale": 2.0},
        {"softcap": 0.1},
        {"rope": rope.Config(width=2)},
        {"dropout_rate": 0.5, "key": jax.random.key(0)},
    ],
    ids=lambda options: next(iter(options)),
)
def test_every_option_changes_something_as_in_attention(options):
    y = multihead.apply(PARAMS, X, **options)
    assert not jnp.allclose(y, multihead.apply(PARAMS, X), rtol=1e-3)
    np.testing.assert_allclose(y, multihead.reference(PARAMS, X, **options), rtol=1e-4, atol=1e-5)


def test_a_block_changes_the_program_and_not_the_result():
    program = lambda **block: str(jax.make_jaxpr(lambda x: multihead.apply(PARAMS, x, **block))(X))
    assert program(block=(2, 3)) != program()
    y = multihead.apply(PARAMS, X, block=(2, 3))
    np.testing.assert_allclose(y, multihead.apply(PARAMS, X), rtol=1e-4, atol=1e-5)


def test_norms_and_sinks_change_something():
    y = multihead.apply(PARAMS, X)
    for more in ({"q_norm": {"w": normal(3)}}, {"k_norm": {"w": normal(3)}}, {"sinks": normal(4)}):
        assert not jnp.allclose(multihead.apply({**PARAMS, **more}, X), y, rtol=1e-3)
    normed = {**PARAMS, "q_norm": {"w": normal(3)}}
    one, two = (multihead.apply(normed, X, norm_eps=eps) for eps in (1e-6, 1.0))
    assert not jnp.allclose(one, two, rtol=1e-3)


def test_rope_sees_differences_of_positions_only():
    turned = lambda at: multihead.apply(PARAMS, X, rope=rope.Config(width=2), positions=at + jnp.arange(5))
    np.testing.assert_allclose(turned(0), turned(100), rtol=1e-3, atol=1e-4)
    stretched = multihead.apply(PARAMS, X, rope=rope.Config(width=2), positions=2 * jnp.arange(5))
    assert not jnp.allclose(turned(0), stretched, rtol=1e-3)


def test_bias_is_added_and_has_a_gradient():
    bias = normal(4, 5, 5)
    np.testing.assert_allclose(
        multihead.apply(PARAMS, X, jnp.where(jnp.eye(5, dtype=bool), 0, -1e9)),
        multihead.apply(PARAMS, X, mask=jnp.eye(5, dtype=bool)),
        rtol=1e-4,
        atol=1e-5,
    )
    assert jnp.abs(jax.grad(lambda b: multihead.apply(PARAMS, X, b)[0, 0, 0])(bias)).max() > 0


# ---- decoding ---------------------------------------------------------------------------------------------

D = {**drawn(1, float, head_width=4, qk_norm=True), "sinks": jnp.asarray(np.linspace(-1, 1, 4))}
WHOLE = jnp.asarray(np.random.default_rng(2).standard_normal((3, 11, 6)))
decode = jax.jit(multihead.decode, static_argnames=("window", "scale", "softcap", "rope", "norm_eps"))
reference = jax.jit(
    functools.partial(multihead.reference, causal=True),
    static_argnames=("window", "scale", "softcap", "rope", "norm_eps"),
)
OPTIONS = {"rope": rope.Config(base=100.0), "softcap": 3.0, "scale": 0.9, "norm_eps": 1e-3}


@pytest.mark.parametrize("chunks", [[1] * 11, [4, 1, 1, 1, 4], [11], [4, 7]], ids=str)
@pytest.mark.parametrize("window", [None, 1, 3, 5, 20])
def test_pieces_have_the_outputs_of_the_whole(chunks, window):
    """One by one and in pieces, which windows are smaller or larger than."""
    want = reference(D, WHOLE, window=window, **OPTIONS)
    cache = multihead.init_cache(D, 3, 11, window=window)
    assert cache["k"].shape == (3, 2, min(11, window or 11), 4)
    i = 0
    for t in chunks:
        y, cache = decode(D, WHOLE[:, i : i + t], cache, window=window, **OPTIONS)
        np.testing.assert_allclose(y, want[:, i : i + t], rtol=1e-10, atol=1e-12)
        i += t
    assert cache["length"].tolist() == [11, 11, 11]


@pytest.mark.parametrize("window", [None, 3])
def test_sequences_of_different_lengths(window):
    """Padding is neither stored nor counted; every sequence has the outputs that it has alone."""
    want = reference(D, WHOLE, window=window, **OPTIONS)
    cache = multihead.init_cache(D, 3, 11, window=window)
    had = np.zeros(3, int)
    for t, lengths in ((5, [2, 5, 0]), (1, [1, 0, 1]), (4, [4, 1, 3]), (1, [1, 1, 1]), (3, [3, 3, 3])):
        at = had[:, None] + np.arange(t)
        x = np.where(at[..., None] < 11, np.take_along_axis(WHOLE, np.minimum(at, 10)[..., None], 1), np.nan)
        x = np.where((np.arange(t) < np.array(lengths)[:, None])[..., None], x, 99.0)  # loud padding
        y, cache = decode(D, jnp.asarray(x), cache, lengths=jnp.array(lengths), window=window, **OPTIONS)
        assert jnp.isfinite(y).all()
        for row, n in enumerate(lengths):
            np.testing.assert_allclose(y[row, :n], want[row, had[row] : had[row] + n], rtol=1e-10, atol=1e-12)
        had += lengths
        assert cache["length"].tolist() == had.tolist()


@pytest.mark.parametrize("sinks", [True, False])
@pytest.mark.parametrize("window", [None, 3])
def test_slopes_are_alibi(window, sinks):
    slopes = alibi.slopes(4).astype(jnp.float64)
    bias = alibi.apply(slopes, t=11, s=11)
    params = D if sinks else {**D, "sinks": None}
    want = reference(params, WHOLE, bias, window=window)
    cache, i = multihead.init_cache(D, 3, 11, window=window), 0
    for t in (4, 1, 6):
        y, cache = decode(params, WHOLE[:, i : i + t], cache, slopes=slopes, window=window)
        np.testing.assert_allclose(y, want[:, i : i + t], rtol=1e-10, atol=1e-12)
        i += t
    assert not np.allclose(want, reference(params, WHOLE, window=window), rtol=1e-3)


def test_leading_axes_and_none():
    for lead in ((), (3, 1)):
        x = WHOLE[:, None] if lead else WHOLE[0]
        want = reference(D, x)
        cache, i = multihead.init_cache(D, lead, 11), 0
        for t in (4, 1, 6):
            y, cache = decode(D, x[..., i : i + t, :], cache)
            np.testing.assert_allclose(y, want[..., i : i + t, :], rtol=1e-10, atol=1e-12)
            i += t


def test_nothing_is_compiled_again_as_the_sequence_grows():
    traces = []

    @jax.jit
    def step(x, cache):
        traces.append(1)
        return multihead.decode(D, x, cache, window=3)[1]

    cache = multihead.init_cache(D, 3, 11, window=3)
    for i in range(11):
        cache = step(WHOLE[:, i : i + 1], cache)
    assert len(traces) == 1


@pytest.mark.parametrize("t", [1, 3])
def test_a_full_cache_keeps_what_it_has(t):
    """Where nothing can be raised, a position too many is lost, and spoils nothing before it."""
    _, cache = decode(D, WHOLE[:, :4], multihead.init_cache(D, 3, 5))
    x = WHOLE[:, 4 : 4 + t]
    _, full = decode(D, x, cache)
    _, more = decode(D, WHOLE[:, 8 : 8 + t], full)
    for name in ("k", "v"):
        assert jnp.array_equal(full[name][..., :4, :], cache[name][..., :4, :])
        assert not jnp.array_equal(full[name][..., 4, :], cache[name][..., 4, :])
        assert jnp.array_equal(more[name], full[name])


@pytest.mark.parametrize("window", [None, 3])
def test_what_lies_in_a_free_slot_is_not_seen(window):
    """Whatever it is; nor is padding, of a piece and of a single position."""
    cache = multihead.init_cache(D, 3, 11, window=window)
    dirty = {**cache, "k": cache["k"] + jnp.nan, "v": cache["v"] + jnp.inf}
    padded = WHOLE.at[1, 2].set(jnp.nan)
    for start, t, lengths in ((0, 3, [3, 2, 3]), (3, 1, [1, 1, 1])):
        x, lengths = slice(start, start + t), jnp.array(lengths)
        y, cache = decode(D, WHOLE[:, x], cache, lengths=lengths, window=window)
        z, dirty = decode(D, padded[:, x], dirty, lengths=lengths, window=window)
        real = jnp.arange(t) < lengths[:, None]
        np.testing.assert_allclose(z[real], y[real], rtol=1e-12)


def test_an_empty_cache_can_be_donated():
    cache = multihead.init_cache(D, 3, 5)
    donating = jax.jit(multihead.decode, donate_argnums=2)
    np.testing.assert_array_equal(donating(D, WHOLE[:, :1], cache)[1]["length"], 1)
    assert cache["k"].is_deleted()


def test_the_cache_has_the_dtype_that_it_is_made_with():
    cache = multihead.init_cache(D, 3, 11, dtype=jnp.float32)
    y, cache = decode(D, WHOLE[:, :2], cache)
    assert (y.dtype, cache["k"].dtype, cache["length"].dtype) == (jnp.float64, jnp.float32, jnp.int32)


def test_dtypes():
    half = jax.tree.map(lambda v: v.astype(jnp.bfloat16), PARAMS)
    y, pullback = multihead.vjp(half, X)
    grads, dx, _ = pullback(y)
    assert (y.dtype, dx.dtype) == (jnp.float32, jnp.float32)
    assert {v.dtype for v in jax.tree.leaves(grads)} == {jnp.dtype("bfloat16")}
    y, pullback = multihead.vjp(half, X.astype(jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    assert jnp.all(jnp.isfinite(pullback(y)[1]))


ERRORS = [
    (
        lambda: multihead.apply(PARAMS, X.mT),
        ShapeError,
        "multihead.apply: x has 5 features in its last axis, "
        'but params["q"]["w"] (float32[6, 4, 3]) takes 6.\n'
        "  expected  x: float[*n, t, 6]\n"
        "  got       x: float32[2, 6, 5]\n"
        "  hint      its last two axes, swapped, fit: x.mT.",
    ),
    (
        lambda: multihead.apply(PARAMS, X[0, 0]),
        ShapeError,
        "multihead.apply: x has rank 1, but at least 2 is needed.\n"
        "  expected  x: float[*n, t, 6]\n"
        "  got       x: float32[6]\n"
        "  hint      is an axis missing? x[None] adds a batch, x[..., None] a channel axis.",
    ),
    (
        lambda: multihead.apply(PARAMS, X.astype(jnp.int32)),
        DTypeError,
        "multihead.apply: x has dtype int32, but a float is needed.\n"
        "  expected  x: float[...]\n"
        "  got       x: int32[2, 5, 6]\n"
        "  hint      cast it: x.astype(jnp.float32).",
    ),
    (
        lambda: multihead.apply({"q": PARAMS["q"]}, X),
        StructureError,
        "multihead.apply: params are not those of a multihead.\n"
        '  expected  params: a dict of "q", "k", "v" and "o", each a dict with "w"\n'
        '  got       params: "q"',
    ),
    (
        lambda: multihead.apply(X, PARAMS),
        StructureError,
        "multihead.apply: params are not those of a multihead.\n"
        '  expected  params: a dict of "q", "k", "v" and "o", each a dict with "w"\n'
        "  got       params: float32[2, 5, 6]\n"
        "  hint      the parameters come first: apply(params, x).",
    ),
    (
        lambda: multihead.apply(with_leaf("q", "w", normal(6, 12)), X),
        ShapeError,
        'multihead.apply: params["q"]["w"] has rank 2, but 3 is needed.\n'
        '  expected  params["q"]["w"]: float[d, h, e]\n'
        '  got       params["q"]["w"]: float32[6, 12]',
    ),
    (
        lambda: multihead.apply(with_leaf("v", "w", normal(6, 4, 3)), X),
        ShapeError,
        'multihead.apply: params["v"]["w"] does not fit the other parameters.\n'
        '  expected  params["v"]["w"]: float[6, 2, 3]     (params["q"]["w"]: float32[6, 4, 3])\n'
        '  got       params["v"]["w"]: float32[6, 4, 3]',
    ),
    (
        lambda: multihead.apply(with_leaf("o", "b", normal(4, 3)), X),
        ShapeError,
        'multihead.apply: params["o"]["b"] does not fit the other parameters.\n'
        '  expected  params["o"]["b"]: float[6]     (params["q"]["w"]: float32[6, 4, 3])\n'
        '  got       params["o"]["b"]: float32[4, 3]',
    ),
    (
        lambda: multihead.init(jax.random.key(0), 6, 4),
        ValueRangeError,
        "multihead.init: 4 heads do not divide d = 6.\n"
        "  expected  a divisor of d = 6, or a head_width\n"
        "  got       heads = 4",
    ),
    (
        lambda: multihead.init(jax.random.key(0), 6, 3, kv_heads=2),
        ValueRangeError,
        "multihead.init: 2 kv_heads do not divide 3 heads.\n"
        "  expected  a divisor of heads = 3\n"
        "  got       kv_heads = 2",
    ),
    (
        lambda: multihead.apply({**PARAMS, "q_norm": {"w": normal(4)}}, X),
        ShapeError,
        'multihead.apply: params["q_norm"]["w"] does not fit the other parameters.\n'
        '  expected  params["q_norm"]["w"]: float[3]     (params["q"]["w"]: float32[6, 4, 3])\n'
        '  got       params["q_norm"]["w"]: float32[4]',
    ),
    (
        lambda: multihead.decode(PARAMS, X, multihead.init_cache(PARAMS, 2, 4)),
        ValueRangeError,
        "multihead.decode: the cache has 4 slots, too few for 5 positions.\n"
        "  expected  cache of length 5\n"
        "  got       cache of length 4",
    ),
    (
        lambda: multihead.decode(PARAMS, X, multihead.init_cache(PARAMS, 3, 5)),
        ShapeError,
        "multihead.decode: the cache does not fit x and params.\n"
        '  expected  k, v: float[2, 2, s, 3], length: int32[2]     (params["k"]["w"]: float32[6, 2, 3])\n'
        "  got       k: float32[3, 2, 5, 3], v: float32[3, 2, 5, 3], length: int32[3]\n"
        "  hint      init_cache(params, n, length), n the leading axes of x, makes one that fits.",
    ),
    (
        lambda: multihead.decode(PARAMS, X, multihead.init_cache(PARAMS, 2, 5), lengths=jnp.array([5, 6])),
        ValueRangeError,
        "multihead.decode: lengths are from 5 to 6, but x has 5 positions.\n"
        "  expected  0 ≤ lengths ≤ 5\n"
        "  got       lengths: int64[2]",
    ),
    (
        lambda: multihead.decode(PARAMS, X, multihead.init_cache(PARAMS, 2, 5), lengths=jnp.array(5)),
        ShapeError,
        "multihead.decode: lengths are not one integer for each sequence.\n"
        "  expected  lengths: int[2]     (the leading axes of x)\n"
        "  got       lengths: int64[]",
    ),
]

test_errors = golden(ERRORS)


def test_a_sequence_without_a_batch_has_a_gradient_in_bfloat16():
    params = multihead.init(jax.random.key(0), 5, 4, head_width=3)
    params, x = jax.tree.map(
        lambda v: v.astype(jnp.bfloat16), (params, jax.random.normal(jax.random.key(1), (7, 5)))
    )
    formula = jax.jit(lambda params, x, dy: multihead.vjp(params, x)[1](dy))
    grads = jax.block_until_ready(formula(params, x, x))
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype(jnp.bfloat16)}
