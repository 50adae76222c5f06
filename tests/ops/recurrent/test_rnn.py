from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet.errors import DTypeError, ShapeError, StructureError, ValueRangeError
from funcnet.hub import recurrent
from funcnet.ops.recurrent import rnn
from tests.errors import golden
from tests.ops.recurrent import drawn
from tests.ops.recurrent.drawn import MASK, X, cell, packed, same

PARAMS: Any = cell(1, "b")
STATE: Any = {"h": drawn.STATE["h"]}
run = jax.jit(rnn.apply, static_argnames=("reverse", "chunk", "activation"))


def test_init():
    params = jax.jit(rnn.init, static_argnums=(1, 2))(jax.random.key(0), 400, 50)
    assert abs(float(params["w"].std()) * 20 - 1) < 0.02
    np.testing.assert_allclose(params["u"] @ params["u"].T, np.eye(50), atol=1e-5)
    assert not jnp.any(params["b"])
    assert set(jax.eval_shape(lambda key: rnn.init(key, 2, 3, bias=False), jax.random.key(0))) == {"w", "u"}


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_chunks_and_single_steps_change_nothing_but_the_program(activation):
    """Value and gradient in chunks of 3 steps of 7, which are computed again; and step by step."""
    f = lambda p, x, chunk: rnn.apply(p, x, activation=activation, chunk=chunk)[0]
    grad = jax.jit(jax.grad(lambda p, x, chunk: jnp.sin(f(p, x, chunk)).sum(), (0, 1)), static_argnums=2)
    same(grad(PARAMS, X, 3), grad(PARAMS, X, None))
    y, state = run(PARAMS, X, STATE, activation=activation)
    single, s = jax.jit(rnn.step, static_argnames="activation"), STATE
    for t in range(7):
        out, s = single(PARAMS, X[:, t], s, activation=activation)
        same(out, y[:, t])
    same(s, state)


def test_each_flag_changes_something():
    y, _ = run(PARAMS, X)
    for options in ({"reverse": True}, {"mask": MASK}, {"activation": "relu"}):
        assert not jnp.allclose(run(PARAMS, X, **options)[0], y)
    assert not jnp.allclose(run(PARAMS, X, STATE)[0], y)
    same(run(PARAMS, X, chunk=2)[0], y)


@pytest.mark.parametrize(("reverse", "activation"), [(False, "tanh"), (True, "relu")])
def test_packed_sequences_of_torch(reverse, activation):
    theirs, y, last = packed("RNN", reverse, nonlinearity=activation)
    params = recurrent.from_arrays("rnn", "torch", theirs)
    got, end = run(params, X, STATE, mask=MASK, reverse=reverse, activation=activation)
    same((got, end), (y, last))


# ---- errors -----------------------------------------------------------------------------------------------

ERRORS = [
    (
        lambda: rnn.apply({**PARAMS, "u": PARAMS["w"]}, X),
        ShapeError,
        'rnn.apply: params["u"] is not square.\n'
        '  expected  params["u"]: float[m, m]\n'
        '  got       params["u"]: float32[3, 5]',
    ),
    (
        lambda: rnn.apply(PARAMS, X, STATE["h"]),
        StructureError,
        'rnn.apply: state has no "h".\n'
        '  expected  state: a dict with "h", float[2, 5] each, or None\n'
        "  got       state: float32[2, 5]",
    ),
    (
        lambda: rnn.apply(PARAMS, X, activation="gelu"),
        ValueRangeError,
        "rnn.apply: activation is 'gelu'.\n"
        "  expected  activation: 'tanh', 'relu'\n"
        "  got       activation = 'gelu'",
    ),
    (
        lambda: jax.jit(lambda reverse: rnn.apply(PARAMS, X, reverse=reverse))(True),
        DTypeError,
        "rnn.apply: reverse is traced, but its value is needed for tracing.\n"
        "  expected  reverse: a Python value\n"
        "  got       reverse: bool[]\n"
        '  hint      make it static where it enters jax.jit: static_argnames="reverse".',
    ),
]
test_errors = golden(ERRORS)
