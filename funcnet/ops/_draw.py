"""The w that `init` draws: uniform, with the operation's variance, or by an initialiser of the user's.

Uniform, since that is exact but for one product: a key gives the same bits called eagerly, inside a user's
`jax.jit`, and in a program that XLA was told to compile cheaply, which takes a quarter of the time (for a
small net most of that until its first step). A normal takes a polynomial, which programs round differently.
LeCun et al., "Efficient BackProp", 1998, §4.6, ask for a mean and a variance, and name the uniform one.
"""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.extend.core
import jax.numpy as jnp
from jax import lax

from funcnet.errors import DTypeError, ShapeError, describe
from funcnet.linalg.matrices import from_matrices, sizes
from funcnet.ops import _check
from funcnet.spec import of

__all__ = ["Initializer", "drawn", "in_one_program", "weights"]

Initializer = Callable[..., jax.Array]  # (key, (in, out)) -> w [in, out], as those of jax.nn.initializers

_FEW = 2**23  # numbers; of more the time to draw them counts too: 60 ns each, or 16 where they are in vectors


def _compiled(f: Callable[..., Any], **options: Any) -> Callable[[jax.Array, int], Callable[..., Any]]:
    """f as it is compiled to draw so many numbers by that key: on CPU without LLVM's expensive passes."""
    cheap = {"xla_llvm_disable_expensive_passes": True}
    few, many = (
        jax.jit(f, compiler_options=cheap | {"xla_backend_optimization_level": level}, **options)
        for level in (0, 1)
    )
    elsewhere = jax.jit(f, **options)

    def chosen(key: jax.Array, size: int) -> Callable[..., Any]:
        if any(device.platform != "cpu" for device in key.devices()):
            return elsewhere
        return few if size <= _FEW else many

    return chosen


def _draw(key: jax.Array, scale: Any, shape: tuple[int, ...]) -> jax.Array:
    exact = lax.optimization_barrier(jax.random.uniform(key, shape, minval=-1.0))
    return lax.optimization_barrier(scale * exact)  # which a net may scale once more: two products, not one


_drawn_by = _compiled(_draw, static_argnums=2)


def weights(key: jax.Array, shape: tuple[int, ...], variance: float) -> jax.Array:
    """Initial weights: uniform between ±√(3 · variance), the same bits however they are compiled.

    >>> float(abs(weights(jax.random.key(0), (1000,), 1 / 3)).max()).__round__(2)
    1.0
    """
    draw = _draw if _is_traced(key) else _drawn_by(key, math.prod(shape))
    return draw(key, math.sqrt(3 * variance), shape)


def in_one_program(init: Callable[[jax.Array, Any], Any]) -> Callable[[jax.Array, Any], Any]:
    """The `init(key, config)` of a net as one program of its own, compiled cheaply, where nothing is traced.

    XLA's options can only be set for the outermost program.
    """
    compiled = _compiled(init)

    @functools.wraps(init)
    def once(key: jax.Array, config: Any) -> Any:
        if _is_traced(key) or not _is_typed(key) or jax.tree.leaves(config):
            return init(key, config)
        shapes = jax.tree.leaves(jax.eval_shape(compiled(key, 0), key, config))
        return compiled(key, sum(math.prod(leaf.shape) for leaf in shapes))(key, config)

    return once


def _is_traced(key: Any) -> bool:
    """Whether what is drawn becomes part of a program, for which the key may well be a constant."""
    if not isinstance(key, jax.Array) or isinstance(key, jax.core.Tracer):
        return True
    now = jax.extend.core.get_opaque_trace_state()
    with jax.core.eval_context():
        return now != jax.extend.core.get_opaque_trace_state()


def _is_typed(key: jax.Array) -> bool:
    return not key.shape and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)


def drawn(
    where: str,
    key: jax.Array,
    w: Any,
    shape: tuple[int, ...],
    roles: str,
    of_matrix: tuple[int, ...] | None = None,
    *,
    variance: float,
) -> jax.Array:
    """A leaf of that shape by the initialiser w, which gets the leaf's matrix [in, out]; without one uniform.

    So the fans that an initialiser reads off a shape are those of the sums that the operation makes. Of a
    stack of matrices (groups, gates) each is drawn by itself.

    Args:
        where: who asks.
        key: a random key.
        w: the initialiser, or None.
        shape: of the leaf.
        roles: "s", "i" or "o" for each axis, as in `spec.Spec`.
        of_matrix: the shape that the letters are for; None: the leaf's own.
        variance: of what is drawn uniformly.
    """
    if w is None:
        return weights(key, shape, variance)
    _check_callable(where, w)
    spec = of(jax.ShapeDtypeStruct(shape, jnp.float32), " ".join("abcdefgh"[: len(shape)]), roles, of_matrix)
    stack, *matrix = sizes(spec)
    one = lambda key: _one(where, w, key, tuple(matrix))
    matrices = one(key)[None] if stack == 1 else jax.vmap(one)(jax.random.split(key, stack))
    return from_matrices(matrices, spec)


def _one(where: str, w: Initializer, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    found = w(key, shape)
    dtype = _check.dtype_of(found)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise DTypeError(
            f"{where}: w gives no array of floats.",
            path="w",
            expected=f"w(key, {shape}): float[{shape[0]}, {shape[1]}]",
            actual=describe(found),
        )
    if found.shape != shape:
        raise ShapeError(
            f"{where}: w gives another shape than it is asked for.",
            path="w",
            expected=f"w(key, {shape}): float[{shape[0]}, {shape[1]}]",
            actual=describe(found),
        )
    return jnp.asarray(found)


def _check_callable(where: str, w: Any) -> None:
    fits = callable(w) and not isinstance(w, type)
    if fits:
        try:
            inspect.signature(w).bind(None, None)
        except TypeError:
            fits = False
        except ValueError:  # of a builtin, whose signature is not known
            pass
    if not fits:
        raise DTypeError(
            f"{where}: w is no initialiser.",
            path="w",
            expected="w: (key, shape) -> array, as jax.nn.initializers.he_normal(), or None",
            actual=f"w: {describe(w)}",
            hint="jax.nn.initializers.he_normal makes initialisers: call it." if callable(w) else None,
        )
