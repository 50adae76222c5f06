import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet.errors import DTypeError
from funcnet.ops.elementwise import sigmoid

X = jnp.linspace(-6, 6, 101, dtype=jnp.float32)


def test_identities():
    np.testing.assert_allclose(sigmoid.apply(X) + sigmoid.apply(-X), 1, rtol=1e-6)
    slope = jax.vmap(jax.grad(sigmoid.apply))
    np.testing.assert_allclose(slope(X), slope(-X), rtol=1e-4)
    assert slope(jnp.zeros(1)) == 0.25


def test_large_elements_stay_finite():
    x = jnp.asarray([-1e4, 1e4])
    assert sigmoid.apply(x).tolist() == [0, 1]
    assert jax.vmap(jax.grad(sigmoid.apply))(x).tolist() == [0, 0]


def test_one_rounding():
    x = X.astype(jnp.bfloat16)
    np.testing.assert_array_equal(sigmoid.apply(x), sigmoid.apply(x.astype(jnp.float32)).astype(jnp.bfloat16))


def test_the_residual_is_x():
    _, pullback = sigmoid.vjp(X)
    assert [v is X for v in jax.tree.leaves(pullback)] == [True]


@pytest.mark.usefixtures("unchecked")
def test_errors():
    with pytest.raises(DTypeError) as caught:
        sigmoid.apply(jnp.zeros(3, jnp.int32))
    assert str(caught.value) == (
        "sigmoid.apply: x has dtype int32, but a float is needed.\n"
        "  expected  x: float[...]\n"
        "  got       x: int32[3]\n"
        "  hint      cast it: x.astype(jnp.float32)."
    )
