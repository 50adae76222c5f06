"""Initialisers of the user's: which matrix they are asked for, and what becomes of it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnet as fn
from funcnet.errors import DTypeError, ShapeError
from funcnet.nets import mlp, resnet, transformer
from funcnet.ops import _draw
from tests.errors import golden

KEY = jax.random.key(0)


def heads(d: int, width: int, w: Any) -> Any:
    return fn.multihead.init(KEY, d, 2, head_width=width, w=w)


INITS: dict[str, Any] = {  # what is drawn -> the matrix [in, out] that is asked for
    "linear": (lambda w: fn.linear.init(KEY, 3, 5, w=w)["w"], (3, 5)),
    "conv": (lambda w: fn.conv.init(KEY, 4, 6, kernel=(3, 2), w=w)["w"], (24, 6)),
    "groups": (lambda w: fn.conv.init(KEY, 4, 6, kernel=(3, 2), groups=2, w=w)["w"], (12, 3)),
    "conv_transpose": (
        lambda w: fn.conv_transpose.init(KEY, 6, 4, kernel=(3,), groups=2, stride=2, w=w)["w"],
        (9, 2),
    ),
    "q": (lambda w: heads(6, 5, w)["q"]["w"], (6, 10)),
    "o": (lambda w: heads(6, 5, w)["o"]["w"], (10, 6)),
    "embedding": (lambda w: fn.embedding.init(KEY, 7, 3, w=w)["w"], (7, 3)),
    "experts": (lambda w: fn.moe.init(KEY, 3, 5, 3, gated=False, w=w)["up"]["w"], (3, 5)),
    "lstm": (lambda w: fn.lstm.init(KEY, 3, 5, w=w)["w"], (3, 5)),
    "gru": (lambda w: fn.gru.init(KEY, 3, 5, w=w)["w"], (3, 5)),
    "rnn": (lambda w: fn.rnn.init(KEY, 3, 5, w=w)["w"], (3, 5)),
}


@pytest.mark.parametrize("name", INITS)
def test_the_matrix_that_is_asked_for(name):
    drawn, want = INITS[name]
    asked = []

    def w(key, shape):
        asked.append(shape)
        return jnp.full(shape, 0.5)

    assert drawn(w).shape == jax.eval_shape(lambda: drawn(None)).shape
    assert want in asked
    assert len(set(asked)) == {"q": 2, "o": 2, "experts": 3}.get(name, 1)
    np.testing.assert_array_equal(drawn(w), 0.5)


def test_rows_are_what_is_summed_over():
    """Each output of a layer whose matrix has columns of one is the sum of its inputs."""
    column = lambda key, shape: jnp.broadcast_to(jnp.arange(shape[1], dtype=float), shape)
    x = jnp.ones((1, 6, 4))
    y = fn.conv.apply(fn.conv.init(KEY, 4, 6, kernel=(3,), groups=2, w=column), x, groups=2, padding="valid")
    np.testing.assert_allclose(y[0, 0], 6 * np.asarray([0, 1, 2, 0, 1, 2]))
    params = fn.conv_transpose.init(KEY, 4, 6, kernel=(3,), groups=2, w=column)
    y = fn.conv_transpose.apply(params, x, groups=2, padding="valid")
    np.testing.assert_allclose(y[0, 3], 6 * np.asarray([0, 1, 2, 0, 1, 2]))
    params = heads(3, 2, column)
    np.testing.assert_array_equal(params["q"]["w"][0], [[0, 1], [2, 3]])
    np.testing.assert_array_equal(params["o"]["w"][1, 1], [0, 1, 2])


def test_groups_and_gates_are_drawn_apart():
    orthogonal = jax.nn.initializers.orthogonal()
    w = fn.lstm.init(KEY, 5, 5, w=orthogonal)["w"].reshape(5, 4, 5)
    for gate in range(4):
        np.testing.assert_allclose(w[:, gate].T @ w[:, gate], np.eye(5), atol=1e-12)
    assert not np.allclose(w[:, 0], w[:, 1])
    he = fn.conv.init(KEY, 64, 64, kernel=(3, 3), groups=64, w=jax.nn.initializers.he_normal())["w"]
    assert np.std(he) == pytest.approx(np.sqrt(2 / 9), rel=0.1)


@pytest.mark.parametrize(
    ("c_in", "c_out", "kernel", "groups", "size"),
    [(4, 4, (3, 3), 1, (4, 5)), (2, 5, (2,), 1, (6,)), (6, 4, (3,), 2, (5,)), (3, 3, (1, 4), 1, (2, 3))],
)
def test_orthogonal_kernels_have_singular_values_of_one(c_in, c_out, kernel, groups, size):
    w = fn.linalg.orthogonal_kernel(KEY, c_in, c_out, kernel=kernel, groups=groups)
    assert w.shape == fn.conv.init(KEY, c_in, c_out, kernel=kernel, groups=groups)["w"].shape
    options = {"padding_mode": "circular", "groups": groups}
    values = jnp.linalg.svd(fn.conv.matrix({"w": w}, (*size, c_in), **options), compute_uv=False)
    np.testing.assert_allclose(values, 1, atol=1e-10)
    assert np.ptp(np.abs(np.asarray(w))) > 0.1


MATRIX: Any = jnp.ones((3, 5))
NUMBER: Any = lambda key, shape: 0.5
ERRORS = [
    (
        lambda: fn.linear.init(KEY, 3, 5, w=MATRIX),
        DTypeError,
        "linear.init: w is no initialiser.\n"
        "  expected  w: (key, shape) -> array, as jax.nn.initializers.he_normal(), or None\n"
        "  got       w: float64[3, 5]",
    ),
    (
        lambda: fn.conv.init(KEY, 2, 4, kernel=(3,), w=lambda key, shape: jnp.ones(shape[::-1])),
        ShapeError,
        "conv.init: w gives another shape than it is asked for.\n"
        "  expected  w(key, (6, 4)): float[6, 4]\n"
        "  got       float64[4, 6]",
    ),
    (
        lambda: fn.rnn.init(KEY, 3, 5, w=NUMBER),
        DTypeError,
        "rnn.init: w gives no array of floats.\n"
        "  expected  w(key, (3, 5)): float[3, 5]\n"
        "  got       0.5 (float)",
    ),
]

test_errors = golden(ERRORS)


@pytest.mark.parametrize("wrong", [lambda x: x, int, "he_normal", 3, jax.nn.initializers.he_normal])
def test_what_is_no_initialiser(wrong, unchecked):
    with pytest.raises((DTypeError, ShapeError), match="w "):
        fn.linear.init(KEY, 3, 5, w=wrong)


NETS = {
    "transformer": (transformer, transformer.Config(7, layers=3, d=12, heads=3, context=5, tied=False)),
    "resnet": (resnet, resnet.Config((8, 8, 3), (3,), (1,))),
}


@pytest.mark.only_as_users
@pytest.mark.parametrize("name", NETS)
def test_a_key_gives_the_same_bits_however_it_is_compiled(name):
    """As one cheap program, in a user's program, and one number after the other."""
    net, config = NETS[name]
    want = jax.tree.leaves(net.init(KEY, config))
    for found in (jax.jit(net.init)(KEY, config), net.init.__wrapped__(KEY, config)):
        for a, b in zip(jax.tree.leaves(found), want, strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)


@pytest.mark.only_as_users
def test_many_numbers_are_those_of_few(monkeypatch):
    draw = lambda key: _draw.weights(key, (301, 7), 1 / 301)
    few = draw(KEY)
    monkeypatch.setattr(_draw, "_FEW", 0)
    np.testing.assert_array_equal(draw(KEY), few)
    np.testing.assert_array_equal(jax.jit(draw)(KEY), few)
    assert abs(few).max() <= (3 / 301) ** 0.5
    assert abs(301 * few.var() - 1) < 0.05


def test_a_net_is_drawn_by_one_program():
    """And in a program of the user's, or for several keys, as ever: XLA's options cannot be set there."""
    config, programs = mlp.Config((3, 5, 7, 2)), []

    def count(event: str, duration_secs: float, **kwargs: Any) -> None:
        programs.extend([event] if event.endswith("backend_compile_duration") else [])

    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        params = mlp.init(KEY, config)
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    assert len(programs) == 1
    inside = jax.jit(lambda: mlp.init(KEY, config))()
    one_of_two = jax.vmap(lambda key: mlp.init(key, config))(jnp.stack([KEY, KEY]))
    for a, b, c in zip(*map(jax.tree.leaves, (params, inside, one_of_two)), strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c[1])
