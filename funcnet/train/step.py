"""The training step: one jitted function from a state and a batch to the next state and metrics."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from funcnet import signature
from funcnet.errors import DTypeError, ShapeError, StructureError, describe
from funcnet.train import _check
from funcnet.train import optimizer as optimizers
from funcnet.train.log import RESERVED
from funcnet.train.metric import Mean, checked, quotient, scalar
from funcnet.train.state import State, step_key


def make_step(
    loss: Callable[..., Any], optimizer: optax.GradientTransformation | optax.MultiSteps
) -> jax.stages.Wrapped:
    """One training step, jitted: `state, metrics = step(state, batch)`.

    What comes back is the `jax.jit` function itself, so `step.lower`, `step.trace` and the like are there,
    and `step.loss` is the loss that it was made of. The state is donated: its memory becomes that of the new
    state, and the old one is deleted. `metrics` is the loss's own, and its value under "loss".

    Args:
        loss: `loss(params, batch, key)` gives the scalar to minimise, or `(scalar, metrics)` with a dict of
            arrays. In a run that has a model state, `loss(params, model_state, batch, key)` gives
            `(scalar, (model_state, metrics))`. The scalar, and each metric, may be a `Mean`. The key is a new
            one in each step; a loss that draws nothing need not take it (`signature.call` says how that is
            told).
        optimizer: any optax optimizer of one set of params and their mean gradient (`init` refuses others).
            Those that ask for the loss's value, or for the loss or its gradient at other places, get it,
            always of the same batch, key and model state: `reduce_on_plateau`, line searches and L-BFGS,
            SAM, Sophia.

    Raises:
        DTypeError: the loss is no function, or the optimizer no optimizer.
        ShapeError, DTypeError, StructureError: when the step is traced, if the loss takes or returns anything
            else, if the optimizer asks for anything else or is not the state's, or if a leaf of the state
            would change its shape or its type.

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
    transformation = optimizers.transformation("train.make_step", optimizer)
    _check.function("train.make_step", "loss", loss, "loss(params, batch, key)")

    def step(state: State, batch: PyTree) -> tuple[State, dict[str, Array]]:
        _check_state(state)
        key = step_key(state)

        def objective(params: PyTree) -> tuple[Float[Array, ""], tuple[Any, PyTree, dict[str, Array]]]:
            result = signature.call("train.make_step", loss, params, state.model_state, batch, key)
            value, model_state, metrics = (_plain if state.model_state is None else _stateful)(result)
            if isinstance(value, Mean):
                return quotient(value), (value.weight, model_state, metrics)
            return value, (None, model_state, metrics)

        (value, (weight, model_state, metrics)), grads = jax.value_and_grad(objective, has_aux=True)(
            state.params
        )
        params, opt_state = optimizers.update(
            transformation, state.params, state.opt_state, value, grads, lambda params: objective(params)[0]
        )
        new = _like(state, State(state.step + 1, params, opt_state, state.key, model_state))
        return new if weight is None else _unless(weight == 0, new, state), {"loss": value, **metrics}

    step.loss = loss  # pyright: ignore[reportFunctionMemberAccess]  (jax.jit hands attributes on)
    return jax.jit(step, donate_argnums=0)


def _check_state(state: Any) -> None:
    if not isinstance(state, State):
        raise DTypeError(
            "train.make_step: the step was not given a state.",
            path="state",
            expected="step(state, batch), with a state from train.init or from the step before",
            actual=describe(state),
        )


def _unless(nothing: Any, new: State, old: State) -> State:
    """The new state; with the old params and optimizer's state, if the batch said nothing."""
    params, opt_state = jax.tree.map(
        lambda new, old: jnp.where(nothing, old, new),
        (new.params, new.opt_state),
        (old.params, old.opt_state),
    )
    return new._replace(params=params, opt_state=opt_state)


def _plain(result: Any) -> tuple[Float[Array, ""] | Mean, None, dict[str, Any]]:
    """Value and metrics of a loss without a model state, checked."""
    if not isinstance(result, tuple) or isinstance(result, Mean):
        return _value(result), None, {}
    if len(result) != 2 or not isinstance(result[1], dict):
        stateful = len(result) == 2 and isinstance(result[1], tuple) and len(result[1]) == 2
        raise StructureError(
            "train.make_step: the loss returned a tuple that is not (scalar, metrics).",
            path="loss",
            expected="a scalar, or (scalar, dict of metrics)",
            actual=_outline(result),
            hint="give train.init the model_state that this loss returns" if stateful else None,
        )
    return _value(result[0]), None, _metrics(result[1])


def _stateful(result: Any) -> tuple[Float[Array, ""] | Mean, PyTree, dict[str, Any]]:
    """Value, model state and metrics of a loss with a model state, checked."""
    match result:
        case (value, (model_state, dict() as metrics)):
            return _value(value), model_state, _metrics(metrics)
    raise StructureError(
        "train.make_step: the loss of a run with a model state must return that state.",
        path="loss",
        expected="(scalar, (model_state, dict of metrics))",
        actual=_outline(result),
    )


def _value(value: Any) -> Float[Array, ""] | Mean:
    if not isinstance(value, Mean):
        return _scalar(value)
    scalar("train.make_step", "the loss's weight", value.weight)
    return Mean(_scalar(value.total), jnp.asarray(value.weight))


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
    metrics = checked("train.make_step", "loss", metrics)
    for name in RESERVED:
        if name in metrics:
            raise StructureError(
                f'train.make_step: the loss returned a metric named "{name}", which training records itself.',
                path=f'metrics["{name}"]',
                expected=f"names other than {', '.join(RESERVED)}",
                actual=", ".join(metrics),
            )
    return {name: quotient(value) if isinstance(value, Mean) else value for name, value in metrics.items()}


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
        case Mean():
            return "a Mean"
        case tuple():
            return f"({', '.join(map(_outline, value))})"
        case dict():
            return f"{{{', '.join(f'{name!r}: ...' for name in value)}}}"
    return describe(value)
