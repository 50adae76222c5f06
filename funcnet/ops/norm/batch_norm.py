"""Batch normalisation: y = w · x̂ + b, with x̂ = (x − mean) / √(variance + eps) for each channel.

Dimensions: *n any axes (batch and positions alike), c channels: x, y [*n, c], params w, b [c], state mean,
var [c]. In training the statistics are those of x over every axis but the last, with the biased variance
(1/n, n = Π *n), and the state moves towards them: new = momentum · old + (1 − momentum) · batch, there with
the unbiased variance (1/(n − 1)). In evaluation the statistics are those of the state. The state has no
gradient.
Source: Ioffe and Szegedy, "Batch Normalization", arXiv 1502.03167. Statistics are in float32 or wider.
"""

import math
from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float, PRNGKeyArray

from funcnet import rules
from funcnet.errors import DTypeError, ShapeError, StructureError, ValueRangeError, describe
from funcnet.ops import _bias, _check
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._dtype import common, narrow, wide
from funcnet.ops._shape import align, count

__all__ = ["Params", "State", "apply", "cost", "init", "reference", "vjp"]


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
    params: Params = {"w": one, "b": jnp.zeros_like(one)} if bias else {"w": one}
    return params, {"mean": jnp.zeros_like(one), "var": jnp.ones_like(one)}


def reference(
    params: Params,
    state: State,
    x: Float[Array, "*n c"],
    *,
    train: bool,
    momentum: float = 0.9,
    eps: float = 1e-5,
) -> tuple[Float[Array, "*n c"], State]:
    """y = w · (x − mean) / √(variance + eps) + b, and the state after it, as they are written."""
    w, x = common(params["w"], x)
    h = x.astype(wide(x.dtype))
    n = count(math.prod(x.shape[:-1]), h.dtype)
    old_mean, old_var = lax.stop_gradient((state["mean"], state["var"]))
    if train and 0 not in x.shape[:-1]:
        over = tuple(range(x.ndim - 1))
        mean, variance = h.mean(over), ((h - h.mean(over, keepdims=True)) ** 2).mean(over)
        unbiased = lax.stop_gradient(variance) * n / (n - 1)
        state = {
            "mean": momentum * old_mean + (1 - momentum) * lax.stop_gradient(mean).astype(old_mean.dtype),
            "var": momentum * old_var + (1 - momentum) * unbiased.astype(old_var.dtype),
        }
    else:
        mean, variance = old_mean.astype(h.dtype), old_var.astype(h.dtype)
        state = {"mean": old_mean, "var": old_var}
    mean, variance, w = (align(v, x.ndim) for v in (mean, variance, w))
    return _bias.add(w * ((h - mean) / jnp.sqrt(variance + eps)).astype(x.dtype), params), state


@rules.operation
def apply(
    params: Params,
    state: State,
    x: Float[Array, "*n c"],
    *,
    train: bool,
    momentum: float = 0.9,
    eps: float = 1e-5,
) -> tuple[Float[Array, "*n c"], State]:
    """Normalise each channel of x over all its other axes, then scale it by w and shift it by b.

    Differentiated by `vjp`, which keeps x, the means and 1/σ; JAX's own rule keeps several arrays like x.
    Under `jax.shard_map` the statistics are those of the local shard; under `jax.jit` those of the whole x.

    Args:
        params: w [c] and, unless absent, b [c].
        state: mean [c] and var [c], float32 or wider.
        x: [*n, c]. An empty x has no statistics: it leaves the state as it is.
        train: True: the statistics of x, and a new state; False: those of the state, which stays.
        momentum: the weight of the old state, in [0, 1).
        eps: added to the variance.

    Returns:
        y [*n, c], in the dtype that holds both w and x; the new state, in the dtypes of the old.

    Raises:
        ShapeError: x, the bias or the state does not have c channels.
        ValueRangeError: train=True with one element per channel, or momentum outside [0, 1).
        DTypeError: an array is not floating-point, the state is narrower than float32, or train or momentum
            is traced.
        StructureError: params has no "w", or state lacks "mean" or "var".
    """
    where = "batch_norm.apply"
    w = _check.parameter(where, params, "w", ndim=1)
    _bias.check(where, params, w.shape[0])
    for name in ("mean", "var"):
        _check_state(where, state, name, w)
    x = _check.floating(where, "x", x)
    _check.channels(where, x, w.shape[0], f'params["w"] ({describe(w)})')
    train = bool(_check.static(where, "train", train))
    momentum = float(_check.rate(where, "momentum", _check.static(where, "momentum", momentum)))
    if train:
        _check_count(where, x)
    return rules.call(vjp, params, state, x, train=train, momentum=momentum, eps=eps)


def vjp(
    params: Params,
    state: State,
    x: Float[Array, "*n c"],
    *,
    train: bool,
    momentum: float = 0.9,
    eps: float = 1e-5,
) -> tuple[tuple[Float[Array, "*n c"], State], Partial]:
    """(y, state) and the pullback of (dy, dstate), which ignores dstate: dw = Σ dy · x̂, db = Σ dy.

    In training dx = w / σ · (dy − mean(dy) − x̂ · mean(dy · x̂)), in evaluation dx = w / σ · dy; the means and
    Σ are over every axis but the last.
    """
    w, x_ = common(params["w"], x)
    h = x_.astype(wide(x_.dtype))
    n = count(math.prod(x.shape[:-1]), h.dtype)
    train = train and 0 not in x.shape[:-1]
    state = lax.stop_gradient(state)
    if train:
        over = tuple(range(x.ndim - 1))
        mean = h.mean(over)
        variance = ((h - align(mean, x.ndim)) ** 2).mean(over)
        batch = lax.stop_gradient({"mean": mean, "var": variance * (n / (n - 1))})
        moved = {k: momentum * state[k] + (1 - momentum) * v.astype(state[k].dtype) for k, v in batch.items()}
        state = rules.like(state, moved)
    else:
        mean, variance = state["mean"].astype(h.dtype), state["var"].astype(h.dtype)
    rstd = lax.rsqrt(variance + eps)
    xhat = (h - align(mean, x.ndim)) * align(rstd, x.ndim)
    y = _bias.add(align(w.astype(h.dtype), x.ndim) * xhat, params).astype(x_.dtype)
    return (y, state), Partial(rules.bind(_pullback, train=train), params, x, mean, rstd)


def _pullback(
    params: Params, x: Array, mean: Array, rstd: Array, dy: tuple[Array, Any], *, train: bool
) -> tuple[Params, None, Array]:
    g = dy[0].astype(rstd.dtype)
    over = tuple(range(x.ndim - 1))
    xhat = (x.astype(rstd.dtype) - align(mean, x.ndim)) * align(rstd, x.ndim)
    dw = (g * xhat).sum(over)
    dx = g
    if train:
        n = count(math.prod(x.shape[:-1]), g.dtype)
        dx = g - align(g.sum(over) / n, x.ndim) - xhat * align(dw / n, x.ndim)
    dx = align(params["w"].astype(rstd.dtype) * rstd, x.ndim) * dx
    return _bias.gradients(params, dw, g), None, narrow(dx, x)


def cost(
    params: Params,
    state: State,
    x: Float[Abstract, "*n c"],
    *,
    train: bool,
    momentum: float = 0.9,
    eps: float = 1e-5,
) -> Cost:
    """No products: 0 flops, and the bytes of params, state and x, y and the new state."""
    return Cost(0, traffic(reference, params, state, x, train=train, momentum=momentum, eps=eps))


def _check_state(where: str, state: Any, name: str, w: Array) -> None:
    path = f'state["{name}"]'
    if not isinstance(state, Mapping) or name not in state:
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
