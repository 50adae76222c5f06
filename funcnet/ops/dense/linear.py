"""The affine map y = x W + b.

Dimensions: *n any leading axes (batch), d_in and d_out features. x [*n, d_in], w [d_in, d_out],
b [d_out], y [*n, d_out]. Examples are rows; textbooks that write y = Wx with columns hold the transpose
of this w (docs/derivations/linear.md). d_in and d_out may be several axes each, heads by width say: the first
`inputs` axes of w are those that x ends with, the others, and those of b, those that y ends with.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float, Integer, PRNGKeyArray

from funcnet import rules, spec
from funcnet._letters import Axes, Told, of_product
from funcnet.errors import ShapeError, describe
from funcnet.linalg import Operator
from funcnet.ops import _bias, _check, _squares
from funcnet.ops._cost import Abstract, Cost, traffic
from funcnet.ops._draw import Initializer, drawn
from funcnet.ops._dtype import common, narrow, wide
from funcnet.spec import Spec

__all__ = [
    "Params",
    "apply",
    "cost",
    "init",
    "matrix",
    "operator",
    "reference",
    "rows",
    "specs",
    "squares",
    "vjp",
]


class Params(TypedDict):
    """w [d_in, d_out]; b [d_out], absent for a linear map without bias. Both may be several axes."""

    w: Float[Array, "*d_in_and_out"]
    b: NotRequired[Float[Array, "*d_out"]]


def init(
    key: PRNGKeyArray,
    d_in: int | Sequence[int],
    d_out: int | Sequence[int],
    *,
    bias: bool = True,
    w: Initializer | None = None,
) -> Params:
    """Draw w uniformly, of variance 1/d_in, so that unit features give outputs of unit variance; b = 0.

    Source: LeCun, Bottou, Orr and Müller, "Efficient BackProp", 1998, §4.6.

    Args:
        key: a random key.
        d_in: features of x, or the sizes of the axes that they lie along.
        d_out: features of y, likewise.
        bias: whether there is a "b".
        w: what draws w instead: ``(key, (d_in, d_out)) -> w``, as ``jax.nn.initializers.he_normal()``.

    >>> jax.tree.map(jnp.shape, init(jax.random.key(0), 3, 5))
    {'b': (5,), 'w': (3, 5)}
    >>> jax.tree.map(jnp.shape, init(jax.random.key(0), 6, (4, 5)))
    {'b': (4, 5), 'w': (6, 4, 5)}
    """
    where = "linear.init"
    _check.key(where, key, none=False)
    sizes, out = _sizes(where, "d_in", d_in), _sizes(where, "d_out", d_out)
    roles = "i" * len(sizes) + "o" * len(out)
    leaf = drawn(where, key, w, (*sizes, *out), roles, variance=1 / math.prod(sizes))
    bias = _check.flag(where, "bias", bias)
    return {"w": leaf, "b": jnp.zeros(out, leaf.dtype)} if bias else {"w": leaf}


def _sizes(where: str, name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple | list):
        return (_check.positive(where, name, value),)
    if not value:
        raise ShapeError(
            f"{where}: {name} are no axes.",
            path=name,
            expected=f"{name}: one size or more",
            actual=f"{name} = ()",
        )
    return _check.integers(where, name, value)


def specs(params: Params, *, axes: str | None = None, inputs: int = 1) -> dict[str, Spec]:
    """Which matrix w is: by dW = Xᵀ dY, features in by features out. b is none.

    Args:
        params: arrays, or `jax.ShapeDtypeStruct`.
        axes: the names of the axes of w; the last ones are those of b. None: d_in and d_out.
        inputs: as in `apply`.
    """
    w: Any = params.get("w") if isinstance(params, Mapping) else None
    out = len(w.shape) - inputs if hasattr(w, "shape") else 1
    names = axes.split() if axes else [*_named("d_in", inputs), *_named("d_out", out)]
    facts = {"w": (" ".join(names), "i" * inputs + "o" * out), "b": (" ".join(names[inputs:]),)}
    return spec.tree("linear.specs", params, facts)


def _named(name: str, count: int) -> list[str]:
    return [name] if count == 1 else [f"{name}{i}" for i in range(count)]


def reference(params: Params, x: Float[Array, "*n_and_in"], inputs: int = 1) -> Float[Array, "*n_and_out"]:
    """y = x W + b, as it is written: the sum over the last `inputs` axes of x and the first of W."""
    w, x = common(params["w"], x)
    return _bias.add(jnp.tensordot(x, w, inputs), params)


def _split(params: Params, x: Array, inputs: int = 1) -> list[Axes]:
    """How y is split over a mesh: as the batch axes of x are, and the last of W."""
    return of_product(x, params["w"], inputs)


@functools.partial(rules.operation, told=Told(split=_split))
def apply(params: Params, x: Float[Array, "*n_and_in"], inputs: int = 1) -> Float[Array, "*n_and_out"]:
    """Map the last axis of x, or the last axes: y = x W + b.

    XLA's own derivative of this program is the formula of `vjp`, so nothing is attached to it.

    Args:
        params: w [d_in, d_out] and, unless absent, b [d_out].
        x: [*n, d_in].
        inputs: how many axes d_in is; all other axes of w are d_out. "n t d -> n t h e" has a w [d, h, e],
            the way back "n t h e -> n t d" one [h, e, d] and ``inputs=2``.

    Returns:
        y [*n, d_out], in the dtype that holds both w and x; sums are in float32 or wider.

    Raises:
        ShapeError: x does not have d_in features, or b not d_out, or w no axis for y.
        DTypeError: x or a parameter is not floating-point.
        ValueRangeError: inputs is below 1.
        StructureError: params has no "w".

    >>> params = {"w": jnp.array([[1.0, 0.0], [0.0, 2.0]]), "b": jnp.array([0.0, 1.0])}
    >>> fn.linear.apply(params, jnp.array([3.0, 4.0])).tolist()
    [3.0, 9.0]
    """
    where = "linear.apply"
    w, inputs = _checked(where, params, inputs)
    x = _check.floating(where, "x", x)
    if inputs == 1:
        _check.features(where, x, w.shape[0], f'params["w"] ({describe(w)})')
    elif x.shape[max(x.ndim - inputs, 0) :] != w.shape[:inputs]:
        raise ShapeError(
            f'{where}: x does not end with the first {inputs} axes of params["w"].',
            path="x",
            expected=f"x: float[*n, {', '.join(map(str, w.shape[:inputs]))}]     (w: {describe(w)})",
            actual=f"x: {describe(x)}",
        )
    if w.ndim == inputs + 1:
        _bias.check(where, params, w.shape[-1])
    elif params.get("b") is not None:
        b = _check.parameter(where, params, "b")
        _check.same_shape(
            where, 'params["b"]', b, 'params["w"][0]', jax.ShapeDtypeStruct(w.shape[inputs:], b.dtype)
        )
    return _affine(params, x, inputs)


def _checked(where: str, params: Any, inputs: Any) -> tuple[Array, int]:
    """w, which has an axis for y beside the `inputs` axes of x."""
    inputs = _check.positive(where, "inputs", inputs)
    w = _check.parameter(where, params, "w")
    return w if w.ndim > inputs else _check.parameter(where, params, "w", ndim=inputs + 1), inputs


def _flat(params: Params, inputs: int) -> Any:
    """The same map of features that lie along one axis each: w [d_in, d_out], b [d_out]."""
    w = params["w"]
    if w.ndim == 2 and inputs == 1:
        return params
    flat, b = {"w": w.reshape(math.prod(w.shape[:inputs]), math.prod(w.shape[inputs:]))}, params.get("b")
    return flat if b is None else flat | {"b": b.reshape(-1)}


def _joined(x: Array, count: int) -> Array:
    """x with its last `count` axes as one."""
    lead = x.ndim - count
    return x if count == 1 else x.reshape(*x.shape[:lead], math.prod(x.shape[lead:]))


def _affine(params: Params, x: Array, inputs: int) -> Array:
    flat, lead, out = _flat(params, inputs), x.shape[: x.ndim - inputs], params["w"].shape[inputs:]
    w, x = common(flat["w"], _rows(_joined(x, inputs)))
    y = _bias.add(jnp.matmul(x, w, preferred_element_type=wide(x.dtype)), flat).astype(x.dtype)
    return y if y.ndim == len(lead) + len(out) else y.reshape(*lead, *out)


def _rows(x: Array) -> Array:
    """x as rows [rows, d]: of a product with more axes XLA:CPU copies dY into another layout, to make dW.

    On a mesh x stays as it is: an axis that is split over devices cannot be joined with one before it.
    """
    mesh = jax.typeof(x).sharding.mesh
    return lax.collapse(x, 0, x.ndim - 1) if x.ndim > 2 and (mesh.empty or mesh.are_all_axes_manual) else x


def vjp(
    params: Params, x: Float[Array, "*n_and_in"], inputs: int = 1
) -> tuple[Float[Array, "*n_and_out"], Partial]:
    """y and its pullback: dX = dY Wᵀ, dW = Xᵀ dY, db = Σ dY, the sums over every leading axis."""
    _check.mapping("linear.vjp", "params", params)
    return _affine(params, x, inputs), Partial(rules.bind(_pullback, inputs=inputs), params, x)


def _pullback(params: Params, x: Array, dy: Array, *, inputs: int) -> tuple[Params, Array]:
    flat, rows = _flat(params, inputs), _joined(x, inputs)
    dy = _joined(dy, params["w"].ndim - inputs)
    n = tuple(range(rows.ndim - 1))
    sums = wide(dy.dtype)
    wx, xw = common(flat["w"], rows)
    dx = jnp.matmul(dy, wx.T, preferred_element_type=sums)
    dw = jnp.tensordot(xw, dy, (n, n), preferred_element_type=sums)
    grads = _bias.gradients(flat, dw, dy)
    if flat is not params:
        grads = rules.like(params, {name: grads[name].reshape(params[name].shape) for name in flat})
    return grads, narrow(dx.reshape(x.shape), x)


def matrix(params: Params, in_shape: tuple[int, ...], *, inputs: int = 1) -> Float[Array, "out in"]:
    """Wᵀ [d_out, d_in]: the matrix that maps one example, as a column, to x W."""
    return _kernel("linear.matrix", params, in_shape, inputs).T


def _kernel(where: str, params: Params, in_shape: Any, inputs: int) -> Array:
    """w as a matrix [d_in, d_out], which takes one example of shape `in_shape`."""
    w, inputs = _checked(where, params, inputs)
    own = w.shape[:inputs]
    shape = _check.integers(where, "in_shape", in_shape, least=0, like=f"{own}")
    if shape != own:
        raise ShapeError(
            f'{where}: in_shape is {shape}, but params["w"] takes {own}.',
            path="in_shape",
            expected=f"{own}",
            actual=str(shape),
        )
    return _flat({"w": w}, inputs)["w"]


def operator(params: Params, in_shape: tuple[int, ...] | None = None, *, inputs: int = 1) -> Operator:
    """The map of one example, x -> x W, as an operator with the matrix Wᵀ: see `funcnet.linalg`.

    Args:
        params: w [d_in, d_out].
        in_shape: (d_in,), if it is to be checked.
        inputs: as in `apply`.

    >>> operator({"w": jnp.diag(jnp.array([3.0, 2.0]))}).singular_values().tolist()
    [3.0, 2.0]
    """
    where = "linear.operator"
    w, inputs = _checked(where, params, inputs)
    w = _flat({"w": w}, inputs)["w"] if in_shape is None else _kernel(where, params, in_shape, inputs)
    return Operator(
        Partial(_rows_times, w),
        Partial(_rows_times_transpose, w),
        Partial(jnp.transpose, w),
        None,
        Partial(_one_block, w),
        None,
        Partial(_absolute_sums, w),
        (w.shape[1], w.shape[0]),
        w.dtype.name,
    )


def _rows_times(w: Array, x: Array) -> Array:
    return x @ w


def _rows_times_transpose(w: Array, y: Array) -> Array:
    return y @ w.T


def _one_block(w: Array) -> Array:
    return w.T[None, None]


def _absolute_sums(w: Array) -> tuple[Array, Array]:
    return jnp.abs(w).sum(1).max(), jnp.abs(w).sum(0).max()


def cost(params: Params, x: Float[Abstract, "*n_and_in"], inputs: int = 1) -> Cost:
    """2 · n · d_in · d_out flops."""
    _check.mapping("linear.cost", "params", params)
    flops = 2 * math.prod(x.shape) * math.prod(params["w"].shape[inputs:])
    return Cost(flops, traffic(reference, params, x, inputs=inputs))


def squares(
    params: Params, x: Float[Array, "*n_t_and_in"], dy: Float[Array, "*n_t_and_out"], inputs: int = 1
) -> Float[Array, " n"]:
    """|dW|² + |db|² of each example: |Xᵀ dY|², by Gram matrices where they are smaller, and |Σ dY|²."""
    _squares.examples("linear.squares", "x", x, inputs)
    rows, dy = _squares.positions(x, inputs), _squares.positions(dy, params["w"].ndim - inputs)
    return _squares.weights(params, rows, dy)


def rows(
    params: Params, x: Float[Array, "n *t d_in"], ids: Integer[Array, "n s"], dy: Float[Array, "n *t d_out"]
) -> Float[Array, "n s d_in"]:
    """Of each example the rows of dWᵀ that ids name, Σ_t x dY[:, id], and 0 where there is none.

    For a table that is W transposed as well: the product of its two gradients needs these rows only.
    """
    del params
    x, dy = map(_squares.positions, (x, dy))
    ids = jnp.where(ids < 0, jnp.asarray(dy.shape[-1], ids.dtype), ids)  # else they count from the end
    picked = jnp.take_along_axis(dy, ids[:, None], 2, mode="fill", fill_value=0)
    return jnp.einsum("nts,nti->nsi", picked, x.astype(dy.dtype), preferred_element_type=wide(dy.dtype))
