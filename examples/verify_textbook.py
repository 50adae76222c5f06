"""Verify the gradient formulas of a textbook: the linear layer in rows and columns, softmax, a mistake.

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


def softmax(x):
    """One probability vector per row."""
    e = jnp.exp(x)
    return e / e.sum(-1, keepdims=True)


def softmax_backward(x, dy):
    """dx = y ∘ (dy − ⟨y, dy⟩)."""
    y = softmax(x)
    return y * (dy - (y * dy).sum(-1, keepdims=True))


def softmax_diagonal_only(x, dy):
    """The mistake of many derivation pages: y (1 − y) is only the diagonal of the Jacobian."""
    y = softmax(x)
    return y * (1 - y) * dy


def main():
    for forward, backward, args in [
        (rows, rows_backward, (normal(0, 7, 11), normal(1, 11, 13), normal(2, 13))),
        (column, column_backward, (normal(3, 13, 11), normal(4, 11))),
        (softmax, softmax_backward, (normal(5, 7, 11),)),
    ]:
        report = fn.verify(forward, backward, args)
        print(f"{backward.__doc__}\n{report}\n")
        report.raise_if_wrong()

    report = fn.verify(softmax, softmax_diagonal_only, (normal(5, 7, 11),))
    print(f"{softmax_diagonal_only.__doc__}\n{report}")
    assert not report.ok


if __name__ == "__main__":
    main()
