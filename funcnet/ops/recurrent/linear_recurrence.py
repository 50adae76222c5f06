"""Linear recurrence: h_t = a_t h_{t−1} + b_t, element by element or by heads; y_t = h_t.

Dimensions: *n any leading axes (batch), t steps, d features: a and b [*n, t, d]. By heads, a is [*n, t, h]
and b [*n, t, h, *e]: what a head holds shares its factor. y has the shape of b, and the state h_0 that of one
of its steps. It is the solution of a bidiagonal system, and what selective state spaces and gated linear
units have in the place of a cell. Sums are in float32 or wider.
Sources: Martin and Cundy, "Parallelizing linear recurrent neural nets over sequence length", arXiv
1709.04057; the scan: Blelloch, "Prefix sums and their applications", CMU-CS-90-190, 1990.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float

from funcnet import rules
from funcnet._letters import Told, axes_of
from funcnet.errors import ShapeError, describe
from funcnet.ops import _check
from funcnet.ops._chunks import in_chunks
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._dtype import common, narrow, wide
from funcnet.ops._shape import known

__all__ = ["apply", "cost", "reference", "vjp"]

_ROUNDS, _LEAST = (
    2**24,
    256,
)  # numbers that a chunk of steps holds where all of them are solved at once, and steps


def reference(
    a: Float[Array, "*n t d"],
    b: Float[Array, "..."],
    state: Float[Array, "..."] | None = None,
    *,
    reverse: bool = False,
) -> Float[Array, "..."]:
    """Step after step, as it is written."""
    time = a.ndim - 2
    a, b = common(a, b)
    sums = wide(b.dtype)
    a = a.reshape(*a.shape, *[1] * (b.ndim - a.ndim))
    first = jnp.zeros(b.shape[:time] + b.shape[time + 1 :]) if state is None else state

    def one(h: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        h = at[0] * h + at[1]
        return h, h

    steps = jnp.moveaxis(a, time, 0).astype(sums), jnp.moveaxis(b, time, 0).astype(sums)
    _, y = lax.scan(one, first.astype(sums), steps, reverse=reverse)
    return jnp.moveaxis(y, 0, time).astype(b.dtype)


@functools.partial(rules.operation, told=Told(split=lambda _, b, *__, **___: axes_of(b)))
def apply(
    a: Float[Array, "*n t d"],
    b: Float[Array, "..."],
    state: Float[Array, "..."] | None = None,
    *,
    reverse: bool = False,
) -> Float[Array, "..."]:
    """Solve h_t = a_t h_{t−1} + b_t for all steps.

    Differentiated by `vjp`, whose pullback is the same recurrence backwards and keeps y. On CPU one step
    follows the other; elsewhere all are solved at once, in log₂ t rounds (`jax.lax.associative_scan`), or as
    many as hold 2²⁴ numbers, and not below 256.

    Args:
        a: [*n, t, d]. Products of many of them are formed where all steps are solved at once: those that
            overflow, of factors above 1, give NaN there if what they multiply is 0.
        b: [*n, t, d, *e], with the axes of a first; d are heads where there is an e.
        state: h_0 [*n, d, *e], with a gradient; None is zeros. That after the last step is the last row of y.
        reverse: h_t = a_t h_{t+1} + b_t, from the last step to the first.

    Returns:
        y of the shape of b, in the dtype that holds a and b.

    Raises:
        ShapeError: b does not begin with the axes of a, or state is not as a step of b.
        DTypeError: an array is not floating-point, or reverse is traced.

    >>> fn.linear_recurrence.apply(jnp.full((4, 1), 0.5), jnp.ones((4, 1))).ravel().tolist()
    [1.0, 1.5, 1.75, 1.875]
    """
    where = "linear_recurrence.apply"
    a, b = _check.floating(where, "a", a), _check.floating(where, "b", b)
    _check.rank(where, "a", a, 2, "*n, t, d")
    if b.shape[: a.ndim] != a.shape:
        raise ShapeError(
            f"{where}: b does not begin with the axes of a.",
            path="b",
            expected=f"b: float[{', '.join(map(str, a.shape))}, *e]     (a: {describe(a)})",
            actual=f"b: {describe(b)}",
        )
    if state is not None:
        state = _check.floating(where, "state", state)
        shape = b.shape[: a.ndim - 2] + b.shape[a.ndim - 1 :]
        if state.shape != shape:
            raise ShapeError(
                f"{where}: state is not as one step of b.",
                path="state",
                expected=f"state: float[{', '.join(map(str, shape))}]     (b: {describe(b)})",
                actual=f"state: {describe(state)}",
            )
    return rules.call(vjp, a, b, state, reverse=_check.flag(where, "reverse", reverse))


def vjp(
    a: Float[Array, "*n t d"],
    b: Float[Array, "..."],
    state: Float[Array, "..."] | None = None,
    *,
    reverse: bool = False,
) -> tuple[Float[Array, "..."], Partial]:
    """y and its pullback: λ_t = dy_t + a_{t+1} λ_{t+1}; db = λ, da_t = Σ_e λ_t h_{t−1}, dh_0 = a_1 λ_1."""
    a_, b_ = common(a, b)
    factors, terms, first = _time_first(a_, b_, state, wide(b_.dtype), bool(reverse))
    h = _recurrence(factors, first, terms, back=False)
    y = _as_given(h, a.ndim - 2, bool(reverse)).astype(b_.dtype)
    return y, Partial(rules.bind(_pullback, reverse=bool(reverse)), a, b, state, h)


def _pullback(
    a: Array, b: Array, state: Array | None, h: Array, dy: Array, *, reverse: bool
) -> tuple[Array, Array, Array | None]:
    time = a.ndim - 2
    factors, dy, first = _time_first(a, dy, state, h.dtype, reverse)
    factors, first, h, dy = rules.same_variance(factors, first, h, dy)
    after = jnp.concatenate([factors, jnp.zeros_like(h[:1], shape=(1, *factors.shape[1:]))])[1:]
    before = jnp.concatenate([first[None], h])[:-1]
    dh = _recurrence(after, jnp.zeros_like(first), dy, back=True)
    da = (dh * before).sum(tuple(range(a.ndim, b.ndim)))
    da = da if state is not None else _without_first(da)
    grads = [narrow(_as_given(v, time, reverse), like) for v, like in ((da, a), (dh, b))]
    first_row = (factors * dh)[:1].sum(0)  # of no steps, 0
    return grads[0], grads[1], None if state is None else narrow(first_row, state)


def cost(
    a: Float[Abstract, "*n t d"],
    b: Float[Abstract, "..."],
    state: Float[Abstract, "..."] | None = None,
    *,
    reverse: bool = False,
) -> Cost:
    """No products of matrices: 0 flops, and the bytes of a, b, the state and y."""
    return Cost(0, traffic(reference, a, b, state, reverse=reverse))


def _time_first(
    a: Array, b: Array, state: Array | None, sums: jnp.dtype, reverse: bool
) -> tuple[Array, Array, Array]:
    """a and b [t, ...] with equal ranks, and the first state, in the dtype to sum in; in reverse turned."""
    time = a.ndim - 2
    a = a.reshape(*a.shape, *[1] * (b.ndim - a.ndim))
    a, b = (jnp.moveaxis(v, time, 0).astype(sums) for v in (a, b))
    a, b = (jnp.flip(v, 0) if reverse else v for v in (a, b))
    a = a if state is not None else _without_first(a)
    first = jnp.zeros(b.shape[1:], sums) if state is None else state.astype(sums)
    a, b, first = rules.same_variance(a, b, first)
    return a, b, first


def _without_first(v: Array) -> Array:
    """0 in the first row: without a state the first factor multiplies nothing, and 0 · NaN would be NaN."""
    return jnp.concatenate([jnp.zeros_like(v[:1]), v[1:]])


def _as_given(v: Array, time: int, reverse: bool) -> Array:
    return jnp.moveaxis(jnp.flip(v, 0) if reverse else v, 0, time)


@functools.partial(jax.jit, static_argnames="back")
def _recurrence(a: Array, first: Array, b: Array, *, back: bool) -> Array:
    """All h [t, ...]; `back`: from the last step. `first` is the state before the one that is taken first."""
    form = functools.partial(_one_by_one, back=back)
    if not known(*b.shape):
        return form(a, first, b)
    chunk = max(_ROUNDS // max(math.prod(b.shape[1:]), 1), _LEAST)
    at_once = functools.partial(_at_once, back=back, chunk=chunk)
    return lax.platform_dependent(a, first, b, cpu=form, default=at_once)


def _one_by_one(a: Array, first: Array, b: Array, *, back: bool) -> Array:
    def one(h: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        b, a = at  # what is linear first: so JAX transposes scans
        h = a * h + b
        return h, h

    return lax.scan(one, first, (b, a), reverse=back)[1]


def _at_once(a: Array, first: Array, b: Array, *, back: bool, chunk: int) -> Array:
    """Two steps in a row are one step, h ↦ a₂ a₁ h + (a₂ b₁ + b₂), and so are any two neighbours of them.

    What lies between the rounds is several times as large as a and b: so a chunk of steps at a time.
    """

    def merged(one: Any, two: Any) -> Any:
        return one[0] * two[0], two[0] * one[1] + two[1]

    def steps(h: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        b, a = at
        end = slice(-1, None) if back else slice(1)
        taken = b[end] + a[end] * h[None]
        b = jnp.concatenate([b[:-1], taken] if back else [taken, b[1:]])
        y = lax.associative_scan(merged, (a, b), reverse=back)[1]
        return (y[0] if back else y[-1]), y

    return in_chunks(steps, first, (b, a), chunk, reverse=back)[1] if b.shape[0] else b
