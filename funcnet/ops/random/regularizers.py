"""Dropout of what belongs together: y = m · x / (1 − rate), m one for an example, a channel or a word.

As `dropout`, but elements share a mask's element: all of an example, all positions of a channel, all places
of one word. m is 1 with probability 1 − rate, by ``jax.random.bernoulli(key, jnp.float32(1 - rate),
shape)``. The division keeps the mean of y at x, so that evaluation (no key) is the identity. At rate 1
there is nothing left: y = 0. What is kept for the pullback is the words of the key, and the mask is drawn
again.
"""

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, Integer, PRNGKeyArray

from funcnet import rules
from funcnet.errors import DTypeError, ShapeError, describe
from funcnet.ops import _check
from funcnet.ops._cost import Cost, traffic
from funcnet.ops._dtype import narrow, signed, wide
from funcnet.ops._elementwise import namespace

__all__ = ["drop_path", "embedding_dropout", "spatial_dropout"]


def _operation(
    reference: Callable[..., Array], mask: Callable[..., Array], check: Callable[..., Any]
) -> ModuleType:
    """The operation of a definition ``(x, *, ..., rate, key=None)``.

    Args:
        reference: the definition.
        mask: ``(x, draw, **options) -> m``, boolean, with an axis for each of x; ``draw(shape)`` draws it.
        check: ``(where, x, **options) -> options``, checked.
    """
    signature, name = inspect.signature(reference), reference.__name__.strip("_")

    def sorted_out(args: Any, options: Any) -> tuple[Any, float, Any, dict[str, Any]]:
        bound = signature.bind(*args, **options)
        bound.apply_defaults()
        given = dict(bound.arguments)
        return given.pop("x"), given.pop("rate"), given.pop("key"), given

    def apply(*args: Any, **options: Any) -> Array:
        where = f"{name}.apply"
        x, rate, key, options = sorted_out(args, options)
        x, rate = _check.floating(where, "x", x), _check.rate(where, "rate", rate, one=True)
        options = check(where, x, **options)
        if key is None or rate == 0:
            return x
        _check.key(where, key)
        return rules.call(vjp, x, rate=rate, key=key, **options)

    def vjp(*args: Any, **options: Any) -> tuple[Array, Partial]:
        """y and its pullback: dx = m · dy / (1 − rate), with the mask m drawn again."""
        x, rate, key, options = sorted_out(args, options)
        words, impl = (None, None) if key is None else (jax.random.key_data(key), jax.random.key_impl(key))
        traced, static = rules.split(options)
        bound = rules.bind(pull, rate=rate, impl=impl, **static)
        return drop(x, rate, key, options), Partial(bound, words, traced)

    def pull(words: Any, traced: Any, dy: Array, *, rate: float, impl: Any, **static: Any) -> tuple[Array]:
        key = None if words is None else jax.random.wrap_key_data(words, impl=impl)
        return (drop(dy, rate, key, traced | static),)  # the map is diagonal: its own transpose

    def drop(x: Array, rate: float, key: Any, options: Any) -> Array:
        if key is None:
            return x
        draw = lambda shape: jax.random.bernoulli(key, jnp.float32(1 - rate), shape)
        kept = jnp.broadcast_to(mask(x, draw, **options), x.shape)
        return jnp.where(kept, narrow(x.astype(wide(x.dtype)) * (1 / (1 - rate or 1)), x), 0)

    def cost(*args: Any, **options: Any) -> Cost:
        """No products: 0 flops, and the bytes of every array and y; drawing the mask is not counted."""
        x, rate, key, options = sorted_out(args, options)
        traced, static = rules.split(options)
        of = lambda x, key, traced: reference(x, rate=rate, key=key, **traced, **static)
        return Cost(0, traffic(of, x, key, traced))

    apply.__doc__ = reference.__doc__
    return namespace(reference, apply, vjp, cost)


def _shape(x: Array, keep: Callable[[int], bool]) -> tuple[int, ...]:
    """The shape of x, with 1 in the place of axes that share an element of the mask."""
    return tuple(size if keep(axis) else 1 for axis, size in enumerate(x.shape))


# ---- drop_path: whole examples ----------------------------------------------------------------------------


def _drop_path(x: Float[Array, "*n"], *, rate: float, key: PRNGKeyArray | None = None) -> Float[Array, "*n"]:
    """y[i] = m[i] · x[i] / (1 − rate), i along the first axis: whole examples leave a residual branch out.

    Also known as stochastic depth. Source: Huang, Sun, Liu, Sedra and Weinberger, "Deep Networks with
    Stochastic Depth", arXiv 1603.09382.

    Args:
        x: [n, ...].
        rate: the probability of a zero, in [0, 1]; static.
        key: a random key; None: evaluation, y = x.

    Raises:
        DTypeError: x is not floating-point, key is not a random key, or rate is traced.
        ValueRangeError: rate lies outside [0, 1].
        ShapeError: x has no axis of examples.
    """
    if key is None:
        return x
    m = jax.random.bernoulli(key, jnp.float32(1 - rate), x.shape[:1] + (1,) * (x.ndim - 1))
    return jnp.where(jnp.broadcast_to(m, x.shape), x / (1 - rate or 1), 0)


def _check_path(where: str, x: Array) -> dict[str, Any]:
    _check.rank(where, "x", x, 1, "n, ...")
    return {}


drop_path = _operation(_drop_path, lambda x, draw: draw(_shape(x, lambda axis: axis == 0)), _check_path)

# ---- spatial_dropout: whole channels ----------------------------------------------------------------------


def _spatial_dropout(
    x: Float[Array, "*n_and_size c"],
    *,
    rate: float,
    key: PRNGKeyArray | None = None,
    spatial: int | None = None,
) -> Float[Array, "*n_and_size c"]:
    """y[n, p, c] = m[n, c] · x[n, p, c] / (1 − rate): a channel is left out at all positions p of an example.

    Neighbours in an image say the same: of single elements nothing would be missed. Source: Tompson,
    Goroshin, Jain, LeCun and Bregler, "Efficient Object Localization Using Convolutional Networks", arXiv
    1411.4280.

    Args:
        x: [*n, *size, c].
        rate: the probability of a zero, in [0, 1]; static.
        key: a random key; None: evaluation, y = x.
        spatial: how many axes before the last are positions; None: all but the first, which is the batch.

    Raises:
        DTypeError: x is not floating-point, key is not a random key, or rate is traced.
        ValueRangeError: rate lies outside [0, 1], or spatial is negative.
        ShapeError: x has too few axes.
    """
    if key is None:
        return x
    first = 1 if spatial is None else x.ndim - 1 - spatial
    shape = (*x.shape[:first], *[1] * (x.ndim - 1 - first), x.shape[-1])
    m = jax.random.bernoulli(key, jnp.float32(1 - rate), shape)
    return jnp.where(jnp.broadcast_to(m, x.shape), x / (1 - rate or 1), 0)


def _channels(x: Array, draw: Callable[..., Array], spatial: int | None) -> Array:
    first = 1 if spatial is None else x.ndim - 1 - spatial
    return draw(_shape(x, lambda axis: axis < first or axis == x.ndim - 1))


def _check_channels(where: str, x: Array, spatial: Any) -> dict[str, Any]:
    return {"spatial": _check.spatial(where, x, spatial, x.shape[-1] if x.ndim else 1)}


spatial_dropout = _operation(_spatial_dropout, _channels, _check_channels)

# ---- embedding_dropout: whole words -----------------------------------------------------------------------


def _embedding_dropout(
    x: Float[Array, "*n d"],
    *,
    ids: Integer[Array, "*n"],
    vocabulary: int,
    rate: float,
    key: PRNGKeyArray | None = None,
) -> Float[Array, "*n d"]:
    """y[n] = m[ids[n]] · x[n] / (1 − rate): a word of the vocabulary is left out wherever it stands.

    x are the rows of a table that `embedding` gave for ids: so are rows of the table left out, without a
    copy of it. Source: Gal and Ghahramani, "A Theoretically Grounded Application of Dropout in Recurrent
    Neural Networks", arXiv 1512.05287.

    Args:
        x: [*n, d].
        ids: [*n]; outside [0, vocabulary): y = 0 with a key.
        vocabulary: the number of words; static.
        rate: the probability of a zero, in [0, 1]; static.
        key: a random key; None: evaluation, y = x.

    Raises:
        DTypeError: x is not floating-point, ids are not integers, key is not a random key, or rate is traced.
        ValueRangeError: rate lies outside [0, 1], or vocabulary is below 1.
        ShapeError: ids do not have the shape of x without its last axis.
    """
    if key is None:
        return x
    m = jax.random.bernoulli(key, jnp.float32(1 - rate), (vocabulary,))
    return jnp.where(jnp.broadcast_to(_picked(m, ids), x.shape), x / (1 - rate or 1), 0)


def _picked(m: Array, ids: Array) -> Array:
    """m[ids], False where ids are not those of words, with an axis for the features."""
    ids = signed(ids)
    inside = (ids >= 0) & (ids < m.shape[0])
    return (m.at[jnp.where(inside, ids, 0)].get() & inside)[..., None]


def _words(x: Array, draw: Callable[..., Array], ids: Array, vocabulary: int) -> Array:
    del x
    return _picked(draw((vocabulary,)), ids)


def _check_words(where: str, x: Array, ids: Any, vocabulary: Any) -> dict[str, Any]:
    _check.rank(where, "x", x, 1, "*n, d")
    found = _check.dtype_of(ids)
    if found is None or not jnp.issubdtype(found, jnp.integer):
        raise DTypeError(
            f"{where}: ids are not an array of integers.",
            path="ids",
            expected=f"ids: int[{', '.join(map(str, x.shape[:-1]))}]     (x: {describe(x)})",
            actual=f"ids: {describe(ids)}",
        )
    if ids.shape != x.shape[:-1]:
        raise ShapeError(
            f"{where}: ids do not name each row of x.",
            path="ids",
            expected=f"ids: int[{', '.join(map(str, x.shape[:-1]))}]     (x: {describe(x)})",
            actual=f"ids: {describe(ids)}",
        )
    return {"ids": jnp.asarray(ids), "vocabulary": _check.positive(where, "vocabulary", vocabulary)}


embedding_dropout = _operation(_embedding_dropout, _words, _check_words)
