"""What is tapped in a net, measured in one program: only small matrices leave it."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from funcnet._marks import Layer, Look, Mark
from funcnet.analysis._results import Activation
from funcnet.errors import StructureError
from funcnet.ops._dtype import wide
from funcnet.taps import collect

__all__ = ["activations"]

SHARE = 0.9  # of the variance, that some directions hold
NEAR, OFTEN = 0.01, 0.9  # how near to an end a value is saturated, and in what share of them a unit
WIDEST = 4096  # units, or rows if they are fewer, whose principal components are looked for
_HEADS = ("attention.q", "attention.k", "attention.v", "attention.heads")  # [*n, t, h, e]


def activations(f: Callable[..., Any], *args: Any) -> tuple[dict[str, Activation], list[str]]:
    """By name what is tapped in ``f(*args)``, in its order, and what could not be measured."""
    look = Look("xray", ("*",))
    try:
        marks = {mark.path: mark for mark in reversed(look.trace(f, args, {}).marks)}
    except StructureError as error:
        return {}, [f"activations: {error.problem.rpartition('xray: ')[2]}"]
    marks = dict(reversed(marks.items()))
    few = {
        path: mark.aval.ndim
        for path, mark in marks.items()
        if mark.aval.ndim and jnp.issubdtype(mark.aval.dtype, jnp.floating)
    }

    def measured(*args: Any) -> dict[str, dict[str, Array]]:
        values = collect(f, "*")(*args)[1]
        return {path: _measured(path, values[path], ndim) for path, ndim in few.items()}

    found: dict[str, Activation] = {}
    entropies: dict[str, tuple[float, ...]] = {}
    every = jax.device_get(jax.jit(measured)(*args))
    for path in few:
        facts = every[path]
        for i, name in enumerate(_names(marks[path], look, len(next(iter(facts.values()))))):
            if "entropy" in facts:
                entropies[name.removesuffix(".pattern")] = (*facts["entropy"][i].tolist(),)
            else:
                found[name] = _activation({fact: values[i] for fact, values in facts.items()})
    for name, heads in entropies.items():
        nothing = Activation(0, 0, math.nan, 0, 0, math.nan, math.nan)
        found[name] = found.get(name, nothing)._replace(entropy=heads)
    return found, []


def _names(mark: Mark, look: Look, count: int) -> list[str]:
    """Of a value in the layers of a stack one name each, the number of the layer where its scope is."""
    scopes = [*mark.eqn.params["scopes"][look.start :], mark.eqn.params["name"]]
    if sum(isinstance(scope, Layer) for scope in scopes) == 1:
        text = lambda i: ".".join(str(i) if isinstance(scope, Layer) else scope for scope in scopes)
        return [text(i) for i in range(count)]
    return [mark.path] if count == 1 else [f"{mark.path}[{i}]" for i in range(count)]


def _measured(path: str, v: Array, ndim: int) -> dict[str, Array]:
    """Of each layer in front; `ndim` are the value's own axes."""
    v = v.reshape(-1, *v.shape[v.ndim - ndim :])
    if path.endswith("pattern") and ndim >= 3:
        return {"entropy": _entropy(v.astype(wide(v.dtype)))}
    units = (
        1 if ndim == 1 else math.prod(v.shape[-2:] if path.endswith(_HEADS) and ndim > 3 else v.shape[-1:])
    )
    x = v.reshape(v.shape[0], -1, units).astype(wide(v.dtype))
    means = x.mean(1, keepdims=True)
    centred, rows = x - means, x.shape[1]
    least, most = x.min(1), x.max(1)
    size, lowest = jnp.maximum(jnp.abs(least), jnp.abs(most)).max(1), least.min(1)
    from_zero = (lowest >= 0) & ~(x == 0).any((1, 2))
    near = (jnp.abs(x) >= 1 - NEAR) | (from_zero[:, None, None] & (x <= NEAR))
    facts = {
        "units": jnp.full(len(x), units),
        "rows": jnp.full(len(x), rows),
        "dead": ((most == least) & (rows > 1)).sum(1),  # one row says nothing
        "saturated": jnp.where(size <= 1, (near.mean(1) >= OFTEN).sum(1), 0),
        "mean": means.mean((1, 2)),
        "spread": jnp.sqrt(((x - means.mean(2, keepdims=True)) ** 2).mean((1, 2))),
    }
    if min(rows, units) <= WIDEST:
        facts["gram"] = centred @ centred.mT if rows < units else centred.mT @ centred
    return facts


def _entropy(p: Float[Array, "layers *n h t s"]) -> Float[Array, "layers h"]:
    """The mean over examples and queries of H(p) / log(keys that some head sees), of those that see two."""
    h = -jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1)), 0).sum(-1)
    seen = (p > 0).any(-3).sum(-1)[..., None, :]  # [layers, *n, 1, t]
    counts = seen >= 2
    share = jnp.where(counts, h / jnp.log(jnp.where(counts, seen, 2).astype(h.dtype)), 0)
    axes = (*range(1, p.ndim - 3), p.ndim - 2)
    of = jnp.broadcast_to(counts, h.shape).sum(axes).astype(h.dtype)
    return share.sum(axes) / jnp.maximum(of, 1)


def _activation(facts: dict[str, Any]) -> Activation:
    directions = math.nan
    if "gram" in facts and np.isfinite(facts["gram"]).all():
        variances = np.maximum(np.linalg.eigvalsh(facts["gram"].astype(float))[::-1], 0)
        held = np.cumsum(variances)
        directions = float((held < SHARE * held[-1]).sum() + 1) if held[-1] > 0 else 0.0
    units, rows, dead, saturated = (int(facts[name]) for name in ("units", "rows", "dead", "saturated"))
    return Activation(units, rows, directions, dead, saturated, float(facts["mean"]), float(facts["spread"]))
