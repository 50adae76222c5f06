"""Convolution training beside lax and PyTorch: forward and both gradients, one process each, in turn.

lax is what Flax, Equinox and Haiku run: `jax.lax.conv_general_dilated` under `jax.vjp`, once with XLA's
default flags and once with the flag that funcnet's guard sets. PyTorch runs channels-last, with as many
threads as there are cores. All compute y, dx and dw from x, w and dy, in float32.
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

    @property
    def out(self) -> tuple[int, ...]:
        """Output sizes."""
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
    "1-D causal, k 4, 256, t 4096, b 2": Case((4,), 256, 256, (4096,), 2),
    "1-D causal, k 64, 256, t 4096, b 1": Case((64,), 256, 256, (4096,), 1),
    "3-D 3×3×3, 16→32, 16 px, b 8": Case((3, 3, 3), 16, 32, (16, 16, 16), 8),
}


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
    taken: dict[str, dict[str, list[float]]] = {}
    workers = {
        name: harness.Worker("benchmarks.conv", environment, way)
        for name, (way, environment) in settings.items()
    }
    for case in list(CASES)[:: 8 if quick else 1]:
        calls = min(worker.ask("prepare", case) for worker in workers.values())
        samplers = {name: partial(worker.ask, "sample", calls) for name, worker in workers.items()}
        for name, samples in harness.interleave(samplers, 2 if quick else 9).items():
            taken.setdefault(case, {})[name] = [wall for wall, _ in samples]
    for worker in workers.values():
        worker.close()
    timings = {case: harness.summarise(samples) for case, samples in taken.items()}
    rows = [
        {"case": case, **row, "GF/s": CASES[case].flops / row["funcnet"].median / 1e9}
        for case, row in timings.items()
    ]
    note = "Ratios are to funcnet: above 1, funcnet is faster."
    return [Table("Forward and both gradients", rows, note), Table("Geometric means", [_means(timings)])]


def _means(timings: dict[str, dict[str, Timing]]) -> dict[str, object]:
    peers = [name for name in next(iter(timings.values())) if name != "funcnet"]
    return {
        f"{name} ÷ funcnet": statistics.geometric_mean([row[name].ratio for row in timings.values()])
        for name in peers
    }


def _drawn(case: Case) -> tuple[Any, Any, Any]:
    import numpy as np

    rng = np.random.default_rng(0)
    shapes = (
        (case.batch, *case.size, case.c_in),
        (*case.kernel, case.c_in // case.groups, case.c_out),
        (case.batch, *case.out, case.c_out),
    )
    x, w, dy = (0.1 * rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    return x, w, dy


def _by_jax(product: Callable[..., Any]) -> dict[str, Callable[[], Callable[[], object]]]:
    import jax
    import jax.numpy as jnp

    def make(case: Case) -> Callable[[], object]:
        x, w, dy = map(jnp.asarray, _drawn(case))

        def both(x: Any, w: Any, dy: Any) -> Any:
            y, pull = jax.vjp(lambda x, w: product(case, x, w), x, w)
            return y, pull(dy)

        return partial(jax.jit(both), x, w, dy)

    return {name: partial(make, case) for name, case in CASES.items()}


def _funcnet(case: Case, x: Any, w: Any) -> Any:
    import funcnet as fn

    return fn.conv.apply(
        {"w": w}, x, stride=case.stride, padding=case.padding, dilation=case.dilation, groups=case.groups
    )


def _lax(case: Case, x: Any, w: Any) -> Any:
    from jax import lax

    d = len(case.kernel)
    spatial = "DHW"[-d:]
    layout = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
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
        x, w, dy = (torch.from_numpy(v) for v in _drawn(case))
        first = lambda v: v.movedim(-1, 1).contiguous(memory_format=layout)
        x, dy = first(x), first(dy)
        w = w.movedim((-1, -2), (0, 1)).contiguous(memory_format=layout)
        x.requires_grad_()
        w.requires_grad_()
        symmetric = all(low == high for low, high in case.padding)
        padding = [pair[0] for pair in case.padding] if symmetric else 0
        flat = [n for pair in reversed(case.padding) for n in pair]

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
        harness.answer(_by_jax({"funcnet": _funcnet, "lax": _lax}[sys.argv[1]]))
