"""Both passes of a recurrence over time, chunk by chunk, for any cell: what lstm, gru and rnn share.

    a_t = x_t W + b,  g_t = gates(a_t, h_{t−1}),  s_t = move(g_t, s_{t−1})

Dimensions: t steps, b sequences, d features of x, m of the state, k of a cell's gates side by side: x
[t, b, d], time first, a [t, b, k], and s a dict of [b, m], of which "h" is what comes out and goes into U.
The forward pass keeps the state before every step, and the gates too where all of them are small. The
backward pass takes a chunk of steps at a time: their gates again, by one product, the steps backwards to da,
then dW = Xᵀ dA, dU and dX as products of the rows of the whole chunk. So what lies between is as large as a
chunk, however long the sequence is. With R [m, p] in the parameters, "h" is what the cell shows times R, and
dR one more product.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array

from funcnet import rules
from funcnet.ops import _check, _squares
from funcnet.ops._chunks import in_chunks
from funcnet.ops._dtype import common, narrow, wide
from funcnet.ops._shape import align, known

__all__ = ["Cell", "dot", "flops", "rows", "squares", "step", "vjp"]

_KEPT = 2**26  # bytes of gates that are kept rather than computed again
_FEW = 4  # sequences, for which a step is bound by reading W, not by the product
_ROWS = 256  # of a chunk, so that its gates stay in a cache

State = Any  # a dict of arrays, by the names in `Cell.state`


class Cell(NamedTuple):
    """One step as module-level functions, so that equal cells are equal; p are W, U, R and the biases.

    Attributes:
        state: the names of the state's parts, "h" first.
        biases: the names of those that it has.
        gates: (a, h, p) -> g, of any leading axes.
        move: (g, s) -> the state after it, element by element, in float32 or wider.
        back: (g, s, ds, p) -> the cotangents of the state before, and da; p with "ut", Uᵀ.
        rows: (g, h, da) -> pairs (left, right): dU is the products leftᵀ right, side by side. The last right
            is that of the bias c inside a gate, where a cell has one.
        projected: whether it takes R.
    """

    state: tuple[str, ...]
    biases: tuple[str, ...]
    gates: Callable[..., Array]
    move: Callable[..., State]
    back: Callable[..., tuple[State, Array]]
    rows: Callable[..., list[tuple[Array, Array]]]
    projected: bool = False


def dot(x: Array, w: Array) -> Array:
    """x [..., i] times w [i, o], in the dtype of w, summed in float32 or wider."""
    over = (((x.ndim - 1,), (0,)), ((), ()))
    return lax.dot_general(x.astype(w.dtype), w, over, preferred_element_type=wide(w.dtype))


def vjp(
    cell: Cell,
    params: Mapping[str, Any],
    x: Array,
    state: Mapping[str, Any] | None,
    mask: Array | None,
    *,
    reverse: bool,
    chunk: int | None,
) -> tuple[tuple[Array, State], Partial]:
    """(y, state) of x [*n, t, d] and the pullback of their cotangents, by the cell's own formula."""
    given = _given(cell, params, x, state, mask, reverse)
    sizes = given.x.shape[:2] + params["w"].shape[1:]
    keep = chunk is None and known(*sizes) and 4 * math.prod(sizes) <= _KEPT
    chunk = _chunk(sizes[1]) if chunk is None else chunk
    end, before, gates = _forward(cell, *given, chunk=chunk, keep=keep)
    some = not known(sizes[0]) or sizes[0] > 0
    after = jnp.concatenate([before["h"][1:], end["h"][None]]) if some else before["h"]
    y = _as_given(_real(after, given.mask), x, reverse)
    end = {name: v.reshape(*x.shape[:-2], v.shape[-1]) for name, v in end.items()}
    pull = rules.bind(_pullback, cell=cell, reverse=bool(reverse), chunk=chunk)
    return (y, end), Partial(pull, params, x, state, mask, before, gates)


def _pullback(
    params: Mapping[str, Any],
    x: Array,
    state: Mapping[str, Any] | None,
    mask: Array | None,
    before: State,
    gates: Array | None,
    cotangents: tuple[Array, State],
    *,
    cell: Cell,
    reverse: bool,
    chunk: int,
) -> tuple[Any, Array, Any]:
    given = _given(cell, params, x, state, mask, reverse)
    dy, ds = _cotangents(given, cotangents, reverse)
    ds, grads, dx = _backward(cell, given.p, given.x, given.mask, before, gates, dy, ds, chunk=chunk)
    dparams = rules.like(params, {name: narrow(grad, params[name]) for name, grad in grads.items()})
    dx = narrow(_as_given(dx, x, reverse), x)
    if state is None:
        return dparams, dx, None
    dstate = {name: narrow(ds[name].reshape(state[name].shape), state[name]) for name in cell.state}
    return dparams, dx, rules.like(state, dstate)


def squares(
    cell: Cell,
    params: Mapping[str, Any],
    x: Array,
    state: Mapping[str, Any] | None,
    cotangents: tuple[Array, State],
    mask: Array | None,
    *,
    reverse: bool,
) -> Array:
    """Of each example the squared norm of its gradient: |Xᵀ dA|², those of dU's products, and of Σ dA."""
    given = _given(cell, params, x, state, mask, reverse)
    _, before, gates = _forward(cell, *given, chunk=x.shape[-2], keep=True)
    assert gates is not None
    dy, ds = _cotangents(given, cotangents, reverse)
    _, (da, dh) = _steps_back(cell, given.p, ds, (dy, given.mask, before, gates))
    rows = cell.rows(gates, before["h"], da)
    examples = lambda v: _squares.positions(_as_given(v.astype(da.dtype), x, False))
    products = [(_real(given.x, given.mask), da), *rows]
    products += [] if dh is None else [(cell.move(gates, before)["h"], dh)]
    offsets = [right for name, right in (("b", da), ("c", rows[-1][1])) if name in given.p]
    parts = [_squares.product(examples(left), examples(right)) for left, right in products]
    return functools.reduce(jnp.add, parts + [_squares.summed(examples(v).sum(1)) for v in offsets])


def rows(gates: Array, h: Array, da: Array) -> list[tuple[Array, Array]]:
    """`Cell.rows` where U takes h as it is, to all of a: dU = H₋ᵀ dA."""
    del gates
    return [(h, da)]


def flops(params: Mapping[str, Any], x: Any, names: str = "wu") -> int:
    """2 · n · t multiplications with every element of w and u, and others in `names` that there are."""
    weights = [math.prod(params[name].shape) for name in names if params.get(name) is not None]
    return 2 * math.prod(x.shape[:-1]) * sum(weights)


def step(where: str, apply: Callable[..., Any], params: Any, x: Any, state: Any) -> tuple[Array, Any]:
    """`apply` of a sequence of one step, x [*n, d]."""
    x = _check.floating(where, "x", x)
    _check.rank(where, "x", x, 1, "*n, d")
    y, state = apply(params, x[..., None, :], state)
    return y[..., 0, :], state


# ---- what was given, time first ---------------------------------------------------------------------------


class _Given(NamedTuple):
    """The parameters, x [t, b, d], the state, and the mask [t, b, 1]; in reverse the last step first."""

    p: State
    x: Array
    s: State
    mask: Array | None


def _given(cell: Cell, params: Any, x: Array, state: Any, mask: Array | None, reverse: bool) -> _Given:
    names = "wur" if cell.projected and params.get("r") is not None else "wu"
    x, *weights = common(x, *(params[name] for name in names))
    sums, p = wide(x.dtype), dict(zip(names, weights, strict=True))
    biases = {name: params[name].astype(sums) for name in cell.biases if params.get(name) is not None}
    x, real = _time_first(x, reverse), None if mask is None else _time_first(mask[..., None], reverse)
    m = p["r"].shape[0] if "r" in p else p["u"].shape[0]
    kinds = [
        ((x.shape[1], p["u"].shape[0]), x.dtype) if name == "h" else ((x.shape[1], m), sums)
        for name in cell.state
    ]
    s = [
        jnp.zeros(shape, dtype) if state is None else state[name].astype(dtype).reshape(shape)
        for name, (shape, dtype) in zip(cell.state, kinds, strict=True)
    ]
    # What a scan carries varies over the devices of a `jax.shard_map` as what comes out of a step does.
    s = rules.same_variance(*s, x, *p.values(), *biases.values())[: len(s)]
    return _Given({**p, **biases}, x, dict(zip(cell.state, s, strict=True)), real)


def _time_first(v: Array, reverse: bool) -> Array:
    """[*n, t, i] as [t, b, i]."""
    v = jnp.swapaxes(v.reshape(math.prod(v.shape[:-2]), *v.shape[-2:]), 0, 1)
    return jnp.flip(v, 0) if reverse else v


def _as_given(v: Array, x: Array, reverse: bool) -> Array:
    """[t, b, i] as [*n, t, i], the leading axes those of x."""
    return jnp.swapaxes(jnp.flip(v, 0) if reverse else v, 0, 1).reshape(*x.shape[:-1], v.shape[2])


def _cotangents(given: _Given, cotangents: tuple[Array, State], reverse: bool) -> tuple[Array, State]:
    """Those of y, 0 at padding, and of the state, in float32 or wider."""
    dy, sums = _time_first(cotangents[0], reverse), wide(given.x.dtype)
    ds = {name: cotangents[1][name].astype(sums).reshape(v.shape) for name, v in given.s.items()}
    varying = rules.same_variance(*ds.values(), dy, given.x, *given.p.values())
    return _real(dy, given.mask), dict(zip(ds, varying, strict=False))


def _real(v: Array, mask: Array | None) -> Array:
    """What padding holds is replaced before the arithmetic: 0 · NaN would be NaN in dW."""
    return v if mask is None else jnp.where(mask, v, 0)


def _or(real: Array | None, new: Array, old: Array) -> Array:
    return new if real is None else jnp.where(real, new, old)


def _chunk(b: Any) -> int:
    """How many steps are taken at a time: on one core, m = d = 256, the fastest were 16 of 32 sequences."""
    return min(max(_ROWS // max(b, 1), 16), 64) if known(b) else 16


# ---- forward ----------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("cell", "chunk", "keep"))
def _forward(
    cell: Cell, p: State, x: Array, s: State, mask: Array | None, *, chunk: int, keep: bool
) -> tuple[State, State, Array | None]:
    """The last state, those before every step [t, b, m], and their gates [t, b, k] if they are kept."""
    few = known(x.shape[1]) and x.shape[1] <= _FEW

    def steps(s: State, xs: Any) -> Any:
        x, real = xs
        form = functools.partial(_steps, cell, p, keep)
        if few:
            return form(True, s, x, real)
        apart, whole = functools.partial(form, False), functools.partial(form, True)
        return lax.platform_dependent(s, x, real, cpu=apart, default=whole)

    end, (before, gates) = in_chunks(steps, s, (_real(x, mask), mask), chunk)
    return end, before, gates


def _steps(
    cell: Cell, p: State, keep: bool, whole: bool, s: State, x: Array, mask: Array | None
) -> tuple[State, tuple[State, Array | None]]:
    """Step by step; x W by one product of the whole chunk, or on its way, while x is in the cache.

    On CPU the second is faster where a step's rows fill the unit: the result of the first is a new array as
    large as the gates.
    """

    def step(s: State, r: Any) -> Any:
        a, real = r
        gates = cell.gates(a if whole else _inputs(p, a), s["h"], p)
        after = cell.move(gates, s)
        after = {**after, "h": dot(after["h"], p["r"])} if "r" in p else after
        after = {name: _or(real, v.astype(s[name].dtype), s[name]) for name, v in after.items()}
        return after, (s, gates if keep else None)

    return lax.scan(step, s, (_inputs(p, x) if whole else x, mask))


def _inputs(p: State, x: Array) -> Array:
    """a = x W + b."""
    a = dot(x, p["w"])
    return a + align(p["b"], a.ndim) if "b" in p else a


# ---- backward ---------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("cell", "chunk"))
def _backward(
    cell: Cell,
    p: State,
    x: Array,
    mask: Array | None,
    before: State,
    gates: Array | None,
    dy: Array,
    ds: State,
    *,
    chunk: int,
) -> tuple[State, State, Array]:
    """The cotangents of the first state, of the parameters, and of x."""

    def steps(carry: Any, xs: Any) -> Any:
        ds, grads = carry
        dy, x, mask, before, gates = xs  # what is linear first: so JAX transposes scans
        x = _real(x, mask)
        gates = cell.gates(_inputs(p, x), before["h"], p) if gates is None else gates
        ds, (da, dh) = _steps_back(cell, p, ds, (dy, mask, before, gates))
        rows = cell.rows(gates, before["h"], da)
        more = {"w": _product(x, da), "u": jnp.concatenate([_product(*pair) for pair in rows], 1)}
        more |= {name: v.sum((0, 1)) for name, v in (("b", da), ("c", rows[-1][1])) if name in p}
        more |= {} if dh is None else {"r": _product(cell.move(gates, before)["h"].astype(x.dtype), dh)}
        dx = _real(dot(da, p["w"].T), mask)
        return (ds, jax.tree.map(jnp.add, grads, more)), dx.astype(x.dtype)

    zeros = [jnp.zeros(v.shape, wide(v.dtype)) for v in p.values()]
    zeros = dict(zip(p, rules.same_variance(*zeros, x, dy), strict=False))
    (ds, grads), dx = in_chunks(steps, (ds, zeros), (dy, x, mask, before, gates), chunk, reverse=True)
    return ds, grads, dx


def _steps_back(cell: Cell, p: State, ds: State, xs: Any) -> tuple[State, tuple[Array, Array | None]]:
    """The cotangents of the state before a chunk, and of its a [t, b, k]; with R, those of h [t, b, p] too.

    Padding hands on those that it gets.
    """
    # Written out once: a product with it is faster than with u from the other side.
    p = {**p, **{f"{name}t": p[name].T for name in "ur" if name in p}}

    def step(ds: State, r: Any) -> Any:
        dy, real, s, gates = r
        dh = ds["h"] + dy.astype(ds["h"].dtype)
        shown = dot(dh, p["rt"]) if "r" in p else dh
        before, da = cell.back(gates, s, {**ds, "h": shown}, p)
        of_h = _real(dh, real) if "r" in p else None
        return {name: _or(real, v, ds[name]) for name, v in before.items()}, (_real(da, real), of_h)

    return lax.scan(step, ds, xs, reverse=True)


def _product(x: Array, dy: Array) -> Array:
    """xᵀ dy over steps and sequences, in the dtype of x."""
    over = (((0, 1), (0, 1)), ((), ()))
    return lax.dot_general(x, dy.astype(x.dtype), over, preferred_element_type=wide(x.dtype))
