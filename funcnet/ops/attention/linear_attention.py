"""Causal attention without a softmax, by a state: S_t = exp(d_t) S_{t−1} + k_tᵀ v_t, o_t = q_t S_t.

So o_t = Σ_{s ≤ t} exp(d_{s+1} + ... + d_t) (q_t · k_s) v_s. Dimensions: *n any leading axes (batch), t steps,
h heads, e head width: q and k [*n, t, h, e], v and o [*n, t, h, f], the logarithm of the decay d [*n, t, h],
the state S [*n, h, e, f]. What is held does not grow with t. Sums are in float32 or wider.

A chunk of steps is taken at a time: what comes from within it by products of queries and keys, as attention
does it, what came before by the state, so that nearly all of the work is products of matrices.
Sources: Katharopoulos et al., "Transformers are RNNs", arXiv 2006.16236; with a decay, in chunks: Yang et
al., "Gated Linear Attention Transformers with Hardware-Efficient Training", arXiv 2312.06635; Dao and Gu,
"Transformers are SSMs", arXiv 2405.21060.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float

from funcnet import rules
from funcnet.errors import ShapeError, describe
from funcnet.ops import _check
from funcnet.ops._chunks import in_chunks
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._dtype import common, narrow, wide
from funcnet.ops._shape import known

__all__ = ["apply", "cost", "reference", "step", "vjp"]

_CHUNK = 64


def reference(
    q: Float[Array, "*n t h e"],
    k: Float[Array, "*n t h e"],
    v: Float[Array, "*n t h f"],
    decay: Float[Array, "*n t h"] | None = None,
    state: Float[Array, "*n h e f"] | None = None,
    *,
    chunk: int | None = None,
) -> tuple[Float[Array, "*n t h f"], Float[Array, "*n h e f"]]:
    """Step after step, as it is written."""
    del chunk  # how it is computed
    q, k, v = common(q, k, v)
    sums = wide(q.dtype)
    time = q.ndim - 3
    first = jnp.zeros((*q.shape[:time], *q.shape[-2:], v.shape[-1])) if state is None else state
    decay = jnp.zeros(q.shape[:-1]) if decay is None else decay

    def one(s: Array, at: Any) -> tuple[Array, Array]:
        q, k, v, decay = at
        s = jnp.exp(decay)[..., None, None] * s + jnp.einsum("...e,...f->...ef", k, v)
        return s, jnp.einsum("...e,...ef->...f", q, s)

    steps = [jnp.moveaxis(a, time, 0).astype(sums) for a in (q, k, v, decay)]
    s, o = lax.scan(one, first.astype(sums), tuple(steps))
    return jnp.moveaxis(o, 0, time).astype(q.dtype), s


@rules.operation
def apply(
    q: Float[Array, "*n t h e"],
    k: Float[Array, "*n t h e"],
    v: Float[Array, "*n t h f"],
    decay: Float[Array, "*n t h"] | None = None,
    state: Float[Array, "*n h e f"] | None = None,
    *,
    chunk: int | None = None,
) -> tuple[Float[Array, "*n t h f"], Float[Array, "*n h e f"]]:
    """For every query, the values up to its step, weighted by the products with their keys and by the decay.

    Differentiated by `vjp`, a chunk at a time, which keeps the state before each chunk: JAX's own rule keeps
    that of every step. Queries and keys are taken as they are; a feature map such as elu(x) + 1, and a scale,
    are yours. The normaliser of Katharopoulos et al. is one more value: with a column of ones in v, the last
    column of o is what the others are divided by.

    Args:
        q: queries [*n, t, h, e].
        k: keys [*n, t, h, e].
        v: values [*n, t, h, f].
        decay: [*n, t, h], the logarithm of what is left of the state at each step, log σ(x) of a gate say,
            with a gradient; it is meant to be at most 0. None: all is left.
        state: S before the first step [*n, h, e, f], with a gradient; None is zeros.
        chunk: steps that are taken at once; None: 64.

    Within a chunk what is not yet seen is multiplied by 0: a NaN or an infinity in k or v at one step reaches
    the outputs of all steps of its chunk, and with a cotangent the gradients. No number that is finite does.

    Returns:
        o [*n, t, h, f] in the dtype that holds q, k and v; S after the last step, in float32 or wider.

    Raises:
        ShapeError: the arrays do not fit together.
        DTypeError: one is not floating-point.
        ValueRangeError: chunk is below 1.

    >>> q = k = jnp.ones((3, 1, 2))
    >>> y, state = fn.linear_attention.apply(q, k, jnp.arange(3.0)[:, None, None])
    >>> y.ravel().tolist(), state.shape
    ([0.0, 2.0, 6.0], (1, 2, 1))
    """
    where = "linear_attention.apply"
    q, k, v = (_check.floating(where, name, x) for name, x in (("q", q), ("k", k), ("v", v)))
    _check.rank(where, "q", q, 3, "*n, t, h, e")
    _check.same_shape(where, "k", k, "q", q)
    _fits(where, "v", v, (*q.shape[:-1], *v.shape[-1:]), q)
    if decay is not None:
        decay = _check.floating(where, "decay", decay)
        _fits(where, "decay", decay, q.shape[:-1], q)
    if state is not None:
        state = _check.floating(where, "state", state)
        _fits(where, "state", state, (*q.shape[:-3], *q.shape[-2:], v.shape[-1]), q)
    chunk = None if chunk is None else _check.positive(where, "chunk", chunk)
    return rules.call(vjp, q, k, v, decay, state, chunk=chunk)


def _fits(where: str, path: str, x: Array, shape: tuple[Any, ...], q: Array) -> None:
    if x.shape != shape:
        raise ShapeError(
            f"{where}: {path} does not fit q.",
            path=path,
            expected=f"{path}: float[{', '.join(map(str, shape))}]     (q: {describe(q)})",
            actual=f"{path}: {describe(x)}",
        )


def vjp(
    q: Float[Array, "*n t h e"],
    k: Float[Array, "*n t h e"],
    v: Float[Array, "*n t h f"],
    decay: Float[Array, "*n t h"] | None = None,
    state: Float[Array, "*n h e f"] | None = None,
    *,
    chunk: int | None = None,
) -> tuple[tuple[Float[Array, "*n t h f"], Float[Array, "*n h e f"]], Partial]:
    """(o, S) and the pullback: dS_t += q_tᵀ do_t, then dS_{t−1} = exp(d_t) dS_t, from the last step on.

    Then dq_t = do_t S_tᵀ, dk_t = v_t dS_tᵀ, dv_t = k_t dS_t and dd_t = exp(d_t) ⟨dS_t, S_{t−1}⟩. In a chunk,
    with A = (q kᵀ) ⊙ D of its pairs and P = (do vᵀ) ⊙ D: dq = P k, dk = Pᵀ q, dv = Aᵀ do, and what goes
    through the states before and after it. Kept is the state before each chunk.
    """
    given, s = _given(q, k, v, decay, state)
    t, chunk = q.shape[-3], chunk or _CHUNK
    if known(t) and t == 0:
        o, before = given.v, jnp.zeros((0, *s.shape), s.dtype)
    else:
        s, (o, before) = in_chunks(_forward, s, given, chunk)
    o = _as_given(o, q).astype(common(q, k, v)[0].dtype)
    last = s.reshape(*q.shape[:-3], *s.shape[1:])
    return (o, last), Partial(rules.bind(_pullback, chunk=chunk), q, k, v, decay, state, before)


def _pullback(
    q: Array,
    k: Array,
    v: Array,
    decay: Array | None,
    state: Array | None,
    before: Array,
    cotangents: tuple[Array, Array],
    *,
    chunk: int,
) -> tuple[Array, Array, Array, Array | None, Array | None]:
    given, s = _given(q, k, v, decay, state)
    do, ds = _time_first(cotangents[0], s.dtype), cotangents[1].astype(s.dtype).reshape(s.shape)
    ds, do, *_ = rules.same_variance(ds, do, given.q, given.k, given.v, *jax.tree.leaves(given.decay))
    t, grads = q.shape[-3], given
    if not known(t) or t > 0:
        ds, grads = in_chunks(_backward, ds, (do, given, before), chunk, reverse=True)
    dq, dk, dv = (narrow(_as_given(grad, x), x) for grad, x in zip(grads[:3], (q, k, v), strict=True))
    dd = grads.decay
    if decay is not None and dd is not None:
        dd = narrow(_as_given(_seen(dd, state), decay), decay)
    return dq, dk, dv, dd, None if state is None else narrow(ds.reshape(state.shape), state)


# ---- a chunk, time first ----------------------------------------------------------------------------------


class _Steps(NamedTuple):
    """Of l steps and b sequences: q and k [l, b, h, e], v [l, b, h, f], decay [l, b, h]; float32 or wider."""

    q: Array
    k: Array
    v: Array
    decay: Array | None


def _given(q: Array, k: Array, v: Array, decay: Array | None, state: Array | None) -> tuple[_Steps, Array]:
    sums = wide(common(q, k, v)[0].dtype)
    d = None if decay is None else _seen(_time_first(decay, sums, 1), state)
    steps = _Steps(_time_first(q, sums), _time_first(k, sums), _time_first(v, sums), d)
    shape = (*steps.q.shape[1:], v.shape[-1])
    s = jnp.zeros(shape, sums) if state is None else state.astype(sums).reshape(shape)
    return steps, rules.same_variance(s, *jax.tree.leaves(steps))[0]


def _seen(decay: Array, state: Array | None) -> Array:
    """0 in the first row where no state comes before it: it decays nothing, and 0 · NaN would be NaN."""
    return decay if state is not None else jnp.concatenate([jnp.zeros_like(decay[:1]), decay[1:]])


def _time_first(x: Array, sums: jnp.dtype, last: int = 2) -> Array:
    """[*n, t, ...] as [t, b, ...], with so many axes behind that of time."""
    time = x.ndim - last - 1
    x = x.astype(sums).reshape(math.prod(x.shape[:time]), *x.shape[time:])
    return jnp.swapaxes(x, 0, 1)


def _as_given(x: Array, like: Array) -> Array:
    """[t, b, ...] as [*n, t, ...], the axes before time those of `like`."""
    x = jnp.swapaxes(x, 0, 1)
    return x.reshape(*like.shape[: like.ndim - x.ndim + 1], *x.shape[1:])


class _Factors(NamedTuple):
    """What is left in a chunk.

    Attributes:
        pairs: at step i of step j ≤ i, and 0 of those that follow [b, h, i, j].
        since: at each step, of the state before the chunk [l, b, h, 1].
        until: after the chunk, of each step [l, b, h, 1].
        whole: after the chunk, of the state before it [b, h, 1, 1].
    """

    pairs: Array
    since: Array
    until: Array
    whole: Array


def _factors(steps: _Steps) -> _Factors:
    d, seen = steps.decay, _up_to(steps.q.shape[0])
    if d is None:
        ones = jnp.ones_like(steps.q[..., :1])
        return _Factors(seen.astype(ones.dtype), ones, ones, jnp.ones_like(ones[0, :, :, :, None]))
    # Each sum from its own first term: a difference of two would be off by the rounding of both.
    later = _up_to(steps.q.shape[0], diagonal=False)
    between = lax.cumsum(jnp.where(later, jnp.moveaxis(d, 0, -1)[..., None], 0), 2)
    since, until = lax.cumsum(d, 0)[..., None], jnp.moveaxis(between[..., -1:, :], -1, 0)[..., 0, None]
    pairs = jnp.where(seen, jnp.exp(jnp.where(seen, between, 0)), 0)
    return _Factors(pairs, jnp.exp(since), jnp.exp(until), jnp.exp(since[-1])[..., None])


def _up_to(n: int, *, diagonal: bool = True) -> Array:
    """[1, 1, i, j]: whether j ≤ i, or j < i."""
    i, j = (lax.broadcasted_iota(jnp.int32, (1, 1, n, n), axis) for axis in (2, 3))
    return j <= i if diagonal else j < i


def _weights(products: Array, f: _Factors) -> Array:
    """[b, h, i, j]: what is left of the products of step i with those up to it."""
    return jnp.where(_up_to(products.shape[-1]), products, 0) * f.pairs


def _forward(s: Array, steps: _Steps) -> tuple[Array, tuple[Array, Array]]:
    """The state after a chunk; o, and the state before it."""
    f = _factors(steps)
    a = _weights(jnp.einsum("ibhe,jbhe->bhij", steps.q, steps.k), f)
    o = jnp.einsum("bhij,jbhf->ibhf", a, steps.v) + jnp.einsum("ibhe,bhef->ibhf", steps.q * f.since, s)
    after = f.whole * s + jnp.einsum("jbhe,jbhf->bhef", steps.k * f.until, steps.v)
    return after, (o, s[None])


def _backward(ds: Array, given: tuple[Array, _Steps, Array]) -> tuple[Array, _Steps]:
    """The cotangent of the state before a chunk, and those of its steps."""
    do, steps, before = given  # what is linear first: so JAX transposes scans
    f, s = _factors(steps), before[0]
    a = _weights(jnp.einsum("ibhe,jbhe->bhij", steps.q, steps.k), f)
    products = jnp.einsum("ibhf,jbhf->bhij", do, steps.v)
    p = _weights(products, f)
    dq_before = jnp.einsum("ibhf,bhef->ibhe", do, s) * f.since
    dk_after = jnp.einsum("jbhf,bhef->jbhe", steps.v, ds) * f.until
    dq = jnp.einsum("bhij,jbhe->ibhe", p, steps.k) + dq_before
    dk = jnp.einsum("bhij,ibhe->jbhe", p, steps.q) + dk_after
    dv = jnp.einsum("bhij,ibhf->jbhf", a, do) + jnp.einsum("jbhe,bhef->jbhf", steps.k * f.until, ds)
    decayed = None
    if steps.decay is not None:
        # d_m is in what is left at i ≥ m of the state before, at i of j where j < m ≤ i, after of j < m, and
        # of the whole.
        of_pairs = jnp.where(_up_to(a.shape[-1]), lax.cumsum(_moved(a * products, 3), 3), 0).sum(2)
        of_state = lax.cumsum((dq_before * steps.q).sum(-1), 0, reverse=True)
        of_steps = lax.cumsum(_moved((dk_after * steps.k).sum(-1), 0), 0)
        decayed = jnp.moveaxis(of_pairs, -1, 0) + of_state + of_steps + (f.whole * s * ds).sum((2, 3))[None]
    ds = f.whole * ds + jnp.einsum("ibhe,ibhf->bhef", steps.q * f.since, do)
    return ds, _Steps(dq, dk, dv, decayed)


def _moved(x: Array, axis: int) -> Array:
    """Each entry one further along an axis, 0 the first."""
    zero = jnp.zeros_like(lax.slice_in_dim(x, 0, 1, axis=axis))
    return jnp.concatenate([zero, lax.slice_in_dim(x, 0, x.shape[axis] - 1, axis=axis)], axis)


def cost(
    q: Float[Abstract, "*n t h e"],
    k: Float[Abstract, "*n t h e"],
    v: Float[Abstract, "*n t h f"],
    decay: Float[Abstract, "*n t h"] | None = None,
    state: Float[Abstract, "*n h e f"] | None = None,
    *,
    chunk: int | None = None,
) -> Cost:
    """Of the recurrence: 4 · n · t · h · e · f flops, and the bytes of every input and output."""
    del chunk
    flops = 4 * math.prod(q.shape) * v.shape[-1]
    return Cost(flops, traffic(reference, q, k, v, decay, state))


def step(
    q: Float[Array, "*n h e"],
    k: Float[Array, "*n h e"],
    v: Float[Array, "*n h f"],
    decay: Float[Array, "*n h"] | None = None,
    state: Float[Array, "*n h e f"] | None = None,
) -> tuple[Float[Array, "*n h f"], Float[Array, "*n h e f"]]:
    """One step of `apply`, for steps that come one by one.

    >>> q = jnp.ones((2, 3))
    >>> o, state = step(q, q, q)
    >>> o, state = step(q, q, q, None, state)
    >>> o[0].tolist()
    [6.0, 6.0, 6.0]
    """
    where = "linear_attention.step"
    one: list[Any] = []
    for name, x, last in (("q", q, 2), ("k", k, 2), ("v", v, 2), ("decay", decay, 1)):
        if x is not None:
            x = _check.floating(where, name, x)
            _check.rank(where, name, x, last, "*n, h, e" if last == 2 else "*n, h")
            x = jnp.expand_dims(x, x.ndim - last)
        one.append(x)
    q, k, v, decay = one
    o, last = apply(q, k, v, decay, state)
    return o.squeeze(-3), last
