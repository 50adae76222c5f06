"""The training step: one jitted function from a state and a batch to the next state and metrics."""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, PyTree

from funcnet.errors import DTypeError, ShapeError, StructureError, ValueRangeError, describe
from funcnet.mean import wide
from funcnet.train import _check, _mesh, gradient
from funcnet.train import optimizer as optimizers
from funcnet.train.gradient import Gradient
from funcnet.train.state import LEAST_SCALE, MOST_SCALE, LossScale, State, step_key

# After so many finite steps in a row a loss scale is doubled.
_GOOD_STEPS = 2000
# From so many numbers on, a sum is faster as a product with ones, in which all cores of a CPU take part.
_LARGE = 2**14


def make_step(
    loss: Callable[..., Any],
    optimizer: optax.GradientTransformation | optax.MultiSteps,
    *,
    accumulate: SupportsIndex = 1,
    gather: bool = False,
    watch: bool = False,
    guard: bool = True,
    max_skipped: SupportsIndex = 5,
) -> jax.stages.Wrapped:
    """One training step, jitted: `state, metrics = step(state, batch)`.

    What comes back is the `jax.jit` function itself, so `step.lower`, `step.trace` and the like are there,
    `step.loss` is the loss that it was made of, and `step.max_skipped` the limit of its guard, or None. The
    state is donated: its memory becomes that of the new state, and the old one is deleted. On a mesh it stays
    where it is. `metrics` is the loss's own, its value under "loss", and what the options below add.

    A step does what it finds in the state: it goes on with an average of the params, and adapts a loss scale
    (metrics "loss_scale", the one used, and "rescaled": gradients were not finite, so the scale was halved,
    and that is all; a scale of 1 is not halved, and the step is a fault).

    Args:
        loss: `loss(params, batch, key)` gives the scalar to minimise, or `(scalar, metrics)` with a dict of
            arrays. In a run that has a model state, `loss(params, model_state, batch, key)` gives
            `(scalar, (model_state, metrics))`. The scalar, and each metric, may be a `Mean`, through whose
            weight no gradient goes. The key is a new one in each step; a loss that draws nothing need not
            take it (`signature.call` says how that is told).
        optimizer: any optax optimizer of one set of params and their mean gradient (`init` refuses others).
            Those that ask for the loss's value, or for the loss or its gradient at other places, get it,
            always of the same batch, key and model state: `reduce_on_plateau`, line searches and L-BFGS,
            SAM, Sophia. (The value only, if the step has parts or a loss scale.)
        accumulate: take the gradient over the batch in so many equal parts of its first axis, one after the
            other, in the memory of one. Totals and weights are added up and divided once, so it is that of
            the whole batch, up to rounding, if the loss is a mean over the examples, or a `Mean`. Metrics
            are joined by their weights, those that are numbers evenly; a model state goes from part to part,
            and part i has the key `fold_in(key, i)`. Where the type of a batch says that its examples are
            split over devices (a mesh with Explicit axes), each group that lies in one place is cut into so
            many parts and adds up its own, and the groups are added up once, at the end: all in all they are
            the parts of an accumulation of `accumulate` times as many as there are groups. What couples
            examples, as batch statistics and contrastive losses do, so sees one part of one group; a model
            state goes from part to part of its group, and is averaged in the end (what is no float is that of
            the first). Where parameters, too, are split over those devices (FSDP), a part takes as many
            examples from every group, and its gradient is added up at once: in the memory of one device's
            share. On Auto axes no split is seen: the same, whatever the parameters are.
        gather: before an accumulation, make parameters whole that are split over the devices of the examples,
            so that these are gathered once a step rather than in every part, and gradients added up once: in
            the memory of all parameters, and of their gradients, on every device.
        watch: metrics "gradient_norm", "param_norm" (before the update) and "update_norm", for all params
            and, as "gradient_norm.block", for each entry of their outermost container; "learning_rate" if
            the optimizer's state shows it, as that of `optax.inject_hyperparams` does.
        guard: if the loss or a gradient is not finite, leave params, the optimizer's state, model state and
            average as they were. `state.faults` counts such steps in a row, and the metric "skipped" is that
            count in each of them, else 0. A batch of weight 0 is none. False: the program without all this.
        max_skipped: after so many in a row nothing changes any more, the count of steps included, whatever
            comes: a loop may look late, and finds the state as it was.

    Raises:
        DTypeError: the loss is no function, the optimizer no optimizer, or an option not what it should be.
        ValueRangeError: `accumulate` or `max_skipped` is less than 1.
        ShapeError, DTypeError, StructureError: when the step is traced, if the loss takes or returns anything
            else, if the optimizer asks for anything else or is not the state's, if a leaf of the state
            would change its shape or its type, if `accumulate`, times the groups, does not divide the batch,
            or a metric then has axes, or if the state lacks what the guard counts with, or has a loss scale
            without it.

    >>> def loss(params, batch, key):
    ...     return jnp.mean((batch @ params["w"] - 1.0) ** 2)
    >>> from funcnet.train import init
    >>> optimizer = optax.sgd(0.1)
    >>> state = init({"w": jnp.zeros(2)}, optimizer, key=jax.random.key(0))
    >>> step = make_step(loss, optimizer)
    >>> state, metrics = step(state, jnp.eye(2))
    >>> int(state.step), [round(w, 3) for w in state.params["w"].tolist()], float(metrics["loss"])
    (1, [0.1, 0.1], 1.0)
    >>> state, metrics = step(state, jnp.nan * jnp.eye(2))
    >>> int(state.step), [round(w, 3) for w in state.params["w"].tolist()], int(metrics["skipped"])
    (2, [0.1, 0.1], 1)
    """
    transformation = optimizers.transformation("train.make_step", optimizer)
    _check.function("train.make_step", "loss", loss, "loss(params, batch, key)")
    k = _check.whole("train.make_step", "accumulate", accumulate, 1)
    gather = _check.flag("train.make_step", "gather", gather)
    watch = _check.flag("train.make_step", "watch", watch)
    guard = _check.flag("train.make_step", "guard", guard)
    limit = _check.whole("train.make_step", "max_skipped", max_skipped, 1)
    if limit >= 2**31:
        raise ValueRangeError(
            f"train.make_step: max_skipped is {limit}.",
            path="max_skipped",
            expected="less than 2**31",
            actual=str(limit),
        )

    def step(state: State, batch: PyTree) -> tuple[State, dict[str, Array]]:
        _check_state(state, guard)
        key = step_key(state)
        if k == 1:
            result = gradient.whole(loss, state, batch, key)
        else:
            same = lambda after: _like(state, state._replace(model_state=after)).model_state
            result = gradient.in_parts(loss, state, batch, key, k, same, gather)
        elsewhere = None
        if k == 1 and state.loss_scale is None:
            elsewhere = lambda params: gradient.value(loss, params, state.model_state, batch, key)
        updated = partial(_updated, transformation, state, result, elsewhere, watch)
        metrics = {"loss": result.value, **result.metrics}
        if guard:
            norms = _norms("update_norm", state.params) if watch else {}
            unchanged = {name: jnp.zeros_like(norm) for name, norm in norms.items()}
            new, norms, said = _guarded(state, result, updated, unchanged, limit)
            metrics |= said
            if result.weight is not None:  # what says nothing is no fault, and must not look like one
                nothing = (result.weight == 0) & ~jnp.isfinite(result.value)
                metrics["loss"] = jnp.where(nothing, 0, result.value)
        else:
            new, norms = updated()
            new = new._replace(step=state.step + 1)
            if result.weight is not None:
                new = _unless(result.weight == 0, new, state)
        new = jax.tree.map(_mesh.kept, state, new)
        return new, _joined(metrics, _watched(state, new, result, norms)) if watch else metrics

    step.loss = loss  # pyright: ignore[reportFunctionMemberAccess]  (jax.jit hands attributes on)
    step.max_skipped = limit if guard else None  # pyright: ignore[reportFunctionMemberAccess]
    return jax.jit(step, donate_argnums=0)


def _check_state(state: Any, guard: bool) -> None:
    if not isinstance(state, State):
        raise DTypeError(
            "train.make_step: the step was not given a state.",
            path="state",
            expected="step(state, batch), with a state from train.init or from the step before",
            actual=describe(state),
        )
    if guard and state.faults is None:
        raise StructureError(
            "train.make_step: the state has no count of faults, which the guard keeps.",
            path="state.faults",
            expected="int32[], as train.init makes it",
            actual=describe(state.faults),
            hint="state._replace(faults=jnp.zeros((), jnp.int32)), or make_step(..., guard=False)",
        )
    if not guard and state.loss_scale is not None:
        raise StructureError(
            "train.make_step: a loss scale needs the guard, which leaves out what it made infinite.",
            path="guard",
            expected="guard=True, or a state without a loss scale",
            actual="guard=False",
        )


def _updated(
    optimizer: optax.GradientTransformationExtraArgs,
    state: State,
    result: Gradient,
    elsewhere: Callable[[PyTree], Float[Array, ""]] | None,
    watch: bool,
) -> tuple[State, dict[str, Array]]:
    """The state after an update, but for its counts; and the norms of what was added, if they are watched."""
    params, opt_state, updates = optimizers.update(
        optimizer, state.params, state.opt_state, result.value, result.grads, elsewhere
    )
    new = state._replace(params=params, opt_state=opt_state, model_state=result.model_state)
    new = _like(state, new)
    if state.decay is not None:
        new = new._replace(average=jax.tree.map(partial(_nearer, state.decay), state.average, new.params))
    if not watch:
        return new, {}
    alike = jax.tree.map(lambda update, param: update.astype(wide(param).dtype), updates, params)
    return new, _norms("update_norm", alike)


def _nearer(decay: Array, average: Array, param: Array) -> Array:
    """decay * average + (1 - decay) * param."""
    decay = decay.astype(average.dtype)
    return decay * average + (1 - decay) * param.astype(average.dtype)


def _unless(nothing: Any, new: State, old: State) -> State:
    """The new state; with what an update changes as it was, if the batch said nothing."""
    parts = ("params", "opt_state", "average")
    kept = {
        name: jax.tree.map(lambda a, b: jnp.where(nothing, b, a), getattr(new, name), getattr(old, name))
        for name in parts
    }
    return new._replace(**kept)


# ---- the guard --------------------------------------------------------------------------------------------


def _guarded(
    state: State,
    result: Gradient,
    updated: Callable[[], tuple[State, dict[str, Array]]],
    unchanged: dict[str, Array],
    limit: int,
) -> tuple[State, dict[str, Array], dict[str, Array]]:
    """The next state, whatever the gradients are; the norms of the update; the metrics of the guard.

    Args:
        state: the one before.
        result: what the batch says.
        updated: gives the state after an update, and norms.
        unchanged: the norms where there is none.
        limit: as many faults in a row are too many.
    """
    faults: Any = state.faults
    finite = _finite([result.value]), _finite(jax.tree.leaves(result.grads))
    silent = jnp.zeros((), bool) if result.weight is None else result.weight == 0
    frozen = faults >= limit
    good = finite[0] & finite[1] & ~frozen
    fault = ~(finite[0] & finite[1]) & ~silent & ~frozen
    rescaled = jnp.zeros((), bool)
    if state.loss_scale is not None:
        rescaled = fault & finite[0] & (state.loss_scale.scale > LEAST_SCALE)
        fault = fault & ~rescaled
    kept = _without_counts(state)

    def change() -> tuple[State, dict[str, Array]]:
        new, norms = updated()
        return _without_counts(new), norms

    def keep() -> tuple[State, dict[str, Array]]:
        if result.weight is None:
            return kept, unchanged
        # The batch had no weight, but the model has seen it.
        seen = _like(state, state._replace(model_state=result.model_state)).model_state
        model_state = jax.tree.map(lambda a, b: jnp.where(good, a, b), seen, state.model_state)
        return kept._replace(model_state=model_state), unchanged

    new, norms = jax.lax.cond(good & ~silent, change, keep)
    still = frozen | silent | rescaled
    new = state._replace(
        step=state.step + (~frozen).astype(state.step.dtype),
        params=new.params,
        opt_state=new.opt_state,
        model_state=new.model_state,
        average=new.average,
        faults=jnp.where(still, faults, jnp.where(fault, faults + 1, 0)),
    )
    said = {"skipped": jnp.where(fault, faults + 1, jnp.where(frozen, faults, 0))}
    if state.loss_scale is not None:
        new = new._replace(loss_scale=_adapted(state.loss_scale, rescaled, fault, silent | frozen))
        said |= {"loss_scale": state.loss_scale.scale, "rescaled": rescaled}
    return new, norms, said


def _without_counts(state: State) -> State:
    """What an update changes, and nothing else: the rest does not pass through the branches."""
    return State(None, state.params, state.opt_state, None, state.model_state, average=state.average)  # pyright: ignore[reportArgumentType]


def _finite(leaves: list[Array]) -> Bool[Array, ""]:
    """Whether all numbers are."""
    return reduce(jnp.logical_and, (jnp.isfinite(_total(leaf)) for leaf in leaves), jnp.ones((), bool))


def _total(leaf: Array) -> Array:
    """0 if all numbers of an array are finite, else NaN; no finite number overflows."""
    if leaf.ndim < 2 or leaf.size < _LARGE or not jax.sharding.get_abstract_mesh().empty:
        return (leaf * 0).sum()
    return (leaf * 0 @ jnp.ones(leaf.shape[-1], leaf.dtype)).sum()


def _adapted(was: LossScale, rescaled: Array, fault: Array, still: Array) -> LossScale:
    """The scale of the next step: halved, doubled after many finite steps, or the same."""
    good = jnp.where(rescaled | fault, 0, was.good + 1)
    ripe = good >= _GOOD_STEPS
    scale = jnp.where(rescaled, jnp.maximum(was.scale / 2, LEAST_SCALE), was.scale)
    scale = jnp.where(ripe, jnp.minimum(scale * 2, MOST_SCALE), scale)
    good = jnp.where(ripe, 0, good)
    return LossScale(jnp.where(still, was.scale, scale), jnp.where(still, was.good, good))


# ---- what is watched --------------------------------------------------------------------------------------


def _watched(state: State, new: State, result: Gradient, norms: dict[str, Array]) -> dict[str, Array]:
    watched = _norms("gradient_norm", result.grads) | _norms("param_norm", state.params) | norms
    rate = _learning_rate(new.opt_state)
    return watched if rate is None else {**watched, "learning_rate": rate}


def _norms(name: str, tree: PyTree) -> dict[str, Array]:
    """The Euclidean norms of a tree, and of each entry of its outermost container."""
    squares: dict[str, list[Array]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        block = jax.tree_util.keystr(path[:1], simple=True)
        squares.setdefault(block, []).append(_square(leaf))
    widest = np.result_type(np.float32, *(value.dtype for values in squares.values() for value in values))
    zero = jnp.zeros((), widest)
    blocks = {block: sum((v.astype(widest) for v in values), zero) for block, values in squares.items()}
    total = sum(blocks.values(), zero)
    return {name: jnp.sqrt(total)} | {f"{name}.{b}": jnp.sqrt(v) for b, v in blocks.items() if b}


def _square(leaf: Array) -> Array:
    """The sum of the squares of an array's numbers."""
    leaf = wide(leaf)
    if not jax.sharding.get_abstract_mesh().empty:
        return (leaf * leaf.conj()).real.sum()
    flat = leaf.reshape(-1)
    return jnp.vdot(flat, flat).real


def _learning_rate(opt_state: PyTree) -> Array | None:
    """The first that an optimizer's state shows."""

    def shows(node: Any) -> bool:
        rates = getattr(node, "hyperparams", None)
        return isinstance(rates, dict) and "learning_rate" in rates

    nodes = filter(shows, jax.tree.leaves(opt_state, is_leaf=shows))
    return next((jnp.asarray(node.hyperparams["learning_rate"]) for node in nodes), None)


def _joined(metrics: dict[str, Any], watched: dict[str, Array]) -> dict[str, Any]:
    for name in metrics.keys() & watched.keys():
        raise StructureError(
            f'train.make_step: the loss returned a metric named "{name}", which watch=True records itself.',
            path=f'metrics["{name}"]',
            expected="another name",
            actual=", ".join(metrics),
        )
    return metrics | watched


def _like(old: State, new: State) -> State:
    """`new`, once every leaf is known to have the shape and the type that it has in `old`.

    Otherwise the memory of `old` could not be reused, and the next step would compile again.
    """
    before, after = (
        {
            f"state{jax.tree_util.keystr(path)}": leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (old, new)
    )
    if jax.tree.structure(old) != jax.tree.structure(new):
        lost, added = (", ".join(sorted(names)) for names in (before.keys() - after, after.keys() - before))
        changes = [text for text, names in ((f"without {lost}", lost), (f"with {added}", added)) if names]
        raise StructureError(
            "train.make_step: the step changes the structure of the state.",
            path="state",
            expected="the structure that it had",
            actual=" and ".join(changes) or f"{jax.tree.structure(new)} for {jax.tree.structure(old)}",
        )
    for path, leaf in after.items():
        was = before[path]
        if jnp.shape(leaf) == was.shape and jnp.result_type(leaf) == was.dtype:
            continue
        kind = DTypeError if jnp.shape(leaf) == was.shape else ShapeError
        raise kind(
            f"train.make_step: the step changes {path}.",
            path=path,
            expected=describe(was),
            actual=describe(leaf),
        )
    # The explicit dtype makes weak types strong, as in train.init.
    strong = lambda leaf: jnp.asarray(leaf, dtype=jnp.result_type(leaf))
    return jax.tree.map(lambda was, leaf: _mesh.retyped(was, strong(leaf)), old, new)
