"""Convolution beside lax and PyTorch: forward and both gradients.

lax is what Flax, Equinox and Haiku run: `jax.lax.conv_general_dilated` under `jax.vjp`, with XLA's default
flags (`compiler_options`) and with the flag that funcnet's guard sets, in the process where funcnet lives.
PyTorch runs channels-last. All compute y, dx and dw from x, w and dy, in float32, and must give the same.

Further tables: float64; all singular values of a circular convolution.
"""

import math
import sys
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

from benchmarks import harness
from benchmarks.harness import QUICK, SMOKE, Entrant, Measure, Process, Scale, Table


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
TINY = {  # for a smoke test
    "tiny depthwise 3×3, stride 2": Case((3, 3), 6, 6, (10, 10), 2, stride=2, groups=6),
    "tiny transposed 4×4, stride 2": Case((4, 4), 3, 5, (6, 6), 2, stride=2, transposed=True),
}
ALL = CASES | DOUBLE | TINY
PRODUCT, SPECTRUM = "matrix product 2048³", "65,536 of 3×3, 64→64, 32 px"

JAX = Process("benchmarks.conv", ("jax",))
JAX_DOUBLE = Process("benchmarks.conv", ("jax",), (("JAX_ENABLE_X64", "1"),))
MEMORY = {  # those that can tell the memory that they plan
    "funcnet": Entrant(JAX, "funcnet", "funcnet"),
    "lax": Entrant(JAX, "lax_default_flags"),
    "lax, guard's flag": Entrant(JAX, "lax"),
}
TORCH = Process("benchmarks.conv", ("torch",))
ENTRANTS = {**MEMORY, "PyTorch": Entrant(TORCH, "torch", "torch")}
PRODUCTS = {
    "funcnet": Entrant(JAX, "product", "funcnet"),
    "PyTorch": Entrant(TORCH, "product", "torch"),
}
ENTRANTS_DOUBLE = {name: entrant._replace(process=JAX_DOUBLE) for name, entrant in MEMORY.items()}
SPECTRA = {"funcnet": Entrant(JAX, "spectrum", "funcnet"), "NumPy": Entrant(JAX, "spectrum_numpy", "numpy")}


def run(scale: Scale) -> list[Table]:
    """One row per case."""
    if scale == SMOKE:
        return [_table("Forward and both gradients", harness.race(ENTRANTS, TINY, scale))]
    some = slice(None, None, 6 if scale == QUICK else 1)
    product = products(scale)
    peak = product.get("funcnet", math.nan)
    timed = harness.race(ENTRANTS, list(CASES)[some], scale)
    rows = {case: row | rates(row, CASES[case].flops, peak) for case, row in timed.items()}
    note = (
        "Ratios are to funcnet: above 1, funcnet is faster. GF/s are funcnet's, by the formula of the "
        "convolution. All processes keep freed memory (`MALLOC_TRIM_THRESHOLD_` and its kin). "
        f"{told(product)}"
    )
    double = harness.race(ENTRANTS_DOUBLE, list(DOUBLE)[some], scale)
    spectrum = harness.race(SPECTRA, [SPECTRUM], scale)
    return [
        _table("Forward and both gradients", rows, note),
        Table("float64", [{"case": case, **row} for case, row in double.items()]),
        Table(
            "All singular values of a circular convolution",
            [{"singular values": case, **row} for case, row in spectrum.items()],
            "NumPy: the singular values of `numpy.fft.fft2` of the kernel at every frequency. A real kernel "
            "has the same ones at a frequency and at its negative, which funcnet decomposes once.",
        ),
    ]


def products(scale: Scale) -> dict[str, float]:
    """GF/s of a plain matrix product, by who computes it: how far rows apart may be by that alone."""
    row = harness.race(PRODUCTS, [PRODUCT], scale)[PRODUCT]
    return {name: 2e-9 * 2048**3 / v.median for name, v in row.items() if isinstance(v, Measure)}


def told(product: dict[str, float]) -> str:
    """The sentence for a table's notes."""
    return (
        f"A 2048³ matrix product: {', '.join(f'{name} {rate:.0f} GF/s' for name, rate in product.items())}."
    )


def _table(title: str, rows: dict[str, dict[str, object]], note: str = "") -> Table:
    return Table(title, [{"case": case, **row} for case, row in rows.items()], note, chart=True)


def rates(row: dict[str, object], flops: float, peak: float | None = None) -> dict[str, float]:
    """GF/s of funcnet, and its share of the product's if that is given; nothing where it was not timed."""
    own = row.get("funcnet")
    if not isinstance(own, Measure):
        return {}
    rate = flops / own.median / 1e9
    return {"GF/s": rate} | ({} if peak is None else {"of the product's": rate / peak})


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


def numbers(arrays: Iterable[Any]) -> list[float]:
    """The norm of each array, and four times that plus a projection, which sees order and sign.

    On a random vector the projection is N(0, norm²), so that the sum is not near zero.
    """
    import numpy as np

    found = []
    for array in arrays:
        flat = np.asarray(array, np.float64).ravel()
        norm = float(np.linalg.norm(flat))
        along = float(flat @ np.random.default_rng(1).standard_normal(flat.size, np.float32))
        found += [norm, 4 * norm + along]
    return found


# ---- the process of funcnet and lax -----------------------------------------------------------------------


def _serve_jax() -> None:
    import jax
    import jax.numpy as jnp
    import numpy as np

    import funcnet as fn
    from benchmarks.peers.plain import DEFAULT_FLAGS

    def program(way: str, case: Case) -> tuple[Any, list[Any]]:
        product = partial(_funcnet if way == "funcnet" else _lax, case)

        def both(x: Any, w: Any, dy: Any) -> Any:
            y, pull = jax.vjp(product, x, w)
            return y, *pull(dy)

        flags = DEFAULT_FLAGS if way == "lax_default_flags" else None
        # float is float32, or in a process with JAX_ENABLE_X64 float64
        return jax.jit(both, compiler_options=flags), [jnp.asarray(v, float) for v in drawn(case)]

    def spectrum() -> Callable[[], Any]:
        values = lambda w: fn.conv.operator({"w": w}, (32, 32, 64), padding_mode="circular").singular_values()
        return partial(jax.jit(values), kernel())

    def spectrum_numpy() -> Callable[[], Any]:
        w = np.asarray(kernel())
        values = lambda: np.linalg.svd(np.fft.fft2(w, (32, 32), axes=(0, 1)), compute_uv=False)
        return lambda: np.sort(values(), axis=None)[::-1]

    def kernel() -> Any:
        return 0.05 * jax.random.normal(jax.random.key(0), (3, 3, 64, 64), jnp.float32)

    def square() -> Callable[[], Any]:
        a = jnp.ones((2048, 2048), jnp.float32)
        return partial(jax.jit(jnp.matmul), a, a)

    def make(way: str, case: str) -> Callable[[], Any]:
        if way in others:
            return others[way]()
        f, arguments = program(way, ALL[case])
        return partial(f, *arguments)

    def memory(way: str, case: str) -> int:
        """Temporary bytes that XLA plans."""
        f, arguments = program(way, ALL[case])
        return f.lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    others = {"spectrum": spectrum, "spectrum_numpy": spectrum_numpy, "product": square}
    harness.serve(make, check=lambda result: numbers(jax.tree.leaves(result)), others={"memory": memory})


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


# ---- the process of PyTorch -------------------------------------------------------------------------------


def _serve_torch() -> None:
    from benchmarks.peers.torch import torch  # with as many threads as it is given cores

    def make(way: str, name: str) -> Callable[[], Any]:
        if way == "product":
            a = torch.ones(2048, 2048)
            return lambda: a @ a
        case = ALL[name]
        d = len(case.kernel)
        layout = {2: torch.channels_last, 3: torch.channels_last_3d}.get(d, torch.contiguous_format)
        x, w, dy = (torch.from_numpy(v) for v in drawn(case))
        first = lambda v: v.movedim(-1, 1).contiguous(memory_format=layout)
        x, dy = first(x), first(dy)
        w = w.movedim((-1, -2), (0, 1)).contiguous(memory_format=layout)
        x.requires_grad_()
        w.requires_grad_()
        conv = getattr(torch.nn.functional, f"conv{'_transpose' * case.transposed}{d}d")
        symmetric = all(low == high for low, high in case.padding)
        padding = [low for low, _ in case.padding] if symmetric else 0
        flat = [n for pair in reversed(case.padding) for n in pair]

        def call() -> Any:
            padded = x if symmetric else torch.nn.functional.pad(x, flat)
            y = conv(padded, w, None, case.stride, padding, dilation=case.dilation, groups=case.groups)
            return y, *torch.autograd.grad(y, (x, w), dy)

        return call

    def check(result: Any) -> list[float]:
        if isinstance(result, torch.Tensor):
            return numbers([result])
        y, dx, dw = (v.detach() for v in result)
        return numbers([y.movedim(1, -1), dx.movedim(1, -1), dw.movedim((0, 1), (-1, -2))])

    harness.serve(make, check=check, wait=lambda result: result)


if __name__ == "__main__":
    {"jax": _serve_jax, "torch": _serve_torch}[sys.argv[1]]()
