"""What is read off the program of a net: which kernels see which images, and a Lipschitz bound of the whole.

Each operation with a known bound is put into the traced program as one equation. The bound is carried through
the others, as far as they are known: what only moves elements keeps it, and a sum adds it up.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive

from funcnet import rules
from funcnet._programs import CALLS
from funcnet.analysis._spectra import Convolved

__all__ = ["Program", "drift", "lipschitz", "traced"]

# At most 1: |σ(a) − σ(b)| ≤ |a − b|, and so of the largest or the mean in windows that do not overlap.
_SLOPES = (
    "celu", "hard_tanh", "log_sigmoid", "relu", "relu6", "sigmoid", "soft_shrink", "softplus",
    "softsign", "tanh", "tanh_shrink",
)  # fmt: skip
_POOLS = ("max_pool", "avg_pool")
_SAME = (
    "abs", "convert_element_type", "copy", "copy_p", "expand_dims", "logistic", "neg", "reshape", "rev",
    "squeeze", "tanh", "transpose",
)  # fmt: skip
_SUMS = ("add", "add_any", "max", "min", "sub")  # |max(a, b) − max(a', b')| ≤ |a − a'| + |b − b'|

_bounded_p = Primitive("bounded")
_bounded_p.def_abstract_eval(lambda x, *, aval, **_: x.update(shape=aval.shape, dtype=aval.dtype))


class Program(NamedTuple):
    """A traced net.

    Attributes:
        convolved: by the number of a leaf the calls of `conv` that it is the kernel of.
        jaxpr: of (params, x), operations with a known bound as equations of their own.
        params: how many of its inputs are leaves of params.
        others: names of the operations without one.
    """

    convolved: dict[int, list[Convolved]]
    jaxpr: Any
    params: int
    others: list[str]


def traced(f: Callable[[Any, Any], Any], params: Any, x: Any) -> Program:
    """The program of ``f(params, x)``; nothing is computed."""
    try:
        return _traced(f, params, x, True)
    except (
        NotImplementedError
    ):  # an equation of ours under vmap or in a derivative, for which it has no rules
        return _traced(f, params, x, False)


def _traced(f: Callable[[Any, Any], Any], params: Any, x: Any, bounded: bool) -> Program:
    """With equations of their own for operations with a known bound, or without."""
    convolved: dict[int, list[Convolved]] = {}
    others: list[str] = []

    def run(params: Any, x: Any) -> Any:
        numbers = {id(leaf): i for i, leaf in enumerate(jax.tree.leaves(params))}

        def meter(
            f: Any, formula: Any, at: int | None, args: tuple[Any, ...], options: dict[str, Any]
        ) -> Any:
            del formula
            name = f.__module__.rpartition(".")[2]
            leaf = numbers.get(id(args[at].get("w"))) if at == 0 and name in ("linear", "conv") else None
            if name == "conv" and leaf is not None:
                shape = args[1].shape[args[1].ndim - args[0]["w"].ndim + 1 :]
                convolved.setdefault(leaf, []).append(Convolved(shape, options))
            if not bounded or (leaf is None and not _at_most_one(name, options)):
                others.append(name)
                with rules.metered(None):
                    return f(*args, **options)
            with rules.metered(None):
                y = jax.eval_shape(lambda: f(*args, **options))
            return _bounded_p.bind(args[at is not None], aval=y, leaf=leaf)

        with rules.metered(meter, every=True):
            return f(params, x)

    leaves = len(jax.tree.leaves(params))
    return Program(convolved, jax.make_jaxpr(run)(params, x).jaxpr, leaves, others)


def _at_most_one(name: str, options: Mapping[str, Any]) -> bool:
    if name == "dropout":
        return options.get("key") is None
    if name not in _POOLS:
        return name in _SLOPES
    kernel, stride = options["kernel"], options.get("stride")
    strides = kernel if stride is None else (stride,) * len(kernel) if isinstance(stride, int) else stride
    return all(s >= k for s, k in zip(strides, kernel, strict=True))


def lipschitz(program: Program, norms: Mapping[int, float]) -> tuple[float, str]:
    """L with |f(x) − f(x')| ≤ L |x − x'| for all x and x', and "" or why there is none (NaN).

    Args:
        program: of f.
        norms: upper bounds of the norms of leaves, as linear maps, by their numbers.
    """
    inputs = program.jaxpr.invars[program.params :]
    bounds = _through(program.jaxpr, dict.fromkeys(inputs, 1.0), norms)
    if isinstance(bounds, list):
        return (math.hypot(*bounds), "") if math.isfinite(sum(bounds)) else (math.nan, "a norm is not known")
    if {"attention", "multihead"} & set(program.others):
        return math.nan, "there is none through attention, whose slope grows with what it is given"
    through = next(iter(program.others), bounds)
    return math.nan, f"none is known through {through}"


def drift(program: Program, norms: Mapping[int, float], added: Mapping[int, Any]) -> Any:
    """A bound of |f'(x) − f(x)|, for a net f' whose maps differ: ‖A'‖ |x' − x| + |A' x − A x|, map by map.

    Args:
        program: of f, with a finite `lipschitz`.
        norms: upper bounds of the norms of the maps of f', by the numbers of their leaves.
        added: |A' x − A x| of each map, at what f gives it.
    """
    inputs = program.jaxpr.invars[program.params :]
    bounds = _through(program.jaxpr, dict.fromkeys(inputs, 0.0), norms, added)
    assert not isinstance(bounds, str)  # its Lipschitz bound is finite
    return sum(bound * bound for bound in bounds) ** 0.5


def _through(
    jaxpr: Any,
    known: dict[Any, Any],
    norms: Mapping[int, float],
    added: Mapping[int, Any] = MappingProxyType({}),
) -> list[Any] | str:
    """The bounds of the results; or the name of an equation that has none. What is not known is constant."""
    for eqn in jaxpr.eqns:
        given = [known[v] for v in eqn.invars if not hasattr(v, "val") and v in known]
        if not given:
            continue
        name, inner = eqn.primitive.name, eqn.params.get(CALLS.get(eqn.primitive.name, ""))
        if eqn.primitive is _bounded_p:
            leaf = eqn.params["leaf"]
            scale = 1.0 if leaf is None else norms.get(leaf, math.nan)
            bound = given[0] * scale + (0.0 if leaf is None else added.get(leaf, 0.0))
        elif name in _SAME and jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.floating):
            bound = given[0]
        elif name in _SUMS:
            bound = sum(given)  # of a constant nothing
        elif inner is not None:
            inner = getattr(inner, "jaxpr", inner)
            pairs = zip(inner.invars, eqn.invars, strict=True)
            within = {i: known[v] for i, v in pairs if not hasattr(v, "val") and v in known}
            bounds = _through(inner, within, norms, added)
            if isinstance(bounds, str):
                return bounds
            known.update(zip(eqn.outvars, bounds, strict=True))
            continue
        else:
            return name
        known[eqn.outvars[0]] = bound
    return [0.0 if hasattr(v, "val") else known.get(v, 0.0) for v in jaxpr.outvars]
