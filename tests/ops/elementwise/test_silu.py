import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet.errors import DTypeError
from funcnet.ops.elementwise import silu

X = jnp.linspace(-6, 6, 101, dtype=jnp.float32)


def test_identities():
    np.testing.assert_allclose(silu.apply(X) - silu.apply(-X), X, atol=1e-6)  # σ(x) + σ(−x) = 1
    slope = jax.vmap(jax.grad(silu.apply))
    np.testing.assert_allclose(slope(X) + slope(-X), 1, atol=1e-6)


def test_large_elements_stay_finite():
    x = jnp.asarray([-1e4, 1e4])
    assert silu.apply(x).tolist() == [0, 1e4]
    assert jax.vmap(jax.grad(silu.apply))(x).tolist() == [0, 1]


def test_one_rounding():
    x = X.astype(jnp.bfloat16)
    np.testing.assert_array_equal(silu.apply(x), silu.apply(x.astype(jnp.float32)).astype(jnp.bfloat16))


def test_the_residual_is_x():
    assert [v is X for v in jax.tree.leaves(silu.vjp(X)[1])] == [True]


@pytest.mark.usefixtures("unchecked")
def test_errors():
    with pytest.raises(DTypeError) as caught:
        silu.apply(jnp.zeros(3, jnp.int32))
    assert str(caught.value) == (
        "silu.apply: x has dtype int32, but a float is needed.\n"
        "  expected  x: float[...]\n"
        "  got       x: int32[3]\n"
        "  hint      cast it: x.astype(jnp.float32)."
    )
