"""Edit distance, and the error rates of characters and words: how far a text is from the one it should be.

They are metrics, without a gradient, so they lie here and not among the losses. A rate is a `Mean`, since
that of a data set is all its edits by all its characters, not the average of the rates of its texts.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int32, Integer

from funcnet.errors import DTypeError, ShapeError, describe
from funcnet.mean import Mean

__all__ = ["character_error_rate", "edit_distance", "word_error_rate"]


def edit_distance(
    prediction: Integer[Array, "*n s"],
    target: Integer[Array, "*n t"],
    *,
    prediction_lengths: Integer[Array, "*n"] | None = None,
    target_lengths: Integer[Array, "*n"] | None = None,
) -> Int32[Array, "*n"]:
    """The least number of insertions, deletions and substitutions that make `target` of `prediction`.

    A row of Levenshtein's table follows from the one before, all places at once: what insertions do along it
    is a running minimum. ("Binary codes capable of correcting deletions, insertions, and reversals", 1966.)

    Args:
        prediction: [*n, s] integers, labels or tokens.
        target: [*n, t], with the same leading axes.
        prediction_lengths: [*n], how many of each prediction count; all if None. More than s are s,
            fewer than 0 none.
        target_lengths: [*n], of each target.

    Raises:
        DTypeError: an argument is not an array of integers.
        ShapeError: the leading axes differ.

    >>> labels, number = jnp.array([[3, 1, 2, -1]]), jnp.array([3])
    >>> edit_distance(labels, jnp.array([[3, 2, 2]]), prediction_lengths=number).tolist()
    [1]
    """
    arrays = {"prediction": prediction, "target": target}
    lengths = {"prediction_lengths": prediction_lengths, "target_lengths": target_lengths}
    for name, value in (arrays | {name: v for name, v in lengths.items() if v is not None}).items():
        _check(name, value, prediction, more=0 if name in lengths else 1)
    prediction, target = jnp.asarray(prediction), jnp.asarray(target)
    ends = [
        jnp.full(x.shape[:-1], x.shape[-1], jnp.int32)
        if v is None
        else jnp.clip(jnp.asarray(v), 0, x.shape[-1]).astype(jnp.int32)
        for x, v in zip((prediction, target), lengths.values(), strict=True)
    ]
    with jax.numpy_dtype_promotion("standard"):  # int8 beside int32
        dtype = jnp.result_type(prediction, target)
    return _distance(prediction.astype(dtype), target.astype(dtype), *ends)


@jax.jit
def _distance(prediction: Array, target: Array, s: Array, t: Array) -> Array:
    place = lax.broadcasted_iota(jnp.int32, (*target.shape[:-1], target.shape[-1] + 1), target.ndim - 1)

    def symbol(row: Array, at: tuple[Array, Array]) -> tuple[Array, None]:
        i, p = at
        other = (target != p[..., None]).astype(jnp.int32)
        without = row + 1  # the prediction's symbol is deleted
        below = jnp.concatenate([without[..., :1], jnp.minimum(without[..., 1:], row[..., :-1] + other)], -1)
        below = place + lax.cummin(below - place, axis=place.ndim - 1)  # the target's symbols are inserted
        return jnp.where((i < s)[..., None], below, row), None

    steps = jnp.arange(prediction.shape[-1], dtype=jnp.int32), jnp.moveaxis(prediction, -1, 0)
    row, _ = lax.scan(symbol, place, steps)
    return jnp.take_along_axis(row, t[..., None], -1)[..., 0]


def character_error_rate(predictions: Sequence[str], targets: Sequence[str]) -> Mean:
    """The edits of characters that make the targets of the predictions, by the characters of the targets.

    Characters are those of Python: spaces and marks count, and so does their case.

    Args:
        predictions: texts.
        targets: as many, what each should be.

    Raises:
        DTypeError: not sequences of strings.
        ShapeError: their numbers differ.

    >>> character_error_rate(["three", "foo"], ["tree", "four"])
    Mean(total=3, weight=8)
    """
    return _rate("character_error_rate", list, predictions, targets)


def word_error_rate(predictions: Sequence[str], targets: Sequence[str]) -> Mean:
    """As `character_error_rate`, of words, which white space separates.

    >>> word_error_rate(["to be or not"], ["to be and not to"])
    Mean(total=2, weight=5)
    """
    return _rate("word_error_rate", str.split, predictions, targets)


def _rate(name: str, parts: Callable[[str], list[str]], predictions: Any, targets: Any) -> Mean:
    for path, texts in (("predictions", predictions), ("targets", targets)):
        if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
            raise DTypeError(
                f"{name}: {path} are not a list of strings.",
                path=path,
                expected=f"{path}: a list or tuple of str",
                actual=f"{path}: {describe(texts)}",
                hint=f"one text is [{path}]." if isinstance(texts, str) else None,
            )
    if len(predictions) != len(targets):
        raise ShapeError(
            f"{name}: there are not as many predictions as targets.",
            path="predictions",
            expected=f"{len(targets)} predictions     (the number of targets)",
            actual=f"{len(predictions)}",
        )
    edits = [_edits(parts(p), parts(t)) for p, t in zip(predictions, targets, strict=True)]
    return Mean(sum(edits), sum(len(parts(t)) for t in targets))


def _edits(prediction: list[str], target: list[str]) -> int:
    """`edit_distance` on the host: texts have a length each, and would be a program each."""
    place, wanted = np.arange(len(target) + 1), np.array(target, object)
    row = place
    for symbol in prediction:
        below = row + 1
        below[1:] = np.minimum(below[1:], row[:-1] + (wanted != symbol))
        row = place + np.minimum.accumulate(below - place)
    return int(row[-1])


def _check(name: str, value: Any, like: Any, *, more: int) -> None:
    leading = np.shape(like)[:-1] if isinstance(like, jax.Array | np.ndarray) else ()
    dims = ", ".join([*map(str, leading), *(["s" if name == "prediction" else "t"] * more)])
    is_array = isinstance(value, jax.Array | np.ndarray) and not isinstance(value, np.ma.MaskedArray)
    if not is_array or not jnp.issubdtype(value.dtype, jnp.integer):
        kind, problem = DTypeError, "is not an array of integers"
    elif value.ndim != len(leading) + more or value.shape[: len(leading)] != leading:
        kind, problem = ShapeError, "does not have the shape that prediction asks for"
    else:
        return
    raise kind(
        f"edit_distance: {name} {problem}.",
        path=name,
        expected=f"{name}: int[{dims}]     (prediction: {describe(like)})",
        actual=f"{name}: {describe(value)}",
        hint="wrap it: jnp.asarray(...)." if isinstance(value, list | tuple) else None,
    )
