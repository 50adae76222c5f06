"""The optimizers and schedules that a task can be trained with, by name: optax's, and those by matrices."""

import functools
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax.numpy as jnp
import numpy as np
import optax

from funcnet import optim
from funcnet.spec import decay_mask

__all__ = ["OPTIMIZERS", "SCHEDULES", "Optimizer", "Schedule", "optimizer", "share"]

Optimizer = Literal["adamw", "sgd", "lion", "adafactor", "muon", "normuon", "soap", "shampoo"]
Schedule = Literal["cosine", "wsd", "linear", "constant"]
OPTIMIZERS, SCHEDULES = get_args(Optimizer), get_args(Schedule)

_BY_MATRICES = {
    "muon": optim.muon, "normuon": optim.normuon, "soap": optim.soap, "shampoo": optim.shampoo,
}  # fmt: skip
_FALL = 0.2  # of the training, at the end of wsd


def share(schedule: Schedule, done: Any, lowest: float, xp: Any = np) -> Any:
    """The learning rate as a share of its highest, after the warm-up.

    Args:
        schedule: "cosine", "linear", "wsd" (constant, and in the last fifth linear), "constant".
        done: the share of the training that is over, 0 to 1.
        lowest: what is left at the end.
        xp: NumPy, or jax.numpy where `done` is traced.

    >>> [round(float(share("wsd", done, 0.1)), 2) for done in (0.0, 0.8, 0.9, 1.0)]
    [1.0, 1.0, 0.55, 0.1]
    """
    done = xp.clip(done, 0.0, 1.0)
    fall = {
        "cosine": lambda: 0.5 - 0.5 * xp.cos(np.pi * done),
        "linear": lambda: done,
        "wsd": lambda: xp.maximum(0.0, (done - (1 - _FALL)) / _FALL),
        "constant": lambda: 0.0 * done,
    }[schedule]()
    return 1.0 - (1.0 - lowest) * fall


def optimizer(
    name: Optimizer,
    rate: float | Callable[[Any], Any],
    specs: Any,
    *,
    weight_decay: float,
    clip: float | None = None,
) -> optax.GradientTransformation:
    """An optimizer whose state holds the learning rate that it applies, ``opt_state.hyperparams``.

    Args:
        name: "adamw"; "sgd" with Nesterov's momentum of 0.9; "lion"; "adafactor"; or one of `funcnet.optim`,
            for matrices, in steps as large as adamw's, and adamw for the others.
        rate: the learning rate, or a function of the number of updates before.
        specs: of the model's leaves: weight decay, and which are matrices, follow from them.
        weight_decay: of matrices and kernels, in units of the learning rate.
        clip: the largest global norm of a gradient; what is larger is scaled down to it.
    """

    def factory(learning_rate: Any) -> optax.GradientTransformation:
        mask = decay_mask(specs)
        # Those that have no decoupled weight decay of their own get it from here.
        decayed = optax.add_decayed_weights(-learning_rate * weight_decay, mask)
        chosen = {
            "adamw": lambda: optax.adamw(learning_rate, weight_decay=weight_decay, mask=mask),
            "sgd": lambda: optax.chain(optax.sgd(learning_rate, momentum=0.9, nesterov=True), decayed),
            "lion": lambda: optax.lion(learning_rate, weight_decay=weight_decay, mask=mask),
            "adafactor": lambda: optax.chain(
                optax.adafactor(learning_rate, multiply_by_parameter_scale=False), decayed
            ),
            **{
                kind: functools.partial(make, learning_rate, specs, weight_decay=weight_decay)
                for kind, make in _BY_MATRICES.items()
            },
        }[name]()
        return chosen if clip is None else optax.chain(optax.clip_by_global_norm(clip), chosen)

    return optax.inject_hyperparams(factory, hyperparam_dtype=jnp.float32)(learning_rate=rate)
