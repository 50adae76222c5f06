import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet.errors import DTypeError, ShapeError, StructureError, ValueRangeError
from funcnet.ops.dense import embedding
from tests.errors import golden

PARAMS = {"w": jnp.asarray(np.random.default_rng(0).standard_normal((5, 3)), jnp.float32)}
IDS = jnp.asarray([[4, 0, 2], [2, 2, 1]], jnp.int32)


def gradient(params, ids):
    return jax.grad(lambda p: embedding.apply(p, ids).sum())(params)["w"]


def test_init():
    w = embedding.init(jax.random.key(0), 1000, 20)["w"]
    assert w.shape == (1000, 20)
    assert abs(w.var() - 1) < 0.05


def test_is_a_product_with_one_hot_rows():
    one_hot = jax.nn.one_hot(IDS, 5, dtype=jnp.float32)
    np.testing.assert_allclose(embedding.apply(PARAMS, IDS), one_hot @ PARAMS["w"], rtol=1e-6)
    dy = jnp.arange(18, dtype=jnp.float32).reshape(2, 3, 3)
    (grads, dids) = embedding.vjp(PARAMS, IDS)[1](dy)
    np.testing.assert_allclose(grads["w"], jnp.einsum("abv,abd->vd", one_hot, dy), rtol=1e-6)
    assert dids is None


def test_rows_chosen_twice_collect_both_cotangents():
    assert gradient(PARAMS, IDS)[:, 0].tolist() == [1, 1, 3, 0, 1]


def test_traced_ids_out_of_range_give_zeros_and_no_gradient():
    ids = jnp.asarray([-1, 3, 5, -5, 1000])
    y, dw = jax.jit(lambda ids: (embedding.apply(PARAMS, ids), gradient(PARAMS, ids)))(ids)
    np.testing.assert_array_equal(y, jnp.zeros((5, 3), jnp.float32).at[1].set(PARAMS["w"][3]))
    assert dw.tolist() == [[0] * 3] * 3 + [[1] * 3] + [[0] * 3]
    np.testing.assert_array_equal(embedding.reference(PARAMS, ids), y)


@pytest.mark.parametrize("dtype", ["uint8", "uint32", "int64"])
def test_every_integer_counts_as_far_as_it_goes(dtype):
    params, ids = {"w": jnp.arange(600.0).reshape(300, 2)}, jnp.asarray([255, 0], dtype)
    assert embedding.apply(params, ids).tolist() == [[510, 511], [0, 1]]
    assert jnp.nonzero(gradient(params, ids)[:, 0])[0].tolist() == [0, 255]


def test_an_id_beyond_32_bits_is_out_of_range():
    ids = jnp.asarray([2**32 + 1, 1])
    np.testing.assert_array_equal(jax.jit(embedding.apply)(PARAMS, ids), [[0] * 3, PARAMS["w"][1]])
    np.testing.assert_array_equal(embedding.reference(PARAMS, ids), [[0] * 3, PARAMS["w"][1]])


def test_gradient_in_bfloat16_adds_in_float32():
    params, ids = {"w": jnp.zeros((2, 1), jnp.bfloat16)}, jnp.zeros(1000, jnp.int32)
    assert gradient(params, ids)[0].item() == 1000  # in bfloat16, 256 + 1 is 256


def test_residuals_are_the_ids():
    assert [v.shape for v in jax.tree.leaves(embedding.vjp(PARAMS, IDS)[1])] == [IDS.shape]


def test_a_bad_row_of_the_cotangent_stays_where_it_is():
    """On every platform: no product with one-hot rows, in which 0 · NaN would reach every row."""
    dy = jnp.ones((2, 3, 3), jnp.float32).at[0, 0].set(jnp.nan)
    (dw, _) = embedding.vjp(PARAMS, IDS)[1](dy)
    assert jnp.isnan(dw["w"]).any(1).tolist() == [i == int(IDS[0, 0]) for i in range(5)]
    params = {"w": jax.ShapeDtypeStruct((5, 3), "float32")}
    program = jax.export.export(jax.jit(gradient), platforms=["cuda"])(params, IDS).mlir_module()
    assert "stablehlo.dot_general" not in program


def test_padding_is_looked_up_and_stays_what_it_is():
    params = embedding.init(jax.random.key(0), 5, 3, padding_index=2)
    assert jnp.any(params["w"] == 0, 1).tolist() == [False, False, True, False, False]
    ids = jnp.asarray([0, 2, 2, 4])
    np.testing.assert_array_equal(embedding.apply(PARAMS, ids, padding_index=2), PARAMS["w"][ids])
    loss = lambda p, **how: embedding.apply(p, ids, **how).sum()
    assert jax.grad(loss)(PARAMS)["w"][2].tolist() == [2, 2, 2]
    got = jax.grad(lambda p: loss(p, padding_index=2))(PARAMS)["w"]
    assert got.tolist() == [[1] * 3, [0] * 3, [0] * 3, [0] * 3, [1] * 3]


ERRORS = [
    (
        lambda: embedding.apply(PARAMS, IDS, padding_index=5),
        ValueRangeError,
        "embedding.apply: padding_index is 5, but w has 5 rows.\n"
        "  expected  0 ≤ padding_index < 5\n"
        "  got       padding_index = 5",
    ),
    (
        lambda: embedding.apply(PARAMS, IDS + 3),
        ValueRangeError,
        "embedding.apply: ids hold 7, outside [0, 5).\n"
        '  expected  0 ≤ ids < 5     (params["w"]: float32[5, 3])\n'
        "  got       ids: int32[2, 3], 4 of 6 outside, from 5 to 7",
    ),
    (
        lambda: embedding.apply(PARAMS, IDS - 1),
        ValueRangeError,
        "embedding.apply: ids hold -1, outside [0, 5).\n"
        '  expected  0 ≤ ids < 5     (params["w"]: float32[5, 3])\n'
        "  got       ids: int32[2, 3], 1 of 6 outside, from -1 to -1\n"
        "  hint      to count from the last row, as Python does: ids % 5.",
    ),
    (
        lambda: embedding.apply(PARAMS, IDS + 1),
        ValueRangeError,
        "embedding.apply: ids hold 5, outside [0, 5).\n"
        '  expected  0 ≤ ids < 5     (params["w"]: float32[5, 3])\n'
        "  got       ids: int32[2, 3], 1 of 6 outside, from 5 to 5\n"
        "  hint      do they count from 1? ids - 1.",
    ),
    (
        lambda: embedding.apply(PARAMS, IDS.astype(jnp.float32)),
        DTypeError,
        "embedding.apply: ids are not an array of integers.\n"
        "  expected  ids: int[*n]\n"
        "  got       ids: float32[2, 3]\n"
        "  hint      cast them: ids.astype(jnp.int32).",
    ),
    (
        lambda: embedding.apply(PARAMS, jax.nn.one_hot(IDS, 5, dtype=jnp.float32)),
        DTypeError,
        "embedding.apply: ids are not an array of integers.\n"
        "  expected  ids: int[*n]\n"
        "  got       ids: float32[2, 3, 5]\n"
        "  hint      are they one-hot? ids.argmax(-1).",
    ),
    (
        lambda: embedding.apply(PARAMS, [0, 1]),
        DTypeError,
        "embedding.apply: ids are not an array of integers.\n"
        "  expected  ids: int[*n]\n"
        "  got       ids: a list\n"
        "  hint      wrap them: jnp.asarray(...).",
    ),
    (
        lambda: embedding.apply({"w": PARAMS["w"][0]}, IDS),
        ShapeError,
        'embedding.apply: params["w"] has rank 1, but 2 is needed.\n'
        '  expected  params["w"]: rank 2\n'
        '  got       params["w"]: float32[3]',
    ),
    (
        lambda: embedding.apply({}, IDS),
        StructureError,
        'embedding.apply: params has no "w".\n  expected  the key "w"\n  got       keys: none',
    ),
    (
        lambda: embedding.init(jax.random.key(0), 0, 3),
        ValueRangeError,
        "embedding.init: vocabulary is 0, but at least 1 is needed.\n"
        "  expected  vocabulary ≥ 1\n"
        "  got       vocabulary = 0",
    ),
]

test_errors = golden(ERRORS)
