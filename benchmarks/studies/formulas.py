"""Gradient formulas derived by hand, right and wrong, in plain jnp: what the diagnosis was developed on.

`RIGHT` holds formulas that equal autodiff's, most in several spellings; `WRONG` holds formulas as people get
them wrong: the right formula with one slip, in the gradient of one argument. They were written by someone who
had not seen the diagnosis; four labels that the author had marked as doubtful got a second name afterwards.
`benchmarks/studies/exam.py` is another census, on which the diagnosis is scored.
"""

# ruff: noqa: ARG001
# pyright: reportAttributeAccessIssue=false, reportIndexIssue=false

import functools

import jax.numpy as jnp
import numpy as np

from benchmarks.studies import census
from benchmarks.studies.census import normal

__all__ = ["RIGHT", "WRONG"]

RIGHT: list[census.Right] = []
WRONG: list[census.Wrong] = []
Operation = functools.partial(census.Operation, RIGHT, WRONG)


# --- linear: y = x @ w + b ----------------------------------------------------------------------------------


def linear(x, w, b):
    """y = x @ w + b."""
    return x @ w + b


def linear_back(x, w, b, dy):
    """dx = dy wᵀ, dw = xᵀ dy, db = Σ dy."""
    return dy @ w.T, x.T @ dy, dy.sum(0)


square = normal((5, 5), (5, 5), (5,))
op = Operation("linear", linear, linear_back, normal((5, 3), (3, 7), (7,)))
op.right(
    "einsum",
    lambda x, w, b, dy: (
        jnp.einsum("no,io->ni", dy, w),
        jnp.einsum("ni,no->io", x, dy),
        jnp.einsum("no->o", dy),
    ),
)
op.right(
    "outer products summed, ones @ dy",
    lambda x, w, b, dy: (
        (w @ dy.T).T,
        (x[:, :, None] * dy[:, None, :]).sum(axis=0),
        jnp.ones(len(x), dy.dtype) @ dy,
    ),
)
op.right(
    "mean times n",
    lambda x, w, b, dy: (
        jnp.tensordot(dy, w, axes=(1, 1)),
        (dy.T @ x).T,
        dy.mean(0) * dy.shape[0],
    ),
)
op.wrong("w not transposed", "x", ("transpose",), lambda x, w, b, dy: dy @ w, square)
op.wrong("minus sign", "x", ("sign",), lambda x, w, b, dy: -dy @ w.T)
op.wrong("operands exchanged", "x", ("swapped",), lambda x, w, b, dy: w.T @ dy, square)
op.wrong("dy clipped", "x", ("nonlinear_in_cotangent",), lambda x, w, b, dy: jnp.clip(dy, -1, 1) @ w.T)
op.wrong("ones in place of dy", "x", ("ignores_cotangent",), lambda x, w, b, dy: jnp.ones_like(dy) @ w.T)
op.wrong("dyᵀ x", "w", ("transpose", "shape"), lambda x, w, b, dy: dy.T @ x)
op.wrong("dyᵀ x, square", "w", ("transpose",), lambda x, w, b, dy: dy.T @ x, square)
op.wrong("x not transposed", "w", ("transpose",), lambda x, w, b, dy: x @ dy, square)
op.wrong("mean over the batch", "w", ("scale",), lambda x, w, b, dy: x.T @ dy / len(x))
op.wrong("y for x", "w", ("wrong_residual",), lambda x, w, b, dy: (x @ w + b).T @ dy, square)
op.wrong(
    "first sample only",
    "w",
    ("missing_batch_sum", "ignores_cotangent"),
    lambda x, w, b, dy: jnp.outer(x[0], dy[0]),
)
op.wrong(
    "outer products not summed",
    "w",
    ("missing_batch_sum", "shape"),
    lambda x, w, b, dy: x[:, :, None] * dy[:, None, :],
)
op.wrong("not summed", "b", ("missing_batch_sum", "unbroadcast"), lambda x, w, b, dy: dy)
op.wrong("summed over the features", "b", ("wrong_axis",), lambda x, w, b, dy: dy.sum(1), square)
op.wrong("mean over the batch", "b", ("scale",), lambda x, w, b, dy: dy.mean(0))
op.wrong("last sample only", "b", ("missing_batch_sum", "ignores_cotangent"), lambda x, w, b, dy: dy[-1])
op.wrong("no gradient", "b", ("zero",), lambda x, w, b, dy: jnp.zeros_like(b))
op.wrong("None given", "b", ("zero",), lambda x, w, b, dy: None)
op.wrong("times b", "b", ("extra_term",), lambda x, w, b, dy: (dy * b).sum(0))


# --- linear, samples as columns: y = w @ x + b --------------------------------------------------------------


def column(w, x, b):
    """y = w x + b, every column a sample, b a column."""
    return w @ x + b


def column_back(w, x, b, dy):
    """dw = dy xᵀ, dx = wᵀ dy, db = Σ dy over the columns."""
    return dy @ x.T, w.T @ dy, dy.sum(1, keepdims=True)


square = normal((5, 5), (5, 5), (5, 1))
op = Operation("linear, columns", column, column_back, normal((5, 3), (3, 7), (5, 1)))
op.right(
    "einsum",
    lambda w, x, b, dy: (
        jnp.einsum("on,in->oi", dy, x),
        jnp.einsum("oi,on->in", w, dy),
        jnp.einsum("on->o", dy)[:, None],
    ),
)
op.right(
    "sum over samples of outer products",
    lambda w, x, b, dy: (
        sum(jnp.outer(dy[:, n], x[:, n]) for n in range(x.shape[1])),
        (dy.T @ w).T,
        dy @ jnp.ones((x.shape[1], 1), dy.dtype),
    ),
)
op.wrong("x dyᵀ", "w", ("transpose", "shape"), lambda w, x, b, dy: x @ dy.T)
op.wrong("x dyᵀ, square", "w", ("transpose", "swapped"), lambda w, x, b, dy: x @ dy.T, square)
op.wrong("x not transposed", "w", ("transpose",), lambda w, x, b, dy: dy @ x, square)
op.wrong("mean over the columns", "w", ("scale",), lambda w, x, b, dy: dy @ x.T / x.shape[1])
op.wrong("divided by the rows", "w", ("scale",), lambda w, x, b, dy: dy @ x.T / dy.shape[0])
op.wrong("w not transposed", "x", ("transpose",), lambda w, x, b, dy: w @ dy, square)
op.wrong("row form: dy wᵀ", "x", ("swapped",), lambda w, x, b, dy: dy @ w.T, square)
op.wrong(
    "dy normalised", "x", ("nonlinear_in_cotangent",), lambda w, x, b, dy: w.T @ (dy / jnp.abs(dy).max())
)
op.wrong("not summed", "b", ("unbroadcast", "missing_batch_sum"), lambda w, x, b, dy: dy)
op.wrong("keepdims forgotten", "b", ("shape",), lambda w, x, b, dy: dy.sum(1))
op.wrong("summed over the rows", "b", ("wrong_axis",), lambda w, x, b, dy: dy.sum(0, keepdims=True).T, square)
op.wrong("minus sign", "b", ("sign",), lambda w, x, b, dy: -dy.sum(1, keepdims=True))


# --- batched matmul, one operand shared by the batch --------------------------------------------------------


def matmul(a, b):
    """y = a @ b with a (n, i, j) and b (1, j, k)."""
    return a @ b


def matmul_back(a, b, dy):
    """da = dy bᵀ, db = Σₙ aᵀ dy."""
    return dy @ b.mT, (a.mT @ dy).sum(0, keepdims=True)


square = normal((5, 5, 5), (1, 5, 5))
op = Operation("batched matmul", matmul, matmul_back, normal((2, 3, 5), (1, 5, 7)))
op.right(
    "einsum",
    lambda a, b, dy: (jnp.einsum("nik,jk->nij", dy, b[0]), jnp.einsum("nij,nik->jk", a, dy)[None]),
)
op.right(
    "batch folded into the rows",
    lambda a, b, dy: (
        (dy.reshape(-1, dy.shape[-1]) @ b[0].T).reshape(a.shape),
        (a.reshape(-1, a.shape[-1]).T @ dy.reshape(-1, dy.shape[-1]))[None],
    ),
)
op.wrong("b not transposed", "a", ("transpose",), lambda a, b, dy: dy @ b, square)
op.wrong("minus sign", "a", ("sign",), lambda a, b, dy: -(dy @ b.mT))
op.wrong("first dy for all the batch", "a", ("ignores_cotangent",), lambda a, b, dy: dy[:1] @ b.mT + 0 * a)
op.wrong("not summed over the batch", "b", ("unbroadcast", "missing_batch_sum"), lambda a, b, dy: a.mT @ dy)
op.wrong("mean over the batch", "b", ("scale",), lambda a, b, dy: (a.mT @ dy).mean(0, keepdims=True))
op.wrong(
    "first of the batch only",
    "b",
    ("missing_batch_sum", "ignores_cotangent"),
    lambda a, b, dy: (a.mT @ dy)[:1],
)
op.wrong("a not transposed", "b", ("transpose",), lambda a, b, dy: (a @ dy).sum(0, keepdims=True), square)
op.wrong(
    "product transposed", "b", ("transpose", "shape"), lambda a, b, dy: (dy.mT @ a).sum(0, keepdims=True)
)
op.wrong("keepdims forgotten", "b", ("shape",), lambda a, b, dy: (a.mT @ dy).sum(0))
op.wrong(
    "summed over the rows",
    "b",
    ("wrong_axis",),
    lambda a, b, dy: (a.mT @ dy).sum(1)[None],
    square,
)


# --- scale and shift: y = x * w + b -------------------------------------------------------------------------


def affine(x, w, b):
    """y = x w + b with w one per column and b one per row."""
    return x * w + b[:, None]


def affine_back(x, w, b, dy):
    """dx = w dy, dw = Σ x dy over the rows, db = Σ dy over the columns."""
    return dy * w, (dy * x).sum(0), dy.sum(1)


square = normal((5, 5), (5,), (5,))
op = Operation("scale and shift", affine, affine_back, normal((5, 3), (3,), (5,)))
op.right(
    "einsum",
    lambda x, w, b, dy: (
        jnp.einsum("ij,j->ij", dy, w),
        jnp.einsum("ij,ij->j", x, dy),
        jnp.einsum("ij->i", dy),
    ),
)
op.right("diagonals", lambda x, w, b, dy: (dy @ jnp.diag(w), jnp.diagonal(x.T @ dy), dy.T.sum(0)))
op.wrong("w forgotten", "x", ("missing_term",), lambda x, w, b, dy: dy)
op.wrong("b added", "x", ("extra_term", "nonlinear_in_cotangent"), lambda x, w, b, dy: dy * w + b[:, None])
op.wrong("w along the rows", "x", ("wrong_axis", "transpose"), lambda x, w, b, dy: dy * w[:, None], square)
op.wrong("not summed", "w", ("unbroadcast", "missing_batch_sum"), lambda x, w, b, dy: dy * x)
op.wrong("x forgotten", "w", ("missing_term",), lambda x, w, b, dy: dy.sum(0))
op.wrong("y for x", "w", ("wrong_residual",), lambda x, w, b, dy: (dy * (x * w + b[:, None])).sum(0))
op.wrong("sums multiplied", "w", ("extra_term",), lambda x, w, b, dy: dy.sum(0) * x.sum(0))
op.wrong("dy forgotten", "w", ("ignores_cotangent",), lambda x, w, b, dy: x.sum(0))
op.wrong("summed over the rows", "b", ("wrong_axis",), lambda x, w, b, dy: dy.sum(0), square)
op.wrong("summed over everything", "b", ("wrong_axis",), lambda x, w, b, dy: dy.sum() + 0 * b)
op.wrong("not summed", "b", ("unbroadcast",), lambda x, w, b, dy: dy)
op.wrong("times w", "b", ("extra_term",), lambda x, w, b, dy: (dy * w).sum(1))


# --- softmax ------------------------------------------------------------------------------------------------


def softmax(x):
    """p = exp(x) / Σ exp(x) over the last axis."""
    e = jnp.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def softmax_back(x, dy):
    """dx = p (dy - <p, dy>)."""
    p = softmax(x)
    return p * (dy - (p * dy).sum(-1, keepdims=True))


def softmax_jacobian(x, dy):
    """dx = (diag(p) - p pᵀ) dy, row by row."""
    p = softmax(x)
    jacobian = p[:, :, None] * jnp.eye(p.shape[1], dtype=p.dtype) - p[:, :, None] * p[:, None, :]
    return jnp.einsum("nij,nj->ni", jacobian, dy)


def softmax_quotient(x, dy):
    """By the quotient rule: e dy / s - e <e, dy> / s²."""
    e = jnp.exp(x)
    s = e.sum(-1, keepdims=True)
    return (e * dy * s - e * (e * dy).sum(-1, keepdims=True)) / s**2


rows = normal((5, 7))
square = normal((5, 5))
op = Operation("softmax", softmax, softmax_back, rows)
op.right("jacobian", softmax_jacobian)
op.right("quotient rule", softmax_quotient)
op.right(
    "multiplied out, einsum",
    lambda x, dy: softmax(x) * dy - softmax(x) * jnp.einsum("ni,ni->n", softmax(x), dy)[:, None],
)
op.wrong("<p, dy> forgotten", "x", ("missing_term",), lambda x, dy: softmax(x) * dy)
op.wrong("diagonal only: p (1 - p)", "x", ("missing_term",), lambda x, dy: softmax(x) * (1 - softmax(x)) * dy)
op.wrong(
    "factor p forgotten",
    "x",
    ("missing_term",),
    lambda x, dy: dy - (softmax(x) * dy).sum(-1, keepdims=True),
)
op.wrong(
    "p forgotten in the sum",
    "x",
    ("missing_term",),
    lambda x, dy: softmax(x) * (dy - dy.sum(-1, keepdims=True)),
)
op.wrong(
    "sum over the rows",
    "x",
    ("wrong_axis",),
    lambda x, dy: softmax(x) * (dy - (softmax(x) * dy).sum(0, keepdims=True)),
)
op.wrong(
    "sum over everything", "x", ("wrong_axis",), lambda x, dy: softmax(x) * (dy - (softmax(x) * dy).sum())
)
op.wrong(
    "softmax over the wrong axis",
    "x",
    ("wrong_axis", "wrong_residual"),
    lambda x, dy: softmax_back(x.T, dy.T).T,
)
op.wrong(
    "terms in the wrong order",
    "x",
    ("sign",),
    lambda x, dy: softmax(x) * ((softmax(x) * dy).sum(-1, keepdims=True) - dy),
)
op.wrong(
    "softmax of p",
    "x",
    ("wrong_residual",),
    lambda x, dy: softmax_back(softmax(x), dy),
)
op.wrong(
    "x for p",
    "x",
    ("wrong_residual",),
    lambda x, dy: x * (dy - (x * dy).sum(-1, keepdims=True)),
)
op.wrong("p (1 - p) without dy", "x", ("ignores_cotangent",), lambda x, dy: softmax(x) * (1 - softmax(x)))
op.wrong(
    "dy once more",
    "x",
    ("nonlinear_in_cotangent",),
    lambda x, dy: softmax(x) * dy * (dy - (softmax(x) * dy).sum(-1, keepdims=True)),
)


# --- log_softmax --------------------------------------------------------------------------------------------


def log_softmax(x):
    """y = x - log Σ exp(x) over the last axis."""
    x = x - x.max(-1, keepdims=True)
    return x - jnp.log(jnp.exp(x).sum(-1, keepdims=True))


def log_softmax_back(x, dy):
    """dx = dy - p Σ dy."""
    return dy - softmax(x) * dy.sum(-1, keepdims=True)


op = Operation("log_softmax", log_softmax, log_softmax_back, rows)
op.right("p = exp(y)", lambda x, dy: dy - jnp.exp(log_softmax(x)) * dy.sum(-1, keepdims=True))
op.right(
    "jacobian I - 1 pᵀ",
    lambda x, dy: jnp.einsum("nij,ni->nj", jnp.eye(x.shape[1], dtype=x.dtype) - softmax(x)[:, None, :], dy),
)
op.wrong("Σ dy forgotten", "x", ("missing_term", "nonlinear_in_cotangent"), lambda x, dy: dy - softmax(x))
op.wrong("second term forgotten", "x", ("missing_term",), lambda x, dy: dy)
op.wrong("p forgotten", "x", ("missing_term",), lambda x, dy: dy - dy.sum(-1, keepdims=True))
op.wrong("dy not summed", "x", ("missing_term",), lambda x, dy: dy - softmax(x) * dy)
op.wrong("softmax's formula", "x", ("extra_term",), softmax_back)
op.wrong("y for p", "x", ("wrong_residual",), lambda x, dy: dy - log_softmax(x) * dy.sum(-1, keepdims=True))
op.wrong("sum over the rows", "x", ("wrong_axis",), lambda x, dy: dy - softmax(x) * dy.sum(0, keepdims=True))
op.wrong("sum over everything", "x", ("wrong_axis",), lambda x, dy: dy - softmax(x) * dy.sum())
op.wrong("sign of all", "x", ("sign",), lambda x, dy: softmax(x) * dy.sum(-1, keepdims=True) - dy)


# --- logsumexp ----------------------------------------------------------------------------------------------


def logsumexp(x):
    """y = log Σ exp(x) over the last axis."""
    m = x.max(-1)
    return m + jnp.log(jnp.exp(x - m[:, None]).sum(-1))


def logsumexp_back(x, dy):
    """dx = p dy."""
    return softmax(x) * dy[:, None]


op = Operation("logsumexp", logsumexp, logsumexp_back, rows)
op.right("exp(x - y)", lambda x, dy: jnp.exp(x - logsumexp(x)[:, None]) * dy[:, None])
op.right("einsum", lambda x, dy: jnp.einsum("ni,n->ni", jnp.exp(x), dy / jnp.exp(x).sum(1)))
op.wrong("not normalised", "x", ("missing_term", "wrong_residual"), lambda x, dy: jnp.exp(x) * dy[:, None])
op.wrong("p forgotten", "x", ("missing_term",), lambda x, dy: dy[:, None] + 0 * x)
op.wrong("dy forgotten", "x", ("ignores_cotangent",), lambda x, dy: softmax(x))
op.wrong("softmax over the rows", "x", ("wrong_axis",), lambda x, dy: softmax(x.T).T * dy[:, None])
op.wrong("dy along the columns", "x", ("wrong_axis", "transpose"), lambda x, dy: softmax(x) * dy, square)
op.wrong("p (1 - p)", "x", ("extra_term",), lambda x, dy: softmax(x) * (1 - softmax(x)) * dy[:, None])
op.wrong("minus sign", "x", ("sign",), lambda x, dy: -softmax(x) * dy[:, None])
op.wrong("1/n of a mean", "x", ("scale",), lambda x, dy: softmax(x) * dy[:, None] / x.shape[1])
op.wrong("log p for p", "x", ("wrong_residual",), lambda x, dy: log_softmax(x) * dy[:, None])


# --- layer norm ---------------------------------------------------------------------------------------------


def layer_norm(x, w, b):
    """y = w (x - mean) / sqrt(var + 1e-5) + b over the last axis."""
    c = x - x.mean(-1, keepdims=True)
    return w * c / jnp.sqrt((c * c).mean(-1, keepdims=True) + 1e-5) + b


def standardize(x, axis):
    """The standardized x, and 1 / std."""
    c = x - x.mean(axis, keepdims=True)
    r = 1 / jnp.sqrt((c * c).mean(axis, keepdims=True) + 1e-5)
    return c * r, r


def layer_norm_back(x, w, b, dy):
    """dx = r (g - mean(g) - x̂ mean(g x̂)) with g = w dy."""
    h, r = standardize(x, -1)
    g = w * dy
    dx = r * (g - g.mean(-1, keepdims=True) - h * (g * h).mean(-1, keepdims=True))
    return dx, (dy * h).sum(0), dy.sum(0)


def layer_norm_sums(x, w, b, dy):
    """With sums in place of means."""
    h, r = standardize(x, -1)
    n = x.shape[-1]
    g = dy * w
    dx = r / n * (n * g - g.sum(-1, keepdims=True) - h * jnp.einsum("ni,ni->n", g, h)[:, None])
    return dx, jnp.einsum("ni,ni->i", dy, h), jnp.ones(len(dy), dy.dtype) @ dy


def layer_norm_steps(x, w, b, dy):
    """Step by step, as on paper: dx̂, dvar, dmean, dx."""
    n = x.shape[-1]
    mean = x.mean(-1, keepdims=True)
    std = jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
    dh = dy * w
    dvar = (dh * (x - mean)).sum(-1, keepdims=True) * -0.5 / std**3
    dmean = -(dh / std).sum(-1, keepdims=True) + dvar * (-2 * (x - mean)).mean(-1, keepdims=True)
    dx = dh / std + dvar * 2 * (x - mean) / n + dmean / n
    return dx, (dy * (x - mean) / std).sum(0), dy.sum(0)


def layer_norm_x(statistic=True, mean=True, gain=True, scale=True, axis=-1, residual=None):
    """dx of layer norm with a slip: without one of its parts, over another axis, or of another residual."""

    def gradient(x, w, b, dy):
        h, r = standardize(x, -1)
        g = w * dy if gain else dy
        z = h if residual is None else residual(x, w, b)
        dx = g
        if mean:
            dx = dx - g.mean(axis, keepdims=True)
        if statistic:
            dx = dx - z * (g * z).mean(axis, keepdims=True)
        return r * dx if scale else dx

    return gradient


draw = normal((5, 7), (7,), (7,))
square = normal((5, 5), (5,), (5,))
op = Operation("layer norm", layer_norm, layer_norm_back, draw)
op.right("sums for means", layer_norm_sums)
op.right("step by step", layer_norm_steps)
op.wrong("mean held constant", "x", ("statistics_constant", "missing_term"), layer_norm_x(mean=False))
op.wrong(
    "variance held constant", "x", ("statistics_constant", "missing_term"), layer_norm_x(statistic=False)
)
op.wrong(
    "both held constant",
    "x",
    ("statistics_constant", "missing_term"),
    layer_norm_x(statistic=False, mean=False),
)
op.wrong("w forgotten", "x", ("missing_term",), layer_norm_x(gain=False))
op.wrong("1/std forgotten", "x", ("missing_term",), layer_norm_x(scale=False))
op.wrong("means over the batch", "x", ("wrong_axis",), layer_norm_x(axis=0))
op.wrong("x for x̂", "x", ("wrong_residual",), layer_norm_x(residual=lambda x, w, b: x))
op.wrong("y for x̂", "x", ("wrong_residual",), layer_norm_x(residual=layer_norm))
op.wrong("minus sign", "x", ("sign",), lambda *args: -layer_norm_back(*args)[0])
op.wrong("x for x̂", "w", ("wrong_residual",), lambda x, w, b, dy: (dy * x).sum(0))
op.wrong("y for x̂", "w", ("wrong_residual",), lambda x, w, b, dy: (dy * layer_norm(x, w, b)).sum(0))
op.wrong(
    "not summed", "w", ("missing_batch_sum", "unbroadcast"), lambda x, w, b, dy: dy * standardize(x, -1)[0]
)
op.wrong(
    "summed over the features",
    "w",
    ("wrong_axis",),
    lambda x, w, b, dy: (dy * standardize(x, -1)[0]).sum(1),
    square,
)
op.wrong(
    "x̂ of the batch",
    "w",
    ("wrong_axis", "wrong_residual"),
    lambda x, w, b, dy: (dy * standardize(x, 0)[0]).sum(0),
)
op.wrong(
    "centred only",
    "w",
    ("missing_term", "wrong_residual"),
    lambda x, w, b, dy: (dy * (x - x.mean(-1, keepdims=True))).sum(0),
)
op.wrong("mean over the batch", "w", ("scale",), lambda x, w, b, dy: (dy * standardize(x, -1)[0]).mean(0))
op.wrong("w dy for dy", "b", ("extra_term",), lambda x, w, b, dy: (w * dy).sum(0))
op.wrong("mean over the batch", "b", ("scale",), lambda x, w, b, dy: dy.mean(0))
op.wrong("not summed", "b", ("missing_batch_sum", "unbroadcast"), lambda x, w, b, dy: dy)


# --- rms norm -----------------------------------------------------------------------------------------------


def rms_norm(x, w):
    """y = w x / sqrt(mean(x²) + 1e-5) over the last axis."""
    return w * x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)


def rms(x):
    """The root mean square of every row."""
    return jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)


def rms_norm_back(x, w, dy):
    """dx = (g - x̂ mean(g x̂)) / rms with g = w dy."""
    h, g = x / rms(x), w * dy
    return (g - h * (g * h).mean(-1, keepdims=True)) / rms(x), (dy * h).sum(0)


op = Operation("rms norm", rms_norm, rms_norm_back, normal((5, 7), (7,)))
op.right(
    "quotient rule",
    lambda x, w, dy: (
        w * dy / rms(x) - x * (w * dy * x).sum(-1, keepdims=True) / (x.shape[-1] * rms(x) ** 3),
        jnp.einsum("ni,ni->i", dy, x / rms(x)),
    ),
)
op.wrong("rms held constant", "x", ("statistics_constant", "missing_term"), lambda x, w, dy: w * dy / rms(x))
op.wrong(
    "1/rms³ written 1/rms²",
    "x",
    ("missing_term",),
    lambda x, w, dy: w * dy / rms(x) - x * (w * dy * x).mean(-1, keepdims=True) / rms(x) ** 2,
)
op.wrong(
    "w forgotten in the sum",
    "x",
    ("missing_term",),
    lambda x, w, dy: (w * dy - x / rms(x) * (dy * x / rms(x)).mean(-1, keepdims=True)) / rms(x),
)
op.wrong(
    "mean subtracted as in layer norm",
    "x",
    ("extra_term",),
    lambda x, w, dy: rms_norm_back(x, w, dy)[0] - (w * dy).mean(-1, keepdims=True) / rms(x),
)
op.wrong(
    "x for x̂",
    "x",
    ("wrong_residual",),
    lambda x, w, dy: (w * dy - x * (w * dy * x).mean(-1, keepdims=True)) / rms(x),
)
op.wrong(
    "mean over the batch",
    "x",
    ("wrong_axis",),
    lambda x, w, dy: (w * dy - x / rms(x) * (w * dy * x / rms(x)).mean(0)) / rms(x),
)
op.wrong("x for x̂", "w", ("wrong_residual", "missing_term"), lambda x, w, dy: (dy * x).sum(0))
op.wrong("dy forgotten", "w", ("ignores_cotangent",), lambda x, w, dy: (x / rms(x)).sum(0))
op.wrong("not summed", "w", ("unbroadcast", "missing_batch_sum"), lambda x, w, dy: dy * x / rms(x))
op.wrong("times w", "w", ("extra_term",), lambda x, w, dy: (dy * w * x / rms(x)).sum(0))


# --- batch norm, training -----------------------------------------------------------------------------------


def batch_norm(x, w, b):
    """y = w (x - mean) / sqrt(var + 1e-5) + b, mean and variance over the batch."""
    mean = x.mean(0)
    var = ((x - mean) ** 2).mean(0)
    return w * (x - mean) / jnp.sqrt(var + 1e-5) + b


def batch_norm_back(x, w, b, dy):
    """dx = w r (dy - mean(dy) - x̂ mean(dy x̂))."""
    h, r = standardize(x, 0)
    return w * r * (dy - dy.mean(0) - h * (dy * h).mean(0)), (dy * h).sum(0), dy.sum(0)


def batch_norm_sums(x, w, b, dy):
    """With dw and db used again."""
    h, r = standardize(x, 0)
    dw, db = (dy * h).sum(0), dy.sum(0)
    return w * r / len(x) * (len(x) * dy - db - h * dw), dw, db


def batch_norm_steps(x, w, b, dy):
    """Step by step, by centred x, variance and mean."""
    n = len(x)
    c = x - x.mean(0)
    var = (c * c).mean(0) + 1e-5
    dh = dy * w
    dvar = -0.5 * (dh * c).sum(0) * var**-1.5
    dc = dh * var**-0.5 + 2 / n * c * dvar
    return dc - dc.sum(0) / n, (dy * c * var**-0.5).sum(0), dy.sum(0)


op = Operation("batch norm", batch_norm, batch_norm_back, normal((11, 5), (5,), (5,)))
op.right("dw and db used again", batch_norm_sums)
op.right("step by step", batch_norm_steps)
square = normal((7, 7), (7,), (7,))
op.wrong(
    "evaluation's gradient in training",
    "x",
    ("statistics_constant", "missing_term"),
    lambda x, w, b, dy: w * dy * standardize(x, 0)[1],
)


@lambda gradient: op.wrong("mean held constant", "x", ("statistics_constant", "missing_term"), gradient)
def _(x, w, b, dy):
    h, r = standardize(x, 0)
    return w * r * (dy - h * (dy * h).mean(0))


@lambda gradient: op.wrong("variance held constant", "x", ("statistics_constant", "missing_term"), gradient)
def _(x, w, b, dy):
    _, r = standardize(x, 0)
    return w * r * (dy - dy.mean(0))


@lambda gradient: op.wrong("w forgotten", "x", ("missing_term",), gradient)
def _(x, w, b, dy):
    h, r = standardize(x, 0)
    return r * (dy - dy.mean(0) - h * (dy * h).mean(0))


@lambda gradient: op.wrong("means over the features", "x", ("wrong_axis",), gradient)
def _(x, w, b, dy):
    h, r = standardize(x, 0)
    return w * r * (dy - dy.mean(1, keepdims=True) - h * (dy * h).mean(1, keepdims=True))


@lambda gradient: op.wrong("std for 1/std", "x", ("wrong_residual",), gradient)
def _(x, w, b, dy):
    h, r = standardize(x, 0)
    return w / r * (dy - dy.mean(0) - h * (dy * h).mean(0))


@lambda gradient: op.wrong("y for x̂", "x", ("wrong_residual",), gradient)
def _(x, w, b, dy):
    h, r = batch_norm(x, w, b), standardize(x, 0)[1]
    return w * r * (dy - dy.mean(0) - h * (dy * h).mean(0))


@lambda gradient: op.wrong("sum for mean in one term", "x", ("missing_term", "scale"), gradient)
def _(x, w, b, dy):
    h, r = standardize(x, 0)
    return w * r * (dy - dy.sum(0) - h * (dy * h).mean(0))


@lambda gradient: op.wrong("plus for minus before x̂", "x", ("sign", "extra_term"), gradient)
def _(x, w, b, dy):
    h, r = standardize(x, 0)
    return w * r * (dy - dy.mean(0) + h * (dy * h).mean(0))


op.wrong(
    "variance over n - 1",
    "w",
    ("scale", "wrong_residual"),
    lambda x, w, b, dy: (dy * (x - x.mean(0)) / jnp.sqrt(x.var(0, ddof=1) + 1e-5)).sum(0),
)
op.wrong("x for x̂", "w", ("wrong_residual",), lambda x, w, b, dy: (dy * x).sum(0))
op.wrong("mean over the batch", "w", ("scale",), lambda x, w, b, dy: (dy * standardize(x, 0)[0]).mean(0))
op.wrong(
    "x̂ of the features",
    "w",
    ("wrong_axis", "wrong_residual"),
    lambda x, w, b, dy: (dy * standardize(x, 1)[0]).sum(0),
)
op.wrong("summed over the features", "b", ("wrong_axis",), lambda x, w, b, dy: dy.sum(1), square)
op.wrong("no gradient", "b", ("zero",), lambda x, w, b, dy: jnp.zeros_like(b))
op.wrong("first sample only", "b", ("missing_batch_sum", "ignores_cotangent"), lambda x, w, b, dy: dy[0])


# --- instance norm ------------------------------------------------------------------------------------------


def instance_norm(x, w, b):
    """y = w x̂ + b, x of shape (n, length, channels) standardized over its length."""
    c = x - x.mean(1, keepdims=True)
    return c / jnp.sqrt((c * c).mean(1, keepdims=True) + 1e-5) * w + b


def instance_norm_back(x, w, b, dy):
    """dx = r (g - mean(g) - x̂ mean(g x̂)), means over the length."""
    h, r = standardize(x, 1)
    g = w * dy
    dx = r * (g - g.mean(1, keepdims=True) - h * (g * h).mean(1, keepdims=True))
    return dx, (dy * h).sum((0, 1)), dy.sum((0, 1))


def instance_norm_batches(x, w, b, dy):
    """Batch norm of every sample, dw and db summed."""
    parts = [batch_norm_back(x[n], w, b, dy[n]) for n in range(len(x))]
    return jnp.stack([p[0] for p in parts]), sum(p[1] for p in parts), sum(p[2] for p in parts)


op = Operation("instance norm", instance_norm, instance_norm_back, normal((2, 11, 3), (3,), (3,)))
op.right("as batch norm of every sample", instance_norm_batches)
op.wrong(
    "batch norm's axes",
    "x",
    ("wrong_axis",),
    lambda x, w, b, dy: batch_norm_back(x.reshape(-1, x.shape[-1]), w, b, dy.reshape(-1, x.shape[-1]))[
        0
    ].reshape(x.shape),
)


@lambda gradient: op.wrong("variance held constant", "x", ("statistics_constant", "missing_term"), gradient)
def _(x, w, b, dy):
    g = w * dy
    return standardize(x, 1)[1] * (g - g.mean(1, keepdims=True))


@lambda gradient: op.wrong("means over the channels", "x", ("wrong_axis",), gradient)
def _(x, w, b, dy):
    h, r = standardize(x, 1)
    g = w * dy
    return r * (g - g.mean(2, keepdims=True) - h * (g * h).mean(2, keepdims=True))


op.wrong(
    "batch not summed",
    "w",
    ("missing_batch_sum", "unbroadcast"),
    lambda x, w, b, dy: (dy * standardize(x, 1)[0]).sum(1),
)
op.wrong(
    "centred only",
    "w",
    ("missing_term", "wrong_residual"),
    lambda x, w, b, dy: (dy * (x - x.mean(1, keepdims=True))).sum((0, 1)),
)
op.wrong("batch not summed", "b", ("missing_batch_sum", "unbroadcast"), lambda x, w, b, dy: dy.sum(1))
op.wrong(
    "first sample only", "b", ("missing_batch_sum", "ignores_cotangent"), lambda x, w, b, dy: dy[0].sum(0)
)
op.wrong("mean over the length", "b", ("scale",), lambda x, w, b, dy: dy.mean(1).sum(0))


# --- attention ----------------------------------------------------------------------------------------------


def attention(q, k, v):
    """y = softmax(q kᵀ / sqrt(d)) v."""
    return softmax(q @ k.T / jnp.sqrt(q.shape[-1])) @ v


def attention_back(q, k, v, dy):
    """ds = softmax's gradient of dy vᵀ; dq = ds k / sqrt(d), dk = dsᵀ q / sqrt(d), dv = pᵀ dy."""
    d = jnp.sqrt(q.shape[-1])
    s = q @ k.T / d
    ds = softmax_back(s, dy @ v.T)
    return ds @ k / d, ds.T @ q / d, softmax(s).T @ dy


def attention_flash(q, k, v, dy):
    """<p, dp> as <y, dy>, as flash attention does."""
    scale = q.shape[-1] ** -0.5
    p = softmax(scale * (q @ k.T))
    ds = scale * p * (dy @ v.T - ((p @ v) * dy).sum(-1, keepdims=True))
    return jnp.einsum("ts,sd->td", ds, k), jnp.einsum("ts,td->sd", ds, q), jnp.einsum("ts,te->se", p, dy)


def scores(q, k):
    """The scaled scores."""
    return q @ k.T / jnp.sqrt(q.shape[-1])


def dscores(q, k, v, dy):
    """The gradient with respect to the scores."""
    return softmax_back(scores(q, k), dy @ v.T)


def root(q):
    """The square root of the head size."""
    return jnp.sqrt(q.shape[-1])


square = normal((5, 5), (5, 5), (5, 5))
op = Operation("attention", attention, attention_back, normal((5, 3), (7, 3), (7, 2)))
op.right("<y, dy> as in flash attention", attention_flash)
op.right(
    "softmax by its jacobian",
    lambda q, k, v, dy: (
        softmax_jacobian(scores(q, k), dy @ v.T) @ (k / root(q)),
        (q.T @ softmax_jacobian(scores(q, k), dy @ v.T)).T / root(q),
        (dy.T @ softmax(scores(q, k))).T,
    ),
)
op.wrong("1/sqrt(d) forgotten", "q", ("scale",), lambda q, k, v, dy: dscores(q, k, v, dy) @ k)
op.wrong("1/sqrt(d) forgotten", "k", ("scale",), lambda q, k, v, dy: dscores(q, k, v, dy).T @ q)
op.wrong("1/d for 1/sqrt(d)", "k", ("scale",), lambda q, k, v, dy: dscores(q, k, v, dy).T @ q / q.shape[-1])
op.wrong(
    "softmax's second term forgotten",
    "q",
    ("missing_term",),
    lambda q, k, v, dy: (softmax(scores(q, k)) * (dy @ v.T)) @ k / root(q),
)
op.wrong("softmax's gradient forgotten", "q", ("missing_term",), lambda q, k, v, dy: (dy @ v.T) @ k / root(q))
op.wrong(
    "softmax's gradient over the queries",
    "q",
    ("wrong_axis",),
    lambda q, k, v, dy: (lambda p, dp: (p * (dp - (p * dp).sum(0))) @ k / root(q))(
        softmax(scores(q, k)), dy @ v.T
    ),
)
op.wrong(
    "v for k",
    "q",
    ("wrong_residual", "swapped"),
    lambda q, k, v, dy: dscores(q, k, v, dy) @ v / root(q),
    square,
)
op.wrong(
    "k for q",
    "k",
    ("wrong_residual", "swapped"),
    lambda q, k, v, dy: dscores(q, k, v, dy).T @ k / root(q),
    square,
)
op.wrong(
    "ds not transposed", "k", ("transpose",), lambda q, k, v, dy: dscores(q, k, v, dy) @ q / root(q), square
)
op.wrong(
    "v not transposed",
    "k",
    ("transpose",),
    lambda q, k, v, dy: softmax_back(scores(q, k), dy @ v).T @ q / root(q),
    square,
)
op.wrong(
    "gradient of q given for k",
    "k",
    ("swapped",),
    lambda q, k, v, dy: dscores(q, k, v, dy) @ k / root(q),
    square,
)
op.wrong("p not transposed", "v", ("transpose",), lambda q, k, v, dy: softmax(scores(q, k)) @ dy, square)
op.wrong("scores for p", "v", ("wrong_residual",), lambda q, k, v, dy: scores(q, k).T @ dy)
op.wrong("p of unscaled scores", "v", ("wrong_residual",), lambda q, k, v, dy: softmax(q @ k.T).T @ dy)
op.wrong(
    "p normalised over the queries",
    "v",
    ("wrong_axis", "wrong_residual"),
    lambda q, k, v, dy: softmax(scores(q, k).T) @ dy,
)
op.wrong(
    "p not normalised",
    "v",
    ("missing_term", "wrong_residual"),
    lambda q, k, v, dy: jnp.exp(scores(q, k)).T @ dy,
)
op.wrong(
    "last query only",
    "v",
    ("ignores_cotangent", "missing_term"),
    lambda q, k, v, dy: jnp.outer(softmax(scores(q, k))[-1], dy[-1]),
)


# --- causal attention ---------------------------------------------------------------------------------------


def lower(n):
    """Where query i may see key j: j <= i."""
    return jnp.arange(n)[:, None] >= jnp.arange(n)


def causal_scores(q, k):
    """The scaled scores, those of later keys at -1e30."""
    return jnp.where(lower(len(q)), scores(q, k), -1e30)


def causal_attention(q, k, v):
    """y = softmax(scores, later keys masked) v."""
    return softmax(causal_scores(q, k)) @ v


def causal_attention_back(q, k, v, dy):
    """As attention's, with the masked p."""
    p = softmax(causal_scores(q, k))
    dp = dy @ v.T
    ds = p * (dp - (p * dp).sum(-1, keepdims=True)) / root(q)
    return ds @ k, ds.T @ q, p.T @ dy


def causal_attention_masked(q, k, v, dy):
    """The mask multiplied, before and after."""
    m = lower(len(q)).astype(q.dtype)
    e = m * jnp.exp(scores(q, k))
    p = e / e.sum(-1, keepdims=True)
    ds = m * p * (m * (dy @ v.T) - ((p @ v) * dy).sum(-1, keepdims=True))
    return ds @ k / root(q), ds.T @ q / root(q), (m * p).T @ dy


def causal_attention_rows(q, k, v, dy):
    """Query by query, of the keys seen only."""
    dq, dk, dv = jnp.zeros_like(q), jnp.zeros_like(k), jnp.zeros_like(v)
    for i in range(len(q)):
        rows = attention_back(q[i : i + 1], k[: i + 1], v[: i + 1], dy[i : i + 1])
        dq = dq.at[i].add(rows[0][0])
        dk = dk.at[: i + 1].add(rows[1])
        dv = dv.at[: i + 1].add(rows[2])
    return dq, dk, dv


draw = normal((7, 3), (7, 3), (7, 2))
op = Operation("causal attention", causal_attention, causal_attention_back, draw)
op.right("mask multiplied", causal_attention_masked)
op.right("query by query", causal_attention_rows)
op.wrong("mask forgotten", "q", ("mask",), lambda q, k, v, dy: attention_back(q, k, v, dy)[0])
op.wrong("mask forgotten", "k", ("mask",), lambda q, k, v, dy: attention_back(q, k, v, dy)[1])
op.wrong("mask forgotten", "v", ("mask",), lambda q, k, v, dy: attention_back(q, k, v, dy)[2])
op.wrong(
    "mask of the earlier keys",
    "v",
    ("mask", "transpose"),
    lambda q, k, v, dy: softmax(jnp.where(lower(len(q)).T, scores(q, k), -1e30)).T @ dy,
)
op.wrong(
    "p masked after the softmax",
    "v",
    ("wrong_residual",),
    lambda q, k, v, dy: jnp.where(lower(len(q)), softmax(scores(q, k)), 0).T @ dy,
)
op.wrong(
    "own key masked too",
    "v",
    ("mask",),
    lambda q, k, v, dy: jnp.where(jnp.eye(len(q), dtype=bool), 0, softmax(causal_scores(q, k))).T @ dy,
)
op.wrong(
    "softmax's second term forgotten",
    "k",
    ("missing_term",),
    lambda q, k, v, dy: (softmax(causal_scores(q, k)) * (dy @ v.T)).T @ q / root(q),
)
op.wrong(
    "1/sqrt(d) twice", "q", ("scale",), lambda q, k, v, dy: causal_attention_back(q, k, v, dy)[0] / root(q)
)


# --- 1-D convolution, valid ---------------------------------------------------------------------------------


def conv(x, k):
    """y[n, t] = Σⱼ x[n, t + j] @ k[j], x (n, length, channels), k (taps, channels, outputs)."""
    t = x.shape[1] - len(k) + 1
    return sum(x[:, j : j + t] @ k[j] for j in range(len(k)))


def pad(x, before, after, axis=1):
    """x with zeros before and after along an axis."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (before, after)
    return jnp.pad(x, widths)


def conv_dx(x, k, dy):
    """dx[n, s] = Σⱼ dy[n, s - j] @ k[j]ᵀ: the full convolution with the flipped kernel."""
    return conv(pad(dy, len(k) - 1, len(k) - 1), k[::-1].mT)


def conv_dk(x, k, dy):
    """dk[j] = Σ x[n, t + j] dy[n, t]."""
    t = dy.shape[1]
    return jnp.stack([jnp.einsum("ntc,nto->co", x[:, j : j + t], dy) for j in range(len(k))])


def conv_back(x, k, dy):
    """dx by the full convolution with the flipped kernel, dk by correlation."""
    return conv_dx(x, k, dy), conv_dk(x, k, dy)


def conv_scatter(x, k, dy):
    """Every tap's part added in its place."""
    t = dy.shape[1]
    dx, dk = jnp.zeros_like(x), jnp.zeros_like(k)
    for j in range(len(k)):
        dx = dx.at[:, j : j + t].add(dy @ k[j].T)
        dk = dk.at[j].add((x[:, j : j + t].mT @ dy).sum(0))
    return dx, dk


def conv_windows(x, k, dy):
    """By the matrix of windows, as im2col does."""
    t, taps = dy.shape[1], len(k)
    index = jnp.arange(t)[:, None] + jnp.arange(taps)
    dwindows = jnp.einsum("nto,jco->ntjc", dy, k)
    return jnp.zeros_like(x).at[:, index].add(dwindows), jnp.einsum("ntjc,nto->jco", x[:, index], dy)


op = Operation("conv 1d, valid", conv, conv_back, normal((2, 11, 3), (3, 3, 5)))
op.right("scattered tap by tap", conv_scatter)
op.right("windows", conv_windows)
op.right(
    "padded tap by tap",
    lambda x, k, dy: (
        sum(pad(dy @ k[j].T, j, len(k) - 1 - j) for j in range(len(k))),
        jnp.stack([(pad(dy, j, len(k) - 1 - j).mT @ x).sum(0).T for j in range(len(k))]),
    ),
)
square = normal((2, 11, 3), (3, 3, 3))
op.wrong(
    "kernel not flipped",
    "x",
    ("flip",),
    lambda x, k, dy: conv(pad(dy, len(k) - 1, len(k) - 1), k.mT),
)
op.wrong(
    "channels not transposed",
    "x",
    ("transpose",),
    lambda x, k, dy: conv(pad(dy, len(k) - 1, len(k) - 1), k[::-1]),
    square,
)
op.wrong(
    "padded on the right only", "x", ("shift",), lambda x, k, dy: conv(pad(dy, 0, 2 * len(k) - 2), k[::-1].mT)
)
op.wrong(
    "padding off by one", "x", ("shift",), lambda x, k, dy: conv(pad(dy, len(k), len(k) - 2), k[::-1].mT)
)
op.wrong(
    "edge values in the padding",
    "x",
    ("border",),
    lambda x, k, dy: conv(jnp.pad(dy, ((0, 0), (len(k) - 1, len(k) - 1), (0, 0)), mode="edge"), k[::-1].mT),
)
op.wrong(
    "whole windows only, zero at the ends",
    "x",
    ("border",),
    lambda x, k, dy: pad(conv(dy, k[::-1].mT), len(k) - 1, len(k) - 1),
)
op.wrong(
    "first step left at zero",
    "x",
    ("border",),
    lambda x, k, dy: conv_dx(x, k, dy).at[:, 0].set(0),
)
op.wrong(
    "one tap forgotten",
    "x",
    ("missing_term",),
    lambda x, k, dy: sum(pad(dy @ k[j].T, j, len(k) - 1 - j) for j in range(1, len(k))),
)
op.wrong("minus sign", "x", ("sign",), lambda x, k, dy: -conv_dx(x, k, dy))
op.wrong("taps in the wrong order", "k", ("flip",), lambda x, k, dy: conv_dk(x, k, dy)[::-1])
op.wrong(
    "first sample only",
    "k",
    ("missing_batch_sum", "ignores_cotangent"),
    lambda x, k, dy: conv_dk(x[:1], k, dy[:1]),
)
op.wrong("mean over the batch", "k", ("scale",), lambda x, k, dy: conv_dk(x, k, dy) / len(x))
op.wrong("windows one late", "k", ("shift",), lambda x, k, dy: conv_dk(jnp.roll(x, -1, 1), k, dy))
op.wrong("channels transposed", "k", ("transpose",), lambda x, k, dy: conv_dk(x, k, dy).mT, square)
op.wrong(
    "dx for x",
    "k",
    ("wrong_residual", "nonlinear_in_cotangent"),
    lambda x, k, dy: conv_dk(conv_dx(x, k, dy), k, dy),
)
op.wrong(
    "last step of dy only",
    "k",
    ("ignores_cotangent", "missing_term"),
    lambda x, k, dy: conv_dk(x[:, -len(k) :], k, dy[:, -1:]),
)


# --- 1-D convolution, same length ---------------------------------------------------------------------------


def same(x, k):
    """y[n, t] = Σⱼ x[n, t + j - h] k[j] with zeros outside; 2 h + 1 taps."""
    h, t = len(k) // 2, x.shape[1]
    xp = jnp.pad(x, ((0, 0), (h, h)))
    return sum(xp[:, j : j + t] * k[j] for j in range(len(k)))


def same_dk(x, k, dy, mode="constant"):
    """dk[j] = Σ x[n, t + j - h] dy[n, t]."""
    h, t = len(k) // 2, x.shape[1]
    xp = jnp.pad(x, ((0, 0), (h, h)), mode=mode)
    return jnp.stack([(xp[:, j : j + t] * dy).sum() for j in range(len(k))])


def same_back(x, k, dy):
    """dx is the same convolution with the flipped kernel."""
    return same(dy, k[::-1]), same_dk(x, k, dy)


op = Operation("conv 1d, same", same, same_back, normal((3, 11), (5,)))


@lambda backward: op.right("padded, scattered, cut", backward)
def _(x, k, dy):
    h, t = len(k) // 2, x.shape[1]
    dxp = jnp.zeros((len(x), t + 2 * h), x.dtype)
    for j in range(len(k)):
        dxp = dxp.at[:, j : j + t].add(dy * k[j])
    return dxp[:, h : h + t], jnp.einsum(
        "njt,nt->j", jnp.stack([pad(x, h, h)[:, j : j + t] for j in range(len(k))], 1), dy
    )


@lambda backward: op.right("by the band matrix", backward)
def _(x, k, dy):
    t = x.shape[1]
    offset = jnp.arange(t)[None, :] - jnp.arange(t)[:, None] + len(k) // 2
    inside = (offset >= 0) & (offset < len(k))
    band = jnp.where(inside, k[jnp.clip(offset, 0, len(k) - 1)], 0)
    products = jnp.where(inside, dy.T @ x, 0)
    return dy @ band, jnp.zeros_like(k).at[jnp.clip(offset, 0, len(k) - 1)].add(products)


op.wrong("kernel not flipped", "x", ("flip",), lambda x, k, dy: same(dy, k))
op.wrong(
    "padded on the left only",
    "x",
    ("shift",),
    lambda x, k, dy: same(pad(dy, len(k) // 2, 0)[:, : dy.shape[1]], k[::-1]),
)
op.wrong(
    "wraps around",
    "x",
    ("border",),
    lambda x, k, dy: sum(jnp.roll(dy, j - len(k) // 2, 1) * k[j] for j in range(len(k))),
)
op.wrong("ends zero", "x", ("border",), lambda x, k, dy: pad(same(dy, k[::-1])[:, 1:-1], 1, 1))
op.wrong("middle tap only", "x", ("missing_term",), lambda x, k, dy: dy * k[len(k) // 2])
op.wrong("edge values in the padding", "k", ("border",), lambda x, k, dy: same_dk(x, k, dy, "edge"))
op.wrong("wraps around", "k", ("border",), lambda x, k, dy: same_dk(x, k, dy, "wrap"))
op.wrong("taps in the wrong order", "k", ("flip", "swapped"), lambda x, k, dy: same_dk(dy, k, x))
op.wrong(
    "no padding on the left",
    "k",
    ("shift",),
    lambda x, k, dy: same_dk(pad(x, 0, len(k) // 2)[:, len(k) // 2 :], k, dy),
)
op.wrong(
    "batch not summed",
    "k",
    ("missing_batch_sum", "unbroadcast"),
    lambda x, k, dy: jnp.stack([same_dk(x[n : n + 1], k, dy[n : n + 1]) for n in range(len(x))]),
)
op.wrong("mean over the length", "k", ("scale",), lambda x, k, dy: same_dk(x, k, dy) / x.shape[1])
op.wrong("None given", "k", ("zero",), lambda x, k, dy: None)


# --- 2-D convolution ----------------------------------------------------------------------------------------


def conv2d(x, k, b):
    """y[n, s, t] = Σ x[n, s + i, t + j] @ k[i, j] + b, x (n, height, width, channels)."""
    s, t = x.shape[1] - k.shape[0] + 1, x.shape[2] - k.shape[1] + 1
    taps = [(i, j) for i in range(k.shape[0]) for j in range(k.shape[1])]
    return sum(x[:, i : i + s, j : j + t] @ k[i, j] for i, j in taps) + b


def full2d(dy, k):
    """The full correlation of dy with a kernel, zeros outside."""
    i, j = k.shape[0] - 1, k.shape[1] - 1
    return conv2d(jnp.pad(dy, ((0, 0), (i, i), (j, j), (0, 0))), k, 0)


def conv2d_dk(x, k, dy):
    """dk[i, j] = Σ x[n, s + i, t + j] dy[n, s, t]."""
    s, t = dy.shape[1:3]
    return jnp.stack(
        [
            jnp.stack(
                [jnp.einsum("nstc,nsto->co", x[:, i : i + s, j : j + t], dy) for j in range(k.shape[1])]
            )
            for i in range(k.shape[0])
        ]
    )


def conv2d_back(x, k, b, dy):
    """dx with the kernel turned by 180°, dk by correlation, db summed."""
    return full2d(dy, k[::-1, ::-1].mT), conv2d_dk(x, k, dy), dy.sum((0, 1, 2))


def conv2d_scatter(x, k, b, dy):
    """Every tap's part added in its place."""
    s, t = dy.shape[1:3]
    dx, dk = jnp.zeros_like(x), jnp.zeros_like(k)
    for i in range(k.shape[0]):
        for j in range(k.shape[1]):
            dx = dx.at[:, i : i + s, j : j + t].add(jnp.einsum("nsto,co->nstc", dy, k[i, j]))
            dk = dk.at[i, j].set(jnp.tensordot(x[:, i : i + s, j : j + t], dy, axes=((0, 1, 2), (0, 1, 2))))
    return dx, dk, jnp.einsum("nsto->o", dy)


op = Operation("conv 2d", conv2d, conv2d_back, normal((2, 7, 11, 3), (3, 2, 3, 5), (5,)))
op.right("scattered tap by tap", conv2d_scatter)
square = normal((2, 7, 7, 3), (3, 3, 3, 3), (3,))
op.wrong("kernel not turned", "x", ("flip",), lambda x, k, b, dy: full2d(dy, k.mT))
op.wrong("kernel flipped along the width only", "x", ("flip",), lambda x, k, b, dy: full2d(dy, k[:, ::-1].mT))
op.wrong(
    "height and width of the kernel exchanged",
    "x",
    ("transpose", "swapped"),
    lambda x, k, b, dy: full2d(dy, k[::-1, ::-1].mT.swapaxes(0, 1)),
    square,
)
op.wrong(
    "channels not transposed", "x", ("transpose",), lambda x, k, b, dy: full2d(dy, k[::-1, ::-1]), square
)
op.wrong(
    "one column late",
    "x",
    ("shift",),
    lambda x, k, b, dy: pad(full2d(dy, k[::-1, ::-1].mT), 1, 0, 2)[:, :, :-1],
)
op.wrong(
    "zero in the outer rows",
    "x",
    ("border",),
    lambda x, k, b, dy: pad(full2d(dy, k[::-1, ::-1].mT)[:, 1:-1], 1, 1),
)
op.wrong("flipped along the height", "k", ("flip",), lambda x, k, b, dy: conv2d_dk(x, k, dy)[::-1])
op.wrong("channels transposed", "k", ("transpose",), lambda x, k, b, dy: conv2d_dk(x, k, dy).mT, square)
op.wrong(
    "first sample only",
    "k",
    ("missing_batch_sum", "ignores_cotangent"),
    lambda x, k, b, dy: conv2d_dk(x[:1], k, dy[:1]),
)
op.wrong("one row late", "k", ("shift",), lambda x, k, b, dy: conv2d_dk(jnp.roll(x, -1, 1), k, dy))
op.wrong("mean over the batch", "k", ("scale",), lambda x, k, b, dy: conv2d_dk(x, k, dy) / len(x))
op.wrong("summed over the batch only", "b", ("unbroadcast",), lambda x, k, b, dy: dy.sum(0))
op.wrong(
    "first sample only",
    "b",
    ("missing_batch_sum", "ignores_cotangent"),
    lambda x, k, b, dy: dy[0].sum((0, 1)),
)
op.wrong("mean over the image", "b", ("scale",), lambda x, k, b, dy: dy.mean((1, 2)).sum(0))
op.wrong(
    "first pixel only", "b", ("ignores_cotangent", "missing_term"), lambda x, k, b, dy: dy[:, 0, 0].sum(0)
)


# --- tanh ---------------------------------------------------------------------------------------------------


def tanh_back(x, dy):
    """dx = (1 - t²) dy."""
    t = jnp.tanh(x)
    return (1 - t * t) * dy


op = Operation("tanh", lambda x: jnp.tanh(x), tanh_back, rows)
op.right("(1 - t) (1 + t)", lambda x, dy: (1 - jnp.tanh(x)) * (1 + jnp.tanh(x)) * dy)
op.right("1 / cosh²", lambda x, dy: dy / jnp.cosh(x) ** 2)
op.wrong("square forgotten", "x", ("missing_term",), lambda x, dy: (1 - jnp.tanh(x)) * dy)
op.wrong("x for t", "x", ("wrong_residual",), lambda x, dy: (1 - x * x) * dy)
op.wrong("tanh(y) for y", "x", ("wrong_residual",), lambda x, dy: (1 - jnp.tanh(jnp.tanh(x)) ** 2) * dy)
op.wrong("t² - 1", "x", ("sign",), lambda x, dy: (jnp.tanh(x) ** 2 - 1) * dy)
op.wrong("dy forgotten", "x", ("ignores_cotangent",), lambda x, dy: 1 - jnp.tanh(x) ** 2)
op.wrong("dy squared too", "x", ("nonlinear_in_cotangent",), lambda x, dy: dy - (jnp.tanh(x) * dy) ** 2)
op.wrong("1 forgotten", "x", ("missing_term",), lambda x, dy: -(jnp.tanh(x) ** 2) * dy)
op.wrong("twice", "x", ("extra_term",), lambda x, dy: (1 - jnp.tanh(x) ** 2) ** 2 * dy)


# --- sigmoid ------------------------------------------------------------------------------------------------


def sigmoid(x):
    """s = 1 / (1 + exp(-x))."""
    return 1 / (1 + jnp.exp(-x))


def sigmoid_back(x, dy):
    """dx = s (1 - s) dy."""
    s = sigmoid(x)
    return s * (1 - s) * dy


op = Operation("sigmoid", sigmoid, sigmoid_back, rows)
op.right("s - s²", lambda x, dy: (sigmoid(x) - sigmoid(x) ** 2) * dy)
op.right("s(x) s(-x)", lambda x, dy: dy * sigmoid(x) * sigmoid(-x))
op.right("e / (1 + e)²", lambda x, dy: dy * jnp.exp(-x) / (1 + jnp.exp(-x)) ** 2)
op.wrong("1 - s forgotten", "x", ("missing_term",), lambda x, dy: sigmoid(x) * dy)
op.wrong("s forgotten", "x", ("missing_term",), lambda x, dy: (1 - sigmoid(x)) * dy)
op.wrong("x for s", "x", ("wrong_residual",), lambda x, dy: x * (1 - x) * dy)
op.wrong("sigmoid(y) for y", "x", ("wrong_residual",), lambda x, dy: sigmoid_back(sigmoid(x), dy))
op.wrong("s (s - 1)", "x", ("sign",), lambda x, dy: sigmoid(x) * (sigmoid(x) - 1) * dy)
op.wrong("dy forgotten", "x", ("ignores_cotangent",), lambda x, dy: sigmoid(x) * (1 - sigmoid(x)))
op.wrong(
    "dy inside the bracket",
    "x",
    ("nonlinear_in_cotangent", "ignores_cotangent"),
    lambda x, dy: sigmoid(x) * (1 - sigmoid(x) * dy),
)
op.wrong("s² (1 - s)", "x", ("extra_term",), lambda x, dy: sigmoid(x) ** 2 * (1 - sigmoid(x)) * dy)
op.wrong("no gradient", "x", ("zero",), lambda x, dy: jnp.zeros_like(x))


# --- relu ---------------------------------------------------------------------------------------------------


def relu(x):
    """y = x where positive, else 0."""
    return jnp.where(x > 0, x, 0)


op = Operation("relu", relu, lambda x, dy: jnp.where(x > 0, dy, 0), rows)
op.right("mask multiplied", lambda x, dy: dy * (x > 0))
op.right("mask of y", lambda x, dy: dy * jnp.sign(relu(x)))
op.wrong("mask forgotten", "x", ("mask",), lambda x, dy: dy)
op.wrong("mask inverted", "x", ("mask",), lambda x, dy: jnp.where(x > 0, 0, dy))
op.wrong("mask of dy", "x", ("mask", "nonlinear_in_cotangent"), lambda x, dy: jnp.where(dy > 0, dy, 0))
op.wrong(
    "mask of x and dy",
    "x",
    ("nonlinear_in_cotangent", "mask"),
    lambda x, dy: jnp.where((x > 0) & (dy > 0), dy, 0),
)
op.wrong("dy forgotten", "x", ("ignores_cotangent",), lambda x, dy: jnp.where(x > 0, 1, 0) + 0 * x)
op.wrong("y for the mask", "x", ("wrong_residual", "extra_term"), lambda x, dy: dy * relu(x))
op.wrong("sign of x for the mask", "x", ("mask", "extra_term"), lambda x, dy: dy * jnp.sign(x))
op.wrong("relu6's mask", "x", ("mask",), lambda x, dy: jnp.where((x > 0) & (x < 1), dy, 0))
op.wrong(
    "transposed mask", "x", ("transpose", "mask"), lambda x, dy: jnp.where(x.T > 0, dy, 0), normal((5, 5))
)


# --- leaky relu ---------------------------------------------------------------------------------------------

SLOPE = 0.1


def leaky_relu(x):
    """y = x where positive, else 0.1 x."""
    return jnp.where(x > 0, x, SLOPE * x)


op = Operation("leaky relu", leaky_relu, lambda x, dy: jnp.where(x > 0, dy, SLOPE * dy), rows)
op.right("slopes multiplied", lambda x, dy: dy * jnp.where(x > 0, 1.0, SLOPE))
op.right("mask arithmetic", lambda x, dy: dy * (SLOPE + (1 - SLOPE) * (leaky_relu(x) > 0)))
op.wrong("relu's mask", "x", ("mask", "missing_term"), lambda x, dy: jnp.where(x > 0, dy, 0))
op.wrong("branches exchanged", "x", ("mask", "swapped"), lambda x, dy: jnp.where(x > 0, SLOPE * dy, dy))
op.wrong("slope forgotten", "x", ("missing_term", "mask"), lambda x, dy: jnp.where(x > 0, dy, dy))
op.wrong("slope everywhere", "x", ("mask",), lambda x, dy: SLOPE * dy)
op.wrong("sign of the slope", "x", ("sign",), lambda x, dy: jnp.where(x > 0, dy, -SLOPE * dy))
op.wrong(
    "dy forgotten below zero",
    "x",
    ("ignores_cotangent", "nonlinear_in_cotangent"),
    lambda x, dy: jnp.where(x > 0, dy, SLOPE),
)
op.wrong(
    "y for dy below zero",
    "x",
    ("ignores_cotangent", "wrong_residual", "nonlinear_in_cotangent"),
    lambda x, dy: jnp.where(x > 0, dy, SLOPE * x),
)
op.wrong(
    "mask of dy", "x", ("nonlinear_in_cotangent", "mask"), lambda x, dy: jnp.where(dy > 0, dy, SLOPE * dy)
)


# --- gelu, tanh form ----------------------------------------------------------------------------------------

C = 0.7978845608028654  # sqrt(2 / pi)
A = 0.044715


def gelu(x):
    """y = x (1 + tanh(c (x + a x³))) / 2."""
    return 0.5 * x * (1 + jnp.tanh(C * (x + A * x**3)))


def gelu_back(x, dy):
    """dx = dy ((1 + t) / 2 + x (1 - t²) c (1 + 3 a x²) / 2)."""
    t = jnp.tanh(C * (x + A * x**3))
    return dy * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * C * (1 + 3 * A * x * x))


def gelu_t(x):
    """The tanh of gelu."""
    return jnp.tanh(C * (x + A * x**3))


def gelu_inner(x):
    """The derivative of tanh's argument."""
    return C * (1 + 3 * A * x**2)


op = Operation("gelu", gelu, gelu_back, rows)
op.right("factored", lambda x, dy: 0.5 * dy * (1 + gelu_t(x)) * (1 + x * (1 - gelu_t(x)) * gelu_inner(x)))
op.right(
    "as x sigmoid(2 u)",
    lambda x, dy: dy * (lambda s: s + 2 * x * s * (1 - s) * gelu_inner(x))(0.5 + 0.5 * gelu_t(x)),
)
op.wrong(
    "product rule's second term forgotten", "x", ("missing_term",), lambda x, dy: dy * 0.5 * (1 + gelu_t(x))
)
op.wrong(
    "product rule's first term forgotten",
    "x",
    ("missing_term",),
    lambda x, dy: dy * 0.5 * x * (1 - gelu_t(x) ** 2) * gelu_inner(x),
)
op.wrong(
    "inner derivative forgotten",
    "x",
    ("missing_term",),
    lambda x, dy: dy * (0.5 * (1 + gelu_t(x)) + 0.5 * x * (1 - gelu_t(x) ** 2)),
)
op.wrong(
    "3 forgotten",
    "x",
    ("missing_term", "scale"),
    lambda x, dy: dy * (0.5 * (1 + gelu_t(x)) + 0.5 * x * (1 - gelu_t(x) ** 2) * C * (1 + A * x**2)),
)
op.wrong(
    "inner argument for t",
    "x",
    ("wrong_residual",),
    lambda x, dy: dy * (0.5 * (1 + gelu_t(x)) + 0.5 * x * (1 - (C * (x + A * x**3)) ** 2) * gelu_inner(x)),
)
op.wrong(
    "tanh(x) for t",
    "x",
    ("wrong_residual",),
    lambda x, dy: dy * (0.5 * (1 + gelu_t(x)) + 0.5 * x * (1 - jnp.tanh(x) ** 2) * gelu_inner(x)),
)
op.wrong(
    "1/2 forgotten",
    "x",
    ("scale",),
    lambda x, dy: dy * (1 + gelu_t(x) + x * (1 - gelu_t(x) ** 2) * gelu_inner(x)),
)
op.wrong(
    "x forgotten in the second term",
    "x",
    ("missing_term",),
    lambda x, dy: dy * (0.5 * (1 + gelu_t(x)) + 0.5 * (1 - gelu_t(x) ** 2) * gelu_inner(x)),
)


# --- silu ---------------------------------------------------------------------------------------------------


def silu(x):
    """y = x sigmoid(x)."""
    return x * sigmoid(x)


def silu_back(x, dy):
    """dx = dy (s + x s (1 - s))."""
    s = sigmoid(x)
    return dy * (s + x * s * (1 - s))


op = Operation("silu", silu, silu_back, rows)
op.right("y used again", lambda x, dy: dy * (silu(x) + sigmoid(x) * (1 - silu(x))))
op.right("factored", lambda x, dy: dy * sigmoid(x) * (1 + x * sigmoid(-x)))
op.wrong("second term forgotten", "x", ("missing_term",), lambda x, dy: dy * sigmoid(x))
op.wrong("first term forgotten", "x", ("missing_term",), lambda x, dy: dy * x * sigmoid(x) * (1 - sigmoid(x)))
op.wrong(
    "x forgotten", "x", ("missing_term",), lambda x, dy: dy * (sigmoid(x) + sigmoid(x) * (1 - sigmoid(x)))
)
op.wrong("1 - s forgotten", "x", ("missing_term",), lambda x, dy: dy * (sigmoid(x) + x * sigmoid(x)))
op.wrong(
    "1 - y for 1 - s", "x", ("wrong_residual",), lambda x, dy: dy * (sigmoid(x) + silu(x) * (1 - silu(x)))
)
op.wrong(
    "y for x",
    "x",
    ("wrong_residual",),
    lambda x, dy: dy * (sigmoid(x) + silu(x) * sigmoid(x) * (1 - sigmoid(x))),
)
op.wrong(
    "terms multiplied",
    "x",
    ("extra_term", "missing_term"),
    lambda x, dy: dy * sigmoid(x) * (x * sigmoid(x) * (1 - sigmoid(x))),
)
op.wrong(
    "dy in one term only",
    "x",
    ("nonlinear_in_cotangent", "ignores_cotangent"),
    lambda x, dy: dy * sigmoid(x) + x * sigmoid(x) * (1 - sigmoid(x)),
)


# --- softplus -----------------------------------------------------------------------------------------------

op = Operation("softplus", lambda x: jnp.log(1 + jnp.exp(x)), lambda x, dy: sigmoid(x) * dy, rows)
op.right("e / (1 + e)", lambda x, dy: dy * jnp.exp(x) / (1 + jnp.exp(x)))
op.right("1 - exp(-y)", lambda x, dy: dy * (1 - 1 / (1 + jnp.exp(x))))
op.wrong("sigmoid's derivative", "x", ("extra_term",), lambda x, dy: dy * sigmoid(x) * (1 - sigmoid(x)))
op.wrong(
    "inner derivative forgotten", "x", ("missing_term", "wrong_residual"), lambda x, dy: dy / (1 + jnp.exp(x))
)
op.wrong("outer derivative forgotten", "x", ("missing_term",), lambda x, dy: dy * jnp.exp(x))
op.wrong("y for x", "x", ("wrong_residual",), lambda x, dy: dy * sigmoid(jnp.log(1 + jnp.exp(x))))
op.wrong("relu's mask", "x", ("mask",), lambda x, dy: jnp.where(x > 0, dy, 0))
op.wrong("minus sign", "x", ("sign",), lambda x, dy: -dy * sigmoid(x))


# --- mean squared error -------------------------------------------------------------------------------------


def mse(p, t):
    """y = mean((p - t)²) over all elements."""
    return ((p - t) ** 2).mean()


def mse_back(p, t, dy):
    """dp = 2 (p - t) / N dy, dt = -dp."""
    d = 2 * (p - t) / p.size * dy
    return d, -d


op = Operation("mse", mse, mse_back, normal((5, 7), (5, 7)))
op.right(
    "size from the shape",
    lambda p, t, dy: (dy * 2 / (p.shape[0] * p.shape[1]) * (p - t), dy * 2 / p.size * (t - p)),
)
op.right("expanded", lambda p, t, dy: ((2 * p - 2 * t) * (dy / p.size), (2 * t - 2 * p) * (dy / p.size)))
op.wrong("2 forgotten", "p", ("scale",), lambda p, t, dy: (p - t) / p.size * dy)
op.wrong("1/N forgotten", "p", ("scale",), lambda p, t, dy: 2 * (p - t) * dy)
op.wrong("1/batch for 1/N", "p", ("scale",), lambda p, t, dy: 2 * (p - t) / len(p) * dy)
op.wrong("1/(N - 1)", "p", ("scale",), lambda p, t, dy: 2 * (p - t) / (p.size - 1) * dy)
op.wrong("t - p", "p", ("sign", "swapped"), lambda p, t, dy: 2 * (t - p) / p.size * dy)
op.wrong("dy forgotten", "p", ("ignores_cotangent",), lambda p, t, dy: 2 * (p - t) / p.size)
op.wrong(
    "sign of the difference only",
    "p",
    ("wrong_residual",),
    lambda p, t, dy: 2 * jnp.sign(p - t) / p.size * dy,
)
op.wrong("t forgotten", "p", ("missing_term",), lambda p, t, dy: 2 * p / p.size * dy)
op.wrong(
    "y for the difference", "p", ("wrong_residual",), lambda p, t, dy: 2 * mse(p, t) / p.size * dy + 0 * p
)
op.wrong(
    "mean of the differences",
    "p",
    ("wrong_axis",),
    lambda p, t, dy: 2 * (p - t).mean(0) / p.size * dy + 0 * p,
)
op.wrong("same sign as p's", "t", ("sign",), lambda p, t, dy: 2 * (p - t) / p.size * dy)
op.wrong("no gradient for the target", "t", ("zero",), lambda p, t, dy: jnp.zeros_like(t))
op.wrong("None for the target", "t", ("zero",), lambda p, t, dy: None)


# --- cross entropy of integer labels ------------------------------------------------------------------------


def cross_entropy(logits, labels):
    """y = -mean(log_softmax(logits) at the labels)."""
    return -log_softmax(logits)[jnp.arange(len(labels)), labels].mean()


def onehot(labels, like):
    """One at the label, zero elsewhere."""
    return (labels[:, None] == jnp.arange(like.shape[1])).astype(like.dtype)


def cross_entropy_back(logits, labels, dy):
    """dlogits = (p - onehot) / n dy."""
    return (softmax(logits) - onehot(labels, logits)) / len(labels) * dy, None


def classes(n, k):
    """A draw of n rows of k logits and their labels."""
    return lambda rng: (
        rng.standard_normal((n, k)).astype(np.float32),
        rng.integers(0, k, n).astype(np.int32),
    )


op = Operation("cross entropy", cross_entropy, cross_entropy_back, classes(5, 7))
square = classes(7, 7)
op.right(
    "subtracted at the labels",
    lambda logits, labels, dy: (
        softmax(logits).at[jnp.arange(len(labels)), labels].add(-1) * (dy / len(labels)),
        None,
    ),
)
op.right(
    "through log_softmax",
    lambda logits, labels, dy: (log_softmax_back(logits, -onehot(labels, logits) * dy / len(labels)), None),
)
op.wrong(
    "onehot forgotten",
    "logits",
    ("missing_term",),
    lambda logits, labels, dy: softmax(logits) / len(labels) * dy,
)
op.wrong(
    "p forgotten",
    "logits",
    ("missing_term",),
    lambda logits, labels, dy: -onehot(labels, logits) / len(labels) * dy,
)
op.wrong(
    "logits for p",
    "logits",
    ("wrong_residual",),
    lambda logits, labels, dy: (logits - onehot(labels, logits)) / len(labels) * dy,
)
op.wrong(
    "log p for p",
    "logits",
    ("wrong_residual",),
    lambda logits, labels, dy: (log_softmax(logits) - onehot(labels, logits)) / len(labels) * dy,
)
op.wrong(
    "softmax of p",
    "logits",
    ("wrong_residual",),
    lambda logits, labels, dy: (softmax(softmax(logits)) - onehot(labels, logits)) / len(labels) * dy,
)
op.wrong(
    "sigmoid for softmax",
    "logits",
    ("wrong_residual",),
    lambda logits, labels, dy: (sigmoid(logits) - onehot(labels, logits)) / len(labels) * dy,
)
op.wrong(
    "softmax over the batch",
    "logits",
    ("wrong_axis", "wrong_residual"),
    lambda logits, labels, dy: (softmax(logits.T).T - onehot(labels, logits)) / len(labels) * dy,
)
op.wrong(
    "onehot - p",
    "logits",
    ("sign", "swapped"),
    lambda logits, labels, dy: (onehot(labels, logits) - softmax(logits)) / len(labels) * dy,
)
op.wrong(
    "1/n forgotten",
    "logits",
    ("scale",),
    lambda logits, labels, dy: (softmax(logits) - onehot(labels, logits)) * dy,
)
op.wrong(
    "1/N of all logits",
    "logits",
    ("scale",),
    lambda logits, labels, dy: (softmax(logits) - onehot(labels, logits)) / logits.size * dy,
)
op.wrong(
    "dy forgotten",
    "logits",
    ("ignores_cotangent",),
    lambda logits, labels, dy: (softmax(logits) - onehot(labels, logits)) / len(labels),
)
op.wrong(
    "labels counted from one",
    "logits",
    ("shift",),
    lambda logits, labels, dy: (softmax(logits) - onehot(labels - 1, logits)) / len(labels) * dy,
)
op.wrong(
    "softmax's gradient once more",
    "logits",
    ("extra_term",),
    lambda logits, labels, dy: (
        softmax_back(logits, softmax(logits) - onehot(labels, logits)) / len(labels) * dy
    ),
)
op.wrong(
    "onehot transposed",
    "logits",
    ("transpose",),
    lambda logits, labels, dy: (softmax(logits) - onehot(labels, logits).T) / len(labels) * dy,
    square,
)
op.wrong(
    "dy inside the bracket",
    "logits",
    ("nonlinear_in_cotangent", "ignores_cotangent"),
    lambda logits, labels, dy: (softmax(logits) - onehot(labels, logits) * dy) / len(labels),
)


# --- binary cross entropy with logits -----------------------------------------------------------------------


def binary_cross_entropy(z, t):
    """y = mean(log(1 + exp(z)) - z t)."""
    return (jnp.maximum(z, 0) + jnp.log1p(jnp.exp(-jnp.abs(z))) - z * t).mean()


def binary_cross_entropy_back(z, t, dy):
    """dz = (s - t) / N dy, dt = -z / N dy."""
    return (sigmoid(z) - t) / z.size * dy, -z / t.size * dy


op = Operation(
    "binary cross entropy", binary_cross_entropy, binary_cross_entropy_back, normal((5, 3), (5, 3))
)
op.right(
    "both classes apart",
    lambda z, t, dy: (
        dy / z.size * ((1 - t) * sigmoid(z) - t * sigmoid(-z)),
        dy / z.size * (jnp.log(sigmoid(-z)) - jnp.log(sigmoid(z))),
    ),
)
op.right(
    "through the probabilities",
    lambda z, t, dy: (
        lambda s: (((1 - t) / (1 - s) - t / s) * s * (1 - s) * dy / z.size, -z * (dy / z.size))
    )(sigmoid(z)),
)
op.wrong("logits for probabilities", "z", ("wrong_residual",), lambda z, t, dy: (z - t) / z.size * dy)
op.wrong("t - s", "z", ("sign", "swapped"), lambda z, t, dy: (t - sigmoid(z)) / z.size * dy)
op.wrong("1/batch for 1/N", "z", ("scale",), lambda z, t, dy: (sigmoid(z) - t) / len(z) * dy)
op.wrong("t forgotten", "z", ("missing_term",), lambda z, t, dy: sigmoid(z) / z.size * dy)
op.wrong(
    "sigmoid's derivative once more",
    "z",
    ("extra_term",),
    lambda z, t, dy: (sigmoid(z) - t) * sigmoid(z) * (1 - sigmoid(z)) / z.size * dy,
)
op.wrong(
    "derivative by the probabilities",
    "z",
    ("missing_term", "extra_term"),
    lambda z, t, dy: (sigmoid(z) - t) / (sigmoid(z) * (1 - sigmoid(z))) / z.size * dy,
)
op.wrong("dy forgotten", "z", ("ignores_cotangent",), lambda z, t, dy: (sigmoid(z) - t) / z.size)
op.wrong("no gradient for the target", "t", ("zero",), lambda z, t, dy: 0 * t)
op.wrong("probabilities for logits", "t", ("wrong_residual",), lambda z, t, dy: -sigmoid(z) / t.size * dy)
op.wrong("minus sign forgotten", "t", ("sign",), lambda z, t, dy: z / t.size * dy)


# --- embedding lookup ---------------------------------------------------------------------------------------


def embedding(table, ids):
    """y = the rows of the table at the ids."""
    return table[ids]


def tokens(rng):
    """A table and ids, some of them repeated, so that the last and the first row occur."""
    ids = rng.integers(0, 11, 13).astype(np.int32)
    ids[:2] = 0, 10
    return rng.standard_normal((11, 3)).astype(np.float32), ids


def embedding_back(table, ids, dy):
    """Every dy added to its row."""
    return jnp.zeros_like(table).at[ids].add(dy), None


op = Operation("embedding", embedding, embedding_back, tokens)
op.right("onehotᵀ @ dy", lambda table, ids, dy: (onehot(ids, table.T).T @ dy, None))
op.right(
    "row by row",
    lambda table, ids, dy: (
        jnp.stack([jnp.where((ids == i)[:, None], dy, 0).sum(0) for i in range(len(table))]),
        None,
    ),
)
op.wrong(
    "set for add",
    "table",
    ("missing_batch_sum", "missing_term", "ignores_cotangent"),
    lambda table, ids, dy: jnp.zeros_like(table).at[ids].set(dy),
)
op.wrong("not scattered", "table", ("shape", "missing_batch_sum"), lambda table, ids, dy: dy)
op.wrong(
    "one row late",
    "table",
    ("shift",),
    lambda table, ids, dy: jnp.zeros_like(table).at[(ids + 1) % len(table)].add(dy),
)
op.wrong(
    "ids counted from one",
    "table",
    ("shift", "border"),
    lambda table, ids, dy: jnp.zeros_like(table).at[jnp.maximum(ids - 1, 0)].add(dy),
)
op.wrong(
    "rows from the end", "table", ("flip",), lambda table, ids, dy: jnp.zeros_like(table).at[-1 - ids].add(dy)
)
op.wrong(
    "mean over the ids",
    "table",
    ("scale",),
    lambda table, ids, dy: jnp.zeros_like(table).at[ids].add(dy) / len(ids),
)
op.wrong(
    "times the row",
    "table",
    ("extra_term",),
    lambda table, ids, dy: jnp.zeros_like(table).at[ids].add(dy * table[ids]),
)
op.wrong(
    "row 0 taken for padding",
    "table",
    ("mask",),
    lambda table, ids, dy: jnp.zeros_like(table).at[ids].add(jnp.where((ids == 0)[:, None], 0, dy)),
)
op.wrong(
    "counts for dy",
    "table",
    ("ignores_cotangent",),
    lambda table, ids, dy: jnp.zeros_like(table).at[ids].add(1),
)
op.wrong("no gradient", "table", ("zero",), lambda table, ids, dy: jnp.zeros_like(table))


# --- maximum over an axis -----------------------------------------------------------------------------------

square = normal((5, 5))
op = Operation(
    "max", lambda x: x.max(-1), lambda x, dy: jnp.where(x == x.max(-1, keepdims=True), dy[:, None], 0), rows
)
op.right("set at argmax", lambda x, dy: jnp.zeros_like(x).at[jnp.arange(len(x)), x.argmax(-1)].set(dy))
op.right("onehot of argmax", lambda x, dy: onehot(x.argmax(-1), x) * dy[:, None])
op.wrong("mask forgotten", "x", ("mask",), lambda x, dy: dy[:, None] + 0 * x)
op.wrong(
    "mask inverted", "x", ("mask",), lambda x, dy: jnp.where(x == x.max(-1, keepdims=True), 0, dy[:, None])
)
op.wrong(
    "minimum's mask",
    "x",
    ("mask", "wrong_residual"),
    lambda x, dy: jnp.where(x == x.min(-1, keepdims=True), dy[:, None], 0),
)
op.wrong(
    "maximum over the rows", "x", ("wrong_axis",), lambda x, dy: jnp.where(x == x.max(0), dy[:, None], 0)
)
op.wrong(
    "maximum over everything", "x", ("wrong_axis",), lambda x, dy: jnp.where(x == x.max(), dy[:, None], 0)
)
op.wrong(
    "dy along the columns",
    "x",
    ("wrong_axis", "transpose"),
    lambda x, dy: jnp.where(x == x.max(-1, keepdims=True), dy, 0),
    square,
)
op.wrong("dy forgotten", "x", ("ignores_cotangent",), lambda x, dy: onehot(x.argmax(-1), x))
op.wrong(
    "times x",
    "x",
    ("extra_term",),
    lambda x, dy: jnp.where(x == x.max(-1, keepdims=True), x * dy[:, None], 0),
)
op.wrong(
    "one column late", "x", ("shift",), lambda x, dy: onehot((x.argmax(-1) + 1) % x.shape[1], x) * dy[:, None]
)


# --- average pooling ----------------------------------------------------------------------------------------

WINDOW = 3


def pool(x):
    """y = means of windows of 3 along the last axis; what is left over at the end is dropped."""
    t = x.shape[1] // WINDOW
    return x[:, : t * WINDOW].reshape(len(x), t, WINDOW).mean(-1)


def pool_back(x, dy):
    """Every dy / 3 repeated 3 times, zeros where x was dropped."""
    dx = jnp.repeat(dy / WINDOW, WINDOW, axis=1)
    return pad(dx, 0, x.shape[1] - dx.shape[1])


op = Operation("average pooling", pool, pool_back, normal((5, 11)))
op.right(
    "set with stride",
    lambda x, dy: (
        sum(jnp.zeros_like(x).at[:, j : dy.shape[1] * WINDOW : WINDOW].set(dy) for j in range(WINDOW))
        / WINDOW
    ),
)
op.right(
    "by the pooling matrix",
    lambda x, dy: (
        dy @ (jnp.arange(x.shape[1]) // WINDOW == jnp.arange(dy.shape[1])[:, None]).astype(dy.dtype) / WINDOW
    ),
)
op.wrong(
    "1/3 forgotten",
    "x",
    ("scale",),
    lambda x, dy: pad(jnp.repeat(dy, WINDOW, axis=1), 0, x.shape[1] % WINDOW),
)
op.wrong(
    "divided by the length",
    "x",
    ("scale",),
    lambda x, dy: pad(jnp.repeat(dy / x.shape[1], WINDOW, axis=1), 0, x.shape[1] % WINDOW),
)
op.wrong(
    "zeros at the front",
    "x",
    ("shift",),
    lambda x, dy: pad(jnp.repeat(dy / WINDOW, WINDOW, axis=1), x.shape[1] % WINDOW, 0),
)
op.wrong("rest not padded", "x", ("shape", "border"), lambda x, dy: jnp.repeat(dy / WINDOW, WINDOW, axis=1))
op.wrong(
    "rest taken into the last window",
    "x",
    ("border",),
    lambda x, dy: dy[:, jnp.minimum(jnp.arange(x.shape[1]) // WINDOW, dy.shape[1] - 1)] / WINDOW,
)
op.wrong(
    "last window forgotten", "x", ("border", "missing_term"), lambda x, dy: pool_back(x, dy.at[:, -1].set(0))
)
op.wrong(
    "tile for repeat",
    "x",
    ("wrong_axis",),
    lambda x, dy: pad(jnp.tile(dy / WINDOW, (1, WINDOW)), 0, x.shape[1] % WINDOW),
)
op.wrong(
    "first of every window only",
    "x",
    ("missing_term", "mask"),
    lambda x, dy: jnp.zeros_like(x).at[:, : dy.shape[1] * WINDOW : WINDOW].set(dy / WINDOW),
)
op.wrong("windows from the end", "x", ("flip",), lambda x, dy: pool_back(x, dy[:, ::-1]))


# --- dropout with a given mask ------------------------------------------------------------------------------

KEEP = 0.8


def dropout(x, mask):
    """y = x / 0.8 where the mask is true, else 0."""
    return jnp.where(mask, x / KEEP, 0)


def dropout_back(x, mask, dy):
    """dx = dy / 0.8 where the mask is true."""
    return jnp.where(mask, dy / KEEP, 0), None


def masked(*shape):
    """A draw of x and a mask, true for about 4 of 5, with both values in it."""

    def draw(rng):
        mask = rng.random(shape) < KEEP
        mask[0, :2] = True, False
        return rng.standard_normal(shape).astype(np.float32), mask

    return draw


op = Operation("dropout", dropout, dropout_back, masked(5, 7))
op.right("mask multiplied", lambda x, mask, dy: (dy * mask / KEEP, None))
op.right("masked, then scaled", lambda x, mask, dy: (jnp.where(mask, dy, 0) * (1 / KEEP), None))
op.wrong("mask forgotten", "x", ("mask",), lambda x, mask, dy: dy / KEEP)
op.wrong("mask inverted", "x", ("mask",), lambda x, mask, dy: jnp.where(mask, 0, dy / KEEP))
op.wrong(
    "mask transposed",
    "x",
    ("transpose", "mask"),
    lambda x, mask, dy: jnp.where(mask.T, dy / KEEP, 0),
    masked(7, 7),
)
op.wrong("1/keep forgotten", "x", ("scale",), lambda x, mask, dy: jnp.where(mask, dy, 0))
op.wrong("times keep", "x", ("scale",), lambda x, mask, dy: jnp.where(mask, dy * KEEP, 0))
op.wrong("1/drop for 1/keep", "x", ("scale",), lambda x, mask, dy: jnp.where(mask, dy / (1 - KEEP), 0))
op.wrong("1/keep twice", "x", ("scale",), lambda x, mask, dy: jnp.where(mask, dy / KEEP**2, 0))
op.wrong(
    "dy passed on where dropped",
    "x",
    ("mask", "extra_term"),
    lambda x, mask, dy: jnp.where(mask, dy / KEEP, dy),
)
op.wrong("mask of x's sign", "x", ("mask",), lambda x, mask, dy: jnp.where(x > 0, dy / KEEP, 0))
op.wrong(
    "mask of dy's sign too",
    "x",
    ("nonlinear_in_cotangent", "mask"),
    lambda x, mask, dy: jnp.where(mask & (dy > 0), dy / KEEP, 0),
)
op.wrong(
    "dy forgotten", "x", ("ignores_cotangent",), lambda x, mask, dy: jnp.where(mask, 1 / KEEP, 0) + 0 * x
)


# --- l2 normalisation ---------------------------------------------------------------------------------------


def length(x):
    """The length of every row."""
    return jnp.sqrt((x * x).sum(-1, keepdims=True))


def unit(x):
    """y = x / |x|, row by row."""
    return x / length(x)


def unit_back(x, dy):
    """dx = (dy - y <y, dy>) / |x|."""
    y = unit(x)
    return (dy - y * (y * dy).sum(-1, keepdims=True)) / length(x)


op = Operation("l2 normalisation", unit, unit_back, rows)
op.right("quotient rule", lambda x, dy: dy / length(x) - x * (x * dy).sum(-1, keepdims=True) / length(x) ** 3)
op.right(
    "by the projection",
    lambda x, dy: (
        jnp.einsum(
            "nij,nj->ni", jnp.eye(x.shape[1], dtype=x.dtype) - unit(x)[:, :, None] * unit(x)[:, None], dy
        )
        / length(x)
    ),
)
op.wrong("length held constant", "x", ("statistics_constant", "missing_term"), lambda x, dy: dy / length(x))
op.wrong(
    "1/|x| forgotten",
    "x",
    ("missing_term",),
    lambda x, dy: dy - unit(x) * (unit(x) * dy).sum(-1, keepdims=True),
)
op.wrong(
    "x for y", "x", ("wrong_residual",), lambda x, dy: (dy - x * (x * dy).sum(-1, keepdims=True)) / length(x)
)
op.wrong(
    "|x|² for |x|³",
    "x",
    ("missing_term",),
    lambda x, dy: dy / length(x) - x * (x * dy).sum(-1, keepdims=True) / length(x) ** 2,
)
op.wrong(
    "y forgotten in the sum",
    "x",
    ("missing_term",),
    lambda x, dy: (dy - unit(x) * dy.sum(-1, keepdims=True)) / length(x),
)
op.wrong(
    "sum over the rows",
    "x",
    ("wrong_axis",),
    lambda x, dy: (dy - unit(x) * (unit(x) * dy).sum(0)) / length(x),
)
op.wrong(
    "lengths of the columns", "x", ("wrong_axis", "wrong_residual"), lambda x, dy: unit_back(x.T, dy.T).T
)
op.wrong("|x|² for |x|", "x", ("wrong_residual", "extra_term"), lambda x, dy: unit_back(x, dy) / length(x))
op.wrong(
    "dy for y",
    "x",
    ("nonlinear_in_cotangent", "wrong_residual"),
    lambda x, dy: (dy - dy * (unit(x) * dy).sum(-1, keepdims=True)) / length(x),
)


# --- bilinear form ------------------------------------------------------------------------------------------


def bilinear(x, a, z):
    """y[n] = x[n]ᵀ a z[n]."""
    return ((x @ a) * z).sum(-1)


def bilinear_back(x, a, z, dy):
    """dx = dy (z aᵀ), da = xᵀ (dy z), dz = dy (x a)."""
    d = dy[:, None]
    return d * (z @ a.T), x.T @ (d * z), d * (x @ a)


op = Operation("bilinear form", bilinear, bilinear_back, normal((5, 3), (3, 7), (5, 7)))
op.right(
    "einsum",
    lambda x, a, z, dy: (
        jnp.einsum("n,ij,nj->ni", dy, a, z),
        jnp.einsum("n,ni,nj->ij", dy, x, z),
        jnp.einsum("n,ni,ij->nj", dy, x, a),
    ),
)
op.right(
    "outer products summed",
    lambda x, a, z, dy: (
        (dy[:, None] * z) @ a.T,
        sum(dy[n] * jnp.outer(x[n], z[n]) for n in range(len(x))),
        (dy[:, None] * x) @ a,
    ),
)
square = normal((5, 5), (5, 5), (5, 5))
op.wrong("a not transposed", "x", ("transpose",), lambda x, a, z, dy: dy[:, None] * (z @ a), square)
op.wrong("x for z", "x", ("wrong_residual", "swapped"), lambda x, a, z, dy: dy[:, None] * (x @ a.T), square)
op.wrong("a forgotten", "x", ("missing_term",), lambda x, a, z, dy: dy[:, None] * z, square)
op.wrong("zᵀ x", "a", ("transpose", "swapped"), lambda x, a, z, dy: z.T @ (dy[:, None] * x), square)
op.wrong("dy forgotten", "a", ("ignores_cotangent",), lambda x, a, z, dy: x.T @ z)
op.wrong(
    "dy on both operands",
    "a",
    ("nonlinear_in_cotangent", "extra_term"),
    lambda x, a, z, dy: (dy[:, None] * x).T @ (dy[:, None] * z),
)
op.wrong(
    "not summed over the batch",
    "a",
    ("missing_batch_sum", "unbroadcast"),
    lambda x, a, z, dy: dy[:, None, None] * x[:, :, None] * z[:, None],
)
op.wrong("mean over the batch", "a", ("scale",), lambda x, a, z, dy: x.T @ (dy[:, None] * z) / len(x))
op.wrong("a transposed", "z", ("transpose",), lambda x, a, z, dy: dy[:, None] * (x @ a.T), square)
op.wrong("dy along the features", "z", ("wrong_axis", "transpose"), lambda x, a, z, dy: dy * (x @ a), square)
op.wrong("gradient of x given for z", "z", ("swapped",), lambda x, a, z, dy: dy[:, None] * (z @ a.T), square)


# --- quadratic form -----------------------------------------------------------------------------------------


def quadratic(x, a):
    """y[n] = x[n]ᵀ a x[n]."""
    return jnp.einsum("ni,ij,nj->n", x, a, x)


op = Operation(
    "quadratic form",
    quadratic,
    lambda x, a, dy: (dy[:, None] * (x @ (a + a.T)), jnp.einsum("n,ni,nj->ij", dy, x, x)),
    normal((5, 3), (3, 3)),
)
op.right(
    "both uses apart",
    lambda x, a, dy: (dy[:, None] * (x @ a) + dy[:, None] * (x @ a.T), (dy[:, None] * x).T @ x),
)
op.wrong("x on the right forgotten", "x", ("missing_term",), lambda x, a, dy: dy[:, None] * (x @ a.T))
op.wrong("x on the left forgotten", "x", ("missing_term",), lambda x, a, dy: dy[:, None] * (x @ a))
op.wrong("a taken for symmetric", "x", ("transpose",), lambda x, a, dy: 2 * dy[:, None] * (x @ a))
op.wrong("2 written before a + aᵀ", "x", ("scale",), lambda x, a, dy: 2 * dy[:, None] * (x @ (a + a.T)))
op.wrong("a - aᵀ", "x", ("sign", "extra_term"), lambda x, a, dy: dy[:, None] * (x @ (a - a.T)))
op.wrong("x once only", "a", ("missing_term",), lambda x, a, dy: dy @ x + 0 * a)
op.wrong("elementwise for outer", "a", ("missing_term",), lambda x, a, dy: jnp.diag(dy @ (x * x)))
op.wrong("sum over n before the product", "a", ("extra_term",), lambda x, a, dy: jnp.outer(dy @ x, x.sum(0)))
op.wrong("dy forgotten", "a", ("ignores_cotangent",), lambda x, a, dy: x.T @ x)


# --- outer product ------------------------------------------------------------------------------------------

op = Operation(
    "outer product", lambda x, z: x[:, None] * z, lambda x, z, dy: (dy @ z, dy.T @ x), normal((5,), (7,))
)
op.right("einsum", lambda x, z, dy: (jnp.einsum("ij,j->i", dy, z), jnp.einsum("ij,i->j", dy, x)))
op.right("products summed", lambda x, z, dy: ((dy * z).sum(1), (dy * x[:, None]).sum(0)))
square = normal((5,), (5,))
op.wrong("dy transposed", "x", ("transpose",), lambda x, z, dy: dy.T @ z, square)
op.wrong("x for z", "x", ("wrong_residual", "swapped"), lambda x, z, dy: dy @ x, square)
op.wrong("not summed", "x", ("unbroadcast",), lambda x, z, dy: dy * z)
op.wrong("z forgotten", "x", ("missing_term",), lambda x, z, dy: dy.sum(1))
op.wrong("column for a vector", "x", ("shape",), lambda x, z, dy: dy @ z[:, None])
op.wrong("dy not transposed", "z", ("transpose",), lambda x, z, dy: dy @ x, square)
op.wrong("gradient of x given for z", "z", ("swapped",), lambda x, z, dy: dy @ z, square)
op.wrong("summed over the columns", "z", ("wrong_axis",), lambda x, z, dy: (dy * x[:, None]).sum(1), square)
op.wrong("reversed", "z", ("flip",), lambda x, z, dy: dy[:, ::-1].T @ x)
op.wrong("dy forgotten", "z", ("ignores_cotangent",), lambda x, z, dy: x.sum() + 0 * z)


# --- cumulative sum -----------------------------------------------------------------------------------------

op = Operation(
    "cumulative sum", lambda x: jnp.cumsum(x, 1), lambda x, dy: jnp.cumsum(dy[:, ::-1], 1)[:, ::-1], rows
)
op.right("total minus what came before", lambda x, dy: dy.sum(1, keepdims=True) - jnp.cumsum(dy, 1) + dy)
op.right("triangular matrix", lambda x, dy: dy @ lower(x.shape[1]).astype(dy.dtype))
op.wrong("not reversed", "x", ("flip", "transpose"), lambda x, dy: jnp.cumsum(dy, 1))
op.wrong("reversed once only", "x", ("flip",), lambda x, dy: jnp.cumsum(dy[:, ::-1], 1))
op.wrong(
    "own element left out",
    "x",
    ("shift", "missing_term"),
    lambda x, dy: jnp.cumsum(dy[:, ::-1], 1)[:, ::-1] - dy,
)
op.wrong("rolled by one", "x", ("shift",), lambda x, dy: jnp.roll(jnp.cumsum(dy[:, ::-1], 1)[:, ::-1], 1, 1))
op.wrong("other axis", "x", ("wrong_axis",), lambda x, dy: jnp.cumsum(dy[::-1], 0)[::-1])
op.wrong("later steps forgotten", "x", ("missing_term",), lambda x, dy: dy)
op.wrong("sum of all steps", "x", ("mask", "extra_term"), lambda x, dy: dy.sum(1, keepdims=True) + 0 * x)
op.wrong("last step's dy only", "x", ("ignores_cotangent", "missing_term"), lambda x, dy: dy[:, -1:] + 0 * x)
op.wrong(
    "last step at zero",
    "x",
    ("border",),
    lambda x, dy: (jnp.cumsum(dy[:, ::-1], 1)[:, ::-1]).at[:, -1].set(0),
)


# --- swiglu -------------------------------------------------------------------------------------------------


def swiglu_back(x, z, dy):
    """dx = dy z (s + x s (1 - s)), dz = dy x s."""
    return silu_back(x, dy * z), dy * silu(x)


op = Operation("swiglu", lambda x, z: silu(x) * z, swiglu_back, normal((5, 7), (5, 7)))
op.right(
    "factored",
    lambda x, z, dy: (dy * z * sigmoid(x) * (1 + x * (1 - sigmoid(x))), dy * x / (1 + jnp.exp(-x))),
)
op.right(
    "y used again",
    lambda x, z, dy: (
        (lambda s, y: dy * (s * z + y * (1 - s)))(sigmoid(x), silu(x) * z),
        sigmoid(x) * dy * x,
    ),
)
op.wrong("z forgotten", "x", ("missing_term",), lambda x, z, dy: silu_back(x, dy))
op.wrong(
    "only sigmoid differentiated",
    "x",
    ("missing_term",),
    lambda x, z, dy: dy * z * x * sigmoid(x) * (1 - sigmoid(x)),
)
op.wrong("sigmoid held constant", "x", ("missing_term",), lambda x, z, dy: dy * z * sigmoid(x))
op.wrong(
    "sigmoid of z",
    "x",
    ("wrong_residual",),
    lambda x, z, dy: dy * z * (sigmoid(z) + x * sigmoid(z) * (1 - sigmoid(z))),
)
op.wrong(
    "1 - x for 1 - s", "x", ("wrong_residual",), lambda x, z, dy: dy * z * sigmoid(x) * (1 + x * (1 - x))
)
op.wrong("sigmoid for silu", "z", ("missing_term",), lambda x, z, dy: dy * sigmoid(x))
op.wrong("x for silu", "z", ("missing_term", "wrong_residual"), lambda x, z, dy: dy * x)
op.wrong("y for silu", "z", ("extra_term", "wrong_residual"), lambda x, z, dy: dy * silu(x) * z)
op.wrong("gate and value exchanged", "z", ("swapped", "wrong_residual"), lambda x, z, dy: dy * silu(z))
op.wrong("gradients exchanged", "z", ("swapped",), lambda x, z, dy: silu_back(x, dy * z))
op.wrong("dy forgotten", "z", ("ignores_cotangent",), lambda x, z, dy: silu(x))
op.wrong("None given", "z", ("zero",), lambda x, z, dy: None)


# --- residual block -----------------------------------------------------------------------------------------


def residual(x, w):
    """y = x + tanh(x w)."""
    return x + jnp.tanh(x @ w)


def residual_back(x, w, dy):
    """dx = dy + da wᵀ, dw = xᵀ da with da = (1 - t²) dy."""
    t = jnp.tanh(x @ w)
    da = (1 - t * t) * dy
    return dy + da @ w.T, x.T @ da


def dact(x, w, dy):
    """The gradient before the tanh of the residual block."""
    return tanh_back(x @ w, dy)


op = Operation("residual block", residual, residual_back, normal((5, 7), (7, 7)))
op.right(
    "einsum, t = y - x",
    lambda x, w, dy: (lambda da: (jnp.einsum("no,io->ni", da, w) + dy, jnp.einsum("ni,no->io", x, da)))(
        dy * (1 - (residual(x, w) - x) ** 2)
    ),
)
op.right(
    "w + identity, sample by sample",
    lambda x, w, dy: (
        jnp.stack(
            [
                (jnp.eye(len(w), dtype=w.dtype) + w * (1 - jnp.tanh(x[n] @ w) ** 2)) @ dy[n]
                for n in range(len(x))
            ]
        ),
        sum(jnp.outer(x[n], dact(x, w, dy)[n]) for n in range(len(x))),
    ),
)
square = normal((7, 7), (7, 7))
op.wrong("skip path forgotten", "x", ("missing_term",), lambda x, w, dy: dact(x, w, dy) @ w.T)
op.wrong("branch forgotten", "x", ("missing_term",), lambda x, w, dy: dy)
op.wrong("tanh's derivative forgotten", "x", ("missing_term",), lambda x, w, dy: dy + dy @ w.T)
op.wrong("w not transposed", "x", ("transpose",), lambda x, w, dy: dy + dact(x, w, dy) @ w)
op.wrong("skip path twice", "x", ("extra_term",), lambda x, w, dy: 2 * dy + dact(x, w, dy) @ w.T)
op.wrong(
    "x on the skip path",
    "x",
    ("ignores_cotangent", "nonlinear_in_cotangent", "wrong_residual"),
    lambda x, w, dy: x + dact(x, w, dy) @ w.T,
)
op.wrong(
    "1 - y² for 1 - t²", "x", ("wrong_residual",), lambda x, w, dy: dy + (1 - residual(x, w) ** 2) * dy @ w.T
)
op.wrong("skip path's dy added", "w", ("extra_term",), lambda x, w, dy: x.T @ (dact(x, w, dy) + dy))
op.wrong("tanh's derivative forgotten", "w", ("missing_term",), lambda x, w, dy: x.T @ dy)
op.wrong("y for x", "w", ("wrong_residual",), lambda x, w, dy: residual(x, w).T @ dact(x, w, dy))
op.wrong("transposed", "w", ("transpose", "swapped"), lambda x, w, dy: dact(x, w, dy).T @ x)
op.wrong("operands exchanged", "w", ("swapped",), lambda x, w, dy: dact(x, w, dy) @ x.T, square)
op.wrong(
    "1 - a² of the pre-activation", "w", ("wrong_residual",), lambda x, w, dy: x.T @ ((1 - (x @ w) ** 2) * dy)
)


# --- two-layer mlp ------------------------------------------------------------------------------------------


def mlp(x, w1, b1, w2, b2):
    """y = relu(x w1 + b1) w2 + b2."""
    return relu(x @ w1 + b1) @ w2 + b2


def mlp_back(x, w1, b1, w2, b2, dy):
    """Layer by layer, from the last."""
    a = x @ w1 + b1
    da = jnp.where(a > 0, dy @ w2.T, 0)
    return da @ w1.T, x.T @ da, da.sum(0), relu(a).T @ dy, dy.sum(0)


def mlp_einsum(x, w1, b1, w2, b2, dy):
    """With einsum, the mask multiplied."""
    h = relu(x @ w1 + b1)
    da = jnp.einsum("no,ho->nh", dy, w2) * (h > 0)
    return (
        jnp.einsum("nh,ih->ni", da, w1),
        jnp.einsum("ni,nh->ih", x, da),
        jnp.einsum("nh->h", da),
        jnp.einsum("nh,no->ho", h, dy),
        jnp.einsum("no->o", dy),
    )


def mlp_samples(x, w1, b1, w2, b2, dy):
    """Sample by sample, summed."""
    parts = [mlp_back(x[n : n + 1], w1, b1, w2, b2, dy[n : n + 1]) for n in range(len(x))]
    return (jnp.concatenate([p[0] for p in parts]), *(sum(p[i] for p in parts) for i in range(1, 5)))


def pre(x, w1, b1):
    """The pre-activation."""
    return x @ w1 + b1


def dpre(x, w1, b1, w2, dy):
    """The gradient of the pre-activation."""
    return jnp.where(pre(x, w1, b1) > 0, dy @ w2.T, 0)


op = Operation("mlp", mlp, mlp_back, normal((11, 3), (3, 7), (7,), (7, 5), (5,)))
op.right("einsum", mlp_einsum)
op.right("sample by sample", mlp_samples)
square = normal((7, 7), (7, 7), (7,), (7, 7), (7,))
op.wrong("relu's mask forgotten", "x", ("mask",), lambda x, w1, b1, w2, b2, dy: dy @ w2.T @ w1.T)
op.wrong(
    "w1 not transposed",
    "x",
    ("transpose",),
    lambda x, w1, b1, w2, b2, dy: dpre(x, w1, b1, w2, dy) @ w1,
    square,
)
op.wrong(
    "weights exchanged",
    "x",
    ("swapped",),
    lambda x, w1, b1, w2, b2, dy: dpre(x, w1, b1, w1, dy) @ w2.T,
    square,
)
op.wrong("relu's mask forgotten", "w1", ("mask",), lambda x, w1, b1, w2, b2, dy: x.T @ (dy @ w2.T))
op.wrong(
    "relu's mask inverted",
    "w1",
    ("mask",),
    lambda x, w1, b1, w2, b2, dy: x.T @ jnp.where(pre(x, w1, b1) > 0, 0, dy @ w2.T),
)
op.wrong(
    "mask without the bias",
    "w1",
    ("wrong_residual", "mask"),
    lambda x, w1, b1, w2, b2, dy: x.T @ jnp.where(x @ w1 > 0, dy @ w2.T, 0),
)
op.wrong(
    "mask of the gradient",
    "w1",
    ("nonlinear_in_cotangent", "mask"),
    lambda x, w1, b1, w2, b2, dy: x.T @ relu(dy @ w2.T),
)
op.wrong(
    "hidden layer for x",
    "w1",
    ("wrong_residual",),
    lambda x, w1, b1, w2, b2, dy: relu(pre(x, w1, b1)).T @ dpre(x, w1, b1, w2, dy),
    square,
)
op.wrong("relu's mask forgotten", "b1", ("mask",), lambda x, w1, b1, w2, b2, dy: (dy @ w2.T).sum(0))
op.wrong(
    "not summed",
    "b1",
    ("missing_batch_sum", "unbroadcast"),
    lambda x, w1, b1, w2, b2, dy: dpre(x, w1, b1, w2, dy),
)
op.wrong("b2's gradient", "b1", ("swapped", "missing_term"), lambda x, w1, b1, w2, b2, dy: dy.sum(0), square)
op.wrong(
    "pre- for post-activation",
    "w2",
    ("wrong_residual", "mask"),
    lambda x, w1, b1, w2, b2, dy: pre(x, w1, b1).T @ dy,
)
op.wrong("x for the hidden layer", "w2", ("wrong_residual",), lambda x, w1, b1, w2, b2, dy: x.T @ dy, square)
op.wrong(
    "hidden layer without its bias",
    "w2",
    ("wrong_residual",),
    lambda x, w1, b1, w2, b2, dy: relu(x @ w1).T @ dy,
)
op.wrong(
    "mask for the hidden layer",
    "w2",
    ("wrong_residual", "missing_term"),
    lambda x, w1, b1, w2, b2, dy: (pre(x, w1, b1) > 0).astype(dy.dtype).T @ dy,
)
op.wrong("divided by the batch", "b2", ("scale",), lambda x, w1, b1, w2, b2, dy: dy.sum(0) / len(x))
op.wrong(
    "through the hidden layer's mask",
    "b2",
    ("mask",),
    lambda x, w1, b1, w2, b2, dy: jnp.where(pre(x, w1, b1) > 0, dy, 0).sum(0),
    square,
)


# --- variance -----------------------------------------------------------------------------------------------

op = Operation(
    "variance",
    lambda x: ((x - x.mean(0)) ** 2).mean(0),
    lambda x, dy: 2 * (x - x.mean(0)) / len(x) * dy,
    normal((11, 5)),
)
op.right(
    "mean's part written out", lambda x, dy: (lambda d: d - d.mean(0))(2 * (x - x.mean(0)) / len(x) * dy)
)
op.right("mean(x²) - mean(x)²", lambda x, dy: dy * (2 * x / len(x) - 2 * x.mean(0) / len(x)))
op.wrong("2 forgotten", "x", ("scale",), lambda x, dy: (x - x.mean(0)) / len(x) * dy)
op.wrong("1/(n - 1)", "x", ("scale",), lambda x, dy: 2 * (x - x.mean(0)) / (len(x) - 1) * dy)
op.wrong("1/n forgotten", "x", ("scale",), lambda x, dy: 2 * (x - x.mean(0)) * dy)
op.wrong("divided by the columns", "x", ("scale",), lambda x, dy: 2 * (x - x.mean(0)) / x.shape[1] * dy)
op.wrong("mean forgotten", "x", ("missing_term", "statistics_constant"), lambda x, dy: 2 * x / len(x) * dy)
op.wrong(
    "mean of the rows", "x", ("wrong_axis",), lambda x, dy: 2 * (x - x.mean(1, keepdims=True)) / len(x) * dy
)
op.wrong("mean - x", "x", ("sign", "swapped"), lambda x, dy: 2 * (x.mean(0) - x) / len(x) * dy)
op.wrong("mean of everything", "x", ("wrong_axis",), lambda x, dy: 2 * (x - x.mean()) / len(x) * dy)
op.wrong(
    "times (1 - 1/n) for the mean",
    "x",
    ("scale", "extra_term"),
    lambda x, dy: 2 * (x - x.mean(0)) / len(x) * (1 - 1 / len(x)) * dy,
)


# --- division by a column -----------------------------------------------------------------------------------


def divide_draw(rng):
    """An array, and a column of divisors between 1 and 2."""
    return rng.standard_normal((5, 7)).astype(np.float32), rng.uniform(1, 2, (5, 1)).astype(np.float32)


def divide_back(x, z, dy):
    """dx = dy / z, dz = -Σ dy x / z²."""
    return dy / z, -(dy * x / z**2).sum(1, keepdims=True)


op = Operation("division", lambda x, z: x / z, divide_back, divide_draw)
op.right("y used again", lambda x, z, dy: ((1 / z) * dy, -(dy * (x / z)).sum(1, keepdims=True) / z))
op.right(
    "einsum",
    lambda x, z, dy: (
        jnp.einsum("ij,i->ij", dy, 1 / z[:, 0]),
        -jnp.einsum("ij,ij->i", dy, x)[:, None] / (z * z),
    ),
)
op.wrong("times z", "x", ("wrong_residual",), lambda x, z, dy: dy * z)
op.wrong("z forgotten", "x", ("missing_term",), lambda x, z, dy: dy)
op.wrong("minus sign forgotten", "z", ("sign",), lambda x, z, dy: (dy * x / z**2).sum(1, keepdims=True))
op.wrong("square forgotten", "z", ("missing_term",), lambda x, z, dy: -(dy * x / z).sum(1, keepdims=True))
op.wrong("x forgotten", "z", ("missing_term",), lambda x, z, dy: -(dy / z**2).sum(1, keepdims=True))
op.wrong(
    "y for x",
    "z",
    ("wrong_residual", "extra_term"),
    lambda x, z, dy: -(dy * (x / z) / z**2).sum(1, keepdims=True),
)
op.wrong("not summed", "z", ("unbroadcast",), lambda x, z, dy: -dy * x / z**2)
op.wrong("keepdims forgotten", "z", ("shape",), lambda x, z, dy: -(dy * x / z**2).sum(1))
op.wrong("summed over everything", "z", ("wrong_axis",), lambda x, z, dy: -(dy * x / z**2).sum() + 0 * z)
op.wrong("mean for the sum", "z", ("scale",), lambda x, z, dy: -(dy * x / z**2).mean(1, keepdims=True))
op.wrong("dy forgotten", "z", ("ignores_cotangent",), lambda x, z, dy: -(x / z**2).sum(1, keepdims=True))
