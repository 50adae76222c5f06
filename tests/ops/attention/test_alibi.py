import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet.errors import DTypeError, ShapeError, ValueRangeError
from funcnet.ops.attention import alibi
from tests.errors import golden

M = jnp.asarray([0.5, 0.25, 0.125], jnp.float32)


def test_slopes_are_those_of_the_paper():
    np.testing.assert_array_equal(alibi.slopes(8), [2.0**-k for k in range(1, 9)])
    np.testing.assert_allclose(alibi.slopes(16), [2 ** (-k / 2) for k in range(1, 17)], rtol=1e-6)
    np.testing.assert_array_equal(alibi.slopes(12)[:8], alibi.slopes(8))
    np.testing.assert_array_equal(alibi.slopes(12)[8:], alibi.slopes(16)[:8:2])
    assert alibi.slopes(1).tolist() == [2**-8]
    assert alibi.slopes(1).dtype == jnp.float32


def test_bias_depends_on_the_distance_only():
    bias = alibi.apply(M, t=5, s=7)
    np.testing.assert_array_equal(bias[:, 1:, 1:], bias[:, :-1, :-1])
    np.testing.assert_array_equal(bias[:, 0], -M[:, None] * jnp.arange(7, dtype=jnp.float32))


def test_q_offset_moves_the_queries():
    whole = alibi.apply(M, t=7, s=7)
    np.testing.assert_array_equal(alibi.apply(M, t=2, s=7, q_offset=5), whole[:, 5:])
    each = jax.jit(lambda q: alibi.apply(M, t=2, s=7, q_offset=q))(jnp.asarray([5, 0]))
    np.testing.assert_array_equal(each, jnp.stack([whole[:, 5:], whole[:, :2]]))


def test_causal_has_the_same_softmax():
    t, s, ahead = 5, 7, 2
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((3, t, s)), jnp.float32)
    seen = jnp.arange(s) <= jnp.arange(t)[:, None] + ahead

    def p(bias):
        return jax.nn.softmax(jnp.where(seen, logits + bias, -jnp.inf))

    short = alibi.apply(M, t=t, s=s, causal=True)
    assert short.shape == (3, 1, s)
    np.testing.assert_allclose(p(short), p(alibi.apply(M, t=t, s=s, q_offset=ahead)), atol=1e-6)


def test_bfloat16_slopes_round_once():
    m = M.astype(jnp.bfloat16)
    exact = alibi.apply(M, t=3, s=1031)  # 1031 is no bfloat16
    np.testing.assert_array_equal(alibi.apply(m, t=3, s=1031), exact.astype(jnp.bfloat16))
    dm = jax.grad(lambda m: alibi.apply(m, t=1, s=1031).astype(jnp.float32).sum())(m)
    assert dm.dtype == jnp.bfloat16
    np.testing.assert_array_equal(dm, jnp.full(3, -1031 * 1030 / 2, jnp.bfloat16))


def test_no_offset_is_taken_for_another():
    far = jax.jit(lambda q: alibi.apply(M, t=2, s=7, q_offset=q))(jnp.asarray(2**32 + 5))
    np.testing.assert_allclose(far, jnp.broadcast_to(-M[:, None, None] * 2**32, far.shape), rtol=1e-6)


def test_the_residual_is_the_offset():
    assert jax.tree.leaves(alibi.vjp(M, t=5, s=7, q_offset=3)[1]) == [3]


@pytest.mark.parametrize("causal", [False, True])
def test_nothing_to_see(causal):
    assert alibi.apply(M, t=0, s=0, causal=causal).size == 0


ERRORS = [
    (
        lambda: alibi.apply(M[0], t=3, s=3),
        ShapeError,
        "alibi.apply: slopes have rank 0, but 1 is needed.\n"
        "  expected  slopes: float[h]\n"
        "  got       slopes: float32[]",
    ),
    (
        lambda: alibi.apply(M, t=3, s=3, q_offset=0.5),
        DTypeError,
        "alibi.apply: q_offset is neither an integer nor an array of them.\n"
        "  expected  q_offset: int, or int[*n]\n"
        "  got       q_offset: 0.5 (float)",
    ),
    (
        lambda: alibi.apply(M, t=-1, s=3),
        ValueRangeError,
        "alibi.apply: t is -1, but at least 0 is needed.\n  expected  t ≥ 0\n  got       t = -1",
    ),
    (
        lambda: alibi.slopes(0),
        ValueRangeError,
        "alibi.slopes: heads is 0, but at least 1 is needed.\n  expected  heads ≥ 1\n  got       heads = 0",
    ),
]

test_errors = golden(ERRORS)
