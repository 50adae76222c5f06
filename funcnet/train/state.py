"""Everything that a training run carries from one step to the next."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PyTree, UInt32

from funcnet.errors import DTypeError, ShapeError, ValueRangeError, describe, shorten
from funcnet.mean import scalar, wide
from funcnet.train import _check, _mesh
from funcnet.train import optimizer as optimizers

# What a loss scale can be: below it, float16 has room for no gradient; above, a run that needs no scale would
# double it to infinity.
LEAST_SCALE, MOST_SCALE = 1.0, 2.0**24


class LossScale(NamedTuple):
    """By what the loss is multiplied, so that float16 can hold its gradients; `make_step` adapts it.

    Attributes:
        scale: float32, the factor.
        good: int32, finite steps in a row since it last changed.
    """

    scale: Float[Array, ""]
    good: Int[Array, ""]


class State(NamedTuple):
    """A training run between two steps: a plain pytree, so that it can be saved, sharded and compared.

    Attributes:
        step: int32, how many batches were seen, those included that changed nothing.
        params: the parameters.
        opt_state: what the optax optimizer keeps.
        key: uint32, the data of the run's key: `jax.random.wrap_key_data(state.key)` is the key. (JAX takes a
            typed key apart and puts it together in Python, at every call: see benchmarks/overhead.py.)
        model_state: what the model updates without a gradient (batch-norm statistics), or None.
        faults: int32, how many steps in a row were not finite; only a guarded step counts them.
        average: the exponential average of the params, a tree like them, or None. It is in float32 where they
            are narrower: in bfloat16 a thousandth of a number is less than its rounding.
        decay: float32, of the average, or None.
        loss_scale: for gradients in float16, or None.
    """

    step: Int[Array, ""]
    params: PyTree
    opt_state: PyTree
    key: UInt32[Array, " words"]
    model_state: PyTree = None
    faults: Int[Array, ""] | None = None
    average: PyTree = None
    decay: Float[Array, ""] | None = None
    loss_scale: LossScale | None = None


def init(
    params: PyTree,
    optimizer: optax.GradientTransformation | optax.MultiSteps,
    *,
    key: Key[Array, ""],
    model_state: PyTree = None,
    average: float | None = None,
    loss_scale: float | None = None,
) -> State:
    """The state before the first step.

    Every leaf is copied: a step from `make_step` reuses the memory of the state that it is given, which
    deletes those arrays, and the caller's `params` should outlive the training. Shardings are kept. Where
    params lie on a mesh, what lies on one device (the count of steps, the key) is put on all of its devices.

    Args:
        params: a pytree of floating-point arrays.
        optimizer: any optax optimizer that `make_step` takes.
        key: a scalar typed key, `jax.random.key(seed)`, of JAX's default implementation. It never changes:
            step number n, from 0, uses `jax.random.fold_in(key, n)`, so that a run that is resumed draws what
            the uninterrupted one would have drawn.
        model_state: what the model updates without a gradient, if anything.
        average: keep an exponential average of the params, `state.average`: after each update it is
            average * (what it was) + (1 - average) * params; it starts at `params`, and there is no bias
            correction. From 0 to below 1; 0.999 looks back a thousand steps.
        loss_scale: multiply the loss by this, from 1 to 2²⁴, before its gradient is taken, and adapt it:
            where a gradient passes through float16, whose range is small. 2¹⁵ is usual.

    Raises:
        DTypeError: a leaf of `params` is not floating-point, one of `model_state` is no array, `optimizer` is
            none, `average` or `loss_scale` is no number, or `key` is no typed key or not of the default
            implementation.
        ShapeError: `key` is an array of several keys.
        StructureError: the optimizer needs a step of its own: it keeps two sets of params (`optax.lookahead`)
            or takes the gradient of each example (`optax.contrib.dpsgd`).
        ValueRangeError: something is given that a step has deleted, params lie elsewhere than on the mesh
            that is set, or `average` or `loss_scale` lies outside of its range.

    >>> import optax
    >>> state = init({"w": jnp.ones(3)}, optax.sgd(0.1), key=jax.random.key(0))
    >>> int(state.step), state.params["w"].shape
    (0, (3,))
    """
    transformation = optimizers.transformation("train.init", optimizer)
    _check_key(key)
    decay = None if average is None else _number("average", average, "0 or more, and less than 1", 0.0, 1.0)
    if loss_scale is not None:
        loss_scale = _number("loss_scale", loss_scale, "from 1 to 2**24", LEAST_SCALE, MOST_SCALE + 1)
    for path, tree in (("params", params), ("key", key), ("model_state", model_state)):
        _check.alive("train.init", path, tree)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not (_is_array(leaf) and jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)):
            name = f"params{jax.tree_util.keystr(path)}"
            raise DTypeError(
                f"train.init: {name} cannot be trained: it has no gradient.",
                path=name,
                expected="floating-point arrays",
                actual=_check.shown(leaf),
                hint="what the model keeps without a gradient goes into model_state"
                if _is_array(leaf)
                else None,
            )
    for path, leaf in jax.tree_util.tree_leaves_with_path(model_state):
        if not _is_array(leaf):
            name = f"model_state{jax.tree_util.keystr(path)}"
            raise DTypeError(
                f"train.init: {name} is no array.", path=name, expected="arrays", actual=_check.shown(leaf)
            )
    if (mesh := _mesh.home(())) is not None:
        _mesh.check("train.init", "params", params, mesh)
    opt_state = optimizers.init(transformation, params)
    # The optimizer may keep params themselves in its state, and one array may stand at two places of params:
    # a buffer can be donated only once, so each leaf gets its own.
    opt_state = jax.tree.map(_copy, opt_state)
    params, key_data, model_state = jax.tree.map(_copy, (params, jax.random.key_data(key), model_state))
    none = lambda: jnp.zeros((), jnp.int32)
    state = State(
        none(),
        params,
        opt_state,
        key_data,
        model_state,
        none(),
        None if decay is None else jax.tree.map(lambda leaf: jnp.array(wide(leaf), copy=True), params),
        None if decay is None else jnp.float32(decay),
        None if loss_scale is None else LossScale(jnp.float32(loss_scale), none()),
    )
    return _mesh.placed(state, params)


def step_key(state: State) -> Key[Array, ""]:
    """The key of the step that comes next."""
    return jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)


def _number(path: str, value: Any, expected: str, least: float, below: float) -> float:
    """A number of an option, if it lies from `least` to less than `below`."""
    scalar("train.init", path, value)
    if not least <= value < below:
        text = shorten(value)
        raise ValueRangeError(f"train.init: {path} is {text}.", path=path, expected=expected, actual=text)
    return float(value)


def _is_array(leaf: Any) -> bool:
    numbers = jax.Array | np.number | np.bool_ | bool | int | float | complex
    if isinstance(leaf, np.ndarray) and not isinstance(leaf, np.ma.MaskedArray):
        return any(jnp.issubdtype(leaf.dtype, kind) for kind in (jnp.number, jnp.bool_))
    fits = not isinstance(leaf, int) or -(2**31) <= leaf < 2**31
    return isinstance(leaf, numbers) and fits


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
    default = str(jax.config.jax_default_prng_impl)  # pyright: ignore[reportAttributeAccessIssue]
    given = str(jax.random.key_impl(key))
    if given != default:
        raise DTypeError(
            "train.init: key is not of the default implementation.",
            path="key",
            expected=f"a key of {default}, JAX's default here",
            actual=f"a key of {given}",
            hint=f'jax.config.update("jax_default_prng_impl", "{given}") makes it the default',
        )
    if key.shape:
        raise ShapeError(
            "train.init: key is an array of keys; a run has one.",
            path="key",
            expected="a scalar key: key<...>[]",
            actual=describe(key),
            hint="take one of them: key[0]",
        )
