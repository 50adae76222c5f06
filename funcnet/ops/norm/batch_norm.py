"""Batch normalisation: y = w · x̂ + b, with x̂ = (x − mean) / √(variance + eps) for each channel.

Dimensions: *n any axes (batch and positions alike), c channels: x, y [*n, c], params w, b [c], state mean,
var [c]. In training the statistics are those of x over every axis but the last, with the biased variance
(1/n, n = Π *n), and the state moves towards them: new = momentum · old + (1 − momentum) · batch, there with
the unbiased variance (1/(n − 1)). In evaluation the statistics are those of the state. The state has no
gradient. With a mask [*n], all of this is of the elements where it is True, as if the others were not there;
those have y = 0.
Source: Ioffe and Szegedy, "Batch Normalization", arXiv 1502.03167. Statistics are in float32 or wider.
"""

import math
from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from funcnet import rules, spec
from funcnet.errors import DTypeError, ShapeError, StructureError, ValueRangeError, describe
from funcnet.ops import _bias, _check, _squares
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._dtype import common, narrow, wide
from funcnet.ops._shape import align, count
from funcnet.spec import Spec

__all__ = ["Params", "State", "apply", "cost", "init", "reference", "specs", "squares", "vjp"]


class Params(TypedDict):
    """Gain w [c]; offset b [c], absent for a norm without offset."""

    w: Float[Array, " c"]
    b: NotRequired[Float[Array, " c"]]


class State(TypedDict):
    """Running mean [c] and unbiased variance [c], float32 or wider."""

    mean: Float[Array, " c"]
    var: Float[Array, " c"]


def init(key: PRNGKeyArray, c: int, *, bias: bool = True) -> tuple[Params, State]:
    """Params w = 1, b = 0 and state mean = 0, var = 1; the key is not used.

    >>> import jax
    >>> jax.tree.map(jnp.shape, init(jax.random.key(0), 3))
    ({'b': (3,), 'w': (3,)}, {'mean': (3,), 'var': (3,)})
    """
    del key
    one = jnp.ones((_check.positive("batch_norm.init", "c", c),))
    params: Params = (
        {"w": one, "b": jnp.zeros_like(one)} if _check.flag("batch_norm.init", "bias", bias) else {"w": one}
    )
    return params, {"mean": jnp.zeros_like(one), "var": jnp.ones_like(one)}


def specs(params: Params) -> dict[str, Spec]:
    """Gains and biases are no matrices."""
    return spec.tree("batch_norm.specs", params, {"w": ("c",), "b": ("c",)})


def reference(
    params: Params,
    state: State,
    x: Float[Array, "*n c"],
    *,
    train: bool,
    mask: Bool[Array, "*n"] | None = None,
    momentum: float = 0.9,
    eps: float = 1e-5,
) -> tuple[Float[Array, "*n c"], State]:
    """y = w · (x − mean) / √(variance + eps) + b, and the state after it, as they are written."""
    w, x = common(params["w"], x)
    real = jnp.ones((*x.shape[:-1], 1), bool) if mask is None else mask[..., None]
    h = jnp.where(real, x, 0).astype(wide(x.dtype))
    old: State = {"mean": lax.stop_gradient(state["mean"]), "var": lax.stop_gradient(state["var"])}
    mean, variance, state = old["mean"].astype(h.dtype), old["var"].astype(h.dtype), old
    if train and 0 not in x.shape[:-1]:
        over, n = tuple(range(x.ndim - 1)), real.sum().astype(h.dtype)
        mean = h.sum(over) / jnp.maximum(n, 1)
        variance = jnp.where(real, (h - align(mean, x.ndim)) ** 2, 0).sum(over) / jnp.maximum(n, 1)
        batch = lax.stop_gradient({"mean": mean, "var": variance * n / jnp.maximum(n - 1, 1)})
        moved = lambda s, b: jnp.where(n > 1, momentum * s + (1 - momentum) * b.astype(s.dtype), s)
        state = {"mean": moved(old["mean"], batch["mean"]), "var": moved(old["var"], batch["var"])}
    mean, variance, w = (align(v, x.ndim) for v in (mean, variance, w))
    y = _bias.add(w * ((h - mean) / jnp.sqrt(variance + eps)).astype(x.dtype), params)
    return jnp.where(real, y, 0), state


@rules.operation
def apply(
    params: Params,
    state: State,
    x: Float[Array, "*n c"],
    *,
    train: bool,
    mask: Bool[Array, "*n"] | None = None,
    momentum: float = 0.9,
    eps: float = 1e-5,
) -> tuple[Float[Array, "*n c"], State]:
    """Normalise each channel of x over all its other axes, then scale it by w and shift it by b.

    Differentiated by `vjp`, which keeps x, the means and 1/σ; JAX's own rule keeps several arrays like x.
    Under `jax.shard_map` the statistics are those of the local shard; under `jax.jit` those of the whole x.

    Args:
        params: w [c] and, unless absent, b [c].
        state: mean [c] and var [c], float32 or wider.
        x: [*n, c]. An empty x has no statistics: it leaves the state as it is. Squares are taken: in float32
            elements that differ by 1e19 and more overflow, and y is b.
        train: True: the statistics of x, and a new state; False: those of the state, which stays.
        mask: boolean [*n], True where there is an element and False where there is padding, which may hold
            anything, has no part in the statistics and gets neither value nor gradient. Fewer than two
            elements leave the state as it is; one alone has y = b.
        momentum: the weight of the old state, in [0, 1).
        eps: added to the variance.

    Returns:
        y [*n, c], in the dtype that holds both w and x; the new state, in the dtypes of the old.

    Raises:
        ShapeError: x, the bias or the state does not have c channels, or mask is not as x without them.
        ValueRangeError: train=True with one element per channel, momentum outside [0, 1), or eps below 0.
        DTypeError: an array is not floating-point, mask is not boolean, the state is narrower than float32,
            or train, momentum or eps is traced.
        StructureError: params has no "w", or state lacks "mean" or "var".

    >>> params, state = fn.batch_norm.init(jax.random.key(0), 1)
    >>> y, state = fn.batch_norm.apply(params, state, jnp.array([[1.0], [3.0]]), train=True)
    >>> print(y.ravel(), state["mean"])
    [-1.  1.] [0.2]
    """
    where = "batch_norm.apply"
    w = _check.parameter(where, params, "w", ndim=1)
    _bias.check(where, params, w.shape[0])
    for name in ("mean", "var"):
        _check_state(where, state, name, w)
    x = _check.floating(where, "x", x)
    _check.channels(where, x, w.shape[0], f'params["w"] ({describe(w)})')
    train = _check.flag(where, "train", train)
    momentum, eps = _check.rate(where, "momentum", momentum), _check.number(where, "eps", eps)
    if mask is not None:
        _check_mask(where, mask, x)
        mask = jnp.asarray(mask)
    elif train:
        _check_count(where, x)
    return rules.call(vjp, params, state, x, train=train, mask=mask, momentum=momentum, eps=eps)


def vjp(
    params: Params,
    state: State,
    x: Float[Array, "*n c"],
    *,
    train: bool,
    mask: Bool[Array, "*n"] | None = None,
    momentum: float = 0.9,
    eps: float = 1e-5,
) -> tuple[tuple[Float[Array, "*n c"], State], Partial]:
    """(y, state) and the pullback of (dy, dstate), which ignores dstate: dw = Σ dy · x̂, db = Σ dy.

    In training dx = w / σ · (dy − mean(dy) − x̂ · mean(dy · x̂)), in evaluation dx = w / σ · dy; the means and
    Σ are over every axis but the last, of the elements in the mask, and dx is 0 at the others.
    """
    _check.mapping("batch_norm.vjp", "params", params)
    _check.mapping("batch_norm.vjp", "state", state)
    w, x_ = common(params["w"], x)
    rows, real = _rows(x_).astype(wide(x_.dtype)), None if mask is None else _rows(mask[..., None])
    train = train and 0 not in x.shape[:-1]
    state = lax.stop_gradient(state)
    if train:
        first = _first(rows, real)
        d = _masked(rows - first, real)
        c = _mean(d, real)
        d = _masked(d - c, real)
        variance = _mean(d**2, real)
        state = _moved(state, first + c, variance, _count(rows, real), momentum)
    else:
        c, variance = (state[name].astype(rows.dtype)[None] for name in ("mean", "var"))
        d = _centred(rows, real, c, train)
    rstd = lax.rsqrt(variance + eps)
    y = _bias.add(w.astype(rows.dtype)[None] * (d * rstd), params)
    y = _masked(y, real).reshape(x.shape).astype(x_.dtype)
    return (y, state), Partial(rules.bind(_pullback, train=train), params, x, mask, c, rstd)


def _pullback(
    params: Params,
    x: Array,
    mask: Array | None,
    c: Array,
    rstd: Array,
    dy: tuple[Array, Any],
    *,
    train: bool,
) -> tuple[Params, None, Array]:
    rows, real = _rows(x).astype(rstd.dtype), None if mask is None else _rows(mask[..., None])
    g = _masked(_rows(dy[0]).astype(rstd.dtype), real)
    xhat = _centred(rows, real, c, train) * rstd
    dw = (g * xhat).sum(0, keepdims=True)
    dx = g
    if train:
        n = _count(rows, real)
        dx = g - g.sum(0, keepdims=True) / n - xhat * (dw / n)
    dx = _masked(params["w"].astype(rstd.dtype)[None] * rstd * dx, real).reshape(x.shape)
    return _bias.gradients(params, dw[0], g), None, narrow(dx, x)


# ---- the elements of a channel as one axis, and those of them that the mask has ---------------------------


def _rows(x: Array) -> Array:
    """x as [Π *n, c]: over one axis XLA:CPU adds up 100,000 numbers to 1e-6, over three to 1e-3."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _masked(rows: Array, real: Array | None) -> Array:
    return rows if real is None else jnp.where(real, rows, 0)


def _count(rows: Array, real: Array | None) -> Array | float:
    """How many elements a mean is over, at least 1."""
    if real is None:
        return count(rows.shape[0], rows.dtype)
    return jnp.maximum(real.sum(), 1).astype(rows.dtype)


def _mean(rows: Array, real: Array | None) -> Array:
    """Over the elements, [1, c]."""
    return _masked(rows, real).sum(0, keepdims=True) / _count(rows, real)


def _first(rows: Array, real: Array | None) -> Array:
    """The first element [1, c], which in training is subtracted from the others: see `_moments`."""
    first = 0 if real is None else jnp.argmax(real)
    return lax.stop_gradient(lax.dynamic_slice_in_dim(rows, first, 1))


def _centred(rows: Array, real: Array | None, c: Array, train: bool) -> Array:
    """rows less their mean, which is c, in training c + the first; 0 for padding, whatever it holds."""
    return _masked((rows - _first(rows, real) if train else rows) - c, real)


def _moved(state: State, mean: Array, variance: Array, n: Array | float, momentum: float) -> State:
    """The state, moved towards the statistics [1, c] of n elements, where those are two or more."""
    enough = n > 1  # known, unless there is a mask, or a symbol
    unbiased = n / (n - 1 if enough is True else jnp.maximum(n - 1, 1))
    batch = lax.stop_gradient({"mean": mean[0], "var": variance[0] * unbiased})

    def moved(old: Array, new: Array) -> Array:
        new = momentum * old + (1 - momentum) * new.astype(old.dtype)
        return new if enough is True else jnp.where(enough, new, old)

    return rules.like(state, {name: moved(state[name], value) for name, value in batch.items()})


def cost(
    params: Params,
    state: State,
    x: Float[Abstract, "*n c"],
    *,
    train: bool,
    mask: Bool[Abstract, "*n"] | None = None,
    momentum: float = 0.9,
    eps: float = 1e-5,
) -> Cost:
    """No products: 0 flops, and the bytes of params, state, x and mask, y and the new state."""
    _check.mapping("batch_norm.cost", "params", params)
    _check.mapping("batch_norm.cost", "state", state)
    options = {"train": train, "mask": mask, "momentum": momentum, "eps": eps}
    return Cost(0, traffic(reference, params, state, x, **options))


def squares(
    params: Params,
    state: State,
    x: Float[Array, "n *t c"],
    dy: tuple[Float[Array, "n *t c"], Any],
    *,
    train: bool,
    mask: Bool[Array, "n ..."] | None = None,
    momentum: float = 0.9,
    eps: float = 1e-5,
) -> Float[Array, " n"]:
    """|dw|² + |db|² of each example in evaluation: |Σ dy · x̂|² + |Σ dy|², the sums over its positions.

    Raises:
        StructureError: in training, where every example's loss depends on all of them.
    """
    where = "batch_norm.squares"
    _squares.examples(where, "x", x, 1)
    if train:
        raise StructureError(
            f"{where}: in training no example has a gradient of its own: the statistics are those of all.",
            path="train",
            expected="train=False, with the statistics of the state; or a norm of single examples",
            actual="train = True",
            hint="group_norm and layer_norm take the statistics of each example.",
        )
    _, _, _, c, rstd = vjp(params, state, x, train=False, mask=mask, momentum=momentum, eps=eps)[1].args
    real = None if mask is None else mask[..., None]
    c, rstd = (align(v, x.ndim) for v in (c, rstd))
    return _squares.gain(params, _centred(x.astype(rstd.dtype), real, c, False) * rstd, _masked(dy[0], real))


def _check_state(where: str, state: Any, name: str, w: Array) -> None:
    path = f'state["{name}"]'
    if not isinstance(state, Mapping) or state.get(name) is None:
        keys = [f'"{k}"' for k in state] if isinstance(state, Mapping) else []
        raise StructureError(
            f'{where}: state has no "{name}".',
            path=path,
            expected='state: a dict with the keys "mean" and "var"',
            actual=f"keys: {', '.join(keys) or 'none'}"
            if isinstance(state, Mapping)
            else f"state: {describe(state)}",
            hint="params and state come first: apply(params, state, x, train=...)."
            if hasattr(state, "dtype")
            else None,
        )
    _check.mapping(where, "state", state)
    s = _check.floating(where, path, state[name])
    if s.shape != w.shape:
        raise ShapeError(
            f'{where}: {path} and params["w"] have different shapes.',
            path=path,
            expected=f"{path}: float32[{w.shape[0]}]     (w: {describe(w)})",
            actual=f"{path}: {describe(s)}",
        )
    if s.dtype.itemsize < 4:
        raise DTypeError(
            f"{where}: {path} is {s.dtype}, too narrow to average in.",
            path=path,
            expected=f"{path}: float32[{w.shape[0]}] or wider",
            actual=f"{path}: {describe(s)}",
            hint="cast params and x only; the state stays as batch_norm.init made it.",
        )


def _check_count(where: str, x: Array) -> None:
    if math.prod(x.shape[:-1]) == 1:
        raise ValueRangeError(
            f"{where}: x has one element per channel, which has no variance to train with.",
            path="x",
            expected=f"x: float[*n, {x.shape[-1]}], Π *n ≥ 2     (the unbiased variance divides by Π *n − 1)",
            actual=f"x: {describe(x)}",
        )


def _check_mask(where: str, mask: Any, x: Array) -> None:
    alone = getattr(mask, "shape", None) == x.shape[:1]
    axes = "-1" + ", 1" * (x.ndim - 2)
    hint = f"of whole examples: jnp.broadcast_to(mask.reshape({axes}), x.shape[:-1])." if alone else None
    _check.mask(where, mask, x, "element", dtype_hint=None, shape_hint=hint)
