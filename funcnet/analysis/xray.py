"""A net seen through at a batch: weights, activations, gradients, and what is unusual, in words.

    print(fn.xray(net, params, config, (inputs, labels)))

Weights are measured on the host (`_spectra`). Activations are one compiled program, gradients another, the
derivative of the logits by the inputs a third; it is compiling that takes long. What could not be measured is
NaN or None, and `left_out` says why.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

from funcnet import linalg, spec
from funcnet.analysis import _chain, _findings, _spectra
from funcnet.analysis._activations import activations
from funcnet.analysis._curvature import PROBES, STEPS, Curvature
from funcnet.analysis._curvature import curvature as curvature_of
from funcnet.analysis._results import Activation, Gradient, Row, Whole, XRay
from funcnet.analysis._spectra import Weight, stacked
from funcnet.analysis.example_norms import examples_of, of_squares
from funcnet.errors import DTypeError, FuncnetError, ShapeError, StructureError, describe
from funcnet.linalg.curvature import of_examples
from funcnet.ops import _check
from funcnet.ops._dtype import wide
from funcnet.ops.loss import cross_entropy
from funcnet.spec import Spec

__all__ = ["xray"]

JACOBIAN = 2**24  # elements of the derivatives of all examples, at most
CURVED = 200  # labels that the curvature is of, at most, or examples of a loss that is given
VECTORS = 2**28  # elements of the vectors that it keeps, at most
_WHERE = "xray"


def xray(
    net: Any,
    params: PyTree,
    config: Any,
    batch: PyTree,
    *,
    loss: Callable[..., Any] | None = None,
    start: PyTree | None = None,
    curvature: bool = False,
    key: PRNGKeyArray | None = None,
) -> XRay:
    """Measure a net at a batch: its weights, activations, gradients, and what is unusual.

    Args:
        net: a module of funcnet's kind: ``apply(params, x, config)`` and ``specs(config)``.
        params: of the net.
        config: of the net.
        batch: (inputs, labels); or the inputs alone, and then there is no gradient. With `loss` any pytree.
        loss: ``loss(params, batch) -> [n]``, a number per example; None: the cross entropy of
            ``net.apply(params, inputs, config)`` and labels, its mean over further axes. What is tapped in it
            is measured. With one of its own there is no Gauss–Newton matrix.
        start: the params at the start of the training, to say how far they have moved.
        curvature: whether to look for the spectra of Hessian and Gauss–Newton matrix, at the first examples
            with 200 labels or fewer, which takes longer than all the rest.
        key: of the random vectors of the curvature; None: always the same.

    Raises:
        DTypeError: net is no such module, or what the loss gives no array of floats.
        ShapeError: specs, start or batch do not fit; net or loss do not give something for each example.
        ValueRangeError: labels are outside the classes.
        StructureError: they are other trees; the batch has no examples.

    >>> import funcnet as fn
    >>> config = fn.nets.mlp.Config((3, 4, 2))
    >>> params = fn.nets.mlp.init(jax.random.key(0), config)
    >>> found = xray(fn.nets.mlp, params, config, (jnp.eye(3), jnp.array([0, 1, 1])))
    >>> [row.name for row in found.rows]
    ['layers.0', 'layers.1']
    """
    curvature = _check.flag(_WHERE, "curvature", curvature)
    if key is not None:
        _check.key(_WHERE, key)
    n = examples_of(_WHERE, batch)
    leaves = _matrices(net, params, config, start)
    params, batch = jax.tree.map(jnp.asarray, (params, batch))
    of = _functions(net, config, params, batch, loss)
    left_out = [] if start is not None else ["how far weights moved: start was not given."]

    program = _chain.traced(of.whole, params, batch)
    paths = [_path(at) for at, _ in jax.tree.leaves_with_path(params)]
    calls = {paths[i]: calls for i, calls in program.convolved.items()}
    convolved = {path: each[0] if len(each) == 1 else None for path, each in calls.items() if path in leaves}
    weights, reasons = _spectra.weights(
        leaves, convolved, not {"conv", "conv_transpose"}.isdisjoint(program.others)
    )
    left_out += reasons
    seen, reasons = activations(of.whole, params, batch)
    left_out += reasons

    whole, gradients = Whole(n), {}
    if of.losses is None:
        left_out.append("gradients and loss: the batch has no labels, and there is no loss.")
    else:
        whole, gradients = _gradients(of.losses, params, batch, n, leaves)
    if of.inputs is None:
        left_out.append("sensitivity and Lipschitz bound: with loss= it is not known what the inputs are.")
    else:
        uppers = {paths.index(path): each[0].norm[1] for path, each in weights.items() if len(each) == 1}
        direct = _chain.traced(of.logits, params, of.inputs)
        bound, reason = _chain.lipschitz(direct, uppers)
        left_out += [f"Lipschitz bound: {reason}."] * bool(reason)
        sensitivity, reason = _sensitivity(of.logits, params, of.inputs)
        left_out += [f"sensitivity: {reason}."] * bool(reason)
        whole = whole._replace(lipschitz=bound, sensitivity=sensitivity)
    if curvature:
        hessian, ggn, reasons = _curvatures(of, params, batch, whole.loss, key)
        left_out += reasons
        whole = whole._replace(hessian=hessian, ggn=ggn)
    found = XRay(_rows(leaves, weights, seen, gradients), whole, (), (*left_out,))
    return found._replace(findings=_findings.findings(found))


# ---- what is asked ----------------------------------------------------------------------------------------


class _Functions(NamedTuple):
    """Of params and the batch.

    Attributes:
        whole: what is looked into.
        losses: one number per example; None: there are no labels.
        logits: of params and inputs.
        outputs: of params and the batch, if the loss is their cross entropy.
        inputs: those of `logits`; None: the loss is given, and what of the batch they are is not.
    """

    whole: Callable[[Any, Any], Any]
    losses: Callable[[Any, Any], Any] | None
    logits: Callable[[Any, Any], Any]
    outputs: Callable[[Any, Any], Any] | None
    inputs: Any


def _functions(net: Any, config: Any, params: PyTree, batch: PyTree, loss: Any) -> _Functions:
    logits = lambda params, x: net.apply(params, x, config)
    if loss is not None:
        losses = lambda params, batch: of_examples(_WHERE, loss, params, batch, None)
        jax.eval_shape(losses, params, batch)
        return _Functions(losses, losses, logits, None, None)
    pair = isinstance(batch, tuple | list)
    if (pair and len(batch) != 2) or not hasattr(batch[0] if pair else batch, "dtype"):
        raise StructureError(
            f"{_WHERE}: the batch is neither (inputs, labels) nor inputs.",
            path="batch",
            expected="batch: (inputs, labels), or an array; or with loss= any tree of arrays",
            actual=f"batch: {describe(batch)}" + (f" of {len(batch)}" if pair else ""),
        )
    inputs = batch[0] if pair else batch
    try:
        out: Any = jax.eval_shape(logits, params, inputs)
    except FuncnetError:
        raise
    except TypeError as error:  # other arguments
        out = error
    if not hasattr(out, "dtype") or not jnp.issubdtype(out.dtype, jnp.floating):
        raise DTypeError(
            f"{_WHERE}: net.apply(params, inputs, config) gives no array of floats.",
            path="net",
            expected="net.apply: logits [n, ...]",
            actual=str(out).partition("\n")[0] if isinstance(out, TypeError) else describe(out),
            hint="give the loss of such a net: loss=..., of params and batch, one number per example.",
        )
    if out.ndim < 2 or out.shape[0] != inputs.shape[0]:
        raise ShapeError(
            f"{_WHERE}: net.apply(params, inputs, config) gives no logits for each of the inputs.",
            path="net",
            expected=f"net.apply: logits [{inputs.shape[0]}, ...]     (inputs: {describe(inputs)})",
            actual=f"net.apply: {describe(out)}",
        )
    if not pair:
        return _Functions(logits, None, logits, None, inputs)
    outputs = lambda params, batch: logits(params, batch[0])
    losses = lambda params, batch: _cross_entropies(outputs(params, batch), batch[1])
    jax.eval_shape(losses, params, batch)
    _in_range(batch[1], out)
    return _Functions(losses, losses, logits, outputs, inputs)


def _in_range(labels: Array, logits: Any) -> None:
    """Refuse classes that are none of the logits: a compiled loss would leave them out, silently."""
    if jnp.issubdtype(labels.dtype, jnp.integer):
        _check.indices(
            _WHERE,
            "labels",
            labels,
            logits.shape[-1],
            f"logits: {describe(logits)}",
            path="batch[1]",
            hint=lambda *_: "to leave some out, give a loss of your own: loss=...",
        )


def _cross_entropies(logits: Array, labels: Array) -> Array:
    losses = cross_entropy.apply(logits, labels)
    return losses.reshape(losses.shape[0], -1).mean(1)


def _matrices(net: Any, params: PyTree, config: Any, start: PyTree) -> dict[str, tuple[Spec, Any, Any]]:
    """By path the leaves that are matrices: spec, array, and that at the start or None."""
    if not callable(getattr(net, "apply", None)) or not callable(getattr(net, "specs", None)):
        raise DTypeError(
            f"{_WHERE}: net is no module of a net.",
            path="net",
            expected="net: with apply(params, x, config) and specs(config), as fn.nets.convnet",
            actual=f"net: {describe(net)}",
        )
    specs = net.specs(config)
    spec.fits(_WHERE, specs, params)
    if start is not None:
        shapes = [
            [(at, leaf.shape) for at, leaf in jax.tree.leaves_with_path(tree)] for tree in (params, start)
        ]
        if shapes[0] != shapes[1]:
            raise StructureError(
                f"{_WHERE}: start are not the params of this net.",
                path="start",
                expected=f"start: {len(shapes[0])} arrays, of the shapes of params",
                actual=f"start: {len(shapes[1])} arrays, {len({*shapes[1]} & {*shapes[0]})} of them alike",
            )
    flat = zip(
        jax.tree.leaves_with_path(params),
        jax.tree.leaves(specs, is_leaf=spec.is_spec),
        jax.tree.leaves(start) if start is not None else [None] * len(jax.tree.leaves(params)),
        strict=True,
    )
    return {_path(at): (each, leaf, before) for (at, leaf), each, before in flat if each.matrix is not None}


def _path(at: Any) -> str:
    return jax.tree_util.keystr(at, simple=True, separator=".").removesuffix(".w")


# ---- gradients --------------------------------------------------------------------------------------------


def _gradients(
    losses: Callable[[Any, Any], Any], params: PyTree, batch: PyTree, n: int, leaves: Mapping[str, Any]
) -> tuple[Whole, dict[str, list[Gradient]]]:
    """Of the whole, and by path of each layer; one example after the other, in one program."""

    def squares(grads: PyTree) -> dict[str, Array]:
        found = {}
        for at, leaf in jax.tree.leaves_with_path(grads):
            layers = _path(at) in leaves and stacked(leaves[_path(at)][0])
            rows = leaf.reshape(leaf.shape[0] if layers else 1, -1)
            found[jax.tree_util.keystr(at)] = (rows * rows).sum(1)
        return found

    def run(params: PyTree, batch: PyTree) -> Any:
        def step(total: PyTree, i: Array) -> Any:
            entry = jax.tree.map(lambda v: jax.lax.dynamic_slice_in_dim(v, i, 1) if v.ndim else v, batch)
            value, grads = jax.value_and_grad(lambda params: losses(params, entry)[0])(params)
            grads = jax.tree.map(lambda g: g.astype(wide(g.dtype)), grads)
            return jax.tree.map(jnp.add, total, grads), (value, squares(grads))

        zeros = jax.tree.map(lambda w: jnp.zeros(w.shape, wide(w.dtype)), params)
        total, (values, each) = jax.lax.scan(step, zeros, jnp.arange(n))
        return values, each, squares(total)

    values, each, of_total = jax.tree.map(lambda v: np.asarray(v).astype(float), jax.jit(run)(params, batch))
    names = {jax.tree_util.keystr(at): _path(at) for at, _ in jax.tree.leaves_with_path(params)}
    found = {
        path: [_gradient(each[name][:, i], of_total[name][i], n) for i in range(len(of_total[name]))]
        for name, path in names.items()
        if path in leaves
    }
    squared: Any = sum(part.sum(1) for part in each.values())
    whole = _gradient(squared, sum(part.sum() for part in of_total.values()), n)
    return Whole(n, float(values.mean()), whole, losses=values, norms=np.sqrt(squared)), found


def _gradient(squares: Any, of_total: float, n: int) -> Gradient:
    """By ‖gₙ‖² of each example, and ‖Σ gₙ‖²."""
    of_mean, total = of_total / n**2, float(squares.sum())
    scale = math.nan
    if n > 1 and total > 0:
        noise = of_squares(total, of_mean, n)
        scale = float(noise.scale) if noise.square > 0 else math.inf
    held = np.cumsum(np.sort(squares)[::-1])
    holders = int((held < total / 2).sum() + 1) if total > 0 else 0
    return Gradient(float(of_mean**0.5), scale, holders, n)


# ---- the whole --------------------------------------------------------------------------------------------


def _sensitivity(logits: Callable[[Any, Any], Any], params: PyTree, x: Array) -> tuple[Any, str]:
    """‖d logits / d x‖ of single examples: the median, the largest, of how many; or None and why not."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return None, "inputs are tokens, which have no derivative"
    out = jax.eval_shape(logits, params, x)
    outputs, sizes = math.prod(out.shape[1:]), math.prod(x.shape[1:])
    count = min(x.shape[0], JACOBIAN // max(1, outputs * sizes))
    if not count:
        return None, f"the derivative of one example has {outputs * sizes:,} elements"

    def grams(params: PyTree, x: Array) -> Array:
        _, pull = jax.vjp(lambda x: logits(params, x), x)

        def row(direction: Array) -> Array:  # of all examples: none depends on another
            dy = jnp.broadcast_to(direction.reshape(out.shape[1:]), (count, *out.shape[1:]))
            return pull(dy)[0].reshape(count, -1)

        rows = jax.lax.map(row, jnp.eye(outputs, dtype=out.dtype))
        return jnp.einsum("and,bnd->nab", rows, rows)

    found = np.asarray(jax.jit(grams)(params, x[:count])).astype(float)
    if not np.isfinite(found).all():
        return None, "the derivative is not finite"
    norms = np.sqrt(np.maximum(np.linalg.eigvalsh(found)[:, -1], 0))
    return (float(np.median(norms)), float(norms.max()), count), ""


def _curvatures(
    of: _Functions, params: PyTree, batch: PyTree, loss: float, key: PRNGKeyArray | None
) -> tuple[Curvature | None, Curvature | None, list[str]]:
    """Hessian and Gauss–Newton matrix at the first examples, and what is left out of them and why."""
    losses, outputs, size = of.losses, of.outputs, sum(leaf.size for leaf in jax.tree.leaves(params))
    if losses is None or not math.isfinite(loss):
        return None, None, [f"curvature: {'the loss is not finite' if losses else 'there is no loss'}."]
    if PROBES * STEPS * size > VECTORS:
        return None, None, [f"curvature: its vectors of {size:,} params would not fit into memory."]
    count = CURVED if outputs is None else max(1, CURVED // max(1, math.prod(batch[1].shape[1:])))
    batch = jax.tree.map(lambda v: v[:count] if v.ndim else v, batch)
    key = jax.random.key(0) if key is None else key
    used = examples_of(_WHERE, batch)
    mean = lambda params, batch: losses(params, batch).mean()
    hessian = curvature_of(linalg.hessian(mean, params, batch), key)._replace(examples=used)
    if outputs is None:
        return hessian, None, ["Gauss-Newton matrix: with loss= it is not known what the outputs are."]
    of_outputs = lambda outputs, batch: _cross_entropies(outputs, batch[1]).mean()
    ggn = curvature_of(linalg.ggn(outputs, of_outputs, params, batch), key)._replace(examples=used)
    return hessian, ggn, []


# ---- rows -------------------------------------------------------------------------------------------------


def _rows(
    leaves: Mapping[str, tuple[Spec, Any, Any]],
    weights: Mapping[str, list[Weight]],
    seen: Mapping[str, Activation],
    gradients: Mapping[str, list[Gradient]],
) -> tuple[Row, ...]:
    """One for each layer: as the data pass through them, tables first, what is not tapped last."""
    rows = {name: Row(name, activation=activation) for name, activation in seen.items()}
    tables = {path.partition(".")[0] for path, (each, *_) in leaves.items() if each.matrix == "table"}
    for path, found in weights.items():
        root, _, rest = path.partition(".")
        for i, weight in enumerate(found):
            name = ".".join(filter(None, [root, str(i), rest])) if stacked(leaves[path][0]) else path
            gradient = gradients[path][i] if path in gradients else None
            rows[name] = rows.get(name, Row(name))._replace(weight=weight, gradient=gradient)
    roots = dict.fromkeys(name.partition(".")[0] for name in [*sorted(tables), *rows])

    def order(name: str) -> tuple[int, int]:
        root, _, rest = name.partition(".")
        number = rest.partition(".")[0]
        return list(roots).index(root), int(number) if number.isdecimal() else -1

    return (*(rows[name] for name in sorted(rows, key=order)),)
