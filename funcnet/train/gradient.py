"""The gradient of a loss over a batch, taken whole or in parts; and what a loss may return, checked."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from funcnet import signature
from funcnet._letters import Axes, devices
from funcnet.errors import ShapeError, StructureError, describe
from funcnet.mean import Mean, of_loss, quotient, wide
from funcnet.train import _mesh
from funcnet.train.log import RESERVED
from funcnet.train.metric import checked
from funcnet.train.state import State

__all__ = ["Gradient", "in_parts", "value", "whole"]


class Gradient(NamedTuple):
    """What a loss says of a batch.

    Attributes:
        value: the loss, divided.
        weight: of a loss that is a `Mean`; None of one that is a number.
        grads: the gradient of the loss, the scale taken out; as `params`.
        model_state: the next.
        metrics: divided, too.
    """

    value: Float[Array, ""]
    weight: Array | None
    grads: PyTree
    model_state: PyTree
    metrics: dict[str, Any]


def value(loss: Any, params: PyTree, model_state: PyTree, batch: PyTree, key: Any) -> Float[Array, ""]:
    """The loss alone, divided."""
    result, _, _ = _call(loss, params, model_state, batch, key)
    return quotient(result) if isinstance(result, Mean) else result


def whole(loss: Any, state: State, batch: PyTree, key: Any) -> Gradient:
    """The gradient over a batch, at once."""

    def objective(params: PyTree) -> tuple[Float[Array, ""], Any]:
        value, model_state, metrics = _call(loss, params, state.model_state, batch, key)
        weight = value.weight if isinstance(value, Mean) else None
        value = quotient(value) if isinstance(value, Mean) else value
        return _scaled(value, state), (value, weight, model_state, metrics)

    (_, (value, weight, model_state, metrics)), grads = jax.value_and_grad(objective, has_aux=True)(
        state.params
    )
    if state.loss_scale is not None:
        grads = _divided(grads, state, None)
    divided = {name: quotient(v) if isinstance(v, Mean) else v for name, v in metrics.items()}
    return Gradient(value, weight, grads, model_state, divided)


def in_parts(
    loss: Any,
    state: State,
    batch: PyTree,
    key: Any,
    k: int,
    same: Callable[[PyTree], PyTree],
    gather: bool,
) -> Gradient:
    """The gradient over a batch in k parts, one after the other, in the memory of one of them.

    Totals, weights and the gradients of totals are added up, and divided once: in float32 or wider.

    On a mesh with Explicit axes, over which the examples are split, each group of them that lies in one place
    adds up its own gradients, and the groups are added up at the end: the parts, and their numbers, are those
    of k times as many parts as there are groups. Not where parameters are split over those axes, too: then a
    part has as many examples from each group, and its gradient is added up over the groups at once.

    Args:
        loss: as in `make_step`.
        state: where the gradient is taken.
        batch: arrays with equally long first axes; those without axes go to every part.
        key: of the step; part i, from 0, has `fold_in(key, i)`.
        k: how many parts.
        same: makes sure that a model state is like the one before.
        gather: parameters whole over the axes that examples are split over, once, before the first part.

    Raises:
        ShapeError: k does not divide the batch, or a metric has axes.
    """
    axes = _mesh.rows_over(batch)
    params = _mesh.gathered(state.params, axes) if gather else state.params
    apart = bool(axes) and not _mesh.touches(params, axes)
    groups = devices(axes) if apart else 1
    rows, shared = _cut(batch, k, axes, apart)

    def gradient(model_state: PyTree, rows: PyTree, number: Array) -> tuple[PyTree, tuple[PyTree, Mean, Any]]:
        batch = jax.tree.map(lambda own, all: all if own is None else own, rows, shared, is_leaf=_none)

        def objective(params: PyTree) -> tuple[Float[Array, ""], Any]:
            part_key = jax.random.fold_in(key, number)
            value, after, metrics = _call(loss, params, model_state, batch, part_key)
            total, weight = value if isinstance(value, Mean) else (value, None)
            return _scaled(total, state), (same(after), Mean(wide(total), weight), _scalars(metrics))

        return jax.grad(objective, has_aux=True)(params)

    def part(carry: Any, entry: Any) -> tuple[Any, Any]:
        (sums, model_state), (rows, number) = carry, entry
        each = jax.vmap(gradient) if apart else gradient
        grads, (after, mean, metrics) = each(model_state, rows, number)
        add = lambda sum, grad: sum + _mesh.retyped(sum, grad.astype(sum.dtype))
        return (jax.tree.map(add, sums, grads), after), (mean, metrics)

    numbers = jnp.arange(groups * k, dtype=jnp.int32)
    sums = jax.tree.map(lambda leaf: jnp.zeros_like(leaf, dtype=wide(leaf).dtype), params)
    carry = sums, state.model_state
    if apart:
        numbers = _mesh.cut(numbers, k, axes, apart)[..., 0]
        carry = jax.tree.map(lambda leaf: _mesh.stacked(leaf, axes), carry)
    (sums, model_state), (mean, metrics) = jax.lax.scan(part, carry, (rows, numbers))
    if apart:  # the one time that a device hears of the others
        sums = jax.tree.map(lambda sum: sum.sum(0), sums)
        model_state = jax.tree.map(_of_groups, model_state)
    weight = None if mean.weight is None else mean.weight.sum()
    count = jnp.asarray(groups * k, jnp.int32) if weight is None else weight
    grads = _divided(sums, state, jnp.where(count == 0, 1, count))
    grads = jax.tree.map(_mesh.retyped, state.params, grads)
    return Gradient(quotient(Mean(mean.total.sum(), count)), weight, grads, model_state, _joined(metrics))


def _of_groups(leaf: Array) -> Array:
    """A model's state from those of the groups: their mean, of what is no float the first."""
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
        return leaf.mean(0)
    return jax.reshard(leaf, jax.P())[0]


def _none(node: Any) -> bool:
    return node is None


def _cut(batch: PyTree, k: int, axes: Axes, apart: bool) -> tuple[PyTree, PyTree]:
    """The batch with a first axis of k parts; and its leaves without axes, which go to each."""
    first: tuple[str, int] | None = None
    n = k * devices(axes)
    where = "" if n == k else f"     ({k} parts × {n // k} groups over {', '.join(axes)})"
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        name, shape = f"batch{jax.tree_util.keystr(path)}", np.shape(leaf)
        if not shape:
            continue
        first = first or (name, shape[0])
        if shape[0] != first[1] or shape[0] % n:
            raise ShapeError(
                f"train.make_step: {name} cannot be cut into {k} equal parts (accumulate={k}).",
                path=name,
                expected=f"a first axis that {n} divides{where}"
                if shape[0] == first[1]
                else f"a first axis of {first[1]}, that of {first[0]}",
                actual=describe(leaf),
                hint="what is no entry per example goes into the params, the model state, or the loss itself"
                if shape[0] != first[1]
                else None,
            )
    if first is None:
        raise ShapeError(
            f"train.make_step: there is nothing in the batch to be cut into {k} parts (accumulate={k}).",
            path="batch",
            expected="an array with one entry per example",
            actual=", ".join(map(describe, jax.tree.leaves(batch))) or "no array",
        )

    def cut(leaf: Any) -> Any:
        return _mesh.cut(leaf, k, axes, apart) if np.shape(leaf) else None

    return jax.tree.map(cut, batch), jax.tree.map(lambda leaf: None if np.shape(leaf) else leaf, batch)


def _scalars(metrics: dict[str, Any]) -> dict[str, Any]:
    """The metrics of a part, as arrays; each one number, since a batch has one for each name."""
    for name, value in metrics.items():
        if not isinstance(value, Mean) and np.shape(value):
            raise ShapeError(
                f'train.make_step: metrics["{name}"] has axes, and of a batch in parts it is one number.',
                path=f'metrics["{name}"]',
                expected="a real number, or a Mean",
                actual=describe(value),
                hint="average it, or give train.Mean(values.sum(), how many)",
            )
    return jax.tree.map(jnp.asarray, metrics)


def _joined(metrics: dict[str, Any]) -> dict[str, Any]:
    """One number for each metric, of one per part: means by their weights, what has none evenly."""
    return {
        name: quotient(Mean(wide(value.total).sum(), value.weight.sum()))
        if isinstance(value, Mean)
        else value.mean()
        for name, value in metrics.items()
    }


def _scaled(total: Float[Array, ""], state: State) -> Float[Array, ""]:
    """What is differentiated: the loss, times the loss scale if there is one."""
    if state.loss_scale is None:
        return total
    total = wide(total)
    return total * state.loss_scale.scale.astype(total.dtype)


def _divided(grads: PyTree, state: State, count: Array | None) -> PyTree:
    """Gradients without the loss scale, over the weight; in the types of the params."""

    def divide(grad: Array, param: Array) -> Array:
        grad = wide(grad)
        if state.loss_scale is not None:
            grad = grad / state.loss_scale.scale.astype(grad.dtype)
        return (grad if count is None else grad / count.astype(grad.dtype)).astype(param.dtype)

    return jax.tree.map(divide, grads, state.params)


# ---- what a loss may return -------------------------------------------------------------------------------


def _call(
    loss: Any, params: PyTree, model_state: PyTree, batch: PyTree, key: Any
) -> tuple[Float[Array, ""] | Mean, PyTree, dict[str, Any]]:
    """Value, model state and metrics of a loss, checked; no gradient goes through a weight."""
    result = signature.call("train.make_step", loss, params, model_state, batch, key)
    value, model_state, metrics = (_plain if model_state is None else _stateful)(result)
    if isinstance(value, Mean):
        value = value._replace(weight=jax.lax.stop_gradient(value.weight))
    return value, model_state, metrics


def _plain(result: Any) -> tuple[Float[Array, ""] | Mean, None, dict[str, Any]]:
    """Value and metrics of a loss without a model state, checked."""
    if not isinstance(result, tuple) or isinstance(result, Mean):
        return of_loss("train.make_step", result), None, {}
    if len(result) != 2 or not isinstance(result[1], dict):
        state = result[1] if len(result) == 2 else None
        stateful = isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict)
        raise StructureError(
            "train.make_step: the loss returned a tuple that is not (scalar, metrics).",
            path="loss",
            expected="a scalar, or (scalar, dict of metrics)",
            actual=_outline(result),
            hint="give train.init the model_state that this loss returns" if stateful else None,
        )
    return of_loss("train.make_step", result[0]), None, _metrics(result[1])


def _stateful(result: Any) -> tuple[Float[Array, ""] | Mean, PyTree, dict[str, Any]]:
    """Value, model state and metrics of a loss with a model state, checked."""
    match result:
        case (value, (model_state, dict() as metrics)):
            return of_loss("train.make_step", value), model_state, _metrics(metrics)
    raise StructureError(
        "train.make_step: the loss of a run with a model state must return that state.",
        path="loss",
        expected="(scalar, (model_state, dict of metrics))",
        actual=_outline(result),
    )


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
    return metrics


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
