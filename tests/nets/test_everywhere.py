"""Every net wherever plain JAX runs: traced, forward and gradient, not compiled."""

import contextlib

import jax
import jax.numpy as jnp
import optax
import pytest

import funcnet as fn
from funcnet.nets import convnet, crnn, encoder, mamba, mlp, recurrent, resnet, transformer, vad, vit
from tests import laws
from tests.budget import few

KEY = jax.random.key(0)
IMAGE = ("b, 8, 8, 3", "float64")
TOKENS = ("b, t", "int32")
SMALL = {"layers": 1, "heads": 2, "d": 4, "dropout": 0.1}


def _resnet(stem, **options):
    config = resnet.Config((8, 8, 3), (2, 3), (1, 1), stem=stem, **options)
    state = resnet.init_state(config)
    return config, lambda params, x, key: resnet.apply(params, state, x, config, train=True)


def _with_key(net, config, **options):
    return config, lambda params, x, key: net.apply(params, x, config, key=key, **options)


def _mlp(config):
    return config, lambda params, x, key: mlp.apply(params, x, config)


def _mamba(config):
    return config, lambda params, ids, key: mamba.apply(params, ids, config)


def _vad(config):
    return config, lambda params, x, key: vad.apply(params, x, config)


def _encoder(config):
    def apply(params, ids, key):
        mask = ids >= 0
        return encoder.pool(encoder.apply(params, ids, config, mask=mask, types=ids, key=key), mask=mask)

    return config, apply


def _decoder(**options):
    return transformer.Config(7, context=8, **SMALL | options)


NETS = {
    "mlp": (mlp, *_mlp(mlp.Config((5, 3, 2))), ("b, 5", "float64")),
    "convnet": (
        convnet,
        *_with_key(convnet, convnet.Config((8, 8, 3), (2, 3), hidden=2, dropout=0.1)),
        IMAGE,
    ),
    "crnn": (
        crnn,
        *_with_key(crnn, crnn.Config(4, 3, channels=(2, 2), hidden=2, dropout=0.1, padding=0.0)),
        ("b, 7, 4", "float64"),
    ),
    "recurrent": (
        recurrent,
        *_with_key(
            recurrent,
            recurrent.Config(5, 3, layers=2, bidirectional=True, projection=2, dropout=0.1, one_mask=True),
        ),
        ("b, 7, 5", "float64"),
    ),
    "mamba": (mamba, *_mamba(mamba.Config(7, layers=2, d=3, state=2, chunk=2)), TOKENS),
    "vad": (vad, *_vad(vad.Config(window=8, channels=(3, 2, 4, 5), hidden=6)), ("b, 40", "float64")),
    "resnet": (resnet, *_resnet(3), IMAGE),
    "resnet with bottlenecks": (resnet, *_resnet(7, bottleneck=True, padding="symmetric"), IMAGE),
    "transformer": (transformer, *_with_key(transformer, _decoder()), TOKENS),
    "transformer with rope": (
        transformer,
        *_with_key(
            transformer, _decoder(positions="rope", norm="rms", mlp="swiglu", windows=(3,), kv_heads=1)
        ),
        TOKENS,
    ),
    "transformer with alibi": (
        transformer,
        *_with_key(transformer, _decoder(positions="alibi", layers=3, unroll=1, remat=True)),
        TOKENS,
    ),
    "encoder": (encoder, *_encoder(encoder.Config(7, 8, **SMALL, attention_dropout=0.1)), TOKENS),
    "vit": (
        vit,
        *_with_key(vit, vit.Config((8, 8, 3), (4, 4), classes=3, **SMALL, attention_dropout=0.1)),
        IMAGE,
    ),
}


def drawn(net, config):
    """The shapes of params."""
    return jax.eval_shape(lambda: net.init(KEY, config))


def gradient(apply):
    def loss(params, x, key):
        return sum(jnp.sum(jnp.sin(y)) for y in jax.tree.leaves(apply(params, x, key)))

    return jax.grad(loss)


def sized(of, **sizes):
    shape, dtype = of
    return jax.ShapeDtypeStruct([sizes.get(s) or int(s) for s in shape.split(", ")], dtype)


@contextlib.contextmanager
def strict():
    with jax.numpy_rank_promotion("raise"), jax.checking_leaks(), jax.debug_key_reuse(True):
        yield


FAST = ("mlp", "convnet", "transformer")


@pytest.mark.parametrize("name", few(NETS, FAST))
def test_nothing_is_broadcast_leaks_or_is_drawn_twice(name):
    net, config, apply, of = NETS[name]
    with strict():
        jax.eval_shape(gradient(apply), drawn(net, config), sized(of, b=2, t=5), jax.random.key(1))


@pytest.mark.slow
@pytest.mark.parametrize(("net", "config", "apply", "of"), NETS.values(), ids=NETS)
def test_batch_and_length_may_be_symbols(net, config, apply, of):
    b, t = jax.export.symbolic_shape("b, t")
    key = jax.ShapeDtypeStruct(KEY.shape, KEY.dtype)
    args = drawn(net, config), sized(of, b=b, t=t), key
    with laws.unchecked():
        jax.eval_shape(gradient(apply), *args)
        jax.export.export(jax.jit(apply), platforms=["cpu", "cuda"])(*args)


@pytest.mark.slow
def test_a_step_and_a_decoded_token_broadcast_nothing():
    config = _decoder()
    loss = lambda params, ids, key: fn.cross_entropy.apply(
        transformer.apply(params, ids, config, key=key), ids
    ).mean()
    optimizer = optax.adamw(1e-3)
    params, ids = drawn(transformer, config), jax.ShapeDtypeStruct((2, 5), "int32")
    with strict():
        state = jax.eval_shape(lambda p: fn.train.init(p, optimizer, key=jax.random.key(2)), params)
        jax.eval_shape(fn.train.make_step(loss, optimizer), state, ids)
    for positions in ("learned", "rope", "alibi"):
        config = _decoder(positions=positions)
        with strict():
            cache = jax.eval_shape(lambda config=config: transformer.init_cache(config, 2, 8))
            for t in (1, 3):
                ids = jax.ShapeDtypeStruct((2, t), "int32")
                jax.eval_shape(
                    lambda p, i, c, config=config: transformer.decode(p, i, c, config),
                    drawn(transformer, config), ids, cache,
                )  # fmt: skip
