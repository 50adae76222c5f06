"""Cross entropy of labels with softmax(x w), without its logits: they exist for a few columns of w at a time.

    h = x w, or c tanh(x w / c) with softcap c;  ℓ = log Σ_i e^{h_i};  y = ℓ − Σ_i q_i h_i + z_loss · ℓ²

Dimensions: *n any leading axes (tokens), d features, v vocabulary: x [*n, d], w [d, v], labels [*n] integers,
y [*n], one value per token; the mean over tokens is the caller's. q is 1 at the label, smoothed by ε to
(1 − ε) q + ε/v. It is `cross_entropy` of a product whose result, [*n, v], is by far the largest array of a
language model. Sources: Wijmans et al., "Cut your losses in large-vocabulary language models", arXiv
2411.09009; Chowdhery et al., "PaLM", arXiv 2204.02311, §5 (z-loss). Sums are in float32 or wider.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float, Integer

from funcnet import rules
from funcnet._letters import Told, axes_of, constrain, devices
from funcnet.errors import DTypeError, ShapeError, ValueRangeError, describe
from funcnet.ops import _check, _squares
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._dtype import common, narrow, signed, wide
from funcnet.ops._shape import known
from funcnet.ops.loss._classes import counts, logsumexp

__all__ = ["apply", "cost", "reference", "rows", "squares", "vjp"]


def reference(
    x: Float[Array, "*n d"],
    w: Float[Array, "d v"],
    labels: Integer[Array, "*n"],
    *,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
    z_loss: float = 0.0,
    softcap: float | None = None,
) -> Float[Array, "*n"]:
    """−Σ q log softmax(h) + z_loss · ℓ², and 0 where the label is `ignore_index` or not in the vocabulary."""
    x, w = common(x, w)
    labels, v = signed(labels), w.shape[1]
    counted = counts(labels, v, ignore_index)
    h = jnp.matmul(jnp.where(counted[..., None], x, 0), w, preferred_element_type=wide(x.dtype))
    if softcap is not None:
        h = softcap * jnp.tanh(h / softcap)
    log_p = jax.nn.log_softmax(h)
    q = (1 - label_smoothing) * jax.nn.one_hot(labels, v, dtype=h.dtype) + label_smoothing / v
    y = -(q * log_p).sum(-1) + z_loss * jax.nn.logsumexp(h, -1) ** 2
    return jnp.where(counted, y, 0)


def _told(x: Any, w: Any, *_: Any, over: tuple[str, ...] = (), **__: Any) -> dict[str, Any]:
    taken = [axis for axes in axes_of(x) for axis in axes]
    return {"over": over or tuple(axis for axis in axes_of(w)[1] if axis not in taken)}


@functools.partial(rules.operation, told=Told(options=_told))
def apply(
    x: Float[Array, "*n d"],
    w: Float[Array, "d v"],
    labels: Integer[Array, "*n"],
    *,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
    z_loss: float = 0.0,
    softcap: float | None = None,
    chunk: int | None = None,
    over: tuple[str, ...] = (),
) -> Float[Array, "*n"]:
    """The loss of each token: −log of the probability that softmax(x w) gives to its label.

    Differentiated by `vjp`, which keeps x, w, the labels and three numbers per token, and computes logits
    again: four products in place of three, and memory that does not grow with the vocabulary.

    Args:
        x: features [*n, d], the last ones of a net.
        w: [d, v]; for a table [v, d] that the head shares, its transpose.
        labels: integers [*n] in [0, v).
        label_smoothing: ε in [0, 1): the share of each label that is spread evenly over the vocabulary.
        ignore_index: tokens with this label have no loss and no gradient, whatever their features are.
        z_loss: the weight of ℓ², which keeps logits from drifting away.
        softcap: c, the bound of the logits, as in Gemma 2; None is none.
        chunk: how many columns of logits exist at a time, on a device; None chooses by shape.
        over: the axes of the mesh that the columns of w are split over, each device having neighbouring ones.
            Then every chunk is made of columns of all devices, so that none needs those of another. Where
            the mesh has Explicit axes, the types of x and w say it.

    Returns:
        y [*n], in the dtype that holds x and w, but at least float32. Under `jax.jit` a label outside [0, v)
        counts as ignored.

    Raises:
        ShapeError: the shapes do not fit.
        DTypeError: x or w is not floating-point, labels are not integers, or an option has the wrong type.
        ValueRangeError: an option is out of range; or labels, where they are concrete, are outside [0, v).

    >>> x, w = jnp.ones((2, 3)), jnp.zeros((3, 5))
    >>> print(fn.linear_cross_entropy.apply(x, w, jnp.array([0, 4])))
    [1.609 1.609]
    """
    where = "linear_cross_entropy.apply"
    x, w = _check.floating(where, "x", x), _check.floating(where, "w", w)
    _check_weights(where, x, w)
    options = {
        "label_smoothing": _check.rate(where, "label_smoothing", label_smoothing),
        "ignore_index": None
        if ignore_index is None
        else _check.integer(where, "ignore_index", ignore_index, none="None"),
        "z_loss": _check.number(where, "z_loss", z_loss),
        "softcap": _check_softcap(where, softcap),
        "chunk": None if chunk is None else _check.positive(where, "chunk", chunk),
        "over": _check.mesh_axes(where, over, w.shape[1], "the columns of w"),
    }
    labels = _check_labels(where, x, w, labels, options["ignore_index"])
    return rules.call(vjp, x, w, labels, **options)


def vjp(
    x: Float[Array, "*n d"],
    w: Float[Array, "d v"],
    labels: Integer[Array, "*n"],
    *,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
    z_loss: float = 0.0,
    softcap: float | None = None,
    chunk: int | None = None,
    over: tuple[str, ...] = (),
) -> tuple[Float[Array, "*n"], Partial]:
    """y and its pullback: du = dy · ((1 + 2 z ℓ) p − q) · (1 − (h/c)²), dx = du wᵀ, dw = xᵀ du.

    u = x w, p and du are computed for a chunk of columns at a time, which gives these columns of dw and a
    part of dx. Kept are x, w, the labels and three numbers of each token: of ℓ = m + log Σ e^{h − m} both
    terms, since a large ℓ is rounded; and log p of the label, since p − 1 there is e^{log p} − 1.
    """
    x_, labels_, counted = _inputs(x, w, labels, ignore_index)
    w_, v = _Columns(w, over), w.shape[1]

    def part(start: int | Array, columns: int) -> tuple[Array, ...]:
        """Of each row: the largest logit m, Σ e^{h − m} − 1, the label's logit or 0, Σ (m − h)."""
        h = _cap(_product(x_, w_.at(start, columns, x_.dtype)), softcap)
        m, r = logsumexp(h)
        label = jnp.where(w_.are(labels_, start, columns), h, 0).sum(-1)
        return m, r, label, (m[..., None] - h).sum(-1) if label_smoothing else jnp.zeros_like(m)

    def merge(a: tuple[Array, ...], b: tuple[Array, ...], start: Array) -> tuple[Array, ...]:
        m = jnp.maximum(a[0], b[0])
        of_a, of_b = jnp.exp(a[0] - m), jnp.exp(b[0] - m)  # one of them is 1
        below = a[3] + start.astype(m.dtype) * (m - a[0]) + b[3] + columns * (m - b[0])
        return m, a[1] * of_a + b[1] * of_b + jnp.minimum(of_a, of_b), a[2] + b[2], below

    columns = w_.count(labels.size, chunk)
    each, rest, label, below = _fold(part, merge, w_.each, columns)
    m, r = logsumexp(each)  # of the parts
    r, label = r + (rest * jnp.exp(each - m[..., None])).sum(-1), label.sum(-1)
    log_total = jnp.log1p(r)
    y = certain = log_total + (m - label)  # −log p of the label
    if label_smoothing:
        y = (1 - label_smoothing) * certain + label_smoothing * (
            log_total + (below + w_.each * (m[..., None] - each)).sum(-1) / v
        )
    if z_loss:
        y = y + z_loss * (m + log_total) ** 2
    y = jnp.where(counted, y, 0)
    static = {"label_smoothing": label_smoothing, "z_loss": z_loss, "softcap": softcap, "chunk": chunk}
    pull = rules.bind(_pullback, ignore_index=ignore_index, over=over, **static)
    return y, Partial(pull, x, w, labels, m, log_total, certain)


def _pullback(
    x: Array,
    w: Array,
    labels: Array,
    m: Array,
    log_total: Array,
    certain: Array,
    dy: Array,
    *,
    label_smoothing: float,
    ignore_index: int | None,
    z_loss: float,
    softcap: float | None,
    chunk: int | None,
    over: tuple[str, ...],
) -> tuple[Array, Array, None]:
    x_, labels_, counted = _inputs(x, w, labels, ignore_index)
    w_, lead = _Columns(w, over), tuple(range(labels.ndim))
    dy = jnp.where(counted, dy, 0)
    kept = [u[..., None] for u in (m, log_total, certain)]
    slope = _slope(kept, w.shape[1], label_smoothing, z_loss, softcap)

    def part(start: int | Array, columns: int) -> tuple[Array, Array]:
        """What these columns give to dx, of each part, and their dw."""
        some = w_.at(start, columns, x_.dtype)
        h = _cap(_product(x_, some), softcap)
        du = dy[..., None, None] * slope(h, w_.are(labels_, start, columns))
        du = du.astype(x_.dtype)  # products of bfloat16
        dx = jnp.einsum("...pc,dpc->p...d", du, some, preferred_element_type=wide(du.dtype))
        alone = du.shape[-2] == 1  # its axis leaves XLA:CPU of JAX 0.10.1 without the product
        du = du[..., 0, :] if alone else du
        dw = narrow(jnp.tensordot(x_, du, (lead, lead), preferred_element_type=wide(du.dtype)), w)
        return dx, dw[:, None] if alone else dw

    as_w = lambda dw: constrain(dw, (), over)  # until the last turn, whatever it is split over in the end

    def merge(grads: tuple[Array, Array], more: tuple[Array, Array], start: Array) -> tuple[Array, Array]:
        return grads[0] + more[0], lax.dynamic_update_slice_in_dim(grads[1], more[1], start, 2)  # in place

    def begin(dx: Array, dw: Array) -> tuple[Array, Array]:
        return dx, as_w(jnp.pad(dw, ((0, 0), (0, 0), (0, w_.each - dw.shape[2]))))

    dx, dw = _fold(part, merge, w_.each, w_.count(labels.size, chunk), begin)
    return narrow(dx.sum(0), x), as_w(dw).reshape(w.shape), None


def _slope(
    kept: Sequence[Array], v: int, label_smoothing: float, z_loss: float, softcap: float | None
) -> Callable[[Array, Array], Array]:
    """(h, whether it is the label's) -> dy/du, of logits h [..., columns]; kept are m, log Σ and −log p."""
    m, log_total, certain = kept
    of_log_total = 2 * z_loss * (m + log_total)
    at_label = jnp.expm1(-certain) + label_smoothing  # p − (1 − ε)

    def slope(h: Array, here: Array) -> Array:
        p = jnp.exp(h - m[..., None] - log_total[..., None])
        slope = jnp.where(here, at_label[..., None], p) - label_smoothing / v
        if z_loss:
            slope = slope + of_log_total[..., None] * p
        if softcap is not None:
            slope = slope * (1 - (h / softcap) ** 2)
        return slope

    return slope


def cost(
    x: Float[Abstract, "*n d"],
    w: Float[Abstract, "d v"],
    labels: Integer[Abstract, "*n"],
    *,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
    z_loss: float = 0.0,
    softcap: float | None = None,
) -> Cost:
    """2 · n · d · v flops, and the bytes of x, w, labels and y: the logits never reach the memory."""
    options = {"label_smoothing": label_smoothing, "ignore_index": ignore_index}
    options |= {"z_loss": z_loss, "softcap": softcap}
    return Cost(2 * x.size * w.shape[1], traffic(reference, x, w, labels, **options))


def squares(
    x: Float[Array, "n *t d"],
    w: Float[Array, "d v"],
    labels: Integer[Array, "n ..."],
    dy: Float[Array, "n ..."],
    *,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
    z_loss: float = 0.0,
    softcap: float | None = None,
    chunk: int | None = None,
) -> Float[Array, " n"]:
    """|dw|² of each example: Σ |xᵀ du|² over chunks of columns, or ⟨x xᵀ, Σ du duᵀ⟩ where that is less."""
    _squares.examples("linear_cross_entropy.squares", "x", x, 1)
    static = {"label_smoothing": label_smoothing, "z_loss": z_loss, "softcap": softcap}
    kept = vjp(x, w, labels, ignore_index=ignore_index, chunk=chunk, **static)[1].args[3:]
    kept = [u.reshape(-1) for u in kept]
    x_, labels_, counted = _rows(x, w, labels, ignore_index)
    w_ = _Columns(w)
    n, t, d, v = x.shape[0], math.prod(x.shape[1:-1]), x.shape[-1], w.shape[1]
    dy = jnp.where(counted, dy.reshape(-1), 0)
    slope = _slope(kept, v, **static)
    per_example = x_.reshape(n, t, d)
    gram = _squares.by_gram(t, d, v)

    def part(start: int | Array, columns: int) -> tuple[Array]:
        h = _cap(_product(x_, w_.at(start, columns, x_.dtype)[:, 0]), softcap)
        du = dy[:, None] * slope(h, w_.are(labels_, start, columns)[:, 0])
        du = du.astype(x_.dtype).reshape(n, t, columns)
        if gram:
            return (jnp.einsum("ntv,nsv->nts", du, du, preferred_element_type=wide(du.dtype)),)
        return (_squares.product(per_example, du),)

    add = lambda total, more, _: (total[0] + more[0],)
    (total,) = _fold(part, add, v, w_.count(n * t, chunk))
    if not gram:
        return total
    of_x = jnp.einsum("ntd,nsd->nts", per_example, per_example, preferred_element_type=total.dtype)
    return jnp.maximum((of_x * total).sum((1, 2)), 0)


def rows(
    x: Float[Array, "n *t d"],
    w: Float[Array, "d v"],
    labels: Integer[Array, "n ..."],
    ids: Integer[Array, "n s"],
    dy: Float[Array, "n ..."],
    *,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
    z_loss: float = 0.0,
    softcap: float | None = None,
    chunk: int | None = None,
) -> Float[Array, "n s d"]:
    """Of each example the rows of dwᵀ that ids name, Σ_t du[:, id] x, and 0 where there is none.

    For a table that is wᵀ as well: the product of its two gradients needs these rows, no chunk of the others.
    """
    static = {"label_smoothing": label_smoothing, "z_loss": z_loss, "softcap": softcap}
    kept = vjp(x, w, labels, ignore_index=ignore_index, chunk=chunk, **static)[1].args[3:]
    x_, labels_, counted = _rows(x, w, labels, ignore_index)
    n, v = x.shape[0], w.shape[1]
    apart = lambda u: u.reshape(n, math.prod(x.shape[1:-1]), *u.shape[1:])
    kept = (u.reshape(-1) for u in (dy, *kept))
    x_, labels_, counted, dy, *kept = map(apart, (x_, labels_, counted, *kept))
    inside = (ids >= 0) & (ids < v)
    columns = w.T[jnp.where(inside, ids, 0)].astype(x_.dtype)
    h = jnp.einsum("ntd,nsd->nts", x_, columns, preferred_element_type=wide(x_.dtype))
    h = _cap(h, softcap)
    here = labels_[:, :, None] == ids.astype(labels_.dtype)[:, None]
    du = jnp.where(counted, dy, 0)[..., None] * _slope(kept, v, **static)(h, here)
    du = jnp.where(inside[:, None], du, 0).astype(x_.dtype)
    return jnp.einsum("nts,ntd->nsd", du, x_, preferred_element_type=wide(x_.dtype))


# ---- chunks of columns ------------------------------------------------------------------------------------


class _Columns:
    """The columns of w, a chunk at a time: as many of each of its parts, which lie on different devices.

    Attributes:
        parts: how many there are.
        each: the columns of one.
    """

    def __init__(self, w: Array, over: tuple[str, ...] = ()):
        self.parts = devices(over)
        self.each = w.shape[1] if self.parts == 1 else w.shape[1] // self.parts
        # What of w is split otherwise is gathered here, once, and not for every chunk.
        self.w = constrain(w, (), over).reshape(w.shape[0], self.parts, self.each)

    def count(self, n: int, chunk: int | None) -> int:
        """How many columns of a part are taken at a time.

        So many that n rows have 2²¹ logits, which stay in a cache: on 2 cores with 32 MiB of it (float32,
        d = 256 and n from 1024 to 4096) the fastest or within 5 %. But at least 1024, since dx is read and
        written once per chunk; and of nearly equal size, in 128s, the width of a tile on accelerators. Rows
        whose number is a symbol are taken for many; of columns, all are taken at once.
        """
        if not known(self.each):
            return self.each
        if chunk is None:
            pieces = -(-self.each // (max(2**21 // max(n, 1), 1024) if known(n) else 1024))
            chunk = -(-self.each // (128 * pieces)) * 128
        return min(chunk, self.each)

    def at(self, start: int | Array, columns: int, dtype: Any) -> Array:
        """So many of each part, from `start` on [d, parts, columns]."""
        return lax.dynamic_slice_in_dim(self.w, start, columns, 2).astype(dtype)

    def are(self, labels: Array, start: int | Array, columns: int) -> Array:
        """Whether a column of `at` is the label's [*n, parts, columns]."""
        shape, n = (*labels.shape, self.parts, columns), labels.ndim
        j = lax.broadcasted_iota(labels.dtype, shape, n + 1)
        if self.parts > 1:
            j = j + self.each * lax.broadcasted_iota(labels.dtype, shape, n)
        return (labels - jnp.asarray(start, labels.dtype))[..., None, None] == j


def _fold(
    part: Callable[..., Any],
    merge: Callable[..., Any],
    v: int,
    columns: int,
    begin: Callable[..., Any] = lambda *first: first,
) -> Any:
    """part(start, columns) of all columns, one after the other: merge(all so far, part, start).

    The rest comes first and outside the loop: so sizes need not divide, and what the loop carries varies over
    the devices of a `jax.shard_map` as what is merged into it does.
    """
    many = (v - 1) // columns if known(v) else 0
    rest = v - many * columns
    # Forward mode and JAX's own rule, too, compute a chunk's logits again rather than keep those of all.
    again = jax.checkpoint(functools.partial(part, columns=columns), prevent_cse=False)
    step = lambda carry, start: (merge(carry, again(start), start), None)
    carry = begin(*part(0, rest))
    if many:
        carry, _ = lax.scan(step, carry, rest + columns * jnp.arange(many, dtype=jnp.int32))
    return carry


def _inputs(x: Array, w: Array, labels: Array, ignore_index: int | None) -> tuple[Array, Array, Array]:
    """x in the dtype that holds x and w, the labels, and whether a token has a loss.

    The features of one that has none are 0, whatever they were: 0 · NaN would be NaN in dw.
    """
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(x, w)
    labels = signed(labels)
    counted = counts(labels, w.shape[1], ignore_index)
    return jnp.where(counted[..., None], x.astype(dtype), 0), labels, counted


def _rows(x: Array, w: Array, labels: Array, ignore_index: int | None) -> tuple[Array, Array, Array]:
    """The same along one axis of tokens."""
    x, labels, counted = _inputs(x, w, labels, ignore_index)
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1]), labels.reshape(-1), counted.reshape(-1)


def _product(x: Array, w: Array) -> Array:
    return jnp.tensordot(x, w, 1, preferred_element_type=wide(x.dtype))


def _cap(u: Array, softcap: float | None) -> Array:
    return u if softcap is None else softcap * jnp.tanh(u / softcap)


# ---- checks -----------------------------------------------------------------------------------------------


def _check_weights(where: str, x: Array, w: Array) -> None:
    _check.rank(where, "x", x, 1, "*n, d")
    if w.ndim == 2 and w.shape[0] == x.shape[-1] and w.shape[1]:
        return
    hint = None
    if w.ndim == 2 and w.shape[1] == x.shape[-1]:
        hint = "a table [v, d]? its transpose fits: w.T."
    raise ShapeError(
        f"{where}: w does not fit x.",
        path="w",
        expected=f"w: float[{x.shape[-1]}, v], v ≥ 1     (x: {describe(x)})",
        actual=f"w: {describe(w)}",
        hint=hint,
    )


def _check_softcap(where: str, softcap: Any) -> float | None:
    if softcap is None:
        return None
    softcap = _check.number(where, "softcap", softcap, least=-math.inf)
    if softcap <= 0:
        raise ValueRangeError(
            f"{where}: softcap is {softcap}.",
            path="softcap",
            expected="softcap > 0, or None",
            actual=f"softcap = {softcap}",
            hint="for no cap: softcap=None." if softcap == 0 else None,
        )
    return softcap


def _check_labels(where: str, x: Array, w: Array, labels: Any, ignore_index: int | None) -> Array:
    expected = f"labels: int[{', '.join(map(str, x.shape[:-1]))}]     (x: {describe(x)})"
    dtype, shape, v = _check.dtype_of(labels), getattr(labels, "shape", None), w.shape[1]
    if dtype is None or not jnp.issubdtype(dtype, jnp.integer):
        hint = "wrap them: jnp.asarray(...)." if dtype is None else None
        if shape == x.shape[:-1]:
            hint = "cast them: labels.astype(jnp.int32)."
        elif shape == (*x.shape[:-1], v):
            hint = "one-hot? labels.argmax(-1). Probabilities: cross_entropy.apply(x @ w, labels)."
        raise DTypeError(
            f"{where}: labels are not an array of integers.",
            path="labels",
            expected=expected,
            actual=f"labels: {describe(labels)}",
            hint=hint,
        )
    if shape != x.shape[:-1]:
        raise ShapeError(
            f"{where}: labels do not have the shape that x asks for.",
            path="labels",
            expected=expected,
            actual=f"labels: {describe(labels)}",
            hint="labels[..., 0] fits." if shape == (*x.shape[:-1], 1) else None,
        )
    _check.classes(where, labels, v, f"w: {describe(w)}", ignore_index)
    return jnp.asarray(labels)
