"""What a step asks of an optax optimizer, and offers it."""

import contextlib
import inspect
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from funcnet.errors import DTypeError, FuncnetError, StructureError, describe

__all__ = ["init", "transformation", "update"]

# What a step cannot serve, by what it keeps, and why.
_REFUSED = {
    optax.LookaheadState: "optax.lookahead keeps two sets of params, and a loss is given one",
    optax.contrib.DifferentiallyPrivateAggregateState: "differentially_private_aggregate takes the gradient "
    "of each example, and a step has that of their mean",
}


def transformation(where: str, optimizer: Any) -> optax.GradientTransformationExtraArgs:
    """An optimizer as optax's type for those that may be offered more than the gradient.

    Raises:
        DTypeError: it is no optimizer.
    """
    functions = [getattr(optimizer, name, None) for name in ("init", "update")]
    if isinstance(optimizer, type) or not all(map(callable, functions)):
        raise DTypeError(
            f"{where}: optimizer is no optax optimizer.",
            path="optimizer",
            expected="what optax.adam(1e-3) and the like return",
            actual=describe(optimizer),
            hint="call it, with its learning rate" if callable(optimizer) else None,
        )
    with contextlib.suppress(TypeError, ValueError):  # a signature that cannot be read
        kinds = [parameter.kind for parameter in inspect.signature(optimizer.update).parameters.values()]
        if inspect.Parameter.VAR_KEYWORD in kinds:  # MultiSteps, too, which is not of the type
            return optax.GradientTransformationExtraArgs(optimizer.init, optimizer.update)
    return optax.with_extra_args_support(optimizer)


def init(optimizer: optax.GradientTransformation, params: PyTree) -> PyTree:
    """The optimizer's first state.

    Raises:
        StructureError: a step cannot serve the optimizer.
    """
    with jax.numpy_dtype_promotion("standard"):  # as in update
        opt_state = optimizer.init(params)
    for node in _nodes(opt_state, tuple(_REFUSED)):
        raise StructureError(
            f"train.init: {_REFUSED[type(node)]}.",
            path="optimizer",
            expected="an optimizer of one set of params and the gradient of the loss",
            actual=f"one that keeps a {type(node).__name__}",
        )
    return opt_state


def update(
    optimizer: optax.GradientTransformationExtraArgs,
    params: PyTree,
    opt_state: PyTree,
    value: Float[Array, ""],
    grads: PyTree,
    loss: Callable[[PyTree], Float[Array, ""]] | None,
) -> tuple[PyTree, PyTree, PyTree]:
    """The next params, the optimizer's next state, and the updates that were added to the params.

    An optimizer may ask for the loss's value, as `reduce_on_plateau` does, or for the loss and its gradient
    at other places, as line searches, SAM and Sophia do. It is offered all for which optax has a name; one
    that refuses what it does not know (SAM), or functions (within jit), is asked again without that.

    Args:
        optimizer: from `transformation`.
        params: as they are.
        opt_state: the optimizer's state.
        value: the loss.
        grads: its gradient.
        loss: the loss at other places; None where a step does not offer it.

    Raises:
        StructureError: the optimizer asks for anything else, or for the loss at other places where there is
            none, or `opt_state` is that of another one.
    """
    if loss is None and (found := _nodes(opt_state, optax.contrib.SAMState)):
        raise _elsewhere(type(found[0]).__name__)
    promotion = jax.config.jax_numpy_dtype_promotion  # pyright: ignore[reportAttributeAccessIssue]

    def is_masked(node: Any) -> bool:
        return isinstance(node, optax.MaskedNode)

    def back(new: Any, old: jax.Array) -> jax.Array:
        return old if is_masked(new) else new.astype(old.dtype)

    # A line search hands to value_fn what it does not know itself, or refuses it. It may promote the params,
    # and within optax.masked it has a part of them; the others stay where they are.
    def value_fn(part: PyTree, grad_fn: Any = None, obj_fn: Any = None) -> Float[Array, ""]:
        del grad_fn, obj_fn
        if loss is None:
            raise _elsewhere()
        whole = jax.tree.map(back, part, params, is_leaf=is_masked)
        with jax.numpy_dtype_promotion(promotion):
            return loss(whole).astype(float)  # a backtracking search pulls back a Python float

    offers = {
        "value": value,
        "grad": grads,
        "value_fn": value_fn,
        "grad_fn": lambda params, *_: jax.grad(value_fn)(params),
        "obj_fn": value_fn,
    }
    downhill = jax.tree.map(jnp.conj, grads)  # where params are complex; what is real stays as it is
    # Strict promotion is a promise of the model; optax's optimizers mix integer counts with floats.
    with jax.numpy_dtype_promotion("standard"):
        while True:
            try:
                updates, opt_state = optimizer.update(downhill, opt_state, params, **offers)
                return optax.apply_updates(params, updates), opt_state, updates
            except FuncnetError:
                raise
            except Exception as error:
                refused = re.search(r"(?:unexpected keyword argument |at path \w+\[)'(\w+)'", str(error))
                if refused is None or offers.pop(refused[1], None) is None:
                    _explain(optimizer, params, opt_state, error)
                    raise


def _elsewhere(keeps: str = "") -> StructureError:
    return StructureError(
        "train.make_step: the optimizer asks for the loss at other places, which a step in parts "
        "(accumulate) or with a loss scale does not offer.",
        path="optimizer",
        expected="one that needs the gradient, or the loss's value: with accumulate=1 and no loss scale, any",
        actual=f"one that keeps a {keeps}" if keeps else "a line search, L-BFGS, SAM, Sophia, or the like",
    )


def _explain(
    optimizer: optax.GradientTransformation, params: PyTree, opt_state: PyTree, error: Exception
) -> None:
    """Raise in our words what an optimizer raised, if they can be found."""
    asked = re.search(r"missing \d+ required (?:keyword-only|positional) arguments?: (.+)", str(error))
    if asked is not None:
        raise StructureError(
            "train.make_step: the optimizer asks for what a step does not have.",
            path="optimizer",
            expected="one that asks for no more than value, grad, value_fn, grad_fn and obj_fn",
            actual=f"one that asks for {asked[1]}",
        ) from error
    searches = optax.ScaleByZoomLinesearchState, optax.ScaleByBacktrackingLinesearchState
    if _nodes(_nodes(opt_state, optax.MaskedState), searches):
        raise StructureError(
            "train.make_step: a line search within optax.masked was given the gradient of all params.",
            path="optimizer",
            expected="optax.masked or optax.partition with mask_compatible_extra_args=True",
            actual=f"{type(error).__name__}: {error}",
        ) from error
    wanted = jax.tree.structure(jax.eval_shape(optimizer.init, params))
    if wanted != jax.tree.structure(opt_state):
        raise StructureError(
            "train.make_step: the state was made for another optimizer.",
            path="state.opt_state",
            expected=str(wanted),
            actual=str(jax.tree.structure(opt_state)),
            hint="give train.init and train.make_step the same one",
        ) from error


def _nodes(tree: PyTree, kinds: Any) -> list[Any]:
    """The nodes of these types in a tree; none within another."""
    nodes = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, kinds))
    return [node for node in nodes if isinstance(node, kinds)]
