"""What a program says of its leaves is what the nets' own specs say; and what it cannot say is named."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnet as fn
from funcnet.errors import StructureError
from funcnet.linalg import as_matrices
from funcnet.nets import crnn, encoder, matrices, recurrent, resnet, transformer, vad
from funcnet.spec import is_spec
from tests.test_spec import NETS

LLAMA = NETS["llama"][1]
CALLS = {
    **{name: (net, config) for name, (net, config, _) in NETS.items()},
    "a loop over layers": (transformer, dataclasses.replace(LLAMA, unroll=1)),
    "layers computed again": (transformer, dataclasses.replace(LLAMA, remat=True)),
    "windows": (transformer, dataclasses.replace(LLAMA, layers=4, windows=(2, None), unroll=1)),
}


def outputs(net, config):
    """The net as a function of its params, and what they and the inputs look like."""
    params = jax.eval_shape(lambda: net.init(jax.random.key(0), config))
    if net in (transformer, encoder):
        x = jax.ShapeDtypeStruct((2, 3), jnp.int32)
    elif net in (recurrent, crnn):
        x = jax.ShapeDtypeStruct((2, 3, config.d), jnp.float64)
    elif net is vad:
        x = jax.ShapeDtypeStruct((2, 3 * config.frame), jnp.float64)
    else:
        x = jax.ShapeDtypeStruct(
            (2, *getattr(config, "image", getattr(config, "sizes", ())[:1])), jnp.float64
        )

    def f(params, x):
        if net is resnet:
            return resnet.apply(params, resnet.init_state(config), x, config, train=False)[0]
        y = net.apply(params, x, config)
        if net in (recurrent, vad):
            return y[0]
        return encoder.logits(params, y, config) if net is encoder else y

    return f, params, x


@pytest.mark.parametrize("name", CALLS)
def test_the_program_says_what_the_specs_say(name):
    net, config = CALLS[name]
    f, params, x = outputs(net, config)
    used = lambda path: not (net is encoder and "next_sentence" in path)
    found, specs = matrices(f, params, x), net.specs(config)
    for (path, ours), theirs in zip(
        jax.tree.leaves_with_path(found, is_leaf=is_spec),
        jax.tree.leaves(specs, is_leaf=is_spec),
        strict=True,
    ):
        where = jax.tree_util.keystr(path, simple=True, separator=".")
        if where.startswith(("positions", "types")):
            continue  # a table to the net; the program only adds its first rows, or picks from it
        assert (ours.shape, ours.decay) == (theirs.shape, theirs.decay), where
        if isinstance(theirs.matrix, tuple):
            leaf = jnp.arange(np.prod(ours.shape), dtype=float).reshape(ours.shape)
            np.testing.assert_array_equal(as_matrices(leaf, ours), as_matrices(leaf, theirs), where)
        elif used(where):
            assert ours.matrix == theirs.matrix, where


X = jnp.ones((2, 6))


def one(f, shape=(6, 4), x=X):
    return matrices(lambda p, x: f(p["w"], x), {"w": jnp.ones(shape)}, x)["w"].matrix


def test_what_a_leaf_may_go_through():
    assert one(lambda w, x: x @ (w.astype(jnp.float64) * 0.5)) == ((6, 4), "io")
    assert one(lambda w, x: w.T @ x.T) == ((6, 4), "io")
    assert one(lambda w, x: x @ (w / jnp.linalg.norm(w, axis=0))) == ((6, 4), "io"), "weight norm"
    assert one(lambda w, x: jax.nn.relu(x) + w[0, 0]) is None
    assert one(lambda w, x: jnp.concatenate([x @ w[:, :2], x @ w[:, 2:]], -1)) is not None
    assert one(lambda w, x: jax.lax.cond(x.sum() > 0, lambda w: x @ w, lambda w: -x @ w, w)) == ((6, 4), "io")
    assert one(lambda w, x: jax.lax.fori_loop(0, 3, lambda _, h: h @ w, x), (6, 6)) == ((6, 6), "io")
    assert one(lambda w, x: jax.vmap(lambda w: x @ w)(w), (3, 6, 4)) == ((3, 6, 4), "oio"), "of one x"
    assert one(lambda w, x: x @ w[1], (3, 6, 4)) == ((3, 6, 4), "sio"), "a layer of a list"
    grouped = lambda w, x: jnp.einsum("ngi,gio->ngo", x.reshape(2, 2, 3), w.reshape(2, 3, 4))
    assert one(grouped, (6, 4)) == ((2, 3, 4), "sio"), "an axis that is split"


def test_a_convolution_of_jax_itself():
    image = jnp.ones((1, 5, 5, 4))

    def f(w, x):
        dims = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=dims, feature_group_count=2
        )

    assert one(f, (3, 3, 2, 6), image) == ((3, 3, 2, 2, 3), "iiiso")


UNCLEAR = {
    "it is multiplied in several ways": lambda w, x: (x @ w) @ w.T,
    "it is multiplied as a matrix, and used element by element": lambda w, x: x @ w + w[:2],
    "it goes through sort": lambda w, x: x @ jnp.sort(w, axis=0),
    "it goes through a product with what is no data": lambda w, x: x @ (w @ jnp.ones((6, 6))),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("reason", UNCLEAR)
def test_what_cannot_be_told_is_named(reason):
    f = lambda p, x: UNCLEAR[reason](p["w"], x)
    params = {"w": jnp.ones((6, 6))}
    with pytest.raises(StructureError) as caught:
        matrices(f, params, X)
    assert f"w: {reason}" in str(caught.value)
    assert 'known={"w": "io"}' in str(caught.value)
    assert matrices(f, params, X, known={"w": "io"})["w"].matrix == ((6, 6), "io")
    assert matrices(f, params, X, known={"w": None})["w"].matrix is None


@pytest.mark.usefixtures("unchecked")
def test_a_path_that_is_none_is_refused():
    with pytest.raises(StructureError, match="v: no leaf with axes has that path"):
        matrices(lambda p, x: x @ p["w"], {"w": jnp.ones((6, 6))}, X, known={"v": "io"})


def test_muon_with_what_was_read():
    params = {"w": jnp.ones((6, 4), jnp.float32), "b": jnp.zeros(4, jnp.float32)}
    specs = matrices(lambda p, x: x @ p["w"] + p["b"], params, X.astype(jnp.float32))
    fn.optim.muon(0.1, specs).init(params)
