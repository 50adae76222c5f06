"""One formula against `jax.vjp` of its definition."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnet.errors import DTypeError, StructureError, describe
from funcnet.verifier.report import Report, Row

__all__ = ["verify"]

TOLERANCE = 1e-10  # float64, relative to the largest element of the gradient
NOISE = 1e-14  # of the largest element of all gradients: what cancellation leaves of one that is zero


def verify(
    forward: Callable[..., Any] | ModuleType,
    backward: Callable[..., Any] | Sequence[Any] | None = None,
    args: Sequence[Any] | None = None,
    *,
    static: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Report:
    """Compare a hand-derived gradient with `jax.vjp` of the definition, leaf by leaf, in float64.

    Two ways to call it:

    - ``verify(forward, backward, args)``: ``backward(*args, dy)`` returns the gradients in the order of
      `args` (one array for one argument); None for an argument that is not differentiated.
    - ``verify(op, args)``: an operation, with `reference` and `vjp`.

    Every gradient is compared for two random cotangents and for a constant one.

    Args:
        forward: the definition, or an operation.
        backward: the formula; with an operation, args may stand here.
        args: the arguments: pytrees of arrays. Floats are verified in float64, whatever their dtype.
        static: keyword arguments of forward and backward (of reference and vjp).
        seed: of the cotangents.

    Returns:
        A `Report` with one row per float leaf of the arguments.

    Raises:
        DTypeError: args is not a tuple or list.
        StructureError: the formula gives another number of gradients than there are arguments.

    >>> import funcnet as fn
    >>> x, w = jnp.ones((7, 11)), jnp.ones((11, 13))
    >>> fn.verify(lambda x, w: x @ w, lambda x, w, dy: (dy @ w.T, x.T @ dy), (x, w)).ok
    True
    """
    static = dict(static or {})
    operation: Any = forward
    given: Any = backward if args is None else args
    if hasattr(operation, "reference"):
        definition, formula = operation.reference, operation.vjp
        name = operation.__name__.rpartition(".")[2]
    else:
        definition, name = forward, getattr(forward, "__name__", "forward").replace("<lambda>", "forward")
        formula = functools.partial(_as_vjp, forward, backward)
    if not isinstance(given, tuple | list):
        raise DTypeError(
            "verify: args is not a tuple of arguments.",
            path="args",
            expected="args: (x, w, ...)",
            actual=f"args: {describe(given)}",
            hint="one argument is (x,)." if hasattr(given, "dtype") else None,
        )
    names = _names(definition, len(given))
    with jax.enable_x64(True):
        rows = _rows(name, names, definition, formula, _wide(tuple(given)), _wide(static), seed)
    return Report(tuple(rows))


def _as_vjp(forward: Any, backward: Any, *args: Any, **static: Any) -> tuple[Any, Callable[[Any], Any]]:
    def pullback(dy: Any) -> Any:
        grads = backward(*args, dy, **static)
        return (grads,) if len(args) == 1 and not isinstance(grads, tuple | list) else grads

    return forward(*args, **static), pullback


def _names(function: Any, count: int) -> list[str]:
    try:
        names = [
            p.name
            for p in inspect.signature(function).parameters.values()
            if p.kind <= p.POSITIONAL_OR_KEYWORD
        ]
    except ValueError:  # a built-in without a signature
        names = []
    return [*names, *(f"argument {i}" for i in range(len(names), count))][:count]


def _wide(tree: Any) -> Any:
    return jax.tree.map(lambda v: jnp.asarray(v, jnp.float64) if _is_float(v) else v, tree)


def _is_float(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


def _rows(
    operation: str, names: list[str], definition: Any, formula: Any, args: Any, static: Any, seed: int
) -> list[Row]:
    leaves, tree = jax.tree.flatten(args)
    moving = [i for i, leaf in enumerate(leaves) if _is_float(leaf)]

    def rebuild(values: Any) -> Any:
        replaced = dict(zip(moving, values, strict=True))
        return jax.tree.unflatten(tree, [replaced.get(i, leaf) for i, leaf in enumerate(leaves)])

    @jax.jit
    def truth(values: Any, dy: Any) -> Any:
        return jax.vjp(lambda *v: definition(*rebuild(v), **static), *values)[1](dy)

    @jax.jit
    def derived(values: Any, dy: Any) -> Any:
        return formula(*rebuild(values), **static)[1](dy)

    values = [leaves[i] for i in moving]
    y = jax.eval_shape(lambda *v: definition(*rebuild(v), **static), *values)
    pairs = [
        (truth(values, dy), _matched(operation, derived(values, dy), args)) for dy in _cotangents(y, seed)
    ]
    scales = [max(_largest(want[i]) for want, _ in pairs) for i in range(len(values))]
    floor = max(NOISE / TOLERANCE * max(scales, default=0.0), 1e-300)
    shapes = ", ".join("×".join(map(str, v.shape)) or "scalar" for v in leaves if hasattr(v, "shape"))
    rows = []
    for i, path in enumerate(_paths(names, args)):
        found = [_error(got[i], want[i], max(scales[i], floor)) for want, got in pairs]
        error, note = max(found, key=lambda pair: pair[0])
        rows.append(Row(operation, path, shapes, 1, error, TOLERANCE, error <= TOLERANCE, note))
    return rows


def _largest(x: jax.Array) -> float:
    return float(jnp.abs(x).max()) if x.size else 0.0


def _cotangents(y: Any, seed: int) -> list[Any]:
    rng = np.random.default_rng(seed)
    random = [jax.tree.map(lambda v: jnp.asarray(rng.standard_normal(v.shape), v.dtype), y) for _ in range(2)]
    return [*random, jax.tree.map(lambda v: jnp.ones(v.shape, v.dtype), y)]


def _paths(names: list[str], args: Any) -> list[str]:
    """The float leaves of args, as the user writes them: ``params["w"]``."""

    def text(path: Any) -> str:
        rest = "".join(f'["{k.key}"]' if isinstance(k, jax.tree_util.DictKey) else str(k) for k in path[1:])
        return names[path[0].idx] + rest

    return [text(path) for path, leaf in jax.tree.leaves_with_path(args) if _is_float(leaf)]


def _matched(operation: str, grads: Any, args: Any) -> list[Any]:
    """The gradients of the float leaves of args, in order; None where the formula gives none."""
    if not isinstance(grads, tuple | list) or len(grads) != len(args):
        raise StructureError(
            f"verify: the formula of {operation} does not return one gradient for each argument.",
            path="backward",
            expected=f"a tuple of {len(args)}, in the order of args; None where there is no gradient",
            actual=f"{len(grads)} gradients" if isinstance(grads, tuple | list) else describe(grads),
        )
    matched: list[Any] = []

    def visit(grad: Any, arg: Any) -> None:
        floats = sum(map(_is_float, jax.tree.leaves(arg)))
        if grad is not None and not hasattr(arg, "dtype"):
            raise ValueError("one gradient for a whole tree")
        matched.extend([grad] * floats)

    try:
        jax.tree.map(visit, tuple(grads), tuple(args), is_leaf=lambda v: v is None)
    except ValueError as error:
        raise StructureError(
            f"verify: the gradients of {operation} have another structure than its arguments.",
            path="backward",
            expected=str(jax.tree.structure(tuple(args))),
            actual=str(jax.tree.structure(tuple(grads))),
        ) from error
    return matched


def _error(got: Any, want: jax.Array, scale: float) -> tuple[float, str]:
    """The largest error of one gradient relative to `scale`, and what is known about it."""
    if got is None:
        error = _largest(want) / scale
        return error, "no gradient" if error <= TOLERANCE else "no gradient is given"
    if got.shape != want.shape:
        hint = "; its transpose fits" if got.shape == want.shape[::-1] else ""
        return float("inf"), f"shape {got.shape}, not {want.shape}{hint}"
    error = _largest(got - want) / scale
    return (error, "") if np.isfinite(error) else (float("inf"), "not finite")
