import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet.errors import DTypeError, ShapeError, StructureError, ValueRangeError
from funcnet.ops.norm import batch_norm
from tests.errors import golden

X = jnp.asarray(np.random.default_rng(0).standard_normal((5, 7, 3)) * 2 + 1, jnp.float32)
ONE = {"w": jnp.ones(3, jnp.float32), "b": jnp.zeros(3, jnp.float32)}
STATE = {"mean": jnp.asarray([0.5, 0, -1], jnp.float32), "var": jnp.asarray([1, 2, 3], jnp.float32)}


def test_init():
    params, state = batch_norm.init(jax.random.key(0), 2)
    assert jax.tree.map(lambda v: v.tolist(), (params, state)) == (
        {"w": [1, 1], "b": [0, 0]},
        {"mean": [0, 0], "var": [1, 1]},
    )
    assert set(batch_norm.init(jax.random.key(0), 2, bias=False)[0]) == {"w"}


def test_training_gives_each_channel_mean_zero_and_variance_one():
    y, _ = batch_norm.apply(ONE, STATE, X, train=True, eps=0.0)
    np.testing.assert_allclose(y.mean((0, 1)), 0, atol=1e-6)
    np.testing.assert_allclose(y.var((0, 1)), 1, atol=1e-5)


def test_the_state_moves_towards_the_mean_and_the_unbiased_variance():
    _, state = batch_norm.apply(ONE, STATE, X, train=True, momentum=0.75)
    rows, old = np.asarray(X).reshape(-1, 3), jax.tree.map(np.asarray, STATE)
    np.testing.assert_allclose(state["mean"], 0.75 * old["mean"] + 0.25 * rows.mean(0), rtol=1e-5)
    np.testing.assert_allclose(state["var"], 0.75 * old["var"] + 0.25 * rows.var(0, ddof=1), rtol=1e-5)


def test_evaluation_uses_the_state_and_keeps_it():
    y, state = batch_norm.apply(ONE, STATE, X, train=False, eps=0.0)
    np.testing.assert_allclose(y, (X - STATE["mean"]) / jnp.sqrt(STATE["var"]), rtol=1e-5)
    assert jax.tree.map(lambda v: v.tolist(), state) == jax.tree.map(lambda v: v.tolist(), STATE)
    one, _ = batch_norm.apply(ONE, STATE, X[0, 0], train=False, eps=0.0)  # examples do not see each other
    np.testing.assert_allclose(one, y[0, 0], rtol=1e-6)


def test_train_eps_and_momentum_change_something():
    y, state = batch_norm.apply(ONE, STATE, X, train=True)
    assert not jnp.allclose(batch_norm.apply(ONE, STATE, X, train=False)[0], y)
    assert not jnp.allclose(batch_norm.apply(ONE, STATE, X, train=True, eps=0.1)[0], y)
    assert not jnp.allclose(batch_norm.apply(ONE, STATE, X, train=True, momentum=0.5)[1]["var"], state["var"])


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("rule", ["hand", "jax"])
def test_the_state_has_no_gradient(train, rule):
    import funcnet as fn

    def loss(state, x):
        y, new = batch_norm.apply(ONE, state, x, train=train)
        return jnp.sum(jnp.sin(y)) + 1e3 * (new["mean"].sum() + new["var"].sum())

    with fn.autodiff(rule):
        dstate, dx = jax.grad(loss, (0, 1))(STATE, X)
    assert not any(jnp.any(v) for v in jax.tree.leaves(dstate))
    assert jnp.abs(dx).max() < 10


def test_the_state_stays_wide_beside_bfloat16():
    narrow = lambda tree: jax.tree.map(lambda v: v.astype(jnp.bfloat16), tree)
    y, state = batch_norm.apply(narrow(ONE), STATE, narrow(X), train=True)
    assert y.dtype == jnp.bfloat16
    assert {v.dtype.name for v in state.values()} == {"float32"}
    exact, _ = batch_norm.apply(ONE, STATE, narrow(X).astype(jnp.float32), train=True)
    np.testing.assert_array_equal(y, exact.astype(jnp.bfloat16))


def test_an_empty_batch_leaves_the_state():
    y, state = batch_norm.apply(ONE, STATE, X[:0], train=True)
    assert y.shape == (0, 7, 3)
    assert jax.tree.map(lambda v: v.tolist(), state) == jax.tree.map(lambda v: v.tolist(), STATE)


MASK = jnp.asarray(np.random.default_rng(1).random((5, 7)) < 0.6)


@pytest.mark.parametrize("train", [True, False])
def test_with_a_mask_it_is_as_if_the_others_were_not_there(train):
    """Value, state and gradients; what stands in their place is of no consequence, NaN or not."""

    def run(x, mask=None):
        f = lambda p, x: batch_norm.apply(p, STATE, x, train=train, mask=mask)
        (y, state), pull = jax.vjp(f, ONE, x)
        return y, state, pull((jnp.cos(x), jax.tree.map(jnp.zeros_like, state)))

    y, state, (dparams, dx) = run(jnp.where(MASK[..., None], X, jnp.nan), MASK)
    want_y, want_state, (want_dparams, want_dx) = run(X[MASK])
    assert not jnp.any(y[~MASK])
    assert not jnp.any(dx[~MASK])
    got, want = (y[MASK], state, dparams, dx[MASK]), (want_y, want_state, want_dparams, want_dx)
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, atol=1e-5), got, want)


@pytest.mark.parametrize("count", [0, 1])
def test_a_mask_of_no_element_or_one_leaves_the_state(count):
    mask = jnp.zeros((5, 7), bool).at[2, :count].set(True)
    y, state = batch_norm.apply({**ONE, "b": STATE["mean"]}, STATE, X, train=True, mask=mask)
    np.testing.assert_array_equal(y, jnp.where(mask[..., None], STATE["mean"], 0))
    assert jax.tree.map(lambda v: v.tolist(), state) == jax.tree.map(lambda v: v.tolist(), STATE)
    grads = jax.grad(lambda p, x: batch_norm.apply(p, STATE, x, train=True, mask=mask)[0].sum(), (0, 1))
    dparams, dx = grads(ONE, X)
    assert dparams["w"].tolist() == [0] * 3
    assert dparams["b"].tolist() == [count] * 3
    assert not jnp.any(dx)


def test_residuals_are_params_x_and_two_numbers_a_channel():
    pullback = batch_norm.vjp(ONE, STATE, X, train=True)[1]
    assert sum(v.size for v in jax.tree.leaves(pullback)) == 6 + X.size + 2 * 3


ERRORS = [
    (
        lambda: batch_norm.apply(ONE, STATE, X, train=True, mask=jnp.ones((5, 7), jnp.float32)),
        DTypeError,
        "batch_norm.apply: mask is not a boolean array.\n"
        "  expected  mask: bool[5, 7]     (x: float32[5, 7, 3])\n"
        "  got       mask: float32[5, 7]\n"
        "  hint      compare it: mask != 0.",
    ),
    (
        lambda: batch_norm.apply(ONE, STATE, X, train=True, mask=jnp.ones(5, bool)),
        ShapeError,
        "batch_norm.apply: mask does not say of every element of x whether it is one.\n"
        "  expected  mask: bool[5, 7]     (x: float32[5, 7, 3])\n"
        "  got       mask: bool[5]\n"
        "  hint      of whole examples: jnp.broadcast_to(mask.reshape(-1, 1), x.shape[:-1]).",
    ),
    (
        lambda: batch_norm.apply(ONE, STATE, X, train=True, eps=-1e-5),
        ValueRangeError,
        "batch_norm.apply: eps is -1e-05, outside its range.\n"
        "  expected  0 ≤ eps < ∞\n"
        "  got       eps = -1e-05",
    ),
    (
        lambda: batch_norm.apply(ONE, STATE, X.transpose(0, 2, 1), train=True),
        ShapeError,
        'batch_norm.apply: x has 7 channels in its last axis, but params["w"] (float32[3]) takes 3.\n'
        "  expected  x: float[*n, 3]\n"
        "  got       x: float32[5, 3, 7]\n"
        "  hint      axis 1 has 3: channels first? jnp.moveaxis(x, 1, -1) puts them last.",
    ),
    (
        lambda: batch_norm.apply(ONE, STATE, X[:1, 0], train=True),
        ValueRangeError,
        "batch_norm.apply: x has one element per channel, which has no variance to train with.\n"
        "  expected  x: float[*n, 3], Π *n ≥ 2     (the unbiased variance divides by Π *n − 1)\n"
        "  got       x: float32[1, 3]",
    ),
    (
        lambda: batch_norm.apply(ONE, STATE, X, train=True, momentum=-0.5),
        ValueRangeError,
        "batch_norm.apply: momentum is -0.5, outside [0, 1).\n"
        "  expected  0 ≤ momentum < 1\n"
        "  got       momentum = -0.5",
    ),
    (
        lambda: jax.jit(lambda train: batch_norm.apply(ONE, STATE, X, train=train))(True),
        DTypeError,
        "batch_norm.apply: train is traced, but its value is needed for tracing.\n"
        "  expected  train: a Python value\n"
        "  got       train: bool[]\n"
        '  hint      make it static where it enters jax.jit: static_argnames="train".',
    ),
    (
        lambda: batch_norm.apply(ONE, {"mean": STATE["mean"]}, X, train=True),
        StructureError,
        'batch_norm.apply: state has no "var".\n'
        '  expected  state: a dict with the keys "mean" and "var"\n'
        '  got       keys: "mean"',
    ),
    (
        lambda: batch_norm.apply(ONE, X, STATE, train=True),
        StructureError,
        'batch_norm.apply: state has no "mean".\n'
        '  expected  state: a dict with the keys "mean" and "var"\n'
        "  got       state: float32[5, 7, 3]\n"
        "  hint      params and state come first: apply(params, state, x, train=...).",
    ),
    (
        lambda: batch_norm.apply(ONE, {**STATE, "var": jnp.ones(4, jnp.float32)}, X, train=True),
        ShapeError,
        'batch_norm.apply: state["var"] and params["w"] have different shapes.\n'
        '  expected  state["var"]: float32[3]     (w: float32[3])\n'
        '  got       state["var"]: float32[4]',
    ),
    (
        lambda: batch_norm.apply(ONE, {**STATE, "mean": jnp.ones(3, jnp.bfloat16)}, X, train=True),
        DTypeError,
        'batch_norm.apply: state["mean"] is bfloat16, too narrow to average in.\n'
        '  expected  state["mean"]: float32[3] or wider\n'
        '  got       state["mean"]: bfloat16[3]\n'
        "  hint      cast params and x only; the state stays as batch_norm.init made it.",
    ),
    (
        lambda: batch_norm.apply(ONE, STATE, X.astype(jnp.int32), train=True),
        DTypeError,
        "batch_norm.apply: x has dtype int32, but a float is needed.\n"
        "  expected  x: float[...]\n"
        "  got       x: int32[5, 7, 3]\n"
        "  hint      cast it: x.astype(jnp.float32).",
    ),
]

test_errors = golden(ERRORS)
