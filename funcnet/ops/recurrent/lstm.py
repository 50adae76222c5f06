"""Long short-term memory: a state (h, c) that gates let in, keep and show, step by step.

    z_t = x_t W + h_{t−1} U + b,  (i, f, g, o) = (σ(z_i), σ(z_f), tanh(z_g), σ(z_o)),
    c_t = f c_{t−1} + i g,  h_t = o tanh(c_t),  y_t = h_t

Dimensions: *n any leading axes (batch), t steps, d features, m of the state: x [*n, t, d], y [*n, t, m], w
[d, 4m], u [m, 4m], b [4m], the gates side by side in the order i f g o, state {"h", "c"} [*n, m]. With a mask
[*n, t] a step where it is False is padding: the state is carried over it, and y is 0. h is rounded to the
dtype of y, c is in float32 or wider. With a projection R [m, p], h_t = (o tanh(c_t)) R: u is then [p, 4m], h
and y have p features, c has m.
Source: Hochreiter and Schmidhuber, "Long short-term memory", Neural Computation 9(8), 1997; the gate f: Gers,
Schmidhuber and Cummins, Neural Computation 12(10), 2000; a bias of 1 in it: Jozefowicz et al., ICML 2015; R:
Sak, Senior and Beaufays, arXiv 1402.1128.
"""

from typing import Any, NotRequired, TypedDict

import jax.numpy as jnp
from jax import lax, nn
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from funcnet import rules, spec
from funcnet.ops import _bias, _check, _squares
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._draw import Initializer
from funcnet.ops._dtype import common, wide
from funcnet.ops.recurrent import _inputs, _scan
from funcnet.ops.recurrent._scan import Cell, dot
from funcnet.spec import Spec

__all__ = ["Params", "State", "apply", "cost", "init", "reference", "specs", "squares", "step", "vjp"]

_STATE = ("h", "c")


class Params(TypedDict):
    """Of x, w [d, 4m]; of the state, u [p, 4m]; b [4m] may be absent, and so r [m, p], where p = m."""

    w: Float[Array, "d 4*m"]
    u: Float[Array, "p 4*m"]
    b: NotRequired[Float[Array, " 4*m"]]
    r: NotRequired[Float[Array, "m p"]]


class State(TypedDict):
    """What comes out, h [*n, p], and what is kept inside, c [*n, m]."""

    h: Float[Array, "*n p"]
    c: Float[Array, "*n m"]


def init(
    key: PRNGKeyArray,
    d: int,
    hidden: int,
    *,
    bias: bool = True,
    projection: int | None = None,
    w: Initializer | None = None,
) -> Params:
    """w uniform of variance 1/d, the u of each gate orthogonal, b 1 for the gate f, to keep c, else 0.

    Args:
        key: a random key.
        d: features of x.
        hidden: of the state, m.
        bias: whether there are biases.
        projection: features of h, then r is uniform of variance 1/m; None: those of c, without r.
        w: what draws w instead, for each gate: ``(key, (d, m)) -> w``, as
            ``jax.nn.initializers.he_normal()``.

    >>> import jax
    >>> jax.tree.map(jnp.shape, init(jax.random.key(0), 3, 5))
    {'b': (20,), 'u': (5, 20), 'w': (3, 20)}
    """
    params: Any = _inputs.draw("lstm.init", key, d, hidden, 4, bias, w, projection)
    if "b" in params:
        m = params["u"].shape[1] // 4
        params["b"] = params["b"].at[m : 2 * m].set(1)
    return params


def specs(params: Params) -> dict[str, Spec]:
    """Which matrices w, u and r are: features in by gates, state by gates, state by projection. b is none."""
    names = {"w": ("d gates", "io"), "u": ("p gates", "io"), "b": ("gates",), "r": ("m p", "io")}
    return spec.tree("lstm.specs", params, names)


def reference(
    params: Params,
    x: Float[Array, "*n t d"],
    state: State | None = None,
    *,
    mask: Bool[Array, "*n t"] | None = None,
    reverse: bool = False,
) -> tuple[Float[Array, "*n t p"], State]:
    """The gates and the state of every step, one after the other, as they are written."""
    projection = [v for v in (params.get("r"),) if v is not None]
    w, u, x, *r = common(params["w"], params["u"], x, *projection)
    sums = wide(x.dtype)
    real = jnp.ones(x.shape[:-1], bool) if mask is None else mask
    x = jnp.where(real[..., None], x, 0)
    zeros = [jnp.zeros((*x.shape[:-2], size), sums) for size in (u.shape[0], u.shape[1] // 4)]
    h, c = zeros if state is None else (state["h"], state["c"])

    def one(s: Any, at: Any) -> Any:
        (h, c), (x, real) = s, at
        z = jnp.matmul(x, w, preferred_element_type=sums) + jnp.matmul(h, u, preferred_element_type=sums)
        i, f, g, o = jnp.split(_bias.add(z, params), 4, -1)
        c_ = nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g)
        h_ = (nn.sigmoid(o) * jnp.tanh(c_)).astype(h.dtype)
        h_ = jnp.matmul(h_, r[0], preferred_element_type=sums).astype(h.dtype) if r else h_
        s = jnp.where(real[..., None], h_, h), jnp.where(real[..., None], c_, c)
        return s, jnp.where(real[..., None], h_, 0)

    steps = jnp.moveaxis(x, -2, 0), jnp.moveaxis(real, -1, 0)
    (h, c), y = lax.scan(one, (h.astype(x.dtype), c.astype(sums)), steps, reverse=reverse)
    return jnp.moveaxis(y, 0, -2), {"h": h, "c": c}


@rules.operation
def apply(
    params: Params,
    x: Float[Array, "*n t d"],
    state: State | None = None,
    *,
    mask: Bool[Array, "*n t"] | None = None,
    reverse: bool = False,
    chunk: int | None = None,
) -> tuple[Float[Array, "*n t p"], State]:
    """Read x step by step; y is the h of every step.

    Differentiated by `vjp`, a chunk of steps at a time: JAX's own rule keeps the gates of all steps several
    times over, and adds to dU once a step.

    Args:
        params: w [d, 4m], u [m, 4m] and, unless absent, b [4m]; gates in the order i f g o. With r [m, p],
            which projects h, u is [p, 4m].
        x: [*n, t, d].
        state: {"h", "c"}, [*n, p] (without r p = m) and [*n, m], before the first step, with a gradient; None
            is zeros.
        mask: boolean [*n, t], False where there is padding, which may hold anything: the state is carried
            over it, y is 0 there. So sequences may end, and begin, where they like.
        reverse: read from the last step to the first; y stays in the order of x.
        chunk: how many steps the backward pass takes at a time. None: as fits a cache; and the gates of all
            steps are kept if they take 64 MiB at most. A number: they are always computed again.

    Returns:
        y [*n, t, p], in the dtype that holds params and x, and the state after the last step that was read:
        h in that dtype, c in it or, if that is wider, in float32.

    Raises:
        ShapeError: x does not have d features, or parameters, state or mask do not fit.
        DTypeError: an array is not floating-point, mask is not boolean, or reverse or chunk is traced.
        ValueRangeError: chunk is below 1.
        StructureError: params lacks "w" or "u", or state "h" or "c".

    >>> params = fn.lstm.init(jax.random.key(0), 3, 4)
    >>> y, state = fn.lstm.apply(params, jnp.ones((2, 5, 3)))
    >>> y.shape, jax.tree.map(jnp.shape, state)
    ((2, 5, 4), {'c': (2, 4), 'h': (2, 4)})
    """
    x, mask, chunk = _inputs.check("lstm.apply", 4, _STATE, params, x, state, mask, chunk, projected=True)
    reverse = _check.flag("lstm.apply", "reverse", reverse)
    return rules.call(vjp, params, x, state, mask=mask, reverse=reverse, chunk=chunk)


def vjp(
    params: Params,
    x: Float[Array, "*n t d"],
    state: State | None = None,
    *,
    mask: Bool[Array, "*n t"] | None = None,
    reverse: bool = False,
    chunk: int | None = None,
) -> tuple[tuple[Float[Array, "*n t p"], State], Partial]:
    """(y, state) and the pullback of their cotangents; dh and dc are carried from the last step to the first.

    At each dh += dy, dc += dh o (1 − tanh² c), dz = [dc g i (1 − i), dc c₋ f (1 − f), dc i (1 − g²),
    dh tanh c o (1 − o)], and then dh = dz Uᵀ, dc = dc f. At the end dX = dZ Wᵀ, dW = Xᵀ dZ, dU = H₋ᵀ dZ,
    db = Σ dZ. Kept are h₋ and c₋ of every step. With R, what is o tanh c gets dh Rᵀ, and dR = (O tanh C)ᵀ dH.
    """
    _check.mapping("lstm.vjp", "params", params)
    return _scan.vjp(_CELL, params, x, state, mask, reverse=reverse, chunk=chunk)


def _gates(a: Array, h: Array, p: dict[str, Array]) -> Array:
    i, f, g, o = jnp.split(a + dot(h, p["u"]), 4, -1)
    return jnp.concatenate([nn.sigmoid(i), nn.sigmoid(f), jnp.tanh(g), nn.sigmoid(o)], -1)


def _move(gates: Array, s: dict[str, Array]) -> dict[str, Array]:
    i, f, g, o = jnp.split(gates, 4, -1)
    c = f * s["c"] + i * g
    return {"h": o * jnp.tanh(c), "c": c}


def _back(
    gates: Array, s: dict[str, Array], ds: dict[str, Array], p: dict[str, Array]
) -> tuple[dict[str, Array], Array]:
    i, f, g, o = jnp.split(gates, 4, -1)
    tanh = jnp.tanh(f * s["c"] + i * g)
    dh, dc = ds["h"], ds["c"] + ds["h"] * (o * (1 - tanh * tanh))
    of_gates = (
        dc * (g * i * (1 - i)),
        dc * (s["c"] * f * (1 - f)),
        dc * (i * (1 - g * g)),
        dh * (tanh * o * (1 - o)),
    )
    dz = jnp.concatenate(of_gates, -1)
    return {"h": dot(dz, p["ut"]), "c": dc * f}, dz


_CELL = Cell(_STATE, ("b",), _gates, _move, _back, _scan.rows, projected=True)


def cost(
    params: Params,
    x: Float[Abstract, "*n t d"],
    state: State | None = None,
    *,
    mask: Bool[Abstract, "*n t"] | None = None,
    reverse: bool = False,
) -> Cost:
    """2 · n · t · (4m (d + p) + m p) flops, m p with r; the bytes of params, x, the mask, y, the states."""
    _check.mapping("lstm.cost", "params", params)
    return Cost(
        _scan.flops(params, x, "wur"), traffic(reference, params, x, state, mask=mask, reverse=reverse)
    )


def squares(
    params: Params,
    x: Float[Array, "n *k t d"],
    state: State | None,
    dy: tuple[Float[Array, "n *k t p"], State],
    *,
    mask: Bool[Array, "n ..."] | None = None,
    reverse: bool = False,
    chunk: int | None = None,
) -> Float[Array, " n"]:
    """|Xᵀ dZ|² + |H₋ᵀ dZ|² + |Σ dZ|² + |(O tanh C)ᵀ dH|² of each example, of all its steps."""
    del chunk
    _squares.examples("lstm.squares", "x", x, 2)
    return _scan.squares(_CELL, params, x, state, dy, mask, reverse=reverse)


def step(
    params: Params, x: Float[Array, "*n d"], state: State | None = None
) -> tuple[Float[Array, "*n p"], State]:
    """One step of `apply`, for steps that come one by one: y [*n, p] of x [*n, d], and the state after it.

    >>> import jax
    >>> params = init(jax.random.key(0), 3, 5)
    >>> y, state = step(params, jnp.ones((2, 3)))
    >>> y, state = step(params, jnp.ones((2, 3)), state)
    >>> bool((y == state["h"]).all())
    True
    """
    return _scan.step("lstm.step", apply, params, x, state)
