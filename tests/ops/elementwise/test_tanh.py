import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet.errors import DTypeError
from funcnet.ops.elementwise import tanh

X = jnp.linspace(-6, 6, 101, dtype=jnp.float32)


def test_identities():
    np.testing.assert_array_equal(tanh.apply(X), -tanh.apply(-X))
    t = tanh.apply(X)
    np.testing.assert_allclose(tanh.apply(2 * X), 2 * t / (1 + t**2), rtol=1e-5)
    assert jax.grad(tanh.apply)(jnp.zeros(())) == 1


def test_large_elements_stay_finite():
    x = jnp.asarray([-1e4, 1e4])
    assert tanh.apply(x).tolist() == [-1, 1]
    assert jax.vmap(jax.grad(tanh.apply))(x).tolist() == [0, 0]


def test_one_rounding():
    x = X.astype(jnp.bfloat16)
    np.testing.assert_array_equal(tanh.apply(x), tanh.apply(x.astype(jnp.float32)).astype(jnp.bfloat16))


def test_the_residual_is_x():
    _, pullback = tanh.vjp(X)
    assert [v is X for v in jax.tree.leaves(pullback)] == [True]


@pytest.mark.usefixtures("unchecked")
def test_errors():
    with pytest.raises(DTypeError) as caught:
        tanh.apply(jnp.zeros(3, jnp.int32))
    assert str(caught.value) == (
        "tanh.apply: x has dtype int32, but a float is needed.\n"
        "  expected  x: float[...]\n"
        "  got       x: int32[3]\n"
        "  hint      cast it: x.astype(jnp.float32)."
    )
