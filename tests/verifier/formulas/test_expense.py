"""Operations and bytes are counted before a program runs."""

import jax
import jax.numpy as jnp
import pytest

from funcnet.verifier.formulas.expense import expense

X = jax.ShapeDtypeStruct((7, 11), jnp.float32)
W = jax.ShapeDtypeStruct((11, 13), jnp.float32)


def of(function, *args):
    return expense(jax.make_jaxpr(function)(*args))


def test_products_count_two_for_each_multiply_add():
    assert of(jnp.matmul, X, W) == (2 * 7 * 11 * 13, 8 * 7 * 13)


def test_the_rest_counts_one_for_each_element():
    assert of(jnp.sin, X) == (77, 8 * 77)
    assert of(lambda x: jax.lax.reduce_sum_p.bind(x, axes=(0, 1), out_sharding=None), X).flops == 77


def test_what_is_compiled_or_repeated_is_looked_into():
    assert of(jax.jit(jnp.matmul), X, W) == of(jnp.matmul, X, W)
    square = jax.ShapeDtypeStruct((7, 7), jnp.float32)
    body = lambda y, _: (y @ y, None)
    looped = of(lambda x: jax.lax.scan(body, x, length=5)[0], square)
    assert looped == (5 * 2 * 7**3, 5 * 8 * 49)


@pytest.mark.parametrize("function", [jnp.linalg.inv, jnp.linalg.cholesky, jnp.linalg.det])
def test_factorisations_grow_with_the_cube(function):
    small, large = (of(function, jax.ShapeDtypeStruct((n, n), jnp.float32)).flops for n in (100, 200))
    assert large / small > 6
