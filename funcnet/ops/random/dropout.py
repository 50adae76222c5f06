"""Dropout: y = m · x / (1 − rate), each element of the mask m being 1 with probability 1 − rate, else 0.

x, y, m [*n], m drawn from the key: ``jax.random.bernoulli(key, jnp.float32(1 - rate), x.shape)``, which is
the same whether x64 is on or off. The division keeps the mean of y at x, so that evaluation (no key) is the
identity. At rate 1 there is nothing left: y = 0.
Source: Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov, "Dropout", JMLR 15, 2014.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from funcnet import rules
from funcnet.ops import _check
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._dtype import narrow, wide

__all__ = ["apply", "cost", "matrix", "reference", "vjp"]


def reference(x: Float[Array, "*n"], *, rate: float, key: PRNGKeyArray | None = None) -> Float[Array, "*n"]:
    """y = x / (1 − rate) where the mask is 1, else 0; without a key, x."""
    if key is None:
        return x
    return jnp.where(jax.random.bernoulli(key, jnp.float32(1 - rate), x.shape), x / (1 - rate or 1), 0)


@rules.operation
def apply(x: Float[Array, "*n"], *, rate: float, key: PRNGKeyArray | None = None) -> Float[Array, "*n"]:
    """Set each element to 0 with probability `rate`, and scale the others up to keep the mean.

    Differentiated by `vjp`, which keeps the words of the key and draws the mask again; JAX's own rule keeps
    the mask.

    Args:
        x: any shape.
        rate: the probability of a zero, in [0, 1]; static.
        key: a random key; None: evaluation, y = x. Inside `jax.vmap` examples that share a key share a mask.

    Returns:
        y, of the shape and dtype of x.

    Raises:
        DTypeError: x is not floating-point, key is not a random key, or rate is traced.
        ValueRangeError: rate lies outside [0, 1].

    >>> y = fn.dropout.apply(jnp.ones(1000), rate=0.5, key=jax.random.key(0))
    >>> sorted(set(y.tolist())), fn.dropout.apply(y, rate=0.5) is y
    ([0.0, 2.0], True)
    """
    where = "dropout.apply"
    x = _check.floating(where, "x", x)
    rate = _check.rate(where, "rate", rate, one=True)
    if key is None or rate == 0:
        return x
    _check.key(where, key)
    return rules.call(vjp, x, rate=rate, key=key)


def vjp(
    x: Float[Array, "*n"], *, rate: float, key: PRNGKeyArray | None = None
) -> tuple[Float[Array, "*n"], Partial]:
    """y and its pullback: dx = m · dy / (1 − rate), with the mask m drawn again.

    What is kept is the words of the key: JAX 0.10 cannot lower a typed key that leaves a branch of a `cond`.
    """
    words, impl = (None, None) if key is None else (jax.random.key_data(key), jax.random.key_impl(key))
    return _drop(x, rate, key), Partial(rules.bind(_pullback, rate=rate, impl=impl), words)


def _pullback(words: Array | None, dy: Array, *, rate: float, impl: Any) -> tuple[Array]:
    key = None if words is None else jax.random.wrap_key_data(words, impl=impl)
    return (_drop(dy, rate, key),)  # the map is diagonal: its own transpose


def _drop(x: Array, rate: float, key: PRNGKeyArray | None) -> Array:
    if key is None:
        return x
    kept = x.astype(wide(x.dtype)) * (1 / (1 - rate or 1))
    return jnp.where(jax.random.bernoulli(key, jnp.float32(1 - rate), x.shape), narrow(kept, x), 0)


def matrix(
    in_shape: tuple[int, ...], *, rate: float, key: PRNGKeyArray | None = None
) -> Float[Array, "out out"]:
    """diag(m / (1 − rate)) [Π in, Π in]; without a key, the identity."""
    where = "dropout.matrix"
    in_shape = _check.integers(where, "in_shape", in_shape, least=0)
    rate = _check.rate(where, "rate", rate, one=True)
    if key is not None:
        _check.key(where, key)
    return jnp.diag(_drop(jnp.ones(in_shape), rate, key).reshape(-1))


def cost(x: Float[Abstract, "*n"], *, rate: float, key: Shaped[Abstract, "*k"] | None = None) -> Cost:
    """No products: 0 flops, and the bytes of x, the key and y; drawing the mask is not counted."""
    return Cost(0, traffic(lambda x, key: reference(x, rate=rate, key=key), x, key))
