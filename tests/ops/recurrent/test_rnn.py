from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import funcnet as fn
from funcnet.errors import DTypeError, ShapeError, StructureError, ValueRangeError
from funcnet.ops.recurrent import _scan, rnn
from tests.errors import golden

RNG = np.random.default_rng(0)
PARAMS: Any = {
    name: jnp.asarray(RNG.standard_normal(shape), jnp.float32)
    for name, shape in (("w", (3, 5)), ("u", (5, 5)), ("b", (5,)))
}
X = jnp.asarray(RNG.standard_normal((2, 7, 3)), jnp.float32)
STATE: Any = {"h": jnp.asarray(RNG.standard_normal((2, 5)), jnp.float32)}
LENGTHS = [7, 4]
MASK = jnp.arange(7) < jnp.asarray(LENGTHS)[:, None]
run = jax.jit(rnn.apply, static_argnames=("reverse", "chunk", "activation"))


def same(got, want, tolerance=1e-5):
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, tolerance, tolerance), got, want)


def test_init():
    params = rnn.init(jax.random.key(0), 400, 50)
    assert abs(float(params["w"].std()) * 20 - 1) < 0.02
    np.testing.assert_allclose(params["u"] @ params["u"].T, np.eye(50), atol=1e-5)
    assert not jnp.any(params["b"])
    assert set(rnn.init(jax.random.key(0), 2, 3, bias=False)) == {"w", "u"}


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
    torch = pytest.importorskip("torch")
    theirs = torch.nn.RNN(3, 5, batch_first=True, bidirectional=True, nonlinearity=activation)
    at = "_l0_reverse" if reverse else "_l0"
    kind = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    w, u, b, c = (theirs.state_dict()[name + at].numpy() for name in kind)
    params = {"w": w.T, "u": u.T, "b": b + c}
    given = torch.nn.utils.rnn.pack_padded_sequence(torch.from_numpy(np.array(X)), LENGTHS, batch_first=True)
    with torch.no_grad():
        y, last = theirs(given, torch.from_numpy(np.stack([np.array(STATE["h"])] * 2)))
    y = torch.nn.utils.rnn.pad_packed_sequence(y, batch_first=True)[0].numpy()
    got, end = run(
        jax.tree.map(jnp.asarray, params), X, STATE, mask=MASK, reverse=reverse, activation=activation
    )
    same(got, y[..., 5:] if reverse else y[..., :5])
    same(end["h"], last[int(reverse)].numpy())


# ---- a rule that is wrong ---------------------------------------------------------------------------------


def of_the_input(h, s, ds, p):
    """The derivative of relu in the place of that of tanh."""
    return rnn._back_relu(h, s, ds, p)


@pytest.mark.parametrize("back", [rnn._back_tanh, of_the_input])
def test_wrong_formulas_are_rejected(back):
    wrong = rnn._CELLS["tanh"]._replace(back=back)

    def pull(p, x, s, dy):
        return _scan.vjp(wrong, p, x, s, None, reverse=False, chunk=None)[1](dy)

    assert fn.verify(rnn.reference, Partial(pull), (PARAMS, X, STATE), budget=0.1).ok == (
        back is rnn._back_tanh
    )


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
