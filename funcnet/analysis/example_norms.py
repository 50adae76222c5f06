"""The norm of each example's gradient, and what follows from it, without the gradients of single examples.

For a loss that gives one number per example, g_n = ∂ loss_n / ∂ params. Each operation with parameters
counts ‖its part of gₙ‖² where its cotangent passes by (`squares`, a line of the contract), and the parts are
added up by JAX, as the cotangent of one more argument [n] of zeros. So the norms cost a backward pass that
computes no gradient of any parameter, and the squares. Source of the idea: Goodfellow, arXiv 1510.01799.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from funcnet import rules, signature
from funcnet.analysis import _uses
from funcnet.errors import DTypeError, ShapeError, StructureError, ValueRangeError, describe
from funcnet.ops import _check
from funcnet.ops._dtype import signed, wide
from funcnet.ops._squares import positions, summed

__all__ = ["Clipped", "ExampleNorms", "NoiseScale", "clip_per_example", "example_norms", "noise_scale"]


class ExampleNorms(NamedTuple):
    """Of one pass over a batch.

    Attributes:
        values: the loss of each example [n].
        grads: the gradient of their sum, as params.
        norms: the norm of each example's gradient [n], over all params.
    """

    values: Float[Array, " n"]
    grads: PyTree
    norms: Float[Array, " n"]


class Clipped(NamedTuple):
    """As `ExampleNorms`; in `grads` each example's gradient is cut to the bound, `norms` are those before."""

    values: Float[Array, " n"]
    grads: PyTree
    norms: Float[Array, " n"]


class NoiseScale(NamedTuple):
    """How much gradients of single examples differ, all unbiased but for the quotient.

    Attributes:
        scale: trace / square: the batch size beyond which a larger one helps little.
        trace: of the covariance of one example's gradient.
        square: the squared norm of the true gradient.
    """

    scale: Float[Array, ""]
    trace: Float[Array, ""]
    square: Float[Array, ""]


def example_norms(loss: Callable[..., Any]) -> Callable[..., Any]:
    """A function that gives the norm of each example's gradient.

    Args:
        loss: ``loss(params, batch) -> [n]``, one number per example, example i a function of entry i alone.
            Operations are called with the axis of examples in front, whole, and not inside of `jax.vmap`.
            Where the loss takes a key it gets that of the call, or None.

    Returns:
        ``norms(params, batch, grads=False, *, key=None)``: the norms [n]; with ``grads=True`` an
        `ExampleNorms` with losses, gradient and norms of one pass. For `jax.jit`, as `jax.grad` is.

    Raises:
        StructureError: a parameter is used outside of operations that count its gradient, more than once
            (but for a table in `embedding` that is, transposed, the head of `linear` or
            `linear_cross_entropy`), or in batch_norm in training; or the batch has no axis of examples.
        ShapeError: the loss does not give one number per example, or an operation gets no axis of them.

    Both are raised by the function that is returned.

    >>> import funcnet as fn
    >>> params = {"w": jnp.eye(2)}
    >>> loss = lambda params, x: fn.linear.apply(params, x).sum(-1)
    >>> (example_norms(loss)(params, jnp.array([[3.0, 4.0], [0.0, 1.0]])) ** 2).round()
    Array([50.,  2.], dtype=float32)
    """
    where = "analysis.example_norms"

    def norms(params: PyTree, batch: PyTree, grads: bool = False, *, key: Any = None) -> Any:
        grads = _check.flag(where, "grads", grads)
        run, zeros = _counting(where, loss, params, batch, key)
        if grads:
            values, pull = jax.vjp(run, params, zeros)
            gradient, squares = pull(jnp.ones_like(values))
            return ExampleNorms(values, gradient, jnp.sqrt(squares))
        values, pull = jax.vjp(lambda total: run(params, total), zeros)
        (squares,) = pull(jnp.ones_like(values))
        return jnp.sqrt(squares)

    return norms


def clip_per_example(loss: Callable[..., Any], bound: float) -> Callable[..., Any]:
    """A function that gives Σₙ gₙ min(1, bound / ‖gₙ‖): the gradient of DP-SGD before its noise, exact.

    One forward pass, then two backward: the first for the norms, the second of the losses by weight. Source:
    Abadi et al., "Deep learning with differential privacy", arXiv 1607.00133, algorithm 1.

    Args:
        loss: as of `example_norms`.
        bound: what no example's gradient exceeds, above 0.

    Returns:
        ``clipped(params, batch, *, key=None)``, which gives a `Clipped`.

    What that raises is as of `example_norms`.
    """
    where = "analysis.clip_per_example"
    bound = _check.number(where, "bound", bound, strict=True)

    def clipped(params: PyTree, batch: PyTree, *, key: Any = None) -> Clipped:
        run, zeros = _counting(where, loss, params, batch, key)
        values, pull = jax.vjp(run, params, zeros)
        norms = jnp.sqrt(pull(jnp.ones_like(values))[1])
        weights = jnp.where(norms > bound, bound / jnp.where(norms > bound, norms, 1), 1)
        return Clipped(values, pull(weights.astype(values.dtype))[0], norms)

    return clipped


def noise_scale(result: ExampleNorms) -> NoiseScale:
    """The gradient noise scale tr Σ / ‖G‖², by what `example_norms` gives of one batch with ``grads=True``.

    With ḡ the mean of n gradients, tr Σ = (Σ ‖gₙ‖² − n ‖ḡ‖²) / (n − 1) and ‖G‖² = ‖ḡ‖² − tr Σ / n. The last
    may come out negative where n is far below the scale: average both over batches before they are divided.
    Source: McCandlish et al., "An empirical model of large-batch training", arXiv 1812.06162, appendix A.1.

    Raises:
        DTypeError: result is no `ExampleNorms`.
        ValueRangeError: it is of fewer than two examples.
    """
    where = "analysis.noise_scale"
    if not isinstance(result, ExampleNorms):
        raise DTypeError(
            f"{where}: result is no ExampleNorms.",
            path="result",
            expected="what example_norms(loss)(params, batch, grads=True) gives",
            actual=describe(result),
            hint="grads=True gives norms and gradient." if hasattr(result, "dtype") else None,
        )
    n = result.norms.shape[0]
    if n < 2:
        raise ValueRangeError(
            f"{where}: of {n} example{'s' * (n != 1)} no spread can be told.",
            path="result",
            expected="n ≥ 2 examples",
            actual=f"n = {n}",
        )
    dtype = result.norms.dtype
    flat = [summed(leaf.reshape(1, leaf.size))[0].astype(dtype) for leaf in jax.tree.leaves(result.grads)]
    return of_squares((result.norms**2).sum(), sum(flat, jnp.zeros((), dtype)) / n**2, n)


def of_squares(total: Any, of_mean: Any, n: int) -> NoiseScale:
    """The noise scale by Σ ‖gₙ‖² and ‖ḡ‖² of n ≥ 2 examples."""
    trace = (total - n * of_mean) / (n - 1)
    square = of_mean - trace / n
    return NoiseScale(trace / square, trace, square)


# ---- the loss with one more argument, whose cotangent is what is counted ----------------------------------


def _counting(
    where: str, loss: Any, params: PyTree, batch: PyTree, key: Any
) -> tuple[Callable[[PyTree, Array], Array], Array]:
    """(params, total) -> the losses [n]; total are zeros, and their cotangent the squares."""
    n = examples_of(where, batch)
    call = lambda params, batch, key: signature.call(where, loss, params, None, batch, key)
    abstract = lambda tree: jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), tree)
    many = _stretched(n, params, batch)
    longer = lambda v: jax.ShapeDtypeStruct((many, *v.shape[1:]) if v.ndim else (), v.dtype)
    arrays = jax.tree.map(_array, (params, batch))
    shapes = abstract(arrays[0]), jax.tree.map(longer, arrays[1])
    try:
        out = jax.eval_shape(lambda p, b: call(p, b, key), *shapes)
    except Exception as error:
        jax.eval_shape(lambda p, b: call(p, b, key), *map(abstract, arrays))  # the loss's own fault, if any
        raise StructureError(
            f"{where}: the loss cannot be traced with another number of examples than {n}.",
            path="loss",
            expected=f"a loss of batches of any size     (tried: {many})",
            actual=f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}",
            hint="what is per example goes into the batch, not into the loss.",
        ) from error
    _check_loss(where, out, many)
    plan = _uses.find(where, lambda p, b: call(p, b, key), *shapes, many)

    def run(params: PyTree, total: Array) -> Array:
        with rules.metered(_Meter(where, plan, total)):
            return call(params, batch, key)

    return run, jnp.zeros((n,), wide(out.dtype))


def _array(leaf: Any) -> Any:
    return leaf if hasattr(leaf, "dtype") and hasattr(leaf, "ndim") else jnp.asarray(leaf)


def examples_of(where: str, batch: PyTree) -> int:
    """The length of the first axes."""
    first: tuple[str, int] | None = None
    for path, leaf in jax.tree.leaves_with_path(batch):
        name, shape = f"batch{jax.tree_util.keystr(path)}", jnp.shape(leaf)
        if not shape:
            continue
        first = first or (name, shape[0])
        if shape[0] != first[1]:
            raise ShapeError(
                f"{where}: {name} has not the number of examples that {first[0]} has.",
                path=name,
                expected=f"{name}: [{first[1]}, ...]     ({first[0]}: {first[1]} examples)",
                actual=f"{name}: {describe(leaf)}",
                hint="what is no entry per example goes into the params, or into the loss itself.",
            )
    if first is None or not first[1]:
        raise StructureError(
            f"{where}: the batch has no examples.",
            path="batch",
            expected="arrays with an axis of n ≥ 1 examples in front",
            actual=", ".join(map(describe, jax.tree.leaves(batch))) or "no array",
        )
    return first[1]


def _stretched(n: int, params: PyTree, batch: PyTree) -> int:
    """Another number of examples, the length of no other axis; a multiple, which what divides n divides."""
    taken = {size for leaf in jax.tree.leaves(params) for size in jnp.shape(leaf)}
    taken |= {size for leaf in jax.tree.leaves(batch) for size in jnp.shape(leaf)[1:]}
    return next(n * p for p in (13, 17, 19, *range(23, 10**6)) if n * p not in taken)


def _check_loss(where: str, out: Any, n: int) -> None:
    if not isinstance(out, jax.ShapeDtypeStruct) or not jnp.issubdtype(out.dtype, jnp.floating):
        raise DTypeError(
            f"{where}: the loss does not give an array of losses.",
            path="loss",
            expected="one float per example, [n]",
            actual=describe(out) if not isinstance(out, tuple) else f"a tuple of {len(out)}",
            hint="without metrics: return the losses alone." if isinstance(out, tuple) else None,
        )
    if out.shape != (n,):
        raise ShapeError(
            f"{where}: the loss does not give one number per example.",
            path="loss",
            expected=f"[n]     (traced with n = {n})",
            actual=describe(out),
            hint="a mean or sum over examples is no example's own: leave it out."
            if not out.shape
            else "of several numbers per example take the sum or the mean: losses.mean(-1)."
            if out.shape[0] == n
            else None,
        )


class _Meter:
    """Answers the calls of one loss: each as it is, and in the backward pass counted."""

    def __init__(self, where: str, plan: _uses.Plan, total: Array) -> None:
        self.where, self.plan, self.total = where, plan, total
        self.number = 0
        self.probes: dict[int, tuple[Array, Array]] = {}

    def __call__(self, f: Any, formula: Any, at: int, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        del at
        number, self.number = self.number, self.number + 1
        if self.plan.calls[number : number + 1] != [_uses.name_of(f)]:
            raise StructureError(
                f"{self.where}: the loss calls other operations each time that it is traced.",
                path="loss",
                expected=", ".join(self.plan.calls),
                actual=f"call {number} is {_uses.name_of(f)}",
            )
        with rules.metered(None):
            y = f(*args, **options)
        if number not in self.plan.counted:
            return y
        if number in self.plan.ties.values():
            ids, padding = signed(jnp.asarray(args[1])), options.get("padding_index")
            ids = ids if padding is None else jnp.where(ids == padding, jnp.asarray(-1, ids.dtype), ids)
            y, probe = _ask(self.total, y)
            self.probes[number] = ids.reshape(probe.shape[:2]), probe
        elif number in self.plan.ties:
            traced, static = rules.split(options)
            ids, probe = self.probes[self.plan.ties[number]]
            y = _answer((formula.rows, tuple(sorted(static.items()))), probe, (args, ids, traced), y)
        return rules.count(formula, self.total, args, options, y)


# A table that is the head as well: |dT + dH|² = |dT|² + |dH|² + 2 ⟨dT, dH⟩, dT by ids, dH by the head. The
# last needs of dH the rows at the ids only. The head's cotangent comes first: it hands them to the
# embedding's, as the cotangent of zeros that the embedding has given it.


@jax.custom_vjp
def _ask(total: Array, y: Array) -> tuple[Array, Array]:
    del total
    return y, jnp.zeros_like(positions(y))


def _ask_forward(total: Array, y: Array) -> tuple[tuple[Array, Array], Array]:
    return _ask(total, y), total


def _ask_backward(total: Array, given: tuple[Array, Array]) -> tuple[Array, Array]:
    dy, rows = given
    cross = 2 * (positions(dy).astype(total.dtype) * rows.astype(total.dtype)).sum((1, 2))
    return cross, dy


_ask.defvjp(_ask_forward, _ask_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _answer(formula: Any, probe: Array, given: Any, y: Any) -> Any:
    del formula, probe, given
    return y


def _answer_forward(formula: Any, probe: Array, given: Any, y: Any) -> tuple[Any, Any]:
    del formula
    return y, (probe, given)


def _answer_backward(formula: Any, kept: Any, dy: Any) -> tuple[Array, None, Any]:
    (rows, static), (probe, (args, ids, traced)) = formula, kept
    return rows(*args, ids, dy, **traced, **dict(static)).astype(probe.dtype), None, dy


_answer.defvjp(_answer_forward, _answer_backward)
