import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet.errors import DTypeError, ShapeError, StructureError, ValueRangeError
from funcnet.nets import crnn
from tests.budget import few

RNG = np.random.default_rng(0)
BY_STEP = crnn.Config(
    7, 3, channels=(2, 3), pools=((1, 2), (3, 1)), hidden=2, pooled=False, dropout=0.5, padding=0.0
)
WHOLE = dataclasses.replace(BY_STEP, pools=((2, 2), (2, 3)), cell="lstm", layers=2, pooled=True)
LENGTHS = [11, 6, 1]
MASK = jnp.arange(11) < jnp.asarray(LENGTHS)[:, None]
X = jnp.asarray(RNG.standard_normal((3, 11, 7)), jnp.float32)
apply = jax.jit(crnn.apply)


def init(config):
    """Drawn by NumPy, to compile nothing."""
    shapes = jax.eval_shape(lambda: crnn.init(jax.random.key(0), config))
    return jax.tree.map(lambda v: jnp.asarray(RNG.standard_normal(v.shape), jnp.float32), shapes)


@pytest.mark.parametrize("config", few([BY_STEP, WHOLE], 1), ids=["by step", "whole"])
def test_padding_has_no_influence(config):
    params = init(config)
    hostile = jnp.where(MASK[..., None], X, jnp.nan)
    masked = apply(params, hostile, config, mask=MASK)
    for i, length in enumerate(LENGTHS):
        alone = apply(params, X[i : i + 1, :length], config)[0]
        steps = alone.shape[0] if alone.ndim == 2 else None
        np.testing.assert_allclose(masked[i][:steps], alone, 1e-5, 1e-5)
        if steps is not None:
            assert steps == crnn.steps(length, config)
    by_config = apply(params, jnp.where(MASK[..., None], X, config.padding), config)
    np.testing.assert_allclose(by_config, masked, 1e-6, 1e-6)


def test_a_sequence_of_padding_has_the_bias_of_the_head():
    params = init(WHOLE)
    none = apply(params, X[:1], WHOLE, mask=jnp.zeros((1, 11), bool))[0]
    np.testing.assert_allclose(none, params["head"]["b"], 1e-6)


def test_without_recurrence_it_is_convolutions_and_a_mean():
    config = crnn.Config(5, 2, channels=(2,), pools=((2, 2),), layers=0)
    params = init(config)
    assert set(params) == {"stages", "head"}
    x, w = np.array(X[0, :7, :5]), np.array(params["stages"][0]["w"])[:, :, 0]
    padded = np.pad(x, 1)
    y = np.array([[(padded[i : i + 3, j : j + 3, None] * w).sum((0, 1)) for j in range(5)] for i in range(7)])
    y = np.pad(np.maximum(y + params["stages"][0]["b"], 0), ((0, 1), (0, 0), (0, 0)))
    pooled = np.array([[y[i : i + 2, j : j + 2].max((0, 1)) for j in (0, 2)] for i in range(0, 8, 2)])
    expected = pooled.reshape(4, -1).mean(0) @ params["head"]["w"] + params["head"]["b"]
    np.testing.assert_allclose(apply(params, jnp.asarray(x), config), expected, 1e-4, 1e-5)


def test_without_convolutions_the_recurrence_reads_the_frames():
    config = crnn.Config(7, 2, channels=(), pools=(), hidden=3)
    params = init(config)
    assert params["recurrent"]["layers"][0]["forward"]["w"].shape == (7, 9)
    assert apply(params, X, config).shape == (3, 2)


def test_dropout_needs_a_key():
    params = init(BY_STEP)
    plain, again = apply(params, X, BY_STEP), apply(params, X, BY_STEP, key=None)
    np.testing.assert_array_equal(plain, again)
    drawn = [apply(params, X, BY_STEP, key=jax.random.key(i)) for i in (0, 1)]
    assert float(jnp.abs(drawn[0] - drawn[1]).max()) > 0


def test_what_is_refused(unchecked):
    with pytest.raises(ShapeError, match="pools do not fit"):
        crnn.Config(8, 2, channels=(2,), pools=((1, 2), (1, 2)))
    with pytest.raises(ShapeError, match="that leave one of the 8 bands"):
        crnn.Config(8, 2, channels=(2, 2), pools=((1, 4), (1, 4)))
    with pytest.raises(ValueRangeError, match="dropout"):
        crnn.Config(8, 2, dropout=1.0)
    params = init(BY_STEP)
    with pytest.raises(ShapeError, match=r"x has 6 features in its last axis, but config\.d takes 7"):
        crnn.apply(params, X[..., :6], BY_STEP)
    with pytest.raises(ShapeError, match="does not say of every frame"):
        crnn.apply(params, X, BY_STEP, mask=MASK[:, 1:])
    with pytest.raises(DTypeError, match="mask is not a boolean array"):
        crnn.apply(params, X, BY_STEP, mask=MASK.astype(jnp.int32))
    with pytest.raises(StructureError, match="recurrent"):
        crnn.apply({name: params[name] for name in ("stages", "head")}, X, BY_STEP)
    with pytest.raises(StructureError, match="not a list of as many stages"):
        crnn.apply(params | {"stages": params["stages"][:1]}, X, BY_STEP)
