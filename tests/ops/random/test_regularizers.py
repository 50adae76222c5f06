import jax
import jax.numpy as jnp
import numpy as np

import funcnet as fn
from funcnet.errors import DTypeError, ShapeError
from tests.errors import golden

X = jnp.ones((64, 4, 3, 8), jnp.float32)
KEY = jax.random.key(3)


def test_what_belongs_together_goes_together():
    y = np.asarray(fn.drop_path.apply(X, rate=0.5, key=KEY))
    assert {tuple(np.unique(v)) for v in y} == {(0.0,), (2.0,)}
    y = np.asarray(fn.spatial_dropout.apply(X, rate=0.5, key=KEY))
    assert (y == y[:, :1, :1]).all()
    assert 0.4 < (y[:, 0, 0] > 0).mean() < 0.6
    assert not np.array_equal(y, fn.spatial_dropout.apply(X, rate=0.5, key=KEY, spatial=1))
    ids = jnp.arange(64) % 7
    y = np.asarray(fn.embedding_dropout.apply(X[:, 0, 0], ids=ids, vocabulary=7, rate=0.5, key=KEY))
    assert (y == y[np.asarray(ids)]).all()
    assert set(np.unique(y)) == {0.0, 2.0}


def test_a_word_that_is_none_is_left_out_and_small_ids_are_not_cut():
    ids = jnp.asarray([0, 7, -1], jnp.int32)
    y = fn.embedding_dropout.apply(jnp.ones((3, 2)), ids=ids, vocabulary=7, rate=1e-9, key=KEY)
    np.testing.assert_allclose(y[:, 0], [1, 0, 0])
    y = fn.embedding_dropout.apply(
        jnp.ones((1, 2)), ids=jnp.asarray([200], jnp.uint8), vocabulary=300, rate=1e-9, key=KEY
    )
    np.testing.assert_allclose(y, 1)


def test_evaluation_is_the_identity():
    for apply in (fn.drop_path.apply, fn.spatial_dropout.apply):
        assert apply(X, rate=0.5) is X
        assert apply(X, rate=0.0, key=KEY) is X


ERRORS = [
    (
        lambda: fn.drop_path.apply(jnp.ones(()), rate=0.5, key=KEY),
        ShapeError,
        "drop_path.apply: x has rank 0, but at least 1 is needed.\n"
        "  expected  x: float[n, ...]\n"
        "  got       x: float64[]\n"
        "  hint      is an axis missing? x[None] adds a batch, x[..., None] a channel axis.",
    ),
    (
        lambda: fn.embedding_dropout.apply(X, ids=jnp.zeros(3, jnp.int32), vocabulary=3, rate=0.5, key=KEY),
        ShapeError,
        "embedding_dropout.apply: ids do not name each row of x.\n"
        "  expected  ids: int[64, 4, 3]     (x: float32[64, 4, 3, 8])\n"
        "  got       ids: int32[3]",
    ),
    (
        lambda: fn.embedding_dropout.apply(X, ids=X[..., 0], vocabulary=3, rate=0.5, key=KEY),
        DTypeError,
        "embedding_dropout.apply: ids are not an array of integers.\n"
        "  expected  ids: int[64, 4, 3]     (x: float32[64, 4, 3, 8])\n"
        "  got       ids: float32[64, 4, 3]",
    ),
]

test_errors = golden(ERRORS)
