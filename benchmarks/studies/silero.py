"""Silero's net beside onnxruntime: a minute of sound at once, one frame of a stream, and how far they differ.

onnxruntime runs silero-vad's own graphs in one thread: the one that takes a frame at a time, as silero-vad
does, and the one that takes all frames (silero_vad_16k_sequence.onnx). Give funcnet one core, too:
`taskset -c 0 python -m benchmarks silero --threads 1`. The differences are of the recordings of Debian's
pocketsphinx-testdata, where it is installed.
"""

import functools
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import WHOLE, Scale, Table, compare
from funcnet import recordings
from funcnet.hub import silero
from funcnet.nets import vad

RECORDINGS = Path("/usr/share/pocketsphinx/test/data")
CONFIG = vad.Config()


def run(scale: Scale) -> list[Table]:
    """Two tables: times, and differences."""
    quick = scale != WHOLE
    peers = find_spec("onnxruntime") is not None and find_spec("silero_vad") is not None
    params = silero.load()[0] if find_spec("silero_vad") else vad.init(jax.random.key(0), CONFIG)
    samples = np.random.default_rng(0).normal(0, 0.1, 512 * (16 if quick else 1875)).astype(np.float32)
    gap = "" if peers else "onnxruntime or silero-vad is not installed."
    times = [_whole(params, samples, peers, quick), _step(params, samples, peers, quick)]
    tables = [Table("Silero's net", times, gap or "× is relative to funcnet: above 1, it is faster.")]
    files = sorted(RECORDINGS.glob("*/*.wav"))[: 2 if quick else None]
    if peers and files:
        rows = [_differences(params, path) for path in files]
        tables.append(Table("Probabilities beside onnxruntime's, on recordings", rows, ""))
    return tables


def _whole(params: Any, samples: np.ndarray, peers: bool, quick: bool) -> dict[str, object]:
    program = jax.jit(lambda params, x: vad.apply(params, x, CONFIG)[0])
    calls: dict[str, Callable[[], object]] = {"funcnet": functools.partial(program, params, samples)}
    if peers:
        one, every = _session("silero_vad_16k_op15.onnx"), _session("silero_vad_16k_sequence.onnx")
        calls["onnxruntime, frame by frame"] = lambda: _theirs(one, samples)[0]
        calls["onnxruntime, all frames"] = lambda: _all(every, samples)
    row: dict[str, object] = {"what": f"{len(samples) / CONFIG.rate:.3g} s of sound"}
    return row | compare(calls, rounds=2 if quick else 15, warmup=1)


def _step(params: Any, samples: np.ndarray, peers: bool, quick: bool) -> dict[str, object]:
    program = jax.jit(lambda params, x, state: vad.step(params, x, CONFIG, state))
    frame = samples[: CONFIG.frame]
    zeros = {"context": CONFIG.context, "h": CONFIG.hidden, "c": CONFIG.hidden}
    state = {name: jnp.zeros(size) for name, size in zeros.items()}
    calls: dict[str, Callable[[], object]] = {"funcnet": lambda: program(params, frame, state)}
    if peers:
        one = _session("silero_vad_16k_op15.onnx")
        calls["onnxruntime, frame by frame"] = lambda: _theirs(one, frame)[0]
    row: dict[str, object] = {"what": "one frame of a stream"}
    return row | compare(calls, rounds=2 if quick else 100, sample_seconds=0.002)


def _differences(params: Any, path: Path) -> dict[str, object]:
    samples = recordings.read(path, CONFIG.rate)
    theirs, (h, c) = _theirs(_session("silero_vad_16k_op15.onnx"), samples)
    logits, state = jax.jit(lambda params, x: vad.apply(params, x, CONFIG))(params, samples)
    difference = lambda ours, theirs: float(np.abs(np.asarray(ours) - theirs).max())
    return {
        "recording": path.name,
        "seconds": f"{len(samples) / CONFIG.rate:.1f}",
        "frames above 0.5": f"{(theirs > 0.5).mean():.0%}",
        "largest difference of p": f"{difference(jax.nn.sigmoid(logits), theirs):.1e}",
        "of h": f"{difference(state['h'], h[0]):.1e}",
        "of c, relative": f"{difference(state['c'], c[0]) / np.abs(c).max():.1e}",
    }


def _session(name: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.inter_op_num_threads = options.intra_op_num_threads = 1
    path = Path(silero._installed()).with_name(name)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _theirs(session: Any, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, one frame after another, and the last state."""
    state, found = np.zeros((2, 1, 128), np.float32), []
    frames = _frames(samples)
    rate = np.array(CONFIG.rate)
    for frame in frames:
        p, state = session.run(None, {"input": frame[None], "state": state, "sr": rate})
        found.append(p.item())
    return np.array(found), state


def _all(session: Any, samples: np.ndarray) -> Any:
    zeros = np.zeros((1, 1, 128), np.float32)
    return session.run(None, {"input": _frames(samples), "h": zeros, "c": zeros})


def _frames(samples: np.ndarray) -> np.ndarray:
    """Each with the end of the one before it."""
    size, k = CONFIG.frame, CONFIG.context
    padded = np.pad(samples, (k, -len(samples) % size))
    return np.stack([padded[i : i + k + size] for i in range(0, len(padded) - k, size)])
