"""What the optimizers share: matrices by one rule, everything else by AdamW, one rate for both."""

from collections.abc import Callable, Hashable
from typing import Any

import jax
import optax

from funcnet import spec
from funcnet.errors import ShapeError, StructureError, describe
from funcnet.spec import Spec

__all__ = ["Rate", "by_matrices", "matrices"]

Rate = float | jax.Array | Callable[[Any], Any]


def matrices(where: str, specs: Any, tables: bool) -> Any:
    """The specs of what is a matrix; `optax.MaskedNode` in place of the others."""
    spec.check(where, specs)
    counted = lambda leaf: isinstance(leaf.matrix, tuple) or (tables and leaf.matrix == "table")
    return jax.tree.map(
        lambda leaf: leaf if counted(leaf) else optax.MaskedNode(), specs, is_leaf=spec.is_spec
    )


def by_matrices(
    where: str,
    rate: Rate,
    specs: Any,
    rule: Callable[[Any], optax.GradientTransformation],
    *,
    tables: bool,
    weight_decay: float,
    b1: float,
    b2: float,
    eps: float,
) -> optax.GradientTransformationExtraArgs:
    """`rule(specs of the matrices)` for matrices, Adam for the rest, decay by role, one rate.

    Args:
        where: who asks.
        rate: the learning rate, or a function of the number of updates before.
        specs: of the params.
        rule: gives what is added for matrices, before decay and rate, and of the sign of the gradient.
        tables: whether tables are matrices, too.
        weight_decay: of matrices and tables, in units of the rate.
        b1: of Adam.
        b2: of Adam.
        eps: of Adam.
    """
    chosen = matrices(where, specs, tables)
    masked = lambda leaf: isinstance(leaf, optax.MaskedNode)
    labels = jax.tree.map(
        lambda leaf: "rest" if masked(leaf) else "matrix",
        chosen,
        is_leaf=lambda leaf: spec.is_spec(leaf) or masked(leaf),
    )
    parts: dict[Hashable, optax.GradientTransformation] = {
        "matrix": rule(chosen),
        "rest": optax.scale_by_adam(b1, b2, eps),
    }
    chained = optax.chain(
        optax.partition(parts, labels),
        optax.add_decayed_weights(weight_decay, mask=spec.decay_mask(specs)),
        optax.scale_by_learning_rate(rate),
    )

    def init(params: Any) -> Any:
        _fits(where, specs, params)
        return chained.init(params)

    return optax.GradientTransformationExtraArgs(init, chained.update)


def _fits(where: str, specs: Any, params: Any) -> None:
    """Refuse specs of another tree."""
    if jax.tree.structure(specs, is_leaf=spec.is_spec) != jax.tree.structure(params):
        raise StructureError(
            f"{where}: specs are those of another tree.",
            path="specs",
            expected=f"the structure of the params, {jax.tree.structure(params)}",
            actual=str(jax.tree.structure(specs, is_leaf=spec.is_spec)),
        )

    def same(path: Any, leaf: Spec, param: Any) -> None:
        if leaf.shape != param.shape:
            name = f"specs{jax.tree_util.keystr(path)}"
            raise ShapeError(
                f"{where}: {name} is of another leaf.",
                path=name,
                expected=describe(param),
                actual=f"a Spec of {leaf.shape}",
            )

    jax.tree.map_with_path(same, specs, params, is_leaf=spec.is_spec)
