"""The table of layers: its sums are those of the program, whatever the model is made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnet as fn
from funcnet.analysis.layers import Layer, layers
from funcnet.nets import convnet, crnn, mlp, transformer
from tests.laws import products

F32 = jnp.float32
MODELS = {
    "mlp": (mlp, mlp.Config((7, 5, 5, 5, 3)), jax.ShapeDtypeStruct((2, 7), F32)),
    "convnet": (
        convnet,
        convnet.Config((12, 8, 3), channels=(5, 5), depth=2, hidden=7),
        jax.ShapeDtypeStruct((2, 12, 8, 3), F32),
    ),
    "transformer": (
        transformer,
        transformer.Config(vocabulary=11, context=5, layers=3, heads=2, d=6),
        jax.ShapeDtypeStruct((2, 5), jnp.int32),
    ),
    "unrolled": (
        transformer,
        transformer.Config(vocabulary=11, context=5, layers=4, heads=2, d=6, unroll=2),
        jax.ShapeDtypeStruct((2, 5), jnp.int32),
    ),
}


def parts(name):
    net, config, x = MODELS[name]
    params = jax.eval_shape(lambda: net.init(jax.random.key(0), config))
    return (lambda params, x: net.apply(params, x, config)), params, x


@pytest.mark.parametrize("name", MODELS)
def test_flops_are_those_of_the_definitions(name, monkeypatch):
    apply, params, x = parts(name)
    found = sum(layer.flops for layer in layers(apply, params, x))
    for operation in fn._OPERATIONS:
        module = getattr(fn, operation)
        monkeypatch.setattr(module, "apply", module.reference)
    with jax.disable_jit():  # scans unrolled
        assert found == products(jax.make_jaxpr(lambda p, x: apply(p, x))(params, x).jaxpr)


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_stands_once(name):
    apply, params, x = parts(name)
    found = [path for layer in layers(apply, params, x) for path in layer.shapes]
    expected = {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf.shape
        for path, leaf in jax.tree.leaves_with_path(params)
    }
    assert sorted(found) == sorted(expected)
    assert {path: s for layer in layers(apply, params, x) for path, s in layer.shapes.items()} == expected


def test_an_mlp():
    apply, params, x = parts("mlp")
    same = {"layers.1.w": (5, 5), "layers.1.b": (5,), "layers.2.w": (5, 5), "layers.2.b": (5,)}
    assert layers(apply, params, x) == [
        Layer({"layers.0.w": (7, 5), "layers.0.b": (5,)}, {"linear": 1}, 2 * 2 * 7 * 5),
        Layer(same, {"linear": 2}, 2 * 2 * 2 * 5 * 5),
        Layer({"layers.3.w": (5, 3), "layers.3.b": (3,)}, {"linear": 1}, 2 * 2 * 5 * 3),
        Layer({}, {"relu": 3}, 0),
    ]


def test_stacked_layers_count_as_often_as_they_run():
    by_first = {next(iter(layer.shapes), ""): layer for layer in layers(*parts("transformer"))}
    assert by_first["blocks.up.w"].operations == {"linear": 3}
    assert by_first["blocks.attention.k.w"].operations == {"multihead": 3}
    assert by_first["blocks.norm1.w"].operations == {"layer_norm": 7}, "two in each block, one at the end"
    assert "attention" not in {name for layer in by_first.values() for name in layer.operations}


def test_parameters_that_no_operation_takes():
    params = {"scale": jnp.ones(3), "head": fn.linear.init(jax.random.key(0), 3, 2)}

    def apply(params, x):
        return fn.linear.apply(params["head"], x * params["scale"].astype(x.dtype))

    assert layers(apply, params, np.ones((4, 3), np.float32)) == [
        Layer({"head.w": (3, 2), "head.b": (2,)}, {"linear": 1}, 2 * 4 * 3 * 2),
        Layer({"scale": (3,)}, {}, 0),
    ]


def test_a_layer_that_is_used_twice():
    params = {"only": fn.linear.init(jax.random.key(0), 3, 3, bias=False), "unused": None}

    def apply(params, x):
        return fn.linear.apply(params["only"], fn.linear.apply(params["only"], x))

    found = layers(apply, params, np.ones((1, 3), np.float32))
    assert found == [Layer({"only.w": (3, 3)}, {"linear": 2}, 2 * 2 * 3 * 3)]


def test_a_model_that_is_one_operation():
    found = layers(fn.linear.apply, fn.linear.init(jax.random.key(0), 3, 2), np.ones((1, 3), np.float32))
    assert found == [Layer({"w": (3, 2), "b": (2,)}, {"linear": 1}, 12)]


def test_an_option_that_is_an_array():
    config = crnn.Config(4, 2, channels=(2,), pools=((1, 2),), hidden=3, padding=0.0)
    params = jax.eval_shape(lambda: crnn.init(jax.random.key(0), config))
    found = layers(lambda params, x: crnn.apply(params, x, config), params, np.ones((1, 5, 4), np.float32))
    ways = [row for row in found if "gru" in row.operations]
    assert [(row.operations["gru"], row.flops) for row in ways] == [(2, 2 * 2 * 5 * 9 * (4 + 3))]
