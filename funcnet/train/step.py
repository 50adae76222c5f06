"""The training step: one jitted function from a state and a batch to the next state and metrics."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from funcnet.errors import DTypeError, ShapeError, StructureError, describe
from funcnet.train.log import RESERVED
from funcnet.train.state import State, step_key


def make_step(loss: Callable[..., Any], optimizer: optax.GradientTransformation) -> jax.stages.Wrapped:
    """One training step, jitted: `state, metrics = step(state, batch)`.

    What comes back is the `jax.jit` function itself, so `step.lower`, `step.trace` and the like are there,
    and `step.loss` is the loss that it was made of. The state is donated: its memory becomes that of the new
    state, and the old one is deleted. `metrics` is the loss's own, and its value under "loss".

    Args:
        loss: `loss(params, batch, key)` gives the scalar to minimise, or `(scalar, metrics)` with a dict of
            arrays. In a run that has a model state, `loss(params, model_state, batch, key)` gives
            `(scalar, (model_state, metrics))`. The key is a new one in each step.
        optimizer: any optax optimizer; those that ask for the loss's value (`reduce_on_plateau`) get it.

    Raises:
        ShapeError, DTypeError, StructureError: when the step is traced, if the loss returns anything else, or
            if a leaf of the state would change its shape or its type.

    >>> def loss(params, batch, key):
    ...     return jnp.mean((batch @ params["w"] - 1.0) ** 2)
    >>> from funcnet.train import init
    >>> optimizer = optax.sgd(0.1)
    >>> state = init({"w": jnp.zeros(2)}, optimizer, key=jax.random.key(0))
    >>> step = make_step(loss, optimizer)
    >>> state, metrics = step(state, jnp.eye(2))
    >>> int(state.step), [round(w, 3) for w in state.params["w"].tolist()], float(metrics["loss"])
    (1, [0.1, 0.1], 1.0)
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def step(state: State, batch: PyTree) -> tuple[State, dict[str, Array]]:
        key = step_key(state)

        def objective(params: PyTree) -> tuple[Float[Array, ""], tuple[PyTree, dict[str, Array]]]:
            if state.model_state is None:
                return _plain(loss(params, batch, key))
            return _stateful(loss(params, state.model_state, batch, key))

        (value, (model_state, metrics)), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
        # Strict promotion is a promise of the model; optax's optimizers mix integer counts with floats.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params, value=value)
            params = optax.apply_updates(state.params, updates)
        new = State(state.step + 1, params, opt_state, state.key, model_state)
        return _like(state, new), {"loss": value, **metrics}

    step.loss = loss  # pyright: ignore[reportFunctionMemberAccess]  (jax.jit hands attributes on)
    return jax.jit(step, donate_argnums=0)


def _plain(result: Any) -> tuple[Float[Array, ""], tuple[None, dict[str, Array]]]:
    """What a loss without a model state returned, checked."""
    if not isinstance(result, tuple):
        return _scalar(result), (None, {})
    if len(result) != 2 or not isinstance(result[1], dict):
        stateful = len(result) == 2 and isinstance(result[1], tuple) and len(result[1]) == 2
        raise StructureError(
            "train.make_step: the loss returned a tuple that is not (scalar, metrics).",
            path="loss",
            expected="a scalar, or (scalar, dict of metrics)",
            actual=_outline(result),
            hint="give train.init the model_state that this loss returns" if stateful else None,
        )
    return _scalar(result[0]), (None, _metrics(result[1]))


def _stateful(result: Any) -> tuple[Float[Array, ""], tuple[PyTree, dict[str, Array]]]:
    """What a loss with a model state returned, checked."""
    match result:
        case (value, (model_state, dict() as metrics)):
            return _scalar(value), (model_state, _metrics(metrics))
    raise StructureError(
        "train.make_step: the loss of a run with a model state must return that state.",
        path="loss",
        expected="(scalar, (model_state, dict of metrics))",
        actual=_outline(result),
    )


def _scalar(value: Any) -> Float[Array, ""]:
    if not isinstance(value, jax.Array | np.ndarray | np.generic | float | int | complex):
        raise DTypeError(
            f"train.make_step: the loss returned {describe(value)}, not a number.",
            path="loss",
            expected="a floating-point scalar",
            actual=describe(value),
            hint="does it return its result?" if value is None else None,
        )
    value = jnp.asarray(value)
    if value.shape:
        raise ShapeError(
            "train.make_step: the loss is not a scalar.",
            path="loss",
            expected=f"{value.dtype}[]",
            actual=describe(value),
            hint="average the losses of the examples: .mean()",
        )
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise DTypeError(
            "train.make_step: the loss is not a real floating-point number, so it has no gradient to follow.",
            path="loss",
            expected="a floating-point scalar",
            actual=describe(value),
        )
    return value


def _metrics(metrics: dict[str, Any]) -> dict[str, Any]:
    for name in RESERVED:
        if name in metrics:
            raise StructureError(
                f'train.make_step: the loss returned a metric named "{name}", which training records itself.',
                path=f'metrics["{name}"]',
                expected=f"names other than {', '.join(RESERVED)}",
                actual=", ".join(metrics),
            )
    return metrics


def _like(old: State, new: State) -> State:
    """`new`, once every leaf is known to have the shape and the type that it has in `old`.

    Otherwise the memory of `old` could not be reused, and the next step would compile again.
    """
    before, after = (
        {
            f"state{jax.tree_util.keystr(path)}": leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (old, new)
    )
    if jax.tree.structure(old) != jax.tree.structure(new):
        lost, added = (", ".join(sorted(names)) for names in (before.keys() - after, after.keys() - before))
        changes = [text for text, names in ((f"without {lost}", lost), (f"with {added}", added)) if names]
        raise StructureError(
            "train.make_step: the step changes the structure of the state.",
            path="state",
            expected="the structure that it had",
            actual=" and ".join(changes) or f"{jax.tree.structure(new)} for {jax.tree.structure(old)}",
        )
    for path, leaf in after.items():
        was = before[path]
        if jnp.shape(leaf) == was.shape and jnp.result_type(leaf) == was.dtype:
            continue
        kind = DTypeError if jnp.shape(leaf) == was.shape else ShapeError
        raise kind(
            f"train.make_step: the step changes {path}.",
            path=path,
            expected=describe(was),
            actual=describe(leaf),
        )
    # The explicit dtype makes weak types strong, as in train.init.
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype=jnp.result_type(leaf)), new)


def _outline(value: Any) -> str:
    """A returned value, with its tuples opened and its dicts reduced to their names."""
    match value:
        case tuple():
            return f"({', '.join(map(_outline, value))})"
        case dict():
            return f"{{{', '.join(f'{name!r}: ...' for name in value)}}}"
    return describe(value)
