"""Silero VAD: its published weights for `nets.vad`, and the segments with speech that follow from the frames.

    params, config = fn.hub.silero.load()               # of an installed silero-vad, which is not imported
    logits, state = fn.nets.vad.apply(params, samples, config)

The weights are read from the ONNX files of the package silero-vad (MIT). Of these silero_vad_16k_op15.onnx,
silero_vad.onnx and silero_vad_op18_ifless.onnx hold the same numbers; silero_vad_half.onnx, and beside them
silero_vad_16k.safetensors, are other trainings of the same net, which decide alike but do not give the same
probabilities.
"""

import importlib.util
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from os import PathLike, path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from funcnet import store
from funcnet._safetensors import path_text, refusal
from funcnet.errors import DTypeError, MissingExtraError, describe
from funcnet.hub import onnx, recurrent
from funcnet.hub.files import read_safetensors
from funcnet.nets import vad
from funcnet.ops import _check

__all__ = ["Segment", "load", "segments"]


# --- weights ----------------------------------------------------------------------------------------------

_FILE = "silero_vad_16k_op15.onnx"
_NAMES = {  # those of the ONNX files, below a prefix, and of the safetensors file
    "stft.forward_basis_buffer": "stft_conv.weight",
    **{
        f"encoder.{i}.reparam_conv.{part}": f"conv{i + 1}.{part}"
        for i in range(4)
        for part in ("weight", "bias")
    },
    **{
        f"decoder.rnn.{part}": f"lstm_cell.{part}"
        for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    },
    "decoder.decoder.2.weight": "final_conv.weight",
    "decoder.decoder.2.bias": "final_conv.bias",
}


def load(weights: str | PathLike[str] | None = None) -> tuple[dict[str, Any], vad.Config]:
    """The published weights, or one's own, as params of `nets.vad`.

    Args:
        weights: an ONNX file of silero-vad, its safetensors file, or what `fn.save` wrote of such params;
            None: silero_vad_16k_op15.onnx of the installed silero-vad, which is found and not imported.

    Returns:
        Params, in float32, and the config of the net at 16 kHz.

    Raises:
        MissingExtraError: silero-vad is not installed, and no file is given.
        FileFormatError: the file is damaged, or does not hold these weights.
        StructureError: the file holds other params.
        OSError: the file is missing or cannot be read.
    """
    config = vad.Config()
    source = _installed() if weights is None else path_text("hub.silero.load", "weights", weights)
    if source.endswith(".safetensors"):
        named = read_safetensors(source)
        if _NAMES["decoder.rnn.weight_ih"] not in named:
            shapes = jax.eval_shape(lambda: vad.init(jax.random.key(0), config))
            own = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), shapes)
            return store.load(source, own), config
        named = {ours: named[theirs] for ours, theirs in _NAMES.items() if theirs in named}
    else:
        named = _of_one_net(onnx.tensors(source))
    return _params(named, source, config), config


def _installed() -> str:
    """The file in the installed package; to look for it imports nothing."""
    spec = importlib.util.find_spec("silero_vad")
    found = spec and spec.origin and path.join(path.dirname(spec.origin), "data", _FILE)
    if not found or not path.isfile(found):
        raise MissingExtraError(
            "the weights of silero-vad are not here.",
            path="weights",
            hint=f"pip install --no-deps silero-vad, or say where {_FILE} lies.",
        )
    return found


def _params(named: dict[str, np.ndarray], source: str, config: vad.Config) -> dict[str, Any]:
    """Params of the tensors by their names."""
    shapes = {
        "stft.forward_basis_buffer": (config.window + 2, 1, config.window),
        **{f"decoder.rnn.weight_{part}": (4 * config.hidden, config.hidden) for part in ("ih", "hh")},
        **{f"decoder.rnn.bias_{part}": (4 * config.hidden,) for part in ("ih", "hh")},
        "decoder.decoder.2.weight": (1, config.hidden, 1),
        "decoder.decoder.2.bias": (1,),
    }
    sizes = (config.window // 2 + 1, *config.channels)
    for i, (c_in, c) in enumerate(itertools.pairwise(sizes)):
        shapes |= {f"encoder.{i}.reparam_conv.weight": (c, c_in, 3), f"encoder.{i}.reparam_conv.bias": (c,)}
    for name, shape in shapes.items():
        tensor = named.get(name)
        if tensor is None or tensor.shape != shape or tensor.dtype != np.float32:
            raise refusal(
                source,
                f"this does not hold Silero VAD at {config.rate:,} Hz.",
                name,
                expected=f"{name}: float32{list(shape)}",
                actual="no such tensor" if tensor is None else f"{name}: {tensor.dtype}{list(tensor.shape)}",
                hint=f"silero-vad's file for that is {_FILE}." if tensor is None else None,
            )
    conv = lambda name: {
        "w": named[f"{name}.weight"].transpose(2, 1, 0),
        "b": named[f"{name}.bias"],
    }
    # Real and imaginary parts, one half after the other, become pairs.
    stft = named["stft.forward_basis_buffer"].reshape(2, -1, config.window).transpose(2, 1, 0)
    cells = {part: named[f"decoder.rnn.{part}"] for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    params = {
        "stft": {"w": stft.reshape(config.window, 1, -1)},
        "encoder": [conv(f"encoder.{i}.reparam_conv") for i in range(len(config.channels))],
        "lstm": recurrent.from_arrays("lstm", "torch", cells),
        "head": {
            "w": named["decoder.decoder.2.weight"][..., 0].T,
            "b": named["decoder.decoder.2.bias"],
        },
    }
    return jax.tree.map(jnp.asarray, params)


def _of_one_net(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of `_NAMES` below one prefix; of two nets, the one at 16 kHz."""
    nets: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in tensors.items():
        for known in _NAMES:
            if name == known or name.endswith((f".{known}", f"__{known}")):
                nets.setdefault(name.removesuffix(known), {})[known] = tensor
    first = "stft.forward_basis_buffer"
    wide = [net for net in nets.values() if first in net and len(net[first]) > 200]
    return next(iter([*wide, *nets.values(), {}]))


# --- segments ---------------------------------------------------------------------------------------------


class Segment(NamedTuple):
    """Someone speaks, from one sample up to another."""

    start: int
    end: int


def segments(
    probabilities: Iterable[float] | Float[np.ndarray, " f"],
    samples: int | Callable[[], int],
    *,
    rate: int = 16_000,
    frame: int = 512,
    threshold: float | int = 0.5,
    neg_threshold: float | int | None = None,
    min_speech_duration_ms: float | int = 250,
    max_speech_duration_s: float | int = math.inf,
    min_silence_duration_ms: float | int = 100,
    speech_pad_ms: float | int = 30,
    min_silence_at_max_speech: float | int = 98,
    use_max_poss_sil_at_max_speech: bool = True,
) -> Iterator[Segment]:
    """The segments with speech, by the rules and options of silero-vad's get_speech_timestamps.

    They are lazy: each is given as soon as no later frame can change it, so that probabilities may be those
    of sound that goes on.

    Args:
        probabilities: of each frame, that someone speaks in it.
        samples: how many there are, or a function that is asked for it after the last frame.
        rate: samples a second.
        frame: samples in a frame.
        threshold: speech begins where the probability is this or more.
        neg_threshold: it may end where the probability is below this; None: 0.15 less than threshold, and
            0.01 at least.
        min_speech_duration_ms: shorter ones are left out.
        max_speech_duration_s: longer ones are cut, at a silence if there is one.
        min_silence_duration_ms: speech ends where it is silent for so long.
        speech_pad_ms: by how much segments are made longer at both ends, if there is room.
        min_silence_at_max_speech: of a silence, in ms, at which a longer one may be cut.
        use_max_poss_sil_at_max_speech: cut at the longest silence, not at the last.

    Raises:
        DTypeError: an option is no number; later, a probability is none.
        ValueRangeError: an option is negative.

    >>> [*segments([0.1] * 10 + [0.9] * 20 + [0.1] * 10, 20_000)]
    [Segment(start=4640, end=15840)]
    """
    where = "hub.silero.segments"
    rate, frame = _check.positive(where, "rate", rate), _check.positive(where, "frame", frame)
    if not callable(samples):
        samples = _check.positive(where, "samples", samples, least=0)
    number = lambda name, value: _check.number(where, name, value) * rate
    high = _check.number(where, "threshold", threshold)
    low = max(high - 0.15, 0.01) if neg_threshold is None else neg_threshold
    pad = number("speech_pad_ms", speech_pad_ms) / 1000
    longest = math.inf
    if not (isinstance(max_speech_duration_s, float) and max_speech_duration_s == math.inf):
        longest = number("max_speech_duration_s", max_speech_duration_s) - frame - 2 * pad
    found = _spoken(
        _numbers(where, probabilities),
        frame,
        high,
        _check.number(where, "neg_threshold", low),
        shortest := number("min_speech_duration_ms", min_speech_duration_ms) / 1000,
        longest,
        number("min_silence_duration_ms", min_silence_duration_ms) / 1000,
        number("min_silence_at_max_speech", min_silence_at_max_speech) / 1000,
        _check.flag(where, "use_max_poss_sil_at_max_speech", use_max_poss_sil_at_max_speech),
    )
    return _padded(found, samples, frame, shortest, pad)


def _numbers(where: str, probabilities: Any) -> Iterator[float]:
    """The probabilities as Python's numbers, one by one."""
    try:
        iterator = iter(probabilities)
    except TypeError as error:
        raise _no_numbers(where, probabilities) from error
    for probability in iterator:
        try:
            number = float(probability)
        except (TypeError, ValueError) as error:
            raise _no_numbers(where, probability) from error
        yield number


def _no_numbers(where: str, given: Any) -> DTypeError:
    return DTypeError(
        f"{where}: probabilities are not numbers, one after the other.",
        path="probabilities",
        expected="probabilities: floats, as of an array [f]",
        actual=describe(given),
    )


def _spoken(
    probabilities: Iterator[float],
    frame: int,
    high: float,
    low: float,
    shortest: float,
    longest: float,
    silence: float,
    silence_to_cut: float,
    at_longest_silence: bool,
) -> Iterator[tuple[list[Segment], int | None]]:
    """After each frame: the segments that it has ended, and the start of the one that goes on, if one does.

    `quiet` is since when the probability is low; `silences` are those, by start and length, where the segment
    may be cut; `cut` and `heard` are the last of them, and where it ended, if it did.
    """
    start: int | None = None
    quiet = cut = heard = 0
    silences: list[tuple[int, int]] = []
    for i, probability in enumerate(probabilities):
        at, ended = frame * i, []
        if probability >= high and quiet:
            if at - quiet > silence_to_cut:
                silences.append((quiet, at - quiet))
            quiet, heard = 0, at if heard < cut else heard
        if probability >= high and start is None:
            start = at
        elif start is not None:
            if at - start > longest:
                end, then = at, None
                if at_longest_silence and silences:
                    end, length = max(silences, key=lambda silence: silence[1])
                    then = end + length
                elif cut:
                    end, then = cut, None if heard < cut else heard
                ended.append(Segment(start, end))
                start, quiet, cut, heard, silences = then, 0, 0, 0, []
            if start is not None and probability < low:
                quiet = quiet or at
                if not at_longest_silence and at - quiet > silence_to_cut:
                    cut = quiet
                if at - quiet >= silence:
                    if quiet - start > shortest:
                        ended.append(Segment(start, quiet))
                    start, quiet, cut, heard, silences = None, 0, 0, 0, []
        yield ended, start


def _padded(
    found: Iterator[tuple[list[Segment], int | None]],
    samples: int | Callable[[], int],
    frame: int,
    shortest: float,
    pad: float,
) -> Iterator[Segment]:
    """Segments made longer by `pad`, or by half of the silence between two; each as soon as that is known."""
    before: Segment | None = None  # the last one: its start as it is given, its end as it was found
    waits = False  # whether it is still to be given
    start, at = None, 0

    def after(segment: Segment) -> Iterator[Segment]:
        nonlocal before, waits
        silence = math.inf if before is None else segment.start - before.end
        share = pad if silence >= 2 * pad else silence // 2
        if before is not None and waits:
            yield Segment(before.start, int(before.end + share))
        before, waits = Segment(int(max(0, segment.start - share)), segment.end), True

    for ended, start in found:
        for segment in ended:
            yield from after(segment)
        if before is not None and waits and (at if start is None else start) - before.end >= 2 * pad:
            yield Segment(before.start, int(before.end + pad))
            waits = False
        at += frame
    total = samples() if callable(samples) else samples
    if start is not None and total - start > shortest:
        yield from after(Segment(start, total))
    if before is not None and waits:
        yield Segment(before.start, int(min(total, before.end + pad)))
