"""Everything that a training run carries from one step to the next."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key, PyTree

from funcnet.errors import DTypeError, ShapeError, describe


class State(NamedTuple):
    """A training run between two steps: a plain pytree, so that it can be saved, sharded and compared.

    Attributes:
        step: int32, how many batches were seen.
        params: the parameters.
        opt_state: what the optax optimizer keeps.
        key: a typed key; step number `n` (from 0) uses `jax.random.fold_in(key, n)`, so the key itself never
            changes, and a run that is resumed at step `n` draws what the uninterrupted one would have drawn.
        model_state: what the model updates without a gradient (batch-norm statistics), or None.
    """

    step: Int[Array, ""]
    params: PyTree
    opt_state: PyTree
    key: Key[Array, ""]
    model_state: PyTree = None


def init(
    params: PyTree,
    optimizer: optax.GradientTransformation,
    *,
    key: Key[Array, ""],
    model_state: PyTree = None,
) -> State:
    """The state before the first step.

    Every leaf is copied: a step from `make_step` reuses the memory of the state that it is given, which
    deletes those arrays, and the caller's `params` should outlive the training. Shardings are kept.

    Args:
        params: a pytree of floating-point arrays.
        optimizer: any optax optimizer.
        key: a scalar typed key, `jax.random.key(seed)`.
        model_state: what the model updates without a gradient, if anything.

    Raises:
        DTypeError: a leaf of `params` is not floating-point, or `key` is no typed key.
        ShapeError: `key` is an array of several keys.

    >>> import optax
    >>> state = init({"w": jnp.ones(3)}, optax.sgd(0.1), key=jax.random.key(0))
    >>> int(state.step), state.params["w"].shape
    (0, (3,))
    """
    _check_key(key)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            name = f"params{jax.tree_util.keystr(path)}"
            raise DTypeError(
                f"train.init: {name} cannot be trained: it has no gradient.",
                path=name,
                expected="floating-point arrays",
                actual=describe(leaf),
                hint="what the model keeps without a gradient goes into model_state",
            )
    # The optimizer may keep params themselves in its state, and one array may stand at two places of params:
    # a buffer can be donated only once, so each leaf gets its own.
    opt_state = jax.tree.map(_copy, optimizer.init(params))
    params, key, model_state = jax.tree.map(_copy, (params, key, model_state))
    return State(jnp.zeros((), jnp.int32), params, opt_state, key, model_state)


def _copy(leaf: Any) -> Array:
    # The explicit dtype makes weak types (those of Python numbers) strong, as a step returns them: else the
    # second call would compile again.
    return jnp.array(leaf, dtype=jnp.result_type(leaf), copy=True)


def _check_key(key: Any) -> None:
    if not isinstance(key, jax.Array) or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raw = isinstance(key, jax.Array) and key.dtype == jnp.uint32
        raise DTypeError(
            "train.init: key is not a typed key.",
            path="key",
            expected="a typed key, as jax.random.key(seed) makes it",
            actual=describe(key),
            hint="jax.random.wrap_key_data(key) makes a typed key of an old one" if raw else None,
        )
    if key.shape:
        raise ShapeError(
            "train.init: key is an array of keys; a run has one.",
            path="key",
            expected="a scalar key: key<...>[]",
            actual=describe(key),
            hint="take one of them: key[0]",
        )
