"""Every net: specs describe params, configs are static, apply gives what it says; then what is special."""

import jax
import jax.numpy as jnp
import optax
import pytest

from funcnet.errors import ShapeError, ValueRangeError
from funcnet.nets import convnet, encoder, mlp, resnet, transformer, vit
from funcnet.nets.spec import Spec, decay_mask

MLP = mlp.Config((3, 5, 7))
CONVNET = convnet.Config((8, 6, 2), channels=(3, 5), depth=2, hidden=7, classes=4, dropout=0.5)
DECODER = transformer.Config(vocabulary=11, context=7, layers=3, heads=2, d=6, dropout=0.5)
RESNET = resnet.Config((8, 8, 2), channels=(3, 5), blocks=(1, 2), classes=4)
NETS = [
    (mlp, MLP),
    (mlp, mlp.Config((3, 5), bias=False)),
    (convnet, CONVNET),
    (transformer, DECODER),
    (resnet, RESNET),
    (encoder, encoder.Config(vocabulary=11, context=7, layers=3, heads=2, d=6)),
    (encoder, encoder.Config(vocabulary=11, context=7, layers=3, heads=2, d=6, pooler=False)),
    (vit, vit.Config((6, 4, 3), patch=(3, 2), layers=3, heads=2, d=6, classes=4)),
    (vit, vit.Config((6, 4, 3), patch=(3, 2), layers=3, heads=2, d=6, classes=None, qkv_bias=False)),
]


def key(i=0):
    return jax.random.key(i)


def is_spec(v):
    return isinstance(v, Spec)


@pytest.mark.parametrize(("net", "config"), NETS, ids=lambda v: getattr(v, "__name__", "config"))
def test_specs_describe_params(net, config):
    params, specs = net.init(key(), config), net.specs(config)
    assert jax.tree.structure(params) == jax.tree.structure(specs, is_leaf=is_spec)
    for leaf, spec in zip(jax.tree.leaves(params), jax.tree.leaves(specs, is_leaf=is_spec), strict=True):
        assert (leaf.shape, leaf.dtype, leaf.ndim) == (spec.shape, spec.dtype, len(spec.axes))


@pytest.mark.parametrize(("net", "config"), NETS, ids=lambda v: getattr(v, "__name__", "config"))
def test_matrices_decay_and_vectors_do_not(net, config):
    mask = decay_mask(net.specs(config))
    for path, decays in jax.tree.leaves_with_path(mask):
        text = jax.tree_util.keystr(path)
        assert decays == (text.endswith("['w']") and "norm" not in text), text
    params = net.init(key(), config)
    optax.adamw(1e-3, mask=mask).init(params)


def test_a_config_passes_through_jit_and_equal_ones_share_a_trace():
    traces = []

    @jax.jit
    def f(params, x, config):
        traces.append(1)
        return mlp.apply(params, x, config)

    params, x = mlp.init(key(), MLP), jnp.ones((2, 3))
    for _ in range(2):
        f(params, x, mlp.Config((3, 5, 7)))
    assert len(traces) == 1


def test_mlp_is_linear_relu_linear():
    params, x = mlp.init(key(), MLP), jax.random.normal(key(1), (2, 4, 3))
    first, last = params["layers"]
    want = jnp.maximum(x @ first["w"] + first["b"], 0) @ last["w"] + last["b"]
    assert jnp.allclose(mlp.apply(params, x, MLP), want, atol=1e-12)


def test_mlp_needs_two_sizes():
    with pytest.raises(ValueRangeError, match="sizes has 1 entries, but at least 2"):
        mlp.Config((3,))


def test_convnet_shapes_and_dropout():
    params, images = convnet.init(key(), CONVNET), jax.random.normal(key(1), (2, 3, 8, 6, 2))
    logits = convnet.apply(params, images, CONVNET)
    assert logits.shape == (2, 3, 4)
    assert jnp.array_equal(logits, convnet.apply(params, images, CONVNET))
    assert not jnp.array_equal(logits, convnet.apply(params, images, CONVNET, key=key(2)))


def test_resnet_trains_and_evaluates():
    params, state = resnet.init(key(), RESNET), resnet.init_state(RESNET)
    images = jax.random.normal(key(1), (7, 8, 8, 2))
    logits, new = resnet.apply(params, state, images, RESNET, train=True)
    assert logits.shape == (7, 4)
    assert jax.tree.structure(new) == jax.tree.structure(state)
    assert all(not jnp.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (new, state)), strict=True))
    same, old = resnet.apply(params, state, images, RESNET, train=False)
    assert not jnp.allclose(same, logits)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, old, state))


def test_resnet_blocks_start_as_the_identity():
    """With the last gain of each block at 0, a stage of equal sizes returns its (positive) input."""
    config = resnet.Config((8, 8, 2), channels=(3,), blocks=(1,), classes=4)
    deeper = resnet.Config((8, 8, 2), channels=(3,), blocks=(3,), classes=4)
    params, images = resnet.init(key(), config), jax.random.normal(key(1), (7, 8, 8, 2))
    more = resnet.init(key(), deeper)
    more = {**params, "stages": more["stages"]}
    got = [
        resnet.apply(p, resnet.init_state(c), images, c, train=True)[0]
        for p, c in ((params, config), (more, deeper))
    ]
    assert jnp.allclose(*got, atol=1e-12)


def test_resnet_18_has_its_parameters():
    config = resnet.Config((224, 224, 3), (64, 128, 256, 512), (2, 2, 2, 2), classes=1000, stem=7)
    sizes = [leaf.size for leaf in jax.tree.leaves(jax.eval_shape(lambda: resnet.init(key(), config)))]
    assert sum(sizes) == 11_689_512  # torchvision's resnet18
    logits, _ = jax.eval_shape(
        lambda: resnet.apply(
            resnet.init(key(), config),
            resnet.init_state(config),
            jnp.ones((1, 224, 224, 3)),
            config,
            train=False,
        )
    )
    assert logits.shape == (1, 1000)


def test_resnet_says_what_is_wrong(unchecked):
    with pytest.raises(ValueRangeError, match="2 channels for 1 stages"):
        resnet.Config((8, 8, 3), channels=(3, 5), blocks=(1,))
    with pytest.raises(ValueRangeError, match="stem is 5"):
        resnet.Config((8, 8, 3), stem=5)
    with pytest.raises(ShapeError, match="another shape"):
        resnet.apply(
            resnet.init(key(), RESNET), resnet.init_state(RESNET), jnp.ones((2, 8, 8)), RESNET, train=False
        )


def test_convnet_says_what_images_it_wants(unchecked):
    params = convnet.init(key(), convnet.Config((8, 8, 1)))
    with pytest.raises(ShapeError) as error:
        convnet.apply(params, jnp.ones((5, 8, 8)), convnet.Config((8, 8, 1)))
    assert error.value.hint == "is the channel axis missing? images[..., None] adds it."
    with pytest.raises(ShapeError, match="4 stages halve the image to nothing"):
        convnet.init(key(), convnet.Config((8, 8, 1), channels=(2, 2, 2, 2)))
