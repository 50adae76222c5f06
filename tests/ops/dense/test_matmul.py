import jax
import jax.numpy as jnp
import numpy as np

from funcnet.errors import DTypeError, ShapeError
from funcnet.ops.dense import matmul
from tests.errors import golden


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


A, B = normal(5, 1, 2, 3), normal(7, 3, 4, seed=1)


def test_leading_axes_broadcast_and_their_gradients_are_summed():
    c, pullback = matmul.vjp(A, B)
    da, db = pullback(jnp.ones_like(c))
    assert c.shape == (5, 7, 2, 4)
    np.testing.assert_allclose(da[2, 0], np.asarray([B.sum((0, 2))] * 2), rtol=1e-5)
    np.testing.assert_allclose(db[6], np.asarray([A.sum((0, 1, 2))] * 4).T, rtol=1e-5)


def test_associative():
    a, b, c = normal(2, 3), normal(3, 5, seed=1), normal(5, 2, seed=2)
    left, right = matmul.apply(matmul.apply(a, b), c), matmul.apply(a, matmul.apply(b, c))
    np.testing.assert_allclose(left, right, rtol=1e-5)


def test_result_is_in_the_wider_dtype():
    b = B.astype(jnp.bfloat16)
    c, pullback = matmul.vjp(A, b)
    assert c.dtype == jnp.float32
    assert [g.dtype for g in pullback(c)] == [jnp.float32, jnp.bfloat16]


def test_sums_of_bfloat16_are_wide():
    ones = jnp.ones((1, 1000), jnp.bfloat16)
    assert matmul.apply(ones, ones.T).item() == 1000  # in bfloat16, 256 + 1 is 256


def test_residuals_are_the_operands():
    assert [v.shape for v in jax.tree.leaves(matmul.vjp(A, B)[1])] == [A.shape, B.shape]


ERRORS = [
    (
        lambda: matmul.apply(A, B.mT),
        ShapeError,
        "matmul.apply: a has 3 columns, but b has 4 rows.\n"
        "  expected  b: float[*m, 3, j]     (a: float32[5, 1, 2, 3])\n"
        "  got       b: float32[7, 4, 3]\n"
        "  hint      the transpose of b fits: b.mT.",
    ),
    (
        lambda: matmul.apply(A.mT, B),
        ShapeError,
        "matmul.apply: a has 2 columns, but b has 3 rows.\n"
        "  expected  b: float[*m, 2, j]     (a: float32[5, 1, 3, 2])\n"
        "  got       b: float32[7, 3, 4]\n"
        "  hint      the transpose of a fits: a.mT.",
    ),
    (
        lambda: matmul.apply(A, normal(5, 6)),
        ShapeError,
        "matmul.apply: a has 3 columns, but b has 5 rows.\n"
        "  expected  b: float[*m, 3, j]     (a: float32[5, 1, 2, 3])\n"
        "  got       b: float32[5, 6]",
    ),
    (
        lambda: matmul.apply(A[0, 0], B[0, :, 0]),
        ShapeError,
        "matmul.apply: b has rank 1, but at least 2 is needed.\n"
        "  expected  b: float[*m, k, j]\n"
        "  got       b: float32[3]\n"
        "  hint      as a row: b[None]; as a column: b[:, None].",
    ),
    (
        lambda: matmul.apply(A[:, 0], B),
        ShapeError,
        "matmul.apply: the leading axes of a and b do not broadcast.\n"
        "  expected  b: leading axes that broadcast with (5,)     (a: float32[5, 2, 3])\n"
        "  got       b: float32[7, 3, 4]",
    ),
    (
        lambda: matmul.apply(A, B.astype(jnp.int32)),
        DTypeError,
        "matmul.apply: b has dtype int32, but a float is needed.\n"
        "  expected  b: float[...]\n"
        "  got       b: int32[7, 3, 4]\n"
        "  hint      cast it: b.astype(jnp.float32).",
    ),
    (
        lambda: matmul.matrix(B[0], (2, 4)),
        ShapeError,
        "matmul.matrix: in_shape is (2, 4), but b is float32[3, 4].\n  expected  (i, 3)\n  got       (2, 4)",
    ),
]

test_errors = golden(ERRORS)
