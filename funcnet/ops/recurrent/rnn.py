"""Plain recurrence: h_t = φ(x_t W + h_{t−1} U + b), y_t = h_t, with φ tanh or relu.

Dimensions: *n any leading axes (batch), t steps, d features, m of the state: x [*n, t, d], y [*n, t, m], w
[d, m], u [m, m], b [m], state {"h"} [*n, m]. With a mask [*n, t] a step where it is False is padding: the
state is carried over it, and y is 0. h is rounded to the dtype of y.
Sources: Elman, "Finding structure in time", Cognitive Science 14(2), 1990; relu with u = 1 at the start: Le,
Jaitly and Hinton, arXiv 1504.00941.
"""

import functools
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

_STATE = ("h",)


class Params(TypedDict):
    """Of x, w [d, m]; of the state, u [m, m]; b [m], absent for a cell without biases."""

    w: Float[Array, "d m"]
    u: Float[Array, "m m"]
    b: NotRequired[Float[Array, " m"]]


class State(TypedDict):
    """What comes out and is carried, h [*n, m]."""

    h: Float[Array, "*n m"]


def init(
    key: PRNGKeyArray, d: int, hidden: int, *, bias: bool = True, w: Initializer | None = None
) -> Params:
    """w uniform of variance 1/d, u orthogonal, b 0.

    Args:
        key: a random key.
        d: features of x.
        hidden: of the state, m.
        bias: whether there are biases.
        w: what draws w instead: ``(key, (d, m)) -> w``, as ``jax.nn.initializers.he_normal()``.

    >>> import jax
    >>> jax.tree.map(jnp.shape, init(jax.random.key(0), 3, 5))
    {'b': (5,), 'u': (5, 5), 'w': (3, 5)}
    """
    params: Any = _inputs.draw("rnn.init", key, d, hidden, 1, bias, w)
    return params


def specs(params: Params) -> dict[str, Spec]:
    """Which matrices w and u are: features in by state, state by state. b is none."""
    return spec.tree("rnn.specs", params, {"w": ("d m", "io"), "u": ("m_in m", "io"), "b": ("m",)})


def reference(
    params: Params,
    x: Float[Array, "*n t d"],
    state: State | None = None,
    *,
    mask: Bool[Array, "*n t"] | None = None,
    reverse: bool = False,
    activation: str = "tanh",
) -> tuple[Float[Array, "*n t m"], State]:
    """The state of every step, one after the other, as it is written."""
    w, u, x = common(params["w"], params["u"], x)
    sums, phi = wide(x.dtype), {"tanh": jnp.tanh, "relu": nn.relu}[activation]
    real = jnp.ones(x.shape[:-1], bool) if mask is None else mask
    x = jnp.where(real[..., None], x, 0)
    h = jnp.zeros((*x.shape[:-2], u.shape[0])) if state is None else state["h"]

    def one(h: Array, at: Any) -> Any:
        x, real = at
        z = jnp.matmul(x, w, preferred_element_type=sums) + jnp.matmul(h, u, preferred_element_type=sums)
        h_ = phi(_bias.add(z, params)).astype(h.dtype)
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
    activation: str = "tanh",
    chunk: int | None = None,
) -> tuple[Float[Array, "*n t m"], State]:
    """Read x step by step; y is the h of every step.

    Differentiated by `vjp`, a chunk of steps at a time: JAX's own rule adds to dU once a step.

    Args:
        params: w [d, m], u [m, m] and, unless absent, b [m].
        x: [*n, t, d].
        state: {"h"}, [*n, m], before the first step, with a gradient; None is zeros.
        mask: boolean [*n, t], False where there is padding, which may hold anything: the state is carried
            over it, y is 0 there. So sequences may end, and begin, where they like.
        reverse: read from the last step to the first; y stays in the order of x.
        activation: "tanh" or "relu".
        chunk: how many steps the backward pass takes at a time. None: as fits a cache; and h of every
            step is kept if that takes 64 MiB at most. A number: it is always computed again.

    Returns:
        y [*n, t, m] and the state after the last step that was read, in the dtype that holds params and x.

    Raises:
        ShapeError: x does not have d features, or parameters, state or mask do not fit.
        DTypeError: an array is not floating-point, mask is not boolean, or reverse or chunk is traced.
        ValueRangeError: chunk is below 1, or activation is something else.
        StructureError: params lacks "w" or "u", or state "h".

    >>> params = fn.rnn.init(jax.random.key(0), 3, 4)
    >>> y, state = fn.rnn.apply(params, jnp.ones((2, 5, 3)))
    >>> y.shape, jax.tree.map(jnp.shape, state)
    ((2, 5, 4), {'h': (2, 4)})
    """
    x, mask, chunk = _inputs.check("rnn.apply", 1, _STATE, params, x, state, mask, chunk)
    reverse = _check.flag("rnn.apply", "reverse", reverse)
    _check.one_of("rnn.apply", "activation", activation, ("tanh", "relu"))
    return rules.call(vjp, params, x, state, mask=mask, reverse=reverse, activation=activation, chunk=chunk)


def vjp(
    params: Params,
    x: Float[Array, "*n t d"],
    state: State | None = None,
    *,
    mask: Bool[Array, "*n t"] | None = None,
    reverse: bool = False,
    activation: str = "tanh",
    chunk: int | None = None,
) -> tuple[tuple[Float[Array, "*n t m"], State], Partial]:
    """(y, state) and the pullback of their cotangents; dh is carried from the last step to the first.

    At each dh += dy, dz = dh φ'(z), which is dh (1 − h²) or where h > 0 dh, and then dh = dz Uᵀ. At the end
    dX = dZ Wᵀ, dW = Xᵀ dZ, dU = H₋ᵀ dZ, db = Σ dZ. Kept is h₋ of every step.
    """
    _check.mapping("rnn.vjp", "params", params)
    return _scan.vjp(_CELLS[activation], params, x, state, mask, reverse=reverse, chunk=chunk)


def _tanh(a: Array, h: Array, p: dict[str, Array]) -> Array:
    return jnp.tanh(a + dot(h, p["u"]))


def _relu(a: Array, h: Array, p: dict[str, Array]) -> Array:
    return nn.relu(a + dot(h, p["u"]))


def _move(h: Array, s: dict[str, Array]) -> dict[str, Array]:
    del s
    return {"h": h}


def _back_tanh(
    h: Array, s: dict[str, Array], ds: dict[str, Array], p: dict[str, Array]
) -> tuple[dict[str, Array], Array]:
    del s
    dz = ds["h"] * (1 - h * h)
    return {"h": dot(dz, p["ut"])}, dz


def _back_relu(
    h: Array, s: dict[str, Array], ds: dict[str, Array], p: dict[str, Array]
) -> tuple[dict[str, Array], Array]:
    del s
    dz = jnp.where(h > 0, ds["h"], 0)
    return {"h": dot(dz, p["ut"])}, dz


_CELLS = {
    "tanh": Cell(_STATE, ("b",), _tanh, _move, _back_tanh, _scan.rows),
    "relu": Cell(_STATE, ("b",), _relu, _move, _back_relu, _scan.rows),
}


def cost(
    params: Params,
    x: Float[Abstract, "*n t d"],
    state: State | None = None,
    *,
    mask: Bool[Abstract, "*n t"] | None = None,
    reverse: bool = False,
    activation: str = "tanh",
) -> Cost:
    """2 · n · t · m (d + m) flops, and the bytes of params, x, the mask, y and the states."""
    _check.mapping("rnn.cost", "params", params)
    return Cost(
        _scan.flops(params, x),
        traffic(reference, params, x, state, mask=mask, reverse=reverse, activation=activation),
    )


def squares(
    params: Params,
    x: Float[Array, "n *k t d"],
    state: State | None,
    dy: tuple[Float[Array, "n *k t m"], State],
    *,
    mask: Bool[Array, "n ..."] | None = None,
    reverse: bool = False,
    activation: str = "tanh",
    chunk: int | None = None,
) -> Float[Array, " n"]:
    """|Xᵀ dZ|² + |H₋ᵀ dZ|² + |Σ dZ|² of each example, dZ those of all its steps."""
    del chunk
    _squares.examples("rnn.squares", "x", x, 2)
    return _scan.squares(_CELLS[activation], params, x, state, dy, mask, reverse=reverse)


def step(
    params: Params, x: Float[Array, "*n d"], state: State | None = None, *, activation: str = "tanh"
) -> tuple[Float[Array, "*n m"], State]:
    """One step of `apply`, for steps that come one by one: y [*n, m] of x [*n, d], and the state after it.

    >>> import jax
    >>> params = init(jax.random.key(0), 3, 5)
    >>> y, state = step(params, jnp.ones((2, 3)))
    >>> y, state = step(params, jnp.ones((2, 3)), state)
    >>> bool((y == state["h"]).all())
    True
    """
    return _scan.step("rnn.step", functools.partial(apply, activation=activation), params, x, state)
