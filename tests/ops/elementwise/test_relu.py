import jax
import jax.numpy as jnp
import pytest

from funcnet.errors import DTypeError
from funcnet.ops.elementwise import relu


def test_the_kink_has_derivative_zero():
    x = jnp.asarray([-1.0, -0.0, 0.0, 1.0])
    assert jax.vmap(jax.grad(relu.apply))(x).tolist() == [0, 0, 0, 1]
    assert jax.vmap(jax.grad(jax.grad(relu.apply)))(x).tolist() == [0, 0, 0, 0]
    assert jax.jvp(relu.apply, (x,), (jnp.ones_like(x),))[1].tolist() == [0, 0, 0, 1]


def test_twice_is_once():
    x = jax.random.normal(jax.random.key(0), (7,))
    assert (relu.apply(relu.apply(x)) == relu.apply(x)).all()
    assert (relu.apply(x) - relu.apply(-x) == x).all()


def test_the_residual_is_y():
    y, pullback = relu.vjp(jnp.asarray([-1.0, 2.0]))
    assert jax.tree.leaves(pullback)[0] is y
    assert len(jax.tree.leaves(pullback)) == 1


@pytest.mark.usefixtures("unchecked")
def test_errors():
    with pytest.raises(DTypeError) as caught:
        relu.apply(jnp.zeros((2, 3), jnp.uint8))
    assert str(caught.value) == (
        "relu.apply: x has dtype uint8, but a float is needed.\n"
        "  expected  x: float[...]\n"
        "  got       x: uint8[2, 3]\n"
        "  hint      cast it: x.astype(jnp.float32), divided by 255 if it is an image of bytes."
    )
