"""Averages over a data set."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from funcnet import signature
from funcnet.errors import DTypeError, ShapeError, StructureError, ValueRangeError, describe
from funcnet.mean import Mean
from funcnet.train import _check
from funcnet.train.agreement import everywhere
from funcnet.train.cursor import Cursor
from funcnet.train.metric import checked


def evaluate(
    metrics: Callable[..., Mapping[str, Any]],
    params: PyTree,
    batches: Iterable[PyTree],
    *,
    model_state: PyTree = None,
) -> dict[str, float]:
    """Average metrics over the examples of a data set.

    Each batch counts by its number of examples, so that a smaller last one, as `in_order` gives it, has its
    right weight; a metric that is a `Mean` brings its own, as it must if some places do not count.
    Sums are in float64. `metrics` is jitted, once per shape of a batch; pass the same function object each
    time, since a lambda made anew is compiled anew.

    Args:
        metrics: `metrics(params, batch)`, or `metrics(params, model_state, batch)` if there is a model state,
            gives a dict of arrays: each a mean over the batch, or one value per example, or per token; or of
            Means.
        params: the parameters, `state.params`.
        batches: any finite iterable of batches whose arrays have one entry per example; see `in_order`. Empty
            ones are passed over. NumPy arrays are copied, so an iterable may fill the same ones again.
        model_state: what the model keeps without a gradient, `state.model_state`.

    Returns:
        The mean of each metric over all examples: totals and weights are added up, and divided once. NaN if
        there was no weight.

    Raises:
        ValueRangeError: there was no example, batches never end, or `params` went with a state that was given
            to a step.
        ShapeError: the arrays of a batch do not agree on the number of examples, or a metric has neither one
            value nor one for each of them.
        DTypeError: a metric is not real, or an argument or a leaf of a batch is not what it should be.
        StructureError: `metrics` takes other arguments, or did not return a dict, the same for each batch.

    >>> from funcnet.train import in_order
    >>> evaluate(lambda params, batch: {"mean": batch * params}, 2.0, in_order(np.arange(5.0), 2))
    {'mean': 4.0}
    """
    names = ("params", "batch") if model_state is None else ("params", "model_state", "batch")
    signature.check("train.evaluate", "metrics", metrics, names)
    _check.iterable("train.evaluate", batches)
    if isinstance(batches, Cursor) and batches.endless:
        raise ValueRangeError(
            "train.evaluate: batches never end.",
            path="batches",
            expected="a finite iterable",
            actual="batches of epochs=None",
            hint="train.in_order(arrays, size) gives each example once",
        )
    _check.here("train.evaluate", "params", params)
    _check.here("train.evaluate", "model_state", model_state)
    compiled = jax.jit(metrics)
    state = () if model_state is None else (model_state,)
    results, sizes = [], []
    for batch in batches:
        batch = _check.own("train.evaluate", batch)
        size = _size(batch)
        if size == 0:
            continue
        # Read after the loop: the device is not kept waiting.
        result = _measure(compiled, params, *state, batch)
        if results and result.keys() != results[0].keys():
            raise StructureError(
                "train.evaluate: metrics gave other metrics for another batch.",
                path="metrics",
                expected=", ".join(results[0]),
                actual=", ".join(result),
            )
        results.append(result)
        sizes.append(size)
    if not sizes:
        raise ValueRangeError(
            "train.evaluate: there was no example.",
            path="batches",
            expected="one batch or more",
            actual="none",
            hint="an iterator can be used once: make it anew" if iter(batches) is batches else None,
        )
    return {name: _mean(name, [result[name] for result in results], sizes) for name in results[0]}


def _measure(compiled: Callable[..., Any], *args: Any) -> dict[str, Any]:
    """The metrics of one batch, still on the device."""
    try:
        result = compiled(*args)
    except TypeError as error:
        if "not a valid JAX type" not in str(error):
            raise
        raise DTypeError(
            "train.evaluate: metrics returned what is no array.",
            path="metrics",
            expected="a dict of arrays",
            actual=str(error),
        ) from error
    return everywhere(checked("train.evaluate", "metrics", result))


def _mean(name: str, values: list[Any], sizes: list[int]) -> float:
    """The mean over batches: of totals and weights added up, in float64."""
    total = weight = 0.0
    for value, size in zip(values, sizes, strict=True):
        if not isinstance(value, Mean):
            value = Mean(_over_examples(name, value, size) * size, size)
        total, weight = total + float(value.total), weight + float(value.weight)
    return total / weight if weight else math.nan


def _over_examples(name: str, value: Any, size: int) -> np.float64:
    """The mean of a metric over the `size` examples of a batch."""
    value = np.asarray(value)
    if value.ndim and (not value.size or value.shape[0] % size):
        raise ShapeError(
            f'train.evaluate: metrics["{name}"] has no value for each example.',
            path=f'metrics["{name}"]',
            expected=f"one number, or a first axis of {size}, one entry per example",
            actual=describe(value),
            hint="give each of them its own name",
        )
    return value.mean(dtype=np.float64)


def _size(batch: PyTree) -> int:
    """The number of examples in a batch: the length of its first axis."""
    sizes = {np.shape(leaf)[0] for leaf in jax.tree.leaves(batch) if np.shape(leaf)}
    if len(sizes) != 1:
        raise ShapeError(
            "train.evaluate: the arrays of a batch do not agree on the number of examples.",
            path="batch",
            expected="arrays whose first axes are equally long",
            actual=", ".join(map(describe, jax.tree.leaves(batch))),
        )
    return sizes.pop()
