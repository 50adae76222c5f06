import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet.errors import StructureError, ValueRangeError
from funcnet.nets import recurrent
from tests.errors import golden

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.standard_normal((2, 7, 3)), jnp.float32)
LENGTHS = [7, 4]
MASK = jnp.arange(7) < jnp.asarray(LENGTHS)[:, None]
BOTH = recurrent.Config(3, 4, layers=2, bidirectional=True)
ONE = recurrent.Config(3, 4, layers=2, cell="gru", projection=5, dropout=0.5)
apply = jax.jit(recurrent.apply)


def init(config):
    """Drawn by NumPy, to compile nothing."""
    shapes = jax.eval_shape(lambda: recurrent.init(jax.random.key(0), config))
    return jax.tree.map(lambda v: jnp.asarray(RNG.standard_normal(v.shape), jnp.float32), shapes)


def same(got, want):
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, 1e-5, 1e-5), got, want)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_layers_both_ways_and_a_mask_equal_torch(cell):
    torch = pytest.importorskip("torch")
    config = dataclasses.replace(BOTH, cell=cell)
    theirs = getattr(torch.nn, cell.upper())(3, 4, num_layers=2, batch_first=True, bidirectional=True)
    params = {"layers": [{}, {}]}
    for i, layer in enumerate(params["layers"]):
        for way, suffix in (("forward", f"_l{i}"), ("backward", f"_l{i}_reverse")):
            w, u, b, c = (
                theirs.state_dict()[name + suffix].numpy()
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            inside = {"c": c[8:]} if cell == "gru" else {}
            b = b + (np.concatenate([c[:8], 0 * c[8:]]) if cell == "gru" else c)
            layer[way] = jax.tree.map(jnp.asarray, {"w": w.T, "u": u.T, "b": b, **inside})
    given = torch.nn.utils.rnn.pack_padded_sequence(torch.from_numpy(np.array(X)), LENGTHS, batch_first=True)
    with torch.no_grad():
        y, last = theirs(given)
    y = torch.nn.utils.rnn.pad_packed_sequence(y, batch_first=True)[0].numpy()
    got, state = apply(params, X, config, mask=MASK)
    same(got, y)
    h = (last[0] if cell == "lstm" else last).numpy()
    same([layer[way]["h"] for layer in state for way in ("forward", "backward")], list(h))


def test_a_sequence_in_pieces():
    params = init(ONE)
    y, state = apply(params, X, ONE)
    first, between = apply(params, X[:, :3], ONE)
    rest, last = apply(params, X[:, 3:], ONE, between)
    same((jnp.concatenate([first, rest], 1), last), (y, state))
    assert y.shape == (2, 7, 5)


def test_dropout_is_between_layers_with_a_mask_a_step_or_one():
    ones = recurrent.Config(3, 4, layers=2, cell="rnn", dropout=0.5, activation="relu", bias=False)
    params = {
        "layers": [
            {"forward": {"w": jnp.ones((d, 4), jnp.float32), "u": jnp.zeros((4, 4), jnp.float32)}}
            for d in (3, 4)
        ]
    }
    x = jnp.ones((2, 7, 3), jnp.float32)
    plain, _ = apply(params, x, ones)
    np.testing.assert_array_equal(plain, 12.0)
    by_step, _ = apply(params, x, ones, key=jax.random.key(1))
    one_mask, _ = apply(params, x, dataclasses.replace(ones, one_mask=True), key=jax.random.key(1))
    assert len(np.unique(by_step[0])) > 1
    np.testing.assert_array_equal(one_mask, jnp.broadcast_to(one_mask[:, :1], one_mask.shape))
    assert float(jnp.abs(one_mask - plain).max()) > 0


def test_each_option_changes_something():
    params = init(dataclasses.replace(ONE, layers=1, projection=None))
    config = dataclasses.replace(ONE, layers=1, projection=None)
    y, _ = apply(params, X, config)
    assert not jnp.allclose(apply(params, X, dataclasses.replace(config, reset="before"))[0], y)
    plain = dataclasses.replace(config, cell="rnn")
    params = init(plain)
    y, _ = apply(params, X, plain)
    assert not jnp.allclose(apply(params, X, dataclasses.replace(plain, activation="relu"))[0], y)
    assert "b" not in init(dataclasses.replace(ONE, bias=False))["layers"][0]["project"]


def test_what_a_cell_shows_and_the_dtype():
    config = dataclasses.replace(BOTH, shown=2, dtype="bfloat16")
    y, state = apply(init(config), X, config)
    assert (y.shape, y.dtype) == ((2, 7, 4), jnp.bfloat16)
    shown = state[1]["backward"]
    assert (shown["h"].shape, shown["c"].shape, shown["c"].dtype) == ((2, 2), (2, 4), jnp.float32)


SHAPES = {c: jax.eval_shape(lambda c=c: recurrent.init(jax.random.key(0), c)) for c in (BOTH, ONE)}
ZEROS = {c: jax.tree.map(lambda v: np.zeros(v.shape, np.float32), shapes) for c, shapes in SHAPES.items()}
ERRORS = [
    (
        lambda: recurrent.apply({"layers": ZEROS[BOTH]["layers"][:1]}, X, BOTH),
        StructureError,
        'recurrent.apply: params["layers"] has 1 layers, but config 2.\n'
        '  expected  params["layers"]: a list of 2, one entry per layer\n'
        '  got       params["layers"]: 1 entries',
    ),
    (
        lambda: recurrent.apply(ZEROS[ONE], X, BOTH),
        StructureError,
        'recurrent.apply: params["layers"][0] does not have the parts that config asks for.\n'
        '  expected  params["layers"][0]: a dict with the keys "forward", "backward"\n'
        '  got       keys: "forward", "project"',
    ),
    (
        lambda: recurrent.apply(ZEROS[BOTH], X, BOTH, {"h": X}),
        StructureError,
        "recurrent.apply: state is not a list of layers.\n"
        "  expected  state: a list of 2, one entry per layer\n"
        "  got       state: a dict",
    ),
    (
        lambda: recurrent.Config(3, 4, cell="elman"),
        ValueRangeError,
        "recurrent.Config: cell is 'elman'.\n"
        "  expected  cell: 'lstm', 'gru', 'rnn'\n"
        "  got       cell = 'elman'",
    ),
    (
        lambda: recurrent.Config(3, 4, cell="gru", shown=2),
        ValueRangeError,
        "recurrent.Config: shown is 2, but only an lstm projects what it shows.\n"
        '  expected  shown=None, or cell="lstm"\n'
        "  got       cell = 'gru', shown = 2\n"
        "  hint      projection maps what comes out of a layer of any cells.",
    ),
    (
        lambda: recurrent.Config(3, 4, dropout=1.5),
        ValueRangeError,
        "recurrent.Config: dropout is 1.5, outside [0, 1).\n"
        "  expected  0 ≤ dropout < 1\n"
        "  got       dropout = 1.5\n"
        "  hint      dropout is a fraction, not per cent: 0.015.",
    ),
]
test_errors = golden(ERRORS)
