"""Convolution training beside lax and PyTorch: forward and both gradients, one process each, in turn.

lax is what Flax, Equinox and Haiku run: `jax.lax.conv_general_dilated` under `jax.vjp`, once with XLA's
default flags and once with the flag that funcnet's guard sets. PyTorch runs channels-last, with as many
threads as there are cores. All compute y, dx and dw from x, w and dy, in float32.

Further tables: float64; the temporary memory that XLA plans; all singular values of a circular convolution.
"""

import importlib.util
import math
import os
import statistics
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from benchmarks import harness
from benchmarks.harness import Table, Timing


class Case(NamedTuple):
    """One convolution."""

    kernel: tuple[int, ...]
    c_in: int
    c_out: int
    size: tuple[int, ...]
    batch: int
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    transposed: bool = False  # size is that of the output, and of the input of the convolution it transposes

    @property
    def out(self) -> tuple[int, ...]:
        """Sizes of what the convolution gives."""
        return tuple(-(-n // self.stride) for n in self.size)

    @property
    def padding(self) -> tuple[tuple[int, int], ...]:
        """(low, high) for each axis: causal in one dimension, else as XLA pads for "same"."""
        pairs = []
        for n, k, o in zip(self.size, self.kernel, self.out, strict=True):
            reach = (k - 1) * self.dilation + 1
            total = max((o - 1) * self.stride + reach - n, 0)
            pairs.append((total, 0) if len(self.size) == 1 else (total // 2, total - total // 2))
        return tuple(pairs)

    @property
    def flops(self) -> float:
        """Of the three products."""
        return (
            6.0
            * self.batch
            * math.prod(self.out)
            * math.prod(self.kernel)
            * self.c_in
            // self.groups
            * self.c_out
        )


CASES = {
    "3×3, 3→64, 32 px, b 64": Case((3, 3), 3, 64, (32, 32), 64),
    "3×3, 64→64, 32 px, b 32": Case((3, 3), 64, 64, (32, 32), 32),
    "3×3, 128→256, stride 2, 32 px, b 16": Case((3, 3), 128, 256, (32, 32), 16, stride=2),
    "3×3, 256→256, 16 px, b 16": Case((3, 3), 256, 256, (16, 16), 16),
    "3×3, 16→16, 32 px, b 128": Case((3, 3), 16, 16, (32, 32), 128),
    "3×3, 1→32, 28 px, b 128": Case((3, 3), 1, 32, (28, 28), 128),
    "1×1, 256→256, 16 px, b 32": Case((1, 1), 256, 256, (16, 16), 32),
    "7×7, 3→64, stride 2, 112 px, b 8": Case((7, 7), 3, 64, (112, 112), 8, stride=2),
    "5×5, 32→64, 14 px, b 128": Case((5, 5), 32, 64, (14, 14), 128),
    "3×3, dilation 2, 64→64, 32 px, b 16": Case((3, 3), 64, 64, (32, 32), 16, dilation=2),
    "3×3, 8 groups, 64→64, 32 px, b 32": Case((3, 3), 64, 64, (32, 32), 32, groups=8),
    "depthwise 3×3, 128, 32 px, b 32": Case((3, 3), 128, 128, (32, 32), 32, groups=128),
    "depthwise 7×7, 96, 28 px, b 16": Case((7, 7), 96, 96, (28, 28), 16, groups=96),
    "transposed 4×4, stride 2, 64→64, 32 px, b 32": Case(
        (4, 4), 64, 64, (32, 32), 32, stride=2, transposed=True
    ),
    "1-D causal, k 4, 256, t 4096, b 2": Case((4,), 256, 256, (4096,), 2),
    "1-D causal, k 64, 256, t 4096, b 1": Case((64,), 256, 256, (4096,), 1),
    "3-D 3×3×3, 16→32, 16 px, b 8": Case((3, 3, 3), 16, 32, (16, 16, 16), 8),
}


DOUBLE = {
    "float64, 3×3, 3→64, 32 px, b 16": CASES["3×3, 3→64, 32 px, b 64"]._replace(batch=16),
    "float64, 3×3, 64→64, 32 px, b 4": CASES["3×3, 64→64, 32 px, b 32"]._replace(batch=4),
    "float64, 3×3, 16→16, 32 px, b 16": CASES["3×3, 16→16, 32 px, b 128"]._replace(batch=16),
    "float64, 5×5, 32→64, 14 px, b 16": CASES["5×5, 32→64, 14 px, b 128"]._replace(batch=16),
}
# Freed memory stays with the process. Else every call returns its results to the system and faults them in
# again, page by page: on the machine of the results 5 to 15 ms a call, at random, for all of them alike.
KEEP_MEMORY = {
    "MALLOC_TRIM_THRESHOLD_": "8000000000",
    "MALLOC_TOP_PAD_": "500000000",
    "MALLOC_MMAP_MAX_": "0",
}
PRODUCT, SPECTRUM = "matrix product 2048³", "singular values"


def run(quick: bool) -> list[Table]:
    """One row per case; this process imports neither jax nor torch."""
    settings = {
        "funcnet": ("funcnet", {}),
        "lax, default flags": ("lax", {"FUNCNET_XLA_GUARD": "off"}),
        "lax, guard's flag": ("lax", {}),
        "torch": ("torch", {}),
    }
    if importlib.util.find_spec("torch") is None:
        del settings["torch"]
    workers = {
        name: harness.Worker("benchmarks.conv", {**KEEP_MEMORY, **environment}, way)
        for name, (way, environment) in settings.items()
    }
    every, rounds = (8, 2) if quick else (1, 9)
    timings = _timings(workers, list(CASES)[::every], rounds)
    by_jax = {name: worker for name, worker in workers.items() if name != "torch"}
    double = _timings(by_jax, list(DOUBLE)[::every], rounds)
    product = _timings({"funcnet": workers["funcnet"]}, [PRODUCT], rounds)[PRODUCT]["funcnet"]
    spectrum = _timings({"funcnet": workers["funcnet"]}, [SPECTRUM, f"{SPECTRUM}, NumPy"], rounds)
    memory = [
        {
            "case": case,
            "funcnet MiB": (ours := workers["funcnet"].ask("memory", case)) / 2**20,
            "lax MiB": (theirs := workers["lax, guard's flag"].ask("memory", case)) / 2**20,
            "ratio": ours / max(theirs, 1),
        }
        for case in timings
    ]
    for worker in workers.values():
        worker.close()
    peak = 2 * 2048**3 / product.median / 1e9
    rates = {case: CASES[case].flops / row["funcnet"].median / 1e9 for case, row in timings.items()}
    rows = [
        {"case": case, **row, "GF/s": rates[case], "of the product's": rates[case] / peak}
        for case, row in timings.items()
    ]
    note = (
        "Ratios are to funcnet: above 1, funcnet is faster. GF/s are funcnet's, by the formula of the "
        "convolution. All processes keep freed memory (`MALLOC_TRIM_THRESHOLD_` and its kin). "
        f"A 2048³ matrix product in the same process runs at {peak:.0f} GF/s ({product}) in funcnet's."
    )
    values = [{"how": name, "time": row["funcnet"]} for name, row in spectrum.items()]
    return [
        Table("Forward and both gradients", rows, note, chart=True),
        Table("Geometric means", [_means(timings)]),
        Table("float64", [{"case": case, **row} for case, row in double.items()]),
        Table("Temporary memory", memory, "What XLA plans for y, dx and dw together, besides arguments."),
        Table("All 65,536 singular values, 3×3, 64→64, circular, 32 px", values),
    ]


def _timings(
    workers: dict[str, harness.Worker], cases: list[str], rounds: int
) -> dict[str, dict[str, Timing]]:
    return {case: harness.take_turns(workers, case, rounds) for case in cases}


def _means(timings: dict[str, dict[str, Timing]]) -> dict[str, object]:
    peers = [name for name in next(iter(timings.values())) if name != "funcnet"]
    return {
        f"{name} ÷ funcnet": statistics.geometric_mean([row[name].ratio for row in timings.values()])
        for name in peers
    }


def drawn(case: Case) -> tuple[Any, Any, Any]:
    """x, w and dy, as NumPy arrays."""
    import numpy as np

    rng = np.random.default_rng(0)
    x, w, dy = (
        0.1 * rng.standard_normal(shape).astype(np.float32)
        for shape in (
            (case.batch, *case.size, case.c_in),
            (*case.kernel, case.c_in // case.groups, case.c_out),
            (case.batch, *case.out, case.c_out),
        )
    )
    return (dy, w, x) if case.transposed else (x, w, dy)


def _by_jax(product: Callable[..., Any]) -> None:
    import jax
    import jax.numpy as jnp
    import numpy as np

    import funcnet as fn  # its guard, unless the environment says no

    jax.config.update("jax_enable_x64", True)

    def program(case: Case, dtype: Any) -> tuple[Any, tuple[Any, ...]]:
        def both(x: Any, w: Any, dy: Any) -> Any:
            y, pull = jax.vjp(lambda x, w: product(case, x, w), x, w)
            return y, pull(dy)

        return jax.jit(both), tuple(jnp.asarray(v, dtype) for v in drawn(case))

    def make(case: Case, dtype: Any) -> Callable[[], object]:
        f, arguments = program(case, dtype)
        return partial(f, *arguments)

    def memory(name: str) -> int:
        f, arguments = program(CASES[name], jnp.float32)
        return f.lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    def spectrum() -> Callable[[], object]:
        w = 0.05 * jax.random.normal(jax.random.key(0), (3, 3, 64, 64), jnp.float32)
        values = lambda w: fn.conv.operator({"w": w}, (32, 32, 64), padding_mode="circular").singular_values()
        return partial(jax.jit(values), w)

    def by_numpy() -> Callable[[], object]:
        w = np.asarray(0.05 * jax.random.normal(jax.random.key(0), (3, 3, 64, 64), jnp.float32))
        return lambda: np.linalg.svd(np.fft.fft2(w, (32, 32), axes=(0, 1)), compute_uv=False)

    def square() -> Callable[[], object]:
        a = jax.random.normal(jax.random.key(0), (2048, 2048), jnp.float32)
        return partial(jax.jit(jnp.matmul), a, a)

    cases = {name: partial(make, case, jnp.float32) for name, case in CASES.items()}
    cases |= {name: partial(make, case, jnp.float64) for name, case in DOUBLE.items()}
    cases |= {PRODUCT: square, SPECTRUM: spectrum, f"{SPECTRUM}, NumPy": by_numpy}
    harness.answer(cases, {"memory": memory})


def _funcnet(case: Case, x: Any, w: Any) -> Any:
    import funcnet as fn

    options = {
        "stride": case.stride,
        "padding": case.padding,
        "dilation": case.dilation,
        "groups": case.groups,
    }
    if case.transposed:
        return fn.conv_transpose.apply({"w": w}, x, output_shape=case.size, **options)
    return fn.conv.apply({"w": w}, x, **options)


def _lax(case: Case, x: Any, w: Any) -> Any:
    from jax import lax

    d = len(case.kernel)
    spatial = "DHW"[-d:]
    layout = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
    if case.transposed:
        return lax.conv_transpose(
            x, w, (case.stride,) * d, "SAME", dimension_numbers=layout, transpose_kernel=True
        )
    return lax.conv_general_dilated(
        x,
        w,
        (case.stride,) * d,
        case.padding,
        rhs_dilation=(case.dilation,) * d,
        dimension_numbers=layout,
        feature_group_count=case.groups,
    )


def _by_torch() -> dict[str, Callable[[], Callable[[], object]]]:
    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(len(os.sched_getaffinity(0)))

    def make(case: Case) -> Callable[[], object]:
        d = len(case.kernel)
        conv = getattr(torch.nn.functional, f"conv{d}d")
        layout = {2: torch.channels_last, 3: torch.channels_last_3d}.get(d, torch.contiguous_format)
        x, w, dy = (torch.from_numpy(v) for v in drawn(case))
        first = lambda v: v.movedim(-1, 1).contiguous(memory_format=layout)
        x, dy = first(x), first(dy)
        w = w.movedim((-1, -2), (0, 1)).contiguous(memory_format=layout)
        x.requires_grad_()
        w.requires_grad_()
        symmetric = all(low == high for low, high in case.padding)
        padding = [pair[0] for pair in case.padding] if symmetric else 0
        flat = [n for pair in reversed(case.padding) for n in pair]

        if case.transposed:
            conv = getattr(torch.nn.functional, f"conv_transpose{d}d")

            def transposed() -> object:
                y = conv(x, w, None, case.stride, [low for low, _ in case.padding], groups=case.groups)
                return y, torch.autograd.grad(y, (x, w), dy)

            return transposed

        def call() -> object:
            padded = x if symmetric else torch.nn.functional.pad(x, flat)
            y = conv(padded, w, None, case.stride, padding, dilation=case.dilation, groups=case.groups)
            return y, torch.autograd.grad(y, (x, w), dy)

        return call

    return {name: partial(make, case) for name, case in CASES.items()}


if __name__ == "__main__":
    if sys.argv[1] == "torch":
        harness.answer(_by_torch(), wait=lambda result: result)
    else:
        _by_jax({"funcnet": _funcnet, "lax": _lax}[sys.argv[1]])
