"""The vision transformer: patches, the class token, positions, dropout and the forms of the stack."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnet as fn
from funcnet.errors import DTypeError, ShapeError, ValueRangeError
from funcnet.nets import vit
from tests.errors import golden

CONFIG = vit.Config((6, 4, 3), patch=(3, 2), layers=3, heads=2, d=6, d_hidden=5, classes=4, unroll=1)


apply = jax.jit(vit.apply)


def key(i=0):
    return jax.random.key(i)


def changed(**fields):
    return dataclasses.replace(CONFIG, **fields)


@pytest.fixture(scope="module")
def params():
    """Away from where init puts them: no bias is 0, no gain 1."""
    moved = lambda w: w + 0.3 * jax.random.normal(key(9), w.shape)
    return jax.jit(lambda: jax.tree.map(moved, vit.init(key(), CONFIG)))()


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(key(1), (2, 6, 4, 3))


def test_patches_are_cut_row_by_row(images):
    rows = vit.patches(images, (3, 2))
    assert rows.shape == (2, 4, 18)
    for i in range(2):
        for j in range(2):
            want = np.asarray(images)[:, 3 * i : 3 * i + 3, 2 * j : 2 * j + 2].reshape(2, -1)
            assert np.array_equal(rows[:, 2 * i + j], want)


def test_the_linear_map_of_patches_is_a_convolution_with_their_stride(params, images):
    p = params["patches"]
    kernel = {"w": p["w"].reshape(3, 2, 3, 6), "b": p["b"]}
    want = fn.conv.apply(kernel, images, stride=(3, 2), padding="valid")
    got = fn.linear.apply(p, vit.patches(images, (3, 2)))
    assert jnp.allclose(got, want.reshape(2, 4, 6), atol=1e-12)


def test_it_is_vit(params, images):
    """Against the definition, in plain jnp, layer by layer."""

    def norm(p, x):
        x = x - x.mean(-1, keepdims=True)
        return p["w"] * x / jnp.sqrt((x**2).mean(-1, keepdims=True) + CONFIG.norm_eps) + p["b"]

    def attention(p, x):
        q, k, v = (jnp.einsum("ntd,dhe->nhte", x, p[c]["w"]) + p[c]["b"][:, None] for c in "qkv")
        weights = jax.nn.softmax(jnp.einsum("nhte,nhse->nhts", q, k) / jnp.sqrt(3.0))
        return jnp.einsum("nhts,nhse,hed->ntd", weights, v, p["o"]["w"]) + p["o"]["b"]

    x = vit.patches(images, (3, 2)) @ params["patches"]["w"] + params["patches"]["b"]
    cls = jnp.broadcast_to(params["cls"], (2, 1, 6))
    x = jnp.concatenate([cls, x], 1) + params["positions"]["w"]
    for i in range(CONFIG.layers):
        p = jax.tree.map(lambda w, i=i: w[i], params["blocks"])
        x = x + attention(p["attention"], norm(p["norm1"], x))
        h = jax.nn.gelu(norm(p["norm2"], x) @ p["up"]["w"] + p["up"]["b"], approximate=False)
        x = x + h @ p["down"]["w"] + p["down"]["b"]
    x = norm(params["norm"], x)
    assert jnp.allclose(vit.hidden(params, images, CONFIG), x, rtol=0, atol=1e-12)
    logits = x[:, 0] @ params["head"]["w"] + params["head"]["b"]
    assert jnp.allclose(apply(params, images, CONFIG), logits, rtol=0, atol=1e-12)
    assert jnp.allclose(apply(params, images, changed(classes=None)), x[:, 0], rtol=0, atol=1e-12)


def test_dropout_needs_a_key_and_each_rate_does_something(params, images):
    want = apply(params, images, CONFIG)
    for name in ("dropout", "attention_dropout"):
        config = changed(**{name: 0.5})
        assert jnp.array_equal(apply(params, images, config), want)
        assert not jnp.allclose(apply(params, images, config, key=key(2)), want)
    assert jnp.array_equal(apply(params, images, CONFIG, key=key(2)), want)


def test_every_size_is_the_config_s():
    base = jax.eval_shape(lambda: vit.init(key(), vit.Config()))
    assert sum(leaf.size for leaf in jax.tree.leaves(base)) == 86_567_656  # ViT-B/16 with its head
    plain = jax.eval_shape(lambda: vit.init(key(), changed(classes=None, qkv_bias=False)))
    assert "head" not in plain
    assert [name for name in "qkvo" if "b" in plain["blocks"]["attention"][name]] == ["o"]


def test_it_computes_in_its_dtype(params, images):
    half = apply(params, images, changed(dtype="bfloat16"))
    assert half.dtype == jnp.bfloat16
    assert jnp.allclose(half.astype(float), apply(params, images, CONFIG), atol=0.2)


@pytest.mark.slow
def test_scan_equals_unrolled_and_rematerialised(params, images):
    loss = lambda c: lambda p: jnp.sin(apply(p, images, c, key=key(3))).sum()
    want = jax.grad(loss(changed(dropout=0.2, attention_dropout=0.2)))(params)
    for fields in ({"unroll": 3}, {"remat": True}):
        got = jax.grad(loss(changed(dropout=0.2, attention_dropout=0.2, **fields)))(params)
        errors = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), got, want)
        assert max(jax.tree.leaves(errors)) < 1e-10


@pytest.mark.slow
def test_every_formula_in_it_is_right(params, images):
    loss = lambda params, images, key: jnp.sin(apply(params, images, CONFIG)).sum()
    report = fn.verify_model(loss, params, images, key=key(4))
    assert report.ok, str(report)


test_errors = golden(
    [
        (
            lambda: vit.Config((6, 5, 3), patch=(3, 2)),
            ValueRangeError,
            "vit.Config: patches of (3, 2) do not tile an image of (6, 5).\n"
            "  expected  divisors of 6 and 5     (image)\n"
            "  got       patch = (3, 2)",
        ),
        (
            lambda: vit.apply({}, jnp.zeros((2, 3, 6, 4)), CONFIG),
            ShapeError,
            "vit.hidden: images have another shape than the model was made for.\n"
            "  expected  images: float[*n, 6, 4, 3]     (config.image)\n"
            "  got       images: float64[2, 3, 6, 4]\n"
            "  hint      channels first? jnp.moveaxis(images, -3, -1) puts them last.",
        ),
        (
            lambda: vit.apply({}, jnp.zeros((6, 4, 3), jnp.uint8), CONFIG),
            DTypeError,
            "vit.hidden: images has dtype uint8, but a float is needed.\n"
            "  expected  images: float[...]\n"
            "  got       images: uint8[6, 4, 3]\n"
            "  hint      cast it: images.astype(jnp.float32), divided by 255 if it is an image of bytes.",
        ),
    ]
)
