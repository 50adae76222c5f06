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
from funcnet.ops.recurrent import _scan, gru
from tests import laws
from tests.cases import B, F, case, cell
from tests.errors import golden

RNG = np.random.default_rng(0)
PARAMS: Any = {
    name: jnp.asarray(RNG.standard_normal(shape), jnp.float32)
    for name, shape in (("w", (3, 15)), ("u", (5, 15)), ("b", (15,)), ("c", (5,)))
}
X = jnp.asarray(RNG.standard_normal((2, 7, 3)), jnp.float32)
STATE: Any = {"h": jnp.asarray(RNG.standard_normal((2, 5)), jnp.float32)}
LENGTHS = [7, 4]
MASK = jnp.arange(7) < jnp.asarray(LENGTHS)[:, None]
run = jax.jit(gru.apply, static_argnames=("reverse", "chunk", "reset"))


def same(got, want, tolerance=1e-5):
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, tolerance, tolerance), got, want)


def test_init():
    params = gru.init(jax.random.key(0), 400, 50)
    assert abs(float(params["w"].std()) * 20 - 1) < 0.02
    for u in jnp.split(params["u"], 3, 1):
        np.testing.assert_allclose(u @ u.T, np.eye(50), atol=1e-5)
    assert not jnp.any(params["b"])
    assert params["c"].shape == (50,)
    assert set(gru.init(jax.random.key(0), 2, 3, bias=False)) == {"w", "u"}


CHUNKED = case(
    "gru", cell(3, 2, 3, "b", "c"), F(5, 7, 2), {"h": F(5, 3)}, mask=B(5, 7), reverse=True, reset="before"
)


@pytest.mark.parametrize(
    "law",
    [law if law is laws.formula else pytest.param(law, marks=pytest.mark.slow) for law in laws.LAWS],
    ids=lambda law: law.__name__,
)
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
    torch = pytest.importorskip("torch")
    theirs = torch.nn.GRU(3, 5, batch_first=True, bidirectional=True)
    at = "_l0_reverse" if reverse else "_l0"
    kind = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    w, u, b, c = (theirs.state_dict()[name + at].numpy() for name in kind)
    params = {"w": w.T, "u": u.T, "b": b + np.concatenate([c[:10], 0 * c[10:]]), "c": c[10:]}
    given = torch.nn.utils.rnn.pack_padded_sequence(torch.from_numpy(np.array(X)), LENGTHS, batch_first=True)
    with torch.no_grad():
        y, last = theirs(given, torch.from_numpy(np.stack([np.array(STATE["h"])] * 2)))
    y = torch.nn.utils.rnn.pad_packed_sequence(y, batch_first=True)[0].numpy()
    got, end = run(jax.tree.map(jnp.asarray, params), X, STATE, mask=MASK, reverse=reverse)
    same(got, y[..., 5:] if reverse else y[..., :5])
    same(end["h"], last[int(reverse)].numpy())


# ---- a rule that is wrong ---------------------------------------------------------------------------------


def not_carried(gates, s, ds, p):
    """The path of the state past the gates is forgotten."""
    before, da = gru._back(gates, s, ds, p)
    return {"h": before["h"] - ds["h"] * gates[..., 5:10]}, da


def not_reset(gates, h, da):
    """dU without the reset."""
    del gates
    return [(h, da[..., :10]), (h, da[..., 10:])]


@pytest.mark.parametrize(
    "change", [{}, {"back": not_carried}, {"rows": not_reset}], ids=["right", "back", "rows"]
)
def test_wrong_formulas_are_rejected(change):
    wrong = gru._CELLS["after"]._replace(**change)

    def pull(p, x, s, dy):
        return _scan.vjp(wrong, p, x, s, None, reverse=False, chunk=None)[1](dy)

    assert fn.verify(gru.reference, Partial(pull), (PARAMS, X, STATE), budget=0.1).ok == (not change)


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
