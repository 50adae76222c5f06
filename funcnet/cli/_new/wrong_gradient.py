"""A layer with a hand-derived gradient. One line of it is wrong; funcnet says which, and what to write:

funcnet verify wrong_gradient.py --shape x=7,11 --shape w=11,13 --shape b=13
"""

import jax
import jax.numpy as jnp


@jax.custom_vjp
def layer(x, w, b):
    """y = tanh(x w + b), of rows x."""
    return jnp.tanh(x @ w + b)


def forward(x, w, b):
    y = layer(x, w, b)
    return y, (x, w, y)


def backward(kept, dy):
    x, w, y = kept
    dz = dy * (1 - y**2)
    dx = dz @ w.T
    dw = x.T @ dy
    db = dz.sum(0)
    return dx, dw, db


layer.defvjp(forward, backward)
