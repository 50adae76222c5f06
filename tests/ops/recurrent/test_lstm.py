import functools
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import funcnet as fn
from funcnet.errors import DTypeError, ShapeError, StructureError, ValueRangeError
from funcnet.hub import recurrent
from funcnet.ops.recurrent import lstm
from tests import cases, laws
from tests.budget import few
from tests.errors import golden
from tests.ops.recurrent.drawn import LENGTHS, MASK, STATE, X, cell, packed, same

PARAMS: Any = cell(4, "b")
run = jax.jit(lstm.apply, static_argnames=("reverse", "chunk"))


def test_init():
    params = jax.jit(lstm.init, static_argnums=(1, 2))(jax.random.key(0), 400, 50)
    assert abs(float(params["w"].std()) * 20 - 1) < 0.02
    for u in jnp.split(params["u"], 4, 1):
        np.testing.assert_allclose(u @ u.T, np.eye(50), atol=1e-5)
    np.testing.assert_array_equal(params["b"], np.repeat([0, 1, 0, 0], 50))
    assert set(jax.eval_shape(lambda key: lstm.init(key, 2, 3, bias=False), jax.random.key(0))) == {"w", "u"}


def test_a_projection():
    """r changes what is shown; init makes rows of u orthonormal, and r of its own."""
    params = jax.jit(lambda key: lstm.init(key, 3, 50, projection=20))(jax.random.key(0))
    assert {name: v.shape for name, v in params.items()} == {
        "w": (3, 200), "u": (20, 200), "b": (200,), "r": (50, 20),
    }  # fmt: skip
    for u in jnp.split(params["u"], 4, 1):
        np.testing.assert_allclose(u @ u.T, np.eye(20), atol=1e-5)
    assert abs(float(params["r"].std()) * 50**0.5 - 1) < 0.1
    same(run({**PARAMS, "r": np.eye(5, dtype=np.float32)}, X), run(PARAMS, X))


# ---- chunks -----------------------------------------------------------------------------------------------

CHUNKED = cases.case(
    "lstm",
    cases.cell(4, 2, 3, "b"),
    cases.F(5, 7, 2),
    cases.carried(3, 5),
    mask=cases.B(5, 7),
    reverse=True,
)
FEW = (laws.formula, laws.forward_mode)  # the others are slow


@pytest.mark.parametrize(
    "law",
    few(laws.LAWS, FEW),
    ids=lambda law: law.__name__,
)
def test_laws_in_chunks(law):
    """Chunks of 3 steps of 7: two in the loop and one step before it; the gates are computed again."""
    args, options = CHUNKED.draw()
    apply, vjp = (functools.partial(f, chunk=3) for f in (lstm.apply, lstm.vjp))
    law(
        CHUNKED,
        types.SimpleNamespace(reference=lstm.reference, apply=apply, vjp=vjp, cost=lstm.cost),
        args,
        options,
    )


def test_the_memory_of_a_long_sequence_is_that_of_a_chunk():
    """Beside what comes in and goes out, and h and c of every step: of 4096 steps no gates are kept."""
    b, t, d, m = 1, 4096, 8, 64
    shapes = jax.eval_shape(lambda key: lstm.init(key, d, m), jax.random.key(0)), jnp.ones((b, t, d))
    params, x = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, jnp.float32), shapes)

    def temporary(chunk):
        grad = jax.grad(lambda p, x: lstm.apply(p, x, chunk=chunk)[0].sum(), (0, 1))
        return jax.jit(grad).lower(params, x).compile().memory_analysis().temp_size_in_bytes

    state = 4 * b * t * m
    assert temporary(None) > 7 * state  # kept: they are small
    assert temporary(64) < 4 * state
    assert temporary(4096) > 12 * state


# ---- the state and the mask -------------------------------------------------------------------------------


def test_pieces_and_single_steps_equal_the_whole():
    y, state = run(PARAMS, X, STATE)
    first, between = run(PARAMS, X[:, :3], STATE)
    rest, last = run(PARAMS, X[:, 3:], between)
    same((jnp.concatenate([first, rest], 1), last), (y, state))
    single, s = jax.jit(lstm.step), STATE
    for t in range(7):
        out, s = single(PARAMS, X[:, t], s)
        same(out, y[:, t])
    same(s, state)
    same(lstm.step(PARAMS, X[0, 0])[0], lstm.apply(PARAMS, X[0, :1])[0][0])


def test_no_steps_leave_the_state():
    y, state = run(PARAMS, X[:, :0], STATE)
    assert y.shape == (2, 0, 5)
    same(state, STATE)
    loss = lambda p, x, s: jnp.sum(lstm.apply(p, x, s)[1]["c"])
    grads = jax.jit(jax.grad(loss, (0, 1, 2)))(PARAMS, X[:, :0], STATE)
    assert float(grads[2]["c"].sum()) == 10
    assert not any(jnp.any(v) for v in jax.tree.leaves(grads[0]))


@pytest.mark.parametrize("reverse", [False, True])
def test_with_a_mask_each_sequence_is_as_if_it_were_alone(reverse):
    """Value, state and gradients; what stands in the padding is of no consequence, NaN or not."""
    x = np.where(MASK[..., None], X, np.nan)
    dy = np.where(MASK[..., None], np.cos(np.arange(70, dtype=np.float32)).reshape(2, 7, 5), np.nan)

    def both(x, dy, state, mask):
        f = lambda p, x, s: lstm.apply(p, x, s, mask=mask, reverse=reverse)
        (y, last), pull = jax.vjp(f, PARAMS, x, state)
        return (y, last), pull((dy, state))

    both = jax.jit(both)
    (y, last), (dparams, dx, dstate) = both(x, dy, STATE, MASK)
    total = jax.tree.map(np.zeros_like, dparams)
    assert not np.any(y[~MASK])
    assert not np.any(dx[~MASK])
    for n, t in enumerate(LENGTHS):
        at = lambda tree, n=n: jax.tree.map(lambda v: np.asarray(v)[n], tree)
        (y_, last_), (dparams_, dx_, dstate_) = both(at(X)[:t], at(dy)[:t], at(STATE), None)
        same((at(y)[:t], at(last), at(dx)[:t], at(dstate)), (y_, last_, dx_, dstate_))
        total = jax.tree.map(np.add, total, dparams_)
    same(dparams, total, 1e-4)


def test_each_flag_changes_something():
    y, _ = run(PARAMS, X)
    for options in ({"reverse": True}, {"mask": MASK}):
        assert not jnp.allclose(run(PARAMS, X, **options)[0], y)
    assert not jnp.allclose(run(PARAMS, X, STATE)[0], y)
    same(run(PARAMS, X[:, ::-1], reverse=True)[0], y[:, ::-1])
    same(run(PARAMS, X, chunk=2)[0], y)


def test_an_encoder_hands_its_state_to_a_decoder():
    """By way of the state alone, the gradient of a decoder's outputs reaches the encoder's input."""

    def decoded(x):
        return lstm.apply(PARAMS, jnp.zeros_like(x), lstm.apply(PARAMS, x)[1])[0].sum()

    assert float(jnp.abs(jax.jit(jax.grad(decoded))(X)).min()) > 0


def test_the_cell_stays_wide_beside_bfloat16():
    narrow = lambda tree: jax.tree.map(lambda v: v.astype(jnp.bfloat16), tree)
    y, state = run(narrow(PARAMS), narrow(X))
    assert (y.dtype, state["h"].dtype, state["c"].dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    np.testing.assert_array_equal(y[:, -1], state["h"])


def test_residuals_are_the_arguments_and_two_states_a_step():
    pullback = jax.eval_shape(lambda: lstm.vjp(PARAMS, X, chunk=7)[1])
    assert sum(v.size for v in jax.tree.leaves(pullback)) == 180 + X.size + 2 * 2 * 7 * 5


# ---- against torch ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("reverse", [False, True])
def test_packed_sequences_of_torch(reverse):
    theirs, y, last = packed("LSTM", reverse)
    got, end = run(recurrent.from_arrays("lstm", "torch", theirs), X, STATE, mask=MASK, reverse=reverse)
    same((got, end), (y, last))


# ---- a rule that is wrong ---------------------------------------------------------------------------------


def wrong_dc(gates, s, ds, p):
    """The cotangent of c is not carried."""
    ds, dz = lstm._back(gates, s, ds, p)
    return {**ds, "c": jnp.zeros_like(ds["c"])}, dz


@pytest.mark.parametrize("back", [pytest.param(lstm._back, marks=pytest.mark.slow), wrong_dc])
def test_wrong_formulas_are_rejected(back):
    wrong = lstm._CELL._replace(back=back)

    def pull(p, x, s, dy):
        return lstm._scan.vjp(wrong, p, x, s, None, reverse=False, chunk=None)[1](dy)

    report = fn.verify(lstm.reference, Partial(pull), (PARAMS, X, STATE), budget=0.1)
    assert report.ok == (back is lstm._back)


# ---- errors -----------------------------------------------------------------------------------------------

ERRORS = [
    (
        lambda: lstm.apply({"w": PARAMS["w"]}, X),
        StructureError,
        'lstm.apply: params has no "u".\n  expected  the key "u"\n  got       keys: "w"',
    ),
    (
        lambda: lstm.apply({**PARAMS, "u": PARAMS["u"].T}, X),
        ShapeError,
        'lstm.apply: params["u"] does not hold 4 square gates side by side.\n'
        '  expected  params["u"]: float[m, 4 m]\n'
        '  got       params["u"]: float32[20, 5]\n'
        '  hint      its transpose fits: params["u"].T.',
    ),
    (
        lambda: lstm.apply({**PARAMS, "w": PARAMS["w"].T}, X),
        ShapeError,
        'lstm.apply: params["w"] does not have the columns of params["u"].\n'
        '  expected  params["w"]: float[d, 20]     (u: float32[5, 20])\n'
        '  got       params["w"]: float32[20, 3]\n'
        '  hint      its transpose fits: params["w"].T.',
    ),
    (
        lambda: lstm.apply({**PARAMS, "r": jnp.ones((4, 5), jnp.float32)}, X),
        ShapeError,
        'lstm.apply: params["r"] does not map the state to the rows of params["u"].\n'
        '  expected  params["r"]: float[5, 5]     (u: float32[5, 20])\n'
        '  got       params["r"]: float32[4, 5]',
    ),
    (
        lambda: lstm.apply({**PARAMS, "b": jnp.ones(40, jnp.float32)}, X),
        ShapeError,
        'lstm.apply: params["b"] has 40 features in its last axis, '
        'but params["w"] (float32[3, 20]) takes 20.\n'
        '  expected  params["b"]: float[20]\n'
        '  got       params["b"]: float32[40]',
    ),
    (
        lambda: lstm.apply(PARAMS, X.transpose(0, 2, 1)),
        ShapeError,
        'lstm.apply: x has 7 features in its last axis, but params["w"] (float32[3, 20]) takes 3.\n'
        "  expected  x: float[*n, t, 3]\n"
        "  got       x: float32[2, 3, 7]\n"
        "  hint      its last two axes, swapped, fit: x.mT.",
    ),
    (
        lambda: lstm.apply(PARAMS, X[0, 0]),
        ShapeError,
        "lstm.apply: x has rank 1, but at least 2 is needed.\n"
        "  expected  x: float[*n, t, 3]\n"
        "  got       x: float32[3]\n"
        "  hint      is an axis missing? x[None] adds a batch, x[..., None] a channel axis.",
    ),
    (
        lambda: lstm.apply(PARAMS, X, MASK),
        StructureError,
        'lstm.apply: state has no "h".\n'
        '  expected  state: a dict with "h" and "c", float[2, 5] each, or None\n'
        "  got       state: bool[2, 7]\n"
        "  hint      a mask goes by its name: mask=...",
    ),
    (
        lambda: lstm.apply(PARAMS, X, {"h": STATE["h"]}),
        StructureError,
        'lstm.apply: state has no "c".\n'
        '  expected  state: a dict with "h" and "c", float[2, 5] each, or None\n'
        '  got       keys: "h"',
    ),
    (
        lambda: lstm.apply(PARAMS, X, {**STATE, "c": STATE["c"][:1]}),
        ShapeError,
        'lstm.apply: state["c"] is not one row of 5 for each sequence of x.\n'
        '  expected  state["c"]: float[2, 5]     (x: float32[2, 7, 3], u: float32[5, 20])\n'
        '  got       state["c"]: float32[1, 5]',
    ),
    (
        lambda: lstm.apply(PARAMS, X, mask=MASK.astype(jnp.float32)),
        DTypeError,
        "lstm.apply: mask is not a boolean array.\n"
        "  expected  mask: bool[2, 7]     (x: float32[2, 7, 3])\n"
        "  got       mask: float32[2, 7]\n"
        "  hint      compare it: mask != 0.",
    ),
    (
        lambda: lstm.apply(PARAMS, X, mask=jnp.asarray(LENGTHS, jnp.int32)),
        DTypeError,
        "lstm.apply: mask is not a boolean array.\n"
        "  expected  mask: bool[2, 7]     (x: float32[2, 7, 3])\n"
        "  got       mask: int32[2]\n"
        "  hint      of lengths: jnp.arange(t) < lengths[..., None].",
    ),
    (
        lambda: lstm.apply(PARAMS, X, mask=MASK[0]),
        ShapeError,
        "lstm.apply: mask does not say of every step of x whether it is one.\n"
        "  expected  mask: bool[2, 7]     (x: float32[2, 7, 3])\n"
        "  got       mask: bool[7]",
    ),
    (
        lambda: lstm.apply(PARAMS, X, chunk=0),
        ValueRangeError,
        "lstm.apply: chunk is 0, but at least 1 is needed.\n  expected  chunk ≥ 1\n  got       chunk = 0",
    ),
    (
        lambda: lstm.step(PARAMS, jnp.ones((), jnp.float32)),
        ShapeError,
        "lstm.step: x has rank 0, but at least 1 is needed.\n"
        "  expected  x: float[*n, d]\n"
        "  got       x: float32[]\n"
        "  hint      is an axis missing? x[None] adds a batch, x[..., None] a channel axis.",
    ),
    (
        lambda: lstm.init(jax.random.key(0), 3, 0),
        ValueRangeError,
        "lstm.init: hidden is 0, but at least 1 is needed.\n  expected  hidden ≥ 1\n  got       hidden = 0",
    ),
    (
        lambda: lstm.squares(PARAMS, X[0], None, (X[0], STATE)),
        ShapeError,
        "lstm.squares: x is a single example, without an axis of examples.\n"
        "  expected  x: [n, ...], with at least 3 axes\n"
        "  got       x: float32[7, 3]\n"
        "  hint      x[None] is a batch of one.",
    ),
]
test_errors = golden(ERRORS)
