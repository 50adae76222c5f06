"""What is not finite: found in a state, told from what may be, and said."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from funcnet._held import held
from funcnet.errors import FuncnetError, ValueRangeError
from funcnet.train import gradient
from funcnet.train.agreement import Peers
from funcnet.train.history import History
from funcnet.train.state import State, step_key

__all__ = ["NonFiniteError", "non_finite", "refused", "spoilt", "thawed", "too_many"]


class NonFiniteError(FuncnetError, ArithmeticError):
    """A loss or a gradient, or what the last step left, was infinite or not a number.

    Attributes:
        step: the number of the step, the first being 1.
        batch: its batch.
        state: with a guarded step exactly what that step left: all but the counts is as before the first
            fault. With another one the newest, which the fault may have spoilt.
        history: the records up to the fault.
        loss: that of the step, or None.
    """

    def __init__(self, problem: str, *, step: int, batch: PyTree, path: str = "loss", **details: str):
        super().__init__(problem, path=path, **details)
        self.step, self.batch = step, batch
        self.state: State | None = None
        self.history = History()
        self.loss: Callable[..., Any] | None = None

    def explain(self) -> Any:
        """The first operation that made a NaN or an infinity of finite numbers, or None.

        Runs loss and gradient again, equation by equation, on the batch and the state at hand.
        """
        from funcnet.nonfinite import find_nan

        if self.loss is None or self.state is None:
            return None
        state = self.state._replace(step=jnp.asarray(self.step - 1, jnp.int32))  # what the step drew

        def value(params: PyTree, model_state: PyTree, batch: PyTree) -> Any:
            return gradient.value(self.loss, params, model_state, batch, step_key(state))

        return find_nan(jax.value_and_grad(value), state.params, state.model_state, self.batch)


def thawed(step: Any, state: State) -> State:
    """The state; with its faults forgotten where there were so many that no step would do anything."""
    most = getattr(step, "max_skipped", None)
    if most is None or state.faults is None or int(state.faults) < most:
        return state
    return state._replace(faults=jnp.zeros_like(state.faults))


def spoilt(state: State, peers: Peers) -> tuple[str, str] | None:
    """The first leaf with a NaN or an infinity, and which of the two it has; on all processes the same.

    Some begin with an infinity, and that is right: of the model state, such as a running minimum, only a NaN
    counts; and of the optimizer's, a number by itself does not, such as the best loss so far.
    """
    leaves = jax.tree_util.tree_leaves_with_path(state)
    found = next((mark for mark in enumerate(map(_fault, *zip(*leaves, strict=True))) if mark[1]), None)
    # The earliest leaf is the largest number: each process looks at what it holds.
    mine = 0 if found is None else 2 * (len(leaves) - found[0]) + (found[1] == "nan")
    said = peers.agree(spoilt=mine).spoilt
    if not said:
        return None
    path, _ = leaves[len(leaves) - said // 2]
    return f"state{jax.tree_util.keystr(path)}", "nan" if said % 2 else "inf"


def _fault(path: Any, leaf: Any) -> str | None:
    """What a leaf of the state has that it must not have, of the numbers that this process holds."""
    if not jnp.issubdtype(leaf.dtype, jnp.inexact) or np.isfinite(values := held(leaf)).all():
        return None
    name, kind = f"state{jax.tree_util.keystr(path)}", "nan" if np.isnan(values).any() else "inf"
    at_will = name.startswith("state.opt_state") and not leaf.shape
    return kind if not at_will and (kind == "nan" or not name.startswith("state.model_state")) else None


def refused(path: str, kind: str) -> ValueRangeError:
    """The error of a state that is not finite when it is given."""
    return ValueRangeError(
        f"train.fit: {path} is not finite already.", path=path, expected="finite numbers", actual=kind
    )


def non_finite(number: int, path: str, value: float | str, batch: PyTree) -> NonFiniteError:
    """The error of step `number`."""
    where = f"the loss of step {number}" if path == "loss" else f"{path} after step {number}"
    return NonFiniteError(
        f"train.fit: {where} is {value}.",
        path=path,
        step=number,
        batch=batch,
        expected="a finite loss" if path == "loss" else "finite numbers",
        actual=str(value),
        hint="error.explain() names the operation; with guard=True in make_step such a step changes nothing",
    )


def too_many(number: int, skipped: int, batch: PyTree) -> NonFiniteError:
    """The error of a guarded step that was skipped once too often."""
    return NonFiniteError(
        f"train.fit: {skipped} steps in a row were not finite, step {number} the last of them.",
        path="gradient",
        step=number,
        batch=batch,
        expected="a finite loss and gradient",
        actual="nan or inf",
        hint="error.state is the state before them; error.explain() names the operation",
    )
