"""A convolutional recurrent net for sound: convolutions over time and bands, then layers that read both ways.

x [*n, t, d] is a spectrogram, t frames of d bands. A stage is a convolution of 3 x 3 with a rectifier, and
max pooling, which merges frames and bands. What is left of the bands, with its channels, are the features of
a step, which the recurrence reads. The answer is one for the sequence, from the mean of its steps, or one for
each step, which `ctc` aligns with a text. Padding has no influence: it is 0 before each convolution, as
beyond the border.
Source: Shi, Bai and Yao, "An end-to-end trainable neural network for image-based sequence recognition",
arXiv 1507.05717.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from funcnet import rules, taps
from funcnet.errors import ShapeError, StructureError, describe
from funcnet.nets import maps, recurrent
from funcnet.ops import _check
from funcnet.ops._draw import in_one_program
from funcnet.ops.conv import conv, max_pool
from funcnet.ops.dense import linear
from funcnet.ops.elementwise import relu
from funcnet.ops.random import dropout

__all__ = ["Config", "apply", "init", "specs", "steps"]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Config:
    """The shape of the model.

    Attributes:
        d: bands of a frame.
        classes: number of outputs.
        channels: of each stage; none: the recurrence reads the frames.
        pools: of each stage, how many frames and bands become one.
        hidden: of the state of a cell.
        layers: of the recurrence, each read both ways; 0: the steps are answered as they stand.
        cell: which operation a layer is.
        pooled: one answer for the sequence; else one for each step.
        dropout: rate before the recurrence, between its layers and before the head, in training.
        padding: where no mask is given, a frame of which all bands are this number is padding; None: none is.
    """

    d: int
    classes: int
    channels: tuple[int, ...] = (16, 32)
    pools: tuple[tuple[int, int], ...] = ((1, 2), (2, 2))
    hidden: int = 64
    layers: int = 1
    cell: Literal["gru", "lstm", "rnn"] = "gru"
    pooled: bool = True
    dropout: float = 0.0
    padding: float | None = None

    def __post_init__(self) -> None:
        where = "crnn.Config"
        _check.fields(where, self, least={"layers": 0})
        _check.rate(where, "dropout", self.dropout)
        if len(self.pools) != len(self.channels) or not _bands(self):
            raise ShapeError(
                f"{where}: the pools do not fit.",
                path="pools",
                expected=f"pools: {len(self.channels)} pairs, one for each entry of channels, that leave one "
                f"of the {self.d} bands",
                actual=f"pools: {self.pools}",
            )


def _bands(config: Config) -> int:
    """What is left of the bands."""
    left = config.d
    for _, bands in config.pools:
        left //= bands
    return left


def _read(config: Config) -> int:
    """Features of a step, before the recurrence."""
    return _bands(config) * (config.channels[-1] if config.channels else 1)


def _recurrence(config: Config) -> recurrent.Config:
    return recurrent.Config(
        _read(config),
        config.hidden,
        layers=config.layers,
        cell=config.cell,
        bidirectional=True,
        dropout=config.dropout,
    )


def steps(frames: Any, config: Config) -> Any:
    """How many steps become of so many frames, a number or an array.

    >>> steps(7, Config(40, 2, pools=((2, 1), (2, 2))))
    2
    """
    for merged, _ in config.pools:
        frames = -(-frames // merged)
    return frames


@in_one_program
def init(key: PRNGKeyArray, config: Config) -> dict[str, Any]:
    """{"stages": [{"w", "b"}, ...], "recurrent": as of `recurrent`, unless there are no layers, "head"}.

    >>> params = init(jax.random.key(0), Config(d=40, classes=4))
    >>> [stage["w"].shape for stage in params["stages"]], params["head"]["w"].shape
    ([(3, 3, 1, 16), (3, 3, 16, 32)], (128, 4))
    """
    _check.config("crnn.init", config, Config)
    _check.key("crnn.init", key, none=False)
    key_stages, key_recurrent, key_head = jax.random.split(key, 3)
    sizes = zip((1, *config.channels), config.channels, strict=False)
    keys = jax.random.split(key_stages, len(config.channels)) if config.channels else []
    params: dict[str, Any] = {
        "stages": [conv.init(k, a, b, kernel=(3, 3)) for k, (a, b) in zip(keys, sizes, strict=True)]
    }
    features = _read(config)
    if config.layers:
        params["recurrent"] = recurrent.init(key_recurrent, _recurrence(config))
        features = 2 * config.hidden
    return params | {"head": linear.init(key_head, features, config.classes)}


def apply(
    params: dict[str, Any],
    x: Float[Array, "*n t d"],
    config: Config,
    *,
    mask: Bool[Array, "*n t"] | None = None,
    key: PRNGKeyArray | None = None,
) -> Float[Array, "*n_and_s classes"]:
    """Logits of sequences, or of their steps.

    Args:
        params: from `init`.
        x: [*n, t, d].
        config: the model's.
        mask: boolean [*n, t], True for the frames of a sequence, which come first; the others are padding,
            which may hold anything. None: as `config.padding` says.
        key: for dropout; None in evaluation.

    Returns:
        [*n, classes]; or [*n, s, classes], s = `steps` of t, if `config.pooled` is False. A sequence of no
        frame has the logits of the head's bias.

    Raises:
        ShapeError: x does not have the bands of config, or the mask does not fit.
        DTypeError: an array is not floating-point, or the mask not boolean.
    """
    where = "crnn.apply"
    _check.config(where, config, Config)
    x = _check.floating(where, "x", x)
    _check.rank(where, "x", x, 2, "[*n, t, d]")
    _check.features(where, x, config.d, "config.d", dims="*n, t")
    _check.tree(where, params, "stages", "head", *(["recurrent"] if config.layers else []))
    if mask is not None:
        hint = "True marks the frames of a sequence, one for each frame of x."
        mask = _check.mask(where, mask, x, "frame", dtype_hint=None, shape_hint=hint)
    elif config.padding is not None:
        mask = (x != config.padding).any(-1)
    first = between = last = None
    if key is not None:
        _check.key(where, key)
        first, between, last = jax.random.split(key, 3)
    x = _zeroed(x, mask)[..., None]
    for i, (layer, pool) in enumerate(
        zip(_stages(where, params["stages"], config), config.pools, strict=True)
    ):
        x = taps.tap(f"stages.{i}", _zeroed(relu.apply(maps.conv(layer, x)), mask))
        x, mask = _pooled(x, mask, pool)
    x = dropout.apply(_flat(x), rate=config.dropout, key=first)
    if config.layers:
        x, _ = recurrent.apply(params["recurrent"], x, _recurrence(config), mask=mask, key=between)
    if config.pooled:
        x = _mean(x, mask)
    x = taps.tap("features", x)
    return maps.linear(params["head"], dropout.apply(x, rate=config.dropout, key=last))


def _stages(where: str, stages: Any, config: Config) -> Any:
    if isinstance(stages, list | tuple) and len(stages) == len(config.channels):
        return stages
    raise StructureError(
        f'{where}: params["stages"] is not a list of as many stages as config has.',
        path='params["stages"]',
        expected=f'params["stages"]: a list of {len(config.channels)}     (config.channels)',
        actual='params["stages"]: '
        + (f"{len(stages)} entries" if isinstance(stages, list | tuple) else describe(stages)),
    )


def _zeroed(x: Array, mask: Array | None) -> Array:
    """x [*n, t, ...] with 0 where there is padding."""
    if mask is None:
        return x
    return jnp.where(jnp.expand_dims(mask, range(mask.ndim, x.ndim)), x, 0)


def _pooled(x: Array, mask: Array | None, pool: tuple[int, int]) -> tuple[Array, Array | None]:
    """Windows of frames and bands from the first on; frames that a window lacks count as 0, x being ≥ 0."""
    if pool == (1, 1):
        return x, mask
    merged = pool[0]
    lacking = -x.shape[-3] % merged
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 3) + [(0, lacking), (0, 0), (0, 0)])
    return max_pool.apply(x, kernel=pool), None if mask is None else mask[..., ::merged]


@rules.by_letters
def _flat(x: Float[Array, "*n s c"]) -> Float[Array, "*n k"]:
    """The channels of all bands of a frame as its features."""
    return x.reshape(*x.shape[:-2], -1)


def _mean(x: Array, mask: Array | None) -> Array:
    if mask is None:
        return x.mean(-2)
    count = jnp.maximum(mask.sum(-1, dtype=jnp.int32), 1)[..., None]
    return _zeroed(x, mask).sum(-2) / count.astype(x.dtype)


def specs(config: Config) -> dict[str, Any]:
    """The parallel tree of `spec.Spec`."""
    _check.config("crnn.specs", config, Config)
    params = jax.eval_shape(lambda: init(jax.random.key(0), config))
    found: dict[str, Any] = {"stages": [conv.specs(layer) for layer in params["stages"]]}
    if config.layers:
        found["recurrent"] = recurrent.specs(_recurrence(config))
    return found | {"head": linear.specs(params["head"])}
