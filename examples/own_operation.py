"""An operation of your own, with its hand-derived gradient: verified, attached, and under every transform.

y = log(1 + eˣ), softplus, whose gradient is dy · sigmoid(x).

Run: python examples/own_operation.py
"""

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

import funcnet as fn
from funcnet import rules


def reference(x):
    return jnp.log(1 + jnp.exp(x))


def vjp(x):
    """y and its pullback: dx = dy · sigmoid(x). The stable form of y holds for large |x| too."""
    y = jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))
    return y, Partial(_pullback, x)


def _pullback(x, dy):
    return (dy * jax.nn.sigmoid(x),)


def apply(x):
    return rules.call(vjp, x)


def main():
    x = jnp.linspace(-3.0, 3.0, 7)
    report = fn.verify(reference, lambda x, dy: vjp(x)[1](dy)[0], (x,))
    print(report)
    report.raise_if_wrong()

    far = jnp.asarray([-1000.0, 0.0, 1000.0])
    print("reference", jax.vmap(jax.grad(reference))(far), "nan where eˣ overflows")
    print("apply    ", jax.vmap(jax.grad(apply))(far))
    assert jnp.array_equal(jax.vmap(jax.grad(apply))(far), jnp.asarray([0.0, 0.5, 1.0]))

    forward = jax.jit(jax.jacfwd(apply))(x).diagonal()
    assert jnp.allclose(forward, jax.nn.sigmoid(x))
    curvature = jax.hessian(lambda x: apply(x).sum())(x).diagonal()
    assert jnp.allclose(curvature, jax.nn.sigmoid(x) * jax.nn.sigmoid(-x), atol=1e-6)
    print("forward mode and the Hessian follow from the same formula")


if __name__ == "__main__":
    main()
