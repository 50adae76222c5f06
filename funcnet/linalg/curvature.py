"""The curvature of a loss in its params, as operators: Hessian, Gauss–Newton matrix, Fisher matrix.

With outputs z = f(p), J = dz/dp and a loss L(z), both means over the examples:

    Hessian        ∇²L v   = d/dt ∇L(p + t v),              the derivative of the gradient
    Gauss–Newton   Jᵀ H J v with H = ∂²L/∂z²,               the Hessian without the curvature of f
    Fisher         (1/n) Σ gₙ (gₙᵀ v) = Jᵀ J v / n,         J that of the examples' losses, gₙ its rows

None of them is built. What a product keeps does not grow with the number of batches, and the data are
arguments of its program: as constants XLA would fold whole convolutions of them while it compiles.
Sources: B. Pearlmutter, "Fast exact multiplication by the Hessian", 1994; N. Schraudolph, "Fast curvature
matrix-vector products for second-order gradient descent", 2002; J. Martens, arXiv 1412.1193.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from funcnet import signature
from funcnet.errors import DTypeError, ShapeError, describe
from funcnet.linalg import _batches, _check, space
from funcnet.linalg._batches import Groups
from funcnet.linalg.operator import Operator, symmetric
from funcnet.linalg.space import Space
from funcnet.mean import Mean, of_loss, wide

__all__ = ["fisher", "ggn", "hessian", "of_examples"]

# The derivative at params on a batch with a key: the map of a tangent, times the weight, and that weight.
Linear = tuple[Callable[[PyTree], PyTree], Array]


def hessian(
    loss: Callable[..., Any], params: PyTree, batches: PyTree, *, key: PRNGKeyArray | None = None
) -> Operator:
    """The Hessian of a loss [p, p], p the number of elements of params.

    It takes vectors [p], columns of them [p, m], and trees like params. A product costs up to three
    gradients.

    Args:
        loss: as in training, `loss(params, batch[, key])`: a scalar, a `train.Mean`, or one of them with a
            dict of metrics. Pass the same function object each time: another one is compiled anew.
        params: a pytree of floating-point arrays.
        batches: a batch, or a list of batches: their mean, by the number of their examples, or by the weights
            of a Mean. It equals that of one large batch, if the loss of the batch is a mean of its examples.
        key: batch i gets fold_in(key, i); None: the loss gets none, as in evaluation.

    Raises:
        DTypeError: a leaf of params is not floating-point, or the loss not real, or no function.
        ShapeError: the loss is not a scalar; or of several batches the number of examples is not known.
        StructureError: params are empty, the loss takes other arguments, or batches differ in their parts.

    >>> H = hessian(lambda p, x: (x @ p["w"]) ** 2, {"w": jnp.ones(2)}, jnp.array([1.0, 3.0]))
    >>> H, (H @ jnp.array([1.0, 0.0])).tolist()
    (Operator(float32[2, 2]), [2.0, 6.0])
    """
    return _operator(_Hessian("linalg.hessian", loss), params, batches, key)


def ggn(
    outputs: Callable[..., Any],
    loss: Callable[..., Any],
    params: PyTree,
    batches: PyTree,
    *,
    key: PRNGKeyArray | None = None,
) -> Operator:
    """The Gauss–Newton matrix of a loss of a model's outputs [p, p].

    It has no negative eigenvalue if the loss is convex in the outputs, a rank of at most their number (n (c −
    1) for cross entropy), and is the Hessian where the outputs are linear in params. For cross entropy, and
    for a mean square, it is the Fisher matrix whose labels the model itself draws. A product costs less than
    two gradients.

    Args:
        outputs: `outputs(params, batch[, key])`, the model: a pytree of floating-point arrays.
        loss: `loss(outputs, batch[, key])`, returning what one in training may.
        params: as in `hessian`.
        batches: likewise.
        key: likewise.

    Raises:
        DTypeError, ShapeError, StructureError: as in `hessian`; and the outputs are not floating-point.
    """
    return _operator(_Ggn("linalg.ggn", outputs, loss), params, batches, key)


def fisher(
    losses: Callable[..., Any], params: PyTree, batches: PyTree, *, key: PRNGKeyArray | None = None
) -> Operator:
    """The mean of g gᵀ over examples [p, p], g the gradient of one example's loss.

    With the labels of the data it is the empirical Fisher matrix, the second moment of the gradients. With
    labels that `losses` draws from the model by its key, it is an unbiased estimate of the Fisher matrix,
    which for cross entropy is `ggn`: that is the one to take.

    Args:
        losses: `losses(params, batch[, key])`: one number per example [n], of that example alone.
        params: as in `hessian`.
        batches: likewise.
        key: likewise.

    Raises:
        DTypeError, StructureError: as in `hessian`.
        ShapeError: the losses have not one axis.
    """
    return _operator(_Fisher("linalg.fisher", losses), params, batches, key)


def _operator(kind: "_Kind", params: PyTree, batches: PyTree, key: PRNGKeyArray | None) -> Operator:
    own = space.of(kind.where, params)
    _check.key(kind.where, key)
    groups = _batches.grouped(kind.where, batches)
    if len(groups) > 1 or any(numbers.ndim for numbers, _ in groups):
        kind = dataclasses.replace(kind, several=True)
    params = jax.tree.map(jnp.asarray, params)
    forward = Partial(_Product(kind, own), params, groups, key)
    jax.eval_shape(forward, jax.ShapeDtypeStruct((1, own.size), own.dtype))  # what is wrong is said here
    return symmetric(forward, own.size, own.dtype, own)


@dataclasses.dataclass(frozen=True)
class _Product:
    """x [m, p] -> x A; equal ones, of the same functions, are one program."""

    kind: "_Kind"
    space: Space

    def __call__(self, params: PyTree, groups: Groups, key: Any, x: Any) -> Array:
        return _product(self, params, groups, key, x)


def _run(product: _Product, params: PyTree, groups: Groups, key: Any, x: Array) -> Array:
    own = product.space

    def of_batch(batch: PyTree, number: Array) -> tuple[Array, Array]:
        own_key = None if key is None else jax.random.fold_in(key, number)
        linear, weight = product.kind.at(params, batch, own_key)
        of = lambda vector: own.vector(linear(own.split(vector)))
        rows = of(x[0])[None] if x.shape[0] == 1 else jax.lax.map(of, x)
        return rows, jnp.asarray(weight, own.dtype)

    rows, weight = _batches.total(of_batch, groups)
    return rows / jnp.where(weight == 0, 1, weight)


_product = jax.jit(_run, static_argnums=0)


# ---- the three, on one batch


@dataclasses.dataclass(frozen=True)
class _Hessian:
    where: str
    loss: Callable[..., Any]
    several: bool = False

    def at(self, params: PyTree, batch: PyTree, key: Any) -> Linear:
        def total(p: PyTree) -> tuple[Array, Array]:
            value = signature.call(self.where, self.loss, p, None, batch, key)
            return _weighed(self, value, batch)

        _, linear, weight = jax.linearize(jax.grad(total, has_aux=True), params, has_aux=True)
        return linear, weight


@dataclasses.dataclass(frozen=True)
class _Ggn:
    where: str
    outputs: Callable[..., Any]
    loss: Callable[..., Any]
    several: bool = False

    def at(self, params: PyTree, batch: PyTree, key: Any) -> Linear:
        def total(z: PyTree) -> tuple[Array, Array]:
            args = {"outputs": z, "batch": batch}
            return _weighed(self, signature.passed(self.where, "loss", self.loss, args, key), batch)

        def model(p: PyTree) -> PyTree:
            args = {"params": p, "batch": batch}
            return signature.passed(self.where, "outputs", self.outputs, args, key)

        z, ahead = jax.linearize(model, params)
        _check_outputs(self.where, z)
        back = jax.linear_transpose(ahead, params)
        _, curve, weight = jax.linearize(jax.grad(total, has_aux=True), z, has_aux=True)
        return lambda v: back(curve(ahead(v)))[0], weight


@dataclasses.dataclass(frozen=True)
class _Fisher:
    where: str
    losses: Callable[..., Any]
    several: bool = False

    def at(self, params: PyTree, batch: PyTree, key: Any) -> Linear:
        of = lambda p: of_examples(self.where, self.losses, p, batch, key)
        values, ahead = jax.linearize(of, params)
        back = jax.linear_transpose(ahead, params)
        return lambda v: back(ahead(v))[0], jnp.asarray(values.shape[0])


_Kind = _Hessian | _Ggn | _Fisher


def _weighed(kind: Any, result: Any, batch: PyTree) -> tuple[Array, Array]:
    """A loss's total and weight. What brings no weight counts by its examples, as in `train.evaluate`."""
    if isinstance(result, tuple) and not isinstance(result, Mean) and len(result) == 2:
        result = result[0]  # the other are metrics
    value = of_loss(kind.where, result)
    if isinstance(value, Mean):
        return wide(value.total), jax.lax.stop_gradient(value.weight)
    hint = "a loss that is a train.Mean(total, weight) says by itself how much a batch counts"
    size = _batches.examples(kind.where, batch, hint) if kind.several else 1
    return wide(value) * size, jnp.asarray(size)


def of_examples(where: str, losses: Any, params: PyTree, batch: PyTree, key: Any) -> Float[Array, " n"]:
    """The losses of a batch's examples, in float32 or wider.

    Raises:
        ShapeError, DTypeError: they are no floating-point array with one axis.
    """
    args = {"params": params, "batch": batch}
    values = signature.passed(where, "losses", losses, args, key)
    if isinstance(values, tuple) and len(values) == 2 and isinstance(values[1], dict):
        values = values[0]
    if not isinstance(values, jax.Array) or not jnp.issubdtype(values.dtype, jnp.floating):
        raise DTypeError(
            f"{where}: losses did not return a floating-point array.",
            path="losses",
            expected="float[n], one number per example",
            actual=describe(values),
        )
    if values.ndim != 1:
        raise ShapeError(
            f"{where}: losses did not return one number per example.",
            path="losses",
            expected="float[n], one number per example",
            actual=describe(values),
            hint="leave out the mean over the examples" if values.ndim == 0 else "sum over the other axes",
        )
    return wide(values)


def _check_outputs(where: str, outputs: PyTree) -> None:
    for at, leaf in jax.tree.leaves_with_path(outputs):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            name = f"outputs{jax.tree_util.keystr(at)}"
            raise DTypeError(
                f"{where}: {name} is not floating-point.",
                path=name,
                expected="a pytree of floating-point arrays",
                actual=describe(leaf),
            )
