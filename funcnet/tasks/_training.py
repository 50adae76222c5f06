"""How a task is trained, whatever it is: the options that all tasks have in common."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from funcnet import train
from funcnet.errors import ValueRangeError
from funcnet.tasks import _optimizer
from funcnet.tasks._task import STEPS, check_range

__all__ = [
    "LOSS_SCALE",
    "Timed",
    "Training",
    "batches",
    "by_steps",
    "cast",
    "make_step",
    "optimizer",
    "weights",
]

LOSS_SCALE = 2.0**15  # of float16, in the beginning


@dataclasses.dataclass(frozen=True)
class Training:
    """How to train.

    Attributes:
        optimizer: which one. The learning rates of the tasks are tuned for adamw, and fit adafactor; muon,
            normuon, soap and shampoo like two to four times as much, lion a tenth, sgd ten times.
        schedule: how the learning rate goes on after the warm-up: down along a cosine, or a line; constant;
            or constant with a linear descent in the last fifth (wsd).
        warmup: steps in which the learning rate rises; by default a tenth of all, of chars 100.
        clip: the largest norm of a gradient, over all parameters; a larger one is scaled down to it.
        accumulate: in how many parts, one after the other, a batch is computed, to save memory.
        average: decay of a running average of the parameters, 0.999 say; it is what is scored and saved.
        dtype: to compute in; the parameters stay float32. float16 scales its loss, to begin with by 32768.
        checkpoint_every: steps from one checkpoint to the next; by default there is one at each evaluation.
        minutes: end after so much time, compilation and evaluations included; of chars 3, unless it is given
            its steps.
        tensorboard: write files for TensorBoard, too.
    """

    optimizer: _optimizer.Optimizer = "adamw"
    schedule: _optimizer.Schedule = "cosine"
    warmup: int | None = None
    clip: float | None = None
    accumulate: int = 1
    average: float | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    checkpoint_every: int | None = None
    minutes: float | None = None
    tensorboard: bool = False

    def __post_init__(self) -> None:
        check_range(
            self,
            warmup=(0, STEPS[1]),
            clip=(1e-30, math.inf),
            accumulate=(1, math.inf),
            average=(0, 1 - 2**-24),
            checkpoint_every=STEPS,
            minutes=(0.01, math.inf),
        )

    def check_batch(self, batch: int) -> None:
        """Raise ValueRangeError unless a batch can be taken apart."""
        if batch % self.accumulate:
            raise ValueRangeError(
                f"accumulate is {self.accumulate}, which does not divide a batch of {batch}.",
                path="accumulate",
                expected=f"a divisor of {batch}",
                actual=str(self.accumulate),
            )


def by_steps(training: Training, rate: float, steps: int) -> Callable[[Any], Any]:
    """The learning rate as a function of the number of updates before, for a run of `steps`: down to 0."""
    warmup = steps // 10 if training.warmup is None else training.warmup

    def schedule(count: Any) -> Any:
        count = jnp.asarray(count, jnp.float32)
        done = jnp.maximum(0.0, count - warmup) / max(1, steps - warmup)
        risen = jnp.minimum(1.0, (count + 1) / max(1, warmup))
        return rate * risen * _optimizer.share(training.schedule, done, 0.0, jnp)

    return schedule


def optimizer(
    training: Training, rate: float | Callable[[Any], Any], specs: Any, weight_decay: float
) -> optax.GradientTransformation:
    """The optimizer of a run; see `_optimizer.optimizer`."""
    return _optimizer.optimizer(
        training.optimizer, rate, specs, weight_decay=weight_decay, clip=training.clip
    )


def make_step(loss: Callable[..., Any], optimizer: optax.GradientTransformation, training: Training) -> Any:
    """The step of a run, which measures norms and the learning rate."""
    return train.make_step(loss, optimizer, accumulate=training.accumulate, watch=True)


def cast(training: Training) -> Callable[[PyTree], PyTree]:
    """What is computed in: a function of params or images."""
    if training.dtype == "float32":
        return lambda tree: tree
    return functools.partial(jax.tree.map, lambda leaf: jnp.asarray(leaf, training.dtype))


def weights(state: train.State) -> PyTree:
    """What is scored and saved: the average of the parameters, if there is one."""
    return state.params if state.average is None else state.average


def batches(training: Training, examples: PyTree, options: Any) -> "Timed":
    """The examples of a task, shuffled, for its epochs or its time."""
    every = train.batches(examples, options.batch, seed=options.seed, epochs=options.epochs)
    return Timed(every, training.minutes, time.monotonic)


class Timed:
    """Batches for a time; their position has the time that is used up, so that a resumed run counts it.

    Args:
        batches: with a position.
        minutes: from the first batch on; None: without end.
        clock: in seconds.
    """

    def __init__(self, batches: Any, minutes: float | None, clock: Callable[[], float]) -> None:
        self._batches, self._clock = batches, clock
        self._seconds = math.inf if minutes is None else 60 * minutes
        self._used, self._began = 0.0, None

    @property
    def done(self) -> float:
        """The share of the time that is over."""
        return self._over() / self._seconds

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._began is None:
            self._began = self._clock()
        if self.done >= 1:
            raise StopIteration
        return next(self._batches)

    def position(self) -> dict[str, Any]:
        """Of the batch that comes next."""
        return {"batches": self._batches.position(), "seconds": self._over()}

    def seek(self, position: dict[str, Any]) -> None:
        """Go on at a position."""
        self._batches.seek(position["batches"])
        self._used, self._began = float(position["seconds"]), None

    def _over(self) -> float:
        """The seconds that are over."""
        return self._used + (0.0 if self._began is None else self._clock() - self._began)
