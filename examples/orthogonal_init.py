"""Orthogonal convolutions keep lengths, so that a signal and its gradient come through any depth unchanged.

`jax.nn.initializers.delta_orthogonal` (Xiao et al., arXiv 1806.05393) puts an orthogonal matrix at the centre
of the kernel and zeros elsewhere. The operator of such a layer has all singular values 1, which Gaussian
kernels of the same variance have not.
"""

import jax
import jax.numpy as jnp

import funcnet as fn

CHANNELS, SIZE, DEPTH = 16, (8, 8), 30


def orthogonal(key) -> fn.conv.Params:
    return {"w": jax.nn.initializers.delta_orthogonal()(key, (3, 3, CHANNELS, CHANNELS))}


def gaussian(key):
    return fn.conv.init(key, CHANNELS, CHANNELS, kernel=(3, 3), bias=False)


def network(layers, x):
    for layer in layers:
        x = fn.tanh.apply(fn.conv.apply(layer, x))
    return x


def main():
    x = 0.1 * jax.random.normal(jax.random.key(1), (4, *SIZE, CHANNELS))
    dy = jax.random.normal(jax.random.key(2), x.shape)
    for name, draw in (("orthogonal", orthogonal), ("gaussian", gaussian)):
        layers = [draw(key) for key in jax.random.split(jax.random.key(0), DEPTH)]
        operator = fn.conv.operator(layers[0], (*SIZE, CHANNELS))
        norm = operator.norm()
        y, pull = jax.vjp(network, layers, x)
        _, dx = pull(dy)
        print(
            f"{name:>10}: norm {norm.lower:.3f} to {norm.upper:.3f}, condition {operator.condition():.2f}; "
            f"{DEPTH} layers: |y| / |x| = {jnp.linalg.norm(y) / jnp.linalg.norm(x):.2g}, "
            f"|dx| / |dy| = {jnp.linalg.norm(dx) / jnp.linalg.norm(dy):.2g}"
        )


if __name__ == "__main__":
    main()
