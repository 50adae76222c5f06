"""Gated recurrent unit: a state h that gates reset and keep, step by step.

    a_t = x_t W + b,  q_t = h_{t−1} U,  r = σ(a_r + q_r),  z = σ(a_z + q_z),
    n = tanh(a_n + r ⊙ (q_n + c)),  h_t = (1 − z) ⊙ n + z ⊙ h_{t−1},  y_t = h_t

With reset="before" the state is reset before its product, not after it: n = tanh(a_n + (r ⊙ h_{t−1}) U_n
+ c). That is another function of the same parameters.

Dimensions: *n any leading axes (batch), t steps, d features, m of the state: x [*n, t, d], y [*n, t, m], w
[d, 3m], u [m, 3m], b [3m], c [m], the gates side by side in the order r z n, state {"h"} [*n, m]. With a mask
[*n, t] a step where it is False is padding: the state is carried over it, and y is 0. h is rounded to the
dtype of y.
Sources: Cho et al., "Learning phrase representations using RNN encoder-decoder", arXiv 1406.1078 (before,
with 1 − z for our z); the reset after the product, as in cuDNN: Appleyard et al., arXiv 1604.01946.
"""

import functools
from typing import Any, NotRequired, TypedDict

import jax.numpy as jnp
from jax import lax, nn
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from funcnet import rules, spec
from funcnet.errors import describe
from funcnet.ops import _bias, _check, _squares
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._draw import Initializer
from funcnet.ops._dtype import common, wide
from funcnet.ops._shape import align
from funcnet.ops.recurrent import _inputs, _scan
from funcnet.ops.recurrent._scan import Cell, dot
from funcnet.spec import Spec

__all__ = ["Params", "State", "apply", "cost", "init", "reference", "specs", "squares", "step", "vjp"]

_STATE = ("h",)


class Params(TypedDict):
    """Of x, w [d, 3m] and b [3m]; of the state, u [m, 3m] and c [m]; b and c may be absent."""

    w: Float[Array, "d 3*m"]
    u: Float[Array, "m 3*m"]
    b: NotRequired[Float[Array, " 3*m"]]
    c: NotRequired[Float[Array, " m"]]


class State(TypedDict):
    """What comes out and is carried, h [*n, m]."""

    h: Float[Array, "*n m"]


def init(
    key: PRNGKeyArray, d: int, hidden: int, *, bias: bool = True, w: Initializer | None = None
) -> Params:
    """w uniform of variance 1/d, the u of each gate orthogonal, b and c 0.

    Args:
        key: a random key.
        d: features of x.
        hidden: of the state, m.
        bias: whether there are biases.
        w: what draws w instead, for each gate: ``(key, (d, m)) -> w``, as
            ``jax.nn.initializers.he_normal()``.

    >>> import jax
    >>> jax.tree.map(jnp.shape, init(jax.random.key(0), 3, 5))
    {'b': (15,), 'c': (5,), 'u': (5, 15), 'w': (3, 15)}
    """
    params: Any = _inputs.draw("gru.init", key, d, hidden, 3, bias, w)
    return params | ({"c": jnp.zeros_like(params["u"][:, 0])} if "b" in params else {})


def specs(params: Params) -> dict[str, Spec]:
    """Which matrices w and u are: features in by gates, state by gates. b and c are none."""
    names = {"w": ("d gates", "io"), "u": ("m gates", "io"), "b": ("gates",), "c": ("m",)}
    return spec.tree("gru.specs", params, names)


def reference(
    params: Params,
    x: Float[Array, "*n t d"],
    state: State | None = None,
    *,
    mask: Bool[Array, "*n t"] | None = None,
    reverse: bool = False,
    reset: str = "after",
) -> tuple[Float[Array, "*n t m"], State]:
    """The gates and the state of every step, one after the other, as they are written."""
    w, u, x = common(params["w"], params["u"], x)
    sums, m = wide(x.dtype), u.shape[0]
    real = jnp.ones(x.shape[:-1], bool) if mask is None else mask
    x = jnp.where(real[..., None], x, 0)
    h = jnp.zeros((*x.shape[:-2], m)) if state is None else state["h"]
    product = functools.partial(jnp.matmul, preferred_element_type=sums)
    bias = {"b": params.get("c")}

    def one(h: Array, at: Any) -> Any:
        x, real = at
        a = _bias.add(product(x, w), params)
        rz = nn.sigmoid(a[..., : 2 * m] + product(h, u[:, : 2 * m]))
        r, z = rz[..., :m], rz[..., m:]
        if reset == "after":
            q = r * _bias.add(product(h, u[:, 2 * m :]), bias)
        else:
            q = _bias.add(product((r * h).astype(h.dtype), u[:, 2 * m :]), bias)
        n = jnp.tanh(a[..., 2 * m :] + q)
        h_ = ((1 - z) * n + z * h).astype(h.dtype)
        return jnp.where(real[..., None], h_, h), jnp.where(real[..., None], h_, 0)

    steps = jnp.moveaxis(x, -2, 0), jnp.moveaxis(real, -1, 0)
    h, y = lax.scan(one, h.astype(x.dtype), steps, reverse=reverse)
    return jnp.moveaxis(y, 0, -2), {"h": h}


@rules.operation
def apply(
    params: Params,
    x: Float[Array, "*n t d"],
    state: State | None = None,
    *,
    mask: Bool[Array, "*n t"] | None = None,
    reverse: bool = False,
    reset: str = "after",
    chunk: int | None = None,
) -> tuple[Float[Array, "*n t m"], State]:
    """Read x step by step; y is the h of every step.

    Differentiated by `vjp`, a chunk of steps at a time: JAX's own rule keeps the gates of all steps several
    times over, and adds to dU once a step.

    Args:
        params: w [d, 3m], u [m, 3m] and, unless absent, b [3m] and c [m]; gates in the order r z n.
        x: [*n, t, d].
        state: {"h"}, [*n, m], before the first step, with a gradient; None is zeros.
        mask: boolean [*n, t], False where there is padding, which may hold anything: the state is carried
            over it, y is 0 there. So sequences may end, and begin, where they like.
        reverse: read from the last step to the first; y stays in the order of x.
        reset: whether r multiplies the state "after" its product with U_n, as in cuDNN, or "before" it.
        chunk: how many steps the backward pass takes at a time. None: as fits a cache; and the gates of all
            steps are kept if they take 64 MiB at most. A number: they are always computed again.

    Returns:
        y [*n, t, m] and the state after the last step that was read, in the dtype that holds params and x.

    Raises:
        ShapeError: x does not have d features, or parameters, state or mask do not fit.
        DTypeError: an array is not floating-point, mask is not boolean, or reverse or chunk is traced.
        ValueRangeError: chunk is below 1, or reset is something else.
        StructureError: params lacks "w" or "u", or state "h".

    >>> params = fn.gru.init(jax.random.key(0), 3, 4)
    >>> y, state = fn.gru.apply(params, jnp.ones((2, 5, 3)))
    >>> y.shape, jax.tree.map(jnp.shape, state)
    ((2, 5, 4), {'h': (2, 4)})
    """
    where = "gru.apply"
    x, mask, chunk = _inputs.check(where, 3, _STATE, params, x, state, mask, chunk)
    if params.get("c") is not None:
        c, u = _check.parameter(where, params, "c", ndim=1), params["u"]
        _check.features(where, c, u.shape[0], f'params["u"] ({describe(u)})', path='params["c"]', dims="")
    reverse = _check.flag(where, "reverse", reverse)
    _check.one_of(where, "reset", reset, ("after", "before"))
    return rules.call(vjp, params, x, state, mask=mask, reverse=reverse, reset=reset, chunk=chunk)


def vjp(
    params: Params,
    x: Float[Array, "*n t d"],
    state: State | None = None,
    *,
    mask: Bool[Array, "*n t"] | None = None,
    reverse: bool = False,
    reset: str = "after",
    chunk: int | None = None,
) -> tuple[tuple[Float[Array, "*n t m"], State], Partial]:
    """(y, state) and the pullback of their cotangents; dh is carried from the last step to the first.

    At each dh += dy, da_n = dh (1 − z) (1 − n²), da_z = dh (h₋ − n) z (1 − z), da_r = da_n (q_n + c) r
    (1 − r), dq = [da_r, da_z, r da_n], and then dh = dh z + dq Uᵀ. At the end dX = dA Wᵀ, dW = Xᵀ dA,
    db = Σ dA, dU = H₋ᵀ dQ, dc = Σ dq_n. Reset before: with e = da_n U_nᵀ, da_r = e h₋ r (1 − r), and r e is
    in the place of r da_n U_nᵀ; dU_n = (r H₋)ᵀ dA_n, dc = Σ da_n. Kept is h₋ of every step.
    """
    _check.mapping("gru.vjp", "params", params)
    return _scan.vjp(_CELLS[reset], params, x, state, mask, reverse=reverse, chunk=chunk)


def _gates(a: Array, h: Array, p: dict[str, Array]) -> Array:
    """r, z, n, and q_n + c, which r is multiplied with."""
    (a_r, a_z, a_n), (q_r, q_z, q_n) = jnp.split(a, 3, -1), jnp.split(dot(h, p["u"]), 3, -1)
    r, z, q_n = nn.sigmoid(a_r + q_r), nn.sigmoid(a_z + q_z), _with_offset(q_n, p)
    return jnp.concatenate([r, z, jnp.tanh(a_n + r * q_n), q_n], -1)


def _gates_before(a: Array, h: Array, p: dict[str, Array]) -> Array:
    m = h.shape[-1]
    rz = nn.sigmoid(a[..., : 2 * m] + dot(h, p["u"][:, : 2 * m]))
    q_n = _with_offset(dot(rz[..., :m] * h.astype(rz.dtype), p["u"][:, 2 * m :]), p)
    return jnp.concatenate([rz, jnp.tanh(a[..., 2 * m :] + q_n)], -1)


def _with_offset(q: Array, p: dict[str, Array]) -> Array:
    return q + align(p["c"], q.ndim) if "c" in p else q


def _move(gates: Array, s: dict[str, Array]) -> dict[str, Array]:
    _, z, n, *_ = _apart(gates, s["h"])
    return {"h": (1 - z) * n + z * s["h"].astype(z.dtype)}


def _apart(gates: Array, h: Array) -> list[Array]:
    return jnp.split(gates, gates.shape[-1] // h.shape[-1], -1)


def _back(
    gates: Array, s: dict[str, Array], ds: dict[str, Array], p: dict[str, Array]
) -> tuple[dict[str, Array], Array]:
    r, z, n, q_n = _apart(gates, s["h"])
    dh, h = ds["h"], s["h"].astype(z.dtype)
    da_n = dh * ((1 - z) * (1 - n * n))
    da_z = dh * ((h - n) * (z * (1 - z)))
    da_r = da_n * (q_n * (r * (1 - r)))
    dq = jnp.concatenate([da_r, da_z, da_n * r], -1)
    return {"h": dh * z + dot(dq, p["ut"])}, jnp.concatenate([da_r, da_z, da_n], -1)


def _back_before(
    gates: Array, s: dict[str, Array], ds: dict[str, Array], p: dict[str, Array]
) -> tuple[dict[str, Array], Array]:
    r, z, n = _apart(gates, s["h"])
    dh, h, m = ds["h"], s["h"].astype(z.dtype), s["h"].shape[-1]
    da_n = dh * ((1 - z) * (1 - n * n))
    e = dot(da_n, p["ut"][2 * m :])
    da_rz = jnp.concatenate([e * (h * (r * (1 - r))), dh * ((h - n) * (z * (1 - z)))], -1)
    return {"h": dh * z + e * r + dot(da_rz, p["ut"][: 2 * m])}, jnp.concatenate([da_rz, da_n], -1)


def _rows(gates: Array, h: Array, da: Array) -> list[tuple[Array, Array]]:
    m = h.shape[-1]
    return [(h, da[..., : 2 * m]), (h, da[..., 2 * m :] * gates[..., :m])]


def _rows_before(gates: Array, h: Array, da: Array) -> list[tuple[Array, Array]]:
    m, r = h.shape[-1], gates[..., : h.shape[-1]]
    return [(h, da[..., : 2 * m]), ((r * h.astype(r.dtype)).astype(h.dtype), da[..., 2 * m :])]


_CELLS = {
    "after": Cell(_STATE, ("b", "c"), _gates, _move, _back, _rows),
    "before": Cell(_STATE, ("b", "c"), _gates_before, _move, _back_before, _rows_before),
}


def cost(
    params: Params,
    x: Float[Abstract, "*n t d"],
    state: State | None = None,
    *,
    mask: Bool[Abstract, "*n t"] | None = None,
    reverse: bool = False,
    reset: str = "after",
) -> Cost:
    """2 · n · t · 3m (d + m) flops, and the bytes of params, x, the mask, y and the states."""
    _check.mapping("gru.cost", "params", params)
    return Cost(
        _scan.flops(params, x), traffic(reference, params, x, state, mask=mask, reverse=reverse, reset=reset)
    )


def squares(
    params: Params,
    x: Float[Array, "n *k t d"],
    state: State | None,
    dy: tuple[Float[Array, "n *k t m"], State],
    *,
    mask: Bool[Array, "n ..."] | None = None,
    reverse: bool = False,
    reset: str = "after",
    chunk: int | None = None,
) -> Float[Array, " n"]:
    """|Xᵀ dA|² + |dU|² + |Σ dA|² + |Σ dq_n|² of each example, over all its steps, dU by its rows too."""
    del chunk
    _squares.examples("gru.squares", "x", x, 2)
    return _scan.squares(_CELLS[reset], params, x, state, dy, mask, reverse=reverse)


def step(
    params: Params, x: Float[Array, "*n d"], state: State | None = None, *, reset: str = "after"
) -> tuple[Float[Array, "*n m"], State]:
    """One step of `apply`, for steps that come one by one: y [*n, m] of x [*n, d], and the state after it.

    >>> import jax
    >>> params = init(jax.random.key(0), 3, 5)
    >>> y, state = step(params, jnp.ones((2, 3)))
    >>> y, state = step(params, jnp.ones((2, 3)), state)
    >>> bool((y == state["h"]).all())
    True
    """
    return _scan.step("gru.step", functools.partial(apply, reset=reset), params, x, state)
