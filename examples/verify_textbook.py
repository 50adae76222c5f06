"""Verify the gradient formulas of a textbook: linear layers, attention, convolution, and three mistakes.

Run: python examples/verify_textbook.py
"""

import jax
import jax.numpy as jnp

import funcnet as fn


def normal(i, *shape):
    return jax.random.normal(jax.random.key(i), shape)


def rows(x, w, b):
    """Examples are rows: y = x W + b."""
    return x @ w + b


def rows_backward(x, w, b, dy):
    """dX = dY Wᵀ, dW = Xᵀ dY, db = Σ dY."""
    return dy @ w.T, x.T @ dy, dy.sum(0)


def column(w, x):
    """One example is a column: y = W x."""
    return w @ x


def column_backward(w, x, dy):
    """dW = dy xᵀ, dx = Wᵀ dy."""
    return jnp.outer(dy, x), w.T @ dy


def softmax(s):
    """One probability vector per row."""
    e = jnp.exp(s - s.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attention(q, k, v):
    """softmax(Q Kᵀ / √d) V."""
    return softmax(q @ k.T / jnp.sqrt(q.shape[-1])) @ v


def attention_backward(q, k, v, dy):
    """P = softmax(S): dV = Pᵀ dY, dS = P ∘ (dP − Σ dP ∘ P), dQ = dS K / √d, dK = dSᵀ Q / √d."""
    root = jnp.sqrt(q.shape[-1])
    p = softmax(q @ k.T / root)
    dp = dy @ v.T
    ds = p * (dp - (dp * p).sum(-1, keepdims=True))
    return ds @ k / root, ds.T @ q / root, p.T @ dy


def toeplitz(w, size):
    """T[t, t + j] = w[j]: the matrix of a convolution without padding."""
    lag = jnp.arange(size)[None] - jnp.arange(size - w.shape[0] + 1)[:, None]
    inside = (lag >= 0) & (lag < w.shape[0])
    return jnp.where(inside, w[jnp.clip(lag, 0, w.shape[0] - 1)], 0)


def convolution(x, w):
    """y = T(w) x."""
    return toeplitz(w, x.shape[0]) @ x


def convolution_backward(x, w, dy):
    """dx = T(w)ᵀ dy, dw[j] = Σ dy[t] x[t + j]."""
    dw = jnp.stack([dy @ x[j : j + dy.shape[0]] for j in range(w.shape[0])])
    return toeplitz(w, x.shape[0]).T @ dy, dw


def mean_for_sum(x, w, b, dy):
    """The batch is averaged, though the loss was averaged already."""
    return dy @ w.T, x.T @ dy / x.shape[0], dy.sum(0)


def softmax_diagonal(s, dy):
    """y (1 − y) is only the diagonal of the Jacobian: the mistake of many derivation pages."""
    y = softmax(s)
    return y * (1 - y) * dy


def kernel_not_reversed(x, w, dy):
    """dx by sliding the kernel over dy as in the forward pass."""
    k = w.shape[0]
    return convolution(jnp.pad(dy, k - 1), w), convolution_backward(x, w, dy)[1]


LINEAR = (normal(0, 7, 11), normal(1, 11, 13), normal(2, 13))
RIGHT = [
    (rows, rows_backward, LINEAR),
    (column, column_backward, (normal(3, 13, 11), normal(4, 11))),
    (attention, attention_backward, (normal(5, 5, 3), normal(6, 7, 3), normal(7, 7, 2))),
    (convolution, convolution_backward, (normal(8, 11), normal(9, 3))),
]
WRONG = [
    (rows, mean_for_sum, LINEAR, "scale"),
    (softmax, softmax_diagonal, (normal(10, 7, 11),), "missing_term"),
    (convolution, kernel_not_reversed, (normal(8, 11), normal(9, 3)), "flip"),
]


def main():
    for forward, backward, args in RIGHT:
        report = fn.verify(forward, backward, args)
        print(f"{forward.__doc__}  {backward.__doc__}\n{report}\n")
        report.raise_if_wrong()
    for forward, backward, args, kind in WRONG:
        report = fn.verify(forward, backward, args)
        print(f"WRONG ON PURPOSE: {backward.__doc__}\n{report}\n")
        assert [finding.kind for finding in report.findings] == [kind]


if __name__ == "__main__":
    main()
