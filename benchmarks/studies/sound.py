"""Sound: spectra by FFT and by product, beside JAX's derivative and torch; bands; a filter beside SciPy's.

float32. The first table is why `stft` takes a product for short frames and lengths with a large prime; the
second its adjoint, an inverse FFT, against what JAX derives of the same forward pass; the third `mel` as sums
over pieces against the product with its matrix; the fourth `lfilter`, a low-pass of the second order.
"""

import functools
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import funcnet as fn
from benchmarks.harness import WHOLE, Scale, Table, compare
from funcnet.ops.sound import _frames


def run(scale: Scale) -> list[Table]:
    """Four tables: the forms of stft, its gradient, mel and lfilter."""
    quick = scale != WHOLE
    rounds, t = (2, 800) if quick else (9, 480_000)
    note = "× is relative to funcnet: above 1, it is faster."
    lengths = [16, 64] if quick else [8, 16, 32, 64, 101, 128, 251, 256, 400, 509, 512, 2048]
    sizes = [(64, 16)] if quick else [(256, 128), (400, 160), (2048, 512)]
    bands = [(5, 33, 8)] if quick else [(3000, 201, 80), (3000, 201, 128), (1000, 1025, 128)]
    signals = [(1, 200)] if quick else [(1, 16_000), (8, 16_000), (1, 480_000)]
    return [
        Table("Frames of n samples, a hop of n / 2", [_forms(n, t, rounds) for n in lengths], ""),
        Table("stft, with the gradient by the signal", [_stft(*size, t, rounds) for size in sizes], note),
        Table("mel, with the gradient", [_mel(*size, rounds) for size in bands], note),
        Table(
            "lfilter of signals of t samples, forward", [_lfilter(*size, rounds) for size in signals], note
        ),
    ]


def _floats(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


def _timed(ways: dict[str, Callable[..., Any]], args: tuple[Any, ...], rounds: int) -> dict[str, Any]:
    calls = {name: _compiled(way, *args) for name, way in ways.items()}
    return dict(compare(calls, rounds=rounds, warmup=1))


def _compiled(way: Callable[..., Any], *args: Any) -> Callable[[], object]:
    return functools.partial(jax.jit(way).lower(*args).compile(), *args)


def _forms(n: int, t: int, rounds: int) -> dict[str, object]:
    u = _floats(2 * t // n, n)

    def product(u: jax.Array) -> jax.Array:
        rows = _frames.basis(n, u.dtype).reshape(n, -1)
        return jnp.matmul(u, rows, precision="highest").reshape(len(u), -1, 2)

    def fft(u: jax.Array) -> jax.Array:
        z = jnp.fft.rfft(u)
        return jnp.stack([z.real, z.imag], -1)

    row: dict[str, object] = {"n": n, "chosen": "product" if _frames._by_product(n) else "fft"}
    return row | _timed({"fft": fft, "product": product}, (u,), rounds)


def _squared(f: Callable[..., Any]) -> Callable[..., Any]:
    return jax.value_and_grad(lambda x: (f(x) ** 2).sum())


def _stft(n_fft: int, hop: int, t: int, rounds: int) -> dict[str, object]:
    x = _floats(t)
    ours = functools.partial(fn.stft.apply, n_fft=n_fft, hop=hop)

    def by_jax(x: jax.Array) -> Any:
        with fn.autodiff("jax"):
            return _squared(ours)(x)

    ways = {"funcnet": _squared(ours), "JAX's derivative": by_jax}
    calls: dict[str, Callable[[], object]] = {name: _compiled(way, x) for name, way in ways.items()}
    if find_spec("torch") is not None:
        calls["torch"] = _torch(np.array(x), n_fft, hop)
    row: dict[str, object] = {"size": f"{t} samples, n_fft {n_fft}, hop {hop}"}
    return row | compare(calls, rounds=rounds, warmup=1)


def _torch(x: np.ndarray, n_fft: int, hop: int) -> Callable[[], object]:
    import torch

    signal, window = torch.from_numpy(x).requires_grad_(), torch.hann_window(n_fft)

    def call() -> object:
        signal.grad = None
        z = torch.stft(signal, n_fft, hop, window=window, return_complex=True)
        (torch.view_as_real(z) ** 2).sum().backward()
        return ()

    return call


def _mel(frames: int, bins: int, mels: int, rounds: int) -> dict[str, object]:
    x, how = jnp.abs(_floats(frames, bins)), {"rate": 16000.0, "mels": mels}
    ways = {
        "funcnet": _squared(functools.partial(fn.mel.apply, **how)),
        "product": _squared(functools.partial(fn.mel.reference, **how)),
    }
    row: dict[str, object] = {"size": f"{frames} × {bins} bins, {mels} bands"}
    return row | _timed(ways, (x,), rounds)


def _lfilter(n: int, t: int, rounds: int) -> dict[str, object]:
    x = _floats(n, t)
    b, a = jnp.asarray([0.02, 0.04, 0.02], jnp.float32), jnp.asarray([1.0, -1.56, 0.64], jnp.float32)
    calls: dict[str, Callable[[], object]] = {"funcnet": _compiled(fn.lfilter.apply, x, b, a)}
    if find_spec("scipy") is not None:
        from scipy import signal

        calls["SciPy"] = functools.partial(signal.lfilter, *map(np.asarray, (b, a, x)))
    row: dict[str, object] = {"size": f"{n} × {t}"}
    return row | compare(calls, rounds=rounds, warmup=1)
