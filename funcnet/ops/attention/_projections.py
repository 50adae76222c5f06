"""The four projections of multihead: what attends, ready to attend, from x; checks of params and x.

Below `multihead` and its cache, which both need them.
"""

from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

import jax.numpy as jnp
from jaxtyping import Array, Float

from funcnet import rules, taps
from funcnet._letters import Axes, Told, of_product
from funcnet.errors import ShapeError, StructureError, describe
from funcnet.ops import _bias, _check, _factored, _squares
from funcnet.ops._dtype import common, wide
from funcnet.ops.attention import rope as rotary
from funcnet.ops.norm import rms_norm

__all__ = ["Params", "Projection", "check", "heads", "mappings", "project"]


class Projection(TypedDict):
    """One linear map; w and b have the head axes among theirs. b may be absent.

    In the place of w there may be "down" and "up", of which it is the product: see `_factored`.
    """

    w: NotRequired[Float[Array, "..."]]
    down: NotRequired[Float[Array, "..."]]
    up: NotRequired[Float[Array, "..."]]
    b: NotRequired[Float[Array, "..."]]


class Params(TypedDict):
    """q.w [d, h, e], q.b [h, e]; k and v the same with h_kv heads; o.w [h, e, d], o.b [d].

    q_norm.w and k_norm.w [e] where queries and keys are normalised; sinks [h] where the softmax has a logit
    for nothing (see `attention`).
    """

    q: Projection
    k: Projection
    v: Projection
    o: Projection
    q_norm: NotRequired[rms_norm.Params]
    k_norm: NotRequired[rms_norm.Params]
    sinks: NotRequired[Float[Array, " h"]]


def heads(
    params: Params, x: Array, rope: rotary.Config | None, positions: Array | None, norm_eps: float
) -> tuple[Array, Array, Array]:
    """q, k and v, ready to attend."""

    def ready(name: str, z: Array) -> Array:
        norm = params.get(f"{name}_norm")
        z = z if norm is None else rms_norm.apply(norm, z, norm_eps)
        return z if rope is None else rotary.apply(z, rope, positions=positions)

    q, k, v = (project(params[name], x, axes=1) for name in "qkv")
    return taps.tap("q", ready("q", q)), taps.tap("k", ready("k", k)), taps.tap("v", v)


def project(params: Projection, x: Array, *, axes: int) -> Array:
    """x W + b: W takes the last `axes` axes of x."""
    for each in _factored.parts(params):
        x, axes = _project(each, x, axes=axes), 1
    return x


def _squares_of_projection(params: Any, x: Array, dy: Array, *, axes: int) -> Array:
    """|dW|² + |db|² of each example, as of `linear`."""
    w = params["w"]
    flat = _squares.positions(x, axes), _squares.positions(dy, w.ndim - axes)
    return _squares.weights(params, *flat)


def _split(params: Any, x: Array, *, axes: int) -> list[Axes]:
    return of_product(x, params["w"], axes)


@rules.part(_squares_of_projection, told=Told(split=_split))
def _project(params: Any, x: Array, *, axes: int) -> Array:
    """Without a reshape, since an axis of x or w may be split over devices."""
    w, x = common(params["w"], x)
    y = jnp.tensordot(x, w, axes, preferred_element_type=wide(x.dtype))
    return _bias.add(y, params).astype(x.dtype)


def check(where: str, params: Any, x: Any) -> Array:
    _check_params(where, params)
    x = _check.floating(where, "x", x)
    w = _factored.kernel(params["q"])
    _check.rank(where, "x", x, 2, f"*n, t, {w.shape[0]}")
    _check.features(where, x, w.shape[0], f'params["q"]["w"] ({describe(w)})', dims="*n, t")
    return x


def mappings(where: str, params: Any) -> None:
    """params and the projections in it are mappings that JAX knows."""
    _check.mapping(where, "params", params)
    for name in "qkvo":
        _check.mapping(where, f'params["{name}"]', params.get(name))


def _check_params(where: str, params: Any) -> None:
    if not isinstance(params, Mapping) or any(
        not isinstance(params.get(name), Mapping)
        or (params[name].get("w") is None and not _factored.is_factored(params[name]))
        for name in "qkvo"
    ):
        keys = ", ".join(f'"{key}"' for key in params) if isinstance(params, Mapping) else describe(params)
        raise StructureError(
            f"{where}: params are not those of a multihead.",
            path="params",
            expected='params: a dict of "q", "k", "v" and "o", each a dict with "w"',
            actual=f"params: {keys}",
            hint="the parameters come first: apply(params, x)." if hasattr(params, "dtype") else None,
        )
    mappings(where, params)
    for name in "qkvo":
        _factored.check(where, f'params["{name}"]', params[name])
        if not _factored.is_factored(params[name]):
            _check.floating(where, f'params["{name}"]["w"]', params[name]["w"])
    kernels = {name: _factored.kernel(params[name]) for name in "qkvo"}
    _check.leaves(where, params)
    w = kernels["q"]
    if len(w.shape) != 3:
        raise ShapeError(
            f'{where}: params["q"]["w"] has rank {len(w.shape)}, but 3 is needed.',
            path='params["q"]["w"]',
            expected='params["q"]["w"]: float[d, h, e]',
            actual=f'params["q"]["w"]: {describe(w)}',
        )
    d, h, e = w.shape
    for name in ("q_norm", "k_norm"):
        if params.get(name) is not None:
            _check.parameter(f'{where}: params["{name}"]', params[name], "w", ndim=1)
    h_kv = kernels["k"].shape[1] if len(kernels["k"].shape) == 3 else "h_kv"
    sizes: dict[str, dict[str, tuple[Any, ...]]] = {
        "q": {"w": (d, h, e), "b": (h, e)},
        "k": {"w": (d, h_kv, e), "b": (h_kv, e)},
        "v": {"w": (d, h_kv, e), "b": (h_kv, e)},
        "o": {"w": (h, e, d), "b": (d,)},
        "q_norm": {"w": (e,)},
        "k_norm": {"w": (e,)},
    }
    leaves = [
        (f'params["{name}"]["{leaf}"]', _leaf(params[name], leaf), size)
        for name, parts in sizes.items()
        if params.get(name) is not None
        for leaf, size in parts.items()
    ]
    for path, value, expected in [*leaves, ('params["sinks"]', params.get("sinks"), (h,))]:
        if value is not None and not path.endswith('["w"]'):  # every "w" has been looked at above
            _check.floating(where, path, value)
        if value is not None and value.shape != expected:
            raise ShapeError(
                f"{where}: {path} does not fit the other parameters.",
                path=path,
                expected=f"{path}: float[{', '.join(map(str, expected))}]     "
                f'(params["q"]["w"]: {describe(w)})',
                actual=f"{path}: {describe(value)}",
            )


def _leaf(params: Any, name: str) -> Any:
    """A leaf of a projection; of a factored one, w is a shape and a dtype."""
    return _factored.kernel(params) if name == "w" else params.get(name)
