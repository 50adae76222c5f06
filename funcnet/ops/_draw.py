"""The w that `init` draws: by default as the operation says, or by an initialiser of the user's."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from funcnet.errors import DTypeError, ShapeError, describe
from funcnet.linalg.matrices import from_matrices, sizes
from funcnet.ops import _check
from funcnet.spec import of

__all__ = ["Initializer", "drawn"]

Initializer = Callable[..., jax.Array]  # (key, (in, out)) -> w [in, out], as those of jax.nn.initializers


def drawn(
    where: str,
    key: jax.Array,
    w: Any,
    shape: tuple[int, ...],
    roles: str,
    of_matrix: tuple[int, ...] | None = None,
) -> jax.Array:
    """A leaf of that shape by the initialiser w, which gets the leaf's matrix [in, out].

    So the fans that an initialiser reads off a shape are those of the sums that the operation makes. Of a
    stack of matrices (groups, gates) each is drawn by itself.

    Args:
        where: who asks.
        key: a random key.
        w: the initialiser.
        shape: of the leaf.
        roles: "s", "i" or "o" for each axis, as in `spec.Spec`.
        of_matrix: the shape that the letters are for; None: the leaf's own.
    """
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
