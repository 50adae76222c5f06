"""Mistakes that people really make with blocks, groups, scatters, reshapes and keepdims, by their names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnet as fn
from tests.budget import few


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).standard_normal(shape), jnp.float32)


def soft(x, axis=-1):
    return jax.nn.softmax(x, axis)


def soft_back(p, dp, axis=-1):
    return p * (dp - (p * dp).sum(axis, keepdims=True))


NAMED = {}  # name: kinds, forward, backward, args


def case(name, *kinds):
    def add(make):
        NAMED[name] = (kinds, *make())

    return add


# ---- blocks of a fused argument ---------------------------------------------------------------------------


def attended(x, w):
    """One head; queries, keys and values by one matrix."""
    q, k, v = jnp.split(x @ w, 3, -1)
    return soft(q @ k.T) @ v


def attended_back(x, w, dy, order=(0, 1, 2)):
    q, k, v = jnp.split(x @ w, 3, -1)
    p = soft(q @ k.T)
    ds = soft_back(p, dy @ v.T)
    parts = (ds @ k, ds.T @ q, p.T @ dy)
    d = jnp.concatenate([parts[i] for i in order], -1)
    return d @ w.T, x.T @ d


@case("attention, gradient in the order k, q, v", "swapped")
def _():
    return attended, lambda x, w, dy: attended_back(x, w, dy, (1, 0, 2)), (normal(5, 7), normal(7, 9))


@case("attention, gradient in the order v, q, k", "swapped")
def _():
    return attended, lambda x, w, dy: attended_back(x, w, dy, (2, 0, 1)), (normal(5, 7), normal(7, 9))


def gated(x, w):
    a, b, c = jnp.split(x @ w, 3, -1)
    return jnp.tanh(a) * b + jnp.sin(c)


@case("gates taken in another order", "swapped")
def _():
    def back(x, w, dy):
        b, a, c = jnp.split(x @ w, 3, -1)
        d = jnp.concatenate([dy * b * (1 - jnp.tanh(a) ** 2), dy * jnp.tanh(a), dy * jnp.cos(c)], -1)
        return d @ w.T, x.T @ d

    return gated, back, (normal(5, 4), normal(4, 9))


@case("gates sliced in another order", "swapped")
def _():
    def back(x, w, dy):
        z = x @ w
        a, c, b = z[:, :3], z[:, 3:6], z[:, 6:]
        t = jnp.tanh(a)
        d = jnp.concatenate([dy * b * (1 - t * t), dy * t, dy * jnp.cos(c)], -1)
        return d @ w.T, x.T @ d

    return gated, back, (normal(5, 4), normal(4, 9))


@case("halves of a gated unit exchanged in the gradient of its input", "swapped")
def _():
    def glu(x):
        a, b = jnp.split(x, 2, -1)
        return a * jax.nn.sigmoid(b)

    def back(x, dy):
        a, b = jnp.split(x, 2, -1)
        s = jax.nn.sigmoid(b)
        return jnp.concatenate([dy * a * s * (1 - s), dy * s], -1)

    return glu, back, (normal(5, 6),)


@case("parameters of a distribution stacked in another order", "swapped")
def _():
    def score(p, x):
        return (x - p[0]) ** 2 * jnp.exp(-p[1]) + p[1] * p[2]

    def back(p, x, dy):
        e = (x - p[0]) * jnp.exp(-p[1])
        parts = (-2 * e * dy, (p[2] - (x - p[0]) * e) * dy, p[1] * dy)
        return jnp.stack([parts[0], parts[2], parts[1]]), None

    return score, back, (normal(3, 5), normal(5))


@case("a product with the blocks of a matrix exchanged", "swapped")
def _():
    def forward(x, w):
        z = x @ w
        return jnp.tanh(z[:, :4]) * z[:, 4:]

    def back(x, w, dy):
        z = x @ w
        t = jnp.tanh(z[:, :4])
        d = jnp.concatenate([dy * (1 - t * t) * z[:, 4:], dy * t], 1)
        return d @ jnp.roll(w, 4, 1).T, x.T @ d

    return forward, back, (normal(5, 3), normal(3, 8))


# ---- one of a group ---------------------------------------------------------------------------------------


def grouped(q, k, v):
    """Four heads of queries, two of keys and values."""
    k, v = jnp.repeat(k, 2, 1), jnp.repeat(v, 2, 1)
    p = soft(jnp.einsum("qhe,khe->hqk", q, k))
    return jnp.einsum("hqk,khe->qhe", p, v)


def grouped_back(q, k, v, dy, pick):
    wide, deep = jnp.repeat(k, 2, 1), jnp.repeat(v, 2, 1)
    p = soft(jnp.einsum("qhe,khe->hqk", q, wide))
    ds = soft_back(p, jnp.einsum("qhe,khe->hqk", dy, deep))
    dq = jnp.einsum("hqk,khe->qhe", ds, wide)
    return dq, pick(jnp.einsum("hqk,qhe->khe", ds, q)), pick(jnp.einsum("hqk,qhe->khe", p, dy))


HEADS = (normal(3, 4, 2), normal(3, 2, 2, seed=1), normal(3, 2, 2, seed=2))


@case("grouped queries, every second head", "missing_term")
def _():
    return grouped, lambda q, k, v, dy: grouped_back(q, k, v, dy, lambda d: d[:, ::2]), HEADS


@case("grouped queries, the first head of each group", "missing_term")
def _():
    pick = lambda d: d.reshape(3, 2, 2, 2)[:, :, 0]
    return grouped, lambda q, k, v, dy: grouped_back(q, k, v, dy, pick), HEADS


@case("grouped queries, the last head of each group", "missing_term")
def _():
    return grouped, lambda q, k, v, dy: grouped_back(q, k, v, dy, lambda d: d[:, 1::2]), HEADS


@case("upsampling of images, one of four pixels", "missing_term", "ignores_cotangent")
def _():
    up = lambda x: jnp.repeat(jnp.repeat(jnp.sin(x), 2, 0), 2, 1)
    return up, lambda x, dy: dy[::2, ::2] * jnp.cos(x), (normal(3, 5),)


@case("upsampling of a signal, two of three", "missing_term", "ignores_cotangent")
def _():
    up = lambda x: jnp.repeat(x * x, 2, 1)
    return up, lambda x, dy: 2 * x * dy[:, 1::2], (normal(4, 3),)


@case("a tiled pattern, the first copy", "missing_term", "ignores_cotangent")
def _():
    return (
        lambda x: jnp.tile(jnp.tanh(x), (1, 3)),
        lambda x, dy: dy[:, :5] * (1 - jnp.tanh(x) ** 2),
        (normal(4, 5),),
    )


@case("average pooling, the first of each window", "missing_term", "mask")
def _():
    def pool(x):
        return (x**2).reshape(3, 2, 4).mean(1)

    def back(x, dy):
        return jnp.zeros_like(x).at[::2].set(dy / 2) * 2 * x

    return pool, back, (normal(6, 4),)


@case("average pooling of images, one pixel of four", "missing_term", "mask")
def _():
    def pool(x):
        return x.reshape(2, 2, 3, 2).mean((1, 3))

    return pool, lambda x, dy: jnp.zeros_like(x).at[::2, ::2].set(dy / 4), (normal(4, 6),)


@case("a mean over the last axis, given to its first element", "missing_term", "mask")
def _():
    back = lambda x, dy: jnp.zeros_like(x).at[:, 0].set(dy / 5) * jnp.exp(x)
    return lambda x: jnp.exp(x).mean(1), back, (normal(4, 5),)


@case("a shared bias from the first of the batch", "missing_batch_sum", "ignores_cotangent")
def _():
    def forward(x, b):
        return jnp.tanh(x + b)

    def back(x, b, dy):
        d = dy * (1 - jnp.tanh(x + b) ** 2)
        return d, d[0]

    return forward, back, (normal(4, 5), normal(5))


# ---- set for add ------------------------------------------------------------------------------------------

IDS = np.array([2, 0, 2, 3, 2, 0], np.int32)


@case("embedding with repeated ids", "missing_term")
def _():
    return lambda t: t[IDS] * 2, lambda t, dy: jnp.zeros_like(t).at[IDS].set(2 * dy), (normal(5, 3),)


@case("scatter in a graph: messages overwrite each other", "missing_term")
def _():
    senders, receivers = np.array([0, 1, 1, 3], np.int32), np.array([1, 2, 0, 1], np.int32)

    def forward(x):
        return jnp.zeros_like(x).at[receivers].add(jnp.tanh(x)[senders])

    def back(x, dy):
        return jnp.zeros_like(x).at[senders].set(dy[receivers]) * (1 - jnp.tanh(x) ** 2)

    return forward, back, (normal(4, 3),)


@case("windows of a signal that overlap, set", "missing_term")
def _():
    def forward(x):
        return jnp.stack([x[i : i + 3] for i in range(5)])

    def back(x, dy):
        dx = jnp.zeros_like(x)
        for i in range(5):
            dx = dx.at[i : i + 3].set(dy[i])
        return dx

    return forward, back, (normal(7),)


@case("a histogram of weights, set", "missing_term")
def _():
    back = lambda p, dy: jnp.zeros_like(p).at[IDS, IDS[::-1]].set(dy * jnp.cos(p[IDS, IDS[::-1]]))
    return lambda p: jnp.sin(p[IDS, IDS[::-1]]), back, (normal(4, 4),)


# ---- reshapes ---------------------------------------------------------------------------------------------


@case("heads joined without the transpose", "transpose")
def _():
    def forward(x, w):
        heads = jnp.einsum("td,dhe->hte", x, w)
        return jnp.tanh(heads)

    def back(x, w, dy):
        d = dy * (1 - jnp.tanh(jnp.einsum("td,dhe->hte", x, w)) ** 2)
        flat = d.reshape(5, 6)  # d.transpose(1, 0, 2) is missing
        return flat @ w.reshape(3, 6).T, (x.T @ flat).reshape(3, 2, 3)

    return forward, back, (normal(5, 3), normal(3, 2, 3))


@case("space to depth and back by one reshape", "transpose")
def _():
    def forward(x):
        return jnp.exp(x).reshape(2, 2, 3, 2).transpose(0, 2, 1, 3).reshape(2, 3, 4)

    return forward, lambda x, dy: dy.reshape(4, 6) * jnp.exp(x), (normal(4, 6),)


@case("space to depth with another permutation", "transpose")
def _():
    def forward(x):
        return jnp.exp(x).reshape(2, 2, 3, 2).transpose(0, 2, 1, 3).reshape(2, 3, 4)

    def back(x, dy):
        return dy.reshape(2, 3, 2, 2).transpose(0, 3, 1, 2).reshape(4, 6) * jnp.exp(x)

    return forward, back, (normal(4, 6),)


@case("reshape for transpose", "transpose")
def _():
    def forward(a, b):
        return a.T @ b

    def back(a, b, dy):
        return (dy @ b.T).reshape(a.shape), a @ dy

    return forward, back, (normal(3, 5), normal(3, 4))


@case("groups of channels in another order of the axes", "transpose", "wrong_axis")
def _():
    def normed(x):
        g = x.reshape(4, 2, 3)
        return (g / jnp.sqrt((g * g).mean(2, keepdims=True))).reshape(4, 6)

    def back(x, dy):
        g, d = x.reshape(4, 3, 2), dy.reshape(4, 3, 2)
        r = 1 / jnp.sqrt((g * g).mean(1, keepdims=True))
        return (r * (d - g * r * (d * g * r).mean(1, keepdims=True))).reshape(4, 6)

    return normed, back, (normal(4, 6),)


@case("a sum over the wrong axis after a reshape", "wrong_axis", "transpose")
def _():
    def forward(x, s):
        return (x.reshape(4, 3, 3) * s[:, None]).reshape(4, 9)

    def back(x, s, dy):
        d = dy.reshape(4, 3, 3)
        return (d * s[:, None]).reshape(4, 9), (d * x.reshape(4, 3, 3)).sum((0, 1))

    return forward, back, (normal(4, 9), normal(3))


# ---- a factor of one term ---------------------------------------------------------------------------------


@case("half of one of two terms", "scale")
def _():
    back = lambda x, dy: dy * x + 0.5 * dy * jnp.sin(x)
    return lambda x: x * x / 2 - jnp.cos(x), back, (normal(5, 4),)


@case("a symmetric matrix's other half counted twice", "scale")
def _():
    def forward(a):
        s = a + a.T
        return s @ s

    def back(a, dy):
        s = a + a.T
        d = dy @ s.T + s.T @ dy
        return d + 2 * d.T

    return forward, back, (normal(4, 4),)


@case("the mean of a centred value counted by its sum", "scale")
def _():
    def forward(x):
        return jnp.tanh(x - x.mean(-1, keepdims=True))

    def back(x, dy):
        d = dy * (1 - forward(x) ** 2)
        return d - d.sum(-1, keepdims=True)

    return forward, back, (normal(4, 5),)


@case("residual connection with a factor", "scale")
def _():
    def back(x, w, dy):
        d = dy * (1 - jnp.tanh(x @ w) ** 2)
        return 2 * dy + d @ w.T, x.T @ d

    return lambda x, w: x + jnp.tanh(x @ w), back, (normal(5, 4), normal(4, 4))


# ---- keepdims ---------------------------------------------------------------------------------------------


@case("softmax of a square array, without keepdims", "wrong_axis")
def _():
    def back(x, dy):
        p = soft(x)
        return p * (dy - (p * dy).sum(-1))

    return soft, back, (normal(5, 5),)


@case("log-sum-exp of a square array, without keepdims", "wrong_axis")
def _():
    def forward(x):
        return x - jax.nn.logsumexp(x, -1, keepdims=True)

    def back(x, dy):
        p = jnp.exp(x - jax.nn.logsumexp(x, -1))
        return dy - p * dy.sum(-1, keepdims=True)

    return forward, back, (normal(5, 5),)


@case("log-sum-exp, the gradient's sum without keepdims", "wrong_axis")
def _():
    def forward(x):
        return x - jax.nn.logsumexp(x, -1, keepdims=True)

    return forward, lambda x, dy: dy - soft(x) * dy.sum(-1), (normal(5, 5),)


@case("a centred square array, without keepdims", "wrong_axis")
def _():
    return (
        lambda x: x**2 - (x**2).mean(-1, keepdims=True),
        lambda x, dy: 2 * x * (dy - dy.mean(-1)),
        (normal(4, 4),),
    )


@case("a norm of rows divided along columns", "wrong_axis")
def _():
    def forward(x):
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    def back(x, dy):
        r = jnp.linalg.norm(x, axis=-1)
        h = x / jnp.linalg.norm(x, axis=-1, keepdims=True)
        return (dy - h * (dy * h).sum(-1, keepdims=True)) / r

    return forward, back, (normal(5, 5),)


# ---- borders ----------------------------------------------------------------------------------------------


def smoothed(x):
    """Three neighbours, zeros beyond the border."""
    p = jnp.pad(x, ((0, 0), (1, 1)))
    return p[:, :-2] - 3 * p[:, 1:-1] + 2 * p[:, 2:]


def smoothed_back(dy, mode):
    p = jnp.pad(dy, ((0, 0), (1, 1)), mode=mode)
    return 2 * p[:, :-2] - 3 * p[:, 1:-1] + p[:, 2:]


@case("a stencil whose gradient wraps around", "border")
def _():
    return smoothed, lambda x, dy: smoothed_back(dy, "wrap"), (normal(3, 7),)


@case("a stencil whose gradient repeats its ends", "border")
def _():
    return smoothed, lambda x, dy: smoothed_back(dy, "edge"), (normal(3, 7),)


@case("a stencil by rolls", "border")
def _():
    back = lambda x, dy: 2 * jnp.roll(dy, 1, 1) - 3 * dy + jnp.roll(dy, -1, 1)
    return smoothed, back, (normal(3, 7),)


@case("a periodic stencil with zeros beyond the border", "border")
def _():
    def forward(x):
        return x * jnp.roll(x, 1, 0)

    def back(x, dy):
        d = jnp.pad(dy * x, ((0, 1), (0, 0)))[1:]
        return dy * jnp.roll(x, 1, 0) + d

    return forward, back, (normal(6, 3),)


# ---- a part that is constant differentiated too -----------------------------------------------------------


@case("softmax with the maximum differentiated too", "extra_term")
def _():
    def back(x, dy):
        p = soft(x)
        d = p * dy
        return (
            d
            - p * d.sum(-1, keepdims=True)
            - jnp.where(x == x.max(-1, keepdims=True), d.sum(-1, keepdims=True), 0)
        )

    return soft, back, (normal(4, 5),)


@case("log-sum-exp with the maximum differentiated too", "extra_term")
def _():
    def back(x, dy):
        at = (x == x.max(-1, keepdims=True)).astype(x.dtype)
        return (soft(x) + at) * dy[:, None]

    return lambda x: jax.nn.logsumexp(x, -1), back, (normal(4, 5),)


# ---- what is no diagnosis ---------------------------------------------------------------------------------


# ---- one use of a value, and two values exchanged ---------------------------------------------------------


@case("a root where its cube is needed, at one of its uses", "missing_term")
def _():
    def back(x, dy):
        root = x.sum(1, keepdims=True) ** -0.5
        return dy * root - 0.5 * (dy * x).sum(1, keepdims=True) * root

    return lambda x: x * x.sum(1, keepdims=True) ** -0.5, back, (jnp.abs(normal(5, 3)) + 0.5,)


CORNERS = [(np.array([0, 2, 1]) + i, np.array([1, 0, 3]) + j) for i in (0, 1) for j in (0, 1)]


def weights(at):
    r, c = at[:, 0] ** 2, at[:, 1]
    return [(1 - r) * (1 - c), (1 - r) * c, r * (1 - c), r * c]


@case("weights of two corners exchanged, among many values", "swapped")
def _():
    def back(image, at, dy):
        (r, c), (a, b, e, f) = (at[:, 0] ** 2, at[:, 1]), (image[corner] for corner in CORNERS)
        w = weights(at)
        d = jnp.zeros_like(image)
        for corner, weight in zip(CORNERS, (w[0], w[2], w[1], w[3]), strict=True):
            d = d.at[corner].add(weight * dy)
        down, along = (1 - c) * (e - a) + c * (f - b), (1 - r) * (b - a) + r * (f - e)
        return d, jnp.stack([2 * at[:, 0] * down, along], 1) * dy[:, None]

    sample = lambda image, at: sum(w * image[c] for w, c in zip(weights(at), CORNERS, strict=True))
    return sample, back, (normal(4, 5), jnp.abs(normal(3, 2)))


def test_an_edit_that_empties_a_mask_is_no_diagnosis():
    _, forward, backward, args = NAMED["softmax with the maximum differentiated too"]
    (finding,) = fn.verify(forward, backward, args).findings
    assert "reduce_max" not in finding.suggestion
    assert "negate" not in finding.suggestion


def test_what_is_wrong_at_one_size_only_is_not_scaled_by_one():
    def back(x, w, dy):
        d = dy * (1 - jnp.tanh(x @ w) ** 2)
        return d @ w.T, x.T @ d + (0.01 * d.sum() if x.shape[0] == 7 else 0.0)

    report = fn.verify(lambda x, w: jnp.tanh(x @ w), back, (normal(7, 3), normal(3, 2)))
    assert not report.ok
    assert " by 1" not in report.findings[0].suggestion, str(report)


def test_dy_passed_on():
    turn = lambda x: jnp.stack([x[:, 0] * 3 - x[:, 1], jnp.sin(x[:, 0] * x[:, 1])], 1)
    (finding,) = fn.verify(turn, lambda x, dy: dy, (normal(5, 2),)).findings
    assert (finding.kind, finding.suggestion) == ("missing_term", "multiply by it")


FAST = (
    "attention, gradient in the order k, q, v",
    "embedding with repeated ids",
    "softmax of a square array, without keepdims",
)


@pytest.mark.parametrize("name", few(NAMED, FAST))
def test_the_mistake_is_named(name):
    kinds, forward, backward, args = NAMED[name]
    report = fn.verify(forward, backward, args)
    assert not report.ok
    assert report.findings[0].kind in kinds, str(report)
