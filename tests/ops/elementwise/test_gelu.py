import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet.errors import DTypeError
from funcnet.ops.elementwise import activations, gelu

X = jnp.linspace(-6, 6, 101, dtype=jnp.float32)


@pytest.mark.as_users
@pytest.mark.parametrize("approximate", [False, True])
def test_identities(approximate):
    x = X.astype(float)  # float64; as users run, float32
    y = gelu.apply(x, approximate)
    np.testing.assert_allclose(y - gelu.apply(-x, approximate), x, atol=1e-6)  # Φ(x) + Φ(−x) = 1
    slope = jax.vmap(jax.grad(lambda x: gelu.apply(x, approximate)))
    np.testing.assert_allclose(slope(x) + slope(-x), 1, atol=1e-6)
    assert gelu.apply(jnp.zeros(()), approximate) == 0


def test_the_approximation_is_another_function_but_close():
    difference = jnp.abs(gelu.apply(X, approximate=True) - gelu.apply(X)).max()
    assert 1e-4 < difference < 5e-4


def test_the_left_tail_keeps_its_digits():
    y = gelu.apply(jnp.asarray([-5.0, -8.0], jnp.float32))
    np.testing.assert_allclose(y, [v * math.erfc(-v / math.sqrt(2)) / 2 for v in (-5.0, -8.0)], rtol=1e-4)


def test_the_distribution_function_to_the_last_digits():
    x = np.linspace(-9, 9, 2001).astype(np.float32)
    exact = np.asarray([math.erfc(-v / math.sqrt(2)) / 2 for v in x.tolist()])
    got = np.asarray(activations._normal(jnp.asarray(x)), np.float64)
    np.testing.assert_allclose(got, exact, atol=3e-7, rtol=0)
    np.testing.assert_allclose(got[x > -5], exact[x > -5], rtol=2e-6)
    np.testing.assert_allclose(got, exact, rtol=1e-5)


def test_derivatives_in_float32_are_those_of_the_formula_not_of_the_fit():
    for order in range(1, 4):
        f = lambda x: gelu.apply(x)
        for _ in range(order):
            f = jax.grad(f)
        narrow = jax.vmap(f)(X)
        np.testing.assert_allclose(narrow, jax.vmap(f)(X.astype(jnp.float64)), atol=2e-6)


@pytest.mark.parametrize("approximate", [False, True])
def test_one_rounding(approximate):
    x = X.astype(jnp.bfloat16)
    wide = gelu.apply(x.astype(jnp.float32), approximate)
    np.testing.assert_array_equal(gelu.apply(x, approximate), wide.astype(jnp.bfloat16))


def test_large_elements_stay_finite():
    for approximate in (False, True):
        slope = jax.vmap(jax.grad(lambda x: gelu.apply(x, approximate)))(jnp.asarray([-1e4, 1e4]))  # noqa: B023
        assert slope.tolist() == [0, 1]


def test_the_residual_is_x():
    assert [v is X for v in jax.tree.leaves(gelu.vjp(X)[1])] == [True]


@pytest.mark.usefixtures("unchecked")
def test_errors():
    with pytest.raises(DTypeError) as caught:
        gelu.apply(jnp.zeros(3, jnp.int32))
    assert str(caught.value) == (
        "gelu.apply: x has dtype int32, but a float is needed.\n"
        "  expected  x: float[...]\n"
        "  got       x: int32[3]\n"
        "  hint      cast it: x.astype(jnp.float32)."
    )
