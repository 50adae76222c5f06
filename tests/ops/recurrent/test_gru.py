import functools
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet.errors import DTypeError, ShapeError, StructureError, ValueRangeError
from funcnet.hub import recurrent
from funcnet.ops.recurrent import gru
from tests import cases, laws
from tests.errors import golden
from tests.ops.recurrent import drawn
from tests.ops.recurrent.drawn import MASK, X, cell, packed, same

PARAMS: Any = cell(3, "b", "c")
STATE: Any = {"h": drawn.STATE["h"]}
run = jax.jit(gru.apply, static_argnames=("reverse", "chunk", "reset"))


def test_init():
    params = jax.jit(gru.init, static_argnums=(1, 2))(jax.random.key(0), 400, 50)
    assert abs(float(params["w"].std()) * 20 - 1) < 0.02
    for u in jnp.split(params["u"], 3, 1):
        np.testing.assert_allclose(u @ u.T, np.eye(50), atol=1e-5)
    assert not jnp.any(params["b"])
    assert params["c"].shape == (50,)
    assert set(jax.eval_shape(lambda key: gru.init(key, 2, 3, bias=False), jax.random.key(0))) == {"w", "u"}


CHUNKED = cases.case(
    "gru",
    cases.cell(3, 2, 3, "b", "c"),
    cases.F(5, 7, 2),
    {"h": cases.F(5, 3)},
    mask=cases.B(5, 7),
    reverse=True,
    reset="before",
)


@pytest.mark.slow
@pytest.mark.parametrize("law", laws.LAWS, ids=lambda law: law.__name__)
def test_laws_in_chunks(law):
    """Chunks of 3 steps of 7: two in the loop and one step before it; the gates are computed again."""
    args, options = CHUNKED.draw()
    apply, vjp = (functools.partial(f, chunk=3) for f in (gru.apply, gru.vjp))
    op = types.SimpleNamespace(reference=gru.reference, apply=apply, vjp=vjp, cost=gru.cost)
    law(CHUNKED, op, args, options)


@pytest.mark.parametrize("reset", ["after", "before"])
def test_single_steps_equal_the_whole(reset):
    y, state = run(PARAMS, X, STATE, reset=reset)
    single, s = jax.jit(gru.step, static_argnames="reset"), STATE
    for t in range(7):
        out, s = single(PARAMS, X[:, t], s, reset=reset)
        same(out, y[:, t])
    same(s, state)


def test_each_flag_changes_something():
    y, _ = run(PARAMS, X)
    for options in ({"reverse": True}, {"mask": MASK}, {"reset": "before"}):
        assert not jnp.allclose(run(PARAMS, X, **options)[0], y)
    assert not jnp.allclose(run(PARAMS, X, STATE)[0], y)
    same(run(PARAMS, X, chunk=2)[0], y)


def test_resets_are_one_where_nothing_is_reset():
    """With r = 1 both are the same function, c a bias like the other."""
    open_ = {**PARAMS, "b": PARAMS["b"].at[:5].set(100)}
    same(run(open_, X, reset="after"), run(open_, X, reset="before"))


@pytest.mark.parametrize("reverse", [False, True])
def test_packed_sequences_of_torch(reverse):
    theirs, y, last = packed("GRU", reverse)
    got, end = run(recurrent.from_arrays("gru", "torch", theirs), X, STATE, mask=MASK, reverse=reverse)
    same((got, end), (y, last))


# ---- errors -----------------------------------------------------------------------------------------------

ERRORS = [
    (
        lambda: gru.apply({**PARAMS, "u": PARAMS["u"].T}, X),
        ShapeError,
        'gru.apply: params["u"] does not hold 3 square gates side by side.\n'
        '  expected  params["u"]: float[m, 3 m]\n'
        '  got       params["u"]: float32[15, 5]\n'
        '  hint      its transpose fits: params["u"].T.',
    ),
    (
        lambda: gru.apply({**PARAMS, "c": jnp.ones(15, jnp.float32)}, X),
        ShapeError,
        'gru.apply: params["c"] has 15 features in its last axis, but params["u"] (float32[5, 15]) takes 5.\n'
        '  expected  params["c"]: float[5]\n'
        '  got       params["c"]: float32[15]',
    ),
    (
        lambda: gru.apply(PARAMS, X, STATE["h"]),
        StructureError,
        'gru.apply: state has no "h".\n'
        '  expected  state: a dict with "h", float[2, 5] each, or None\n'
        "  got       state: float32[2, 5]",
    ),
    (
        lambda: gru.apply(PARAMS, X, reset="never"),
        ValueRangeError,
        "gru.apply: reset is 'never'.\n  expected  reset: 'after', 'before'\n  got       reset = 'never'",
    ),
    (
        lambda: jax.jit(lambda reverse: gru.apply(PARAMS, X, reverse=reverse))(True),
        DTypeError,
        "gru.apply: reverse is traced, but its value is needed for tracing.\n"
        "  expected  reverse: a Python value\n"
        "  got       reverse: bool[]\n"
        '  hint      make it static where it enters jax.jit: static_argnames="reverse".',
    ),
]
test_errors = golden(ERRORS)
