import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet.errors import DTypeError, ShapeError
from funcnet.ops import attention
from tests.errors import golden


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


Q, K, V = normal(2, 3, 4, 5), normal(2, 7, 2, 5, seed=1), normal(2, 7, 2, 6, seed=2)


def seen(q, k, v, **options):
    """[t, s]: whether the output of query i depends on key j, by the gradient of the output."""
    f = lambda v: attention.apply(q, k, v, **options).sum((0, 2, 3))
    return jnp.any(jax.jacobian(f)(v) != 0, (1, 3, 4))


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


@pytest.mark.parametrize(("t", "s"), [(4, 4), (3, 5), (5, 3)])
def test_causal_sees_no_later_key_and_aligns_the_ends(t, s):
    q, k, v = normal(1, t, 1, 2), normal(1, s, 1, 2, seed=1), normal(1, s, 1, 2, seed=2)
    np.testing.assert_array_equal(seen(q, k, v, causal=True), np.tri(t, s, s - t, dtype=bool))


def test_the_last_query_alone_gives_the_last_row():
    x = normal(6, 2, 3)
    whole = attention.apply(x, x, x, causal=True)
    np.testing.assert_allclose(attention.apply(x[-1:], x, x, causal=True), whole[-1:], rtol=1e-5, atol=1e-6)


def test_mask_hides_keys_and_joins_causal():
    keys = jnp.asarray([True, False, True, True, False, True, True])
    np.testing.assert_array_equal(seen(Q, K, V, mask=keys), [keys] * 3)
    both = np.tri(3, 7, 4, dtype=bool) & np.asarray(keys)
    np.testing.assert_array_equal(seen(Q, K, V, mask=keys, causal=True), both)


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
    o, one_per_row = 2 * 3 * 4 * 6, 2 * 3 * 4
    assert sum(x.size for x in jax.tree.leaves(pullback)) == Q.size + K.size + V.size + o + one_per_row


def test_statistics_are_wide():
    bf16 = [x.astype(jnp.bfloat16) for x in (Q, K, V)]
    o, pullback = attention.vjp(*bf16)
    assert o.dtype == jnp.bfloat16
    assert [g.dtype for g in pullback(o)] == [jnp.bfloat16] * 3
    assert jnp.dtype(jnp.float32) in {x.dtype for x in jax.tree.leaves(pullback)}


@pytest.mark.parametrize(("h", "h_kv"), [(4, 4), (4, 1), (1, 1)])
def test_bfloat16_products_run_at_every_grouping(h, h_kv):
    """XLA:CPU refuses some products of bfloat16 into float32, by the shapes of their operands."""
    q, kv = normal(2, 32, h, 16).astype(jnp.bfloat16), normal(2, 32, h_kv, 16).astype(jnp.bfloat16)
    run = lambda q, kv: jax.vjp(functools.partial(attention.apply, causal=True), q, kv, kv)[1](q)
    for g in (*run(q, kv), *jax.jit(run)(q, kv)):
        assert jnp.all(jnp.isfinite(g))


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
        lambda: attention.apply(Q.astype(jnp.int32), K, V),
        DTypeError,
        "attention.apply: q has dtype int32, but a float is needed.\n"
        "  expected  q: float[...]\n"
        "  got       q: int32[2, 3, 4, 5]\n"
        "  hint      cast it: q.astype(jnp.float32).",
    ),
]

test_errors = golden(ERRORS)
