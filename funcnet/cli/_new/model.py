"""The model: plain functions of a dict of arrays, and an activation with its own gradient formula."""

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

import funcnet as fn
from funcnet import rules


def reference(x):
    """y = x · sigmoid(x), as the textbook writes it."""
    return x / (1 + jnp.exp(-x))


def vjp(x):
    """y and its pullback: dx = dy · (s + y (1 − s)), with s = sigmoid(x)."""
    s = jax.nn.sigmoid(x)
    return x * s, Partial(_pullback, x * s, s)


def _pullback(y, s, dy):
    return (dy * (s + y * (1 - s)),)


def activation(x):
    """y of `reference`, differentiated by `vjp`."""
    return rules.call(vjp, x)


def init(key):
    """The parameters, for images of 8 × 8 pixels and ten classes."""
    k1, k2, k3 = jax.random.split(key, 3)
    return {
        "conv1": fn.conv.init(k1, 1, 16, kernel=(3, 3)),
        "conv2": fn.conv.init(k2, 16, 32, kernel=(3, 3)),
        "head": fn.linear.init(k3, 2 * 2 * 32, 10),
    }


def apply(params, images):
    """Images [n, 8, 8, 1], channels last, to logits [n, 10]."""
    x = fn.max_pool.apply(activation(fn.conv.apply(params["conv1"], images)), kernel=(2, 2))
    x = fn.max_pool.apply(activation(fn.conv.apply(params["conv2"], x)), kernel=(2, 2))
    return fn.linear.apply(params["head"], x.reshape(x.shape[0], -1))


def loss(params, batch):
    """The mean cross entropy of a batch (images, labels)."""
    images, labels = batch
    return fn.cross_entropy.apply(apply(params, images), labels).mean()
