import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from funcnet.errors import DTypeError, ShapeError, ValueRangeError
from funcnet.ops.attention import _blocks, _vendor, attention
from tests.budget import many
from tests.errors import golden
from tests.naive.attention import attention as naive


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


Q, K, V = normal(2, 3, 4, 5), normal(2, 7, 2, 5, seed=1), normal(2, 7, 2, 6, seed=2)


def seen(q, k, v, **options):
    """[t, s]: whether the output of query i depends on key j, by the gradient of the output."""
    f = lambda v: attention.apply(q, k, v, **options).sum((0, 2, 3))
    return jnp.any(jax.jit(jax.jacobian(f))(v) != 0, (1, 3, 4))


def test_a_mean_of_the_values():
    ones = attention.apply(Q, K, jnp.ones_like(V))
    np.testing.assert_allclose(ones, 1, rtol=1e-6)  # the weights sum to one
    o = attention.apply(Q, K, V)
    assert jnp.all(o[:, :, :2] < V[:, None, :, :1].max(2) + 1e-6)
    assert jnp.all(o[:, :, 2:] > V[:, None, :, 1:].min(2) - 1e-6)
    np.testing.assert_allclose(
        attention.apply(0 * Q, K, V)[:, 0, 0], V[:, :, 0].mean(1), rtol=1e-5, atol=1e-6
    )


def test_permuting_the_keys_changes_nothing():
    o = attention.apply(Q, K, V)
    np.testing.assert_allclose(attention.apply(Q, K[:, ::-1], V[:, ::-1]), o, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(attention.apply(Q[:, ::-1], K, V), o[:, ::-1], rtol=1e-5, atol=1e-6)


def test_adding_one_vector_to_all_keys_changes_nothing():
    o = attention.apply(Q, K, V)
    np.testing.assert_allclose(attention.apply(Q, K + normal(5, seed=3), V), o, rtol=1e-4, atol=1e-5)
    dk = jax.grad(lambda k: jnp.sum(jnp.sin(attention.apply(Q, k, V))))(K)
    np.testing.assert_allclose(dk.sum(1), 0, atol=1e-5)


@pytest.mark.parametrize(("t", "s", "offset"), [(4, 4, 0), (3, 5, 0), (3, 5, 2), (5, 3, 0), (5, 3, -2)])
def test_causal_sees_no_key_beyond_its_position(t, s, offset):
    q, k, v = normal(1, t, 1, 2), normal(1, s, 1, 2, seed=1), normal(1, s, 1, 2, seed=2)
    want = np.tri(t, s, offset, dtype=bool)
    for start in (offset, jnp.asarray(offset), jnp.asarray([offset])):
        np.testing.assert_array_equal(seen(q, k, v, causal=True, q_offset=start, block=(2, 2)), want)


def test_no_offset_is_taken_for_another():
    far = jnp.asarray([2**32, 0])
    o = jax.jit(lambda o: attention.apply(Q, K, V, causal=True, q_offset=o))(far)
    np.testing.assert_allclose(o[0], attention.apply(Q, K, V)[0], atol=1e-6)
    np.testing.assert_allclose(o[1], attention.apply(Q, K, V, causal=True)[1], atol=1e-6)


def test_every_sequence_may_have_its_own_offset():
    q, k, v = normal(2, 2, 1, 2), normal(2, 7, 1, 2, seed=1), normal(2, 7, 1, 2, seed=2)
    both = jax.jit(lambda o: attention.apply(q, k, v, causal=True, q_offset=o))(jnp.asarray([1, 4]))
    for i, offset in enumerate((1, 4)):
        alone = attention.apply(q[i], k[i], v[i], causal=True, q_offset=offset)
        np.testing.assert_allclose(both[i], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("block", [None, (2, 3)])
def test_window_counts_the_keys_that_are_seen(block):
    x = normal(1, 7, 1, 2)
    for window in (1, 3, 10):
        last = np.tri(7, dtype=bool) & ~np.tri(7, k=-window, dtype=bool)
        assert last.sum(1).max() == min(window, 7)
        np.testing.assert_array_equal(seen(x, x, x, causal=True, window=window, block=block), last)
    around = np.tri(7, k=1, dtype=bool) & ~np.tri(7, k=-3, dtype=bool)  # 2 before, own, 1 after
    np.testing.assert_array_equal(seen(x, x, x, window=(2, 1), block=block), around)
    np.testing.assert_array_equal(
        seen(x, x, x, window=(2, 1), causal=True, block=block), around & np.tri(7, dtype=bool)
    )


def test_segments_do_not_see_each_other():
    x, ids = normal(1, 5, 1, 2), jnp.asarray([[0, 0, 1, 1, 0]])
    same = np.asarray(ids[0][:, None] == ids[0])
    np.testing.assert_array_equal(seen(x, x, x, segment_ids=ids), same)
    np.testing.assert_array_equal(
        seen(x, x, x, segment_ids=(ids, ids), causal=True), same & np.tri(5, dtype=bool)
    )
    packed = attention.apply(x, x, x, segment_ids=ids)
    np.testing.assert_allclose(packed[:, 2:4], attention.apply(*[x[:, 2:4]] * 3), rtol=1e-5, atol=1e-6)


def test_softcap_bounds_the_logits():
    o = attention.apply(1e3 * Q, K, V, softcap=0.1)  # all weights lie within e^±0.2 of each other
    np.testing.assert_allclose(o, attention.apply(0 * Q, K, V), atol=0.5)
    assert not jnp.allclose(o, attention.apply(1e3 * Q, K, V), atol=0.5)
    np.testing.assert_allclose(
        attention.apply(Q, K, V, softcap=1e4), attention.apply(Q, K, V), rtol=1e-4, atol=1e-5
    )


def test_bias_is_added_to_the_logits():
    mask = jnp.asarray(np.random.default_rng(5).random((4, 3, 7)) < 0.6)
    bias = jnp.where(mask, 0, -1e9).astype(jnp.float32)
    np.testing.assert_allclose(
        attention.apply(Q, K, V, bias), attention.apply(Q, K, V, mask=mask), rtol=1e-5, atol=1e-6
    )


def test_a_sink_takes_weight_and_has_no_value():
    sinks = normal(4, seed=6)
    k = jnp.concatenate([K, jnp.zeros((2, 1, 2, 5), jnp.float32)], 1)  # a key more, with logit sinks
    v = jnp.concatenate([V, jnp.zeros((2, 1, 2, 6), jnp.float32)], 1)
    bias = jnp.zeros((4, 1, 8), jnp.float32).at[:, 0, 7].set(sinks)
    np.testing.assert_allclose(
        attention.apply(Q, K, V, None, sinks), attention.apply(Q, k, v, bias), rtol=1e-5, atol=1e-6
    )


def test_a_row_that_sees_only_a_sink_gives_zeros():
    f = lambda q, sinks: attention.apply(q, K, V, None, sinks, mask=jnp.zeros((1, 7), bool))
    assert not jnp.any(f(Q, normal(4)))
    grads = jax.grad(lambda *x: f(*x).sum(), (0, 1))(Q, normal(4))
    assert not any(jnp.any(g) for g in grads)


def test_dropout_keeps_the_mean_and_does_not_depend_on_blocks():
    q, v = jnp.zeros((1, 101, 1, 2), jnp.float32), jnp.ones((1, 103, 1, 1), jnp.float32)
    k, key = jnp.zeros((1, 103, 1, 2), jnp.float32), jax.random.key(3)
    f = lambda block, key: attention.apply(q, k, v, dropout_rate=0.3, key=key, block=block)
    shares = np.asarray(f(None, key)) * 0.7  # equal weights: the share of the keys that is kept
    assert abs(shares.mean() - 0.7) < 5 * np.sqrt(0.21 / (101 * 103))
    assert abs(shares.std() - np.sqrt(0.21 / 103)) < 0.02
    np.testing.assert_allclose(f((16, 24), key), f(None, key), rtol=1e-5)
    assert not np.allclose(f(None, key), f(None, jax.random.key(4)))
    np.testing.assert_array_equal(f(None, None), attention.apply(q, k, v))  # evaluation


@st.composite
def calls(draw):
    """Arguments and options of attention, and the size of a block: every combination of them."""
    flag, rng = st.booleans(), np.random.default_rng(draw(st.integers(0, 2**16)))
    size = lambda most, least=1: draw(st.integers(least, most))
    n, h_kv = tuple(size(2) for _ in range(size(2, 0))), size(2)
    h, t, s, e, e_v = h_kv * size(2), size(6), size(6), size(3), size(2)
    full, array = (*n, h, t, s), lambda *shape: jnp.asarray(rng.standard_normal(shape))

    def broadcast():
        return tuple(x if draw(flag) else 1 for x in full)[size(len(n) + 2, 0) :]

    options = {"causal": draw(flag), "block": (size(4), size(4))}
    if draw(flag):
        options["window"] = size(4) if options["causal"] else (size(3, 0), size(3, 0))
    if draw(flag):
        options["mask"] = jnp.asarray(rng.random(broadcast()) < 0.7)
    if draw(flag):
        ids = lambda size: jnp.asarray(rng.integers(0, 2, (*n, size)))
        options["segment_ids"] = ids(t) if t == s else (ids(t), ids(s))
    options["q_offset"] = size(max(s - t, 0), -t)
    if draw(flag):
        options["q_offset"] = jnp.full(n, options["q_offset"])
    options["softcap"] = 1.5 if draw(flag) else None
    options["scale"] = 0.3 if draw(flag) else None
    if draw(flag):
        options |= {"dropout_rate": 0.4, "key": jax.random.key(size(9))}
    bias = array(*broadcast()) if draw(flag) else None
    sinks = array(h) if draw(flag) else None
    return (array(*n, t, h, e), array(*n, s, h_kv, e), array(*n, s, h_kv, e_v), bias, sinks), options


@settings(max_examples=6, deadline=None, derandomize=True)
@given(calls())
def test_every_combination_of_options(call):
    """reference = the loop, apply = reference, and by hand the gradients of reference."""
    args, options = call
    plain = lambda x: np.asarray(x) if hasattr(x, "dtype") and x.dtype.kind != "V" else x
    loop = naive(
        *jax.tree.map(plain, args),
        **{k: v if k == "key" else jax.tree.map(plain, v) for k, v in options.items()},
    )
    there = tuple(i for i, x in enumerate(args) if x is not None)

    def of(f):
        def run(*moving):
            values = dict(zip(there, moving, strict=True))
            return f(*(values.get(i) for i in range(5)), **options)

        return jax.jit(lambda moving, dy: (lambda y, pull: (y, pull(dy)))(*jax.vjp(run, *moving)))

    dy = jnp.asarray(np.random.default_rng(7).standard_normal(loop.shape))
    moving = [args[i] for i in there]
    y, want = of(attention.reference)(moving, dy)
    np.testing.assert_allclose(y, loop, atol=1e-12)
    o, got = of(attention.apply)(moving, dy)
    np.testing.assert_allclose(o, y, atol=1e-11)
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, atol=1e-10)


@pytest.mark.slow
@settings(max_examples=many(60), deadline=None)
@given(calls())
def test_many_combinations_of_options(call):
    test_every_combination_of_options.hypothesis.inner_test(call)


def listed(t, s, block, **limits):
    """The blocks that are computed: those seen whole, and those that an edge crosses."""
    form = {"left": None, "right": None, "scale": 1.0, "softcap": None, "rate": 0.0, "offset": 0} | limits
    sizes = _blocks._sizes(_blocks.Form(**form, block=block), jnp.zeros((t, 1, 1)), jnp.zeros((s, 1, 1)))
    return _blocks._list_blocks(_blocks.Form(**form, block=block), sizes)


def test_blocks_that_nothing_sees_are_not_computed():
    inner, edge = listed(8, 8, (2, 2), right=0)
    assert inner == [(i, j) for i in range(4) for j in range(i)]
    assert edge == [(i, i) for i in range(4)]
    inner, edge = listed(8, 8, (2, 2), right=0, left=2)
    assert not inner
    assert sorted(edge) == sorted([(i, i) for i in range(4)] + [(i, i - 1) for i in range(1, 4)])
    assert listed(8, 8, (2, 2)) == ([(i, j) for i in range(4) for j in range(4)], [])
    assert len(listed(7, 7, (2, 2))[1]) == 4  # the padded column
    assert listed(8, 8, (2, 2), right=0, offset=None)[1][-1] == (3, 3)  # not known before it runs


def test_a_long_sequence_needs_no_square():
    """The largest array of the compiled gradient is far smaller than t · t."""
    x = jax.ShapeDtypeStruct((2**15, 1, 8), jnp.float32)
    f = jax.grad(lambda q, k, v: attention.apply(q, k, v, causal=True).sum(), (0, 1, 2))
    memory = jax.jit(f).lower(x, x, x).compile().memory_analysis().temp_size_in_bytes
    assert memory < 2**15 * 2**15 / 16


def test_mask_hides_keys_and_joins_causal():
    keys = jnp.asarray([True, False, True, True, False, True, True])
    np.testing.assert_array_equal(seen(Q, K, V, mask=keys), [keys] * 3)
    both = np.tri(3, 7, 4, dtype=bool) & np.asarray(keys)
    np.testing.assert_array_equal(seen(Q, K, V, mask=keys, causal=True, q_offset=4), both)


def test_hidden_keys_and_values_may_hold_anything():
    keys = jnp.asarray([True] * 5 + [False] * 2)
    k, v = K.at[:, 5:].set(1e30), V.at[:, 5:].set(-1e30)
    short = attention.apply(Q, K[:, :5], V[:, :5])
    np.testing.assert_allclose(attention.apply(Q, k, v, mask=keys), short, rtol=1e-5, atol=1e-6)


def test_rows_that_see_nothing_give_zeros_and_zero_gradients():
    mask = jnp.asarray([[False], [True], [False]])
    f = functools.partial(attention.apply, mask=mask)
    assert not jnp.any(f(Q, K, V)[:, ::2])
    assert jnp.all(f(Q, K, V)[:, 1] != 0)
    dq, dk, dv = jax.grad(lambda *x: jnp.sum(jnp.sin(f(*x))), (0, 1, 2))(Q, K, V)
    assert not jnp.any(dq[:, ::2])
    nothing = jax.grad(lambda *x: f(*x)[:, ::2].sum(), (0, 1, 2))(Q, K, V)
    assert not any(jnp.any(g) for g in nothing)  # NaN would count as any
    assert all(jnp.all(jnp.isfinite(g)) for g in (dq, dk, dv))


def test_large_logits_do_not_overflow():
    o, pullback = jax.vjp(lambda q: attention.apply(q, K, V), 1e4 * Q)
    assert jnp.all(jnp.isfinite(o))
    assert jnp.all(jnp.isfinite(pullback(o)[0]))


def test_scale():
    np.testing.assert_array_equal(attention.apply(Q, K, V, scale=5**-0.5), attention.apply(Q, K, V))
    np.testing.assert_allclose(
        attention.apply(Q, K, V, scale=0.1), attention.apply(Q * 0.1 * 5**0.5, K, V), rtol=1e-5, atol=1e-6
    )


def test_query_heads_share_their_key_head():
    repeated = attention.apply(Q, jnp.repeat(K, 2, -2), jnp.repeat(V, 2, -2))
    np.testing.assert_allclose(attention.apply(Q, K, V), repeated, rtol=1e-5, atol=1e-6)
    dv = jax.jacobian(lambda v: attention.apply(Q, K, v).sum((0, 1, 3)))(V)  # [h, *v.shape]
    np.testing.assert_array_equal(jnp.any(dv != 0, (1, 2, 4)), [[1, 0], [1, 0], [0, 1], [0, 1]])


def test_residuals_grow_with_t_plus_s():
    _, pullback = attention.vjp(Q, K, V, causal=True)
    o, rows = 2 * 3 * 4 * 6, 2 * 3 * 4
    assert sum(x.size for x in jax.tree.leaves(pullback)) == Q.size + K.size + V.size + o + 2 * rows


def test_statistics_are_wide():
    bf16 = [x.astype(jnp.bfloat16) for x in (Q, K, V)]
    o, pullback = attention.vjp(*bf16)
    assert o.dtype == jnp.bfloat16
    assert [g.dtype for g in pullback(o)[:3]] == [jnp.bfloat16] * 3
    assert jnp.dtype(jnp.float32) in {x.dtype for x in jax.tree.leaves(pullback)}


@pytest.mark.parametrize(("h", "h_kv"), [(4, 4), (4, 1), (1, 1)])
def test_bfloat16_products_run_at_every_grouping(h, h_kv):
    """XLA:CPU refuses some products of bfloat16 into float32, by the shapes of their operands."""
    q, kv = normal(2, 32, h, 16).astype(jnp.bfloat16), normal(2, 32, h_kv, 16).astype(jnp.bfloat16)
    run = lambda q, kv: jax.vjp(functools.partial(attention.apply, causal=True), q, kv, kv)[1](q)
    for g in (*run(q, kv), *jax.jit(run)(q, kv)):
        assert jnp.all(jnp.isfinite(g))


@pytest.fixture
def with_cudnn(monkeypatch):
    """As if this process had a GPU, and cuDNN computed by sines."""

    def cudnn(form, q, k, v):
        o = attention.reference(q, k, v, causal=form.right == 0, scale=form.scale)
        return jnp.sin(o)

    monkeypatch.setattr(_vendor, "_capability", lambda: 9.0)
    monkeypatch.setattr(_vendor, "cudnn", cudnn)


def test_the_vendor_computes_for_its_platform_only(with_cudnn):
    half = [x.astype(jnp.bfloat16) for x in (normal(1, 4, 2, 8), normal(1, 4, 1, 8), normal(1, 4, 1, 8))]
    f = lambda *x: jax.value_and_grad(lambda *x: attention.apply(*x, causal=True).sum(), (0, 1, 2))(*x)
    lowered = {
        p: jax.export.export(jax.jit(f), platforms=[p])(*half).mlir_module() for p in ("cpu", "cuda", "tpu")
    }
    assert {p: "sine" in text for p, text in lowered.items()} == {"cpu": False, "cuda": True, "tpu": False}
    o = attention.apply(*half, causal=True)
    np.testing.assert_allclose(o, attention.reference(*half, causal=True), atol=0.02)
    for got, want in zip(
        jax.jit(f)(*half)[1],
        jax.grad(lambda *x: attention.reference(*x, causal=True).sum(), (0, 1, 2))(*half),
        strict=True,
    ):
        np.testing.assert_allclose(got.astype(float), want.astype(float), atol=0.05)


@pytest.mark.parametrize(
    ("options", "applies"),
    [
        ({}, True),
        ({"causal": True}, True),
        ({"causal": True, "window": 3}, True),
        ({"scale": 0.3}, True),
        ({"window": (2, 1)}, False),
        ({"window": (2, 0)}, True),
        ({"softcap": 2.0}, False),
        ({"mask": jnp.ones((4, 4), bool)}, False),
        ({"segment_ids": jnp.zeros((1, 4), int)}, False),
        ({"q_offset": jnp.asarray(0)}, False),
        ({"q_offset": -1}, False),
        ({"dropout_rate": 0.1, "key": jax.random.key(0)}, False),
        ({"block": (2, 2)}, False),
        ({"bias": jnp.zeros((4, 4))}, False),
        ({"sinks": jnp.zeros(2)}, False),
        ({"dtype": jnp.float32}, False),
        ({"width": 12}, False),
        ({"width": 264}, False),
    ],
)
def test_what_cudnn_is_asked_for(with_cudnn, options, applies):
    options = dict(options)
    x = normal(1, 4, 2, options.pop("width", 8)).astype(options.pop("dtype", jnp.bfloat16))
    text = str(jax.make_jaxpr(lambda x: attention.apply(x, x, x, **options))(x))
    assert ("sin " in text) == applies


ERRORS = [
    (
        lambda: attention.apply(Q[0, :, 0], K[0], V[0]),
        ShapeError,
        "attention.apply: q has rank 2, but at least 3 is needed.\n"
        "  expected  q: float[*n, t, h, e]\n"
        "  got       q: float32[3, 5]\n"
        "  hint      for one head: q[:, None].",
    ),
    (
        lambda: attention.apply(Q, V, V),
        ShapeError,
        "attention.apply: k does not fit q.\n"
        "  expected  k: float[2, s, h_kv, 5]     (q: float32[2, 3, 4, 5])\n"
        "  got       k: float32[2, 7, 2, 6]",
    ),
    (
        lambda: attention.apply(Q, K, V[:, 1:]),
        ShapeError,
        "attention.apply: v does not fit k.\n"
        "  expected  v: float[2, 7, 2, e_v]     (k: float32[2, 7, 2, 5])\n"
        "  got       v: float32[2, 6, 2, 6]",
    ),
    (
        lambda: attention.apply(Q[:, :, :3], K, V),
        ShapeError,
        "attention.apply: q has 3 heads, of which 2 key heads cannot take equal shares.\n"
        "  expected  k: float[*n, s, h_kv, e], h_kv a divisor of 3     (q: float32[2, 3, 3, 5])\n"
        "  got       k: float32[2, 7, 2, 5]",
    ),
    (
        lambda: attention.apply(*(x.swapaxes(1, 2) for x in (Q, K, V))),
        ShapeError,
        "attention.apply: q has 3 heads, of which 7 key heads cannot take equal shares.\n"
        "  expected  k: float[*n, s, h_kv, e], h_kv a divisor of 3     (q: float32[2, 4, 3, 5])\n"
        "  got       k: float32[2, 2, 7, 5]\n"
        "  hint      do the heads come before time? jnp.swapaxes(x, -3, -2) of each puts them after.",
    ),
    (
        lambda: attention.apply(Q, K, V, mask=jnp.ones((3, 7), jnp.float32)),
        DTypeError,
        "attention.apply: mask is not boolean.\n"
        "  expected  mask: bool[...], True = attend\n"
        "  got       mask: float32[3, 7]\n"
        "  hint      mask != 0 for a mask of ones and zeros, mask == 0 for one that is added to the logits.",
    ),
    (
        lambda: attention.apply(Q, K, V, mask=jnp.ones((2, 7), bool)),
        ShapeError,
        "attention.apply: mask does not broadcast to [*n, h, t, s].\n"
        "  expected  mask: bool, broadcastable to [2, 4, 3, 7]     (q: float32[2, 3, 4, 5])\n"
        "  got       mask: bool[2, 7]\n"
        "  hint      a mask of the keys: mask[..., None, None, :].",
    ),
    (
        lambda: attention.apply(Q, K, V, mask=jnp.ones((2, 3, 7), bool)),
        ShapeError,
        "attention.apply: mask does not broadcast to [*n, h, t, s].\n"
        "  expected  mask: bool, broadcastable to [2, 4, 3, 7]     (q: float32[2, 3, 4, 5])\n"
        "  got       mask: bool[2, 3, 7]\n"
        "  hint      the same for every head: mask[..., None, :, :].",
    ),
    (
        lambda: attention.apply(Q, K, V, scale=jnp.ones(())),
        DTypeError,
        "attention.apply: scale is not a number.\n"
        "  expected  scale: a float, or None for 1/√e\n"
        "  got       scale: float64[]\n"
        "  hint      multiply q by it: then it has a gradient too.",
    ),
    (
        lambda: attention.apply(Q, K, V, jnp.ones((2, 3, 7), jnp.float32)),
        ShapeError,
        "attention.apply: bias does not broadcast to [*n, h, t, s].\n"
        "  expected  bias: float, broadcastable to [2, 4, 3, 7]     (q: float32[2, 3, 4, 5])\n"
        "  got       bias: float32[2, 3, 7]\n"
        "  hint      the same for every head: bias[..., None, :, :].",
    ),
    (
        lambda: attention.apply(Q, K, V, None, jnp.ones(2, jnp.float32)),
        ShapeError,
        "attention.apply: sinks do not hold one logit per head.\n"
        "  expected  sinks: float[4]     (q: float32[2, 3, 4, 5])\n"
        "  got       sinks: float32[2]",
    ),
    (
        lambda: attention.apply(Q, K, V, segment_ids=jnp.zeros((2, 3), jnp.int32)),
        ShapeError,
        "attention.apply: segment_ids does not fit k.\n"
        "  expected  segment_ids: int[2, 7]     (k: float32[2, 7, 2, 5])\n"
        "  got       segment_ids: int32[2, 3]\n"
        "  hint      q and k differ in length: a pair (of the queries, of the keys).",
    ),
    (
        lambda: attention.apply(Q, K, V, segment_ids=jnp.zeros((2, 3), jnp.float32)),
        DTypeError,
        "attention.apply: segment_ids is not an array of integers.\n"
        "  expected  segment_ids: int[2, 3]     (q: float32[2, 3, 4, 5])\n"
        "  got       segment_ids: float32[2, 3]",
    ),
    (
        lambda: attention.apply(Q, K, V, window=3),
        ValueRangeError,
        "attention.apply: window is one number, but the queries see keys on both sides.\n"
        "  expected  window: (left, right), or causal=True\n"
        "  got       window = 3, causal = False\n"
        "  hint      (2, 2) reaches as far to the right as to the left.",
    ),
    (
        lambda: attention.apply(Q, K, V, causal=True, window=0),
        ValueRangeError,
        "attention.apply: window is 0, but at least 1 is needed.\n"
        "  expected  window ≥ 1\n"
        "  got       window = 0",
    ),
    (
        lambda: attention.apply(Q, K, V, causal=True, q_offset=5),
        ValueRangeError,
        "attention.apply: q_offset puts the last query at position 7, but there are 7 keys.\n"
        "  expected  q_offset ≤ 7 − 3     (q: float32[2, 3, 4, 5], k: float32[2, 7, 2, 5])\n"
        "  got       q_offset = 5",
    ),
    (
        lambda: attention.apply(Q, K, V, causal=True, q_offset=jnp.asarray([0, 7])),
        ValueRangeError,
        "attention.apply: q_offset puts the last query at position 9, but there are 7 keys.\n"
        "  expected  q_offset ≤ 7 − 3     (q: float32[2, 3, 4, 5], k: float32[2, 7, 2, 5])\n"
        "  got       q_offset: up to 7\n"
        "  hint      the keys of the queries themselves come first: write them into the cache, then attend.",
    ),
    (
        lambda: attention.apply(Q, K, V, q_offset=jnp.zeros(3, jnp.int32)),
        ShapeError,
        "attention.apply: q_offset does not broadcast to the batch.\n"
        "  expected  q_offset: int, broadcastable to [2]     (q: float32[2, 3, 4, 5])\n"
        "  got       q_offset: int32[3]",
    ),
    (
        lambda: attention.apply(Q, K, V, q_offset=0.5),
        DTypeError,
        "attention.apply: q_offset is not an integer.\n"
        "  expected  q_offset: int\n"
        "  got       q_offset: 0.5 (float)",
    ),
    (
        lambda: attention.apply(Q, K, V, softcap=0.0),
        ValueRangeError,
        "attention.apply: softcap is 0.0, but a positive number is needed.\n"
        "  expected  softcap > 0, or None for no bound\n"
        "  got       softcap = 0.0",
    ),
    (
        lambda: attention.apply(Q, K, V, dropout_rate=1.5, key=jax.random.key(0)),
        ValueRangeError,
        "attention.apply: dropout_rate is 1.5, outside [0, 1).\n"
        "  expected  0 ≤ dropout_rate < 1\n"
        "  got       dropout_rate = 1.5\n"
        "  hint      dropout_rate is a fraction, not per cent: 0.015.",
    ),
    (
        lambda: attention.apply(Q.astype(jnp.int32), K, V),
        DTypeError,
        "attention.apply: q has dtype int32, but a float is needed.\n"
        "  expected  q: float[...]\n"
        "  got       q: int32[2, 3, 4, 5]\n"
        "  hint      cast it: q.astype(jnp.float32).",
    ),
]

test_errors = golden(ERRORS)
