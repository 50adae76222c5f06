"""Which leaf is which matrix: the law that needs no table, and the wrong merges that it rejects.

At t positions dW = Xᵀ dY has rank ≤ t. So a leaf as [stack, in, out] has a gradient of rank ≤ t in every
entry of the stack, and no axis of the stack could be merged into in or out and keep it.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import ShapeDtypeStruct as Abstract

import funcnet as fn
from funcnet.errors import DTypeError, ShapeError, StructureError, ValueRangeError
from funcnet.linalg import as_matrices, from_matrices
from funcnet.nets import convnet, crnn, encoder, mlp, recurrent, resnet, transformer, vad, vit
from funcnet.spec import Spec, is_spec, of, stacked, tree

# Heads, features and groups are large enough for a wrong merge to have a higher rank.
NETS = {
    "mlp": (mlp, mlp.Config((5, 6, 4)), 1),
    "transformer": (transformer, transformer.Config(11, context=3, layers=3, heads=3, d=12, kv_heads=3), 2),
    "llama": (
        transformer,
        transformer.Config(
            11, context=3, layers=3, heads=4, kv_heads=2, d=16, norm="rms", mlp="swiglu", bias=False,
            positions="rope", qk_norm=True, tied=False,
        ),
        2,
    ),
    "encoder": (
        encoder,
        encoder.Config(11, context=3, layers=3, heads=3, d=12, head="masked", pooler=False),
        2,
    ),
    "vit": (vit, vit.Config((2, 4, 3), patch=(2, 4), layers=3, heads=3, d=12, classes=5), 2),
    "resnet": (resnet, resnet.Config((2, 1, 3), channels=(4, 6), blocks=(1, 1), classes=5), 2),
    "recurrent": (
        recurrent,
        recurrent.Config(11, 12, layers=2, cell="gru", bidirectional=True, projection=9),
        2,
    ),
    "vad": (vad, vad.Config(window=16, channels=(9, 10, 11, 12), hidden=7), 4),
    "crnn": (
        crnn,
        crnn.Config(1, 5, channels=(4,), pools=((1, 1),), hidden=7, pooled=False),
        2,
    ),
    "convnet": (convnet, convnet.Config((4, 2, 3), channels=(4,), hidden=7, classes=5), 8),
}  # fmt: skip
GROUPED = fn.conv.init(jax.random.key(0), 6, 9, kernel=(3,), groups=3)
TRANSPOSED = fn.conv_transpose.init(jax.random.key(0), 9, 6, kernel=(3,), groups=3)
OPERATIONS = {
    "conv": (lambda p, x: fn.conv.apply(p, x, groups=3), GROUPED, (2, 6), fn.conv.specs(GROUPED, groups=3)),
    "conv_transpose": (
        lambda p, x: fn.conv_transpose.apply(p, x, groups=3),
        TRANSPOSED,
        (2, 9),
        fn.conv_transpose.specs(TRANSPOSED, groups=3),
    ),
}


def gradient(net, config, t):
    """Of one example at t positions, of a loss that sees every output; drawn at random, tables and all."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), config))
    params = jax.tree.map(lambda p: rng.normal(size=p.shape), shapes)
    if net in (transformer, encoder):
        x = rng.integers(0, config.vocabulary, (1, t))
    elif net in (recurrent, crnn):
        x = rng.normal(size=(1, t, config.d))
    elif net is vad:
        x = rng.normal(size=(1, config.frame))
    else:
        x = rng.normal(size=(1, *(config.sizes[:1] if net is mlp else config.image)))

    def outputs(params, x):
        if net is resnet:
            return resnet.apply(params, resnet.init_state(config), x, config, train=False)[0]
        y = net.apply(params, x, config)
        y = y[0] if net in (recurrent, vad) else y
        return encoder.logits(params, y, config) if net is encoder else y

    return pulled_back(outputs, params, x, rng)


def pulled_back(f, params, x, rng):
    """The gradient of params for a random cotangent, in one program."""
    params, x = jax.tree.map(jnp.asarray, (params, x))
    dy = jnp.asarray(rng.normal(size=jax.eval_shape(f, params, x).shape))
    grads = jax.jit(lambda params, x, dy: jax.vjp(lambda p: f(p, x), params)[1](dy)[0])(params, x, dy)
    return jax.tree.map(np.asarray, grads)


def ranks(m):
    """The largest rank in a stack."""
    return max(
        np.linalg.matrix_rank(each, tol=1e-9 * max(np.abs(each).max(), 1e-30)) for each in np.asarray(m)
    )


def kept(grad, spec, t):
    """The law, of one leaf."""
    if not isinstance(spec.matrix, tuple):
        return True
    if ranks(as_matrices(grad, spec)) > t:
        return False
    shape, roles = spec.matrix
    larger = [
        dataclasses.replace(spec, matrix=(shape, roles[:axis] + into + roles[axis + 1 :]))
        for axis, (n, role) in enumerate(zip(shape, roles, strict=True))
        if role == "s" and n > 1
        for into in "io"
    ]
    return all(ranks(as_matrices(grad, other)) > t for other in larger)


@pytest.mark.parametrize("name", NETS)
def test_the_law_of_matrices(name):
    net, config, t = NETS[name]
    grads, specs = gradient(net, config, t), net.specs(config)
    for path, spec in jax.tree.leaves_with_path(specs, is_leaf=is_spec):
        grad = grads
        for entry in path:
            grad = grad[getattr(entry, "key", getattr(entry, "idx", None))]
        assert kept(grad, spec, t), jax.tree_util.keystr(path)


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_law_of_groups(name):
    apply, params, shape, specs = OPERATIONS[name]
    rng = np.random.default_rng(0)
    grads = pulled_back(apply, params, rng.normal(size=(1, *shape)), rng)
    assert kept(grads["w"], specs["w"], shape[0])
    merged, roles = specs["w"].matrix
    wrong = dataclasses.replace(specs["w"], matrix=(merged, roles.replace("s", "i")))
    assert not kept(grads["w"], wrong, shape[0]), "the groups in one matrix"


WRONG = {
    "layers merged into in": lambda roles: roles.replace("s", "i"),
    "first axis against the rest": lambda roles: "i" + "o" * (len(roles) - 1),
    "last two axes, the rest stacked": lambda roles: "s" * (len(roles) - 2) + "io",
    "heads stacked": lambda roles: "siso" if roles == "sioo" else "ssio",
}


@pytest.mark.parametrize("merge", WRONG)
def test_a_wrong_merge_is_rejected(merge):
    net, config, t = NETS["transformer"]
    grads, specs = gradient(net, config, t)["blocks"]["attention"], net.specs(config)["blocks"]["attention"]
    found = []
    for name in "qkvo":
        spec = specs[name]["w"]
        wrong = dataclasses.replace(spec, matrix=(spec.shape, WRONG[merge](spec.matrix[1])))
        found.append(kept(grads[name]["w"], wrong, t))
    assert not all(found)


def test_heads_apart_are_matrices_too():
    params = fn.multihead.init(jax.random.key(0), 6, 2, head_width=5)
    apart, whole = fn.multihead.specs(params, heads_apart=True), fn.multihead.specs(params)
    assert as_matrices(params["q"]["w"], apart["q"]["w"]).shape == (2, 6, 5)
    assert as_matrices(params["q"]["w"], whole["q"]["w"]).shape == (1, 6, 10)
    assert as_matrices(params["o"]["w"], apart["o"]["w"]).shape == (2, 5, 6)
    assert as_matrices(params["o"]["w"], whole["o"]["w"]).shape == (1, 10, 6)


@pytest.mark.parametrize("name", [*NETS, *OPERATIONS])
def test_there_and_back(name):
    if name in NETS:
        net, config, _ = NETS[name]
        shapes, specs = jax.eval_shape(lambda: net.init(jax.random.key(0), config)), net.specs(config)
        params = jax.tree.map(lambda p: np.arange(p.size).reshape(p.shape), shapes)
    else:
        _, params, _, specs = OPERATIONS[name]
    there = lambda spec, leaf: leaf if spec.matrix is None else from_matrices(as_matrices(leaf, spec), spec)
    same = jax.tree.map(there, specs, params, is_leaf=is_spec)
    jax.tree.map(np.testing.assert_array_equal, same, params)


def test_a_group_of_a_convolution_is_a_convolution():
    m = as_matrices(GROUPED["w"], fn.conv.specs(GROUPED, groups=3)["w"])
    for group in range(3):
        alone = {"w": GROUPED["w"][..., 3 * group : 3 * group + 3]}
        np.testing.assert_array_equal(m[group], as_matrices(alone["w"], fn.conv.specs(alone)["w"])[0])


def test_a_stacked_table_is_a_stack_of_tables():
    spec = stacked(of(Abstract((7, 5), jnp.float32), "v d", "table"), 2)
    assert as_matrices(jnp.ones((2, 7, 5), jnp.float32), spec).shape == (2, 7, 5)


SPEC = of(Abstract((3, 5), "float32"), "i o", "io")
MISTAKES = [
    (lambda: as_matrices(jnp.ones((5, 3)), SPEC), ShapeError, "w is not the leaf of this spec"),
    (lambda: from_matrices(jnp.ones((3, 5)), SPEC), ShapeError, "m are not the matrices of this spec"),
    (lambda: as_matrices(jnp.ones(3), of(jnp.ones(3), "d")), StructureError, "the leaf is no matrix"),
    (lambda: Spec((3, 5), "float32", ("i",)), ShapeError, "1 axes are named, of a leaf with 2"),
    (lambda: Spec((3, 5), "float32", ("i", "o"), ((3, 5), "ii")), ValueRangeError, '"ii" does not say'),
    (lambda: Spec((3, 5), "float32", ("i", "o"), ((3, 4), "io")), ShapeError, "has no shape (3, 4)"),
    (lambda: fn.conv.specs(GROUPED, groups=2), ValueRangeError, "2 groups do not divide 9 channels"),
    (lambda: fn.conv.specs({"w": jnp.ones(3)}), ShapeError, 'params["w"] is no kernel'),
    (lambda: fn.linear.specs({"v": jnp.ones(3)}), StructureError, "params['v'] is no parameter of it"),
    (lambda: fn.linear.specs({"w": "x"}), StructureError, "params['w'] is no parameter of it"),
    (lambda: fn.spec.decay_mask({"w": 1}), DTypeError, "specs['w'] is no Spec"),
    (lambda: fn.spec.decay_mask(None), DTypeError, "specs is no Spec"),
    (lambda: fn.spec.decay_mask(transformer.Config(64, context=8)), DTypeError, "specs is no Spec"),
    (lambda: tree("f", {"w": jnp.ones((3, 5))}, {"w": ("d",)}), ShapeError, "1 axes are named"),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("call", "kind", "text"), MISTAKES)
def test_mistakes(call, kind, text):
    with pytest.raises(kind) as caught:
        call()
    assert text in str(caught.value)
