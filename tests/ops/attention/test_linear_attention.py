from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnet.errors import DTypeError, ShapeError, ValueRangeError
from funcnet.ops.attention import linear_attention
from tests.errors import golden

RNG = np.random.default_rng(0)


def normal(*shape: int) -> Any:
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


Q, K, V, STATE = normal(2, 7, 3, 4), normal(2, 7, 3, 4), normal(2, 7, 3, 5), normal(2, 3, 4, 5)
DECAY = -abs(normal(2, 7, 3))
run = jax.jit(linear_attention.apply, static_argnames="chunk")


def same(got, want, tolerance=1e-5):
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, tolerance, tolerance), got, want)


def test_chunks_pieces_and_single_steps_are_one_function():
    whole = run(Q, K, V, DECAY, STATE)
    for chunk in (1, 3, 7):
        same(run(Q, K, V, DECAY, STATE, chunk=chunk), whole)
    a, between = run(Q[:, :3], K[:, :3], V[:, :3], DECAY[:, :3], STATE)
    b, last = run(Q[:, 3:], K[:, 3:], V[:, 3:], DECAY[:, 3:], between)
    same((jnp.concatenate([a, b], 1), last), whole)
    single, s = jax.jit(linear_attention.step), STATE
    for t in range(7):
        o, s = single(Q[:, t], K[:, t], V[:, t], DECAY[:, t], s)
        same(o, whole[0][:, t])


def test_without_decay_it_is_attention_without_a_softmax():
    seen = np.tril(np.ones((7, 7)))
    weights = np.einsum("nthe,nshe->nhts", Q, K) * seen
    same(run(Q, K, V)[0], np.einsum("nhts,nshe->nthe", weights, V), 1e-4)
    same(run(Q, K, V, jnp.zeros_like(DECAY)), run(Q, K, V))
    assert not np.allclose(run(Q, K, V, DECAY)[0], run(Q, K, V)[0])
    assert not np.allclose(run(Q, K, V, DECAY, STATE)[0], run(Q, K, V, DECAY)[0])


def test_a_column_of_ones_is_the_normaliser():
    """Of equal keys and positive queries, every output is the mean of the values so far."""
    q, k = jnp.abs(Q), jnp.ones_like(K)
    o, _ = run(q, k, jnp.concatenate([V, jnp.ones_like(V[..., :1])], -1))
    mean = np.cumsum(V, 1) / np.arange(1, 8, dtype=np.float32)[:, None, None]
    same(o[..., :-1] / o[..., -1:], mean)


def test_a_step_that_forgets_all():
    """Of d = −∞ nothing is left: value and gradients are those of the steps from there on, and finite."""
    decay = DECAY.at[:, 4].set(-jnp.inf)
    loss = lambda q, k, v, d, s: (linear_attention.apply(q, k, v, d, s)[0][:, 4:] ** 2).sum()
    value = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3, 4)))
    got, grads = value(Q, K, V, decay, STATE)
    np.testing.assert_allclose(got, (run(Q[:, 4:], K[:, 4:], V[:, 4:], DECAY[:, 4:])[0] ** 2).sum(), 1e-5)
    assert all(np.isfinite(g).all() for g in grads)
    assert not np.any(grads[4])
    assert not np.any(grads[1][:, :4])


def test_what_is_kept_and_held():
    """The arguments and a state for each chunk; and no more memory than that, but for a chunk."""
    pullback = jax.eval_shape(lambda: linear_attention.vjp(Q, K, V, DECAY, chunk=2)[1])
    kept = sum(v.size for v in jax.tree.leaves(pullback))
    assert kept == Q.size + K.size + V.size + DECAY.size + 4 * STATE.size
    q = jax.ShapeDtypeStruct((1, 2048, 1, 32), jnp.float32)

    def temporary(f):
        grad = jax.jit(jax.grad(lambda q: f(q, q, q)[0].sum()))
        return grad.lower(q).compile().memory_analysis().temp_size_in_bytes

    states = 4 * 2048 * 32 * 32
    assert temporary(linear_attention.reference) > states > 3 * temporary(linear_attention.apply)


ERRORS = [
    (
        lambda: linear_attention.apply(Q, K[..., :3], V),
        ShapeError,
        "linear_attention.apply: k and q have different shapes.\n"
        "  expected  k: float32[2, 7, 3, 4]     (the shape of q)\n"
        "  got       k: float32[2, 7, 3, 3]",
    ),
    (
        lambda: linear_attention.apply(Q, K, V.swapaxes(1, 2)),
        ShapeError,
        "linear_attention.apply: v does not fit q.\n"
        "  expected  v: float[2, 7, 3, 5]     (q: float32[2, 7, 3, 4])\n"
        "  got       v: float32[2, 3, 7, 5]",
    ),
    (
        lambda: linear_attention.apply(Q, K, V, DECAY[0]),
        ShapeError,
        "linear_attention.apply: decay does not fit q.\n"
        "  expected  decay: float[2, 7, 3]     (q: float32[2, 7, 3, 4])\n"
        "  got       decay: float32[7, 3]",
    ),
    (
        lambda: linear_attention.apply(Q, K, V, None, STATE.mT),
        ShapeError,
        "linear_attention.apply: state does not fit q.\n"
        "  expected  state: float[2, 3, 4, 5]     (q: float32[2, 7, 3, 4])\n"
        "  got       state: float32[2, 3, 5, 4]",
    ),
    (
        lambda: linear_attention.apply(Q, K, V, chunk=0),
        ValueRangeError,
        "linear_attention.apply: chunk is 0, but at least 1 is needed.\n"
        "  expected  chunk ≥ 1\n"
        "  got       chunk = 0",
    ),
    (
        lambda: linear_attention.step(Q[:, 0], K[:, 0], V[:, 0] > 0),
        DTypeError,
        "linear_attention.step: v has dtype bool, but a float is needed.\n"
        "  expected  v: float[...]\n"
        "  got       v: bool[2, 3, 5]\n"
        "  hint      cast it: v.astype(jnp.float32).",
    ),
]
test_errors = golden(ERRORS)
