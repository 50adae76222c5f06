"""Facts about the leaves of a model, in a tree of the same structure as its params.

The params stay bare arrays; what optimizers, shardings and tables want to know lies beside them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from funcnet.errors import DTypeError
from funcnet.errors import describe as describe_value

__all__ = ["Spec", "decay_mask", "describe"]


@dataclasses.dataclass(frozen=True)
class Spec:
    """What one leaf is.

    Attributes:
        shape: its shape.
        dtype: its dtype.
        axes: a name for each axis; "layers" for the axis of a stack of blocks.
        decay: whether weight decay applies: to matrices and kernels, not to biases and gains.
    """

    shape: tuple[int, ...]
    dtype: Any
    axes: tuple[str, ...]
    decay: bool


def describe(init: Callable[..., Any], config: Any, axes: Any) -> Any:
    """The tree of `Spec` of ``init(key, config)``, nothing computed.

    Args:
        init: ``(key, config) -> params``.
        config: a model's Config.
        axes: a tree like params, with "a b c" in place of each leaf: the names of its axes. A leaf decays
            if it is a "w" with two axes or more besides "layers": a stack of gains has rank 2, a bias of
            attention heads too, and neither is a matrix.
    """
    params = jax.eval_shape(lambda: init(jax.random.key(0), config))

    def spec(path: Any, leaf: Any, text: str) -> Spec:
        names = tuple(text.split())
        is_matrix = path[-1].key == "w" and len([n for n in names if n != "layers"]) >= 2
        return Spec(leaf.shape, leaf.dtype, names, decay=is_matrix)

    return jax.tree.map_with_path(spec, params, axes)


def decay_mask(specs: Any) -> Any:
    """True where weight decay applies: ``optax.adamw(1e-3, mask=decay_mask(specs(config)))``."""
    is_spec = lambda v: isinstance(v, Spec)
    for leaf in jax.tree.leaves(specs, is_leaf=is_spec):
        if not is_spec(leaf):
            raise DTypeError(
                "spec.decay_mask: specs holds what is no Spec.",
                path="specs",
                expected="specs: those of a net, specs(config)",
                actual=describe_value(leaf),
            )
    return jax.tree.map(lambda s: s.decay, specs, is_leaf=is_spec)
