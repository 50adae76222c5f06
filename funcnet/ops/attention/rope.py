"""Rotary position embedding: at position m, pair i of the features is turned by the angle m · θ_i.

    y_a = c (x_a cos m θ_i − x_b sin m θ_i),   y_b = c (x_b cos m θ_i + x_a sin m θ_i)

Dimensions: *n any leading axes, t positions, h heads, e head width: x, y [*n, t, h, e], positions [t] or
[*n, t]. The first `width` features of a head are turned, the others left alone. Pair i is (i, i + width/2) in
the layout "split" (GPT-NeoX, Llama, Qwen) and (2i, 2i + 1) in the layout "interleaved" (the paper, GPT-J).
θ_i = base^(−2i/width) and c = 1, unless `scaling` changes them. Source: Su et al., "RoFormer", arXiv
2104.09864. Angles are in float32 or wider, whatever the dtype of x; the result is rounded once.
"""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float, Integer

from funcnet import rules
from funcnet.errors import DTypeError, ShapeError, ValueRangeError, describe
from funcnet.ops import _check
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._dtype import wide
from funcnet.ops._shape import align, known

__all__ = ["NTK", "Config", "Linear", "Llama3", "YaRN", "apply", "cost", "frequencies", "reference", "vjp"]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Linear:
    """θ_i / factor: positions squeezed into the trained range. Chen et al., arXiv 2306.15595."""

    factor: float | int

    def __post_init__(self) -> None:
        _check.fields("rope.Linear", self)
        _at_least_one("rope.Linear", "factor", self.factor)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class NTK:
    """A larger base, base · factor^(width / (width − 2)): the slowest pair slows by factor, the fastest not.

    The "NTK-aware" scaling of bloc97 (2023), with a fixed factor; §3.1 of arXiv 2309.00071.
    """

    factor: float | int

    def __post_init__(self) -> None:
        _check.fields("rope.NTK", self)
        _at_least_one("rope.NTK", "factor", self.factor)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class YaRN:
    """Slow pairs as in `Linear`, fast ones unchanged, a ramp between them; and c > 1.

    Peng et al., "YaRN", arXiv 2309.00071, §3.2 and §3.4.

    Attributes:
        factor: by which slow pairs are slowed.
        context: positions that the model was trained on.
        beta_fast: pairs that make at least so many turns in the context are unchanged.
        beta_slow: those that make at most so many are slowed by the whole factor.
        attention_factor: c; None is 1 + ln(factor) / 10. Queries and keys both grow by it, so logits by c².
    """

    factor: float | int
    context: int
    beta_fast: float | int = 32
    beta_slow: float | int = 1
    attention_factor: float | int | None = None

    def __post_init__(self) -> None:
        _check.fields("rope.YaRN", self)
        _at_least_one("rope.YaRN", "factor", self.factor)
        _ordered("rope.YaRN", "beta_slow", self.beta_slow, "beta_fast", self.beta_fast)
        if self.attention_factor is not None and not self.attention_factor > 0:
            raise ValueRangeError(
                f"rope.YaRN: attention_factor is {self.attention_factor}, but must be positive.",
                path="attention_factor",
                expected="attention_factor > 0, or None",
                actual=f"attention_factor = {self.attention_factor}",
            )


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Llama3:
    """Slow pairs as in `Linear`, fast ones unchanged, a ramp between them that is linear in the turns.

    The scaling of Llama 3.1 (Meta, 2024).

    Attributes:
        factor: by which slow pairs are slowed.
        context: positions that the model was trained on.
        low: pairs that make at most so many turns in the context are slowed by the whole factor.
        high: those that make at least so many are unchanged.
    """

    factor: float | int
    context: int
    low: float | int = 1
    high: float | int = 4

    def __post_init__(self) -> None:
        _check.fields("rope.Llama3", self)
        _at_least_one("rope.Llama3", "factor", self.factor)
        _ordered("rope.Llama3", "low", self.low, "high", self.high)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Config:
    """How features are turned.

    Attributes:
        base: θ_i = base^(−2i/width).
        layout: "split": pair i is (i, i + width/2); "interleaved": (2i, 2i + 1).
        width: turn only the first so many features of a head; None turns them all.
        scaling: how the angles of a model are changed for a context longer than it was trained on.
    """

    base: float | int = 10000.0
    layout: Literal["split", "interleaved"] = "split"
    width: int | None = None
    scaling: Linear | NTK | YaRN | Llama3 | None = None

    def __post_init__(self) -> None:
        where = "rope.Config"
        _check.fields(where, self)
        if not self.base > 1:
            raise ValueRangeError(
                f"{where}: base is {self.base}, but must be above 1.",
                path="base",
                expected="base > 1",
                actual=f"base = {self.base}",
            )
        if self.width is not None and self.width % 2:
            raise ValueRangeError(
                f"{where}: width is {self.width}, but features are turned in pairs.",
                path="width",
                expected="width: even",
                actual=f"width = {self.width}",
            )


_PLAIN = Config()


def frequencies(config: Config, e: int) -> tuple[np.ndarray, float]:
    """The angles θ [width/2] by which the pairs turn from one position to the next, and the factor c.

    Args:
        config: of `apply`.
        e: head width, which is `width` where the config has none.

    Returns:
        θ in radians, float64, and c.

    >>> frequencies(Config(base=100.0), 4)
    (array([1. , 0.1]), 1.0)
    """
    width, scaling = e if config.width is None else config.width, config.scaling
    base = config.base
    if isinstance(scaling, NTK):
        base = base * scaling.factor ** (width / (width - 2))
    theta = base ** (-np.arange(0, width, 2) / width)
    if isinstance(scaling, Linear):
        return theta / scaling.factor, 1.0
    if isinstance(scaling, YaRN):
        fast, slow = (
            width * math.log(scaling.context / (turns * 2 * math.pi)) / (2 * math.log(base))
            for turns in (scaling.beta_fast, scaling.beta_slow)
        )  # the pairs, as fractions, that make so many turns in the context
        first, last = max(math.floor(fast), 0), min(math.ceil(slow), width - 1)
        slowed = np.clip((np.arange(width // 2) - first) / (last - first or 1e-3), 0, 1)
        c = scaling.attention_factor
        c = 1 + 0.1 * math.log(scaling.factor) if c is None else float(c)
        return theta * (1 - slowed) + theta / scaling.factor * slowed, c
    if isinstance(scaling, Llama3):
        turns = scaling.context * theta / (2 * math.pi)
        kept = np.clip((turns - scaling.low) / (scaling.high - scaling.low), 0, 1)
        return theta * kept + theta / scaling.factor * (1 - kept), 1.0
    return theta, 1.0


def reference(
    x: Float[Array, "*n t h e"],
    config: Config = _PLAIN,
    *,
    positions: Integer[Array, "..."] | Float[Array, "..."] | None = None,
    tables: tuple[Float[Array, "..."], Float[Array, "..."]] | None = None,
) -> Float[Array, "*n t h e"]:
    """y_a = c (x_a cos mθ − x_b sin mθ), y_b = c (x_b cos mθ + x_a sin mθ) for every pair, as written."""
    h = x.astype(wide(x.dtype))
    if tables is not None:
        cos, sin = (lax.stop_gradient(v.astype(h.dtype)) for v in tables)
        a, b = _pairs(config, cos.shape[-1])
        cos, sin = (align(v[..., None, :], h.ndim) for v in (cos, sin))
        y = h.at[..., a].set(h[..., a] * cos - h[..., b] * sin)
        return y.at[..., b].set(h[..., b] * cos + h[..., a] * sin).astype(x.dtype)
    theta, c = frequencies(config, x.shape[-1])
    a, b = _pairs(config, len(theta))
    m = jnp.arange(x.shape[-3]) if positions is None else lax.stop_gradient(positions)
    angle = m.astype(h.dtype)[..., None] * align(jnp.asarray(theta, h.dtype), m.ndim + 1)
    angle = align(angle[..., None, :], h.ndim)
    y = h.at[..., a].set(c * (h[..., a] * jnp.cos(angle) - h[..., b] * jnp.sin(angle)))
    y = y.at[..., b].set(c * (h[..., b] * jnp.cos(angle) + h[..., a] * jnp.sin(angle)))
    return y.astype(x.dtype)


def _pairs(config: Config, pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """The features of each pair."""
    split = config.layout == "split"
    a = np.arange(pairs) * (1 if split else 2)
    return a, a + (pairs if split else 1)


@rules.operation
def apply(
    x: Float[Array, "*n t h e"],
    config: Config = _PLAIN,
    *,
    positions: Integer[Array, "..."] | Float[Array, "..."] | None = None,
    tables: tuple[Float[Array, "..."], Float[Array, "..."]] | None = None,
) -> Float[Array, "*n t h e"]:
    """Turn the pairs of features of every head by angles that grow with the position.

    A product of a query and a key that are both turned depends on the difference of their positions only.
    Differentiated by `vjp`, which keeps the positions; JAX's own rule keeps cosines and sines.

    Args:
        x: queries or keys [*n, t, h, e].
        config: base, layout, width and scaling.
        positions: integers [t] or [*n, t], traced or not, or float32 or wider for what lies between; None is
            0, 1 ... t − 1. They have no gradient. Angles are in float32 (of float64 x, float64): those of
            position m are off by up to m · 6e-8, and above 2²⁴ not every integer is one.
        tables: cosines and sines that were made elsewhere, each [t, pairs] or [*n, t, pairs], in place of
            positions and of the config's base, width and scaling: the first 2 · pairs features are turned.
            They have no gradient.

    Returns:
        y, of the shape and dtype of x.

    Raises:
        ShapeError: x has no pairs to turn, or positions or tables do not fit it.
        DTypeError: x or a table is not floating-point, positions are neither integers nor float32 or wider,
            or config is no `rope.Config`.
        ValueRangeError: the scaling cannot be had at this width, or positions come with tables.

    >>> x = jnp.ones((3, 1, 4))
    >>> print(fn.rope.apply(x)[:, 0])
    [[ 1.     1.     1.     1.   ]
     [-0.301  0.99   1.382  1.01 ]
     [-1.325  0.98   0.493  1.02 ]]
    """
    x = _check.floating("rope.apply", "x", x)
    if tables is not None:
        _check_tables("rope.apply", x, config, positions, tables)
        return rules.call(vjp, x, config=config, tables=tuple(map(jnp.asarray, tables)))
    _check_config("rope.apply", x, config)
    _check_positions("rope.apply", x, positions)
    return rules.call(vjp, x, config=config, positions=positions)


def vjp(
    x: Float[Array, "*n t h e"],
    config: Config = _PLAIN,
    *,
    positions: Integer[Array, "..."] | Float[Array, "..."] | None = None,
    tables: tuple[Float[Array, "..."], Float[Array, "..."]] | None = None,
) -> tuple[Float[Array, "*n t h e"], Partial]:
    """y and its pullback, the turn by the opposite angles: dx_a = c (dy_a cos mθ + dy_b sin mθ) and so on."""
    given = (positions, tables)
    return _turn(x, *given, config, 1), Partial(rules.bind(_pullback, config=config), *given)


def _pullback(positions: Array | None, tables: Any, dy: Array, *, config: Config) -> tuple[Array]:
    return (_turn(dy, positions, tables, config, -1),)


def _turn(x: Array, positions: Array | None, tables: Any, config: Config, direction: int) -> Array:
    if tables is None:
        cos, sin = _cos_sin(x, positions, config)
    else:
        cos, sin = (lax.stop_gradient(v.astype(wide(x.dtype))) for v in tables)
        cos, sin = (align(v[..., None, :], x.ndim) for v in (cos, sin))
    pairs, sin = cos.shape[-1], direction * sin
    shape, axis = ((2, pairs), -2) if config.layout == "split" else ((pairs, 2), -1)
    h = x[..., : 2 * pairs].astype(wide(x.dtype)).reshape(*x.shape[:-1], *shape)
    a, b = (lax.index_in_dim(h, i, axis, keepdims=False) for i in (0, 1))
    y = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis)
    return jnp.concatenate([y.reshape(*x.shape[:-1], 2 * pairs).astype(x.dtype), x[..., 2 * pairs :]], -1)


def _cos_sin(x: Array, positions: Array | None, config: Config) -> tuple[Array, Array]:
    """c cos mθ and c sin mθ, [..., t, 1, pairs]."""
    theta, c = frequencies(config, x.shape[-1])
    m = jnp.arange(x.shape[-3], dtype=jnp.int32) if positions is None else positions
    real = wide(x.dtype)
    angle = m.astype(real)[..., None, None] * align(jnp.asarray(theta, real), m.ndim + 2)
    angle = align(angle, x.ndim)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    # XLA:CPU counts cosines as cheap and takes them anew for every head and sequence, which made all of this
    # 16 times slower; a quotient it counts as dear, and keeps. The norm differs from 1 by rounding only.
    norm = jnp.sqrt(cos * cos + sin * sin) / c
    return cos / norm, sin / norm


def cost(
    x: Float[Abstract, "*n t h e"],
    config: Config = _PLAIN,
    *,
    positions: Integer[Abstract, "..."] | Float[Abstract, "..."] | None = None,
    tables: tuple[Float[Abstract, "..."], Float[Abstract, "..."]] | None = None,
) -> Cost:
    """No products of matrices: 0 flops, and the bytes of x, positions or tables, and y."""
    return Cost(0, traffic(reference, x, config=config, positions=positions, tables=tables))


# ---- checks -----------------------------------------------------------------------------------------------


def _at_least_one(where: str, name: str, value: float | int) -> None:
    if not value >= 1:
        raise ValueRangeError(
            f"{where}: {name} is {value}, but at least 1 is needed.",
            path=name,
            expected=f"{name} ≥ 1",
            actual=f"{name} = {value}",
            hint=f"contexts grow by {name}: {1 / value:g}." if 0 < value < 1 else None,
        )


def _ordered(where: str, low_name: str, low: float | int, high_name: str, high: float | int) -> None:
    if not 0 < low < high:
        raise ValueRangeError(
            f"{where}: {low_name} and {high_name} do not bound a ramp.",
            path=low_name,
            expected=f"0 < {low_name} < {high_name}",
            actual=f"{low_name} = {low}, {high_name} = {high}",
        )


def _check_config(where: str, x: Array, config: Any) -> None:
    if not isinstance(config, Config):
        raise DTypeError(
            f"{where}: config is no rope.Config.",
            path="config",
            expected="config: rope.Config",
            actual=f"config: {describe(config)}",
            hint="positions are given by name: positions=..." if hasattr(config, "dtype") else None,
        )
    _check.rank(where, "x", x, 3, "*n, t, h, e")
    e, width = x.shape[-1], config.width
    if not known(e) or (e % 2 if width is None else width > e):
        text = f"width = {width}" if width is not None else "an even width"
        raise ShapeError(
            f"{where}: x has heads of {e} features, but {text} is to be turned.",
            path="x",
            expected="x: float[*n, t, h, e], e " + ("even" if width is None else f"≥ {width}"),
            actual=f"x: {describe(x)}",
            hint=f"to leave the last one alone: rope.Config(width={e - 1})." if width is None else None,
        )
    if isinstance(config.scaling, NTK) and (e if width is None else width) < 4:
        raise ValueRangeError(
            f"{where}: NTK scaling leaves the first pair alone, and there is no other.",
            path="config.scaling",
            expected="width ≥ 4",
            actual=f"width = {e if width is None else width}",
        )


def _check_positions(where: str, x: Array, positions: Any) -> None:
    if positions is None:
        return
    dtype = _check.dtype_of(positions) or jnp.dtype(object)
    wide_float = jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize >= 4
    if not (wide_float or jnp.issubdtype(dtype, jnp.integer)):
        raise DTypeError(
            f"{where}: positions are neither integers nor float32 or wider.",
            path="positions",
            expected="positions: int or float32, [t] or [*n, t]",
            actual=f"positions: {describe(positions)}",
        )
    if positions.shape not in (x.shape[-3:-2], x.shape[:-2]):
        raise ShapeError(
            f"{where}: positions do not fit x.",
            path="positions",
            expected=f"positions: int[{x.shape[-3]}] or int[{', '.join(map(str, x.shape[:-2]))}]"
            f"     (x: {describe(x)})",
            actual=f"positions: {describe(positions)}",
        )


def _check_tables(where: str, x: Array, config: Any, positions: Any, tables: Any) -> None:
    if not isinstance(config, Config):
        _check_config(where, x, config)
    _check.rank(where, "x", x, 3, "*n, t, h, e")
    if positions is not None:
        raise ValueRangeError(
            f"{where}: positions and tables are both given.",
            path="positions",
            expected="positions, or the tables' rows of them",
            actual=f"positions: {describe(positions)}",
            hint="tables=(cos[positions], sin[positions]).",
        )
    if not isinstance(tables, tuple | list) or len(tables) != 2:
        raise DTypeError(
            f"{where}: tables are no pair of arrays.",
            path="tables",
            expected="tables: (cosines, sines), each float[t, pairs] or float[*n, t, pairs]",
            actual=f"tables: {describe(tables)}",
        )
    for name, table in zip(("tables[0]", "tables[1]"), tables, strict=True):
        _check.floating(where, name, table)
        pairs = table.shape[-1] if table.ndim else 0
        first = tables[0].shape
        rows = table.shape[:-1] in (x.shape[-3:-2], x.shape[:-2])
        if not rows or not 0 < 2 * pairs <= x.shape[-1] or table.shape != first:
            raise ShapeError(
                f"{where}: {name} does not fit x.",
                path=name,
                expected=f"{name}: float[{x.shape[-3]}, pairs] or "
                f"float[{', '.join(map(str, x.shape[:-2]))}, pairs], 2 · pairs ≤ {x.shape[-1]}, both alike"
                f"     (x: {describe(x)})",
                actual=f"{name}: {describe(table)}",
            )
