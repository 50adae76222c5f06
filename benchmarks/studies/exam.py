"""More gradient formulas, right and wrong: the exam of the verifier, on which it was not developed.

Whoever wrote it had seen neither the verifier nor its answers nor `benchmarks/studies/formulas.py`; the
labels are an expert's reading of the wrong formula beside the right one.
"""

# ruff: noqa: ARG001, ARG005
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportIndexIssue=false

import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.studies import census
from benchmarks.studies.census import normal

__all__ = ["RIGHT", "WRONG"]

RIGHT: list[census.Right] = []
WRONG: list[census.Wrong] = []
Operation = functools.partial(census.Operation, RIGHT, WRONG)


def positive(*shapes):
    """A draw of arrays between 0.5 and 1.5."""
    return lambda rng: tuple(rng.uniform(0.5, 1.5, shape).astype(np.float32) for shape in shapes)


def far(draw, *values):
    """`draw`, with the given values at the start of the first array."""

    def drawn(rng):
        first, *others = draw(rng)
        first.flat[: len(values)] = values
        return first, *others

    return drawn


def invertible(n, *shapes):
    """A draw of a well-conditioned, unsymmetric n × n matrix and standard normal arrays."""

    def drawn(rng):
        a = 2 * np.eye(n) + 0.3 * rng.standard_normal((n, n))
        others = (rng.standard_normal(shape) for shape in shapes)
        return tuple(array.astype(np.float32) for array in (a, *others))

    return drawn


def sigmoid(x):
    return jax.nn.sigmoid(x)


def soft(x, axis=-1):
    return jax.nn.softmax(x, axis)


def onehot(labels, n):
    """Rows of the identity, as float32."""
    return np.eye(n, dtype=np.float32)[labels]


# --- linear, weights in rows: y = x wᵀ + b ------------------------------------------------------------------


def linear_rows(x, w, b):
    """y = x wᵀ + b."""
    return x @ w.T + b


def linear_rows_back(x, w, b, dy):
    """dx = dy w, dw = dyᵀ x, db = Σ dy."""
    return dy @ w, dy.T @ x, dy.sum(0)


square = normal((5, 5), (5, 5), (5,))
op = Operation("linear, weights in rows", linear_rows, linear_rows_back, normal((5, 3), (7, 3), (7,)))
op.right(
    "einsum",
    lambda x, w, b, dy: (
        jnp.einsum("no,oi->ni", dy, w),
        jnp.einsum("no,ni->oi", dy, x),
        jnp.einsum("no->o", dy),
    ),
)
op.wrong("w transposed once too often", "x", ("transpose",), lambda x, w, b, dy: dy @ w.T, square)
op.wrong("divided by the outputs", "x", ("scale", "extra_term"), lambda x, w, b, dy: dy @ w / len(w))
op.wrong(
    "dy normalised",
    "x",
    ("nonlinear_in_cotangent",),
    lambda x, w, b, dy: dy / jnp.linalg.norm(dy) @ w,
)
op.wrong("xᵀ dy", "w", ("transpose", "swapped"), lambda x, w, b, dy: x.T @ dy, square)
op.wrong("mean over the batch", "w", ("scale", "extra_term"), lambda x, w, b, dy: dy.T @ x / len(x))
op.wrong(
    "weight decay added",
    "w",
    ("extra_term", "nonlinear_in_cotangent"),
    lambda x, w, b, dy: dy.T @ x + 0.1 * w,
)
op.wrong("bias of ones", "b", ("ignores_cotangent",), lambda x, w, b, dy: jnp.full_like(b, len(x)))
op.wrong("sum kept as a row", "b", ("shape", "unbroadcast"), lambda x, w, b, dy: dy.sum(0, keepdims=True))
op.wrong("summed over everything", "b", ("wrong_axis",), lambda x, w, b, dy: jnp.full_like(b, dy.sum()))

# --- linear, samples in columns: y = w x + b ----------------------------------------------------------------


def linear_columns(w, x, b):
    """y = w x + b, every column of x a sample."""
    return w @ x + b[:, None]


def linear_columns_back(w, x, b, dy):
    """dw = dy xᵀ, dx = wᵀ dy, db = dy 1."""
    return dy @ x.T, w.T @ dy, dy.sum(1)


op = Operation(
    "linear, samples in columns", linear_columns, linear_columns_back, normal((7, 3), (3, 5), (7,))
)
op.right(
    "transposed twice, mean times m",
    lambda w, x, b, dy: ((x @ dy.T).T, (dy.T @ w).T, dy.mean(1) * dy.shape[1]),
)
op.wrong("x dyᵀ", "w", ("transpose", "swapped"), lambda w, x, b, dy: x @ dy.T, square)
op.wrong("x not transposed", "w", ("transpose",), lambda w, x, b, dy: dy @ x, square)
op.wrong("divided by m", "w", ("scale", "extra_term"), lambda w, x, b, dy: dy @ x.T / x.shape[1])
op.wrong(
    "output for input",
    "w",
    ("wrong_residual",),
    lambda w, x, b, dy: dy @ (w @ x + b[:, None]).T,
    square,
)
op.wrong("w not transposed", "x", ("transpose",), lambda w, x, b, dy: w @ dy, square)
op.wrong("not transposed back", "x", ("transpose", "swapped"), lambda w, x, b, dy: dy.T @ w, square)
op.wrong("summed over the rows", "b", ("wrong_axis",), lambda w, x, b, dy: dy.sum(0), square)
op.wrong("mean over the columns", "b", ("scale",), lambda w, x, b, dy: dy.mean(1))
op.wrong("first column", "b", ("missing_batch_sum", "ignores_cotangent"), lambda w, x, b, dy: dy[:, 0])
op.wrong("minus", "b", ("sign",), lambda w, x, b, dy: -dy.sum(1))

# --- linear over a batch of sequences -----------------------------------------------------------------------


def batched(x, w, b):
    """y = x w + b for x of batch, time, inputs."""
    return x @ w + b


def batched_back(x, w, b, dy):
    """dx = dy wᵀ, dw = Σₙₜ x dy, db = Σₙₜ dy."""
    return dy @ w.T, jnp.einsum("nti,nto->io", x, dy), dy.sum((0, 1))


cube = normal((3, 5, 5), (5, 5), (5,))
op = Operation("batched linear", batched, batched_back, normal((2, 5, 3), (3, 7), (7,)))
op.right(
    "reshaped",
    lambda x, w, b, dy: (
        (dy.reshape(-1, dy.shape[-1]) @ w.T).reshape(x.shape),
        x.reshape(-1, x.shape[-1]).T @ dy.reshape(-1, dy.shape[-1]),
        dy.sum(0).sum(0),
    ),
)
op.wrong("w not transposed", "x", ("transpose",), lambda x, w, b, dy: dy @ w, cube)
op.wrong(
    "summed over time only",
    "w",
    ("missing_batch_sum", "unbroadcast", "shape"),
    lambda x, w, b, dy: jnp.swapaxes(x, 1, 2) @ dy,
)
op.wrong(
    "first sequence only",
    "w",
    ("missing_batch_sum", "ignores_cotangent"),
    lambda x, w, b, dy: x[0].T @ dy[0],
)
op.wrong(
    "mean over the sequences",
    "w",
    ("scale",),
    lambda x, w, b, dy: (jnp.swapaxes(x, 1, 2) @ dy).mean(0),
)
op.wrong(
    "last step only",
    "w",
    ("missing_batch_sum", "ignores_cotangent", "missing_term"),
    lambda x, w, b, dy: x[:, -1].T @ dy[:, -1],
)
op.wrong(
    "sums before the product",
    "w",
    ("extra_term",),
    lambda x, w, b, dy: x.sum(1).T @ dy.sum(1),
)
op.wrong(
    "summed over the batch only",
    "b",
    ("unbroadcast", "shape", "missing_batch_sum"),
    lambda x, w, b, dy: dy.sum(0),
)
op.wrong("summed over the features", "b", ("wrong_axis",), lambda x, w, b, dy: dy.sum((0, 2)), cube)

# --- mean squared error -------------------------------------------------------------------------------------


def mse(p, t):
    """y = mean (p - t)²."""
    return ((p - t) ** 2).mean()


def mse_back(p, t, dy):
    """dp = 2 (p - t) dy / n, dt = -dp."""
    d = 2 * (p - t) * dy / p.size
    return d, -d


op = Operation("mean squared error", mse, mse_back, normal((5, 3), (5, 3)))
op.right(
    "expanded",
    lambda p, t, dy: ((2 * p - 2 * t) / p.size * dy, (t - p) * (dy + dy) / p.shape[0] / p.shape[1]),
)
op.wrong("2 forgotten", "p", ("scale", "missing_term"), lambda p, t, dy: (p - t) * dy / p.size)
op.wrong("divided by the batch only", "p", ("scale",), lambda p, t, dy: 2 * (p - t) * dy / len(p))
op.wrong("not divided", "p", ("scale", "missing_term"), lambda p, t, dy: 2 * (p - t) * dy)
op.wrong("dy forgotten", "p", ("ignores_cotangent",), lambda p, t, dy: 2 * (p - t) / p.size)
op.wrong("t forgotten", "p", ("missing_term", "wrong_residual"), lambda p, t, dy: 2 * p * dy / p.size)
op.wrong("t - p", "p", ("sign", "swapped"), lambda p, t, dy: 2 * (t - p) * dy / p.size)
op.wrong("same as p's", "t", ("sign",), lambda p, t, dy: 2 * (p - t) * dy / p.size)
op.wrong("target has none", "t", ("zero",), lambda p, t, dy: None)

# --- softmax cross entropy ----------------------------------------------------------------------------------

LABELS = np.array([2, 0, 6, 3, 3])
SQUARE_LABELS = np.array([2, 0, 4, 3, 3])


def cross_entropy(z):
    """y = -mean log softmax(z)[label]."""
    return -(jax.nn.log_softmax(z) * onehot(LABELS, z.shape[1])).sum() / len(z)


def cross_entropy_back(z, dy):
    """dz = (p - onehot) dy / n."""
    return (soft(z) - onehot(LABELS, z.shape[1])) * dy / len(z)


op = Operation("softmax cross entropy", cross_entropy, cross_entropy_back, normal((5, 7)))
op.right("scattered", lambda z, dy: soft(z).at[jnp.arange(5), LABELS].add(-1.0) * (dy / 5))
op.wrong("not averaged", "z", ("scale", "missing_term"), lambda z, dy: (soft(z) - onehot(LABELS, 7)) * dy)
op.wrong("onehot - p", "z", ("sign", "swapped"), lambda z, dy: (onehot(LABELS, 7) - soft(z)) * dy / 5)
op.wrong("onehot forgotten", "z", ("missing_term",), lambda z, dy: soft(z) * dy / 5)
op.wrong("normaliser forgotten", "z", ("missing_term",), lambda z, dy: -onehot(LABELS, 7) * dy / 5)
op.wrong("dy forgotten", "z", ("ignores_cotangent",), lambda z, dy: (soft(z) - onehot(LABELS, 7)) / 5)
op.wrong(
    "softmax over the batch", "z", ("wrong_axis",), lambda z, dy: (soft(z, 0) - onehot(LABELS, 7)) * dy / 5
)
op.wrong("logits for probabilities", "z", ("wrong_residual",), lambda z, dy: (z - onehot(LABELS, 7)) * dy / 5)
op.wrong("divided by the classes", "z", ("scale",), lambda z, dy: (soft(z) - onehot(LABELS, 7)) * dy / 7)
op.wrong(
    "diagonal of the Jacobian",
    "z",
    ("missing_term", "mask"),
    lambda z, dy: onehot(LABELS, 7) * (soft(z) - 1) * dy / 5,
)
op.wrong(
    "labels off by one",
    "z",
    ("shift", "wrong_residual"),
    lambda z, dy: (soft(z) - onehot(LABELS - 1, 7)) * dy / 5,
)

# --- softmax ------------------------------------------------------------------------------------------------


def softmax(x):
    """y = softmax x, by rows."""
    return soft(x)


def softmax_back(x, dy):
    """dx = y (dy - Σ dy y)."""
    y = soft(x)
    return y * (dy - (dy * y).sum(-1, keepdims=True))


def softmax_jacobian(x, dy):
    """dx = (diag y - y yᵀ) dy."""
    y = soft(x)
    jacobian = jnp.eye(x.shape[1], dtype=x.dtype) * y[:, :, None] - y[:, :, None] * y[:, None, :]
    return jnp.einsum("nij,nj->ni", jacobian, dy)


op = Operation("softmax", softmax, softmax_back, normal((5, 7)))
op.right("Jacobian", softmax_jacobian)
op.wrong("diagonal of the Jacobian", "x", ("missing_term",), lambda x, dy: soft(x) * (1 - soft(x)) * dy)
op.wrong("y dy", "x", ("missing_term",), lambda x, dy: soft(x) * dy)
op.wrong(
    "sum over the batch",
    "x",
    ("wrong_axis",),
    lambda x, dy: soft(x) * (dy - (dy * soft(x)).sum(0)),
)
op.wrong(
    "mean in place of the sum",
    "x",
    ("scale", "extra_term"),
    lambda x, dy: soft(x) * (dy - (dy * soft(x)).mean(-1, keepdims=True)),
)
op.wrong(
    "y left out of the sum",
    "x",
    ("missing_term",),
    lambda x, dy: soft(x) * (dy - dy.sum(-1, keepdims=True)),
)
op.wrong(
    "plus",
    "x",
    ("sign",),
    lambda x, dy: soft(x) * (dy + (dy * soft(x)).sum(-1, keepdims=True)),
)
op.wrong(
    "x for y",
    "x",
    ("wrong_residual",),
    lambda x, dy: x * (dy - (dy * x).sum(-1, keepdims=True)),
)
op.wrong(
    "x for y outside",
    "x",
    ("wrong_residual",),
    lambda x, dy: x * (dy - (dy * soft(x)).sum(-1, keepdims=True)),
)
op.wrong(
    "y left out",
    "x",
    ("missing_term",),
    lambda x, dy: dy - (dy * soft(x)).sum(-1, keepdims=True),
)

# --- log-softmax --------------------------------------------------------------------------------------------


def log_softmax(x):
    """y = log softmax x, by rows."""
    return jax.nn.log_softmax(x)


def log_softmax_back(x, dy):
    """dx = dy - softmax(x) Σ dy."""
    return dy - soft(x) * dy.sum(-1, keepdims=True)


op = Operation("log-softmax", log_softmax, log_softmax_back, normal((5, 7)))
op.right("from y", lambda x, dy: dy - jnp.exp(log_softmax(x)) * (dy @ jnp.ones((7, 1), dy.dtype)))
op.wrong("sum forgotten", "x", ("missing_term",), lambda x, dy: dy - soft(x) * dy)
op.wrong("p forgotten", "x", ("missing_term",), lambda x, dy: dy - dy.sum(-1, keepdims=True))
op.wrong(
    "y for p",
    "x",
    ("wrong_residual",),
    lambda x, dy: dy - log_softmax(x) * dy.sum(-1, keepdims=True),
)
op.wrong("sum over the batch", "x", ("wrong_axis",), lambda x, dy: dy - soft(x) * dy.sum(0))
op.wrong("dy passed on", "x", ("missing_term",), lambda x, dy: dy)
op.wrong("plus", "x", ("sign",), lambda x, dy: dy + soft(x) * dy.sum(-1, keepdims=True))
op.wrong(
    "softmax's formula",
    "x",
    ("extra_term", "wrong_residual"),
    softmax_back,
)

# --- sigmoid ------------------------------------------------------------------------------------------------


def logistic(x):
    """y = 1 / (1 + exp -x)."""
    return sigmoid(x)


def logistic_back(x, dy):
    """dx = y (1 - y) dy."""
    y = sigmoid(x)
    return y * (1 - y) * dy


op = Operation("sigmoid", logistic, logistic_back, normal((5, 3)))
op.right("σ(x) σ(-x)", lambda x, dy: dy * sigmoid(x) * sigmoid(-x))
op.wrong("x for y", "x", ("wrong_residual",), lambda x, dy: x * (1 - x) * dy)
op.wrong("1 - y forgotten", "x", ("missing_term",), lambda x, dy: sigmoid(x) * dy)
op.wrong("1 + y", "x", ("sign",), lambda x, dy: sigmoid(x) * (1 + sigmoid(x)) * dy)
op.wrong("dy forgotten", "x", ("ignores_cotangent",), lambda x, dy: sigmoid(x) * (1 - sigmoid(x)))
op.wrong("squashed twice", "x", ("wrong_residual",), lambda x, dy: logistic_back(sigmoid(x), dy))
op.wrong(
    "by exp, overflowing",
    "x",
    ("nan",),
    lambda x, dy: jnp.exp(-x) / (1 + jnp.exp(-x)) ** 2 * dy,
    far(normal((5, 3)), -1000.0, 3.0),
)

# --- tanh ---------------------------------------------------------------------------------------------------


def tanh(x):
    """y = tanh x."""
    return jnp.tanh(x)


def tanh_back(x, dy):
    """dx = (1 - y²) dy."""
    return (1 - jnp.tanh(x) ** 2) * dy


op = Operation("tanh", tanh, tanh_back, normal((5, 3)))
op.right("1 / cosh²", lambda x, dy: dy / jnp.cosh(x) ** 2)
op.wrong("square forgotten", "x", ("missing_term", "wrong_residual"), lambda x, dy: (1 - jnp.tanh(x)) * dy)
op.wrong("x for y", "x", ("wrong_residual",), lambda x, dy: (1 - x**2) * dy)
op.wrong("y² - 1", "x", ("sign",), lambda x, dy: (jnp.tanh(x) ** 2 - 1) * dy)
op.wrong("1 + y²", "x", ("sign",), lambda x, dy: (1 + jnp.tanh(x) ** 2) * dy)
op.wrong("tanh of y", "x", ("wrong_residual",), lambda x, dy: (1 - jnp.tanh(jnp.tanh(x)) ** 2) * dy)
op.wrong("dy inside the square", "x", ("nonlinear_in_cotangent",), lambda x, dy: dy - (jnp.tanh(x) * dy) ** 2)

# --- leaky relu ---------------------------------------------------------------------------------------------


def leaky(x):
    """y = x where x > 0, x / 8 elsewhere."""
    return jnp.where(x > 0, x, 0.125 * x)


def leaky_back(x, dy):
    """dx = dy where x > 0, dy / 8 elsewhere."""
    return jnp.where(x > 0, dy, 0.125 * dy)


op = Operation("leaky relu", leaky, leaky_back, normal((5, 7)))
op.right("mask from y", lambda x, dy: dy * (0.125 + 0.875 * (leaky(x) > 0)))
op.wrong("relu's", "x", ("missing_term", "mask"), lambda x, dy: dy * (x > 0))
op.wrong("inverted", "x", ("mask", "swapped"), lambda x, dy: jnp.where(x > 0, 0.125 * dy, dy))
op.wrong("dy passed on", "x", ("mask", "missing_term"), lambda x, dy: dy)
op.wrong(
    "mask from dy",
    "x",
    ("nonlinear_in_cotangent", "mask", "wrong_residual"),
    lambda x, dy: jnp.where(dy > 0, dy, 0.125 * dy),
)
op.wrong("slope negative", "x", ("sign",), lambda x, dy: jnp.where(x > 0, dy, -0.125 * dy))
op.wrong(
    "value for slope",
    "x",
    ("extra_term",),
    lambda x, dy: jnp.where(x > 0, dy, 0.125 * x * dy),
)

# --- relu ---------------------------------------------------------------------------------------------------


def relu(x):
    """y = max(x, 0)."""
    return jnp.maximum(x, 0)


def relu_back(x, dy):
    """dx = dy where x > 0."""
    return jnp.where(x > 0, dy, 0)


op = Operation("relu", relu, relu_back, normal((5, 7)))
op.right("sign of y", lambda x, dy: dy * jnp.sign(relu(x)))
op.wrong("mask forgotten", "x", ("mask", "missing_term"), lambda x, dy: dy)
op.wrong("y dy", "x", ("extra_term", "wrong_residual"), lambda x, dy: relu(x) * dy)
op.wrong("mask inverted", "x", ("mask",), lambda x, dy: jnp.where(x < 0, dy, 0))
op.wrong("relu of dy", "x", ("nonlinear_in_cotangent", "mask", "wrong_residual"), lambda x, dy: relu(dy))
op.wrong("the mask alone", "x", ("ignores_cotangent",), lambda x, dy: (x > 0).astype(x.dtype))
op.wrong(
    "guided",
    "x",
    ("nonlinear_in_cotangent", "mask", "extra_term"),
    lambda x, dy: jnp.where((x > 0) & (dy > 0), dy, 0),
)

# --- gelu ---------------------------------------------------------------------------------------------------

ROOT = (2 / 3.141592653589793) ** 0.5


def gelu(x):
    """y = x (1 + tanh √(2/π) (x + 0.044715 x³)) / 2."""
    return 0.5 * x * (1 + jnp.tanh(ROOT * (x + 0.044715 * x**3)))


def gelu_tanh(x):
    return jnp.tanh(ROOT * (x + 0.044715 * x**3))


def gelu_back(x, dy):
    """dx = ((1 + t) + x (1 - t²) √(2/π) (1 + 3 · 0.044715 x²)) dy / 2."""
    t = gelu_tanh(x)
    return 0.5 * ((1 + t) + x * (1 - t**2) * ROOT * (1 + 3 * 0.044715 * x**2)) * dy


def gelu_logistic(x, dy):
    s = sigmoid(2 * ROOT * (x + 0.044715 * x**3))
    return dy * (s + x * s * (1 - s) * 2 * ROOT * (1 + 0.134145 * x * x))


def gelu_but(inner, square=True, outer=True):
    """The formula with another inner derivative, or without its first term."""

    def gradient(x, dy):
        t = gelu_tanh(x)
        return 0.5 * (outer * (1 + t) + x * (1 - t**2 if square else 1 - t) * ROOT * inner(x)) * dy

    return gradient


op = Operation("gelu", gelu, gelu_back, normal((5, 7)))
op.right("by the logistic function", gelu_logistic)
op.wrong("tanh held constant", "x", ("missing_term",), lambda x, dy: 0.5 * (1 + gelu_tanh(x)) * dy)
op.wrong(
    "first term forgotten", "x", ("missing_term",), gelu_but(lambda x: 1 + 3 * 0.044715 * x**2, outer=False)
)
op.wrong("3 forgotten", "x", ("missing_term", "scale"), gelu_but(lambda x: 1 + 0.044715 * x**2))
op.wrong("cubic term forgotten", "x", ("missing_term",), gelu_but(lambda x: 1))
op.wrong(
    "cubic term not lowered", "x", ("extra_term", "wrong_residual"), gelu_but(lambda x: 1 + 0.134145 * x**3)
)
op.wrong(
    "square of t forgotten",
    "x",
    ("missing_term", "wrong_residual"),
    gelu_but(lambda x: 1 + 3 * 0.044715 * x**2, square=False),
)

# --- silu ---------------------------------------------------------------------------------------------------


def silu(x):
    """y = x σ(x)."""
    return x * sigmoid(x)


def silu_back(x, dy):
    """dx = σ (1 + x (1 - σ)) dy."""
    s = sigmoid(x)
    return s * (1 + x * (1 - s)) * dy


op = Operation("silu", silu, silu_back, normal((5, 7)))
op.right("from y", lambda x, dy: dy * (silu(x) + sigmoid(x) * (1 - silu(x))))
op.wrong("gate held constant", "x", ("missing_term",), lambda x, dy: sigmoid(x) * dy)
op.wrong("first term forgotten", "x", ("missing_term",), lambda x, dy: x * sigmoid(x) * (1 - sigmoid(x)) * dy)
op.wrong("sigmoid's", "x", ("missing_term",), lambda x, dy: sigmoid(x) * (1 - sigmoid(x)) * dy)
op.wrong("1 + σ", "x", ("sign",), lambda x, dy: sigmoid(x) * (1 + x * (1 + sigmoid(x))) * dy)
op.wrong("minus", "x", ("sign",), lambda x, dy: sigmoid(x) * (1 - x * (1 - sigmoid(x))) * dy)
op.wrong(
    "y for x", "x", ("wrong_residual",), lambda x, dy: sigmoid(x) * (1 + silu(x) * (1 - sigmoid(x))) * dy
)

# --- softplus -----------------------------------------------------------------------------------------------


def softplus(x):
    """y = log(1 + exp x)."""
    return jnp.logaddexp(x, 0)


def softplus_back(x, dy):
    """dx = σ(x) dy."""
    return sigmoid(x) * dy


op = Operation("softplus", softplus, softplus_back, normal((5, 3)))
op.right("1 - exp(-y)", lambda x, dy: -jnp.expm1(-softplus(x)) * dy)
op.wrong("y for x", "x", ("wrong_residual",), lambda x, dy: sigmoid(softplus(x)) * dy)
op.wrong("derived twice", "x", ("extra_term",), lambda x, dy: sigmoid(x) * (1 - sigmoid(x)) * dy)
op.wrong(
    "by exp, overflowing",
    "x",
    ("nan",),
    lambda x, dy: jnp.exp(x) / (1 + jnp.exp(x)) * dy,
    far(normal((5, 3)), 1000.0, -2.0),
)
op.wrong(
    "exp x forgotten", "x", ("missing_term", "sign", "wrong_residual"), lambda x, dy: dy / (1 + jnp.exp(x))
)

# --- layer norm ---------------------------------------------------------------------------------------------


def layer_parts(x):
    """The normalised x and 1 / std, by rows."""
    inv = (x.var(-1, keepdims=True) + 1e-5) ** -0.5
    return (x - x.mean(-1, keepdims=True)) * inv, inv


def layer_norm(x, g, b):
    """y = x̂ g + b, x̂ normalised by rows."""
    return layer_parts(x)[0] * g + b


def layer_dx(x, dxh, mean=True, variance=True, axis=-1):
    """inv (dx̂ - mean dx̂ - x̂ mean dx̂ x̂), or with one of the terms left out."""
    xh, inv = layer_parts(x)
    center = dxh.mean(axis, keepdims=True) if mean else 0
    spread = xh * (dxh * xh).mean(axis, keepdims=True) if variance else 0
    return inv * (dxh - center - spread)


def layer_norm_back(x, g, b, dy):
    """dx = inv (dx̂ - mean dx̂ - x̂ mean dx̂ x̂), dg = Σ dy x̂, db = Σ dy."""
    return layer_dx(x, dy * g), (dy * layer_parts(x)[0]).sum(0), dy.sum(0)


def layer_norm_steps(x, g, b, dy):
    """The gradients by way of the variance and the mean."""
    n = x.shape[-1]
    d = x - x.mean(-1, keepdims=True)
    v = (d * d).mean(-1, keepdims=True) + 1e-5
    dxh = dy * g
    dv = (dxh * d).sum(-1, keepdims=True) * -0.5 * v**-1.5
    dm = -dxh.sum(-1, keepdims=True) / jnp.sqrt(v)
    return dxh / jnp.sqrt(v) + dv * 2 * d / n + dm / n, (dy * d / jnp.sqrt(v)).sum(0), dy.sum(0)


def layer_sums(x, g, b, dy):
    xh, inv = layer_parts(x)
    dxh = dy * g
    return inv * (dxh - dxh.sum(-1, keepdims=True) - xh * (dxh * xh).sum(-1, keepdims=True))


def layer_raw(x, g, b, dy):
    inv = layer_parts(x)[1]
    dxh = dy * g
    return inv * (dxh - dxh.mean(-1, keepdims=True) - x * (dxh * x).mean(-1, keepdims=True))


square = normal((5, 5), (5,), (5,))
op = Operation("layer norm", layer_norm, layer_norm_back, normal((5, 7), (7,), (7,)))
op.right("by variance and mean", layer_norm_steps)
op.wrong(
    "mean and variance held constant",
    "x",
    ("statistics_constant", "missing_term"),
    lambda x, g, b, dy: layer_parts(x)[1] * dy * g,
)
op.wrong(
    "mean held constant",
    "x",
    ("statistics_constant", "missing_term"),
    lambda x, g, b, dy: layer_dx(x, dy * g, mean=False),
)
op.wrong(
    "variance held constant",
    "x",
    ("statistics_constant", "missing_term"),
    lambda x, g, b, dy: layer_dx(x, dy * g, variance=False),
)
op.wrong("gain forgotten", "x", ("missing_term",), lambda x, g, b, dy: layer_dx(x, dy))
op.wrong("means over the batch", "x", ("wrong_axis",), lambda x, g, b, dy: layer_dx(x, dy * g, axis=0))
op.wrong("sums for means", "x", ("scale", "missing_term"), layer_sums)
op.wrong("x for x̂", "x", ("wrong_residual",), layer_raw)
op.wrong(
    "1 / std forgotten",
    "x",
    ("missing_term",),
    lambda x, g, b, dy: layer_dx(x, dy * g) / layer_parts(x)[1],
)
op.wrong(
    "1 / variance",
    "x",
    ("extra_term", "wrong_residual"),
    lambda x, g, b, dy: layer_dx(x, dy * g) * layer_parts(x)[1],
)
op.wrong(
    "summed over the features",
    "g",
    ("wrong_axis",),
    lambda x, g, b, dy: (dy * layer_parts(x)[0]).sum(1),
    square,
)
op.wrong("x for x̂", "g", ("wrong_residual",), lambda x, g, b, dy: (dy * x).sum(0))
op.wrong("y for x̂", "g", ("wrong_residual",), lambda x, g, b, dy: (dy * layer_norm(x, g, b)).sum(0))
op.wrong(
    "not summed",
    "g",
    ("missing_batch_sum", "unbroadcast", "shape"),
    lambda x, g, b, dy: dy * layer_parts(x)[0],
)
op.wrong("x̂ forgotten", "g", ("missing_term", "swapped"), lambda x, g, b, dy: dy.sum(0))
op.wrong("times the gain", "b", ("extra_term",), lambda x, g, b, dy: (dy * g).sum(0))

# --- batch norm ---------------------------------------------------------------------------------------------


def batch_parts(x):
    """The normalised x and 1 / std, by columns."""
    inv = (x.var(0) + 1e-5) ** -0.5
    return (x - x.mean(0)) * inv, inv


def batch_norm(x, g, b):
    """y = x̂ g + b, x̂ normalised over the batch."""
    return batch_parts(x)[0] * g + b


def batch_norm_back(x, g, b, dy):
    """dx = g inv / m (m dy - db - x̂ dg), dg = Σ dy x̂, db = Σ dy."""
    xh, inv = batch_parts(x)
    dg, db = (dy * xh).sum(0), dy.sum(0)
    return g * inv / len(x) * (len(x) * dy - db - xh * dg), dg, db


def batch_sign(x, g, b, dy):
    xh, inv = batch_parts(x)
    return g * inv / len(x) * (len(x) * dy - dy.sum(0) + xh * (dy * xh).sum(0))


def batch_m(x, g, b, dy):
    xh, inv = batch_parts(x)
    return g * inv / len(x) * (dy - dy.sum(0) - xh * (dy * xh).sum(0))


def batch_centered(x, g, b, dy):
    xh, inv = batch_parts(x)
    return g * inv * (dy - dy.mean(0) - (x - x.mean(0)) * (dy * xh).mean(0))


op = Operation("batch norm", batch_norm, batch_norm_back, normal((7, 5), (5,), (5,)))
op.right(
    "layer norm transposed",
    lambda x, g, b, dy: (
        layer_dx(x.T, (dy * g).T).T,
        jnp.einsum("ni,ni->i", batch_parts(x)[0], dy),
        dy.T @ jnp.ones(len(dy), dy.dtype),
    ),
)
op.wrong(
    "running statistics' formula",
    "x",
    ("statistics_constant", "missing_term"),
    lambda x, g, b, dy: g * batch_parts(x)[1] * dy,
)
op.wrong("m forgotten", "x", ("missing_term", "scale"), batch_m)
op.wrong("last term added", "x", ("sign",), batch_sign)
op.wrong("centred x for x̂", "x", ("wrong_residual", "missing_term"), batch_centered)
op.wrong("gain forgotten", "x", ("missing_term",), lambda x, g, b, dy: layer_dx(x.T, dy.T).T)
op.wrong(
    "variance held constant",
    "x",
    ("statistics_constant", "missing_term"),
    lambda x, g, b, dy: layer_dx(x.T, (dy * g).T, variance=False).T,
)
op.wrong("not divided by m", "x", ("scale",), lambda x, g, b, dy: len(x) * batch_norm_back(x, g, b, dy)[0])
op.wrong("mean over the batch", "g", ("scale",), lambda x, g, b, dy: (dy * batch_parts(x)[0]).mean(0))
op.wrong(
    "centred x for x̂",
    "g",
    ("wrong_residual", "missing_term"),
    lambda x, g, b, dy: (dy * (x - x.mean(0))).sum(0),
)
op.wrong("divided by the gain", "g", ("extra_term",), lambda x, g, b, dy: (dy * batch_parts(x)[0]).sum(0) / g)
op.wrong("not summed", "b", ("missing_batch_sum", "unbroadcast", "shape"), lambda x, g, b, dy: dy)
op.wrong("summed over the features", "b", ("wrong_axis",), lambda x, g, b, dy: dy.sum(-1), square)

# --- rms norm -----------------------------------------------------------------------------------------------


def rms_inv(x, eps=0.1):
    """1 / √(mean x² + eps), by rows."""
    return ((x**2).mean(-1, keepdims=True) + eps) ** -0.5


def rms_norm(x, g):
    """y = g x / √(mean x² + 0.1)."""
    return g * x * rms_inv(x)


def rms_dx(x, d, inv, power=3):
    """inv d - x inv³ mean d x."""
    return inv * d - x * inv**power * (d * x).mean(-1, keepdims=True)


def rms_norm_back(x, g, dy):
    """dx = inv (dy g - x̂ mean dy g x̂), dg = Σ dy x̂."""
    return rms_dx(x, dy * g, rms_inv(x)), (dy * x * rms_inv(x)).sum(0)


op = Operation("rms norm", rms_norm, rms_norm_back, normal((5, 7), (7,)))
op.right(
    "by x̂",
    lambda x, g, dy: (
        rms_inv(x) * (dy * g - x * rms_inv(x) ** 2 * ((dy * g) * x).sum(-1, keepdims=True) / x.shape[-1]),
        jnp.einsum("ni,ni,n->i", dy, x, rms_inv(x)[:, 0]),
    ),
)
op.wrong(
    "rms held constant",
    "x",
    ("statistics_constant", "missing_term"),
    lambda x, g, dy: dy * g * rms_inv(x),
)
op.wrong(
    "centred as in layer norm",
    "x",
    ("extra_term",),
    lambda x, g, dy: rms_norm_back(x, g, dy)[0] - rms_inv(x) * (dy * g).mean(-1, keepdims=True),
)
op.wrong("inv² for inv³", "x", ("missing_term",), lambda x, g, dy: rms_dx(x, dy * g, rms_inv(x), 2))
op.wrong(
    "eps forgotten",
    "x",
    ("missing_term", "wrong_residual"),
    lambda x, g, dy: rms_dx(x, dy * g, rms_inv(x, 0)),
)
op.wrong(
    "sum for mean",
    "x",
    ("scale", "missing_term"),
    lambda x, g, dy: rms_inv(x) * dy * g - x * rms_inv(x) ** 3 * (dy * g * x).sum(-1, keepdims=True),
)
op.wrong(
    "gain left out of the mean",
    "x",
    ("missing_term",),
    lambda x, g, dy: rms_inv(x) * dy * g - x * rms_inv(x) ** 3 * (dy * x).mean(-1, keepdims=True),
)
op.wrong("x for x̂", "g", ("wrong_residual", "missing_term"), lambda x, g, dy: (dy * x).sum(0))
op.wrong(
    "last row only",
    "g",
    ("missing_batch_sum", "ignores_cotangent"),
    lambda x, g, dy: (dy * x * rms_inv(x))[-1],
)

# --- attention ----------------------------------------------------------------------------------------------


def weights(q, k, mask=None):
    """softmax(q kᵀ / √d), by rows, where the mask is true."""
    s = q @ k.T / q.shape[1] ** 0.5
    return soft(s if mask is None else jnp.where(mask, s, -jnp.inf))


def attention(q, k, v):
    """y = softmax(q kᵀ / √d) v."""
    return weights(q, k) @ v


def scores_back(p, dp):
    """ds = p (dp - Σ dp p), by rows."""
    return p * (dp - (dp * p).sum(-1, keepdims=True))


def attention_with(p, q, k, v, dy):
    """Gradients of attention whose probabilities are p."""
    ds = scores_back(p, dy @ v.T) / q.shape[1] ** 0.5
    return ds @ k, ds.T @ q, p.T @ dy


def attention_back(q, k, v, dy):
    """dq = ds k / √d, dk = dsᵀ q / √d, dv = pᵀ dy, with ds = p (dy vᵀ - Σ dy vᵀ p)."""
    return attention_with(weights(q, k), q, k, v, dy)


def attention_flash(q, k, v, dy):
    """The row sums by way of the output, as in flash attention."""
    p = weights(q, k)
    delta = (dy * (p @ v)).sum(-1, keepdims=True)
    ds = p * (dy @ v.T - delta)
    return ds @ (k / q.shape[1] ** 0.5), jnp.einsum("ij,id->jd", ds, q) / q.shape[1] ** 0.5, p.T @ dy


def row_sums_forgotten(q, k, v, dy):
    return weights(q, k) * (dy @ v.T) @ k / q.shape[1] ** 0.5


def diagonal_only(q, k, v, dy):
    p = weights(q, k)
    return (p * (1 - p) * (dy @ v.T)).T @ q / q.shape[1] ** 0.5


def sums_by_columns(q, k, v, dy):
    p, dp = weights(q, k), dy @ v.T
    return p * (dp - (dp * p).sum(0)) @ k / q.shape[1] ** 0.5


square = normal((5, 5), (5, 5), (5, 5))
op = Operation("attention", attention, attention_back, normal((3, 5), (7, 5), (7, 2)))
op.right("flash", attention_flash)
op.wrong(
    "1/√d forgotten",
    "q",
    ("scale", "missing_term"),
    lambda q, k, v, dy: attention_back(q, k, v, dy)[0] * 5**0.5,
)
op.wrong("1/d", "q", ("scale", "extra_term"), lambda q, k, v, dy: attention_back(q, k, v, dy)[0] / 5**0.5)
op.wrong("row sums forgotten", "q", ("missing_term",), row_sums_forgotten)
op.wrong("sums by columns", "q", ("wrong_axis",), sums_by_columns)
op.wrong(
    "dsᵀ q",
    "q",
    ("swapped",),
    lambda q, k, v, dy: attention_back(q, k, v, dy)[1],
    square,
)
op.wrong(
    "1/√d forgotten",
    "k",
    ("scale", "missing_term"),
    lambda q, k, v, dy: attention_back(q, k, v, dy)[1] * 5**0.5,
)
op.wrong("diagonal of the Jacobian", "k", ("missing_term",), diagonal_only)
op.wrong(
    "ds not transposed",
    "k",
    ("transpose",),
    lambda q, k, v, dy: scores_back(weights(q, k), dy @ v.T) @ q / q.shape[1] ** 0.5,
    normal((5, 3), (5, 3), (5, 2)),
)
op.wrong(
    "v not transposed",
    "k",
    ("transpose",),
    lambda q, k, v, dy: scores_back(weights(q, k), dy @ v).T @ q / q.shape[1] ** 0.5,
    square,
)
op.wrong(
    "p not transposed",
    "v",
    ("transpose",),
    lambda q, k, v, dy: weights(q, k) @ dy,
    normal((5, 3), (5, 3), (5, 2)),
)
op.wrong(
    "scores for probabilities",
    "v",
    ("wrong_residual",),
    lambda q, k, v, dy: (q @ k.T / q.shape[1] ** 0.5).T @ dy,
)
op.wrong(
    "unscaled probabilities",
    "v",
    ("wrong_residual", "missing_term"),
    lambda q, k, v, dy: soft(q @ k.T).T @ dy,
)

# --- causal attention ---------------------------------------------------------------------------------------

PAST = np.tril(np.ones((5, 5), bool))


def causal(q, k, v):
    """y = softmax(q kᵀ / √d) v, each step seeing itself and the steps before it."""
    return weights(q, k, PAST) @ v


def causal_back(q, k, v, dy):
    """As attention's, with the masked probabilities."""
    return attention_with(weights(q, k, PAST), q, k, v, dy)


def causal_masked_twice(q, k, v, dy):
    """Masks dp and ds once more."""
    p = jnp.where(PAST, soft(jnp.where(PAST, q @ k.T / q.shape[1] ** 0.5, -jnp.inf)), 0)
    dp = jnp.where(PAST, jnp.einsum("id,jd->ij", dy, v), 0)
    ds = jnp.tril(p * dp - p * (p * dp).sum(1)[:, None]) / q.shape[1] ** 0.5
    return jnp.einsum("ij,jd->id", ds, k), (q.T @ ds).T, jnp.einsum("ij,id->jd", p, dy)


op = Operation("causal attention", causal, causal_back, normal((5, 3), (5, 3), (5, 2)))
op.right("masked twice", causal_masked_twice)
op.wrong(
    "mask forgotten",
    "q",
    ("mask", "wrong_residual"),
    lambda q, k, v, dy: attention_back(q, k, v, dy)[0],
)
op.wrong(
    "mask forgotten",
    "v",
    ("mask", "wrong_residual"),
    lambda q, k, v, dy: attention_back(q, k, v, dy)[2],
)
op.wrong("mask inverted", "v", ("mask",), lambda q, k, v, dy: weights(q, k, PAST.T).T @ dy)
op.wrong(
    "mask applied after the softmax",
    "k",
    ("mask", "wrong_residual"),
    lambda q, k, v, dy: attention_with(PAST * weights(q, k), q, k, v, dy)[1],
)
op.wrong(
    "diagonal masked too",
    "v",
    ("mask", "shift"),
    lambda q, k, v, dy: jnp.tril(weights(q, k, PAST), -1).T @ dy,
)
op.wrong(
    "p not transposed",
    "v",
    ("transpose",),
    lambda q, k, v, dy: weights(q, k, PAST) @ dy,
)
op.wrong(
    "1/√T for 1/√d",
    "k",
    ("scale",),
    lambda q, k, v, dy: causal_back(q, k, v, dy)[1] * (3 / 5) ** 0.5,
)
op.wrong(
    "row sums forgotten",
    "k",
    ("missing_term",),
    lambda q, k, v, dy: (weights(q, k, PAST) * (dy @ v.T)).T @ q / q.shape[1] ** 0.5,
)

# --- convolution 1-d, zero padding --------------------------------------------------------------------------


def pad1(x, left, right, mode="constant"):
    """x padded along its last axis."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(left, right)], mode=mode)


def conv1d(x, w, b):
    """y_ol = Σ_ck w_ock x_c,l+k-1 + b_o, zeros outside."""
    xp = pad1(x, 1, 1)
    n = x.shape[-1]
    taps = [jnp.einsum("ncl,oc->nol", xp[:, :, k : k + n], w[:, :, k]) for k in range(3)]
    return sum(taps) + b[:, None]


def conv1d_dx(x, w, dyp, order=(2, 1, 0), letters="oc"):
    """Σ_k of dy, padded to dyp, shifted by order[k] and times w_k."""
    n = x.shape[-1]
    spec = f"nol,{letters}->ncl"
    return sum(jnp.einsum(spec, dyp[:, :, s : s + n], w[:, :, k]) for k, s in enumerate(order))


def conv1d_dw(xp, dy, order=(0, 1, 2)):
    """The correlation of the padded x with dy."""
    n = dy.shape[-1]
    return jnp.stack([jnp.einsum("nol,ncl->oc", dy, xp[:, :, s : s + n]) for s in order], -1)


def conv1d_back(x, w, b, dy):
    """dx = dy * flipped w, dw = correlation of x and dy, db = Σ dy."""
    return conv1d_dx(x, w, pad1(dy, 1, 1)), conv1d_dw(pad1(x, 1, 1), dy), dy.sum((0, 2))


def conv1d_scatter(x, w, b, dy):
    """dx scattered tap by tap into the padded input and cut."""
    n = x.shape[-1]
    dxp = jnp.zeros((*x.shape[:2], n + 2), x.dtype)
    for k in range(3):
        dxp = dxp.at[:, :, k : k + n].add(jnp.einsum("nol,oc->ncl", dy, w[:, :, k]))
    windows = jnp.stack([pad1(x, 1, 1)[:, :, k : k + n] for k in range(3)], -1)
    return dxp[:, :, 1:-1], jnp.einsum("nol,nclk->ock", dy, windows), dy.sum(2).sum(0)


def conv1d_cut(x, w, b, dy):
    return conv1d_dx(pad1(x, 1, 1), w, pad1(dy, 2, 2))[:, :, 2:]


op = Operation("convolution 1-d", conv1d, conv1d_back, normal((2, 3, 11), (5, 3, 3), (5,)))
op.right("scattered", conv1d_scatter)
op.wrong(
    "kernel not flipped",
    "x",
    ("flip",),
    lambda x, w, b, dy: conv1d_dx(x, w, pad1(dy, 1, 1), (0, 1, 2)),
)
op.wrong(
    "channels not exchanged",
    "x",
    ("transpose",),
    lambda x, w, b, dy: conv1d_dx(x, w, pad1(dy, 1, 1), letters="co"),
    normal((2, 5, 11), (5, 5, 3), (5,)),
)
op.wrong("padding at one end", "x", ("shift", "border"), lambda x, w, b, dy: conv1d_dx(x, w, pad1(dy, 2, 0)))
op.wrong("padding cut from the start", "x", ("shift", "border"), conv1d_cut)
op.wrong("dy wraps around", "x", ("border",), lambda x, w, b, dy: conv1d_dx(x, w, pad1(dy, 1, 1, "wrap")))
op.wrong(
    "middle tap only", "x", ("missing_term",), lambda x, w, b, dy: jnp.einsum("nol,oc->ncl", dy, w[:, :, 1])
)
op.wrong("kernel flipped", "w", ("flip",), lambda x, w, b, dy: conv1d_dw(pad1(x, 1, 1), dy, (2, 1, 0)))
op.wrong("x padded by its ends", "w", ("border",), lambda x, w, b, dy: conv1d_dw(pad1(x, 1, 1, "edge"), dy))
op.wrong("padding at one end", "w", ("shift", "border"), lambda x, w, b, dy: conv1d_dw(pad1(x, 0, 2), dy))
op.wrong(
    "mean over the batch",
    "w",
    ("scale", "extra_term"),
    lambda x, w, b, dy: conv1d_back(x, w, b, dy)[1] / len(x),
)
op.wrong(
    "first sample only",
    "w",
    ("missing_batch_sum", "ignores_cotangent"),
    lambda x, w, b, dy: conv1d_dw(pad1(x[:1], 1, 1), dy[:1]),
)
op.wrong(
    "not summed over the length",
    "b",
    ("unbroadcast", "shape"),
    lambda x, w, b, dy: dy.sum(0),
)
op.wrong(
    "last position dropped",
    "b",
    ("border", "missing_term", "ignores_cotangent"),
    lambda x, w, b, dy: dy[:, :, :-1].sum((0, 2)),
)

# --- convolution 2-d, no padding ----------------------------------------------------------------------------


def conv2d(x, w):
    """y_nijo = Σ_abc x_n,i+a,j+b,c w_abco."""
    p, q = x.shape[1] - w.shape[0] + 1, x.shape[2] - w.shape[1] + 1
    return sum(x[:, a : a + p, b : b + q] @ w[a, b] for a in range(w.shape[0]) for b in range(w.shape[1]))


def conv2d_dx(x, w, dy):
    """dy times w_abᵀ, scattered to the places that the tap a, b reads."""
    p, q = dy.shape[1:3]
    dx = jnp.zeros_like(x)
    for a in range(w.shape[0]):
        for b in range(w.shape[1]):
            dx = dx.at[:, a : a + p, b : b + q].add(dy @ w[a, b].T)
    return dx


def conv2d_dw(x, w, dy):
    """The correlation of x and dy."""
    p, q = dy.shape[1:3]
    rows = [
        [jnp.einsum("nijc,nijo->co", x[:, a : a + p, b : b + q], dy) for b in range(w.shape[1])]
        for a in range(w.shape[0])
    ]
    return jnp.stack([jnp.stack(row) for row in rows])


def conv2d_back(x, w, dy):
    """dx = full convolution of dy with w, dw = correlation of x and dy."""
    return conv2d_dx(x, w, dy), conv2d_dw(x, w, dy)


def conv2d_full(x, w, dy):
    """dx as a convolution of the padded dy with the flipped kernel, channels exchanged."""
    a, b = w.shape[0] - 1, w.shape[1] - 1
    padded = jnp.pad(dy, ((0, 0), (a, a), (b, b), (0, 0)))
    return conv2d(padded, jnp.swapaxes(w[::-1, ::-1], 2, 3)), conv2d_dw(x, w, dy)


def conv2d_same(x, w, dy):
    padded = jnp.pad(dy, ((0, 0), (2, 2), (2, 2), (0, 0)))
    return conv2d(padded, jnp.swapaxes(w, 2, 3))


def conv2d_border(x, w, dy):
    padded = jnp.pad(dy, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    return conv2d(padded, jnp.swapaxes(w[::-1, ::-1], 2, 3))


op = Operation("convolution 2-d", conv2d, conv2d_back, normal((2, 5, 7, 3), (3, 3, 3, 2)))
op.right("flipped kernel", conv2d_full)
op.wrong("kernel not flipped", "x", ("flip",), conv2d_same)
op.wrong("flipped along one axis", "x", ("flip",), lambda x, w, dy: conv2d_dx(x, w[:, ::-1], dy))
op.wrong(
    "kernel transposed in the plane",
    "x",
    ("transpose",),
    lambda x, w, dy: conv2d_dx(x, jnp.swapaxes(w, 0, 1), dy),
)
op.wrong("dy padded by its ends", "x", ("border",), conv2d_border)
op.wrong("shifted by a row", "x", ("shift",), lambda x, w, dy: jnp.roll(conv2d_dx(x, w, dy), 1, 1))
op.wrong("divided by the taps", "x", ("scale", "extra_term"), lambda x, w, dy: conv2d_dx(x, w, dy) / 9)
op.wrong("kernel flipped", "w", ("flip",), lambda x, w, dy: conv2d_dw(x, w, dy)[::-1, ::-1])
op.wrong(
    "mean over the positions", "w", ("scale",), lambda x, w, dy: conv2d_dw(x, w, dy) / dy[0, :, :, 0].size
)
op.wrong(
    "not summed over the batch",
    "w",
    ("missing_batch_sum", "unbroadcast", "shape"),
    lambda x, w, dy: jnp.stack([conv2d_dw(x[n : n + 1], w, dy[n : n + 1]) for n in range(len(x))]),
)
op.wrong(
    "last sample only",
    "w",
    ("missing_batch_sum", "ignores_cotangent"),
    lambda x, w, dy: conv2d_dw(x[-1:], w, dy[-1:]),
)

# --- max pool -----------------------------------------------------------------------------------------------


def windows2(x):
    """x of n, h, w as n, h/2, 2, w/2, 2."""
    n, h, w = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2)


def spread2(y):
    """Every value to its 2 × 2 window."""
    return jnp.repeat(jnp.repeat(y, 2, 1), 2, 2)


def max_pool(x):
    """y = max over windows of 2 × 2."""
    return windows2(x).max((2, 4))


def max_pool_back(x, dy):
    """dx = dy where x is its window's maximum."""
    return jnp.where(x == spread2(max_pool(x)), spread2(dy), 0)


op = Operation("max pool", max_pool, max_pool_back, normal((3, 4, 6)))
op.right(
    "reshaped",
    lambda x, dy: ((windows2(x) == windows2(x).max((2, 4), keepdims=True)) * dy[:, :, None, :, None]).reshape(
        x.shape
    ),
)
op.wrong("mask forgotten", "x", ("mask",), lambda x, dy: spread2(dy))
op.wrong("average pool's", "x", ("mask", "wrong_residual"), lambda x, dy: spread2(dy) / 4)
op.wrong("divided by the window", "x", ("scale", "extra_term"), lambda x, dy: max_pool_back(x, dy) / 4)
op.wrong("times the maximum", "x", ("extra_term",), lambda x, dy: x * max_pool_back(x, dy))
op.wrong("minimum", "x", ("mask",), lambda x, dy: jnp.where(x == -spread2(max_pool(-x)), spread2(dy), 0))
op.wrong("mask inverted", "x", ("mask",), lambda x, dy: jnp.where(x != spread2(max_pool(x)), spread2(dy), 0))
op.wrong(
    "the mask alone",
    "x",
    ("ignores_cotangent",),
    lambda x, dy: (x == spread2(max_pool(x))).astype(x.dtype),
)

# --- average pool -------------------------------------------------------------------------------------------


def average_pool(x):
    """y = mean over windows of 2 × 2."""
    return windows2(x).mean((2, 4))


def average_pool_back(x, dy):
    """dx = dy / 4, spread over the window."""
    return spread2(dy) / 4


op = Operation("average pool", average_pool, average_pool_back, normal((3, 4, 6)))
op.right("Kronecker", lambda x, dy: jnp.kron(dy, jnp.full((1, 2, 2), 0.25, dy.dtype)))
op.wrong("1/4 forgotten", "x", ("scale", "missing_term"), lambda x, dy: spread2(dy))
op.wrong("1/2 for 1/4", "x", ("scale",), lambda x, dy: spread2(dy) / 2)
op.wrong(
    "first corner only",
    "x",
    ("missing_term", "mask"),
    lambda x, dy: jnp.zeros_like(x).at[:, ::2, ::2].set(dy / 4),
)
op.wrong("times x", "x", ("extra_term",), lambda x, dy: x * spread2(dy) / 4)
op.wrong("one dy for all", "x", ("wrong_axis",), lambda x, dy: jnp.full_like(x, dy.mean() / 4))

# --- moving average with the counts at the border -----------------------------------------------------------

COUNTS = np.array([2, 3, 3, 3, 3, 3, 2], np.float32)


def sum3(x, mode="constant"):
    """Sums over three neighbours."""
    xp = pad1(x, 1, 1, mode)
    return xp[:, :-2] + xp[:, 1:-1] + xp[:, 2:]


def moving_average(x):
    """y = mean of the neighbours that there are."""
    return sum3(x) / COUNTS


def moving_average_back(x, dy):
    """dx = sums over three neighbours of dy / count."""
    return sum3(dy / COUNTS)


op = Operation("moving average", moving_average, moving_average_back, normal((3, 7)))
op.right("counts from ones", lambda x, dy: sum3(dy / sum3(jnp.ones_like(dy))))
op.wrong("3 everywhere", "x", ("border",), lambda x, dy: sum3(dy) / 3)
op.wrong("divided after the sum", "x", ("border", "swapped"), lambda x, dy: sum3(dy) / COUNTS)
op.wrong("wraps around", "x", ("border",), lambda x, dy: sum3(dy / COUNTS, "wrap"))
op.wrong("shifted by one", "x", ("shift",), lambda x, dy: pad1(sum3(dy / COUNTS), 1, 0)[:, :-1])
op.wrong("counts forgotten", "x", ("missing_term", "scale"), lambda x, dy: sum3(dy))
op.wrong("not spread", "x", ("missing_term",), lambda x, dy: dy / COUNTS)

# --- embedding lookup ---------------------------------------------------------------------------------------

IDS = np.array([1, 4, 1, 6, 2])
SQUARE_IDS = np.array([1, 4, 1, 0, 2])


def embedding(table):
    """y = table[ids]."""
    return table[IDS]


def embedding_back(table, dy):
    """Rows of dy added up by id."""
    return jnp.zeros_like(table).at[IDS].add(dy)


op = Operation("embedding", embedding, embedding_back, normal((7, 3)))
op.right("onehotᵀ dy", lambda table, dy: onehot(IDS, 7).T @ dy)
op.wrong(
    "repeated ids overwritten",
    "table",
    ("missing_batch_sum", "missing_term", "ignores_cotangent"),
    lambda table, dy: jnp.zeros_like(table).at[IDS].set(dy),
)
op.wrong(
    "mean over repeated ids",
    "table",
    ("scale", "extra_term"),
    lambda table, dy: embedding_back(table, dy) / np.maximum(onehot(IDS, 7).sum(0), 1)[:, None],
)
op.wrong(
    "ids off by one",
    "table",
    ("shift",),
    lambda table, dy: jnp.zeros_like(table).at[IDS - 1].add(dy),
)
op.wrong(
    "id 1 taken for padding",
    "table",
    ("mask", "missing_term", "zero", "ignores_cotangent"),
    lambda table, dy: embedding_back(table, dy).at[1].set(0.0),
)
op.wrong(
    "divided by the ids",
    "table",
    ("scale", "extra_term"),
    lambda table, dy: embedding_back(table, dy) / len(dy),
)
op.wrong("frozen", "table", ("zero",), lambda table, dy: jnp.zeros_like(table))
op.wrong(
    "counts only",
    "table",
    ("ignores_cotangent",),
    lambda table, dy: jnp.zeros_like(table).at[IDS].add(1.0),
)

# --- lookup by a matrix of onehots --------------------------------------------------------------------------

PICK = onehot(SQUARE_IDS, 5)


def lookup(table):
    """y = onehot table."""
    return PICK @ table


def lookup_back(table, dy):
    """dtable = onehotᵀ dy."""
    return PICK.T @ dy


op = Operation("lookup by onehots", lookup, lookup_back, normal((5, 3)))
op.wrong("onehot not transposed", "table", ("transpose",), lambda table, dy: PICK @ dy)
op.wrong("rows in order", "table", ("missing_term",), lambda table, dy: dy)

# --- dropout ------------------------------------------------------------------------------------------------

KEPT = np.array([[1, 0, 1], [1, 1, 0], [0, 1, 1], [1, 1, 1], [0, 0, 1]], np.float32)


def dropout(x):
    """y = x m / 0.75, for a given mask m."""
    return x * KEPT / 0.75


def dropout_back(x, dy):
    """dx = dy m / 0.75."""
    return dy * KEPT / 0.75


op = Operation("dropout", dropout, dropout_back, normal((5, 3)))
op.right("where", lambda x, dy: jnp.where(KEPT > 0, dy, 0) * 4 / 3)
op.wrong("mask forgotten", "x", ("mask",), lambda x, dy: dy / 0.75)
op.wrong("mask inverted", "x", ("mask",), lambda x, dy: dy * (1 - KEPT) / 0.75)
op.wrong("1/keep forgotten", "x", ("scale", "missing_term"), lambda x, dy: dy * KEPT)
op.wrong("times keep", "x", ("scale",), lambda x, dy: dy * KEPT * 0.75)
op.wrong(
    "mask applied twice, scaled twice", "x", ("scale", "extra_term"), lambda x, dy: dy * KEPT / 0.75 / 0.75
)
op.wrong("dy passed on", "x", ("mask", "missing_term"), lambda x, dy: dy)
op.wrong("dropped output for mask", "x", ("extra_term", "wrong_residual"), lambda x, dy: dy * dropout(x))

# --- group norm ---------------------------------------------------------------------------------------------


def groups(x):
    """x of n, c, l as n, 2, c/2 · l."""
    return x.reshape(len(x), 2, -1)


def group_norm(x, g, b):
    """y = x̂ g + b, x̂ normalised over each of two groups of channels."""
    return layer_parts(groups(x))[0].reshape(x.shape) * g[:, None] + b[:, None]


def group_dx(x, d, **how):
    """Layer norm's dx within the groups."""
    return layer_dx(groups(x), groups(d), **how).reshape(x.shape)


def group_norm_back(x, g, b, dy):
    """dx = layer norm's within the groups, dg = Σ dy x̂, db = Σ dy over batch and length."""
    xh = layer_parts(groups(x))[0].reshape(x.shape)
    return group_dx(x, dy * g[:, None]), (dy * xh).sum((0, 2)), dy.sum((0, 2))


op = Operation("group norm", group_norm, group_norm_back, normal((2, 6, 5), (6,), (6,)))
op.wrong(
    "statistics held constant",
    "x",
    ("statistics_constant", "missing_term"),
    lambda x, g, b, dy: group_dx(x, dy * g[:, None], mean=False, variance=False),
)
op.wrong("gain forgotten", "x", ("missing_term",), lambda x, g, b, dy: group_dx(x, dy))
op.wrong(
    "instance norm's",
    "x",
    ("wrong_axis", "wrong_residual"),
    lambda x, g, b, dy: layer_dx(x, dy * g[:, None]),
)
op.wrong("x for x̂", "g", ("wrong_residual",), lambda x, g, b, dy: (dy * x).sum((0, 2)))
op.wrong(
    "summed over batch and channels",
    "g",
    ("wrong_axis",),
    lambda x, g, b, dy: (dy * layer_parts(groups(x))[0].reshape(x.shape)).sum((0, 1)),
    normal((2, 6, 6), (6,), (6,)),
)
op.wrong(
    "not summed over the batch",
    "b",
    ("missing_batch_sum", "unbroadcast", "shape"),
    lambda x, g, b, dy: dy.sum(2),
)

# --- instance norm ------------------------------------------------------------------------------------------


def instance_norm(x, g):
    """y = x̂ g, x̂ normalised over the length."""
    return layer_parts(x)[0] * g[:, None]


def instance_norm_back(x, g, dy):
    """dx = layer norm's over the length, dg = Σ dy x̂ over batch and length."""
    return layer_dx(x, dy * g[:, None]), (dy * layer_parts(x)[0]).sum((0, 2))


op = Operation("instance norm", instance_norm, instance_norm_back, normal((3, 5, 7), (5,)))
op.wrong(
    "means over the batch too",
    "x",
    ("wrong_axis",),
    lambda x, g, dy: layer_dx(x, dy * g[:, None], axis=(0, 2)),
)
op.wrong(
    "variance held constant",
    "x",
    ("statistics_constant", "missing_term"),
    lambda x, g, dy: layer_dx(x, dy * g[:, None], variance=False),
)
op.wrong(
    "1 / std forgotten",
    "x",
    ("missing_term",),
    lambda x, g, dy: layer_dx(x, dy * g[:, None]) / layer_parts(x)[1],
)
op.wrong("mean over the length", "g", ("scale",), lambda x, g, dy: (dy * layer_parts(x)[0]).mean(2).sum(0))
op.wrong(
    "first sample only",
    "g",
    ("missing_batch_sum", "ignores_cotangent"),
    lambda x, g, dy: (dy * layer_parts(x)[0])[0].sum(1),
)

# --- z-score over the batch, n - 1 --------------------------------------------------------------------------


def zscore(x):
    """y = (x - mean) / std with n - 1, by columns."""
    return (x - x.mean(0)) / x.std(0, ddof=1)


def zscore_back(x, dy):
    """dx = (dy - mean dy - y Σ dy y / (n - 1)) / std."""
    y = zscore(x)
    return (dy - dy.mean(0) - y * (dy * y).sum(0) / (len(x) - 1)) / x.std(0, ddof=1)


def zscore_but(x, dy, y=None, n=6, std=None):
    """The same with other values."""
    y = zscore(x) if y is None else y
    std = x.std(0, ddof=1) if std is None else std
    return (dy - dy.mean(0) - y * (dy * y).sum(0) / n) / std


op = Operation("z-score", zscore, zscore_back, normal((7, 3)))
op.wrong(
    "mean and std held constant",
    "x",
    ("statistics_constant", "missing_term"),
    lambda x, dy: dy / x.std(0, ddof=1),
)
op.wrong(
    "std held constant",
    "x",
    ("statistics_constant", "missing_term"),
    lambda x, dy: (dy - dy.mean(0)) / x.std(0, ddof=1),
)
op.wrong("n for n - 1", "x", ("scale",), lambda x, dy: zscore_but(x, dy, n=7))
op.wrong("x for y", "x", ("wrong_residual",), lambda x, dy: zscore_but(x, dy, y=x))
op.wrong(
    "variance for std",
    "x",
    ("wrong_residual", "extra_term"),
    lambda x, dy: zscore_but(x, dy, std=x.var(0, ddof=1)),
)

# --- gated linear unit, halves ------------------------------------------------------------------------------


def glu(x):
    """y = a σ(b) for x = [a, b]."""
    a, b = jnp.split(x, 2, -1)
    return a * sigmoid(b)


def glu_back(x, dy):
    """dx = [σ(b) dy, a σ(b) (1 - σ(b)) dy]."""
    a, b = jnp.split(x, 2, -1)
    s = sigmoid(b)
    return jnp.concatenate([s * dy, a * s * (1 - s) * dy], -1)


def glu_but(left, right):
    """dx = [left(a, b, s) dy, right(a, b, s) dy]."""

    def gradient(x, dy):
        a, b = jnp.split(x, 2, -1)
        s = sigmoid(b)
        return jnp.concatenate([left(a, b, s) * dy, right(a, b, s) * dy], -1)

    return gradient


op = Operation("glu", glu, glu_back, normal((5, 6)))
op.right(
    "from y", lambda x, dy: jnp.concatenate([sigmoid(x[:, 3:]) * dy, glu(x) * sigmoid(-x[:, 3:]) * dy], 1)
)
op.wrong("halves exchanged", "x", ("swapped",), glu_but(lambda a, b, s: a * s * (1 - s), lambda a, b, s: s))
op.wrong("gate's derivative forgotten", "x", ("missing_term",), glu_but(lambda a, b, s: s, lambda a, b, s: a))
op.wrong("b for σ(b)", "x", ("wrong_residual",), glu_but(lambda a, b, s: b, lambda a, b, s: a * s * (1 - s)))
op.wrong("a forgotten", "x", ("missing_term",), glu_but(lambda a, b, s: s, lambda a, b, s: s * (1 - s)))
op.wrong(
    "gate has none",
    "x",
    ("missing_term", "zero", "mask"),
    glu_but(lambda a, b, s: s, lambda a, b, s: 0 * s),
)

# --- SwiGLU -------------------------------------------------------------------------------------------------


def swiglu(x, w, v):
    """y = silu(x w) · x v."""
    return silu(x @ w) * (x @ v)


def swiglu_back(x, w, v, dy):
    """With da = dy (x v) silu'(x w), db = dy silu(x w): dx = da wᵀ + db vᵀ, dw = xᵀ da, dv = xᵀ db."""
    a, b = x @ w, x @ v
    da, db = silu_back(a, dy * b), dy * silu(a)
    return da @ w.T + db @ v.T, x.T @ da, x.T @ db


def swiglu_exchanged(x, w, v, dy):
    a, b = x @ w, x @ v
    return silu_back(a, dy * b) @ v.T + dy * silu(a) @ w.T


op = Operation("swiglu", swiglu, swiglu_back, normal((5, 3), (3, 7), (3, 7)))
op.wrong("gate's path forgotten", "x", ("missing_term",), lambda x, w, v, dy: dy * silu(x @ w) @ v.T)
op.wrong("w and v exchanged", "x", ("swapped",), swiglu_exchanged)
op.wrong("silu' forgotten", "w", ("missing_term",), lambda x, w, v, dy: x.T @ (dy * (x @ v)))
op.wrong(
    "sigmoid's derivative for silu's",
    "w",
    ("missing_term", "wrong_residual"),
    lambda x, w, v, dy: x.T @ (dy * (x @ v) * sigmoid(x @ w) * sigmoid(-x @ w)),
)
op.wrong("v's gradient", "w", ("swapped",), lambda x, w, v, dy: swiglu_back(x, w, v, dy)[2])
op.wrong(
    "before the activation",
    "v",
    ("wrong_residual", "missing_term"),
    lambda x, w, v, dy: x.T @ (dy * (x @ w)),
)
op.wrong("mean over the batch", "v", ("scale",), lambda x, w, v, dy: x.T @ (dy * silu(x @ w)) / len(x))
op.wrong("other factor", "v", ("wrong_residual", "swapped"), lambda x, w, v, dy: x.T @ (dy * (x @ v)))

# --- two-layer perceptron -----------------------------------------------------------------------------------


def mlp(x, u, b, w):
    """y = relu(x u + b) w."""
    return relu(x @ u + b) @ w


def mlp_back(x, u, b, w, dy):
    """dh = dy wᵀ where h > 0; dx = dh uᵀ, du = xᵀ dh, db = Σ dh, dw = hᵀ dy."""
    h = relu(x @ u + b)
    dh = jnp.where(h > 0, dy @ w.T, 0)
    return dh @ u.T, x.T @ dh, dh.sum(0), h.T @ dy


square = normal((5, 5), (5, 5), (5,), (5, 5))
op = Operation("two layers", mlp, mlp_back, normal((11, 3), (3, 7), (7,), (7, 5)))
op.right(
    "transposed",
    lambda x, u, b, w, dy: (
        (u @ ((w @ dy.T) * (x @ u + b > 0).T)).T,
        (((w @ dy.T) * (x @ u + b > 0).T) @ x).T,
        ((w @ dy.T) * (x @ u + b > 0).T).sum(1),
        (dy.T @ relu(x @ u + b)).T,
    ),
)
op.wrong("relu' forgotten", "x", ("missing_term", "mask"), lambda x, u, b, w, dy: dy @ w.T @ u.T)
op.wrong(
    "w not transposed",
    "x",
    ("transpose",),
    lambda x, u, b, w, dy: jnp.where(x @ u + b > 0, dy @ w, 0) @ u.T,
    square,
)
op.wrong("relu' forgotten", "u", ("missing_term", "mask"), lambda x, u, b, w, dy: x.T @ (dy @ w.T))
op.wrong(
    "mask inverted",
    "u",
    ("mask",),
    lambda x, u, b, w, dy: x.T @ jnp.where(x @ u + b < 0, dy @ w.T, 0),
)
op.wrong(
    "mask from the input",
    "u",
    ("mask", "wrong_residual"),
    lambda x, u, b, w, dy: x.T @ jnp.where(x > 0, dy @ w.T, 0),
    square,
)
op.wrong(
    "h for x",
    "u",
    ("wrong_residual",),
    lambda x, u, b, w, dy: relu(x @ u + b).T @ jnp.where(x @ u + b > 0, dy @ w.T, 0),
    square,
)
op.wrong("relu' forgotten", "b", ("missing_term", "mask"), lambda x, u, b, w, dy: (dy @ w.T).sum(0))
op.wrong(
    "mean over the batch",
    "b",
    ("scale",),
    lambda x, u, b, w, dy: jnp.where(x @ u + b > 0, dy @ w.T, 0).mean(0),
)
op.wrong(
    "pre-activation for h",
    "w",
    ("wrong_residual", "mask", "missing_term"),
    lambda x, u, b, w, dy: (x @ u + b).T @ dy,
)
op.wrong("h not transposed", "w", ("transpose",), lambda x, u, b, w, dy: relu(x @ u + b) @ dy, square)

# --- recurrent step -----------------------------------------------------------------------------------------


def rnn(x, h, w, u, b):
    """h' = tanh(x w + h u + b)."""
    return jnp.tanh(x @ w + h @ u + b)


def rnn_back(x, h, w, u, b, dy):
    """da = (1 - h'²) dy; dx = da wᵀ, dh = da uᵀ, dw = xᵀ da, du = hᵀ da, db = Σ da."""
    da = (1 - rnn(x, h, w, u, b) ** 2) * dy
    return da @ w.T, da @ u.T, x.T @ da, h.T @ da, da.sum(0)


def rnn_da(x, h, w, u, b, dy):
    return (1 - rnn(x, h, w, u, b) ** 2) * dy


square = normal((5, 5), (5, 5), (5, 5), (5, 5), (5,))
op = Operation("recurrent step", rnn, rnn_back, normal((5, 3), (5, 7), (3, 7), (7, 7), (7,)))
op.wrong(
    "pre-activation in tanh'",
    "x",
    ("wrong_residual",),
    lambda x, h, w, u, b, dy: ((1 - (x @ w + h @ u + b) ** 2) * dy) @ w.T,
)
op.wrong("u not transposed", "h", ("transpose",), lambda *args: rnn_da(*args) @ args[3])
op.wrong("w for u", "h", ("swapped", "wrong_residual"), lambda *args: rnn_da(*args) @ args[2].T, square)
op.wrong("passed through time unchanged", "h", ("missing_term",), lambda *args: rnn_da(*args))
op.wrong("tanh' forgotten", "w", ("missing_term",), lambda x, h, w, u, b, dy: x.T @ dy)
op.wrong(
    "new state for the old",
    "u",
    ("wrong_residual", "shift"),
    lambda x, h, w, u, b, dy: rnn(x, h, w, u, b).T @ rnn_da(x, h, w, u, b, dy),
)
op.wrong("transposed", "u", ("transpose", "swapped"), lambda *args: rnn_da(*args).T @ args[1])
op.wrong("not summed", "b", ("missing_batch_sum", "unbroadcast", "shape"), rnn_da)
op.wrong("tanh' forgotten", "b", ("missing_term",), lambda x, h, w, u, b, dy: dy.sum(0))

# --- GRU cell, from the gates' pre-activations --------------------------------------------------------------


def gru_parts(h, ar, az, an, u):
    """The gates r, z and the candidate n."""
    r, z = sigmoid(ar), sigmoid(az)
    return r, z, jnp.tanh(an + r * (h @ u))


def gru(h, ar, az, an, u):
    """h' = (1 - z) n + z h with n = tanh(an + r (h u))."""
    _, z, n = gru_parts(h, ar, az, an, u)
    return (1 - z) * n + z * h


def gru_back(h, ar, az, an, u, dy):
    """dan = dy (1 - z) (1 - n²), dh = dy z + (dan r) uᵀ, dar = dan (h u) r', daz = dy (h - n) z'."""
    r, z, n = gru_parts(h, ar, az, an, u)
    dn = dy * (1 - z) * (1 - n**2)
    dz = dy * (h - n) * z * (1 - z)
    return dy * z + (dn * r) @ u.T, dn * (h @ u) * r * (1 - r), dz, dn, h.T @ (dn * r)


def gru_but(formula):
    """A gradient that is formula(h, u, r, z, n, dn, dy)."""

    def gradient(h, ar, az, an, u, dy):
        r, z, n = gru_parts(h, ar, az, an, u)
        return formula(h, u, r, z, n, dy * (1 - z) * (1 - n**2), dy)

    return gradient


op = Operation("gru cell", gru, gru_back, normal((5, 3), (5, 3), (5, 3), (5, 3), (3, 3)))
op.wrong("direct path only", "h", ("missing_term",), gru_but(lambda h, u, r, z, n, dn, dy: dy * z))
op.wrong("recurrent path only", "h", ("missing_term",), gru_but(lambda h, u, r, z, n, dn, dy: (dn * r) @ u.T))
op.wrong(
    "u not transposed", "h", ("transpose",), gru_but(lambda h, u, r, z, n, dn, dy: dy * z + (dn * r) @ u)
)
op.wrong(
    "n - h", "az", ("sign", "swapped"), gru_but(lambda h, u, r, z, n, dn, dy: dy * (n - h) * z * (1 - z))
)
op.wrong("sigmoid' forgotten", "az", ("missing_term",), gru_but(lambda h, u, r, z, n, dn, dy: dy * (h - n)))
op.wrong(
    "h for h u",
    "ar",
    ("wrong_residual", "missing_term"),
    gru_but(lambda h, u, r, z, n, dn, dy: dn * h * r * (1 - r)),
)
op.wrong(
    "z for 1 - z",
    "an",
    ("wrong_residual", "swapped"),
    gru_but(lambda h, u, r, z, n, dn, dy: dy * z * (1 - n**2)),
)
op.wrong("reset gate forgotten", "u", ("missing_term",), gru_but(lambda h, u, r, z, n, dn, dy: h.T @ dn))

# --- LSTM cell, from the gates' pre-activations -------------------------------------------------------------


def lstm_parts(c, ai, af, ao, ag):
    """The gates i, f, o, the candidate g and tanh of the new cell."""
    i, f, o, g = sigmoid(ai), sigmoid(af), sigmoid(ao), jnp.tanh(ag)
    return i, f, o, g, jnp.tanh(f * c + i * g)


def lstm(c, ai, af, ao, ag):
    """h = o tanh(f c + i g)."""
    _, _, o, _, t = lstm_parts(c, ai, af, ao, ag)
    return o * t


def lstm_back(c, ai, af, ao, ag, dy):
    """dc' = dy o (1 - t²); dc = dc' f, dai = dc' g i', daf = dc' c f', dao = dy t o', dag = dc' i g'."""
    i, f, o, g, t = lstm_parts(c, ai, af, ao, ag)
    d = dy * o * (1 - t**2)
    return d * f, d * g * i * (1 - i), d * c * f * (1 - f), dy * t * o * (1 - o), d * i * (1 - g**2)


def lstm_but(formula):
    """A gradient that is formula(c, i, f, o, g, t, d, dy)."""

    def gradient(c, ai, af, ao, ag, dy):
        i, f, o, g, t = lstm_parts(c, ai, af, ao, ag)
        return formula(c, i, f, o, g, t, dy * o * (1 - t**2), dy)

    return gradient


op = Operation("lstm cell", lstm, lstm_back, normal(*[(5, 3)] * 5))
op.wrong("tanh' forgotten", "c", ("missing_term",), lstm_but(lambda c, i, f, o, g, t, d, dy: dy * o * f))
op.wrong("forget gate left out", "c", ("missing_term",), lstm_but(lambda c, i, f, o, g, t, d, dy: d))
op.wrong(
    "i for g",
    "ai",
    ("wrong_residual", "swapped"),
    lstm_but(lambda c, i, f, o, g, t, d, dy: d * i * i * (1 - i)),
)
op.wrong(
    "new cell for the old",
    "af",
    ("wrong_residual", "shift"),
    lstm_but(lambda c, i, f, o, g, t, d, dy: d * (f * c + i * g) * f * (1 - f)),
)
op.wrong("input gate's gradient", "af", ("swapped",), lambda *args: lstm_back(*args)[1])
op.wrong(
    "cell for its tanh",
    "ao",
    ("wrong_residual", "missing_term"),
    lstm_but(lambda c, i, f, o, g, t, d, dy: dy * (f * c + i * g) * o * (1 - o)),
)
op.wrong(
    "1 + g²",
    "ag",
    ("sign",),
    lstm_but(lambda c, i, f, o, g, t, d, dy: d * i * (1 + g**2)),
)
op.wrong("tanh' of g forgotten", "ag", ("missing_term",), lstm_but(lambda c, i, f, o, g, t, d, dy: d * i))

# --- cosine similarity --------------------------------------------------------------------------------------


def norm(x):
    """Norms of the rows, as a column."""
    return jnp.sqrt((x**2).sum(-1, keepdims=True))


def cosine(x, y):
    """c = x · y / |x| |y|, by rows."""
    return (x * y).sum(-1) / (norm(x) * norm(y))[:, 0]


def cosine_dx(x, y, dc):
    """(ŷ - c x̂) dc / |x|."""
    return (y / norm(y) - cosine(x, y)[:, None] * x / norm(x)) * dc[:, None] / norm(x)


def cosine_back(x, y, dc):
    """dx = (ŷ - c x̂) dc / |x|, dy = (x̂ - c ŷ) dc / |y|."""
    return cosine_dx(x, y, dc), cosine_dx(y, x, dc)


op = Operation("cosine similarity", cosine, cosine_back, normal((5, 3), (5, 3)))
op.wrong(
    "norm of x held constant",
    "x",
    ("missing_term", "statistics_constant"),
    lambda x, y, dc: y / norm(y) / norm(x) * dc[:, None],
)
op.wrong(
    "1 / |x| forgotten",
    "x",
    ("missing_term",),
    lambda x, y, dc: cosine_dx(x, y, dc) * norm(x),
)
op.wrong(
    "1 / |y| for 1 / |x|",
    "x",
    ("wrong_residual", "swapped"),
    lambda x, y, dc: cosine_dx(x, y, dc) * norm(x) / norm(y),
)
op.wrong("y's gradient", "x", ("swapped",), lambda x, y, dc: cosine_dx(y, x, dc))
op.wrong(
    "plus",
    "y",
    ("sign",),
    lambda x, y, dc: (x / norm(x) + cosine(x, y)[:, None] * y / norm(y)) * dc[:, None] / norm(y),
)
op.wrong(
    "x not normalised",
    "y",
    ("wrong_residual", "missing_term"),
    lambda x, y, dc: (x - cosine(x, y)[:, None] * y / norm(y)) * dc[:, None] / norm(y),
)

# --- L2 normalisation ---------------------------------------------------------------------------------------


def unit(x, eps=0.1):
    """y = x / √(Σ x² + 0.1), by rows."""
    return x / jnp.sqrt((x**2).sum(-1, keepdims=True) + eps)


def unit_dx(x, dy, eps=0.1, power=1, axis=-1):
    """(dy - y Σ dy y) / nᵖ."""
    y = unit(x, eps)
    return (dy - y * (dy * y).sum(axis, keepdims=True)) / ((x**2).sum(-1, keepdims=True) + eps) ** (power / 2)


def normalise(x):
    """y = x / √(Σ x² + 0.1), by rows."""
    return unit(x)


def normalise_back(x, dy):
    """dx = (dy - y Σ dy y) / n."""
    return unit_dx(x, dy)


op = Operation("L2 normalisation", normalise, normalise_back, normal((5, 3)))
op.wrong(
    "norm held constant",
    "x",
    ("missing_term", "statistics_constant"),
    lambda x, dy: dy / jnp.sqrt((x**2).sum(-1, keepdims=True) + 0.1),
)
op.wrong("eps forgotten", "x", ("missing_term", "wrong_residual"), lambda x, dy: unit_dx(x, dy, eps=0))
op.wrong("1 / n²", "x", ("extra_term", "wrong_residual"), lambda x, dy: unit_dx(x, dy, power=2))
op.wrong("1 / n forgotten", "x", ("missing_term",), lambda x, dy: unit_dx(x, dy, power=0))
op.wrong("sum over the batch", "x", ("wrong_axis",), lambda x, dy: unit_dx(x, dy, axis=0))
op.wrong(
    "plus",
    "x",
    ("sign",),
    lambda x, dy: (
        (dy + unit(x) * (dy * unit(x)).sum(-1, keepdims=True)) / jnp.sqrt((x**2).sum(-1, keepdims=True) + 0.1)
    ),
)
op.wrong(
    "sum left out",
    "x",
    ("missing_term",),
    lambda x, dy: (1 - unit(x) ** 2) * dy / jnp.sqrt((x**2).sum(-1, keepdims=True) + 0.1),
)


# --- bilinear form ------------------------------------------------------------------------------------------


def bilinear(x, a, z):
    """y = xᵀ a z for every row."""
    return ((x @ a) * z).sum(-1)


def bilinear_back(x, a, z, dy):
    """dx = dy a z, da = Σ dy x zᵀ, dz = dy aᵀ x."""
    d = dy[:, None]
    return d * (z @ a.T), x.T @ (d * z), d * (x @ a)


square = normal((5, 5), (5, 5), (5, 5))
op = Operation("bilinear form", bilinear, bilinear_back, normal((5, 3), (3, 7), (5, 7)))
op.right(
    "einsum",
    lambda x, a, z, dy: (
        jnp.einsum("n,ij,nj->ni", dy, a, z),
        jnp.einsum("n,ni,nj->ij", dy, x, z),
        jnp.einsum("n,ni,ij->nj", dy, x, a),
    ),
)
op.wrong("a not transposed", "x", ("transpose",), lambda x, a, z, dy: dy[:, None] * (z @ a), square)
op.wrong("a transposed", "z", ("transpose",), lambda x, a, z, dy: dy[:, None] * (x @ a.T), square)
op.wrong("z xᵀ", "a", ("transpose", "swapped"), lambda x, a, z, dy: z.T @ (dy[:, None] * x), square)
op.wrong("not weighted by dy", "a", ("ignores_cotangent",), lambda x, a, z, dy: x.T @ z)
op.wrong("mean over the batch", "a", ("scale",), lambda x, a, z, dy: x.T @ (dy[:, None] * z) / len(dy))
op.wrong(
    "first sample only",
    "a",
    ("missing_batch_sum", "ignores_cotangent"),
    lambda x, a, z, dy: dy[0] * jnp.outer(x[0], z[0]),
)
op.wrong("x for z", "x", ("wrong_residual", "swapped"), lambda x, a, z, dy: dy[:, None] * (x @ a.T), square)

# --- outer product ------------------------------------------------------------------------------------------


def outer(x, z):
    """y = x zᵀ."""
    return jnp.outer(x, z)


def outer_back(x, z, dy):
    """dx = dy z, dz = dyᵀ x."""
    return dy @ z, dy.T @ x


op = Operation("outer product", outer, outer_back, normal((5,), (7,)))
op.wrong("dy transposed", "x", ("transpose",), lambda x, z, dy: dy.T @ z, normal((5,), (5,)))
op.wrong("dy not transposed", "z", ("transpose",), lambda x, z, dy: dy @ x, normal((5,), (5,)))
op.wrong("z forgotten", "x", ("missing_term",), lambda x, z, dy: dy.sum(1))
op.wrong("x's gradient", "z", ("swapped",), lambda x, z, dy: dy @ z, normal((5,), (5,)))

# --- running sum --------------------------------------------------------------------------------------------


def running(x):
    """y_t = Σ_s≤t x_s."""
    return jnp.cumsum(x, 1)


def running_back(x, dy):
    """dx_t = Σ_s≥t dy_s."""
    return jnp.cumsum(dy[:, ::-1], 1)[:, ::-1]


op = Operation("running sum", running, running_back, normal((5, 7)))
op.right("total less the past", lambda x, dy: dy.sum(1, keepdims=True) - jnp.cumsum(dy, 1) + dy)
op.right("triangle", lambda x, dy: dy @ jnp.tril(jnp.ones((7, 7), dy.dtype)))
op.wrong("forward", "x", ("flip", "transpose"), lambda x, dy: jnp.cumsum(dy, 1))
op.wrong("not reversed back", "x", ("flip",), lambda x, dy: jnp.cumsum(dy[:, ::-1], 1))
op.wrong("dy passed on", "x", ("missing_term",), lambda x, dy: dy)
op.wrong(
    "without the step itself",
    "x",
    ("shift", "missing_term"),
    lambda x, dy: jnp.cumsum(dy[:, ::-1], 1)[:, ::-1] - dy,
)
op.wrong("over the batch", "x", ("wrong_axis",), lambda x, dy: jnp.cumsum(dy[::-1], 0)[::-1])
op.wrong(
    "total for every step",
    "x",
    ("extra_term", "mask"),
    lambda x, dy: jnp.broadcast_to(dy.sum(1, keepdims=True), x.shape),
)

# --- product of a row ---------------------------------------------------------------------------------------


def product(x):
    """y = Π x, by rows."""
    return x[:, 0] * x[:, 1] * x[:, 2]


def product_back(x, dy):
    """dx_i = dy Π_j≠i x_j."""
    return jnp.stack([x[:, 1] * x[:, 2], x[:, 0] * x[:, 2], x[:, 0] * x[:, 1]], 1) * dy[:, None]


op = Operation("product", product, product_back, normal((5, 3)))
op.right("rolled", lambda x, dy: jnp.roll(x, 1, 1) * jnp.roll(x, 2, 1) * dy[:, None])
op.wrong(
    "y / x at a zero", "x", ("nan",), lambda x, dy: (product(x) * dy)[:, None] / x, far(normal((5, 3)), 0.0)
)
op.wrong(
    "y for the others",
    "x",
    ("extra_term", "wrong_residual"),
    lambda x, dy: jnp.ones_like(x) * (product(x) * dy)[:, None],
)
op.wrong("one factor short", "x", ("missing_term",), lambda x, dy: jnp.roll(x, 1, 1) * dy[:, None])

# --- logsumexp ----------------------------------------------------------------------------------------------


def logsumexp(x):
    """y = log Σ exp x, by rows."""
    return jax.nn.logsumexp(x, -1)


def logsumexp_back(x, dy):
    """dx = softmax(x) dy."""
    return soft(x) * dy[:, None]


op = Operation("logsumexp", logsumexp, logsumexp_back, normal((5, 7)))
op.right("from y", lambda x, dy: jnp.exp(x - logsumexp(x)[:, None]) * dy[:, None])
op.wrong(
    "by exp, overflowing",
    "x",
    ("nan",),
    lambda x, dy: jnp.exp(x) / jnp.exp(x).sum(-1, keepdims=True) * dy[:, None],
    far(normal((5, 7)), 1000.0, 999.0),
)
op.wrong("not normalised", "x", ("missing_term",), lambda x, dy: jnp.exp(x) * dy[:, None])
op.wrong("softmax over the batch", "x", ("wrong_axis",), lambda x, dy: soft(x, 0) * dy[:, None])
op.wrong("dy forgotten", "x", ("ignores_cotangent",), lambda x, dy: soft(x))
op.wrong("all of dy summed", "x", ("wrong_axis", "extra_term"), lambda x, dy: soft(x) * dy.sum())

# --- Kullback-Leibler divergence ----------------------------------------------------------------------------


def kl(p, q):
    """y = Σ p (log p - log q), by rows."""
    return (p * (jnp.log(p) - jnp.log(q))).sum(-1)


def kl_back(p, q, dy):
    """dp = (log p - log q + 1) dy, dq = -p / q dy."""
    return (jnp.log(p / q) + 1) * dy[:, None], -p / q * dy[:, None]


op = Operation("KL divergence", kl, kl_back, positive((5, 3), (5, 3)))
op.wrong("1 forgotten", "p", ("missing_term",), lambda p, q, dy: jnp.log(p / q) * dy[:, None])
op.wrong("p and q exchanged", "p", ("swapped", "sign"), lambda p, q, dy: (jnp.log(q / p) + 1) * dy[:, None])
op.wrong("p left in", "p", ("extra_term",), lambda p, q, dy: p * (jnp.log(p / q) + 1) * dy[:, None])
op.wrong("plus", "q", ("sign",), lambda p, q, dy: p / q * dy[:, None])
op.wrong("q / p", "q", ("swapped",), lambda p, q, dy: -q / p * dy[:, None])
op.wrong("p forgotten", "q", ("missing_term",), lambda p, q, dy: -1 / q * dy[:, None])
op.wrong("mean over the classes", "q", ("scale", "extra_term"), lambda p, q, dy: -p / q * dy[:, None] / 3)

# --- Huber loss ---------------------------------------------------------------------------------------------


def huber(p, t):
    """y = Σ of d² / 2 where |d| < 1/2, (|d| - 1/4) / 2 elsewhere, for d = p - t."""
    d = p - t
    return jnp.where(jnp.abs(d) < 0.5, 0.5 * d**2, 0.5 * (jnp.abs(d) - 0.25)).sum()


def huber_back(p, t, dy):
    """dp = clip(p - t, ±1/2) dy, dt = -dp."""
    d = jnp.clip(p - t, -0.5, 0.5) * dy
    return d, -d


def inside(p, t):
    return jnp.abs(p - t) < 0.5


op = Operation("Huber loss", huber, huber_back, normal((5, 7), (5, 7)))
op.wrong("not clipped", "p", ("mask", "missing_term"), lambda p, t, dy: (p - t) * dy)
op.wrong(
    "zero outside",
    "p",
    ("mask", "missing_term"),
    lambda p, t, dy: jnp.where(inside(p, t), p - t, 0) * dy,
)
op.wrong(
    "sign forgotten outside",
    "p",
    ("missing_term", "sign"),
    lambda p, t, dy: jnp.where(inside(p, t), p - t, 0.5) * dy,
)
op.wrong(
    "threshold forgotten outside",
    "p",
    ("missing_term", "scale"),
    lambda p, t, dy: jnp.where(inside(p, t), p - t, jnp.sign(p - t)) * dy,
)
op.wrong("same as p's", "t", ("sign",), lambda p, t, dy: huber_back(p, t, dy)[0])
op.wrong("dy forgotten", "t", ("ignores_cotangent",), lambda p, t, dy: jnp.clip(t - p, -0.5, 0.5))

# --- hinge loss ---------------------------------------------------------------------------------------------

SIDES = np.array([1, -1, 1, 1, -1, 1, -1, -1, 1, -1, 1], np.float32)


def hinge(s):
    """y = mean max(0, 1 - t s)."""
    return jnp.maximum(0, 1 - SIDES * s).mean()


def hinge_back(s, dy):
    """ds = -t dy / n where t s < 1."""
    return jnp.where(SIDES * s < 1, -SIDES, 0) * dy / len(s)


op = Operation("hinge loss", hinge, hinge_back, far(normal((11,)), 2.0, -2.0))
op.wrong("mask forgotten", "s", ("mask", "missing_term"), lambda s, dy: -SIDES * dy / len(s))
op.wrong(
    "perceptron's",
    "s",
    ("mask", "missing_term"),
    lambda s, dy: jnp.where(SIDES * s < 0, -SIDES, 0) * dy / len(s),
)
op.wrong("plus", "s", ("sign",), lambda s, dy: jnp.where(SIDES * s < 1, SIDES, 0) * dy / len(s))
op.wrong(
    "label forgotten",
    "s",
    ("missing_term", "sign"),
    lambda s, dy: jnp.where(SIDES * s < 1, -1, 0) * dy / len(s),
)
op.wrong(
    "not averaged", "s", ("scale", "missing_term"), lambda s, dy: jnp.where(SIDES * s < 1, -SIDES, 0) * dy
)
op.wrong("mask inverted", "s", ("mask",), lambda s, dy: jnp.where(SIDES * s > 1, -SIDES, 0) * dy / len(s))

# --- cross entropy with smoothed labels ---------------------------------------------------------------------

SMOOTH = 0.75 * onehot(LABELS, 8) + np.float32(1 / 32)


def smoothed(z):
    """y = -mean Σ q log softmax(z), q = 3/4 onehot + 1/4 / classes."""
    return -(SMOOTH * jax.nn.log_softmax(z)).sum() / len(z)


def smoothed_back(z, dy):
    """dz = (p - q) dy / n."""
    return (soft(z) - SMOOTH) * dy / len(z)


op = Operation("smoothed cross entropy", smoothed, smoothed_back, normal((5, 8)))
op.wrong(
    "labels not smoothed",
    "z",
    ("wrong_residual", "missing_term"),
    lambda z, dy: (soft(z) - onehot(LABELS, 8)) * dy / 5,
)
op.wrong(
    "uniform part forgotten",
    "z",
    ("missing_term",),
    lambda z, dy: (soft(z) - 0.75 * onehot(LABELS, 8)) * dy / 5,
)
op.wrong("q - p", "z", ("sign", "swapped"), lambda z, dy: (SMOOTH - soft(z)) * dy / 5)
op.wrong("log p for p", "z", ("wrong_residual",), lambda z, dy: (jax.nn.log_softmax(z) - SMOOTH) * dy / 5)
op.wrong("mean over the classes too", "z", ("scale", "extra_term"), lambda z, dy: smoothed_back(z, dy) / 8)

# --- focal loss of positives --------------------------------------------------------------------------------


def focal(x):
    """y = -Σ (1 - p)² log p, p = σ(x)."""
    p = sigmoid(x)
    return -((1 - p) ** 2 * jax.nn.log_sigmoid(x)).sum()


def focal_back(x, dy):
    """dx = (2 p log p - (1 - p)) (1 - p)² dy."""
    p = sigmoid(x)
    return (2 * p * jnp.log(p) - (1 - p)) * (1 - p) ** 2 * dy


def focal_but(formula):
    """dx = formula(p, log p) dy."""
    return lambda x, dy: formula(sigmoid(x), jax.nn.log_sigmoid(x)) * dy


op = Operation("focal loss", focal, focal_back, normal((7,)))
op.right("chain rule", focal_but(lambda p, l: (2 * (1 - p) * l - (1 - p) ** 2 / p) * p * (1 - p)))
op.wrong("weight held constant", "x", ("missing_term",), focal_but(lambda p, l: -((1 - p) ** 3)))
op.wrong(
    "exponent forgotten",
    "x",
    ("missing_term", "scale"),
    focal_but(lambda p, l: (p * l - (1 - p)) * (1 - p) ** 2),
)
op.wrong(
    "sigmoid' forgotten", "x", ("missing_term",), focal_but(lambda p, l: 2 * (1 - p) * l - (1 - p) ** 2 / p)
)
op.wrong("second term added", "x", ("sign",), focal_but(lambda p, l: (2 * p * l + (1 - p)) * (1 - p) ** 2))
op.wrong(
    "power not lowered",
    "x",
    ("extra_term",),
    focal_but(lambda p, l: (2 * p * (1 - p) * l - (1 - p)) * (1 - p) ** 2),
)

# --- binary cross entropy from logits -----------------------------------------------------------------------


def bce(x, t):
    """y = mean (softplus(x) - t x)."""
    return (softplus(x) - t * x).mean()


def bce_back(x, t, dy):
    """dx = (σ(x) - t) dy / n, dt = -x dy / n."""
    return (sigmoid(x) - t) * dy / x.size, -x * dy / x.size


op = Operation("binary cross entropy", bce, bce_back, normal((5, 3), (5, 3)))
op.wrong("logits for probabilities", "x", ("wrong_residual",), lambda x, t, dy: (x - t) * dy / x.size)
op.wrong(
    "sigmoid' once more",
    "x",
    ("extra_term",),
    lambda x, t, dy: (sigmoid(x) - t) * sigmoid(x) * (1 - sigmoid(x)) * dy / x.size,
)
op.wrong("t - σ(x)", "x", ("sign", "swapped"), lambda x, t, dy: (t - sigmoid(x)) * dy / x.size)
op.wrong("divided by the batch only", "x", ("scale",), lambda x, t, dy: (sigmoid(x) - t) * dy / len(x))
op.wrong("probabilities for logits", "t", ("wrong_residual",), lambda x, t, dy: -sigmoid(x) * dy / x.size)
op.wrong("labels need none", "t", ("zero",), lambda x, t, dy: jnp.zeros_like(t))

# --- FiLM: modulation of channels ---------------------------------------------------------------------------


def film(x, g, b):
    """y = x (1 + g) + b, g and b of batch and channels, broadcast over time."""
    return x * (1 + g[:, None]) + b[:, None]


def film_back(x, g, b, dy):
    """dx = dy (1 + g), dg = Σ_t dy x, db = Σ_t dy."""
    return dy * (1 + g[:, None]), (dy * x).sum(1), dy.sum(1)


square = normal((5, 5, 5), (5, 5), (5, 5))
op = Operation("film", film, film_back, normal((3, 5, 7), (3, 7), (3, 7)))
op.right(
    "einsum",
    lambda x, g, b, dy: (
        dy + jnp.einsum("ntc,nc->ntc", dy, g),
        jnp.einsum("ntc,ntc->nc", x, dy),
        jnp.einsum("ntc->nc", dy),
    ),
)
op.wrong("1 + forgotten", "x", ("missing_term",), lambda x, g, b, dy: dy * g[:, None])
op.wrong("modulated twice", "x", ("extra_term",), lambda x, g, b, dy: dy * (1 + g[:, None]) ** 2)
op.wrong("not summed", "g", ("unbroadcast", "shape"), lambda x, g, b, dy: dy * x)
op.wrong("summed over the batch", "g", ("wrong_axis",), lambda x, g, b, dy: (dy * x).sum(0), square)
op.wrong("summed over the channels", "g", ("wrong_axis",), lambda x, g, b, dy: (dy * x).sum(2), square)
op.wrong("y for x", "g", ("wrong_residual",), lambda x, g, b, dy: (dy * film(x, g, b)).sum(1))
op.wrong("mean over time", "b", ("scale",), lambda x, g, b, dy: dy.mean(1))
op.wrong(
    "first step", "b", ("unbroadcast", "ignores_cotangent", "missing_term"), lambda x, g, b, dy: dy[:, 0]
)
op.wrong(
    "summed over the batch too",
    "b",
    ("wrong_axis", "extra_term"),
    lambda x, g, b, dy: jnp.broadcast_to(dy.sum((0, 1)), b.shape),
)

# --- scaling of rows, and of everything ---------------------------------------------------------------------


def rescale(x, s, a):
    """y = a s x, s a column, a a scalar."""
    return a * s * x


def rescale_back(x, s, a, dy):
    """dx = a s dy, ds = a Σ_row dy x, da = Σ dy s x."""
    return a * s * dy, a * (dy * x).sum(1, keepdims=True), (dy * s * x).sum()


square = normal((5, 5), (5, 1), ())
op = Operation("broadcast scaling", rescale, rescale_back, normal((5, 7), (5, 1), ()))
op.wrong("column forgotten", "x", ("missing_term",), lambda x, s, a, dy: a * dy)
op.wrong("axis dropped", "s", ("shape", "unbroadcast"), lambda x, s, a, dy: a * (dy * x).sum(1))
op.wrong(
    "summed over the batch", "s", ("wrong_axis",), lambda x, s, a, dy: a * (dy * x).sum(0)[:, None], square
)
op.wrong(
    "scalar forgotten", "s", ("scale", "missing_term"), lambda x, s, a, dy: (dy * x).sum(1, keepdims=True)
)
op.wrong("mean for sum", "a", ("scale",), lambda x, s, a, dy: (dy * s * x).mean())
op.wrong("summed by rows only", "a", ("unbroadcast", "shape"), lambda x, s, a, dy: (dy * s * x).sum(1))
op.wrong("x forgotten", "a", ("missing_term",), lambda x, s, a, dy: (dy * s).sum())

# --- residual block -----------------------------------------------------------------------------------------


def residual(x, u, w):
    """y = x + relu(x u) w."""
    return x + relu(x @ u) @ w


def residual_back(x, u, w, dy):
    """da = dy wᵀ where x u > 0; dx = dy + da uᵀ, du = xᵀ da, dw = relu(x u)ᵀ dy."""
    da = jnp.where(x @ u > 0, dy @ w.T, 0)
    return dy + da @ u.T, x.T @ da, relu(x @ u).T @ dy


op = Operation("residual block", residual, residual_back, normal((5, 3), (3, 7), (7, 3)))
op.wrong(
    "skip forgotten",
    "x",
    ("missing_term",),
    lambda x, u, w, dy: jnp.where(x @ u > 0, dy @ w.T, 0) @ u.T,
)
op.wrong("branch forgotten", "x", ("missing_term",), lambda x, u, w, dy: dy)
op.wrong("skip counted twice", "x", ("extra_term",), lambda x, u, w, dy: residual_back(x, u, w, dy)[0] + dy)
op.wrong("relu' forgotten", "u", ("missing_term", "mask"), lambda x, u, w, dy: x.T @ (dy @ w.T))
op.wrong(
    "y for x",
    "u",
    ("wrong_residual",),
    lambda x, u, w, dy: residual(x, u, w).T @ jnp.where(x @ u > 0, dy @ w.T, 0),
)
op.wrong(
    "relu forgotten", "w", ("wrong_residual", "mask", "missing_term"), lambda x, u, w, dy: (x @ u).T @ dy
)
op.wrong(
    "transposed",
    "w",
    ("transpose", "swapped"),
    lambda x, u, w, dy: dy.T @ relu(x @ u),
    normal((7, 5), (5, 5), (5, 5)),
)

# --- graph convolution --------------------------------------------------------------------------------------


def graph(a, x, w):
    """y = relu(a x w)."""
    return relu(a @ x @ w)


def graph_back(a, x, w, dy):
    """d = dy where a x w > 0; da = d (x w)ᵀ, dx = aᵀ d wᵀ, dw = (a x)ᵀ d."""
    d = jnp.where(a @ x @ w > 0, dy, 0)
    return d @ (x @ w).T, a.T @ d @ w.T, (a @ x).T @ d


def graph_d(a, x, w, dy):
    return jnp.where(a @ x @ w > 0, dy, 0)


op = Operation("graph convolution", graph, graph_back, normal((5, 5), (5, 3), (3, 7)))
op.wrong("a taken for symmetric", "x", ("transpose",), lambda a, x, w, dy: a @ graph_d(a, x, w, dy) @ w.T)
op.wrong("a forgotten", "x", ("missing_term",), lambda a, x, w, dy: graph_d(a, x, w, dy) @ w.T)
op.wrong(
    "a forgotten", "w", ("missing_term", "wrong_residual"), lambda a, x, w, dy: x.T @ graph_d(a, x, w, dy)
)
op.wrong("a taken for symmetric", "w", ("transpose",), lambda a, x, w, dy: (a.T @ x).T @ graph_d(a, x, w, dy))
op.wrong("relu' forgotten", "w", ("missing_term", "mask"), lambda a, x, w, dy: (a @ x).T @ dy)
op.wrong("transposed", "a", ("transpose", "swapped"), lambda a, x, w, dy: x @ w @ graph_d(a, x, w, dy).T)

# --- depthwise convolution ----------------------------------------------------------------------------------


def depthwise(x, w):
    """y_cl = Σ_k w_ck x_c,l+k."""
    n = x.shape[-1] - 2
    return sum(w[:, k, None] * x[:, :, k : k + n] for k in range(3))


def depthwise_back(x, w, dy):
    """dx_cl = Σ_k w_ck dy_c,l-k, dw_ck = Σ x_c,l+k dy_cl."""
    n = dy.shape[-1]
    dw = jnp.stack([(x[:, :, k : k + n] * dy).sum((0, 2)) for k in range(3)], 1)
    return sum(w[:, k, None] * pad1(dy, k, 2 - k) for k in range(3)), dw


def depthwise_dw(x, dy):
    """Products of x and dy by tap, not summed."""
    n = dy.shape[-1]
    return jnp.stack([x[:, :, k : k + n] * dy for k in range(3)], -1)


op = Operation("depthwise convolution", depthwise, depthwise_back, normal((2, 5, 11), (5, 3)))
op.wrong(
    "kernel not flipped",
    "x",
    ("flip",),
    lambda x, w, dy: sum(w[:, k, None] * pad1(dy, 2 - k, k) for k in range(3)),
)
op.wrong(
    "a step late",
    "x",
    ("shift",),
    lambda x, w, dy: sum(w[:, k, None] * pad1(dy, k + 1, 2 - k)[:, :, :-1] for k in range(3)),
)
op.wrong(
    "border without gradient",
    "x",
    ("border", "mask"),
    lambda x, w, dy: pad1(depthwise_back(x, w, dy)[0][:, :, 2:-2], 2, 2),
)
op.wrong("flipped", "w", ("flip",), lambda x, w, dy: depthwise_back(x, w, dy)[1][:, ::-1])
op.wrong(
    "not summed over the batch",
    "w",
    ("missing_batch_sum", "unbroadcast", "shape"),
    lambda x, w, dy: depthwise_dw(x, dy).sum(2),
)
op.wrong(
    "summed over the channels",
    "w",
    ("wrong_axis", "extra_term"),
    lambda x, w, dy: jnp.broadcast_to(depthwise_dw(x, dy).sum((0, 1, 2)), w.shape),
)
op.wrong("mean over the length", "w", ("scale",), lambda x, w, dy: depthwise_dw(x, dy).mean(2).sum(0))

# --- transposed convolution, stride 2 -----------------------------------------------------------------------


def transposed(x, w):
    """y_2l+k = Σ x_l w_k."""
    n = x.shape[1]
    y = jnp.zeros((len(x), 2 * n + 1), x.dtype)
    for k in range(3):
        y = y.at[:, k : k + 2 * n - 1 : 2].add(x * w[k])
    return y


def transposed_back(x, w, dy):
    """dx_l = Σ_k dy_2l+k w_k, dw_k = Σ x_l dy_2l+k."""
    taps = [dy[:, k : k + 2 * x.shape[1] - 1 : 2] for k in range(3)]
    return sum(tap * w[k] for k, tap in enumerate(taps)), jnp.stack([(x * tap).sum() for tap in taps])


def transposed_taps(x, dy):
    """dy_2l+k by k, before and after."""
    return jnp.stack([dy[:, k : k + 2 * x.shape[1] - 1 : 2] for k in range(3)])


op = Operation("transposed convolution", transposed, transposed_back, normal((3, 5), (3,)))
op.right(
    "tensordot",
    lambda x, w, dy: (jnp.tensordot(w, transposed_taps(x, dy), 1), jnp.tensordot(transposed_taps(x, dy), x)),
)
op.wrong(
    "kernel flipped",
    "x",
    ("flip",),
    lambda x, w, dy: jnp.tensordot(w[::-1], transposed_taps(x, dy), 1),
)
op.wrong(
    "a step late",
    "x",
    ("shift",),
    lambda x, w, dy: jnp.tensordot(w, transposed_taps(x, pad1(dy, 1, 0)), 1),
)
op.wrong(
    "last tap forgotten",
    "x",
    ("missing_term", "ignores_cotangent"),
    lambda x, w, dy: jnp.tensordot(w[:2], transposed_taps(x, dy)[:2], 1),
)
op.wrong("kernel flipped", "w", ("flip",), lambda x, w, dy: transposed_back(x, w, dy)[1][::-1])
op.wrong(
    "not summed over the batch",
    "w",
    ("missing_batch_sum", "unbroadcast", "shape"),
    lambda x, w, dy: (x * transposed_taps(x, dy)).sum(2).T,
)
op.wrong(
    "first and last position forgotten",
    "w",
    ("border", "missing_term", "ignores_cotangent"),
    lambda x, w, dy: (x * transposed_taps(x, dy))[:, :, 1:-1].sum((1, 2)),
)

# --- unfold -------------------------------------------------------------------------------------------------


def unfold(x):
    """y_lk = x_l+k, three taps."""
    n = x.shape[-1] - 2
    return jnp.stack([x[:, k : k + n] for k in range(3)], -1)


def unfold_back(x, dy):
    """dx_l = Σ_k dy_l-k,k."""
    return sum(pad1(dy[..., k], k, 2 - k) for k in range(3))


def unfold_set(x, dy):
    dx = jnp.zeros_like(x)
    for k in range(3):
        dx = dx.at[:, k : k + dy.shape[1]].set(dy[..., k])
    return dx


op = Operation("unfold", unfold, unfold_back, normal((3, 7)))
op.wrong("overwritten", "x", ("missing_term", "ignores_cotangent"), unfold_set)
op.wrong(
    "averaged over the windows",
    "x",
    ("scale", "extra_term"),
    lambda x, dy: unfold_back(x, dy) / np.array([1, 2, 3, 3, 3, 2, 1], np.float32),
)
op.wrong("taps in reverse", "x", ("flip",), lambda x, dy: unfold_back(x, dy[..., ::-1]))
op.wrong(
    "divided by the taps",
    "x",
    ("scale", "extra_term"),
    lambda x, dy: unfold_back(x, dy) / 3,
)
op.wrong("a step early", "x", ("shift",), lambda x, dy: pad1(unfold_back(x, dy)[:, 1:], 0, 1))

# --- differences --------------------------------------------------------------------------------------------


def differences(x):
    """y_t = x_t+1 - x_t."""
    return x[:, 1:] - x[:, :-1]


def differences_back(x, dy):
    """dx_t = dy_t-1 - dy_t, zeros outside."""
    return pad1(dy, 1, 0) - pad1(dy, 0, 1)


op = Operation("differences", differences, differences_back, normal((3, 7)))
op.right("scattered", lambda x, dy: jnp.zeros_like(x).at[:, 1:].add(dy).at[:, :-1].add(-dy))
op.wrong("sign", "x", ("sign", "swapped"), lambda x, dy: pad1(dy, 0, 1) - pad1(dy, 1, 0))
op.wrong("first term forgotten", "x", ("missing_term",), lambda x, dy: -pad1(dy, 0, 1))
op.wrong("ends without gradient", "x", ("border", "mask"), lambda x, dy: pad1(dy[:, :-1] - dy[:, 1:], 1, 1))
op.wrong("wraps around", "x", ("border",), lambda x, dy: -jnp.diff(pad1(dy, 1, 1, "wrap"), axis=1))
op.wrong("plus", "x", ("sign",), lambda x, dy: pad1(dy, 1, 0) + pad1(dy, 0, 1))

# --- upsampling ---------------------------------------------------------------------------------------------


def upsample(x):
    """Every value twice."""
    return jnp.repeat(x, 2, 1)


def upsample_back(x, dy):
    """dx = sums of pairs."""
    return dy[:, ::2] + dy[:, 1::2]


op = Operation("upsampling", upsample, upsample_back, normal((3, 5)))
op.wrong("means of pairs", "x", ("scale",), lambda x, dy: dy.reshape(3, 5, 2).mean(2))
op.wrong(
    "first of every pair",
    "x",
    ("missing_term", "unbroadcast", "ignores_cotangent"),
    lambda x, dy: dy[:, ::2],
)
op.wrong("pairs across", "x", ("shift",), lambda x, dy: dy[:, 1::2] + pad1(dy[:, 2::2], 0, 1))
op.wrong("first half and second", "x", ("wrong_axis",), lambda x, dy: dy[:, :5] + dy[:, 5:])

# --- pairwise squared distances -----------------------------------------------------------------------------


def distances(x, z):
    """y_ij = |x_i - z_j|²."""
    return ((x[:, None] - z[None]) ** 2).sum(-1)


def distances_back(x, z, dy):
    """dx_i = 2 Σ_j dy_ij (x_i - z_j), dz_j = 2 Σ_i dy_ij (z_j - x_i)."""
    return 2 * (dy.sum(1)[:, None] * x - dy @ z), 2 * (dy.sum(0)[:, None] * z - dy.T @ x)


square = normal((5, 3), (5, 3))
op = Operation("pairwise distances", distances, distances_back, normal((5, 3), (7, 3)))
op.right(
    "differences summed",
    lambda x, z, dy: (
        (2 * dy[..., None] * (x[:, None] - z)).sum(1),
        (2 * dy[..., None] * (z - x[:, None])).sum(0),
    ),
)
op.wrong("2 forgotten", "x", ("scale", "missing_term"), lambda x, z, dy: dy.sum(1)[:, None] * x - dy @ z)
op.wrong("own term forgotten", "x", ("missing_term",), lambda x, z, dy: -2 * dy @ z)
op.wrong(
    "summed over the other points",
    "x",
    ("wrong_axis",),
    lambda x, z, dy: 2 * (dy.sum(0)[:, None] * x - dy @ z),
    square,
)
op.wrong("x - z", "z", ("sign", "swapped"), lambda x, z, dy: 2 * (dy.T @ x - dy.sum(0)[:, None] * z))
op.wrong(
    "dy not transposed",
    "z",
    ("transpose",),
    lambda x, z, dy: 2 * (dy.sum(0)[:, None] * z - dy @ x),
    square,
)
op.wrong("x's gradient", "z", ("swapped",), lambda x, z, dy: distances_back(x, z, dy)[0], square)
op.wrong("not weighted", "z", ("ignores_cotangent",), lambda x, z, dy: 2 * (len(x) * z - x.sum(0)))

# --- rotary positions ---------------------------------------------------------------------------------------

ANGLES = np.outer(np.arange(7), [1.0, 0.25, 0.0625]).astype(np.float32)
COS, SIN = np.cos(ANGLES), np.sin(ANGLES)


def rotate(x, c, s):
    """Halves [a c - b s, a s + b c]."""
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([a * c - b * s, a * s + b * c], -1)


def rope(x):
    """y = x rotated by its position's angles."""
    return rotate(x, COS, SIN)


def rope_back(x, dy):
    """dx = dy rotated back."""
    return rotate(dy, COS, -SIN)


op = Operation("rotary positions", rope, rope_back, normal((7, 6)))
op.right(
    "half turned",
    lambda x, dy: (
        dy * np.concatenate([COS, COS], 1)
        + jnp.concatenate([dy[:, 3:], -dy[:, :3]], 1) * np.concatenate([SIN, SIN], 1)
    ),
)
op.wrong("rotated forward again", "x", ("sign", "transpose"), lambda x, dy: rotate(dy, COS, SIN))
op.wrong("sine forgotten", "x", ("missing_term",), lambda x, dy: dy * np.concatenate([COS, COS], 1))
op.wrong(
    "positions from one",
    "x",
    ("shift", "wrong_residual"),
    lambda x, dy: rotate(dy, np.cos(ANGLES + ANGLES[1]), -np.sin(ANGLES + ANGLES[1])),
)
op.wrong("sine and cosine exchanged", "x", ("swapped", "wrong_residual"), lambda x, dy: rotate(dy, SIN, -COS))
op.wrong("dy passed on", "x", ("missing_term",), lambda x, dy: dy)
op.wrong("halves exchanged", "x", ("swapped",), lambda x, dy: jnp.roll(rope_back(x, dy), 3, 1))

# --- Toeplitz product ---------------------------------------------------------------------------------------

OFFSETS = np.arange(5)[:, None] - np.arange(5) + 4


def toeplitz(t, x):
    """y_i = Σ_j t_i-j x_j, t from offset -4 to 4."""
    return t[OFFSETS] @ x


def toeplitz_back(t, x, dy):
    """dt_k = Σ_i-j=k dy_i x_j, dx = Tᵀ dy."""
    return jnp.zeros_like(t).at[OFFSETS].add(jnp.outer(dy, x)), t[OFFSETS].T @ dy


op = Operation("Toeplitz product", toeplitz, toeplitz_back, normal((9,), (5,)))
op.right("convolved", lambda t, x, dy: (jnp.convolve(dy, x[::-1]), jnp.convolve(dy, t[::-1])[4:9]))
op.wrong("T not transposed", "x", ("transpose", "flip"), lambda t, x, dy: t[OFFSETS] @ dy)
op.wrong(
    "x and dy exchanged", "t", ("flip", "swapped", "transpose"), lambda t, x, dy: jnp.convolve(x, dy[::-1])
)
op.wrong("not reversed", "t", ("flip",), lambda t, x, dy: jnp.convolve(dy, x))
op.wrong(
    "diagonals' means",
    "t",
    ("scale", "extra_term"),
    lambda t, x, dy: toeplitz_back(t, x, dy)[0] / np.array([1, 2, 3, 4, 5, 4, 3, 2, 1], np.float32),
)
op.wrong("offset by one", "t", ("shift",), lambda t, x, dy: jnp.roll(toeplitz_back(t, x, dy)[0], 1))
op.wrong(
    "diagonals overwritten",
    "t",
    ("missing_term", "ignores_cotangent", "missing_batch_sum"),
    lambda t, x, dy: jnp.concatenate([dy[0] * x[:0:-1], dy * x[0]]),
)

# --- polynomial ---------------------------------------------------------------------------------------------


def polynomial(x, c):
    """y = c_0 + c_1 x + c_2 x² + c_3 x³."""
    return c[0] + c[1] * x + c[2] * x**2 + c[3] * x**3


def powers(x):
    return jnp.stack([jnp.ones_like(x), x, x**2, x**3])


def polynomial_back(x, c, dy):
    """dx = (c_1 + 2 c_2 x + 3 c_3 x²) dy, dc_k = Σ dy xᵏ."""
    return (c[1] + 2 * c[2] * x + 3 * c[3] * x**2) * dy, powers(x) @ dy


op = Operation("polynomial", polynomial, polynomial_back, normal((7,), (4,)))
op.right(
    "Horner",
    lambda x, c, dy: (dy * (c[1] + x * (2 * c[2] + x * 3 * c[3])), (powers(x) * dy).sum(1)),
)
op.wrong(
    "exponents forgotten",
    "x",
    ("missing_term", "scale"),
    lambda x, c, dy: (c[1] + c[2] * x + c[3] * x**2) * dy,
)
op.wrong(
    "powers not lowered",
    "x",
    ("extra_term",),
    lambda x, c, dy: (c[1] * x + 2 * c[2] * x**2 + 3 * c[3] * x**3) * dy,
)
op.wrong(
    "coefficients off by one",
    "x",
    ("shift", "wrong_residual"),
    lambda x, c, dy: (c[0] + 2 * c[1] * x + 3 * c[2] * x**2) * dy,
)
op.wrong("highest power first", "c", ("flip",), lambda x, c, dy: (powers(x) @ dy)[::-1])
op.wrong("powers one too high", "c", ("shift", "extra_term"), lambda x, c, dy: (powers(x) * x) @ dy)
op.wrong("mean over the points", "c", ("scale",), lambda x, c, dy: (powers(x) * dy).mean(1))
op.wrong("dy forgotten", "c", ("ignores_cotangent",), lambda x, c, dy: powers(x).sum(1))

# --- quadratic form -----------------------------------------------------------------------------------------


def quadratic(x, a):
    """y = xᵀ a x for every row."""
    return ((x @ a) * x).sum(1)


def quadratic_back(x, a, dy):
    """dx = dy (a + aᵀ) x, da = Σ dy x xᵀ."""
    return dy[:, None] * (x @ (a + a.T)), (dy[:, None] * x).T @ x


op = Operation("quadratic form", quadratic, quadratic_back, normal((5, 3), (3, 3)))
op.wrong("2 a x", "x", ("transpose", "wrong_residual"), lambda x, a, dy: 2 * dy[:, None] * (x @ a.T))
op.wrong("one term", "x", ("missing_term",), lambda x, a, dy: dy[:, None] * (x @ a))
op.wrong("aᵀ subtracted", "x", ("sign",), lambda x, a, dy: dy[:, None] * (x @ (a - a.T)))
op.wrong("2 x xᵀ", "a", ("scale", "extra_term"), lambda x, a, dy: 2 * (dy[:, None] * x).T @ x)
op.wrong(
    "first row only",
    "a",
    ("missing_batch_sum", "ignores_cotangent"),
    lambda x, a, dy: dy[0] * jnp.outer(x[0], x[0]),
)
op.wrong("not weighted by dy", "a", ("ignores_cotangent",), lambda x, a, dy: x.T @ x)
op.wrong(
    "diagonal only",
    "a",
    ("missing_term", "mask"),
    lambda x, a, dy: jnp.diag((dy[:, None] * x**2).sum(0)),
)

# --- inverse ------------------------------------------------------------------------------------------------


def inverse(a):
    """y = a⁻¹."""
    return jnp.linalg.inv(a)


def inverse_back(a, dy):
    """da = -yᵀ dy yᵀ."""
    y = jnp.linalg.inv(a)
    return -y.T @ dy @ y.T


op = Operation("inverse", inverse, inverse_back, invertible(5))
op.right("solved twice", lambda a, dy: -jnp.linalg.solve(a.T, jnp.linalg.solve(a, dy.T).T))
op.wrong("minus forgotten", "a", ("sign",), lambda a, dy: -inverse_back(a, dy))
op.wrong("transposes forgotten", "a", ("transpose",), lambda a, dy: -inverse(a) @ dy @ inverse(a))
op.wrong("one transpose forgotten", "a", ("transpose",), lambda a, dy: -inverse(a).T @ dy @ inverse(a))
op.wrong("dy transposed", "a", ("transpose",), lambda a, dy: -inverse(a).T @ dy.T @ inverse(a).T)
op.wrong("a for its inverse", "a", ("wrong_residual",), lambda a, dy: -a.T @ dy @ a.T)
op.wrong("right factor forgotten", "a", ("missing_term",), lambda a, dy: -inverse(a).T @ dy)
op.wrong("as if they commuted", "a", ("swapped",), lambda a, dy: -inverse(a).T @ inverse(a).T @ dy)

# --- linear system ------------------------------------------------------------------------------------------


def solve(a, b):
    """y = a⁻¹ b."""
    return jnp.linalg.solve(a, b)


def solve_back(a, b, dy):
    """db = a⁻ᵀ dy, da = -db yᵀ."""
    db = jnp.linalg.solve(a.T, dy)
    return -db @ jnp.linalg.solve(a, b).T, db


op = Operation("linear system", solve, solve_back, invertible(5, (5, 3)))
op.wrong("a not transposed", "b", ("transpose",), lambda a, b, dy: solve(a, dy))
op.wrong("multiplied, not solved", "b", ("wrong_residual",), lambda a, b, dy: a.T @ dy)
op.wrong("minus forgotten", "a", ("sign",), lambda a, b, dy: solve(a.T, dy) @ solve(a, b).T)
op.wrong("b for y", "a", ("wrong_residual", "missing_term"), lambda a, b, dy: -solve(a.T, dy) @ b.T)
op.wrong("dy for db", "a", ("missing_term", "wrong_residual"), lambda a, b, dy: -dy @ solve(a, b).T)
op.wrong("y dbᵀ", "a", ("transpose", "swapped"), lambda a, b, dy: -solve(a, b) @ solve(a.T, dy).T)

# --- log-determinant ----------------------------------------------------------------------------------------


def logdet(a):
    """y = log |det a|."""
    return jnp.linalg.slogdet(a)[1]


def logdet_back(a, dy):
    """da = dy a⁻ᵀ."""
    return dy * jnp.linalg.inv(a).T


op = Operation("log-determinant", logdet, logdet_back, invertible(5))
op.wrong("not transposed", "a", ("transpose",), lambda a, dy: dy * jnp.linalg.inv(a))
op.wrong(
    "determinant's", "a", ("extra_term", "scale"), lambda a, dy: dy * jnp.linalg.det(a) * jnp.linalg.inv(a).T
)
op.wrong("dy forgotten", "a", ("ignores_cotangent",), lambda a, dy: jnp.linalg.inv(a).T)
op.wrong("a for its inverse", "a", ("wrong_residual",), lambda a, dy: dy * a.T)
op.wrong(
    "diagonal only", "a", ("missing_term", "mask"), lambda a, dy: dy * jnp.diag(jnp.diag(jnp.linalg.inv(a)))
)

# --- masked mean over time ----------------------------------------------------------------------------------

VALID = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 0]], np.float32)
LAST = np.eye(5, dtype=np.float32)[[2, 3, 1]]


def masked_mean(x):
    """y = Σ_t m x / Σ_t m."""
    return (x * VALID[:, :, None]).sum(1) / VALID.sum(1)[:, None]


def masked_mean_back(x, dy):
    """dx = m dy / Σ_t m."""
    return VALID[:, :, None] * (dy / VALID.sum(1)[:, None])[:, None]


def steps(dy):
    """dy, repeated for every step."""
    return jnp.repeat(dy[:, None], 5, 1)


op = Operation("masked mean", masked_mean, masked_mean_back, normal((3, 5, 2)))
op.right("where", lambda x, dy: jnp.where(VALID[:, :, None] > 0, steps(dy / VALID.sum(1)[:, None]), 0))
op.wrong("mask forgotten", "x", ("mask",), lambda x, dy: steps(dy / VALID.sum(1)[:, None]))
op.wrong(
    "divided by all steps",
    "x",
    ("scale", "wrong_residual"),
    lambda x, dy: VALID[:, :, None] * dy[:, None] / 5,
)
op.wrong("plain mean's", "x", ("mask", "wrong_residual"), lambda x, dy: steps(dy) / 5)
op.wrong("not divided", "x", ("missing_term", "scale"), lambda x, dy: VALID[:, :, None] * dy[:, None])
op.wrong(
    "mask inverted",
    "x",
    ("mask",),
    lambda x, dy: (1 - VALID[:, :, None]) * dy[:, None] / VALID.sum(1)[:, None, None],
)
op.wrong(
    "last valid step only",
    "x",
    ("missing_term", "mask"),
    lambda x, dy: masked_mean_back(x, dy) * LAST[:, :, None],
)

# --- weighted mean ------------------------------------------------------------------------------------------


def weighted_mean(x, w):
    """y = Σ_t w x / Σ_t w."""
    return (w[:, None] * x).sum(0) / w.sum()


def weighted_mean_back(x, w, dy):
    """dx = w dy / Σ w, dw = dy · (x - y) / Σ w."""
    return w[:, None] * dy / w.sum(), (x - weighted_mean(x, w)) @ dy / w.sum()


op = Operation("weighted mean", weighted_mean, weighted_mean_back, positive((7, 3), (7,)))
op.wrong("sum of weights forgotten", "x", ("scale", "missing_term"), lambda x, w, dy: w[:, None] * dy)
op.wrong(
    "weights forgotten", "x", ("missing_term",), lambda x, w, dy: jnp.broadcast_to(dy / w.sum(), x.shape)
)
op.wrong("mean of dy", "x", ("scale",), lambda x, w, dy: w[:, None] * dy / len(w))
op.wrong(
    "sum of weights held constant",
    "w",
    ("missing_term", "statistics_constant"),
    lambda x, w, dy: x @ dy / w.sum(),
)
op.wrong("y added", "w", ("sign",), lambda x, w, dy: (x + weighted_mean(x, w)) @ dy / w.sum())
op.wrong(
    "unweighted mean for y",
    "w",
    ("wrong_residual",),
    lambda x, w, dy: (x - x.mean(0)) @ dy / w.sum(),
)

# --- scatter add --------------------------------------------------------------------------------------------

PLACES = np.array([3, 0, 3, 5, 1])


def scatter(x):
    """y_places += x."""
    return jnp.zeros((7, x.shape[1]), x.dtype).at[PLACES].add(x)


def scatter_back(x, dy):
    """dx = dy_places."""
    return dy[PLACES]


op = Operation("scatter add", scatter, scatter_back, normal((5, 3)))
op.right("onehot", lambda x, dy: onehot(PLACES, 7) @ dy)
op.wrong("places off by one", "x", ("shift",), lambda x, dy: dy[PLACES + 1])
op.wrong(
    "divided by the count",
    "x",
    ("scale", "extra_term"),
    lambda x, dy: dy[PLACES] / np.array([2, 1, 2, 1, 1], np.float32)[:, None],
)
op.wrong("rows in order", "x", ("missing_term", "wrong_residual", "ignores_cotangent"), lambda x, dy: dy[:5])
op.wrong(
    "overwritten places without gradient",
    "x",
    ("mask", "missing_term"),
    lambda x, dy: dy[PLACES].at[0].set(0.0),
)

# --- clip ---------------------------------------------------------------------------------------------------


def clip(x):
    """y = x between -1/2 and 1/2."""
    return jnp.clip(x, -0.5, 0.5)


def clip_back(x, dy):
    """dx = dy where |x| < 1/2."""
    return jnp.where(jnp.abs(x) < 0.5, dy, 0)


op = Operation("clip", clip, clip_back, normal((5, 7)))
op.right("from y", lambda x, dy: dy * (clip(x) == x))
op.wrong("dy passed on", "x", ("mask", "missing_term"), lambda x, dy: dy)
op.wrong("upper bound only", "x", ("mask", "missing_term"), lambda x, dy: jnp.where(x < 0.5, dy, 0))
op.wrong("inverted", "x", ("mask",), lambda x, dy: jnp.where(jnp.abs(x) > 0.5, dy, 0))
op.wrong(
    "dy clipped",
    "x",
    ("nonlinear_in_cotangent", "mask", "wrong_residual"),
    lambda x, dy: jnp.clip(dy, -0.5, 0.5),
)
op.wrong(
    "mask from dy",
    "x",
    ("nonlinear_in_cotangent", "mask", "wrong_residual"),
    lambda x, dy: jnp.where(jnp.abs(dy) < 0.5, dy, 0),
)

# --- top-1 gating -------------------------------------------------------------------------------------------


def top(z):
    """The row's largest as onehot."""
    return (jnp.argmax(z, 1)[:, None] == jnp.arange(z.shape[1])).astype(z.dtype)


def gate(z, e):
    """y = p_i e_i for the likeliest i, p = softmax z, e of rows, experts, features."""
    return jnp.einsum("ni,nif->nf", top(z) * soft(z), e)


def gate_back(z, e, dy):
    """dz = p_i (onehot_i - p) e_i · dy, de = onehot_i p_i dy."""
    chosen = top(z) * soft(z)
    gain = jnp.einsum("ni,nif,nf->n", chosen, e, dy)[:, None]
    return gain * (top(z) - soft(z)), chosen[:, :, None] * dy[:, None]


def gate_all(z, e, dy):
    return scores_back(soft(z), jnp.einsum("nif,nf->ni", e, dy))


op = Operation("top-1 gating", gate, gate_back, normal((5, 3), (5, 3, 2)))
op.right(
    "softmax's of the masked",
    lambda z, e, dy: (
        scores_back(soft(z), top(z) * jnp.einsum("nif,nf->ni", e, dy)),
        jnp.einsum("ni,nf->nif", top(z) * soft(z), dy),
    ),
)
op.wrong("gate taken for hard", "z", ("zero",), lambda z, e, dy: jnp.zeros_like(z))
op.wrong(
    "winner's logit only", "z", ("missing_term", "mask"), lambda z, e, dy: top(z) * gate_back(z, e, dy)[0]
)
op.wrong("soft mixture's", "z", ("mask", "extra_term"), gate_all)
op.wrong("p forgotten", "e", ("missing_term",), lambda z, e, dy: top(z)[:, :, None] * dy[:, None])
op.wrong("all experts", "e", ("mask", "extra_term"), lambda z, e, dy: soft(z)[:, :, None] * dy[:, None])
op.wrong("losers", "e", ("mask",), lambda z, e, dy: ((1 - top(z)) * soft(z))[:, :, None] * dy[:, None])
