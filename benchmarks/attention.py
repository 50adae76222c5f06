"""Attention beside jax.nn and PyTorch: forward and its three gradients, one process each, in turn.

jax.nn is `jax.nn.dot_product_attention`, once with XLA's default flags and once with the flag of funcnet's
guard; torch is `scaled_dot_product_attention`, with as many threads as there are cores and its own layout
[n, h, t, e]. All compute o, dq, dk and dv from q, k, v and do, in float32.

Further tables: temporary memory, sliding windows, and a sequence of 32,768.
"""

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from benchmarks import harness
from benchmarks.conv import KEEP_MEMORY
from benchmarks.harness import Table


class Case(NamedTuple):
    """One attention of q, k and v [n, t, h, e], the last two with h_kv heads."""

    n: int
    t: int
    h: int
    e: int
    h_kv: int
    causal: bool = True
    window: int | None = None

    @property
    def flops(self) -> float:
        """Of the seven products that the formula needs, of what is seen only."""
        seen = self.t * (self.t + 1) / 2 if self.causal else self.t**2
        if self.window is not None:
            seen = sum(min(i + 1, self.window) for i in range(self.t))
        return 14.0 * self.n * self.h * self.e * seen


CASES = {
    "causal (1, 4096, 8, 64)": Case(1, 4096, 8, 64, 8),
    "causal (2, 1024, 12, 64)": Case(2, 1024, 12, 64, 12),
    "causal (4, 256, 6, 64)": Case(4, 256, 6, 64, 6),
    "causal (8, 256, 6, 64)": Case(8, 256, 6, 64, 6),
    "causal (12, 64, 4, 32)": Case(12, 64, 4, 32, 4),
    "causal (1, 2048, 16, 128), 4 key heads": Case(1, 2048, 16, 128, 4),
    "all seen (4, 512, 12, 64)": Case(4, 512, 12, 64, 12, causal=False),
}
WINDOWS = {
    f"{'all before' if window is None else f'window {window}'}, t = {t}": Case(1, t, 8, 64, 8, window=window)
    for t, window in ((8192, None), (8192, 256), (4096, 256), (16384, 256))
}
LONG = {"causal (1, 32768, 1, 64)": Case(1, 32768, 1, 64, 1)}


def run(quick: bool) -> list[Table]:
    """One row per case; this process imports neither jax nor torch."""
    settings = {
        "funcnet": ("funcnet", {}),
        "jax.nn, default flags": ("jax", {"FUNCNET_XLA_GUARD": "off"}),
        "jax.nn, guard's flag": ("jax", {}),
        "torch": ("torch", {}),
    }
    if importlib.util.find_spec("torch") is None:
        del settings["torch"]
    workers = {
        name: harness.Worker("benchmarks.attention", {**KEEP_MEMORY, **environment}, way)
        for name, (way, environment) in settings.items()
    }
    cases = dict(list(CASES.items())[2 if quick else 0 : 3 if quick else None])
    rounds = 2 if quick else 9
    timings = {case: harness.take_turns(workers, case, rounds) for case in cases}
    rows = [
        {"case": case, **row, "GF/s": CASES[case].flops / row["funcnet"].median / 1e9}
        for case, row in timings.items()
    ]
    ours, theirs = workers["funcnet"], workers["jax.nn, guard's flag"]
    memory = []
    for case in cases:
        bytes_ = ours.ask("memory", case), theirs.ask("memory", case)
        memory.append(
            {
                "case": case,
                "funcnet MiB": bytes_[0] / 2**20,
                "jax.nn MiB": bytes_[1] / 2**20,
                "jax.nn ÷ funcnet": bytes_[1] / bytes_[0],
            }
        )
    tables = [
        Table(
            "Forward and three gradients",
            rows,
            "Ratios are to funcnet: above 1, funcnet is faster. GF/s: the seven products, of what is seen.",
            chart=True,
        ),
        Table("Temporary memory", memory, "What XLA plans, besides arguments and results."),
    ]
    if not quick:
        alone = {"funcnet": ours}
        windows = {case: harness.take_turns(alone, case, 5)["funcnet"] for case in WINDOWS}
        whole = windows["all before, t = 8192"].median
        long = {case: harness.take_turns(alone, case, 3)["funcnet"] for case in LONG}
        tables.append(
            Table(
                "Sliding window, funcnet alone, one case after the other",
                [
                    {
                        "case": case,
                        "funcnet": timing,
                        "all before, t = 8192, takes": whole / timing.median,
                        "MiB": ours.ask("memory", case) / 2**20,
                    }
                    for case, timing in {**windows, **long}.items()
                ],
                f"time(16384) ÷ time(4096), window 256: "
                f"{windows['window 256, t = 16384'].median / windows['window 256, t = 4096'].median:.2f}.",
            )
        )
    for worker in workers.values():
        worker.close()
    return tables


# ---- the processes that are timed -------------------------------------------------------------------------


def arrays_of(case: Case) -> tuple[Any, ...]:
    """q, k, v and do."""
    import numpy as np

    rng = np.random.default_rng(0)
    q, kv = (case.n, case.t, case.h, case.e), (case.n, case.t, case.h_kv, case.e)
    return tuple(rng.standard_normal(shape, np.float32) for shape in (q, kv, kv, q))


def _by_jax(attention: Callable[[Case], Callable[..., Any]]) -> None:
    import jax
    import jax.numpy as jnp

    def compiled(case: Case) -> tuple[Any, tuple[Any, ...]]:
        def both(q: Any, k: Any, v: Any, do: Any) -> Any:
            o, pull = jax.vjp(attention(case), q, k, v)
            return o, pull(do)

        arrays = tuple(map(jnp.asarray, arrays_of(case)))
        return jax.jit(both).lower(*arrays).compile(), arrays

    def make(case: Case) -> Callable[[], object]:
        program, arrays = compiled(case)
        return lambda: program(*arrays)

    every = CASES | WINDOWS | LONG
    harness.answer(
        {name: partial(make, case) for name, case in every.items()},
        {"memory": lambda name: compiled(every[name])[0].memory_analysis().temp_size_in_bytes},
    )


def _by_funcnet() -> None:
    import funcnet as fn

    _by_jax(lambda case: partial(fn.attention.apply, causal=case.causal, window=case.window))


def _by_jax_nn() -> None:
    import jax

    importlib.import_module("funcnet")  # sets the guard's flag, unless it is off

    _by_jax(lambda case: partial(jax.nn.dot_product_attention, is_causal=case.causal))


def _by_torch() -> None:
    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    attend = torch.nn.functional.scaled_dot_product_attention

    def make(case: Case) -> Callable[[], object]:
        q, k, v, do = (torch.from_numpy(x).transpose(1, 2).contiguous() for x in arrays_of(case))
        q, k, v = (x.requires_grad_() for x in (q, k, v))

        def call() -> object:
            o = attend(q, k, v, is_causal=case.causal, enable_gqa=case.h != case.h_kv)
            return o, torch.autograd.grad(o, (q, k, v), do)

        return call

    harness.answer({name: partial(make, case) for name, case in CASES.items()}, wait=lambda result: result)


if __name__ == "__main__":
    {"funcnet": _by_funcnet, "jax": _by_jax_nn, "torch": _by_torch}[sys.argv[1]]()
