"""What must hold of the model: python -m pytest"""

import jax
import jax.numpy as jnp
import model
import numpy as np

from funcnet.testing import assert_gradients


def test_the_gradient_formula_is_right():
    x = jnp.linspace(-3.0, 3.0, 35).reshape(5, 7)
    assert_gradients(model.reference, lambda x, dy: model.vjp(x)[1](dy)[0], (x,))


def test_there_is_a_logit_for_each_class():
    params = model.init(jax.random.key(0))
    assert model.apply(params, jnp.zeros((3, 8, 8, 1))).shape == (3, 10)


def test_steps_down_the_gradient_reduce_the_loss():
    rng = np.random.default_rng(0)
    batch = rng.uniform(size=(16, 8, 8, 1)).astype(np.float32), rng.integers(0, 10, 16)
    params = model.init(jax.random.key(0))
    value = jax.jit(jax.value_and_grad(model.loss))
    first, grads = value(params, batch)
    for _ in range(5):
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
        after, grads = value(params, batch)
    assert after < first
