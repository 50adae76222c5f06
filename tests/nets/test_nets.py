"""Every net: specs describe params, configs are static, apply gives what it says; then what is special."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from funcnet.errors import ShapeError, ValueRangeError
from funcnet.nets import convnet, crnn, encoder, mamba, mlp, recurrent, resnet, transformer, vad, vit
from funcnet.spec import Spec, decay_mask

MLP = mlp.Config((3, 5, 7))
CONVNET = convnet.Config((8, 6, 2), channels=(3, 5), depth=2, hidden=7, classes=4, dropout=0.5)
DECODER = transformer.Config(vocabulary=11, context=7, layers=3, heads=2, d=6, dropout=0.5)
RESNET = resnet.Config((8, 8, 2), channels=(3, 5), blocks=(1, 2), classes=4)
BOTTLENECKS = resnet.Config((16, 16, 2), (3, 5), (1, 1), classes=4, stem=7, bottleneck=True)
NETS = [
    (mlp, MLP),
    (mlp, mlp.Config((3, 5), bias=False)),
    (convnet, CONVNET),
    (crnn, crnn.Config(8, 4, channels=(2, 3), hidden=3, cell="lstm")),
    (crnn, crnn.Config(8, 4, layers=0)),
    (transformer, DECODER),
    (recurrent, recurrent.Config(3, 2, layers=2, bidirectional=True, projection=4)),
    (recurrent, recurrent.Config(3, 2, cell="gru", bias=False)),
    (mamba, mamba.Config(11, layers=2, d=3, state=4, tied=False, bias=True)),
    (vad, vad.Config(window=8, channels=(3, 2, 4, 5), hidden=6)),
    (resnet, RESNET),
    (resnet, BOTTLENECKS),
    (encoder, encoder.Config(vocabulary=11, context=7, layers=3, heads=2, d=6)),
    (encoder, encoder.Config(vocabulary=11, context=7, layers=3, heads=2, d=6, pooler=False)),
    (
        encoder,
        encoder.Config(vocabulary=11, context=7, layers=1, heads=2, d=6, head="masked", next_sentence=True),
    ),
    (encoder, encoder.Config(vocabulary=11, context=7, layers=1, heads=2, d=6, head="sequence", classes=5)),
    (transformer, dataclasses.replace(DECODER, layers=1, head="sequence", classes=5)),
    (transformer, dataclasses.replace(DECODER, layers=1, head="answer", classes=5)),
    (transformer, dataclasses.replace(DECODER, layers=1, head=None, tied=False)),
    (vit, vit.Config((6, 4, 3), patch=(3, 2), layers=1, heads=2, d=6, classes=None, pooler=True)),
    (vit, vit.Config((6, 4, 3), patch=(3, 2), layers=3, heads=2, d=6, classes=4)),
    (vit, vit.Config((6, 4, 3), patch=(3, 2), layers=3, heads=2, d=6, classes=None, qkv_bias=False)),
]


def key(i=0):
    return jax.random.key(i)


def described(net, config):
    """Its parameters, not drawn."""
    return jax.eval_shape(lambda: net.init(key(), config))


def is_spec(v):
    return isinstance(v, Spec)


@pytest.mark.parametrize(("net", "config"), NETS, ids=lambda v: getattr(v, "__name__", "config"))
def test_specs_describe_params(net, config):
    params, specs = described(net, config), net.specs(config)
    assert jax.tree.structure(params) == jax.tree.structure(specs, is_leaf=is_spec)
    for leaf, spec in zip(jax.tree.leaves(params), jax.tree.leaves(specs, is_leaf=is_spec), strict=True):
        assert (leaf.shape, leaf.dtype, leaf.ndim) == (spec.shape, spec.dtype, len(spec.axes))


@pytest.mark.parametrize(("net", "config"), NETS, ids=lambda v: getattr(v, "__name__", "config"))
def test_matrices_decay_and_vectors_do_not(net, config):
    mask = decay_mask(net.specs(config))
    for path, decays in jax.tree.leaves_with_path(mask):
        text = jax.tree_util.keystr(path)
        assert decays == (text.endswith(("['w']", "['u']")) and "norm" not in text), text
    jax.eval_shape(optax.adamw(1e-3, mask=mask).init, described(net, config))


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


@pytest.mark.parametrize("bottleneck", [False, True])
def test_resnet_blocks_start_as_the_identity(bottleneck):
    """With the last gain of each block at 0, a stage of equal sizes returns its (positive) input."""
    config = resnet.Config((8, 8, 2), channels=(3,), blocks=(1,), classes=4, bottleneck=bottleneck)
    deeper = dataclasses.replace(config, blocks=(3,))
    params, images = resnet.init(key(), config), jax.random.normal(key(1), (7, 8, 8, 2))
    more = resnet.init(key(), deeper)
    more = {**params, "stages": [[*params["stages"][0], *more["stages"][0][1:]]]}
    got = [
        resnet.apply(p, resnet.init_state(c), images, c, train=True)[0]
        for p, c in ((params, config), (more, deeper))
    ]
    assert jnp.allclose(*got, atol=1e-12)


@pytest.mark.parametrize(
    ("blocks", "bottleneck", "parameters", "statistics"),
    [((2, 2, 2, 2), False, 11_689_512, 9_600), ((3, 4, 6, 3), True, 25_557_032, 53_120)],
    ids=["ResNet-18", "ResNet-50"],
)
def test_resnets_have_their_parameters(blocks, bottleneck, parameters, statistics):
    config = resnet.Config(
        (224, 224, 3), (64, 128, 256, 512), blocks, classes=1000, stem=7, bottleneck=bottleneck
    )
    params = jax.eval_shape(lambda: resnet.init(key(), config))
    state = jax.eval_shape(lambda: resnet.init_state(config))
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    assert (count(params), count(state)) == (parameters, statistics)  # torchvision's
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    logits, _ = jax.eval_shape(lambda *args: resnet.apply(*args, config, train=False), params, state, images)
    assert logits.shape == (1, 1000)


@pytest.mark.slow
@pytest.mark.parametrize("size", [16, 17])
@pytest.mark.parametrize("bottleneck", [False, True])
def test_resnet_is_that_of_torch(size, bottleneck):
    """Loss, every gradient, every running statistic; padded as PyTorch's models are, from the same params."""
    torch = pytest.importorskip("torch")
    config = resnet.Config(
        (size, size, 2), (3, 5), (1, 2), classes=4, stem=7, bottleneck=bottleneck, padding="symmetric"
    )
    leaves, tree = jax.tree.flatten(resnet.init(key(), config))
    keys = jax.random.split(key(1), len(leaves))
    leaves = [v + 0.1 * jax.random.normal(k, v.shape, v.dtype) for k, v in zip(keys, leaves, strict=True)]
    params, state = jax.tree.unflatten(tree, leaves), resnet.init_state(config)
    images, labels = jax.random.normal(key(2), (7, *config.image)), jnp.arange(7) % 4

    def ours(params):
        logits, new = resnet.apply(params, state, images, config, train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), new

    (loss, new), grads = jax.jit(jax.value_and_grad(ours, has_aux=True))(params)
    theirs = jax.tree.map(lambda v: torch.tensor(np.asarray(v)).requires_grad_(), params)
    statistics = jax.tree.map(lambda v: torch.tensor(np.asarray(v)), state)
    logits = in_torch(theirs, statistics, torch.tensor(np.asarray(images)).permute(0, 3, 1, 2))
    error = torch.nn.functional.cross_entropy(logits, torch.tensor(np.asarray(labels)))
    error.backward()
    assert float(loss) == pytest.approx(error.item(), abs=1e-12)
    for got, want in zip(jax.tree.leaves(grads), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(got, want.grad, atol=1e-11)
    for got, want in zip(jax.tree.leaves(new), jax.tree.leaves(statistics), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-12)


def in_torch(params, state, x):
    """Logits of x [n, c, h, w]; the arrays of the state are changed in place."""
    from torch.nn import functional

    def conv(layer, x, stride):
        w = layer["w"].permute(3, 2, 0, 1)
        return functional.conv2d(x, w, stride=stride, padding=w.shape[-1] // 2)

    def norm(layer, old, x):
        return functional.batch_norm(x, old["mean"], old["var"], layer["w"], layer["b"], True, 0.1)

    stem = params["stem"]
    x = functional.relu(norm(stem["norm"], state["stem"]["norm"], conv(stem["conv"], x, 2)))
    x = functional.max_pool2d(x, 3, 2, 1)
    for i, (blocks, olds) in enumerate(zip(params["stages"], state["stages"], strict=True)):
        for j, (block, old) in enumerate(zip(blocks, olds, strict=True)):
            stride, y = 2 if i and not j else 1, x
            count = 3 if "conv3" in block else 2
            for k in range(1, count + 1):
                strided = k == count - 1  # the 3×3 one of a bottleneck, the first of two
                y = conv(block[f"conv{k}"], y, stride if strided else 1)
                y = norm(block[f"norm{k}"], old[f"norm{k}"], y)
                y = functional.relu(y) if k < count else y
            if "project" in block:
                x = norm(block["norm"], old["norm"], conv(block["project"], x, stride))
            x = functional.relu(x + y)
    return x.mean((2, 3)) @ params["head"]["w"] + params["head"]["b"]


@pytest.mark.slow
def test_resnet_pads_alike_where_lengths_are_odd():
    for size, equal in ((17, True), (16, False)):
        config = dataclasses.replace(BOTTLENECKS, image=(size, size, 2))
        same, symmetric = (
            resnet_logits(dataclasses.replace(config, padding=p)) for p in ("same", "symmetric")
        )
        assert jnp.allclose(same, symmetric, atol=1e-12) == equal


def test_resnet_computes_in_its_dtype():
    logits = resnet_logits(dataclasses.replace(BOTTLENECKS, dtype="bfloat16"))
    want = resnet_logits(BOTTLENECKS)
    assert logits.dtype == jnp.bfloat16
    error = abs(logits.astype(want.dtype) - want).max()
    assert 0 < error < 0.1 * abs(want).max()


def resnet_logits(config):
    """Of images and params that depend on no option; the statistics keep their dtype."""
    params, state = resnet.init(key(), config), resnet.init_state(config)
    images = jax.random.normal(key(1), (7, *config.image))
    logits, new = jax.jit(resnet.apply, static_argnames="train")(params, state, images, config, train=True)
    assert [leaf.dtype for leaf in jax.tree.leaves(new)] == [leaf.dtype for leaf in jax.tree.leaves(state)]
    return logits


def test_resnet_says_what_is_wrong(unchecked):
    with pytest.raises(ValueRangeError, match="2 channels for 1 stages"):
        resnet.Config((8, 8, 3), channels=(3, 5), blocks=(1,))
    with pytest.raises(ValueRangeError, match="stem is 5"):
        resnet.Config((8, 8, 3), stem=5)
    with pytest.raises(ValueRangeError, match='padding is "valid"'):
        resnet.Config((8, 8, 3), padding="valid")
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
