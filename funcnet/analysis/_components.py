"""The principal components of what the maps of a net give, over batches of its inputs.

Mean and covariance are added up by JAX, as cotangents of zeros beside each w; the decomposition is NumPy's.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from funcnet.analysis._maps import Map, node_at, probed
from funcnet.errors import ValueRangeError
from funcnet.linalg import as_matrices
from funcnet.ops import _factored
from funcnet.ops._dtype import wide

__all__ = ["Components", "components_of", "factor", "kept", "projected"]


class Components(NamedTuple):
    """Of each layer of a stack: about `mean` [s, d_out], `vectors` [s, d_out, d_out] as columns.

    Their `variances` [s, d_out], or second moments where there is no b, fall.
    """

    mean: np.ndarray
    vectors: np.ndarray
    variances: np.ndarray


def components_of(
    where: str, apply: Callable[..., Any], params: PyTree, maps: dict[str, Map], batches: Sequence[PyTree]
) -> dict[str, Components]:
    """By two passes over the data, the second about the means of the first.

    The sums are the cotangents of zeros beside w: so JAX adds them up, through loops and stacks.
    """
    sums = jax.jit(lambda params, about, x: _sums(apply, params, maps, about, x))

    def over(about: dict[str, np.ndarray]) -> dict[str, Any]:
        total: Any = None
        for x in batches:
            found = jax.tree.map(lambda v: np.asarray(v, np.float64), sums(params, about, x))
            total = found if total is None else jax.tree.map(np.add, total, found)
        return total

    centred = {name: node_at(params, each.path).get("b") is not None for name, each in maps.items()}
    zeros = {name: np.zeros((each.sizes[0], each.sizes[2]), np.float32) for name, each in maps.items()}
    first = over(zeros)
    means = {
        name: np.asarray(centred[name] * s["sum"] / np.maximum(s["count"][:, None], 1), np.float32)
        for name, s in first.items()
    }
    found = {}
    for name, s in over(means).items():
        if not np.isfinite(s["gram"]).all():
            raise ValueRangeError(
                f"{where}: what {name} gives is not finite, or its squares are not.",
                path="data",
                expected="params and data of which all maps give finite numbers",
                actual=f"{name}: NaN or infinity",
                hint="fn.find_nan names the operation that made it.",
            )
        variances, vectors = np.linalg.eigh(s["gram"] / np.maximum(s["count"][:, None, None], 1))
        found[name] = Components(means[name], vectors[..., ::-1], np.maximum(variances[..., ::-1], 0))
    return found


def _sums(
    apply: Callable[..., Any], params: PyTree, maps: dict[str, Map], about: dict[str, Array], x: PyTree
) -> dict[str, dict[str, Array]]:
    """For each map [s], of what it gives less `about`: how many rows, their sum, and the sum of y yᵀ."""

    def probe(each: Map, mean: Array) -> dict[str, Array]:
        s, _, o = each.sizes
        lead = each.spec.shape[: each.stack]
        parts = {"about": mean, "count": jnp.zeros(s), "sum": jnp.zeros((s, o)), "gram": jnp.zeros((s, o, o))}
        return {name: jnp.reshape(v, (*lead, *v.shape[1:])) for name, v in parts.items()}

    probes = {name: probe(each, about[name]) for name, each in maps.items()}
    see = lambda _, probe, y: _seen(y, probe)
    out, pull = jax.vjp(lambda probes: probed(apply, params, maps, probes, see, x), probes)
    (found,) = pull(jax.tree.map(jnp.zeros_like, out))
    return {
        name: {k: v.reshape(each.sizes[0], *v.shape[each.stack :]) for k, v in found[name].items()}
        for name, each in maps.items()
    }


@jax.custom_vjp
def _seen(y: Array, probe: dict[str, Array]) -> Array:
    """y itself; the cotangents of probe are the sums over its rows."""
    del probe
    return y


def _seen_forward(y: Array, probe: dict[str, Array]) -> tuple[Array, Any]:
    return y, (y, probe)


def _seen_backward(kept: Any, dy: Array) -> tuple[Array, dict[str, Array]]:
    y, probe = kept
    rows = y.reshape(-1, probe["about"].shape[-1]).astype(wide(y.dtype))
    rows = rows - probe["about"].astype(rows.dtype)
    found = {
        "about": jnp.zeros_like(rows[0]),
        "count": jnp.asarray(len(rows), rows.dtype),
        "sum": rows.sum(0),
        "gram": rows.T @ rows,
    }
    return dy, {name: v.astype(probe[name].dtype) for name, v in found.items()}


_seen.defvjp(_seen_forward, _seen_backward)


def factor(params: Mapping[str, Any], each: Map, found: Components, rank: int) -> dict[str, Any]:
    """The params of a map in two parts of this rank."""
    w, kept = _wide(as_matrices(params["w"], each.spec)), found.vectors[..., :rank]
    down, up = each.shapes(rank)
    like = params["w"].dtype
    parts = {
        "down": jnp.asarray((w @ kept).reshape(down), like),
        "up": jnp.asarray(kept.swapaxes(-1, -2).reshape(up), like),
    }
    return _factored.in_parts({**params, **_bias(params, found, kept)}, **parts)


def _bias(params: Mapping[str, Any], found: Components, kept: np.ndarray) -> dict[str, Array]:
    """b' = m + (b − m) P Pᵀ, where there is a b."""
    b = params.get("b")
    if b is None:
        return {}
    off = _wide(b).reshape(found.mean.shape) - found.mean
    new = found.mean + np.einsum("so,sor,spr->sp", off, kept, kept)
    return {"b": jnp.asarray(new.reshape(b.shape), b.dtype)}


def _wide(w: Any) -> np.ndarray:
    return np.asarray(w, np.float64)


def projected(params: Mapping[str, Any], each: Map, found: Components, rank: int) -> dict[str, Any]:
    """What `factor` gives as a whole map, of the shapes of params: so all ranks are one program."""
    kept, w = found.vectors[..., :rank], params["w"]
    new = _wide(as_matrices(w, each.spec)) @ kept @ kept.swapaxes(-1, -2)
    return {**params, **_bias(params, found, kept), "w": jnp.asarray(new.reshape(w.shape), w.dtype)}


def kept(found: Components, rank: int | None) -> float:
    """The share of the variances along the first `rank` components; of several layers the least."""
    total = found.variances.sum(-1)
    share = found.variances[..., :rank].sum(-1) / np.where(total > 0, total, 1)
    return float(np.where(total > 0, share, 1).min())
