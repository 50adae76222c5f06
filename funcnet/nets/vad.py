"""Silero VAD's net: for each frame of samples, whether someone speaks in it.

    context + frame (mirrored at its end) → lengths of its STFT → four convolutions → lstm → relu → one logit

Dimensions: *n any leading axes (batch), t samples, f = ⌈t / frame⌉ frames. A frame of 512 new samples is seen
after the 64 before it; 64 more are its own end, mirrored: four columns of spectra, hop 128, which the strides
2 and 2 make one, a step of the lstm. All before the lstm is one batch over the frames. So the probability of
a frame does not depend on what comes after it.
Source: the ONNX graphs of silero-vad 6.2 (MIT), https://github.com/snakers4/silero-vad; weights by
`hub.silero`.
"""

import dataclasses
import itertools
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from funcnet import rules, taps
from funcnet.errors import ShapeError, StructureError, ValueRangeError, describe
from funcnet.nets import maps
from funcnet.ops import _check
from funcnet.ops._draw import in_one_program
from funcnet.ops.conv import conv
from funcnet.ops.dense import linear
from funcnet.ops.elementwise import relu
from funcnet.ops.recurrent import lstm
from funcnet.ops.sound import magnitude

__all__ = ["Config", "State", "apply", "init", "specs", "step"]

_STRIDES = (1, 2, 2, 1)
# Of one or two columns XLA's convolution on CPU takes three times as long as a product with their patches.
_METHODS = ("auto", "auto", "unfold", "unfold")


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Config:
    """The shape of the model; the defaults are Silero's at 16 kHz.

    Attributes:
        rate: samples a second, in Hz.
        window: samples of a column of spectra, a multiple of 4: frames have twice as many, and a quarter as
            many lie before and, mirrored, behind a frame.
        channels: of the four convolutions.
        hidden: of the lstm.
    """

    rate: int = 16_000
    window: int = 256
    channels: tuple[int, ...] = (128, 64, 64, 128)
    hidden: int = 128

    def __post_init__(self) -> None:
        """Refuse a window without quarters, and other than four convolutions."""
        _check.fields("vad.Config", self)
        for name, wrong, expected in (
            ("window", self.window % 4, "a multiple of 4"),
            ("channels", len(self.channels) != len(_STRIDES), f"{len(_STRIDES)} numbers"),
        ):
            if wrong:
                value = getattr(self, name)
                raise ValueRangeError(
                    f"vad.Config: {name} is {value}.",
                    path=name,
                    expected=f"{name}: {expected}",
                    actual=f"{name} = {value}",
                )

    @property
    def frame(self) -> int:
        """New samples in a frame."""
        return 2 * self.window

    @property
    def context(self) -> int:
        """Samples before a frame that it sees, too."""
        return self.window // 4


class State(TypedDict):
    """What a frame must know of those before it: samples, and the state of the lstm."""

    context: Float[Array, "*n k"]
    h: Float[Array, "*n m"]
    c: Float[Array, "*n m"]


@in_one_program
def init(key: PRNGKeyArray, config: Config) -> dict[str, Any]:
    """{"stft": {"w"}, "encoder": [{"w", "b"}, ...], "lstm": {"w", "u", "b"}, "head": {"w", "b"}}.

    "stft" is drawn from nothing: each column of w is a cosine or, next to it, a negative sine, under a
    periodic Hann window.
    """
    _check.config("vad.init", config, Config)
    _check.key("vad.init", key, none=False)
    size = config.window
    angle = 2 * np.pi * np.outer(np.arange(size), np.arange(size // 2 + 1)) / size
    hann = 0.5 - 0.5 * np.cos(angle[:, 1])
    basis = np.stack([np.cos(angle), -np.sin(angle)], -1).reshape(size, 1, -1) * hann[:, None, None]
    of_lstm, of_head, *keys = jax.random.split(key, 2 + len(_STRIDES))
    sizes = (size // 2 + 1, *config.channels)
    drawn = zip(keys, itertools.pairwise(sizes), strict=True)
    encoder = [conv.init(k, c_in, c_out, kernel=(3,)) for k, (c_in, c_out) in drawn]
    return {
        "stft": {"w": jnp.asarray(basis, encoder[0]["w"].dtype)},
        "encoder": encoder,
        "lstm": lstm.init(of_lstm, config.channels[-1], config.hidden),
        "head": linear.init(of_head, config.hidden, 1),
    }


def apply(
    params: dict[str, Any], samples: Float[Array, "*n t"], config: Config, state: State | None = None
) -> tuple[Float[Array, "*n f"], State]:
    """Logits of the frames: the sigmoid of one is the probability that someone speaks.

    Args:
        params: from `init`, or `hub.silero.load`.
        samples: [*n, t], between −1 and 1, config.rate of them a second; zeros fill up the last frame.
        config: the model's.
        state: what the frames before gave; None at the beginning. So a recording may come in pieces, of
            whole frames each.

    Returns:
        Logits [*n, f], f = ⌈t / frame⌉, and the state after them, with a gradient.

    Raises:
        ShapeError: there are no samples, or a state does not fit them.
        StructureError: params or state lack a part, or there are other than four convolutions.
        DTypeError: samples are not floating-point.
    """
    where = "vad.apply"
    _check.config(where, config, Config)
    samples = _check.floating(where, "samples", samples)
    _check.rank(where, "samples", samples, 1, "*n, t")
    _check.tree(where, params, "stft", "encoder", "lstm", "head")
    layers = _check.layers(where, params, "encoder")
    if len(layers) != len(_STRIDES):
        raise StructureError(
            f'{where}: params["encoder"] has {len(layers)} layers, but there are {len(_STRIDES)}.',
            path='params["encoder"]',
            expected=f'params["encoder"]: a list of {len(_STRIDES)}, one entry per layer',
            actual=f'params["encoder"]: {len(layers)} entries',
        )
    before, carried = _before(where, samples, config, state)
    frames = _frames(before, samples, config)
    x = maps.conv(params["stft"], frames[..., None], stride=config.window // 2, padding="valid")
    x = taps.tap("spectrum", magnitude.apply(_pairs(x)))
    for i, (layer, stride, method) in enumerate(zip(layers, _STRIDES, _METHODS, strict=True)):
        x = relu.apply(maps.conv(layer, x, stride=stride, padding=[(1, 1)], method=method))
        x = taps.tap(f"encoder.{i}", x)
    y, carried = lstm.apply(params["lstm"], x.squeeze(-2), carried)
    logits = maps.linear(params["head"], relu.apply(taps.tap("lstm", y))).squeeze(-1)
    return logits, {"context": frames[..., -1, config.frame : config.frame + config.context], **carried}


def _before(where: str, samples: Array, config: Config, state: Any) -> tuple[Array, Any]:
    """The samples before the first frame, and the state of the lstm."""
    shape = (*samples.shape[:-1], config.context)
    if samples.shape[-1] == 0:
        raise ShapeError(
            f"{where}: there are no samples.",
            path="samples",
            expected="samples: float[*n, t], t > 0",
            actual=f"samples: {describe(samples)}",
        )
    if state is None:
        return jnp.zeros(shape, samples.dtype), None
    _check.tree(where, state, *State.__annotations__, path="state")
    context = _check.floating(where, 'state["context"]', state["context"])
    if context.shape != shape:
        raise ShapeError(
            f'{where}: state["context"] is not the end of what came before samples.',
            path='state["context"]',
            expected=f'state["context"]: float{list(shape)}     (samples: {describe(samples)})',
            actual=f'state["context"]: {describe(context)}',
        )
    return context.astype(samples.dtype), {"h": state["h"], "c": state["c"]}


@rules.by_letters
def _pairs(x: Float[Array, "*n f t c"]) -> Float[Array, "*n f t bins pair"]:
    """Channels as cosines and sines."""
    return x.reshape(*x.shape[:-1], x.shape[-1] // 2, 2)


@rules.by_letters
def _frames(
    before: Float[Array, "*n context"], samples: Float[Array, "*n t"], config: Config
) -> Float[Array, "*n f s"]:
    """Frames [*n, f, context + frame + context] of the context and the samples, each mirrored at its end."""
    samples = jnp.concatenate([before, samples], -1)
    k, size = config.context, config.frame
    rest = -(samples.shape[-1] - k) % size
    samples = jnp.pad(samples, [(0, 0)] * (samples.ndim - 1) + [(0, rest)])
    framed = lambda x: x.reshape(*x.shape[:-1], x.shape[-1] // size, size)
    frames = jnp.concatenate([framed(samples[..., :-k])[..., :k], framed(samples[..., k:])], -1)
    return jnp.concatenate([frames, jnp.flip(frames[..., -1 - k : -1], -1)], -1)


def step(
    params: dict[str, Any], samples: Float[Array, "*n frame"], config: Config, state: State | None = None
) -> tuple[Float[Array, "*n"], State]:
    """One frame of `apply`, for sound that comes as it is spoken: its logit [*n], and the state after it.

    >>> config = Config(window=8, channels=(4, 4, 4, 4), hidden=4)
    >>> params = init(jax.random.key(0), config)
    >>> logit, state = step(params, jnp.ones((3, 16)), config)
    >>> logit, state = step(params, jnp.ones((3, 16)), config, state)
    >>> logit.shape
    (3,)
    """
    _check.config("vad.step", config, Config)
    samples = _check.floating("vad.step", "samples", samples)
    _check.features("vad.step", samples, config.frame, "a frame", path="samples")
    logits, state = apply(params, samples, config, state)
    return logits.squeeze(-1), state


def specs(config: Config) -> dict[str, Any]:
    """The parallel tree of `spec.Spec`."""
    _check.config("vad.specs", config, Config)
    params = jax.eval_shape(lambda: init(jax.random.key(0), config))
    return {
        "stft": conv.specs(params["stft"]),
        "encoder": [conv.specs(layer) for layer in params["encoder"]],
        "lstm": lstm.specs(params["lstm"]),
        "head": linear.specs(params["head"]),
    }
