import jax
import jax.numpy as jnp
import numpy as np

from funcnet.errors import DTypeError, ShapeError
from funcnet.ops.elementwise import silu, swiglu
from tests.errors import golden

G = jnp.linspace(-6, 6, 101, dtype=jnp.float32)
U = jnp.cos(G)


def test_is_silu_times_up():
    np.testing.assert_allclose(swiglu.apply(G, U), silu.apply(G) * U, atol=1e-6)
    dg, du = jax.grad(lambda g, u: swiglu.apply(g, u).sum(), (0, 1))(G, U)
    np.testing.assert_allclose(dg, jax.grad(lambda g: (silu.apply(g) * U).sum())(G), atol=1e-6)
    np.testing.assert_allclose(du, silu.apply(G), atol=1e-6)


def test_large_elements_stay_finite():
    g, one = jnp.asarray([-1e4, 1e4]), jnp.ones(2)
    assert swiglu.apply(g, one).tolist() == [0, 1e4]
    dg, du = jax.grad(lambda g, u: swiglu.apply(g, u).sum(), (0, 1))(g, one)
    assert dg.tolist() == [0, 1]
    assert du.tolist() == [0, 1e4]


def test_one_rounding():
    g, u = G.astype(jnp.bfloat16), U.astype(jnp.bfloat16)
    exact = swiglu.apply(g.astype(jnp.float32), u.astype(jnp.float32))
    np.testing.assert_array_equal(swiglu.apply(g, u), exact.astype(jnp.bfloat16))


def test_mixed_dtypes_keep_theirs():
    g, u = G.astype(jnp.bfloat16), U
    y, pullback = swiglu.vjp(g, u)
    assert y.dtype == swiglu.apply(g, u).dtype == jnp.float32
    assert [v.dtype for v in pullback(y)] == [jnp.bfloat16, jnp.float32]


def test_residuals_are_gate_and_up():
    kept = jax.tree.leaves(swiglu.vjp(G, U)[1])
    assert [a is b for a, b in zip(kept, (G, U), strict=True)] == [True, True]


ERRORS = [
    (
        lambda: swiglu.apply(G[:, None], U),
        ShapeError,
        "swiglu.apply: up and gate have different shapes.\n"
        "  expected  up: float32[101, 1]     (the shape of gate)\n"
        "  got       up: float32[101]\n"
        "  hint      they differ by an axis of size 1: up.reshape(101, 1) fits.",
    ),
    (
        lambda: swiglu.apply(G, U.astype(jnp.int32)),
        DTypeError,
        "swiglu.apply: up has dtype int32, but a float is needed.\n"
        "  expected  up: float[...]\n"
        "  got       up: int32[101]\n"
        "  hint      cast it: up.astype(jnp.float32).",
    ),
]

test_errors = golden(ERRORS)
