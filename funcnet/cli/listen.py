"""`funcnet listen FILE...`: where someone speaks in recordings, by Silero's net; `-` listens as it comes."""

import dataclasses
import functools
import io
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, cast

import numpy as np
import tyro

from funcnet.cli import UsageError
from funcnet.cli._options import files, parse
from funcnet.cli._text import heading

if TYPE_CHECKING:
    from funcnet.hub.silero import Segment

__all__ = ["run"]

_BLOCK = 256  # frames of a file that are computed at once: 8 s
_DRAWN = 20  # recordings in a picture, at most
_COLUMNS = 1200  # of a spectrogram, at most
_FORMATS = {b"RIFF": "wav", b"fLaC": "flac", b"OggS": "ogg", b"ID3": "mp3", b"FORM": "aiff"}


@dataclasses.dataclass(frozen=True)
class Options:
    """Print the segments of recordings in which someone speaks, by Silero VAD.

    The options from --threshold on are those of silero-vad's get_speech_timestamps, with its defaults, and so
    are the segments. `-` reads samples from standard input, 16 bits each with the low byte first, and prints
    each segment as soon as it is over:

    arecord -q -f S16_LE -r 16000 | funcnet listen -

    Attributes:
        recordings: files of sound, of any format, rate and channels; or - alone.
        rate: of -, samples a second; 16000 if it is not given.
        channels: of -, which are mixed; 1 if it is not given.
        weights: an ONNX file of silero-vad, or a .safetensors file of one's own; by default those of the
            installed package silero-vad.
        json: write the segments, in samples at 16 kHz and in seconds, into this file.
        html: write a page into this file: waveform, spectrogram, probabilities and segments.
        png: the picture alone.
        threshold: speech begins where its probability is this or more.
        neg_threshold: it may end where the probability is below this; by default 0.15 less than --threshold.
        min_speech_duration_ms: shorter segments are left out.
        max_speech_duration_s: longer ones are cut, at a silence if there is one.
        min_silence_duration_ms: a segment ends where it is silent for so long.
        speech_pad_ms: by how much a segment is made longer at both ends.
        min_silence_at_max_speech: of a silence in ms at which a segment that is too long may be cut.
        use_max_poss_sil_at_max_speech: cut it at the longest silence, not at the last.
        time_resolution: digits of seconds.
    """

    recordings: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE", name="FILE")]
    rate: Annotated[int | None, tyro.conf.arg(metavar="HZ")] = None
    channels: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    weights: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    html: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    png: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    threshold: float = 0.5
    neg_threshold: float | None = None
    min_speech_duration_ms: float = 250.0
    max_speech_duration_s: float = math.inf
    min_silence_duration_ms: float = 100.0
    speech_pad_ms: float = 30.0
    min_silence_at_max_speech: float = 98.0
    use_max_poss_sil_at_max_speech: Annotated[bool, tyro.conf.FlagConversionOff] = True
    time_resolution: int = 2


_OF_SEGMENTS = [field.name for field in dataclasses.fields(Options)][7:-1]


class Heard(NamedTuple):
    """A recording, and what was heard in it.

    Attributes:
        name: of the file.
        rate: of the file, in Hz.
        channels: of the file.
        samples: of one channel at the rate of the net, or none if nothing is drawn.
        total: how many there are.
        probabilities: of speech, one for each frame.
        segments: with speech, in those samples.
    """

    name: str
    rate: int
    channels: int
    samples: np.ndarray
    total: int
    probabilities: np.ndarray
    segments: list["Segment"]


class Net(NamedTuple):
    """Probabilities of samples and a state, and that of the beginning."""

    run: Callable[[Any, Any], Any]
    state: Any
    frame: int
    rate: int


def run(args: list[str]) -> int:
    """The command."""
    asked = parse(Options, args, "funcnet listen")
    _check(asked)
    from funcnet import recordings
    from funcnet.hub import silero

    options = {name: getattr(asked, name) for name in _OF_SEGMENTS}
    silero.segments([], 0, **options)  # before any work is done for them
    interrupted, live = False, asked.recordings == ("-",)
    for name in () if live else asked.recordings:
        recordings.about(name)
    net = _net(asked.weights)
    if live:
        heard, interrupted = _live(asked, net, options)
        found = [heard]
    else:
        found = [_heard(name, asked, net, options) for name in asked.recordings]
    if asked.json is not None:
        content = _json(asked, found, net, options)
        asked.json.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", "utf-8")
        print(f"the segments are in {asked.json}")
    if asked.png is not None:
        _picture(asked.png, found, asked, net)
        print(f"the picture is in {asked.png}")
    if asked.html is not None:
        asked.html.write_text(_html(found, asked, net), "utf-8", "backslashreplace")
        print(f"the page is in {asked.html}")
    if interrupted:
        raise KeyboardInterrupt
    return 0


def _check(asked: Options) -> None:
    """Refuse what cannot be done before any work is done for it."""
    for path, suffix in ((asked.json, ".json"), (asked.html, ".html"), (asked.png, ".png")):
        files(path, suffixes=(suffix,), command="funcnet listen")
    if not asked.recordings:
        raise UsageError("listen takes recordings: FILE ..., or - (funcnet listen --help)")
    if "-" in asked.recordings:
        if len(asked.recordings) > 1:
            raise UsageError("- stands alone: no FILE goes with it (funcnet listen --help)")
        if sys.stdin is None or sys.stdin.isatty():
            raise UsageError("- reads samples from a pipe, but standard input is a terminal")
        if asked.channels is not None and not 1 <= asked.channels <= 1024:
            raise UsageError(f"--channels is {asked.channels}: expected 1 to 1024")
    elif asked.rate is not None or asked.channels is not None:
        raise UsageError("--rate and --channels are for -: a file says them itself (funcnet listen --help)")
    if not 0 <= asked.time_resolution <= 6:
        raise UsageError(f"--time-resolution is {asked.time_resolution}: expected 0 to 6 digits")
    if (asked.png or asked.html) and len(asked.recordings) > _DRAWN:
        raise UsageError(f"{len(asked.recordings)} recordings: a picture has room for {_DRAWN}")


@functools.cache
def _program() -> Callable[..., Any]:
    """Compiled once for each length of sound, whatever the weights are."""
    import jax

    from funcnet.nets import vad

    @jax.jit
    def run(params: Any, config: vad.Config, samples: Any, state: Any) -> Any:
        logits, state = vad.apply(params, samples, config, state)
        return jax.nn.sigmoid(logits), state

    return run


def _net(weights: Path | None) -> Net:
    import jax.numpy as jnp

    from funcnet.hub import silero

    params, config = silero.load(weights)
    zeros = {"context": config.context, "h": config.hidden, "c": config.hidden}
    state = {name: jnp.zeros(size, jnp.float32) for name, size in zeros.items()}
    return Net(functools.partial(_program(), params, config), state, config.frame, config.rate)


# ---- files ------------------------------------------------------------------------------------------------


def _heard(name: str, asked: Options, net: Net, options: dict[str, Any]) -> Heard:
    """Read a file, listen to it, and say where there is speech."""
    from funcnet import recordings
    from funcnet.hub import silero

    about = recordings.about(name)
    _begin(name, about.rate, about.channels, f"{about.seconds:,.2f} s")
    samples = recordings.read(name, net.rate)
    probabilities = _probabilities(samples, net)
    total, segments = len(samples), []
    for segment in silero.segments(probabilities.tolist(), total, rate=net.rate, frame=net.frame, **options):
        segments.append(segment)
        _said(segment, asked, net)
    heard = Heard(
        name,
        about.rate,
        about.channels,
        samples if asked.png or asked.html else samples[:0],
        total,
        probabilities,
        segments,
    )
    _end(heard, net)
    return heard


def _probabilities(samples: np.ndarray, net: Net) -> np.ndarray:
    """Of each frame; in blocks of one size, so that one program does for all files."""
    found, state, size = [], net.state, _BLOCK * net.frame
    for start in range(0, len(samples), size):
        block = samples[start : start + size]
        p, state = net.run(np.pad(block, (0, size - len(block))), state)
        found.append(np.asarray(p)[: -(-len(block) // net.frame)])
    return np.concatenate(found)


# ---- standard input ---------------------------------------------------------------------------------------


def _live(asked: Options, net: Net, options: dict[str, Any]) -> tuple[Heard, bool]:
    """Listen to standard input until it ends, or Ctrl-C; print each segment when it is over."""
    from funcnet import recordings
    from funcnet.hub import silero

    rate, channels = 16_000 if asked.rate is None else asked.rate, asked.channels or 1
    resample = recordings.resampler(rate, net.rate)
    net.run(np.zeros(net.frame, np.float32), net.state)  # compiled before the first sample comes
    _begin("standard input", rate, channels, "each segment when it is over")
    keeps = asked.png is not None or asked.html is not None
    kept, probabilities, segments = [np.zeros(0, np.float32)], [], []
    total, interrupted = 0, False

    def frames() -> Iterator[float]:
        nonlocal total, interrupted
        waiting, state = np.zeros(0, np.float32), net.state
        pieces = _pieces(cast(io.BufferedIOBase, sys.stdin.buffer), channels)
        last = False
        while not last:
            try:
                piece = next(pieces, None)
            except KeyboardInterrupt:
                piece, interrupted = None, True
            last = piece is None
            new = resample(np.zeros(0, np.float32) if piece is None else piece, last)
            total += len(new)
            if keeps:
                kept.append(new)
            waiting = np.concatenate([waiting, new])
            while len(waiting) >= net.frame or (last and len(waiting)):
                frame, waiting = waiting[: net.frame], waiting[net.frame :]
                p, state = net.run(np.pad(frame, (0, net.frame - len(frame))), state)
                probabilities.append(float(p[0]))
                yield probabilities[-1]

    for segment in silero.segments(frames(), lambda: total, rate=net.rate, frame=net.frame, **options):
        segments.append(segment)
        _said(segment, asked, net)
    if not total:
        raise KeyboardInterrupt if interrupted else UsageError("no samples came on standard input")
    heard = Heard(
        "standard input",
        rate,
        channels,
        np.concatenate(kept),
        total,
        np.array(probabilities, np.float32),
        segments,
    )
    _end(heard, net)
    return heard, interrupted


def _pieces(stream: io.BufferedIOBase, channels: int) -> Iterator[np.ndarray]:
    """The samples of a stream as they come, its channels mixed."""
    rest, first = b"", True
    while data := stream.read1(2**16):
        rest += data
        if first and len(rest) >= 4:
            first = False
            for magic, name in _FORMATS.items():
                if rest.startswith(magic):
                    raise UsageError(
                        f"standard input is a {name} file, but - takes bare samples: give the file's name, "
                        "or pipe it through `ffmpeg -i - -f s16le -`"
                    )
        whole = len(rest) - len(rest) % (2 * channels)
        samples, rest = np.frombuffer(rest[:whole], "<i2").reshape(-1, channels), rest[whole:]
        if len(samples):
            yield samples.astype(np.float32).mean(1) / 32768


# ---- what is printed and written --------------------------------------------------------------------------


def _begin(name: str, rate: int, channels: int, what: str) -> None:
    heading(f"{name}: {rate:,} Hz, {channels} channel{'s' * (channels != 1)}, {what}")
    print(f"{'start':>10}  {'end':>10}  {'seconds':>10}", flush=True)


def _seconds(segment: "Segment", asked: Options, net: Net) -> tuple[float, float]:
    start, end = (round(at / net.rate, asked.time_resolution) for at in segment)
    return start, end


def _said(segment: "Segment", asked: Options, net: Net) -> None:
    start, end = _seconds(segment, asked, net)
    print("  ".join(f"{v:>10.{asked.time_resolution}f}" for v in (start, end, end - start)), flush=True)


def _end(heard: Heard, net: Net) -> None:
    print("\n".join(f"{name}: {text}" for name, text in _facts(heard, net).items()) + "\n", flush=True)


def _facts(heard: Heard, net: Net) -> dict[str, str]:
    """What one wants to know of a recording."""
    n, spoken = len(heard.segments), sum(end - start for start, end in heard.segments) / net.rate
    whole = heard.total / net.rate
    return {"speech": f"{spoken:,.1f} of {whole:,.1f} s ({spoken / whole:.0%}), {n} segment{'s' * (n != 1)}"}


def _json(asked: Options, found: list[Heard], net: Net, options: dict[str, Any]) -> dict[str, Any]:
    """Segments in samples at the rate of the net, and in seconds."""

    def of(heard: Heard) -> dict[str, Any]:
        segments = []
        for segment in heard.segments:
            start, end = _seconds(segment, asked, net)
            end = min(end, heard.total / net.rate)  # rounded, it may lie behind the last sample
            segments.append({**segment._asdict(), "start_seconds": start, "end_seconds": end})
        return {
            "file": heard.name,
            "rate": heard.rate,
            "channels": heard.channels,
            "seconds": heard.total / net.rate,
            "segments": segments,
        }

    plain = {name: None if value == math.inf else value for name, value in options.items()}
    weights = None if asked.weights is None else str(asked.weights)
    return {"rate": net.rate, "weights": weights, "options": plain, "recordings": [*map(of, found)]}


def _picture(path: Path, found: list[Heard], asked: Options, net: Net) -> None:
    """Of each recording the waveform, the spectrogram and the probability, with the segments behind."""
    from matplotlib.figure import Figure

    from funcnet.tasks._plots import _save

    figure = Figure(figsize=(11, 5.2 * len(found)), dpi=110, layout="constrained")
    parts: Any = figure.subfigures(len(found), 1, squeeze=False)
    for part, heard in zip(parts[:, 0], found, strict=True):
        part.suptitle(heard.name, fontsize=11, parse_math=False)
        wave, spectrum, speech = part.subplots(3, sharex=True, height_ratios=(1, 1.6, 1))
        seconds = heard.total / net.rate
        wave.set(ylabel="sample", xlim=(0, seconds))
        _waveform(wave, heard.samples, net.rate)
        _spectrogram(spectrum, heard.samples, net.rate)
        at = (np.arange(len(heard.probabilities)) + 1) * net.frame / net.rate
        speech.step(at, heard.probabilities, where="pre", color="#4477aa", linewidth=1)
        low = max(asked.threshold - 0.15, 0.01) if asked.neg_threshold is None else asked.neg_threshold
        for level, style in ((asked.threshold, "-"), (low, ":")):
            speech.axhline(level, color="#7d7d7d", linestyle=style, linewidth=0.8)
        speech.set(ylim=(-0.02, 1.02), ylabel="p(speech)", xlabel="seconds")
        for axes in (wave, speech):
            for start, end in heard.segments:
                axes.axvspan(start / net.rate, end / net.rate, color="#f1ebcc", linewidth=0, zorder=-1)
            axes.spines[["top", "right"]].set_visible(False)
        part.align_ylabels()
    _save(figure, path)


def _waveform(axes: Any, samples: np.ndarray, rate: int) -> None:
    """From the lowest to the highest sample of each stretch."""
    starts = np.unique(np.linspace(0, len(samples), 2 * _COLUMNS, endpoint=False).astype(int))
    low, high = (each.reduceat(samples, starts) for each in (np.minimum, np.maximum))
    axes.fill_between(starts / rate, low, high, color="#4477aa", linewidth=0.4)
    most = max(0.05, 1.05 * float(np.abs(samples).max()))
    axes.set_ylim(-most, most)


def _spectrogram(axes: Any, samples: np.ndarray, rate: int) -> None:
    """Mean power in dB of up to eight windows of each stretch, down to 80 dB below the loudest."""
    size = 512
    samples = np.pad(samples, size // 2)
    columns = min(_COLUMNS, max(1, len(samples) * 4 // size))
    starts = np.linspace(0, len(samples) - size, columns * 8).astype(int)
    power = np.empty((columns, size // 2 + 1))
    for column, of in zip(power, starts.reshape(columns, 8), strict=True):
        windows = samples[of[:, None] + np.arange(size)] * np.hanning(size)
        column[:] = (np.abs(np.fft.rfft(windows)) ** 2).mean(0)
    decibels = 10 * np.log10(np.maximum(power.T, 1e-12))
    most = max(float(decibels.max()), -20.0)
    extent = (0, (len(samples) - size) / rate, 0, rate / 2000)
    axes.imshow(
        decibels, origin="lower", aspect="auto", cmap="magma", vmin=most - 80, vmax=most, extent=extent
    )
    axes.set_ylabel("kHz")


def _html(found: list[Heard], asked: Options, net: Net) -> str:
    import tempfile
    from html import escape

    from funcnet.cli import _page

    parts, panels = [], []
    for i, heard in enumerate(found):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "listen.png")
            _picture(path, [heard], asked, net)
            picture = _page.picture(path, f"waveform, spectrogram and probabilities of {heard.name}")
        at = (np.arange(len(heard.probabilities)) + 1) * net.frame / net.rate
        edges = np.array([[s, s, e, e] for s, e in heard.segments], float).reshape(-1) / net.rate
        speech = np.tile([0.0, 1.0, 1.0, 0.0], len(heard.segments))
        panels.append(
            _page.Panel(
                f"probability of speech: {heard.name}",
                [
                    _page.Curve("speech", edges, speech, "pale", 3),
                    _page.Curve("probability", at, heard.probabilities.astype(float)),
                ],
                x="seconds",
            )
        )
        digits = asked.time_resolution
        rows = [
            [f"{v:.{digits}f}" for v in (start, end, end - start)]
            for start, end in (_seconds(segment, asked, net) for segment in heard.segments)
        ]
        columns = ["start", "end", "seconds"]
        known = {
            "rate": f"{heard.rate:,} Hz",
            "channels": str(heard.channels),
            **_facts(heard, net),
        }
        parts.append(
            _page.section(
                escape(heard.name),
                _page.facts(known),
                picture,
                _page.charts(panels[-1:], first=i),
                _page.table(columns, rows, columns) if rows else "<p>Nobody speaks.</p>",
            )
        )
    names = found[0].name if len(found) == 1 else f"{len(found)} recordings"
    title = f"Speech in {names}"
    header = f'<header><p class="soft small">funcnet listen</p><h1>{escape(title)}</h1></header>'
    return _page.page(title, header, *parts, panels=panels)
